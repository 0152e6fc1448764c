/* SPDX-License-Identifier: Apache-2.0 */
/* Freezing: a sequence into the caller's bytes. It changes nothing and asks no daemon. */
#include "snapshot.h"

#include <string.h>

static uint32_t n_pages(const struct skvq_seq *q)
{
	return (q->n_encoded + SKVQ_PAGE_TOKENS - 1) / SKVQ_PAGE_TOKENS;
}

static void put(uint8_t **at, const void *data, size_t bytes)
{
	memcpy(*at, data, bytes);
	*at += bytes;
}

/* Adds to *n, and to *to if there is a place for it. */
static void id_put(uint8_t *to, size_t *n, const void *data, size_t bytes)
{
	if (to && bytes)
		memcpy(to + *n, data, bytes);
	*n += bytes;
}

/* A field that may be absent: its length first, of an absent one all ones. */
static void id_field(uint8_t *to, size_t *n, const void *data, size_t bytes)
{
	uint32_t length = data ? (uint32_t)bytes : UINT32_MAX;

	id_put(to, n, &length, sizeof length);
	if (data)
		id_put(to, n, data, bytes);
}

static void id_text(uint8_t *to, size_t *n, const char *text)
{
	id_field(to, n, text, text ? strlen(text) : 0);
}

size_t snapshot_identity(const struct skvq_model *m, uint8_t *to)
{
	const struct skvq_client_identity *id = &m->id;
	uint32_t numbers[] = {SKVQ_PAGE_VERSION, id->n_layer,    id->n_q_heads, id->n_kv_heads,
			      id->head_dim_k,    id->head_dim_v, id->rope_kind, id->rope_dim,
			      id->window,        id->sinks};
	size_t n = 0, heads = (size_t)id->n_layer * id->n_kv_heads;

	id_put(to, &n, numbers, sizeof numbers);
	id_put(to, &n, &id->rope_theta, sizeof id->rope_theta);
	id_put(to, &n, &id->clip, sizeof id->clip);
	id_field(to, &n, id->weights_digest, 32);
	id_field(to, &n, id->tokenizer_digest, 32);
	id_field(to, &n, id->lora_digest, 32);
	id_field(to, &n, id->calibration_digest, 32);
	id_text(to, &n, id->engine_numerics);
	id_text(to, &n, id->rope_scaling);
	id_text(to, &n, id->profile);
	id_field(to, &n, id->bit_table, (size_t)2 * id->n_layer);
	id_field(to, &n, id->reorder, heads * (id->head_dim_k + id->head_dim_v) * sizeof(uint16_t));
	id_field(to, &n, id->layer_window, id->n_layer * sizeof(uint32_t));
	return n;
}

size_t snapshot_page_bytes(const struct skvq_layout *l, bool base_only, bool sidecar)
{
	return (size_t)l->base_bytes + (base_only ? 0 : l->refine_bytes) +
	       (sidecar ? l->sidecar_bytes : 0);
}

static struct snapshot_page entry_of(const struct skvq_seq *q, uint32_t i)
{
	const struct seq_page *p = &q->pages[i];
	struct snapshot_page e = {
	    .flags = (p->safe ? SNAPSHOT_PAGE_SAFE : 0) |
		     (p->base_only ? SNAPSHOT_PAGE_BASE_ONLY : 0) |
		     (p->hidden ? SNAPSHOT_PAGE_HIDDEN : 0),
	    .bytes = (uint32_t)snapshot_page_bytes(page_layout(q, i), p->base_only, i == 0)};

	if (p->state == PAGE_SHARED) {
		e.flags |= SNAPSHOT_PAGE_SHARED;
		memcpy(e.digest, p->data + offsetof(skvq_page_header, digest), sizeof e.digest);
	}
	return e;
}

/* Whether the copy of a shared page is whole: a daemon that lost this client, or does wrong, may have
 * taken it away before or while it was read. The link is not asked: it can break unseen. */
