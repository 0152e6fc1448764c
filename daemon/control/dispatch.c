/* SPDX-License-Identifier: Apache-2.0 */
#include "control/dispatch.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/log.h"

/* Every request. */
static const struct op {
	int body;
	uint32_t n_fds;
	const char *name;
	op_fn fn;
	bool looks; /* who is of no tenant may ask it too */
} ops[] = {
    {SKVQ__WIRE__REQUEST__BODY_HELLO, 0, "hello", op_hello, true},
    {SKVQ__WIRE__REQUEST__BODY_NAMESPACE_OPEN, 0, "namespace_open", op_namespace_open, false},
    {SKVQ__WIRE__REQUEST__BODY_STAGING_ADD, 1, "staging_add", op_staging_add, false},
    {SKVQ__WIRE__REQUEST__BODY_STAGING_DROP, 0, "staging_drop", op_staging_drop, false},
    {SKVQ__WIRE__REQUEST__BODY_MATCH, 0, "match", op_match, false},
    {SKVQ__WIRE__REQUEST__BODY_PREFETCH, 0, "prefetch", op_prefetch, true},
    {SKVQ__WIRE__REQUEST__BODY_PUBLISH, 0, "publish", op_publish, false},
    {SKVQ__WIRE__REQUEST__BODY_UNPIN, 0, "unpin", op_unpin, false},
    {SKVQ__WIRE__REQUEST__BODY_UNREFINE, 0, "unrefine", op_unrefine, false},
    {SKVQ__WIRE__REQUEST__BODY_CALIBRATION_GET, 0, "calibration_get", op_calibration_get, false},
    {SKVQ__WIRE__REQUEST__BODY_CALIBRATION_PUT, 1, "calibration_put", op_calibration_put, false},
    {SKVQ__WIRE__REQUEST__BODY_PING, 0, "ping", op_ping, true},
    {SKVQ__WIRE__REQUEST__BODY_STATUS, 0, "status", op_status, true},
    {SKVQ__WIRE__REQUEST__BODY_NAMESPACE_LIST, 0, "namespace_list", op_namespace_list, true},
    {SKVQ__WIRE__REQUEST__BODY_PAGE_LIST, 0, "page_list", op_page_list, true},
    {SKVQ__WIRE__REQUEST__BODY_PIN_LIST, 0, "pin_list", op_pin_list, true},
    {SKVQ__WIRE__REQUEST__BODY_ERROR_LIST, 0, "error_list", op_error_list, true},
    {SKVQ__WIRE__REQUEST__BODY_EXPLAIN, 0, "explain", op_explain, true},
    {SKVQ__WIRE__REQUEST__BODY_EVENTS, 0, "events", op_events, true},
    {SKVQ__WIRE__REQUEST__BODY_PAGE_GET, 0, "page_get", op_page_get, true},
    {SKVQ__WIRE__REQUEST__BODY_EVICT, 0, "evict", op_evict, true},
    {SKVQ__WIRE__REQUEST__BODY_VERIFY, 0, "verify", op_verify, true},
    {SKVQ__WIRE__REQUEST__BODY_DRAIN, 0, "drain", op_drain, true},
    {SKVQ__WIRE__REQUEST__BODY_CONFIG_GET, 0, "config_get", op_config_get, true},
    {SKVQ__WIRE__REQUEST__BODY_CONFIG_SET, 0, "config_set", op_config_set, true},
};

static const struct op *op_of(int body)
{
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		if (ops[i].body == body)
			return &ops[i];
	}
	return NULL;
}

/* ---- replies ---- */

void reply_send(struct session *session, uint64_t id, Skvq__Wire__Reply *reply, int fd)
{
	uint32_t max = session->conn.limits.frame_max;
	struct conn_out *out;
	size_t bytes;

	reply->id = id;
	reply->boot_id = session->control->boot_id;
	bytes = protobuf_c_message_get_packed_size(&reply->base);
	if (bytes > max) {
		struct why why;

		(void)why_fail(&why, SKVQ_ELIMIT, "the reply would take %zu bytes, frame_max is %u",
			       bytes, max);
		reply_error(session, id, SKVQ_ELIMIT, why.text);
		return;
	}
	out = conn_out_new((uint32_t)bytes, fd);
	if (!out) {
		/* Without its reply the client would wait for ever. */
		conn_end(&session->conn, "no memory or descriptor for a reply");
		return;
	}
	(void)protobuf_c_message_pack(&reply->base, conn_out_payload(out));
	conn_send(&session->conn, out);
}

