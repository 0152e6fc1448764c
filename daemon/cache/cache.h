/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/cache.h - which pages there are, who may have them, and which go when room is needed.
 *
 * The cache knows namespaces, pages and pins, and that there may be a tier below memory. It does
 * not know connections, messages or sockets: a client is a struct pins to it, and an answer that
 * takes time is a callback. All calls are for the loop's thread; copying and checking runs in the
 * worker pool.
 *
 * Bytes of the cap: for each namespace the larger of what is committed to pages and what the kernel
 * says its arena holds. When room is needed refinements go first, then pages without pins and
 * children; mem/policy.h says in which order.
 */
#ifndef SKVQD_CACHE_CACHE_H
#define SKVQD_CACHE_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/stats.h"
#include "base/worker.h"
#include "base/why.h"
#include "cache/events.h"
#include "cache/ns.h"
#include "cache/pins.h"
#include "cache/restore.h"
#include "cache/scrub.h"
#include "cache/shed.h"
#include "cache/spill.h"
#include "cache/tenant.h"

struct cache_config {
	uint64_t ram_max; /* bytes over all arenas */
	uint32_t namespaces_max;
	uint32_t spill_percent; /* 0..100, see cache/spill.h */
	uint32_t restores_max;  /* pages on their way back at once */
	uint32_t fills_max;     /* of a tenant's, waiting to be copied in; 0: no bound */
	bool no_shed;           /* refinements stay as long as their pages */
	index_hash_fn hash;     /* NULL: index_hash */
};

/* What may change while pages live. Of the tenant's params: not name and salt. */
struct cache_limits {
	uint64_t ram_max;
	uint32_t namespaces_max, spill_percent, restores_max, fills_max;
	bool no_shed;
};

struct match;

struct cache {
	struct cache_config config;
	struct worker *worker;
	struct stats *stats;
	const struct cache_watch *watch; /* NULL: nobody listens */
	struct ns *namespaces;           /* newest first */
	uint32_t n_namespaces;
	struct tenant *tenants[TENANTS_MAX]; /* [n_tenants], owned */
	uint32_t n_tenants;
	uint64_t stamp; /* counts operations; orders uses */
	struct scrubber scrubber;
	uint32_t n_restores; /* pages on their way back, of all tenants */
	uint32_t trim_last;  /* namespace in which the last cache_trim ended */
	struct match *matches;   /* waiting for restores */
	uint64_t bytes;          /* sum of ns->bytes */
	uint64_t bytes_stored;   /* of these, of pages that are below too */
	uint64_t pages;
	uint64_t pins;
	uint64_t ram_goal; /* what config.ram_max is on its way down to; 0: it is there */
	bool dropping; /* a namespace goes: that tells of its pages */
	/* The daemon ends. Engines go on reading their mappings of the arenas, pinned or not any
	 * more: from now on nothing is punched. */
	bool closing;
};

void cache_init(struct cache *cache, const struct cache_config *config, struct worker *worker,
		struct stats *stats);
/* Before the first namespace. A tier put into it (then, too) must give all its callbacks before
 * cache_fini. NULL: no memory, or TENANTS_MAX are there. */
struct tenant *cache_add_tenant(struct cache *cache, const struct tenant_params *params);
struct tenant *cache_tenant(const struct cache *cache, const char *name); /* NULL: none */
/* Counts for the tenant and for all. */
static inline void cache_count(struct cache *cache, struct tenant *tenant, enum stats_id id,
			       uint64_t n)
{
	tenant->stats.n[id] += n;
	cache->stats->n[id] += n;
}
static inline void cache_record(struct cache *cache, struct tenant *tenant,
				enum stats_histogram_id id, uint64_t value)
{
	stats_record(&tenant->stats, id, value);
	stats_record(cache->stats, id, value);
}
/* The page's bytes are in memory from now on. True: it went not long ago. */
bool cache_page_born(struct cache *cache, struct page *page);
/* Of pages that are below too; bytes modulo 2^64. */
static inline void cache_add_stored(struct cache *cache, struct tenant *tenant, uint64_t bytes)
{
	tenant->bytes_stored += bytes;
	cache->bytes_stored += bytes;
}
/* New bounds for all, and then for each tenant. A cap below what is used is not there at once: it comes
 * down with cache_shrink, and is never below what is used meanwhile, so that no publish has to wait until
 * many pages have gone. */
void cache_limit(struct cache *cache, const struct cache_limits *limits);
void cache_limit_tenant(struct cache *cache, struct tenant *tenant,
			const struct tenant_params *params);
/* To be called before the first client is turned away by a daemon that ends. */
void cache_close(struct cache *cache);
/* Frees all namespaces. Nobody has one open and nothing is in flight. */
void cache_fini(struct cache *cache);

/* ---- namespaces (cache.c) ---- */

