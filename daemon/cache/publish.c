/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page on its way in. Equal pages that arrive while one of them is being copied wait behind that
 * copy; if the copy turns out bad, its publisher hears so and the next in line is copied instead,
 * so that one client's bad bytes never fail another's good ones.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <skvq/error.h>

#include "base/checked.h"
#include "base/clock.h"
#include "cache/cache.h"
#include "cache/fill.h"

struct fill {
	struct job job;
	struct cache *cache;
	struct ns *ns;
	struct page *page;
	struct publish *head, *tail; /* head is the one being copied */
	bool refine; /* the page is there and readable, its refinement was shed: that alone is copied */
	int result;
	struct fill_task task; /* the worker's while the job runs */
};

static void fill_work(struct job *job)
{
	struct fill *fill = container_of(job, struct fill, job);

	fill->result = fill->refine ? fill_refine(&fill->task) : fill_run(&fill->task);
}

/* Points the task at the head's bytes and hands it to a worker. */
static int fill_start(struct fill *fill)
{
	fill->task.fd = fill->head->fd;
	fill->task.fd_offset = fill->head->offset;
	fill->task.why.text[0] = '\0';
	return worker_submit_to(fill->cache->worker, &fill->ns->tenant->fill_lane, &fill->job);
}

static struct publish *pop(struct fill *fill)
{
	struct publish *p = fill->head;

	if (p)
		fill->head = p->next;
	return p;
}

static void append(struct fill *fill, struct publish *p)
{
	p->next = NULL;
	if (fill->head)
		fill->tail->next = p;
	else
		fill->head = p;
	fill->tail = p;
}

static void end_fill(struct fill *fill)
{
	fill->ns->fills--;
	fill->ns->tenant->n_fills--;
}

/* Undoes begin_fill, whether a copy ran or not. */
static void fill_abandon(struct fill *fill)
{
	struct cache *cache = fill->cache;
	struct page *page = fill->page;

	end_fill(fill);
	page->fill = NULL;
	if (fill->refine) {
		if (arena_punch(&fill->ns->arena,
				fill->task.slot_offset + fill->ns->layout.base_bytes,
				fill->ns->layout.refine_bytes) < 0)
			cache_count(cache, fill->ns->tenant, STAT_punch_failures, 1);
		shed_refill_end(cache, page, false);
		cache_release(cache, page, 1);
	} else {
		(void)cache_drop(cache, page);
	}
	free(fill);
}

static void finish_one(struct publish *p, int error, const char *why)
{
	if (error < 0 && p->pins)
		pins_unreserve(p->pins, 1);
	p->done(p, error, why);
}

/* A new page is whole and checked. */
static void arrived(struct fill *fill)
{
	struct cache *cache = fill->cache;
	struct page *page = fill->page;
	struct tenant *tenant = fill->ns->tenant;

	memcpy(page->digest, fill->task.digest, sizeof(page->digest));
	ns_own_tokens(page);
	page->stamp = cache->stamp;
	page->born_ms = page->used_ms = clock_ms();
	page_move(page, PAGE_RESIDENT);
	event_page(cache, EVENT_STORED, page, "published");
	cache_count(cache, tenant, STAT_pages_returned, cache_page_born(cache, page));
	spill_want(page);
	cache_count(cache, tenant, STAT_bytes_copied, page->bytes);
	cache_count(cache, tenant, STAT_pages_safe, page->safe);
	fill->ns->pages_safe += page->safe;
	errors_count(fill->ns->errors, fill->task.layout,
		     fill->ns->arena.base + fill->task.slot_offset);
}

static void fill_succeeded(struct fill *fill)
{
	struct cache *cache = fill->cache;
	struct tenant *tenant = fill->ns->tenant;
	struct page *page = fill->page;
	struct publish *p;

	page->fill = NULL;
	cache->stamp++;
	if (fill->refine) {
		shed_refill_end(cache, page, true);
		cache_count(cache, tenant, STAT_bytes_copied, fill->ns->layout.refine_bytes);
	} else {
		arrived(fill);
	}
	end_fill(fill);
	fill->ns->used = cache->stamp;
	/* All pins before the first answer: an answer may end a connection. */
	for (p = fill->head; p; p = p->next) {
		p->page = page;
		p->existed = fill->refine || p != fill->head;
		if (p->pins)
			cache_pin(cache, p->pins, page);
		cache_count(cache, tenant, STAT_publishes, 1);
		cache_count(cache, tenant, STAT_publishes_joined, p->existed);
	}
	if (fill->refine)
		cache_release(cache, page, 1);
	else
		cache_settle(cache, page);
	spill_pump(cache);
	while ((p = pop(fill)))
		finish_one(p, 0, NULL);
	free(fill);
}

