/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forgetting the end of a sequence, below the window too.
 *
 *                 e           n
 *   ... coded ... | FP16 rows |     e: a multiple of 16, as low as the window wants it and as high
 * as the ring still has rows that were appended
 *
 * Where the ring has the rows, the sequence is bit for bit one that never went beyond n. Where it
 * has not, e is the start of n's tile, and the rows from there to n are what attention saw:
 * decoded. Their codes stay as they are: a copy of the page is kept until the tile is whole again,
 * and they are merged into it (every codec's codes and parameters are a token's own). So codes are
 * those of a sequence that never went beyond n in either case. What a first tile says of its whole
 * page (safe or not, errors) can't be known without FP16: then the page is never published.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* --- tiles of a page -------------------------------------------------------------------------- */

/* Codes, refinement and parameters of one head's K or V in a page; rows that all heads share count
 * as head 0's. */
struct planes {
	const struct skvq_codec *c;
	size_t codes, refine, params; /* refine 0: none */
	uint32_t n_rows;
};

static struct planes planes_of(const struct skvq_layout *l, uint32_t layer, int is_v, uint32_t head)
{
	const struct skvq_layer_layout *ll = &l->layers[layer];
	struct planes p = {.c = is_v ? &ll->v : &ll->k};
	uint32_t shared = is_v ? ll->v_rows : ll->k_rows;

	p.codes = is_v ? skvq_layout_v_codes(l, layer, head) : skvq_layout_k_codes(l, layer, head);
	p.params =
	    is_v ? skvq_layout_v_params(l, layer, head) : skvq_layout_k_params(l, layer, head);
	p.n_rows = p.c->n_rows + (head == 0 ? shared : 0);
	if (p.c->nested)
		p.refine = skvq_layout_k_refine(l, layer, head);
	return p;
}

/* A ternary byte's digits of tiles before this one. */
static void ternary_cut(uint8_t *codes, uint32_t bytes, uint32_t tile)
{
	static const uint8_t power[SKVQ_PAGE_TILES] = {1, 3, 9, 27, 81};

	for (uint32_t i = 0; i < bytes; i++)
		codes[i] %= power[tile];
}

static void planes_clear(const struct planes *p, uint32_t tile, uint8_t *page)
{
	size_t from = (size_t)tile * p->c->tile_bytes;

	if (p->c->tile_bytes)
		memset(page + p->codes + from, 0, p->c->head_bytes - from);
	else
		ternary_cut(page + p->codes, p->c->head_bytes, tile);
	if (p->refine)
		memset(page + p->refine + from, 0, p->c->head_bytes - from);
	for (uint32_t r = 0; r < p->n_rows; r++)
		memset(page + p->params + (size_t)r * SKVQ_PAGE_TOKENS + tile * SKVQ_TILE_TOKENS, 0,
		       SKVQ_PAGE_TOKENS - tile * SKVQ_TILE_TOKENS);
}

void page_clear(const struct skvq_layout *l, uint32_t tile, uint8_t *page)
{
	memset(page + l->tokens_offset + tile * SKVQ_TILE_TOKENS * sizeof(int32_t), 0,
	       (SKVQ_PAGE_TOKENS - tile * SKVQ_TILE_TOKENS) * sizeof(int32_t));
	for (uint32_t layer = 0; layer < l->geo.n_layer; layer++)
		for (uint32_t h = 0; h < l->geo.n_kv_heads; h++)
			for (int is_v = 0; is_v < 2; is_v++) {
				struct planes p = planes_of(l, layer, is_v, h);

				planes_clear(&p, tile, page);
			}
}

static void codes_merge(const struct skvq_kernels *kn, const struct skvq_codec *c, uint32_t tile,
			uint32_t n, const uint8_t *from, uint8_t *to)
{
	uint8_t old[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX],
	    now[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];
	size_t at = (size_t)tile * c->tile_bytes;

	if (c->kind == SKVQ_CODEC_FP16) {
		memcpy(to + at, from + at, (size_t)n * c->dim * sizeof(uint16_t));
		return;
	}
	kn->unpack_tile(c, from, tile, old);
	kn->unpack_tile(c, to, tile, now);
	memcpy(now, old, (size_t)n * c->dim);
	if (!c->tile_bytes)
		ternary_cut(to, c->head_bytes, tile);
	kn->pack_tile(c, now, tile, to);
}

