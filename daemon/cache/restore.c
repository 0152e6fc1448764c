/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/restore.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "base/log.h"
#include "cache/cache.h"
#include "cache/fill.h"

#define RATE_FIRST (512u << 10) /* bytes a ms, until one was measured */
#define RATE_LEAST 1024u
#define SAMPLE_MS  4u /* shorter ones say little */

struct restore {
	struct job job;
	struct cache *cache;
	struct ns *ns;
	struct page *page;
	bool given; /* the tier had it, and its record's checksum held */
	uint64_t bytes; /* counted out */
	uint64_t began_us;
	int result;
	struct restore *parked; /* good pages that follow this one and came before it */
	struct restore *next;   /* of those of the parent */
	struct fill_task task; /* the worker's while the job runs */
};

/* ---- how long it takes ---- */

void restores_init(struct restores *r)
{
	*r = (struct restores){.bytes_per_ms = RATE_FIRST};
}

uint64_t restores_estimate_ms(const struct restores *r, uint64_t bytes)
{
	return (r->bytes + bytes) / r->bytes_per_ms + 1;
}

uint64_t restores_within(const struct restores *r, uint64_t ms)
{
	uint64_t most = ms > UINT32_MAX ? UINT64_MAX : ms * r->bytes_per_ms;

	return most > r->bytes ? most - r->bytes : 0;
}

static void count_out(struct restores *r, uint64_t bytes)
{
	if (r->n == 0) {
		r->since_ms = clock_ms();
		r->done_bytes = 0;
	}
	r->n++;
	r->bytes += bytes;
}

/* A read that failed tells nothing of the rate; a safe page is of more bytes than were counted out. */
static void count_back(struct restores *r, uint64_t bytes, uint64_t read, bool good)
{
	uint64_t ms = clock_ms() - r->since_ms, rate;

	r->n--;
	r->bytes -= bytes;
	if (good)
		r->done_bytes += read;
	if (ms < SAMPLE_MS || !r->done_bytes)
		return;
	rate = (3 * r->bytes_per_ms + r->done_bytes / ms) / 4;
	r->bytes_per_ms = rate > RATE_LEAST ? rate : RATE_LEAST;
	r->since_ms += ms;
	r->done_bytes = 0;
}

/* ---- one page ---- */

void restore_key(const struct ns *ns, const uint8_t digest[IDENTITY_DIGEST],
		 struct tier_key *ret_key)
{
	memcpy(ret_key->ns, ns->tier_name, sizeof(ret_key->ns));
	memcpy(ret_key->page, digest, sizeof(ret_key->page));
}

static void failed(struct restore *r, int err)
{
	struct cache *cache = r->cache;
	struct tier_key key;

	cache_count(cache, r->ns->tenant, STAT_restores_failed, 1);
	if (err != -SKVQ_ECORRUPT || !r->given)
		return;
	/* The record's own checksum held: what went in was wrong already, or belongs to another
	 * page. */
	cache_count(cache, r->ns->tenant, STAT_restore_check_failures, 1);
	log_event(LOG_WARNING, "restore_corrupt", LOG_U64("ns", r->ns->id),
		  LOG_U64("position", r->page->position), LOG_STR("detail", r->task.why.text));
	restore_key(r->ns, r->page->digest, &key);
	if (r->ns->tenant->tier) /* NULL: it is being closed */
		r->ns->tenant->tier->ops->drop(r->ns->tenant->tier, &key);
}

