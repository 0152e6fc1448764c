/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arm/neon/prim.h - the primitives of simd/ (listed in simd/simd.h) for NEON with FEAT_DotProd.
 * Four registers hold 64 codes, sixteen sums or sixteen floats; there are thirty-two.
 */
#ifndef SKVQ_KERNELS_NEON_PRIM_H
#define SKVQ_KERNELS_NEON_PRIM_H

#include <arm_neon.h>
#include <stdint.h>

#include "../../nested.h"

#define SIMD static inline __attribute__((always_inline))

/* sdot adds in 32 bits and never saturates, but both its sides are signed: codes above 127 come to
 * it 128 less. Two rows of both digits are sixteen registers of sums, enough under way. */
#define DIGIT_BITS(code_max) 8u
#define DOT_STEPS(code_max)  UINT32_MAX
#define WIDE_BIAS            128u
#define PLANE_SUMS           1u
#define TRIT_SUMS            1u
#define TRIT_RAISED(k)       0
#define TRIT_KEYS_FUSED      0
#define DOT_ROWS             2u
#define DOT_X                1u
#define DOT_SHAPES(F)        F(1, 1) F(2, 1)
#define VALUE_BLOCKS         4u

typedef struct {
	uint8x16_t a, b, c, d;
} codes;
typedef int8x16_t quad;
typedef struct {
	int32x4_t a, b, c, d;
} i32s;
typedef i32s dot;
typedef struct {
	float32x4_t a, b, c, d;
} f32s;

/* The same for each of the four registers. */
#define FOUR_1(type, f, x)     ((type){f(x.a), f(x.b), f(x.c), f(x.d)})
#define FOUR_2(type, f, x, y)  ((type){f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)})
#define FOUR_BY(type, f, x, n) ((type){f(x.a, n), f(x.b, n), f(x.c, n), f(x.d, n)})

/* --- codes ----------------------------------------------------------------------------------- */

