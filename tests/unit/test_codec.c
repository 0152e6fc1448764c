/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codecs of kernels/ref against what skvq/format.h and skvq/profile.h say, written a second
 * time here the slow way. That other tiers equal ref is skvq-check's to show.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <skvq/kernels.h>

#include "e4m3.h"
#include "seeded.h"

#define DIM_MAX SKVQ_HEAD_DIM_MAX
#define GOLDEN  UINT64_C(0x3f173828331930e6) /* of bytes_are_for_ever */

static const uint32_t dims[] = {16, 64, 80, 96, 128, 192, 256};
#define N_DIMS (sizeof(dims) / sizeof(dims[0]))

static const char *const sym_names[] = {"k8v8", "k4v4", "k3v3", "k2v2", "k1.5v1.5"};
static const char *const affine_names[] = {"affine-k8v8-g32", "affine-k4v4-g64", "affine-k3v3-g32",
					   "affine-k2v2-g64", "affine-k1.5v1.5-g32"};

static struct skvq_kernels ref;
static struct seeded rng;

/* One head's planes, and the tile that goes in and comes out. */
struct head {
	struct skvq_codec c;
	_Alignas(64) uint8_t codes[80 * DIM_MAX * 2];
	uint8_t params[16 * 80];
	float in[16 * DIM_MAX], out[16 * DIM_MAX];
};
static struct head head, other;

static void codec_of(const char *name, int is_v, uint32_t dim, struct skvq_codec *ret)
{
	struct skvq_profile p;

	assert_int_equal(skvq_profile_parse(name, &p), 0);
	assert_int_equal(skvq_codec_init(&p, is_v, is_v ? p.v_bits : p.k_bits, dim, ret), 0);
}

static void head_of(struct head *h, const char *name, int is_v, uint32_t dim)
{
	memset(h, 0, sizeof(*h));
	codec_of(name, is_v, dim, &h->c);
}

static void encode(struct head *h, const uint16_t *reorder, uint32_t tile)
{
	const struct skvq_transform t = {.reorder = reorder};
	float rows[16 * DIM_MAX];

	memcpy(rows, h->in, sizeof(rows));
	ref.encode_tile(&h->c, &t, rows, tile, h->codes, h->params, NULL);
}

static void gauss_rows(float *x, uint32_t n, float sigma)
{
	for (uint32_t i = 0; i < n; i++)
		x[i] = sigma * seeded_gauss(&rng);
}

/* --- numbers --------------------------------------------------------------------------------- */

static double naive_f16(uint32_t h)
{
	int e = h >> 10 & 31, m = h & 1023;
	double v = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);

	if (e == 31)
		v = m ? NAN : INFINITY;
	return h & 0x8000 ? -v : v;
}

static void f16_every_value(void **state)
{
	static uint16_t h[65536], back[65536];
	static float f[65536];

	(void)state;
	for (uint32_t i = 0; i < 65536; i++)
		h[i] = (uint16_t)i;
	ref.f16_to_f32(h, f, 65536);
	ref.f32_to_f16(f, back, 65536);
	for (uint32_t i = 0; i < 65536; i++) {
		double want = naive_f16(i);

		if (isnan(want)) {
			assert_true(isnan(f[i]));
			assert_int_equal(back[i], i | 0x200); /* quiet, the rest kept */
			continue;
		}
		assert_true((double)f[i] == want && !signbit(f[i]) == !signbit(want));
		assert_int_equal(back[i], i);
	}
}

/* Nearest half by looking at both neighbours, to even between them. */
static void f16_rounding(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 0x7c00; h++) {
		double a = naive_f16(h), b = h == 0x7bff ? 65536.0 : naive_f16(h + 1);
		float mid = (float)((a + b) / 2), x[5];
		uint16_t r[5];

		x[0] = mid;
		x[1] = nextafterf(mid, 0.0f);
		x[2] = nextafterf(mid, INFINITY);
		x[3] = -mid;
		x[4] = (float)a;
		ref.f32_to_f16(x, r, 5);
		assert_int_equal(r[0], h + (h & 1));
		assert_int_equal(r[1], h);
		assert_int_equal(r[2], h + 1);
		assert_int_equal(r[3], (h + (h & 1)) | 0x8000);
		assert_int_equal(r[4], h);
	}
	float big[] = {1e30f, -65536.0f, INFINITY, 1e-30f, -1e-30f, 0x1p-149f};
	uint16_t r[6];

	ref.f32_to_f16(big, r, 6);
	assert_int_equal(r[0], 0x7c00);
	assert_int_equal(r[1], 0xfc00);
	assert_int_equal(r[2], 0x7c00);
	assert_int_equal(r[3], 0);
	assert_int_equal(r[4], 0x8000);
	assert_int_equal(r[5], 0);
}

