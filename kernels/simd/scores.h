/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/scores.h - queries against a page's K: rows up to FUSED_ROWS take codes from the planes
 * straight to registers, more rows share an unpacked copy in the first cache.
 */

/* What the score functions of one page share. */
struct keys {
	const struct skvq_codec *c;
	uint32_t bits;         /* how the codes are read: c's, or BITS_NESTED               */
	const uint8_t *planes;
	ptrdiff_t refine;      /* nested: from the planes to those that refine them         */
	ptrdiff_t ahead;       /* from the planes to those of a later page; 0: none         */
	const struct query *q;
	const struct page_params *params;
	uint32_t at;           /* token of the block that the page begins with              */
	struct tiles t;        /* of the page                                               */
	uint32_t digit_bits;
	uint32_t levels_minus_1;
	float *score;          /* of row 0 and the page's first token                       */
	uint32_t score_step;   /* floats between rows                                       */
};

/* The sums of one group and tile to scores, set (group 0) or added. */
SIMD void score_fold(const struct keys *k, uint32_t r, uint32_t g, uint32_t tile, i32s sum)
{
	const float *step = k->params->step[g] + k->at + tile * LANES;
	f32s scale = f32_set(k->q->scale[r]), x;
	int32_t q_sum = k->q->sum[r][g];
	float *at = k->score + (size_t)r * k->score_step + tile * LANES;

	sum = i32_add(sum, i32_set((int32_t)(code_bias(k->bits) * (uint32_t)q_sum)));
	if (k->c->kind == SKVQ_CODEC_AFFINE) {
		x = f32_mul(f32_load(k->params->zero[g] + k->at + tile * LANES), f32_set((float)q_sum));
		x = f32_fma(f32_load(step), f32_from_i32(sum), x);
	} else {
		uint32_t middle = k->levels_minus_1 * (uint32_t)q_sum; /* wraps */

		sum = i32_sub(i32_shl(sum, 1), i32_set((int32_t)middle));
		x = f32_mul(f32_load(step), f32_from_i32(sum));
	}
	f32_store(at, g ? f32_fma(x, scale, f32_load(at)) : f32_mul(x, scale));
}

/* --- rows that share a copy ------------------------------------------------------------------ */

static void scores_shared(const struct keys *k, const uint8_t *copy, uint32_t r0, uint32_t n_rows)
{
	uint32_t dim = k->c->dim, steps = DOT_STEPS(code_max(k->bits));
	int32_t sums[DOT_ROWS * DOT_X * LANES];

	for (uint32_t g = 0, at = 0; at < dim; g++, at += k->c->group) {
		uint32_t n = at + k->c->group < dim ? k->c->group : dim - at;
		struct dots d = {
		    .a = copy + 16 * (size_t)at,
		    .x_step = 16 * (size_t)dim,
		    .i_step = 64,
		    .b = k->q->digits + at,
		    .r_step = 2 * (size_t)dim,
		    .lo = dim,
		    .n = n / 4,
		    .steps = steps,
		    .digit_bits = k->digit_bits,
		    .wide = code_max(k->bits) > 127,
		};

		for (uint32_t x0 = k->t.from; x0 < k->t.to; x0 += DOT_X) {
			uint32_t n_x = k->t.to - x0 < DOT_X ? k->t.to - x0 : DOT_X;

			dots(&d, r0, n_rows, x0, n_x, sums);
			for (uint32_t r = 0; r < n_rows; r++)
				for (uint32_t x = 0; x < n_x; x++)
					score_fold(k, r0 + r, g, x0 + x,
						   i32_load(sums + 16 * (r * n_x + x)));
		}
	}
}

/* --- few rows -------------------------------------------------------------------------------- */

/* Column by column: its four vectors are a quarter of the channels apart, so each has its own group
 * and, with PLANE_SUMS of 4, its own sums. */
