/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/values.h - weights times a page's V, added to the rows' acc_stored. As in scores.h, few rows
 * take codes from the planes and more rows share a copy.
 */

/* Weights of one group as digits, of the rows that have any, packed together. */
struct weights {
	uint32_t n;
	uint32_t row[ROWS_MAX];
	float scale[ROWS_MAX];
	float zero[ROWS_MAX]; /* affine: sum of p * zero */
	int32_t sum[ROWS_MAX];
	uint32_t lo, step;                  /* bytes to the low digits, to the next row      */
	int8_t digits[ROWS_MAX * 2 * TOKENS]; /* 0 outside the tiles                          */
};

/* V of a block of pages. */
struct values {
	const struct skvq_codec *c;
	const uint8_t *planes[BLOCK_PAGES];
	ptrdiff_t ahead[BLOCK_PAGES]; /* as in struct keys */
	const struct page_params *params;
	uint32_t n_pages;
	struct tiles t; /* of the block */
	uint32_t digit_bits;
	const float *p; /* weights of row 0 and the block's first token */
	uint32_t p_step;
	float *acc; /* [row][dim] */
};

/* Adds row r unless its weights are all zero. */
static inline void weights_add(const struct values *v, uint32_t g, uint32_t r, struct weights *w)
{
	uint32_t from = v->t.from * LANES, to = v->t.to * LANES, n = v->n_pages * TOKENS;
	const float *p = v->p + (size_t)r * v->p_step;
	const float *step = v->params->step[g], *zero = v->params->zero[g];
	f32s top = f32_set(0.0f), inverse, zeros = f32_set(0.0f);
	int8_t *digits = w->digits + (size_t)w->n * w->step;
	i32s sum = i32_set(0);
	float largest;

	if (v->c->kind == SKVQ_CODEC_AFFINE)
		for (uint32_t i = from; i < to; i += LANES)
			zeros = f32_fma(f32_load(p + i), f32_load(zero + i), zeros);
	for (uint32_t i = from; i < to; i += LANES)
		top = f32_max(f32_abs(f32_mul(f32_load(p + i), f32_load(step + i))), top);
	largest = f32_largest(top);
	if (!(largest > 1e-33f)) { /* its inverse may be infinite; it adds to no sum of ours */
		if (v->c->kind != SKVQ_CODEC_AFFINE)
			return;
		largest = 1e-33f;
	}
	inverse = f32_set((float)digits_max(v->digit_bits) / largest);
	if (to - from < n) {
		memset(digits, 0, n);
		memset(digits + w->lo, 0, n);
	}
	for (uint32_t i = from; i < to; i += LANES) {
		i32s x = f32_to_i32(f32_mul(f32_mul(f32_load(p + i), f32_load(step + i)), inverse));

		digits_store(x, v->digit_bits, digits + i, digits + w->lo + i);
		sum = i32_add(sum, x);
	}
	w->row[w->n] = r;
	w->scale[w->n] = largest / (float)digits_max(v->digit_bits);
	w->sum[w->n] = i32_total(sum);
	w->zero[w->n] = v->c->kind == SKVQ_CODEC_AFFINE ? f32_total(zeros) : 0.0f;
	w->n++;
}

/* Sixteen channels from `channel` on. */
SIMD void value_fold(const struct values *v, const struct weights *w, uint32_t j, uint32_t channel,
		     i32s sum)
{
	float *acc = v->acc + (size_t)w->row[j] * v->c->dim + channel;
	uint32_t bias = code_bias(v->c->bits) * (uint32_t)w->sum[j];
	f32s x = f32_load(acc);

	sum = i32_add(sum, i32_set((int32_t)bias));
	if (v->c->kind == SKVQ_CODEC_AFFINE) {
		x = f32_add(x, f32_set(w->zero[j]));
	} else {
		uint32_t middle = (uint32_t)v->c->levels_minus_1 * (uint32_t)w->sum[j];

		sum = i32_sub(i32_shl(sum, 1), i32_set((int32_t)middle));
	}
	f32_store(acc, f32_fma(f32_from_i32(sum), f32_set(w->scale[j]), x));
}

/* --- rows that share a copy ------------------------------------------------------------------ */

/* copy: of all tiles of the block, or 8-bit planes of the one page there is. */
static void values_shared(const struct values *v, const struct weights *w, const uint8_t *copy,
			  uint32_t channel, uint32_t end)
{
	uint32_t m = v->c->dim / 16u, blocks = (end - channel) / LANES;
	uint32_t calls = (blocks + DOT_X - 1) / DOT_X, most = (blocks + calls - 1) / calls;
	int32_t sums[DOT_ROWS * DOT_X * LANES];
	struct dots d = {
	    .a = copy + 64 * (size_t)(v->t.from * 4 * m + channel / LANES),
	    .x_step = 64,
	    .i_step = 64 * (size_t)m,
	    .b = w->digits + v->t.from * LANES,
	    .r_step = w->step,
	    .lo = w->lo,
	    .n = 4 * (v->t.to - v->t.from),
	    .steps = DOT_STEPS(code_max(v->c->bits)),
	    .digit_bits = v->digit_bits,
	    .wide = v->c->bits == SKVQ_BITS_8,
	};

	for (uint32_t j = 0; j < w->n; j += DOT_ROWS) {
		uint32_t n = w->n - j < DOT_ROWS ? w->n - j : DOT_ROWS;

		for (uint32_t x0 = 0; x0 < blocks; x0 += most) {
			uint32_t n_x = blocks - x0 < most ? blocks - x0 : most;

			dots(&d, j, n, x0, n_x, sums);
			for (uint32_t r = 0; r < n; r++)
				for (uint32_t x = 0; x < n_x; x++)
					value_fold(v, w, j + r, channel + (x0 + x) * LANES,
						   i32_load(sums + 16 * (r * n_x + x)));
		}
	}
}

