/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/scrub.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/log.h"
#include "cache/cache.h"
#include "cache/fill.h"

/* Slots looked at in one go without finding a page. */
#define LOOKS 4096u

struct check {
	struct job job;
	struct check *next; /* in scrubber.checks */
	struct cache *cache;
	struct ns *ns;
	struct page *page; /* it, or what has its slot now */
	struct page_ref ref;
	const struct skvq_layout *layout; /* of the page */
	const uint8_t *data;
	uint64_t bytes;
	uint8_t digest[IDENTITY_DIGEST];
	bool shed; /* when it began */
	bool torn;
	bool good;
	check_fn fn;
	void *ctx;
};

static void next(struct cache *cache);

/* ---- one page ---- */

static void check_work(struct job *job)
{
	struct check *c = container_of(job, struct check, job);

	c->good = page_sound(c->layout, c->data, c->bytes, c->shed, c->digest);
}

static void bad(struct cache *cache, struct ns *ns, struct page *page)
{
	cache_count(cache, ns->tenant, STAT_scrub_failures, 1);
	log_event(LOG_ERROR, "page_corrupt", LOG_U64("ns", ns->id), LOG_U64("slot", page->slot),
		  LOG_U64("generation", page->generation), LOG_U64("position", page->position),
		  LOG_U64("pins", page->pins));
	cache_unlist(cache, page);
}

static enum check_end judge(const struct check *c)
{
	struct page *page = page_table_get(&c->ns->table, c->ref);

	/* What was dropped meanwhile, or torn, was not read as one thing. */
	if (c->job.cancelled || !page || page->unlisted)
		return CHECK_GONE;
	if (c->torn)
		return CHECK_TORN;
	cache_count(c->cache, c->ns->tenant, STAT_scrubbed, 1);
	if (c->good)
		return CHECK_GOOD;
	bad(c->cache, c->ns, page);
	return CHECK_BAD;
}

static void check_done(struct job *job)
{
	struct check *c = container_of(job, struct check, job), **at = &c->cache->scrubber.checks;
	enum check_end end;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	end = judge(c);
	c->ns->fills--;
	c->fn(c->ctx, end, c->bytes);
	free(c);
}

static int check_in(struct cache *cache, struct lane *lane, struct page *page, check_fn fn,
		    void *ctx)
{
	struct check *c = calloc(1, sizeof(*c));
	int err;

	if (!c)
		return -SKVQ_ENOMEM;
	*c = (struct check){.job = {.run = check_work, .done = check_done},
			    .next = cache->scrubber.checks,
			    .cache = cache,
			    .ns = ns_of(page),
			    .page = page,
			    .ref = page_ref(page),
			    .layout = ns_layout(ns_of(page), page->safe),
			    .bytes = ns_page_span(ns_of(page), page),
			    .shed = page->shed,
			    .fn = fn,
			    .ctx = ctx};
	c->data = c->ns->arena.base + ns_page_offset(c->ns, page);
	memcpy(c->digest, page->digest, sizeof(c->digest));
	err = worker_submit_to(cache->worker, lane, &c->job);
	if (err < 0) {
		free(c);
		return err;
	}
	cache->scrubber.checks = c;
	c->ns->fills++;
	return 0;
}

int cache_check(struct cache *cache, struct page *page, check_fn fn, void *ctx)
{
	return check_in(cache, &ns_of(page)->tenant->check_lane, page, fn, ctx);
}

void scrub_disturb(struct cache *cache, const struct page *page)
{
	for (struct check *c = cache->scrubber.checks; c; c = c->next)
		c->torn = c->torn || c->page == page;
}

/* ---- round and round ---- */

/* Once more, as it is now; not for ever, should its refinement come and go. */
static void retry(struct scrubber *s)
{
	s->again = !s->again;
	if (!s->again)
		return;
	s->ns = s->busy_ns;
	s->slot = s->busy_slot;
}

static void scrubbed(void *ctx, enum check_end end, uint64_t bytes)
{
	struct cache *cache = ctx;
	struct scrubber *s = &cache->scrubber;

	(void)bytes;
	s->busy = false;
	if (end == CHECK_TORN)
		retry(s);
	else
		s->again = false;
	next(cache);
}

/* The next readable page behind the cursor, or NULL. */
static struct page *find(struct cache *cache)
{
	struct scrubber *s = &cache->scrubber;
	struct ns *ns = cache_ns_by_id(cache, s->ns);

	for (uint32_t looks = 0; looks < LOOKS; looks++) {
		struct page *page;

		if (!ns || s->slot >= ns->table.touched) {
			ns = ns && ns->next ? ns->next : cache->namespaces;
			if (!ns)
				return NULL;
			s->ns = ns->id;
			s->slot = 0;
			if (!ns->table.touched)
				continue;
		}
		page = &ns->table.pages[s->slot++];
		if (page_readable(page) && !page->fill && !page->unlisted)
			return page;
	}
	return NULL;
}

static void next(struct cache *cache)
{
	struct scrubber *s = &cache->scrubber;
	struct page *page;
	uint64_t bytes;

	if (s->busy || !s->allowance || cache->closing || !(page = find(cache)))
		return;
	bytes = ns_page_span(ns_of(page), page);
	s->allowance -= bytes < s->allowance ? bytes : s->allowance;
	if (check_in(cache, &cache->worker->own, page, scrubbed, cache) < 0)
		return;
	s->busy = true;
	s->busy_ns = ns_of(page)->id;
	s->busy_slot = page->slot;
}

void cache_scrub(struct cache *cache, uint64_t bytes)
{
	cache->scrubber.allowance = bytes;
	next(cache);
}
