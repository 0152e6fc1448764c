/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/explain.h"

#include <string.h>

#include <skvq/error.h>

#include "base/clock.h"

/* Of one call, so that the loop goes on: slots looked at for a page that follows, and pages looked up
 * in other namespaces. */
#define SCAN_SLOTS   65536u
#define LOOKUPS_MOST 65536u

static const char *const end_names[EXPLAIN_ENDS] = {
    "all", "filling", "coming", "held", "dropped", "differs", "unknown",
};

const char *explain_end_name(enum explain_end end)
{
	return end_names[end];
}

static const int32_t *tokens_at(const struct explain *e, uint32_t i)
{
	return i ? e->tokens + (size_t)i * SKVQ_PAGE_TOKENS : e->tokens; /* NULL if there are none */
}

static bool is_there(const struct explain *e, uint32_t i)
{
	return (uint64_t)(i + 1) * SKVQ_PAGE_TOKENS <= e->n_tokens;
}

/* The last readable page of the chain, NULL: none; *ret_n of them. *ret_next is what follows it in the
 * index, in whatever state, or NULL. */
static struct page *walk(const struct explain *e, struct ns *ns, uint32_t most, uint32_t *ret_n,
			 struct page **ret_next)
{
	struct page *page = NULL, *next = NULL;
	uint32_t n = 0;

	for (; n < most && is_there(e, n); n++, page = next) {
		next = index_find(&ns->index, &ns->table, page, tokens_at(e, n));
		if (!next || !page_readable(next))
			break;
	}
	*ret_n = n;
	*ret_next = n < most && is_there(e, n) ? next : NULL;
	return page;
}

/* What follows the chain in memory, and *ret_digest of the first page that is in neither. */
static int walk_disk(struct explain *e, const struct page *last, uint8_t ret_digest[IDENTITY_DIGEST],
		     struct why *why)
{
	uint8_t parent[IDENTITY_DIGEST] = {0};
	struct tier *tier = e->ns->tenant->tier;
	uint64_t page_bytes = e->ns->layout.base_bytes + e->ns->layout.refine_bytes;
	struct tier_key key;

	if (last)
		memcpy(parent, last->digest, sizeof(parent));
	for (;; e->n_disk++) {
		uint32_t at = e->n_memory + e->n_disk;

		if (!is_there(e, at))
			break;
		if (page_digest(e->ns->digest, parent, at * SKVQ_PAGE_TOKENS, tokens_at(e, at),
				ret_digest) < 0)
			return why_fail(why, SKVQ_ENOMEM, "no memory for a page digest");
		restore_key(e->ns, ret_digest, &key);
		if (!tier || !tier->ops->contains(tier, &key))
			break;
		memcpy(parent, ret_digest, sizeof(parent));
	}
	if (e->n_disk)
		e->disk_ms = restores_estimate_ms(&e->ns->tenant->restores, e->n_disk * page_bytes);
	return 0;
}

/* ---- pages that are nearly the one ---- */

static uint32_t same(const int32_t *a, const int32_t *b, uint32_t n)
{
	uint32_t i = 0;

	while (i < n && a[i] == b[i])
		i++;
	return i;
}

/* One engine puts a token in front (the beginning of a text) and the other does not. */
static int32_t shift_of(const int32_t *there, const int32_t *asked)
{
	if (same(there + 1, asked, SKVQ_PAGE_TOKENS - 1) == SKVQ_PAGE_TOKENS - 1)
		return 1;
	if (same(there, asked + 1, SKVQ_PAGE_TOKENS - 1) == SKVQ_PAGE_TOKENS - 1)
		return -1;
	return 0;
}

static void look_at_siblings(struct explain *e, const struct page *last)
{
	const struct page_table *table = &e->ns->table;
	uint32_t rest = e->n_tokens - e->n_memory * SKVQ_PAGE_TOKENS, scanned = 0, slot;
	uint32_t n = rest < SKVQ_PAGE_TOKENS ? rest : SKVQ_PAGE_TOKENS;
	const int32_t *asked = tokens_at(e, e->n_memory);

	for (slot = e->first_slot; slot < table->touched && scanned < SCAN_SLOTS; slot++, scanned++) {
		const struct page *page = &table->pages[slot];
		uint32_t equal;

		if (page->state == PAGE_FREE || !page->tokens || page_parent(page) != last)
			continue;
		equal = same(page->tokens, asked, n);
		if (equal > e->same_tokens)
			e->same_tokens = equal;
		if (!last && n == SKVQ_PAGE_TOKENS && !e->shift)
			e->shift = shift_of(page->tokens, asked);
	}
	e->next_slot = slot < table->touched ? slot : 0;
}

/* ---- namespaces that are nearly the one ---- */

static void look_elsewhere(struct cache *cache, struct explain *e)
{
	uint32_t lookups = 0;

	for (struct ns *at = cache->namespaces; at && lookups < LOOKUPS_MOST; at = at->next) {
		struct page *next;
		uint32_t n, fields;

		if (at == e->ns || at->tenant != e->ns->tenant)
			continue;
		(void)walk(e, at, LOOKUPS_MOST - lookups, &n, &next);
		lookups += n + 1;
		if (n <= e->n_memory + e->n_disk || n <= e->other_pages)
			continue;
		e->other = at;
		e->other_pages = n;
		e->other_differs = identity_differs(&at->identity, &e->ns->identity, &fields);
	}
}

int cache_explain(struct cache *cache, struct explain *e, struct why *why)
{
	uint64_t hold = cache_may_hold(cache, e->ns->tenant), held = 0;
	uint8_t digest[IDENTITY_DIGEST];
	struct page *last, *next;
	bool asked;
	int err;

	last = walk(e, e->ns, UINT32_MAX, &e->n_memory, &next);
	for (const struct page *page = last; page; page = page_parent(page))
		held += page->held ? 0 : page->bytes;
	err = next ? 0 : walk_disk(e, last, digest, why);
	if (err < 0)
		return err;
	look_at_siblings(e, last);
	look_elsewhere(cache, e);
	asked = is_there(e, e->n_memory + e->n_disk);
	if (held > hold)
		e->end = EXPLAIN_HELD;
	else if (next)
		e->end = next->restore ? EXPLAIN_COMING : EXPLAIN_FILLING;
	else if (!asked)
		e->end = EXPLAIN_ALL;
	else if (policy_gone_since(&e->ns->tenant->policy, digest, clock_ms(), &e->gone_ms))
		e->end = EXPLAIN_DROPPED;
	else
		e->end = !e->n_disk && e->same_tokens ? EXPLAIN_DIFFERS : EXPLAIN_UNKNOWN;
	return 0;
}
