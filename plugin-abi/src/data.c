/* SPDX-License-Identifier: Apache-2.0 */
/* The [data] calls append and export. They allocate nothing and wait for nobody. */
#include "internal.h"

#include <string.h>

#include "elems.h"

/* Whether every binary16 number is finite. Without a branch, so that compilers vectorise it. */
bool finite_halves(const uint16_t *x, uint32_t n)
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
	struct skvq_session *s = q->model->session;
	const struct skvq_kernels *kn = s->kernels;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (copy_in(&d, sizeof d, kv) < 0)
		return set_error(s, SKVQ_EINVAL, "kv: struct_size");
	if (d.layer >= q->model->n_layer)
		return set_error(s, SKVQ_EGEOMETRY, "append to layer %u of %u", d.layer,
		                 q->model->n_layer);
	const uint32_t name = d.layer;
	q = part_of_layer(q, &d.layer);
	const struct skvq_model *m = q->model;
	if (q->lost)
		return set_error(s, SKVQ_ECORRUPT, "the daemon took pages away: compute again");
	if ((fault = tensor_fault(d.k, d.k_type, d.k_token_stride, d.k_head_stride)))
		return set_error(s, d.k ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "append layer %u: k %s", name,
		                 fault);
	if ((fault = tensor_fault(d.v, d.v_type, d.v_token_stride, d.v_head_stride)))
		return set_error(s, d.v ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "append layer %u: v %s", name,
		                 fault);
	uint32_t have = q->appended[d.layer];
	if (d.position != have)
		return set_error(s, SKVQ_ESTATE, "append to layer %u at token %u, the next is %u", name,
		                 d.position, have);
	if (d.n_tokens > q->max_tokens - have)
		return set_error(s, SKVQ_EFULL, "append to layer %u: %u tokens after %u, at most %u",
		                 name, d.n_tokens, have, q->max_tokens);
	if (d.n_tokens > q->max_append || have - q->n_tokens > q->max_append - d.n_tokens)
		return set_error(s, SKVQ_ELIMIT,
		                 "append to layer %u: more than max_append %u tokens since the commit",
		                 name, q->max_append);
	/* Only if tiles could not be encoded for want of memory: the ring must not eat them. */
	if (have - q->n_encoded + d.n_tokens > q->ring_tokens)
		return set_error(s, SKVQ_ENOMEM, "append to layer %u: %u tokens wait to be encoded",
		                 name, have - q->n_encoded);

	if (q->written[d.layer] < have + d.n_tokens)
		q->written[d.layer] = have + d.n_tokens;
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
				                 name, finite_halves(to_k, m->dim_k) ? 'V' : 'K', h,
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

/* The FP16 rows of tokens that are not read from pages: sinks, and those not yet encoded. */
static const uint16_t *row_at(const struct skvq_seq *q, int is_v, uint32_t layer, uint32_t head,
                              uint32_t position)
{
	if (position < q->model->sinks)
		return is_v ? sink_v(q, layer, head, position) : sink_k(q, layer, head, position);
	return is_v ? ring_v(q, layer, head, position) : ring_k(q, layer, head, position);
}

void tile_rows(const struct skvq_seq *q, int is_v, uint32_t layer, uint32_t head, uint32_t position,
               float *ret)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *kn = m->session->kernels;
	const struct skvq_layout *l = page_layout(q, position / SKVQ_PAGE_TOKENS);
	const struct skvq_codec *c = is_v ? &l->layers[layer].v : &l->layers[layer].k;
	const uint8_t *page = q->pages[position / SKVQ_PAGE_TOKENS].data;

	if (m->faithful) {
		uint16_t halves[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

		faithful_tile(q, layer, is_v, head, position, halves);
		kn->f16_to_f32(halves, ret, (size_t)SKVQ_TILE_TOKENS * c->dim);
		return;
	}
	kn->decode_tile(
	    c, page + (is_v ? skvq_layout_v_codes(l, layer, head) : skvq_layout_k_codes(l, layer, head)),
	    page + (is_v ? skvq_layout_v_params(l, layer, head) : skvq_layout_k_params(l, layer, head)),
	    is_v ? NULL
	         : page_refine(q, layer, head, position / SKVQ_PAGE_TOKENS, q->appended[layer]),
	    position % SKVQ_PAGE_TOKENS / SKVQ_TILE_TOKENS, ret);
	kn->tile_from_stored(c, transform_of(m, is_v, layer, head), ret);
}

static void export_head(const struct skvq_seq *q, const skvq_export *d, int is_v, uint32_t head)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *kn = m->session->kernels;
	uint8_t *out = is_v ? d->v : d->k;
	int64_t token_stride = is_v ? d->v_token_stride : d->k_token_stride;
	uint32_t dim = is_v ? m->dim_v : m->dim_k;
	float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];
	uint32_t tile_at = UINT32_MAX; /* first token of the tile in rows */

	out += (int64_t)head * (is_v ? d->v_head_stride : d->k_head_stride);
	for (uint32_t t = 0; t < d->n_tokens; t++, out += token_stride) {
		uint32_t position = d->position + t;
		uint32_t at = position - position % SKVQ_TILE_TOKENS;
		float row[SKVQ_HEAD_DIM_MAX], *x = row;

		if (position < m->sinks || position >= q->n_encoded) {
			kn->f16_to_f32(row_at(q, is_v, d->layer, head, position), x, dim);
		} else {
			if (at != tile_at)
				tile_rows(q, is_v, d->layer, head, at, rows);
			tile_at = at;
			x = rows + (size_t)(position - at) * dim;
		}
		if (!is_v)
			from_canonical(m->pairs_half_dim, x);
		store_row(kn, x, out, d->type, dim);
	}
}

int32_t api_export(skvq_seq *q, const skvq_export *desc)
{
	skvq_export d;
	const char *fault = NULL;

	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_session *s = q->model->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (copy_in(&d, sizeof d, desc) < 0 || d.reserved)
		return set_error(s, SKVQ_EINVAL, "export: struct_size or a reserved field");
	if (d.layer >= q->model->n_layer)
		return set_error(s, SKVQ_EGEOMETRY, "export of layer %u of %u", d.layer,
		                 q->model->n_layer);
	const uint32_t name = d.layer;
	q = part_of_layer(q, &d.layer);
	const struct skvq_model *m = q->model;
	if (d.k)
		fault = tensor_fault(d.k, d.type, d.k_token_stride, d.k_head_stride);
	if (!fault && d.v)
		fault = tensor_fault(d.v, d.type, d.v_token_stride, d.v_head_stride);
	if (fault)
		return set_error(s, SKVQ_EMISALIGNED, "export of layer %u: an output %s", name, fault);
	uint32_t have = q->appended[d.layer];
	if (d.position > have || d.n_tokens > have - d.position)
		return set_error(s, SKVQ_ERANGE, "export of tokens %u..%u, layer %u has %u", d.position,
		                 d.position + d.n_tokens, name, have);
	uint32_t coded = d.position > m->sinks ? d.position : m->sinks;
	if (coded < dropped_tokens(q) && coded < d.position + d.n_tokens)
		return set_error(s, SKVQ_ERANGE, "export of tokens %u..%u, those before %u were dropped",
		                 d.position, d.position + d.n_tokens, dropped_tokens(q));

	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		if (d.k)
			export_head(q, &d, 0, h);
		if (d.v)
			export_head(q, &d, 1, h);
	}
	return 0;
}