/* Finds or makes the namespace and counts the caller as one opener. id is checked and settled here.
 * Errors of identity_check and ns_new, -SKVQ_ENAMESPACES at namespaces_max. */
int cache_ns_open(struct cache *cache, struct tenant *tenant, struct identity *id,
		  const char *model_name, struct ns **ret, struct why *why);
void cache_ns_close(struct cache *cache, struct ns *ns);
/* Of the tenant's other namespaces of the same weights or model name, the one with fewest fields that
 * differ; *ret_field names the first of them. NULL: there is none. */
const struct ns *cache_ns_nearest(const struct cache *cache, const struct ns *ns,
				  const char **ret_field);
/* Makes a namespace on an arena that another process left, without an opener; the caller fills in
 * its pages (cache/snapshot.c). Takes *arena_fd and sets it to -1 on success. Errors of
 * identity_check and ns_new, -SKVQ_ENAMESPACES, -SKVQ_EINVAL if it is there already. */
int cache_ns_adopt(struct cache *cache, struct tenant *tenant, struct identity *id,
		   const char *model_name, int *arena_fd, struct ns **ret, struct why *why);
/* Undoes all adoptions, before the first client: nothing is punched. After cache_close, which it
 * undoes too, and with nothing pinned. */
void cache_abandon(struct cache *cache);
struct ns *cache_ns_by_id(struct cache *cache, uint32_t id); /* NULL: none */

/* ---- matching (match.c) ---- */

/* One question for the longest chain of pages that begins tokens. The caller fills the first part
 * and keeps the struct, tokens and refs alive until cache_match returned non-zero or done() was
 * called. */
struct match {
	struct ns *ns;     /* open by the caller */
	struct pins *pins; /* who gets the pins. cache_match_orphan when the client dies */
	const int32_t *tokens; /* [n_tokens]; read during cache_match only */
	uint32_t n_tokens;
	uint32_t max_pages;
	uint32_t wait_ms;      /* for pages that must be read back; 0: those are misses */
	bool whole;            /* a page without its refinement ends the chain */
	uint32_t recompute_us; /* what a token costs the engine; 0: not known, more than reading */
	struct page_ref *refs; /* room for max_pages */
	/* Loop thread. error 0: the pages are pinned, if there still is a client. */
	void (*done)(struct match *m, int error, const char *why);

	uint32_t n;          /* results: pages */
	uint32_t n_restored; /* of these, read back for this question or others' */

	struct match *next, *prev; /* the cache's */
	uint32_t n_chain;           /* refs that are held */
	uint32_t n_waiting; /* pages of the chain from here on may be on their way */
	uint32_t n_table;   /* pages that were here when asked */
};

/* Pins the chain and writes its pages' names to refs. 1: done at once, done() is not called. 0:
 * done() will be called when pages have been read back, and not later than wait_ms. A chain cut by
 * pins->max, by want of memory or by a page that does not come back is shorter, not an error,
 * unless not even one pin is left: -SKVQ_EPINS. -SKVQ_ENOMEM. */
int cache_match(struct cache *cache, struct match *m, struct why *why);
/* The client of a match in flight is gone: pages are read all the same, nobody gets pins. */
void cache_match_orphan(struct match *m);
/* Starts reading what a match would wait for. Counts pages that are here and that are coming. Takes
 * ns, tokens, n_tokens, max_pages of m. -SKVQ_ENOMEM. */
int cache_prefetch(struct cache *cache, struct match *m, uint32_t *ret_here, uint32_t *ret_coming,
		   struct why *why);
/* For restore.c: a page has come, or will not. */
void cache_matches_wake(struct cache *cache);

/* ---- pages (cache.c) ---- */

/* Gives back one pin for each name; a name may repeat. All or none: -SKVQ_ESTALE naming the first
 * that is not a page pinned by this client, -SKVQ_ENOMEM. */
int cache_unpin(struct cache *cache, struct ns *ns, struct pins *pins, const struct page_ref *refs,
		uint32_t n, struct why *why);
/* Each name's page is from now on held without its refinement, by one pin of this client. Pins
 * that held none are fine. All or none: -SKVQ_ESTALE. */
int cache_unrefine(struct cache *cache, struct ns *ns, struct pins *pins,
		   const struct page_ref *refs, uint32_t n, struct why *why);
/* Gives back every pin; reservations stay. Returns how many there were. */
uint32_t cache_unpin_all(struct cache *cache, struct pins *pins);
/* Pins a page on a place the client has reserved, and marks it used by the present operation. The
 * pin holds its refinement too unless that was shed. */
void cache_pin(struct cache *cache, struct pins *pins, struct page *page);
/* A pin of the cache's own, for as long as an operation needs the page where it is. */
void cache_hold(struct cache *cache, struct page *page);
void cache_release(struct cache *cache, struct page *page, uint32_t n);

/* ---- publishing (publish.c) ---- */

/* One page on its way in. The caller fills the first part and keeps the struct and fd alive until
 * cache_publish returned non-zero or done() was called. */
