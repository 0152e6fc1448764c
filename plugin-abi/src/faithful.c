/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Profiles "skvq-...": pages in SKVQ's own form (skvq/faithful.h), for comparison. Their groups run
 * across heads and their keys may be kept as they were before RoPE, so there is no attention in
 * place: a tile is decoded to FP16 rows, keys are rotated again, and the rows are attended like the
 * window's. Correct, and slow.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/faithful.h>

static int rope_init(struct skvq_model *m)
{
	if (skvq_rope_init(m->id.rope_dim, m->id.rope_theta, m->id.rope_scaling,
	                   &m->faithful->rope) < 0)
		return set_error(m->session, SKVQ_ENOTSUP,
		                 "profile '%s' keeps keys as they were before RoPE, and rope_scaling "
		                 "'%s' is not known; 'skvq-post-...' keeps them as they are",
		                 m->id.profile, m->id.rope_scaling);
	return 0;
}

/* The groups of one layer's K or V: the calibration's, if it has any, or neighbours. */
static int groups_init(struct skvq_model *m, const struct skvq_profile *p,
                       const struct skvq_calibration *c, uint32_t layer, int is_v, uint16_t *of)
{
	const struct skvq_layer_layout *l = &m->layout.layers[layer];
	struct skvq_channel_groups *g = &m->faithful->groups[2 * layer + (uint32_t)is_v];
	uint32_t room = (is_v ? l->v_rows : l->k_rows) / 2;
	int channels = is_v          ? SKVQ_CHANNELS_V
	               : p->pre_rope ? SKVQ_CHANNELS_K_BEFORE
	                             : SKVQ_CHANNELS_K_AFTER;
	const uint16_t *own = c ? skvq_calibration_groups(c, layer_name(m, layer), channels, p->group,
	                                                &g->n_groups)
	                        : NULL;

	g->n = m->n_kv_heads * (is_v ? m->dim_v : m->dim_k);
	g->of = of;
	if (own)
		memcpy(of, own, g->n * sizeof *of);
	else
		g->n_groups = skvq_faithful_neighbours(g->n, p->group, of);
	if ((is_v ? l->v.kind : l->k.kind) != SKVQ_CODEC_FAITHFUL)
		return 0; /* FP16 by a bit table: there are no rows */
	if (g->n_groups != room || room > SKVQ_FAITHFUL_GROUPS_MAX)
		return set_error(m->session, SKVQ_EGEOMETRY,
		                 "layer %u: %u groups of channels, pages have room for %u, at most %u",
		                 layer_name(m, layer), g->n_groups, room, SKVQ_FAITHFUL_GROUPS_MAX);
	return 0;
}

int faithful_init(struct skvq_model *m, const struct skvq_profile *p,
                  const struct skvq_calibration *c)
{
	uint32_t n[2] = {m->n_kv_heads * m->dim_k, m->n_kv_heads * m->dim_v};
	struct faithful *f = calloc(1, sizeof *f);

	if (!f)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a model");
	m->faithful = f;
	f->groups = calloc((size_t)2 * m->n_layer, sizeof *f->groups);
	f->of = calloc((size_t)m->n_layer * (n[0] + n[1]), sizeof *f->of);
	f->tile = calloc(SKVQ_TILE_TOKENS + 2, n[0] > n[1] ? n[0] : n[1]);
	if (!f->groups || !f->of || !f->tile)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for channel groups");
	f->clip = p->clip;
	uint16_t *of = f->of;
	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (int is_v = 0; is_v < 2; is_v++) {
			int r = groups_init(m, p, c, layer, is_v, of);

			if (r < 0)
				return r;
			of += n[is_v];
		}
	if (c && c->header.flags & SKVQ_CALIBRATION_HAS_GROUPS) {
		skvq_calibration_groups_id(c, p->group, !p->pre_rope, m->calibration_id);
		m->id.calibration_digest = m->calibration_id;
	}
	return p->pre_rope && m->id.rope_dim ? rope_init(m) : 0;
}

void faithful_free(struct skvq_model *m)
{
	if (!m->faithful)
		return;
	free(m->faithful->groups);
	free(m->faithful->of);
	free(m->faithful->tile);
	free(m->faithful);
}

/* Turns a key by its position (way 1) or back (-1); halves in half-split order. */
static void turn(const struct skvq_model *m, uint32_t layer, uint32_t position, int way,
                 uint16_t *row)
{
	const struct skvq_rope *rope = &m->faithful->rope;
	const struct skvq_kernels *kn = m->session->kernels;
	float x[SKVQ_HEAD_DIM_MAX];

	if (!rope->pairs)
		return;
	kn->f16_to_f32(row, x, 2 * rope->pairs);
	skvq_rope_turn(rope, m->layer_window && m->layer_window[layer], position, way, x);
	kn->f32_to_f16(x, row, 2 * rope->pairs);
}