void reply_error(struct session *session, uint64_t id, int code, const char *detail)
{
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	reply_refuse(session, id, code, detail, &reply);
}

void reply_refuse(struct session *session, uint64_t id, int code, const char *detail,
		  Skvq__Wire__Reply *reply)
{
	int positive = code < 0 ? -code : code;

	stats_refused(session->control->stats, code);
	if (session->tenant)
		stats_refused(&session->tenant->tenant->stats, code);
	log_event(LOG_DEBUG, "refused", LOG_U64("connection", session->id), LOG_U64("request", id),
		  LOG_STR("error", err_name(code)), LOG_STR("detail", detail));
	reply->error = (uint32_t)positive;
	reply->detail = (char *)(uintptr_t)detail; /* protobuf-c does not write it */
	reply_send(session, id, reply, -1);
}

/* ---- requests ---- */

/*
 * Unpacking repeats what the sender says: many tiny elements cost far more memory than bytes on the
 * wire. So it draws on a budget that grows with the frame; honest messages stay well below (a pin
 * name is about 6 bytes on the wire and 40 unpacked).
 */
#define BUDGET_PER_BYTE 16u
#define BUDGET_BASE     65536u

struct budget {
	ProtobufCAllocator allocator;
	size_t left;
	bool exceeded;
};

static void *budget_alloc(void *ctx, size_t bytes)
{
	struct budget *budget = ctx;

	if (bytes > budget->left) {
		budget->exceeded = true;
		return NULL;
	}
	budget->left -= bytes;
	return malloc(bytes);
}

static void budget_free(void *ctx, void *p)
{
	(void)ctx; /* not given back: the budget also bounds the time */
	free(p);
}

static int serve(struct session *session, const Skvq__Wire__Request *msg, struct conn_frame *frame,
		 struct why *why)
{
	struct request rq = {.session = session, .id = msg->id, .msg = msg, .frame = frame};
	const struct op *op = op_of((int)msg->body_case);

	if (!op)
		return why_fail(why, SKVQ_ENOTSUP, "this daemon knows no such request");
	if (!session->hello && op->fn != op_hello)
		return why_fail(why, SKVQ_EPROTO, "%s before hello", op->name);
	if (!session->tenant && !op->looks)
		return why_fail(why, SKVQ_EPERM,
				"%s: user %u is of no tenant, and may only look", op->name,
				session->peer.uid);
	if (frame->n_fds != op->n_fds)
		return why_fail(why, SKVQ_EPROTO, "%s takes %u descriptors, %u came", op->name,
				op->n_fds, frame->n_fds);
	return op->fn(&rq, why);
}

static void refuse_frame(struct session *session, int code, const char *detail)
{
	session_count(session, STAT_protocol_errors, 1);
	log_event(LOG_INFO, "protocol_error", LOG_U64("connection", session->id),
		  LOG_U64("pid", session->peer.pid), LOG_U64("uid", session->peer.uid),
		  LOG_STR("name", session->name), LOG_STR("detail", detail));
	reply_error(session, 0, code, detail);
}

void dispatch_broken(struct session *session, int code, const char *why)
{
	refuse_frame(session, code, why);
}

void dispatch_frame(struct session *session, struct conn_frame *frame)
{
	struct budget budget = {.left = BUDGET_BASE + (size_t)frame->bytes * BUDGET_PER_BYTE};
	Skvq__Wire__Request *msg;
	struct why why = {{0}};
	int err;

	budget.allocator = (ProtobufCAllocator){
	    .alloc = budget_alloc, .free = budget_free, .allocator_data = &budget};
	msg = skvq__wire__request__unpack(&budget.allocator, frame->bytes, frame->payload);
	if (!msg) {
		(void)why_fail(&why, SKVQ_EPROTO, "a payload of %u bytes %s", frame->bytes,
			       budget.exceeded ? "has too many parts" : "is not a Request");
		refuse_frame(session, SKVQ_EPROTO, why.text);
		conn_end(&session->conn, "protocol error");
		return;
	}
	session_count(session, STAT_requests, 1);
	if (msg->id == 0) {
		refuse_frame(session, SKVQ_EPROTO, "a request with id 0");
		conn_end(&session->conn, "protocol error");
	} else {
		err = serve(session, msg, frame, &why);
		if (err < 0)
			reply_error(session, msg->id, err, why.text);
	}
	skvq__wire__request__free_unpacked(msg, &budget.allocator);
}
