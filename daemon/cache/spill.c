/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/spill.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "cache/cache.h"

/* Copies and refusals of one spill_pump: a tenth of a millisecond each, and next to nothing. */
#define BURST_PUTS    2u
#define BURST_REFUSED 64u

/* One put in flight. The page may go meanwhile, and its namespace. */
struct spill {
	struct cache *cache;
	uint32_t ns;
	struct tenant *tenant;
	struct page_ref ref;
	uint64_t bytes;
	uint32_t position;
	uint8_t digest[IDENTITY_DIGEST], parent[IDENTITY_DIGEST];
};

/* ---- the queue ---- */

void spill_want(struct page *page)
{
	struct spill_queue *q = &ns_of(page)->tenant->spill_queue;
	const struct tier *tier = ns_of(page)->tenant->tier;

	if (!tier || page->state != PAGE_RESIDENT || page->in_spill || page->spilling ||
	    page->unlisted || page->bytes > tier->page_bytes_max)
		return;
	page->in_spill = true;
	page->spill_next = NULL;
	page->spill_prev = q->tail;
	if (q->tail)
		q->tail->spill_next = page;
	else
		q->head = page;
	q->tail = page;
	q->n++;
}

void spill_forget(struct page *page)
{
	struct spill_queue *q = &ns_of(page)->tenant->spill_queue;

	if (!page->in_spill)
		return;
	page->in_spill = false;
	if (page->spill_prev)
		page->spill_prev->spill_next = page->spill_next;
	else
		q->head = page->spill_next;
	if (page->spill_next)
		page->spill_next->spill_prev = page->spill_prev;
	else
		q->tail = page->spill_prev;
	page->spill_next = page->spill_prev = NULL;
	q->n--;
}

/* ---- one page ---- */

static void stored(struct cache *cache, struct page *page)
{
	if (page->state != PAGE_RESIDENT)
		return;
	page_move(page, PAGE_RESIDENT_STORED);
	cache_add_stored(cache, ns_of(page)->tenant, page->bytes);
}

static void put_done(void *ctx, int status)
{
	struct spill *s = ctx;
	struct cache *cache = s->cache;
	struct ns *ns = cache_ns_by_id(cache, s->ns);
	struct page *page = ns ? page_table_get(&ns->table, s->ref) : NULL;

	s->tenant->bytes_spilling -= s->bytes;
	if (status < 0) {
		cache_count(cache, s->tenant, STAT_spills_failed, 1);
	} else {
		cache_count(cache, s->tenant, STAT_spills, 1);
		cache_count(cache, s->tenant, STAT_bytes_spilled, s->bytes);
		if (ns)
			event_stored_on_disk(cache, ns, page, s->digest, s->parent, s->position);
	}
	if (page) {
		page->spilling = false;
		if (!status)
			stored(cache, page);
	}
	free(s);
	spill_pump(cache);
}

/* As tier->ops->put; 0 and 1 have been noted in the page. */
static int put(struct cache *cache, struct page *page, bool hot)
{
	struct ns *ns = ns_of(page);
	const struct skvq_layout *l = ns_layout(ns, page->safe);
	const struct page *parent = page_parent(page);
	const uint8_t *data = ns->arena.base + ns_page_offset(ns, page);
	struct tier_page tp = {.position = page->position};
	uint32_t bytes[TIER_SECTIONS] = {
	    l->base_bytes, l->refine_bytes,
	    (uint32_t)(ns_page_span(ns, page) - l->base_bytes - l->refine_bytes)};
	struct spill *s = malloc(sizeof(*s));
	int r;

	if (!s)
		return -SKVQ_ENOMEM;
	*s = (struct spill){.cache = cache,
			    .ns = ns->id,
			    .tenant = ns->tenant,
			    .ref = page_ref(page),
			    .bytes = page->bytes,
			    .position = page->position};
	memcpy(s->digest, page->digest, sizeof(s->digest));
	restore_key(ns, page->digest, &tp.key);
	if (parent)
		memcpy(tp.parent, parent->digest, sizeof(tp.parent));
	memcpy(s->parent, tp.parent, sizeof(s->parent));
	for (int i = 0; i < TIER_SECTIONS; i++) {
		tp.section[i].data = data;
		tp.section[i].bytes = i == TIER_REFINEMENT && page->shed ? 0 : bytes[i];
		data += bytes[i];
	}
	r = ns->tenant->tier->ops->put(ns->tenant->tier, &tp, hot ? TIER_PUT_HOT : 0, put_done, s);
	if (r == 1) {
		page->spilling = true;
		ns->tenant->bytes_spilling += page->bytes;
		return 1;
	}
	free(s);
	if (r == 0)
		stored(cache, page);
	page->refused = r == -SKVQ_EAGAIN;
	return r;
}

