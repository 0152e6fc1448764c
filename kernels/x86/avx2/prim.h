/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/avx2/prim.h - the primitives of simd/ (listed in simd/simd.h) for AVX2 with FMA and F16C. Two
 * registers hold 64 codes, sixteen sums or sixteen floats; there are sixteen.
 */
#ifndef SKVQ_KERNELS_AVX2_PRIM_H
#define SKVQ_KERNELS_AVX2_PRIM_H

#include <immintrin.h>
#include <stdint.h>

#include "../../nested.h"

#define SIMD static inline __attribute__((always_inline))

/* vpmaddubsw adds two products in 16 bits, saturating, and sums stay in 16 bits as long as they
 * fit: 32767 / (2 * 128 * code_max) additions. Products of 8-bit codes leave no room for whole
 * bytes: digits within -64..63 then, and one addition. */
#define DIGIT_BITS(code_max) ((code_max) > 127 ? 7u : 8u)
#define DOT_STEPS(code_max)  ((code_max) > 127 ? 1u : 127u / (code_max))
#define WIDE_BIAS            0u
#define PLANE_SUMS           1u
#define TRIT_SUMS            1u
#define TRIT_RAISED(k)       0
#define TRIT_KEYS_FUSED      0
#define DOT_ROWS             2u
#define DOT_X                1u
#define DOT_SHAPES(F)        F(1, 1) F(2, 1)
#define VALUE_BLOCKS         4u

typedef struct {
	__m256i a, b;
} codes;
typedef __m256i quad;
typedef struct { /* 32 sums of two products, 16 bits each */
	__m256i a, b;
} dot;
typedef struct {
	__m256i a, b;
} i32s;
typedef struct {
	__m256 a, b;
} f32s;

/* --- codes ----------------------------------------------------------------------------------- */

SIMD __m256i load256(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

SIMD void store256(void *p, __m256i v)
{
	_mm256_storeu_si256((__m256i *)p, v);
}

SIMD codes codes_load(const uint8_t *p)
{
	return (codes){load256(p), load256(p + 32)};
}

/* Codes above 127, less WIDE_BIAS. */
SIMD codes codes_load_wide(const uint8_t *p)
{
	return codes_load(p);
}

SIMD void codes_store(uint8_t *p, codes v)
{
	store256(p, v.a);
	store256(p + 32, v.b);
}

SIMD codes codes_and(codes v, uint8_t mask)
{
	__m256i m = _mm256_set1_epi8((char)mask);

	return (codes){_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}

SIMD codes codes_or(codes x, codes y)
{
	return (codes){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}

/* Shifts of 16-bit words: bits cross between bytes, the masks that follow remove them. */
SIMD codes codes_shr(codes v, uint32_t n)
{
	__m128i by = _mm_cvtsi32_si128((int)n);

	return (codes){_mm256_srl_epi16(v.a, by), _mm256_srl_epi16(v.b, by)};
}

SIMD codes codes_shr2(codes v)
{
	return (codes){_mm256_srli_epi16(v.a, 2), _mm256_srli_epi16(v.b, 2)};
}

SIMD codes codes_shr4(codes v)
{
	return (codes){_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)};
}

SIMD codes codes_shr6(codes v)
{
	return (codes){_mm256_srli_epi16(v.a, 6), _mm256_srli_epi16(v.b, 6)};
}

SIMD codes codes_shl2(codes v)
{
	return (codes){_mm256_slli_epi16(v.a, 2), _mm256_slli_epi16(v.b, 2)};
}

/* b % divisor for b < 3 * divisor: two subtractions that stick, b - divisor wraps to more than b if
 * b is less. */
SIMD __m256i modulo(__m256i b, int divisor)
{
	__m256i d = _mm256_set1_epi8((char)divisor);

	b = _mm256_min_epu8(b, _mm256_sub_epi8(b, d));
	return _mm256_min_epu8(b, _mm256_sub_epi8(b, d));
}

/* 32 bytes below 243 to their five digits. 81 and 162 are told apart by their lowest two bits; 27
 * and 54 by a shuffle of their lowest four; 0..26 are looked up in two halves, each of which gives
 * 0 where bit 7 of its index is set. Fields of two bits. */
#define T1(n) ((n) % 3 | (n) / 3 % 3 << 2 | (n) / 9 % 3 << 4)
#define T8(n) T1(n), T1(n + 1), T1(n + 2), T1(n + 3), T1(n + 4), T1(n + 5), T1(n + 6), T1(n + 7)
SIMD void trits256(__m256i b, __m256i ret[5])
{
	const __m256i low = _mm256_setr_epi8(T8(0), T8(8), T8(0), T8(8));
	const __m256i high = _mm256_setr_epi8(T8(16), T8(24), T8(16), T8(24));
	const __m256i of27 = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
					      0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0);
	const __m256i three = _mm256_set1_epi8(3);
	__m256i below81 = modulo(b, 81), below27 = modulo(below81, 27), f;

	f = _mm256_or_si256(
	    _mm256_shuffle_epi8(low, _mm256_add_epi8(below27, _mm256_set1_epi8(0x70))),
	    _mm256_shuffle_epi8(high, _mm256_sub_epi8(below27, _mm256_set1_epi8(16))));
	ret[0] = _mm256_and_si256(f, three);
	ret[1] = _mm256_and_si256(_mm256_srli_epi16(f, 2), three);
	ret[2] = _mm256_and_si256(_mm256_srli_epi16(f, 4), three);
	ret[3] = _mm256_shuffle_epi8(of27, _mm256_sub_epi8(below81, below27));
	ret[4] = _mm256_and_si256(_mm256_sub_epi8(b, below81), three);
}
#undef T8
#undef T1

SIMD void codes_trits(codes v, codes ret[5])
{
	__m256i a[5], b[5];

	trits256(v.a, a);
	trits256(v.b, b);
	for (int i = 0; i < 5; i++)
		ret[i] = (codes){a[i], b[i]};
}

SIMD void codes_trits_raised(codes v, codes ret[5])
{
	codes_trits(v, ret);
}

/* A column's 2-bit codes and their refinement to levels, by way of 4-bit indices. */
SIMD void nested256(__m256i base, __m256i refine, __m256i ret[4])
{
	const __m256i low = _mm256_set1_epi8(0x33), nibble = _mm256_set1_epi8(15);
	const __m256i table = _mm256_setr_epi8(SKVQ_NESTED_LEVELS, SKVQ_NESTED_LEVELS);
	__m256i even, odd;

	even = _mm256_or_si256(_mm256_and_si256(low, refine),
			       _mm256_andnot_si256(low, _mm256_slli_epi16(base, 2)));
	odd = _mm256_or_si256(_mm256_and_si256(low, _mm256_srli_epi16(refine, 2)),
			      _mm256_andnot_si256(low, base));
	ret[0] = _mm256_shuffle_epi8(table, _mm256_and_si256(even, nibble));
	ret[1] = _mm256_shuffle_epi8(table, _mm256_and_si256(odd, nibble));
	ret[2] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(even, 4), nibble));
	ret[3] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(odd, 4), nibble));
}

