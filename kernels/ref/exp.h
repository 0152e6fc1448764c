/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ref/exp.h - the two functions that softmax needs, without libm: inline, so that loops over 16
 * scores vectorise, and the same bits on every machine. tests/unit/test_attention.c measures them.
 */
#ifndef SKVQ_KERNELS_REF_EXP_H
#define SKVQ_KERNELS_REF_EXP_H

#include <math.h>

#include "tier.h"

/* exp(x) for x <= 0, within 2 units in the last place; 0 below -87 (where exp is 1.6e-38, the end
 * of the normal numbers) and for NaN; 1 for x > 0. Cephes' expf: x = k ln 2 + r, |r| <= ln(2)/2,
 * ln 2 in two parts of which the first times k is exact, degree 7 in r, then k into the exponent.
 */
static inline float exp_nonpositive(float x)
{
	const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
	float y = x > -87.0f ? x : -87.0f, k, r, p;

	y = y < 0.0f ? y : 0.0f;
	k = y * 1.44269504f + round;
	p = k - round;
	r = (y - p * 0.693359375f) - p * -2.12194440e-4f;
	p = 1.9875691500e-4f;
	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = p * (r * r) + r + 1.0f;
	p = bits_f32(f32_bits(p) + ((f32_bits(k) - f32_bits(round)) << 23));
	return x >= -87.0f ? p : 0.0f;
}

/* tanh within 2e-7 absolute: it only caps scores, for which that is what counts. NaN gives 1. */
static inline float tanh_capped(float x)
{
	float e = exp_nonpositive(-2.0f * fabsf(x)), y = (1.0f - e) / (1.0f + e);

	return x < 0.0f ? -y : y;
}

#endif /* SKVQ_KERNELS_REF_EXP_H */
