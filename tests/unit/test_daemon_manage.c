/* SPDX-License-Identifier: Apache-2.0 */
/* cache/sweep over a real store on a disk in memory, and what it needs of the store: rounds of people. */
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "cache/sweep.h"
#include "spill/faults.h"
#include "support/cache_rig.h"
#include "support/spill_disk.h"
#include "support/spill_rig.h"

#define ROOM 100u

struct bed {
	struct rig rig;
	struct spill_disk *disk;
	struct store_options options;
};

static void bed_init(struct bed *b, bool store, uint64_t budget)
{
	memset(b, 0, sizeof(*b));
	rig_options(&b->options);
	b->options.capacity_bytes = 4 << 20;
	b->options.write_bytes_per_day = budget;
	b->disk = spill_disk_new(11, store_files_max(&b->options), 2);
	rig_init(&b->rig, ROOM, 1000, NULL);
	b->rig.cache.config.spill_percent = 0; /* nothing goes down by itself */
	if (!store)
		return;
	b->rig.store = rig_open(&b->options, spill_disk_io(b->disk));
	b->rig.tenant->tier = store_tier(b->rig.store);
}

static void bed_fini(struct bed *b)
{
	(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
	cache_close(&b->rig.cache);
	store_close(b->rig.store);
	b->rig.store = NULL;
	rig_fini(&b->rig);
	spill_disk_free(b->disk);
}

static void on_wake(struct sweep *s)
{
	(void)s; /* round() looks by itself */
}

/* Once over everything. */
static struct sweep round_of(struct bed *b, struct sweep s)
{
	s.tenant = b->rig.tenant;
	s.wake = on_wake;
	while (cache_sweep(&b->rig.cache, &s)) {
		if (b->rig.store)
			store_step(b->rig.store, 1);
		assert_int_equal(loop_step(&b->rig.loop, 1), 0);
	}
	assert_true(s.over || s.stop);
	assert_int_equal(s.n_out, 0);
	return s;
}

static void publish(struct bed *b, uint32_t seed, uint32_t n, struct page **ret)
{
	struct page *pages[RIG_MATCH_PAGES];

	rig_chain(&b->rig, &b->rig.pins, seed, n, ret ? ret : pages);
}

static uint64_t stat(const struct bed *b, enum stats_id id)
{
	return b->rig.stats.n[id];
}

static void what_is_pinned_stays(void **state)
{
	struct page *pages[10];
	struct page_ref refs[10];
	struct sweep s;
	struct bed b;

	(void)state;
	bed_init(&b, false, 0);
	publish(&b, 1, 10, pages);
	for (uint32_t i = 0; i < 10; i++)
		refs[i] = page_ref(pages[i]);
	assert_int_equal(cache_unpin(&b.rig.cache, b.rig.ns, &b.rig.pins, refs + 4, 6, NULL), 0);
	publish(&b, 2, 3, NULL);
	(void)cache_unpin(&b.rig.cache, b.rig.ns, &b.rig.pins, refs, 3, NULL);
	/* Pages 0 to 2 have no pin, and hang on to that of 3. */
	s = round_of(&b, (struct sweep){.kind = SWEEP_COUNT});
	assert_int_equal(s.pages, 6);
	assert_int_equal(s.held, 4 + 3);
	assert_int_equal(s.unwritten, 6);
	assert_int_equal(b.rig.cache.pages, 13); /* nothing was done */
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT});
	assert_int_equal(s.pages, 6);
	assert_int_equal(s.held, 4 + 3);
	assert_int_equal(s.refused, 0);
	assert_int_equal(b.rig.cache.pages, 7);
	assert_int_equal(stat(&b, STAT_evictions), 6);
	assert_int_equal(stat(&b, STAT_evictions_lost), 6); /* no store */
	for (uint32_t i = 0; i < 4; i++)
		assert_true(page_readable(pages[i]));
	assert_int_equal(cache_kernel_bytes(&b.rig.cache), b.rig.cache.bytes);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT});
	assert_int_equal(s.pages, 7);
	assert_int_equal(b.rig.cache.bytes, 0);
	bed_fini(&b);
}

static void pages_are_written_before_they_go(void **state)
{
	struct rig_match rm;
	struct sweep s;
	struct bed b;

	(void)state;
	bed_init(&b, true, 0);
	publish(&b, 1, 30, NULL);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT});
	assert_int_equal(s.pages, 30);
	assert_int_equal(s.written, 30);
	assert_int_equal(s.refused + s.held, 0);
	assert_int_equal(b.rig.cache.pages, 0);
	assert_int_equal(stat(&b, STAT_evictions_lost), 0);
	/* And a match finds them there. */
	assert_int_equal(rig_match(&b.rig, &rm, &b.rig.pins, 1, 30, 5000), 0);
	assert_int_equal(rm.m.n, 30);
	assert_int_equal(rm.m.n_restored, 30);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	/* Gone for good. */
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT, .drop = true});
	assert_int_equal(s.pages, 30);
	assert_int_equal(s.written, 0);
	assert_int_equal(store_stat(b.rig.store, STORE_STAT_records), 0);
	assert_int_equal(rig_match(&b.rig, &rm, &b.rig.pins, 1, 30, 5000), 0);
	assert_int_equal(rm.m.n, 0);
	bed_fini(&b);
}

