/* SPDX-License-Identifier: Apache-2.0 */
/*
 * page_get, evict, verify, drain, and the disk's part of page_list: what people look into and do.
 *
 * A round is done in slices, by a timer that runs while there is one, for at most WAIT_MS_MAX; then its answer says
 * where to go on. Of each kind a tenant has one at a time. A client that goes stops its round; what is
 * out with workers or the store comes back first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <skvq/error.h>
#include <skvq/error_stats.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "cache/sweep.h"
#include "control/manage.h"

#define SLICE_EVERY_MS 2u
#define WAIT_MS_MAX    2000u
/* Of one page_get. */
#define SCAN_SLOTS   65536u
#define CHILDREN_MAX 256u
#define HOLDERS_MAX  256u
/* Records of a slice that drops from disk. */
#define DROP_RECORDS 1024u
/* A page on disk in a list: its digest, and the rest. */
#define RECORD_WIRE_BYTES 96u

/* ---- rounds ---- */

struct manage {
	struct inflight inflight;
	struct control *control;
	struct control_tenant *tenant;
	struct manage *next;
	enum manage_kind kind;
	struct sweep sweep;
	bool disk; /* the round is over the store's records: */
	uint64_t place;
	bool disk_over;
	bool of_ns; /* those of this name */
	uint8_t ns_name[TIER_DIGEST_BYTES];
	uint32_t n_reads;
	uint64_t unread;
	uint64_t until_ms;
	uint64_t what[MANAGE_WORDS]; /* of a round that does something: see name_round */
};

static void manage_free(struct manage *m)
{
	struct manage **at = &m->control->manage;

	while (*at != m)
		at = &(*at)->next;
	*at = m->next;
	m->tenant->manage[m->kind] = NULL;
	free(m);
}

/* What the round is, and where it goes on. */
static void name_round(uint64_t ret[MANAGE_WORDS], const struct session *session,
		       const Skvq__Wire__Sweep *ask)
{
	const uint64_t what[MANAGE_WORDS] = {session->id,
					     ask->ns,
					     ask->page ? ask->page->slot : 0,
					     ask->page ? ask->page->generation : 0,
					     ask->idle_ms,
					     ask->drop + 2u * ask->disk,
					     ask->first_ns,
					     ask->first_slot,
					     ask->first_record};

	memcpy(ret, what, sizeof(what));
}

/* The next request for it is the same round, if it goes on here. */
static void note_place(const struct manage *m)
{
	uint64_t *next = m->tenant->manage_next[m->kind];

	if (m->sweep.kind == SWEEP_COUNT)
		return;
	memcpy(next, m->what, sizeof(m->what));
	next[MANAGE_WORDS - 3] = m->sweep.at_ns;
	next[MANAGE_WORDS - 2] = m->sweep.at_slot;
	next[MANAGE_WORDS - 1] = m->place;
}

static void answer(const struct manage *m)
{
	Skvq__Wire__SweepReply body = SKVQ__WIRE__SWEEP_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	const struct sweep *s = &m->sweep;

	body.done = m->disk ? m->disk_over : s->over;
	body.next_ns = s->at_ns;
	body.next_slot = s->at_slot;
	body.next_record = m->place;
	body.pages = s->pages;
	body.bytes = s->bytes;
	body.held = s->held;
	body.unwritten = s->unwritten;
	body.unwritten_bytes = s->unwritten_bytes;
	body.written = s->written;
	body.written_bytes = s->written_bytes;
	body.refused = s->refused;
	body.over_budget = s->over_budget;
	body.damaged = s->damaged;
	body.unread = m->unread;
	body.has_store = m->tenant->tenant->tier != NULL;
	note_place(m);
	reply.evict = &body;
	reply.body_case = m->kind == MANAGE_EVICT    ? SKVQ__WIRE__REPLY__BODY_EVICT
			  : m->kind == MANAGE_VERIFY ? SKVQ__WIRE__REPLY__BODY_VERIFY
						     : SKVQ__WIRE__REPLY__BODY_DRAIN;
	reply_send(m->inflight.session, m->inflight.id, &reply, -1);
}

static void pump(struct manage *m);

static void record_read(void *ctx, int status, uint64_t bytes)
{
	struct manage *m = ctx;

	m->n_reads--;
	if (!status || status == -SKVQ_ECORRUPT) {
		m->sweep.pages++;
		m->sweep.bytes += bytes;
		m->sweep.damaged += status < 0;
	} else {
		m->unread++;
	}
	pump(m);
}

