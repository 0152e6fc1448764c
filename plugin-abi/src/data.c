/* SPDX-License-Identifier: Apache-2.0 */
/* The [data] calls: append, attend, export. They allocate nothing and wait for nobody. */
#include "internal.h"

#include <math.h>
#include <string.h>

/* Rows under one softmax at a time: as many as keep the four row arrays at 16 KiB each. */
#define ROW_FLOATS 4096u

static uint32_t elem_bytes(uint32_t type)
{
	switch (type) {
	case SKVQ_F32:
		return 4;
	case SKVQ_F16:
	case SKVQ_BF16:
		return 2;
	default:
		return 0;
	}
}

/* NULL, or what is wrong with a tensor of the engine's. */
static const char *tensor_fault(const void *p, uint32_t type, int64_t stride_a, int64_t stride_b)
{
	uint32_t bytes = elem_bytes(type);

	if (!bytes)
		return "has an unknown element type";
	if (!p)
		return "is NULL";
	if ((uintptr_t)p % bytes || stride_a % bytes || stride_b % bytes)
		return "is not aligned to its element type";
	return NULL;
}

static void load_row(const struct skvq_kernels *k, const void *p, uint32_t type, float *x, uint32_t n)
{
	switch (type) {
	case SKVQ_F32:
		memcpy(x, p, n * sizeof *x);
		break;
	case SKVQ_F16:
		k->f16_to_f32(p, x, n);
		break;
	default: {
		const uint16_t *b = p;
		for (uint32_t i = 0; i < n; i++) {
			uint32_t bits = (uint32_t)b[i] << 16;
			memcpy(x + i, &bits, sizeof bits);
		}
	}
	}
}

static uint16_t to_bf16(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof bits);
	if (isnan(x))
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void store_row(const struct skvq_kernels *k, const float *x, void *p, uint32_t type,
                      uint32_t n)
{
	switch (type) {
	case SKVQ_F32:
		memcpy(p, x, n * sizeof *x);
		break;
	case SKVQ_F16:
		k->f32_to_f16(x, p, n);
		break;
	default: {
		uint16_t *b = p;
		for (uint32_t i = 0; i < n; i++)
			b[i] = to_bf16(x[i]);
	}
	}
}

/* Interleaved RoPE pairs (2i, 2i+1) to canonical (i, i + half), and back. Channels beyond the
 * rotated ones stay. half 0: nothing to do. */
static void to_canonical(uint32_t half, float *x)
{
	float t[SKVQ_HEAD_DIM_MAX];

	for (uint32_t i = 0; i < half; i++) {
		t[i] = x[2 * i];
		t[half + i] = x[2 * i + 1];
	}
	memcpy(x, t, 2 * half * sizeof *x);
}

static void from_canonical(uint32_t half, float *x)
{
	float t[SKVQ_HEAD_DIM_MAX];

	for (uint32_t i = 0; i < half; i++) {
		t[2 * i] = x[i];
		t[2 * i + 1] = x[half + i];
	}
	memcpy(x, t, 2 * half * sizeof *x);
}

