/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The longest chain of pages that begins some tokens: first those in memory, found by the index and
 * proved by comparison; behind the last of them those in the tier below, found by the digest that
 * follows from parent and tokens. A page in memory has its parent in memory, so there is no third
 * part. Cold pages are read back if that is worth the engine's time.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "cache/cache.h"

static struct page *chain_at(const struct match *m, uint32_t i)
{
	return &m->ns->table.pages[m->refs[i].slot];
}

static const int32_t *tokens_at(const struct match *m, uint32_t i)
{
	return m->tokens + (size_t)i * SKVQ_PAGE_TOKENS;
}

/* ---- what there is ---- */

struct plan {
	uint32_t want;    /* pages the caller can take */
	uint32_t n;       /* of these, in the table */
	uint32_t n_ready; /* of these, the first that are readable; the rest is on its way */
	uint32_t n_cold;  /* behind these, in the tier */
	bool cut;         /* by pins_max */
	bool full;        /* more may not be held: it is guaranteed to other tenants */
	uint8_t *digests; /* [n_cold][IDENTITY_DIGEST] */
};

static void plan_table(const struct cache *cache, struct match *m, uint32_t pins_left,
		       struct plan *plan)
{
	struct ns *ns = m->ns;
	uint64_t hold = cache_may_hold(cache, ns->tenant);
	struct page *page = NULL;

	while (plan->n < plan->want) {
		struct page *next =
		    index_find(&ns->index, &ns->table, page, tokens_at(m, plan->n));

		if (!next || !(page_readable(next) || (next->restore && m->wait_ms)) ||
		    (next->shed && m->whole))
			return;
		if (plan->n >= pins_left) {
			plan->cut = true;
			return;
		}
		if (!next->held && next->bytes > hold) {
			plan->full = true;
			return;
		}
		hold -= next->held ? 0 : next->bytes;
		plan->n_ready += plan->n_ready == plan->n && page_readable(next);
		m->refs[plan->n++] = page_ref(next);
		page = next;
	}
}

static int plan_tier(struct match *m, uint32_t most, struct plan *plan, struct why *why)
{
	uint8_t parent[IDENTITY_DIGEST] = {0}, *digest;
	struct tier_key key;

	plan->digests = malloc((size_t)most * IDENTITY_DIGEST + 1);
	if (!plan->digests)
		return why_fail(why, SKVQ_ENOMEM, "no memory to look for %u pages on disk", most);
	if (plan->n)
		memcpy(parent, chain_at(m, plan->n - 1)->digest, sizeof(parent));
	for (; plan->n_cold < most; plan->n_cold++) {
		uint32_t at = plan->n + plan->n_cold;

		digest = plan->digests + (size_t)plan->n_cold * IDENTITY_DIGEST;
		if (page_digest(m->ns->digest, parent, at * SKVQ_PAGE_TOKENS, tokens_at(m, at),
				digest) < 0)
			return why_fail(why, SKVQ_ENOMEM, "no memory for a page digest");
		restore_key(m->ns, digest, &key);
		if (!m->ns->tenant->tier->ops->contains(m->ns->tenant->tier, &key))
			return 0;
		memcpy(parent, digest, sizeof(parent));
	}
	return 0;
}

/* Leaves out what would come too late, or what the engine has computed before it is read. */
static void plan_worth(struct cache *cache, const struct match *m, struct plan *plan)
{
	uint64_t page_bytes = m->ns->layout.base_bytes + m->ns->layout.refine_bytes;
	uint64_t fit = restores_within(&m->ns->tenant->restores, m->wait_ms) / page_bytes;
	uint32_t n = plan->n_cold < fit ? plan->n_cold : (uint32_t)fit;
	uint64_t read_us = restores_estimate_ms(&m->ns->tenant->restores, n * page_bytes) * 1000;

	if (m->recompute_us && read_us > (uint64_t)n * SKVQ_PAGE_TOKENS * m->recompute_us)
		n = 0;
	cache_count(cache, m->ns->tenant, STAT_restores_declined, plan->n_cold - n);
	plan->n_cold = n;
}

/* A bound may have been lowered since. */
static uint32_t left(uint32_t max, uint32_t n)
{
	return max > n ? max - n : 0;
}

static int make_plan(struct cache *cache, struct match *m, uint32_t pins_left, struct plan *plan,
		     struct why *why)
{
	uint32_t most, out_max = cache->config.restores_max;
	uint32_t tenant_max = m->ns->tenant->limits.restores_max;
	int err;

	plan->want = m->n_tokens / SKVQ_PAGE_TOKENS;
	if (plan->want > m->max_pages)
		plan->want = m->max_pages;
	plan_table(cache, m, pins_left, plan);
	if (!m->ns->tenant->tier || !m->wait_ms || cache->closing || plan->cut || plan->full ||
	    plan->n == plan->want ||
	    index_find(&m->ns->index, &m->ns->table,
		       plan->n ? chain_at(m, plan->n - 1) : NULL, tokens_at(m, plan->n)))
		return 0;
	most = plan->want - plan->n;
	if (most > pins_left - plan->n)
		most = pins_left - plan->n;
	if (most > left(out_max, cache->n_restores))
		most = left(out_max, cache->n_restores);
	if (tenant_max && most > left(tenant_max, m->ns->tenant->restores.n))
		most = left(tenant_max, m->ns->tenant->restores.n);
	err = plan_tier(m, most, plan, why);
	if (!err)
		plan_worth(cache, m, plan);
	return err;
}

