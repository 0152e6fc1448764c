/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codes to the planes of skvq/format.h and back. Both ways go through raw vectors of 64 bytes, one
 * code a byte; seen as sixteen 32-bit words, word x of a raw vector holds in byte j
 *   K: token x, channel 4*i + j          V: channel 16*c + x, token 4*p + j
 * so that shifting all words by 8*j and masking gives sixteen codes that lie side by side in the
 * level block. Word-wise shifts may carry bits into the next byte; the masks remove them.
 */
#include "tier.h"

/* --- raw vectors ---------------------------------------------------------------------------- */

static void raw_from_codes(const struct skvq_codec *c, const uint8_t *codes, uint8_t *raw)
{
	uint32_t dim = c->dim;

	if (!c->is_v) {
		for (uint32_t i = 0; i < dim / 4; i++)
			for (uint32_t t = 0; t < LANES; t++)
				memcpy(raw + 64 * i + 4 * t, codes + t * dim + 4 * i, 4);
		return;
	}
	for (uint32_t p = 0; p < 4; p++)
		for (uint32_t ch = 0; ch < dim; ch++)
			for (uint32_t j = 0; j < 4; j++)
				raw[p * dim * 4 + 4 * ch + j] = codes[(4 * p + j) * dim + ch];
}

/* Four rows of sixteen levels from one raw vector. */
static inline void levels_from_vector(const uint32_t *w, float mid, size_t row, float *levels)
{
	for (uint32_t j = 0; j < 4; j++) {
		for (uint32_t x = 0; x < 16; x += VEC) {
			vec_u32 code = *(const vec_u32_mem *)(w + x) >> 8 * j & 255;

			vec_store(levels + j * row + x,
				  __builtin_convertvector((vec_i32)code, vec_f32) - mid);
		}
	}
}

static void levels_from_raw(const struct skvq_codec *c, const uint32_t *raw, float *levels)
{
	uint32_t dim = c->dim;
	/* Halves are exact, so 2d * (code - M/2) is the same float as d * (2 code - M). */
	float mid = c->kind == SKVQ_CODEC_SYM ? 0.5f * c->levels_minus_1 : 0.0f;

	if (!c->is_v) {
		for (uint32_t i = 0; i < dim / 4; i++)
			levels_from_vector(raw + 16 * i, mid, LANES, levels + 64 * (size_t)i);
		return;
	}
	for (uint32_t p = 0; p < 4; p++)
		for (uint32_t ch = 0; ch < dim; ch += 16, raw += 16)
			levels_from_vector(raw, mid, dim, levels + 4 * p * (size_t)dim + ch);
}

/* --- planes of 8, 4, 2 and 1 bit ------------------------------------------------------------- */

/* planes[i] = sum over p of (raw[i + p*m] >> down & mask) << width * p. */
static void planes_pack(const uint8_t *raw, uint32_t n, uint32_t width, uint32_t down,
			uint8_t *planes)
{
	uint32_t m = (n * width + 7) / 8, mask = (1u << width) - 1;

	memset(planes, 0, 64 * (size_t)m);
	for (uint32_t p = 0; p * m < n; p++) {
		uint32_t bytes = 64 * ((p + 1) * m < n ? m : n - p * m);

		for (uint32_t b = 0; b < bytes; b++)
			planes[b] |= (uint8_t)((raw[b] >> down & mask) << width * p);
		raw += bytes;
	}
}

/* raw[i + p*m] |= (planes[i] >> width * p & mask) << up; the first plane (up = 0) sets. */
static void planes_unpack(const uint8_t *planes, uint32_t n, uint32_t width, uint32_t up,
			  uint32_t *raw)
{
	uint32_t m = (n * width + 7) / 8, mask = ((1u << width) - 1) * 0x01010101u;

	for (uint32_t p = 0; p * m < n; p++) {
		uint32_t words = 16 * ((p + 1) * m < n ? m : n - p * m);

		for (uint32_t i = 0; i < words; i++) {
			uint32_t w;

			memcpy(&w, planes + 4 * (size_t)i, sizeof(w));
			w = (w >> width * p & mask) << up;
			raw[i] = up ? raw[i] | w : w;
		}
		raw += words;
	}
}

static uint32_t low_bytes(uint32_t n)
{
	return 64 * ((n + 3) / 4);
}

/* --- ternary: five tiles in a byte, base 3 ---------------------------------------------------- */

static void ternary_add(const uint8_t *raw, uint32_t bytes, uint32_t tile, uint8_t *planes)
{
	static const uint8_t power[SKVQ_PAGE_TILES] = {1, 3, 9, 27, 81};

	/* Tile 0 comes first and sets; a recycled buffer needs no clearing. */
	for (uint32_t i = 0; i < bytes; i++)
		planes[i] = (uint8_t)((tile ? planes[i] : 0) + raw[i] * power[tile]);
}

/* (b / divisor) % 3, the division as a multiplication: mul / 2^shift is just above 1 / divisor, and
 * b * mul stays below 2^16. Exact for every byte below 243 (tests/unit/test_codec.c tries them). */