SIMD codes codes_load(const uint8_t *p)
{
	return (codes){vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
}

SIMD void codes_store(uint8_t *p, codes v)
{
	vst1q_u8(p, v.a);
	vst1q_u8(p + 16, v.b);
	vst1q_u8(p + 32, v.c);
	vst1q_u8(p + 48, v.d);
}

/* Codes above 127, less WIDE_BIAS: signed bytes. */
SIMD codes codes_load_wide(const uint8_t *p)
{
	codes v = codes_load(p);

	return FOUR_BY(codes, veorq_u8, v, vdupq_n_u8(WIDE_BIAS));
}

SIMD codes codes_and(codes v, uint8_t mask)
{
	return FOUR_BY(codes, vandq_u8, v, vdupq_n_u8(mask));
}

SIMD codes codes_or(codes x, codes y)
{
	return FOUR_2(codes, vorrq_u8, x, y);
}

SIMD codes codes_shr(codes v, uint32_t n)
{
	return FOUR_BY(codes, vshlq_u8, v, vdupq_n_s8((int8_t)(0 - n)));
}

SIMD codes codes_shr2(codes v)
{
	return FOUR_BY(codes, vshrq_n_u8, v, 2);
}

SIMD codes codes_shr4(codes v)
{
	return FOUR_BY(codes, vshrq_n_u8, v, 4);
}

SIMD codes codes_shr6(codes v)
{
	return FOUR_BY(codes, vshrq_n_u8, v, 6);
}

SIMD codes codes_shl2(codes v)
{
	return FOUR_BY(codes, vshlq_n_u8, v, 2);
}

/* b % divisor for b < 3 * divisor: two subtractions that stick, b - divisor wraps to more than b if
 * b is less. */
SIMD uint8x16_t modulo(uint8x16_t b, uint8_t divisor)
{
	uint8x16_t d = vdupq_n_u8(divisor);

	b = vminq_u8(b, vsubq_u8(b, d));
	return vminq_u8(b, vsubq_u8(b, d));
}

/* Three base-3 digits of 0..26 as 2-bit fields, lowest digit lowest. */
#define T1(n) ((n) % 3 | (n) / 3 % 3 << 2 | (n) / 9 % 3 << 4)
#define T8(n) T1(n), T1(n + 1), T1(n + 2), T1(n + 3), T1(n + 4), T1(n + 5), T1(n + 6), T1(n + 7)
static const uint8_t trits[32] __attribute__((aligned(16))) = {T8(0), T8(8), T8(16), T8(24)};
#undef T8
#undef T1

/* 16 bytes below 243 to their five digits. 81 and 162 are told apart by their lowest two bits, 0,
 * 27 and 54 by adding 10 and dividing by 32. */
SIMD void trits128(uint8x16_t b, uint8x16_t ret[5])
{
	const uint8x16x2_t table = {{vld1q_u8(trits), vld1q_u8(trits + 16)}};
	const uint8x16_t three = vdupq_n_u8(3);
	uint8x16_t below81 = modulo(b, 81), below27 = modulo(below81, 27);
	uint8x16_t f = vqtbl2q_u8(table, below27);

	ret[0] = vandq_u8(f, three);
	ret[1] = vandq_u8(vshrq_n_u8(f, 2), three);
	ret[2] = vshrq_n_u8(f, 4);
	ret[3] = vshrq_n_u8(vaddq_u8(vsubq_u8(below81, below27), vdupq_n_u8(10)), 5);
	ret[4] = vandq_u8(vsubq_u8(b, below81), three);
}

SIMD void codes_trits(codes v, codes ret[5])
{
	uint8x16_t a[5], b[5], c[5], d[5];

	trits128(v.a, a);
	trits128(v.b, b);
	trits128(v.c, c);
	trits128(v.d, d);
	for (int i = 0; i < 5; i++)
		ret[i] = (codes){a[i], b[i], c[i], d[i]};
}

SIMD void codes_trits_raised(codes v, codes ret[5])
{
	codes_trits(v, ret);
}

/* A column's 2-bit codes and their refinement to levels, by way of 4-bit indices. */
static const uint8_t nested_levels[16] __attribute__((aligned(16))) = {SKVQ_NESTED_LEVELS};

SIMD void nested128(uint8x16_t base, uint8x16_t refine, uint8x16_t ret[4])
{
	const uint8x16_t low = vdupq_n_u8(0x33), nibble = vdupq_n_u8(15), table = vld1q_u8(nested_levels);
	uint8x16_t even = vbslq_u8(low, refine, vshlq_n_u8(base, 2));
	uint8x16_t odd = vbslq_u8(low, vshrq_n_u8(refine, 2), base);

	ret[0] = vqtbl1q_u8(table, vandq_u8(even, nibble));
	ret[1] = vqtbl1q_u8(table, vandq_u8(odd, nibble));
	ret[2] = vqtbl1q_u8(table, vshrq_n_u8(even, 4));
	ret[3] = vqtbl1q_u8(table, vshrq_n_u8(odd, 4));
}

SIMD void codes_nested(codes base, codes refine, codes ret[4])
{
	uint8x16_t a[4], b[4], c[4], d[4];

	nested128(base.a, refine.a, a);
	nested128(base.b, refine.b, b);
	nested128(base.c, refine.c, c);
	nested128(base.d, refine.d, d);
	for (int i = 0; i < 4; i++)
		ret[i] = (codes){a[i], b[i], c[i], d[i]};
}

/* --- dot products ---------------------------------------------------------------------------- */

SIMD quad quad_load(const int8_t *p)
{
	int32_t x;

	__builtin_memcpy(&x, p, sizeof(x));
	return vreinterpretq_s8_s32(vdupq_n_s32(x));
}

SIMD dot dot_zero(void)
{
	return (dot){vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
}

/* Codes of up to 127, or what codes_load_wide gave. */
SIMD dot dot_add(dot sum, codes c, quad q)
{
	return (dot){vdotq_s32(sum.a, vreinterpretq_s8_u8(c.a), q),
		     vdotq_s32(sum.b, vreinterpretq_s8_u8(c.b), q),
		     vdotq_s32(sum.c, vreinterpretq_s8_u8(c.c), q),
		     vdotq_s32(sum.d, vreinterpretq_s8_u8(c.d), q)};
}

SIMD i32s dot_sums(dot d)
{
	return d;
}

/* --- integers -------------------------------------------------------------------------------- */

SIMD i32s i32_set(int32_t x)
{
	return (i32s){vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)};
}

SIMD i32s i32_load(const int32_t *p)
{
	return (i32s){vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}

SIMD void i32_store(int32_t *p, i32s v)
{
	vst1q_s32(p, v.a);
	vst1q_s32(p + 4, v.b);
	vst1q_s32(p + 8, v.c);
	vst1q_s32(p + 12, v.d);
}

SIMD i32s i32_add(i32s x, i32s y)
{
	return FOUR_2(i32s, vaddq_s32, x, y);
}

SIMD i32s i32_sub(i32s x, i32s y)
{
	return FOUR_2(i32s, vsubq_s32, x, y);
}

SIMD i32s i32_shl(i32s v, uint32_t n)
{
	return FOUR_BY(i32s, vshlq_s32, v, vdupq_n_s32((int32_t)n));
}

SIMD i32s i32_sar(i32s v, uint32_t n)
{
	return FOUR_BY(i32s, vshlq_s32, v, vdupq_n_s32(-(int32_t)n));
}

SIMD int32_t i32_total(i32s v)
{
	return vaddvq_s32(vaddq_s32(vaddq_s32(v.a, v.b), vaddq_s32(v.c, v.d)));
}

/* The low bytes, in order. */
SIMD void i32_store_bytes(int8_t *p, i32s v)
{
	int16x8_t x = vcombine_s16(vmovn_s32(v.a), vmovn_s32(v.b));
	int16x8_t y = vcombine_s16(vmovn_s32(v.c), vmovn_s32(v.d));

	vst1q_s8(p, vcombine_s8(vmovn_s16(x), vmovn_s16(y)));
}

/* --- floats ---------------------------------------------------------------------------------- */

SIMD f32s f32_set(float x)
{
	return (f32s){vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)};
}

SIMD f32s f32_load(const float *p)
{
	return (f32s){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}

SIMD void f32_store(float *p, f32s v)
{
	vst1q_f32(p, v.a);
	vst1q_f32(p + 4, v.b);
	vst1q_f32(p + 8, v.c);
	vst1q_f32(p + 12, v.d);
}

SIMD f32s f32_add(f32s x, f32s y)
{
	return FOUR_2(f32s, vaddq_f32, x, y);
}

SIMD f32s f32_sub(f32s x, f32s y)
{
	return FOUR_2(f32s, vsubq_f32, x, y);
}

SIMD f32s f32_mul(f32s x, f32s y)
{
	return FOUR_2(f32s, vmulq_f32, x, y);
}

SIMD f32s f32_div(f32s x, f32s y)
{
	return FOUR_2(f32s, vdivq_f32, x, y);
}

/* x * y + z, rounded once. */
SIMD f32s f32_fma(f32s x, f32s y, f32s z)
{
	return (f32s){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
		      vfmaq_f32(z.d, x.d, y.d)};
}

SIMD f32s f32_fnma(f32s x, f32s y, f32s z)
{
	return (f32s){vfmsq_f32(z.a, x.a, y.a), vfmsq_f32(z.b, x.b, y.b), vfmsq_f32(z.c, x.c, y.c),
		      vfmsq_f32(z.d, x.d, y.d)};
}

/* y if either is NaN; fmax and fmaxnm are neither. */
SIMD float32x4_t max128(float32x4_t x, float32x4_t y)
{
	return vbslq_f32(vcgtq_f32(x, y), x, y);
}

SIMD f32s f32_max(f32s x, f32s y)
{
	return FOUR_2(f32s, max128, x, y);
}

SIMD f32s f32_abs(f32s v)
{
	return FOUR_1(f32s, vabsq_f32, v);
}

/* a >= b ? x : y; NaN compares false. */
SIMD f32s f32_if_ge(f32s a, f32s b, f32s x, f32s y)
{
	return (f32s){
	    vbslq_f32(vcgeq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcgeq_f32(a.b, b.b), x.b, y.b),
	    vbslq_f32(vcgeq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcgeq_f32(a.d, b.d), x.d, y.d)};
}

/* v * 2^n by its exponent; the result must be a normal number. */
SIMD float32x4_t scale128(float32x4_t v, int32x4_t n)
{
	return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(n, 23)));
}