static bool verify_disk(struct manage *m)
{
	const uint8_t *ns = m->of_ns ? m->ns_name : NULL;
	int r;

	while (!m->disk_over && !m->sweep.stop) {
		r = store_verify(m->tenant->store, &m->place, ns, record_read, m);
		m->disk_over = r >= 0 && !m->place;
		if (r <= 0)
			break;
		m->n_reads++;
	}
	return m->n_reads || !(m->disk_over || m->sweep.stop);
}

static bool drop_disk(struct manage *m)
{
	CLEANUP_FREE struct store_record *records = calloc(DROP_RECORDS, sizeof(*records));
	struct tier *tier = store_tier(m->tenant->store);
	uint32_t n;

	if (m->sweep.stop || !records)
		return !m->sweep.stop;
	n = store_list(m->tenant->store, &m->place, m->of_ns ? m->ns_name : NULL, records,
		       DROP_RECORDS);
	for (uint32_t i = 0; i < n; i++) {
		if (m->sweep.kind == SWEEP_EVICT)
			tier->ops->drop(tier, &records[i].key);
		m->sweep.pages++;
		m->sweep.bytes += records[i].bytes;
	}
	m->disk_over = !m->place;
	return !m->disk_over;
}

/* Whether there is more to do, or something out. */
static bool slice(struct manage *m)
{
	/* The daemon ends: the tier is being closed. */
	if (m->control->closed || m->control->cache->closing)
		m->sweep.stop = true;
	if (!m->disk)
		return cache_sweep(m->control->cache, &m->sweep);
	if (m->sweep.stop)
		return m->n_reads > 0;
	return m->kind == MANAGE_VERIFY ? verify_disk(m) : drop_disk(m);
}

static void pump(struct manage *m)
{
	struct session *session;

	if (clock_ms() >= m->until_ms)
		m->sweep.stop = true;
	if (slice(m))
		return;
	session = m->inflight.session;
	if (session) {
		answer(m);
		session_unlink(&m->inflight);
	}
	manage_free(m);
}

static void on_wake(struct sweep *sweep)
{
	pump(container_of(sweep, struct manage, sweep));
}

static void on_orphan(struct inflight *inflight)
{
	container_of(inflight, struct manage, inflight)->sweep.stop = true;
}

static void set_timer(struct control *control, uint32_t ms)
{
	struct itimerspec spec = {.it_value.tv_nsec = (long)ms * 1000000,
				  .it_interval.tv_nsec = (long)ms * 1000000};

	/* Of a good descriptor and a good time: cannot fail. */
	(void)timerfd_settime(control->manage_watch.fd, 0, &spec, NULL);
}

static void on_timer(void *ctx, uint32_t events)
{
	struct control *control = ctx;
	struct manage *next;
	uint64_t n;

	(void)events;
	(void)!read(control->manage_watch.fd, &n, sizeof(n));
	for (struct manage *m = control->manage; m; m = next) {
		next = m->next;
		pump(m);
	}
	if (!control->manage)
		set_timer(control, 0);
}

int manage_init(struct control *control)
{
	control->manage_watch =
	    (struct loop_watch){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
				.events = EPOLLIN,
				.fn = on_timer,
				.ctx = control};
	if (control->manage_watch.fd < 0)
		return -SKVQ_ESYS;
	return loop_add(control->loop, &control->manage_watch);
}

void manage_fini(struct control *control)
{
	int fd = control->manage_watch.fd;
	struct manage *next;

	for (struct manage *m = control->manage; m; m = next) {
		next = m->next;
		m->sweep.stop = true;
		pump(m); /* those that have something out go when it comes back */
	}
	loop_del(control->loop, &control->manage_watch);
	if (fd >= 0)
		(void)close(fd);
	control->manage_watch.fd = -1;
}

/* ---- what is asked ---- */

static struct control_tenant *tenant_named(struct control *control, const char *name)
{
	for (uint32_t i = 0; i < control->cache->n_tenants; i++) {
		if (!strcmp(control->tenants[i].tenant->name, name))
			return &control->tenants[i];
	}
	return NULL;
}

/* Whose pages, and of which namespace (NULL: all). */
static int resolve(const struct session *s, const Skvq__Wire__Sweep *m,
		   struct control_tenant **ret_tenant, struct ns **ret_ns, struct why *why)
{
	struct control_tenant *tenant = s->tenant;

