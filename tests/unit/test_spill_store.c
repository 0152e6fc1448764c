/* SPDX-License-Identifier: Apache-2.0 */
/* spill/store on a disk in memory: what it keeps, what it refuses, what it finds again. */
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "support/spill_disk.h"
#include "spill/faults.h"
#include "support/spill_rig.h"

#include <skvq/error.h>

#include "spill/format.h"

#define FILES 24u

static struct store_options options;
static struct spill_disk *disk;

static int setup(void **state)
{
	(void)state;
	rig_options(&options);
	disk = spill_disk_new(1, FILES, 2);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	spill_disk_free(disk);
	return 0;
}

static struct store *open_ready(struct spill_io *io)
{
	struct store *store = rig_open(&options, io);

	rig_settle(store, 50); /* the first segment is made */
	return store;
}

static void put_all(struct store *store, uint64_t from, uint64_t to)
{
	for (uint64_t id = from; id < to; id++) {
		assert_int_equal(rig_put(store, id, 0), 0);
		rig_settle(store, 20);
	}
}

static uint64_t present(struct store *store, uint64_t from, uint64_t to)
{
	uint64_t n = 0;

	for (uint64_t id = from; id < to; id++)
		n += rig_get(store, id) == 1;
	return n;
}

static void what_is_put_is_got(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));

	(void)state;
	assert_int_equal(rig_get(store, 1), 0);
	put_all(store, 0, 12);
	assert_int_equal(present(store, 0, 12), 12);
	assert_int_equal(rig_put(store, 3, 0), 0);
	assert_int_equal(store_stat(store, STORE_STAT_puts_existed), 1);
	assert_int_equal(store_stat(store, STORE_STAT_puts_stored), 12);
	assert_int_equal(store_stat(store, STORE_STAT_hits), 12);
	assert_int_equal(store_stat(store, STORE_STAT_misses), 1);
	assert_true(store_stat(store, STORE_STAT_written_bytes) >
		    store_stat(store, STORE_STAT_user_bytes));
	store_close(store);
}

static void a_dropped_page_is_gone(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	struct tier *tier = store_tier(store);
	struct tier_key key;

	(void)state;
	put_all(store, 0, 3);
	rig_key(1, &key);
	tier->ops->drop(tier, &key);
	assert_false(rig_contains(store, 1));
	assert_int_equal(rig_get(store, 1), 0);
	assert_int_equal(rig_get(store, 2), 1);
	assert_int_equal(rig_put(store, 1, 0), 0);
	assert_int_equal(rig_get(store, 1), 1);
	store_close(store);
}

static void on_any(void *ctx, int status)
{
	*(int *)ctx = status;
}

static void one_dropped_on_its_way_does_not_come_up(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	struct tier *tier = store_tier(store);
	uint8_t buf[RIG_PAGE_BYTES];
	struct tier_page page;
	int status = 1;

	(void)state;
	rig_page(5, buf, &page);
	assert_int_equal(tier->ops->put(tier, &page, 0, on_any, &status), 1);
	tier->ops->drop(tier, &page.key);
	rig_settle(store, 50);
	assert_int_equal(status, -SKVQ_ESTALE);
	assert_false(rig_contains(store, 5));
	store_close(store);
}

static void the_second_touch_is_stored(void **state)
{
	struct store *store;

	(void)state;
	options.touch_entries = 1024;
	store = open_ready(spill_disk_io(disk));
	assert_int_equal(rig_put(store, 1, 0), -SKVQ_EAGAIN);
	assert_int_equal(rig_put(store, 2, TIER_PUT_HOT), 0);
	assert_int_equal(rig_get(store, 1), 0);
	assert_int_equal(rig_put(store, 1, 0), 0);
	assert_int_equal(rig_get(store, 1), 1);
	assert_int_equal(store_stat(store, STORE_STAT_refused_first_touch), 1);
	store_close(store);
}

