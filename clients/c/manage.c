/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that look at one page, and those that do something to many. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISK_BATCH 1024

static int has_feature(struct skvq_client *c)
{
	if (c->broken || (c->hello.features & FEATURE_MANAGE))
		return 0;
	return client_fail(c, SKVQ_ENOTSUP, "skvqd %s cannot do this", c->hello.version);
}

int skvq_client_disk_pages(struct skvq_client *c, uint32_t ns, uint64_t *place,
                           struct skvq_client_disk_page **ret, size_t *ret_n)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__PageList list = SKVQ__WIRE__PAGE_LIST__INIT;
	Skvq__Wire__Reply *reply = NULL;
	int r = has_feature(c);

	if (r < 0)
		return r;
	list.ns = ns;
	list.disk = true;
	list.max = DISK_BATCH;
	list.first_record = *place;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_PAGE_LIST;
	req.page_list = &list;
	r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_PAGE_LIST, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__PageListReply *b = reply->page_list;
	struct skvq_client_disk_page *out = calloc(b->n_pages + 1, sizeof *out);
	if (!out) {
		skvq__wire__reply__free_unpacked(reply, NULL);
		return client_fail(c, SKVQ_ENOMEM, "no memory for the list of pages");
	}
	for (size_t i = 0; i < b->n_pages; i++) {
		client_digest(&b->pages[i]->digest, out[i].digest);
		out[i].position = b->pages[i]->position;
		out[i].bytes = b->pages[i]->bytes;
	}
	*ret = out;
	*ret_n = b->n_pages;
	/* One that stands still or goes back would be asked for ever. */
	*place = b->next_record > *place ? b->next_record : 0;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

/* ---- one page ---- */

static void copy_page(const Skvq__Wire__PageReply *b, struct skvq_client_page *o)
{
	client_page_info(b->page, &o->info);
	o->ns = b->ns;
	COPY_TEXT(o->tenant, b->tenant);
	client_digest(&b->parent_digest, o->parent_digest);
	o->unlisted = b->unlisted;
	o->safe = b->safe;
	o->on_disk = b->on_disk;
	o->spilling = b->spilling;
	COPY_TEXT(o->crc, b->crc);
	o->version = b->version;
	o->n_kv_heads = b->n_kv_heads;
	o->head_dim_k = b->head_dim_k;
	o->head_dim_v = b->head_dim_v;
	o->n_sinks = b->n_sinks;
	o->base_bytes = b->base_bytes;
	o->refine_bytes = b->refine_bytes;
	o->sidecar_bytes = b->sidecar_bytes;
	for (size_t i = 0; i < b->n_children && i < SKVQ_CLIENT_PAGE_CHILDREN; i++)
		o->children[o->n_children++] =
		    (struct skvq_page_ref){b->children[i]->slot, b->children[i]->generation};
	for (size_t i = 0; i < b->n_holders && i < SKVQ_CLIENT_PAGE_HOLDERS; i++) {
		struct skvq_client_holder *h = &o->holders[o->n_holders++];

		h->connection = b->holders[i]->connection;
		h->pid = b->holders[i]->pid;
		h->uid = b->holders[i]->uid;
		h->pins = b->holders[i]->pins;
		COPY_TEXT(h->name, b->holders[i]->name);
	}
	for (size_t i = 0; i < b->n_layers && i < SKVQ_CLIENT_PAGE_LAYERS; i++)
		o->layers[o->n_layers++] = (struct skvq_client_page_layer){
		    .k_bits = b->layers[i]->k_bits,
		    .v_bits = b->layers[i]->v_bits,
		    .k_refine_bits = b->layers[i]->k_refine_bits,
		    .v_refine_bits = b->layers[i]->v_refine_bits,
		    .k_error = (double)b->layers[i]->k_error,
		    .v_error = (double)b->layers[i]->v_error,
		};
	for (size_t i = 0; i < b->n_tokens && i < SKVQ_CLIENT_PAGE_TOKENS; i++)
		o->tokens[o->n_tokens++] = b->tokens[i];
}

/* 1: found. 0: not yet, *ret_next says where to go on. */
static int get_page(struct skvq_client *c, Skvq__Wire__PageGet *ask, struct skvq_client_page *ret,
                    uint32_t *ret_next)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Reply *reply = NULL;

	req.body_case = SKVQ__WIRE__REQUEST__BODY_PAGE_GET;
	req.page_get = ask;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_PAGE_GET, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__PageReply *b = reply->page_get;
	*ret_next = b->next_slot;
	if (b->found && b->page && b->page->page) {
		memset(ret, 0, sizeof *ret);
		copy_page(b, ret);
		r = 1;
	}
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r;
}

