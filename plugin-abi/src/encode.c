/* SPDX-License-Identifier: Apache-2.0 */
/* From the FP16 window into the open page, a tile of 16 tokens at a time. */
#include "internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RELEASE_TOKENS 64u /* encoded since the last time: a few hundred madvise calls for them */

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
static int page_open(struct skvq_seq *q, uint32_t i, const struct skvq_layout *l)
{
	int r = staging_take(q, i, l);

	if (r < 0)
		return r;
	uint8_t *page = staging_page(q, i);
	skvq_page_init(l, i * SKVQ_PAGE_TOKENS, page);
	q->pages[i] = (struct seq_page){
	    .data = page, .safe = l->safe, .state = PAGE_LOCAL, .staging = q->staging};
	staging_hold(q->staging, i);
	return 0;
}

static void encode_rows(const struct skvq_seq *q, const struct skvq_codec *c,
                        uint16_t *(*row)(const struct skvq_seq *, uint32_t, uint32_t, uint32_t), uint32_t layer,
                        uint32_t head, uint32_t position, uint8_t *codes,
                        uint8_t *params, uint8_t *refine)
{
	const struct skvq_kernels *k = q->model->session->kernels;
	float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	if (c->kind == SKVQ_CODEC_FAITHFUL)
		return;
	for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
		k->f16_to_f32(row(q, layer, head, position + t), rows + (size_t)t * c->dim, c->dim);
	k->encode_tile(c, transform_of(q->model, c->is_v, layer, head), rows,
	               position % SKVQ_PAGE_TOKENS / SKVQ_TILE_TOKENS, codes, params, refine);
}

/* Gives whole pages within bytes [from, to) of a mapping back to the system. */
static void release(uint8_t *from, uint8_t *to)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t a = ((uintptr_t)from + page - 1) / page * page, b = (uintptr_t)to / page * page;

	if (a < b)
		(void)madvise((void *)a, b - a, MADV_DONTNEED);
}

/* Ring rows that hold no live token: those from the next one to be appended round to the oldest one
 * that is kept. base is row 0 of one head's K or V. */
static void release_rows(const struct skvq_seq *q, uint32_t layer, uint32_t oldest, uint16_t *base,
                         size_t row_bytes)
{
	uint8_t *ring = (uint8_t *)base;
	uint32_t from = q->appended[layer] % q->ring_tokens, to = oldest % q->ring_tokens;

	if (q->appended[layer] - oldest >= q->ring_tokens)
		return; /* all live */
	if (from < to || q->appended[layer] == oldest) {
		release(ring + from * row_bytes, ring + (from < to ? to : q->ring_tokens) * row_bytes);
	} else {
		release(ring + from * row_bytes, ring + q->ring_tokens * row_bytes);
		release(ring, ring + to * row_bytes);
	}
}

/* A prompt's chunk needs a ring many times the window; while decoding it would only fill up with
 * tokens that are in pages already. */
static void ring_release(struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;
	uint32_t oldest = q->n_encoded > KEPT_TOKENS ? q->n_encoded - KEPT_TOKENS : 0;

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			release_rows(q, layer, oldest, ring_k(q, layer, h, 0),
			             m->dim_k * sizeof(uint16_t));
			release_rows(q, layer, oldest, ring_v(q, layer, h, 0),
			             m->dim_v * sizeof(uint16_t));
		}
	q->ring_released = oldest;
	q->ring_true = q->ring_true > oldest ? q->ring_true : oldest;
}

bool page_is_old(const struct skvq_seq *q, uint32_t i, uint32_t position)
{
	uint64_t end = ((uint64_t)i + 1) * SKVQ_PAGE_TOKENS;

	return end + q->model->window + q->model->young <= position;
}

/* Age goes by tokens, which may wait in the ring when there is no memory for their page. */
static bool page_is_full(const struct skvq_seq *q, uint32_t i)
{
	return ((uint64_t)i + 1) * SKVQ_PAGE_TOKENS <= q->n_encoded;
}

enum { SHED_BATCH = 128 };

/* What became of one page. */
enum shed {
	SHED_DONE,
	SHED_LATER, /* a branch reads it yet */
	SHED_STOP,  /* it is still to be published, and all behind it */
};

struct shed_batch {
	struct skvq_page_ref refs[SHED_BATCH];
	uint32_t n;
};

/* A local page: its memory goes. The first look frees what a copy back may have left; not so the next. */
static enum shed shed_own(struct skvq_seq *q, uint32_t i, bool again)
{
	const struct skvq_layout *l = &q->model->layout;
	struct seq_page *p = &q->pages[i];

	if (p->state != PAGE_LOCAL || (again && p->base_only))
		return SHED_DONE;
	if (p->staging->users[i] > 1)
		return SHED_LATER;
	if (p->staging->spoiled)
		return SHED_DONE; /* a daemon that was lost may read it yet */
	p->base_only = true;
	(void)fallocate(p->staging->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                (off_t)(i * l->slot_bytes + l->base_bytes), (off_t)l->refine_bytes);
	return SHED_DONE;
}

/* A shared page: the daemon is told that it may take it. One that is still to be published must stay
 * whole. */
static enum shed shed_shared(struct skvq_seq *q, uint32_t i, struct shed_batch *batch)
{
	struct seq_page *p = &q->pages[i];

