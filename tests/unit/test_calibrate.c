/* SPDX-License-Identifier: Apache-2.0 */
/* The mathematics of calibration on covariances that are known. */
#include "cmocka_all.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/calibrate.h>
#include <skvq/error.h>
#include <skvq/rope.h>

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

static struct skvq_moments *filled(int interleaved, uint32_t n_chunks)
{
	static float q[CHUNK * Q_HEADS * DIM], k[CHUNK * KV_HEADS * DIM], v[CHUNK * KV_HEADS * DIM];
	struct seeded s = {1};
	struct skvq_calibrate_rope rope = {.dim = DIM, .interleaved = interleaved, .theta = 1e9, .positions = 64};
	struct skvq_moments *m = NULL;

	assert_int_equal(skvq_moments_new(&key, &rope, &m), 0);
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
	for (int interleaved = 0; interleaved < 2; interleaved++) {
		struct skvq_moments *m = filled(interleaved, 12);
		uint32_t strong = DIM - 1; /* 2i + 1 goes to half + i: here, to itself */

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
	assert_int_equal(skvq_moments_new(&other, NULL, &few), -SKVQ_EGEOMETRY);
	struct skvq_calibrate_rope rope = {.dim = DIM + 2, .theta = 1e4, .positions = 1};
	assert_int_equal(skvq_moments_new(&key, &rope, &few), -SKVQ_EGEOMETRY);
	rope = (struct skvq_calibrate_rope){.dim = DIM, .theta = 0, .positions = 1};
	assert_int_equal(skvq_moments_new(&key, &rope, &few), -SKVQ_EGEOMETRY);
	rope = (struct skvq_calibrate_rope){.dim = DIM, .theta = 1e4};
	assert_int_equal(skvq_moments_new(&key, &rope, &few), -SKVQ_EGEOMETRY);
}

/* The same keys and queries, met at other positions, give the same matrices. */
static void positions_do_not_matter(void **state)
{
	static float q[CHUNK * Q_HEADS * DIM], k[CHUNK * KV_HEADS * DIM], v[CHUNK * KV_HEADS * DIM];
	static const uint32_t starts[2] = {256, 5000};
	struct skvq_calibrate_rope rope = {.dim = DIM, .theta = 1e4, .positions = 8192};
	struct skvq_calibration c[2];
	struct skvq_rope turns;
	void *bytes[2];
	char why[256] = "";

	(void)state;
	assert_int_equal(skvq_rope_init(DIM, 1e4, "", &turns), 0);
	for (int i = 0; i < 2; i++) {
		struct seeded s = {1};
		struct skvq_moments *m = NULL;
		uint64_t n;

		assert_int_equal(skvq_moments_new(&key, &rope, &m), 0);
		for (uint32_t at = 0; at < 12 * CHUNK; at += CHUNK)
			for (uint32_t l = 0; l < LAYERS; l++) {
				random_rows(&s, q, sizeof(q) / sizeof(*q), 0.1f);
				random_rows(&s, k, sizeof(k) / sizeof(*k), 10);
				random_rows(&s, v, sizeof(v) / sizeof(*v), 1);
				for (uint32_t t = 0; t < CHUNK; t++) {
					for (uint32_t h = 0; h < Q_HEADS; h++)
						skvq_rope_turn(&turns, 0, starts[i] + at + t, 1,
							       q + (t * Q_HEADS + h) * DIM);
					for (uint32_t h = 0; h < KV_HEADS; h++)
						skvq_rope_turn(&turns, 0, starts[i] + at + t, 1,
							       k + (t * KV_HEADS + h) * DIM);
				}
				skvq_moments_add(m, l, starts[i] + at, CHUNK, q, k, v);
			}
		if (skvq_moments_finish(m, &key, "", "", &bytes[i], &n, why, sizeof(why)) < 0 ||
		    skvq_calibration_open(bytes[i], n, &c[i], why, sizeof(why)) < 0)
			fail_msg("%s", why);
		skvq_moments_free(m);
	}
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t h = 0; h < KV_HEADS; h++) {
			const float *a = skvq_calibration_into(&c[0], l, h, 0);
			const float *b = skvq_calibration_into(&c[1], l, h, 0);
			double gram_a[DIM * DIM] = {0}, gram_b[DIM * DIM] = {0}, off = 0, all = 0;

			/* A A^T: singular vectors of equal value may be any, what they span may not. */
			for (uint32_t i = 0; i < DIM; i++)
				for (uint32_t j = 0; j < DIM; j++)
					for (uint32_t d = 0; d < DIM; d++) {
						gram_a[i * DIM + j] += (double)a[i * DIM + d] * a[j * DIM + d];
						gram_b[i * DIM + j] += (double)b[i * DIM + d] * b[j * DIM + d];
					}
			for (uint32_t i = 0; i < DIM * DIM; i++) {
				off += (gram_a[i] - gram_b[i]) * (gram_a[i] - gram_b[i]);
				all += gram_a[i] * gram_a[i];
			}
			assert_true(off < 1e-6 * all);
		}
	free(bytes[0]);
	free(bytes[1]);
}

