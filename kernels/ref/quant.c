/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scalar quantisers, one group of a tile's sixteen tokens at a time: x[channel][token], so that
 * a sum over channels is a sum in a lane, in the order of the channels, on every ISA the same.
 *
 * Symmetric (SKVQ_CODEC_SYM; uniform symmetric levels): levels L = 2c - M for c = 0..M,
 * M = 2^b - 1 (ternary: 2), value d * L, and
 *     c = rint_even(clamp(x / (2d) + M / 2, 0, M))
 * which is the nearest level. The half step d is an E4M3 number times 2^scale_exp. So few of those
 * are worth a try that all of them are tried, as they will be read: from three codes below the
 * smaller of two guesses to one above the larger. The guesses are the best d for a Gaussian of the
 * group's rms, and max|x| / M, which an outlier wants. The least sum of squared errors wins, the
 * smallest d among equals. (Against all 126 codes this loses below .01 % of the error on Gaussian,
 * Laplace, uniform and one-outlier vectors, .6 % at 8 bits; descent by least squares lost more for
 * the same work.) How the errors of two d are compared depends on M, see excess_scores.
 *
 * Affine (SKVQ_CODEC_AFFINE; SKVQ's form, arXiv 2405.06219): lo, hi = clip * min, clip * max,
 *     s = max((hi - lo) / M, smallest E4M3 step), z = lo, both to E4M3 first, then
 *     q = rint_even(clamp((x - z) * (1 / s), 0, M)), value s * q + z.
 *
 * Nested (SKVQ_CODEC_SYM of 2 bits, kernels/nested.h): the same codes, and for each the nearest of
 * the four levels in its cell.
 */
#include "quant.h"

#include <stdbool.h>

/* Two bits and ternary. Of sum x^2 the levels at d leave sum x^2 - g(d), and with a = |x| the gain
 * is the best that levels can do for each a,
 *     2 bits:  max(2ad - d^2, 6ad - 9d^2) = d (2a - d + 4 max(a - 2d, 0))
 *     ternary: max(0,         4ad - 4d^2) = d (         4 max(a - d,  0))
 * so that two operations a channel do: max(a, 2d) or max(a, d), and a sum. total: of a. */
static void excess_scores(const struct skvq_codec *c, const float *a, uint32_t n,
			  const float *total, const float *d, float *ret)
{
	bool ternary = c->levels_minus_1 == 2;
	float count = (float)n;

	for (uint32_t t = 0; t < LANES; t += VEC) {
		vec_f32 step = vec_load(d + t), edge = ternary ? step : 2.0f * step;
		vec_f32 sum = {0}, least = {0};

		for (uint32_t i = 0; i < n; i++)
			sum += vec_max(vec_load(a + i * LANES + t), edge);
		if (!ternary)
			least = 2.0f * vec_load(total + t) - step * count;
		vec_store(ret + t, step * (least + 4.0f * (sum - edge * count)));
	}
}

/* More levels: less the sum of (a - d (2u + 1))^2, u = 0..(M - 1) / 2. The products are exact: E4M3
 * has four bits. */
static void residual_scores(const struct skvq_codec *c, const float *a, uint32_t n, const float *d,
			    float *ret)
{
	float top = (float)(c->levels_minus_1 / 2), inverse[LANES], sum[LANES] = {0};

	for (uint32_t t = 0; t < LANES; t++)
		inverse[t] = 1.0f / (2.0f * d[t]);
	for (uint32_t i = 0; i < n; i++, a += LANES) {
		for (uint32_t t = 0; t < LANES; t++) {
			float v = a[t] * inverse[t], e;

			v = v < top ? v : top;
			e = a[t] - (2.0f * d[t] * (float)(int32_t)v + d[t]);
			sum[t] += e * e;
		}
	}
	for (uint32_t t = 0; t < LANES; t++)
		ret[t] = -sum[t];
}

static void sym_group(const struct skvq_codec *c, const float *x, uint32_t n, uint32_t group,
		      uint8_t *scale, struct quant *q)
{
	float a[DIM_MAX * LANES], total[LANES] = {0}, square[LANES] = {0}, top[LANES] = {0};
	struct search s;

	for (uint32_t i = 0; i < n; i++) {
		for (uint32_t t = 0; t < LANES; t++) {
			float v = fabsf(x[i * LANES + t]);

			a[i * LANES + t] = v;
			total[t] += v;
			square[t] += v * v;
			top[t] = top[t] > v ? top[t] : v;
		}
	}
	search_begin(c, n, top, square, &s);
	for (uint32_t i = 0; i < s.n_steps; i++) {
		float d[LANES], score[LANES];
		uint8_t code[LANES];

		search_codes(&s, i, code);
		for (uint32_t t = 0; t < LANES; t++)
			d[t] = skvq_e4m3_value[code[t]] * e4m3_exp2(c->scale_exp);
		if (has_few_levels(c))
			excess_scores(c, a, n, total, d, score);
		else
			residual_scores(c, a, n, d, score);
		for (uint32_t t = 0; t < LANES; t++) {
			s.step[t] = score[t] > s.best[t] ? d[t] : s.step[t];
			s.best[t] = score[t] > s.best[t] ? score[t] : s.best[t];
		}
	}
	quant_sym(c, &s, group, scale, q);
}

static void affine_group(const struct skvq_codec *c, const float *x, uint32_t n, uint32_t group,
			 uint8_t *scale, struct quant *q)
{
	float low[LANES], high[LANES];

	memcpy(low, x, sizeof(low));
	memcpy(high, x, sizeof(high));
	for (uint32_t i = 1; i < n; i++) {
		for (uint32_t t = 0; t < LANES; t++) {
			float v = x[i * LANES + t];

			low[t] = low[t] < v ? low[t] : v;
			high[t] = high[t] > v ? high[t] : v;
		}
	}
	quant_affine(c, low, high, group, scale, scale + (size_t)c->n_groups * SKVQ_PAGE_TOKENS, q);
}

void SKVQ_TIER(quant)(const struct skvq_codec *c, const float *x, uint32_t tile, uint8_t *codes,
		      uint8_t *params)
{
	float m = c->levels_minus_1;
	struct quant q;

	for (uint32_t g = 0, at = 0; g < c->n_groups; g++, at += c->group) {
		uint32_t n = at + c->group <= c->dim ? c->group : c->dim - at;
		uint8_t *scale = params + (size_t)g * SKVQ_PAGE_TOKENS + tile * LANES;

		if (c->kind == SKVQ_CODEC_AFFINE)
			affine_group(c, x + at * LANES, n, g, scale, &q);
		else
			sym_group(c, x + at * LANES, n, g, scale, &q);
	}
	for (uint32_t i = 0; i < c->dim; i++) {
		const float *zero = q.zero[i / c->group], *inverse = q.inverse[i / c->group];

		for (uint32_t t = 0; t < LANES; t++) {
			float v = (x[i * LANES + t] - zero[t]) * inverse[t] + q.middle;

			v = v > 0.0f ? v : 0.0f;
			v = v < m ? v : m;
			codes[t * c->dim + i] = (uint8_t)f32_bits(v + MAGIC);
		}
	}
}

void SKVQ_TIER(quant_refine)(const struct skvq_codec *c, const float *x, uint32_t token,
			     const uint8_t *codes, const uint8_t *params, uint8_t *ret)
{
	/* Halfway between neighbouring levels, in steps: of inner cells, of outer ones. */
	static const float border[2][3] = {{.25f, .5f, .75f}, {1.25f, 43 / 28.0f, 55 / 28.0f}};

	for (uint32_t g = 0, at = 0; g < c->n_groups; g++, at += c->group) {
		uint8_t scale = params[(size_t)g * SKVQ_PAGE_TOKENS + token];
		float d = skvq_e4m3_value[scale] * e4m3_exp2(c->scale_exp);
		float inverse = scale ? 1.0f / (2.0f * d) : 0.0f;

		for (uint32_t i = at; i < at + c->group && i < c->dim; i++) {
			uint8_t cell = codes[i];
			const float *b = border[cell == 0 || cell == 3];
			float y = fabsf(x[i] * inverse);
			uint8_t up = (uint8_t)((y >= b[0]) + (y >= b[1]) + (y >= b[2]));

			ret[i] = cell < 2 ? (uint8_t)(3 - up) : up;
		}
	}
}

void SKVQ_TIER(dequant_params)(const struct skvq_codec *c, const uint8_t *params, uint32_t tile,
			       struct tile_params *ret)
{
	float step = e4m3_exp2(c->scale_exp), zero = e4m3_exp2(c->zero_exp);

	if (c->kind == SKVQ_CODEC_SYM)
		step *= 2.0f; /* levels are halves, see pack.c */
	for (uint32_t g = 0; g < c->n_groups; g++) {
		const uint8_t *s = params + (size_t)g * SKVQ_PAGE_TOKENS + tile * LANES;
		const uint8_t *z = s + (size_t)c->n_groups * SKVQ_PAGE_TOKENS;

		for (uint32_t t = 0; t < LANES; t++)
			ret->step[g][t] = skvq_e4m3_value[s[t]] * step;
		if (c->kind == SKVQ_CODEC_AFFINE)
			for (uint32_t t = 0; t < LANES; t++)
				ret->zero[g][t] = skvq_e4m3_value[z[t]] * zero;
	}
}
