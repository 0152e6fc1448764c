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
/* Slots it looks at, of all namespaces. */
#define TRIM_SLOTS 8192u

/* Slots of which one is freed. */
#define FREE_LOOKS 512u

/* Pages, or refinements, that one cache_shrink gives up: a few milliseconds of the loop. */
#define SHRINK_PAGES 64u

/* Proved bad, and nobody has it any more. */
static bool is_dead(const struct page *page)
{
	return page->unlisted && page->pins == 0 && page->children == 0 && !page->restore;
}

void cache_settle_held(struct page *page)
{
	while (page) {
		bool held = page->pins || page->held_children || !page_readable(page);
		struct page *parent = page_parent(page);

		if (held == page->held)
			return;
		page->held = held;
		ns_of(page)->tenant->held += held ? page->bytes : 0 - page->bytes;
		if (parent)
			parent->held_children += held ? 1u : UINT32_MAX;
		page = parent;
	}
}

bool cache_page_born(struct cache *cache, struct page *page)
{
	struct tenant *tenant = ns_of(page)->tenant;
	uint64_t away_ms;

	if (!policy_born(&tenant->policy, page, clock_ms(), &away_ms))
		return false;
	cache_record(cache, tenant, HISTOGRAM_return_gap_ms, away_ms);
	return true;
}

void cache_settle(struct cache *cache, struct page *page)
{
	bool may_go = page_readable(page) && page->pins == 0 && page->children == 0;

	cache_settle_held(page);
	if (is_dead(page)) {
		(void)cache_drop(cache, page);
		return;
	}
	shed_settle(page);
	if (may_go == page->in_lru)
		return;
	if (may_go)
		policy_add(&ns_of(page)->tenant->policy, page);
	else
		policy_remove(&ns_of(page)->tenant->policy, page);
}

void cache_enlist(struct cache *cache, struct page *page, struct page *parent,
		  const int32_t tokens[SKVQ_PAGE_TOKENS])
{
	struct ns *ns = ns_of(page);

	page->position = parent ? parent->position + SKVQ_PAGE_TOKENS : 0;
	page->bytes = ns_page_span(ns, page);
	page->tokens = tokens;
	page->born_ms = page->used_ms = clock_ms();
	if (parent) {
		page->parent = parent->slot;
		parent->children++;
		cache_settle(cache, parent);
	}
	index_insert(&ns->index, page);
	ns->bytes += page->bytes;
	ns->tenant->bytes += page->bytes;
	cache->bytes += page->bytes;
	ns->tenant->pages++;
	cache->pages++;
	cache_settle_held(page);
}

void cache_unlist(struct cache *cache, struct page *page)
{
	if (!page->unlisted) {
		if (page_readable(page))
			event_page(cache, EVENT_REMOVED, page, "failed_check");
		index_remove(&ns_of(page)->index, page);
		spill_forget(page);
		shed_forget(page);
		page->unlisted = true;
	}
	cache_settle(cache, page);
}

/* A page that goes was not held, or was on its way. */
static void let_loose(struct page *page)
{
	struct page *parent = page_parent(page);

	if (!page->held)
		return;
	page->held = false;
	ns_of(page)->tenant->held -= page->bytes;
	if (parent) {
		parent->held_children--;
		cache_settle_held(parent);
	}
}

/* why: for those who listen. */
static void drop_one(struct cache *cache, struct page *page, bool keep_memory, const char *why)
{
	struct ns *ns = ns_of(page);

	assert(page->pins == 0 && page->children == 0);
	/* Of one that is not listed it has been told. */
	if (page_readable(page) && !page->unlisted && !cache->dropping)
		event_page(cache, EVENT_REMOVED, page, why);
	policy_gone(&ns->tenant->policy, page, clock_ms());
	let_loose(page);
	spill_forget(page);
	shed_forget(page);
	if (!page->unlisted)
		index_remove(&ns->index, page);
	if (page->state == PAGE_RESIDENT_STORED)
		cache_add_stored(cache, ns->tenant, 0 - page->bytes);
	/* A range the kernel keeps still counts (cache_bytes_used asks it); cache_trim retries. */
	if (!cache->closing && !keep_memory &&
	    arena_punch(&ns->arena, ns_page_offset(ns, page), ns_page_span(ns, page)) < 0)
		cache_count(cache, ns->tenant, STAT_punch_failures, 1);
	ns->bytes -= page->bytes;
	ns->tenant->bytes -= page->bytes;
	cache->bytes -= page->bytes;
	ns->tenant->pages--;
	cache->pages--;
	page_move(page, PAGE_FREE);
	page->tokens = NULL; /* of a job that may be gone */
}

