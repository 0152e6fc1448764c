/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the codes of a page lose: measured on the page's first tile while its FP16 rows are still in
 * the ring, written into the layer table, held against what is expected of the codec.
 *
 * Sinks are left out: nobody reads them from codes, and they are like no other token.
 *
 * Without a calibration they also tell whether a few channels drown the rest of the keys
 * (skvq_error_of_middle): such a page is made a safe one, with keys of 8 bits. All that decides is
 * computed by the kernels from the tile and its codes, so it is the same wherever the tile is.
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

/* One head's tile as it came, in engine space. */
static void head_rows(const struct skvq_seq *q, const struct skvq_codec *c, uint32_t layer,
                      uint32_t head, uint32_t position, float *rows)
{
	const struct skvq_kernels *k = q->model->session->kernels;

	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
		k->f16_to_f32((c->is_v ? ring_v : ring_k)(q, layer, head, position + t),
		              rows + (size_t)t * c->dim, c->dim);
	skvq_error_finite(rows, (size_t)SKVQ_TILE_TOKENS * c->dim);
}

/* The same and what its codes have, both in stored space. */
static void head_stored(const struct skvq_seq *q, const struct skvq_codec *c, uint32_t layer,
                        uint32_t head, uint32_t position, float *rows, float *decoded)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *k = m->session->kernels;
	const struct skvq_layout *l = page_layout(q, position / SKVQ_PAGE_TOKENS);
	const uint8_t *page = q->pages[position / SKVQ_PAGE_TOKENS].data;
	uint16_t halves[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

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

/* The relative error of K or V; *ret_middle is the mean of the heads' skvq_error_of_middle. */
static uint16_t measure(const struct skvq_seq *q, const struct skvq_codec *c, uint32_t layer,
                        uint32_t position, double *ret_middle)
{
	const struct skvq_model *m = q->model;
	uint32_t skip = m->sinks > position ? m->sinks - position : 0;
	uint32_t n = SKVQ_TILE_TOKENS - skip;
	struct skvq_error_sum sum = {{0}, {0}};
	double middle = 0;
	float x[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX], rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX],
	    decoded[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	*ret_middle = 0;
	if (c->kind == SKVQ_CODEC_FP16 || skip >= SKVQ_TILE_TOKENS)
		return 0;
	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		struct skvq_error_sum head = {{0}, {0}};

		head_rows(q, c, layer, h, position, x);
		memcpy(rows, x, (size_t)SKVQ_TILE_TOKENS * c->dim * sizeof *x);
		head_stored(q, c, layer, h, position, rows, decoded);
		skvq_error_add(&sum, rows + (size_t)skip * c->dim, decoded + (size_t)skip * c->dim,
		               (size_t)n * c->dim);
		if (!m->safe || c->is_v)
			continue;
		skvq_error_add(&head, rows + (size_t)skip * c->dim, decoded + (size_t)skip * c->dim,
		               (size_t)n * c->dim);
		middle += skvq_error_of_middle(&head, x + (size_t)skip * c->dim, n, c->dim);
	}
	*ret_middle = middle / m->n_kv_heads;
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
		          layer_name(m, layer), is_v ? 'V' : 'K', position, (double)error,
		          (double)e->error,
		          m->id.profile);
	}
	return true;
}

/* What no page has yet: K and V of each layer as its table says them, and the layer whose keys
 * drown most. */
struct page_sums {
	uint16_t half[SKVQ_LAYERS_MAX][2];
	uint32_t worst;
	float times; /* of the worst layer, skvq_error_times */
};

static void measure_page(const struct skvq_seq *q, uint32_t position, struct page_sums *ret)
{
	const struct skvq_layout *l = page_layout(q, position / SKVQ_PAGE_TOKENS);

	ret->worst = 0;
	ret->times = 0;
	for (uint32_t layer = 0; layer < q->model->n_layer; layer++) {
		double middle, unused;
		float times;

		ret->half[layer][0] = measure(q, &l->layers[layer].k, layer, position, &middle);
		ret->half[layer][1] = measure(q, &l->layers[layer].v, layer, position, &unused);
		times = skvq_error_times(&l->layers[layer].k, middle);
		if (times > ret->times) {
			ret->times = times;
			ret->worst = layer;
		}
	}
}

static void say_safe(struct skvq_model *m, const struct page_sums *sums, uint32_t position)
{
	if (m->warned_safe)
		return;
	m->warned_safe = true;
	log_event(m->session, SKVQ_LOG_WARNING,
	          "layer %u: a few channels drown the rest of K in the page at token %u: against the "
	          "middle channel the error of profile '%s' is %.3g times what it should be. Such "
	          "pages keep keys in 8 bits. With a calibration they need not (said once)",
	          layer_name(m, sums->worst), position, m->id.profile, (double)sums->times);
}

bool page_errors(struct skvq_seq *q, uint32_t position)
{
	struct skvq_model *m = q->model;
	uint32_t i = position / SKVQ_PAGE_TOKENS;
	const struct skvq_layout *l = page_layout(q, i);
	uint8_t *table = page_own(q, i) + l->layers_offset;
	struct page_sums sums;
	bool off = false;

	measure_page(q, position, &sums);
	if (m->safe && !l->safe && sums.times > SKVQ_ERROR_DROWNED) {
		say_safe(m, &sums, position);
		return true;
	}
	for (uint32_t layer = 0; layer < m->n_layer; layer++, table += sizeof(skvq_page_layer)) {
		uint16_t k = sums.half[layer][0], v = sums.half[layer][1];

		memcpy(table + offsetof(skvq_page_layer, k_error), &k, sizeof k);
		memcpy(table + offsetof(skvq_page_layer, v_error), &v, sizeof v);
		off |= !l->safe && is_off(m, layer, 0, position, skvq_error_value(k));
		off |= is_off(m, layer, 1, position, skvq_error_value(v));
	}
	m->session->stats.pages_off += off;
	return false;
}

bool layer_table_equal(const struct skvq_model *m, bool safe, const uint8_t *page)
{
	const uint8_t *want = (safe ? m->safe_header : m->header) + m->layout.layers_offset;
	const uint8_t *have = page + m->layout.layers_offset;

	for (uint32_t layer = 0; layer < m->n_layer; layer++) {
		size_t at = layer * sizeof(skvq_page_layer);

		if (memcmp(have + at, want + at, offsetof(skvq_page_layer, k_error)) != 0)
			return false;
	}
	return true;
}
