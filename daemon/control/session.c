/* SPDX-License-Identifier: Apache-2.0 */
#include "control/session.h"

#include <assert.h>
#include <stdlib.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "control/events.h"

/* ---- stagings ---- */

struct staging *staging_ref(struct staging *staging)
{
	staging->refs++;
	return staging;
}

void staging_unref(struct staging *staging)
{
	if (!staging || --staging->refs)
		return;
	closer_close(staging->closer, staging->fd);
	free(staging);
}

/* Room for one more pointer in a small array. */
static int grow(void *at, uint32_t n, uint32_t *cap)
{
	void **array = at, *bigger;
	uint32_t want = *cap ? *cap * 2 : 4;

	if (n < *cap)
		return 0;
	bigger = realloc(*array, want * sizeof(void *));
	if (!bigger)
		return -SKVQ_ENOMEM;
	*array = bigger;
	*cap = want;
	return 0;
}

int session_add_staging(struct session *session, int fd, uint32_t *ret_id, struct why *why)
{
	struct staging *staging;
	uint32_t max = session->control->config.staging_max;

	if (session->n_stagings >= max)
		return why_fail(why, SKVQ_ESTAGINGS, "this connection has %u stagings (staging_max)",
				max);
	staging = malloc(sizeof(*staging));
	if (!staging || grow(&session->stagings, session->n_stagings, &session->stagings_cap) < 0) {
		free(staging);
		return why_fail(why, SKVQ_ENOMEM, "no memory for a staging entry");
	}
	*staging = (struct staging){
	    .id = ++session->last_staging, .refs = 1, .fd = fd, .closer = session->control->closer};
	session->stagings[session->n_stagings++] = staging;
	*ret_id = staging->id;
	return 0;
}

struct staging *session_staging(const struct session *session, uint32_t id, struct why *why)
{
	for (uint32_t i = 0; i < session->n_stagings; i++) {
		if (session->stagings[i]->id == id)
			return session->stagings[i];
	}
	(void)why_fail(why, SKVQ_EINVAL, "staging %u is not one of this connection's", id);
	return NULL;
}

void session_drop_staging(struct session *session, struct staging *staging)
{
	for (uint32_t i = 0; i < session->n_stagings; i++) {
		if (session->stagings[i] != staging)
			continue;
		session->stagings[i] = session->stagings[--session->n_stagings];
		staging_unref(staging);
		return;
	}
	assert(!"a staging of another session");
}

/* ---- namespaces ---- */

struct ns *session_ns(const struct session *session, uint32_t id, struct why *why)
{
	for (uint32_t i = 0; i < session->n_open; i++) {
		if (session->open[i]->id == id)
			return session->open[i];
	}
	(void)why_fail(why, SKVQ_EINVAL, "namespace %u is not open on this connection", id);
	return NULL;
}

bool session_sees(const struct session *s, const struct tenant *tenant)
{
	return s->admin || (s->tenant && s->tenant->tenant == tenant);
}

int session_may_steer(const struct session *s, const struct tenant *tenant, struct why *why)
{
	if (s->tenant && s->tenant->tenant == tenant)
		return 0;
	if (s->admin && (s->peer.uid == 0 || s->peer.uid == geteuid()))
		return 0;
	return why_fail(why, SKVQ_EPERM,
			"user %u may look at tenant \"%s\", and not touch what it has", s->peer.uid,
			tenant->name);
}

struct ns *session_seen_ns(const struct session *s, uint32_t id, struct why *why)
{
	struct ns *ns = cache_ns_by_id(s->control->cache, id);

	if (ns && session_sees(s, ns->tenant))
		return ns;
	(void)why_fail(why, SKVQ_EINVAL, "there is no namespace %u", id);
	return NULL;
}

int session_open_ns(struct session *session, struct ns *ns)
{
	struct cache *cache = session->control->cache;

	if (session_ns(session, ns->id, NULL)) {
		cache_ns_close(cache, ns);
		return 0;
	}
	if (grow(&session->open, session->n_open, &session->open_cap) < 0) {
		cache_ns_close(cache, ns);
		return -SKVQ_ENOMEM;
	}
	session->open[session->n_open++] = ns;
	return 0;
}

/* ---- requests in flight ---- */

int session_may_wait(const struct session *session, struct why *why)
{
	if (session->n_inflight < session->control->config.requests_max)
		return 0;
	return why_fail(why, SKVQ_EBUSY,
			"this connection has %u requests in flight (requests_max)",
			session->n_inflight);
}

void session_link(struct session *session, struct inflight *op)
{
	op->session = session;
	op->prev = NULL;
	op->next = session->inflight;
	if (op->next)
		op->next->prev = op;
	session->inflight = op;
	session->n_inflight++;
}

void session_unlink(struct inflight *op)
{
	struct session *session = op->session;

	if (!session)
		return;
	if (op->prev)
		op->prev->next = op->next;
	else
		session->inflight = op->next;
	if (op->next)
		op->next->prev = op->prev;
	op->session = NULL;
	assert(session->n_inflight > 0);
	session->n_inflight--;
}

/* ---- life ---- */

typedef int (*conn_init_fn)(struct conn *conn, struct loop *loop, struct closer *closer, int fd,
			    const struct conn_ops *ops, const struct conn_limits *limits);

static struct session *make_session(struct control *control, int fd, const struct conn_ops *ops,
				    conn_init_fn init)
{
	struct session *s = calloc(1, sizeof(*s));
	socklen_t len = sizeof(s->peer);

	if (!s) {
		(void)close(fd);
		return NULL;
	}
	s->control = control;
	s->born_ms = clock_ms();
	pins_init(&s->pins, control->config.pins_max);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &s->peer, &len) < 0)
		s->peer = (struct ucred){.pid = 0, .uid = (uid_t)-1, .gid = (gid_t)-1};
	if (init(&s->conn, control->loop, control->closer, fd, ops, &control->config.conn) < 0) {
		free(s);
		return NULL;
	}
	return s;
}

struct session *session_new(struct control *control, int fd, const struct conn_ops *ops)
{
	return make_session(control, fd, ops, conn_init);
}

struct session *session_new_lingering(struct control *control, int fd, const struct conn_ops *ops)
{
	return make_session(control, fd, ops, conn_init_lingering);
}

void session_join(struct session *s, struct control_tenant *tenant)
{
	assert(!s->pins.total && !s->pins.reserved);
	s->tenant = tenant;
	s->pins.group = &tenant->tenant->pins_group;
}

void session_count(struct session *s, enum stats_id id, uint64_t n)
{
	s->control->stats->n[id] += n;
	if (s->tenant)
		s->tenant->tenant->stats.n[id] += n;
}

void session_orphan(struct session *s)
{
	while (s->inflight) {
		s->inflight->orphan(s->inflight);
		session_unlink(s->inflight);
	}
}

void session_free(struct session *s)
{
	struct cache *cache = s->control->cache;

	events_end(s);
	session_orphan(s);
	session_count(s, STAT_pins_dropped, cache_unpin_all(cache, &s->pins));
	pins_fini(&s->pins);
	for (uint32_t i = 0; i < s->n_stagings; i++)
		staging_unref(s->stagings[i]);
	free(s->stagings);
	for (uint32_t i = 0; i < s->n_open; i++)
		cache_ns_close(cache, s->open[i]);
	free(s->open);
	conn_fini(&s->conn);
	free(s);
}
