/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/softmax.h - scores of a block's tokens to weights, one row at a time: one maximum, one sum
 * and at most one rescaling of what the row has gathered a block.
 */

/* exp(x) for x <= 0, within 3e-7 of it; 0 below -87 and for NaN. x = (k + r) ln 2 with k whole and
 * |r| <= 1/2; 2^r by its polynomial of least relative error, 2^k by the exponent. */
SIMD f32s exps(f32s x)
{
	const f32s magic = f32_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
	const f32s least = f32_set(-87.0f), log2e = f32_set(1.44269504f);
	f32s y = f32_max(x, least), k = f32_fma(y, log2e, magic);
	f32s r = f32_fnma(y, log2e, f32_sub(k, magic)); /* -r, rounded once */
	f32s p;

	p = f32_fma(f32_set(-1.32647273e-3f), r, f32_set(9.67151299e-3f));
	p = f32_fma(p, r, f32_set(-5.55073358e-2f));
	p = f32_fma(p, r, f32_set(2.40222424e-1f));
	p = f32_fma(p, r, f32_set(-6.93147004e-1f));
	p = f32_fma(p, r, f32_set(1.0f));
	/* Only k's lowest nine bits survive f32_scale's shift, and magic has none there. */
	return f32_if_ge(x, least, f32_scale(p, f32_bits_of(k)), f32_set(0.0f));
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

/* x: scores of a block's tokens to weights, in tiles t; false if all are zero. */
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
