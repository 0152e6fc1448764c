/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "base/log.h"

void cache_init(struct cache *cache, const struct cache_config *config, struct worker *worker,
		struct stats *stats)
{
	memset(cache, 0, sizeof(*cache));
	cache->config = *config;
	cache->worker = worker;
	cache->stats = stats;
}

/* ---- namespaces ---- */

static void ns_drop(struct cache *cache, struct ns *ns)
{
	struct ns **at = &cache->namespaces;
	struct page *pages = ns->table.pages;

	assert(!ns->openers && !ns->fills && !ns->pins);
	/* Children before parents: a page that is dropped lets its parent go next. */
	for (uint32_t i = 0; i < ns->table.touched; i++) {
		struct page *page = &pages[i];

		while (page && page->state != PAGE_FREE && page->children == 0) {
			struct page *parent = page_parent(page);

			cache_drop(cache, page);
			page = parent;
		}
	}
	assert(ns->table.live == 0);
	while (*at != ns)
		at = &(*at)->next;
	*at = ns->next;
	cache->n_namespaces--;
	ns_free(ns);
}

void cache_close(struct cache *cache)
{
	cache->closing = true;
}

void cache_fini(struct cache *cache)
{
	cache->closing = true;
	while (cache->namespaces)
		ns_drop(cache, cache->namespaces);
	assert(cache->bytes == 0 && cache->pages == 0 && cache->lru.n == 0);
}

/* The namespace whose loss hurts least: nobody has it open; an empty one before one with pages, the
 * longest unused before others. NULL if all are open. */
static struct ns *ns_victim(struct cache *cache)
{
	struct ns *best = NULL;

	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->openers || ns->fills || ns->pins)
			continue;
		if (!best || (ns->table.live == 0) > (best->table.live == 0) ||
		    ((ns->table.live == 0) == (best->table.live == 0) && ns->used < best->used))
			best = ns;
	}
	return best;
}

static struct ns *ns_find(struct cache *cache, const char *tenant, const uint8_t *canon,
			  uint32_t canon_bytes)
{
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns_is(ns, tenant, canon, canon_bytes))
			return ns;
	}
	return NULL;
}

static int ns_create(struct cache *cache, struct ns_params *params, struct ns **ret,
		     struct why *why)
{
	struct ns *ns;
	int err;

	if (cache->n_namespaces >= cache->config.namespaces_max) {
		struct ns *victim = ns_victim(cache);

		if (!victim)
			return why_fail(why, SKVQ_ELIMIT,
					"all %u namespaces (namespaces_max) are in use",
					cache->config.namespaces_max);
		log_event(LOG_INFO, "namespace_dropped", LOG_U64("ns", victim->id),
			  LOG_U64("pages", victim->table.live));
		ns_drop(cache, victim);
		cache->stats->n[STAT_namespaces_dropped]++;
	}
	params->ram_max = cache->config.ram_max;
	params->hash = cache->config.hash;
	params->collisions = &cache->stats->n[STAT_index_collisions];
	err = ns_new(params, &ns, why);
	if (err < 0)
		return err;
	ns->id = ++cache->last_ns_id;
	ns->next = cache->namespaces;
	cache->namespaces = ns;
	cache->n_namespaces++;
	cache->stats->n[STAT_namespaces_created]++;
	log_event(LOG_INFO, "namespace", LOG_U64("ns", ns->id), LOG_STR("tenant", ns->tenant),
		  LOG_STR("model", ns->model_name), LOG_STR("profile", ns->identity.profile),
		  LOG_STR("engine", ns->identity.engine_numerics),
		  LOG_U64("page_bytes", ns->layout.base_bytes));
	*ret = ns;
	return 0;
}

int cache_ns_open(struct cache *cache, const char *tenant, struct identity *id,
		  const char *model_name, struct ns **ret, struct why *why)
{
	CLEANUP_FREE struct skvq_layout *layout = malloc(sizeof(*layout));
	uint8_t canon[IDENTITY_CANON_MAX];
	struct ns *ns;
	int err;

	if (!layout)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a page layout");
	err = identity_check(id, layout, why);
	if (err < 0)
		return err;
	ns = ns_find(cache, tenant, canon, identity_encode(id, canon));
	if (!ns) {
		struct ns_params params = {
		    .tenant = tenant, .model_name = model_name, .identity = id, .layout = layout};

		err = ns_create(cache, &params, &ns, why);
		if (err < 0)
			return err;
	}
	ns->openers++;
	ns->used = ++cache->stamp;
	*ret = ns;
	return 0;
}

