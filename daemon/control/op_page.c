/* SPDX-License-Identifier: Apache-2.0 */
/* match, prefetch, publish, unpin and unrefine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "control/dispatch.h"
#include "control/events.h"

/* A PageRef in a reply: tag and length, two tags, two varints of at most 5 bytes; and its index, if
 * its refinement is not there. */
#define REF_WIRE_BYTES   17u
#define REPLY_WIRE_BYTES 64u /* everything around them */
/* Of one prefetch: 1.3 million tokens. */
#define PREFETCH_PAGES_MAX 16384u
#define PREFETCH_MS        60000u /* nobody waits for it */

static Skvq__Wire__PageRef wire_ref(struct page_ref ref)
{
	Skvq__Wire__PageRef m = SKVQ__WIRE__PAGE_REF__INIT;

	m.slot = ref.slot;
	m.generation = ref.generation;
	return m;
}

/* ---- match ---- */

/* A question, with room for the answer. Freed when it is given. */
struct match_op {
	struct inflight inflight;
	uint64_t began_us;
	struct asked *asked; /* NULL: nobody listens */
	struct match m;
	struct page_ref refs[];
};

static void send_match(struct session *s, uint64_t id, const struct match *m)
{
	CLEANUP_FREE Skvq__Wire__PageRef *pages = calloc(m->n + 1, sizeof(*pages));
	CLEANUP_FREE Skvq__Wire__PageRef **at = calloc(m->n + 1, sizeof(*at));
	CLEANUP_FREE uint32_t *base_only = calloc(m->n + 1, sizeof(*base_only));
	Skvq__Wire__MatchReply body = SKVQ__WIRE__MATCH_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	char why[96];

	if (!pages || !at || !base_only) {
		(void)cache_unpin(s->control->cache, m->ns, &s->pins, m->refs, m->n, NULL);
		(void)snprintf(why, sizeof(why), "no memory for a match reply of %u pages", m->n);
		reply_error(s, id, SKVQ_ENOMEM, why);
		return;
	}
	for (uint32_t i = 0; i < m->n; i++) {
		pages[i] = wire_ref(m->refs[i]);
		at[i] = &pages[i];
		if (m->ns->table.pages[m->refs[i].slot].shed)
			base_only[body.n_base_only++] = i;
	}
	body.base_only = base_only;
	body.n_pages = m->n;
	body.pages = at;
	body.n_restored = m->n_restored;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_MATCH;
	reply.match = &body;
	reply_send(s, id, &reply, -1);
}

static void answer_match(struct session *s, uint64_t id, const struct match_op *op)
{
	send_match(s, id, &op->m);
	cache_record(s->control->cache, op->m.ns->tenant, HISTOGRAM_match_us,
		     clock_us() - op->began_us);
	if (op->asked)
		events_match(s->control, &op->m, op->asked);
}

static void match_done(struct match *m, int error, const char *why)
{
	struct match_op *op = container_of(m, struct match_op, m);
	struct session *s = op->inflight.session;

	session_unlink(&op->inflight);
	if (s && error < 0)
		reply_error(s, op->inflight.id, error, why);
	else if (s)
		answer_match(s, op->inflight.id, op);
	free(op->asked);
	free(op);
}

static void match_orphan(struct inflight *inflight)
{
	cache_match_orphan(&container_of(inflight, struct match_op, inflight)->m);
}

/* Pages of tokens that are worth looking for. */
static uint32_t pages_of(uint64_t tokens, uint32_t most)
{
	uint64_t n = tokens / SKVQ_PAGE_TOKENS;

	return n < most ? (uint32_t)n : most;
}

static uint32_t least(uint64_t a, uint64_t b)
{
	return (uint32_t)(a < b ? a : b);
}

