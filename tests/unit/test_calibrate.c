/* SPDX-License-Identifier: Apache-2.0 */
/* The mathematics of calibration on covariances that are known. */
#include "cmocka_all.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/calibrate.h>
#include <skvq/error.h>

#include "seeded.h"

static double *matrix(uint32_t dim)
{
	double *m = calloc((size_t)dim * dim, sizeof(*m));

	assert_non_null(m);
	return m;
}

/* A covariance with some strong channels and some correlation. */
static double *covariance(struct seeded *s, uint32_t dim, double outlier)
{
	double *mix = matrix(dim), *c = matrix(dim);

	for (uint32_t i = 0; i < dim; i++)
		for (uint32_t j = 0; j < dim; j++)
			mix[i * dim + j] = (double)seeded_gauss(s) * (i % 16 == 3 ? outlier : 1) *
					   exp(-0.05 * j);
	for (uint32_t i = 0; i < dim; i++)
		for (uint32_t j = 0; j < dim; j++)
			for (uint32_t k = 0; k < dim; k++)
				c[i * dim + j] += mix[i * dim + k] * mix[j * dim + k];
	free(mix);
	return c;
}

/* a^T c a, or with back's transpose for queries: back c back^T */
static double *moved(const double *c, const float *m, uint32_t dim, int query)
{
	double *half = matrix(dim), *ret = matrix(dim);

#define M(r, i) ((double)(query ? m[(i) * dim + (r)] : m[(r) * dim + (i)]))
	for (uint32_t r = 0; r < dim; r++)
		for (uint32_t i = 0; i < dim; i++)
			for (uint32_t k = 0; k < dim; k++)
				half[r * dim + i] += c[r * dim + k] * M(k, i);
	for (uint32_t i = 0; i < dim; i++)
		for (uint32_t j = 0; j < dim; j++)
			for (uint32_t k = 0; k < dim; k++)
				ret[i * dim + j] += M(k, i) * half[k * dim + j];
#undef M
	free(half);
	return ret;
}

static double largest(const double *m, size_t n)
{
	double max = 0;

	for (size_t i = 0; i < n; i++)
		max = fmax(max, fabs(m[i]));
	return max;
}

static const uint32_t dims[] = {16, 64, 80, 96, 128, 256};

static void matrices_balance(void **state)
{
	struct seeded s = seeded_init();
	char why[160] = "";

	(void)state;
	for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
		uint32_t dim = dims[d];
		size_t n = (size_t)dim * dim;
		double *c = covariance(&s, dim, 16), *g = covariance(&s, dim, 1.0 / 16);
		float *into = calloc(n, sizeof(*into)), *back = calloc(n, sizeof(*back));

		assert_int_equal(
		    skvq_calibrate_balance(c, g, dim, into, back, why, sizeof(why)), 0);
		for (uint32_t i = 0; i < dim; i++) /* A B = I */
			for (uint32_t j = 0; j < dim; j++) {
				double sum = 0;

				for (uint32_t k = 0; k < dim; k++)
					sum += (double)into[i * dim + k] * (double)back[k * dim + j];
				assert_true(fabs(sum - (i == j)) < 1e-3);
			}
		/* What is stored and what asks for it have the same covariance, up to a factor and
		 * the ridge; the diagonal is flat within a block, and 64 on average. */
		double *k = moved(c, into, dim, 0), *q = moved(g, back, dim, 1), mean_k = 0,
		       mean_q = 0;
		for (uint32_t i = 0; i < dim; i++) {
			mean_k += k[i * dim + i] / dim;
			mean_q += q[i * dim + i] / dim;
		}
		assert_true(fabs(mean_k - 64) < 1);
		double top = largest(k, n);
		for (size_t i = 0; i < n; i++)
			assert_true(fabs(k[i] - q[i] * mean_k / mean_q) < 0.02 * top);
		for (uint32_t i = 0; i < dim; i++)
			assert_true(fabs(k[i * dim + i] - mean_k) < 0.5 * mean_k);
		free(k);
		free(q);
		free(c);
		free(g);
		free(into);
		free(back);
	}
}

/* A key channel that is 16 times larger, and its query channel 16 times smaller, is the same
 * function: nothing that is stored may change. */
