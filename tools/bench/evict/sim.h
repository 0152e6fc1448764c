/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim.h - the cache as far as eviction sees it, driven by a trace. What runs here of the daemon is
 * mem/page.c and the policies of mem/; the calls come in the order in which cache/ makes them.
 */
#ifndef SKVQ_BENCH_EVICT_SIM_H
#define SKVQ_BENCH_EVICT_SIM_H

#include <stdint.h>
#include <string.h>

#include "mem/page.h"
#include "trace.h"

struct sim_size {
	uint32_t pages;     /* that fit */
	uint32_t footprint; /* distinct pages of the trace */
};

/* One way to choose. All pages are the simulator's. */
struct rival {
	const char *name;
	const char *what;
	void *(*make)(const struct sim_size *size); /* NULL: no memory */
	void (*end)(void *rival);
	void (*born)(void *rival, struct page *page); /* was not there and is now */
	void (*hit)(void *rival,
		    struct page *page); /* is used again; not among those that may go */
	void (*add)(void *rival, struct page *page); /* may go from now on */
	void (*remove)(void *rival, struct page *page);
	struct page *(*victim)(void *rival);             /* of those that may go; NULL: none */
	void (*evicted)(void *rival, struct page *page); /* goes now; removed already */
};

extern const struct rival rivals[];
extern const uint32_t n_rivals;

/* For "optimal" alone: the use of each page that comes after the one under way. */
extern const uint64_t *sim_next_use;

/* Whose number in the trace this page has. */
static inline uint32_t page_number(const struct page *page)
{
	uint32_t number;

	memcpy(&number, page->digest, sizeof(number));
	return number;
}

struct sim_result {
	uint64_t asked, hit; /* pages */
	uint64_t evictions;
	double seconds;
};

/* 0, or -1: no memory. */
int sim_run(const struct trace *trace, const struct rival *rival, uint32_t pages,
	    struct sim_result *ret);

#endif /* SKVQ_BENCH_EVICT_SIM_H */