SIMD void codes_nested(codes base, codes refine, codes ret[4])
{
	__m256i a[4], b[4];

	nested256(base.a, refine.a, a);
	nested256(base.b, refine.b, b);
	for (int i = 0; i < 4; i++)
		ret[i] = (codes){a[i], b[i]};
}

/* --- dot products ---------------------------------------------------------------------------- */

SIMD quad quad_load(const int8_t *p)
{
	int32_t x;

	__builtin_memcpy(&x, p, sizeof(x));
	return _mm256_set1_epi32(x);
}

SIMD dot dot_zero(void)
{
	return (dot){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

SIMD dot dot_add(dot sum, codes c, quad q)
{
	return (dot){_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(c.a, q)),
		     _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(c.b, q))};
}

SIMD i32s dot_sums(dot d)
{
	__m256i one = _mm256_set1_epi16(1);

	return (i32s){_mm256_madd_epi16(d.a, one), _mm256_madd_epi16(d.b, one)};
}

/* --- integers -------------------------------------------------------------------------------- */

SIMD i32s i32_set(int32_t x)
{
	return (i32s){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

SIMD i32s i32_load(const int32_t *p)
{
	return (i32s){load256(p), load256(p + 8)};
}

SIMD void i32_store(int32_t *p, i32s v)
{
	store256(p, v.a);
	store256(p + 8, v.b);
}

SIMD i32s i32_add(i32s x, i32s y)
{
	return (i32s){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}

SIMD i32s i32_sub(i32s x, i32s y)
{
	return (i32s){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}

SIMD i32s i32_shl(i32s v, uint32_t n)
{
	__m256i by = _mm256_set1_epi32((int)n);

	return (i32s){_mm256_sllv_epi32(v.a, by), _mm256_sllv_epi32(v.b, by)};
}

SIMD i32s i32_sar(i32s v, uint32_t n)
{
	__m256i by = _mm256_set1_epi32((int)n);

	return (i32s){_mm256_srav_epi32(v.a, by), _mm256_srav_epi32(v.b, by)};
}

SIMD int32_t i32_total(i32s v)
{
	__m256i x = _mm256_add_epi32(v.a, v.b);
	__m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));

	y = _mm_add_epi32(y, _mm_shuffle_epi32(y, _MM_SHUFFLE(1, 0, 3, 2)));
	y = _mm_add_epi32(y, _mm_shuffle_epi32(y, _MM_SHUFFLE(2, 3, 0, 1)));
	return _mm_cvtsi128_si32(y);
}

/* The values, which fit a byte, in order. */
SIMD void i32_store_bytes(int8_t *p, i32s v)
{
	/* Packing interleaves 128-bit halves: the 64-bit words are put in order after. */
	__m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), _MM_SHUFFLE(3, 1, 2, 0));

	_mm_storeu_si128((__m128i *)(void *)p, _mm_packs_epi16(_mm256_castsi256_si128(w),
							       _mm256_extracti128_si256(w, 1)));
}

