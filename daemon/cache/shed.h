/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/shed.h - giving up refinements: quality fades before anything is lost.
 *
 * A page of an elastic profile is base and refinement. When room is needed refinements go first,
 * those that were let go of longest ago before others, and never one that a pin holds. The base
 * stays where it is, pinned or not, child or parent. A reader that holds a page without its
 * refinement does not look there, so it cannot see one go; it was told which it holds when it got
 * its pin. Publishing an equal page brings a refinement back. Loop thread only.
 */
#ifndef SKVQD_CACHE_SHED_H
#define SKVQD_CACHE_SHED_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/page.h"

struct cache;
struct tenant;

struct shed_queue {
	struct page *head, *tail; /* head: let go of longest ago */
	uint64_t n;
};

/* To be called whenever state or refined pins of a page changed. */
void shed_settle(struct page *page);
/* Before a page goes. */
void shed_forget(struct page *page);
/* Gives up one refinement of the tenant's. False if there is none that may go. */
bool shed_one(struct cache *cache, struct tenant *tenant);
/* A page came without its refinement (restore.c): the books had counted that. */
void shed_mark(struct cache *cache, struct page *page);
/* A refinement is being copied in again (publish.c), room for it was made: it counts from here on. */
void shed_refill_begin(struct cache *cache, struct page *page);
/* It is there, or (good false) will not be. */
void shed_refill_end(struct cache *cache, struct page *page, bool good);

#endif /* SKVQD_CACHE_SHED_H */