	*ret_ns = NULL;
	if (m->ns) {
		*ret_ns = session_seen_ns(s, m->ns, why);
		if (!*ret_ns)
			return -SKVQ_EINVAL;
		tenant = tenant_named(s->control, (*ret_ns)->tenant->name);
	} else if (m->tenant[0]) {
		tenant = tenant_named(s->control, m->tenant);
		if (!tenant || !session_sees(s, tenant->tenant))
			return why_fail(why, SKVQ_EINVAL, "there is no such tenant");
	}
	if (!tenant)
		return why_fail(why, SKVQ_EINVAL, "whose pages? user %u is of no tenant",
				s->peer.uid);
	*ret_tenant = tenant;
	return session_may_steer(s, tenant->tenant, why);
}

static int check(const struct session *s, enum manage_kind kind, const Skvq__Wire__Sweep *m,
		 const struct control_tenant *tenant, struct why *why)
{
	bool evict = kind == MANAGE_EVICT;

	if (m->wait_ms < 1 || m->wait_ms > WAIT_MS_MAX)
		return why_fail(why, SKVQ_EINVAL, "wait_ms is %u, must be 1 to %u", m->wait_ms,
				WAIT_MS_MAX);
	if (!evict && (m->page || m->idle_ms || m->drop || m->count || m->to_disk))
		return why_fail(why, SKVQ_EINVAL, "fields that are of evictions alone");
	if (m->page && (!m->ns || !m->page->generation))
		return why_fail(why, SKVQ_EINVAL, "a page without its namespace or generation");
	if (m->drop && m->to_disk)
		return why_fail(why, SKVQ_EINVAL, "to drop and to write exclude each other");
	if (m->disk && (kind == MANAGE_DRAIN || (evict && !m->drop) || m->page || m->idle_ms))
		return why_fail(why, SKVQ_EINVAL,
				"records of the disk are verified, or dropped with the namespace or "
				"all of the tenant's");
	if ((kind == MANAGE_DRAIN || m->disk || m->to_disk) &&
	    (!tenant->store || !tenant->tenant->tier))
		return why_fail(why, SKVQ_ENOTSUP, "tenant \"%s\" has no store",
				tenant->tenant->name);
	if (tenant->manage[kind])
		return why_fail(why, SKVQ_EBUSY,
				"another such request for tenant \"%s\" is being worked on",
				tenant->tenant->name);
	return session_may_wait(s, why);
}

static enum sweep_kind sweep_kind(enum manage_kind kind, bool count)
{
	static const enum sweep_kind kinds[] = {
	    [MANAGE_EVICT] = SWEEP_EVICT,
	    [MANAGE_VERIFY] = SWEEP_VERIFY,
	    [MANAGE_DRAIN] = SWEEP_DRAIN,
	};

	return count ? SWEEP_COUNT : kinds[kind];
}

/* Once for a round of many requests: what the last one of it was told is where this one begins. */
static void tell(const struct request *rq, const struct manage *m, const Skvq__Wire__Sweep *ask)
{
	static const char *const events[MANAGE_KINDS] = {"evict_asked", "verify_asked",
							 "drain_asked"};

	if (ask->count || ((ask->first_ns || ask->first_slot || ask->first_record) &&
			   !memcmp(m->what, m->tenant->manage_next[m->kind], sizeof(m->what))))
		return;
	log_event(LOG_INFO, events[m->kind], LOG_U64("connection", rq->session->id),
		  LOG_U64("uid", rq->session->peer.uid),
		  LOG_STR("tenant", m->tenant->tenant->name), LOG_U64("ns", ask->ns),
		  LOG_U64("drop", ask->drop), LOG_U64("disk", ask->disk));
}

static int begin(const struct request *rq, enum manage_kind kind, const Skvq__Wire__Sweep *ask,
		 struct why *why)
{
	struct session *session = rq->session;
	struct control *control = session->control;
	struct control_tenant *tenant = NULL;
	struct ns *ns = NULL;
	struct manage *m;
	int err = resolve(session, ask, &tenant, &ns, why);

