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