void cut_merge(const struct skvq_seq *q, uint8_t *page)
{
	const struct skvq_model *m = q->model;
	const struct skvq_kernels *kn = m->session->kernels;
	const struct skvq_layout *l = layout_of(m, q->cut.safe);
	uint32_t tile = q->n_encoded % SKVQ_PAGE_TOKENS / SKVQ_TILE_TOKENS;
	uint32_t n = q->cut.end - q->n_encoded;

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++)
			for (int is_v = 0; is_v < 2; is_v++) {
				struct planes p = planes_of(l, layer, is_v, h);

				codes_merge(kn, p.c, tile, n, q->cut.page + p.codes,
					    page + p.codes);
				if (p.refine)
					codes_merge(kn, p.c, tile, n, q->cut.page + p.refine,
						    page + p.refine);
				for (uint32_t r = 0; r < p.n_rows; r++) {
					size_t at = p.params + (size_t)r * SKVQ_PAGE_TOKENS +
						    tile * SKVQ_TILE_TOKENS;

					memcpy(page + at, q->cut.page + at, n);
				}
			}
}

void cut_end(struct skvq_seq *q)
{
	free(q->cut.page);
	memset(&q->cut, 0, sizeof q->cut);
}

/* --- truncating ------------------------------------------------------------------------------- */

uint32_t fp16_from(const struct skvq_seq *q)
{
	uint32_t from = q->ring_true;

	for (uint32_t i = 0; i < q->model->n_layer; i++)
		if (q->written[i] > q->ring_tokens && q->written[i] - q->ring_tokens > from)
			from = q->written[i] - q->ring_tokens;
	return from;
}

/* Rows [from, to), at most a tile, from pages into the ring. */
static void rows_back(const struct skvq_seq *q, uint32_t layer, uint32_t head, int is_v,
		      uint32_t from, uint32_t to)
{
	const struct skvq_model *m = q->model;
	uint32_t dim = is_v ? m->dim_v : m->dim_k;
	float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];

	tile_rows(q, is_v, layer, head, from, rows);
	for (uint32_t i = 0; i < (to - from) * dim; i++)
		rows[i] = rows[i] > 65504 ? 65504 : rows[i] < -65504 ? -65504 : rows[i];
	for (uint32_t t = from; t < to; t++) {
		uint16_t *row = (is_v ? ring_v : ring_k)(q, layer, head, t);

		if (t < m->sinks)
			memcpy(row, (is_v ? sink_v : sink_k)(q, layer, head, t), dim * sizeof *row);
		else
			m->session->kernels->f32_to_f16(rows + (size_t)(t - from) * dim, row, dim);
	}
}

/* What the page that e is in holds now. */
static void cut_fill(const struct skvq_seq *q, uint32_t e, struct cut *cut)
{
	const struct seq_page *p = &q->pages[e / SKVQ_PAGE_TOKENS];
	const struct skvq_layout *l = page_layout(q, e / SKVQ_PAGE_TOKENS);

	memcpy(cut->page, p->data, l->base_bytes + (p->base_only ? 0 : l->refine_bytes));
	cut->safe = p->safe;
	cut->base_only = p->base_only;
}

/* A copy of the page that e is in, whose tile is cut up to `end`. */
static int cut_new(const struct skvq_seq *q, uint32_t e, uint32_t end, struct cut *ret)
{
	const struct skvq_layout *l = page_layout(q, e / SKVQ_PAGE_TOKENS);
	uint8_t *copy = calloc(1, (size_t)l->base_bytes + l->refine_bytes);

	if (!copy)
		return set_error(q->model->session, SKVQ_ENOMEM,
				 "no memory to cut the tile at token %u", e);
	*ret = (struct cut){.page = copy, .end = end};
	cut_fill(q, e, ret);
	return 0;
}