/* Nearest bfloat16, to even, by the distance to both neighbours. */
static void bf16_rounding(void **state)
{
	static uint16_t all[65536], back[65536];
	static float f[65536];

	(void)state;
	for (uint32_t i = 0; i < 65536; i++)
		all[i] = (uint16_t)i;
	ref.bf16_to_f32(all, f, 65536);
	ref.f32_to_bf16(f, back, 65536);
	for (uint32_t i = 0; i < 65536; i++)
		assert_int_equal(back[i], isnan(f[i]) ? i | 0x40 : i);
	for (uint32_t h = 0; h < 0x7f7f; h++) {
		float mid = (float)(((double)f[h] + (double)f[h + 1]) / 2), x[4];
		uint16_t r[4];

		x[0] = mid;
		x[1] = nextafterf(mid, 0.0f);
		x[2] = nextafterf(mid, INFINITY);
		x[3] = -mid;
		ref.f32_to_bf16(x, r, 4);
		assert_int_equal(r[0], h + (h & 1));
		assert_int_equal(r[1], h);
		assert_int_equal(r[2], h + 1);
		assert_int_equal(r[3], (h + (h & 1)) | 0x8000);
	}
}

static double naive_e4m3(uint32_t c)
{
	int e = c >> 3 & 15, m = c & 7;
	double v = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);

	if (e == 15 && m == 7)
		v = 0; /* NaN, read as nothing */
	return c & 0x80 ? -v : v;
}

static void e4m3(void **state)
{
	(void)state;
	for (uint32_t c = 0; c < 256; c++)
		assert_true((double)skvq_e4m3_value[c] == naive_e4m3(c));
	for (uint32_t c = 0; c < 0x7e; c++) {
		float a = (float)naive_e4m3(c), b = (float)naive_e4m3(c + 1), mid = (a + b) / 2;

		assert_int_equal(e4m3_encode(a), c);
		assert_int_equal(e4m3_encode(mid), c + (c & 1));
		assert_int_equal(e4m3_encode(nextafterf(mid, 0.0f)), c);
		assert_int_equal(e4m3_encode(nextafterf(mid, 1e9f)), c + 1);
		assert_int_equal(e4m3_encode(-mid), (c + (c & 1)) | 0x80);
	}
	assert_int_equal(e4m3_encode(448.0f), 0x7e);
	assert_int_equal(e4m3_encode(464.0f), 0x7e); /* torch makes NaN of it */
	assert_int_equal(e4m3_encode(1e38f), 0x7e);
	assert_int_equal(e4m3_encode(-1e38f), 0xfe);
	assert_int_equal(e4m3_encode(1e-40f), 0);
}

/* --- transform ------------------------------------------------------------------------------- */

static void hadamard_is_sylvesters(void **state)
{
	struct skvq_codec c;

	(void)state;
	for (size_t i = 0; i < N_DIMS; i++) {
		uint32_t dim = dims[i], block = dim & -dim;

		codec_of("k2v2", 0, dim, &c);
		for (uint32_t col = 0; col < dim; col++) {
			float x[DIM_MAX] = {0};

			x[col] = 1.0f;
			ref.to_stored(&c, NULL, x);
			for (uint32_t row = 0; row < dim; row++) {
				double want = row / block == col / block ? 1.0 / sqrt(block) : 0.0;

				if (__builtin_popcount(row & col & (block - 1)) & 1)
					want = -want;
				assert_true(fabs((double)x[row] - want) < 1e-7);
			}
		}
	}
}

static void transform_keeps_dot_products(void **state)
{
	struct skvq_codec c;

	(void)state;
	for (size_t i = 0; i < 4 * N_DIMS; i++) {
		uint32_t dim = dims[i % N_DIMS];
		float x[DIM_MAX], y[DIM_MAX], x0[DIM_MAX];
		double before = 0, after = 0, scale = 0;
		uint16_t map[DIM_MAX];
		const struct skvq_transform t = {.reorder = map};
		int rotated = i % 2 == 0;

		codec_of(rotated ? "k2v2" : "plain-k2v2", 0, dim, &c);
		for (uint32_t j = 0; j < dim; j++)
			map[j] = (uint16_t)((j * 7 + i) % dim); /* dim is no multiple of 7 */
		gauss_rows(x, dim, 1.0f);
		gauss_rows(y, dim, 1.0f);
		memcpy(x0, x, sizeof(x));
		for (uint32_t j = 0; j < dim; j++) {
			before += (double)x[j] * (double)y[j];
			scale += fabs((double)x[j] * (double)y[j]);
		}
		ref.to_stored(&c, &t, x);
		ref.query_to_stored(&c, &t, y);
		for (uint32_t j = 0; j < dim; j++)
			after += (double)x[j] * (double)y[j];
		assert_true(fabs(before - after) < 1e-6 * scale);
		for (uint32_t j = 0; !rotated && j < dim; j++)
			assert_true(x[j] == x0[map[j]]);
		ref.from_stored(&c, &t, x);
		for (uint32_t j = 0; j < dim; j++)
			assert_true(fabsf(x[j] - x0[j]) < 2e-6f);
	}
}

