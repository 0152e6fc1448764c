/* SPDX-License-Identifier: Apache-2.0 */
/* hello and ping. */
#include <string.h>

#include <skvq/error.h>

#include "base/log.h"
#include "control/dispatch.h"

/* The name goes to logs and to other clients: printable ASCII or '?'. */
static void copy_name(char *ret, const char *name)
{
	size_t i = 0;

	for (; name[i]; i++)
		ret[i] = (name[i] >= 0x20 && name[i] <= 0x7e) ? name[i] : '?';
	ret[i] = '\0';
}

int op_hello(const struct request *rq, struct why *why)
{
	const Skvq__Wire__Hello *hello = rq->msg->hello;
	struct session *s = rq->session;
	const struct control_config *config = &s->control->config;
	Skvq__Wire__HelloReply body = SKVQ__WIRE__HELLO_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (s->hello)
		return why_fail(why, SKVQ_ESTATE, "a second hello");
	if (hello->version_major != WIRE_VERSION_MAJOR)
		return why_fail(why, SKVQ_EVERSION, "protocol version %u.%u: this daemon speaks %u",
				hello->version_major, hello->version_minor, WIRE_VERSION_MAJOR);
	if (strlen(hello->name) > SESSION_NAME_MAX)
		return why_fail(why, SKVQ_EINVAL, "name has %zu bytes, at most %u",
				strlen(hello->name), SESSION_NAME_MAX);
	copy_name(s->name, hello->name);
	s->hello = true;
	s->features = hello->features & WIRE_FEATURES;
	if (!config->handover)
		s->features &= ~WIRE_HANDOVER;
	log_event(LOG_DEBUG, "hello", LOG_U64("connection", s->id), LOG_STR("name", s->name));
	body.version_major = WIRE_VERSION_MAJOR;
	body.version_minor = WIRE_VERSION_MINOR;
	body.features = s->features;
	body.frame_bytes_max = config->conn.frame_max;
	body.pins_max = config->pins_max;
	body.requests_max = config->requests_max;
	body.daemon_version = (char *)(uintptr_t)config->version;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_HELLO;
	reply.hello = &body;
	reply_send(s, rq->id, &reply, -1);
	return 0;
}

int op_ping(const struct request *rq, struct why *why)
{
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	if (rq->msg->ping->payload.len > WIRE_PING_MAX)
		return why_fail(why, SKVQ_ELIMIT, "ping of %zu bytes, at most %u",
				rq->msg->ping->payload.len, WIRE_PING_MAX);
	reply.body_case = SKVQ__WIRE__REPLY__BODY_PING;
	reply.ping = rq->msg->ping;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}
