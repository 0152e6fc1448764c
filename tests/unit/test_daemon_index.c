/* SPDX-License-Identifier: Apache-2.0 */
/* cache/index: I4, a match is proved by comparing; cache/pins: counts and bounds. */
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/error.h>

#include "cache/index.h"
#include "cache/pins.h"

#define SLOTS 64u

static uint32_t always_seven(const uint64_t keys[INDEX_WORDS + 1],
			     const uint32_t words[INDEX_WORDS])
{
	(void)keys;
	(void)words;
	return 7;
}

static int32_t stored[SLOTS][SKVQ_PAGE_TOKENS];

static struct page *add(struct index *index, struct page_table *table, struct page *parent,
			int32_t token)
{
	struct page *page = page_table_take(table, PAGE_FILLING);

	assert_non_null(page);
	page->parent = parent ? parent->slot : PAGE_NONE;
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		stored[page->slot][i] = token;
	page->tokens = stored[page->slot];
	index_insert(index, page);
	return page;
}

/* With the hash given: every page is found under its own parent and tokens only. */
static void finds_only_what_is_equal(index_hash_fn hash, uint64_t *collisions)
{
	struct page_table table;
	struct index index;
	struct page *first[4], *child[4];
	int32_t tokens[SKVQ_PAGE_TOKENS];

	assert_int_equal(page_table_init(&table, SLOTS), 0);
	assert_int_equal(index_init(&index, SLOTS, hash, collisions), 0);
	for (int i = 0; i < 4; i++)
		first[i] = add(&index, &table, NULL, i);
	for (int i = 0; i < 4; i++)
		child[i] = add(&index, &table, first[i], 100); /* equal tokens, other parents */
	for (int i = 0; i < 4; i++) {
		assert_ptr_equal(index_find(&index, &table, NULL, first[i]->tokens), first[i]);
		assert_ptr_equal(index_find(&index, &table, first[i], child[i]->tokens), child[i]);
		assert_null(index_find(&index, &table, child[i], child[i]->tokens));
		assert_null(index_find(&index, &table, NULL, child[i]->tokens));
	}
	/* One token differs, in each place. */
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++) {
		memcpy(tokens, first[0]->tokens, sizeof(tokens));
		tokens[i] ^= INT32_MIN;
		assert_null(index_find(&index, &table, NULL, tokens));
	}
	/* Out of the middle, the front and the end of a chain. */
	for (int i = 2; i >= 0; i--) {
		index_remove(&index, child[i]);
		assert_null(index_find(&index, &table, first[i], child[i]->tokens));
		assert_ptr_equal(index_find(&index, &table, first[3], child[3]->tokens), child[3]);
	}
	index_remove(&index, first[0]);
	assert_null(index_find(&index, &table, NULL, first[0]->tokens));
	assert_ptr_equal(index_find(&index, &table, NULL, first[1]->tokens), first[1]);
	index_fini(&index);
	page_table_fini(&table);
}

static void real_hash(void **state)
{
	uint64_t collisions = 0;

	(void)state;
	finds_only_what_is_equal(NULL, &collisions);
	assert_int_equal(collisions, 0);
}

static void forced_collisions(void **state)
{
	uint64_t collisions = 0;

	(void)state;
	finds_only_what_is_equal(always_seven, &collisions);
	assert_true(collisions > 100);
}

static void hash_depends_on_every_word(void **state)
{
	struct seeded rng = seeded_init();
	uint64_t keys[INDEX_WORDS + 1];
	uint32_t words[INDEX_WORDS] = {0}, h;

	(void)state;
	for (uint32_t i = 0; i <= INDEX_WORDS; i++)
		keys[i] = seeded_u64(&rng);
	h = index_hash(keys, words);
	for (uint32_t i = 0; i < INDEX_WORDS; i++) {
		words[i] = 1;
		assert_int_not_equal(index_hash(keys, words), h);
		words[i] = 0;
	}
}

/* ---- pins ---- */

static void pins_count_and_bound(void **state)
{
	struct page pages[3] = {{.bytes = 10}, {.bytes = 100}, {.bytes = 1000}};
	struct pins pins;
	struct why why;

	(void)state;
	pins_init(&pins, 4);
	assert_int_equal(pins_count(&pins, &pages[0]), 0);
	assert_int_equal(pins_reserve(&pins, 5, &why), -SKVQ_EPINS);
	assert_int_equal(pins_reserve(&pins, 4, &why), 0);
	assert_int_equal(pins_reserve(&pins, 1, &why), -SKVQ_EPINS);
	pins_add(&pins, &pages[0], true);
	pins_add(&pins, &pages[0], false);
	pins_add(&pins, &pages[1], true);
	assert_int_equal(pins.total, 3);
	assert_int_equal(pins.pages, 2);
	assert_int_equal(pins_bytes(&pins), 110);
	assert_int_equal(pins_left(&pins), 0); /* one is still promised */
	pins_unreserve(&pins, 1);
	assert_int_equal(pins_left(&pins), 1);
	assert_int_equal(pins_count(&pins, &pages[0]), 2);
	assert_int_equal(pins_count(&pins, &pages[2]), 0);
	/* The plain one of two goes first; the refined one can become plain. */
	assert_int_equal(pins_take(&pins, &pages[0], 1), 0);
	assert_true(pins_unrefine(&pins, &pages[0]));
	assert_false(pins_unrefine(&pins, &pages[0]));
	assert_false(pins_unrefine(&pins, &pages[2]));
	assert_int_equal(pins_take(&pins, &pages[0], 1), 0);
	assert_int_equal(pins_count(&pins, &pages[0]), 0);
	assert_int_equal(pins_take(&pins, &pages[1], 1), 1);
	assert_int_equal(pins_bytes(&pins), 0);
	pins_fini(&pins);
}

#define N 300

/* Against an array, so that taking out never loses a neighbour in the probe chain. */
static void pins_against_a_model(void **state)
{
	struct seeded rng = seeded_init();
	struct page *pages = calloc(N, sizeof(*pages));
	uint32_t model[N] = {0}, total = 0, cursor = 0, count;
	struct page *page;
	struct pins pins;
	struct why why;

	(void)state;
	pins_init(&pins, 1000000);
	for (int step = 0; step < 50000; step++) {
		uint32_t i = seeded_below(&rng, N), look = seeded_below(&rng, N);

		if (seeded_below(&rng, 2) && model[i]) {
			uint32_t n = 1 + seeded_below(&rng, model[i]);

			pins_take(&pins, &pages[i], n);
			model[i] -= n;
			total -= n;
		} else {
			assert_int_equal(pins_reserve(&pins, 1, &why), 0);
			pins_add(&pins, &pages[i], false);
			model[i]++;
			total++;
		}
		assert_int_equal(pins_count(&pins, &pages[look]), model[look]);
		assert_int_equal(pins.total, total);
	}
	while ((page = pins_any(&pins, &cursor, &count))) {
		assert_int_equal(count, model[page - pages]);
		model[page - pages] = 0;
		pins_take(&pins, page, count);
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(model[i], 0);
	pins_fini(&pins);
	free(pages);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(real_hash),
	    cmocka_unit_test(forced_collisions),
	    cmocka_unit_test(hash_depends_on_every_word),
	    cmocka_unit_test(pins_count_and_bound),
	    cmocka_unit_test(pins_against_a_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
