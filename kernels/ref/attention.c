/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of up to 64 query rows over one KV head, tile by tile (16 tokens), online softmax.
 *
 *   page tile:  planes -> levels k[dim][16] -> scores, 16 tokens in 16 lanes -> weights p[row][16]
 *               planes -> levels v[16][dim] -> acc_stored += sum over tokens of p * step * level
 *   FP16 tile:  k[16][dim] -> scores, one dot product each -> p[row][16]
 *               v[16][dim] -> acc += sum over tokens of p * v
 *
 * A tile is unpacked once and used by all rows; its V only if some row gave a token weight. Steps
 * and zeros never touch the levels: with score = step_t * dot(q, level_t) + zero_t * sum(q), each
 * per group, and likewise p_t * step_t for V, they cost one multiplication per token and group.
 */
#include "tier.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "exp.h"

/* A tile's tokens from..to-1 are real and wanted, token t at position + t. */
struct span {
	uint32_t from, to;
	uint32_t position;
};

/* The work space of one tile; 39 KiB, on the stack of attend_page and attn_rows. */
struct tile {
	float k[DIM_MAX * LANES];
	float v[LANES * DIM_MAX];
	float p[SKVQ_ATTN_ROWS_MAX][LANES];
	bool seen[SKVQ_ATTN_ROWS_MAX]; /* the row has a non-zero weight in p */
	struct tile_params kp, vp;
};

static void state_check(const struct skvq_attn_state *s)
{
	(void)s; /* with NDEBUG */
	assert(s->n_rows >= 1 && s->n_rows <= SKVQ_ATTN_ROWS_MAX);
	assert(s->dim_k <= DIM_MAX && s->dim_v <= DIM_MAX);
}

/* Whether any row sees anything of the span. */
static bool span_visible(const struct skvq_attn_state *s, const struct span *n)
{
	for (uint32_t r = 0; r < s->n_rows; r++)
		if (s->lo[r] <= (uint64_t)n->position + n->to - 1 &&
		    s->pos[r] >= (uint64_t)n->position + n->from)
			return true;
	return false;
}

/* Clips the span to what row r sees; false if that is nothing. */
static bool row_span(const struct skvq_attn_state *s, uint32_t r, const struct span *n,
		     uint32_t *ret_from, uint32_t *ret_to)
{
	int64_t from = (int64_t)s->lo[r] - n->position, to = (int64_t)s->pos[r] - n->position + 1;

	*ret_from = from > (int64_t)n->from ? (uint32_t)(from < LANES ? from : LANES) : n->from;
	*ret_to = to < (int64_t)n->to ? (uint32_t)(to > 0 ? to : 0) : n->to;
	return *ret_from < *ret_to;
}

/* --- scores ---------------------------------------------------------------------------------- */

/* ret[t] += step[t] * sum over from <= d < to of q[d] * k[d][t] */
static void scores_levels(const float *q, const float *k, uint32_t from, uint32_t to,
			  const float *step, float *ret)
{
	vec_f32 even[VECS] = {0}, odd[VECS] = {0}; /* two chains, to hide the adder's latency */

	for (uint32_t d = from; d < to; d += 2) {
		const float *k0 = k + d * LANES, *k1 = k0 + LANES;

		for (int i = 0; i < VECS; i++)
			even[i] += q[d] * vec_load(k0 + i * VEC);
		for (int i = 0; i < VECS; i++)
			odd[i] += q[d + 1] * vec_load(k1 + i * VEC);
	}
	for (int i = 0; i < VECS; i++)
		vec_store(ret + i * VEC,
			  vec_load(ret + i * VEC) + vec_load(step + i * VEC) * (even[i] + odd[i]));
}

static void scores_page(const struct skvq_codec *kc, const float *q, const float *q_sums,
			const struct tile *w, float *ret)
{
	memset(ret, 0, LANES * sizeof(float));
	for (uint32_t g = 0; g < kc->n_groups; g++) {
		uint32_t from = g * kc->group, to = from + kc->group;

		scores_levels(q, w->k, from, to < kc->dim ? to : kc->dim, w->kp.step[g], ret);
		if (kc->kind == SKVQ_CODEC_AFFINE)
			for (uint32_t t = 0; t < LANES; t++)
				ret[t] += w->kp.zero[g][t] * q_sums[g];
	}
}