/* --- packing, from the text of skvq/format.h ------------------------------------------------- */

/* Byte `at` of raw vector `i` of a tile. */
static uint32_t naive_raw(const struct head *h, uint32_t tile, uint32_t i, uint32_t at)
{
	static const uint32_t power[] = {1, 3, 9, 27, 81};
	uint32_t n = h->c.dim / 4u, m2 = (n + 3) / 4, m4 = (n + 1) / 2, m1 = (n + 7) / 8;
	const uint8_t *t = h->codes + tile * h->c.tile_bytes;

	switch (h->c.bits) {
	case SKVQ_BITS_8:
		return t[64 * i + at];
	case SKVQ_BITS_4:
		return t[64 * (i % m4) + at] >> 4 * (i / m4) & 15;
	case SKVQ_BITS_3:
		return (t[64 * (i % m2) + at] >> 2 * (i / m2) & 3) |
		       (t[64 * m2 + 64 * (i % m1) + at] >> i / m1 & 1) << 2;
	case SKVQ_BITS_2:
		return t[64 * (i % m2) + at] >> 2 * (i / m2) & 3;
	default:
		return h->codes[64 * i + at] / power[tile] % 3;
	}
}

static uint32_t naive_code(const struct head *h, uint32_t tile, uint32_t t, uint32_t ch)
{
	if (!h->c.is_v)
		return naive_raw(h, tile, ch / 4, 4 * t + ch % 4);
	return naive_raw(h, tile, t / 4 * (h->c.dim / 16u) + ch / 16, 4 * (ch % 16) + t % 4);
}

static double naive_value(const struct head *h, uint32_t tile, uint32_t t, uint32_t ch)
{
	uint32_t g = ch / h->c.group, token = tile * 16 + t;
	double c = naive_code(h, tile, t, ch);
	double s = ldexp(naive_e4m3(h->params[g * 80 + token]), h->c.scale_exp);

	if (h->c.kind == SKVQ_CODEC_SYM)
		return s * (2 * c - h->c.levels_minus_1);
	return s * c +
	       ldexp(naive_e4m3(h->params[(h->c.n_groups + g) * 80 + token]), h->c.zero_exp);
}

/* Encodes five random tiles and reads them by the text: near what went in, and exactly (affine:
 * to one rounding) what decode_tile gives. */
static void check_layout(const char *name, int is_v, uint32_t dim, double mse_max)
{
	double error = 0, energy = 0;

	head_of(&head, name, is_v, dim);
	for (uint32_t tile = 0; tile < 5; tile++) {
		gauss_rows(head.in, 16 * dim, 1.0f);
		encode(&head, NULL, tile);
		ref.decode_tile(&head.c, head.codes, head.params, NULL, tile, head.out);
		for (uint32_t t = 0; t < 16; t++)
			ref.to_stored(&head.c, NULL, head.in + t * dim);
		for (uint32_t i = 0; i < 16 * dim; i++) {
			double want = naive_value(&head, tile, i / dim, i % dim);
			double x = (double)head.in[i];

			if (fabs((double)head.out[i] - want) > 1e-6 * fabs(want) + 1e-7)
				fail_msg("%s %s D=%u token %u channel %u: %g, not %g", name,
					 is_v ? "V" : "K", dim, i / dim, i % dim,
					 (double)head.out[i], want);
			if (head.c.kind == SKVQ_CODEC_SYM)
				assert_true((double)head.out[i] == want);
			error += (x - want) * (x - want);
			energy += x * x;
		}
	}
	if (error > mse_max * energy)
		fail_msg("%s %s D=%u: relative MSE %g", name, is_v ? "V" : "K", dim,
			 error / energy);
}