static void outlier_channels_change_nothing(void **state)
{
	enum { DIM = 64 };
	struct seeded s = seeded_init();
	double *c = covariance(&s, DIM, 1), *g = covariance(&s, DIM, 1);
	static float a[DIM * DIM], b[DIM * DIM], a2[DIM * DIM], b2[DIM * DIM];
	char why[160];

	(void)state;
	assert_int_equal(skvq_calibrate_balance(c, g, DIM, a, b, why, sizeof(why)), 0);
	for (uint32_t i = 0; i < DIM; i++) {
		c[i * DIM + 7] *= 16;
		c[7 * DIM + i] *= 16;
		g[i * DIM + 7] /= 16;
		g[7 * DIM + i] /= 16;
	}
	assert_int_equal(skvq_calibrate_balance(c, g, DIM, a2, b2, why, sizeof(why)), 0);
	/* Up to signs: compare what a key becomes, squared. */
	for (int test = 0; test < 20; test++) {
		double x[DIM], before = 0, after = 0;

		for (int i = 0; i < DIM; i++)
			x[i] = (double)seeded_gauss(&s);
		for (int i = 0; i < DIM; i++) {
			double y = 0, y2 = 0;

			for (int j = 0; j < DIM; j++) {
				y += x[j] * (double)a[j * DIM + i];
				y2 += x[j] * (j == 7 ? 16 : 1) * (double)a2[j * DIM + i];
			}
			before += y * y;
			after += y2 * y2;
		}
		assert_true(fabs(after / before - 1) < 1e-3);
	}
	free(c);
	free(g);
}

static void a_dead_head_is_rotated(void **state)
{
	enum { DIM = 48 };
	static double zero[DIM * DIM], nan_[DIM * DIM];
	static float a[DIM * DIM], b[DIM * DIM];
	char why[160] = "";

	(void)state;
	assert_int_equal(skvq_calibrate_balance(zero, zero, DIM, a, b, why, sizeof(why)), 0);
	assert_true(fabsf(a[0] - 0.25f) < 1e-6f);
	nan_[0] = NAN;
	assert_int_equal(skvq_calibrate_balance(nan_, nan_, DIM, a, b, why, sizeof(why)), 0);
	assert_int_equal(skvq_calibrate_balance(zero, zero, 40, a, b, why, sizeof(why)),
			 -SKVQ_EGEOMETRY);
}

enum { LAYERS = 4, Q_HEADS = 4, KV_HEADS = 2, DIM = 32, CHUNK = 64 };

static const uint8_t weights[32] = {1, 2, 3};
static const struct skvq_calibration_key key = {weights, LAYERS, Q_HEADS, KV_HEADS, DIM, DIM};

static void random_rows(struct seeded *s, float *x, size_t n, float last)
{
	for (size_t i = 0; i < n; i++)
		x[i] = seeded_gauss(s) * (i % DIM == DIM - 1 ? last : 1);
}

static struct skvq_moments *filled(uint32_t pairs_half, uint32_t n_chunks)
{
	static float q[CHUNK * Q_HEADS * DIM], k[CHUNK * KV_HEADS * DIM], v[CHUNK * KV_HEADS * DIM];
	struct seeded s = {1};
	struct skvq_moments *m = NULL;

	assert_int_equal(skvq_moments_new(&key, pairs_half, &m), 0);
	for (uint32_t c = 0; c < n_chunks; c++)
		for (uint32_t l = 0; l < LAYERS; l++) {
			random_rows(&s, q, sizeof(q) / sizeof(*q), 0.1f);
			random_rows(&s, k, sizeof(k) / sizeof(*k), 10);
			random_rows(&s, v, sizeof(v) / sizeof(*v), 1);
			skvq_moments_add(m, l, c * CHUNK, CHUNK, q, k, v);
		}
	return m;
}

static void rows_become_a_file(void **state)
{
	struct skvq_calibration_key other = key;
	struct skvq_calibration c;
	void *bytes = NULL;
	uint64_t n = 0;
	char why[256] = "";

	(void)state;
	for (uint32_t half = 0; half <= DIM / 2; half += DIM / 2) {
		struct skvq_moments *m = filled(half, 12);
		uint32_t strong = half ? DIM - 1 : DIM - 1; /* 2i + 1 goes to half + i */

		assert_int_equal(skvq_moments_finish(m, &key, "a\ntext", "test", &bytes, &n, why,
						     sizeof(why)),
				 0);
		assert_int_equal(skvq_calibration_open(bytes, n, &c, why, sizeof(why)), 0);
		assert_int_equal(skvq_calibration_fits(&c, &other, why, sizeof(why)), 0);
		assert_string_equal(c.header.text, "a?text");
		/* The strong channel is made small. */
		const float *into = skvq_calibration_into(&c, 1, 1, 0);
		double weak = 0, is_strong = 0;
		for (uint32_t i = 0; i < DIM; i++) {
			is_strong += (double)(into[strong * DIM + i] * into[strong * DIM + i]);
			weak += (double)(into[i] * into[i]);
		}
		assert_true(is_strong < 0.05 * weak);
		for (uint32_t l = 0; l < LAYERS; l++) {
			const skvq_calibration_layer *layer = skvq_calibration_layer_of(&c, l);

			for (int v = 0; v < 2; v++)
				for (int w = 1; w < (int)SKVQ_CALIBRATION_WIDTHS; w++)
					assert_true(layer->error[v][w] >
						    1.3f * layer->error[v][w - 1]);
			assert_true(layer->error[0][3] > 0.05f && layer->error[0][3] < 0.2f);
		}
		free(bytes);
		skvq_moments_free(m);
	}
	struct skvq_moments *few = filled(0, 2);
	assert_int_equal(
	    skvq_moments_finish(few, &key, "", "", &bytes, &n, why, sizeof(why)), -SKVQ_EINVAL);
	assert_non_null(strstr(why, "too short"));
	skvq_moments_free(few);
	other.head_dim_k = 24;
	assert_int_equal(skvq_moments_new(&other, 0, &few), -SKVQ_EGEOMETRY);
}

