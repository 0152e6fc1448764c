/* SPDX-License-Identifier: Apache-2.0 */
/* Events: asking for them, and handing out what comes. */
#include "internal.h"

#define DIGEST_BYTES 32u

static const uint8_t *digest_of(const ProtobufCBinaryData *data)
{
	return data->len == DIGEST_BYTES ? data->data : NULL;
}

int client_events(struct skvq_client *c, const Skvq__Wire__Reply *r)
{
	const Skvq__Wire__EventsReply *b = r->events;

	if (r->error || r->body_case != SKVQ__WIRE__REPLY__BODY_EVENTS)
		return client_break(c, r->error && r->error < 4096 ? (int)r->error : SKVQ_EPROTO, "%s",
		                    r->detail[0] ? r->detail : "the daemon sent no events for events");
	if (b->lost && !b->n_events)
		c->event(c->event_user, b->lost, NULL);
	for (size_t i = 0; i < b->n_events; i++) {
		const Skvq__Wire__Event *m = b->events[i];
		struct skvq_client_event e = {
		    .number = b->first + i,
		    .time_ms = m->time_ms,
		    .kind = m->kind,
		    .tenant = m->tenant,
		    .tier = m->tier,
		    .why = m->why,
		    .model_name = m->model_name,
		    .ns = m->ns,
		    .digest = digest_of(&m->digest),
		    .parent = digest_of(&m->parent),
		    .identity_digest = digest_of(&m->identity_digest),
		    .position = m->position,
		    .span = m->span,
		    .tokens = m->tokens,
		    .n_tokens = m->n_tokens,
		    .chain = m->chain.data,
		    .n_chain = m->chain.len / DIGEST_BYTES,
		    .chain_cut = m->chain_cut,
		    .n_memory = m->n_memory,
		    .n_disk = m->n_disk,
		};

		if (m->page)
			e.page = (struct skvq_page_ref){m->page->slot, m->page->generation};
		c->event(c->event_user, i ? 0 : b->lost, &e);
	}
	return 0;
}

int skvq_client_events(struct skvq_client *c, uint32_t what, skvq_client_event_fn fn, void *user)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__EventsSubscribe ask = SKVQ__WIRE__EVENTS_SUBSCRIBE__INIT;
	Skvq__Wire__Reply *reply = NULL;

	if (!c->broken && !(c->hello.features & FEATURE_EVENTS))
		return client_fail(c, SKVQ_ENOTSUP, "skvqd %s tells no events", c->hello.version);
	ask.tokens = what & SKVQ_CLIENT_EVENTS_TOKENS;
	ask.matches = what & SKVQ_CLIENT_EVENTS_MATCHES;
	ask.no_pages = !(what & (SKVQ_CLIENT_EVENTS_PAGES | SKVQ_CLIENT_EVENTS_TOKENS));
	req.body_case = SKVQ__WIRE__REQUEST__BODY_EVENTS;
	req.events = &ask;
	c->event = fn;
	c->event_user = user;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_EVENTS, &reply, NULL);
	if (r < 0)
		return r;
	c->events_id = req.id;
	r = client_events(c, reply);
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r;
}
