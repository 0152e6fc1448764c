/* SPDX-License-Identifier: Apache-2.0 */
/* status, namespace_list, page_list, pin_list, error_list, explain: what skvqctl shows. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cache/explain.h"
#include "control/manage.h"

/* Slots one page_list looks at: mostly free tables must not hold up the loop. */
#define SCAN_SLOTS 65536u

#define COUNTERS_MAX (STAT_COUNT + STATS_CODES + STORE_STAT_COUNT)
#define NAME_BYTES   48u /* of a store's counter, with its prefix */

/* ---- status ---- */

struct counters {
	Skvq__Wire__Counter all[COUNTERS_MAX], *at[COUNTERS_MAX];
	uint32_t n;
	char names[STORE_STAT_COUNT][NAME_BYTES];
};

struct histograms {
	Skvq__Wire__Histogram all[HISTOGRAM_COUNT], *at[HISTOGRAM_COUNT];
};

/* One tenant's part of the answer. */
struct tenant_row {
	Skvq__Wire__TenantInfo info;
	Skvq__Wire__Counter refusals[STATS_CODES], *at[STATS_CODES];
};

static void set_counter(Skvq__Wire__Counter *m, const char *name, uint64_t value)
{
	skvq__wire__counter__init(m);
	m->name = (char *)(uintptr_t)name;
	m->value = value;
}

static void add_counter(struct counters *c, const char *name, const char *help, uint64_t value)
{
	set_counter(&c->all[c->n], name, value);
	if (help)
		c->all[c->n].help = (char *)(uintptr_t)help;
	c->at[c->n] = &c->all[c->n];
	c->n++;
}

/* Over the stores of the tenants that the session sees. */
static uint64_t sum_store(const struct session *s, enum store_stat stat)
{
	struct control *control = s->control;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < control->cache->n_tenants; i++) {
		const struct control_tenant *t = &control->tenants[i];

		if (t->store && session_sees(s, t->tenant))
			sum += store_stat(t->store, stat);
	}
	return sum;
}

static struct stats *stats_seen(const struct session *s)
{
	return s->admin ? s->control->stats : &s->tenant->tenant->stats;
}

static void add_histograms(struct stats *stats, bool help, struct histograms *h,
			   Skvq__Wire__StatusReply *body)
{
	for (uint32_t i = 0; i < HISTOGRAM_COUNT; i++) {
		skvq__wire__histogram__init(&h->all[i]);
		h->all[i].name = (char *)(uintptr_t)stats_histogram_name(i);
		if (help)
			h->all[i].help = (char *)(uintptr_t)stats_histogram_help(i);
		h->all[i].sum = stats->histogram[i].sum;
		h->all[i].n_buckets = STATS_BUCKETS;
		h->all[i].buckets = stats->histogram[i].n;
		h->at[i] = &h->all[i];
	}
	body->n_histograms = HISTOGRAM_COUNT;
	body->histograms = h->at;
}

static void add_counters(struct counters *c, const struct session *s, bool help)
{
	const struct control *control = s->control;
	const struct stats *stats = stats_seen(s);
	const char *name;
	uint64_t value;

	for (uint32_t i = 0; (name = stats_at(stats, i, &value)); i++)
		add_counter(c, name, help ? stats_help(i) : NULL, value);
	for (uint32_t i = 0; control->tenants[0].store &&
			     (name = store_stat_at(control->tenants[0].store, i, &value));
	     i++) {
		(void)snprintf(c->names[i], NAME_BYTES, "store_%s", name);
		add_counter(c, c->names[i], help ? store_stat_help(i) : NULL,
			    sum_store(s, (enum store_stat)i));
	}
}

static void fill_tenant(const struct cache *cache, const struct control_tenant *t,
			struct tenant_row *row)
{
	const struct tenant_params *limits = &t->tenant->limits;
	const struct tenant *tenant = t->tenant;
	Skvq__Wire__TenantInfo *m = &row->info;
	const char *name;
	uint64_t value;