static bool is_sound(const struct skvq_seq *q, uint32_t i, const uint8_t *copy)
{
	const struct skvq_layout *l = page_layout(q, i);
	const struct seq_page *p = &q->pages[i];
	size_t refine = p->base_only ? 0 : l->refine_bytes, sidecar = i ? 0 : l->sidecar_bytes;
	skvq_page_header h;
	bool safe;

	memcpy(&h, copy, sizeof h);
	return page_holds(q->model, copy, i * SKVQ_PAGE_TOKENS,
			  q->tokens + (size_t)i * SKVQ_PAGE_TOKENS, &safe) &&
	       safe == p->safe && crc32c(copy + sizeof h, l->base_bytes - sizeof h) == h.crc_base &&
	       (!refine || crc32c(copy + l->base_bytes, refine) == h.crc_refine) &&
	       (!sidecar || crc32c(copy + l->base_bytes + refine, sidecar) == h.crc_sidecar);
}

/* Without what a daemon has written into its header. False: see is_sound. */
static bool put_page(const struct skvq_seq *q, uint32_t i, uint8_t **at)
{
	const struct skvq_layout *l = page_layout(q, i);
	const struct seq_page *p = &q->pages[i];
	size_t table_bytes = q->model->n_layer * sizeof(skvq_page_layer);
	skvq_page_layer table[SKVQ_LAYERS_MAX];
	uint8_t *page = *at;

	put(at, p->data, l->base_bytes);
	if (!p->base_only)
		put(at, p->data + l->base_bytes, l->refine_bytes);
	if (i == 0)
		put(at, p->data + l->base_bytes + l->refine_bytes, l->sidecar_bytes);
	if (p->state == PAGE_SHARED && !is_sound(q, i, page))
		return false;
	memcpy(table, page + l->layers_offset, table_bytes);
	skvq_page_init(l, i * SKVQ_PAGE_TOKENS, page);
	memcpy(page + l->layers_offset, table, table_bytes);
	return true;
}

static void put_rows(const struct skvq_seq *q, uint32_t from, uint8_t **at)
{
	const struct skvq_model *m = q->model;

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			for (uint32_t t = from; t < q->n_tokens; t++)
				put(at, ring_k(q, layer, h, t), m->dim_k * sizeof(uint16_t));
			for (uint32_t t = from; t < q->n_tokens; t++)
				put(at, ring_v(q, layer, h, t), m->dim_v * sizeof(uint16_t));
		}
}

static struct snapshot_header header_of(const struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;
	struct snapshot_header h = {
	    .magic = SNAPSHOT_MAGIC,
	    .version = q->flags & SKVQ_SEQ_DROP_UNSEEN ? SNAPSHOT_VERSION_DROPS : SNAPSHOT_VERSION,
	    .header_bytes = sizeof h,
	    .flags = SNAPSHOT_WHOLE,
	    .seq_flags = q->flags,
	    .max_tokens = q->max_tokens,
	    .max_append = q->max_append,
	    .n_tokens = q->n_tokens,
	    .n_encoded = q->n_encoded,
	    .n_matched = q->n_matched,
	    .rows_true = rows_kept(q),
	    .n_dropped = q->n_dropped,
	    .identity_bytes = (uint32_t)snapshot_identity(m, NULL),
	};

	h.rows_from = h.rows_true < q->n_encoded ? h.rows_true : q->n_encoded;
	h.total_bytes = sizeof h + h.identity_bytes + q->n_tokens * sizeof(int32_t) +
			q->sinks_bytes + (uint64_t)(h.n_tokens - h.rows_from) * m->token_bytes_fp16;
	for (uint32_t i = q->n_dropped; i < n_pages(q); i++)
		h.total_bytes += sizeof(struct snapshot_page) + entry_of(q, i).bytes;
	if (q->cut.page) {
		h.cut_end = q->cut.end;
		h.cut_flags = (q->cut.safe ? SNAPSHOT_PAGE_SAFE : 0) |
			      (q->cut.base_only ? SNAPSHOT_PAGE_BASE_ONLY : 0);
		h.total_bytes +=
		    snapshot_page_bytes(layout_of(m, q->cut.safe), q->cut.base_only, false);
	}
	return h;
}

