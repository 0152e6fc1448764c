/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/rows.h - FP16 tokens: the window, the sinks, and pages coded as FP16. One row reads halves
 * where they are; more share a tile converted to floats.
 */

/* Tokens of FP16 K or V: token t at p + t * stride, first..n-1 exist. */
struct halves {
	const uint16_t *p;
	size_t stride;
	uint32_t dim, first, n;
};

/* Tile i as floats, [16][dim]; rows that do not exist stay as they are. */
static void halves_convert(const struct halves *h, uint32_t tile, float *ret)
{
	for (uint32_t i = 0; i < LANES; i++) {
		uint32_t t = tile * LANES + i;

		if (t < h->first || t >= h->n)
			continue;
		for (uint32_t d = 0; d < h->dim; d += LANES)
			f32_store(ret + i * h->dim + d, f32_from_halves(h->p + t * h->stride + d));
	}
}

SIMD f32s row_load(const void *row, uint32_t d, const bool half)
{
	return half ? f32_from_halves((const uint16_t *)row + d) : f32_load((const float *)row + d);
}

/* Token t of the tile, from its halves or from the converted tile. */
SIMD const void *row_at(const struct halves *h, const float *floats, uint32_t tile, uint32_t i)
{
	return floats ? (const void *)(floats + (size_t)i * h->dim)
		      : (const void *)(h->p + (tile * LANES + i) * h->stride);
}

/* Four tokens at a time, so that the query is loaded once for four products and four sums hide each
 * other's latency. Tokens that do not exist repeat one that does; the span masks them. */
SIMD void row_scores(const float *q, const struct halves *h, const float *floats, uint32_t tile,
		     const bool half, float *ret)
{
	uint32_t first = tile * LANES, last = h->n - 1 - first;
	uint32_t least = h->first > first ? h->first - first : 0;
	f32s sum[LANES];

	for (uint32_t i = 0; i < LANES; i += 4) {
		const void *k[4];
		f32s s[4];

		REPEAT(j, 4, {
			uint32_t t = i + j < last ? i + j : last;

			k[j] = row_at(h, floats, tile, t > least ? t : least);
			s[j] = f32_set(0.0f);
		});
		for (uint32_t d = 0; d < h->dim; d += LANES) {
			f32s x = f32_load(q + d);

			REPEAT(j, 4, s[j] = f32_fma(x, row_load(k[j], d, half), s[j]););
		}
		REPEAT(j, 4, sum[i + j] = s[j];);
	}
	f32_store(ret, f32_totals(sum));
}

static __attribute__((noinline)) void row_scores_halves(const float *q, const struct halves *h,
							uint32_t tile, float *ret)
{
	row_scores(q, h, NULL, tile, true, ret);
}

static __attribute__((noinline)) void row_scores_floats(const float *q, const struct halves *h,
							const float *floats, uint32_t tile,
							float *ret)
{
	row_scores(q, h, floats, tile, false, ret);
}

/* Scores of the rows that see anything, TOKENS apart. */
static void rows_scores(const struct halves *k, const float *q, const struct span *spans,
			uint32_t n_rows, const struct tiles *t, float *floats, float *score)
{
	for (uint32_t tile = t->from; tile < t->to; tile++) {
		if (n_rows == 1) {
			row_scores_halves(q, k, tile, score + tile * LANES);
			continue;
		}
		halves_convert(k, tile, floats);
		for (uint32_t r = 0; r < n_rows; r++)
			if (spans[r].from < spans[r].to)
				row_scores_floats(q + (size_t)r * k->dim, k, floats, tile,
						  score + r * TOKENS + tile * LANES);
	}
}

/* acc[X * 16] += sum over tokens of p * v. A weight of zero is skipped: V behind a mask may be
 * infinite. */
SIMD void row_values_block(const float *p, const struct halves *v, const float *floats,
			   uint32_t tile, uint32_t channel, const uint32_t X, const bool half,
			   float *acc)
{
	f32s sum[VALUE_BLOCKS];

	REPEAT(x, X, sum[x] = f32_load(acc + x * LANES););
	for (uint32_t i = 0; i < LANES; i++) {
		const void *row = row_at(v, floats, tile, i);
		f32s w = f32_set(p[i]);

		if (p[i] == 0.0f)
			continue;
		REPEAT(x, X,
		       sum[x] = f32_fma(w, row_load(row, channel + x * LANES, half), sum[x]););
	}
	REPEAT(x, X, f32_store(acc + x * LANES, sum[x]););
}

SIMD void row_values(const float *p, const struct halves *v, const float *floats, uint32_t tile,
		     const bool half, float *acc)
{
	uint32_t c = 0;

	for (; c + VALUE_BLOCKS * LANES <= v->dim; c += VALUE_BLOCKS * LANES)
		row_values_block(p, v, floats, tile, c, VALUE_BLOCKS, half, acc + c);
	for (; c + 2 * LANES <= v->dim; c += 2 * LANES)
		row_values_block(p, v, floats, tile, c, 2, half, acc + c);
	for (; c < v->dim; c += LANES)
		row_values_block(p, v, floats, tile, c, 1, half, acc + c);
}

static __attribute__((noinline)) void row_values_halves(const float *p, const struct halves *v,
							uint32_t tile, float *acc)
{
	row_values(p, v, NULL, tile, true, acc);
}

static __attribute__((noinline)) void row_values_floats(const float *p, const struct halves *v,
							const float *floats, uint32_t tile,
							float *acc)
{
	row_values(p, v, floats, tile, false, acc);
}

static void rows_values(const struct halves *v, const bool *seen, uint32_t n_rows,
			const struct tiles *t, const float *p, float *floats, float *acc)
{
	for (uint32_t tile = t->from; tile < t->to; tile++) {
		if (n_rows == 1) {
			row_values_halves(p + tile * LANES, v, tile, acc);
			continue;
		}
		halves_convert(v, tile, floats);
		for (uint32_t r = 0; r < n_rows; r++)
			if (seen[r])
				row_values_floats(p + r * TOKENS + tile * LANES, v, floats, tile,
						  acc + (size_t)r * v->dim);
	}
}
