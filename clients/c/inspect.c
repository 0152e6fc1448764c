/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that look and do not touch: what skvqctl shows. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>


int skvq_client_ping(struct skvq_client *c, const void *payload, size_t bytes)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Ping ping = SKVQ__WIRE__PING__INIT;
	Skvq__Wire__Reply *reply = NULL;

	ping.payload.data = (uint8_t *)(uintptr_t)payload;
	ping.payload.len = bytes;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_PING;
	req.ping = &ping;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_PING, &reply, NULL);
	if (r < 0)
		return r;
	if (reply->ping->payload.len != bytes ||
	    (bytes && memcmp(reply->ping->payload.data, payload, bytes) != 0))
		r = client_break(c, SKVQ_EPROTO, "the daemon's echo differs from what was sent");
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r;
}

static void copy_tenant(const Skvq__Wire__TenantInfo *m, struct skvq_client_tenant *o)
{
	COPY_TEXT(o->name, m->name);
	o->connections = m->connections;
	o->connections_max = m->connections_max;
	o->namespaces = m->namespaces;
	o->namespaces_max = m->namespaces_max;
	o->pages = m->pages;
	o->bytes = m->bytes;
	o->bytes_held = m->bytes_held;
	o->bytes_min = m->bytes_min;
	o->bytes_max = m->bytes_max;
	o->pins = m->pins;
	o->pins_max = m->pins_max;
	o->disk_bytes = m->disk_bytes;
	o->disk_bytes_max = m->disk_bytes_max;
	o->calibration_bytes = m->calibration_bytes;
	o->calibration_bytes_max = m->calibration_bytes_max;
	o->evictions = m->evictions;
	for (size_t i = 0; i < m->n_refusals && o->n_refusals < SKVQ_CLIENT_REFUSALS; i++) {
		COPY_TEXT(o->refusals[o->n_refusals].name, m->refusals[i]->name);
		o->refusals[o->n_refusals++].value = m->refusals[i]->value;
	}
}

static void copy_histogram(const Skvq__Wire__Histogram *m, struct skvq_client_histogram *o)
{
	COPY_TEXT(o->name, m->name);
	COPY_TEXT(o->help, m->help);
	o->sum = m->sum;
	for (size_t i = 0; i < m->n_buckets; i++)
		o->buckets[i < SKVQ_CLIENT_BUCKETS ? i : SKVQ_CLIENT_BUCKETS - 1] += m->buckets[i];
}

static int ask_status(struct skvq_client *c, bool help, struct skvq_client_status *ret)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StatusGet get = SKVQ__WIRE__STATUS_GET__INIT;
	Skvq__Wire__Reply *reply = NULL;

	get.help = help;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_STATUS;
	req.status = &get;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_STATUS, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__StatusReply *b = reply->status;
	memset(ret, 0, sizeof *ret);
	COPY_TEXT(ret->version, b->version);
	COPY_TEXT(ret->socket, b->socket);
	ret->pid = b->pid;
	ret->uptime_ms = b->uptime_ms;
	ret->connections = b->connections;
	ret->connections_max = b->connections_max;
	ret->namespaces = b->namespaces;
	ret->pages = b->pages;
	ret->bytes_resident = b->bytes_resident;
	ret->bytes_kernel = b->bytes_kernel;
	ret->bytes_max = b->bytes_max;
	ret->pins = b->pins;
	ret->has_store = b->has_store;
	ret->bytes_stored = b->bytes_stored;
	ret->disk_bytes = b->disk_bytes;
	ret->disk_bytes_max = b->disk_bytes_max;
	ret->disk_pages = b->disk_pages;
	const size_t room = sizeof ret->counters / sizeof ret->counters[0];
	for (size_t i = 0; i < b->n_counters && ret->n_counters < room; i++) {
		COPY_TEXT(ret->counters[ret->n_counters].name, b->counters[i]->name);
		COPY_TEXT(ret->counters[ret->n_counters].help, b->counters[i]->help);
		ret->counters[ret->n_counters++].value = b->counters[i]->value;
	}
	for (size_t i = 0; i < b->n_tenants && ret->n_tenants < SKVQ_CLIENT_TENANTS; i++)
		copy_tenant(b->tenants[i], &ret->tenants[ret->n_tenants++]);
	for (size_t i = 0; i < b->n_histograms && ret->n_histograms < SKVQ_CLIENT_HISTOGRAMS; i++)
		copy_histogram(b->histograms[i], &ret->histograms[ret->n_histograms++]);
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_status(struct skvq_client *c, struct skvq_client_status *ret)
{
	return ask_status(c, false, ret);
}

