/* SPDX-License-Identifier: Apache-2.0 */
/* events: who has asked for them, what waits for each, and how it goes out. */
#include "control/events.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <skvq/error.h>

#include "control/dispatch.h"

/* Of one reply. */
#define BATCH_EVENTS 256u
#define BATCH_BYTES  65536u
/* Pages of a match of which digests are told: 330,000 tokens, some milliseconds of the loop. */
#define CHAIN_MAX 4096u
/* Of an event beside its chain: tokens, digests, names and numbers. */
#define EVENT_WIRE_BYTES 1024u

struct queued {
	struct queued *next;
	uint64_t number;
	size_t bytes; /* of memory */
	Skvq__Wire__PageRef page;
	Skvq__Wire__Event m; /* what it points to is in data, static, or of a tenant's life */
	uint8_t data[];
};

struct subscriber {
	struct subscriber *next;
	struct session *session;
	uint64_t id; /* of its request */
	bool tokens, matches, pages;
	uint64_t made; /* events for it so far, lost ones too */
	uint64_t told; /* of these, the last it knows of */
	struct queued *head, *tail;
	size_t bytes; /* of the queue */
};

struct asked {
	uint64_t time_ms;
	uint32_t n_tokens, n; /* pages */
	bool cut;
	uint8_t chain[]; /* [n][IDENTITY_DIGEST] */
};

static uint64_t wall_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Nothing goes to a connection that ends. */
static bool is_alive(const struct session *s)
{
	return !s->conn.dead && !s->conn.ending;
}

static bool sees(const struct session *s, const struct tenant *tenant)
{
	return s->admin || (s->tenant && s->tenant->tenant == tenant);
}

/* ---- the queue ---- */

/* A new event with room for so many bytes behind it. NULL: it is lost, and counted. */
static struct queued *make(struct subscriber *sub, const char *kind, size_t data_bytes)
{
	size_t bytes = sizeof(struct queued) + data_bytes;
	struct queued *q = NULL;

	sub->made++;
	if (sub->bytes + bytes <= sub->session->conn.limits.backlog_max)
		q = calloc(1, bytes);
	if (!q)
		return NULL;
	q->number = sub->made;
	q->bytes = bytes;
	skvq__wire__event__init(&q->m);
	q->m.kind = (char *)(uintptr_t)kind;
	q->m.time_ms = wall_ms();
	sub->bytes += bytes;
	if (sub->head)
		sub->tail->next = q;
	else
		sub->head = q;
	sub->tail = q;
	return q;
}

static void drop_head(struct subscriber *sub)
{
	struct queued *q = sub->head;

	sub->head = q->next;
	sub->bytes -= q->bytes;
	free(q);
}

/* Copies into the event's data, at *at. */
static uint8_t *put(struct queued *q, size_t *at, const void *from, size_t n)
{
	uint8_t *to = q->data + *at;

	memcpy(to, from, n);
	*at += n;
	return to;
}

static ProtobufCBinaryData put_bytes(struct queued *q, size_t *at, const void *from, size_t n)
{
	return (ProtobufCBinaryData){.len = n, .data = put(q, at, from, n)};
}

/* ---- what happens in the cache ---- */

static const char *const kinds[] = {[EVENT_STORED] = "stored",
				    [EVENT_REMOVED] = "removed",
				    [EVENT_SHED] = "shed",
				    [EVENT_REFILLED] = "refilled",
				    [EVENT_NAMESPACE_OPENED] = "namespace_opened",
				    [EVENT_NAMESPACE_DROPPED] = "namespace_dropped"};

static void queue_page(struct subscriber *sub, const struct cache_event *e)
{
	struct why unused;
	/* What a page says is its tenant's: who may only look is told no tokens, as by page_get. */
	bool tokens = sub->tokens && e->kind == EVENT_STORED && e->page && e->page->tokens &&
		      session_may_steer(sub->session, e->tenant, &unused) == 0;
	size_t token_bytes = tokens ? SKVQ_PAGE_TOKENS * sizeof(int32_t) : 0, at = 0;
	struct queued *q =
	    make(sub, kinds[e->kind], token_bytes + (e->parent ? 2 : 1) * (size_t)IDENTITY_DIGEST);

	if (!q)
		return;
	if (tokens) { /* first, for they must be aligned */
		q->m.tokens = (int32_t *)(void *)put(q, &at, e->page->tokens, token_bytes);
		q->m.n_tokens = SKVQ_PAGE_TOKENS;
	}
	q->m.tenant = e->tenant->name;
	q->m.ns = e->ns->id;
	q->m.tier = (char *)(uintptr_t)(e->on_disk ? "disk" : "memory");
	q->m.why = (char *)(uintptr_t)(e->why ? e->why : "");
	q->m.digest = put_bytes(q, &at, e->digest, IDENTITY_DIGEST);
	if (e->parent)
		q->m.parent = put_bytes(q, &at, e->parent, IDENTITY_DIGEST);
	q->m.position = e->position;
	q->m.span = SKVQ_PAGE_TOKENS;
	if (e->page) {
		skvq__wire__page_ref__init(&q->page);
		q->page.slot = e->page->slot;
		q->page.generation = e->page->generation;
		q->m.page = &q->page;
	}
}

