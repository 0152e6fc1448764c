/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/encode.h - sixteen tokens to a tile. Parameters are found with one token a lane; codes with
 * one token a lane for K, whose raw vectors want four channels of a token side by side, and with
 * one channel a lane for V, whose raw vectors want four tokens of a channel.
 */
#include "../ref/quant.h"

#define F16_MAX    65504.0f
#define MAGIC_BITS 0x4b000000

/* --- parameters ------------------------------------------------------------------------------ */

/* Half steps of the codes from step i on. */
SIMD void search_steps(const struct search *s, uint32_t i, f32s step_exp, f32s ret[SEARCH_WIDTH])
{
	REPEAT(w, SEARCH_WIDTH, {
		uint8_t code[LANES];

		search_codes(s, i + w, code);
		ret[w] = f32_mul(f32_from_e4m3(code), step_exp);
	});
}

/* ref's excess_scores and residual_scores. */
SIMD void excess_scores(const float *a, uint32_t n, f32s total, const bool ternary,
			const f32s d[SEARCH_WIDTH], f32s ret[SEARCH_WIDTH])
{
	f32s edge[SEARCH_WIDTH], sum[SEARCH_WIDTH];
	f32s count = f32_set((float)n), two = f32_set(2.0f), four = f32_set(4.0f);

	REPEAT(w, SEARCH_WIDTH, {
		edge[w] = ternary ? d[w] : f32_mul(two, d[w]);
		sum[w] = f32_set(0.0f);
	});
	for (uint32_t i = 0; i < n; i++) {
		f32s v = f32_load(a + i * LANES);

		REPEAT(w, SEARCH_WIDTH, sum[w] = f32_add(sum[w], f32_max(v, edge[w])););
	}
	REPEAT(w, SEARCH_WIDTH, {
		f32s least = f32_sub(f32_mul(two, total), f32_mul(d[w], count));
		f32s excess = f32_mul(four, f32_sub(sum[w], f32_mul(edge[w], count)));

		ret[w] = f32_mul(d[w], ternary ? excess : f32_add(least, excess));
	});
}

SIMD void residual_scores(const float *a, uint32_t n, float levels, const f32s d[SEARCH_WIDTH],
			  f32s ret[SEARCH_WIDTH])
{
	f32s inverse[SEARCH_WIDTH], width[SEARCH_WIDTH], sum[SEARCH_WIDTH];
	f32s top = f32_set(levels);

	REPEAT(w, SEARCH_WIDTH, {
		width[w] = f32_mul(f32_set(2.0f), d[w]);
		inverse[w] = f32_div(f32_set(1.0f), width[w]);
		sum[w] = f32_set(0.0f);
	});
	for (uint32_t i = 0; i < n; i++) {
		f32s v = f32_load(a + i * LANES);

		REPEAT(w, SEARCH_WIDTH, {
			f32s u = f32_trunc(f32_min(f32_mul(v, inverse[w]), top));
			f32s e = f32_sub(v, f32_fma(width[w], u, d[w])); /* that product is exact */

			sum[w] = f32_add(sum[w], f32_mul(e, e));
		});
	}
	REPEAT(w, SEARCH_WIDTH, ret[w] = f32_sub(f32_set(-0.0f), sum[w]););
}

enum scoring { BY_TERNARY, BY_TWO_BITS, BY_RESIDUAL };

SIMD void search_group(const struct skvq_codec *c, const float *a, uint32_t n, f32s total,
		       const enum scoring by, struct search *s)
{
	f32s step_exp = f32_set(e4m3_exp2(c->scale_exp) * 256.0f); /* f32_from_e4m3 gives a 256th */
	f32s best = f32_load(s->best), step = f32_load(s->step);

	for (uint32_t i = 0; i < s->n_steps; i += SEARCH_WIDTH) {
		f32s d[SEARCH_WIDTH], score[SEARCH_WIDTH];

		search_steps(s, i, step_exp, d);
		if (by == BY_RESIDUAL)
			residual_scores(a, n, (float)(c->levels_minus_1 / 2), d, score);
		else
			excess_scores(a, n, total, by == BY_TERNARY, d, score);
		REPEAT(w, SEARCH_WIDTH, {
			step = f32_if_ge(best, score[w], step, d[w]);
			best = f32_max(score[w], best);
		});
	}
	f32_store(s->step, step);
}