int page_copy(struct skvq_seq *q, uint32_t i)
{
	const struct skvq_layout *l = page_layout(q, i);
	struct seq_page *p = &q->pages[i], old = *p;
	size_t sidecar =
	    skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS) - l->base_bytes - l->refine_bytes;
	int r = staging_take(q, i, l);

	if (r < 0)
		return r;
	uint8_t *to = staging_page(q, i);
	memcpy(to, old.data, l->base_bytes + (old.base_only ? 0 : l->refine_bytes));
	memcpy(to + l->base_bytes + l->refine_bytes, old.data + l->base_bytes + l->refine_bytes,
	       sidecar);
	p->data = to;
	p->staging = q->staging;
	staging_hold(p->staging, i);
	staging_release(old.staging, i);
	return 0;
}

/* Makes page i this sequence's own, in q->staging. Its bytes stay. */
static int page_reopen(struct skvq_seq *q, uint32_t i)
{
	struct skvq_session *s = q->model->session;
	struct seq_page *p = &q->pages[i];
	struct skvq_page_ref ref = p->ref;
	bool pinned = page_is_pinned(q, i);

	if (p->state != PAGE_SHARED) {
		if (p->staging != q->staging || p->staging->users[i] > 1 || p->staging->spoiled)
			return page_copy(q, i);
		return p->base_only ? staging_fill(q, i, page_layout(q, i)) : 0;
	}
	struct arena_map *arena = p->arena;
	arena->refs++; /* beyond the copy */
	int r = page_repatriate(q, i);
	bool last = r == 0 && pinned && pin_is_last(arena, ref);
	arena_unref(arena);
	if (r == -SKVQ_ECORRUPT)
		return set_error(s, SKVQ_ECORRUPT, "the daemon took pages away: compute again");
	if (last)
		pages_unpin(q->model, &ref, 1);
	return r;
}

/* What the daemon has been asked to take goes on without us: what it finds is unpinned when the
 * answer comes, and what it reads is not touched. */
static void publish_abandon(struct skvq_seq *q)
{
	struct skvq_session *s = q->model->session;

	for (uint32_t i = q->n_published; i < q->n_published + q->publish_run; i++) {
		q->pages[i].state = PAGE_LOCAL;
		q->pages[i].staging->spoiled = true;
	}
	for (size_t i = 0; i < s->n_tickets; i++)
		if (s->tickets[i].seq == q)
			s->tickets[i].seq = NULL;
	q->publish_id = 0;
	q->publish_run = 0;
	q->mail->full = false;
}

/* What the pages and the ring need before tokens from e on are no longer coded. */
static int uncode_prepare(struct skvq_seq *q, uint32_t e, uint32_t end, struct cut *ret_cut)
{
	uint32_t i = e / SKVQ_PAGE_TOKENS;
	int r = 0;

	if (q->publish_id && q->n_published + q->publish_run > i)
		publish_abandon(q);
	if (end > e)
		r = cut_new(q, e, end, ret_cut);
	if (r < 0 || e % SKVQ_PAGE_TOKENS == 0)
		return r;
	r = page_reopen(q, i);
	if (r == 0) { /* another part may yet fail, and then it is published again */
		q->n_published = q->n_published < i ? q->n_published : i;
		shed_back(q, i);
	}
	/* A refinement that was let go of may have proved to be there still. */
	if (r == 0 && ret_cut->page)
		cut_fill(q, e, ret_cut);
	return r;
}