static void numbers_that_are_not_finite_are_named(void **state)
{
	static float q[CHUNK * Q_HEADS * DIM], k[CHUNK * KV_HEADS * DIM], v[CHUNK * KV_HEADS * DIM];
	struct skvq_moments *m = filled(0, 12);
	void *bytes;
	uint64_t n;
	char why[256] = "";

	(void)state;
	v[5 * KV_HEADS * DIM + 3] = INFINITY;
	skvq_moments_add(m, 2, 640, CHUNK, q, k, v);
	assert_int_equal(skvq_moments_finish(m, &key, "", "", &bytes, &n, why, sizeof(why)),
			 -SKVQ_EINVAL);
	assert_non_null(strstr(why, "layer 2"));
	assert_non_null(strstr(why, "token 645"));
	skvq_moments_free(m);
}

static void bits_go_where_it_hurts(void **state)
{
	static const struct skvq_calibrate_target targets[] = {
	    {"auto-2", 1.8}, {"auto-2.4", 2.3}, {"auto-3", 2.9}, {"auto-9", 9}};
	const float sensitivity[LAYERS * 2] = {0.001f, 0.0001f, 0.02f, 0.0001f,
					       0.0005f, 0.003f, 0.001f, 0};
	struct skvq_moments *m = filled(0, 12);
	struct skvq_calibration c, with;
	void *bytes = NULL, *more = NULL;
	uint64_t n, n_more;
	uint8_t id[32], id_with[32];
	char why[256] = "";

	(void)state;
	assert_int_equal(skvq_moments_finish(m, &key, "", "", &bytes, &n, why, sizeof(why)), 0);
	assert_int_equal(skvq_calibration_open(bytes, n, &c, why, sizeof(why)), 0);
	assert_int_equal(
	    skvq_calibrate_tables(&c, sensitivity, targets, 4, &more, &n_more, why, sizeof(why)),
	    0);
	assert_int_equal(skvq_calibration_open(more, n_more, &with, why, sizeof(why)), 0);
	for (uint32_t i = 0; i < 4; i++) {
		const uint8_t *bits = skvq_calibration_bits_at(&with, i);
		double sum = 0;

		for (uint32_t b = 0; b < 2 * LAYERS; b++) {
			assert_true(bits[b] <= SKVQ_BITS_4);
			assert_true(bits[b] >= (b % 2 ? SKVQ_BITS_TERNARY : SKVQ_BITS_2));
			sum += bits[b] == SKVQ_BITS_TERNARY ? 16 : bits[b];
		}
		double average = sum / 10 / (2 * LAYERS);
		assert_true(average <= targets[i].code_bits + 1e-6);
		assert_true(fabs(average + 0.25 -
				 (double)skvq_calibration_table_at(&with, i)->average) < 1e-5);
		for (uint32_t l = 0; l < LAYERS; l++) /* K of layer 1 comes first */
			assert_true(bits[2] >= bits[2 * l]);
	}
	assert_int_equal(skvq_calibration_bits(&with, "auto-2.4")[2], SKVQ_BITS_4);
	assert_int_equal(skvq_calibration_bits(&with, "auto-9")[7], SKVQ_BITS_4);
	skvq_calibration_id(&c, id);
	skvq_calibration_id(&with, id_with);
	assert_memory_equal(id, id_with, sizeof(id));
	free(bytes);
	free(more);
	skvq_moments_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(matrices_balance),
	    cmocka_unit_test(outlier_channels_change_nothing),
	    cmocka_unit_test(a_dead_head_is_rotated),
	    cmocka_unit_test(rows_become_a_file),
	    cmocka_unit_test(numbers_that_are_not_finite_are_named),
	    cmocka_unit_test(bits_go_where_it_hurts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
