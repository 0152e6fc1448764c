/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/pins.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

static uint32_t home(const struct pins *pins, const struct page *page)
{
	/* Pages are equal-sized entries of a table: multiply to spread the low bits. */
	uint64_t h = (uint64_t)(uintptr_t)page * UINT64_C(0x9e3779b97f4a7c15);

	return (uint32_t)(h >> 32) & (pins->places - 1);
}

static uint32_t next_place(const struct pins *pins, uint32_t at)
{
	return (at + 1) & (pins->places - 1);
}

/* The place of the page, or the empty place where it would go. The table is never full. */
static uint32_t find(const struct pins *pins, const struct page *page)
{
	uint32_t at = home(pins, page);

	while (pins->table[at].page && pins->table[at].page != page)
		at = next_place(pins, at);
	return at;
}

void pins_init(struct pins *pins, uint32_t max)
{
	memset(pins, 0, sizeof(*pins));
	pins->max = max;
}

void pins_fini(struct pins *pins)
{
	assert(pins->total == 0 && pins->reserved == 0);
	free(pins->table);
	pins->table = NULL;
	pins->places = 0;
}

/* By its own bound, which may have been lowered. */
static uint32_t own_left(const struct pins *pins)
{
	uint32_t has = pins->total + pins->reserved;

	return pins->max > has ? pins->max - has : 0;
}

uint32_t pins_left(const struct pins *pins)
{
	uint32_t own = own_left(pins);
	uint64_t all = UINT64_MAX;

	if (pins->group)
		all = pins->group->max > pins->group->n ? pins->group->max - pins->group->n : 0;
	return own < all ? own : (uint32_t)all;
}

/* Places for that many distinct pages at a load of at most a half. */
static int grow(struct pins *pins, uint64_t pages)
{
	struct pins bigger = *pins;

	if (2 * pages <= pins->places)
		return 0;
	bigger.places = pins->places ? pins->places : 16;
	while (bigger.places < 2 * pages) {
		if (bigger.places > UINT32_MAX / 2)
			return -SKVQ_ENOMEM;
		bigger.places *= 2;
	}
	bigger.table = calloc(bigger.places, sizeof(*bigger.table));
	if (!bigger.table)
		return -SKVQ_ENOMEM;
	for (uint32_t i = 0; i < pins->places; i++) {
		if (pins->table[i].page)
			bigger.table[find(&bigger, pins->table[i].page)] = pins->table[i];
	}
	free(pins->table);
	*pins = bigger;
	return 0;
}

int pins_reserve(struct pins *pins, uint32_t n, struct why *why)
{
	if (n > own_left(pins))
		return why_fail(why, SKVQ_EPINS,
				"this connection holds %u pins and %u promised ones of %u",
				pins->total, pins->reserved, pins->max);
	if (n > pins_left(pins))
		return why_fail(why, SKVQ_ETPINS,
				"the connections of this tenant hold %llu pins of %llu",
				(unsigned long long)pins->group->n,
				(unsigned long long)pins->group->max);
	if (grow(pins, (uint64_t)pins->pages + pins->reserved + n) < 0)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a table of %u pins",
				pins->total + pins->reserved + n);
	pins->reserved += n;
	if (pins->group)
		pins->group->n += n;
	return 0;
}

void pins_unreserve(struct pins *pins, uint32_t n)
{
	assert(n <= pins->reserved);
	pins->reserved -= n;
	if (pins->group)
		pins->group->n -= n;
}

void pins_add(struct pins *pins, struct page *page, bool refined)
{
	uint32_t at;

	assert(pins->reserved > 0);
	pins->reserved--;
	at = find(pins, page);
	if (!pins->table[at].page) {
		pins->table[at].page = page;
		pins->pages++;
	}
	pins->table[at].count++;
	pins->table[at].refined += refined;
	pins->total++;
}

/* Empties a place and moves up what probing would no longer find. */
static void vacate(struct pins *pins, uint32_t hole)
{
	pins->table[hole] = (struct pin){0};
	for (uint32_t at = next_place(pins, hole); pins->table[at].page;
	     at = next_place(pins, at)) {
		uint32_t want = home(pins, pins->table[at].page);
		uint32_t mask = pins->places - 1;

		/* Stays if its home lies behind the hole on the way here. */
		if (((at - want) & mask) < ((at - hole) & mask))
			continue;
		pins->table[hole] = pins->table[at];
		pins->table[at] = (struct pin){0};
		hole = at;
	}
}

uint32_t pins_take(struct pins *pins, struct page *page, uint32_t n)
{
	uint32_t at = find(pins, page);
	struct pin *pin = &pins->table[at];
	uint32_t ended;

	assert(pin->page == page && pin->count >= n);
	pin->count -= n;
	pins->total -= n;
	if (pins->group)
		pins->group->n -= n;
	ended = pin->refined > pin->count ? pin->refined - pin->count : 0;
	pin->refined -= ended;
	if (pin->count)
		return ended;
	pins->pages--;
	vacate(pins, at);
	return ended;
}

bool pins_unrefine(struct pins *pins, struct page *page)
{
	struct pin *pin = pins->places ? &pins->table[find(pins, page)] : NULL;

	if (!pin || !pin->refined)
		return false;
	pin->refined--;
	return true;
}

uint64_t pins_bytes(const struct pins *pins)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < pins->places; i++) {
		if (pins->table[i].page)
			sum += pins->table[i].page->bytes;
	}
	return sum;
}

uint32_t pins_count(const struct pins *pins, const struct page *page)
{
	return pins->places ? pins->table[find(pins, page)].count : 0;
}

struct page *pins_any(const struct pins *pins, uint32_t *cursor, uint32_t *ret_count)
{
	if (!pins->pages)
		return NULL;
	/* Taking an entry may move another to its place: stay on a place until it is empty. */
	while (!pins->table[*cursor & (pins->places - 1)].page)
		(*cursor)++;
	*ret_count = pins->table[*cursor & (pins->places - 1)].count;
	return pins->table[*cursor & (pins->places - 1)].page;
}
