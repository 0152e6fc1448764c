/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Letting go of pages that no layer can see any more (SKVQ_SEQ_DROP_UNSEEN).
 *
 *   |  dropped  | parent | ... seen by some layer ... | FP16 rows |
 *   0           n_dropped                                         n_tokens
 *
 * Dropped pages are a prefix. What the daemon is to have is dropped only after it has it, and the
 * last page that was published stays: the next one is published as its child. When the daemon is
 * lost, the chain cannot be published again from its first page: what was dropped is not here. Then
 * the sequence is severed, and from there on its pages are its own.
 */
#include "internal.h"

/* Pages that wait for a daemon which is lost or refuses them; more of them, and they are given up.
 */
#define HELD_PAGES_MAX 256u

bool seq_drops(const struct skvq_seq *q)
{
	return q->flags & SKVQ_SEQ_DROP_UNSEEN && q->model->sight;
}

bool seq_publishes(const struct skvq_seq *q)
{
	return !(q->flags & SKVQ_SEQ_NO_PUBLISH) && !q->severed;
}

bool pages_suffice(const struct skvq_seq *q, uint32_t position)
{
	return q->n_dropped == 0 ||
	       (uint64_t)position + 1 >= (uint64_t)dropped_tokens(q) + q->model->sight;
}

void seq_sever(struct skvq_seq *q)
{
	if (q->severed)
		return;
	q->severed = true;
	log_event(q->model->session, SKVQ_LOG_INFO,
		  "pages behind token %u are not published: those before it were dropped",
		  q->n_encoded);
}

/* Pages that neither the next token nor one after a short truncation sees. */
static uint32_t unseen(const struct skvq_seq *q)
{
	uint64_t seen = (uint64_t)q->model->sight - 1 + KEPT_TOKENS;
	uint64_t end = q->n_tokens > seen ? q->n_tokens - seen : 0;

	return (uint32_t)(end < q->n_encoded ? end : q->n_encoded) / SKVQ_PAGE_TOKENS;
}

/* Nothing is published behind a page that lacks something. */
static bool chain_ends(const struct skvq_seq *q)
{
	const struct seq_page *p = &q->pages[q->n_published];

	return q->n_published < q->n_encoded / SKVQ_PAGE_TOKENS && p->state == PAGE_LOCAL &&
	       (p->hidden || p->base_only);
}

/* How many of the first n pages are not needed for publishing either. */
static uint32_t unneeded(struct skvq_seq *q, uint32_t n)
{
	const struct skvq_session *s = q->model->session;
	bool here = is_attached(q->model) && q->publish_epoch == s->epoch;

	if (s->daemon == DAEMON_NONE || !seq_publishes(q))
		return n;
	uint32_t free = here && q->n_published ? q->n_published - 1 : 0;
	if (n <= free)
		return n;
	if ((!here && q->n_dropped) || (here && chain_ends(q)) ||
	    ((!here || q->publish_after_ms) && n - free > HELD_PAGES_MAX)) {
		seq_sever(q);
		return n;
	}
	return free;
}

void drop_unseen(struct skvq_seq *q)
{
	if (!seq_drops(q) || q->lost)
		return;
	uint32_t n = unneeded(q, unseen(q));
	if (q->publish_id && n > q->n_published)
		n = q->n_published; /* the daemon is reading those behind it */
	if (n <= q->n_dropped)
		return;
	pages_drop(q, q->n_dropped, n);
	q->n_dropped = n;
}