/* x, a: [n][16]; a gets |x|. */
static __attribute__((noinline)) void sym_group(const struct skvq_codec *c, const float *x,
						uint32_t n, uint32_t group, float *a,
						uint8_t *scale, struct quant *q)
{
	f32s total = f32_set(0.0f), square = total, top = total;
	float square_of[LANES], top_of[LANES];
	struct search s;

	for (uint32_t i = 0; i < n; i++) {
		f32s v = f32_abs(f32_load(x + i * LANES));

		f32_store(a + i * LANES, v);
		total = f32_add(total, v);
		square = f32_add(square, f32_mul(v, v));
		top = f32_max(top, v);
	}
	f32_store(square_of, square);
	f32_store(top_of, top);
	search_begin(c, n, top_of, square_of, &s);
	if (!has_few_levels(c))
		search_group(c, a, n, total, BY_RESIDUAL, &s);
	else if (c->levels_minus_1 == 3)
		search_group(c, a, n, total, BY_TWO_BITS, &s);
	else
		search_group(c, a, n, total, BY_TERNARY, &s);
	quant_sym(c, &s, group, scale, q);
}

static void affine_group(const struct skvq_codec *c, const float *x, uint32_t n, uint32_t group,
			 uint8_t *scale, struct quant *q)
{
	f32s low = f32_load(x), high = low;
	float low_of[LANES], high_of[LANES];

	for (uint32_t i = 1; i < n; i++) {
		f32s v = f32_load(x + i * LANES);

		low = f32_min(low, v);
		high = f32_max(high, v);
	}
	f32_store(low_of, low);
	f32_store(high_of, high);
	quant_affine(c, low_of, high_of, group, scale,
		     scale + (size_t)c->n_groups * SKVQ_PAGE_TOKENS, q);
}

/* --- codes ----------------------------------------------------------------------------------- */

/* Sixteen codes in the low bits, MAGIC_BITS above. */
SIMD i32s code_bits(f32s x, f32s zero, f32s inverse, f32s middle, f32s m)
{
	f32s v = f32_add(f32_mul(f32_sub(x, zero), inverse), middle);

	v = f32_min(f32_max(v, f32_set(0.0f)), m);
	return f32_bits_of(f32_add(v, f32_set(MAGIC)));
}

/* Byte j of each word is code j. Shifted by eight or more, MAGIC_BITS are gone. */
SIMD i32s code_words(const i32s code[4])
{
	i32s w = i32_add(i32_shl(code[3], 8), code[2]);

	w = i32_add(i32_shl(w, 8), code[1]);
	w = i32_add(i32_shl(w, 8), code[0]);
	return i32_sub(w, i32_set(MAGIC_BITS));
}

/* x[dim][16] to raw vectors of K. */
static void raw_of_keys(const struct skvq_codec *c, const float *x, const struct quant *q,
			int32_t *raw)
{
	f32s middle = f32_set(q->middle), m = f32_set(c->levels_minus_1);

	for (uint32_t g = 0, i = 0; g < c->n_groups; g++) {
		uint32_t end = i + c->group < c->dim ? i + c->group : c->dim;
		f32s zero = f32_load(q->zero[g]), inverse = f32_load(q->inverse[g]);

		for (; i < end; i += 4, raw += LANES) {
			i32s code[4];

			REPEAT(j, 4,
			       code[j] = code_bits(f32_load(x + (i + j) * LANES), zero, inverse,
						   middle, m););
			i32_store(raw, code_words(code));
		}
	}
}

/* rows[16][dim] to raw vectors of V. */
static void raw_of_values(const struct skvq_codec *c, const float *rows, const struct quant *q,
			  int32_t *raw)
{
	f32s middle = f32_set(q->middle), m = f32_set(c->levels_minus_1);
	uint32_t dim = c->dim;

	for (uint32_t t = 0; t < LANES; t += 4, rows += 4 * dim) {
		for (uint32_t g = 0, i = 0; g < c->n_groups; g++) {
			uint32_t end = i + c->group < dim ? i + c->group : dim;
			f32s zero[4], inverse[4];

			REPEAT(j, 4, {
				zero[j] = f32_set(q->zero[g][t + j]);
				inverse[j] = f32_set(q->inverse[g][t + j]);
			});
			for (; i < end; i += LANES, raw += LANES) {
				i32s code[4];

				REPEAT(j, 4,
				       code[j] = code_bits(f32_load(rows + j * dim + i), zero[j],
							   inverse[j], middle, m););
				i32_store(raw, code_words(code));
			}
		}
	}
}

/* --- planes ---------------------------------------------------------------------------------- */

