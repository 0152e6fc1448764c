/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/avx512/prim.h - the primitives of simd/ (listed in simd/simd.h) for AVX-512 with BW, DQ, VL,
 * VNNI and VBMI. One register holds 64 codes, sixteen sums or sixteen floats; thirty-two of them.
 */
#ifndef SKVQ_KERNELS_AVX512_PRIM_H
#define SKVQ_KERNELS_AVX512_PRIM_H

#include <immintrin.h>
#include <stdint.h>

#include "../../nested.h"

#define SIMD static inline __attribute__((always_inline))

/* vpdpbusd adds in 32 bits and never saturates: digits of 8 bits and sums of any length. It takes
 * five cycles, two may start in each: ten sums must be under way to keep it busy. */
#define DIGIT_BITS(code_max) 8u
#define DOT_STEPS(code_max)  UINT32_MAX
#define WIDE_BIAS            0u
#define PLANE_SUMS           4u /* sums side by side for one row and digit in fused loops */
#define TRIT_SUMS            5u
#define TRIT_RAISED(k)       ((k) < 4 ? 2 * (k) : 0)
#define TRIT_KEYS_FUSED      1
#define DOT_ROWS             2u
#define DOT_X                5u
#define DOT_SHAPES(F)                                                                              \
	F(1, 1) F(1, 2) F(1, 3) F(1, 4) F(1, 5) F(2, 1) F(2, 2) F(2, 3) F(2, 4) F(2, 5)
#define VALUE_BLOCKS 8u /* of sixteen float sums, side by side */

typedef __m512i codes; /* 64 unsigned bytes */
typedef __m512i quad;  /* four signed bytes, everywhere */
typedef __m512i dot;   /* sixteen sums of code * byte */
typedef __m512i i32s;
typedef __m512 f32s;

/* --- codes ----------------------------------------------------------------------------------- */

SIMD codes codes_load(const uint8_t *p)
{
	return _mm512_loadu_si512(p);
}

/* Codes above 127, less WIDE_BIAS. */
SIMD codes codes_load_wide(const uint8_t *p)
{
	return codes_load(p);
}

SIMD void codes_store(uint8_t *p, codes v)
{
	_mm512_storeu_si512(p, v);
}

SIMD codes codes_and(codes v, uint8_t mask)
{
	return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}

SIMD codes codes_or(codes a, codes b)
{
	return _mm512_or_si512(a, b);
}

/* Shifts of 16-bit words: bits cross between bytes, the masks that follow remove them. */
SIMD codes codes_shr(codes v, uint32_t n)
{
	return _mm512_srl_epi16(v, _mm_cvtsi32_si128((int)n));
}

SIMD codes codes_shr2(codes v)
{
	return _mm512_srli_epi16(v, 2);
}

SIMD codes codes_shr4(codes v)
{
	return _mm512_srli_epi16(v, 4);
}

SIMD codes codes_shr6(codes v)
{
	return _mm512_srli_epi16(v, 6);
}

SIMD codes codes_shl2(codes v)
{
	return _mm512_slli_epi16(v, 2);
}

/* Four base-3 digits of 0..80 as 2-bit fields, lowest digit lowest. */
#define T1(n) ((n) % 3 | (n) / 3 % 3 << 2 | (n) / 9 % 3 << 4 | (n) / 27 % 3 << 6)
#define T8(n) T1(n), T1(n + 1), T1(n + 2), T1(n + 3), T1(n + 4), T1(n + 5), T1(n + 6), T1(n + 7)
static const uint8_t trits[128] __attribute__((aligned(64))) = {
    T8(0), T8(8), T8(16), T8(24), T8(32), T8(40), T8(48), T8(56), T8(64), T8(72), T1(80)};
#undef T8
#undef T1

/* A byte below 243 to its five digits. The top digit by two subtractions that stick at zero
 * crossing (b - 81 wraps to more than b if b < 81); 81 and 162 show it in their lowest two bits. */
