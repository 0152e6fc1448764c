/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/policy.h - which page goes when room is needed: ARC (Megiddo and Modha, "ARC: a self-tuning,
 * low overhead replacement cache", FAST'03) over trees of pages, with bounds.
 *
 *     published first ──► ONCE ──── a match finds it ────► AGAIN ◄──── published, and a ghost
 *                           │ goes                           │ goes          │
 *                           └─────────► ghosts of ONCE, of AGAIN ────────────┘
 *
 * Pages nobody asked for again, as those of a long document that is read once, are in one queue and
 * pages that were in the other. Each goes least recently used first, leaves first, and the queue
 * that has more than its share goes before the other. A page that comes back soon after it went
 * tells that its queue was too small, and moves the share. A quarter of the room is either's
 * whatever happens: ARC without bounds follows a burst too far (docs/measurements.md has figures).
 *
 * The policy does not know what makes a page free to go, nor the cap. Loop thread only.
 */
#ifndef SKVQD_MEM_POLICY_H
#define SKVQD_MEM_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/ghosts.h"
#include "mem/lru.h"
#include "mem/page.h"

/* Of struct page; 0 is a page that was not born, or is gone. */
enum policy_queue { POLICY_NONE = 0, POLICY_ONCE, POLICY_AGAIN, POLICY_QUEUES };

struct policy {
	/* By queue; those that may go are in the heaps, all that live are in the sums. */
	struct lru heap[POLICY_QUEUES];
	uint64_t bytes[POLICY_QUEUES];
	uint64_t pages[POLICY_QUEUES];
	uint64_t share; /* of POLICY_ONCE, of all bytes; in units of 2^-32 */
	struct ghosts ghosts;
};

/* ghosts_max: pages that went and are remembered, of each queue, at most; there are never more than
 * pages that live. Without memory for them pages that come back are new ones. */
void policy_init(struct policy *policy, uint32_t ghosts_max);
void policy_fini(struct policy *policy); /* no page lives */

/* The page's bytes are in memory now, and its digest and bytes are set; the digest stays until
 * policy_gone. True: it went not long ago, *ret_ms before now_ms (clock.h). */
bool policy_born(struct policy *policy, struct page *page, uint64_t now_ms, uint64_t *ret_ms);
/* Its bytes have changed by delta (modulo 2^64). A page that was not born: no-op. */
void policy_resized(struct policy *policy, const struct page *page, uint64_t delta);
/* A match found it. Takes it from those that may go, as policy_remove. */
void policy_hit(struct policy *policy, struct page *page);
/* It leaves memory. A page that was not born: as policy_remove. */
void policy_gone(struct policy *policy, struct page *page, uint64_t now_ms);

/* Whether a page of that digest went not long ago, *ret_ms before now_ms. */
bool policy_gone_since(const struct policy *policy, const uint8_t *digest, uint64_t now_ms,
		       uint64_t *ret_ms);

/* Whether it may go: to be told as soon as that changes. A page that may go was born, and its stamp
 * and position do not change. */
void policy_add(struct policy *policy, struct page *page);
void policy_remove(struct policy *policy, struct page *page); /* not in: no-op */
/* Of those that may go, NULL: none. O(log n) amortised, as add and remove. */
struct page *policy_victim(const struct policy *policy);
uint64_t policy_may_go(const struct policy *policy);

#endif /* SKVQD_MEM_POLICY_H */
