/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store whose disk stops at the n-th change, for every n of a scripted workload: it opens again,
 * everything that was durable is there, and everything that is said to be there is exact.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "seeded.h"
#include "support/spill_disk.h"
#include "support/spill_rig.h"

#define FILES 64u
#define IDS   48u

struct known {
	bool stored[IDS];  /* told done */
	bool durable[IDS]; /* and a flush after it was */
};

static bool keep_going;

static void workload(struct store *store, struct spill_disk *disk, struct known *known)
{
	for (uint64_t id = 0; id < IDS && !spill_disk_failed(disk); id++) {
		known->stored[id] = rig_put(store, id, 0) == 0;
		if (id % 3 == 0)
			(void)rig_get(store, id / 2); /* something to rescue */
		rig_settle(store, id % 4 * 20);
		if (id % 11 == 10 && rig_flush(store) == 0)
			memcpy(known->durable, known->stored, sizeof(known->stored));
	}
	rig_settle(store, 100);
}

/* All that is said to be there is exact; all of must is there. */
static void check(struct store *store, const bool *must)
{
	for (uint64_t id = 0; id < IDS + 8; id++) {
		bool said = rig_contains(store, id);

		if (said)
			assert_int_equal(rig_get(store, id), 1);
		if (must && id < IDS && must[id])
			assert_true(said);
	}
	assert_int_equal(store_stat(store, STORE_STAT_crc_failures), 0);
}

/* False: the workload was over before the n-th change. */
static bool crash_at(const struct store_options *options, uint64_t seed, uint64_t n, bool power,
		     bool roomy)
{
	struct spill_disk *disk = spill_disk_new(seed * 1000003 + n, FILES, 3);
	struct known known = {.stored = {false}};
	struct store *store = rig_open(options, spill_disk_io(disk));
	const bool *must = !roomy ? NULL : power ? known.durable : known.stored;
	bool failed, more = n & 1, present[IDS + 8];

	spill_disk_fail_at(disk, n);
	workload(store, disk, &known);
	failed = spill_disk_failed(disk);
	if (!failed)
		spill_disk_fail_at(disk, 1); /* no orderly end either */
	store_close(store);
	if (power)
		spill_disk_power_cut(disk);
	else
		spill_disk_killed(disk);

	store = rig_open(options, spill_disk_io(disk));
	check(store, must);
	for (uint64_t id = IDS; more && id < IDS + 8; id++) {
		rig_settle(store, id == IDS ? 100 : 0);
		(void)rig_put(store, id, 0);
		rig_settle(store, 20);
	}
	check(store, must);
	/* What was written over what the crash left is as good, and so is a flush of what a killed
	 * process had not synced. */
	for (uint64_t id = 0; id < IDS + 8; id++)
		present[id] = rig_contains(store, id);
	for (uint64_t id = IDS; roomy && more && id < IDS + 8; id++)
		assert_true(present[id]);
	assert_int_equal(rig_flush(store), 0);
	spill_disk_fail_at(disk, 1);
	(void)rig_put(store, IDS + 8, 0);
	store_close(store);
	spill_disk_power_cut(disk);
	store = rig_open(options, spill_disk_io(disk));
	check(store, must);
	if (roomy)
		for (uint64_t id = 0; id < IDS + 8; id++)
			assert_true(!present[id] || rig_contains(store, id));
	assert_true(spill_disk_bytes_max(disk) <= options->capacity_bytes);
	store_close(store);
	spill_disk_free(disk);
	return failed;
}

static void sweep(bool power, bool roomy, bool compressed)
{
	uint64_t seed = seeded_init().state, runs = keep_going ? 200 : 6;
	struct store_options options;

	rig_options(&options);
	options.compression = compressed;
	if (roomy)
		options.capacity_bytes = 8 << 20;
	for (uint64_t run = 0; run < runs; run++) {
		uint64_t n = 1;

		while (crash_at(&options, seed + run, n, power, roomy))
			n++;
		printf("seed %llu: stopped at each of %llu changes\n",
		       (unsigned long long)(seed + run), (unsigned long long)n - 1);
		assert_true(n > 80);
	}
}

static void a_power_cut_loses_what_was_not_synced(void **state)
{
	(void)state;
	sweep(true, true, false);
}

static void a_kill_loses_what_was_not_written(void **state)
{
	(void)state;
	sweep(false, true, false);
}

static void a_power_cut_while_segments_go(void **state)
{
	(void)state;
	sweep(true, false, false);
}

static void a_power_cut_while_pages_are_compressed(void **state)
{
	(void)state;
	sweep(true, true, true);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_power_cut_loses_what_was_not_synced),
	    cmocka_unit_test(a_kill_loses_what_was_not_written),
	    cmocka_unit_test(a_power_cut_while_segments_go),
	    cmocka_unit_test(a_power_cut_while_pages_are_compressed),
	};

	keep_going = argc > 1 && !strcmp(argv[1], "--long");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