static void queue_namespace(struct subscriber *sub, const struct cache_event *e)
{
	size_t name_bytes = strlen(e->ns->model_name) + 1, at = 0;
	struct queued *q = make(sub, kinds[e->kind], name_bytes + IDENTITY_DIGEST);

	if (!q)
		return;
	q->m.tenant = e->tenant->name;
	q->m.ns = e->ns->id;
	q->m.identity_digest = put_bytes(q, &at, e->ns->digest, IDENTITY_DIGEST);
	q->m.model_name = (char *)put(q, &at, e->ns->model_name, name_bytes);
}

static void on_event(void *ctx, const struct cache_event *e)
{
	struct control *control = ctx;

	for (struct subscriber *sub = control->subscribers; sub; sub = sub->next) {
		if (!sub->pages || !is_alive(sub->session) || !sees(sub->session, e->tenant))
			continue;
		if (e->digest)
			queue_page(sub, e);
		else
			queue_namespace(sub, e);
	}
}

/* ---- matches ---- */

static bool wants_match(const struct subscriber *sub, const struct ns *ns)
{
	return sub->matches && is_alive(sub->session) && sees(sub->session, ns->tenant);
}

/* Pages that are here know their digests, which takes a tenth of making them. */
static int digest_of(struct ns *ns, struct page **page, uint32_t position, const int32_t *tokens,
		     const uint8_t parent[IDENTITY_DIGEST], uint8_t ret[IDENTITY_DIGEST])
{
	if (*page || !position)
		*page = index_find(&ns->index, &ns->table, *page, tokens);
	if (*page && !page_readable(*page))
		*page = NULL;
	if (!*page)
		return page_digest(ns->digest, parent, position, tokens, ret);
	memcpy(ret, (*page)->digest, IDENTITY_DIGEST);
	return 0;
}

struct asked *events_asked(const struct control *control, struct ns *ns, const int32_t *tokens,
			   uint32_t n)
{
	struct page *page = NULL;
	uint32_t pages = n / SKVQ_PAGE_TOKENS, fits = control->config.conn.frame_max / 2;
	uint8_t parent[IDENTITY_DIGEST] = {0};
	const struct subscriber *sub = control->subscribers;
	struct asked *asked;

	while (sub && !wants_match(sub, ns))
		sub = sub->next;
	if (!sub)
		return NULL;
	fits = fits < control->config.conn.backlog_max - sizeof(struct queued)
		   ? fits
		   : control->config.conn.backlog_max - (uint32_t)sizeof(struct queued);
	fits = fits > EVENT_WIRE_BYTES ? (fits - EVENT_WIRE_BYTES) / IDENTITY_DIGEST : 0;
	fits = fits < CHAIN_MAX ? fits : CHAIN_MAX;
	asked = malloc(sizeof(*asked) + (size_t)(pages < fits ? pages : fits) * IDENTITY_DIGEST);
	if (!asked)
		return NULL;
	*asked = (struct asked){.time_ms = wall_ms(), .n_tokens = n, .cut = pages > fits};
	while (asked->n < pages && asked->n < fits) {
		uint8_t *digest = asked->chain + (size_t)asked->n * IDENTITY_DIGEST;
		uint32_t position = asked->n * SKVQ_PAGE_TOKENS;

		if (digest_of(ns, &page, position, tokens + position, parent, digest) < 0) {
			asked->cut = true;
			break;
		}
		memcpy(parent, digest, sizeof(parent));
		asked->n++;
	}
	return asked;
}

