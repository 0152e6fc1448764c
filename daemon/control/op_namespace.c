/* SPDX-License-Identifier: Apache-2.0 */
/* namespace_open: a message becomes a struct identity; what it means is cache/identity.c's. */
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/log.h"
#include "control/dispatch.h"

/* 32 bytes, or none. */
static int get_digest(const ProtobufCBinaryData *data, const char *field, bool *ret_has,
		      uint8_t ret[IDENTITY_DIGEST], struct why *why)
{
	if (data->len != 0 && data->len != IDENTITY_DIGEST)
		return why_fail(why, SKVQ_EIDENTITY, "identity: %s has %zu bytes, not %u", field,
				data->len, IDENTITY_DIGEST);
	*ret_has = data->len != 0;
	if (*ret_has)
		memcpy(ret, data->data, IDENTITY_DIGEST);
	return 0;
}

static int get_text(const char *text, const char *field, char *ret, size_t max, struct why *why)
{
	size_t len = strlen(text);

	if (len > max)
		return why_fail(why, SKVQ_EIDENTITY, "identity: %s has %zu bytes, at most %zu",
				field, len, max);
	memcpy(ret, text, len + 1);
	return 0;
}

static int get_tables(const Skvq__Wire__Identity *m, struct identity *id, struct why *why)
{
	if (m->bit_table.len > sizeof(id->bit_table))
		return why_fail(why, SKVQ_EIDENTITY,
				"identity: bit_table has %zu bytes, at most %zu", m->bit_table.len,
				sizeof(id->bit_table));
	if (m->n_layer_window > SKVQ_LAYERS_MAX)
		return why_fail(why, SKVQ_EIDENTITY,
				"identity: layer_window has %zu entries, at most %u",
				m->n_layer_window, SKVQ_LAYERS_MAX);
	id->n_bit_table = (uint32_t)m->bit_table.len;
	if (m->bit_table.len)
		memcpy(id->bit_table, m->bit_table.data, m->bit_table.len);
	id->n_layer_window = (uint32_t)m->n_layer_window;
	if (m->n_layer_window)
		memcpy(id->layer_window, m->layer_window,
		       m->n_layer_window * sizeof(*id->layer_window));
	return 0;
}

/* The channel maps themselves come over the wire, at most some MiB; the identity keeps their hash.
 * Their size must fit the geometry, or two readings of one hash could differ. */
static int get_reorder(const Skvq__Wire__Identity *m, struct identity *id, struct why *why)
{
	uint64_t want = (uint64_t)m->n_layer * m->n_kv_heads *
			((uint64_t)m->head_dim_k + m->head_dim_v) * sizeof(uint16_t);

	if (m->reorder_digest.len)
		return why_fail(why, SKVQ_EIDENTITY,
				"identity: reorder_digest is not in use, send the maps");
	if (!m->reorder.len)
		return 0;
	if (m->reorder.len != want)
		return why_fail(why, SKVQ_EIDENTITY,
				"identity: reorder has %zu bytes, this geometry needs %llu",
				m->reorder.len, (unsigned long long)want);
	id->has_reorder = true;
	return identity_digest(m->reorder.data, (uint32_t)m->reorder.len, id->reorder);
}