	if (!err)
		err = check(session, kind, ask, tenant, why);
	if (!err && ask->page &&
	    !page_table_get(&ns->table, (struct page_ref){ask->page->slot, ask->page->generation}))
		err = why_fail(why, SKVQ_ESTALE, "there is no page %u.%u in namespace %u",
			       ask->page->slot, ask->page->generation, ns->id);
	if (err < 0)
		return err;
	m = calloc(1, sizeof(*m));
	if (!m)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a round");
	m->inflight = (struct inflight){.id = rq->id, .orphan = on_orphan};
	m->control = control;
	m->tenant = tenant;
	m->kind = kind;
	m->sweep = (struct sweep){.kind = sweep_kind(kind, ask->count),
				  .tenant = tenant->tenant,
				  .ns = ask->ns,
				  .idle_ms = ask->idle_ms,
				  .drop = ask->drop,
				  .wake = on_wake,
				  .at_ns = ask->first_ns,
				  .at_slot = ask->first_slot};
	if (ask->page)
		m->sweep.page = (struct page_ref){ask->page->slot, ask->page->generation};
	m->disk = ask->disk;
	m->place = ask->first_record;
	m->of_ns = ns != NULL;
	if (ns)
		memcpy(m->ns_name, ns->tier_name, sizeof(m->ns_name));
	m->until_ms = clock_ms() + ask->wait_ms;
	name_round(m->what, session, ask);
	tell(rq, m, ask);
	m->next = control->manage;
	control->manage = m;
	tenant->manage[kind] = m;
	session_link(session, &m->inflight);
	set_timer(control, SLICE_EVERY_MS);
	pump(m);
	return 0;
}

int op_evict(const struct request *rq, struct why *why)
{
	return begin(rq, MANAGE_EVICT, rq->msg->evict, why);
}

int op_verify(const struct request *rq, struct why *why)
{
	return begin(rq, MANAGE_VERIFY, rq->msg->verify, why);
}

int op_drain(const struct request *rq, struct why *why)
{
	return begin(rq, MANAGE_DRAIN, rq->msg->drain, why);
}

/* ---- pages on disk ---- */

static void fill_record(const struct store_record *r, Skvq__Wire__PageInfo *m)
{
	skvq__wire__page_info__init(m);
	m->position = (uint32_t)r->position;
	m->bytes = r->bytes;
	m->state = (char *)(uintptr_t) "stored";
	m->digest = (ProtobufCBinaryData){TIER_DIGEST_BYTES, (uint8_t *)(uintptr_t)r->key.page};
}