SIMD void scores_column(const struct keys *k, uint32_t bits, const uint32_t R)
{
	uint32_t dim = k->c->dim, m = dim / 16, steps = DOT_STEPS(code_max(bits)) / 4;
	const bool once = steps >= DIM_MAX / 16;
	uint32_t planes_in_group = k->c->n_groups == 1 ? 4 : k->c->group / (4 * m);

	for (uint32_t tile = k->t.from; tile < k->t.to; tile++) {
		const uint8_t *in = k->planes + (size_t)tile * k->c->tile_bytes;
		i32s total[FUSED_ROWS][PLANE_SUMS];

		REPEAT(r, R, REPEAT(p, PLANE_SUMS, total[r][p] = i32_set(0);););
		for (uint32_t from = 0; from < m;) {
			uint32_t to = once || m - from <= steps ? m : from + steps;
			dot hi[FUSED_ROWS][PLANE_SUMS], lo[FUSED_ROWS][PLANE_SUMS];

			REPEAT(r, R, REPEAT(p, PLANE_SUMS, hi[r][p] = lo[r][p] = dot_zero();););
			for (uint32_t c = from; c < to; c++) {
				const int8_t *b = k->q->digits + 4 * (size_t)c;
				codes v[4];

				fetch_column(bits, in, m, c, k->refine, k->ahead);
				unpack_raised(bits, in, k->refine, m, c, v);
				REPEAT(p, 4, REPEAT(r, R, {
					       const uint32_t i = p % PLANE_SUMS;
					       const int8_t *at = b + r * 2 * dim + 4 * p * m;

					       hi[r][i] = dot_add(hi[r][i], v[p], quad_load(at));
					       lo[r][i] =
						   dot_add(lo[r][i], v[p], quad_load(at + dim));
				       }););
			}
			REPEAT(r, R, REPEAT(p, PLANE_SUMS, {
				       i32s sum = digits_join(dot_sums(hi[r][p]),
							      dot_sums(lo[r][p]), k->digit_bits);

				       sum = i32_sar(sum, raised(bits, p)); /* exact */
				       total[r][p] = i32_add(total[r][p], sum);
			       }););
			if (once)
				break;
			from = to;
		}
		REPEAT(r, R, {
			i32s a = total[r][0], b = total[r][1 % PLANE_SUMS];
			i32s c = total[r][2 % PLANE_SUMS], d = total[r][3 % PLANE_SUMS];

			if (PLANE_SUMS == 1) {
				score_fold(k, r, 0, tile, a);
			} else if (planes_in_group == 4) {
				a = i32_add(i32_add(a, b), i32_add(c, d));
				score_fold(k, r, 0, tile, a);
			} else if (planes_in_group == 2) {
				score_fold(k, r, 0, tile, i32_add(a, b));
				score_fold(k, r, 1, tile, i32_add(c, d));
			} else {
				score_fold(k, r, 0, tile, a);
				score_fold(k, r, 1, tile, b);
				score_fold(k, r, 2, tile, c);
				score_fold(k, r, 3, tile, d);
			}
		});
	}
}

/* Whether scores_column can keep the groups apart. */
static bool column_fits(const struct skvq_codec *c, uint32_t bits)
{
	uint32_t quarter = c->dim / 4u;

	if (bits == SKVQ_BITS_8 || bits == SKVQ_BITS_TERNARY)
		return false;
	if (c->n_groups == 1)
		return true;
	return PLANE_SUMS == 4 && (c->group == quarter || c->group == 2 * quarter);
}

/* A vector of ternary codes is a quad of all five tiles. */
SIMD void scores_trits(const struct keys *k, const uint32_t R)
{
	uint32_t dim = k->c->dim;

	for (uint32_t g = 0, at = 0; at < dim; g++, at += k->c->group) {
		uint32_t end = at + k->c->group < dim ? at + k->c->group : dim;
		dot hi[FUSED_ROWS][TILES], lo[FUSED_ROWS][TILES];

		REPEAT(r, R, REPEAT(x, TILES, hi[r][x] = lo[r][x] = dot_zero();););
		for (uint32_t i = at; i < end; i += 4) {
			codes v[TILES];

			fetch(k->planes + 16 * (size_t)i + k->ahead);
			codes_trits(codes_load(k->planes + 16 * (size_t)i), v);
			REPEAT(r, R, {
				const int8_t *b = k->q->digits + r * 2 * dim + i;
				quad bh = quad_load(b), bl = quad_load(b + dim);

				REPEAT(x, TILES, {
					hi[r][x] = dot_add(hi[r][x], v[x], bh);
					lo[r][x] = dot_add(lo[r][x], v[x], bl);
				});
			});
		}
		REPEAT(r, R, REPEAT(x, TILES, {
			       if (x >= k->t.from && x < k->t.to)
				       score_fold(k, r, g, x,
						  digits_join(dot_sums(hi[r][x]),
							      dot_sums(lo[r][x]), k->digit_bits));
		       }););
	}
}