/* --- floats ---------------------------------------------------------------------------------- */

SIMD f32s f32_set(float x)
{
	return (f32s){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

SIMD f32s f32_load(const float *p)
{
	return (f32s){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

SIMD void f32_store(float *p, f32s v)
{
	_mm256_storeu_ps(p, v.a);
	_mm256_storeu_ps(p + 8, v.b);
}

SIMD f32s f32_add(f32s x, f32s y)
{
	return (f32s){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}

SIMD f32s f32_sub(f32s x, f32s y)
{
	return (f32s){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}

SIMD f32s f32_mul(f32s x, f32s y)
{
	return (f32s){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}

SIMD f32s f32_div(f32s x, f32s y)
{
	return (f32s){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}

/* x * y + z, rounded once. */
SIMD f32s f32_fma(f32s x, f32s y, f32s z)
{
	return (f32s){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

SIMD f32s f32_fnma(f32s x, f32s y, f32s z)
{
	return (f32s){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}

/* y if either is NaN. */
SIMD f32s f32_max(f32s x, f32s y)
{
	return (f32s){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}

SIMD f32s f32_abs(f32s v)
{
	__m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));

	return (f32s){_mm256_and_ps(v.a, m), _mm256_and_ps(v.b, m)};
}

/* a >= b ? x : y; NaN compares false. */
SIMD f32s f32_if_ge(f32s a, f32s b, f32s x, f32s y)
{
	return (f32s){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GE_OQ)),
		      _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GE_OQ))};
}

/* v * 2^n by its exponent; the result must be a normal number. */
SIMD f32s f32_scale(f32s v, i32s n)
{
	return (f32s){_mm256_castsi256_ps(
			  _mm256_add_epi32(_mm256_castps_si256(v.a), _mm256_slli_epi32(n.a, 23))),
		      _mm256_castsi256_ps(
			  _mm256_add_epi32(_mm256_castps_si256(v.b), _mm256_slli_epi32(n.b, 23)))};
}

SIMD i32s f32_bits_of(f32s v)
{
	return (i32s){_mm256_castps_si256(v.a), _mm256_castps_si256(v.b)};
}

SIMD f32s f32_from_i32(i32s v)
{
	return (f32s){_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)};
}

/* To the nearest, ties to even. */
SIMD i32s f32_to_i32(f32s v)
{
	return (i32s){_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)};
}

SIMD float f32_total(f32s v)
{
	__m256 x = _mm256_add_ps(v.a, v.b);
	__m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

	y = _mm_add_ps(y, _mm_movehl_ps(y, y));
	return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

SIMD float f32_largest(f32s v)
{
	__m256 x = _mm256_max_ps(v.a, v.b);
	__m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

	y = _mm_max_ps(y, _mm_movehl_ps(y, y));
	return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* Totals of eight registers: pairs, fours, then the two halves. */
SIMD __m256 totals256(const f32s *v)
{
	__m256 x[8], a, b;

	for (int i = 0; i < 8; i++)
		x[i] = _mm256_add_ps(v[i].a, v[i].b);
	a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
	b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
	return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
			     _mm256_permute2f128_ps(a, b, 0x31));
}

/* Lane i is the total of v[i]. */
SIMD f32s f32_totals(const f32s v[16])
{
	return (f32s){totals256(v), totals256(v + 8)};
}

/* Sixteen binary16. */
SIMD f32s f32_from_halves(const uint16_t *p)
{
	return (f32s){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)),
		      _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 8)))};
}

/* Sixteen E4M3 codes times 2^-8: their bits are a binary16's, whose exponent has 8 more of bias.
 * The two NaN codes give 0. */
SIMD f32s f32_from_e4m3(const uint8_t *p)
{
	__m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
	__m128i low7 = _mm_and_si128(x, _mm_set1_epi8(0x7f));
	__m256i h;

	x = _mm_andnot_si128(_mm_cmpeq_epi8(low7, _mm_set1_epi8(0x7f)), x);
	/* Sign extension leaves the sign in bit 15 through the shift. */
	h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(x), 7);
	h = _mm256_and_si256(h, _mm256_set1_epi16((short)0xbf80));
	return (f32s){_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
		      _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

#endif /* SKVQ_KERNELS_AVX2_PRIM_H */
