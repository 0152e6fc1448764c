/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The speed of memory: what one thread, or the team, can read and do nothing with. A reader slower
 * than memory would make our share of the bandwidth look better than it is: four streams fetched
 * ahead read a quarter more here than plain loads or the C library's memchr.
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define UNITS 8u
#define AHEAD 1024u

struct reader {
	struct team *team;
	uint8_t *memory;
	uint32_t unit;
	size_t unit_bytes;
	volatile uint64_t sink;
};

static void read_all(const uint8_t *p, size_t bytes, struct reader *r)
{
	uint64_t sum[4][8] = {{0}}, x[8];
	size_t quarter = bytes / 256 * 64;
	uint64_t all = 0;

	for (size_t at = 0; at < quarter; at += sizeof x) {
		for (int i = 0; i < 4; i++) {
			__builtin_prefetch(p + quarter * (size_t)i + at + AHEAD);
			memcpy(x, p + quarter * (size_t)i + at, sizeof x);
			for (int j = 0; j < 8; j++)
				sum[i][j] ^= x[j];
		}
	}
	for (int i = 0; i < 32; i++)
		all ^= sum[i / 8][i % 8];
	r->sink = all;
}

/* The thread's part of the unit, in whole pages. */
static const uint8_t *part_of(const struct reader *r, uint32_t ith, uint32_t nth, size_t *bytes)
{
	*bytes = r->unit_bytes / nth / 4096 * 4096;
	return r->memory + r->unit * r->unit_bytes + ith * *bytes;
}

static void read_part(void *user, uint32_t ith, uint32_t nth)
{
	struct reader *r = user;
	size_t bytes;
	const uint8_t *p = part_of(r, ith, nth, &bytes);

	read_all(p, bytes, r);
}

static void read_unit(void *user, uint32_t i)
{
	struct reader *r = user;

	r->unit = i;
	team_run(r->team, read_part, r);
}

struct reader *reader_new(struct team *t)
{
	struct reader *r = take(sizeof *r);

	r->team = t;
	r->unit_bytes = working_set / UNITS;
	r->memory = take_large(working_set + AHEAD);
	memset(r->memory, 0x55, working_set); /* untouched memory is one page of zeros */
	return r;
}

void reader_free(struct reader *r)
{
	free(r->memory);
	free(r);
}

void reader_contestant(struct reader *r, struct contestant *c)
{
	*c = (struct contestant){.name = "read", .unit = read_unit, .user = r, .n_units = UNITS};
}

double reader_unit_bytes(const struct reader *r)
{
	return (double)r->unit_bytes;
}