/* The page is good or not, and its parent has been judged. */
static void settle_one(struct restore *r, int err)
{
	struct cache *cache = r->cache;
	struct page *page = r->page, *parent = page_parent(page);
	struct tenant *tenant = r->ns->tenant;

	page->restore = NULL;
	r->ns->fills--;
	if (err < 0)
		failed(r, err);
	page->tokens = NULL;
	if (!err) {
		ns_own_tokens(page);
		page->born_ms = page->used_ms = clock_ms();
		page_move(page, PAGE_RESIDENT_STORED);
		cache_add_stored(cache, tenant, page->bytes);
		if (r->task.shed)
			shed_mark(cache, page);
		event_page(cache, EVENT_STORED, page, "restored");
		(void)cache_page_born(cache, page);
		cache_record(cache, tenant, HISTOGRAM_restore_us, clock_us() - r->began_us);
		cache_count(cache, tenant, STAT_restores, 1);
		cache_count(cache, tenant, STAT_bytes_restored, page->bytes);
	}
	free(r);
	/* Nobody can come by a page whose parent is not found. */
	if (err < 0 || (parent && parent->unlisted))
		cache_unlist(cache, page);
	else
		cache_settle(cache, page);
}

/* With those that wait for it; each lives on until they have been settled, being their parent. */
static void settle(struct restore *r, int err)
{
	struct restore *todo = r, *next;

	r->result = err;
	r->next = NULL;
	while ((r = todo) != NULL) {
		todo = r->next;
		for (struct restore *p = r->parked; p; p = next) {
			next = p->next;
			p->result = r->result < 0 ? -SKVQ_ESTALE : 0;
			p->next = todo;
			todo = p;
		}
		settle_one(r, r->result);
	}
}

/* Pages come back in any order, and are seen in the order of the chain. */
static void finish(struct restore *r, int err)
{
	struct page *parent = page_parent(r->page);
	struct cache *cache = r->cache;

	cache->n_restores--;
	count_back(&r->ns->tenant->restores, r->bytes, r->page->bytes, !err);
	if (!err && parent && parent->restore) {
		r->next = parent->restore->parked;
		parent->restore->parked = r;
		return;
	}
	settle(r, err);
	cache_matches_wake(cache);
}

static void verify_work(struct job *job)
{
	struct restore *r = container_of(job, struct restore, job);

	r->result = fill_verify(&r->task);
}

static void verify_done(struct job *job)
{
	struct restore *r = container_of(job, struct restore, job);

	finish(r, job->cancelled ? -SKVQ_EAGAIN : r->result);
}

/* Which kind of page a record holds shows when it comes: a safe one needs more room than it has so
 * far. What the header says here is proved with all the rest. */
static int settle_kind(struct restore *r, const struct tier_page *from)
{
	struct page *page = r->page;
	skvq_page_header h = {0};
	uint64_t more = 0 - page->bytes;
	int err;

	if (from->section[TIER_BASE].bytes >= sizeof(h))
		memcpy(&h, from->section[TIER_BASE].data, sizeof(h));
	if (!(h.flags & SKVQ_PAGE_SAFE))
		return 0;
	if (!r->ns->has_safe)
		return why_fail(&r->task.why, SKVQ_ECORRUPT,
				"a safe page in a namespace that has none");
	more += skvq_layout_page_bytes(&r->ns->safe, page->position);
	err = cache_make_room(r->cache, r->ns->tenant, more, &r->task.why);
	if (err < 0)
		return err;
	page->safe = true;
	r->task.layout = &r->ns->safe;
	page->bytes += more;
	r->ns->bytes += more;
	r->ns->tenant->bytes += more;
	r->ns->tenant->held += more; /* it is on its way, so it is held */
	r->cache->bytes += more;
	r->task.page_bytes = page->bytes;
	return 0;
}

/* The sections, one behind the other as they were. */
static int take_in(struct restore *r, const struct tier_page *from)
{
	const struct skvq_layout *l = r->task.layout;
	uint64_t at = r->task.slot_offset;
	bool shed = l->refine_bytes && !from->section[TIER_REFINEMENT].bytes;
	uint32_t want[TIER_SECTIONS] = {l->base_bytes, l->refine_bytes,
					(uint32_t)(r->task.page_bytes - l->base_bytes -
						   l->refine_bytes)};

	if (from->position != r->page->position)
		return why_fail(&r->task.why, SKVQ_ECORRUPT, "a record of position %llu, not %u",
				(unsigned long long)from->position, r->page->position);
	for (int i = 0; i < TIER_SECTIONS; i++) {
		if (from->section[i].bytes != want[i] && !(i == TIER_REFINEMENT && shed))
			return why_fail(&r->task.why, SKVQ_ECORRUPT,
					"section %d has %u bytes, not %u", i,
					from->section[i].bytes, want[i]);
	}
	for (int i = 0; i < TIER_SECTIONS; at += want[i++]) {
		if (!from->section[i].bytes)
			continue;
		if (arena_write(r->task.arena, at, from->section[i].data, want[i]) < 0)
			return -SKVQ_ENOMEM;
	}
	r->task.shed = shed;
	return 0;
}

