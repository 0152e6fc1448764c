/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tile of 16 tokens from engine space to page bytes, and back to stored space.
 */
#include "tier.h"

#include <assert.h>

#define F16_MAX 65504.0f

/* The quantisers see finite numbers only: NaN counts as 0, everything beyond binary16 as its
 * largest, so that squares and their sums stay finite too. */
static void sanitise(float *x, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		float v = x[i] == x[i] ? x[i] : 0.0f;

		v = v < F16_MAX ? v : F16_MAX;
		x[i] = v > -F16_MAX ? v : -F16_MAX;
	}
}

void SKVQ_TIER(encode_tile)(const struct skvq_codec *c, const struct skvq_transform *tr,
			    float *rows, uint32_t tile, uint8_t *codes, uint8_t *params,
			    uint8_t *refine)
{
	float x[DIM_MAX * LANES];
	uint8_t tile_codes[LANES * DIM_MAX];
	uint16_t *halves = (uint16_t *)(codes + (size_t)tile * c->tile_bytes); /* FP16 only */
	uint32_t dim = c->dim;

	assert(tile < SKVQ_PAGE_TILES);
	assert(!refine == !c->nested);
	sanitise(rows, LANES * dim);
	for (uint32_t t = 0; t < LANES; t++)
		SKVQ_TIER(to_stored)(c, tr, rows + (size_t)t * dim);
	if (c->kind == SKVQ_CODEC_FP16) {
		SKVQ_TIER(f32_to_f16)(rows, halves, (size_t)LANES * dim);
		return;
	}
	for (uint32_t t = 0; t < LANES; t++)
		for (uint32_t i = 0; i < dim; i++)
			x[i * LANES + t] = rows[(size_t)t * dim + i];
	SKVQ_TIER(quant)(c, x, tile, tile_codes, params);
	SKVQ_TIER(pack)(c, tile_codes, tile, codes);
	if (!refine)
		return;
	for (uint32_t t = 0; t < LANES; t++)
		SKVQ_TIER(quant_refine)(c, rows + (size_t)t * dim, tile * LANES + t,
					tile_codes + t * dim, params, tile_codes + t * dim);
	SKVQ_TIER(pack)(c, tile_codes, tile, refine);
}

void SKVQ_TIER(decode_tile)(const struct skvq_codec *c, const uint8_t *codes, const uint8_t *params,
			    const uint8_t *refine, uint32_t tile, float *rows)
{
	float levels[LANES * DIM_MAX];
	struct tile_params p;
	uint32_t dim = c->dim;

	assert(tile < SKVQ_PAGE_TILES);
	if (c->kind == SKVQ_CODEC_FP16) {
		const uint16_t *halves = (const uint16_t *)(codes + (size_t)tile * c->tile_bytes);

		SKVQ_TIER(f16_to_f32)(halves, rows, (size_t)LANES * dim);
		return;
	}
	SKVQ_TIER(unpack)(c, codes, refine, tile, levels);
	SKVQ_TIER(dequant_params)(c, params, tile, &p);
	for (uint32_t t = 0; t < LANES; t++) {
		for (uint32_t x = 0; x < dim; x++) {
			uint32_t g = x / c->group;
			float level = c->is_v ? levels[t * dim + x] : levels[x * LANES + t];
			float v = p.step[g][t] * level;

			rows[(size_t)t * dim + x] =
			    c->kind == SKVQ_CODEC_AFFINE ? v + p.zero[g][t] : v;
		}
	}
}

void SKVQ_TIER(fill)(struct skvq_kernels *table)
{
	*table = (struct skvq_kernels){
	    .tier = SKVQ_TIER_STRING(SKVQ_TIER_NAME),
	    .f16_to_f32 = SKVQ_TIER(f16_to_f32),
	    .f32_to_f16 = SKVQ_TIER(f32_to_f16),
	    .f32_to_bf16 = SKVQ_TIER(f32_to_bf16),
	    .bf16_to_f32 = SKVQ_TIER(bf16_to_f32),
	    .to_stored = SKVQ_TIER(to_stored),
	    .from_stored = SKVQ_TIER(from_stored),
	    .query_to_stored = SKVQ_TIER(query_to_stored),
	    .tile_from_stored = SKVQ_TIER(tile_from_stored),
	    .encode_tile = SKVQ_TIER(encode_tile),
	    .decode_tile = SKVQ_TIER(decode_tile),
	    .pack_tile = SKVQ_TIER(pack),
	    .unpack_tile = SKVQ_TIER(unpack_tile),
	    .attn_begin = SKVQ_TIER(attn_begin),
	    .attn_pages = SKVQ_TIER(attn_pages),
	    .attn_rows = SKVQ_TIER(attn_rows),
	    .attn_finish = SKVQ_TIER(attn_finish),
	};
#ifdef SKVQ_TIER_SIMD
	SKVQ_TIER(codec_fill)(table);
	SKVQ_TIER(simd_fill)(table);
#endif
}