static void layout_equals_the_text(void **state)
{
	/* Loose: small groups of few samples. The tight figures are in gaussian_error. */
	static const double sym_max[] = {1e-4, .015, .045, .14, .22};
	/* .92 of the range costs what it clips, at 8 bits too. */
	static const double affine_max[] = {.02, .03, .06, .25, .5};

	(void)state;
	for (size_t d = 0; d < N_DIMS; d++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			for (int b = 0; b < 5; b++) {
				char grouped[32];

				check_layout(sym_names[b], is_v, dims[d], sym_max[b]);
				snprintf(grouped, sizeof(grouped), "plain-%s-g32", sym_names[b]);
				check_layout(grouped, is_v, dims[d], sym_max[b]);
				check_layout(affine_names[b], is_v, dims[d], affine_max[b]);
			}
		}
	}
}

static void fp16_rows(void **state)
{
	uint16_t map[80];

	(void)state;
	head_of(&head, "fp16", 1, 80);
	for (uint32_t j = 0; j < 80; j++)
		map[j] = (uint16_t)(79 - j);
	for (uint32_t tile = 0; tile < 5; tile++) {
		gauss_rows(head.in, 16 * 80, 1.0f);
		head.in[3] = NAN;
		head.in[4] = -INFINITY;
		encode(&head, map, tile);
		ref.decode_tile(&head.c, head.codes, head.params, NULL, tile, head.out);
		for (uint32_t i = 0; i < 16 * 80; i++) {
			uint32_t t = i / 80, ch = i % 80, from = t * 80 + 79 - ch;
			double want = (double)head.in[from], got = (double)head.out[i];
			uint16_t h;

			memcpy(&h, head.codes + ((tile * 16 + t) * 80 + ch) * 2, 2);
			assert_true(naive_f16(h) == got);
			want = from == 3 ? 0.0 : from == 4 ? -65504.0 : want;
			assert_true(fabs(got - want) <= fabs(want) * 0x1p-11 + 0x1p-25);
		}
	}
}

/* --- the quantisers -------------------------------------------------------------------------- */

static double relative_error(const char *name, uint32_t dim, float (*draw)(struct seeded *),
			     uint32_t tiles)
{
	double error = 0, energy = 0;

	head_of(&head, name, 0, dim);
	for (uint32_t i = 0; i < tiles; i++) {
		for (uint32_t j = 0; j < 16 * dim; j++)
			head.in[j] = draw(&rng);
		encode(&head, NULL, 0);
		ref.decode_tile(&head.c, head.codes, head.params, NULL, 0, head.out);
		for (uint32_t t = 0; t < 16; t++)
			ref.to_stored(&head.c, NULL, head.in + t * dim);
		for (uint32_t j = 0; j < 16 * dim; j++) {
			double e = (double)head.in[j] - (double)head.out[j];

			error += e * e;
			energy += (double)head.in[j] * (double)head.in[j];
		}
	}
	return error / energy;
}

static void gaussian_error(void **state)
{
	static const double sym_max[] = {5.6e-5, .0113, .0375, .1195, .191};
	static const double affine_max[] = {.0029, .0090, .0275, .178, .300};

	(void)state;
	printf("relative MSE        D=64      D=128     D=256\n");
	for (int affine = 0; affine < 2; affine++) {
		for (int b = 0; b < 5; b++) {
			const char *name = affine ? affine_names[b] : sym_names[b];
			double max = affine ? affine_max[b] : sym_max[b];

			printf("%-20s", name);
			for (uint32_t dim = 64; dim <= 256; dim *= 2) {
				double e = relative_error(name, dim, seeded_gauss, 6400 / dim);

				printf(" %.6f", e);
				if (e > max)
					fail_msg("%s D=%u: %g above %g", name, dim, e, max);
			}
			printf("\n");
		}
	}
}

static float draw_uniform(struct seeded *s)
{
	return (float)(seeded_unit(s) * 2.0 - 1.0);
}