static void scores_rows(const float *q, uint32_t dim, const struct tile *w, uint32_t from,
			uint32_t to, float *ret)
{
	for (uint32_t t = from; t < to; t++) {
		const float *k = w->k + (size_t)t * dim;
		vec_f32 sum[VECS] = {0};
		float lanes[LANES];

		for (uint32_t d = 0; d < dim; d += LANES)
			for (int i = 0; i < VECS; i++)
				sum[i] += vec_load(q + d + i * VEC) * vec_load(k + d + i * VEC);
		for (int i = 0; i < VECS; i++)
			vec_store(lanes + i * VEC, sum[i]);
		ret[t] = lanes_sum(lanes);
	}
}

/* --- softmax --------------------------------------------------------------------------------- */

/* Scores to weights against the running maximum, which may rise: then what the row has gathered so
 * far is scaled down. A score that is NaN counts as unseen. False if all weights are zero. */
static bool softmax(struct skvq_attn_state *s, uint32_t r, uint32_t from, uint32_t to,
		    const float *score, float *p)
{
	float max = s->max[r], sum, x[LANES];

	memcpy(x, score, sizeof(x));
	if (s->softcap > 0.0f) {
		float inverse = 1.0f / s->softcap;

		for (uint32_t t = 0; t < LANES; t++)
			x[t] = s->softcap * tanh_capped(x[t] * inverse);
	}
	for (uint32_t t = 0; t < LANES; t++)
		x[t] = t >= from && t < to && score[t] == score[t] ? x[t] : -INFINITY;
	max = lanes_max(x, max);
	if (!(max > -INFINITY))
		return false;
	if (max > s->max[r]) {
		float shrink = exp_nonpositive(s->max[r] - max);
		float *acc = s->acc + (size_t)r * s->dim_v;
		float *acc_stored = s->acc_stored + (size_t)r * s->dim_v;

		s->max[r] = max;
		for (uint32_t i = 0; s->sum[r] != 0.0f && i < s->dim_v; i++) {
			acc[i] *= shrink;
			acc_stored[i] *= shrink;
		}
		s->sum[r] *= shrink;
	}
	for (uint32_t t = 0; t < LANES; t++)
		p[t] = exp_nonpositive(x[t] - max);
	/* A lane outside the span is -INFINITY and so 0, unless max is infinite as well. */
	sum = lanes_sum(p);
	s->sum[r] += sum;
	return sum > 0.0f;
}

/* --- values ---------------------------------------------------------------------------------- */

/* The tokens that carry weight, packed together: most rows of a long context have few. */
struct weights {
	uint32_t n;
	uint32_t token[LANES];
	float weight[LANES];
};

static void weights_pick(const float *p, const float *step, struct weights *ret)
{
	ret->n = 0;
	for (uint32_t t = 0; t < LANES; t++) {
		ret->token[ret->n] = t;
		ret->weight[ret->n] = step ? p[t] * step[t] : p[t];
		ret->n += p[t] != 0.0f;
	}
}

/* Sixteen channels, which stay in registers over all tokens. */
static void values_block(const struct weights *w, const float *v, uint32_t row, float *acc)
{
	vec_f32 sum[VECS];

	for (int i = 0; i < VECS; i++)
		sum[i] = vec_load(acc + i * VEC);
	for (uint32_t n = 0; n < w->n; n++) {
		const float *x = v + (size_t)w->token[n] * row;

		for (int i = 0; i < VECS; i++)
			sum[i] += w->weight[n] * vec_load(x + i * VEC);
	}
	for (int i = 0; i < VECS; i++)
		vec_store(acc + i * VEC, sum[i]);
}

/* acc[from..to-1] += sum over tokens of weight * v[token]; both ends multiples of 16. */
static void values_add(const struct weights *w, const float *v, uint32_t row, uint32_t from,
		       uint32_t to, float *acc)
{
	for (uint32_t x = from; x < to; x += LANES)
		values_block(w, v + x, row, acc + x);
}

