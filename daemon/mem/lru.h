/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/lru.h - which page was not used for longest, among those put in.
 *
 * A pairing heap through links inside struct page: no allocation, add O(1), remove and oldest
 * O(log n) amortised. A list would do if pages always came back as the youngest, but a parent that
 * loses its last child comes back at the age of its own last use, which may be anywhere in the
 * order. Of pages with one stamp the later in its sequence counts as older, so leaves go first.
 * Loop thread only.
 */
#ifndef SKVQD_MEM_LRU_H
#define SKVQD_MEM_LRU_H

#include <stdint.h>

#include "mem/page.h"

struct lru {
	struct page *root; /* the oldest */
	uint64_t n;
};

/* The page's stamp and position must not change while it is in. */
void lru_add(struct lru *lru, struct page *page);
void lru_remove(struct lru *lru, struct page *page); /* not in: no-op */
/* NULL if empty. */
struct page *lru_oldest(const struct lru *lru);

#endif /* SKVQD_MEM_LRU_H */
