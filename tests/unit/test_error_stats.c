/* SPDX-License-Identifier: Apache-2.0 */
/* Relative errors: their sums, their halves, their buckets; and what is expected of a Gaussian. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <skvq/error_stats.h>
#include <skvq/kernels.h>

#include "seeded.h"

#define DIM_MAX SKVQ_HEAD_DIM_MAX

static struct seeded rng;

static void a_sum_is_the_ratio(void **state)
{
	float x[64], y[64];
	double error = 0, energy = 0;
	struct skvq_error_sum sum = {{0}, {0}};
	uint16_t half;

	(void)state;
	for (uint32_t i = 0; i < 64; i++) {
		x[i] = seeded_gauss(&rng);
		y[i] = x[i] + .1f * seeded_gauss(&rng);
		error += pow((double)x[i] - y[i], 2);
		energy += pow(x[i], 2);
	}
	skvq_error_add(&sum, x, y, 32);
	skvq_error_add(&sum, x + 32, y + 32, 32);
	half = skvq_error_half(&sum);
	assert_true(skvq_error_valid(half));
	assert_true(fabs(skvq_error_value(half) / (error / energy) - 1) < 1. / 2048);
}

static void zero_means_not_measured(void **state)
{
	float x[16] = {0}, y[16] = {0};
	struct skvq_error_sum sum = {{0}, {0}};

	(void)state;
	assert_int_equal(skvq_error_half(&sum), 0);
	y[3] = 1; /* an error of nothing has no size */
	skvq_error_add(&sum, x, y, 16);
	assert_int_equal(skvq_error_half(&sum), 0);
	x[3] = 1;
	memset(&sum, 0, sizeof(sum));
	skvq_error_add(&sum, x, y, 16);
	assert_int_equal(skvq_error_half(&sum), 1);
	x[3] = 1e-4f;
	y[3] = 60000;
	memset(&sum, 0, sizeof(sum));
	skvq_error_add(&sum, x, y, 16);
	assert_int_equal(skvq_error_half(&sum), 0x7bff);
}

static void what_is_not_finite_counts_as_encoders_count_it(void **state)
{
	float x[4] = {NAN, INFINITY, -INFINITY, 3};

	(void)state;
	skvq_error_finite(x, 4);
	assert_true(x[0] == 0 && x[1] == 65504 && x[2] == -65504 && x[3] == 3);
}

static void only_finite_numbers_from_zero_up_are_valid(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 65536; h++)
		assert_int_equal(skvq_error_valid((uint16_t)h), h < 0x7c00);
}

static void buckets_have_their_edges(void **state)
{
	(void)state;
	assert_int_equal(skvq_error_bucket(0), 0);
	assert_int_equal(skvq_error_bucket(1), SKVQ_ERROR_BUCKETS - 1);
	assert_int_equal(skvq_error_bucket(65504), SKVQ_ERROR_BUCKETS - 1);
	for (uint32_t i = 1; i < SKVQ_ERROR_BUCKETS; i++) {
		float edge = exp2f(.75f * (float)i - 12);

		assert_int_equal(skvq_error_bucket(edge * 1.0001f), i);
		assert_int_equal(skvq_error_bucket(edge * .9999f), i - 1);
	}
}

static float gaussian_error(const struct skvq_kernels *k, const char *name, int is_v, uint32_t dim,
			    float *ret_expected)
{
	static _Alignas(64) uint8_t codes[80 * DIM_MAX * 2], refine[80 * DIM_MAX];
	uint8_t params[16 * 80];
	float in[16 * DIM_MAX], rows[16 * DIM_MAX];
	struct skvq_error_sum sum = {{0}, {0}};
	struct skvq_profile p;
	struct skvq_codec c;

	assert_int_equal(skvq_profile_parse(name, &p), 0);
	assert_int_equal(skvq_codec_init(&p, is_v, is_v ? p.v_bits : p.k_bits, dim, &c), 0);
	for (int round = 0; round < 20; round++) {
		memset(codes, 0, sizeof(codes));
		for (uint32_t i = 0; i < 16 * dim; i++)
			rows[i] = in[i] = seeded_gauss(&rng);
		for (uint32_t t = 0; t < 16; t++)
			k->to_stored(&c, NULL, in + (size_t)t * dim);
		k->encode_tile(&c, NULL, rows, 0, codes, params, c.nested ? refine : NULL);
		k->decode_tile(&c, codes, params, NULL, 0, rows);
		skvq_error_add(&sum, in, rows, (size_t)16 * dim);
	}
	*ret_expected = skvq_error_gaussian(&c);
	return skvq_error_value(skvq_error_half(&sum));
}

static void a_gaussian_errs_as_expected(void **state)
{
	static const char *const names[] = {"k8v8", "k4v4", "k3v3", "k2v2", "k1.5v1.5", "e2.1"};
	static const uint32_t dims[] = {64, 80, 128, 256};
	struct skvq_kernels k;

	(void)state;
	skvq_kernels_fill(&k, SKVQ_TIER_REF);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
			for (int is_v = 0; is_v < 2; is_v++) {
				float want,
				    have = gaussian_error(&k, names[i], is_v, dims[d], &want);

				if (!(have < 1.02f * want && have > (i ? .75f : .3f) * want))
					fail_msg("%s %s of %u channels: %g, expected %g", names[i],
						 is_v ? "V" : "K", dims[d], (double)have,
						 (double)want);
			}
		}
	}
}