static void values_page(const struct skvq_codec *vc, const float *p, const struct tile *w,
			float *acc)
{
	for (uint32_t g = 0; g < vc->n_groups; g++) {
		uint32_t from = g * vc->group, to = from + vc->group;
		struct weights weights;

		to = to < vc->dim ? to : vc->dim;
		weights_pick(p, w->vp.step[g], &weights);
		values_add(&weights, w->v, vc->dim, from, to, acc);
		if (vc->kind == SKVQ_CODEC_AFFINE) {
			float z[LANES], sum;

			for (uint32_t t = 0; t < LANES; t++)
				z[t] = p[t] * w->vp.zero[g][t];
			sum = lanes_sum(z);
			for (uint32_t x = from; x < to; x++)
				acc[x] += sum;
		}
	}
}

static void values_rows(const struct skvq_attn_state *s, const struct tile *w, float *acc)
{
	for (uint32_t r = 0; r < s->n_rows; r++) {
		struct weights weights;

		if (!w->seen[r])
			continue;
		weights_pick(w->p[r], NULL, &weights);
		values_add(&weights, w->v, s->dim_v, 0, s->dim_v, acc + (size_t)r * s->dim_v);
	}
}

/* --- segments -------------------------------------------------------------------------------- */

/* K of 16 or fewer FP16 tokens to weights, in engine space (q) or stored space (q_stored). */
static bool weigh_rows(struct skvq_attn_state *s, const float *q, const uint16_t *k, size_t stride,
		       const struct span *n, struct tile *w)
{
	bool any = false;

	for (uint32_t t = n->from; t < n->to; t++)
		SKVQ_TIER(f16_to_f32)(k + t * stride, w->k + (size_t)t * s->dim_k, s->dim_k);
	for (uint32_t r = 0; r < s->n_rows; r++) {
		float score[LANES] = {0};
		uint32_t from, to;

		w->seen[r] = false;
		if (!row_span(s, r, n, &from, &to))
			continue;
		scores_rows(q + (size_t)r * s->dim_k, s->dim_k, w, from, to, score);
		w->seen[r] = softmax(s, r, from, to, score, w->p[r]);
		any |= w->seen[r];
	}
	return any;
}

static bool weigh_page(struct skvq_attn_state *s, const struct skvq_codec *kc,
		       float q_sums[][GROUPS_MAX], const struct span *n, struct tile *w)
{
	bool any = false;

	for (uint32_t r = 0; r < s->n_rows; r++) {
		float score[LANES];
		uint32_t from, to;

		w->seen[r] = false;
		if (!row_span(s, r, n, &from, &to))
			continue;
		scores_page(kc, s->q_stored + (size_t)r * s->dim_k, q_sums[r], w, score);
		w->seen[r] = softmax(s, r, from, to, score, w->p[r]);
		any |= w->seen[r];
	}
	return any;
}

/* Sums of q by group, for the zeros of an affine K. */
static void query_sums(const struct skvq_attn_state *s, const struct skvq_codec *kc,
		       float ret[][GROUPS_MAX])
{
	for (uint32_t r = 0; kc->kind == SKVQ_CODEC_AFFINE && r < s->n_rows; r++) {
		const float *q = s->q_stored + (size_t)r * s->dim_k;

		for (uint32_t g = 0, at = 0; g < kc->n_groups; g++, at += kc->group) {
			float sum[LANES] = {0};

			for (uint32_t d = at; d < at + kc->group && d < kc->dim; d += LANES)
				for (uint32_t i = 0; i < LANES; i++)
					sum[i] += q[d + i];
			ret[r][g] = lanes_sum(sum);
		}
	}
}

void SKVQ_TIER(attn_begin)(struct skvq_attn_state *s)
{
	state_check(s);
	s->prep_key = 0;
	for (uint32_t r = 0; r < s->n_rows; r++) {
		s->max[r] = -INFINITY;
		s->sum[r] = 0.0f;
	}
	memset(s->acc, 0, (size_t)s->n_rows * s->dim_v * sizeof(float));
	memset(s->acc_stored, 0, (size_t)s->n_rows * s->dim_v * sizeof(float));
}