	skvq__wire__tenant_info__init(m);
	m->name = (char *)(uintptr_t)tenant->name;
	m->connections = t->n_sessions;
	m->connections_max = t->config->connections_max;
	m->namespaces = tenant->n_namespaces;
	m->namespaces_max =
	    limits->namespaces_max ? limits->namespaces_max : cache->config.namespaces_max;
	m->pages = tenant->pages;
	m->bytes = tenant->bytes;
	m->bytes_held = tenant->held;
	m->bytes_min = limits->ram_min;
	m->bytes_max = limits->ram_max ? limits->ram_max : cache->config.ram_max;
	m->pins = tenant->pins;
	m->pins_max = limits->pins_max;
	m->disk_bytes = t->store ? store_stat(t->store, STORE_STAT_charged_bytes) : 0;
	m->disk_bytes_max = t->store ? t->config->disk_max : 0;
	m->calibration_bytes = t->calibration_bytes;
	m->calibration_bytes_max = t->config->calibration_max;
	m->evictions = tenant->stats.n[STAT_evictions];
	for (uint32_t i = STAT_COUNT; (name = stats_at(&tenant->stats, i, &value)); i++) {
		if (!value)
			continue;
		set_counter(&row->refusals[m->n_refusals], name, value);
		row->at[m->n_refusals] = &row->refusals[m->n_refusals];
		m->n_refusals++;
	}
	m->refusals = row->at;
}

/* What the session sees of memory, connections and disk, one tenant after the other. */
static void add_tenants(const struct session *s, struct tenant_row *rows,
			Skvq__Wire__TenantInfo **at, Skvq__Wire__StatusReply *body)
{
	struct control *control = s->control;
	const struct cache *cache = control->cache;

	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		const struct control_tenant *t = &control->tenants[i];
		struct tenant_row *row = &rows[body->n_tenants];

		if (!session_sees(s, t->tenant))
			continue;
		fill_tenant(cache, t, row);
		at[body->n_tenants++] = &row->info;
		body->connections += row->info.connections;
		body->namespaces += row->info.namespaces;
		body->pages += row->info.pages;
		body->bytes_resident += row->info.bytes;
		body->pins += row->info.pins;
		body->has_store = body->has_store || t->store;
		body->bytes_stored += t->tenant->bytes_stored;
		body->disk_bytes_max += row->info.disk_bytes_max;
	}
	body->disk_bytes = sum_store(s, STORE_STAT_charged_bytes);
	body->disk_pages = sum_store(s, STORE_STAT_records);
	body->tenants = at;
	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (session_sees(s, ns->tenant))
			body->bytes_kernel += ns->kernel_bytes;
	}
}

