/* SPDX-License-Identifier: Apache-2.0 */
/*
 * e4m3.h - the 8-bit float of page parameters (float8_e4m3fn of OCP's OFP8: no infinity, NaN is
 * 0x7f and 0xff, largest 448, subnormal step 2^-9). Encoding saturates; NaN codes decode as 0, so
 * that a page nobody checked cannot poison a sum. Not for use outside kernels/.
 */
#ifndef SKVQ_KERNELS_E4M3_H
#define SKVQ_KERNELS_E4M3_H

#include <stdint.h>
#include <string.h>

#define E4M3_MAX_CODE 0x7eu /* 448 */

extern const float skvq_e4m3_value[256];

/* 2^e for -126 <= e <= 127. */
static inline float e4m3_exp2(int e)
{
	uint32_t u = (uint32_t)(e + 127) << 23;
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

/* Finite x to the nearest code, ties to even, +-448 beyond. Without a branch, so that a loop over
 * it becomes SIMD. */
static inline uint8_t e4m3_encode(float x)
{
	uint32_t u, sign, small, code;
	float y;

	memcpy(&u, &x, sizeof(u));
	sign = u >> 24 & 0x80;
	u &= 0x7fffffff;
	memcpy(&y, &u, sizeof(y));
	y += 24576.0f; /* 2^14 * 1.5: one unit in the last place is 2^-9, the subnormals' step */
	memcpy(&small, &y, sizeof(small));
	small -= 0x46c00000;
	code = u + 0x7ffff + (u >> 20 & 1);
	code = (code >> 20) - (120u << 3); /* exponent bias 127 to 7 */
	code = code < E4M3_MAX_CODE ? code : E4M3_MAX_CODE;
	code = u < 0x3c800000 ? small : code; /* below 2^-6 */
	return (uint8_t)(sign | code);
}

#endif /* SKVQ_KERNELS_E4M3_H */
