/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/query.h - the query's digits, made once per attention if the caller lends memory for them
 * (skvq_attn_state.prep), else once per page.
 */

struct query {
	float scale[ROWS_MAX];             /* of x; NaN for a row that is not finite: then no
					    * score is one, and the row sees no page         */
	int32_t sum[ROWS_MAX][GROUPS_MAX]; /* of x by group                                    */
	/* [row]: dim high digits, dim low ones. As many rows as there are. */
	int8_t digits[ROWS_MAX * 2 * DIM_MAX];
};
static_assert(sizeof(struct query) <= SKVQ_ATTN_PREP_BYTES &&
		  offsetof(struct query, digits) <= SKVQ_ATTN_PREP_BYTES_OF(0, 0),
	      "kernels.h promises they suffice");

static void query_row(const float *q, const struct skvq_codec *kc, uint32_t digit_bits,
		      int8_t *digits, float *ret_scale, int32_t *ret_sum)
{
	f32s top = f32_set(0.0f), bad = f32_set(0.0f), inverse;
	uint32_t dim = kc->dim;
	float largest;

	for (uint32_t i = 0; i < dim; i += LANES) {
		f32s x = f32_load(q + i);

		top = f32_max(f32_abs(x), top);
		bad = f32_fma(x, f32_set(0.0f), bad); /* NaN from NaN and infinity */
	}
	largest = f32_total(bad) == 0.0f ? f32_largest(top) : 0.0f;
	if (!(largest > 1e-33f)) { /* its inverse may be infinite, and its scores are 0 or NaN */
		*ret_scale = f32_total(bad) == 0.0f ? 1.0f : NAN;
		memset(digits, 0, 2 * (size_t)dim);
		memset(ret_sum, 0, GROUPS_MAX * sizeof(*ret_sum));
		return;
	}
	inverse = f32_set((float)digits_max(digit_bits) / largest);
	*ret_scale = largest / (float)digits_max(digit_bits);
	for (uint32_t g = 0, at = 0; g < kc->n_groups; g++, at += kc->group) {
		i32s sum = i32_set(0);

		for (uint32_t i = at; i < at + kc->group && i < dim; i += LANES) {
			i32s x = f32_to_i32(f32_mul(f32_load(q + i), inverse));

			digits_store(x, digit_bits, digits + i, digits + dim + i);
			sum = i32_add(sum, x);
		}
		ret_sum[g] = i32_total(sum);
	}
}

static void query_make(const struct skvq_attn_state *s, const struct skvq_codec *kc,
		       uint32_t digit_bits, struct query *ret)
{
	for (uint32_t r = 0; r < s->n_rows; r++)
		query_row(s->q_stored + (size_t)r * kc->dim, kc, digit_bits,
			  ret->digits + (size_t)r * 2 * kc->dim, &ret->scale[r], ret->sum[r]);
}

/* The query of this attention: kept in s->prep, or made anew in `local`. */
static const struct query *query_get(struct skvq_attn_state *s, const struct skvq_codec *kc,
				     uint32_t digit_bits, struct query *local)
{
	struct query *kept = s->prep;
	/* What the digits depend on; never 0, which is what attn_begin leaves. */
	uint32_t key = (uint32_t)kc->group << 16 | digit_bits;

	if (!kept) {
		query_make(s, kc, digit_bits, local);
		return local;
	}
	if (s->prep_key != key) {
		query_make(s, kc, digit_bits, kept);
		s->prep_key = key;
	}
	return kept;
}
