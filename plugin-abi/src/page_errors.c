/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the codes of a page lose: measured on the page's first tile while its FP16 rows are still in
 * the ring, written into the layer table, held against what is expected of the codec.
 *
 * Sinks are left out: nobody reads them from codes, and they are like no other token.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error_stats.h>

#define OFF_FACTOR 1.5f

int page_errors_init(struct skvq_model *m)
{
	m->expected = calloc((size_t)2 * m->n_layer, sizeof *m->expected);
	if (!m->expected)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a model of %u layers",
		                 m->n_layer);
	for (uint32_t layer = 0; layer < m->n_layer; layer++) {
		const struct skvq_layer_layout *ll = &m->layout.layers[layer];

		model_expect_error(m, layer, 0, skvq_error_gaussian(&ll->k));
		model_expect_error(m, layer, 1, skvq_error_gaussian(&ll->v));
	}
	return 0;
}

void model_expect_error(struct skvq_model *m, uint32_t layer, int is_v, float error)
{
	m->expected[2 * layer + (uint32_t)(is_v != 0)].error = error;
}

/* One head's tile as it came and as its codes have it, both in stored space. */
static void head_rows(const struct skvq_seq *q, const struct skvq_codec *c, uint32_t layer,
                      uint32_t head, uint32_t position, float *rows, float *decoded)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *k = m->session->kernels;
	const struct skvq_layout *l = &m->layout;
	const uint8_t *page = q->pages[position / SKVQ_PAGE_TOKENS].data;
	uint16_t halves[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
		k->f16_to_f32((c->is_v ? ring_v : ring_k)(q, layer, head, position + t),
		              rows + (size_t)t * c->dim, c->dim);
	skvq_error_finite(rows, (size_t)SKVQ_TILE_TOKENS * c->dim);
	if (m->faithful) { /* in engine space: theirs has keys that are not turned yet */
		faithful_tile(q, layer, c->is_v, head, position, halves);
		k->f16_to_f32(halves, decoded, (size_t)SKVQ_TILE_TOKENS * c->dim);
		skvq_error_finite(decoded, (size_t)SKVQ_TILE_TOKENS * c->dim);
		return;
	}
	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
		k->to_stored(c, transform_of(m, c->is_v, layer, head), rows + (size_t)t * c->dim);
	k->decode_tile(c,
	               page + (c->is_v ? skvq_layout_v_codes(l, layer, head)
	                               : skvq_layout_k_codes(l, layer, head)),
	               page + (c->is_v ? skvq_layout_v_params(l, layer, head)
	                               : skvq_layout_k_params(l, layer, head)),
	               NULL, position % SKVQ_PAGE_TOKENS / SKVQ_TILE_TOKENS, decoded);
}

static uint16_t measure(const struct skvq_seq *q, const struct skvq_codec *c, uint32_t layer,
                        uint32_t position)
{
	const struct skvq_model *m = q->model;
	uint32_t skip = m->sinks > position ? m->sinks - position : 0;
	struct skvq_error_sum sum = {{0}, {0}};
	float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX], decoded[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	if (c->kind == SKVQ_CODEC_FP16 || skip >= SKVQ_TILE_TOKENS)
		return 0;
	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		head_rows(q, c, layer, h, position, rows, decoded);
		skvq_error_add(&sum, rows + (size_t)skip * c->dim, decoded + (size_t)skip * c->dim,
		               (size_t)(SKVQ_TILE_TOKENS - skip) * c->dim);
	}
	return skvq_error_half(&sum);
}

/* Whether the error is beyond expectation; says so, once a layer and side. */
static bool is_off(struct skvq_model *m, uint32_t layer, int is_v, uint32_t position, float error)
{
	struct expected_error *e = &m->expected[2 * layer + (uint32_t)(is_v != 0)];

	if (!(e->error > 0) || !(error > OFF_FACTOR * e->error))
		return false;
	if (!e->warned) {
		e->warned = true;
		log_event(m->session, SKVQ_LOG_WARNING,
		          "layer %u: the relative error of %c in the page at token %u is %.3g, expected "
		          "is %.3g: profile '%s' has too few bits for it, or its calibration is another "
		          "model's (said once a layer)",
		          layer, is_v ? 'V' : 'K', position, (double)error, (double)e->error,
		          m->id.profile);
	}
	return true;
}

void page_errors(struct skvq_seq *q, uint32_t position)
{
	struct skvq_model *m = q->model;
	const struct skvq_layout *l = &m->layout;
	uint8_t *table = q->staging + (size_t)(position / SKVQ_PAGE_TOKENS) * l->slot_bytes +
	                 l->layers_offset;
	bool off = false;

	for (uint32_t layer = 0; layer < m->n_layer; layer++, table += sizeof(skvq_page_layer)) {
		uint16_t k = measure(q, &l->layers[layer].k, layer, position);
		uint16_t v = measure(q, &l->layers[layer].v, layer, position);

		memcpy(table + offsetof(skvq_page_layer, k_error), &k, sizeof k);
		memcpy(table + offsetof(skvq_page_layer, v_error), &v, sizeof v);
		off |= is_off(m, layer, 0, position, skvq_error_value(k));
		off |= is_off(m, layer, 1, position, skvq_error_value(v));
	}
	m->session->stats.pages_off += off;
}

bool layer_table_equal(const struct skvq_model *m, const uint8_t *page)
{
	const uint8_t *want = m->header + m->layout.layers_offset;
	const uint8_t *have = page + m->layout.layers_offset;

	for (uint32_t layer = 0; layer < m->n_layer; layer++) {
		size_t at = layer * sizeof(skvq_page_layer);

		if (memcmp(have + at, want + at, offsetof(skvq_page_layer, k_error)) != 0)
			return false;
	}
	return true;
}
