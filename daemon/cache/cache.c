/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "base/log.h"

/* Pages that went and are remembered: as many as there may be, if they are of 64 KiB and more. */
static uint32_t ghosts_max(uint64_t ram_max)
{
	uint64_t pages = ram_max >> 16;

	return pages < 64 ? 64 : pages > 1u << 20 ? 1u << 20 : (uint32_t)pages;
}

void cache_init(struct cache *cache, const struct cache_config *config, struct worker *worker,
		struct stats *stats)
{
	memset(cache, 0, sizeof(*cache));
	cache->config = *config;
	cache->worker = worker;
	cache->stats = stats;
}

struct tenant *cache_add_tenant(struct cache *cache, const struct tenant_params *params)
{
	uint64_t ram_max = params->ram_max ? params->ram_max : cache->config.ram_max;
	struct tenant *tenant;

	assert(!cache_tenant(cache, params->name) && !cache->namespaces);
	if (cache->n_tenants == TENANTS_MAX)
		return NULL;
	tenant = tenant_new(params, ghosts_max(ram_max));
	if (!tenant)
		return NULL;
	tenant->index = cache->n_tenants;
	if (cache->config.fills_max)
		lane_init(&tenant->fill_lane, cache->config.fills_max);
	cache->tenants[cache->n_tenants++] = tenant;
	return tenant;
}

void cache_limit(struct cache *cache, const struct cache_limits *limits)
{
	uint64_t used = cache_bytes_used(cache), max = limits->ram_max;

	/* Never more than was allowed and is used. */
	cache->ram_goal = used > max && cache->config.ram_max > max ? max : 0;
	if (!cache->ram_goal)
		cache->config.ram_max = max;
	else if (used < cache->config.ram_max)
		cache->config.ram_max = used;
	cache->config.namespaces_max = limits->namespaces_max;
	cache->config.spill_percent = limits->spill_percent;
	cache->config.restores_max = limits->restores_max;
	cache->config.fills_max = limits->fills_max;
	cache->config.no_shed = limits->no_shed;
	for (uint32_t i = 0; limits->fills_max && i < cache->n_tenants; i++)
		lane_limit(cache->worker, &cache->tenants[i]->fill_lane, limits->fills_max);
}

void cache_limit_tenant(struct cache *cache, struct tenant *tenant,
			const struct tenant_params *params)
{
	struct tenant_params *now = &tenant->limits;
	uint64_t was = now->ram_max ? now->ram_max : cache->config.ram_max;

	(void)cache_bytes_used(cache);
	tenant->ram_goal =
	    params->ram_max && tenant->used > params->ram_max && was > params->ram_max
		? params->ram_max
		: 0;
	if (!tenant->ram_goal)
		now->ram_max = params->ram_max;
	else
		now->ram_max = tenant->used < was ? tenant->used : was;
	now->ram_min = params->ram_min;
	now->pins_max = params->pins_max;
	tenant->pins_group.max = params->pins_max ? params->pins_max : UINT64_MAX;
	now->namespaces_max = params->namespaces_max;
	now->fills_max = params->fills_max;
	now->restores_max = params->restores_max;
}

struct tenant *cache_tenant(const struct cache *cache, const char *name)
{
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		if (!strcmp(cache->tenants[i]->name, name))
			return cache->tenants[i];
	}
	return NULL;
}

/* ---- namespaces ---- */

static void ns_drop(struct cache *cache, struct ns *ns)
{
	struct ns **at = &cache->namespaces;
	struct page *pages = ns->table.pages;

	assert(!ns->openers && !ns->fills && !ns->pins);
	event_namespace(cache, EVENT_NAMESPACE_DROPPED, ns);
	cache->dropping = true;
	/* Children before parents: a page that is dropped lets its parent go next. */
	for (uint32_t i = 0; i < ns->table.touched; i++) {
		struct page *page = &pages[i];

		while (page && page->state != PAGE_FREE && page->children == 0) {
			(void)spill_last_call(cache, page);
			page = cache_drop(cache, page);
		}
	}
	assert(ns->table.live == 0);
	cache->dropping = false;
	while (*at != ns)
		at = &(*at)->next;
	*at = ns->next;
	cache->n_namespaces--;
	ns->tenant->n_namespaces--;
	ns_free(ns);
}

