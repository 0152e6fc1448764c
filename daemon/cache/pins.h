/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/pins.h - the pins of one connection: page -> count.
 *
 * It counts and bounds; what a pin does to a page is cache/cache.c's business. Pins end by being
 * given back or by the connection's end, never by time (I1). A place for a pin can be reserved
 * ahead, so that a publish that took its time cannot fail for want of one. Loop thread only.
 */
#ifndef SKVQD_CACHE_PINS_H
#define SKVQD_CACHE_PINS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/why.h"
#include "mem/page.h"

struct pin {
	struct page *page; /* NULL: empty place */
	uint32_t count;
	uint32_t refined; /* of these, such as hold the page's refinement too */
};

/* What several connections hold together. */
struct pins_group {
	uint64_t n; /* totals and reservations */
	uint64_t max;
};

struct pins {
	struct pins_group *group; /* NULL: none; set before the first pin */
	struct pin *table; /* open addressing, a power of two of places */
	uint32_t places;
	uint32_t pages;    /* distinct */
	uint32_t total;    /* sum of counts */
	uint32_t reserved; /* promised to publishes in flight */
	uint32_t max;      /* of total + reserved */
};

void pins_init(struct pins *pins, uint32_t max); /* allocates nothing yet */
void pins_fini(struct pins *pins);               /* must be empty */

/* How many pins may still be added, by this bound and the group's. */
uint32_t pins_left(const struct pins *pins);
/* Makes room for n more pins: the next n pins_add cannot fail. -SKVQ_EPINS, -SKVQ_ETPINS (the
 * group's) naming the bound, -SKVQ_ENOMEM. Counts n as reserved. */
int pins_reserve(struct pins *pins, uint32_t n, struct why *why);
void pins_unreserve(struct pins *pins, uint32_t n);

/* Uses up one reserved place. refined: it holds the page's refinement too. */
void pins_add(struct pins *pins, struct page *page, bool refined);
/* Takes n from the count of a page; the caller has looked that it is at least n. Of the pins that
 * are left as many as can be stay refined. Returns how many refined ones ended. */
uint32_t pins_take(struct pins *pins, struct page *page, uint32_t n);
/* One refined pin of a page becomes a plain one. False if there is none. */
bool pins_unrefine(struct pins *pins, struct page *page);
/* Bytes of the distinct pages, as they are now. */
uint64_t pins_bytes(const struct pins *pins);
uint32_t pins_count(const struct pins *pins, const struct page *page);
/* Any one entry, for emptying the set; its count in *ret_count. NULL if empty. cursor starts at 0
 * and is the caller's. */
struct page *pins_any(const struct pins *pins, uint32_t *cursor, uint32_t *ret_count);

#endif /* SKVQD_CACHE_PINS_H */
