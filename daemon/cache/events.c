/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/events.h"

#include <string.h>

#include "cache/cache.h"

static void tell(struct cache *cache, const struct cache_event *event)
{
	cache->watch->fn(cache->watch->ctx, event);
}

/* Of pages whose namespace is not in memory, there is nobody to tell: it has no number. */
static void on_gone(void *ctx, const struct tier_key *key, uint64_t position, enum tier_gone why)
{
	static const char *const reasons[] = {[TIER_GONE_EVICTED] = "evicted",
					      [TIER_GONE_DROPPED] = "dropped",
					      [TIER_GONE_BAD] = "failed_check"};
	struct cache *cache = ctx;

	for (struct ns *ns = cache->namespaces; ns && cache->watch; ns = ns->next) {
		if (memcmp(ns->tier_name, key->ns, sizeof(key->ns)) != 0)
			continue;
		tell(cache, &(struct cache_event){.kind = EVENT_REMOVED,
						  .tenant = ns->tenant,
						  .ns = ns,
						  .on_disk = true,
						  .why = reasons[why],
						  .digest = key->page,
						  .position = (uint32_t)position});
		return;
	}
}

void cache_watch(struct cache *cache, const struct cache_watch *watch)
{
	cache->watch = watch;
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		struct tier *tier = cache->tenants[i]->tier;

		if (!tier)
			continue;
		tier->gone = watch ? on_gone : NULL;
		tier->gone_ctx = cache;
	}
}

void event_page(struct cache *cache, enum cache_event_kind kind, const struct page *page,
		const char *why)
{
	const struct page *parent;
	struct ns *ns;

	if (!cache->watch)
		return;
	parent = page_parent(page);
	ns = ns_of(page);
	tell(cache, &(struct cache_event){.kind = kind,
					  .tenant = ns->tenant,
					  .ns = ns,
					  .page = page,
					  .why = why,
					  .digest = page->digest,
					  .parent = parent ? parent->digest : NULL,
					  .position = page->position});
}

void event_stored_on_disk(struct cache *cache, const struct ns *ns, const struct page *page,
			  const uint8_t *digest, const uint8_t *parent, uint32_t position)
{
	if (cache->watch)
		tell(cache, &(struct cache_event){.kind = EVENT_STORED,
						  .tenant = ns->tenant,
						  .ns = ns,
						  .page = page,
						  .on_disk = true,
						  .digest = digest,
						  .parent = position ? parent : NULL,
						  .position = position});
}

void event_namespace(struct cache *cache, enum cache_event_kind kind, const struct ns *ns)
{
	if (cache->watch)
		tell(cache, &(struct cache_event){.kind = kind, .tenant = ns->tenant, .ns = ns});
}
