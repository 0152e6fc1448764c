/* SPDX-License-Identifier: Apache-2.0 */
/* spill/format: what is read back is what was written, where and when it was written, or nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "seeded.h"
#include "support/spill_rig.h"

#include "base/crc32c.h"
#include "spill/admit.h"
#include "spill/format.h"
#include "spill/segment.h"

#define SEGMENT_BYTES (1u << 20)

static const struct spill_life life = {.number = 7, .random = "fifteen letters"};

struct blocks {
	_Alignas(SPILL_BLOCK) uint8_t at[16 * SPILL_BLOCK];
};

static struct spill_entry write_record(struct blocks *b, uint64_t id, uint32_t block)
{
	uint8_t buf[RIG_PAGE_BYTES];
	struct spill_entry entry;
	struct tier_page page;

	rig_page(id, buf, &page);
	spill_record_write(b->at, &page, &life, block, &entry);
	assert_int_equal(entry.record_blocks, spill_record_blocks(&page));
	return entry;
}

static void records_come_back_whole(void **state)
{
	struct blocks *b = aligned_alloc(SPILL_BLOCK, sizeof(*b));

	(void)state;
	for (uint64_t id = 0; id < 50; id++) {
		struct spill_entry entry = write_record(b, id, 3), again;
		struct tier_page page;

		assert_true(spill_record_read(b->at, &life, &entry, &page));
		assert_int_equal(rig_wrong(id, &page), 0);
		assert_true(spill_record_head(b->at, &life, 3, 16, &again));
		assert_memory_equal(&entry, &again, sizeof(entry));
		assert_false(spill_record_head(b->at, &life, 3, entry.record_blocks - 1, &again));
		spill_record_move(b->at, &life, 9, &again);
		assert_false(spill_record_read(b->at, &life, &entry, &page));
		assert_true(spill_record_read(b->at, &life, &again, &page));
		assert_int_equal(rig_wrong(id, &page), 0);
	}
	free(b);
}

static void a_record_counts_only_in_its_place_and_life(void **state)
{
	struct blocks *b = aligned_alloc(SPILL_BLOCK, sizeof(*b));
	struct spill_life other = life, older = life;
	struct spill_entry entry = write_record(b, 1, 5), got;

	(void)state;
	other.random[3] ^= 1;
	older.number--;
	assert_true(spill_record_head(b->at, &life, 5, 16, &got));
	assert_false(spill_record_head(b->at, &life, 6, 16, &got));
	assert_false(spill_record_head(b->at, &other, 5, 16, &got));
	assert_false(spill_record_head(b->at, &older, 5, 16, &got));
	entry.key.page[0] ^= 1;
	assert_false(spill_record_read(b->at, &life, &entry, &(struct tier_page){.flags = 0}));
	free(b);
}

static void no_flipped_bit_of_a_record_gets_through(void **state)
{
	struct blocks *b = aligned_alloc(SPILL_BLOCK, sizeof(*b));
	struct spill_entry entry = write_record(b, 4, 5);
	uint32_t given = 0, bytes = entry.record_blocks * SPILL_BLOCK;

	(void)state;
	for (uint32_t bit = 0; bit < bytes * 8; bit += bit < 300 * 8 ? 1 : 37) {
		struct tier_page page;

		b->at[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (spill_record_read(b->at, &life, &entry, &page)) {
			assert_int_equal(rig_wrong(4, &page), 0); /* in padding */
			assert_true(bit >= sizeof(struct spill_record) * 8);
			given++;
		}
		b->at[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_true(given > 0 && given < bytes * 8 / 37);
	free(b);
}

static void sizes_that_make_no_record_are_refused(void **state)
{
	struct tier_page page = {.flags = 0};

	(void)state;
	assert_int_equal(spill_record_blocks(&page), 0);
	page.section[TIER_SIDECAR].bytes = 1;
	assert_int_equal(spill_record_blocks(&page), 0);
	page.section[TIER_BASE].bytes = 1;
	assert_int_equal(spill_record_blocks(&page), 3);
	page.section[TIER_BASE].bytes = UINT32_MAX;
	assert_int_equal(spill_record_blocks(&page), 0);
}

/* With a checksum that holds, as from one who can write into the folder. */
static void lengths_of_packed_sections_are_checked(void **state)
{
	struct blocks *b = aligned_alloc(SPILL_BLOCK, sizeof(*b));
	struct spill_entry entry = write_record(b, 4, 5), got;
	struct spill_record good, r;
	static const struct {
		uint32_t version, packed, blocks;
		bool holds;
	} cases[] = {
	    {1, 0, 0, true},   {2, 0, 0, false},   {1, 100, 0, false},        {3, 100, 0, false},
	    {2, 100, 0, true}, {2, 100, 1, false}, {2, UINT32_MAX, 0, false}, {0, 0, 0, false},
	};

	(void)state;
	assert_false(spill_record_packed(b->at));
	memcpy(&good, b->at, sizeof(good));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint32_t stored[TIER_SECTIONS];

		r = good;
		r.version = cases[i].version;
		r.packed_bytes[TIER_BASE] = cases[i].packed;
		for (int k = 0; k < TIER_SECTIONS; k++)
			stored[k] = spill_stored_bytes(&r, k);
		r.record_blocks = spill_blocks_of(stored) + cases[i].blocks;
		r.crc = crc32c(&r, sizeof(r) - sizeof(r.crc));
		memcpy(b->at, &r, sizeof(r));
		assert_int_equal(spill_record_head(b->at, &life, 5, 16, &got), cases[i].holds);
	}
	/* As long as it was, or longer, is not compressed. */
	r = good;
	r.version = SPILL_PACKED;
	r.packed_bytes[TIER_BASE] = r.section_bytes[TIER_BASE];
	r.crc = crc32c(&r, sizeof(r) - sizeof(r.crc));
	memcpy(b->at, &r, sizeof(r));
	assert_false(spill_record_head(b->at, &life, 5, 16, &got));
	assert_false(spill_record_read(b->at, &life, &entry, &(struct tier_page){.flags = 0}));
	free(b);
}