int skvq_client_status_with_help(struct skvq_client *c, struct skvq_client_status *ret)
{
	int r = ask_status(c, true, ret);

	/* A daemon with small frames: what counts is worth more than what it is called. */
	return r == -SKVQ_ELIMIT ? ask_status(c, false, ret) : r;
}

int skvq_client_namespaces(struct skvq_client *c, struct skvq_client_ns_info **ret, size_t *ret_n)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__NamespaceList list = SKVQ__WIRE__NAMESPACE_LIST__INIT;
	Skvq__Wire__Reply *reply = NULL;

	req.body_case = SKVQ__WIRE__REQUEST__BODY_NAMESPACE_LIST;
	req.namespace_list = &list;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_NAMESPACE_LIST, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__NamespaceListReply *b = reply->namespace_list;
	struct skvq_client_ns_info *out = calloc(b->n_namespaces + 1, sizeof *out);
	if (!out) {
		skvq__wire__reply__free_unpacked(reply, NULL);
		return client_fail(c, SKVQ_ENOMEM, "no memory for the list of namespaces");
	}
	for (size_t i = 0; i < b->n_namespaces; i++) {
		const Skvq__Wire__NamespaceInfo *n = b->namespaces[i];
		struct skvq_client_ns_info *o = &out[i];

		o->ns = n->ns;
		COPY_TEXT(o->tenant, n->tenant);
		if (n->identity_digest.len == sizeof o->identity_digest)
			memcpy(o->identity_digest, n->identity_digest.data, sizeof o->identity_digest);
		COPY_TEXT(o->model_name, n->model_name);
		COPY_TEXT(o->profile, n->profile);
		COPY_TEXT(o->engine_numerics, n->engine_numerics);
		o->n_layer = n->n_layer;
		o->n_kv_heads = n->n_kv_heads;
		o->head_dim_k = n->head_dim_k;
		o->head_dim_v = n->head_dim_v;
		o->page_bytes = n->page_bytes;
		o->pages = n->pages;
		o->bytes = n->bytes;
		o->pins = n->pins;
		o->tokens_asked = n->tokens_asked;
		o->tokens_matched = n->tokens_matched;
		o->page_hits = n->page_hits;
		o->evictions = n->evictions;
		o->pages_safe = n->pages_safe;
	}
	*ret = out;
	*ret_n = b->n_namespaces;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

void client_digest(const ProtobufCBinaryData *from, uint8_t to[32])
{
	if (from->len == 32)
		memcpy(to, from->data, 32);
}

void client_page_info(const Skvq__Wire__PageInfo *p, struct skvq_client_page_info *o)
{
	o->page = (struct skvq_page_ref){p->page->slot, p->page->generation};
	if (p->parent)
		o->parent = (struct skvq_page_ref){p->parent->slot, p->parent->generation};
	o->position = p->position;
	COPY_TEXT(o->state, p->state);
	o->pins = p->pins;
	o->children = p->children;
	o->bytes = p->bytes;
	o->hits = p->hits;
	o->age_ms = p->age_ms;
	o->idle_ms = p->idle_ms;
	o->shed = p->shed;
	client_digest(&p->digest, o->digest);
}