static struct page *drop(struct cache *cache, struct page *page, bool keep_memory, const char *why)
{
	for (;;) {
		struct page *parent = page_parent(page);

		drop_one(cache, page, keep_memory, why);
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
	return drop(cache, page, false, "evicted");
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
	for (uint32_t i = 0; i < cache->n_tenants; i++)
		cache->tenants[i]->used = 0;
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		uint64_t used = ns->bytes > ns->kernel_bytes ? ns->bytes : ns->kernel_bytes;

		ns->tenant->used += used;
		sum += used;
	}
	return sum;
}

uint64_t cache_may_hold(const struct cache *cache, const struct tenant *tenant)
{
	uint64_t taken = tenant->held;

	if (cache->n_tenants == 1)
		return UINT64_MAX;
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		const struct tenant *t = cache->tenants[i];

		if (t != tenant)
			taken += t->held > t->limits.ram_min ? t->held : t->limits.ram_min;
	}
	return taken < cache->config.ram_max ? cache->config.ram_max - taken : 0;
}

static void count_eviction(struct cache *cache, const struct page *page, bool lost)
{
	struct tenant *tenant = ns_of(page)->tenant;

	ns_of(page)->evictions++;
	cache_count(cache, tenant, STAT_evictions, 1);
	cache_count(cache, tenant, STAT_bytes_evicted, page->bytes);
	cache_count(cache, tenant, STAT_evictions_lost, lost);
}

static void evict(struct cache *cache, struct page *page, bool keep_memory)
{
	count_eviction(cache, page, !spill_last_call(cache, page));
	(void)drop(cache, page, keep_memory, "evicted");
}

struct page *cache_evict(struct cache *cache, struct page *page, bool below_too)
{
	struct tier *tier = ns_of(page)->tenant->tier;
	struct tier_key key;

	if (below_too && tier) {
		restore_key(ns_of(page), page->digest, &key);
		tier->ops->drop(tier, &key);
	}
	count_eviction(cache, page, below_too || !spill_last_call(cache, page));
	return drop(cache, page, false, "asked");
}

/* What the tenant would give up next; 0: nothing. */
static uint64_t gives(const struct cache *cache, const struct tenant *tenant)
{
	const struct page *page = tenant->shed_queue.head;

	if (page && !cache->closing && !cache->config.no_shed)
		return ns_of(page)->layout.refine_bytes;
	page = policy_victim(&tenant->policy);
	return page ? page->bytes : 0;
}

/* Of those that have something to give, the one with most above its guarantee, if bytes more were
 * the asking one's. So under pressure tenants come to have equal parts of what is not guaranteed,
 * and who has less than another is not asked. NULL: nobody. */
static struct tenant *giver(struct cache *cache, struct tenant *asking, uint64_t bytes)
{
	struct tenant *best = NULL;
	uint64_t most = 0;

	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		struct tenant *t = cache->tenants[i];
		uint64_t min = t->limits.ram_min, size = gives(cache, t);
		uint64_t used = t->used + (t == asking ? bytes : 0);
		uint64_t above = used > min ? used - min : 0;

		if (!size || (t != asking && t->used < min + size))
			continue;
		if (!best || above > most || (above == most && t == asking)) {
			best = t;
			most = above;
		}
	}
	return best;
}

int cache_check_hold(const struct cache *cache, const struct tenant *tenant, uint64_t bytes,
		     struct why *why)
{
	if (bytes <= cache_may_hold(cache, tenant))
		return 0;
	return why_fail(why, SKVQ_ETRAM,
			"a page of %llu bytes does not fit beside %llu that this tenant "
			"holds: the rest is held by others or guaranteed to them",
			(unsigned long long)bytes, (unsigned long long)tenant->held);
}

/* With `heir`, a page of exactly so many bytes is about to come in that namespace: a page that goes
 * may leave it its slot and memory. */
static void give_up(struct cache *cache, struct tenant *tenant, uint64_t bytes, struct ns *heir,
		    struct page_ref *ret_slot)
{
	struct page *page;

