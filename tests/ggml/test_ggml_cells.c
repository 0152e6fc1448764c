/* SPDX-License-Identifier: Apache-2.0 */
/* What the ggml backend reads in masks, cell numbers and cells. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cells.h"

enum { KV = 40, ROWS = 3, FIRST = 21, HIDDEN = 0xfc00 };

static uint16_t mask[ROWS][KV];

static void causal_mask(void)
{
	for (int r = 0; r < ROWS; r++)
		for (int i = 0; i < KV; i++)
			mask[r][i] = i <= FIRST + r ? 0 : HIDDEN;
}

static bool causal(uint32_t n_kv, uint32_t first, uint32_t n_rows)
{
	return cells_causal(mask, sizeof mask[0], n_kv, first, n_rows);
}

static void a_causal_mask_is_one_in_every_entry(void **state)
{
	static const uint16_t other[] = {0, HIDDEN, 0x8000, 0x3c00, 0x7e00, 0xfbff, 0x7c00};

	(void)state;
	causal_mask();
	assert_true(causal(KV, FIRST, ROWS));
	assert_true(causal(FIRST + ROWS, FIRST, ROWS));
	for (int r = 0; r < ROWS; r++)
		for (int i = 0; i < KV; i++)
			for (unsigned o = 0; o < sizeof other / sizeof *other; o++) {
				uint16_t right = mask[r][i];
				mask[r][i] = other[o];
				assert_int_equal(causal(KV, FIRST, ROWS), other[o] == right);
				mask[r][i] = right;
			}
	assert_false(causal(KV, FIRST - 1, ROWS));
	assert_false(causal(KV, FIRST + 1, ROWS));
}

static void a_mask_too_small_for_its_rows_is_none(void **state)
{
	(void)state;
	causal_mask();
	assert_false(causal(FIRST + ROWS - 1, FIRST, ROWS));
	assert_false(causal(KV, KV, 1));
	assert_false(causal(KV, UINT32_MAX, 1));
	assert_false(causal(1, 0, 2));
}

static void cells_follow_one_another_inside_the_cache(void **state)
{
	static const struct {
		int64_t cells[4];
		int64_t n;
		bool follow;
		uint32_t first, lowest;
	} of[] = {
	    {{5, 6, 7, 8}, 4, true, 5, 5},     {{6}, 1, true, 6, 6},
	    {{99}, 1, true, 99, 99},           {{100}, 1, false, 0, 0},
	    {{98, 99, 100}, 3, false, 0, 0},   {{-1}, 1, false, 0, 0},
	    {{5, 7}, 2, false, 0, 5},          {{6, 5}, 2, false, 0, 5},
	    {{5, 5}, 2, false, 0, 5},          {{5}, 0, false, 0, 0},
	    {{INT64_MAX}, 1, false, 0, 0},     {{INT64_MIN, 3}, 2, false, 0, 0},
	    {{0, 1, 2, 3}, 4, true, 0, 0},     {{50, -7}, 2, false, 0, 0},
	    {{(INT64_C(1) << 32) + 5}, 1, false, 0, 0},
	};

	(void)state;
	for (unsigned i = 0; i < sizeof of / sizeof *of; i++) {
		uint32_t first = 0;
		assert_int_equal(cells_follow(of[i].cells, of[i].n, 100, &first), of[i].follow);
		assert_int_equal(first, of[i].first);
		assert_int_equal(cells_lowest(of[i].cells, of[i].n, 100), of[i].lowest);
	}
}

static void every_bit_of_a_cell_is_in_its_digest(void **state)
{
	enum { BYTES = 96 };
	unsigned char row[BYTES];
	uint64_t of[BYTES * 8];

	(void)state;
	for (int i = 0; i < BYTES; i++)
		row[i] = (unsigned char)(i * 37 + 11);
	uint64_t whole = cells_digest(row, BYTES);
	for (int i = 0; i < BYTES * 8; i++) {
		row[i / 8] ^= (unsigned char)(1 << i % 8);
		of[i] = cells_digest(row, BYTES);
		assert_true(of[i] != whole);
		for (int j = 0; j < i; j++)
			assert_true(of[i] != of[j]);
		/* Two at once, as when RoPE turns the sign of a pair. */
		for (int j = 0; j < BYTES * 8; j += 16) {
			row[j / 8 + 1] ^= 0x80;
			assert_true(cells_digest(row, BYTES) != whole || (i == j + 15));
			row[j / 8 + 1] ^= 0x80;
		}
		row[i / 8] ^= (unsigned char)(1 << i % 8);
	}
	assert_true(cells_digest(row, BYTES) == whole);
	assert_true(cells_digest(row, 32) != cells_digest(row, 64));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_causal_mask_is_one_in_every_entry),
	    cmocka_unit_test(a_mask_too_small_for_its_rows_is_none),
	    cmocka_unit_test(cells_follow_one_another_inside_the_cache),
	    cmocka_unit_test(every_bit_of_a_cell_is_in_its_digest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
