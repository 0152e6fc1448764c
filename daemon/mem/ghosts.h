/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/ghosts.h - what is remembered of pages that went: a key, when, and which of two lists it is on.
 *
 * Bounded: room for a fixed number on each list is taken once, the oldest is forgotten first. Keys
 * are 64 bits of a digest; should two pages ever share one, the worst is a page in the wrong queue.
 * Every call O(1), but for ghosts_bound. Loop thread only.
 */
#ifndef SKVQD_MEM_GHOSTS_H
#define SKVQD_MEM_GHOSTS_H

#include <stdbool.h>
#include <stdint.h>

#define GHOST_LISTS   2u
#define GHOST_TICK_MS 32u /* times are kept in these, and wrap after two years */

struct ghost {
	uint64_t key;
	uint32_t next; /* in its bucket, or of those that are free; index + 1 as all here */
	uint32_t older, younger; /* on its list */
	uint32_t list : 1, since : 31;
};

struct ghosts {
	struct ghost *all; /* NULL: nothing is ever remembered */
	uint32_t *buckets;
	uint32_t mask;
	uint32_t max;     /* on each list */
	uint32_t touched; /* below this were used at some time */
	uint32_t free;
	struct {
		uint32_t oldest, youngest, n;
	} list[GHOST_LISTS];
};

/* max on each list: 1..2^24. Memory is touched as it is used, 24 bytes each and a bucket.
 * -SKVQ_ENOMEM leaves one that never remembers anything, which every call below takes. */
int ghosts_init(struct ghosts *ghosts, uint32_t max);
void ghosts_fini(struct ghosts *ghosts);

/* As the youngest of its list. What was known of that key is forgotten, and the oldest if the list
 * is full. */
void ghosts_add(struct ghosts *ghosts, uint64_t key, uint32_t list, uint64_t now_ms);
/* The list it is on, and it is forgotten; *ret_ms is how long it was, to GHOST_TICK_MS. -1: not known,
 * and *ret_ms is 0. */
int ghosts_take(struct ghosts *ghosts, uint64_t key, uint64_t now_ms, uint64_t *ret_ms);
/* Whether it is known, and since when, as ghosts_take; it stays so. */
bool ghosts_know(const struct ghosts *ghosts, uint64_t key, uint64_t now_ms, uint64_t *ret_ms);
/* Forgets the oldest of a list until n are left. */
void ghosts_bound(struct ghosts *ghosts, uint32_t list, uint64_t n);

#endif /* SKVQD_MEM_GHOSTS_H */