static void fill_failed(struct fill *fill)
{
	struct publish *p = pop(fill);
	struct why why = fill->task.why;
	int err = fill->result;

	if (err == -SKVQ_ECORRUPT)
		cache_count(fill->cache, fill->ns->tenant, STAT_page_check_failures, 1);
	finish_one(p, err, why.text);
	if (fill->head) {
		err = fill_start(fill);
		if (!err)
			return;
		while ((p = pop(fill)))
			finish_one(p, -SKVQ_EQUEUE, "the copy queue (workers queue_max) is full");
	}
	fill_abandon(fill);
}

static void fill_done(struct job *job)
{
	struct fill *fill = container_of(job, struct fill, job);

	if (job->cancelled)
		fill->result = why_fail(&fill->task.why, SKVQ_EAGAIN, "the daemon ends");
	if (fill->result < 0)
		fill_failed(fill);
	else
		fill_succeeded(fill);
}

static struct fill *fill_new(struct cache *cache, const struct publish *p)
{
	struct fill *fill = calloc(1, sizeof(*fill));

	if (!fill)
		return NULL;
	fill->job.run = fill_work;
	fill->job.done = fill_done;
	fill->cache = cache;
	fill->ns = p->ns;
	return fill;
}

/* Whether one more copy may be under way for this tenant. */
static int check_queue(const struct tenant *tenant, struct why *why)
{
	if (!tenant->limits.fills_max || tenant->n_fills < tenant->limits.fills_max)
		return 0;
	return why_fail(why, SKVQ_EQUEUE, "this tenant's part of the copy queue (workers queue_max), "
			"%u pages, is full", tenant->limits.fills_max);
}

/* The page has its place; its bytes are to be copied. */
static int fill_begin(struct fill *fill, struct publish *p, uint64_t bytes,
		      const struct page *parent, struct why *why)
{
	struct ns *ns = fill->ns;
	int err;

	fill->page->fill = fill;
	fill->task.arena = &ns->arena;
	fill->task.layout = ns_layout(ns, fill->page->safe);
	fill->task.slot_offset = ns_page_offset(ns, fill->page);
	fill->task.page_bytes = bytes;
	fill->task.position = p->position;
	memcpy(fill->task.tokens, p->tokens, sizeof(fill->task.tokens));
	memcpy(fill->task.identity, ns->digest, sizeof(fill->task.identity));
	if (parent)
		memcpy(fill->task.parent, parent->digest, sizeof(fill->task.parent));
	ns->fills++;
	ns->tenant->n_fills++;
	append(fill, p);
	err = fill_start(fill);
	if (err < 0) {
		fill_abandon(fill);
		return why_fail(why, SKVQ_EQUEUE, "the copy queue (workers queue_max) is full");
	}
	return 0;
}

static int begin_fill(struct cache *cache, struct publish *p, struct page *parent, uint64_t bytes,
		      struct why *why)
{
	struct ns *ns = p->ns;
	struct fill *fill;
	int err;

	err = check_queue(ns->tenant, why);
	if (err < 0)
		return err;
	fill = fill_new(cache, p);
	if (!fill)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a copy job");
	/* The parent is pinned by this client, so making room cannot take it. */
	fill->page = cache_take_slot(cache, ns, bytes, &err, why);
	if (!fill->page) {
		free(fill);
		return err;
	}
	fill->page->safe = p->safe;
	/* Into the index before the copy: an equal page that comes meanwhile must find this one. */
	memcpy(fill->task.tokens, p->tokens, sizeof(fill->task.tokens));
	cache_enlist(cache, fill->page, parent, fill->task.tokens);
	return fill_begin(fill, p, bytes, parent, why);
}

/* Of the page that is here without its refinement; cache_hold keeps it here meanwhile. */
static int begin_refine(struct cache *cache, struct publish *p, struct page *page, struct why *why)
{
	struct fill *fill = fill_new(cache, p);
	int err;

	if (!fill)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a copy job");
	fill->refine = true;
	fill->page = page;
	cache_hold(cache, page);
	err = check_queue(p->ns->tenant, why);
	if (!err)
		err = cache_make_room(cache, p->ns->tenant, p->ns->layout.refine_bytes, why);
	if (err < 0) {
		cache_release(cache, page, 1);
		free(fill);
		return err;
	}
	shed_refill_begin(cache, page);
	return fill_begin(fill, p, ns_page_span(p->ns, page), page_parent(page), why);
}

