/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handing full pages to the daemon, and taking the shared ones in their place.
 *
 * One run of consecutive pages per sequence is in flight at a time. Its pages stay readable in
 * staging until the answer is applied, so neither a slow daemon nor a dead one is ever noticed by
 * attention. After a reattachment the chain is published again from its first page: what was in the
 * old daemon's arena is copied back into staging first.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define REFUSED_WAIT_MS 1000
#define STAGING_TIMEOUT_MS 200 /* a commit may ask for it after a reattachment: wait little */

/* As the engine once wrote it: without the digests and CRCs that the daemon filled in. */
int page_repatriate(struct skvq_seq *q, uint32_t i)
{
	const struct skvq_layout *l = page_layout(q, i);
	struct seq_page *p = &q->pages[i];
	size_t bytes = skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS);
	skvq_page_layer table[SKVQ_LAYERS_MAX];
	skvq_page_header h;
	bool safe;

	int r = staging_take(q, i, l);
	if (r < 0)
		return r;
	uint8_t *to = staging_page(q, i);
	memcpy(to, p->data, bytes);
	/* A link that broke should have kept it in place; its header, and the tokens that come last
	 * to a page's fill, tell whether it did. Zeros and other pages are never attended again. */
	if (!page_holds(q->model, to, i * SKVQ_PAGE_TOKENS, q->tokens + (size_t)i * SKVQ_PAGE_TOKENS,
	                &safe) ||
	    safe != p->safe) {
		q->lost = true;
		log_event(q->model->session, SKVQ_LOG_DAEMON_MISBEHAVING,
		          "page %u was taken away while a sequence read it; the sequence is lost", i);
		return -SKVQ_ECORRUPT;
	}
	/* Whether a refinement that was let go of is still there, its checksum tells. */
	memcpy(&h, to, sizeof h);
	if (p->base_only && crc32c(to + l->base_bytes, l->refine_bytes) == h.crc_refine)
		p->base_only = false;
	/* All but the errors measured when it was encoded is what the header has anyway. */
	memcpy(table, to + l->layers_offset, q->model->n_layer * sizeof *table);
	skvq_page_init(l, i * SKVQ_PAGE_TOKENS, to);
	memcpy(to + l->layers_offset, table, q->model->n_layer * sizeof *table);
	p->data = to;
	p->state = PAGE_LOCAL;
	arena_unref(p->arena);
	p->arena = NULL;
	p->staging = q->staging;
	staging_hold(p->staging, i);
	return 0;
}

int publish_prepare(struct staging *st, uint32_t timeout_ms)
{
	struct skvq_session *s = st->session;

	skvq_client_set_timeout(s->client, timeout_ms < s->timeout_ms ? timeout_ms : s->timeout_ms);
	int r = skvq_client_staging_add(s->client, st->fd, &st->id);
	skvq_client_set_timeout(s->client, s->timeout_ms);
	if (r == 0) {
		st->epoch = s->epoch;
		return 0;
	}
	log_event(s, SKVQ_LOG_WARNING, "staging refused: %s", skvq_client_why(s->client));
	if (skvq_client_broken(s->client))
		session_lost(s);
	return r;
}

/* How many of the next n pages go in one request: what is whole, and in one staging. */
static uint32_t publishable(struct skvq_seq *q, uint32_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct seq_page *p = &q->pages[first + i];

		/* One that is pinned here stays as it is: a second pin would be nobody's. */
		if (p->state == PAGE_SHARED && (p->epoch == q->model->session->epoch ||
		                                page_repatriate(q, first + i) < 0))
			return i;
		if (p->base_only || p->hidden || p->staging != q->pages[first].staging)
			return i; /* what a page lacks cannot be made again */
	}
	return n;
}