/* Asks for the cold pages, one the other's parent. All of the chain is held. */
static void begin_cold(struct cache *cache, struct match *m, const struct plan *plan)
{
	struct page *page = m->n_chain ? chain_at(m, m->n_chain - 1) : NULL;

	for (uint32_t i = 0; i < plan->n_cold; i++) {
		const uint8_t *digest = plan->digests + (size_t)i * IDENTITY_DIGEST;
		uint32_t timeout_ms = m->wait_ms;

		if (restore_begin(cache, m->ns, page, tokens_at(m, m->n_chain), digest, timeout_ms,
				  &page, NULL) < 0) {
			cache_count(cache, m->ns->tenant, STAT_restores_refused, plan->n_cold - i);
			return;
		}
		cache_hold(cache, page);
		m->refs[m->n_chain++] = page_ref(page);
	}
}

static void begin(struct cache *cache, struct match *m, const struct plan *plan)
{
	cache->stamp++;
	m->ns->used = cache->stamp;
	m->n_table = plan->n_ready;
	m->n_waiting = 0;
	m->n_chain = plan->n;
	for (uint32_t i = 0; i < plan->n; i++)
		cache_hold(cache, chain_at(m, i));
	begin_cold(cache, m, plan);
}

static void let_go(struct cache *cache, struct match *m)
{
	for (uint32_t i = 0; i < m->n_chain; i++)
		cache_release(cache, chain_at(m, i), 1);
}

/* ---- the answer ---- */

static void count(struct cache *cache, const struct match *m)
{
	struct tenant *tenant = m->ns->tenant;
	uint64_t tokens = (uint64_t)m->n * SKVQ_PAGE_TOKENS;

	m->ns->page_hits += m->n;
	m->ns->tokens_asked += m->n_tokens;
	m->ns->tokens_matched += tokens;
	cache_count(cache, tenant, STAT_matches, 1);
	cache_count(cache, tenant, STAT_page_hits, m->n);
	cache_count(cache, tenant, STAT_tokens_asked, m->n_tokens);
	cache_count(cache, tenant, STAT_tokens_matched, tokens);
	cache_count(cache, tenant, STAT_tokens_restored,
		    (uint64_t)m->n_restored * SKVQ_PAGE_TOKENS);
}

/* The chain up to n_waiting is good. */
static void complete(struct cache *cache, struct match *m)
{
	m->n = m->n_waiting;
	m->n_restored = m->n > m->n_table ? m->n - m->n_table : 0;
	for (uint32_t i = 0; i < m->n && m->pins; i++) {
		struct page *page = chain_at(m, i);

		page->hits++;
		policy_hit(&m->ns->tenant->policy, page);
		cache_pin(cache, m->pins, page);
		spill_want(page);
	}
	if (m->pins)
		pins_unreserve(m->pins, m->n_chain - m->n);
	count(cache, m);
	let_go(cache, m);
}

/* Whether all is known: every page is here, or the first that will not come ends the chain. */
static bool is_resolved(struct match *m)
{
	for (; m->n_waiting < m->n_chain; m->n_waiting++) {
		const struct page *page = chain_at(m, m->n_waiting);

		if (page->restore)
			return false;
		/* Reading others back may have made room of a refinement. */
		if (page->unlisted || (page->shed && m->whole))
			return true;
	}
	return true;
}

static void link_match(struct cache *cache, struct match *m)
{
	m->prev = NULL;
	m->next = cache->matches;
	if (m->next)
		m->next->prev = m;
	cache->matches = m;
}

static void unlink_match(struct cache *cache, struct match *m)
{
	if (m->prev)
		m->prev->next = m->next;
	else
		cache->matches = m->next;
	if (m->next)
		m->next->prev = m->prev;
	m->next = m->prev = NULL;
}

void cache_matches_wake(struct cache *cache)
{
	struct match *next;

	for (struct match *m = cache->matches; m; m = next) {
		next = m->next;
		if (!is_resolved(m))
			continue;
		unlink_match(cache, m);
		complete(cache, m);
		m->done(m, 0, NULL);
	}
}

int cache_match(struct cache *cache, struct match *m, struct why *why)
{
	struct plan plan = {0};
	int err = make_plan(cache, m, pins_left(m->pins), &plan, why);

	/* The first page that exceeds the bound says so; fewer than exist is an answer. */
	if (!err)
		err = pins_reserve(m->pins,
				   plan.n + plan.n_cold || !plan.cut ? plan.n + plan.n_cold : 1,
				   why);
	if (!err) {
		cache_count(cache, m->ns->tenant, STAT_matches_cut, plan.cut || plan.full);
		begin(cache, m, &plan);
		/* What could not be asked for after all. */
		pins_unreserve(m->pins, plan.n + plan.n_cold - m->n_chain);
	}
	free(plan.digests);
	if (err < 0)
		return err;
	if (!is_resolved(m)) {
		link_match(cache, m);
		return 0;
	}
	complete(cache, m);
	return 1;
}

void cache_match_orphan(struct match *m)
{
	pins_unreserve(m->pins, m->n_chain);
	m->pins = NULL;
}

int cache_prefetch(struct cache *cache, struct match *m, uint32_t *ret_here, uint32_t *ret_coming,
		   struct why *why)
{
	struct plan plan = {0};
	int err = make_plan(cache, m, UINT32_MAX, &plan, why);

	if (!err) {
		begin(cache, m, &plan);
		let_go(cache, m); /* reads go on without being held */
		cache_count(cache, m->ns->tenant, STAT_prefetches, 1);
		*ret_here = plan.n_ready;
		*ret_coming = m->n_chain - plan.n_ready;
	}
	free(plan.digests);
	return err;
}