int32_t api_append(skvq_seq *q, const skvq_kv *kv)
{
	skvq_kv d;
	const char *fault;

	if (!q)
		return -SKVQ_EINVAL;
	const struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	const struct skvq_kernels *kn = s->kernels;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (copy_in(&d, sizeof d, kv) < 0)
		return set_error(s, SKVQ_EINVAL, "kv: struct_size");
	if (d.layer >= m->n_layer)
		return set_error(s, SKVQ_EGEOMETRY, "append to layer %u of %u", d.layer, m->n_layer);
	if ((fault = tensor_fault(d.k, d.k_type, d.k_token_stride, d.k_head_stride)))
		return set_error(s, d.k ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "append layer %u: k %s", d.layer,
		                 fault);
	if ((fault = tensor_fault(d.v, d.v_type, d.v_token_stride, d.v_head_stride)))
		return set_error(s, d.v ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "append layer %u: v %s", d.layer,
		                 fault);
	uint32_t have = q->appended[d.layer];
	if (d.position != have)
		return set_error(s, SKVQ_ESTATE, "append to layer %u at token %u, the next is %u", d.layer,
		                 d.position, have);
	if (d.n_tokens > q->max_tokens - have)
		return set_error(s, SKVQ_EFULL, "append to layer %u: %u tokens after %u, at most %u",
		                 d.layer, d.n_tokens, have, q->max_tokens);
	if (d.n_tokens > q->max_append || have - q->n_tokens > q->max_append - d.n_tokens)
		return set_error(s, SKVQ_ELIMIT,
		                 "append to layer %u: more than max_append %u tokens since the commit",
		                 d.layer, q->max_append);
	/* Only if tiles could not be encoded for want of memory: the ring must not eat them. */
	if (have - q->n_encoded + d.n_tokens > q->ring_tokens)
		return set_error(s, SKVQ_ENOMEM, "append to layer %u: %u tokens wait to be encoded",
		                 d.layer, have - q->n_encoded);

	for (uint32_t t = 0; t < d.n_tokens; t++) {
		uint32_t position = d.position + t;

		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			const uint8_t *k = (const uint8_t *)d.k + (int64_t)t * d.k_token_stride +
			                   (int64_t)h * d.k_head_stride;
			const uint8_t *v = (const uint8_t *)d.v + (int64_t)t * d.v_token_stride +
			                   (int64_t)h * d.v_head_stride;
			uint16_t *to_k = ring_k(q, d.layer, h, position);
			uint16_t *to_v = ring_v(q, d.layer, h, position);
			float x[SKVQ_HEAD_DIM_MAX];

			load_row(kn, k, d.k_type, x, m->dim_k);
			to_canonical(m->pairs_half_dim, x);
			kn->f32_to_f16(x, to_k, m->dim_k);
			load_row(kn, v, d.v_type, x, m->dim_v);
			kn->f32_to_f16(x, to_v, m->dim_v);
			if (position < m->sinks) {
				memcpy(sink_k(q, d.layer, h, position), to_k, m->dim_k * sizeof *to_k);
				memcpy(sink_v(q, d.layer, h, position), to_v, m->dim_v * sizeof *to_v);
			}
		}
	}
	q->appended[d.layer] = have + d.n_tokens;
	return 0;
}

/* A block of query rows of one KV head: rows [first, first + n) of the head's n_rows * G rows, in
 * token order, heads of the group within a token. */
struct row_block {
	uint32_t layer, head, first, n;
};

static void attend_block(const skvq_seq *q, const skvq_attn *a, const struct row_block *b)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *kn = m->session->kernels;
	const struct skvq_layout *l = &m->layout;
	const struct skvq_layer_layout *ll = &l->layers[b->layer];
	const uint16_t *map_k = reorder_of(m, m->reorder_k, m->dim_k, b->layer, b->head);
	const uint16_t *map_v = reorder_of(m, m->reorder_v, m->dim_v, b->layer, b->head);
	uint32_t group = m->n_q_heads / m->n_kv_heads;
	float qe[ROW_FLOATS], qs[ROW_FLOATS], acc[ROW_FLOATS], acc_stored[ROW_FLOATS];
	float max[SKVQ_ATTN_ROWS_MAX], sum[SKVQ_ATTN_ROWS_MAX], lse[SKVQ_ATTN_ROWS_MAX];
	uint32_t pos[SKVQ_ATTN_ROWS_MAX], lo[SKVQ_ATTN_ROWS_MAX];
	float *out[SKVQ_ATTN_ROWS_MAX];
	uint32_t last = 0;

	for (uint32_t r = 0; r < b->n; r++) {
		uint32_t token = (b->first + r) / group;
		uint32_t q_head = b->head * group + (b->first + r) % group;
		float *x = qe + (size_t)r * m->dim_k;

		load_row(kn,
		         (const uint8_t *)a->q + (int64_t)token * a->q_row_stride +
		             (int64_t)q_head * a->q_head_stride,
		         a->q_type, x, m->dim_k);
		to_canonical(m->pairs_half_dim, x);
		for (uint32_t i = 0; i < m->dim_k; i++)
			x[i] *= a->scale;
		memcpy(qs + (size_t)r * m->dim_k, x, m->dim_k * sizeof *x);
		kn->to_stored(&ll->k, map_k, qs + (size_t)r * m->dim_k);
		pos[r] = a->position + token;
		lo[r] = a->sliding_limit && pos[r] + 1 > a->sliding_limit ? pos[r] + 1 - a->sliding_limit
		                                                          : 0;
		last = pos[r];
		out[r] = (float *)(void *)((uint8_t *)a->out + (int64_t)token * a->out_row_stride +
		                           (int64_t)q_head * a->out_head_stride);
	}
	struct skvq_attn_state st = {.n_rows = b->n,
	                             .dim_k = m->dim_k,
	                             .dim_v = m->dim_v,
	                             .softcap = a->softcap,
	                             .q = qe,
	                             .q_stored = qs,
	                             .pos = pos,
	                             .lo = lo,
	                             .max = max,
	                             .sum = sum,
	                             .acc = acc,
	                             .acc_stored = acc_stored};
	kn->attn_begin(&st);

	uint32_t n_sinks = m->sinks < last + 1 ? m->sinks : last + 1;
	if (n_sinks && lo[0] < n_sinks)
		kn->attn_rows(&st, sink_k(q, b->layer, b->head, 0), m->dim_k,
		              sink_v(q, b->layer, b->head, 0), m->dim_v, n_sinks, 0);
	for (uint32_t at = lo[0] / SKVQ_PAGE_TOKENS * SKVQ_PAGE_TOKENS;
	     at < q->n_encoded && at <= last; at += SKVQ_PAGE_TOKENS) {
		const uint8_t *page = q->pages[at / SKVQ_PAGE_TOKENS].data;
		uint32_t n = q->n_encoded - at < SKVQ_PAGE_TOKENS ? q->n_encoded - at : SKVQ_PAGE_TOKENS;
		uint32_t first = at == 0 ? m->sinks : 0;

		if (first < n)
			kn->attn_page(&st, &ll->k, &ll->v,
			              page + skvq_layout_k_codes(l, b->layer, b->head),
			              page + skvq_layout_k_params(l, b->layer, b->head),
			              page + skvq_layout_v_codes(l, b->layer, b->head),
			              page + skvq_layout_v_params(l, b->layer, b->head), first, n, at);
	}
	/* The window in at most two pieces: up to the ring's end, and from its start. */
	uint32_t from = q->n_encoded > m->sinks ? q->n_encoded : m->sinks;
	while (from <= last) {
		uint32_t n = last + 1 - from;
		uint32_t to_end = q->ring_tokens - from % q->ring_tokens;

		if (n > to_end)
			n = to_end;
		kn->attn_rows(&st, ring_k(q, b->layer, b->head, from), m->dim_k,
		              ring_v(q, b->layer, b->head, from), m->dim_v, n, from);
		from += n;
	}
	kn->attn_finish(&st, &ll->v, map_v, out, a->lse ? lse : NULL);
	for (uint32_t r = 0; a->lse && r < b->n; r++) {
		uint32_t token = (b->first + r) / group;
		uint32_t q_head = b->head * group + (b->first + r) % group;
		a->lse[(size_t)token * m->n_q_heads + q_head] = lse[r];
	}
}