/* planes[i] = sum over p of (raw[i + p*m] >> down & mask) << width * p, n raw vectors. */
SIMD void planes_pack(const uint8_t *raw, uint32_t n, uint32_t width, uint32_t down,
		      uint8_t *planes)
{
	uint32_t m = (n * width + 7) / 8;
	uint8_t mask = (uint8_t)((1u << width) - 1);

	for (uint32_t i = 0; i < m; i++) {
		codes sum = codes_and(codes_shr(codes_load(raw + 64 * (size_t)i), down), mask);

		for (uint32_t v = i + m, up = width; v < n; v += m, up += width) {
			codes x = codes_shr(codes_load(raw + 64 * (size_t)v), down);

			sum = codes_or(sum, codes_shl(codes_and(x, mask), up));
		}
		codes_store(planes + 64 * (size_t)i, sum);
	}
}

/* Tile 0 comes first and sets; a recycled buffer needs no clearing. */
static void ternary_pack(const uint8_t *raw, uint32_t n, uint32_t tile, uint8_t *planes)
{
	static const uint8_t power[SKVQ_PAGE_TILES] = {1, 3, 9, 27, 81};

	for (uint32_t i = 0; i < n; i++, raw += 64, planes += 64) {
		codes v = codes_load(raw);

		if (tile)
			v = codes_add(codes_mul(v, power[tile]), codes_load(planes));
		codes_store(planes, v);
	}
}

static void raw_pack(const struct skvq_codec *c, const uint8_t *raw, uint32_t tile, uint8_t *planes)
{
	uint8_t *out = planes + (size_t)tile * c->tile_bytes;
	uint32_t n = c->dim / 4u;

	switch (c->bits) {
	case SKVQ_BITS_8:
		memcpy(out, raw, 64 * (size_t)n);
		break;
	case SKVQ_BITS_4:
		planes_pack(raw, n, 4, 0, out);
		break;
	case SKVQ_BITS_3:
		planes_pack(raw, n, 2, 0, out);
		planes_pack(raw, n, 1, 2, out + 64 * (size_t)((n + 3) / 4));
		break;
	case SKVQ_BITS_2:
		planes_pack(raw, n, 2, 0, out);
		break;
	default:
		ternary_pack(raw, n, tile, planes);
		break;
	}
}

/* --- a tile ---------------------------------------------------------------------------------- */

static void simd_encode_tile(const struct skvq_codec *c, const struct skvq_transform *tr,
			     float *rows, uint32_t tile, uint8_t *planes, uint8_t *params,
			     uint8_t *refine)
{
	float x[DIM_MAX * LANES] __attribute__((aligned(64))); /* [dim][16] */
	float a[DIM_MAX * LANES] __attribute__((aligned(64)));
	int32_t raw[RAW_WORDS_MAX] __attribute__((aligned(64)));
	const float *m = tr ? tr->into : NULL;
	const uint16_t *reorder = tr ? tr->reorder : NULL;
	uint32_t dim = c->dim;
	struct quant q;

	assert(tile < SKVQ_PAGE_TILES && dim <= DIM_MAX);
	if (refine) {
		SKVQ_TIER(encode_tile)(c, tr, rows, tile, planes, params, refine);
		return;
	}
	for (uint32_t i = 0; i < LANES * dim; i += LANES)
		f32_store(rows + i, f32_within(f32_load(rows + i), F16_MAX));
	if (c->kind == SKVQ_CODEC_FP16) {
		rows_forward(c, m, reorder, LANES, rows);
		simd_f32_to_f16(rows, (uint16_t *)(void *)(planes + (size_t)tile * c->tile_bytes),
				(size_t)LANES * dim);
		return;
	}
	rows_forward(c, m, NULL, LANES, rows);
	tile_columns(rows, dim, reorder ? a : x);
	for (uint32_t i = 0; reorder && i < dim; i++)
		f32_store(x + i * LANES, f32_load(a + (size_t)reorder[i] * LANES));
	if (reorder && c->is_v)
		tile_rows(x, dim, rows);
	for (uint32_t g = 0, at = 0; g < c->n_groups; g++, at += c->group) {
		uint32_t n = at + c->group <= dim ? c->group : dim - at;
		uint8_t *scale = params + (size_t)g * SKVQ_PAGE_TOKENS + tile * LANES;

		if (c->kind == SKVQ_CODEC_AFFINE)
			affine_group(c, x + at * LANES, n, g, scale, &q);
		else
			sym_group(c, x + at * LANES, n, g, a, scale, &q);
	}
	if (c->is_v)
		raw_of_values(c, rows, &q, raw);
	else
		raw_of_keys(c, x, &q, raw);
	raw_pack(c, (const uint8_t *)raw, tile, planes);
}