	if (shed_one(cache, tenant))
		return;
	page = policy_victim(&tenant->policy);
	if (!heir || ns_of(page) != heir || page->bytes != bytes || page->shed) {
		evict(cache, page, false);
		return;
	}
	*ret_slot = (struct page_ref){.slot = page->slot, .generation = page->generation};
	evict(cache, page, true);
}

/* The sentence tells the tenant of nobody but itself, unless it is the only one. */
static int no_room(const struct cache *cache, const struct tenant *tenant, uint64_t bytes,
		   uint64_t max, struct why *why)
{
	return why_fail(why, max < cache->config.ram_max ? SKVQ_ETRAM : SKVQ_ENOSPC,
			"a page of %llu bytes does not fit: this tenant uses %llu of %llu bytes, "
			"and every page that may go is pinned or has pinned descendants",
			(unsigned long long)bytes, (unsigned long long)tenant->used,
			(unsigned long long)max);
}

static int make_room(struct cache *cache, struct tenant *tenant, uint64_t bytes, struct ns *heir,
		     struct page_ref *ret_slot, struct why *why)
{
	uint64_t max = cache->config.ram_max;
	uint64_t own = tenant->limits.ram_max ? tenant->limits.ram_max : max;
	uint64_t used = cache_bytes_used(cache);

	if (cache_check_hold(cache, tenant, bytes, why) < 0)
		return -SKVQ_ETRAM;
	if (used > cache->bytes && (used + bytes > max || tenant->used + bytes > own)) {
		cache_trim(cache);
		used = cache_bytes_used(cache);
	}
	while (tenant->used + bytes > own) {
		if (!gives(cache, tenant))
			return no_room(cache, tenant, bytes, own, why);
		give_up(cache, tenant, bytes, used <= max && tenant->used <= own ? heir : NULL,
			ret_slot);
		if (ret_slot && ret_slot->generation)
			return 0;
		used = cache_bytes_used(cache);
	}
	while (used + bytes > max) {
		struct tenant *from = giver(cache, tenant, bytes);

		if (!from)
			return no_room(cache, tenant, bytes, max, why);
		give_up(cache, from, bytes, used <= max ? heir : NULL, ret_slot);
		if (ret_slot && ret_slot->generation)
			return 0;
		used = cache_bytes_used(cache);
	}
	return 0;
}

int cache_make_room(struct cache *cache, struct tenant *tenant, uint64_t bytes, struct why *why)
{
	return make_room(cache, tenant, bytes, NULL, NULL, why);
}

/* Of so many slots, from where it stopped last, the page that was used longest ago and may go; of more
 * only if none of these may. To look at all for each page would hold up the loop. */
static struct page *oldest_ahead(struct ns *ns)
{
	struct page *best = NULL;

	for (uint32_t i = 0; i < ns->table.touched && (i < FREE_LOOKS || !best); i++) {
		struct page *page;

		ns->free_slot = ns->free_slot < ns->table.touched ? ns->free_slot : 0;
		page = &ns->table.pages[ns->free_slot++];
		if (page->state != PAGE_FREE && page->in_lru && (!best || page->stamp < best->stamp))
			best = page;
	}
	return best;
}

bool cache_free_slot(struct cache *cache, struct ns *ns)
{
	struct page *page = policy_victim(&ns->tenant->policy);

	if (page && ns_of(page) != ns)
		page = oldest_ahead(ns);
	if (page)
		evict(cache, page, false);
	return page != NULL;
}

struct page *cache_take_slot(struct cache *cache, struct ns *ns, uint64_t bytes, int *ret_err,
			     struct why *why)
{
	struct page_ref kept = {0};
	struct page *page;

	*ret_err = make_room(cache, ns->tenant, bytes, ns, &kept, why);
	if (*ret_err < 0)
		return NULL;
	/* The slot that was freed last is taken first, unless more was dropped with its page. */
	page = page_table_take(&ns->table, PAGE_FILLING);
	/* Made under a smaller cap, it has no more slots than pages fitted then. */
	if (!page && cache_free_slot(cache, ns))
		page = page_table_take(&ns->table, PAGE_FILLING);
	if (kept.generation && (!page || page->slot != kept.slot) &&
	    arena_punch(&ns->arena, kept.slot * ns->layout.slot_bytes, bytes) < 0)
		cache_count(cache, ns->tenant, STAT_punch_failures, 1);
	if (!page)
		*ret_err = why_fail(why, SKVQ_ENOSPC, "all %u slots of namespace %u are taken",
				    ns->table.slots, ns->id);
	return page;
}

