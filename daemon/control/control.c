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
#include "control/events.h"
#include "control/manage.h"
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
		session_count(s, STAT_connections_piled_up, 1);
	log_event(LOG_DEBUG, "connection_closed", LOG_U64("connection", s->id),
		  LOG_STR("reason", reason), LOG_U64("pins", s->pins.total));
	unlink_session(&control->sessions, s);
	link_session(&control->dead, s);
	control->n_sessions--;
	if (s->tenant)
		s->tenant->n_sessions--;
	else
		control->n_strangers--;
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

	events_pump(control);
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
	control->manage_watch.fd = -1;
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		control->tenants[i].config = &control->config.tenants[i];
		control->tenants[i].tenant = cache->tenants[i];
	}
	while (!control->boot_id) {
		ssize_t n = getrandom(&control->boot_id, sizeof(control->boot_id), 0);

		if (n != (ssize_t)sizeof(control->boot_id))
			return -SKVQ_ESYS;
	}
	control->hook = (struct loop_hook){.fn = bury, .ctx = control};
	loop_hook_add(loop, &control->hook);
	return manage_init(control);
}

void control_fini(struct control *control)
{
	events_clear(control);
	while (control->sessions)
		conn_kill(&control->sessions->conn, "daemon ends");
	bury(control);
	manage_fini(control);
	for (uint32_t i = 0; i < control->cache->n_tenants; i++)
		calibrations_free(&control->tenants[i]);
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
	uint64_t n = control->cache->n_tenants;

	/* Numbers of one tenant's tell nothing of another's, and those of an only tenant are 1, 2, 3. */
	if (!control->config.sections)
		s->id = ++s->tenant->last_session;
	else if (s->tenant)
		s->id = s->tenant->last_session++ * (n + 1) + s->tenant->tenant->index + 1;
	else
		s->id = ++control->last_stranger * (n + 1);
	link_session(&control->sessions, s);
	control->n_sessions++;
	if (s->tenant)
		s->tenant->n_sessions++;
	else
		control->n_strangers++;
}

struct session *control_adopt(struct control *control, struct control_tenant *tenant, int *fd,
			      const char *name, struct why *why)
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
	session_join(s, tenant);
	(void)snprintf(s->name, sizeof(s->name), "%s", name);
	enter(control, s);
	return s;
}

/* ---- who is who ---- */

static bool has_id(const uint32_t *ids, uint32_t n, uint32_t id)
{
	for (uint32_t i = 0; i < n; i++) {
		if (ids[i] == id)
			return true;
	}
	return false;
}

#define GROUPS_MAX 256u /* of a peer that are looked at */

/* The peer's groups, its own first. */
static uint32_t groups_of(const struct session *s, gid_t ret[GROUPS_MAX])
{
	socklen_t len = (GROUPS_MAX - 1) * sizeof(*ret);

	ret[0] = s->peer.gid;
	if (getsockopt(s->conn.fd, SOL_SOCKET, SO_PEERGROUPS, ret + 1, &len) < 0)
		return 1;
	return 1 + (uint32_t)(len / sizeof(*ret));
}

static bool names_user(const struct control_tenant_config *t, const struct session *s)
{
	return has_id(t->uids, t->n_uids, s->peer.uid);
}

static bool names_group(const struct control_tenant_config *t, const gid_t *groups, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (has_id(t->gids, t->n_gids, groups[i]))
			return true;
	}
	return false;
}

/* The tenant that names the user, else the only one that names a group of his. */
static struct control_tenant *find_tenant(struct control *control, const struct session *s)
{
	struct control_tenant *found = NULL;
	gid_t groups[GROUPS_MAX];
	uint32_t n = groups_of(s, groups);

	for (uint32_t i = 0; i < control->cache->n_tenants; i++) {
		if (names_user(&control->config.tenants[i], s))
			return &control->tenants[i];
	}
	for (uint32_t i = 0; i < control->cache->n_tenants; i++) {
		if (!names_group(&control->config.tenants[i], groups, n))
			continue;
		if (found)
			return NULL; /* his groups are of two: none is as good as the other */
		found = &control->tenants[i];
	}
	return found;
}

