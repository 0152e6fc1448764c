/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend(): which rows meet which pages, and who computes it.
 *
 * The unit of work is an item: some KV heads, a block of query rows, a part of the sequence. A page's
 * heads lie side by side, so few rows take all heads of a thread through a page together: memory is
 * read as it lies. The rows
 * of several sequences that begin with the same shared pages form one block, so that those pages
 * are read once for all of them. A block that stands alone (decoding) is cut into parts along the
 * sequence, so that a few heads can still keep many threads busy; each part leaves its softmax
 * state in scratch, and whoever finishes a head's last part merges them:
 *
 *   m = max m_i,  sum = sum_i exp(m_i - m) sum_i,  acc = sum_i exp(m_i - m) acc_i
 *
 * Nobody waits for anybody. The cut depends on the sequence alone and the merge runs in the order
 * of the parts, so the result is the same bit for bit whatever ith and nth are.
 */
#include "internal.h"

#include <math.h>
#include <string.h>

#include "elems.h"

/* Rows under one softmax at a time: as many as keep the four row arrays at 16 KiB each. */
#define ROW_FLOATS 4096u
#define GROUP_MAX 32u     /* sequences in one block */
#define RUN_PAGES 4u      /* handed to the kernel at a time: what it takes in one step */
#define HEADS_MAX 16u     /* KV heads side by side */
#define PART_PAGES_MIN 16u /* below 1,280 tokens a part is not worth its merge */

/* Sequences whose rows share a block, or one sequence with any number of rows. */
struct group {
	uint32_t n;
	const skvq_seq *seqs[GROUP_MAX];
	skvq_attn attns[GROUP_MAX];
	uint32_t rows;   /* of one KV head, all members */
	uint32_t common; /* leading full pages that are the same memory for all members */
	uint32_t pages;  /* of the longest member */
	uint32_t block;  /* most rows at a time */
	uint32_t parts, part_pages;
};

/* A block's rows and softmax state. Large: on the stack of attend_item. */
struct block {
	struct skvq_attn_state st[HEADS_MAX]; /* one a head; its rows are the head's in the arrays */
	float q[ROW_FLOATS], q_stored[ROW_FLOATS], acc[ROW_FLOATS], acc_stored[ROW_FLOATS];
	float max[SKVQ_ATTN_ROWS_MAX], sum[SKVQ_ATTN_ROWS_MAX], lse[SKVQ_ATTN_ROWS_MAX];
	uint32_t pos[SKVQ_ATTN_ROWS_MAX], lo[SKVQ_ATTN_ROWS_MAX];
	float *out[SKVQ_ATTN_ROWS_MAX];
	float *lse_out[SKVQ_ATTN_ROWS_MAX]; /* NULL where the engine wants none */
	float prep[SKVQ_ATTN_PREP_BYTES / sizeof(float)];
	struct {
		uint32_t first, n, lo, last; /* rows, and the tokens they see between them */
	} member[GROUP_MAX];             /* of each head alike */
};

/* Heads head..head + n_heads - 1, rows first..first + n - 1 of each, a part of the sequence. */
struct item {
	uint32_t head, n_heads, first, n, part;
};

static uint32_t group_of(const struct skvq_model *m)
{
	return m->n_q_heads / m->n_kv_heads;
}

static uint32_t n_pages(const skvq_seq *q)
{
	return (q->n_encoded + SKVQ_PAGE_TOKENS - 1) / SKVQ_PAGE_TOKENS;
}

/* --- scratch of split decoding ---------------------------------------------------------------- */

/* One row's state of one part: max, sum, acc, acc_stored. */
static size_t row_floats(const struct skvq_model *m)
{
	return 2 + 2 * (size_t)m->dim_v;
}

static size_t layer_floats(const struct skvq_model *m)
{
	return (size_t)m->n_kv_heads * SPLIT_PARTS_MAX * SKVQ_ATTN_ROWS_MAX * row_floats(m);
}

size_t split_bytes(const struct skvq_model *m)
{
	return m->n_layer * layer_floats(m) * sizeof(float);
}