void events_match(struct control *control, const struct match *m, const struct asked *asked)
{
	size_t bytes = (size_t)asked->n * IDENTITY_DIGEST;

	for (struct subscriber *sub = control->subscribers; sub; sub = sub->next) {
		struct queued *q;
		size_t at = 0;

		if (!wants_match(sub, m->ns) || !(q = make(sub, "match", bytes)))
			continue;
		q->m.time_ms = asked->time_ms;
		q->m.tenant = m->ns->tenant->name;
		q->m.ns = m->ns->id;
		q->m.span = asked->n_tokens;
		q->m.chain = put_bytes(q, &at, asked->chain, bytes);
		q->m.chain_cut = asked->cut;
		q->m.n_memory = m->n - m->n_restored;
		q->m.n_disk = m->n_restored;
	}
}

/* ---- out ---- */

/* As many of those that wait as are one behind the other and fit. */
static void send_batch(struct subscriber *sub)
{
	struct session *s = sub->session;
	Skvq__Wire__EventsReply body = SKVQ__WIRE__EVENTS_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	Skvq__Wire__Event *at[BATCH_EVENTS];
	size_t room = s->conn.limits.frame_max / 2, bytes = 0;
	struct queued *q = sub->head;

	room = room < BATCH_BYTES ? room : BATCH_BYTES;
	body.first = q ? q->number : sub->made + 1;
	body.lost = body.first - sub->told - 1;
	body.events = at;
	for (; q && body.n_events < BATCH_EVENTS && q->number == body.first + body.n_events;
	     q = q->next) {
		bytes += skvq__wire__event__get_packed_size(&q->m) + 8;
		if (body.n_events && bytes > room)
			break;
		at[body.n_events++] = &q->m;
	}
	reply.body_case = SKVQ__WIRE__REPLY__BODY_EVENTS;
	reply.events = &body;
	sub->told = body.first - 1 + body.n_events;
	reply_send(s, sub->id, &reply, -1);
	for (size_t i = 0; i < body.n_events; i++)
		drop_head(sub);
}

void events_pump(struct control *control)
{
	for (struct subscriber *sub = control->subscribers; sub; sub = sub->next) {
		const struct conn *conn = &sub->session->conn;

		/* Half of what may pile up: the rest is for what else it asks. */
		while (is_alive(sub->session) && sub->told < sub->made &&
		       conn->out_bytes <= conn->limits.backlog_max / 2)
			send_batch(sub);
	}
}

void events_clear(struct control *control)
{
	for (struct subscriber *sub = control->subscribers; sub; sub = sub->next) {
		struct queued *q = sub->pages && is_alive(sub->session) ? make(sub, "cleared", 0) : NULL;

		if (q)
			q->m.why = (char *)(uintptr_t)"daemon_ends";
	}
	events_pump(control);
}

/* ---- who listens ---- */

void events_end(struct session *session)
{
	struct control *control = session->control;
	struct subscriber *sub = session->subscriber, **at = &control->subscribers;

	if (!sub)
		return;
	while (*at != sub)
		at = &(*at)->next;
	*at = sub->next;
	while (sub->head)
		drop_head(sub);
	free(sub);
	session->subscriber = NULL;
	if (!control->subscribers)
		cache_watch(control->cache, NULL);
}

int op_events(const struct request *rq, struct why *why)
{
	const Skvq__Wire__EventsSubscribe *m = rq->msg->events;
	struct session *s = rq->session;
	struct control *control = s->control;
	struct subscriber *sub;
	uint32_t n = 0;

	if (s->subscriber)
		return why_fail(why, SKVQ_ESTATE, "this connection has asked for events already");
	if (m->no_pages && !m->matches)
		return why_fail(why, SKVQ_EINVAL, "events of neither pages nor matches");
	for (sub = control->subscribers; sub; sub = sub->next)
		n += sub->session->tenant == s->tenant && is_alive(sub->session);
	if (n >= SUBSCRIBERS_MAX)
		return why_fail(why, SKVQ_ELIMIT, "%u connections listen to events already, at most %u may",
				n, SUBSCRIBERS_MAX);
	sub = calloc(1, sizeof(*sub));
	if (!sub)
		return why_fail(why, SKVQ_ENOMEM, "no memory for another listener to events");
	*sub = (struct subscriber){.next = control->subscribers,
				   .session = s,
				   .id = rq->id,
				   .tokens = m->tokens,
				   .matches = m->matches,
				   .pages = !m->no_pages};
	control->subscribers = s->subscriber = sub;
	control->watch = (struct cache_watch){.fn = on_event, .ctx = control};
	cache_watch(control->cache, &control->watch);
	session_count(s, STAT_listeners, 1);
	send_batch(sub); /* empty: from here on */
	return 0;
}