int skvq_client_pages(struct skvq_client *c, uint32_t ns, uint32_t first_slot, uint32_t max,
                      struct skvq_client_page_info **ret, size_t *ret_n, uint32_t *ret_next)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__PageList list = SKVQ__WIRE__PAGE_LIST__INIT;
	Skvq__Wire__Reply *reply = NULL;

	list.ns = ns;
	list.first_slot = first_slot;
	list.max = max;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_PAGE_LIST;
	req.page_list = &list;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_PAGE_LIST, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__PageListReply *b = reply->page_list;
	struct skvq_client_page_info *out = calloc(b->n_pages + 1, sizeof *out);
	if (!out) {
		skvq__wire__reply__free_unpacked(reply, NULL);
		return client_fail(c, SKVQ_ENOMEM, "no memory for the list of pages");
	}
	size_t n = 0;
	for (size_t i = 0; i < b->n_pages; i++) {
		if (b->pages[i]->page) /* one without a name cannot be shown */
			client_page_info(b->pages[i], &out[n++]);
	}
	*ret = out;
	*ret_n = n;
	*ret_next = b->next_slot;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_pins(struct skvq_client *c, struct skvq_client_pin_info **ret, size_t *ret_n)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__PinList list = SKVQ__WIRE__PIN_LIST__INIT;
	Skvq__Wire__Reply *reply = NULL;

	req.body_case = SKVQ__WIRE__REQUEST__BODY_PIN_LIST;
	req.pin_list = &list;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_PIN_LIST, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__PinListReply *b = reply->pin_list;
	struct skvq_client_pin_info *out = calloc(b->n_pins + 1, sizeof *out);
	if (!out) {
		skvq__wire__reply__free_unpacked(reply, NULL);
		return client_fail(c, SKVQ_ENOMEM, "no memory for the list of pins");
	}
	for (size_t i = 0; i < b->n_pins; i++) {
		const Skvq__Wire__PinInfo *p = b->pins[i];
		struct skvq_client_pin_info *o = &out[i];

		o->connection = p->connection;
		o->pid = p->pid;
		o->uid = p->uid;
		o->gid = p->gid;
		COPY_TEXT(o->name, p->name);
		o->pins = p->pins;
		o->pages = p->pages;
		o->bytes = p->bytes;
		o->age_ms = p->age_ms;
	}
	*ret = out;
	*ret_n = b->n_pins;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_errors(struct skvq_client *c, uint32_t ns, struct skvq_client_error_info **ret,
                       size_t *ret_n)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__ErrorList list = SKVQ__WIRE__ERROR_LIST__INIT;
	Skvq__Wire__Reply *reply = NULL;

	if (!c->broken && !(c->hello.features & FEATURE_ERROR_LIST))
		return client_fail(c, SKVQ_ENOTSUP, "skvqd %s keeps no errors of pages",
		                   c->hello.version);
	list.ns = ns;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_ERROR_LIST;
	req.error_list = &list;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_ERROR_LIST, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__ErrorListReply *b = reply->error_list;
	struct skvq_client_error_info *out = calloc(b->n_errors + 1, sizeof *out);
	if (!out) {
		skvq__wire__reply__free_unpacked(reply, NULL);
		return client_fail(c, SKVQ_ENOMEM, "no memory for the list of errors");
	}
	for (size_t i = 0; i < b->n_errors; i++) {
		const Skvq__Wire__ErrorInfo *e = b->errors[i];
		struct skvq_client_error_info *o = &out[i];

		o->layer = e->layer;
		o->is_v = e->is_v;
		o->bits = e->bits;
		o->pages = e->pages;
		o->sum = e->sum;
		o->max = e->max;
		for (size_t k = 0; k < e->n_histogram && k < SKVQ_CLIENT_ERROR_BUCKETS; k++)
			o->histogram[k] = e->histogram[k];
	}
	*ret = out;
	*ret_n = b->n_errors;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

static int explain_once(struct skvq_client *c, Skvq__Wire__Explain *ask,
                        struct skvq_client_explanation *ret)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Reply *reply = NULL;

	req.body_case = SKVQ__WIRE__REQUEST__BODY_EXPLAIN;
	req.explain = ask;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_EXPLAIN, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__ExplainReply *b = reply->explain;
	const uint32_t same = ret->same_tokens;
	const int32_t shift = ret->shift;
	*ret = (struct skvq_client_explanation){
	    .n_memory = b->n_memory,
	    .n_disk = b->n_disk,
	    .disk_ms = b->disk_ms,
	    .gone_ms = b->gone_ms,
	    .same_tokens = b->same_tokens > same ? b->same_tokens : same,
	    .shift = b->shift ? b->shift : shift,
	    .other_ns = b->other_ns,
	    .other_pages = b->other_pages,
	};
	COPY_TEXT(ret->end, b->end);
	COPY_TEXT(ret->other_differs, b->other_differs);
	/* The scan goes on: a page that differs may be among the rest. */
	if (!strcmp(ret->end, "unknown") && ret->same_tokens && !ret->n_disk)
		COPY_TEXT(ret->end, "differs");
	ask->first_slot = b->next_slot > ask->first_slot ? b->next_slot : 0;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_explain(struct skvq_client *c, uint32_t ns, const int32_t *tokens,
                        uint32_t n_tokens, struct skvq_client_explanation *ret)
{
	Skvq__Wire__Explain ask = SKVQ__WIRE__EXPLAIN__INIT;
	int r;

	if (!c->broken && !(c->hello.features & FEATURE_EXPLAIN))
		return client_fail(c, SKVQ_ENOTSUP, "skvqd %s explains no matches",
		                   c->hello.version);
	if (n_tokens / 4 > c->hello.frame_bytes_max / 16 - 16)
		return client_fail(c, SKVQ_ERANGE, "%u tokens are more than a request holds",
		                   n_tokens);
	memset(ret, 0, sizeof *ret);
	ask.ns = ns;
	ask.n_tokens = n_tokens;
	ask.tokens = (int32_t *)(uintptr_t)tokens;
	/* A round looks at 65,536 slots: more rounds than a daemon has memory for are none. */
	uint32_t rounds = 0;
	do
		r = explain_once(c, &ask, ret);
	while (r >= 0 && ask.first_slot && ++rounds < 4096);
	return r;
}