	if (p->state != PAGE_SHARED || p->epoch != q->model->session->epoch)
		return SHED_STOP;
	if (p->arena->more && p->arena->more[p->ref.slot])
		return SHED_LATER;
	if (!p->base_only)
		batch->refs[batch->n++] = p->ref;
	p->base_only = true;
	return SHED_DONE;
}

/* Pages that have become old; then, once for each of these, those before that a branch had held. */
static void shed_pages(struct skvq_seq *q, bool own, struct shed_batch *batch)
{
	uint32_t looked = q->n_shed_looked;

	for (; batch->n < SHED_BATCH && page_is_full(q, q->n_shed_looked) &&
	       page_is_old(q, q->n_shed_looked, q->n_tokens);
	     q->n_shed_looked++) {
		enum shed r = own ? shed_own(q, q->n_shed_looked, false)
		                  : shed_shared(q, q->n_shed_looked, batch);

		if (r == SHED_STOP)
			break;
		if (r == SHED_DONE && q->n_shed == q->n_shed_looked)
			q->n_shed++;
	}
	if (looked == q->n_shed_looked)
		return;
	for (uint32_t i = q->n_shed; i < looked && batch->n < SHED_BATCH; i++) {
		enum shed r = own ? shed_own(q, i, true) : shed_shared(q, i, batch);

		if (r == SHED_STOP)
			break;
		if (r == SHED_DONE && q->n_shed == i)
			q->n_shed++;
	}
}

void shed_refinements(struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;
	struct shed_batch batch = {.n = 0};
	bool own = m->session->daemon == DAEMON_NONE || !seq_publishes(q);

	if (!m->layout.refine_bytes || (!own && !is_attached(m)))
		return;
	q->n_shed = q->n_shed > q->n_dropped ? q->n_shed : q->n_dropped;
	q->n_shed_looked = q->n_shed_looked > q->n_shed ? q->n_shed_looked : q->n_shed;
	shed_pages(q, own, &batch);
	if (batch.n && skvq_client_unrefine(m->session->client, m->ns, batch.refs, batch.n) < 0 &&
	    skvq_client_broken(m->session->client))
		session_lost(m->session);
}

/* The next tile into its page, which is open. */
static void encode_tile(struct skvq_seq *q)
{
	struct skvq_model *m = q->model;
	uint32_t position = q->n_encoded, i = position / SKVQ_PAGE_TOKENS;
	const struct skvq_layout *l = page_layout(q, i);
	uint8_t *page = page_own(q, i);

	if (i == 0 && m->sinks) /* with a short window some sinks come after the first tile */
		memcpy(page + l->base_bytes + l->refine_bytes, q->sinks, q->sinks_bytes);
	memcpy(page + l->tokens_offset + position % SKVQ_PAGE_TOKENS * sizeof(int32_t),
	       q->tokens + position, SKVQ_TILE_TOKENS * sizeof(int32_t));
	for (uint32_t layer = 0; layer < m->n_layer; layer++) {
		const struct skvq_layer_layout *ll = &l->layers[layer];

		if (ll->k.kind == SKVQ_CODEC_FAITHFUL)
			faithful_encode(q, layer, 0, position, page);
		if (ll->v.kind == SKVQ_CODEC_FAITHFUL)
			faithful_encode(q, layer, 1, position, page);
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			encode_rows(q, &ll->k, ring_k, layer, h, position,
			            page + skvq_layout_k_codes(l, layer, h),
			            page + skvq_layout_k_params(l, layer, h),
			            ll->k.nested ? page + skvq_layout_k_refine(l, layer, h) : NULL);
			encode_rows(q, &ll->v, ring_v, layer, h, position,
			            page + skvq_layout_v_codes(l, layer, h),
			            page + skvq_layout_v_params(l, layer, h), NULL);
		}
	}
	if (q->cut.page)
		cut_merge(q, page);
}

/* A page's first tile decides how the whole page is laid out. If there is no memory for it, the tile
 * is still in the ring, and its slot holds nothing again. */
static int encode_first_tile(struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;
	uint32_t position = q->n_encoded, i = position / SKVQ_PAGE_TOKENS;
	int r = page_open(q, i, layout_of(m, q->cut.safe));

	if (r < 0)
		return r;
	encode_tile(q);
	if (q->cut.page) { /* what was decided of the page before stands */
		q->pages[i].hidden = true;
		q->pages[i].base_only = q->cut.base_only;
		return 0;
	}
	if (!page_errors(q, position))
		return 0;
	pages_drop(q, i, i + 1);
	r = page_open(q, i, m->safe);
	if (r < 0)
		return r;
	encode_tile(q);
	(void)page_errors(q, position);
	q->model->session->stats.pages_safe++;
	return 0;
}

int encode_tiles(struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;

	while ((uint64_t)q->n_encoded + SKVQ_TILE_TOKENS + m->window <= q->n_tokens) {
		if (q->n_encoded % SKVQ_PAGE_TOKENS == 0) {
			int r = encode_first_tile(q);
			if (r < 0)
				return r;
		} else {
			encode_tile(q);
		}
		if (q->cut.page)
			cut_end(q);
		q->n_encoded += SKVQ_TILE_TOKENS;
	}
	shed_refinements(q);
	if (q->n_encoded - q->ring_released >= RELEASE_TOKENS)
		ring_release(q);
	return 0;
}