struct publish {
	struct ns *ns;     /* open by the caller */
	struct pins *pins; /* who gets the pin. cache_publish_orphan when the client dies */
	bool has_parent;
	struct page_ref parent; /* pinned by the caller */
	uint32_t position;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	bool safe; /* it says it is a safe page; the check of the copy proves it */
	int fd;    /* staging memfd: checked, sealed against shrinking */
	uint64_t offset;
	/* Loop thread. error 0: page is set, and pinned if there still is a client. Otherwise a
	 * negative code and a sentence. */
	void (*done)(struct publish *p, int error, const char *why);

	struct page *page;    /* the result */
	bool existed;         /* an equal page was there or being copied */
	struct publish *next; /* the cache's: behind the same copy */
};

/* 1: done at once, p->page is pinned, done() is not called. 0: done() will be called.
 * -SKVQ_EINVAL, -SKVQ_ESTALE, -SKVQ_EPINS, -SKVQ_ETPINS, -SKVQ_ENOSPC, -SKVQ_ETRAM, -SKVQ_EQUEUE,
 * -SKVQ_ESHORT, -SKVQ_ENOMEM.
 * An equal page that is being copied in the other layout is -SKVQ_EBUSY as well. */
int cache_publish(struct cache *cache, struct publish *p, struct why *why);
/* The client of a publish in flight is gone: the page stays, without a pin. */
void cache_publish_orphan(struct publish *p);

/* ---- room (evict.c) ---- */

/* Evicts until bytes more of the tenant's fit under its cap and that of all: its own pages at its
 * cap; else those of the tenant that has most above its guarantee, and never what is guaranteed to
 * another. -SKVQ_ENOSPC; -SKVQ_ETRAM: its own cap, or what others have been guaranteed. */
int cache_make_room(struct cache *cache, struct tenant *tenant, uint64_t bytes, struct why *why);
/* The same for a page of so many bytes that is about to be copied in, and takes its slot, in state FILLING.
 * If it comes in place of one of its size, the kernel need not take the memory back and give it again,
 * zeroed: then the slot still has the bytes of the page before, all of which must be written over. NULL:
 * *ret_err. */
struct page *cache_take_slot(struct cache *cache, struct ns *ns, uint64_t bytes, int *ret_err,
			     struct why *why);
/* Bytes of pages that the tenant may come to hold, beside what it holds: pinned pages cannot be
 * taken back, so they never take room that is guaranteed to another. UINT64_MAX with one tenant. */
uint64_t cache_may_hold(const struct cache *cache, const struct tenant *tenant);
/* -SKVQ_ETRAM if so many more are more than that. */
int cache_check_hold(const struct cache *cache, const struct tenant *tenant, uint64_t bytes,
		     struct why *why);
/* Gives a page just taken from the table its place: parent (NULL: none), tokens, index, bytes. The
 * tokens are borrowed until ns_own_tokens, or until the page is dropped or unlisted. */
void cache_enlist(struct cache *cache, struct page *page, struct page *parent,
		  const int32_t tokens[SKVQ_PAGE_TOKENS]);
/* Drops a page that may go: no pins, no children, nothing in flight. Then its parent, if that was
 * unlisted and only kept for it, and so on up. Returns the first that stays, or NULL. */
struct page *cache_drop(struct cache *cache, struct page *page);
/* Drops a page that may go because somebody wants it gone: counted as an eviction, offered below a last
 * time, or with `drop` gone from there too. Returns what cache_drop does. */
struct page *cache_evict(struct cache *cache, struct page *page, bool drop);
/* A namespace that was made under a smaller cap has no more slots than pages fitted then: drops one of its
 * pages, used long ago. False: none may go. */
bool cache_free_slot(struct cache *cache, struct ns *ns);
/* Nobody finds the page from here on; it goes when its last pin and child have gone. */
void cache_unlist(struct cache *cache, struct page *page);
/* To be called whenever pins, children or state of a page changed: puts it among the pages that
 * may go or takes it out. */
void cache_settle(struct cache *cache, struct page *page);
/* The part of it that counts what cannot go: of the page and those above it. */
void cache_settle_held(struct page *page);
/* Bytes that have been offered to the tiers and are not there yet. */
uint64_t cache_bytes_spilling(const struct cache *cache);
/* Sum over all arenas as the cap counts it; asks the kernel. */
uint64_t cache_bytes_used(struct cache *cache);
/* Sum of st_blocks. */
uint64_t cache_kernel_bytes(struct cache *cache);
/* Brings caps nearer to where they were lowered to, by a bounded number of pages. True: they are not
 * there yet. Pages that cannot go are waited for. */
bool cache_shrink(struct cache *cache);
/* Takes back holes that readers faulted in, a bounded number each call. */
void cache_trim(struct cache *cache);

#endif /* SKVQD_CACHE_CACHE_H */