/* Against every scale there is, in double precision. */
static void sym_scale_is_nearly_the_best(void **state)
{
	(void)state;
	for (int b = 0; b < 5; b++) {
		double ours = 0, best_sum = 0;

		for (int round = 0; round < 24; round++) {
			static float (*const draws[])(struct seeded *) = {
			    seeded_gauss, seeded_laplace, draw_uniform};
			float (*draw)(struct seeded *) = draws[round % 3];
			char name[32];

			snprintf(name, sizeof(name), "plain-%s", sym_names[b]);
			head_of(&head, name, 0, 128);
			for (uint32_t j = 0; j < 16 * 128; j++)
				head.in[j] = draw(&rng);
			for (uint32_t t = 0; round % 4 == 3 && t < 16; t++)
				head.in[t * 128 + 5] = 20.0f;
			encode(&head, NULL, 0);
			for (uint32_t t = 0; t < 16; t++) {
				double m = head.c.levels_minus_1, best = INFINITY, mine = 0;

				for (uint32_t code = 1; code < 0x7f; code++) {
					double d = ldexp(naive_e4m3(code), head.c.scale_exp),
					       sum = 0;

					for (uint32_t ch = 0; ch < 128; ch++) {
						double x = (double)head.in[t * 128 + ch];
						double c = floor(x / (2 * d) + (m + 1) / 2), e;

						c = c < 0 ? 0 : c > m ? m : c;
						e = x - d * (2 * c - m);
						sum += e * e;
					}
					best = sum < best ? sum : best;
				}
				for (uint32_t ch = 0; ch < 128; ch++) {
					double e = (double)head.in[t * 128 + ch] -
						   naive_value(&head, 0, t, ch);

					mine += e * e;
				}
				ours += mine / best;
				best_sum += 1;
			}
		}
		printf("%-8s %.6f times the least error\n", sym_names[b], ours / best_sum);
		if (ours > 1.01 * best_sum)
			fail_msg("%s: %g times the best error", sym_names[b], ours / best_sum);
	}
}

/* Nearest of all 256, ties to the even code, no negative zero. */
static uint8_t naive_e4m3_encode(double x)
{
	uint8_t best = 0;

	for (uint32_t c = 0; c < 256; c++) {
		double old = fabs(naive_e4m3(best) - x), new = fabs(naive_e4m3(c) - x);

		if ((c & 0x7f) == 0x7f || c == 0x80)
			continue;
		if (new < old || (new == old &&c % 2 == 0 && best % 2 == 1))
			best = (uint8_t)c;
	}
	return best;
}

static void affine_is_skvqs(void **state)
{
	(void)state;
	for (int b = 0; b < 5; b++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			float shift = (float)(seeded_unit(&rng) * 6 - 3);
			const struct skvq_codec *c = &head.c;

			head_of(&head, affine_names[b], is_v, 96);
			for (uint32_t j = 0; j < 16 * 96; j++)
				head.in[j] = seeded_gauss(&rng) + shift;
			encode(&head, NULL, 2);
			for (uint32_t t = 0; t < 16; t++) {
				for (uint32_t at = 0, g = 0; at < 96; at += c->group, g++) {
					uint32_t n = at + c->group <= 96 ? c->group : 96 - at;
					const float *x = head.in + t * 96 + at;
					uint8_t s = head.params[g * 80 + 32 + t];
					uint8_t z = head.params[(c->n_groups + g) * 80 + 32 + t];
					double step, zero;
					float lo = x[0], hi = x[0];

					for (uint32_t i = 1; i < n; i++) {
						lo = x[i] < lo ? x[i] : lo;
						hi = x[i] > hi ? x[i] : hi;
					}
					lo *= 0.92f;
					hi *= 0.92f;
					assert_int_equal(
					    z, naive_e4m3_encode(ldexp((double)lo, -c->zero_exp)));
					assert_int_equal(
					    s, naive_e4m3_encode(ldexp(
						   (double)((hi - lo) / (float)c->levels_minus_1),
						   -c->scale_exp)));
					step = ldexp(naive_e4m3(s), c->scale_exp);
					zero = ldexp(naive_e4m3(z), c->zero_exp);
					for (uint32_t i = 0; i < n; i++) {
						double q = ((double)x[i] - zero) / step;
						double m = c->levels_minus_1;
						double code = naive_code(&head, 2, t, at + i);

						q = q < 0 ? 0 : q > m ? m : q;
						assert_true(fabs(q - code) < 0.5 + 1e-5);
					}
				}
			}
		}
	}
}

/* --- pages in the making --------------------------------------------------------------------- */

static void ternary_grows_tile_by_tile(void **state)
{
	static float first[5][16 * DIM_MAX];

	(void)state;
	for (size_t d = 0; d < N_DIMS; d++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			uint32_t n = 16 * dims[d];

			head_of(&head, "k1.5v1.5", is_v, dims[d]);
			memset(head.codes, 0xff, sizeof(head.codes)); /* of the page before */
			for (uint32_t tile = 0; tile < 5; tile++) {
				gauss_rows(head.in, n, 1.0f);
				encode(&head, NULL, tile);
				ref.decode_tile(&head.c, head.codes, head.params, NULL, tile,
						first[tile]);
				for (uint32_t i = 0; i < head.c.head_bytes; i++)
					assert_true(head.codes[i] < 243);
				for (uint32_t before = 0; before < tile; before++) {
					ref.decode_tile(&head.c, head.codes, head.params, NULL, before,
							head.out);
					assert_memory_equal(head.out, first[before], n * 4);
				}
			}
			assert_int_equal(head.codes[head.c.head_bytes], 0xff);
		}
	}
}

