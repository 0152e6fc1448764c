/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engine space to stored space and back: by a matrix where calibration gave one, else by the codec's
 * rotation. The rotation is the Hadamard matrix in Sylvester's order,
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

/* x = x m. Products are added in the order of x's channels, in every lane and tier alike. */
static void multiply(const float *m, uint32_t dim, float *x)
{
	float y[DIM_MAX];

	for (uint32_t i = 0; i < dim; i += LANES) {
		vec_f32 sum[VECS] = {0};

		for (uint32_t j = 0; j < dim; j++)
			for (int k = 0; k < VECS; k++)
				sum[k] += x[j] * vec_load(m + (size_t)j * dim + i + k * VEC);
		for (int k = 0; k < VECS; k++)
			vec_store(y + i + k * VEC, sum[k]);
	}
	memcpy(x, y, dim * sizeof(float));
}

static void forward(const struct skvq_codec *c, const float *m, const uint16_t *reorder, float *x)
{
	float y[DIM_MAX];

	assert(c->dim <= DIM_MAX);
	if (m)
		multiply(m, c->dim, x);
	else if (c->rotate)
		hadamard(x, c->dim);
	if (!reorder)
		return;
	memcpy(y, x, c->dim * sizeof(float));
	for (uint32_t i = 0; i < c->dim; i++)
		x[i] = y[reorder[i]];
}

void SKVQ_TIER(to_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x)
{
	forward(c, t ? t->into : NULL, t ? t->reorder : NULL, x);
}

void SKVQ_TIER(query_to_stored)(const struct skvq_codec *c, const struct skvq_transform *t,
				float *x)
{
	if (t && t->query)
		forward(c, t->query, t->reorder, x);
	else
		SKVQ_TIER(to_stored)(c, t, x);
}

void SKVQ_TIER(from_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x)
{
	float y[DIM_MAX];

	assert(c->dim <= DIM_MAX);
	if (t && t->reorder) {
		memcpy(y, x, c->dim * sizeof(float));
		for (uint32_t i = 0; i < c->dim; i++)
			x[t->reorder[i]] = y[i];
	}
	if (t && t->back)
		multiply(t->back, c->dim, x);
	else if (c->rotate)
		hadamard(x, c->dim);
}

void SKVQ_TIER(tile_from_stored)(const struct skvq_codec *c, const struct skvq_transform *t,
				 float *rows)
{
	for (uint32_t i = 0; i < LANES; i++)
		SKVQ_TIER(from_stored)(c, t, rows + (size_t)i * c->dim);
}