void split_reset(const skvq_seq *q, uint32_t layer)
{
	for (uint32_t h = 0; h < q->model->n_kv_heads; h++)
		atomic_store_explicit(&q->split_done[layer * q->model->n_kv_heads + h], 0,
		                      memory_order_relaxed);
}

/* Packed by the rows in use, so that only what is used ever becomes memory. */
static float *split_at(const skvq_seq *q, uint32_t layer, uint32_t head, uint32_t part,
                       uint32_t row, const struct group *g)
{
	const struct skvq_model *m = q->model;
	size_t at = ((size_t)head * g->parts + part) * g->rows + row;

	return q->split + layer * layer_floats(m) + at * row_floats(m);
}

static void part_save(const struct group *g, const struct skvq_attn_state *st,
                      const struct item *it, uint32_t head)
{
	const skvq_seq *q = g->seqs[0];
	uint32_t dim = q->model->dim_v;

	for (uint32_t r = 0; r < it->n; r++) {
		float *to = split_at(q, g->attns[0].layer, head, it->part, r, g);

		to[0] = st->max[r];
		to[1] = st->sum[r];
		memcpy(to + 2, st->acc + (size_t)r * dim, dim * sizeof *to);
		memcpy(to + 2 + dim, st->acc_stored + (size_t)r * dim, dim * sizeof *to);
	}
}

static void parts_merge(const struct group *g, struct skvq_attn_state *st, const struct item *it,
                        uint32_t head)
{
	const skvq_seq *q = g->seqs[0];
	uint32_t dim = q->model->dim_v, layer = g->attns[0].layer;

	for (uint32_t r = 0; r < it->n; r++) {
		float *acc = st->acc + (size_t)r * dim, *acc_stored = st->acc_stored + (size_t)r * dim;
		float max = -INFINITY, sum = 0;

		memset(acc, 0, dim * sizeof *acc);
		memset(acc_stored, 0, dim * sizeof *acc_stored);
		for (uint32_t p = 0; p < g->parts; p++)
			max = fmaxf(max, split_at(q, layer, head, p, r, g)[0]);
		for (uint32_t p = 0; p < g->parts; p++) {
			const float *from = split_at(q, layer, head, p, r, g);

			if (from[1] == 0) /* saw nothing; a max of -infinity would give NaN below */
				continue;
			float w = expf(from[0] - max);
			sum += w * from[1];
			for (uint32_t i = 0; i < dim; i++) {
				acc[i] += w * from[2 + i];
				acc_stored[i] += w * from[2 + dim + i];
			}
		}
		st->max[r] = max;
		st->sum[r] = sum;
	}
}

/* --- one item --------------------------------------------------------------------------------- */