static inline void ternary_digit(const uint8_t *planes, uint32_t bytes, uint32_t mul,
				 uint32_t shift, uint8_t *raw)
{
	for (uint32_t i = 0; i < bytes; i++) {
		uint16_t q = (uint16_t)((uint16_t)(planes[i] * mul) >> shift);
		uint16_t third = (uint16_t)((uint16_t)(q * 171u) >> 9);

		raw[i] = (uint8_t)(q - 3 * third);
	}
}

static void ternary_unpack(const uint8_t *planes, uint32_t bytes, uint32_t tile, uint8_t *raw)
{
	switch (tile) {
	case 0:
		ternary_digit(planes, bytes, 1, 0, raw);
		break;
	case 1:
		ternary_digit(planes, bytes, 171, 9, raw);
		break;
	case 2:
		ternary_digit(planes, bytes, 57, 9, raw);
		break;
	case 3:
		ternary_digit(planes, bytes, 19, 9, raw);
		break;
	default:
		ternary_digit(planes, bytes, 203, 14, raw);
		break;
	}
}

/* --- a tile ---------------------------------------------------------------------------------- */

void SKVQ_TIER(pack)(const struct skvq_codec *c, const uint8_t *codes, uint32_t tile,
		     uint8_t *planes)
{
	uint8_t raw[RAW_WORDS_MAX * 4];
	uint8_t *out = planes + (size_t)tile * c->tile_bytes;
	uint32_t n = c->dim / 4u;

	raw_from_codes(c, codes, raw);
	switch (c->bits) {
	case SKVQ_BITS_8:
		memcpy(out, raw, 64 * (size_t)n);
		break;
	case SKVQ_BITS_4:
		planes_pack(raw, n, 4, 0, out);
		break;
	case SKVQ_BITS_3:
		planes_pack(raw, n, 2, 0, out);
		planes_pack(raw, n, 1, 2, out + low_bytes(n));
		break;
	case SKVQ_BITS_2:
		planes_pack(raw, n, 2, 0, out);
		break;
	default:
		ternary_add(raw, 64 * n, tile, planes);
		break;
	}
}

static void nested_join(const uint8_t *refine, uint32_t n, uint8_t *raw)
{
	static const uint8_t level[16] = {SKVQ_NESTED_LEVELS};
	uint32_t more[RAW_WORDS_MAX];

	planes_unpack(refine, n, 2, 0, more);
	for (uint32_t i = 0; i < 64 * n; i++)
		raw[i] = level[4 * raw[i] + ((const uint8_t *)more)[i]];
}

static void raw_unpack(const struct skvq_codec *c, const uint8_t *planes, uint32_t tile,
		       uint32_t *raw)
{
	const uint8_t *in = planes + (size_t)tile * c->tile_bytes;
	uint32_t n = c->dim / 4u;

	switch (c->bits) {
	case SKVQ_BITS_8:
		memcpy(raw, in, 64 * (size_t)n);
		break;
	case SKVQ_BITS_4:
		planes_unpack(in, n, 4, 0, raw);
		break;
	case SKVQ_BITS_3:
		planes_unpack(in, n, 2, 0, raw);
		planes_unpack(in + low_bytes(n), n, 1, 2, raw);
		break;
	case SKVQ_BITS_2:
		planes_unpack(in, n, 2, 0, raw);
		break;
	default:
		ternary_unpack(planes, 64 * n, tile, (uint8_t *)raw);
		break;
	}
}

void SKVQ_TIER(unpack)(const struct skvq_codec *c, const uint8_t *planes, const uint8_t *refine,
		       uint32_t tile, float *ret_levels)
{
	uint32_t raw[RAW_WORDS_MAX];

	raw_unpack(c, planes, tile, raw);
	if (!refine) {
		levels_from_raw(c, raw, ret_levels);
		return;
	}
	nested_join(refine + (size_t)tile * c->tile_bytes, c->dim / 4u, (uint8_t *)raw);
	levels_from_raw(c, raw, ret_levels);
	for (uint32_t i = 0; i < LANES * c->dim; i++) /* from u - M/2 of two bits' M */
		ret_levels[i] = (ret_levels[i] + 0.5f * (float)(c->levels_minus_1 - SKVQ_NESTED_M)) *
				(1.0f / SKVQ_NESTED_STEP);
}

void SKVQ_TIER(unpack_tile)(const struct skvq_codec *c, const uint8_t *planes, uint32_t tile,
			    uint8_t *ret)
{
	uint32_t words[RAW_WORDS_MAX], dim = c->dim;
	const uint8_t *raw = (const uint8_t *)words;

	raw_unpack(c, planes, tile, words);
	if (!c->is_v) {
		for (uint32_t i = 0; i < dim / 4; i++)
			for (uint32_t t = 0; t < LANES; t++)
				memcpy(ret + t * dim + 4 * i, raw + 64 * i + 4 * t, 4);
		return;
	}
	for (uint32_t p = 0; p < 4; p++)
		for (uint32_t ch = 0; ch < dim; ch++)
			for (uint32_t j = 0; j < 4; j++)
				ret[(4 * p + j) * dim + ch] = raw[p * dim * 4 + 4 * ch + j];
}