void faithful_encode(const struct skvq_seq *q, uint32_t layer, int is_v, uint32_t position,
                     uint8_t *page)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *kn = m->session->kernels;
	const struct skvq_layout *l = &m->layout;
	const struct skvq_codec *c = is_v ? &l->layers[layer].v : &l->layers[layer].k;
	const struct skvq_channel_groups *g = &m->faithful->groups[2 * layer + (uint32_t)(is_v != 0)];
	uint8_t *scale = page + (is_v ? skvq_layout_v_params(l, layer, 0)
	                              : skvq_layout_k_params(l, layer, 0));
	uint32_t in_page = position % SKVQ_PAGE_TOKENS, n = g->n;
	uint16_t *x = (uint16_t *)(void *)m->faithful->tile; /* [n], then codes [16][n] */
	uint8_t *codes = m->faithful->tile + 2 * (size_t)n;
	uint8_t head_codes[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++) {
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			uint16_t *row = x + (size_t)h * c->dim;

			memcpy(row, is_v ? ring_v(q, layer, h, position + t) : ring_k(q, layer, h, position + t),
			       c->dim * sizeof *row);
			if (!is_v)
				turn(m, layer, position + t, -1, row);
		}
		skvq_faithful_encode(g, c->levels_minus_1, m->faithful->clip, x, codes + (size_t)t * n,
		                     scale + in_page + t,
		                     scale + (size_t)g->n_groups * SKVQ_PAGE_TOKENS + in_page + t,
		                     SKVQ_PAGE_TOKENS);
	}
	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
			memcpy(head_codes + (size_t)t * c->dim, codes + (size_t)t * n + (size_t)h * c->dim,
			       c->dim);
		kn->pack_tile(c, head_codes, in_page / SKVQ_TILE_TOKENS,
		              page + (is_v ? skvq_layout_v_codes(l, layer, h)
		                           : skvq_layout_k_codes(l, layer, h)));
	}
}

void faithful_tile(const struct skvq_seq *q, uint32_t layer, int is_v, uint32_t head,
                   uint32_t position, uint16_t *ret)
{
	const struct skvq_model *m = q->model;
	const struct skvq_layout *l = &m->layout;
	const struct skvq_codec *c = is_v ? &l->layers[layer].v : &l->layers[layer].k;
	const struct skvq_channel_groups *g = &m->faithful->groups[2 * layer + (uint32_t)(is_v != 0)];
	const uint8_t *page = q->pages[position / SKVQ_PAGE_TOKENS].data;
	const uint8_t *scale = page + (is_v ? skvq_layout_v_params(l, layer, 0)
	                                    : skvq_layout_k_params(l, layer, 0));
	uint32_t in_page = position % SKVQ_PAGE_TOKENS;
	uint8_t codes[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	if (c->kind == SKVQ_CODEC_FP16) { /* by a bit table */
		memcpy(ret,
		       page +
		           (is_v ? skvq_layout_v_codes(l, layer, head)
		                 : skvq_layout_k_codes(l, layer, head)) +
		           (size_t)(in_page / SKVQ_TILE_TOKENS) * c->tile_bytes,
		       c->tile_bytes);
		return;
	}
	m->session->kernels->unpack_tile(c,
	                                 page + (is_v ? skvq_layout_v_codes(l, layer, head)
	                                              : skvq_layout_k_codes(l, layer, head)),
	                                 in_page / SKVQ_TILE_TOKENS, codes);
	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++) {
		uint16_t *row = ret + (size_t)t * c->dim;

		skvq_faithful_decode(g, codes + (size_t)t * c->dim, scale + in_page + t,
		                     scale + (size_t)g->n_groups * SKVQ_PAGE_TOKENS + in_page + t,
		                     SKVQ_PAGE_TOKENS, head * c->dim, c->dim, row);
		if (!is_v)
			turn(m, layer, position + t, 1, row);
	}
}

void faithful_attend(struct skvq_attn_state *st, const struct skvq_seq *q, uint32_t layer,
                     uint32_t head, uint32_t from, uint32_t to)
{
	const struct skvq_model *m = q->model;
	uint16_t k[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX], v[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];
	uint32_t end = to * SKVQ_PAGE_TOKENS;

	if (end > q->n_encoded)
		end = q->n_encoded;
	for (uint32_t at = from * SKVQ_PAGE_TOKENS; at < end; at += SKVQ_TILE_TOKENS) {
		uint32_t skip = m->sinks > at ? m->sinks - at : 0;

		if (skip >= SKVQ_TILE_TOKENS)
			continue;
		faithful_tile(q, layer, 0, head, at, k);
		faithful_tile(q, layer, 1, head, at, v);
		m->session->kernels->attn_rows(st, k + (size_t)skip * m->dim_k, m->dim_k,
		                               v + (size_t)skip * m->dim_v, m->dim_v,
		                               SKVQ_TILE_TOKENS - skip, at + skip);
	}
}