static void nothing_is_expected_without_rotation(void **state)
{
	static const char *const names[] = {"plain-k2v2", "affine-k2v2-g32", "skvq-k2v2-g64",
					    "fp16"};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct skvq_profile p;
		struct skvq_codec c;

		assert_int_equal(skvq_profile_parse(names[i], &p), 0);
		assert_int_equal(skvq_codec_init(&p, 0, p.k_bits, 64, &c), 0);
		assert_true(skvq_error_gaussian(&c) == 0);
	}
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Whatever the order, and however many are equal. */
static void the_middle_is_the_median(void **state)
{
	static const uint32_t dims[] = {16, 64, 80, 256};

	(void)state;
	for (uint32_t round = 0; round < 400; round++) {
		uint32_t dim = dims[round % 4], n = 1 + seeded_below(&rng, 16);
		float x[16 * DIM_MAX], y[16 * DIM_MAX];
		double energy[DIM_MAX] = {0}, error = 0, want, have;
		struct skvq_error_sum sum = {{0}, {0}};

		for (uint32_t i = 0; i < n * dim; i++) {
			switch (round / 4 % 5) {
			case 0:
				x[i] = seeded_gauss(&rng);
				break;
			case 1:
				x[i] = (float)seeded_below(&rng, 3);
				break;
			case 2:
				x[i] = (float)(i % dim);
				break;
			case 3:
				x[i] = (float)(dim - i % dim);
				break;
			default:
				x[i] = 1;
			}
			y[i] = x[i] + .5f;
			energy[i % dim] += (double)x[i] * x[i];
			error += .25;
		}
		qsort(energy, dim, sizeof(energy[0]), by_size);
		skvq_error_add(&sum, x, y, (size_t)n * dim);
		have = skvq_error_of_middle(&sum, x, n, dim);
		want = energy[dim / 2] > 0 ? error / dim / energy[dim / 2] : 0;
		if (!(fabs(have - want) <= 1e-6 * want))
			fail_msg("round %u: %g, should be %g", round, have, want);
	}
}

/* How drowned random keys are in a profile's codes if each so-many-th channel is larger. */
static float times_of(const struct skvq_kernels *k, const char *name, uint32_t dim, uint32_t each,
		      float larger, float all)
{
	static _Alignas(64) uint8_t codes[80 * DIM_MAX * 2];
	uint8_t params[16 * 80];
	float x[16 * DIM_MAX], in[16 * DIM_MAX], rows[16 * DIM_MAX];
	struct skvq_profile p;
	struct skvq_codec c;
	double sum = 0;

	assert_int_equal(skvq_profile_parse(name, &p), 0);
	assert_int_equal(skvq_codec_init(&p, 0, p.k_bits, dim, &c), 0);
	for (int round = 0; round < 20; round++) {
		struct skvq_error_sum head = {{0}, {0}};

		memset(codes, 0, sizeof(codes));
		for (uint32_t i = 0; i < 16 * dim; i++)
			x[i] = all * seeded_gauss(&rng) * (each && i % each == 3 ? larger : 1);
		memcpy(in, x, sizeof(in));
		memcpy(rows, x, sizeof(rows));
		for (uint32_t t = 0; t < 16; t++)
			k->to_stored(&c, NULL, in + (size_t)t * dim);
		k->encode_tile(&c, NULL, rows, 0, codes, params, NULL);
		k->decode_tile(&c, codes, params, NULL, 0, rows);
		skvq_error_add(&head, in, rows, (size_t)16 * dim);
		sum += skvq_error_of_middle(&head, x, 16, dim);
	}
	return skvq_error_times(&c, sum / 20);
}

static void large_channels_drown_the_rest(void **state)
{
	static const char *const names[] = {"k4v2", "k3v2", "k2v2", "k1.5v1.5", "k2v2-g64"};
	static const uint32_t dims[] = {64, 80, 128};
	struct skvq_kernels k;

	(void)state;
	skvq_kernels_fill(&k, SKVQ_TIER_REF);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
			uint32_t dim = dims[d];
			float none = times_of(&k, names[i], dim, 0, 1, 1);
			float small = times_of(&k, names[i], dim, 0, 1, .01f);
			float four = times_of(&k, names[i], dim, dim / 4, 32, 1);

			if (!(none > .5f && none < 1.3f && small > .5f && small < 1.3f &&
			      four > SKVQ_ERROR_DROWNED))
				fail_msg("%s, %u channels: %g, %g small, %g with four large",
					 names[i], dim, (double)none, (double)small, (double)four);
		}
	}
	assert_true(times_of(&k, "k8v8", 64, 32, 64, 1) == 0);
	assert_true(times_of(&k, "plain-k4v4", 64, 0, 1, 1) < 2);
	assert_true(times_of(&k, "plain-k4v4", 64, 32, 32, 1) > SKVQ_ERROR_DROWNED);
	/* Nothing has no middle. */
	assert_true(times_of(&k, "k2v2", 64, 0, 1, 0) == 0);
}

static int setup(void **state)
{
	(void)state;
	rng = seeded_init();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_sum_is_the_ratio),
	    cmocka_unit_test(zero_means_not_measured),
	    cmocka_unit_test(what_is_not_finite_counts_as_encoders_count_it),
	    cmocka_unit_test(only_finite_numbers_from_zero_up_are_valid),
	    cmocka_unit_test(buckets_have_their_edges),
	    cmocka_unit_test(a_gaussian_errs_as_expected),
	    cmocka_unit_test(nothing_is_expected_without_rotation),
	    cmocka_unit_test(the_middle_is_the_median),
	    cmocka_unit_test(large_channels_drown_the_rest),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