static void the_write_budget_holds(void **state)
{
	struct store *store;
	uint64_t began, wrote = 0;

	(void)state;
	options.write_bytes_per_day = UINT64_C(100) << 20;
	for (int life = 0; life < 4; life++) {
		uint64_t refused = 0;

		store = rig_open(&options, spill_disk_io(disk));
		began = spill_disk_written(disk);
		for (uint64_t id = 0; id < 200; id++) {
			refused += rig_put(store, (uint64_t)life * 1000 + id, 0) < 0;
			store_step(store, 100);
			spill_disk_sleep(disk, 2000);
		}
		/* 200 x 2 s at 100 MiB a day, and nothing in hand after a restart. */
		wrote = spill_disk_written(disk) - began;
		assert_true(refused > 0);
		assert_true(wrote <= (UINT64_C(100) << 20) / 86400 * 450);
		assert_true(wrote > (UINT64_C(100) << 20) / 86400 * 250);
		assert_true(store_stat(store, STORE_STAT_refused_budget) > 0);
		store_close(store);
	}
}

static void the_cap_holds_and_the_oldest_go(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));

	(void)state;
	put_all(store, 0, 200);
	assert_true(spill_disk_bytes_max(disk) <= options.capacity_bytes);
	assert_true(store_stat(store, STORE_STAT_charged_bytes) <= options.capacity_bytes);
	assert_true(store_stat(store, STORE_STAT_segments_removed) > 3);
	assert_int_equal(rig_get(store, 0), 0);
	assert_int_equal(present(store, 190, 200), 10);
	assert_int_equal(store_stat(store, STORE_STAT_rescued), 0);
	store_close(store);
}

/* An open store gives room back until it is under a lower cap, and takes it again under the old one. */
static void the_cap_comes_down_and_goes_up(void **state)
{
	const uint64_t was = 2 << 20, less = 1 << 20;
	struct store *store;
	struct why why;

	(void)state;
	options.capacity_bytes = was;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 0, 60);
	assert_true(store_stat(store, STORE_STAT_charged_bytes) > less);
	assert_int_equal(store_limit(store, was * 2, 0, &why), -SKVQ_EINVAL);
	assert_non_null(strstr(why.text, "at the start"));
	assert_int_equal(store_limit(store, 1, 0, &why), -SKVQ_EINVAL);
	assert_int_equal(store_limit(store, less, 0, &why), 0);
	for (int i = 0; i < 50 && store_stat(store, STORE_STAT_charged_bytes) > less; i++)
		rig_settle(store, 20);
	assert_true(store_stat(store, STORE_STAT_charged_bytes) <= less);
	assert_int_equal(present(store, 58, 60), 2); /* the youngest stay */
	assert_int_equal(rig_get(store, 0), 0);
	put_all(store, 100, 160);
	assert_true(store_stat(store, STORE_STAT_charged_bytes) <= less);
	assert_int_equal(store_limit(store, was, 0, &why), 0);
	put_all(store, 200, 260);
	assert_true(store_stat(store, STORE_STAT_charged_bytes) > less);
	assert_true(spill_disk_bytes_max(disk) <= was);
	store_close(store);
}

/* Less to write from now on: what the bucket held beyond its new size is gone; and none is no bound. */
static void the_write_budget_changes(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	struct why why;
	uint64_t n = 0;

	(void)state;
	put_all(store, 0, 5);
	assert_int_equal(store_limit(store, options.capacity_bytes, 1, &why), 0);
	for (uint64_t id = 100; id < 130; id++) {
		n += rig_put(store, id, 0) == 0;
		rig_settle(store, 20);
	}
	assert_true(store_stat(store, STORE_STAT_refused_budget) > 0);
	assert_true(n < 10);
	assert_int_equal(store_limit(store, options.capacity_bytes, 0, &why), 0);
	put_all(store, 200, 210);
	store_close(store);
}