/* Less than the pages take: what it refuses stays in memory, and nothing is lost. */
static void what_the_budget_refuses_stays(void **state)
{
	struct rig_match rm;
	struct sweep s;
	struct bed b;

	(void)state;
	bed_init(&b, true, 1 << 20);
	publish(&b, 1, 40, NULL);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT});
	assert_true(s.refused > 0);
	assert_int_equal(s.over_budget, s.refused);
	assert_int_equal(b.rig.cache.pages, 40 - s.pages);
	assert_int_equal(stat(&b, STAT_evictions_lost), 0);
	assert_int_equal(rig_match(&b.rig, &rm, &b.rig.pins, 1, 40, 5000), 0);
	assert_int_equal(rm.m.n, 40);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	s = round_of(&b, (struct sweep){.kind = SWEEP_DRAIN});
	assert_true(s.over_budget > 0);
	assert_int_equal(s.over_budget + s.pages, 40);
	bed_fini(&b);
}

static void a_drain_writes_pinned_pages_too(void **state)
{
	struct sweep s;
	struct bed b;

	(void)state;
	bed_init(&b, true, 0);
	publish(&b, 1, 20, NULL);
	publish(&b, 2, 20, NULL);
	s = round_of(&b, (struct sweep){.kind = SWEEP_DRAIN});
	assert_int_equal(s.written, 40);
	assert_int_equal(s.pages, 40);
	assert_int_equal(s.refused, 0);
	assert_int_equal(b.rig.cache.pages, 40);
	s = round_of(&b, (struct sweep){.kind = SWEEP_DRAIN});
	assert_int_equal(s.written, 0);
	assert_int_equal(s.pages, 40);
	bed_fini(&b);
}

static void a_page_goes_with_what_is_behind_it(void **state)
{
	struct page *pages[10], *branch, *other[2];
	struct sweep s;
	struct bed b;

	(void)state;
	bed_init(&b, false, 0);
	publish(&b, 1, 10, pages);
	branch = rig_publish(&b.rig, &b.rig.pins, pages[6], 9, NULL);
	assert_non_null(branch);
	publish(&b, 2, 2, other);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT, .ns = b.rig.ns->id, .page = page_ref(pages[5])});
	assert_int_equal(s.pages, 6);
	for (uint32_t i = 0; i < 5; i++)
		assert_true(page_readable(pages[i]));
	assert_true(page_readable(other[1]));
	assert_int_equal(b.rig.cache.pages, 7);
	/* A page that has gone names nothing. */
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT, .ns = b.rig.ns->id, .page = {5, 77}});
	assert_int_equal(s.pages, 0);
	/* Nothing is idle for an hour; everything for a moment. */
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT, .idle_ms = 3600000});
	assert_int_equal(s.pages, 0);
	(void)usleep(30000);
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT, .idle_ms = 10, .ns = b.rig.ns->id});
	assert_int_equal(s.pages, 7);
	bed_fini(&b);
}

/* A round that is cut anywhere goes on, and comes to the same. */
static void rounds_go_on_where_they_ended(void **state)
{
	struct sweep s, sum = {0};
	struct bed b;
	uint32_t parts = 0;

	(void)state;
	bed_init(&b, true, 0);
	for (uint32_t seed = 0; seed < 30; seed++)
		publish(&b, 100 + seed, 3, NULL);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	do {
		s = (struct sweep){.kind = SWEEP_EVICT,
				   .tenant = b.rig.tenant,
				   .at_ns = sum.at_ns,
				   .at_slot = sum.at_slot};
		for (uint32_t i = 0; i <= parts % 7 && cache_sweep(&b.rig.cache, &s); i++) {
			store_step(b.rig.store, 1);
			assert_int_equal(loop_step(&b.rig.loop, 1), 0);
		}
		s.stop = true;
		assert_false(cache_sweep(&b.rig.cache, &s));
		sum.at_ns = s.at_ns;
		sum.at_slot = s.at_slot;
		sum.pages += s.pages;
		assert_true(++parts < 100000);
	} while (!s.over);
	assert_int_equal(sum.pages, 90);
	assert_int_equal(b.rig.cache.pages, 0);
	/* From places that are none. */
	s = round_of(&b, (struct sweep){.kind = SWEEP_COUNT, .at_ns = UINT32_MAX, .at_slot = UINT32_MAX});
	assert_true(s.over);
	s = round_of(&b, (struct sweep){.kind = SWEEP_EVICT, .at_ns = b.rig.ns->id, .at_slot = UINT32_MAX});
	assert_true(s.over);
	s = round_of(&b, (struct sweep){.kind = SWEEP_DRAIN, .ns = 4000000});
	assert_true(s.over);
	bed_fini(&b);
}

