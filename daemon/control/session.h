/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/session.h - what one client has: its connection, pins, stagings, open namespaces and
 * requests in flight. Everything here ends with the socket. For control/ alone. Loop thread only.
 */
#ifndef SKVQD_CONTROL_SESSION_H
#define SKVQD_CONTROL_SESSION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "cache/cache.h"
#include "control/conn.h"
#include "control/control.h"

#define SESSION_NAME_MAX 63u

/* A client's memfd. Counted: a publish in flight still reads one that was dropped. */
struct staging {
	uint32_t id;
	uint32_t refs;
	int fd;
	struct closer *closer;
};

struct staging *staging_ref(struct staging *staging);
void staging_unref(struct staging *staging); /* closes with the last */

/* A request in flight, embedded in what serves it. Outlives its session. */
struct inflight {
	struct session *session; /* NULL: the client is gone */
	struct inflight *prev, *next;
	uint64_t id; /* of the request */
	/* The client dies: its pins are no more. What serves the request goes on. */
	void (*orphan)(struct inflight *op);
};

struct subscriber;

struct session {
	struct conn conn;
	struct control *control;
	struct session *prev, *next;
	uint64_t id;
	uint64_t born_ms;
	struct ucred peer;
	struct control_tenant *tenant; /* NULL: of none. An admin, or about to be turned away */
	bool admin;                    /* may look at all tenants */
	bool hello;
	uint64_t features; /* both sides know */
	char name[SESSION_NAME_MAX + 1]; /* printable ASCII */
	struct pins pins;
	struct ns **open; /* namespaces this client has open */
	uint32_t n_open, open_cap;
	struct staging **stagings;
	uint32_t n_stagings, stagings_cap;
	uint32_t last_staging;
	struct inflight *inflight;
	uint32_t n_inflight;
	struct subscriber *subscriber; /* op_events.c; NULL: it has not asked for events */
};

/* Takes fd in any case. NULL: no memory, or epoll refused. */
struct session *session_new(struct control *control, int fd, const struct conn_ops *ops);
/* Whose it is from here on: its pins count there. */
void session_join(struct session *session, struct control_tenant *tenant);
/* Counts for its tenant, if it has one, and for all. */
void session_count(struct session *session, enum stats_id id, uint64_t n);
/* The same for the socket of a connection that another process ended: it lingers. */
struct session *session_new_lingering(struct control *control, int fd, const struct conn_ops *ops);
/* Nobody waits for what is in flight any more: what pins are left is what the client really has. */
void session_orphan(struct session *session);
/* Unpins, closes and frees everything. */
void session_free(struct session *session);

/* Counts the namespace as open, once. -SKVQ_ENOMEM. Takes over the caller's opener in any case. */
int session_open_ns(struct session *session, struct ns *ns);
/* A namespace this client has open, else NULL with -SKVQ_EINVAL's sentence in why. */
struct ns *session_ns(const struct session *session, uint32_t id, struct why *why);

/* A tenant sees its own, an admin all. */
bool session_sees(const struct session *session, const struct tenant *tenant);
/* A tenant does what it likes to what it has. Of admins the machine's owner and the daemon's user do so
 * too; others only look: -SKVQ_EPERM. */
int session_may_steer(const struct session *session, const struct tenant *tenant, struct why *why);
/* A namespace of a tenant that it sees, open or not; NULL as above. */
struct ns *session_seen_ns(const struct session *session, uint32_t id, struct why *why);

/* Takes fd on success. -SKVQ_ESTAGINGS, -SKVQ_ENOMEM. */
int session_add_staging(struct session *session, int fd, uint32_t *ret_id, struct why *why);
/* NULL with a sentence if there is none. */
struct staging *session_staging(const struct session *session, uint32_t id, struct why *why);
void session_drop_staging(struct session *session, struct staging *staging);

/* op_calibration.c: forgets them all. */
void calibrations_free(struct control_tenant *tenant);
/* The memfd of each, and the bytes of the file in it. */
void calibrations_each(const struct control_tenant *tenant,
		       void (*fn)(void *ctx, int fd, uint64_t bytes), void *ctx);
/* One that another process kept. Takes *fd and sets it to -1 on success. Errors of arena_adopt,
 * -SKVQ_ECORRUPT, -SKVQ_ELIMIT, -SKVQ_ENOMEM. */
int calibration_adopt(struct control_tenant *tenant, int *fd, uint64_t bytes, struct why *why);
/* control.c: a connection that another process ended. Takes *fd and sets it to -1; NULL with a
 * sentence if it is not a socket of ours, or for want of memory. */
struct session *control_adopt(struct control *control, struct control_tenant *tenant, int *fd,
			      const char *name, struct why *why);

/* -SKVQ_EBUSY at requests_max. */
int session_may_wait(const struct session *session, struct why *why);
void session_link(struct session *session, struct inflight *op);
void session_unlink(struct inflight *op); /* an orphan is fine */

#endif /* SKVQD_CONTROL_SESSION_H */