/* Row r of head h of the item: which member, token of its call, and query head it is. */
static void load_rows(const struct group *g, const struct item *it, uint32_t h, struct block *b)
{
	const struct skvq_model *m = g->seqs[0]->model;
	const struct skvq_kernels *kn = m->session->kernels;
	const struct skvq_codec *kc = &m->layout.layers[g->attns[0].layer].k;
	const struct skvq_transform *tk = transform_of(m, 0, g->attns[0].layer, it->head + h);
	uint32_t heads = group_of(m), skip = it->first, at = h * it->n, end = at + it->n;
	uint32_t base = at;

	for (uint32_t i = 0; i < g->n; i++) {
		const skvq_attn *a = &g->attns[i];
		uint32_t rows = a->n_rows * heads;

		b->member[i].first = at - base;
		b->member[i].lo = UINT32_MAX;
		b->member[i].last = 0;
		for (uint32_t r = skip; r < rows && at < end; r++, at++) {
			uint32_t token = r / heads, q_head = (it->head + h) * heads + r % heads;
			float *x = b->q + (size_t)at * m->dim_k;

			load_row(kn,
			         (const uint8_t *)a->q + (int64_t)token * a->q_row_stride +
			             (int64_t)q_head * a->q_head_stride,
			         a->q_type, x, m->dim_k);
			to_canonical(m->pairs_half_dim, x);
			for (uint32_t d = 0; d < m->dim_k; d++)
				x[d] *= a->scale;
			memcpy(b->q_stored + (size_t)at * m->dim_k, x, m->dim_k * sizeof *x);
			kn->query_to_stored(kc, tk, b->q_stored + (size_t)at * m->dim_k);
			uint32_t pos = a->position + token;
			uint32_t lo = a->sliding_limit && pos + 1 > a->sliding_limit
			                  ? pos + 1 - a->sliding_limit
			                  : 0;
			b->pos[at] = pos;
			b->lo[at] = lo;
			if (lo < b->member[i].lo)
				b->member[i].lo = lo;
			b->member[i].last = pos;
			b->out[at] =
			    (float *)(void *)((uint8_t *)a->out + (int64_t)token * a->out_row_stride +
			                      (int64_t)q_head * a->out_head_stride);
			b->lse_out[at] = a->lse ? a->lse + (size_t)token * m->n_q_heads + q_head : NULL;
		}
		skip = skip > rows ? skip - rows : 0;
		b->member[i].n = at - base - b->member[i].first;
	}
	b->st[h] = (struct skvq_attn_state){
	    .n_rows = it->n,
	    .dim_k = m->dim_k,
	    .dim_v = m->dim_v,
	    .softcap = g->attns[0].softcap,
	    .q = b->q + (size_t)base * m->dim_k,
	    .q_stored = b->q_stored + (size_t)base * m->dim_k,
	    .pos = b->pos + base,
	    .lo = b->lo + base,
	    .max = b->max + base,
	    .sum = b->sum + base,
	    .acc = b->acc + (size_t)base * m->dim_v,
	    .acc_stored = b->acc_stored + (size_t)base * m->dim_v,
	    .prep = b->prep + h * (SKVQ_ATTN_PREP_BYTES_OF(it->n, m->dim_k) / sizeof(float))};
}

/* The member's rows as a state of their own, over the same arrays. */
static struct skvq_attn_state member_state(const struct group *g, const struct block *b, uint32_t h,
                                           uint32_t i)
{
	struct skvq_attn_state st = b->st[h];
	uint32_t first = b->member[i].first;

	if (g->n == 1)
		return st;
	st.prep = NULL; /* holds what belongs to the rows of all members */
	st.prep_key = 0;
	st.n_rows = b->member[i].n;
	st.q += (size_t)first * st.dim_k;
	st.q_stored += (size_t)first * st.dim_k;
	st.pos += first;
	st.lo += first;
	st.max += first;
	st.sum += first;
	st.acc += (size_t)first * st.dim_v;
	st.acc_stored += (size_t)first * st.dim_v;
	return st;
}

const uint8_t *page_refine(const skvq_seq *q, uint32_t layer, uint32_t head, uint32_t i,
                           uint32_t position)
{
	const struct skvq_model *m = q->model;

	if (!m->layout.layers[layer].k.nested || q->pages[i].base_only ||
	    page_is_old(q, i, position))
		return NULL;
	return q->pages[i].data + skvq_layout_k_refine(&m->layout, layer, head);
}

/* What an item's rows see of its heads: tokens lo..last, the first row being at `position`. */
struct seen {
	uint32_t layer, head, n_heads, lo, last, position;
};

/* One head's planes of n pages of one layout from `from` on; returns what follows them. */
static struct skvq_page_planes *planes_of(const skvq_seq *q, const struct seen *s, uint32_t head,
                                          uint32_t from, uint32_t n, struct skvq_page_planes *ret)
{
	const struct skvq_layout *l = page_layout(q, from);
	size_t k_codes = skvq_layout_k_codes(l, s->layer, head);
	size_t k_params = skvq_layout_k_params(l, s->layer, head);
	size_t v_codes = skvq_layout_v_codes(l, s->layer, head);
	size_t v_params = skvq_layout_v_params(l, s->layer, head);

	for (uint32_t i = from; i < from + n; i++) {
		const uint8_t *page = q->pages[i].data;

		*ret++ = (struct skvq_page_planes){page + k_codes, page + k_params, page + v_codes,
		                                   page + v_params,
		                                   page_refine(q, s->layer, head, i, s->position)};
	}
	return ret;
}