bool spill_is_below(const struct page *page)
{
	struct tier *tier = ns_of(page)->tenant->tier;
	struct tier_key key;

	if (!tier)
		return false;
	restore_key(ns_of(page), page->digest, &key);
	return tier->ops->contains(tier, &key);
}

int spill_put(struct cache *cache, struct page *page)
{
	int r = put(cache, page, true);

	if (r >= 0)
		spill_forget(page);
	return r;
}

bool spill_last_call(struct cache *cache, struct page *page)
{
	const struct tier *tier = ns_of(page)->tenant->tier;

	if (!tier || page->unlisted || page->bytes > tier->page_bytes_max)
		return false;
	if (page->spilling || spill_is_below(page))
		return true;
	/* One publication is one touch, however often it is offered. */
	if (page->refused && !page->hits)
		return false;
	return put(cache, page, page->hits > 0) >= 0;
}

/* ---- when ---- */

uint64_t cache_bytes_spilling(const struct cache *cache)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < cache->n_tenants; i++)
		sum += cache->tenants[i]->bytes_spilling;
	return sum;
}

/* Of so many bytes, too few are free or below too. */
static bool is_below(const struct cache *cache, uint64_t max, uint64_t bytes, uint64_t safe)
{
	uint64_t want = max / 100 * cache->config.spill_percent;
	uint64_t free_bytes = max > bytes ? max - bytes : 0;

	return free_bytes + safe < want || cache->config.spill_percent == 100;
}

/* Under the tenant's own cap, or that of all. */
static bool is_short(const struct cache *cache, const struct tenant *tenant)
{
	uint64_t safe = cache->bytes_stored + cache_bytes_spilling(cache);

	return is_below(cache, cache->config.ram_max, cache->bytes, safe) ||
	       (tenant->limits.ram_max &&
		is_below(cache, tenant->limits.ram_max, tenant->bytes,
			 tenant->bytes_stored + tenant->bytes_spilling));
}

static void pump(struct cache *cache, struct tenant *tenant)
{
	uint32_t puts = 0, refused = 0;
	struct page *page;

	while ((page = tenant->spill_queue.head) && puts < BURST_PUTS && refused < BURST_REFUSED &&
	       is_short(cache, tenant)) {
		int r = put(cache, page, page->hits > 0);

		/* Busy, no segment ready, over the budget: later. */
		if (r == -SKVQ_EBUSY || r == -SKVQ_ENOSPC || r == -SKVQ_ELIMIT ||
		    r == -SKVQ_ENOMEM)
			return;
		spill_forget(page);
		puts += r == 1;
		refused += r != 1;
	}
}

void spill_pump(struct cache *cache)
{
	for (uint32_t i = 0; i < cache->n_tenants && !cache->closing; i++)
		pump(cache, cache->tenants[i]);
}

/* ---- the end ---- */

static int by_use(const void *a, const void *b)
{
	const struct page *x = *(struct page *const *)a, *y = *(struct page *const *)b;

	if (x->stamp != y->stamp)
		return x->stamp < y->stamp ? 1 : -1;
	return x->position < y->position ? -1 : x->position > y->position;
}

static bool collect(struct cache *cache, const struct tenant *tenant, struct spill_rest *rest)
{
	uint64_t n = 0;

	rest->pages = calloc(tenant->pages + 1, sizeof(*rest->pages));
	if (!rest->pages)
		return false;
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		for (uint32_t i = 0; ns->tenant == tenant && i < ns->table.touched; i++) {
			struct page *page = &ns->table.pages[i];

			if (page->state == PAGE_RESIDENT && !page->spilling && !page->unlisted &&
			    page->bytes <= tenant->tier->page_bytes_max)
				rest->pages[n++] = page;
		}
	}
	qsort(rest->pages, n, sizeof(*rest->pages), by_use);
	rest->n = n;
	return true;
}

bool spill_drain(struct cache *cache, struct tenant *tenant)
{
	struct spill_rest *rest = &tenant->spill_rest;

	assert(cache->closing);
	if (!tenant->tier || (!rest->pages && !collect(cache, tenant, rest)))
		return false;
	for (; rest->at < rest->n; rest->at++) {
		struct page *page = rest->pages[rest->at];
		int r = page->state == PAGE_RESIDENT ? put(cache, page, true) : 0;

		if (r == -SKVQ_EBUSY || r == -SKVQ_ENOSPC)
			return true;
	}
	return false;
}

uint64_t spill_left(const struct cache *cache, const struct tenant *tenant)
{
	uint64_t n = 0;

	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		for (uint32_t i = 0; ns->tenant == tenant && i < ns->table.touched; i++)
			n += ns->table.pages[i].state == PAGE_RESIDENT &&
			     !ns->table.pages[i].unlisted;
	}
	return n;
}