void publish_begin(struct skvq_seq *q)
{
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	uint32_t n_full = q->n_encoded / SKVQ_PAGE_TOKENS;

	if (!is_attached(m) || !seq_publishes(q) || q->publish_id ||
	    (q->publish_after_ms && now_ms() < q->publish_after_ms))
		return;
	if (q->publish_epoch != s->epoch) {
		/* Pages that are shared in this epoch already (matched ones) stay as they are. */
		q->publish_epoch = s->epoch;
		q->n_published = q->n_shed = q->n_shed_looked = 0;
	}
	if (q->n_dropped && q->n_published <= q->n_dropped) { /* the parent is not there */
		seq_sever(q);
		return;
	}
	while (q->n_published < n_full && q->pages[q->n_published].state == PAGE_SHARED &&
	       q->pages[q->n_published].epoch == s->epoch)
		q->n_published++;
	uint32_t first = q->n_published;
	uint32_t n = n_full - first;
	if (n == 0 || s->n_tickets == TICKETS_MAX)
		return;
	/* A token takes at most ten bytes in a frame, and a page one besides. */
	uint32_t frame = skvq_client_hello(s->client)->frame_bytes_max;
	uint32_t fits = frame > 256 ? (frame - 256) / (SKVQ_PAGE_TOKENS * 10 + 1) : 1;
	if (n > SKVQ_CLIENT_RUN_MAX)
		n = SKVQ_CLIENT_RUN_MAX;
	if (n > fits)
		n = fits ? fits : 1;
	n = publishable(q, first, n);
	if (n == 0)
		return;
	struct staging *st = q->pages[first].staging;
	if (st->epoch != s->epoch && publish_prepare(st, STAGING_TIMEOUT_MS) < 0) {
		q->publish_after_ms = now_ms() + REFUSED_WAIT_MS;
		return;
	}
	struct skvq_page_ref parent = {0, 0};
	if (first > 0)
		parent = q->pages[first - 1].ref;
	uint64_t id;
	uint8_t safe[SKVQ_CLIENT_RUN_MAX];
	bool any = false;
	for (uint32_t i = 0; i < n; i++)
		any |= safe[i] = q->pages[first + i].safe;
	int r = skvq_client_publish(s->client, m->ns, parent, first * SKVQ_PAGE_TOKENS,
	                            q->tokens + (size_t)first * SKVQ_PAGE_TOKENS, n,
	                            any ? safe : NULL, st->id,
	                            (uint64_t)first * m->layout.slot_bytes, &id);
	if (r < 0) {
		if (r != -SKVQ_EAGAIN)
			log_event(s, SKVQ_LOG_WARNING, "publish not sent: %s",
			          skvq_client_why(s->client));
		if (skvq_client_broken(s->client))
			session_lost(s);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		q->pages[first + i].state = PAGE_INFLIGHT;
	q->publish_id = id;
	q->publish_run = n;
	q->mail->full = false;
	s->tickets[s->n_tickets++] = (struct publish_ticket){.id = id, .ns = m->ns, .seq = q};
}

void on_published(void *session, uint64_t id, int err, const char *detail,
                  const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct skvq_session *s = session;

	for (size_t i = 0; i < s->n_tickets; i++) {
		if (s->tickets[i].id != id)
			continue;
		struct publish_ticket t = s->tickets[i];
		s->tickets[i] = s->tickets[--s->n_tickets];
		if (t.seq) {
			t.seq->mail->full = true;
			t.seq->mail->err = err;
			t.seq->mail->n = n_pages < t.seq->publish_run ? n_pages : t.seq->publish_run;
			t.seq->mail->n_existed = n_existed;
			memcpy(t.seq->mail->refs, pages, t.seq->mail->n * sizeof *pages);
		} else if (n_pages) {
			void *grown =
			    realloc(s->orphans, (s->n_orphans + n_pages) * sizeof *s->orphans);
			if (!grown)
				return; /* the pins end with the connection */
			s->orphans = grown;
			for (size_t k = 0; k < n_pages; k++) {
				s->orphans[s->n_orphans].ns = t.ns;
				s->orphans[s->n_orphans++].ref = pages[k];
			}
		}
		if (err < 0) {
			s->stats.publish_refused++;
			log_event(s, SKVQ_LOG_WARNING, "publish refused: %s: %s", skvq_err_name(err),
			          detail);
		}
		s->stats.pages_published += n_pages;
		s->stats.pages_deduplicated += n_existed;
		return;
	}
}

void unpin_orphans(struct skvq_session *s)
{
	enum { BATCH = 256 };
	struct skvq_page_ref refs[BATCH];

	while (s->n_orphans && s->daemon == DAEMON_ATTACHED) {
		uint32_t ns = s->orphans[s->n_orphans - 1].ns, n = 0;

		while (s->n_orphans && n < BATCH && s->orphans[s->n_orphans - 1].ns == ns)
			refs[n++] = s->orphans[--s->n_orphans].ref;
		if (skvq_client_unpin(s->client, ns, refs, n) < 0 && skvq_client_broken(s->client))
			session_lost(s);
	}
}

/* Switches one page from staging to the arena and gives its staging memory back. */
static bool page_adopt(struct skvq_seq *q, uint32_t i, struct skvq_page_ref ref)
{
	struct skvq_model *m = q->model;
	struct seq_page *p = &q->pages[i];
	bool safe;
	const uint8_t *data = arena_page(m, ref, i * SKVQ_PAGE_TOKENS,
	                                 q->tokens + (size_t)i * SKVQ_PAGE_TOKENS, &safe);

	if (!data)
		return false;
	p->data = data;
	p->safe = safe;
	p->state = PAGE_SHARED;
	p->epoch = q->publish_epoch;
	p->ref = ref;
	p->arena = m->arena;
	p->arena->refs++;
	staging_release(p->staging, i);
	p->staging = NULL;
	return true;
}

void publish_take_mail(struct skvq_seq *q)
{
	struct skvq_session *s = q->model->session;
	uint32_t first = q->n_published;

	if (!q->publish_id || !q->mail->full)
		return;
	bool same_epoch = s->daemon == DAEMON_ATTACHED && q->publish_epoch == s->epoch;
	size_t adopted = 0;
	if (same_epoch) {
		while (adopted < q->mail->n &&
		       page_adopt(q, first + (uint32_t)adopted, q->mail->refs[adopted]))
			adopted++;
		if (adopted < q->mail->n) {
			log_event(s, SKVQ_LOG_DAEMON_MISBEHAVING,
			          "a published page does not hold the tokens it was published for");
			(void)skvq_client_unpin(s->client, q->model->ns, q->mail->refs + adopted,
			                        (uint32_t)(q->mail->n - adopted));
			q->mail->err = -SKVQ_ECORRUPT;
		}
	}
	for (size_t i = adopted; i < q->publish_run; i++)
		q->pages[first + i].state = PAGE_LOCAL;
	q->n_published += (uint32_t)adopted;
	q->publish_after_ms = same_epoch && q->mail->err < 0 ? now_ms() + REFUSED_WAIT_MS : 0;
	q->publish_id = 0;
	q->publish_run = 0;
	q->mail->full = false;
}