int skvq_client_page_get(struct skvq_client *c, uint32_t ns, struct skvq_page_ref page, bool tokens,
                         struct skvq_client_page *ret)
{
	Skvq__Wire__PageGet ask = SKVQ__WIRE__PAGE_GET__INIT;
	Skvq__Wire__PageRef ref = SKVQ__WIRE__PAGE_REF__INIT;
	uint32_t next;
	int r = has_feature(c);

	if (r < 0)
		return r;
	ref.slot = page.slot;
	ref.generation = page.generation;
	ask.ns = ns;
	ask.page = &ref;
	ask.tokens = tokens;
	r = get_page(c, &ask, ret, &next);
	return r ? (r < 0 ? r : 0) : client_fail(c, SKVQ_EPROTO, "the daemon shows no page");
}

int skvq_client_page_find(struct skvq_client *c, uint32_t ns, const uint8_t *digest, uint32_t digits,
                          bool tokens, uint32_t *slot, struct skvq_client_page *ret)
{
	Skvq__Wire__PageGet ask = SKVQ__WIRE__PAGE_GET__INIT;
	int r = has_feature(c);

	if (r < 0)
		return r;
	if (digits < 1 || digits > 64)
		return client_fail(c, SKVQ_EINVAL, "a digest has 1 to 64 digits, not %u", digits);
	ask.ns = ns;
	ask.digest.len = (digits + 1) / 2;
	ask.digest.data = (uint8_t *)(uintptr_t)digest;
	ask.half = digits % 2;
	ask.tokens = tokens;
	do {
		uint32_t next;

		ask.first_slot = *slot;
		r = get_page(c, &ask, ret, &next);
		if (r > 0)
			next = ret->info.page.slot + 1;
		else if (r < 0 || next <= *slot)
			break;
		*slot = next;
	} while (!r);
	return r;
}

/* ---- rounds ---- */

static void add(const Skvq__Wire__SweepReply *b, struct skvq_client_sweep *s)
{
	s->done = b->done;
	s->at_ns = b->next_ns;
	s->at_slot = b->next_slot;
	s->at_record = b->next_record;
	s->pages += b->pages;
	s->bytes += b->bytes;
	s->held += b->held;
	s->unwritten += b->unwritten;
	s->unwritten_bytes += b->unwritten_bytes;
	s->written += b->written;
	s->written_bytes += b->written_bytes;
	s->refused += b->refused;
	s->over_budget += b->over_budget;
	s->damaged += b->damaged;
	s->unread += b->unread;
	s->has_store = b->has_store;
}

static int sweep(struct skvq_client *c, struct skvq_client_sweep *s, int what, int answer)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Sweep ask = SKVQ__WIRE__SWEEP__INIT;
	Skvq__Wire__PageRef ref = SKVQ__WIRE__PAGE_REF__INIT;
	Skvq__Wire__Reply *reply = NULL;
	int r = has_feature(c);

	if (r < 0)
		return r;
	ask.tenant = s->tenant ? (char *)(uintptr_t)s->tenant : ask.tenant;
	ask.ns = s->ns;
	ref.slot = s->page.slot;
	ref.generation = s->page.generation;
	ask.page = ref.generation ? &ref : NULL;
	ask.idle_ms = s->idle_ms;
	ask.drop = s->drop;
	ask.count = s->count;
	ask.to_disk = s->to_disk;
	ask.disk = s->disk;
	ask.wait_ms = s->wait_ms;
	ask.first_ns = s->at_ns;
	ask.first_slot = s->at_slot;
	ask.first_record = s->at_record;
	req.body_case = (Skvq__Wire__Request__BodyCase)what;
	req.evict = &ask; /* all three are of one type, in one union */
	r = client_call(c, &req, -1, (Skvq__Wire__Reply__BodyCase)answer, &reply, NULL);
	if (r < 0)
		return r;
	add(reply->evict, s);
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_evict(struct skvq_client *c, struct skvq_client_sweep *s)
{
	return sweep(c, s, SKVQ__WIRE__REQUEST__BODY_EVICT, SKVQ__WIRE__REPLY__BODY_EVICT);
}

int skvq_client_verify(struct skvq_client *c, struct skvq_client_sweep *s)
{
	return sweep(c, s, SKVQ__WIRE__REQUEST__BODY_VERIFY, SKVQ__WIRE__REPLY__BODY_VERIFY);
}

int skvq_client_drain(struct skvq_client *c, struct skvq_client_sweep *s)
{
	return sweep(c, s, SKVQ__WIRE__REQUEST__BODY_DRAIN, SKVQ__WIRE__REPLY__BODY_DRAIN);
}
