/* SPDX-License-Identifier: Apache-2.0 */
#include "tier.h"

void SKVQ_TIER(f16_to_f32)(const uint16_t *x, float *ret, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ret[i] = f16_decode(x[i]);
}

void SKVQ_TIER(f32_to_f16)(const float *x, uint16_t *ret, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ret[i] = f16_encode(x[i]);
}

void SKVQ_TIER(bf16_to_f32)(const uint16_t *x, float *ret, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ret[i] = bits_f32((uint32_t)x[i] << 16);
}

/* NaN keeps its upper bits, quiet. */
void SKVQ_TIER(f32_to_bf16)(const float *x, uint16_t *ret, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t u = f32_bits(x[i]);
		uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
		uint32_t nan = u >> 16 | 0x40;

		ret[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? nan : rounded);
	}
}
