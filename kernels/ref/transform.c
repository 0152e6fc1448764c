/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engine space to stored space and back. The rotation is the Hadamard matrix in Sylvester's order,
 * H[i][j] = (-1)^popcount(i & j) / sqrt(B), in blocks of B = the largest power of two that divides
 * dim (80: five of 16; 96: three of 32; 192: three of 64). It is its own inverse.
 */
#include "tier.h"

#include <assert.h>
#include <math.h>

/* Stages from stride 1 up, then the norm: the order is part of the specification, because it
 * decides the last bits and so, at a cell's border, a code. */
static void hadamard(float *x, uint32_t dim)
{
	uint32_t block = dim & -dim;
	float norm = 1.0f / sqrtf((float)block);

	for (uint32_t half = 1; half < block; half *= 2) {
		for (uint32_t i = 0; i < dim; i += 2 * half) {
			for (uint32_t j = i; j < i + half; j++) {
				float a = x[j], b = x[j + half];

				x[j] = a + b;
				x[j + half] = a - b;
			}
		}
	}
	for (uint32_t i = 0; i < dim; i++)
		x[i] *= norm;
}

void SKVQ_TIER(to_stored)(const struct skvq_codec *c, const uint16_t *reorder, float *x)
{
	float y[DIM_MAX];

	assert(c->dim <= DIM_MAX);
	if (c->rotate)
		hadamard(x, c->dim);
	if (!reorder)
		return;
	memcpy(y, x, c->dim * sizeof(float));
	for (uint32_t i = 0; i < c->dim; i++)
		x[i] = y[reorder[i]];
}

void SKVQ_TIER(from_stored)(const struct skvq_codec *c, const uint16_t *reorder, float *x)
{
	float y[DIM_MAX];

	assert(c->dim <= DIM_MAX);
	if (reorder) {
		memcpy(y, x, c->dim * sizeof(float));
		for (uint32_t i = 0; i < c->dim; i++)
			x[reorder[i]] = y[i];
	}
	if (c->rotate)
		hadamard(x, c->dim);
}