/* -SKVQ_ECORRUPT: a page is not there any more, and the sequence is lost. */
static int write_body(struct skvq_seq *q, const struct snapshot_header *h, uint8_t *at)
{
	const struct skvq_model *m = q->model;

	at += snapshot_identity(m, at);
	put(&at, q->tokens, q->n_tokens * sizeof *q->tokens);
	for (uint32_t i = q->n_dropped; i < n_pages(q); i++) {
		struct snapshot_page e = entry_of(q, i);

		put(&at, &e, sizeof e);
	}
	if (q->sinks)
		put(&at, q->sinks, q->sinks_bytes);
	put_rows(q, h->rows_from, &at);
	for (uint32_t i = q->n_dropped; i < n_pages(q); i++) {
		if (put_page(q, i, &at))
			continue;
		q->lost = true;
		return set_error(m->session, SKVQ_ECORRUPT,
				 "page %u was taken away while a sequence read it; the sequence is lost",
				 i);
	}
	if (q->cut.page)
		put(&at, q->cut.page,
		    snapshot_page_bytes(layout_of(m, q->cut.safe), q->cut.base_only, false));
	return 0;
}

static int check_quiet(struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;

	if (q->lost)
		return set_error(m->session, SKVQ_ECORRUPT,
				 "the daemon took pages away: compute again");
	for (uint32_t i = 0; i < m->n_layer; i++)
		if (q->appended[i] != q->n_tokens)
			return set_error(
			    m->session, SKVQ_ESTATE,
			    "layer %u has %u tokens, %u are committed: commit or truncate "
			    "before a snapshot",
			    layer_name(m, i), q->appended[i], q->n_tokens);
	return 0;
}

static int freeze(struct skvq_seq *q, uint8_t *to)
{
	struct snapshot_header h = header_of(q);

	memset(to, 0, sizeof h); /* none, until it is whole */
	int r = write_body(q, &h, to + sizeof h);
	if (r < 0)
		return r;
	h.crc_body = crc32c(to + sizeof h, h.total_bytes - sizeof h);
	h.crc_header = crc32c((const uint8_t *)&h, sizeof h);
	memcpy(to, &h, sizeof h);
	return 0;
}

static struct snapshot_groups groups_of(struct skvq_seq *q)
{
	struct snapshot_groups g = {.magic = SNAPSHOT_GROUPS_MAGIC,
				    .version = SNAPSHOT_GROUPS_VERSION,
				    .header_bytes = sizeof g,
				    .total_bytes = sizeof g,
				    .n_groups = n_parts(q)};

	for (uint32_t i = 0; i < n_parts(q); i++) {
		g.bytes[i] = header_of(part(q, i)).total_bytes;
		g.total_bytes += g.bytes[i];
	}
	g.crc_header = crc32c((const uint8_t *)&g, sizeof g);
	return g;
}

int32_t api_seq_snapshot(skvq_seq *q, void *buf, uint64_t buf_bytes, uint64_t *ret_bytes)
{
	struct snapshot_groups g = {0};
	uint8_t *to = buf;

	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_session *s = q->model->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (!ret_bytes || (!buf && buf_bytes))
		return set_error(s, SKVQ_EINVAL, "a snapshot without buf or ret_bytes");
	for (uint32_t i = 0; i < n_parts(q); i++) {
		int r = check_quiet(part(q, i));

		if (r < 0)
			return r;
	}
	if (q->groups)
		g = groups_of(q);
	*ret_bytes = q->groups ? g.total_bytes : header_of(q).total_bytes;
	if (buf_bytes < *ret_bytes)
		return 0;
	if (q->groups) {
		memset(to, 0, sizeof g); /* none, until it is whole */
		to += sizeof g;
	}
	for (uint32_t i = 0; i < n_parts(q); i++) {
		int r = freeze(part(q, i), to);

		if (r < 0)
			return r;
		to += g.bytes[i];
	}
	if (q->groups)
		memcpy(buf, &g, sizeof g);
	return 0;
}