void cache_close(struct cache *cache)
{
	cache->closing = true;
}

void cache_fini(struct cache *cache)
{
	cache->closing = true;
	for (uint32_t i = 0; i < cache->n_tenants; i++)
		cache->tenants[i]->tier = NULL;
	while (cache->namespaces)
		ns_drop(cache, cache->namespaces);
	assert(!cache->matches && cache->n_restores == 0 && cache->bytes_stored == 0);
	assert(cache->bytes == 0 && cache->pages == 0);
	for (uint32_t i = 0; i < cache->n_tenants; i++)
		tenant_free(cache->tenants[i]);
	cache->n_tenants = 0;
}

/* The namespace of the tenant's whose loss hurts least: nobody has it open; an empty one before one with pages, the
 * longest unused before others. NULL if all are open. */
static bool is_idle(const struct ns *ns)
{
	return !ns->openers && !ns->fills && !ns->pins;
}

static struct ns *ns_victim(struct cache *cache, const struct tenant *tenant)
{
	struct ns *best = NULL;

	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->tenant != tenant || !is_idle(ns))
			continue;
		if (!best || (ns->table.live == 0) > (best->table.live == 0) ||
		    ((ns->table.live == 0) == (best->table.live == 0) && ns->used < best->used))
			best = ns;
	}
	return best;
}

static struct ns *ns_find(struct cache *cache, const struct tenant *tenant, const uint8_t *canon,
			  uint32_t canon_bytes)
{
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->tenant == tenant && ns_is(ns, canon, canon_bytes))
			return ns;
	}
	return NULL;
}

static uint32_t ns_max(const struct cache *cache, const struct tenant *tenant)
{
	return tenant->limits.namespaces_max ? tenant->limits.namespaces_max
					     : cache->config.namespaces_max;
}

static bool has_ns_left(const struct cache *cache, const struct tenant *tenant)
{
	return cache->n_namespaces < cache->config.namespaces_max &&
	       tenant->n_namespaces < ns_max(cache, tenant);
}

/* Of so many that the tenant has and nobody uses, dropping some would leave room for another one. What
 * others have above a bound that was lowered is not the tenant's to pay for. */
static bool may_make_way(const struct cache *cache, const struct tenant *tenant)
{
	uint32_t idle = 0;

	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next)
		idle += ns->tenant == tenant && is_idle(ns);
	return cache->n_namespaces - idle < cache->config.namespaces_max &&
	       tenant->n_namespaces - idle < ns_max(cache, tenant);
}

/* Numbers of one tenant's tell nothing of another's, and those of an only tenant are 1, 2, 3. None is
 * given twice; 0: there are no more. */
static uint32_t next_ns_id(const struct cache *cache, struct tenant *tenant)
{
	uint64_t id = tenant->last_ns * cache->n_tenants + tenant->index + 1;

	if (id > UINT32_MAX)
		return 0;
	tenant->last_ns++;
	return (uint32_t)id;
}

static int ns_create(struct cache *cache, struct ns_params *params, struct ns **ret,
		     struct why *why)
{
	struct tenant *tenant = params->tenant;
	struct ns *ns;
	int err;