int op_match(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Match *m = rq->msg->match;
	struct session *s = rq->session;
	const struct control_config *config = &s->control->config;
	uint32_t fits = (s->conn.limits.frame_max - REPLY_WIRE_BYTES) / REF_WIRE_BYTES;
	const int32_t *tokens = m->n_fixed_tokens ? m->fixed_tokens : m->tokens;
	size_t n_tokens = m->n_fixed_tokens ? m->n_fixed_tokens : m->n_tokens;
	uint32_t want = pages_of(least(n_tokens, m->max_tokens), least(fits, s->pins.max));
	struct ns *ns = session_ns(s, m->ns, why);
	struct match_op *op;
	int r = ns ? session_may_wait(s, why) : -SKVQ_EINVAL;

	if (r < 0)
		return r;
	if (m->n_fixed_tokens && m->n_tokens)
		return why_fail(why, SKVQ_EINVAL, "a match with tokens of both kinds");
	op = malloc(sizeof(*op) + want * sizeof(*op->refs));
	if (!op)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a match of %u pages", want);
	op->inflight = (struct inflight){.id = rq->id, .orphan = match_orphan};
	op->began_us = clock_us();
	op->asked = events_asked(s->control, ns, tokens, (uint32_t)n_tokens);
	op->m = (struct match){.ns = ns,
			       .pins = &s->pins,
			       .tokens = tokens,
			       .n_tokens = (uint32_t)n_tokens,
			       .max_pages = want,
			       .wait_ms = least(m->wait_ms, config->restore_wait_ms),
			       .recompute_us = m->recompute_us,
			       .whole = !(s->features & WIRE_UNREFINE),
			       .refs = op->refs,
			       .done = match_done};
	r = cache_match(s->control->cache, &op->m, why);
	if (r == 0) {
		session_link(s, &op->inflight);
		return 0;
	}
	if (r > 0)
		answer_match(s, rq->id, op);
	free(op->asked);
	free(op);
	return r < 0 ? r : 0;
}

/* ---- prefetch ---- */

int op_prefetch(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Prefetch *m = rq->msg->prefetch;
	struct session *s = rq->session;
	struct cache *cache = s->control->cache;
	uint32_t want = pages_of(m->n_tokens, PREFETCH_PAGES_MAX);
	struct ns *ns = session_seen_ns(s, m->ns, why); /* open or not: nothing is pinned */
	CLEANUP_FREE struct page_ref *refs = malloc((want + 1) * sizeof(*refs));
	Skvq__Wire__PrefetchReply body = SKVQ__WIRE__PREFETCH_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	struct match ask;
	int err;

	if (!ns)
		return -SKVQ_EINVAL;
	err = session_may_steer(s, ns->tenant, why);
	if (err < 0)
		return err;
	if (!refs)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a prefetch of %u pages", want);
	ask = (struct match){.ns = ns,
			     .tokens = m->tokens,
			     .n_tokens = (uint32_t)m->n_tokens,
			     .max_pages = want,
			     .wait_ms = PREFETCH_MS,
			     .refs = refs};
	err = cache_prefetch(cache, &ask, &body.n_resident, &body.n_coming, why);
	if (err < 0)
		return err;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PREFETCH;
	reply.prefetch = &body;
	reply_send(s, rq->id, &reply, -1);
	return 0;
}

/* ---- publish ---- */

/* A run of pages goes in one after the other: each is the next one's parent. */
struct run {
	struct inflight inflight;
	struct publish p;
	struct staging *staging;
	uint64_t offset; /* of the first page in staging */
	uint32_t position;
	uint32_t n_pages, n_done, n_existed;
	uint64_t began_us;
	struct page_ref *refs; /* [n_pages], behind the struct */
	int32_t *tokens;       /* [n_pages * SKVQ_PAGE_TOKENS], behind refs */
	uint8_t *safe;         /* [n_pages], behind tokens */
};

static void run_orphan(struct inflight *inflight)
{
	cache_publish_orphan(&container_of(inflight, struct run, inflight)->p);
}

static struct run *run_new(uint64_t id, const Skvq__Wire__Publish *m, uint32_t n)
{
	struct run *run = calloc(1, sizeof(*run) + n * sizeof(*run->refs) +
					(size_t)n * SKVQ_PAGE_TOKENS * sizeof(*run->tokens) + n);

	if (!run)
		return NULL;
	run->inflight.id = id;
	run->inflight.orphan = run_orphan;
	run->began_us = clock_us();
	run->offset = m->offset;
	run->position = m->position;
	run->n_pages = n;
	run->refs = (struct page_ref *)(run + 1);
	run->tokens = (int32_t *)(run->refs + n);
	memcpy(run->tokens, m->tokens, m->n_tokens * sizeof(*run->tokens));
	run->safe = (uint8_t *)(run->tokens + (size_t)n * SKVQ_PAGE_TOKENS);
	if (m->safe.len)
		memcpy(run->safe, m->safe.data, n);
	return run;
}