int disk_list(const struct request *rq, const struct ns *ns, struct why *why)
{
	const Skvq__Wire__PageList *ask = rq->msg->page_list;
	const struct control_tenant *tenant = tenant_named(rq->session->control, ns->tenant->name);
	uint32_t fits = rq->session->conn.limits.frame_max / RECORD_WIRE_BYTES;
	uint32_t max = ask->max && ask->max < WIRE_PAGE_LIST_MAX ? ask->max : WIRE_PAGE_LIST_MAX;
	CLEANUP_FREE struct store_record *records = NULL;
	CLEANUP_FREE Skvq__Wire__PageInfo *infos = NULL;
	CLEANUP_FREE Skvq__Wire__PageInfo **at = NULL;
	Skvq__Wire__PageListReply body = SKVQ__WIRE__PAGE_LIST_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (!tenant->store || !tenant->tenant->tier)
		return why_fail(why, SKVQ_ENOTSUP, "tenant \"%s\" has no store",
				tenant->tenant->name);
	max = max < fits ? max : fits;
	records = calloc(max, sizeof(*records));
	infos = calloc(max, sizeof(*infos));
	at = calloc(max, sizeof(*at));
	if (!records || !infos || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a list of %u pages", max);
	body.next_record = ask->first_record;
	body.n_pages = store_list(tenant->store, &body.next_record, ns->tier_name, records, max);
	for (uint32_t i = 0; i < body.n_pages; i++) {
		fill_record(&records[i], &infos[i]);
		at[i] = &infos[i];
	}
	body.pages = at;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PAGE_LIST;
	reply.page_list = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

/* ---- one page ---- */

/* A page whose checksums are being looked at. Freed when it is answered. */
struct page_op {
	struct inflight inflight;
	struct ns *ns; /* held by the check */
	struct page_ref ref;
	bool tokens;
};

struct page_answer {
	Skvq__Wire__PageReply body;
	Skvq__Wire__PageInfo info;
	Skvq__Wire__PageRef page, parent;
	Skvq__Wire__PageRef children[CHILDREN_MAX], *children_at[CHILDREN_MAX];
	Skvq__Wire__PageHolder holders[HOLDERS_MAX], *holders_at[HOLDERS_MAX];
	Skvq__Wire__PageLayer layers[SKVQ_LAYERS_MAX], *layers_at[SKVQ_LAYERS_MAX];
	int32_t tokens[SKVQ_PAGE_TOKENS];
};

static void fill_children(const struct page *page, struct page_answer *a)
{
	const struct page_table *table = page->table;

	for (uint32_t i = 0; i < table->touched && i < SCAN_SLOTS && page->children; i++) {
		const struct page *child = &table->pages[i];
		size_t n = a->body.n_children;

		if (child->state == PAGE_FREE || child->parent != page->slot)
			continue;
		skvq__wire__page_ref__init(&a->children[n]);
		a->children[n].slot = child->slot;
		a->children[n].generation = child->generation;
		a->children_at[n] = &a->children[n];
		if (++a->body.n_children == CHILDREN_MAX)
			break;
	}
	a->body.children = a->children_at;
}

static void fill_holders(const struct control *control, const struct page *page,
			 struct page_answer *a)
{
	for (const struct session *s = control->sessions; s; s = s->next) {
		size_t n = a->body.n_holders;
		uint32_t pins = pins_count(&s->pins, page);

		if (!pins || n == HOLDERS_MAX)
			continue;
		skvq__wire__page_holder__init(&a->holders[n]);
		a->holders[n].connection = s->id;
		a->holders[n].pid = s->peer.pid;
		a->holders[n].uid = s->peer.uid;
		a->holders[n].name = (char *)(uintptr_t)s->name;
		a->holders[n].pins = pins;
		a->holders_at[n] = &a->holders[n];
		a->body.n_holders++;
	}
	a->body.holders = a->holders_at;
}

/* What was checked when it came in; only the daemon writes there. */
static void fill_header(const struct page *page, struct page_answer *a)
{
	const struct ns *ns = ns_of(page);
	const struct skvq_layout *l = ns_layout(ns, page->safe);
	const uint8_t *at = ns->arena.base + ns_page_offset(ns, page);
	skvq_page_header h;

	memcpy(&h, at, sizeof(h));
	a->body.version = h.version;
	a->body.n_layer = l->geo.n_layer;
	a->body.n_kv_heads = h.n_kv_heads;
	a->body.head_dim_k = h.head_dim_k;
	a->body.head_dim_v = h.head_dim_v;
	a->body.n_sinks = h.n_sinks;
	a->body.base_bytes = l->base_bytes;
	a->body.refine_bytes = l->refine_bytes;
	a->body.sidecar_bytes =
	    (uint32_t)(ns_page_span(ns, page) - l->base_bytes - l->refine_bytes);
	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		skvq_page_layer layer;
		Skvq__Wire__PageLayer *m = &a->layers[i];

		memcpy(&layer, at + l->layers_offset + i * sizeof(layer), sizeof(layer));
		skvq__wire__page_layer__init(m);
		m->k_bits = layer.k_bits;
		m->v_bits = layer.v_bits;
		m->k_refine_bits = layer.k_refine_bits;
		m->v_refine_bits = layer.v_refine_bits;
		m->k_error = skvq_error_value(layer.k_error);
		m->v_error = skvq_error_value(layer.v_error);
		a->layers_at[i] = m;
	}
	a->body.n_layers = l->geo.n_layer;
	a->body.layers = a->layers_at;
}

static void send_page(struct session *s, uint64_t id, const struct page *page, bool tokens,
		      const char *crc)
{
	CLEANUP_FREE struct page_answer *a = calloc(1, sizeof(*a));
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	const struct page *parent = page_parent(page);
	const struct ns *ns = ns_of(page);

	if (!a) {
		reply_error(s, id, SKVQ_ENOMEM, "no memory to show a page");
		return;
	}
	skvq__wire__page_reply__init(&a->body);
	fill_page_info(page, clock_ms(), &a->info, &a->page, &a->parent, true);
	a->body.found = true;
	a->body.page = &a->info;
	a->body.ns = ns->id;
	a->body.tenant = ns->tenant->name;
	if (parent)
		a->body.parent_digest = (ProtobufCBinaryData){
		    sizeof(parent->digest), (uint8_t *)(uintptr_t)parent->digest};
	a->body.unlisted = page->unlisted;
	a->body.safe = page->safe;
	a->body.on_disk = spill_is_below(page);
	a->body.spilling = page->spilling;
	a->body.crc = (char *)(uintptr_t)crc;
	fill_children(page, a);
	fill_holders(s->control, page, a);
	if (page_readable(page))
		fill_header(page, a);
	if (tokens && page->tokens) {
		memcpy(a->tokens, page->tokens, sizeof(a->tokens));
		a->body.n_tokens = SKVQ_PAGE_TOKENS;
		a->body.tokens = a->tokens;
	}
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PAGE_GET;
	reply.page_get = &a->body;
	reply_send(s, id, &reply, -1);
}

static void page_checked(void *ctx, enum check_end end, uint64_t bytes)
{
	struct page_op *op = ctx;
	struct session *s = op->inflight.session;
	const struct page *page = page_table_get(&op->ns->table, op->ref);

	(void)bytes;
	session_unlink(&op->inflight);
	if (s && end == CHECK_BAD)
		reply_error(s, op->inflight.id, SKVQ_ECORRUPT,
			    "its checksums do not hold: it has been taken out of the cache");
	else if (s && !page)
		reply_error(s, op->inflight.id, SKVQ_ESTALE, "it went just now");
	else if (s)
		send_page(s, op->inflight.id, page, op->tokens,
			  end == CHECK_GOOD ? "good" : "unknown");
	free(op);
}

static void page_orphan(struct inflight *inflight)
{
	(void)inflight; /* nothing of the client's is in it */
}

static int show(const struct request *rq, struct page *page, bool tokens, struct why *why)
{
	struct session *s = rq->session;
	struct page_op *op;
	int err;

	if (!page_readable(page) || page->fill) {
		send_page(s, rq->id, page, tokens, "unknown");
		return 0;
	}
	err = session_may_wait(s, why);
	if (err < 0)
		return err;
	op = calloc(1, sizeof(*op));
	if (!op)
		return why_fail(why, SKVQ_ENOMEM, "no memory to show a page");
	*op = (struct page_op){.inflight = {.id = rq->id, .orphan = page_orphan},
			       .ns = ns_of(page),
			       .ref = page_ref(page),
			       .tokens = tokens};
	err = cache_check(s->control->cache, page, page_checked, op);
	if (err < 0) {
		free(op);
		return why_fail(why, -err, "the workers take no more checks now");
	}
	session_link(s, &op->inflight);
	return 0;
}

static bool begins(const uint8_t *digest, const ProtobufCBinaryData *with, bool half)
{
	size_t whole = with->len - half;

	return !memcmp(digest, with->data, whole) &&
	       (!half || (digest[whole] & 0xf0) == (with->data[whole] & 0xf0));
}

/* What a page says is its tenant's: who may only look is told no tokens. */
static int may_read(const struct session *s, const struct ns *ns, struct why *why)
{
	struct why unused;

	if (session_may_steer(s, ns->tenant, &unused) == 0)
		return 0;
	return why_fail(why, SKVQ_EPERM,
			"user %u may look at pages of tenant \"%s\", and not read their tokens",
			s->peer.uid, ns->tenant->name);
}

int op_page_get(const struct request *rq, struct why *why)
{
	const Skvq__Wire__PageGet *m = rq->msg->page_get;
	struct ns *ns = session_seen_ns(rq->session, m->ns, why);
	Skvq__Wire__PageReply body = SKVQ__WIRE__PAGE_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	uint32_t slot = m->first_slot, looks = 0;
	struct page *page;

	if (!ns)
		return -SKVQ_EINVAL;
	if (m->tokens && may_read(rq->session, ns, why) < 0)
		return -SKVQ_EPERM;
	if (m->page) {
		page = page_table_get(&ns->table,
				      (struct page_ref){m->page->slot, m->page->generation});
		if (!page)
			return why_fail(why, SKVQ_ESTALE, "there is no page %u.%u in namespace %u",
					m->page->slot, m->page->generation, ns->id);
		return show(rq, page, m->tokens, why);
	}
	if (!m->digest.len || m->digest.len > IDENTITY_DIGEST)
		return why_fail(why, SKVQ_EINVAL, "a digest of %zu bytes", m->digest.len);
	for (; slot < ns->table.touched && looks < SCAN_SLOTS; slot++, looks++) {
		page = &ns->table.pages[slot];
		if (page->state != PAGE_FREE && begins(page->digest, &m->digest, m->half))
			return show(rq, page, m->tokens, why);
	}
	body.next_slot = slot < ns->table.touched ? slot : 0;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PAGE_GET;
	reply.page_get = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}
