/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ref/tier.h - what the files of one tier share, and how a tier is named.
 *
 * The sources in ref/ are the specification of every kernel. They are compiled once per tier with
 * SKVQ_TIER_NAME set, so that each tier's functions have their own symbols and no code built with
 * an ISA flag can be reached from a build without it: everything here is static inline or carries
 * the tier in its name. Compiled with -ffp-contract=off and without -ffast-math, the same text
 * gives the same bits whatever the vector width: sums run in 16 fixed lanes.
 */
#ifndef SKVQ_KERNELS_REF_TIER_H
#define SKVQ_KERNELS_REF_TIER_H

#include <stdint.h>
#include <string.h>

#include <skvq/kernels.h>

#include "../e4m3.h"
#include "../nested.h"

#ifndef SKVQ_TIER_NAME
#error "SKVQ_TIER_NAME names the tier this file is compiled for"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pages are little-endian and read in place"
#endif

#define SKVQ_TIER_JOIN_(tier, name) skvq_##tier##_##name
#define SKVQ_TIER_JOIN(tier, name)  SKVQ_TIER_JOIN_(tier, name)
#define SKVQ_TIER(name)             SKVQ_TIER_JOIN(SKVQ_TIER_NAME, name)
#define SKVQ_TIER_STRING_(tier)     #tier
#define SKVQ_TIER_STRING(tier)      SKVQ_TIER_STRING_(tier)

#define DIM_MAX       SKVQ_HEAD_DIM_MAX
#define GROUPS_MAX    (DIM_MAX / 32) /* the smallest group has 32 channels */
#define LANES         SKVQ_TILE_TOKENS
#define RAW_WORDS_MAX (DIM_MAX / 4 * 16) /* raw vectors of 64 bytes, as 32-bit words */

static inline float bits_f32(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static inline uint32_t f32_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}

/* A SIMD register of the tier, spelled as gcc and clang both know it: plain C leaves compilers
 * guessing that sixteen sums belong in registers, and they guess wrong. Elements need no more
 * alignment than a float's. Lane i of sixteen is element i % VEC of register i / VEC. */
#if defined(__AVX512F__)
#define VEC 16
#elif defined(__AVX2__)
#define VEC 8
#else
#define VEC 4
#endif
#define VECS (16 / VEC) /* registers that hold 16 lanes */
typedef float vec_f32 __attribute__((vector_size(VEC * 4)));
typedef float vec_f32_mem __attribute__((vector_size(VEC * 4), aligned(4), may_alias));
typedef int32_t vec_i32 __attribute__((vector_size(VEC * 4)));
typedef uint32_t vec_u32 __attribute__((vector_size(VEC * 4)));
typedef uint32_t vec_u32_mem __attribute__((vector_size(VEC * 4), aligned(4), may_alias));

static inline vec_f32 vec_load(const float *x)
{
	return *(const vec_f32_mem *)x;
}

static inline void vec_store(float *x, vec_f32 v)
{
	*(vec_f32_mem *)x = v;
}

/* a > b ? a : b, in each lane. */
static inline vec_f32 vec_max(vec_f32 a, vec_f32 b)
{
	vec_i32 greater = (vec_i32)(a > b);

	return (vec_f32)(((vec_i32)a & greater) | ((vec_i32)b & ~greater));
}

/* The one order in which 16 partial sums are added. */
static inline float lanes_sum(const float x[LANES])
{
	float a[8];

	for (int i = 0; i < 8; i++)
		a[i] = x[i] + x[i + 8];
	for (int i = 0; i < 4; i++)
		a[i] += a[i + 4];
	return (a[0] + a[2]) + (a[1] + a[3]);
}

/* The largest of x, which holds no NaN, and least. */
static inline float lanes_max(const float x[LANES], float least)
{
	float a[8];

	for (int i = 0; i < 8; i++)
		a[i] = x[i] > x[i + 8] ? x[i] : x[i + 8];
	for (int i = 0; i < 4; i++)
		a[i] = a[i] > a[i + 4] ? a[i] : a[i + 4];
	a[0] = a[0] > a[2] ? a[0] : a[2];
	a[1] = a[1] > a[3] ? a[1] : a[3];
	a[0] = a[0] > a[1] ? a[0] : a[1];
	return a[0] > least ? a[0] : least;
}

/* IEEE binary16 to binary32, exact; signalling NaN comes out quiet, as F16C and NEON do it. No
 * branch, and no denormal operand even for subnormal halves: 0.m * 2^-14 is made as 1.m * 2^-14
 * less 2^-14, so a caller's DAZ mode changes nothing. Nor is NaN left to the subtraction to be made
 * quiet: with -fno-trapping-math clang 14 drops one of 0. */
static inline float f16_decode(uint16_t h)
{
	uint32_t em = h & 0x7fffu;
	uint32_t subnormal = -(uint32_t)(em < 0x400), special = -(uint32_t)(em >= 0x7c00);
	uint32_t quiet = em > 0x7c00u ? 1u << 22 : 0;
	uint32_t u = (em << 13) + (112u << 23) + (subnormal & 1u << 23) + (special & 112u << 23);
	float f = bits_f32(u) - bits_f32(subnormal & 113u << 23);

	return bits_f32(f32_bits(f) | quiet | (uint32_t)(h & 0x8000u) << 16);
}

