/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/sweep.h - a round over a tenant's pages for people: what may go goes, what is in memory alone is
 * written, what is there is checked. In slices, so that the loop goes on; a round may end anywhere
 * and go on from there, so that nobody has to keep one. Pages that come into slots it has passed are left
 * out. Loop thread only.
 *
 *   slots of a window:   offered to the tier ──► all answered ──► those that may go, go ──► next window
 *
 * A page goes after the pages behind it. With the last of these gone it goes too, if it was passed before.
 */
#ifndef SKVQD_CACHE_SWEEP_H
#define SKVQD_CACHE_SWEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/cache.h"

enum sweep_kind {
	SWEEP_COUNT,  /* what an eviction would do; does nothing */
	SWEEP_EVICT,
	SWEEP_DRAIN,
	SWEEP_VERIFY, /* by workers, a few pages at a time */
};

struct sweep {
	enum sweep_kind kind;
	struct tenant *tenant;
	uint32_t ns;          /* 0: all of the tenant's */
	struct page_ref page; /* of ns: this page and what is behind it; generation 0: all */
	uint64_t idle_ms;     /* not used for so long */
	bool drop;            /* nothing is written, and what is below goes too */
	void (*wake)(struct sweep *sweep); /* SWEEP_VERIFY: cache_sweep has something to do again */
	bool stop;                         /* nothing new is begun */

	uint32_t at_ns, at_slot; /* where it is, and can go on; 0, 0: at the start */
	bool over;               /* the round has come to its end */

	uint64_t pages, bytes; /* results: gone or to go, below now, or checked */
	uint64_t held;
	uint64_t unwritten, unwritten_bytes; /* of pages to go */
	uint64_t written, written_bytes;
	uint64_t refused, over_budget;
	uint64_t damaged;

	struct page_ref up;        /* of at_ns: may be the next to go, of a chain */
	uint32_t put_at;           /* of the window, offered up to here; 0: not begun */
	uint64_t put, budget;      /* slots of the window, by bit: taken, refused for the budget */
	uint32_t n_out;            /* checks */
	struct cache *cache;
};

/* Does a slice of about a millisecond. False: the round is over, or was stopped, and nothing of it is out any
 * more. True: call it again, after wake or a few milliseconds. */
bool cache_sweep(struct cache *cache, struct sweep *sweep);

#endif /* SKVQD_CACHE_SWEEP_H */
