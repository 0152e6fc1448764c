/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/transform.h - halves, rotation, matrices, channel order. transform.h, encode.h and decode.h
 * are one text, included in this order by <isa>/codec.c after simd.h and that ISA's prim_codec.h.
 * All of it gives ref's bits: every sum is added in ref's order, and where a fused multiply-add
 * appears its product is exact.
 */

/* Halves convert by instructions that know neither FTZ nor DAZ; what DAZ does to binary32 before it
 * becomes a half does not show in the half. A caller who turned on ARM's AHP or default NaN gets
 * what that says. */
static void simd_f16_to_f32(const uint16_t *x, float *ret, size_t n)
{
	size_t i = 0;

	for (; i + LANES <= n; i += LANES)
		f32_store(ret + i, f32_from_halves(x + i));
	for (; i < n; i++)
		ret[i] = f16_decode(x[i]);
}

static void simd_f32_to_f16(const float *x, uint16_t *ret, size_t n)
{
	size_t i = 0;

	for (; i + LANES <= n; i += LANES)
		f32_store_halves(ret + i, f32_load(x + i));
	for (; i < n; i++)
		ret[i] = f16_encode(x[i]);
}

/* Lane i: -1 where bit k of i is set, which takes lane i's own number from its partner's. */
static const float butterfly_signs[4][LANES] __attribute__((aligned(64))) = {
    {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
    {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
    {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
    {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1},
};

SIMD f32s butterfly(f32s v, const uint32_t k)
{
	return f32_fma(v, f32_load(butterfly_signs[k]), f32_swap(v, 1u << k));
}

#define BUTTERFLIES(half)                                                                          \
	if (N > (half))                                                                            \
	REPEAT(i, N, if (!(i & (half))) {                                                          \
		f32s sum = f32_add(v[i], v[i + (half)]);                                           \
                                                                                                   \
		v[i + (half)] = f32_sub(v[i], v[i + (half)]);                                      \
		v[i] = sum;                                                                        \
	})

/* The stages within N vectors, and the norm unless there are more stages to come. */
SIMD void hadamard_vectors(float *x, const uint32_t N, const bool last, float norm)
{
	f32s v[8];

	REPEAT(i, N, v[i] = f32_load(x + i * LANES););
	REPEAT(i, N, {
		v[i] = butterfly(v[i], 0);
		v[i] = butterfly(v[i], 1);
		v[i] = butterfly(v[i], 2);
		v[i] = butterfly(v[i], 3);
	});
	BUTTERFLIES(1);
	BUTTERFLIES(2);
	BUTTERFLIES(4);
	if (last)
		REPEAT(i, N, v[i] = f32_mul(v[i], f32_set(norm)););
	REPEAT(i, N, f32_store(x + i * LANES, v[i]););
}

SIMD void hadamard_stage(float *x, uint32_t half, float norm, const bool last)
{
	for (uint32_t j = 0; j < half; j += LANES) {
		f32s a = f32_load(x + j), b = f32_load(x + j + half);
		f32s sum = f32_add(a, b), difference = f32_sub(a, b);

		f32_store(x + j, last ? f32_mul(sum, f32_set(norm)) : sum);
		f32_store(x + j + half, last ? f32_mul(difference, f32_set(norm)) : difference);
	}
}

/* block is beyond what fits the registers: a power of two times that. */
static void hadamard_large(float *x, uint32_t block, float norm)
{
	const uint32_t inner = HADAMARD_VECTORS * LANES;

	for (uint32_t i = 0; i < block; i += inner)
		hadamard_vectors(x + i, HADAMARD_VECTORS, false, norm);
	for (uint32_t half = inner; half < block / 2; half *= 2)
		for (uint32_t i = 0; i < block; i += 2 * half)
			hadamard_stage(x + i, half, norm, false);
	hadamard_stage(x, block / 2, norm, true);
}

/* n channels: of one row or, as dim is a multiple of the block, of several. */
static void hadamard_rows(float *x, uint32_t dim, uint32_t n)
{
	uint32_t block = dim & -dim;
	float norm = 1.0f / sqrtf((float)block);

	if (block > HADAMARD_VECTORS * LANES) {
		for (uint32_t i = 0; i < n; i += block)
			hadamard_large(x + i, block, norm);
		return;
	}
	switch (block) {
	case 16:
		for (uint32_t i = 0; i < n; i += 16)
			hadamard_vectors(x + i, 1, true, norm);
		break;
	case 32:
		for (uint32_t i = 0; i < n; i += 32)
			hadamard_vectors(x + i, 2, true, norm);
		break;
	case 64:
		for (uint32_t i = 0; i < n; i += 64)
			hadamard_vectors(x + i, 4, true, norm);
		break;
	default:
		for (uint32_t i = 0; i < n; i += 128)
			hadamard_vectors(x + i, 8, true, norm);
		break;
	}
}

/* ret[r][0..16 C) = x[r][..] m[..][0..16 C) for R rows. */
SIMD void product_block(const float *m, const float *x, uint32_t dim, const uint32_t R,
			const uint32_t C, float *ret)
{
	f32s sum[4][4];

	REPEAT(r, R, REPEAT(c, C, sum[r][c] = f32_set(0.0f);););
	for (uint32_t j = 0; j < dim; j++) {
		f32s v[4];

		REPEAT(c, C, v[c] = f32_load(m + (size_t)j * dim + c * LANES););
		REPEAT(r, R, {
			f32s b = f32_set(x[(size_t)r * dim + j]);

			REPEAT(c, C, sum[r][c] = f32_add(sum[r][c], f32_mul(b, v[c])););
		});
	}
	REPEAT(r, R, REPEAT(c, C, f32_store(ret + (size_t)r * dim + c * LANES, sum[r][c]);););
}

/* ret = x m, not in place. A block of columns of m stays in L1 for all rows, a multiple of R. */
SIMD void product(const float *m, const float *x, uint32_t dim, uint32_t n_rows, const uint32_t R,
		  const uint32_t C, float *ret)
{
	uint32_t i = 0;

	for (; i + C * LANES <= dim; i += C * LANES)
		for (uint32_t r = 0; r < n_rows; r += R)
			product_block(m + i, x + (size_t)r * dim, dim, R, C,
				      ret + (size_t)r * dim + i);
	for (; i < dim; i += LANES)
		for (uint32_t r = 0; r < n_rows; r += R)
			product_block(m + i, x + (size_t)r * dim, dim, R, 1,
				      ret + (size_t)r * dim + i);
}

/* n_rows is 1 or 16. */
static __attribute__((noinline)) void multiply_rows(const float *m, uint32_t dim, uint32_t n_rows,
						    float *x)
{
	float y[LANES * DIM_MAX];

	if (n_rows == 1)
		product(m, x, dim, 1, 1, 4, y);
	else
		product(m, x, dim, LANES, PRODUCT_ROWS, PRODUCT_VECTORS, y);
	memcpy(x, y, (size_t)n_rows * dim * sizeof(float));
}

/* rows[16][dim] to columns[dim][16], and back. */
static void tile_columns(const float *rows, uint32_t dim, float *ret)
{
	for (uint32_t i = 0; i < dim; i += LANES)
		f32_transpose(rows + i, dim, ret + (size_t)i * LANES, LANES);
}

static void tile_rows(const float *columns, uint32_t dim, float *ret)
{
	for (uint32_t i = 0; i < dim; i += LANES)
		f32_transpose(columns + (size_t)i * LANES, LANES, ret + i, dim);
}

static void rows_forward(const struct skvq_codec *c, const float *m, const uint16_t *reorder,
			 uint32_t n_rows, float *x)
{
	uint32_t dim = c->dim;
	float y[DIM_MAX];

	assert(dim <= DIM_MAX);
	if (m)
		multiply_rows(m, dim, n_rows, x);
	else if (c->rotate)
		hadamard_rows(x, dim, n_rows * dim);
	for (uint32_t r = 0; reorder && r < n_rows; r++, x += dim) {
		memcpy(y, x, dim * sizeof(float));
		for (uint32_t i = 0; i < dim; i++)
			x[i] = y[reorder[i]];
	}
}

static void simd_to_stored(const struct skvq_codec *c, const struct skvq_transform *t, float *x)
{
	rows_forward(c, t ? t->into : NULL, t ? t->reorder : NULL, 1, x);
}

static void simd_query_to_stored(const struct skvq_codec *c, const struct skvq_transform *t,
				 float *x)
{
	const float *m = !t ? NULL : t->query ? t->query : t->into;

	rows_forward(c, m, t ? t->reorder : NULL, 1, x);
}

static void simd_from_stored(const struct skvq_codec *c, const struct skvq_transform *t, float *x)
{
	uint32_t dim = c->dim;
	float y[DIM_MAX];

	assert(dim <= DIM_MAX);
	if (t && t->reorder) {
		memcpy(y, x, dim * sizeof(float));
		for (uint32_t i = 0; i < dim; i++)
			x[t->reorder[i]] = y[i];
	}
	if (t && t->back)
		multiply_rows(t->back, dim, 1, x);
	else if (c->rotate)
		hadamard_rows(x, dim, dim);
}

/* Columns are cheaper to put in order than channels of rows. */
static __attribute__((noinline)) void tile_reorder_back(const uint16_t *reorder, uint32_t dim,
							float *rows)
{
	float x[DIM_MAX * LANES] __attribute__((aligned(64)));
	float y[DIM_MAX * LANES] __attribute__((aligned(64)));

	tile_columns(rows, dim, x);
	for (uint32_t i = 0; i < dim; i++)
		f32_store(y + (size_t)reorder[i] * LANES, f32_load(x + (size_t)i * LANES));
	tile_rows(y, dim, rows);
}

static void simd_tile_from_stored(const struct skvq_codec *c, const struct skvq_transform *t,
				  float *rows)
{
	assert(c->dim <= DIM_MAX);
	if (t && t->reorder)
		tile_reorder_back(t->reorder, c->dim, rows);
	if (t && t->back)
		multiply_rows(t->back, c->dim, LANES, rows);
	else if (c->rotate)
		hadamard_rows(rows, c->dim, LANES * c->dim);
}