/* ---- groups ---- */

enum { CHANNELS_MAX = 512 };

struct ranges {
	uint32_t n, size;
	float low[CHANNELS_MAX], high[CHANNELS_MAX];
	uint16_t of[CHANNELS_MAX];
};

static uint32_t grouped(struct ranges *r)
{
	uint32_t n_groups = (r->n + r->size - 1) / r->size, seen[CHANNELS_MAX] = {0};

	assert_int_equal(skvq_calibrate_groups(r->low, r->high, r->n, r->size, r->of), 0);
	for (uint32_t i = 0; i < r->n; i++) {
		assert_true(r->of[i] < n_groups);
		seen[r->of[i]]++;
	}
	for (uint32_t g = 0; g < n_groups; g++)
		assert_true(seen[g] > 0);
	return n_groups;
}

/* Channels of a few sizes, in any order and numbers, and some that are never negative. */
static void groups_are_what_they_should(void **state)
{
	static const float sizes[][2] = {{-40, 40}, {-9, 8}, {-3, 3}, {-0.5f, 0.4f}, {0, 20}};
	enum { SIZES = 5 };
	struct seeded s = seeded_init();
	struct ranges r = {.n = 160, .size = 32}, moved = r;

	(void)state;
	for (int test = 0; test < 20; test++) {
		uint32_t kind[CHANNELS_MAX], group_of[SIZES], from = seeded_below(&s, r.n);

		for (uint32_t i = 0; i < r.n; i++) {
			/* The rarer the larger, each at least once. */
			kind[i] = i < SIZES ? i : 1 + seeded_below(&s, 8) % (SIZES - 1);
			r.low[i] = sizes[kind[i]][0] * (1 + 0.1f * (float)seeded_unit(&s));
			r.high[i] = sizes[kind[i]][1] * (1 + 0.1f * (float)seeded_unit(&s));
		}
		assert_int_equal(grouped(&r), SIZES);
		for (uint32_t i = 0; i < SIZES; i++)
			group_of[i] = r.of[i];
		for (uint32_t i = 0; i < r.n; i++)
			assert_int_equal(r.of[i], group_of[kind[i]]);
		/* Numbered by their ranges, not by where they were found. */
		assert_int_equal(group_of[0], 0);
		for (uint32_t i = 0; i < r.n; i++) {
			moved.low[i] = r.low[(i + from) % r.n];
			moved.high[i] = r.high[(i + from) % r.n];
		}
		grouped(&moved);
		for (uint32_t i = 0; i < r.n; i++)
			assert_int_equal(moved.of[i], r.of[(i + from) % r.n]);
	}
}

static double gap(const struct ranges *r, uint32_t i, const double centre[2])
{
	double x = (double)r->low[i] - centre[0], y = (double)r->high[i] - centre[1];

	return x * x + y * y;
}

/* No channel would be better off in another group, and the same channels give the same groups. */
static void groups_are_settled(void **state)
{
	static const uint32_t sizes[] = {32, 64, 128};
	struct seeded s = seeded_init();

	(void)state;
	for (int test = 0; test < 60; test++) {
		struct ranges r = {.n = 16 * (1 + seeded_below(&s, CHANNELS_MAX / 16)),
				   .size = sizes[test % 3]};
		double centres[CHANNELS_MAX][2] = {{0}};
		uint32_t n[CHANNELS_MAX] = {0};

		for (uint32_t i = 0; i < r.n; i++) {
			float scale = expf(seeded_gauss(&s));

			r.low[i] = -scale * (1 + 0.3f * seeded_gauss(&s));
			r.high[i] = r.low[i] + 2 * scale;
		}
		struct ranges again = r;
		uint32_t n_groups = grouped(&r);
		grouped(&again);
		assert_memory_equal(r.of, again.of, r.n * sizeof(*r.of));
		for (uint32_t i = 0; i < r.n; i++) {
			centres[r.of[i]][0] += (double)r.low[i];
			centres[r.of[i]][1] += (double)r.high[i];
			n[r.of[i]]++;
		}
		for (uint32_t g = 0; g < n_groups; g++) {
			centres[g][0] /= n[g];
			centres[g][1] /= n[g];
			assert_true(g == 0 || centres[g - 1][0] <= centres[g][0]);
		}
		for (uint32_t i = 0; i < r.n; i++)
			for (uint32_t g = 0; g < n_groups; g++)
				assert_true(gap(&r, i, centres[r.of[i]]) <=
					    gap(&r, i, centres[g]) + 1e-9);
	}
}