static void what_was_asked_for_is_rescued(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	uint64_t stored = 0;

	(void)state;
	for (uint64_t id = 0; id < 200; id++) {
		stored += rig_put(store, id, 0) == 0;
		assert_int_equal(rig_get(store, 0), 1);
		rig_settle(store, 20);
	}
	assert_true(stored > 190); /* a put may come while the next segment is being made */
	assert_true(store_stat(store, STORE_STAT_rescued) >= 2);
	assert_int_equal(rig_get(store, 1), 0);
	/* A segment gives back most of its room even if all of it is hot. */
	for (uint64_t id = 200; id < 400; id++) {
		stored += rig_put(store, id, 0) == 0;
		for (uint64_t back = 0; back < 40; back++)
			(void)rig_get(store, id - back);
		rig_settle(store, 20);
	}
	assert_true(stored > 340);
	assert_true(spill_disk_bytes_max(disk) <= options.capacity_bytes);
	assert_true(store_stat(store, STORE_STAT_rescued_bytes) * 2 <
		    store_stat(store, STORE_STAT_written_bytes));
	store_close(store);
}

static void a_restart_finds_everything(void **state)
{
	struct store *store;
	uint64_t tail;

	(void)state;
	options.capacity_bytes = 4 << 20;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 0, 30);
	store_close(store);
	for (int i = 0; i < 5; i++) {
		store = rig_open(&options, spill_disk_io(disk));
		assert_int_equal(store_stat(store, STORE_STAT_recovered), 30 + i);
		assert_int_equal(present(store, 0, 30 + (uint64_t)i), 30 + (uint64_t)i);
		/* The open segment goes on: restarts do not eat the disk. */
		rig_settle(store, 50);
		assert_int_equal(rig_put(store, 30 + (uint64_t)i, 0), 0);
		store_close(store);
	}
	tail = spill_disk_bytes(disk);
	store = rig_open(&options, spill_disk_io(disk));
	assert_int_equal(spill_disk_bytes(disk), tail);
	assert_int_equal(present(store, 0, 35), 35);
	store_close(store);
}

static void a_restart_of_a_full_store_evicts_nothing(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	uint64_t there;

	(void)state;
	put_all(store, 0, 100);
	rig_settle(store, 500);
	there = present(store, 0, 100);
	store_close(store);
	for (int i = 0; i < 5; i++) {
		store = rig_open(&options, spill_disk_io(disk));
		rig_settle(store, 500);
		assert_int_equal(present(store, 0, 100), there);
		store_close(store);
	}
}

static void a_lower_cap_holds_from_the_start(void **state)
{
	struct store *store;

	(void)state;
	options.capacity_bytes = 4 << 20;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 0, 150);
	store_close(store);
	options.capacity_bytes = 1 << 20;
	store = rig_open(&options, spill_disk_io(disk));
	assert_true(spill_disk_bytes(disk) <= options.capacity_bytes);
	assert_int_equal(rig_get(store, 0), 0);
	assert_int_equal(rig_get(store, 149), 1);
	rig_settle(store, 50);
	put_all(store, 200, 300);
	assert_int_equal(rig_get(store, 299), 1);
	store_close(store);
}

static void a_full_file_system_is_lived_with(void **state)
{
	struct store *store;
	uint64_t stored = 0;

	(void)state;
	options.capacity_bytes = 4 << 20;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 0, 30);
	spill_disk_limit(disk, spill_disk_bytes(disk));
	for (uint64_t id = 100; id < 200; id++) {
		stored += rig_put(store, id, 0) == 0;
		rig_settle(store, 200);
	}
	assert_true(store_stat(store, STORE_STAT_create_failures) > 0);
	assert_true(stored > 50);
	assert_int_equal(rig_get(store, 199), 1);
	store_close(store);
}

static void a_corrupt_record_is_a_miss_and_not_read_again(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));

	(void)state;
	put_all(store, 0, 3);
	for (uint32_t i = 0; i < FILES; i++) {
		uint64_t number, bytes;
		uint8_t *at = spill_disk_file(disk, i, &number, &bytes);

		if (at && number == 1)
			at[4096 + 4096 + 7] ^= 4; /* the first record's base */
	}
	assert_int_equal(rig_get(store, 0), -SKVQ_ECORRUPT);
	assert_int_equal(rig_get(store, 0), 0);
	assert_int_equal(store_stat(store, STORE_STAT_crc_failures), 1);
	assert_int_equal(store_stat(store, STORE_STAT_quarantined), 1);
	assert_int_equal(present(store, 1, 3), 2);
	assert_int_equal(rig_put(store, 0, 0), 0);
	assert_int_equal(rig_get(store, 0), 1);
	store_close(store);
	/* Of two records of one page the newer wins. */
	store = rig_open(&options, spill_disk_io(disk));
	assert_int_equal(present(store, 0, 3), 3);
	store_close(store);
}

