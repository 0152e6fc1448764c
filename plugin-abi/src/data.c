/* SPDX-License-Identifier: Apache-2.0 */
/* The [data] calls append and export. They allocate nothing and wait for nobody. */
#include "internal.h"

#include <string.h>

#include "elems.h"

/* Whether every binary16 number is finite. Without a branch, so that compilers vectorise it. */
static bool finite_halves(const uint16_t *x, uint32_t n)
{
	uint16_t bad = 0;

	for (uint32_t i = 0; i < n; i++)
		bad |= (uint16_t)((x[i] & 0x7c00) == 0x7c00);
	return !bad;
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
	if (q->lost)
		return set_error(s, SKVQ_ECORRUPT, "the daemon took pages away: compute again");
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
			/* One such number would be in every later row's sum. What was written lies
			 * beyond the layer's end and counts as nothing. */
			if (!finite_halves(to_k, m->dim_k) || !finite_halves(to_v, m->dim_v))
				return set_error(s, SKVQ_EINVAL,
				                 "append to layer %u: %c of head %u, token %u is not finite "
				                 "in binary16",
				                 d.layer, finite_halves(to_k, m->dim_k) ? 'V' : 'K', h,
				                 position);
			if (position < m->sinks) {
				memcpy(sink_k(q, d.layer, h, position), to_k, m->dim_k * sizeof *to_k);
				memcpy(sink_v(q, d.layer, h, position), to_v, m->dim_v * sizeof *to_v);
			}
		}
	}
	q->appended[d.layer] = have + d.n_tokens;
	split_reset(q, d.layer);
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
			const struct skvq_transform *tr = transform_of(m, is_v, d.layer, h);
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
					kn->from_stored(c, tr, x);
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
