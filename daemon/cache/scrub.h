/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/scrub.h - looking whether pages in memory are still what was published.
 *
 * One page at a time, round and round, by a worker that only reads. A page that is not is
 * quarantined: nobody finds it any more, it goes with its last pin, and an engine computes it anew.
 * The engines that have it pinned cannot be told; the log names the page. Loop thread only.
 */
#ifndef SKVQD_CACHE_SCRUB_H
#define SKVQD_CACHE_SCRUB_H

#include <stdbool.h>
#include <stdint.h>

struct cache;
struct check;
struct page;

struct scrubber {
	uint32_t ns; /* id of the namespace looked at; 0: begin anew */
	uint32_t slot;
	uint64_t allowance; /* bytes that may still be read */
	bool busy;
	uint32_t busy_ns, busy_slot; /* of the page that is being read, if busy */
	bool again; /* the page at the cursor was torn: it is read once more */
	struct check *checks; /* all that are out, others' too */
};

enum check_end {
	CHECK_GOOD,
	CHECK_BAD,  /* it has been quarantined, and may be gone */
	CHECK_TORN, /* its refinement went or came meanwhile: what was read was never there as a whole */
	CHECK_GONE, /* it was dropped meanwhile, or the workers end: nothing is known */
};
/* bytes: that were read. */
typedef void (*check_fn)(void *ctx, enum check_end end, uint64_t bytes);

/* Of a tenant's that wait for a worker: more are refused, and other tenants' are none of theirs. */
#define CHECKS_MAX 64u
/* Has a worker check a readable page that no fill is at; fn comes out of the loop. -SKVQ_EBUSY,
 * -SKVQ_ENOMEM. */
int cache_check(struct cache *cache, struct page *page, check_fn fn, void *ctx);

/* Checks pages, at most about so many bytes until it is called again. */
void cache_scrub(struct cache *cache, uint64_t bytes);
/* For shed.c: bytes of the page change. */
void scrub_disturb(struct cache *cache, const struct page *page);

#endif /* SKVQD_CACHE_SCRUB_H */
