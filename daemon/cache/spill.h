/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/spill.h - what is offered to the tier below, and when.
 *
 * A page that became readable and is not known to be below waits in a queue, oldest first, parents
 * before children. It is offered when memory gets short: when what is free and what could be dropped
 * without loss (because it is below too) are together less than spill_percent of the cap. So a
 * publish that needs room finds pages to drop and never waits for a disk. At 100 every page is
 * offered at once. Pages that were matched are hot: the tier waits for no second touch. A page that
 * was refused is offered again when it is matched, and a last time when it is evicted.
 *
 * Pages do not change, so pinned ones are offered like others. Loop thread only.
 */
#ifndef SKVQD_CACHE_SPILL_H
#define SKVQD_CACHE_SPILL_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/page.h"

struct cache;
struct tenant;

struct spill_queue {
	struct page *head, *tail;
	uint64_t n;
};

/* What spill_drain has still to offer. */
struct spill_rest {
	struct page **pages; /* [n], owned; NULL: not looked for yet */
	uint64_t n, at;
};

/* A page became readable, or was matched: queues it unless it is below, or on its way. */
void spill_want(struct page *page);
/* Before a page goes or is proved bad. */
void spill_forget(struct page *page);
/* Before a page is evicted: the last offer. True if it is below, or on its way. */
bool spill_last_call(struct cache *cache, struct page *page);
/* Whether the tier has it, as far as it knows. */
bool spill_is_below(const struct page *page);
/* Offers a readable page that somebody wants written now: as tier->ops->put, of a hot one. -SKVQ_ENOMEM. */
int spill_put(struct cache *cache, struct page *page);
/* Offers what should be offered now, a bounded number. */
void spill_pump(struct cache *cache);

/* When the daemon ends and nothing of the tenant is on its way in any more: offers everything of it
 * that is not below, what was used last first. Steps until nothing is left to offer (false) or the
 * tenant's tier takes no more for now (true): pump it, call again. Each tenant has its own list, so
 * that a tier that is slow or full keeps nobody else's pages back. */
bool spill_drain(struct cache *cache, struct tenant *tenant);
/* Pages of the tenant that are in memory and not below: what spill_drain did not get there, whether it was
 * refused, failed, does not fit or was never offered. */
uint64_t spill_left(const struct cache *cache, const struct tenant *tenant);

#endif /* SKVQD_CACHE_SPILL_H */
