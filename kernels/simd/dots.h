/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/dots.h - dot products of raw vectors with rows of digits, blocked for registers: the one
 * inner loop of both halves of attention when rows share an unpacked page.
 *
 *   keys:   x = tile,          i = channel quad    values: x = channel block, i = token quad
 *   ret[r][x] = sum over i < n of code vector a[x][i] * quad b[r][i]
 */

struct dots {
	const uint8_t *a;
	size_t x_step, i_step; /* bytes between code vectors                               */
	const int8_t *b;       /* high digits of row 0; of row r, r_step bytes on          */
	size_t r_step, lo;     /* low digits are lo bytes after the high ones              */
	uint32_t n;
	uint32_t steps;      /* DOT_STEPS of these codes                                   */
	uint32_t digit_bits; /* of b                                                       */
	bool wide;           /* 8-bit codes: codes_load_wide                               */
};

/* ret[(r * X + x) * 16..]. R and X are constants where this is inlined. */
SIMD void dots_block(const struct dots *d, uint32_t r0, uint32_t x0, const uint32_t R,
		     const uint32_t X, const bool wide, int32_t *ret)
{
	const uint8_t *a = d->a + x0 * d->x_step;
	const int8_t *b = d->b + r0 * d->r_step;

	for (uint32_t from = 0; from < d->n;) {
		uint32_t to = d->n - from > d->steps ? from + d->steps : d->n;
		dot hi[DOT_ROWS * DOT_X], lo[DOT_ROWS * DOT_X];

		REPEAT(r, R, REPEAT(x, X, hi[r * DOT_X + x] = lo[r * DOT_X + x] = dot_zero();););
		for (uint32_t i = from; i < to; i++) {
			quad bh[DOT_ROWS], bl[DOT_ROWS];

			REPEAT(r, R, {
				bh[r] = quad_load(b + r * d->r_step + 4 * (size_t)i);
				bl[r] = quad_load(b + r * d->r_step + d->lo + 4 * (size_t)i);
			});
			REPEAT(x, X, {
				const uint8_t *at = a + x * d->x_step + i * d->i_step;
				codes c = wide ? codes_load_wide(at) : codes_load(at);

				REPEAT(r, R, {
					hi[r * DOT_X + x] = dot_add(hi[r * DOT_X + x], c, bh[r]);
					lo[r * DOT_X + x] = dot_add(lo[r * DOT_X + x], c, bl[r]);
				});
			});
		}
		REPEAT(r, R, REPEAT(x, X, {
			       int32_t *at = ret + 16 * (r * X + x);
			       i32s sum = digits_join(dot_sums(hi[r * DOT_X + x]),
						      dot_sums(lo[r * DOT_X + x]), d->digit_bits);

			       i32_store(at, from ? i32_add(i32_load(at), sum) : sum);
		       }););
		from = to;
	}
}

typedef void dots_fn(const struct dots *d, uint32_t r0, uint32_t x0, int32_t *ret);

#define DOTS(R, X)                                                                                 \
	static __attribute__((noinline)) void dots_##R##_##X(const struct dots *d, uint32_t r0,    \
							     uint32_t x0, int32_t *ret)            \
	{                                                                                          \
		if (WIDE_BIAS && d->wide)                                                          \
			dots_block(d, r0, x0, R, X, true, ret);                                    \
		else                                                                               \
			dots_block(d, r0, x0, R, X, false, ret);                                   \
	}
DOT_SHAPES(DOTS)
#undef DOTS

#define DOTS(R, X) [(R)-1][(X)-1] = dots_##R##_##X,
static dots_fn *const dots_table[DOT_ROWS][DOT_X] = {DOT_SHAPES(DOTS)};
#undef DOTS

/* Rows r0.. and blocks x0.., as many as one call takes; ret holds DOT_ROWS * DOT_X * 16. */
static inline void dots(const struct dots *d, uint32_t r0, uint32_t n_rows, uint32_t x0,
			uint32_t n_x, int32_t *ret)
{
	dots_table[n_rows - 1][n_x - 1](d, r0, x0, ret);
}