static void ternary_every_byte(void **state)
{
	(void)state;
	head_of(&head, "plain-k1.5v1.5", 0, 256);
	memset(head.params, 0x38, sizeof(head.params)); /* 1.0, half step .5 */
	for (uint32_t b = 0; b < 243; b++)
		head.codes[b] = (uint8_t)b;
	for (uint32_t tile = 0; tile < 5; tile++) {
		ref.decode_tile(&head.c, head.codes, head.params, NULL, tile, head.out);
		for (uint32_t b = 0; b < 243; b++) {
			uint32_t ch = b / 64 * 4 + b % 4, t = b % 64 / 4, digit = b;

			for (uint32_t k = 0; k < tile; k++)
				digit /= 3;
			assert_true(head.out[t * 256 + ch] == (float)(digit % 3) - 1.0f);
		}
	}
}

/* Encoding a tile writes its codes and its 16 columns, nothing else. */
static void tile_stays_in_its_place(void **state)
{
	static const char *const names[] = {"k8v8", "k4v4-g32",        "k3v3",
					    "k2v2", "affine-k3v3-g32", "fp16"};

	(void)state;
	for (size_t i = 0; i < 6; i++) {
		for (uint32_t tile = 0; tile < 5; tile++) {
			uint32_t from, to;

			head_of(&head, names[i], (int)(tile & 1), 80);
			memset(head.codes, 0xa5, sizeof(head.codes));
			memset(head.params, 0xa5, sizeof(head.params));
			gauss_rows(head.in, 16 * 80, 1.0f);
			encode(&head, NULL, tile);
			from = tile * head.c.tile_bytes;
			to = from + head.c.tile_bytes;
			for (uint32_t b = 0; b < sizeof(head.codes); b++)
				assert_true((b >= from && b < to) || head.codes[b] == 0xa5);
			for (uint32_t b = 0; b < sizeof(head.params); b++)
				assert_true((b / 80 < head.c.n_rows && b % 80 / 16 == tile) ||
					    head.params[b] == 0xa5);
		}
	}
}

static void equal_input_equal_bytes(void **state)
{
	(void)state;
	for (int b = 0; b < 5; b++) {
		head_of(&head, sym_names[b], 1, 128);
		gauss_rows(head.in, 16 * 128, 1.0f);
		other = head;
		memset(other.codes, 0x5a, sizeof(other.codes));
		encode(&head, NULL, 0);
		encode(&other, NULL, 0);
		assert_memory_equal(head.codes, other.codes,
				    b == 4 ? head.c.head_bytes : head.c.tile_bytes);
		assert_memory_equal(head.params, other.params, sizeof(head.params));
	}
}

/* The bytes of every codec for one input, as a number. A page outlives the program that wrote it
 * and is shared between builds: if this changes, so must SKVQ_PAGE_VERSION or the profile's name.
 * The input comes from integers alone, so compiler, libm and machine have no part in it. */
static void bytes_are_for_ever(void **state)
{
	static const char *const groups[] = {"", "-g32"};
	struct seeded fixed = {42};
	uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

	(void)state;
	for (size_t i = 0; i < N_DIMS * 5 * 3 * 2; i++) {
		char name[32];
		size_t b = i / N_DIMS % 5, kind = i / N_DIMS / 5 % 3;
		int is_v = i / N_DIMS / 15 != 0;

		if (kind == 2)
			snprintf(name, sizeof(name), "%s", affine_names[b]);
		else
			snprintf(name, sizeof(name), "%s%s", sym_names[b], groups[kind]);
		head_of(&head, name, is_v, dims[i % N_DIMS]);
		for (uint32_t tile = 0; tile < 5; tile++) {
			for (uint32_t j = 0; j < 16u * head.c.dim; j++) {
				uint64_t r = seeded_u64(&fixed);

				/* About Gaussian: the sum of four bytes. */
				head.in[j] = ((float)((r & 255) + (r >> 8 & 255) + (r >> 16 & 255) +
						      (r >> 24 & 255)) -
					      510.0f) /
					     128.0f;
			}
			encode(&head, NULL, tile);
		}
		for (uint32_t j = 0; j < head.c.head_bytes + 80u * head.c.n_rows; j++) {
			uint32_t n = head.c.head_bytes;

			hash ^= j < n ? head.codes[j] : head.params[j - n];
			hash *= UINT64_C(0x100000001b3);
		}
	}
	if (hash != GOLDEN)
		fail_msg("hash is 0x%016llx", (unsigned long long)hash);
}

