/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/avx2/prim_codec.h - what simd/transform.h, encode.h and decode.h need beyond prim.h.
 */
#ifndef SKVQ_KERNELS_AVX2_PRIM_CODEC_H
#define SKVQ_KERNELS_AVX2_PRIM_CODEC_H

#include <stddef.h>

#include "prim.h"

#define HADAMARD_VECTORS 4u /* of sixteen floats, in registers */
#define PRODUCT_ROWS     4u
#define PRODUCT_VECTORS  1u /* at a time of the matrix, the less of which a row reads the better */
#define SEARCH_WIDTH     2u /* half steps tried at a time: four sums under way, four edges */

/* x < y ? x : y. */
SIMD f32s f32_min(f32s x, f32s y)
{
	return (f32s){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}

SIMD __m256 within256(__m256 v, float max)
{
	v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
	return _mm256_max_ps(_mm256_min_ps(v, _mm256_set1_ps(max)), _mm256_set1_ps(-max));
}

/* 0 for NaN, else within [-max, max]. */
SIMD f32s f32_within(f32s v, float max)
{
	return (f32s){within256(v.a, max), within256(v.b, max)};
}

/* Towards zero. */
SIMD f32s f32_trunc(f32s v)
{
	return (f32s){_mm256_cvtepi32_ps(_mm256_cvttps_epi32(v.a)),
		      _mm256_cvtepi32_ps(_mm256_cvttps_epi32(v.b))};
}

SIMD __m256 swap256(__m256 v, const uint32_t k)
{
	return k == 1   ? _mm256_permute_ps(v, 0xb1)
	       : k == 2 ? _mm256_permute_ps(v, 0x4e)
			: _mm256_permute2f128_ps(v, v, 1);
}

/* Lane i is lane i ^ k of v: k = 1, 2, 4, 8. */
SIMD f32s f32_swap(f32s v, const uint32_t k)
{
	return k == 8 ? (f32s){v.b, v.a} : (f32s){swap256(v.a, k), swap256(v.b, k)};
}

/* Eight by eight. Loads put rows j and j + 4 side by side, so that what is left is two transposed
 * blocks of 4 x 4 in each register. */
SIMD void transpose256(const float *x, size_t stride, float *ret, size_t ret_stride)
{
	for (int h = 0; h < 8; h += 4) {
		__m256 r[4], a, b, c, d;

		for (int j = 0; j < 4; j++) {
			const float *p = x + (size_t)j * stride + h;

			r[j] = _mm256_castps128_ps256(_mm_loadu_ps(p));
			r[j] = _mm256_insertf128_ps(r[j], _mm_loadu_ps(p + 4 * stride), 1);
		}
		a = _mm256_unpacklo_ps(r[0], r[1]);
		b = _mm256_unpackhi_ps(r[0], r[1]);
		c = _mm256_unpacklo_ps(r[2], r[3]);
		d = _mm256_unpackhi_ps(r[2], r[3]);
		r[0] =
		    _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(c)));
		r[1] =
		    _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(c)));
		r[2] =
		    _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(b), _mm256_castps_pd(d)));
		r[3] =
		    _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(b), _mm256_castps_pd(d)));
		for (int j = 0; j < 4; j++)
			_mm256_storeu_ps(ret + (size_t)(h + j) * ret_stride, r[j]);
	}
}

/* ret[i][j] = x[j][i] for i, j < 16, rows so many floats apart; the bits are not looked at. */
SIMD void f32_transpose(const float *x, size_t stride, float *ret, size_t ret_stride)
{
	transpose256(x, stride, ret, ret_stride);
	transpose256(x + 8, stride, ret + 8 * ret_stride, ret_stride);
	transpose256(x + 8 * stride, stride, ret + 8, ret_stride);
	transpose256(x + 8 * stride + 8, stride, ret + 8 * ret_stride + 8, ret_stride);
}

SIMD void f32_store_halves(uint16_t *p, f32s v)
{
	_mm_storeu_si128((__m128i *)(void *)p,
			 _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
	_mm_storeu_si128((__m128i *)(void *)(p + 8),
			 _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

SIMD __m256 from_bytes256(const uint8_t *p)
{
	return _mm256_cvtepi32_ps(
	    _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

/* Sixteen bytes. */
SIMD f32s f32_from_bytes(const uint8_t *p)
{
	return (f32s){from_bytes256(p), from_bytes256(p + 8)};
}

/* Byte j of each word. */
SIMD f32s f32_from_byte(i32s v, const uint32_t j)
{
	__m256i mask = _mm256_set1_epi32(255);

	return (f32s){
	    _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v.a, (int)(8 * j)), mask)),
	    _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v.b, (int)(8 * j)), mask))};
}

/* Codes that do not outgrow a byte. */
SIMD codes codes_shl(codes v, uint32_t n)
{
	__m128i by = _mm_cvtsi32_si128((int)n);

	return (codes){_mm256_sll_epi16(v.a, by), _mm256_sll_epi16(v.b, by)};
}

SIMD codes codes_mul(codes v, uint32_t n)
{
	__m256i by = _mm256_set1_epi16((short)n);

	return (codes){_mm256_mullo_epi16(v.a, by), _mm256_mullo_epi16(v.b, by)};
}

SIMD codes codes_add(codes x, codes y)
{
	return (codes){_mm256_add_epi8(x.a, y.a), _mm256_add_epi8(x.b, y.b)};
}

#endif /* SKVQ_KERNELS_AVX2_PRIM_CODEC_H */
