/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room under the cap: which pages may go, dropping them, and holes that readers filled.
 */
#include <assert.h>
#include <string.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "cache/cache.h"

/* Punches of one cache_trim: about a millisecond of the loop. */
#define TRIM_PUNCHES 256u
/* Slots it looks at without finding anything to punch. */
#define TRIM_SLOTS 65536u

/* Proved bad, and nobody has it any more. */
static bool is_dead(const struct page *page)
{
	return page->unlisted && page->pins == 0 && page->children == 0 && !page->restore;
}

void cache_settle(struct cache *cache, struct page *page)
{
	bool may_go = page_readable(page) && page->pins == 0 && page->children == 0;

	if (is_dead(page)) {
		(void)cache_drop(cache, page);
		return;
	}
	shed_settle(cache, page);
	if (may_go == page->in_lru)
		return;
	if (may_go)
		policy_add(&cache->policy, page);
	else
		policy_remove(&cache->policy, page);
}

void cache_enlist(struct cache *cache, struct page *page, struct page *parent,
		  const int32_t tokens[SKVQ_PAGE_TOKENS])
{
	struct ns *ns = ns_of(page);

	page->position = parent ? parent->position + SKVQ_PAGE_TOKENS : 0;
	page->bytes = ns_page_span(ns, page);
	memcpy(page->tokens, tokens, sizeof(page->tokens));
	page->born_ms = page->used_ms = clock_ms();
	if (parent) {
		page->parent = parent->slot;
		parent->children++;
		cache_settle(cache, parent);
	}
	index_insert(&ns->index, page);
	ns->bytes += page->bytes;
	cache->bytes += page->bytes;
	cache->pages++;
}

void cache_unlist(struct cache *cache, struct page *page)
{
	if (!page->unlisted) {
		index_remove(&ns_of(page)->index, page);
		spill_forget(cache, page);
		shed_forget(cache, page);
		page->unlisted = true;
	}
	cache_settle(cache, page);
}

static void drop_one(struct cache *cache, struct page *page, bool keep_memory)
{
	struct ns *ns = ns_of(page);

	assert(page->pins == 0 && page->children == 0);
	policy_gone(&cache->policy, page);
	spill_forget(cache, page);
	shed_forget(cache, page);
	if (!page->unlisted)
		index_remove(&ns->index, page);
	if (page->state == PAGE_RESIDENT_STORED)
		cache->bytes_stored -= page->bytes;
	/* A range the kernel keeps still counts (cache_bytes_used asks it); cache_trim retries. */
	if (!cache->closing && !keep_memory &&
	    arena_punch(&ns->arena, ns_page_offset(ns, page), ns_page_span(ns, page)) < 0)
		cache->stats->n[STAT_punch_failures]++;
	ns->bytes -= page->bytes;
	cache->bytes -= page->bytes;
	cache->pages--;
	page_move(page, PAGE_FREE);
}

static struct page *drop(struct cache *cache, struct page *page, bool keep_memory)
{
	for (;;) {
		struct page *parent = page_parent(page);

		drop_one(cache, page, keep_memory);
		keep_memory = false;
		if (!parent)
			return NULL;
		assert(parent->children > 0);
		parent->children--;
		if (!is_dead(parent)) {
			cache_settle(cache, parent);
			return parent;
		}
		page = parent;
	}
}

struct page *cache_drop(struct cache *cache, struct page *page)
{
	return drop(cache, page, false);
}

uint64_t cache_kernel_bytes(struct cache *cache)
{
	uint64_t sum = 0;

	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		/* fstat of our own memfd does not fail; the last known value if it does. */
		(void)arena_kernel_bytes(&ns->arena, &ns->kernel_bytes);
		sum += ns->kernel_bytes;
	}
	return sum;
}

uint64_t cache_bytes_used(struct cache *cache)
{
	uint64_t sum = 0;

	(void)cache_kernel_bytes(cache);
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next)
		sum += ns->bytes > ns->kernel_bytes ? ns->bytes : ns->kernel_bytes;
	return sum;
}

static void evict(struct cache *cache, struct page *page, bool keep_memory)
{
	ns_of(page)->evictions++;
	cache->stats->n[STAT_evictions]++;
	cache->stats->n[STAT_bytes_evicted] += page->bytes;
	if (!spill_last_call(cache, page))
		cache->stats->n[STAT_evictions_lost]++;
	(void)drop(cache, page, keep_memory);
}

/* With `heir`, a page of exactly so many bytes is about to come in that namespace. */
static int make_room(struct cache *cache, uint64_t bytes, struct ns *heir,
		     struct page_ref *ret_slot, struct why *why)
{
	uint64_t max = cache->config.ram_max;
	uint64_t used = cache_bytes_used(cache);