/* Pages from..to-1, of one layout. What each call of the kernel asks the memory for is what the next
 * one reads. */
static void attend_pages(struct skvq_attn_state *st, const skvq_seq *q, const struct seen *s,
                         uint32_t from, uint32_t to)
{
	const struct skvq_model *m = q->model;
	const struct skvq_layer_layout *ll = &page_layout(q, from)->layers[s->layer];

	while (from < to) {
		struct skvq_page_planes planes[(HEADS_MAX + 1) * RUN_PAGES], *end = planes;
		uint32_t n = to - from < RUN_PAGES ? to - from : RUN_PAGES, left = to - from - n;
		uint32_t at = from * SKVQ_PAGE_TOKENS, tokens = q->n_encoded - at;

		for (uint32_t h = 0; h < s->n_heads; h++)
			end = planes_of(q, s, s->head + h, from, n, end);
		if (left)
			end = planes_of(q, s, s->head, from + n, left < n ? left : n, end);
		if (tokens > n * SKVQ_PAGE_TOKENS)
			tokens = n * SKVQ_PAGE_TOKENS;
		for (uint32_t h = 0; h < s->n_heads; h++) {
			const struct skvq_page_planes *own = planes + h * n;
			uint32_t ahead = (uint32_t)(end - own) - n;

			m->session->kernels->attn_pages(&st[h], &ll->k, &ll->v, own, n,
			                                ahead < n ? ahead : n,
			                                m->sinks > at ? m->sinks - at : 0, tokens, at);
		}
		from += n;
	}
}

/* Pages from..to-1 as far as they are seen. */
static void attend_seen(struct skvq_attn_state *st, const skvq_seq *q, const struct seen *s,
                        uint32_t from, uint32_t to)
{
	uint32_t first = s->lo / SKVQ_PAGE_TOKENS, end = s->last / SKVQ_PAGE_TOKENS + 1;

	from = from > first ? from : first;
	to = to < end ? to : end;
	if (!q->model->faithful) {
		while (from < to) {
			uint32_t alike = from + 1;

			while (alike < to && q->pages[alike].safe == q->pages[from].safe)
				alike++;
			attend_pages(st, q, s, from, alike);
			from = alike;
		}
		return;
	}
	for (uint32_t h = 0; h < s->n_heads; h++)
		faithful_attend(&st[h], q, s->layer, s->head + h, from, to);
}

static void attend_sinks(struct skvq_attn_state *st, const skvq_seq *q, uint32_t layer,
                         uint32_t head, uint32_t lo, uint32_t last)
{
	const struct skvq_model *m = q->model;
	uint32_t n = m->sinks < last + 1 ? m->sinks : last + 1;

	if (n && lo < n)
		m->session->kernels->attn_rows(st, sink_k(q, layer, head, 0), m->dim_k,
		                               sink_v(q, layer, head, 0), m->dim_v, n, 0);
}

/* The window in at most two pieces: up to the ring's end, and from its start. */
static void attend_window(struct skvq_attn_state *st, const skvq_seq *q, uint32_t layer,
                          uint32_t head, uint32_t last)
{
	const struct skvq_model *m = q->model;
	uint32_t from = q->n_encoded > m->sinks ? q->n_encoded : m->sinks;

	while (from <= last) {
		uint32_t n = last + 1 - from;
		uint32_t to_end = q->ring_tokens - from % q->ring_tokens;

		if (n > to_end)
			n = to_end;
		m->session->kernels->attn_rows(st, ring_k(q, layer, head, from), m->dim_k,
		                               ring_v(q, layer, head, from), m->dim_v, n, from);
		from += n;
	}
}