static int check_attn(const skvq_seq *q, const skvq_attn *a)
{
	const struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	const char *fault;

	if (a->layer >= m->n_layer)
		return set_error(s, SKVQ_EGEOMETRY, "attend to layer %u of %u", a->layer, m->n_layer);
	if (!a->nth || a->ith >= a->nth)
		return set_error(s, SKVQ_EINVAL, "attend: ith %u of nth %u", a->ith, a->nth);
	if ((fault = tensor_fault(a->q, a->q_type, a->q_row_stride, a->q_head_stride)))
		return set_error(s, a->q ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "attend layer %u: q %s",
		                 a->layer, fault);
	if ((fault = tensor_fault(a->out, SKVQ_F32, a->out_row_stride, a->out_head_stride)))
		return set_error(s, a->out ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "attend layer %u: out %s",
		                 a->layer, fault);
	if (!isfinite(a->scale) || !(a->softcap >= 0) || !isfinite(a->softcap))
		return set_error(s, SKVQ_EINVAL, "attend layer %u: scale %g, softcap %g", a->layer,
		                 (double)a->scale, (double)a->softcap);
	uint32_t have = q->appended[a->layer];
	if (a->position > have || a->n_rows > have - a->position)
		return set_error(s, SKVQ_ERANGE, "attend layer %u: rows %u..%u, %u tokens appended",
		                 a->layer, a->position, a->position + a->n_rows, have);
	return 0;
}

