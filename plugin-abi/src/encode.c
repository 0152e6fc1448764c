/* SPDX-License-Identifier: Apache-2.0 */
/* From the FP16 window into the open page, a tile of 16 tokens at a time. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* Ring of one layer: for each head ring_tokens rows of K, then as many of V. */
static uint16_t *ring_head(const struct skvq_seq *q, uint32_t layer, uint32_t head)
{
	const struct skvq_model *m = q->model;
	size_t head_elems = (size_t)q->ring_tokens * (m->dim_k + m->dim_v);

	return q->ring + ((size_t)layer * m->n_kv_heads + head) * head_elems;
}

uint16_t *ring_k(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position)
{
	return ring_head(q, layer, head) + (size_t)(position % q->ring_tokens) * q->model->dim_k;
}

uint16_t *ring_v(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position)
{
	const struct skvq_model *m = q->model;

	return ring_head(q, layer, head) + (size_t)q->ring_tokens * m->dim_k +
	       (size_t)(position % q->ring_tokens) * m->dim_v;
}

/* The same layout as a first page's sidecar, so that one memcpy moves either way. */
uint16_t *sink_k(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position)
{
	const struct skvq_layout *l = &q->model->layout;
	size_t at = skvq_layout_k_sinks(l, layer, head) - l->base_bytes - l->refine_bytes;

	return q->sinks + at / sizeof(uint16_t) + (size_t)position * q->model->dim_k;
}

uint16_t *sink_v(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position)
{
	const struct skvq_layout *l = &q->model->layout;
	size_t at = skvq_layout_v_sinks(l, layer, head) - l->base_bytes - l->refine_bytes;

	return q->sinks + at / sizeof(uint16_t) + (size_t)position * q->model->dim_v;
}

/* Starts page i in staging. Its memory is taken here, so that writing codes cannot fail later. */
static int page_open(struct skvq_seq *q, uint32_t i)
{
	struct skvq_model *m = q->model;
	const struct skvq_layout *l = &m->layout;
	size_t bytes = skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS);
	uint8_t *page = q->staging + (size_t)i * l->slot_bytes;

	if (fallocate(q->staging_fd, 0, (off_t)(i * l->slot_bytes), (off_t)bytes) < 0)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for page %u (%zu bytes): %s", i,
		                 bytes, strerror(errno));
	skvq_page_init(l, i * SKVQ_PAGE_TOKENS, page);
	q->pages[i] = (struct seq_page){.data = page, .state = PAGE_LOCAL};
	return 0;
}

static void encode_rows(const struct skvq_seq *q, const struct skvq_codec *c,
                        const uint16_t *reorder, uint16_t *(*row)(const struct skvq_seq *, uint32_t,
                                                                  uint32_t, uint32_t),
                        uint32_t layer, uint32_t head, uint32_t position, uint8_t *codes,
                        uint8_t *params)
{
	const struct skvq_kernels *k = q->model->session->kernels;
	float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
		k->f16_to_f32(row(q, layer, head, position + t), rows + (size_t)t * c->dim, c->dim);
	k->encode_tile(c, reorder, rows, position % SKVQ_PAGE_TOKENS / SKVQ_TILE_TOKENS, codes, params);
}

int encode_tiles(struct skvq_seq *q)
{
	struct skvq_model *m = q->model;
	const struct skvq_layout *l = &m->layout;

	while ((uint64_t)q->n_encoded + SKVQ_TILE_TOKENS + m->window <= q->n_tokens) {
		uint32_t position = q->n_encoded;
		uint32_t i = position / SKVQ_PAGE_TOKENS;

		if (position % SKVQ_PAGE_TOKENS == 0) {
			int r = page_open(q, i);
			if (r < 0)
				return r;
		}
		uint8_t *page = q->staging + (size_t)i * l->slot_bytes;
		if (i == 0 && m->sinks) /* with a short window some sinks come after the first tile */
			memcpy(page + l->base_bytes + l->refine_bytes, q->sinks, q->sinks_bytes);
		memcpy(page + l->tokens_offset + position % SKVQ_PAGE_TOKENS * sizeof(int32_t),
		       q->tokens + position, SKVQ_TILE_TOKENS * sizeof(int32_t));
		for (uint32_t layer = 0; layer < m->n_layer; layer++) {
			const struct skvq_layer_layout *ll = &l->layers[layer];

			for (uint32_t h = 0; h < m->n_kv_heads; h++) {
				encode_rows(q, &ll->k, reorder_of(m, m->reorder_k, m->dim_k, layer, h),
				            ring_k, layer, h, position,
				            page + skvq_layout_k_codes(l, layer, h),
				            page + skvq_layout_k_params(l, layer, h));
				encode_rows(q, &ll->v, reorder_of(m, m->reorder_v, m->dim_v, layer, h),
				            ring_v, layer, h, position,
				            page + skvq_layout_v_codes(l, layer, h),
				            page + skvq_layout_v_params(l, layer, h));
			}
		}
		q->n_encoded += SKVQ_TILE_TOKENS;
	}
	return 0;
}