void cache_ns_close(struct cache *cache, struct ns *ns)
{
	(void)cache;
	assert(ns->openers > 0);
	ns->openers--;
}

struct ns *cache_ns_by_id(struct cache *cache, uint32_t id)
{
	struct ns *ns = cache->namespaces;

	while (ns && ns->id != id)
		ns = ns->next;
	return ns;
}

/* ---- pins ---- */

void cache_pin(struct cache *cache, struct pins *pins, struct page *page)
{
	lru_remove(&cache->lru, page); /* before its stamp changes */
	page->stamp = cache->stamp;
	page->used_ms = clock_ms();
	pins_add(pins, page);
	page->pins++;
	ns_of(page)->pins++;
	cache->pins++;
	cache_settle(cache, page);
}

static void unpin(struct cache *cache, struct pins *pins, struct page *page, uint32_t n)
{
	pins_take(pins, page, n);
	assert(page->pins >= n);
	page->pins -= n;
	ns_of(page)->pins -= n;
	cache->pins -= n;
	if (page->pins == 0) {
		/* In use until now, whenever it was matched. */
		page->stamp = cache->stamp;
		page->used_ms = clock_ms();
	}
	cache_settle(cache, page);
}

int cache_unpin(struct cache *cache, struct ns *ns, struct pins *pins, const struct page_ref *refs,
		uint32_t n, struct why *why)
{
	struct pins asked; /* how often each name is in the request */
	uint32_t cursor = 0, count;
	struct page *page;
	int err;

	pins_init(&asked, n);
	err = pins_reserve(&asked, n, why);
	for (uint32_t i = 0; i < n && !err; i++) {
		page = page_table_get(&ns->table, refs[i]);
		if (!page)
			cache->stats->n[STAT_stale_handles]++;
		if (!page || pins_count(&asked, page) >= pins_count(pins, page)) {
			err = why_fail(why, SKVQ_ESTALE,
				       "page %u of %u, slot %u generation %u of namespace %u, is "
				       "not pinned by this connection%s",
				       i + 1, n, refs[i].slot, refs[i].generation, ns->id,
				       page && pins_count(pins, page) ? " that often" : "");
			break;
		}
		pins_add(&asked, page);
	}
	if (!err)
		cache->stamp++;
	while ((page = pins_any(&asked, &cursor, &count))) {
		if (!err)
			unpin(cache, pins, page, count);
		pins_take(&asked, page, count);
	}
	pins_unreserve(&asked, asked.reserved);
	pins_fini(&asked);
	return err;
}

uint32_t cache_unpin_all(struct cache *cache, struct pins *pins)
{
	uint32_t total = pins->total, cursor = 0, count;
	struct page *page;

	cache->stamp++;
	while ((page = pins_any(pins, &cursor, &count)))
		unpin(cache, pins, page, count);
	return total;
}

/* ---- match ---- */

int cache_match(struct cache *cache, struct ns *ns, struct pins *pins, const int32_t *tokens,
		uint32_t n_tokens, uint32_t max_pages, struct page_ref *ret_refs, uint32_t *ret_n,
		struct why *why)
{
	struct stats *stats = cache->stats;
	struct page *page = NULL;
	uint32_t want = n_tokens / SKVQ_PAGE_TOKENS, n = 0;
	bool cut = false;
	int err;

	if (want > max_pages)
		want = max_pages;
	for (; n < want; n++) {
		struct page *next =
		    index_find(&ns->index, &ns->table, page, tokens + (size_t)n * SKVQ_PAGE_TOKENS);

		if (!next || !page_readable(next))
			break;
		if (n >= pins_left(pins)) {
			cut = true;
			break;
		}
		ret_refs[n] = page_ref(next);
		page = next;
	}
	/* The first page that exceeds the bound says so; fewer than exist is an answer. */
	err = pins_reserve(pins, n || !cut ? n : 1, why);
	if (err < 0)
		return err;
	cache->stamp++;
	ns->used = cache->stamp;
	for (uint32_t i = 0; i < n; i++) {
		page = &ns->table.pages[ret_refs[i].slot];
		page->hits++;
		cache_pin(cache, pins, page);
	}
	ns->page_hits += n;
	ns->tokens_asked += n_tokens;
	ns->tokens_matched += (uint64_t)n * SKVQ_PAGE_TOKENS;
	stats->n[STAT_matches]++;
	stats->n[STAT_matches_cut] += cut;
	stats->n[STAT_page_hits] += n;
	stats->n[STAT_tokens_asked] += n_tokens;
	stats->n[STAT_tokens_matched] += (uint64_t)n * SKVQ_PAGE_TOKENS;
	*ret_n = n;
	return 0;
}