static void run_free(struct run *run)
{
	staging_unref(run->staging);
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
	if (error < 0) {
		reply_refuse(s, run->inflight.id, error, why, &reply);
		return;
	}
	reply_send(s, run->inflight.id, &reply, -1);
	cache_record(s->control->cache, run->p.ns->tenant, HISTOGRAM_publish_us,
		     clock_us() - run->began_us);
}

static void run_took(struct run *run)
{
	run->refs[run->n_done++] = page_ref(run->p.page);
	run->n_existed += run->p.existed;
}

/* Hands pages to the cache until one takes time (0), all are in (1), or one is refused (negative).
 */
static int run_advance(struct cache *cache, struct run *run, struct why *why)
{
	struct publish *p = &run->p;

	while (run->n_done < run->n_pages) {
		uint32_t i = run->n_done;
		int r;

		if (i > 0) {
			p->has_parent = true;
			p->parent = run->refs[i - 1];
		}
		p->position = run->position + i * SKVQ_PAGE_TOKENS;
		p->safe = run->safe[i];
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
	struct run *run = container_of(p, struct run, p);
	struct session *s = run->inflight.session;
	struct why why = {{0}};

	if (s && error == 0) {
		run_took(run);
		error = run_advance(s->control->cache, run, &why);
		if (error == 0)
			return; /* the next page is on its way */
		detail = why.text;
	}
	session_unlink(&run->inflight);
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
	if (m->safe.len && m->safe.len != n)
		return why_fail(why, SKVQ_EINVAL,
				"publish says of %zu pages if they are safe, not of %u",
				m->safe.len, n);
	for (size_t i = 0; i < m->safe.len; i++)
		if (m->safe.data[i] > 1)
			return why_fail(why, SKVQ_EINVAL, "publish says %u of page %zu, not 0 or 1",
					m->safe.data[i], i);
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
	r = session_may_wait(s, why);
	if (r < 0)
		return r;
	staging = session_staging(s, m->staging, why);
	if (!staging)
		return -SKVQ_EINVAL;
	run = run_new(rq->id, m, n);
	if (!run)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a publish");
	run->staging = staging_ref(staging);
	run->p.ns = ns;
	run->p.pins = &s->pins;
	run->p.has_parent = m->parent != NULL;
	if (m->parent)
		run->p.parent = (struct page_ref){m->parent->slot, m->parent->generation};
	run->p.fd = staging->fd;
	run->p.done = publish_done;
	r = run_advance(s->control->cache, run, why);
	if (r == 0) {
		session_link(s, &run->inflight);
		return 0;
	}
	send_published(s, run, r, why->text);
	run_free(run);
	return 0;
}

/* ---- unpin, unrefine ---- */

typedef int (*give_back_fn)(struct cache *cache, struct ns *ns, struct pins *pins,
			    const struct page_ref *refs, uint32_t n, struct why *why);

static int give_back(const struct request *rq, uint32_t ns_id, size_t n,
		     Skvq__Wire__PageRef *const *pages, give_back_fn fn, struct why *why)
{
	struct session *s = rq->session;
	struct ns *ns = session_ns(s, ns_id, why);
	CLEANUP_FREE struct page_ref *refs = NULL;

	if (!ns)
		return -SKVQ_EINVAL;
	if (n > s->pins.total)
		return why_fail(why, SKVQ_ESTALE,
				"%zu pages are named, this connection holds %u pins", n,
				s->pins.total);
	refs = malloc((n + 1) * sizeof(*refs));
	if (!refs)
		return why_fail(why, SKVQ_ENOMEM, "no memory for the names of %zu pages", n);
	for (size_t i = 0; i < n; i++)
		refs[i] = (struct page_ref){pages[i]->slot, pages[i]->generation};
	return fn(s->control->cache, ns, &s->pins, refs, (uint32_t)n, why);
}

int op_unpin(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Unpin *m = rq->msg->unpin;
	Skvq__Wire__Empty body = SKVQ__WIRE__EMPTY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	int err = give_back(rq, m->ns, m->n_pages, m->pages, cache_unpin, why);

	if (err < 0)
		return err;
	session_count(rq->session, STAT_unpins, m->n_pages);
	reply.body_case = SKVQ__WIRE__REPLY__BODY_UNPIN;
	reply.unpin = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

int op_unrefine(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Unrefine *m = rq->msg->unrefine;
	Skvq__Wire__Empty body = SKVQ__WIRE__EMPTY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	int err = give_back(rq, m->ns, m->n_pages, m->pages, cache_unrefine, why);

	if (err < 0)
		return err;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_UNREFINE;
	reply.unrefine = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}