static void on_got(void *ctx, int status, const struct tier_page *page)
{
	(void)page;
	((int *)ctx)[status ? 1 : 0]++;
}

static void gets_wait_for_buffers_and_end_in_time(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	struct tier *tier = store_tier(store);
	int got[2] = {0, 0}, refused = 0;
	struct tier_key key;

	(void)state;
	put_all(store, 0, 10);
	for (uint64_t i = 0; i < 40; i++) {
		rig_key(i % 10, &key);
		refused += tier->ops->get(tier, &key, 400, on_got, got) < 0;
	}
	assert_int_equal(refused, 8); /* gets_queued is 32 */
	rig_settle(store, 200);
	assert_int_equal(got[0], 32);
	rig_key(1, &key);
	assert_int_equal(tier->ops->get(tier, &key, 0, on_got, got), 1);
	store_pump(store);
	assert_int_equal(got[0] + got[1], 33);
	store_close(store);
}

static void close_answers_everybody(void **state)
{
	struct store *store = open_ready(spill_disk_io(disk));
	struct tier *tier = store_tier(store);
	uint8_t buf[RIG_PAGE_BYTES];
	int got[2] = {0, 0}, put = 1, flushed = 1;
	struct tier_page page;
	struct tier_key key;

	(void)state;
	put_all(store, 0, 10);
	for (uint64_t i = 0; i < 30; i++) {
		rig_key(i % 10, &key);
		assert_int_equal(tier->ops->get(tier, &key, 400, on_got, got), 1);
		if (i == 2) {
			rig_page(77, buf, &page);
			assert_int_equal(tier->ops->put(tier, &page, 0, on_any, &put), 1);
		}
	}
	assert_int_equal(store_flush(store, on_any, &flushed), 0);
	assert_int_equal(store_flush(store, on_any, &flushed), -SKVQ_EBUSY);
	store_close(store);
	assert_int_equal(got[0] + got[1], 30);
	assert_int_equal(put, 0);
	assert_true(flushed <= 0);
}

static void a_lost_completion_costs_its_buffer_and_nothing_else(void **state)
{
	static const struct spill_fault_rates none = {0}, all = {.lost = 10000};
	struct spill_io *io = spill_faults_new(spill_disk_io(disk), 1, &none);
	struct store *store = open_ready(io);

	(void)state;
	put_all(store, 0, 5);
	spill_faults_set(io, &all);
	assert_int_equal(rig_get(store, 1), -SKVQ_ETIMEOUT);
	assert_int_equal(rig_get(store, 2), -SKVQ_ETIMEOUT);
	assert_true(rig_put(store, 10, 0) < 0);
	spill_faults_set(io, &none);
	assert_true(store_stat(store, STORE_STAT_transfers_lost) >= 3);
	assert_int_equal(present(store, 0, 5), 5);
	put_all(store, 11, 15);
	spill_faults_release(io);
	rig_settle(store, 50);
	assert_int_equal(store_stat(store, STORE_STAT_transfers_lost), 0);
	assert_int_equal(rig_get(store, 10), 0);
	/* Even if none comes back, closing ends. */
	spill_faults_set(io, &all);
	assert_int_equal(rig_get(store, 1), -SKVQ_ETIMEOUT);
	store_close(store);
}