SIMD f32s f32_scale(f32s v, i32s n)
{
	return FOUR_2(f32s, scale128, v, n);
}

SIMD i32s f32_bits_of(f32s v)
{
	return FOUR_1(i32s, vreinterpretq_s32_f32, v);
}

SIMD f32s f32_from_i32(i32s v)
{
	return FOUR_1(f32s, vcvtq_f32_s32, v);
}

/* To the nearest, ties to even. */
SIMD i32s f32_to_i32(f32s v)
{
	return FOUR_1(i32s, vcvtnq_s32_f32, v);
}

SIMD float32x4_t total128(f32s v)
{
	return vaddq_f32(vaddq_f32(v.a, v.b), vaddq_f32(v.c, v.d));
}

SIMD float f32_total(f32s v)
{
	return vaddvq_f32(total128(v));
}

SIMD float f32_largest(f32s v)
{
	return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.a, v.b), vmaxq_f32(v.c, v.d)));
}

SIMD float32x4_t totals128(const f32s *v)
{
	return vpaddq_f32(vpaddq_f32(total128(v[0]), total128(v[1])),
			  vpaddq_f32(total128(v[2]), total128(v[3])));
}

/* Lane i is the total of v[i]. */
SIMD f32s f32_totals(const f32s v[16])
{
	return (f32s){totals128(v), totals128(v + 4), totals128(v + 8), totals128(v + 12)};
}

SIMD f32s from_halves(uint16x8_t x, uint16x8_t y)
{
	return (f32s){vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(x))),
		      vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(x))),
		      vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(y))),
		      vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(y)))};
}

/* Sixteen binary16. */
SIMD f32s f32_from_halves(const uint16_t *p)
{
	return from_halves(vld1q_u16(p), vld1q_u16(p + 8));
}

/* Sixteen E4M3 codes times 2^-8: their bits are a binary16's, whose exponent has 8 more of bias.
 * The two NaN codes give 0. */
SIMD f32s f32_from_e4m3(const uint8_t *p)
{
	const uint8x16_t nan = vdupq_n_u8(0x7f);
	const uint16x8_t used = vdupq_n_u16(0xbf80);
	uint8x16_t x = vld1q_u8(p);
	int8x16_t y = vreinterpretq_s8_u8(vbicq_u8(x, vceqq_u8(vandq_u8(x, nan), nan)));

	/* Sign extension leaves the sign in bit 15 through the shift. */
	return from_halves(vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(vget_low_s8(y), 7)), used),
			   vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(vget_high_s8(y), 7)), used));
}

#undef FOUR_BY
#undef FOUR_2
#undef FOUR_1

#endif /* SKVQ_KERNELS_NEON_PRIM_H */