static int get_identity(const Skvq__Wire__Identity *m, struct identity *id, struct why *why)
{
	int err;

	memset(id, 0, sizeof(*id));
	if ((err = get_digest(&m->weights_digest, "weights_digest", &id->has_weights, id->weights,
			      why)) < 0 ||
	    (err = get_digest(&m->tokenizer_digest, "tokenizer_digest", &id->has_tokenizer,
			      id->tokenizer, why)) < 0 ||
	    (err = get_digest(&m->lora_digest, "lora_digest", &id->has_lora, id->lora, why)) < 0 ||
	    (err = get_digest(&m->calibration_digest, "calibration_digest", &id->has_calibration,
			      id->calibration, why)) < 0 ||
	    (err = get_reorder(m, id, why)) < 0 ||
	    (err = get_text(m->engine_numerics, "engine_numerics", id->engine_numerics,
			    IDENTITY_TEXT_MAX, why)) < 0 ||
	    (err = get_text(m->rope_scaling, "rope_scaling", id->rope_scaling, IDENTITY_TEXT_MAX,
			    why)) < 0 ||
	    (err = get_text(m->profile, "profile", id->profile, SKVQ_PROFILE_NAME_MAX, why)) < 0 ||
	    (err = get_tables(m, id, why)) < 0)
		return err;
	id->n_layer = m->n_layer;
	id->n_q_heads = m->n_q_heads;
	id->n_kv_heads = m->n_kv_heads;
	id->head_dim_k = m->head_dim_k;
	id->head_dim_v = m->head_dim_v;
	id->rope_kind = m->rope_kind;
	id->rope_dim = m->rope_dim;
	id->rope_theta = m->rope_theta;
	id->window = m->window;
	id->sinks = m->sinks;
	id->clip = m->clip;
	id->page_version = m->page_version;
	return 0;
}

/* For people: printable ASCII or '?'. */
static int get_model_name(const char *text, char ret[NS_NAME_MAX + 1], struct why *why)
{
	size_t len = strlen(text);

	if (len > NS_NAME_MAX)
		return why_fail(why, SKVQ_EINVAL, "model_name has %zu bytes, at most %u", len,
				NS_NAME_MAX);
	for (size_t i = 0; i <= len; i++)
		ret[i] = (text[i] == '\0' || (text[i] >= 0x20 && text[i] <= 0x7e)) ? text[i] : '?';
	return 0;
}

static void send_namespace(const struct request *rq, const struct ns *ns)
{
	const char *field = NULL;
	const struct ns *nearest = cache_ns_nearest(rq->session->control->cache, ns, &field);
	Skvq__Wire__NamespaceReply body = SKVQ__WIRE__NAMESPACE_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	body.ns = ns->id;
	body.arena_bytes = ns->arena.bytes;
	body.slot_bytes = ns->layout.slot_bytes;
	body.base_bytes = ns->layout.base_bytes;
	body.refine_bytes = ns->layout.refine_bytes;
	body.sidecar_bytes = ns->layout.sidecar_bytes;
	body.identity_digest.len = IDENTITY_DIGEST;
	body.identity_digest.data = (uint8_t *)(uintptr_t)ns->digest;
	if (nearest) {
		body.nearest_ns = nearest->id;
		body.nearest_differs = (char *)(uintptr_t)field;
		log_event(LOG_INFO, "namespace_like_another", LOG_U64("ns", ns->id),
			  LOG_U64("other", nearest->id), LOG_STR("differs", field),
			  LOG_STR("model", ns->model_name));
	}
	reply.body_case = SKVQ__WIRE__REPLY__BODY_NAMESPACE_OPEN;
	reply.namespace_open = &body;
	reply_send(rq->session, rq->id, &reply, ns->arena.fd_ro);
}

int op_namespace_open(const struct request *rq, struct why *why)
{
	const Skvq__Wire__NamespaceOpen *m = rq->msg->namespace_open;
	struct control *control = rq->session->control;
	char model_name[NS_NAME_MAX + 1];
	struct identity id;
	struct ns *ns;
	int err;

	if (!m->identity)
		return why_fail(why, SKVQ_EIDENTITY, "identity is missing");
	err = get_model_name(m->model_name, model_name, why);
	if (!err)
		err = get_identity(m->identity, &id, why);
	if (!err)
		err = cache_ns_open(control->cache, rq->session->tenant->tenant, &id,
				    model_name, &ns, why);
	if (err < 0)
		return err;
	err = session_open_ns(rq->session, ns);
	if (err < 0)
		return why_fail(why, -err, "no memory for an open namespace");
	send_namespace(rq, ns);
	return 0;
}
