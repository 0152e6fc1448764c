/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arm/neon/prim_codec.h - what simd/transform.h, encode.h and decode.h need beyond prim.h.
 */
#ifndef SKVQ_KERNELS_NEON_PRIM_CODEC_H
#define SKVQ_KERNELS_NEON_PRIM_CODEC_H

#include <stddef.h>

#include "prim.h"

#define HADAMARD_VECTORS 4u /* of sixteen floats, in registers */
#define PRODUCT_ROWS     4u
#define PRODUCT_VECTORS  1u
#define SEARCH_WIDTH     2u /* half steps tried at a time: eight sums under way, eight edges */

SIMD float32x4_t min128(float32x4_t x, float32x4_t y)
{
	return vbslq_f32(vcltq_f32(x, y), x, y);
}

/* x < y ? x : y. */
SIMD f32s f32_min(f32s x, f32s y)
{
	return (f32s){min128(x.a, y.a), min128(x.b, y.b), min128(x.c, y.c), min128(x.d, y.d)};
}

SIMD float32x4_t within128(float32x4_t v, float max)
{
	v = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
	return max128(min128(v, vdupq_n_f32(max)), vdupq_n_f32(-max));
}

/* 0 for NaN, else within [-max, max]. */
SIMD f32s f32_within(f32s v, float max)
{
	return (f32s){within128(v.a, max), within128(v.b, max), within128(v.c, max),
		      within128(v.d, max)};
}

SIMD float32x4_t trunc128(float32x4_t v)
{
	return vcvtq_f32_s32(vcvtq_s32_f32(v));
}

/* Towards zero. */
SIMD f32s f32_trunc(f32s v)
{
	return (f32s){trunc128(v.a), trunc128(v.b), trunc128(v.c), trunc128(v.d)};
}

SIMD float32x4_t swap128(float32x4_t v, const uint32_t k)
{
	return k == 1 ? vrev64q_f32(v) : vextq_f32(v, v, 2);
}

/* Lane i is lane i ^ k of v: k = 1, 2, 4, 8. */
SIMD f32s f32_swap(f32s v, const uint32_t k)
{
	if (k == 8)
		return (f32s){v.c, v.d, v.a, v.b};
	if (k == 4)
		return (f32s){v.b, v.a, v.d, v.c};
	return (f32s){swap128(v.a, k), swap128(v.b, k), swap128(v.c, k), swap128(v.d, k)};
}

/* Of memory that may hold anything: bytes alias. */
SIMD float32x4_t any_load(const float *p)
{
	return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)(const void *)p));
}

SIMD void any_store(float *p, float32x4_t v)
{
	vst1q_u8((uint8_t *)(void *)p, vreinterpretq_u8_f32(v));
}

/* ret[i][j] = x[j][i] for i, j < 16, rows so many floats apart; the bits are not looked at. Four
 * by four at a time. */
SIMD void f32_transpose(const float *x, size_t stride, float *ret, size_t ret_stride)
{
	for (size_t at = 0; at < 16; at++) {
		size_t i = at / 4 * 4, j = at % 4 * 4;
		const float *p = x + j * stride + i;
		float *q = ret + i * ret_stride + j;
		float32x4x2_t a = vtrnq_f32(any_load(p), any_load(p + stride));
		float32x4x2_t b = vtrnq_f32(any_load(p + 2 * stride), any_load(p + 3 * stride));

		any_store(q, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
		any_store(q + ret_stride,
			  vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
		any_store(q + 2 * ret_stride,
			  vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
		any_store(q + 3 * ret_stride,
			  vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
	}
}

SIMD uint16x8_t to_halves(float32x4_t x, float32x4_t y)
{
	return vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(x), vcvt_f16_f32(y)));
}

SIMD void f32_store_halves(uint16_t *p, f32s v)
{
	vst1q_u16(p, to_halves(v.a, v.b));
	vst1q_u16(p + 8, to_halves(v.c, v.d));
}

SIMD float32x4_t from_words(uint16x4_t v)
{
	return vcvtq_f32_u32(vmovl_u16(v));
}

/* Sixteen bytes. */
SIMD f32s f32_from_bytes(const uint8_t *p)
{
	uint8x16_t v = vld1q_u8(p);
	uint16x8_t x = vmovl_u8(vget_low_u8(v)), y = vmovl_u8(vget_high_u8(v));

	return (f32s){from_words(vget_low_u16(x)), from_words(vget_high_u16(x)),
		      from_words(vget_low_u16(y)), from_words(vget_high_u16(y))};
}

SIMD float32x4_t from_byte128(int32x4_t v, const uint32_t j)
{
	uint32x4_t u = vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-8 * (int32_t)j));

	return vcvtq_f32_u32(vandq_u32(u, vdupq_n_u32(255)));
}

/* Byte j of each word. */
SIMD f32s f32_from_byte(i32s v, const uint32_t j)
{
	return (f32s){from_byte128(v.a, j), from_byte128(v.b, j), from_byte128(v.c, j),
		      from_byte128(v.d, j)};
}

/* Codes that do not outgrow a byte. */
SIMD codes codes_shl(codes v, uint32_t n)
{
	int8x16_t by = vdupq_n_s8((int8_t)n);

	return (codes){vshlq_u8(v.a, by), vshlq_u8(v.b, by), vshlq_u8(v.c, by), vshlq_u8(v.d, by)};
}

SIMD codes codes_mul(codes v, uint32_t n)
{
	uint8x16_t by = vdupq_n_u8((uint8_t)n);

	return (codes){vmulq_u8(v.a, by), vmulq_u8(v.b, by), vmulq_u8(v.c, by), vmulq_u8(v.d, by)};
}

SIMD codes codes_add(codes x, codes y)
{
	return (codes){vaddq_u8(x.a, y.a), vaddq_u8(x.b, y.b), vaddq_u8(x.c, y.c),
		       vaddq_u8(x.d, y.d)};
}

#endif /* SKVQ_KERNELS_NEON_PRIM_CODEC_H */