/* Every second page of the rig can be compressed. */
static void compressed_pages_come_back(void **state)
{
	struct store *store;
	uint64_t plain, packed;

	(void)state;
	options.capacity_bytes = 4 << 20;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 0, 20);
	assert_int_equal(store_stat(store, STORE_STAT_puts_packed), 0);
	plain = store_stat(store, STORE_STAT_written_bytes);
	store_close(store);

	/* What was stored before is still there, and what comes now is shorter. */
	options.compression = 1;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 20, 40);
	assert_int_equal(store_stat(store, STORE_STAT_puts_stored), 20);
	/* One that would take as many blocks as before stays as it is. */
	packed = store_stat(store, STORE_STAT_puts_packed);
	assert_true(packed >= 5 && packed <= 10);
	assert_true(store_stat(store, STORE_STAT_packed_saved_bytes) >= packed * SPILL_BLOCK);
	assert_true(store_stat(store, STORE_STAT_written_bytes) < plain);
	assert_int_equal(rig_put(store, 21, 0), 0);
	assert_int_equal(store_stat(store, STORE_STAT_puts_existed), 1);
	assert_int_equal(present(store, 0, 40), 40);
	assert_int_equal(store_stat(store, STORE_STAT_unpacked), packed);
	store_close(store);

	/* Turned off again, nothing of it is lost. */
	options.compression = 0;
	store = open_ready(spill_disk_io(disk));
	put_all(store, 40, 45);
	assert_int_equal(store_stat(store, STORE_STAT_puts_packed), 0);
	assert_int_equal(present(store, 0, 45), 45);
	assert_int_equal(store_stat(store, STORE_STAT_unpacked), packed);
	store_close(store);
}

static void compressed_pages_are_rescued(void **state)
{
	struct store *store;

	(void)state;
	options.compression = 1;
	store = open_ready(spill_disk_io(disk));
	for (uint64_t id = 0; id < 300; id++) {
		(void)rig_put(store, id, 0);
		if (id > 1)
			assert_int_equal(rig_get(store, 1), 1);
		rig_settle(store, 20);
	}
	assert_true(store_stat(store, STORE_STAT_rescued) >= 2);
	assert_true(spill_disk_bytes_max(disk) <= options.capacity_bytes);
	store_close(store);
}

static void one_dropped_while_compressed_does_not_come_up(void **state)
{
	struct store *store;
	struct tier *tier;
	uint8_t buf[RIG_PAGE_BYTES];
	struct tier_page page;
	int status = 1;

	(void)state;
	options.compression = 1;
	store = open_ready(spill_disk_io(disk));
	tier = store_tier(store);
	rig_page(5, buf, &page);
	assert_int_equal(tier->ops->put(tier, &page, 0, on_any, &status), 1);
	assert_int_equal(tier->ops->put(tier, &page, 0, on_any, &status), 0); /* on its way */
	tier->ops->drop(tier, &page.key);
	rig_settle(store, 50);
	assert_int_equal(status, -SKVQ_ESTALE);
	assert_false(rig_contains(store, 5));
	assert_int_equal(store_stat(store, STORE_STAT_written_bytes), SPILL_BLOCK); /* the head */
	store_close(store);
}

static void the_write_budget_holds_with_compression(void **state)
{
	uint8_t buf[8][RIG_PAGE_BYTES];
	struct tier_page page;
	struct store *store;
	uint64_t began, given = 86400;
	int status[8];

	(void)state;
	options.compression = 1;
	options.write_bytes_per_day = given << 10;
	store = rig_open(&options, spill_disk_io(disk));
	began = spill_disk_written(disk);
	for (uint64_t round = 0; round < 30; round++) {
		spill_disk_sleep(disk, 4000);
		rig_settle(store, 20);
		/* All at once, so that each sees the budget before the others take theirs. */
		for (uint64_t i = 0; i < 8; i++) {
			rig_page(2 * (round * 8 + i), buf[i], &page);
			(void)store_tier(store)->ops->put(store_tier(store), &page, 0, on_any,
							  &status[i]);
		}
		rig_settle(store, 100);
	}
	assert_true(store_stat(store, STORE_STAT_puts_stored) > 5);
	assert_true(store_stat(store, STORE_STAT_puts_failed) > 0);
	assert_true(spill_disk_written(disk) - began <= 30 * 5 * 1024);
	store_close(store);
}