static void attend_part(const struct group *g, struct block *b, const struct item *it)
{
	uint32_t layer = g->attns[0].layer;
	uint32_t from = it->part * g->part_pages, to = from + g->part_pages;
	struct seen all = {layer, it->head, it->n_heads, UINT32_MAX, 0, UINT32_MAX};

	if (to > g->pages || it->part + 1 == g->parts)
		to = g->pages;
	for (uint32_t i = 0; i < g->n; i++) {
		uint32_t position = g->attns[i].position;

		all.position = position < all.position ? position : all.position;
		all.lo = b->member[i].lo < all.lo ? b->member[i].lo : all.lo;
		all.last = b->member[i].last > all.last ? b->member[i].last : all.last;
	}
	attend_seen(b->st, g->seqs[0], &all, from, to < g->common ? to : g->common);
	for (uint32_t k = 0; k < g->n; k++) {
		const skvq_seq *q = g->seqs[k];
		struct skvq_attn_state st[HEADS_MAX];
		uint32_t end = n_pages(q) < to ? n_pages(q) : to;
		struct seen own = {layer,           it->head, it->n_heads, b->member[k].lo, b->member[k].last,
		                   g->attns[k].position};

		if (!b->member[k].n)
			continue;
		for (uint32_t h = 0; h < it->n_heads; h++)
			st[h] = member_state(g, b, h, k);
		attend_seen(st, q, &own, from > g->common ? from : g->common, end);
		for (uint32_t h = 0; h < it->n_heads; h++) {
			if (it->part == 0)
				attend_sinks(&st[h], q, layer, it->head + h, own.lo, own.last);
			if (it->part + 1 == g->parts)
				attend_window(&st[h], q, layer, it->head + h, own.last);
		}
	}
}

/* The item's h-th head: saves its part, or ends it if nobody else has one to save. */
static void finish_head(const struct group *g, struct block *b, const struct item *it, uint32_t h)
{
	const struct skvq_model *m = g->seqs[0]->model;
	uint32_t layer = g->attns[0].layer, head = it->head + h, base = h * it->n;

	if (g->parts > 1) {
		atomic_uint *done = &g->seqs[0]->split_done[layer * m->n_kv_heads + head];

		part_save(g, &b->st[h], it, head);
		/* acq_rel: who counts the last part must see what all others have saved. */
		if (atomic_fetch_add_explicit(done, 1, memory_order_acq_rel) + 1 < g->parts)
			return;
		atomic_store_explicit(done, 0, memory_order_relaxed);
		parts_merge(g, &b->st[h], it, head);
	}
	m->session->kernels->attn_finish(&b->st[h], &m->layout.layers[layer].v,
	                                 transform_of(m, 1, layer, head), b->out + base, b->lse);
	for (uint32_t r = 0; r < it->n; r++)
		if (b->lse_out[base + r])
			*b->lse_out[base + r] = b->lse[r];
}

static void attend_item(const struct group *g, const struct item *it)
{
	const struct skvq_kernels *kn = g->seqs[0]->model->session->kernels;
	struct block b;

	for (uint32_t h = 0; h < it->n_heads; h++) {
		load_rows(g, it, h, &b);
		kn->attn_begin(&b.st[h]);
	}
	attend_part(g, &b, it);
	for (uint32_t h = 0; h < it->n_heads; h++)
		finish_head(g, &b, it, h);
}

/* How many heads go together: as many as a thread has, if the block has room for their rows. */
static uint32_t heads_together(const struct group *g)
{
	const struct skvq_model *m = g->seqs[0]->model;
	uint32_t nth = g->attns[0].nth, n = (m->n_kv_heads + nth - 1) / nth;
	size_t prep = SKVQ_ATTN_PREP_BYTES_OF(g->rows, m->dim_k);

	if (g->rows > g->block)
		return 1;
	n = n < HEADS_MAX ? n : HEADS_MAX;
	n = n < g->block / g->rows ? n : g->block / g->rows;
	return n < SKVQ_ATTN_PREP_BYTES / prep ? n : (uint32_t)(SKVQ_ATTN_PREP_BYTES / prep);
}

/* --- the call --------------------------------------------------------------------------------- */