	if (used > cache->bytes && used + bytes > max) {
		cache_trim(cache);
		used = cache_bytes_used(cache);
	}
	while (used + bytes > max) {
		struct page *page;

		if (shed_one(cache)) {
			used = cache_bytes_used(cache);
			continue;
		}
		page = policy_victim(&cache->policy);
		if (!page)
			return why_fail(why, SKVQ_ENOSPC,
					"a page of %llu bytes does not fit: %llu of %llu bytes are "
					"in use and every page is pinned or has pinned descendants",
					(unsigned long long)bytes, (unsigned long long)used,
					(unsigned long long)max);
		if (heir && ns_of(page) == heir && page->bytes == bytes && !page->shed &&
		    used <= max) {
			*ret_slot =
			    (struct page_ref){.slot = page->slot, .generation = page->generation};
			evict(cache, page, true);
			return 0;
		}
		evict(cache, page, false);
		used = cache_bytes_used(cache);
	}
	return 0;
}

int cache_make_room(struct cache *cache, uint64_t bytes, struct why *why)
{
	return make_room(cache, bytes, NULL, NULL, why);
}

struct page *cache_take_slot(struct cache *cache, struct ns *ns, uint64_t bytes, int *ret_err,
			     struct why *why)
{
	struct page_ref kept = {0};
	struct page *page;

	*ret_err = make_room(cache, bytes, ns, &kept, why);
	if (*ret_err < 0)
		return NULL;
	/* The slot that was freed last is taken first, unless more was dropped with its page. */
	page = page_table_take(&ns->table, PAGE_FILLING);
	if (kept.generation && (!page || page->slot != kept.slot) &&
	    arena_punch(&ns->arena, kept.slot * ns->layout.slot_bytes, bytes) < 0)
		cache->stats->n[STAT_punch_failures]++;
	if (!page)
		*ret_err = why_fail(why, SKVQ_ENOSPC, "all %u slots of namespace %u are taken",
				    ns->table.slots, ns->id);
	return page;
}

/* ---- holes that readers faulted in ---- */

struct trim {
	struct cache *cache;
	struct ns *ns;
	uint64_t from, to; /* a range to punch that may still grow */
	uint32_t punches;
};

static void trim_flush(struct trim *t)
{
	if (t->from == t->to)
		return;
	if (arena_punch(&t->ns->arena, t->from, t->to - t->from) < 0)
		t->cache->stats->n[STAT_punch_failures]++;
	else
		t->cache->stats->n[STAT_holes_punched]++;
	t->punches++;
	t->from = t->to = 0;
}

static void trim_range(struct trim *t, uint64_t from, uint64_t to)
{
	if (from >= to)
		return;
	if (t->to != from) {
		trim_flush(t);
		t->from = from;
	}
	t->to = to;
}

/* Goes round the slots from where it stopped last; what no page owns is punched. */
static void trim_ns(struct trim *t)
{
	struct ns *ns = t->ns;
	uint64_t slot_bytes = ns->layout.slot_bytes;
	uint32_t end = ns->table.touched;
	uint32_t at = ns->trim_slot < end ? ns->trim_slot : 0;

	/* Never used: one range up to the end. */
	if (end < ns->table.slots)
		trim_range(t, end * slot_bytes, ns->arena.bytes);
	trim_flush(t);
	for (uint32_t seen = 0; seen < end && seen < TRIM_SLOTS; seen++) {
		const struct page *page = &ns->table.pages[at];
		uint64_t start = at * slot_bytes, base = ns->layout.base_bytes;
		uint64_t used = page->state == PAGE_FREE ? 0 : ns_page_span(ns, page);

		if (t->punches >= TRIM_PUNCHES)
			break;
		if (page->state != PAGE_FREE && page->shed && !page->fill)
			trim_range(t, start + base, start + base + ns->layout.refine_bytes);
		trim_range(t, start + used, start + slot_bytes);
		if (++at == end) {
			trim_flush(t); /* the next range starts at 0 */
			at = 0;
		}
	}
	trim_flush(t);
	ns->trim_slot = at;
}

void cache_trim(struct cache *cache)
{
	struct trim t = {.cache = cache};

	for (t.ns = cache->namespaces; t.ns; t.ns = t.ns->next) {
		if (arena_kernel_bytes(&t.ns->arena, &t.ns->kernel_bytes) < 0)
			continue;
		if (t.ns->kernel_bytes > t.ns->bytes && t.punches < TRIM_PUNCHES)
			trim_ns(&t);
	}
}