/* --- few rows -------------------------------------------------------------------------------- */

/* Four sums that were kept apart, each 2^raised(bits, p) times what is wanted, as one. */
SIMD i32s sums_join(const dot *hi, const dot *lo, uint32_t bits, uint32_t digit_bits)
{
	i32s sum[4];

	if (PLANE_SUMS != 4)
		return digits_join(dot_sums(hi[0]), dot_sums(lo[0]), digit_bits);
	REPEAT(p, 4, {
		sum[p] = digits_join(dot_sums(hi[p % PLANE_SUMS]), dot_sums(lo[p % PLANE_SUMS]),
				     digit_bits);
		sum[p] = i32_sar(sum[p], raised(bits, p)); /* exact */
	});
	return i32_add(i32_add(sum[0], sum[1]), i32_add(sum[2], sum[3]));
}

SIMD void values_fused(const struct values *v, uint32_t bits, const struct weights *w,
		       uint32_t channel, uint32_t end, const uint32_t R)
{
	uint32_t m = v->c->dim / 16u, steps = DOT_STEPS(code_max(bits)) / 4;
	const bool once = steps >= BLOCK_PAGES * TILES;

	for (; channel < end; channel += LANES) {
		uint32_t c = channel / LANES;
		i32s total[FUSED_ROWS];

		REPEAT(r, R, total[r] = i32_set(0););
		for (uint32_t from = v->t.from; from < v->t.to;) {
			uint32_t to = once || v->t.to - from <= steps ? v->t.to : from + steps;
			dot hi[FUSED_ROWS][PLANE_SUMS], lo[FUSED_ROWS][PLANE_SUMS];

			REPEAT(r, R, REPEAT(p, PLANE_SUMS, hi[r][p] = lo[r][p] = dot_zero();););
			for (uint32_t tile = from; tile < to; tile++) {
				uint32_t page = tile / TILES, in_page = tile % TILES;
				const uint8_t *in =
				    v->planes[page] + (size_t)in_page * v->c->tile_bytes;
				const int8_t *b = w->digits + tile * LANES;
				codes x[4];

				fetch_column(bits, in, m, c, 0, v->ahead[page]);
				unpack_raised(bits, in, 0, m, c, x);
				REPEAT(p, 4, REPEAT(r, R, {
					       const uint32_t i = p % PLANE_SUMS;
					       const int8_t *at = b + r * w->step + 4 * p;

					       hi[r][i] = dot_add(hi[r][i], x[p], quad_load(at));
					       lo[r][i] = dot_add(lo[r][i], x[p],
								  quad_load(at + w->lo));
				       }););
			}
			REPEAT(r, R, {
				i32s sum = sums_join(hi[r], lo[r], bits, v->digit_bits);

				total[r] = i32_add(total[r], sum);
			});
			if (once)
				break;
			from = to;
		}
		REPEAT(r, R, value_fold(v, w, r, channel, total[r]););
	}
}

/* A byte of V holds a trit of each of the page's tiles; with TRIT_SUMS of five, each tile's sums are
 * kept apart, so that its digits need not be shifted down. */
SIMD void values_trits(const struct values *v, const struct weights *w, uint32_t channel,
		       uint32_t end, const uint32_t R)
{
	uint32_t m = v->c->dim / 16u, pages = (v->t.to + TILES - 1) / TILES;
	uint32_t steps = DOT_STEPS(code_max(SKVQ_BITS_TERNARY)) / (4 * TILES);
	const bool once = steps >= BLOCK_PAGES;

	for (; channel < end; channel += LANES) {
		i32s total[FUSED_ROWS];

		REPEAT(r, R, total[r] = i32_set(0););
		for (uint32_t from = v->t.from / TILES; from < pages;) {
			uint32_t to = once || pages - from <= steps ? pages : from + steps;
			dot hi[FUSED_ROWS][TRIT_SUMS], lo[FUSED_ROWS][TRIT_SUMS];

			REPEAT(r, R, REPEAT(k, TRIT_SUMS, hi[r][k] = lo[r][k] = dot_zero();););
			for (uint32_t page = from; page < to; page++) {
				const uint8_t *in = v->planes[page] + 4 * (size_t)channel;
				const int8_t *b = w->digits + page * TOKENS;

				for (uint32_t p = 0; p < 4; p++, in += 64 * (size_t)m, b += 4) {
					codes x[TILES];

					/* Not this line's, but line after line: the hardware's
					 * prefetcher joins in where it sees a sequence. */
					fetch(v->planes[page] + v->ahead[page] + 16 * (size_t)channel +
					      64 * (size_t)p);
					codes_trits_raised(codes_load(in), x);
					REPEAT(k, TILES, REPEAT(r, R, {
						       const uint32_t i = k % TRIT_SUMS;
						       const int8_t *at =
							   b + r * w->step + k * LANES;

						       hi[r][i] = dot_add(hi[r][i], x[k],
									  quad_load(at));
						       lo[r][i] =
							   dot_add(lo[r][i], x[k],
								   quad_load(at + w->lo));
					       }););
				}
			}
			REPEAT(r, R, REPEAT(k, TRIT_SUMS, {
				       i32s sum = digits_join(dot_sums(hi[r][k]),
							      dot_sums(lo[r][k]), v->digit_bits);

				       sum = i32_sar(sum, TRIT_RAISED(k)); /* exact */
				       total[r] = i32_add(total[r], sum);
			       }););
			if (once)
				break;
			from = to;
		}
		REPEAT(r, R, value_fold(v, w, r, channel, total[r]););
	}
}

