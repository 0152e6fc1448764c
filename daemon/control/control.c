/* SPDX-License-Identifier: Apache-2.0 */
#include "control/control.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "base/log.h"
#include "control/bequest.h"
#include "control/dispatch.h"
#include "control/session.h"

static void link_session(struct session **list, struct session *s)
{
	s->prev = NULL;
	s->next = *list;
	if (s->next)
		s->next->prev = s;
	*list = s;
}

static void unlink_session(struct session **list, struct session *s)
{
	if (s->prev)
		s->prev->next = s->next;
	else
		*list = s->next;
	if (s->next)
		s->next->prev = s->prev;
}

static void on_frame(struct conn *conn, struct conn_frame *frame)
{
	dispatch_frame(container_of(conn, struct session, conn), frame);
}

static void on_broken(struct conn *conn, int code, const char *why)
{
	dispatch_broken(container_of(conn, struct session, conn), code, why);
}

static void on_dead(struct conn *conn, const char *reason)
{
	struct session *s = container_of(conn, struct session, conn);
	struct control *control = s->control;

	if (conn->piled_up)
		control->stats->n[STAT_connections_piled_up]++;
	log_event(LOG_DEBUG, "connection_closed", LOG_U64("connection", s->id),
		  LOG_STR("reason", reason), LOG_U64("pins", s->pins.total));
	unlink_session(&control->sessions, s);
	link_session(&control->dead, s);
	control->n_sessions--;
}

static bool on_holds(const struct conn *conn)
{
	const struct session *s =
	    container_of((struct conn *)(uintptr_t)conn, struct session, conn);

	return s->pins.total > 0 || s->n_inflight > 0;
}

static const struct conn_ops session_ops = {
    .frame = on_frame, .broken = on_broken, .dead = on_dead, .holds = on_holds};

/* After each batch nobody is inside a dead session any more. */
static void bury(void *ctx)
{
	struct control *control = ctx;

	while (control->dead) {
		struct session *s = control->dead;

		unlink_session(&control->dead, s);
		session_free(s);
	}
}

int control_init(struct control *control, const struct control_config *config, struct loop *loop,
		 struct closer *closer, struct cache *cache, struct stats *stats)
{
	memset(control, 0, sizeof(*control));
	control->config = *config;
	control->loop = loop;
	control->closer = closer;
	control->cache = cache;
	control->stats = stats;
	control->started_ms = clock_ms();
	while (!control->boot_id) {
		ssize_t n = getrandom(&control->boot_id, sizeof(control->boot_id), 0);

		if (n != (ssize_t)sizeof(control->boot_id))
			return -SKVQ_ESYS;
	}
	control->hook = (struct loop_hook){.fn = bury, .ctx = control};
	loop_hook_add(loop, &control->hook);
	return 0;
}

void control_fini(struct control *control)
{
	while (control->sessions)
		conn_kill(&control->sessions->conn, "daemon ends");
	bury(control);
	calibrations_free(control);
	control->closed = true;
	loop_hook_del(control->loop, &control->hook);
}

void control_abandon(struct control *control)
{
	while (control->sessions)
		conn_kill(&control->sessions->conn, "not taken over");
	bury(control);
}

static void enter(struct control *control, struct session *s)
{
	s->id = ++control->last_id;
	link_session(&control->sessions, s);
	control->n_sessions++;
}

struct session *control_adopt(struct control *control, int *fd, const char *name, struct why *why)
{
	socklen_t len = sizeof(int);
	struct session *s;
	int domain;

	/* Whatever else would be polled is not known to say when its other end has gone. */
	if (getsockopt(*fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX) {
		(void)why_fail(why, SKVQ_EFD, "what was left of \"%s\" is not a Unix socket", name);
		return NULL;
	}
	s = session_new_lingering(control, *fd, &session_ops);
	*fd = -1;
	if (!s) {
		(void)why_fail(why, SKVQ_ENOMEM, "no memory for the connection of \"%s\"", name);
		return NULL;
	}
	s->features = WIRE_HANDOVER; /* or it would not be here */
	s->hello = true;
	(void)snprintf(s->name, sizeof(s->name), "%s", name);
	enter(control, s);
	return s;
}

void control_accept(struct control *control, int fd)
{
	struct session *s = session_new(control, fd, &session_ops);

	if (!s) {
		log_event(LOG_INFO, "connection_refused", LOG_STR("reason", "no memory"));
		return;
	}
	enter(control, s);
	if (control->n_sessions > control->config.connections_max) {
		struct why why;

		control->stats->n[STAT_connections_refused]++;
		(void)why_fail(&why, SKVQ_ECONNS, "all %u connections (connections_max) are taken",
			       control->config.connections_max);
		reply_error(s, 0, SKVQ_ECONNS, why.text);
		conn_end(&s->conn, "too many connections");
		return;
	}
	control->stats->n[STAT_connections_accepted]++;
	log_event(LOG_DEBUG, "connection", LOG_U64("connection", s->id),
		  LOG_U64("pid", s->peer.pid), LOG_U64("uid", s->peer.uid));
}