static void uncode(struct skvq_seq *q, uint32_t e)
{
	const struct skvq_model *m = q->model;
	uint32_t i = e / SKVQ_PAGE_TOKENS, tile = e % SKVQ_PAGE_TOKENS / SKVQ_TILE_TOKENS;

	for (uint32_t layer = 0; q->cut.page && layer < m->n_layer; layer++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			rows_back(q, layer, h, 0, e, q->cut.end);
			rows_back(q, layer, h, 1, e, q->cut.end);
		}
	if (q->cut.page)
		q->ring_true = q->cut.end;
	if (tile)
		page_clear(page_layout(q, i), tile, page_own(q, i));
	pages_drop(q, i + !!tile, (q->n_encoded + SKVQ_PAGE_TOKENS - 1) / SKVQ_PAGE_TOKENS);
	q->n_encoded = e;
	q->n_published = q->n_published < i ? q->n_published : i;
	shed_back(q, i);
}

/* Where the coded part is to end for n tokens, given the rows that the ring has. */
static uint32_t coded_end(const struct skvq_seq *q, uint32_t n)
{
	uint32_t window = q->model->window, rows = fp16_from(q);
	uint32_t e = n > window ? (n - window) / SKVQ_TILE_TOKENS * SKVQ_TILE_TOKENS : 0;

	rows = (rows + SKVQ_TILE_TOKENS - 1) / SKVQ_TILE_TOKENS * SKVQ_TILE_TOKENS;
	if (n && rows < dropped_tokens(q)) /* there is no page to take tiles out of */
		rows = dropped_tokens(q);
	e = e > rows ? e : rows;
	e = e < q->n_encoded ? e : q->n_encoded;
	return e <= n ? e : n / SKVQ_TILE_TOKENS * SKVQ_TILE_TOKENS;
}

/* How a part goes back: what it needs for that is taken, so that it cannot fail any more. */
struct cut_plan {
	uint32_t e, rows;
	struct cut cut;
};

/* Whether a part can go back to n tokens at all. */
static int cut_check(const struct skvq_seq *q, uint32_t n)
{
	if (q->lost)
		return set_error(q->model->session, SKVQ_ECORRUPT,
				 "the daemon took pages away: compute again");
	if (n && !pages_suffice(q, n))
		return set_error(q->model->session, SKVQ_ERANGE,
				 "truncate to %u tokens: the next one sees some before %u, dropped", n,
				 dropped_tokens(q));
	return 0;
}

static int cut_prepare(struct skvq_seq *q, uint32_t n, struct cut_plan *plan)
{
	plan->e = coded_end(q, n);
	plan->rows = fp16_from(q);
	if (plan->e >= q->n_encoded)
		return 0;
	return uncode_prepare(q, plan->e, plan->rows < n ? plan->rows : n, &plan->cut);
}

static void cut_apply(struct skvq_seq *q, uint32_t n, const struct cut_plan *plan)
{
	if (plan->e < q->n_encoded) {
		cut_end(q);
		q->cut = plan->cut;
		uncode(q, plan->e);
	} else if (q->cut.page && n < q->cut.end) {
		q->cut.end = n;
		if (n == plan->e)
			cut_end(q);
	}
	if (n == 0) { /* nothing is missed */
		q->n_dropped = 0;
		q->severed = false;
	}
	q->n_tokens = n;
	q->ring_released = q->ring_released < plan->e ? q->ring_released : plan->e;
	uint32_t rows = fp16_from(q);
	q->ring_true = rows < n ? rows : n;
	for (uint32_t i = 0; i < q->model->n_layer; i++) {
		q->appended[i] = q->written[i] = n;
		split_reset(q, i);
	}
}

int seq_cut(struct skvq_seq *q, uint32_t n)
{
	struct cut_plan plans[LAYER_GROUPS_MAX] = {0};
	int r = 0;

	for (uint32_t i = 0; i < n_parts(q) && r == 0; i++)
		r = cut_check(part(q, i), n);
	for (uint32_t i = 0; i < n_parts(q) && r == 0; i++)
		r = cut_prepare(part(q, i), n, &plans[i]);
	for (uint32_t i = 0; i < n_parts(q); i++) {
		if (r == 0)
			cut_apply(part(q, i), n, &plans[i]);
		else
			free(plans[i].cut.page);
	}
	return r;
}