/* Of a layer that is there, by its number in q. */
static int check_attn(const skvq_seq *q, const skvq_attn *a)
{
	const struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	const uint32_t name = layer_name(m, a->layer);
	const char *fault;

	if (q->lost)
		return set_error(s, SKVQ_ECORRUPT, "the daemon took pages away: compute again");
	if (!a->nth || a->ith >= a->nth)
		return set_error(s, SKVQ_EINVAL, "attend: ith %u of nth %u", a->ith, a->nth);
	if ((fault = tensor_fault(a->q, a->q_type, a->q_row_stride, a->q_head_stride)))
		return set_error(s, a->q ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "attend layer %u: q %s",
		                 name, fault);
	if ((fault = tensor_fault(a->out, SKVQ_F32, a->out_row_stride, a->out_head_stride)))
		return set_error(s, a->out ? SKVQ_EMISALIGNED : SKVQ_EINVAL, "attend layer %u: out %s",
		                 name, fault);
	if (!isfinite(a->scale) || !(a->softcap >= 0) || !isfinite(a->softcap))
		return set_error(s, SKVQ_EINVAL, "attend layer %u: scale %g, softcap %g", name,
		                 (double)a->scale, (double)a->softcap);
	if (a->n_rows > UINT32_MAX / 2 / m->n_q_heads)
		return set_error(s, SKVQ_ERANGE, "attend layer %u: %u rows are too many", name,
		                 a->n_rows);
	uint32_t have = q->appended[a->layer];
	if (a->position > have || a->n_rows > have - a->position)
		return set_error(s, SKVQ_ERANGE, "attend layer %u: rows %u..%u, %u tokens appended",
		                 name, a->position, a->position + a->n_rows, have);
	if (seq_drops(q) && (!a->sliding_limit || a->sliding_limit > m->sight))
		return set_error(s, SKVQ_EINVAL,
		                 "attend layer %u: sliding_limit %u, the largest layer_window is %u",
		                 name, a->sliding_limit, m->sight);
	if (a->n_rows && q->n_dropped &&
	    (uint64_t)a->position + 1 < (uint64_t)dropped_tokens(q) + a->sliding_limit)
		return set_error(s, SKVQ_ERANGE, "attend layer %u: token %u sees some before %u, dropped",
		                 name, a->position, dropped_tokens(q));
	return 0;
}

static uint32_t common_pages(const skvq_seq *a, const skvq_seq *b, uint32_t most)
{
	uint32_t full = a->n_encoded < b->n_encoded ? a->n_encoded : b->n_encoded;
	uint32_t n = 0;

	full /= SKVQ_PAGE_TOKENS;
	while (n < full && n < most && a->pages[n].data == b->pages[n].data)
		n++;
	return n;
}

/* Whether the attn's rows may join the group: the same pages first, the same arithmetic, and room.
 * A sequence that is in the group already may not: its scratch and its rows would meet. */
static bool joins(const struct group *g, const skvq_seq *q, const skvq_attn *a)
{
	const skvq_attn *first = &g->attns[0];

	if (g->n == GROUP_MAX || q->model != g->seqs[0]->model || !a->n_rows || !first->n_rows ||
	    g->rows + a->n_rows * group_of(q->model) > g->block || a->layer != first->layer ||
	    a->softcap != first->softcap || a->ith != first->ith || a->nth != first->nth)
		return false;
	for (uint32_t i = 0; i < g->n; i++)
		if (g->seqs[i] == q)
			return false;
	uint32_t here = q->n_dropped > g->seqs[0]->n_dropped ? q->n_dropped : g->seqs[0]->n_dropped;
	return common_pages(g->seqs[0], q, here + 1) > here;
}

/* Takes the next sequences that belong together. Returns how many, or what is wrong with one. */
static int take_group(skvq_seq *const *seqs, const uint8_t **at, uint32_t left, bool may_split,
                      struct group *g)
{
	const struct skvq_model *m = seqs[0]->model;
	uint32_t dim = m->dim_k > m->dim_v ? m->dim_k : m->dim_v;