static void got(void *ctx, int status, const struct tier_page *from)
{
	struct restore *r = ctx;

	r->given = !status;
	if (!status)
		status = settle_kind(r, from);
	if (!status)
		status = take_in(r, from);
	if (status < 0) {
		finish(r, status);
		return;
	}
	/* restores_max bounds them; only a worker that ends takes none. */
	if (worker_submit_to(r->cache->worker, &r->ns->tenant->verify_lane, &r->job) < 0)
		finish(r, -SKVQ_EAGAIN);
}

static struct page *take_page(struct cache *cache, struct ns *ns, struct page *parent,
			      const int32_t tokens[SKVQ_PAGE_TOKENS],
			      const uint8_t digest[IDENTITY_DIGEST])
{
	struct page *page = page_table_take(&ns->table, PAGE_RESTORING);

	if (!page && cache_free_slot(cache, ns))
		page = page_table_take(&ns->table, PAGE_RESTORING);
	if (!page)
		return NULL;
	memcpy(page->digest, digest, sizeof(page->digest));
	cache_enlist(cache, page, parent, tokens);
	return page;
}

static void fill_in_task(struct fill_task *task, const struct ns *ns, const struct page *page)
{
	const struct page *parent = page_parent(page);

	task->arena = &ns->arena;
	task->layout = &ns->layout;
	task->slot_offset = ns_page_offset(ns, page);
	task->page_bytes = page->bytes;
	task->position = page->position;
	memcpy(task->identity, ns->digest, sizeof(task->identity));
	memcpy(task->digest, page->digest, sizeof(task->digest));
	if (parent)
		memcpy(task->parent, parent->digest, sizeof(task->parent));
}

int restore_begin(struct cache *cache, struct ns *ns, struct page *parent,
		  const int32_t tokens[SKVQ_PAGE_TOKENS], const uint8_t digest[IDENTITY_DIGEST],
		  uint32_t timeout_ms, struct page **ret_page, struct why *why)
{
	uint32_t position = parent ? parent->position + SKVQ_PAGE_TOKENS : 0;
	struct restore *r;
	struct tier_key key;
	int err;

	err = cache_make_room(cache, ns->tenant, skvq_layout_page_bytes(&ns->layout, position),
			      why);
	if (err < 0)
		return err;
	r = calloc(1, sizeof(*r));
	if (!r)
		return why_fail(why, SKVQ_ENOMEM, "no memory to restore a page");
	r->job.run = verify_work;
	r->job.done = verify_done;
	r->cache = cache;
	r->ns = ns;
	r->began_us = clock_us();
	memcpy(r->task.tokens, tokens, sizeof(r->task.tokens));
	r->page = take_page(cache, ns, parent, r->task.tokens, digest);
	if (!r->page) {
		free(r);
		return why_fail(why, SKVQ_ENOSPC, "all %u slots of namespace %u are taken",
				ns->table.slots, ns->id);
	}
	fill_in_task(&r->task, ns, r->page);
	restore_key(ns, digest, &key);
	err = ns->tenant->tier->ops->get(ns->tenant->tier, &key, timeout_ms, got, r);
	if (err <= 0) {
		cache_drop(cache, r->page);
		free(r);
		return why_fail(why, err ? -err : SKVQ_ESTALE, "the store does not give a page");
	}
	r->page->restore = r;
	ns->fills++;
	r->bytes = r->page->bytes;
	cache->n_restores++;
	count_out(&ns->tenant->restores, r->bytes);
	*ret_page = r->page;
	return 0;
}