SIMD codes codes_trits_top(codes b, codes *ret_fields)
{
	codes k81 = _mm512_set1_epi8(81), low;

	low = _mm512_min_epu8(b, _mm512_sub_epi8(b, k81));
	low = _mm512_min_epu8(low, _mm512_sub_epi8(low, k81));
	*ret_fields = _mm512_permutex2var_epi8(_mm512_load_si512(trits), low,
					       _mm512_load_si512(trits + 64));
	return codes_and(_mm512_sub_epi8(b, low), 3);
}

SIMD void codes_trits(codes b, codes ret[5])
{
	codes f;

	ret[4] = codes_trits_top(b, &f);
	ret[0] = codes_and(f, 3);
	ret[1] = codes_and(codes_shr2(f), 3);
	ret[2] = codes_and(codes_shr4(f), 3);
	ret[3] = codes_and(codes_shr6(f), 3);
}

/* Digit k times 2^TRIT_RAISED(k): shifts run on one of the two ports that dot products need. */
SIMD void codes_trits_raised(codes b, codes ret[5])
{
	codes f;

	ret[4] = codes_trits_top(b, &f);
	ret[0] = codes_and(f, 3);
	ret[1] = codes_and(f, 3 << 2);
	ret[2] = codes_and(f, 3 << 4);
	ret[3] = codes_and(f, 3 << 6);
}

/* A column's 2-bit codes and their refinement to levels. Indices of two vectors lie in the nibbles
 * of a byte; vpermb looks at six bits, so its table is there four times. */
static const uint8_t nested_levels[64] __attribute__((aligned(64))) = {
    SKVQ_NESTED_LEVELS, SKVQ_NESTED_LEVELS, SKVQ_NESTED_LEVELS, SKVQ_NESTED_LEVELS};

SIMD void codes_nested(codes base, codes refine, codes ret[4])
{
	codes low = _mm512_set1_epi8(0x33), table = _mm512_load_si512(nested_levels), even, odd;

	/* low ? the second : the third operand */
	even = _mm512_ternarylogic_epi32(low, refine, codes_shl2(base), 0xca);
	odd = _mm512_ternarylogic_epi32(low, codes_shr2(refine), base, 0xca);
	ret[0] = _mm512_permutexvar_epi8(even, table);
	ret[1] = _mm512_permutexvar_epi8(odd, table);
	ret[2] = _mm512_permutexvar_epi8(codes_shr4(even), table);
	ret[3] = _mm512_permutexvar_epi8(codes_shr4(odd), table);
}

/* --- dot products ---------------------------------------------------------------------------- */

SIMD quad quad_load(const int8_t *p)
{
	int32_t x;

	__builtin_memcpy(&x, p, sizeof(x));
	return _mm512_set1_epi32(x);
}

SIMD dot dot_zero(void)
{
	return _mm512_setzero_si512();
}

SIMD dot dot_add(dot sum, codes c, quad q)
{
#if defined(__clang__)
	return _mm512_dpbusd_epi32(sum, c, q);
#else
	/* gcc 12 copies the sum before and after the built-in, which doubles the loop. */
	__asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(c), "v"(q));
	return sum;
#endif
}

SIMD i32s dot_sums(dot d)
{
	return d;
}

/* --- integers -------------------------------------------------------------------------------- */

SIMD i32s i32_set(int32_t x)
{
	return _mm512_set1_epi32(x);
}

SIMD i32s i32_load(const int32_t *p)
{
	return _mm512_loadu_si512(p);
}

SIMD void i32_store(int32_t *p, i32s v)
{
	_mm512_storeu_si512(p, v);
}

SIMD i32s i32_add(i32s a, i32s b)
{
	return _mm512_add_epi32(a, b);
}

SIMD i32s i32_sub(i32s a, i32s b)
{
	return _mm512_sub_epi32(a, b);
}

SIMD i32s i32_shl(i32s v, uint32_t n)
{
	return _mm512_sllv_epi32(v, _mm512_set1_epi32((int)n));
}

SIMD i32s i32_sar(i32s v, uint32_t n)
{
	return _mm512_srav_epi32(v, _mm512_set1_epi32((int)n));
}

SIMD int32_t i32_total(i32s v)
{
	return _mm512_reduce_add_epi32(v);
}

/* The low bytes, in order. */
SIMD void i32_store_bytes(int8_t *p, i32s v)
{
	_mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(v));
}

/* --- floats ---------------------------------------------------------------------------------- */