static void damage_is_found_and_taken_out(void **state)
{
	struct page *pages[10];
	struct sweep s;
	struct bed b;

	(void)state;
	bed_init(&b, false, 0);
	publish(&b, 1, 10, pages);
	s = round_of(&b, (struct sweep){.kind = SWEEP_VERIFY});
	assert_int_equal(s.pages, 10);
	assert_int_equal(s.bytes, b.rig.cache.bytes);
	assert_int_equal(s.damaged, 0);
	b.rig.ns->arena.base[ns_page_offset(b.rig.ns, pages[4]) + 2000] ^= 8;
	s = round_of(&b, (struct sweep){.kind = SWEEP_VERIFY});
	assert_int_equal(s.pages, 10);
	assert_int_equal(s.damaged, 1);
	assert_true(pages[4]->unlisted);
	assert_int_equal(stat(&b, STAT_scrub_failures), 1);
	s = round_of(&b, (struct sweep){.kind = SWEEP_VERIFY});
	assert_int_equal(s.pages, 9);
	assert_int_equal(s.damaged, 0);
	bed_fini(&b);
}

/* ---- the store's part ---- */

struct verdicts {
	uint32_t n, good, bad;
};

static void on_record(void *ctx, int status, uint64_t bytes)
{
	struct verdicts *v = ctx;

	assert_true(bytes > 0);
	v->n++;
	v->good += !status;
	v->bad += status == -SKVQ_ECORRUPT;
}

static struct verdicts verify_all(struct store *store, const uint8_t *ns)
{
	struct verdicts v = {0};
	uint64_t place = 0;
	uint32_t out = 0;
	int r;

	do {
		r = store_verify(store, &place, ns, on_record, &v);
		out += r == 1;
		if (r != 1)
			store_step(store, 1);
	} while (r == 1 || r == -SKVQ_EBUSY || place);
	while (v.n < out)
		store_step(store, 1);
	return v;
}

static uint32_t list_all(struct store *store, const uint8_t *ns, uint32_t batch)
{
	struct store_record records[64];
	uint64_t place = 0, before;
	uint32_t n = 0;

	do {
		before = place;
		n += store_list(store, &place, ns, records, batch);
		assert_true(place > before || !place);
	} while (place);
	return n;
}

static void records_are_listed_and_verified(void **state)
{
	struct store_record records[64];
	struct tier_key key;
	struct bed b;
	struct verdicts v;
	uint64_t place = 0;

	(void)state;
	bed_init(&b, true, 0);
	v = verify_all(b.rig.store, NULL);
	assert_int_equal(v.n, 0);
	assert_int_equal(list_all(b.rig.store, NULL, 64), 0);
	publish(&b, 1, 40, NULL);
	assert_int_equal(round_of(&b, (struct sweep){.kind = SWEEP_DRAIN}).written, 40);
	for (uint32_t batch = 1; batch <= 64; batch += 21)
		assert_int_equal(list_all(b.rig.store, b.rig.ns->tier_name, batch), 40);
	assert_int_equal(list_all(b.rig.store, b.rig.ns->digest, 64), 0); /* another's name */
	v = verify_all(b.rig.store, b.rig.ns->tier_name);
	assert_int_equal(v.good, 40);
	/* Hostile places. */
	for (uint32_t i = 0; i < 64; i++) {
		uint64_t at = UINT64_MAX >> i;

		(void)store_list(b.rig.store, &at, NULL, records, 64);
	}
	/* A dropped one is not told any more. */
	assert_int_equal(store_list(b.rig.store, &place, NULL, records, 1), 1);
	key = records[0].key;
	store_tier(b.rig.store)->ops->drop(store_tier(b.rig.store), &key);
	assert_int_equal(list_all(b.rig.store, NULL, 64), 39);
	bed_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_is_pinned_stays),
	    cmocka_unit_test(pages_are_written_before_they_go),
	    cmocka_unit_test(what_the_budget_refuses_stays),
	    cmocka_unit_test(a_drain_writes_pinned_pages_too),
	    cmocka_unit_test(a_page_goes_with_what_is_behind_it),
	    cmocka_unit_test(rounds_go_on_where_they_ended),
	    cmocka_unit_test(damage_is_found_and_taken_out),
	    cmocka_unit_test(records_are_listed_and_verified),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
