/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/scrub.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cache/cache.h"
#include "cache/fill.h"

/* Slots looked at in one go without finding a page. */
#define LOOKS 4096u

struct check {
	struct job job;
	struct cache *cache;
	struct ns *ns;
	struct page_ref ref;
	const struct skvq_layout *layout; /* of the page */
	const uint8_t *data;
	uint64_t bytes;
	uint8_t digest[IDENTITY_DIGEST];
	bool shed; /* when it began */
	bool good;
};

static void next(struct cache *cache);

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

/* Once more, as it is now; not for ever, should its refinement come and go. */
static void retry(struct scrubber *s, const struct ns *ns, uint32_t slot)
{
	s->again = !s->again;
	if (!s->again)
		return;
	s->ns = ns->id;
	s->slot = slot;
}

static void check_done(struct job *job)
{
	struct check *c = container_of(job, struct check, job);
	struct cache *cache = c->cache;
	struct scrubber *s = &cache->scrubber;
	struct ns *ns = c->ns;
	struct page *page = page_table_get(&ns->table, c->ref);

	ns->fills--;
	s->busy = false;
	/* What was dropped meanwhile, or torn, was not read as one thing. */
	if (job->cancelled || !page || page->unlisted) {
		s->again = false;
	} else if (s->torn) {
		retry(s, ns, page->slot);
	} else {
		s->again = false;
		cache_count(cache, ns->tenant, STAT_scrubbed, 1);
		if (!c->good)
			bad(cache, ns, page);
	}
	free(c);
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
	struct check *c;

	if (s->busy || !s->allowance || cache->closing || !(page = find(cache)))
		return;
	c = calloc(1, sizeof(*c));
	if (!c)
		return;
	*c = (struct check){.job = {.run = check_work, .done = check_done},
			    .cache = cache,
			    .ns = ns_of(page),
			    .ref = page_ref(page),
			    .layout = ns_layout(ns_of(page), page->safe),
			    .bytes = ns_page_span(ns_of(page), page),
			    .shed = page->shed};
	c->data = c->ns->arena.base + ns_page_offset(c->ns, page);
	memcpy(c->digest, page->digest, sizeof(c->digest));
	s->allowance -= c->bytes < s->allowance ? c->bytes : s->allowance;
	if (worker_submit(cache->worker, &c->job) < 0) {
		free(c);
		return;
	}
	s->busy = true;
	s->page = page;
	s->torn = false;
	c->ns->fills++;
}

void cache_scrub(struct cache *cache, uint64_t bytes)
{
	cache->scrubber.allowance = bytes;
	next(cache);
}

void scrub_disturb(struct cache *cache, const struct page *page)
{
	struct scrubber *s = &cache->scrubber;

	s->torn = s->torn || (s->busy && s->page == page);
}
