/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second sequence with the same past. Full pages are the same memory for both: shared ones by the
 * pin that is there, counted here because the daemon knows no other way to pin a page it was not
 * asked for; local ones in the staging they were opened in. The open page and the FP16 rows are
 * copied.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

int pin_again(struct arena_map *a, struct skvq_page_ref ref)
{
	if (!a->more)
		a->more = calloc(a->bytes / a->slot_bytes, sizeof *a->more);
	if (!a->more)
		return -SKVQ_ENOMEM;
	a->more[ref.slot]++;
	return 0;
}

bool pin_is_last(struct arena_map *a, struct skvq_page_ref ref)
{
	if (!a->more || !a->more[ref.slot])
		return true;
	a->more[ref.slot]--;
	return false;
}

uint32_t rows_kept(const struct skvq_seq *q)
{
	uint32_t kept = q->n_encoded > KEPT_TOKENS ? q->n_encoded - KEPT_TOKENS : 0;

	return fp16_from(q) > kept ? fp16_from(q) : kept;
}

static void copy_rows(const struct skvq_seq *from, struct skvq_seq *to, uint32_t first)
{
	const struct skvq_model *m = from->model;

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++)
			for (uint32_t t = first; t < from->appended[layer]; t++) {
				memcpy(ring_k(to, layer, h, t), ring_k(from, layer, h, t),
				       m->dim_k * sizeof(uint16_t));
				memcpy(ring_v(to, layer, h, t), ring_v(from, layer, h, t),
				       m->dim_v * sizeof(uint16_t));
			}
}

static void copy_window(const struct skvq_seq *from, struct skvq_seq *to)
{
	const struct skvq_model *m = from->model;
	uint32_t kept = rows_kept(from), first = kept < from->n_encoded ? kept : from->n_encoded;

	to->ring_true = kept;
	to->ring_released = first;
	copy_rows(from, to, first);
	if (m->sinks)
		memcpy(to->sinks, from->sinks, from->sinks_bytes);
	memcpy(to->appended, from->appended, m->n_layer * sizeof *to->appended);
	memcpy(to->written, from->appended, m->n_layer * sizeof *to->written);
}

/* The page that is not full, and what a truncation has kept of one. */
static int copy_open(const struct skvq_seq *from, struct skvq_seq *to)
{
	uint32_t i = from->n_encoded / SKVQ_PAGE_TOKENS;
	const struct skvq_layout *l = layout_of(from->model, from->cut.safe);
	size_t cut_bytes = (size_t)l->base_bytes + l->refine_bytes;

	if (from->cut.page) {
		to->cut = from->cut;
		to->cut.page = malloc(cut_bytes);
		if (!to->cut.page)
			return set_error(from->model->session, SKVQ_ENOMEM, "no memory for a fork");
		memcpy(to->cut.page, from->cut.page, cut_bytes);
	}
	if (from->n_encoded % SKVQ_PAGE_TOKENS == 0)
		return 0;
	to->pages[i] = from->pages[i];
	staging_hold(to->pages[i].staging, i);
	return page_copy(to, i);
}

static int share_pages(const struct skvq_seq *from, struct skvq_seq *to)
{
	for (uint32_t i = from->n_dropped; i < from->n_encoded / SKVQ_PAGE_TOKENS; i++) {
		struct seq_page p = from->pages[i];

		if (p.state == PAGE_SHARED) {
			if (page_is_pinned(from, i) && pin_again(p.arena, p.ref) < 0)
				return set_error(from->model->session, SKVQ_ENOMEM,
						 "no memory to count pins");
			p.arena->refs++;
		} else {
			p.state = PAGE_LOCAL; /* in flight for the other one */
			staging_hold(p.staging, i);
		}
		to->pages[i] = p;
	}
	return copy_open(from, to);
}

static int fork_part(struct skvq_seq *from, struct skvq_seq *to)
{
	to->n_tokens = from->n_tokens;
	to->n_matched = from->n_matched;
	to->n_encoded = from->n_encoded;
	to->n_shed = from->n_shed;
	to->n_shed_looked = from->n_shed_looked;
	to->n_dropped = from->n_dropped;
	to->severed = from->severed;
	to->publish_epoch = from->publish_epoch;
	to->n_published = from->n_published;
	memcpy(to->tokens, from->tokens, from->n_tokens * sizeof *from->tokens);
	copy_window(from, to);
	return share_pages(from, to);
}

int32_t api_seq_fork(skvq_seq *q, skvq_seq **ret)
{
	struct skvq_seq *to;

	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (!ret)
		return set_error(s, SKVQ_EINVAL, "a fork to nowhere");
	session_pump(s, 0);
	for (uint32_t i = 0; i < n_parts(q); i++) {
		publish_take_mail(part(q, i));
		if (part(q, i)->lost)
			return set_error(s, SKVQ_ECORRUPT, "the daemon took pages away: compute again");
	}
	int r = seq_new(m, q->flags, q->max_tokens, q->max_append, &to);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n_parts(q) && r == 0; i++)
		r = fork_part(part(q, i), part(to, i));
	if (r < 0) {
		seq_free(to);
		return r;
	}
	seq_prepare(to);
	seq_join(to);
	*ret = to;
	return 0;
}
