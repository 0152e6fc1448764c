/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/avx512/prim_codec.h - what simd/transform.h, encode.h and decode.h need beyond prim.h.
 */
#ifndef SKVQ_KERNELS_AVX512_PRIM_CODEC_H
#define SKVQ_KERNELS_AVX512_PRIM_CODEC_H

#include <stddef.h>

#include "prim.h"

#define HADAMARD_VECTORS 8u /* of sixteen floats, in registers */
#define PRODUCT_ROWS     4u
#define PRODUCT_VECTORS  4u
#define SEARCH_WIDTH     4u /* half steps tried at a time: sums under way to hide four cycles */

/* a < b ? a : b. */
SIMD f32s f32_min(f32s a, f32s b)
{
	return _mm512_min_ps(a, b);
}

/* 0 for NaN, else within [-max, max]. */
SIMD f32s f32_within(f32s v, float max)
{
	__mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);

	v = _mm512_maskz_min_ps(number, v, _mm512_set1_ps(max));
	return _mm512_max_ps(v, _mm512_set1_ps(-max));
}

/* Towards zero. */
SIMD f32s f32_trunc(f32s v)
{
	return _mm512_cvtepi32_ps(_mm512_cvttps_epi32(v));
}

/* Lane i is lane i ^ k of v: k = 1, 2, 4, 8. */
SIMD f32s f32_swap(f32s v, const uint32_t k)
{
	return k == 1   ? _mm512_permute_ps(v, 0xb1)
	       : k == 2 ? _mm512_permute_ps(v, 0x4e)
	       : k == 4 ? _mm512_shuffle_f32x4(v, v, 0xb1)
			: _mm512_shuffle_f32x4(v, v, 0x4e);
}

/* ret[i][j] = x[j][i] for i, j < 16, rows so many floats apart; the bits are not looked at. Loads
 * put rows j, j + 4, j + 8, j + 12 side by side, so that what is left is four transposed blocks of
 * 4 x 4 in each register: half the shuffles. */
SIMD void f32_transpose(const float *x, size_t stride, float *ret, size_t ret_stride)
{
	for (int h = 0; h < 16; h += 4) {
		__m512 r[4], a, b, c, d;

		for (int j = 0; j < 4; j++) {
			const float *p = x + (size_t)j * stride + h;

			r[j] = _mm512_castps128_ps512(_mm_loadu_ps(p));
			r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(p + 4 * stride), 1);
			r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(p + 8 * stride), 2);
			r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(p + 12 * stride), 3);
		}
		a = _mm512_unpacklo_ps(r[0], r[1]);
		b = _mm512_unpackhi_ps(r[0], r[1]);
		c = _mm512_unpacklo_ps(r[2], r[3]);
		d = _mm512_unpackhi_ps(r[2], r[3]);
		r[0] =
		    _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
		r[1] =
		    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
		r[2] =
		    _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
		r[3] =
		    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
		for (int j = 0; j < 4; j++)
			_mm512_storeu_ps(ret + (size_t)(h + j) * ret_stride, r[j]);
	}
}

SIMD void f32_store_halves(uint16_t *p, f32s v)
{
	_mm256_storeu_si256((__m256i *)(void *)p,
			    _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Sixteen bytes. */
SIMD f32s f32_from_bytes(const uint8_t *p)
{
	return _mm512_cvtepi32_ps(
	    _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

/* Byte j of each word. */
SIMD f32s f32_from_byte(i32s v, const uint32_t j)
{
	return _mm512_cvtepi32_ps(
	    _mm512_and_si512(_mm512_srli_epi32(v, 8 * j), _mm512_set1_epi32(255)));
}

/* Codes that do not outgrow a byte. */
SIMD codes codes_shl(codes v, uint32_t n)
{
	return _mm512_sll_epi16(v, _mm_cvtsi32_si128((int)n));
}

SIMD codes codes_mul(codes v, uint32_t n)
{
	return _mm512_mullo_epi16(v, _mm512_set1_epi16((short)n));
}

SIMD codes codes_add(codes a, codes b)
{
	return _mm512_add_epi8(a, b);
}

#endif /* SKVQ_KERNELS_AVX512_PRIM_CODEC_H */