static bool is_admin(const struct control *control, const struct session *s)
{
	return s->peer.uid == 0 || s->peer.uid == geteuid() ||
	       has_id(control->config.admins, control->config.n_admins, s->peer.uid);
}

/* Who came to a tenant's own socket never was one. */
void control_limits_changed(struct control *control)
{
	struct session *next;

	for (struct session *s = control->sessions; s; s = next) {
		next = s->next;
		s->pins.max = control->config.pins_max;
		if (!control->config.sections || !s->admin || is_admin(control, s))
			continue;
		s->admin = false;
		log_event(LOG_INFO, "admin_no_more", LOG_U64("connection", s->id),
			  LOG_U64("uid", s->peer.uid));
		if (!s->tenant)
			conn_end(&s->conn, "no admin any more");
	}
}

/* On a socket of its own, who can open that is of the tenant, unless it names users or groups. */
static bool may_join(const struct control_tenant *tenant, const struct session *s)
{
	const struct control_tenant_config *t = tenant->config;
	gid_t groups[GROUPS_MAX];

	return (!t->n_uids && !t->n_gids) || names_user(t, s) ||
	       names_group(t, groups, groups_of(s, groups));
}

static int identify(struct control *control, struct session *s, struct control_tenant *tenant,
		    struct why *why)
{
	if (!control->config.sections) {
		tenant = &control->tenants[0];
		s->admin = true;
	} else if (tenant) {
		tenant = may_join(tenant, s) ? tenant : NULL;
	} else {
		s->admin = is_admin(control, s);
		tenant = find_tenant(control, s);
	}
	if (tenant)
		session_join(s, tenant);
	if (tenant || s->admin)
		return 0;
	return why_fail(why, SKVQ_EPERM, "user %u, group %u is of no tenant here", s->peer.uid,
			s->peer.gid);
}

/* Of those that are there now, s among them. */
static int check_room(const struct control *control, const struct session *s, struct why *why)
{
	uint32_t max = control->config.connections_max;

	if (!s->tenant)
		return control->n_strangers <= ADMIN_CONNECTIONS_MAX
			   ? 0
			   : why_fail(why, SKVQ_ECONNS, "all %u connections of admins are taken",
				      ADMIN_CONNECTIONS_MAX);
	if (control->n_sessions - control->n_strangers > max)
		return why_fail(why, SKVQ_ECONNS, "all %u connections (connections_max) are taken",
				max);
	if (s->tenant->n_sessions > s->tenant->config->connections_max)
		return why_fail(why, SKVQ_ETCONNS,
				"all %u connections of this tenant (connections_max) are taken",
				s->tenant->config->connections_max);
	return 0;
}

void control_accept(struct control *control, int fd, struct control_tenant *tenant)
{
	struct session *s = session_new(control, fd, &session_ops);
	struct why why;
	int err;

	if (!s) {
		log_event(LOG_INFO, "connection_refused", LOG_STR("reason", "no memory"));
		return;
	}
	err = identify(control, s, tenant, &why);
	enter(control, s);
	if (err < 0) {
		session_count(s, STAT_connections_denied, 1);
		log_event(LOG_INFO, "connection_denied", LOG_U64("pid", s->peer.pid),
			  LOG_U64("uid", s->peer.uid), LOG_U64("gid", s->peer.gid));
	} else {
		err = check_room(control, s, &why);
		session_count(s, err < 0 ? STAT_connections_refused : STAT_connections_accepted,
			      1);
	}
	if (err < 0) {
		reply_error(s, 0, err, why.text);
		conn_end(&s->conn, "turned away");
		return;
	}
	log_event(LOG_DEBUG, "connection", LOG_U64("connection", s->id),
		  LOG_U64("pid", s->peer.pid), LOG_U64("uid", s->peer.uid),
		  LOG_STR("tenant", s->tenant ? s->tenant->tenant->name : ""));
}