/* Where sixteen-bit sums have room for only some of a column's four products, each is widened. */
SIMD void scores_nested(const struct keys *k, const uint32_t R)
{
	uint32_t dim = k->c->dim, m = dim / 16;

	if (DOT_STEPS(SKVQ_NESTED_MAX) >= 4) {
		scores_column(k, BITS_NESTED, R);
		return;
	}
	for (uint32_t tile = k->t.from; tile < k->t.to; tile++) {
		const uint8_t *in = k->planes + (size_t)tile * k->c->tile_bytes;
		i32s hi[FUSED_ROWS], lo[FUSED_ROWS];

		REPEAT(r, R, hi[r] = lo[r] = i32_set(0););
		for (uint32_t c = 0; c < m; c++) {
			const int8_t *b = k->q->digits + 4 * (size_t)c;
			codes v[4];

			fetch_column(BITS_NESTED, in, m, c, k->refine, k->ahead);
			unpack_column(BITS_NESTED, in, k->refine, m, c, v);
			REPEAT(p, 2, REPEAT(r, R, {
				       const int8_t *at = b + r * 2 * dim + 8 * p * m;
				       dot h = dot_zero(), l = dot_zero();

				       h = dot_add(h, v[2 * p], quad_load(at));
				       h = dot_add(h, v[2 * p + 1], quad_load(at + 4 * m));
				       l = dot_add(l, v[2 * p], quad_load(at + dim));
				       l = dot_add(l, v[2 * p + 1], quad_load(at + dim + 4 * m));
				       hi[r] = i32_add(hi[r], dot_sums(h));
				       lo[r] = i32_add(lo[r], dot_sums(l));
			       }););
		}
		REPEAT(r, R, score_fold(k, r, 0, tile, digits_join(hi[r], lo[r], k->digit_bits)););
	}
}

#define SCORES(name, call)                                                                         \
	static __attribute__((noinline)) void name(const struct keys *k)                           \
	{                                                                                          \
		call;                                                                              \
	}
SCORES(scores_1_4, scores_column(k, SKVQ_BITS_4, 1))
SCORES(scores_1_3, scores_column(k, SKVQ_BITS_3, 1))
SCORES(scores_1_2, scores_column(k, SKVQ_BITS_2, 1))
SCORES(scores_1_t, scores_trits(k, 1))
SCORES(scores_2_4, scores_column(k, SKVQ_BITS_4, 2))
SCORES(scores_2_3, scores_column(k, SKVQ_BITS_3, 2))
SCORES(scores_2_2, scores_column(k, SKVQ_BITS_2, 2))
SCORES(scores_2_t, scores_trits(k, 2))
SCORES(scores_1_n, scores_nested(k, 1))
SCORES(scores_2_n, scores_nested(k, 2))
#undef SCORES

typedef void scores_fn(const struct keys *k);

/* The function for few rows, or NULL if the codec has none. */
static scores_fn *scores_function(const struct skvq_codec *c, uint32_t bits, uint32_t n_rows)
{
	static scores_fn *const table[FUSED_ROWS][5] = {
	    {scores_1_4, scores_1_3, scores_1_2, scores_1_t, scores_1_n},
	    {scores_2_4, scores_2_3, scores_2_2, scores_2_t, scores_2_n},
	};

	if (n_rows > FUSED_ROWS)
		return NULL;
	if (bits == SKVQ_BITS_TERNARY)
		return TRIT_KEYS_FUSED ? table[n_rows - 1][3] : NULL;
	if (!column_fits(c, bits))
		return NULL;
	return table[n_rows - 1][bits == SKVQ_BITS_4   ? 0
				 : bits == SKVQ_BITS_3 ? 1
				 : bits == SKVQ_BITS_2 ? 2
						       : 4];
}

/* Scores of all rows and of tiles k->t of one page. copy: COPY_BYTES of room. */
static void scores(const struct keys *k, uint32_t n_rows, uint8_t *copy)
{
	scores_fn *fused = scores_function(k->c, k->bits, n_rows);
	const uint8_t *raw;

	if (fused) {
		fused(k);
		return;
	}
	raw = unpack_page(k->c, k->bits, k->planes, k->refine, k->ahead, &k->t, copy);
	for (uint32_t r = 0; r < n_rows; r += DOT_ROWS)
		scores_shared(k, raw, r, n_rows - r < DOT_ROWS ? n_rows - r : DOT_ROWS);
}
