/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/softmax.h - scores of up to a page's tokens to weights, one row at a time: one maximum, one
 * sum and at most one rescaling of what the row has gathered a page.
 */

/* exp(x) as ref/exp.h has it, for x <= 0: 0 below -87 and for NaN. */
SIMD f32s exps(f32s x)
{
	const f32s magic = f32_set(12582912.0f); /* adding it rounds to an integer */
	const f32s least = f32_set(-87.0f);
	f32s y = f32_max(x, least), k = f32_fma(y, f32_set(1.44269504f), magic);
	i32s n = i32_sub(f32_bits_of(k), f32_bits_of(magic));
	f32s p, r;

	k = f32_sub(k, magic);
	r = f32_fnma(k, f32_set(0.693359375f), y);
	r = f32_fnma(k, f32_set(-2.12194440e-4f), r);
	p = f32_fma(f32_set(1.9875691500e-4f), r, f32_set(1.3981999507e-3f));
	p = f32_fma(p, r, f32_set(8.3334519073e-3f));
	p = f32_fma(p, r, f32_set(4.1665795894e-2f));
	p = f32_fma(p, r, f32_set(1.6666665459e-1f));
	p = f32_fma(p, r, f32_set(5.0000001201e-1f));
	p = f32_fma(p, f32_mul(r, r), f32_add(r, f32_set(1.0f)));
	return f32_if_ge(x, least, f32_scale(p, n), f32_set(0.0f));
}

/* cap * tanh(x / cap); NaN stays NaN. */
SIMD f32s cap_scores(f32s x, float cap)
{
	f32s y = f32_mul(x, f32_set(1.0f / cap)), one = f32_set(1.0f);
	f32s e = exps(f32_mul(f32_abs(y), f32_set(-2.0f)));
	f32s t = f32_div(f32_sub(one, e), f32_add(one, e));

	t = f32_mul(f32_if_ge(y, f32_set(0.0f), t, f32_sub(f32_set(0.0f), t)), f32_set(cap));
	return f32_if_ge(x, f32_set(-INFINITY), t, x);
}

/* What a row sees of a segment's tokens: from..to-1, empty if they are equal. */
struct span {
	uint32_t from, to;
};

/* Clips [first, n) at `position` to the interval of row r. */
static inline struct span row_span(const struct skvq_attn_state *s, uint32_t r, uint32_t first,
				   uint32_t n, uint32_t position)
{
	int64_t from = (int64_t)s->lo[r] - position, to = (int64_t)s->pos[r] - position + 1;
	struct span ret = {first, n};

	if (from > (int64_t)first)
		ret.from = from < (int64_t)n ? (uint32_t)from : n;
	if (to < (int64_t)n)
		ret.to = to > 0 ? (uint32_t)to : 0;
	if (ret.from >= ret.to)
		ret.from = ret.to = 0;
	return ret;
}

/* Cuts away the lanes outside the span: -infinity, as NaN scores become everywhere. */
static void mask_scores(const struct span *n, const struct tiles *t, float *x)
{
	for (uint32_t i = t->from * LANES; i < t->to * LANES; i++)
		if (i < n->from || i >= n->to)
			x[i] = -INFINITY;
}

/* The row's new maximum; what it has gathered so far shrinks. */
static void raise_max(struct skvq_attn_state *s, uint32_t r, float max)
{
	float *acc = s->acc + (size_t)r * s->dim_v;
	float *acc_stored = s->acc_stored + (size_t)r * s->dim_v;
	float lanes[LANES];
	f32s shrink = exps(f32_set(s->max[r] - max));

	s->max[r] = max;
	if (s->sum[r] == 0.0f)
		return;
	f32_store(lanes, shrink);
	s->sum[r] *= lanes[0];
	for (uint32_t i = 0; i < s->dim_v; i += LANES) {
		f32_store(acc + i, f32_mul(f32_load(acc + i), shrink));
		f32_store(acc_stored + i, f32_mul(f32_load(acc_stored + i), shrink));
	}
}

/* x[80]: scores to weights, in tiles t; false if all are zero. */
static inline bool softmax(struct skvq_attn_state *s, uint32_t r, const struct span *n,
			   const struct tiles *t, float *x)
{
	const f32s none = f32_set(-INFINITY);
	f32s top = none, sum = f32_set(0.0f), max;
	uint32_t from = t->from * LANES, to = t->to * LANES;
	float total;

	if (s->softcap > 0.0f)
		for (uint32_t i = from; i < to; i += LANES)
			f32_store(x + i, cap_scores(f32_load(x + i), s->softcap));
	if (n->from > from || n->to < to)
		mask_scores(n, t, x);
	for (uint32_t i = from; i < to; i += LANES)
		top = f32_max(f32_load(x + i), top);
	total = f32_largest(top);
	if (total > s->max[r])
		raise_max(s, r, total);
	if (!(s->max[r] > -INFINITY))
		return false;
	max = f32_set(s->max[r]);
	for (uint32_t i = from; i < to; i += LANES) {
		f32s p = exps(f32_sub(f32_load(x + i), max));

		f32_store(x + i, p);
		sum = f32_add(sum, p);
	}
	total = f32_total(sum);
	s->sum[r] += total;
	return total > 0.0f;
}