/* ---- caps that come down ---- */

/* The tenant with most above its guarantee that has something to give. Once at the guarantees' sum, a
 * page of one may reach a part of itself into what is guaranteed to it; it can take that back. */
static struct tenant *richest(const struct cache *cache)
{
	struct tenant *best = NULL;
	uint64_t most = 0;

	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		struct tenant *t = cache->tenants[i];

		if (gives(cache, t) && t->used > t->limits.ram_min &&
		    t->used - t->limits.ram_min > most) {
			best = t;
			most = t->used - t->limits.ram_min;
		}
	}
	return best;
}

/* The cap follows what is used, down to the goal. */
static void follow(uint64_t *cap, uint64_t *goal, uint64_t used)
{
	if (used < *cap)
		*cap = used;
	if (*cap <= *goal) {
		*cap = *goal;
		*goal = 0;
	}
}

static bool gave_up(struct cache *cache, struct tenant *tenant)
{
	if (!tenant || !gives(cache, tenant))
		return false;
	give_up(cache, tenant, 0, NULL, NULL);
	return true;
}

static bool is_shrinking(const struct cache *cache)
{
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		if (cache->tenants[i]->ram_goal)
			return true;
	}
	return cache->ram_goal != 0;
}

bool cache_shrink(struct cache *cache)
{
	uint32_t n = SHRINK_PAGES;
	uint64_t used;

	if (cache->closing || !is_shrinking(cache))
		return false;
	if (cache_bytes_used(cache) > cache->bytes)
		cache_trim(cache);
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		struct tenant *t = cache->tenants[i];

		(void)cache_bytes_used(cache);
		for (; t->ram_goal && n && t->used > t->ram_goal && gave_up(cache, t); n--)
			(void)cache_bytes_used(cache);
		if (t->ram_goal)
			follow(&t->limits.ram_max, &t->ram_goal, t->used);
	}
	used = cache_bytes_used(cache);
	for (; cache->ram_goal && n && used > cache->ram_goal && gave_up(cache, richest(cache)); n--)
		used = cache_bytes_used(cache);
	if (cache->ram_goal)
		follow(&cache->config.ram_max, &cache->ram_goal, used);
	return is_shrinking(cache);
}

/* ---- holes that readers faulted in ---- */

struct trim {
	struct cache *cache;
	struct ns *ns;
	uint64_t from, to; /* a range to punch that may still grow */
	uint32_t punches, slots;
};

static void trim_flush(struct trim *t)
{
	if (t->from == t->to)
		return;
	/* A hole costs no punch: else who has many of them would leave none for others. */
	if (!arena_has(&t->ns->arena, t->from, t->to - t->from)) {
		t->from = t->to = 0;
		return;
	}
	if (arena_punch(&t->ns->arena, t->from, t->to - t->from) < 0)
		cache_count(t->cache, t->ns->tenant, STAT_punch_failures, 1);
	else
		cache_count(t->cache, t->ns->tenant, STAT_holes_punched, 1);
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
	for (uint32_t seen = 0; seen < end && t->slots < TRIM_SLOTS; seen++, t->slots++) {
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

/* The one behind where the last trim came to its bounds. */
static struct ns *trim_first(const struct cache *cache)
{
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->id == cache->trim_last && ns->next)
			return ns->next;
	}
	return cache->namespaces;
}

void cache_trim(struct cache *cache)
{
	struct trim t = {.cache = cache};
	struct ns *first = trim_first(cache);

	t.ns = first;
	while (t.ns && t.punches < TRIM_PUNCHES && t.slots < TRIM_SLOTS) {
		cache->trim_last = t.ns->id;
		if (arena_kernel_bytes(&t.ns->arena, &t.ns->kernel_bytes) == 0 &&
		    t.ns->kernel_bytes > t.ns->bytes)
			trim_ns(&t);
		t.ns = t.ns->next ? t.ns->next : cache->namespaces;
		if (t.ns == first)
			break;
	}
}