/* binary32 to binary16, to nearest even, overflow to infinity; NaN keeps its upper bits, quiet. */
static inline uint16_t f16_encode(float x)
{
	uint32_t u = f32_bits(x), sign = u >> 16 & 0x8000u;
	uint32_t a = u & 0x7fffffffu;
	/* Adding 0.5 leaves the wanted ten bits at the bottom of the sum, rounded. */
	uint32_t subnormal = f32_bits(bits_f32(a) + 0.5f) - f32_bits(0.5f);
	uint32_t normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
	uint32_t special = a > 0x7f800000u ? 0x7e00u | (a >> 13 & 0x3ff) : 0x7c00u;
	uint32_t h = a < (113u << 23) ? subnormal : a < (143u << 23) ? normal : special;

	return (uint16_t)(sign | h);
}

/* f16.c */
void SKVQ_TIER(f16_to_f32)(const uint16_t *x, float *ret, size_t n);
void SKVQ_TIER(f32_to_f16)(const float *x, uint16_t *ret, size_t n);
void SKVQ_TIER(bf16_to_f32)(const uint16_t *x, float *ret, size_t n);
void SKVQ_TIER(f32_to_bf16)(const float *x, uint16_t *ret, size_t n);

/* transform.c */
void SKVQ_TIER(to_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x);
void SKVQ_TIER(from_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x);
void SKVQ_TIER(query_to_stored)(const struct skvq_codec *c, const struct skvq_transform *t,
				float *x);
void SKVQ_TIER(tile_from_stored)(const struct skvq_codec *c, const struct skvq_transform *t,
				 float *rows);

/* quant.c: a tile in stored space, x[dim][16], to codes[16][dim], one a byte, and the tile's columns
 * of the parameter rows. */
void SKVQ_TIER(quant)(const struct skvq_codec *c, const float *x, uint32_t tile, uint8_t *codes,
		      uint8_t *params);
/* The refinement of a nested vector that quant() has coded: two bits a channel, one a byte. */
void SKVQ_TIER(quant_refine)(const struct skvq_codec *c, const float *x, uint32_t token,
			     const uint8_t *codes, const uint8_t *params, uint8_t *ret);

/* How a code becomes a value: step * (code - mid) + zero, per group and token of a tile. */
struct tile_params {
	float step[GROUPS_MAX][LANES];
	float zero[GROUPS_MAX][LANES]; /* affine only */
};
void SKVQ_TIER(dequant_params)(const struct skvq_codec *c, const uint8_t *params, uint32_t tile,
			       struct tile_params *ret);

/* pack.c: codes[16][dim] into the planes, and back as far as attention needs it: levels are
 * code - mid as floats, [dim][16] for K and [16][dim] for V. Not for FP16. refine: NULL, or the
 * second plane of a nested codec. */
void SKVQ_TIER(pack)(const struct skvq_codec *c, const uint8_t *codes, uint32_t tile,
		     uint8_t *planes);
void SKVQ_TIER(unpack)(const struct skvq_codec *c, const uint8_t *planes, const uint8_t *refine,
		       uint32_t tile, float *ret_levels);

/* codes[16][dim], one a byte. */
void SKVQ_TIER(unpack_tile)(const struct skvq_codec *c, const uint8_t *planes, uint32_t tile,
			    uint8_t *ret);

/* tile.c */
void SKVQ_TIER(encode_tile)(const struct skvq_codec *c, const struct skvq_transform *t,
			    float *rows, uint32_t tile, uint8_t *codes, uint8_t *params,
			    uint8_t *refine);
void SKVQ_TIER(decode_tile)(const struct skvq_codec *c, const uint8_t *codes, const uint8_t *params,
			    const uint8_t *refine, uint32_t tile, float *rows);

/* attention.c */
void SKVQ_TIER(attn_begin)(struct skvq_attn_state *s);
void SKVQ_TIER(attn_pages)(struct skvq_attn_state *s, const struct skvq_codec *kc,
			   const struct skvq_codec *vc, const struct skvq_page_planes *pages,
			   uint32_t n_pages, uint32_t n_ahead, uint32_t first, uint32_t n_tokens,
			   uint32_t position);
void SKVQ_TIER(attn_rows)(struct skvq_attn_state *s, const uint16_t *k, size_t k_stride,
			  const uint16_t *v, size_t v_stride, uint32_t n_tokens, uint32_t position);
void SKVQ_TIER(attn_finish)(struct skvq_attn_state *s, const struct skvq_codec *vc,
			    const struct skvq_transform *tv, float *const *out, float *lse);

/* tile.c: puts the tier's functions into the table. */
void SKVQ_TIER(fill)(struct skvq_kernels *table);
#ifdef SKVQ_TIER_SIMD
/* simd/decode.h and simd/page.h: the entries that have more than the compiler's vectors. */
void SKVQ_TIER(codec_fill)(struct skvq_kernels *table);
void SKVQ_TIER(simd_fill)(struct skvq_kernels *table);
#endif

#endif /* SKVQ_KERNELS_REF_TIER_H */