/* The parent must be pinned by the publisher: it has it, so it may build on it, and it stays. */
static int check_parent(struct cache *cache, const struct publish *p, struct page **ret_parent,
			struct why *why)
{
	struct page *parent;

	*ret_parent = NULL;
	if (p->has_parent != (p->position > 0))
		return why_fail(why, SKVQ_EINVAL, "position %u %s a parent page", p->position,
				p->has_parent ? "has not" : "needs");
	if (!p->has_parent)
		return 0;
	parent = page_table_get(&p->ns->table, p->parent);
	if (!parent) {
		cache_count(cache, p->ns->tenant, STAT_stale_handles, 1);
		return why_fail(why, SKVQ_ESTALE,
				"parent slot %u generation %u of namespace %u is gone",
				p->parent.slot, p->parent.generation, p->ns->id);
	}
	if (!pins_count(p->pins, parent))
		return why_fail(why, SKVQ_ESTALE,
				"parent slot %u generation %u of namespace %u is not pinned by "
				"this connection",
				p->parent.slot, p->parent.generation, p->ns->id);
	if (parent->position != p->position - SKVQ_PAGE_TOKENS)
		return why_fail(why, SKVQ_EINVAL,
				"parent slot %u is at position %u, not right before %u",
				p->parent.slot, parent->position, p->position);
	*ret_parent = parent;
	return 0;
}

static int check_staging(const struct publish *p, uint64_t bytes, struct why *why)
{
	struct stat st;
	uint64_t end;

	if (p->offset % SKVQ_SECTION_ALIGN)
		return why_fail(why, SKVQ_EINVAL, "staging offset %llu is not a multiple of %u",
				(unsigned long long)p->offset, SKVQ_SECTION_ALIGN);
	if (fstat(p->fd, &st) < 0)
		return why_fail_errno(why, SKVQ_ESYS, "fstat of the staging memfd");
	if (!checked_add(p->offset, bytes, &end) || end > (uint64_t)st.st_size)
		return why_fail(why, SKVQ_ESHORT,
				"the staging memfd has %llu bytes, a page of %llu at offset %llu "
				"does not fit",
				(unsigned long long)st.st_size, (unsigned long long)bytes,
				(unsigned long long)p->offset);
	return 0;
}

int cache_publish(struct cache *cache, struct publish *p, struct why *why)
{
	struct ns *ns = p->ns;
	struct page *parent, *page;
	uint64_t bytes;
	int err;

	if (p->position % SKVQ_PAGE_TOKENS || p->position > INT32_MAX - SKVQ_PAGE_TOKENS)
		return why_fail(why, SKVQ_EINVAL, "position %u is not a multiple of %u in range",
				p->position, SKVQ_PAGE_TOKENS);
	if (!ns_layout(ns, p->safe))
		return why_fail(why, SKVQ_EINVAL, "namespace %u has no safe pages", ns->id);
	bytes = skvq_layout_page_bytes(ns_layout(ns, p->safe), p->position);
	err = check_parent(cache, p, &parent, why);
	if (!err)
		err = check_staging(p, bytes, why);
	if (!err)
		err = pins_reserve(p->pins, 1, why);
	if (err < 0)
		return err;
	page = index_find(&ns->index, &ns->table, parent, p->tokens);
	if (page && page->fill) {
		/* Should its copy turn out bad, this one would take its place. */
		if (page->fill->task.layout != ns_layout(ns, p->safe)) {
			pins_unreserve(p->pins, 1);
			return why_fail(why, SKVQ_EBUSY,
					"an equal page in another layout is just being copied");
		}
		append(page->fill, p);
		return 0;
	}
	if (page && page->restore) {
		pins_unreserve(p->pins, 1);
		return why_fail(why, SKVQ_EBUSY,
				"an equal page is just being read back from disk: try again");
	}
	if (page) {
		assert(page_readable(page));
		ns->used = ++cache->stamp;
		err = page->held ? 0 : cache_check_hold(cache, ns->tenant, page->bytes, why);
		if (!err && page->shed)
			err = begin_refine(cache, p, page, why);
		if (err < 0)
			pins_unreserve(p->pins, 1);
		if (err < 0 || page->shed)
			return err;
		cache_pin(cache, p->pins, page);
		p->page = page;
		p->existed = true;
		cache_count(cache, ns->tenant, STAT_publishes, 1);
		cache_count(cache, ns->tenant, STAT_publishes_existed, 1);
		return 1;
	}
	err = begin_fill(cache, p, parent, bytes, why);
	if (err < 0)
		pins_unreserve(p->pins, 1);
	return err;
}

void cache_publish_orphan(struct publish *p)
{
	pins_unreserve(p->pins, 1);
	p->pins = NULL;
}
