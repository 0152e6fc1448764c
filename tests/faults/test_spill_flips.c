/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One bit of one byte flipped in a segment that a restart reads: each page is exact or a miss.
 * Every byte of heads, headers, tables and feet; of pages every 17th (--long: every byte).
 */
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "seeded.h"
#include "support/spill_disk.h"
#include "support/spill_rig.h"

#include "spill/format.h"

#define FILES 24u
#define IDS   8u

static bool every_byte;
static struct store_options options;

static uint8_t *segment_one(struct spill_disk *disk, uint64_t *ret_bytes)
{
	for (uint32_t i = 0; i < FILES; i++) {
		uint64_t number;
		uint8_t *at = spill_disk_file(disk, i, &number, ret_bytes);

		if (at && number == 1)
			return at;
	}
	fail();
	return NULL;
}

/* How many pages are still there. */
static uint64_t try_it(struct spill_disk *disk)
{
	struct store *store = rig_open(&options, spill_disk_io(disk));
	uint64_t n = 0;

	for (uint64_t id = 0; id < IDS; id++)
		n += rig_get(store, id) == 1; /* and asserts that it is exact */
	store_close(store);
	return n;
}

static bool is_zero(const uint8_t *at, uint32_t bytes)
{
	return !*at && !memcmp(at, at + 1, bytes - 1);
}

static void flip_all(uint64_t ids)
{
	struct seeded rng = seeded_init();
	struct spill_disk *disk = spill_disk_new(rng.state, FILES, 0);
	struct store *store = rig_open(&options, spill_disk_io(disk));
	uint64_t bytes, whole, misses = 0, all = 0;
	uint8_t *copy;

	rig_settle(store, 50);
	for (uint64_t id = 0; id < ids; id++) {
		assert_int_equal(rig_put(store, id, 0), 0);
		rig_settle(store, 50);
	}
	store_close(store);
	whole = try_it(disk);
	assert_int_equal(whole, ids);
	copy = segment_one(disk, &bytes);
	for (uint64_t i = 0; i < bytes; i++) {
		struct spill_disk *flipped;
		uint64_t magic, n;

		memcpy(&magic, copy + i / SPILL_BLOCK * SPILL_BLOCK, sizeof(magic));
		if (!every_byte && i % 17 &&
		    (i % SPILL_BLOCK >= 256 || magic >> 40 != SPILL_MAGIC_HEAD >> 40))
			if (magic != SPILL_MAGIC_TABLE || i % SPILL_BLOCK >= 1024)
				continue;
		if (!every_byte && is_zero(copy + i / SPILL_BLOCK * SPILL_BLOCK, SPILL_BLOCK) &&
		    i % 512)
			continue;
		flipped = spill_disk_copy(disk);
		segment_one(flipped, &bytes)[i] ^= (uint8_t)(1u << seeded_below(&rng, 8));
		n = try_it(flipped);
		spill_disk_free(flipped);
		/* A bit costs one page at most; in the head of an open segment all of them. */
		assert_true(n + 1 >= whole || (i < SPILL_BLOCK && ids < IDS));
		misses += whole - n;
		all++;
	}
	print_message("%llu flips, %llu misses\n", (unsigned long long)all,
		      (unsigned long long)misses);
	assert_true(misses > 100 && misses < all);
	spill_disk_free(disk);
}

static void in_a_sealed_segment(void **state)
{
	(void)state;
	flip_all(IDS);
}

static void in_an_open_segment(void **state)
{
	(void)state;
	flip_all(3);
}

static void in_compressed_pages(void **state)
{
	(void)state;
	options.compression = 1;
	flip_all(IDS);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(in_a_sealed_segment),
	    cmocka_unit_test(in_an_open_segment),
	    cmocka_unit_test(in_compressed_pages),
	};

	every_byte = argc > 1 && !strcmp(argv[1], "--long");
	rig_options(&options);
	options.capacity_bytes = 2 << 20;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