typedef void values_fn(const struct values *v, const struct weights *w, uint32_t channel,
		       uint32_t end);

#define VALUES(name, call)                                                                         \
	static __attribute__((noinline)) void name(                                                \
	    const struct values *v, const struct weights *w, uint32_t channel, uint32_t end)       \
	{                                                                                          \
		call;                                                                              \
	}
VALUES(values_1_4, values_fused(v, SKVQ_BITS_4, w, channel, end, 1))
VALUES(values_1_3, values_fused(v, SKVQ_BITS_3, w, channel, end, 1))
VALUES(values_1_2, values_fused(v, SKVQ_BITS_2, w, channel, end, 1))
VALUES(values_1_t, values_trits(v, w, channel, end, 1))
VALUES(values_2_4, values_fused(v, SKVQ_BITS_4, w, channel, end, 2))
VALUES(values_2_3, values_fused(v, SKVQ_BITS_3, w, channel, end, 2))
VALUES(values_2_2, values_fused(v, SKVQ_BITS_2, w, channel, end, 2))
VALUES(values_2_t, values_trits(v, w, channel, end, 2))
#undef VALUES

static values_fn *values_function(uint32_t bits, uint32_t n_rows)
{
	static values_fn *const table[FUSED_ROWS][4] = {
	    {values_1_4, values_1_3, values_1_2, values_1_t},
	    {values_2_4, values_2_3, values_2_2, values_2_t},
	};

	if (n_rows > FUSED_ROWS)
		return NULL;
	switch (bits) {
	case SKVQ_BITS_4:
		return table[n_rows - 1][0];
	case SKVQ_BITS_3:
		return table[n_rows - 1][1];
	case SKVQ_BITS_2:
		return table[n_rows - 1][2];
	case SKVQ_BITS_TERNARY:
		return table[n_rows - 1][3];
	default:
		return NULL; /* 8 bits need no unpacking */
	}
}

/* The codes of the block's tiles, one a byte, tile by tile. */
static const uint8_t *values_unpack(const struct values *v, uint8_t *copy)
{
	uint32_t page_bytes = TOKENS * v->c->dim;

	if (v->c->bits == SKVQ_BITS_8) {
		assert(v->n_pages == 1);
		return unpack_page(v->c, v->c->bits, v->planes[0], 0, v->ahead[0], &v->t, copy);
	}
	for (uint32_t i = v->t.from / TILES; i * TILES < v->t.to; i++) {
		uint32_t from = v->t.from > i * TILES ? v->t.from - i * TILES : 0;
		uint32_t to = v->t.to - i * TILES < TILES ? v->t.to - i * TILES : TILES;

		assert((i + 1) * page_bytes <= COPY_BYTES);
		(void)unpack_page(v->c, v->c->bits, v->planes[i], 0, v->ahead[i],
				  &(struct tiles){from, to}, copy + (size_t)i * page_bytes);
	}
	return copy;
}

/* All groups of tiles v->t of the rows that see any. copy: COPY_BYTES of room, which the codes of
 * the block's pages fill at most. */
static void values(const struct values *v, const bool *seen, uint32_t n_rows, uint8_t *copy)
{
	const uint8_t *raw = NULL;
	uint32_t dim = v->c->dim;
	struct weights w;

	w.lo = v->n_pages * TOKENS;
	w.step = 2 * w.lo;
	for (uint32_t g = 0, at = 0; at < dim; g++, at += v->c->group) {
		uint32_t end = at + v->c->group < dim ? at + v->c->group : dim;
		values_fn *fused;

		w.n = 0;
		for (uint32_t r = 0; r < n_rows; r++)
			if (seen[r])
				weights_add(v, g, r, &w);
		if (w.n == 0)
			continue;
		fused = values_function(v->c->bits, w.n);
		if (fused) {
			fused(v, &w, at, end);
			continue;
		}
		if (!raw)
			raw = values_unpack(v, copy);
		values_shared(v, &w, raw, at, end);
	}
}
