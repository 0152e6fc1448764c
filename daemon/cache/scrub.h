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
struct page;

struct scrubber {
	uint32_t ns; /* id of the namespace looked at; 0: begin anew */
	uint32_t slot;
	uint64_t allowance; /* bytes that may still be read */
	bool busy;
	const struct page *page; /* being read, if busy */
	bool torn;  /* its refinement went or came meanwhile: what was read was never there as a whole */
	bool again; /* the page at the cursor was torn: it is read once more */
};

/* Checks pages, at most about so many bytes until it is called again. */
void cache_scrub(struct cache *cache, uint64_t bytes);
/* For shed.c: bytes of the page change. */
void scrub_disturb(struct cache *cache, const struct page *page);

#endif /* SKVQD_CACHE_SCRUB_H */