int op_status(const struct request *rq, struct why *why)
{
	struct session *s = rq->session;
	struct control *control = s->control;
	uint32_t n = control->cache->n_tenants;
	CLEANUP_FREE struct counters *counters = calloc(1, sizeof(*counters));
	CLEANUP_FREE struct tenant_row *rows = calloc(n, sizeof(*rows));
	CLEANUP_FREE Skvq__Wire__TenantInfo **at = calloc(n, sizeof(*at));
	Skvq__Wire__StatusReply body = SKVQ__WIRE__STATUS_REPLY__INIT;
	struct histograms histograms;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (!counters || !rows || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a status");
	(void)cache_kernel_bytes(control->cache);
	add_tenants(s, rows, at, &body);
	if (s->admin)
		body.connections += control->n_strangers;
	body.connections_max = s->admin ? control->config.connections_max
					: s->tenant->config->connections_max;
	body.bytes_max = s->admin ? control->cache->config.ram_max : at[0]->bytes_max;
	body.version = (char *)(uintptr_t)control->config.version;
	body.socket = (char *)(uintptr_t)(s->admin ? control->config.socket
						   : s->tenant->config->socket);
	body.pid = (uint64_t)getpid();
	body.uptime_ms = clock_ms() - control->started_ms;
	add_counters(counters, s, rq->msg->status->help);
	body.n_counters = counters->n;
	body.counters = counters->at;
	add_histograms(stats_seen(s), rq->msg->status->help, &histograms, &body);
	reply.body_case = SKVQ__WIRE__REPLY__BODY_STATUS;
	reply.status = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

/* ---- lists ---- */

static void fill_namespace(const struct ns *ns, Skvq__Wire__NamespaceInfo *m)
{
	skvq__wire__namespace_info__init(m);
	m->ns = ns->id;
	m->tenant = (char *)(uintptr_t)ns->tenant->name;
	m->identity_digest.len = IDENTITY_DIGEST;
	m->identity_digest.data = (uint8_t *)(uintptr_t)ns->digest;
	m->model_name = (char *)(uintptr_t)ns->model_name;
	m->profile = (char *)(uintptr_t)ns->identity.profile;
	m->engine_numerics = (char *)(uintptr_t)ns->identity.engine_numerics;
	m->n_layer = ns->identity.n_layer;
	m->n_kv_heads = ns->identity.n_kv_heads;
	m->head_dim_k = ns->identity.head_dim_k;
	m->head_dim_v = ns->identity.head_dim_v;
	m->page_bytes = ns->layout.base_bytes;
	m->pages = ns->table.live;
	m->bytes = ns->bytes;
	m->pins = ns->pins;
	m->tokens_asked = ns->tokens_asked;
	m->tokens_matched = ns->tokens_matched;
	m->page_hits = ns->page_hits;
	m->evictions = ns->evictions;
	m->pages_safe = ns->pages_safe;
}

int op_namespace_list(const struct request *rq, struct why *why)
{
	struct cache *cache = rq->session->control->cache;
	uint32_t n = cache->n_namespaces, i = 0;
	CLEANUP_FREE Skvq__Wire__NamespaceInfo *infos = calloc(n + 1, sizeof(*infos));
	CLEANUP_FREE Skvq__Wire__NamespaceInfo **at = calloc(n + 1, sizeof(*at));
	Skvq__Wire__NamespaceListReply body = SKVQ__WIRE__NAMESPACE_LIST_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (!infos || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a list of %u namespaces", n);
	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (!session_sees(rq->session, ns->tenant))
			continue;
		fill_namespace(ns, &infos[i]);
		at[i] = &infos[i];
		i++;
	}
	body.n_namespaces = i;
	body.namespaces = at;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_NAMESPACE_LIST;
	reply.namespace_list = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

/* A page in a list and the refs its message points at. */
struct page_row {
	Skvq__Wire__PageInfo info;
	Skvq__Wire__PageRef page, parent;
};

static void fill_ref(Skvq__Wire__PageRef *m, const struct page *page)
{
	skvq__wire__page_ref__init(m);
	m->slot = page->slot;
	m->generation = page->generation;
}

void fill_page_info(const struct page *page, uint64_t now_ms, Skvq__Wire__PageInfo *info,
		    Skvq__Wire__PageRef *ref, Skvq__Wire__PageRef *parent_ref, bool digest)
{
	const struct page *parent = page_parent(page);

	skvq__wire__page_info__init(info);
	fill_ref(ref, page);
	info->page = ref;
	if (parent) {
		fill_ref(parent_ref, parent);
		info->parent = parent_ref;
	}
	info->position = page->position;
	info->state = (char *)(uintptr_t)page_state_name((enum page_state)page->state);
	info->pins = page->pins;
	info->children = page->children;
	info->bytes = page->bytes;
	info->hits = page->hits;
	info->age_ms = now_ms - page->born_ms;
	info->idle_ms = now_ms - page->used_ms;
	info->shed = page->shed;
	if (digest)
		info->digest = (ProtobufCBinaryData){sizeof(page->digest),
						     (uint8_t *)(uintptr_t)page->digest};
}

int op_page_list(const struct request *rq, struct why *why)
{
	const Skvq__Wire__PageList *m = rq->msg->page_list;
	struct ns *ns = session_seen_ns(rq->session, m->ns, why);
	uint32_t max = m->max && m->max < WIRE_PAGE_LIST_MAX ? m->max : WIRE_PAGE_LIST_MAX;
	CLEANUP_FREE struct page_row *rows = calloc(max, sizeof(*rows));
	CLEANUP_FREE Skvq__Wire__PageInfo **at = calloc(max, sizeof(*at));
	Skvq__Wire__PageListReply body = SKVQ__WIRE__PAGE_LIST_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	uint64_t now_ms = clock_ms();
	uint32_t slot = m->first_slot, n = 0, scanned = 0;

	if (!ns)
		return -SKVQ_EINVAL;
	if (m->disk)
		return disk_list(rq, ns, why);
	if (!rows || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a list of %u pages", max);
	for (; slot < ns->table.touched && n < max && scanned < SCAN_SLOTS; slot++, scanned++) {
		const struct page *page = &ns->table.pages[slot];

		if (page->state == PAGE_FREE)
			continue;
		fill_page_info(page, now_ms, &rows[n].info, &rows[n].page, &rows[n].parent,
			       rq->session->features & WIRE_MANAGE);
		at[n] = &rows[n].info;
		n++;
	}
	body.n_pages = n;
	body.pages = at;
	body.next_slot = slot < ns->table.touched ? slot : 0;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PAGE_LIST;
	reply.page_list = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

int op_pin_list(const struct request *rq, struct why *why)
{
	struct control *control = rq->session->control;
	uint32_t n = control->n_sessions, i = 0;
	CLEANUP_FREE Skvq__Wire__PinInfo *infos = calloc(n + 1, sizeof(*infos));
	CLEANUP_FREE Skvq__Wire__PinInfo **at = calloc(n + 1, sizeof(*at));
	Skvq__Wire__PinListReply body = SKVQ__WIRE__PIN_LIST_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	uint64_t now_ms = clock_ms();

	if (!infos || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a list of %u connections", n);
	for (const struct session *s = control->sessions; s; s = s->next) {
		if (s->tenant ? !session_sees(rq->session, s->tenant->tenant) : !rq->session->admin)
			continue;
		skvq__wire__pin_info__init(&infos[i]);
		infos[i].connection = s->id;
		infos[i].pid = s->peer.pid;
		infos[i].uid = s->peer.uid;
		infos[i].gid = s->peer.gid;
		infos[i].name = (char *)(uintptr_t)s->name;
		infos[i].pins = s->pins.total;
		infos[i].pages = s->pins.pages;
		infos[i].bytes = pins_bytes(&s->pins);
		infos[i].age_ms = now_ms - s->born_ms;
		at[i] = &infos[i];
		i++;
	}
	body.n_pins = i;
	body.pins = at;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PIN_LIST;
	reply.pin_list = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

static void fill_error(const struct ns *ns, uint32_t i, Skvq__Wire__ErrorInfo *m)
{
	const struct skvq_layer_layout *ll = &ns->layout.layers[i / 2];
	struct layer_errors *e = &ns->errors[i];

	skvq__wire__error_info__init(m);
	m->layer = i / 2;
	m->is_v = i % 2;
	m->bits = i % 2 ? ll->v.bits : ll->k.bits;
	m->pages = e->pages;
	m->sum = e->sum;
	m->max = (double)e->max;
	m->n_histogram = SKVQ_ERROR_BUCKETS;
	m->histogram = e->histogram;
}

int op_error_list(const struct request *rq, struct why *why)
{
	const struct ns *ns = session_seen_ns(rq->session, rq->msg->error_list->ns, why);
	uint32_t n = ns ? 2 * ns->layout.geo.n_layer : 0;
	CLEANUP_FREE Skvq__Wire__ErrorInfo *infos = calloc(n + 1, sizeof(*infos));
	CLEANUP_FREE Skvq__Wire__ErrorInfo **at = calloc(n + 1, sizeof(*at));
	Skvq__Wire__ErrorListReply body = SKVQ__WIRE__ERROR_LIST_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (!ns)
		return -SKVQ_EINVAL;
	if (!infos || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for the errors of %u layers", n / 2);
	for (uint32_t i = 0; i < n; i++) {
		fill_error(ns, i, &infos[i]);
		at[i] = &infos[i];
	}
	body.n_errors = n;
	body.errors = at;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_ERROR_LIST;
	reply.error_list = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

int op_explain(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Explain *m = rq->msg->explain;
	struct explain e = {.ns = session_seen_ns(rq->session, m->ns, why),
			    .tokens = m->tokens,
			    .n_tokens = (uint32_t)m->n_tokens,
			    .first_slot = m->first_slot};
	Skvq__Wire__ExplainReply body = SKVQ__WIRE__EXPLAIN_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	int err = e.ns ? cache_explain(rq->session->control->cache, &e, why) : -SKVQ_EINVAL;

	if (err < 0)
		return err;
	body.n_memory = e.n_memory;
	body.n_disk = e.n_disk;
	body.disk_ms = e.disk_ms;
	body.end = (char *)(uintptr_t)explain_end_name(e.end);
	body.gone_ms = e.gone_ms;
	body.same_tokens = e.same_tokens;
	body.shift = e.shift;
	if (e.other) {
		body.other_ns = e.other->id;
		body.other_pages = e.other_pages;
		body.other_differs = (char *)(uintptr_t)(e.other_differs ? e.other_differs : "");
	}
	body.next_slot = e.next_slot;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_EXPLAIN;
	reply.explain = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}