int32_t api_attend(skvq_seq *const *seqs, const skvq_attn *attns, uint32_t n_seqs)
{
	if (!seqs || !attns)
		return -SKVQ_EINVAL;
	uint32_t item = 0;
	const uint8_t *at = (const uint8_t *)attns;
	for (uint32_t i = 0; i < n_seqs; i++) {
		skvq_attn a;

		if (!seqs[i])
			return -SKVQ_EINVAL;
		const struct skvq_model *m = seqs[i]->model;
		if (check_fork(m->session) < 0)
			return -SKVQ_EFORKED;
		if (copy_in(&a, sizeof a, at) < 0 || m != seqs[0]->model)
			return set_error(m->session, SKVQ_EINVAL, "attend: struct_size, or two models");
		at += ((const skvq_attn *)(const void *)at)->struct_size;
		int r = check_attn(seqs[i], &a);
		if (r < 0)
			return r;

		uint32_t dim = m->dim_k > m->dim_v ? m->dim_k : m->dim_v;
		uint32_t block = ROW_FLOATS / dim < SKVQ_ATTN_ROWS_MAX ? ROW_FLOATS / dim
		                                                       : SKVQ_ATTN_ROWS_MAX;
		uint32_t rows = a.n_rows * (m->n_q_heads / m->n_kv_heads);
		for (uint32_t first = 0; first < rows; first += block) {
			for (uint32_t h = 0; h < m->n_kv_heads; h++, item++) {
				if (item % a.nth != a.ith)
					continue;
				struct row_block b = {.layer = a.layer,
				                      .head = h,
				                      .first = first,
				                      .n = rows - first < block ? rows - first : block};
				attend_block(seqs[i], &a, &b);
			}
		}
	}
	return 0;
}

int32_t api_export(skvq_seq *q, const skvq_export *desc)
{
	skvq_export d;
	const char *fault = NULL;

	if (!q)
		return -SKVQ_EINVAL;
	const struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	const struct skvq_kernels *kn = s->kernels;
	const struct skvq_layout *l = &m->layout;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (copy_in(&d, sizeof d, desc) < 0 || d.reserved)
		return set_error(s, SKVQ_EINVAL, "export: struct_size or a reserved field");
	if (d.layer >= m->n_layer)
		return set_error(s, SKVQ_EGEOMETRY, "export of layer %u of %u", d.layer, m->n_layer);
	if (d.k)
		fault = tensor_fault(d.k, d.type, d.k_token_stride, d.k_head_stride);
	if (!fault && d.v)
		fault = tensor_fault(d.v, d.type, d.v_token_stride, d.v_head_stride);
	if (fault)
		return set_error(s, SKVQ_EMISALIGNED, "export of layer %u: an output %s", d.layer, fault);
	uint32_t have = q->appended[d.layer];
	if (d.position > have || d.n_tokens > have - d.position)
		return set_error(s, SKVQ_ERANGE, "export of tokens %u..%u, layer %u has %u", d.position,
		                 d.position + d.n_tokens, d.layer, have);

	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			uint8_t *out = is_v ? d.v : d.k;
			int64_t token_stride = is_v ? d.v_token_stride : d.k_token_stride;
			int64_t head_stride = is_v ? d.v_head_stride : d.k_head_stride;
			const struct skvq_codec *c = is_v ? &l->layers[d.layer].v : &l->layers[d.layer].k;
			const uint16_t *map =
			    is_v ? reorder_of(m, m->reorder_v, m->dim_v, d.layer, h)
			         : reorder_of(m, m->reorder_k, m->dim_k, d.layer, h);
			float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];
			uint32_t tile_at = UINT32_MAX; /* first token of the tile in rows */

			for (uint32_t t = 0; out && t < d.n_tokens; t++) {
				uint32_t position = d.position + t;
				float x[SKVQ_HEAD_DIM_MAX];

				if (position < m->sinks) {
					kn->f16_to_f32(is_v ? sink_v(q, d.layer, h, position)
					                    : sink_k(q, d.layer, h, position),
					               x, c->dim);
				} else if (position >= q->n_encoded) {
					kn->f16_to_f32(is_v ? ring_v(q, d.layer, h, position)
					                    : ring_k(q, d.layer, h, position),
					               x, c->dim);
				} else {
					const uint8_t *page = q->pages[position / SKVQ_PAGE_TOKENS].data;
					uint32_t in_page = position % SKVQ_PAGE_TOKENS;

					if (position - position % SKVQ_TILE_TOKENS != tile_at) {
						tile_at = position - position % SKVQ_TILE_TOKENS;
						kn->decode_tile(
						    c,
						    page + (is_v ? skvq_layout_v_codes(l, d.layer, h)
						                 : skvq_layout_k_codes(l, d.layer, h)),
						    page + (is_v ? skvq_layout_v_params(l, d.layer, h)
						                 : skvq_layout_k_params(l, d.layer, h)),
						    in_page / SKVQ_TILE_TOKENS, rows);
					}
					memcpy(x, rows + (size_t)(position - tile_at) * c->dim,
					       c->dim * sizeof *x);
					kn->from_stored(c, map, x);
				}
				if (!is_v)
					from_canonical(m->pairs_half_dim, x);
				store_row(kn, x, out + (int64_t)t * token_stride + (int64_t)h * head_stride,
				          d.type, c->dim);
			}
		}
	}
	return 0;
}