/* --- input nobody would send ----------------------------------------------------------------- */

static void every_codec(void (*fn)(const char *name, int is_v, uint32_t dim))
{
	for (size_t d = 0; d < N_DIMS; d += 2) {
		for (int b = 0; b < 5; b++) {
			for (int is_v = 0; is_v < 2; is_v++) {
				char plain[32];

				snprintf(plain, sizeof(plain), "plain-%s", sym_names[b]);
				fn(sym_names[b], is_v, dims[d]);
				fn(plain, is_v, dims[d]);
				fn(affine_names[b], is_v, dims[d]);
			}
		}
		fn("fp16", 0, dims[d]);
	}
}

static void zero_vector(const char *name, int is_v, uint32_t dim)
{
	head_of(&head, name, is_v, dim);
	for (uint32_t i = 0; i < 16 * dim; i++)
		head.in[i] = i % 3 ? 0.0f : -0.0f;
	encode(&head, NULL, 1);
	ref.decode_tile(&head.c, head.codes, head.params, NULL, 1, head.out);
	for (uint32_t i = 0; i < 16 * dim; i++)
		assert_true(head.out[i] == 0.0f);
	if (head.c.kind != SKVQ_CODEC_SYM)
		return;
	for (uint32_t i = 0; i < 16 * dim; i++) {
		assert_false(signbit(head.out[i]));
		assert_int_equal(naive_code(&head, 1, i / dim, i % dim),
				 (head.c.levels_minus_1 + 1) / 2);
	}
	for (uint32_t i = 0; i < sizeof(head.params); i++)
		assert_int_equal(head.params[i], 0);
}

static void zeros(void **state)
{
	(void)state;
	every_codec(zero_vector);
}

static void finite_out(const struct head *h)
{
	ref.decode_tile(&h->c, h->codes, h->params, NULL, 0, head.out);
	for (uint32_t i = 0; i < 16u * h->c.dim; i++)
		assert_true(isfinite(head.out[i]));
	for (uint32_t i = 0; i < 80u * h->c.n_rows; i++)
		assert_int_not_equal(h->params[i] & 0x7f, 0x7f);
}

/* NaN is 0 and infinity is the largest half, so the bytes are those of that input. */
static void hostile_vector(const char *name, int is_v, uint32_t dim)
{
	static const float from[] = {NAN, INFINITY, -INFINITY, 1e38f, -3e38f, 70000.0f, 1e-42f};
	static const float to[] = {0, 65504, -65504, 65504, -65504, 65504, 1e-42f};

	head_of(&head, name, is_v, dim);
	head_of(&other, name, is_v, dim);
	for (uint32_t i = 0; i < 16 * dim; i++) {
		uint32_t what = seeded_below(&rng, 20);

		head.in[i] = what < 7 ? from[what] : seeded_gauss(&rng);
		other.in[i] = what < 7 ? to[what] : head.in[i];
	}
	encode(&head, NULL, 0);
	encode(&other, NULL, 0);
	assert_memory_equal(head.codes, other.codes, sizeof(head.codes));
	assert_memory_equal(head.params, other.params, sizeof(head.params));
	finite_out(&head);
	for (uint32_t i = 0; i < 16 * dim; i++)
		head.in[i] = i / dim % 4 == 0   ? NAN
			     : i / dim % 4 == 1 ? INFINITY
			     : i / dim % 4 == 2 ? 1e-41f * seeded_gauss(&rng)
						: 3e38f * seeded_gauss(&rng);
	encode(&head, NULL, 0);
	finite_out(&head);
}

static void hostile(void **state)
{
	(void)state;
	every_codec(hostile_vector);
}

/* One large channel: plain codecs must follow it, not average it away. */
static void one_outlier(void **state)
{
	(void)state;
	for (int b = 0; b < 5; b++) {
		char name[32];

		snprintf(name, sizeof(name), "plain-%s", sym_names[b]);
		head_of(&head, name, 0, 128);
		for (uint32_t t = 0; t < 16; t++)
			head.in[t * 128 + 8 * t] = t % 2 ? 40.0f : -40.0f;
		encode(&head, NULL, 0);
		ref.decode_tile(&head.c, head.codes, head.params, NULL, 0, head.out);
		for (uint32_t t = 0; t < 16; t++) {
			float got = head.out[t * 128 + 8 * t], want = t % 2 ? 40.0f : -40.0f;

			/* Even M has no level 0, so all others cost half a step: two bits give
			 * the outlier up in part. Ternary has it, and 8 bits need not. */
			if (b == 0 || b == 4)
				assert_true(fabsf(got - want) < 2.6f);
			assert_true(got * want > 0.0f);
		}
	}
}