static void attend_page(struct skvq_attn_state *s, const struct skvq_codec *kc,
			const struct skvq_codec *vc, const struct skvq_page_planes *page,
			uint32_t first, uint32_t n_tokens, uint32_t position)
{
	float q_sums[SKVQ_ATTN_ROWS_MAX][GROUPS_MAX];
	struct tile w;

	query_sums(s, kc, q_sums);
	for (uint32_t tile = first / LANES; tile < n_tokens / LANES; tile++) {
		uint32_t start = tile * LANES;
		struct span n = {first > start ? first - start : 0, LANES, position + start};
		bool any;

		if (!span_visible(s, &n))
			continue;
		if (kc->kind == SKVQ_CODEC_FP16) {
			any = weigh_rows(s, s->q_stored,
					 (const uint16_t *)page->k_codes + (size_t)start * kc->dim,
					 kc->dim, &n, &w);
		} else {
			SKVQ_TIER(unpack)(kc, page->k_codes, page->k_refine, tile, w.k);
			SKVQ_TIER(dequant_params)(kc, page->k_params, tile, &w.kp);
			any = weigh_page(s, kc, q_sums, &n, &w);
		}
		if (!any)
			continue;
		if (vc->kind == SKVQ_CODEC_FP16) {
			const uint16_t *v = (const uint16_t *)page->v_codes + (size_t)start * vc->dim;

			SKVQ_TIER(f16_to_f32)(v, w.v, (size_t)LANES * vc->dim);
			values_rows(s, &w, s->acc_stored);
			continue;
		}
		SKVQ_TIER(unpack)(vc, page->v_codes, NULL, tile, w.v);
		SKVQ_TIER(dequant_params)(vc, page->v_params, tile, &w.vp);
		for (uint32_t r = 0; r < s->n_rows; r++)
			if (w.seen[r])
				values_page(vc, w.p[r], &w, s->acc_stored + (size_t)r * s->dim_v);
	}
}

void SKVQ_TIER(attn_pages)(struct skvq_attn_state *s, const struct skvq_codec *kc,
			   const struct skvq_codec *vc, const struct skvq_page_planes *pages,
			   uint32_t n_pages, uint32_t n_ahead, uint32_t first, uint32_t n_tokens,
			   uint32_t position)
{
	(void)n_ahead;
	state_check(s);
	assert(kc->dim == s->dim_k && vc->dim == s->dim_v);
	assert(n_tokens <= n_pages * SKVQ_PAGE_TOKENS && n_tokens % LANES == 0);
	for (uint32_t i = 0; i < n_pages; i++) {
		uint32_t at = i * SKVQ_PAGE_TOKENS, end = at + SKVQ_PAGE_TOKENS;

		end = end < n_tokens ? end : n_tokens;
		if (at < end && first < end)
			attend_page(s, kc, vc, &pages[i], first > at ? first - at : 0, end - at,
				    position + at);
	}
}

void SKVQ_TIER(attn_rows)(struct skvq_attn_state *s, const uint16_t *k, size_t k_stride,
			  const uint16_t *v, size_t v_stride, uint32_t n_tokens, uint32_t position)
{
	struct tile w;

	state_check(s);
	for (uint32_t at = 0; at < n_tokens; at += LANES) {
		struct span n = {0, n_tokens - at < LANES ? n_tokens - at : LANES, position + at};

		if (!span_visible(s, &n) ||
		    !weigh_rows(s, s->q, k + at * k_stride, k_stride, &n, &w))
			continue;
		for (uint32_t t = 0; t < n.to; t++) {
			const uint16_t *row = v + (at + t) * v_stride;

			SKVQ_TIER(f16_to_f32)(row, w.v + (size_t)t * s->dim_v, s->dim_v);
		}
		values_rows(s, &w, s->acc);
	}
}

void SKVQ_TIER(attn_finish)(struct skvq_attn_state *s, const struct skvq_codec *vc,
			    const struct skvq_transform *tv, float *const *out, float *lse)
{
	float stored[DIM_MAX];

	state_check(s);
	for (uint32_t r = 0; r < s->n_rows; r++) {
		const float *acc = s->acc + (size_t)r * s->dim_v;
		bool empty = s->sum[r] == 0.0f;
		float inverse = empty ? 0.0f : 1.0f / s->sum[r];

		memcpy(stored, s->acc_stored + (size_t)r * s->dim_v, s->dim_v * sizeof(float));
		SKVQ_TIER(from_stored)(vc, tv, stored);
		for (uint32_t i = 0; i < s->dim_v; i++)
			out[r][i] = empty ? 0.0f : (acc[i] + stored[i]) * inverse;
		if (lse)
			lse[r] = empty ? -INFINITY : s->max[r] + logf(s->sum[r]);
	}
}
