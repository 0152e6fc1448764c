/* SPDX-License-Identifier: Apache-2.0 */
/* match, publish and unpin. */
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "control/dispatch.h"

/* A PageRef in a reply: tag and length, two tags, two varints of at most 5 bytes. */
#define REF_WIRE_BYTES   14u
#define REPLY_WIRE_BYTES 64u /* everything around them */

static Skvq__Wire__PageRef wire_ref(struct page_ref ref)
{
	Skvq__Wire__PageRef m = SKVQ__WIRE__PAGE_REF__INIT;

	m.slot = ref.slot;
	m.generation = ref.generation;
	return m;
}

/* ---- match ---- */

static int send_match(const struct request *rq, const struct page_ref *refs, uint32_t n)
{
	CLEANUP_FREE Skvq__Wire__PageRef *pages = calloc(n + 1, sizeof(*pages));
	CLEANUP_FREE Skvq__Wire__PageRef **at = calloc(n + 1, sizeof(*at));
	Skvq__Wire__MatchReply body = SKVQ__WIRE__MATCH_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (!pages || !at)
		return -SKVQ_ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		pages[i] = wire_ref(refs[i]);
		at[i] = &pages[i];
	}
	body.n_pages = n;
	body.pages = at;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_MATCH;
	reply.match = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

int op_match(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Match *m = rq->msg->match;
	struct session *s = rq->session;
	struct cache *cache = s->control->cache;
	CLEANUP_FREE struct page_ref *refs = NULL;
	struct ns *ns = session_ns(s, m->ns, why);
	uint64_t tokens = m->n_tokens < m->max_tokens ? m->n_tokens : m->max_tokens;
	uint32_t fits = (s->conn.limits.frame_max - REPLY_WIRE_BYTES) / REF_WIRE_BYTES;
	uint32_t want = (uint32_t)(tokens / SKVQ_PAGE_TOKENS), n;
	int err;

	if (!ns)
		return -SKVQ_EINVAL;
	if (want > fits)
		want = fits;
	if (want > s->pins.max)
		want = s->pins.max;
	refs = malloc((want + 1) * sizeof(*refs));
	if (!refs)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a match of %u pages", want);
	err =
	    cache_match(cache, ns, &s->pins, m->tokens, (uint32_t)m->n_tokens, want, refs, &n, why);
	if (err < 0)
		return err;
	err = send_match(rq, refs, n);
	if (err < 0) {
		(void)cache_unpin(cache, ns, &s->pins, refs, n, NULL);
		return why_fail(why, -err, "no memory for a match reply of %u pages", n);
	}
	return 0;
}

/* ---- publish ---- */

/* A run of pages goes in one after the other: each is the next one's parent. */
struct run {
	struct publish_op op;
	uint64_t offset; /* of the first page in staging */
	uint32_t position;
	uint32_t n_pages, n_done, n_existed;
	struct page_ref *refs; /* [n_pages], behind the struct */
	int32_t *tokens;       /* [n_pages * SKVQ_PAGE_TOKENS], behind refs */
};

static struct run *run_new(uint64_t id, const Skvq__Wire__Publish *m, uint32_t n)
{
	struct run *run = calloc(1, sizeof(*run) + n * sizeof(*run->refs) +
					(size_t)n * SKVQ_PAGE_TOKENS * sizeof(*run->tokens));

	if (!run)
		return NULL;
	run->op.id = id;
	run->offset = m->offset;
	run->position = m->position;
	run->n_pages = n;
	run->refs = (struct page_ref *)(run + 1);
	run->tokens = (int32_t *)(run->refs + n);
	memcpy(run->tokens, m->tokens, m->n_tokens * sizeof(*run->tokens));
	return run;
}

static void run_free(struct run *run)
{
	staging_unref(run->op.staging);
	free(run);
}

/* With an error (negative) the reply names the pages that went in before it. */
static void send_published(struct session *s, const struct run *run, int error, const char *why)
{
	CLEANUP_FREE Skvq__Wire__PageRef *pages = calloc(run->n_pages, sizeof(*pages));
	CLEANUP_FREE Skvq__Wire__PageRef **at = calloc(run->n_pages, sizeof(*at));
	Skvq__Wire__PublishReply body = SKVQ__WIRE__PUBLISH_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (!pages || !at) {
		/* Pins the client does not know of end with its connection. */
		conn_end(&s->conn, "no memory for a publish reply");
		return;
	}
	for (uint32_t i = 0; i < run->n_done; i++) {
		pages[i] = wire_ref(run->refs[i]);
		at[i] = &pages[i];
	}
	if (run->n_done) {
		body.page = at[0];
		body.n_pages = run->n_done;
		body.pages = at;
		body.n_existed = run->n_existed;
		body.existed = run->n_existed == run->n_done;
		reply.body_case = SKVQ__WIRE__REPLY__BODY_PUBLISH;
		reply.publish = &body;
	}
	if (error < 0)
		reply_refuse(s, run->op.id, error, why, &reply);
	else
		reply_send(s, run->op.id, &reply, -1);
}

static void run_took(struct run *run)
{
	run->refs[run->n_done++] = page_ref(run->op.p.page);
	run->n_existed += run->op.p.existed;
}