/* Fewer different channels than groups: groups have a channel all the same. */
static void groups_are_never_empty(void **state)
{
	struct seeded s = seeded_init();

	(void)state;
	for (uint32_t kinds = 1; kinds < 8; kinds++)
		for (uint32_t n = 16; n <= CHANNELS_MAX; n += 48) {
			struct ranges r = {.n = n, .size = 32};

			for (uint32_t i = 0; i < n; i++) {
				r.low[i] = -(float)seeded_below(&s, kinds) * 1e30f;
				r.high[i] = -r.low[i];
			}
			grouped(&r);
			/* Alike goes together as far as there are channels enough. */
			if (r.n == 32 * kinds)
				for (uint32_t i = 0; i < n; i++)
					assert_true(r.of[i] != r.of[0] || r.low[i] == r.low[0]);
		}
}

/* Keys are turned back: a channel that is large before RoPE is alone there, and after it shares its
 * size with the other of its pair. */
static void keys_are_grouped_as_they_were_before_rope(void **state)
{
	static float q[CHUNK * Q_HEADS * DIM], k[CHUNK * KV_HEADS * DIM], v[CHUNK * KV_HEADS * DIM];
	static const uint32_t windows[LAYERS] = {0, 64, 0, 0};
	static const char *const scalings[] = {"linear:2+swa:100", "yarn:4:4096"};
	struct seeded s = seeded_init();
	struct skvq_calibration c;
	void *bytes = NULL;
	uint64_t n;
	char why[256] = "";

	(void)state;
	for (int test = 0; test < 4; test++) {
		int interleaved = test % 2, unknown = test / 2;
		struct skvq_calibrate_rope rope = {.dim = DIM,
						   .interleaved = interleaved,
						   .theta = 1e4,
						   .scaling = scalings[unknown],
						   .positions = 8192,
						   .layer_window = windows};
		struct skvq_moments *m = NULL;
		struct skvq_rope turns;

		assert_int_equal(skvq_rope_init(DIM, 1e4, scalings[0], &turns), 0);
		assert_int_equal(skvq_moments_new(&key, &rope, &m), 0);
		for (uint32_t at = 0; at < 12 * CHUNK; at += CHUNK)
			for (uint32_t l = 0; l < LAYERS; l++) {
				random_rows(&s, q, sizeof(q) / sizeof(*q), 1);
				random_rows(&s, v, sizeof(v) / sizeof(*v), 30);
				for (uint32_t i = 0; i < CHUNK * KV_HEADS; i++) {
					float row[DIM];

					random_rows(&s, row, DIM, 1);
					row[2] = 100 + 20 * row[2];
					skvq_rope_turn(&turns, windows[l] != 0, at + i / KV_HEADS, 1,
						       row);
					for (uint32_t j = 0; j < DIM; j++)
						k[i * DIM + j] =
						    row[!interleaved ? j : j % 2 * DIM / 2 + j / 2];
				}
				skvq_moments_add(m, l, at, CHUNK, q, k, v);
			}
		assert_int_equal(
		    skvq_moments_finish(m, &key, "", "", &bytes, &n, why, sizeof(why)), 0);
		assert_int_equal(skvq_calibration_open(bytes, n, &c, why, sizeof(why)), 0);
		assert_true(c.header.flags & SKVQ_CALIBRATION_HAS_GROUPS);
		for (uint32_t l = 0; l < LAYERS; l++) {
			const uint16_t *before =
			    skvq_calibration_groups(&c, l, SKVQ_CHANNELS_K_BEFORE, 32, NULL);
			const uint16_t *after =
			    skvq_calibration_groups(&c, l, SKVQ_CHANNELS_K_AFTER, 32, NULL);
			const uint16_t *of_v =
			    skvq_calibration_groups(&c, l, SKVQ_CHANNELS_V, 32, NULL);

			for (uint32_t i = 0; i < KV_HEADS * DIM; i++) {
				uint32_t j = i % DIM;

				assert_int_equal(before[i] == before[2],
						 j == 2 || (unknown && j == 2 + DIM / 2));
				assert_int_equal(after[i] == after[2], j == 2 || j == 2 + DIM / 2);
				assert_int_equal(of_v[i] == of_v[DIM - 1], j == DIM - 1);
			}
			assert_int_equal(
			    skvq_calibration_groups(&c, l, SKVQ_CHANNELS_V, 128, NULL)[DIM], 0);
		}
		free(bytes);
		skvq_moments_free(m);
	}
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
	skvq_calibration_groups_id(&c, 64, 0, id); /* they are still there */
	skvq_calibration_groups_id(&with, 64, 0, id_with);
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
	    cmocka_unit_test(groups_are_what_they_should),
	    cmocka_unit_test(groups_are_settled),
	    cmocka_unit_test(groups_are_never_empty),
	    cmocka_unit_test(keys_are_grouped_as_they_were_before_rope),
	    cmocka_unit_test(numbers_that_are_not_finite_are_named),
	    cmocka_unit_test(positions_do_not_matter),
	    cmocka_unit_test(bits_go_where_it_hurts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
