/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/cache.h - which pages there are, who may have them, and which go when room is needed.
 *
 * The cache knows namespaces, pages and pins. It does not know connections, messages or sockets: a
 * client is a struct pins to it, and an answer that takes time is a callback. All calls are for the
 * loop's thread; copying and checking runs in the worker pool.
 *
 * Bytes of the cap: for each namespace the larger of what is committed to pages and what the kernel
 * says its arena holds. Pages without pins and children may go, least recently used first.
 */
#ifndef SKVQD_CACHE_CACHE_H
#define SKVQD_CACHE_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/stats.h"
#include "base/worker.h"
#include "base/why.h"
#include "cache/ns.h"
#include "cache/pins.h"
#include "mem/lru.h"

struct cache_config {
	uint64_t ram_max; /* bytes over all arenas */
	uint32_t namespaces_max;
	index_hash_fn hash; /* NULL: index_hash */
};

struct cache {
	struct cache_config config;
	struct worker *worker;
	struct stats *stats;
	struct ns *namespaces; /* newest first */
	uint32_t n_namespaces;
	uint32_t last_ns_id;
	uint64_t stamp; /* counts operations; orders uses */
	struct lru lru; /* pages that may go, of all namespaces */
	uint64_t bytes; /* sum of ns->bytes */
	uint64_t pages;
	uint64_t pins;
	/* The daemon ends. Engines go on reading their mappings of the arenas, pinned or not any
	 * more: from now on nothing is punched. */
	bool closing;
};

void cache_init(struct cache *cache, const struct cache_config *config, struct worker *worker,
		struct stats *stats);
/* To be called before the first client is turned away by a daemon that ends. */
void cache_close(struct cache *cache);
/* Frees all namespaces. Nobody has one open and no publish is in flight. */
void cache_fini(struct cache *cache);

/* ---- namespaces (cache.c) ---- */

/* Finds or makes the namespace and counts the caller as one opener. id is checked and settled here.
 * Errors of identity_check and ns_new, -SKVQ_ELIMIT at namespaces_max. */
int cache_ns_open(struct cache *cache, const char *tenant, struct identity *id,
		  const char *model_name, struct ns **ret, struct why *why);
void cache_ns_close(struct cache *cache, struct ns *ns);
struct ns *cache_ns_by_id(struct cache *cache, uint32_t id); /* NULL: none */

/* ---- pages (cache.c) ---- */

/* Pins the longest chain of pages that begins tokens, at most max_pages, and writes their names to
 * ret_refs (room for max_pages) and their number to *ret_n. All pins or none. A chain cut by
 * pins->max is shorter, not an error, unless not even one pin is left: -SKVQ_EPINS. -SKVQ_ENOMEM.
 */
int cache_match(struct cache *cache, struct ns *ns, struct pins *pins, const int32_t *tokens,
		uint32_t n_tokens, uint32_t max_pages, struct page_ref *ret_refs, uint32_t *ret_n,
		struct why *why);
/* Gives back one pin for each name; a name may repeat. All or none: -SKVQ_ESTALE naming the first
 * that is not a page pinned by this client, -SKVQ_ENOMEM. */
int cache_unpin(struct cache *cache, struct ns *ns, struct pins *pins, const struct page_ref *refs,
		uint32_t n, struct why *why);
/* Gives back every pin; reservations stay. Returns how many there were. */
uint32_t cache_unpin_all(struct cache *cache, struct pins *pins);
/* Pins a page on a place the client has reserved, and marks it used by the present operation. */
void cache_pin(struct cache *cache, struct pins *pins, struct page *page);

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
	int fd; /* staging memfd: checked, sealed against shrinking */
	uint64_t offset;
	/* Loop thread. error 0: page is set, and pinned if there still is a client. Otherwise a
	 * negative code and a sentence. */
	void (*done)(struct publish *p, int error, const char *why);

	struct page *page;    /* the result */
	bool existed;         /* an equal page was there or being copied */
	struct publish *next; /* the cache's: behind the same copy */
};

/* 1: done at once, p->page is pinned, done() is not called. 0: done() will be called.
 * -SKVQ_EINVAL, -SKVQ_ESTALE, -SKVQ_EPINS, -SKVQ_ENOSPC, -SKVQ_EBUSY, -SKVQ_ESHORT, -SKVQ_ENOMEM.
 */
int cache_publish(struct cache *cache, struct publish *p, struct why *why);
/* The client of a publish in flight is gone: the page stays, without a pin. */
void cache_publish_orphan(struct publish *p);

/* ---- room (evict.c) ---- */

/* Evicts until bytes more fit under the cap. -SKVQ_ENOSPC with the numbers. */
int cache_make_room(struct cache *cache, uint64_t bytes, struct why *why);
/* Drops a page that may go: no pins, no children, readable. */
void cache_drop(struct cache *cache, struct page *page);
/* To be called whenever pins, children or state of a page changed: puts it among the pages that
 * may go or takes it out. */
void cache_settle(struct cache *cache, struct page *page);
/* Sum over all arenas as the cap counts it; asks the kernel. */
uint64_t cache_bytes_used(struct cache *cache);
/* Sum of st_blocks. */
uint64_t cache_kernel_bytes(struct cache *cache);
/* Takes back holes that readers faulted in, a bounded number each call. */
void cache_trim(struct cache *cache);

#endif /* SKVQD_CACHE_CACHE_H */