	g->n = g->rows = g->pages = 0;
	g->common = UINT32_MAX;
	g->block = ROW_FLOATS / dim < SKVQ_ATTN_ROWS_MAX ? ROW_FLOATS / dim : SKVQ_ATTN_ROWS_MAX;
	while (g->n < left && g->n < GROUP_MAX) {
		skvq_seq *q = seqs[g->n];
		skvq_attn *a = &g->attns[g->n];

		if (!q)
			return -SKVQ_EINVAL;
		if (copy_in(a, sizeof *a, *at) < 0 || q->model != m)
			return set_error(m->session, SKVQ_EINVAL, "attend: struct_size, or two models");
		if (a->layer >= m->n_layer)
			return set_error(m->session, SKVQ_EGEOMETRY, "attend to layer %u of %u", a->layer,
			                 m->n_layer);
		q = part_of_layer(q, &a->layer);
		int r = check_attn(q, a);
		if (r < 0)
			return r;
		if (g->n > 0 && !joins(g, q, a))
			break;
		g->seqs[g->n++] = q;
		g->rows += a->n_rows * group_of(m);
		g->common = common_pages(g->seqs[0], q, g->common);
		g->pages = n_pages(q) > g->pages ? n_pages(q) : g->pages;
		*at += ((const skvq_attn *)(const void *)*at)->struct_size;
	}
	g->parts = 1;
	g->part_pages = g->pages;
	if (may_split && g->rows <= g->block && g->pages >= 2 * PART_PAGES_MIN) {
		g->part_pages = (g->pages + SPLIT_PARTS_MAX - 1) / SPLIT_PARTS_MAX;
		if (g->part_pages < PART_PAGES_MIN)
			g->part_pages = PART_PAGES_MIN;
		g->parts = (g->pages + g->part_pages - 1) / g->part_pages;
	}
	return (int)g->n;
}

/* A sequence has one scratch: named twice in a call, it cannot serve both. */
static bool each_once(skvq_seq *const *seqs, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++)
		for (uint32_t j = 0; j < i; j++)
			if (seqs[i] == seqs[j])
				return false;
	return true;
}

int32_t api_attend(skvq_seq *const *seqs, const skvq_attn *attns, uint32_t n_seqs)
{
	const uint8_t *at = (const uint8_t *)attns;
	uint32_t counter = 0;

	if (!seqs || !attns)
		return -SKVQ_EINVAL;
	bool may_split = each_once(seqs, n_seqs);
	for (uint32_t done = 0; done < n_seqs;) {
		struct group g;

		if (!seqs[done] || check_fork(seqs[done]->model->session) < 0)
			return seqs[done] ? -SKVQ_EFORKED : -SKVQ_EINVAL;
		if (seqs[done]->model != seqs[0]->model)
			return set_error(seqs[0]->model->session, SKVQ_EINVAL, "attend: two models");
		int n = take_group(seqs + done, &at, n_seqs - done, may_split, &g);
		if (n < 0)
			return n;
		done += (uint32_t)n;
		if (g.parts > 1 && g.attns[0].nth == 1) /* nobody else counts: forget what was left */
			split_reset(g.seqs[0], g.attns[0].layer);
		if (!g.rows)
			continue;
		uint32_t heads = g.seqs[0]->model->n_kv_heads, together = heads_together(&g);
		for (uint32_t first = 0; first < g.rows; first += g.block) {
			/* Part by part a step further round: a last chunk of few heads is everybody's. */
			for (uint32_t part = 0; part < g.parts; part++, counter++) {
				for (uint32_t h = 0; h < heads; h += together) {
					if (counter++ % g.attns[0].nth != g.attns[0].ith)
						continue;
					struct item it = {
					    .head = h,
					    .n_heads = heads - h < together ? heads - h : together,
					    .first = first,
					    .n = g.rows - first < g.block ? g.rows - first : g.block,
					    .part = part};
					attend_item(&g, &it);
				}
			}
		}
	}
	return 0;
}
