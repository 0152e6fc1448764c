/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/decode.h - a tile back to sixteen rows in stored space.
 */

/* raw[i + p*m] = (planes[i] >> width * p & mask) << up, or that on top where up is not 0. */
SIMD void planes_unpack(const uint8_t *planes, uint32_t n, uint32_t width, uint32_t up,
			uint8_t *raw)
{
	uint32_t m = (n * width + 7) / 8;
	uint8_t mask = (uint8_t)((1u << width) - 1);

	for (uint32_t i = 0; i < m; i++) {
		codes plane = codes_load(planes + 64 * (size_t)i);

		for (uint32_t v = i, down = 0; v < n; v += m, down += width) {
			codes x = codes_and(codes_shr(plane, down), mask);

			if (up)
				x = codes_or(codes_shl(x, up), codes_load(raw + 64 * (size_t)v));
			codes_store(raw + 64 * (size_t)v, x);
		}
	}
}

SIMD void ternary_unpack(const uint8_t *planes, uint32_t n, const uint32_t tile, uint8_t *raw)
{
	for (uint32_t i = 0; i < n; i++) {
		codes digit[SKVQ_PAGE_TILES];

		codes_trits(codes_load(planes + 64 * (size_t)i), digit);
		codes_store(raw + 64 * (size_t)i, digit[tile]);
	}
}

static void raw_unpack(const struct skvq_codec *c, const uint8_t *planes, uint32_t tile,
		       uint8_t *raw)
{
	const uint8_t *in = planes + (size_t)tile * c->tile_bytes;
	uint32_t n = c->dim / 4u;

	switch (c->bits) {
	case SKVQ_BITS_8:
		memcpy(raw, in, 64 * (size_t)n);
		return;
	case SKVQ_BITS_4:
		planes_unpack(in, n, 4, 0, raw);
		return;
	case SKVQ_BITS_3:
		planes_unpack(in, n, 2, 0, raw);
		planes_unpack(in + 64 * (size_t)((n + 3) / 4), n, 1, 2, raw);
		return;
	case SKVQ_BITS_2:
		planes_unpack(in, n, 2, 0, raw);
		return;
	default:
		break;
	}
	switch (tile) { /* known to the compiler, which drops what the other digits need */
	case 0:
		ternary_unpack(planes, n, 0, raw);
		break;
	case 1:
		ternary_unpack(planes, n, 1, raw);
		break;
	case 2:
		ternary_unpack(planes, n, 2, raw);
		break;
	case 3:
		ternary_unpack(planes, n, 3, raw);
		break;
	default:
		ternary_unpack(planes, n, 4, raw);
		break;
	}
}

/* step * (code - middle) + zero. Symmetric steps are doubled, and middle is M / 2: halves are exact,
 * so the product is d (2 code - M). */
struct level {
	f32s step, middle, zero;
	bool affine;
};

SIMD f32s value_of(f32s code, const struct level *l)
{
	f32s v = f32_mul(l->step, f32_sub(code, l->middle));

	return l->affine ? f32_add(v, l->zero) : v;
}

SIMD void level_set(const struct skvq_codec *c, const struct tile_params *p, uint32_t g, uint32_t t,
		    struct level *l)
{
	l->step = f32_set(p->step[g][t]);
	if (c->kind == SKVQ_CODEC_AFFINE)
		l->zero = f32_set(p->zero[g][t]);
}

/* K: word t of vector i is four channels of token t, so words are transposed, then bytes are in the
 * order of channels. raw is read up to a multiple of sixteen vectors. */
static void keys_from_raw(const struct skvq_codec *c, const uint8_t *raw,
			  const struct tile_params *p, struct level l, float *rows)
{
	uint8_t bytes[LANES * DIM_MAX] __attribute__((aligned(64)));
	uint32_t dim = c->dim, stride = (dim + 63) / 64 * 64;

	for (uint32_t i = 0; i < dim; i += 64)
		f32_transpose((const float *)(const void *)(raw + (size_t)i * LANES), LANES,
			      (float *)(void *)(bytes + i), stride / 4);
	for (uint32_t t = 0; t < LANES; t++) {
		for (uint32_t g = 0, i = 0; g < c->n_groups; g++) {
			uint32_t end = i + c->group < dim ? i + c->group : dim;

			level_set(c, p, g, t, &l);
			for (; i < end; i += LANES)
				f32_store(rows + (size_t)t * dim + i,
					  value_of(f32_from_bytes(bytes + t * stride + i), &l));
		}
	}
}

/* V: byte j of word x is channel x of token 4 p + j. */
static void values_from_raw(const struct skvq_codec *c, const int32_t *raw,
			    const struct tile_params *p, struct level l, float *rows)
{
	uint32_t dim = c->dim;

	for (uint32_t t = 0; t < LANES; t += 4, rows += 4 * dim) {
		for (uint32_t g = 0, i = 0; g < c->n_groups; g++) {
			uint32_t end = i + c->group < dim ? i + c->group : dim;
			struct level level[4];

			REPEAT(j, 4, {
				level[j] = l;
				level_set(c, p, g, t + j, &level[j]);
			});
			for (; i < end; i += LANES, raw += LANES) {
				i32s w = i32_load(raw);

				REPEAT(j, 4,
				       f32_store(rows + j * dim + i,
						 value_of(f32_from_byte(w, j), &level[j])););
			}
		}
	}
}

static void simd_decode_tile(const struct skvq_codec *c, const uint8_t *planes,
			     const uint8_t *params, const uint8_t *refine, uint32_t tile,
			     float *rows)
{
	int32_t raw[RAW_WORDS_MAX] __attribute__((aligned(64)));
	struct tile_params p;
	struct level l = {f32_set(0.0f), f32_set(0.0f), f32_set(0.0f), false};

	assert(tile < SKVQ_PAGE_TILES && c->dim <= DIM_MAX);
	if (refine) {
		SKVQ_TIER(decode_tile)(c, planes, params, refine, tile, rows);
		return;
	}
	if (c->kind == SKVQ_CODEC_FP16) {
		simd_f16_to_f32(
		    (const uint16_t *)(const void *)(planes + (size_t)tile * c->tile_bytes), rows,
		    (size_t)LANES * c->dim);
		return;
	}
	raw_unpack(c, planes, tile, (uint8_t *)raw);
	if (!c->is_v) /* what keys_from_raw reads beyond */
		memset((uint8_t *)raw + (size_t)c->dim * LANES, 0, (-c->dim & 63u) * LANES);
	SKVQ_TIER(dequant_params)(c, params, tile, &p);
	l.affine = c->kind == SKVQ_CODEC_AFFINE;
	l.middle = f32_set(l.affine ? 0.0f : 0.5f * (float)c->levels_minus_1);
	if (c->is_v)
		values_from_raw(c, raw, &p, l, rows);
	else
		keys_from_raw(c, (const uint8_t *)raw, &p, l, rows);
}

void SKVQ_TIER(codec_fill)(struct skvq_kernels *table)
{
	table->f16_to_f32 = simd_f16_to_f32;
	table->f32_to_f16 = simd_f32_to_f16;
	table->to_stored = simd_to_stored;
	table->from_stored = simd_from_stored;
	table->query_to_stored = simd_query_to_stored;
	table->tile_from_stored = simd_tile_from_stored;
	table->encode_tile = simd_encode_tile;
	table->decode_tile = simd_decode_tile;
}