	/* More than one, if the bound has been lowered. */
	while (!has_ns_left(cache, tenant)) {
		struct ns *victim =
		    may_make_way(cache, tenant) ? ns_victim(cache, tenant) : NULL;

		if (!victim)
			return why_fail(why, SKVQ_ENAMESPACES,
					"all %u namespaces (namespaces_max) are in use",
					ns_max(cache, tenant));
		log_event(LOG_INFO, "namespace_dropped", LOG_U64("ns", victim->id),
			  LOG_U64("pages", victim->table.live));
		ns_drop(cache, victim);
		cache_count(cache, tenant, STAT_namespaces_dropped, 1);
	}
	params->ram_max = tenant->limits.ram_max && tenant->limits.ram_max < cache->config.ram_max
			      ? tenant->limits.ram_max
			      : cache->config.ram_max;
	params->hash = cache->config.hash;
	params->collisions = &cache->stats->n[STAT_index_collisions];
	err = ns_new(params, &ns, why);
	if (err < 0)
		return err;
	ns->id = next_ns_id(cache, tenant);
	if (!ns->id) {
		ns_free(ns);
		return why_fail(why, SKVQ_ENAMESPACES,
				"all numbers of namespaces have been given: the daemon must be started "
				"anew");
	}
	ns->next = cache->namespaces;
	cache->namespaces = ns;
	cache->n_namespaces++;
	tenant->n_namespaces++;
	cache_count(cache, tenant, STAT_namespaces_created, 1);
	event_namespace(cache, EVENT_NAMESPACE_OPENED, ns);
	log_event(LOG_INFO, "namespace", LOG_U64("ns", ns->id), LOG_STR("tenant", tenant->name),
		  LOG_STR("model", ns->model_name), LOG_STR("profile", ns->identity.profile),
		  LOG_STR("engine", ns->identity.engine_numerics),
		  LOG_U64("page_bytes", ns->layout.base_bytes));
	if (tenant->tier && skvq_layout_page_bytes(&ns->layout, 0) > tenant->tier->page_bytes_max)
		log_event(LOG_WARNING, "namespace_not_stored", LOG_U64("ns", ns->id),
			  LOG_U64("page_bytes", skvq_layout_page_bytes(&ns->layout, 0)),
			  LOG_U64("store_page_bytes_max", tenant->tier->page_bytes_max),
			  LOG_STR("detail", "its first pages do not fit a record: raise "
					    "store.record_bytes"));
	*ret = ns;
	return 0;
}

int cache_ns_open(struct cache *cache, struct tenant *tenant, struct identity *id,
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

int cache_ns_adopt(struct cache *cache, struct tenant *tenant, struct identity *id,
		   const char *model_name, int *arena_fd, struct ns **ret, struct why *why)
{
	CLEANUP_FREE struct skvq_layout *layout = malloc(sizeof(*layout));
	struct ns_params params = {.tenant = tenant,
				   .model_name = model_name,
				   .identity = id,
				   .layout = layout,
				   .arena_fd = arena_fd};
	uint8_t canon[IDENTITY_CANON_MAX];
	int err;

	if (!layout)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a page layout");
	err = identity_check(id, layout, why);
	if (err < 0)
		return err;
	if (ns_find(cache, tenant, canon, identity_encode(id, canon)))
		return why_fail(why, SKVQ_EINVAL, "a namespace of this identity is there");
	if (!has_ns_left(cache, tenant))
		return why_fail(why, SKVQ_ENAMESPACES, "more than %u namespaces (namespaces_max)",
				ns_max(cache, tenant));
	err = ns_create(cache, &params, ret, why);
	if (!err)
		(*ret)->used = ++cache->stamp;
	return err;
}

void cache_abandon(struct cache *cache)
{
	struct tier *tiers[TENANTS_MAX];

	assert(cache->closing);
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		tiers[i] = cache->tenants[i]->tier;
		cache->tenants[i]->tier = NULL;
	}
	while (cache->namespaces)
		ns_drop(cache, cache->namespaces);
	cache->closing = false;
	for (uint32_t i = 0; i < cache->n_tenants; i++)
		cache->tenants[i]->tier = tiers[i];
}

void cache_ns_close(struct cache *cache, struct ns *ns)
{
	(void)cache;
	assert(ns->openers > 0);
	ns->openers--;
}

const struct ns *cache_ns_nearest(const struct cache *cache, const struct ns *ns,
				  const char **ret_field)
{
	const struct ns *best = NULL;
	uint32_t fewest = UINT32_MAX;

	for (const struct ns *at = cache->namespaces; at; at = at->next) {
		const char *field;
		uint32_t n;

		if (at == ns || at->tenant != ns->tenant ||
		    (memcmp(at->identity.weights, ns->identity.weights,
			    sizeof(at->identity.weights)) != 0 &&
		     strcmp(at->model_name, ns->model_name) != 0))
			continue;
		field = identity_differs(&at->identity, &ns->identity, &n);
		if (n < fewest) {
			best = at;
			fewest = n;
			*ret_field = field;
		}
	}
	return best;
}

struct ns *cache_ns_by_id(struct cache *cache, uint32_t id)
{
	struct ns *ns = cache->namespaces;

