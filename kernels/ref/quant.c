/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scalar quantisers, one group of one vector at a time.
 *
 * Symmetric (SKVQ_CODEC_SYM; uniform symmetric levels): levels
 * L = 2c - M for c = 0..M, M = 2^b - 1 (ternary: 2), value d * L, and
 *     c = trunc(clamp(x / (2d) + (M + 1) / 2, 0, M))
 * which is the nearest level. The half step d is an E4M3 number times 2^scale_exp. So few of those
 * are worth a try that all of them are tried, as they will be read: from three codes below the
 * smaller of two guesses to one above the larger. The guesses are the best d for a Gaussian of the
 * group's rms, and max|x| / M, which an outlier wants. The least sum of squared errors wins, the
 * smallest d among equals. (Against all 126 codes this loses below .01 % of the error on Gaussian,
 * Laplace, uniform and one-outlier vectors, .6 % at 8 bits; descent by least squares lost more for
 * the same work.)
 *
 * Affine (SKVQ_CODEC_AFFINE; SKVQ's form, arXiv 2405.06219): lo, hi = clip * min, clip * max,
 *     s = max((hi - lo) / M, smallest E4M3 step), z = lo, both to E4M3 first, then
 *     q = rint_even(clamp((x - z) / s, 0, M)), value s * q + z.
 *
 * Nested (SKVQ_CODEC_SYM of 2 bits, kernels/nested.h): the same codes, and for each the nearest of
 * the four levels in its cell.
 *
 * All sums run in 16 lanes and one fixed tree, so the codes are the same on every ISA.
 */
#include "tier.h"

#include <math.h>

/* ret[i] = the level of the code that sym_codes() would choose at half step d > 0. */
static void levels_at(const float *x, uint32_t n, float d, float m, float *ret)
{
	float inverse = 1.0f / (2.0f * d), half = 0.5f * (m + 1.0f);

	for (uint32_t i = 0; i < n; i++) {
		float v = x[i] * inverse + half;

		v = v > 0.0f ? v : 0.0f;
		v = v < m ? v : m;
		ret[i] = 2.0f * (float)(int32_t)v - m;
	}
}

static float lanes_total(const vec_f32 v[VECS])
{
	float lanes[LANES];

	for (int i = 0; i < VECS; i++)
		vec_store(lanes + i * VEC, v[i]);
	return lanes_sum(lanes);
}

/* sum (x - d L)^2 */
static float error_at(const float *x, uint32_t n, float d, float m)
{
	vec_f32 sum[VECS] = {0};
	float level[DIM_MAX];

	levels_at(x, n, d, m, level);
	for (uint32_t i = 0; i < n; i += LANES) {
		for (int j = 0; j < VECS; j++) {
			vec_f32 e = vec_load(x + i + j * VEC) - d * vec_load(level + i + j * VEC);

			sum[j] += e * e;
		}
	}
	return lanes_total(sum);
}

static float square_sum(const float *x, uint32_t n)
{
	vec_f32 sum[VECS] = {0};

	for (uint32_t i = 0; i < n; i += LANES) {
		for (int j = 0; j < VECS; j++) {
			vec_f32 v = vec_load(x + i + j * VEC);

			sum[j] += v * v;
		}
	}
	return lanes_total(sum);
}

/* Half step over sigma that is best for a Gaussian (half of .0308, .335, .586, .9957, 1.224). */
static float gauss_half_step(const struct skvq_codec *c)
{
	switch (c->bits) {
	case SKVQ_BITS_8:
		return 0.0154f;
	case SKVQ_BITS_4:
		return 0.1675f;
	case SKVQ_BITS_3:
		return 0.293f;
	case SKVQ_BITS_2:
		return 0.49785f;
	default:
		return 0.612f;
	}
}

static float max_of(const float *x, uint32_t n)
{
	float top[LANES] = {0};

	for (uint32_t i = 0; i < n; i += LANES)
		for (uint32_t j = 0; j < LANES; j++)
			top[j] = top[j] > fabsf(x[i + j]) ? top[j] : fabsf(x[i + j]);
	return lanes_max(top, 0.0f);
}

static uint8_t sym_scale(const float *x, uint32_t n, const struct skvq_codec *c)
{
	float m = c->levels_minus_1, to_code = e4m3_exp2(-c->scale_exp);
	float best = square_sum(x, n); /* of d = 0 */
	int gauss = e4m3_encode(gauss_half_step(c) * sqrtf(best / (float)n) * to_code);
	int outlier = e4m3_encode(max_of(x, n) / m * to_code);
	int from = (gauss < outlier ? gauss : outlier) - 3;
	int to = (gauss < outlier ? outlier : gauss) + 1;
	uint8_t ret = 0;

	if (!(best > 0.0f))
		return 0;
	from = from > 1 ? from : 1;
	to = to < (int)E4M3_MAX_CODE ? to : (int)E4M3_MAX_CODE;
	for (int code = from; code <= to; code++) {
		float d = skvq_e4m3_value[code] * e4m3_exp2(c->scale_exp);
		float error = error_at(x, n, d, m);

		if (error < best) {
			best = error;
			ret = (uint8_t)code;
		}
	}
	return ret;
}

static void sym_codes(const float *x, uint32_t n, const struct skvq_codec *c, uint8_t scale,
		      uint8_t *codes)
{
	float d = skvq_e4m3_value[scale] * e4m3_exp2(c->scale_exp), m = c->levels_minus_1;
	float half = 0.5f * (m + 1.0f);
	float inverse = scale ? 1.0f / (2.0f * d) : 0.0f; /* scale 0: all codes (M + 1) / 2 */

	for (uint32_t i = 0; i < n; i++) {
		float v = x[i] * inverse + half;

		v = v > 0.0f ? v : 0.0f;
		v = v < m ? v : m;
		codes[i] = (uint8_t)(int32_t)v;
	}
}

static void affine_group(const float *x, uint32_t n, const struct skvq_codec *c, uint8_t *codes,
			 uint8_t *ret_scale, uint8_t *ret_zero)
{
	float low[LANES], high[LANES], m = c->levels_minus_1, step, zero;

	for (uint32_t j = 0; j < LANES; j++)
		low[j] = high[j] = x[j];
	for (uint32_t i = LANES; i < n; i += LANES) {
		for (uint32_t j = 0; j < LANES; j++) {
			low[j] = low[j] < x[i + j] ? low[j] : x[i + j];
			high[j] = high[j] > x[i + j] ? high[j] : x[i + j];
		}
	}
	for (uint32_t j = 1; j < LANES; j++) {
		low[0] = low[0] < low[j] ? low[0] : low[j];
		high[0] = high[0] > high[j] ? high[0] : high[j];
	}
	zero = c->clip * low[0];
	step = (c->clip * high[0] - zero) / m;
	*ret_scale = e4m3_encode(step * e4m3_exp2(-c->scale_exp));
	if (*ret_scale == 0)
		*ret_scale = 1;
	*ret_zero = e4m3_encode(zero * e4m3_exp2(-c->zero_exp));
	if (*ret_zero == 0x80)
		*ret_zero = 0; /* one zero, so that equal vectors have equal bytes */

	step = skvq_e4m3_value[*ret_scale] * e4m3_exp2(c->scale_exp);
	zero = skvq_e4m3_value[*ret_zero] * e4m3_exp2(c->zero_exp);
	for (uint32_t i = 0; i < n; i++) {
		float v = (x[i] - zero) / step;

		v = v > 0.0f ? v : 0.0f;
		v = v < m ? v : m;
		/* 2^23 + v: the sum's last place is 1, so adding rounds to an even integer. */
		codes[i] = (uint8_t)f32_bits(v + 8388608.0f);
	}
}

void SKVQ_TIER(quant)(const struct skvq_codec *c, const float *x, uint32_t token, uint8_t *codes,
		      uint8_t *params)
{
	for (uint32_t g = 0, at = 0; g < c->n_groups; g++, at += c->group) {
		uint32_t n = at + c->group <= c->dim ? c->group : c->dim - at;
		uint8_t *scale = params + (size_t)g * SKVQ_PAGE_TOKENS + token;

		if (c->kind == SKVQ_CODEC_AFFINE) {
			affine_group(x + at, n, c, codes + at, scale,
				     scale + (size_t)c->n_groups * SKVQ_PAGE_TOKENS);
		} else {
			*scale = sym_scale(x + at, n, c);
			sym_codes(x + at, n, c, *scale, codes + at);
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