static void heads_tables_and_feet(void **state)
{
	struct blocks *b = aligned_alloc(SPILL_BLOCK, sizeof(*b));
	struct spill_entry entries[SPILL_TABLE_ENTRIES + 5];
	struct spill_table *table = malloc(sizeof(*table));
	struct spill_foot foot;
	struct spill_life got;

	(void)state;
	memset(entries, 0, sizeof(entries));
	for (uint32_t i = 0; i < SPILL_TABLE_ENTRIES + 5; i++) {
		entries[i].block = 1 + i / 2;
		entries[i].record_blocks = 2;
	}
	spill_head_write(b->at, &life, SEGMENT_BYTES, 1);
	assert_true(spill_head_read(b->at, 7, SEGMENT_BYTES, &got));
	assert_memory_equal(&got, &life, sizeof(life));
	assert_false(spill_head_read(b->at, 8, SEGMENT_BYTES, &got));
	assert_false(spill_head_read(b->at, 7, SEGMENT_BYTES * 2, &got));

	spill_foot_write(b->at, &life, SEGMENT_BYTES / SPILL_BLOCK - 3, SPILL_TABLE_ENTRIES + 5);
	assert_false(spill_foot_read(b->at, 8, SEGMENT_BYTES, &foot));
	assert_false(spill_foot_read(b->at, 7, SEGMENT_BYTES * 2, &foot));
	assert_true(spill_foot_read(b->at, 7, SEGMENT_BYTES, &foot));
	assert_int_equal(foot.table_blocks, 2);

	spill_table_write(b->at, &life, 1, entries + SPILL_TABLE_ENTRIES, 5);
	assert_true(spill_table_read(b->at, &foot, 1, table));
	assert_int_equal(table->n, 5);
	assert_memory_equal(table->entry, entries + SPILL_TABLE_ENTRIES, 5 * sizeof(entries[0]));
	assert_false(spill_table_read(b->at, &foot, 0, table));
	entries[0].block = foot.table_block; /* a table that points into itself */
	spill_table_write(b->at, &life, 0, entries, SPILL_TABLE_ENTRIES);
	assert_false(spill_table_read(b->at, &foot, 0, table));
	free(table);
	free(b);
}

static void the_index_finds_the_newest_and_survives_any_order(void **state)
{
	struct seeded rng = seeded_init();
	struct segments s;
	struct segment_ref ref, live[200];

	(void)state;
	assert_int_equal(segments_init(&s, 3, seeded_u64(&rng)), 0);
	for (uint32_t i = 0; i < 3; i++)
		s.at[i] = (struct segment){.state = SEG_CLOSED, .blocks = 1000, .tail = 1};
	memset(live, 0xff, sizeof(live));
	for (uint32_t step = 0; step < 20000; step++) {
		uint64_t id = seeded_below(&rng, 200);
		struct spill_entry entry = {.block = 1, .record_blocks = 2};
		bool there;

		rig_key(id, &entry.key);
		there = segments_find(&s, &entry.key, &ref);
		assert_int_equal(there, live[id].seg != SEG_NO);
		if (there)
			assert_memory_equal(&ref, &live[id], sizeof(ref));
		if (there && seeded_below(&rng, 2)) {
			segments_hide(&s, ref);
			live[id].seg = SEG_NO;
			continue;
		}
		ref.seg = seeded_below(&rng, 3);
		assert_int_equal(segment_add(&s.at[ref.seg], &entry, MARK_WRITING, &ref.entry), 0);
		assert_int_equal(segments_show(&s, ref), 0);
		if (live[id].seg != SEG_NO) {
			assert_int_equal(s.at[live[id].seg].mark[live[id].entry], MARK_DEAD);
			segments_hide(&s, live[id]); /* of an older one: the newer stays */
		}
		live[id] = ref;
	}
	segments_fini(&s);
}

static void touches_and_budget(void **state)
{
	struct seeded rng = seeded_init();
	struct touches t;
	struct budget b;
	uint64_t now = 5000, taken = 0, second = 0;

	(void)state;
	assert_int_equal(touches_init(&t, 4096), 0);
	for (int i = 0; i < 1000; i++) {
		uint64_t hash = seeded_u64(&rng);

		assert_false(touches_again(&t, hash));
		second += touches_again(&t, hash);
	}
	assert_int_equal(second, 1000);
	touches_fini(&t);

	/* Empty at first; over any day no more than the budget. */
	budget_init(&b, 86400000, 1000, now);
	assert_false(budget_has(&b, 1000, now));
	for (uint64_t end = now + 86400000; now < end; now += 1 + seeded_below(&rng, 100000)) {
		while (budget_has(&b, 1000, now)) {
			budget_take(&b, 1000);
			taken += 1000;
		}
	}
	assert_true(taken <= 86400000 && taken > 80000000);
	budget_init(&b, 0, 1000, now);
	assert_true(budget_has(&b, UINT64_MAX, now));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(records_come_back_whole),
	    cmocka_unit_test(a_record_counts_only_in_its_place_and_life),
	    cmocka_unit_test(no_flipped_bit_of_a_record_gets_through),
	    cmocka_unit_test(sizes_that_make_no_record_are_refused),
	    cmocka_unit_test(lengths_of_packed_sections_are_checked),
	    cmocka_unit_test(heads_tables_and_feet),
	    cmocka_unit_test(the_index_finds_the_newest_and_survives_any_order),
	    cmocka_unit_test(touches_and_budget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