/* --- dispatch -------------------------------------------------------------------------------- */

/* skvq_kernels_get() decides once a process, so each case gets a process. */
static int get_in_child(const char *cpu)
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		const struct skvq_kernels *k;

		if (cpu)
			setenv("SKVQ_CPU", cpu, 1);
		else
			unsetenv("SKVQ_CPU");
		k = skvq_kernels_get();
		if (k != skvq_kernels_get())
			_exit(9);
		_exit(!k                               ? 0
		      : strcmp(k->tier, "ref") == 0    ? 1
		      : strcmp(k->tier, "avx2") == 0   ? 2
		      : strcmp(k->tier, "avx512") == 0 ? 3
		      : strcmp(k->tier, "neon") == 0   ? 4
						       : 8);
	}
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void dispatch(void **state)
{
	int avx2 = (skvq_cpu_tiers() & SKVQ_TIER_AVX2) != 0;
	int avx512 = (skvq_cpu_tiers() & SKVQ_TIER_AVX512) != 0;
	int neon = (skvq_cpu_tiers() & SKVQ_TIER_NEON) != 0;
	int best = avx512 ? 3 : avx2 ? 2 : neon ? 4 : 1;
	struct skvq_kernels k;

	(void)state;
	assert_true(skvq_cpu_tiers() & SKVQ_TIER_REF);
	assert_int_equal(skvq_tiers_by_name("ref"), SKVQ_TIER_REF);
	assert_int_equal(skvq_tiers_by_name("avx2"), SKVQ_TIER_REF | SKVQ_TIER_AVX2);
	assert_int_equal(skvq_tiers_by_name("avx512"),
			 SKVQ_TIER_REF | SKVQ_TIER_AVX2 | SKVQ_TIER_AVX512);
	assert_int_equal(skvq_tiers_by_name("neon"), SKVQ_TIER_REF | SKVQ_TIER_NEON);
	assert_int_equal(skvq_tiers_by_name(""), 0);
	assert_int_equal(skvq_tiers_by_name("avx"), 0);
	assert_int_equal(skvq_tiers_by_name("REF"), 0);
	assert_int_equal(skvq_tiers_by_name(NULL), 0);
	assert_int_equal(get_in_child("ref"), 1);
	assert_int_equal(get_in_child("avx2"), avx2 ? 2 : 0);
	assert_int_equal(get_in_child("avx512"), avx512 ? 3 : 0);
	assert_int_equal(get_in_child("neon"), neon ? 4 : 0);
	assert_int_equal(get_in_child("avx3"), 0);
	assert_int_equal(get_in_child(""), best);
	assert_int_equal(get_in_child(NULL), best);
	skvq_kernels_fill(&k, 0);
	assert_string_equal(k.tier, "ref");
	skvq_kernels_fill(&k, UINT32_MAX & skvq_cpu_tiers());
	assert_string_equal(k.tier, avx512 ? "avx512" : avx2 ? "avx2" : neon ? "neon" : "ref");
}

static int setup(void **state)
{
	(void)state;
	rng = seeded_init();
	skvq_kernels_fill(&ref, SKVQ_TIER_REF);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(f16_every_value),
	    cmocka_unit_test(f16_rounding),
	    cmocka_unit_test(bf16_rounding),
	    cmocka_unit_test(e4m3),
	    cmocka_unit_test(hadamard_is_sylvesters),
	    cmocka_unit_test(transform_keeps_dot_products),
	    cmocka_unit_test(layout_equals_the_text),
	    cmocka_unit_test(fp16_rows),
	    cmocka_unit_test(gaussian_error),
	    cmocka_unit_test(sym_scale_is_nearly_the_best),
	    cmocka_unit_test(affine_is_skvqs),
	    cmocka_unit_test(ternary_grows_tile_by_tile),
	    cmocka_unit_test(ternary_every_byte),
	    cmocka_unit_test(tile_stays_in_its_place),
	    cmocka_unit_test(equal_input_equal_bytes),
	    cmocka_unit_test(bytes_are_for_ever),
	    cmocka_unit_test(zeros),
	    cmocka_unit_test(hostile),
	    cmocka_unit_test(one_outlier),
	    cmocka_unit_test(dispatch),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