static void a_record_longer_than_the_buffers_is_a_miss(void **state)
{
	for (options.compression = 0; options.compression < 2; options.compression++) {
		uint64_t most = options.record_bytes, n;
		struct store *store = open_ready(spill_disk_io(disk));

		put_all(store, 0, 40); /* sealed segments and an open one */
		n = store_stat(store, STORE_STAT_records);
		store_close(store);
		options.record_bytes = 8 << 10;
		store = rig_open(&options, spill_disk_io(disk));
		assert_true(present(store, 0, 40) < n);
		store_close(store);
		options.record_bytes = most;
		assert_int_equal(teardown(state), 0);
		disk = spill_disk_new(1, FILES, 2);
	}
}

static void an_io_that_has_no_room_delays_a_start_and_no_more(void **state)
{
	static const struct spill_fault_rates full = {.submit_eagain = 7000};
	struct store *store = open_ready(spill_disk_io(disk));

	(void)state;
	put_all(store, 0, 12);
	store_close(store);
	store = rig_open(&options, spill_faults_new(spill_disk_io(disk), 1, &full));
	assert_int_equal(present(store, 0, 12), 12);
	assert_int_equal(store_stat(store, STORE_STAT_timeouts), 0);
	store_close(store);
}

static void options_have_bounds(void **state)
{
	struct store_options o;
	struct why why;

	(void)state;
	store_options_default(&o);
	assert_int_equal(store_options_check(&o, &why), 0);
	o.buffers = 3;
	assert_int_equal(store_options_check(&o, &why), -SKVQ_EINVAL);
	assert_non_null(strstr(why.text, "buffers"));
	store_options_default(&o);
	o.segment_bytes += 512;
	assert_int_equal(store_options_check(&o, &why), -SKVQ_EINVAL);
	store_options_default(&o);
	o.capacity_bytes = o.segment_bytes * 4;
	assert_int_equal(store_options_check(&o, &why), -SKVQ_EINVAL);
	store_options_default(&o);
	o.record_bytes = o.segment_bytes / 2;
	assert_int_equal(store_options_check(&o, &why), -SKVQ_EINVAL);
	store_options_default(&o);
	o.capacity_bytes = UINT64_C(1) << 40;
	assert_int_equal(store_options_check(&o, &why), -SKVQ_EINVAL);
	o.segment_bytes = 256 << 20;
	assert_int_equal(store_options_check(&o, &why), 0);
	store_options_default(&o);
	o.write_bytes_per_day = UINT64_MAX;
	assert_int_equal(store_options_check(&o, &why), -SKVQ_EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(what_is_put_is_got),
	    TEST(a_dropped_page_is_gone),
	    TEST(one_dropped_on_its_way_does_not_come_up),
	    TEST(the_second_touch_is_stored),
	    TEST(the_write_budget_holds),
	    TEST(the_cap_holds_and_the_oldest_go),
	    TEST(the_cap_comes_down_and_goes_up),
	    TEST(the_write_budget_changes),
	    TEST(what_was_asked_for_is_rescued),
	    TEST(a_restart_finds_everything),
	    TEST(a_restart_of_a_full_store_evicts_nothing),
	    TEST(a_lower_cap_holds_from_the_start),
	    TEST(a_full_file_system_is_lived_with),
	    TEST(a_corrupt_record_is_a_miss_and_not_read_again),
	    TEST(gets_wait_for_buffers_and_end_in_time),
	    TEST(close_answers_everybody),
	    TEST(a_lost_completion_costs_its_buffer_and_nothing_else),
	    TEST(compressed_pages_come_back),
	    TEST(compressed_pages_are_rescued),
	    TEST(one_dropped_while_compressed_does_not_come_up),
	    TEST(the_write_budget_holds_with_compression),
	    TEST(a_record_longer_than_the_buffers_is_a_miss),
	    TEST(an_io_that_has_no_room_delays_a_start_and_no_more),
	    cmocka_unit_test(options_have_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