SIMD f32s f32_set(float x)
{
	return _mm512_set1_ps(x);
}

SIMD f32s f32_load(const float *p)
{
	return _mm512_loadu_ps(p);
}

SIMD void f32_store(float *p, f32s v)
{
	_mm512_storeu_ps(p, v);
}

SIMD f32s f32_add(f32s a, f32s b)
{
	return _mm512_add_ps(a, b);
}

SIMD f32s f32_sub(f32s a, f32s b)
{
	return _mm512_sub_ps(a, b);
}

SIMD f32s f32_mul(f32s a, f32s b)
{
	return _mm512_mul_ps(a, b);
}

SIMD f32s f32_div(f32s a, f32s b)
{
	return _mm512_div_ps(a, b);
}

/* a * b + c, rounded once. */
SIMD f32s f32_fma(f32s a, f32s b, f32s c)
{
	return _mm512_fmadd_ps(a, b, c);
}

SIMD f32s f32_fnma(f32s a, f32s b, f32s c)
{
	return _mm512_fnmadd_ps(a, b, c);
}

/* b if either is NaN. */
SIMD f32s f32_max(f32s a, f32s b)
{
	return _mm512_max_ps(a, b);
}

SIMD f32s f32_abs(f32s v)
{
	return _mm512_abs_ps(v);
}

/* a >= b ? x : y; NaN compares false. */
SIMD f32s f32_if_ge(f32s a, f32s b, f32s x, f32s y)
{
	return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), y, x);
}

/* v * 2^n for n integral in [-127, 127], by its exponent: v is in [0.5, 2]. */
SIMD f32s f32_scale(f32s v, i32s n)
{
	return _mm512_castsi512_ps(
	    _mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(n, 23)));
}

SIMD i32s f32_bits_of(f32s v)
{
	return _mm512_castps_si512(v);
}

SIMD f32s f32_from_i32(i32s v)
{
	return _mm512_cvtepi32_ps(v);
}

/* To the nearest, ties to even. */
SIMD i32s f32_to_i32(f32s v)
{
	return _mm512_cvtps_epi32(v);
}

SIMD float f32_total(f32s v)
{
	return _mm512_reduce_add_ps(v);
}

SIMD float f32_largest(f32s v)
{
	return _mm512_reduce_max_ps(v);
}

/* Lane i is the total of v[i]. Each level adds pairs of vectors while it interleaves them. */
SIMD f32s f32_totals(const f32s v[16])
{
	f32s a[8], b[4], c[2];

	for (int i = 0; i < 8; i++)
		a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
				     _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
	for (int i = 0; i < 4; i++)
		b[i] = _mm512_add_ps(
		    _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], _MM_SHUFFLE(1, 0, 1, 0)),
		    _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], _MM_SHUFFLE(3, 2, 3, 2)));
	for (int i = 0; i < 2; i++)
		c[i] = _mm512_add_ps(
		    _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], _MM_SHUFFLE(2, 0, 2, 0)),
		    _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], _MM_SHUFFLE(3, 1, 3, 1)));
	return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], _MM_SHUFFLE(2, 0, 2, 0)),
			     _mm512_shuffle_f32x4(c[0], c[1], _MM_SHUFFLE(3, 1, 3, 1)));
}

/* Sixteen binary16. */
SIMD f32s f32_from_halves(const uint16_t *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Sixteen E4M3 codes times 2^-8: their bits are a binary16's, whose exponent has 8 more of bias.
 * The two NaN codes give 0. */
SIMD f32s f32_from_e4m3(const uint8_t *p)
{
	__m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
	__mmask16 fine = _mm_test_epi8_mask(_mm_add_epi8(x, _mm_set1_epi8(1)), _mm_set1_epi8(0x7f));
	__m256i h = _mm256_cvtepi8_epi16(_mm_maskz_mov_epi8(fine, x));

	/* Sign extension leaves the sign in bit 15 through the shift. */
	h = _mm256_and_si256(_mm256_slli_epi16(h, 7), _mm256_set1_epi16((short)0xbf80));
	return _mm512_cvtph_ps(h);
}

#endif /* SKVQ_KERNELS_AVX512_PRIM_H */