	while (ns && ns->id != id)
		ns = ns->next;
	return ns;
}

/* ---- pins ---- */

void cache_hold(struct cache *cache, struct page *page)
{
	policy_remove(&ns_of(page)->tenant->policy, page); /* before its stamp changes */
	page->stamp = cache->stamp;
	page->used_ms = clock_ms();
	page->pins++;
	ns_of(page)->pins++;
	ns_of(page)->tenant->pins++;
	cache->pins++;
	cache_settle_held(page);
}

void cache_release(struct cache *cache, struct page *page, uint32_t n)
{
	assert(page->pins >= n);
	page->pins -= n;
	ns_of(page)->pins -= n;
	ns_of(page)->tenant->pins -= n;
	cache->pins -= n;
	if (page->pins == 0) {
		/* In use until now, whenever it was matched. */
		page->stamp = cache->stamp;
		page->used_ms = clock_ms();
	}
	cache_settle(cache, page);
}

void cache_pin(struct cache *cache, struct pins *pins, struct page *page)
{
	bool refined = ns_of(page)->layout.refine_bytes && !page->shed;

	pins_add(pins, page, refined);
	page->refine_pins += refined;
	cache_hold(cache, page);
	cache_settle(cache, page);
}

static void unpin(struct cache *cache, struct pins *pins, struct page *page, uint32_t n)
{
	page->refine_pins -= pins_take(pins, page, n);
	cache_release(cache, page, n);
}

/* Counts in asked, of n reserved places, how often each name is there; every one must be pinned that
 * often. */
static int name_pages(struct cache *cache, struct ns *ns, const struct pins *pins,
		      const struct page_ref *refs, uint32_t n, struct pins *asked, struct why *why)
{
	for (uint32_t i = 0; i < n; i++) {
		struct page *page = page_table_get(&ns->table, refs[i]);

		if (!page)
			cache_count(cache, ns->tenant, STAT_stale_handles, 1);
		if (!page || pins_count(asked, page) >= pins_count(pins, page))
			return why_fail(why, SKVQ_ESTALE,
					"page %u of %u, slot %u generation %u of namespace %u, is "
					"not pinned by this connection%s",
					i + 1, n, refs[i].slot, refs[i].generation, ns->id,
					page && pins_count(pins, page) ? " that often" : "");
		pins_add(asked, page, false);
	}
	return 0;
}

static void unpin_one(struct cache *cache, struct pins *pins, struct page *page)
{
	unpin(cache, pins, page, 1);
}

static void unrefine_one(struct cache *cache, struct pins *pins, struct page *page)
{
	if (pins_unrefine(pins, page))
		page->refine_pins--;
	cache_count(cache, ns_of(page)->tenant, STAT_unrefines, 1);
	cache_settle(cache, page);
}

/* All or none of the names. */
static int give_back(struct cache *cache, struct ns *ns, struct pins *pins,
		     const struct page_ref *refs, uint32_t n,
		     void (*take)(struct cache *, struct pins *, struct page *),
		     struct why *why)
{
	struct pins asked;
	uint32_t cursor = 0, count;
	struct page *page;
	int err;

	pins_init(&asked, n);
	err = pins_reserve(&asked, n, why);
	if (!err)
		err = name_pages(cache, ns, pins, refs, n, &asked, why);
	if (!err)
		cache->stamp++;
	/* In the order of the names: what is let go of first may go first. */
	for (uint32_t i = 0; i < n && !err; i++)
		take(cache, pins, &ns->table.pages[refs[i].slot]);
	while ((page = pins_any(&asked, &cursor, &count)))
		(void)pins_take(&asked, page, count);
	pins_unreserve(&asked, asked.reserved);
	pins_fini(&asked);
	return err;
}

int cache_unpin(struct cache *cache, struct ns *ns, struct pins *pins, const struct page_ref *refs,
		uint32_t n, struct why *why)
{
	return give_back(cache, ns, pins, refs, n, unpin_one, why);
}

int cache_unrefine(struct cache *cache, struct ns *ns, struct pins *pins,
		   const struct page_ref *refs, uint32_t n, struct why *why)
{
	return give_back(cache, ns, pins, refs, n, unrefine_one, why);
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
