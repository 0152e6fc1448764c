/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/shed.h"

#include <assert.h>

#include "cache/cache.h"

void shed_forget(struct page *page)
{
	struct shed_queue *q = &ns_of(page)->tenant->shed_queue;

	if (!page->in_shed)
		return;
	page->in_shed = false;
	if (page->shed_prev)
		page->shed_prev->shed_next = page->shed_next;
	else
		q->head = page->shed_next;
	if (page->shed_next)
		page->shed_next->shed_prev = page->shed_prev;
	else
		q->tail = page->shed_prev;
	page->shed_next = page->shed_prev = NULL;
	q->n--;
}

void shed_settle(struct page *page)
{
	struct shed_queue *q = &ns_of(page)->tenant->shed_queue;
	bool may_go = ns_of(page)->layout.refine_bytes && page_readable(page) && !page->shed &&
		      page->refine_pins == 0 && !page->unlisted;

	if (may_go == page->in_shed)
		return;
	if (!may_go) {
		shed_forget(page);
		return;
	}
	page->in_shed = true;
	page->shed_next = NULL;
	page->shed_prev = q->tail;
	if (q->tail)
		q->tail->shed_next = page;
	else
		q->head = page;
	q->tail = page;
	q->n++;
}

/* The books of a page that becomes bytes larger or smaller. */
static void resize(struct cache *cache, struct page *page, uint64_t bytes, bool grows)
{
	struct ns *ns = ns_of(page);
	uint64_t delta = grows ? bytes : 0 - bytes;

	page->bytes += delta;
	policy_resized(&ns->tenant->policy, page, delta);
	ns->bytes += delta;
	ns->tenant->bytes += delta;
	if (page->held)
		ns->tenant->held += delta;
	cache->bytes += delta;
	if (page->state == PAGE_RESIDENT_STORED)
		cache_add_stored(cache, ns->tenant, delta);
}

bool shed_one(struct cache *cache, struct tenant *tenant)
{
	struct page *page = tenant->shed_queue.head;
	struct ns *ns;
	uint64_t at;

	if (!page || cache->closing || cache->config.no_shed)
		return false;
	/* Whole while it can be. */
	(void)spill_last_call(cache, page);
	ns = ns_of(page);
	at = ns_page_offset(ns, page) + ns->layout.base_bytes;
	shed_forget(page);
	scrub_disturb(cache, page);
	if (arena_punch(&ns->arena, at, ns->layout.refine_bytes) < 0)
		/* still counted by the kernel; cache_trim */
		cache_count(cache, tenant, STAT_punch_failures, 1);
	shed_mark(cache, page);
	event_page(cache, EVENT_SHED, page, NULL);
	cache_count(cache, tenant, STAT_sheds, 1);
	cache_count(cache, tenant, STAT_bytes_shed, ns->layout.refine_bytes);
	return true;
}

void shed_mark(struct cache *cache, struct page *page)
{
	page->shed = true;
	resize(cache, page, ns_of(page)->layout.refine_bytes, false);
}

void shed_refill_begin(struct cache *cache, struct page *page)
{
	assert(page->shed);
	scrub_disturb(cache, page);
	resize(cache, page, ns_of(page)->layout.refine_bytes, true);
}

void shed_refill_end(struct cache *cache, struct page *page, bool good)
{
	assert(page->shed);
	if (!good) {
		resize(cache, page, ns_of(page)->layout.refine_bytes, false);
		return;
	}
	page->shed = false;
	event_page(cache, EVENT_REFILLED, page, NULL);
	cache_count(cache, ns_of(page)->tenant, STAT_refills, 1);
	shed_settle(page);
}
