/* SPDX-License-Identifier: Apache-2.0 */
/* RoPE off a key and on again. */
#include "cmocka_all.h"

#include <math.h>
#include <string.h>

#include <skvq/error.h>
#include <skvq/rope.h>

#include "seeded.h"

enum { DIM = 64 };

static struct skvq_rope rope(const char *scaling)
{
	struct skvq_rope r = {0};

	assert_int_equal(skvq_rope_init(DIM, 10000, scaling, &r), 0);
	return r;
}

/* The angle by which the pair i is turned at position 1. */
static double angle_of(const struct skvq_rope *r, int slides, uint32_t i)
{
	float x[DIM] = {0};

	x[i] = 1;
	skvq_rope_turn(r, slides, 1, 1, x);
	for (uint32_t j = 0; j < DIM; j++)
		assert_true(x[j] == 0 || j % (DIM / 2) == i);
	return atan2((double)x[i + DIM / 2], (double)x[i]);
}

static void angles_follow_the_words(void **state)
{
	struct skvq_rope plain = rope(NULL), linear = rope("linear:4:0"), swa = rope("swa:100"),
			 both = rope("linear:2+swa:1000");

	(void)state;
	assert_int_equal(plain.pairs, DIM / 2);
	for (uint32_t i = 0; i < DIM / 2; i++) {
		double own = pow(10000, -2.0 * i / DIM);

		assert_true(fabs(angle_of(&plain, 0, i) - own) < 1e-6);
		assert_true(fabs(angle_of(&plain, 1, i) - own) < 1e-6);
		assert_true(fabs(angle_of(&linear, 0, i) - own / 4) < 1e-6);
		assert_true(fabs(angle_of(&swa, 0, i) - own) < 1e-6);
		assert_true(fabs(angle_of(&swa, 1, i) - pow(100, -2.0 * i / DIM)) < 1e-6);
		assert_true(fabs(angle_of(&both, 0, i) - own / 2) < 1e-6);
		assert_true(fabs(angle_of(&both, 1, i) - pow(1000, -2.0 * i / DIM)) < 1e-6);
	}
}

static void back_is_where_it_was(void **state)
{
	struct skvq_rope r = rope("");
	struct seeded s = seeded_init();

	(void)state;
	for (int test = 0; test < 100; test++) {
		uint32_t position = seeded_below(&s, 1u << 17);
		float x[DIM], y[DIM];

		for (uint32_t i = 0; i < DIM; i++)
			x[i] = y[i] = seeded_gauss(&s);
		skvq_rope_turn(&r, 0, position, 1, y);
		skvq_rope_turn(&r, 0, position, -1, y);
		for (uint32_t i = 0; i < DIM; i++)
			assert_true(fabsf(x[i] - y[i]) < 1e-5f);
	}
}

static void other_words_are_refused(void **state)
{
	static const char *const words[] = {
	    "yarn:4:4096", "linear",    "linear:",        "linear:-1",         "linear:nan",
	    "linear:inf",  "linear:4x", "swa:0",          "linear:4+yarn:2:1", "rope_freqs",
	    "linear:2 ",   "+",         "linear:2++swa:9"};
	struct skvq_rope r, was;

	(void)state;
	memset(&r, 77, sizeof(r));
	was = r;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		assert_int_equal(skvq_rope_init(DIM, 10000, words[i], &r), -SKVQ_ENOTSUP);
		assert_memory_equal(&r, &was, sizeof(r));
	}
	assert_int_equal(skvq_rope_init(0, 0, NULL, &r), 0);
	assert_int_equal(r.pairs, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(angles_follow_the_words),
	    cmocka_unit_test(back_is_where_it_was),
	    cmocka_unit_test(other_words_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