/* Hands pages to the cache until one takes time (0), all are in (1), or one is refused (negative).
 */
static int run_advance(struct cache *cache, struct run *run, struct why *why)
{
	struct publish *p = &run->op.p;

	while (run->n_done < run->n_pages) {
		uint32_t i = run->n_done;
		int r;

		if (i > 0) {
			p->has_parent = true;
			p->parent = run->refs[i - 1];
		}
		p->position = run->position + i * SKVQ_PAGE_TOKENS;
		p->offset = run->offset + i * p->ns->layout.slot_bytes;
		memcpy(p->tokens, run->tokens + (size_t)i * SKVQ_PAGE_TOKENS, sizeof(p->tokens));
		p->page = NULL;
		p->existed = false;
		r = cache_publish(cache, p, why);
		if (r <= 0)
			return r;
		run_took(run);
	}
	return 1;
}

static void publish_done(struct publish *p, int error, const char *detail)
{
	struct publish_op *op = container_of(p, struct publish_op, p);
	struct run *run = container_of(op, struct run, op);
	struct session *s = op->session;
	struct why why = {{0}};

	if (s && error == 0) {
		run_took(run);
		error = run_advance(s->control->cache, run, &why);
		if (error == 0)
			return; /* the next page is on its way */
		detail = why.text;
	}
	session_unlink_publish(op);
	if (s)
		send_published(s, run, error, detail);
	run_free(run);
}

static int check_run(const Skvq__Wire__Publish *m, uint32_t n, const struct ns *ns, struct why *why)
{
	if (n > WIRE_PUBLISH_MAX)
		return why_fail(why, SKVQ_EINVAL, "publish names %u pages, at most %u", n,
				WIRE_PUBLISH_MAX);
	if (m->n_tokens != (size_t)n * SKVQ_PAGE_TOKENS)
		return why_fail(why, SKVQ_EINVAL, "publish names %zu tokens, %u pages have %u each",
				m->n_tokens, n, SKVQ_PAGE_TOKENS);
	/* So that no sum below can wrap. */
	if (m->offset > UINT64_MAX - n * ns->layout.slot_bytes ||
	    m->position > INT32_MAX - (n + 1) * SKVQ_PAGE_TOKENS)
		return why_fail(why, SKVQ_EINVAL, "publish at position %u, staging offset %llu",
				m->position, (unsigned long long)m->offset);
	return 0;
}

int op_publish(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Publish *m = rq->msg->publish;
	struct session *s = rq->session;
	struct ns *ns = session_ns(s, m->ns, why);
	uint32_t n = m->n_pages ? m->n_pages : 1;
	struct staging *staging;
	struct run *run;
	int r;

	if (!ns)
		return -SKVQ_EINVAL;
	r = check_run(m, n, ns, why);
	if (r < 0)
		return r;
	if (s->n_inflight >= s->control->config.requests_max)
		return why_fail(why, SKVQ_EBUSY,
				"this connection has %u requests in flight (requests_max)",
				s->n_inflight);
	staging = session_staging(s, m->staging, why);
	if (!staging)
		return -SKVQ_EINVAL;
	run = run_new(rq->id, m, n);
	if (!run)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a publish");
	run->op.staging = staging_ref(staging);
	run->op.p.ns = ns;
	run->op.p.pins = &s->pins;
	run->op.p.has_parent = m->parent != NULL;
	if (m->parent)
		run->op.p.parent = (struct page_ref){m->parent->slot, m->parent->generation};
	run->op.p.fd = staging->fd;
	run->op.p.done = publish_done;
	r = run_advance(s->control->cache, run, why);
	if (r == 0) {
		session_link_publish(s, &run->op);
		return 0;
	}
	send_published(s, run, r, why->text);
	run_free(run);
	return 0;
}

/* ---- unpin ---- */

int op_unpin(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Unpin *m = rq->msg->unpin;
	struct session *s = rq->session;
	struct ns *ns = session_ns(s, m->ns, why);
	Skvq__Wire__Empty body = SKVQ__WIRE__EMPTY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	CLEANUP_FREE struct page_ref *refs = NULL;
	int err;

	if (!ns)
		return -SKVQ_EINVAL;
	if (m->n_pages > s->pins.total)
		return why_fail(why, SKVQ_ESTALE,
				"unpin names %zu pages, this connection holds %u pins", m->n_pages,
				s->pins.total);
	refs = malloc((m->n_pages + 1) * sizeof(*refs));
	if (!refs)
		return why_fail(why, SKVQ_ENOMEM, "no memory for an unpin of %zu pages",
				m->n_pages);
	for (size_t i = 0; i < m->n_pages; i++)
		refs[i] = (struct page_ref){m->pages[i]->slot, m->pages[i]->generation};
	err = cache_unpin(s->control->cache, ns, &s->pins, refs, (uint32_t)m->n_pages, why);
	if (err < 0)
		return err;
	s->control->stats->n[STAT_unpins] += m->n_pages;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_UNPIN;
	reply.unpin = &body;
	reply_send(s, rq->id, &reply, -1);
	return 0;
}
