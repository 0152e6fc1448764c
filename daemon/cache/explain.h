/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/explain.h - why a match of some tokens ends where it ends: for people who wonder why nothing is
 * found. It looks and changes nothing, and what it says of other namespaces is of the same tenant.
 */
#ifndef SKVQD_CACHE_EXPLAIN_H
#define SKVQD_CACHE_EXPLAIN_H

#include "cache/cache.h"

enum explain_end {
	EXPLAIN_ALL,     /* it does not: every whole page of the tokens is here or on disk */
	EXPLAIN_FILLING, /* the next page is being copied in */
	EXPLAIN_COMING,  /* the next page is being read from disk */
	EXPLAIN_HELD,    /* the next page would be more than the tenant may hold */
	EXPLAIN_DROPPED, /* the next page was dropped to make room, gone_ms ago */
	EXPLAIN_DIFFERS, /* a page follows here whose tokens differ, from same_tokens on */
	EXPLAIN_UNKNOWN, /* nobody has published it, or nobody remembers */
	EXPLAIN_ENDS
};

/* "all", "filling", ... as the protocol has them. */
const char *explain_end_name(enum explain_end end);

struct explain {
	struct ns *ns;
	const int32_t *tokens; /* [n_tokens] */
	uint32_t n_tokens;
	/* Pages that follow at the same place are looked for from this slot on, so many at a time that the
	 * loop is not held up; next_slot says where to go on, 0: all were looked at. */
	uint32_t first_slot, next_slot;

	uint32_t n_memory; /* results: pages of the chain in memory */
	uint32_t n_disk;   /* and behind these on disk */
	uint64_t disk_ms;  /* until these would be here */
	enum explain_end end;
	uint64_t gone_ms;
	/* Of the page behind the last one in memory: so many of its tokens has the page that begins most
	 * like it, of those looked at. */
	uint32_t same_tokens;
	int32_t shift; /* 1: a first page is equal but for one token in front of it; -1: the other way */
	const struct ns *other; /* the namespace that has most of the chain in memory, if more; NULL: none */
	uint32_t other_pages;
	const char *other_differs; /* the first field of its identity that differs */
};

/* Fills in the results. -SKVQ_ENOMEM. */
int cache_explain(struct cache *cache, struct explain *explain, struct why *why);

#endif /* SKVQD_CACHE_EXPLAIN_H */
