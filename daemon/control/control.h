/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/control.h - all clients: who is connected, and what ends with them.
 *
 * It takes accepted sockets, keeps their number bounded, serves their requests out of the cache and
 * cleans up after each. It does not know how sockets come about (server.c). Loop thread only.
 */
#ifndef SKVQD_CONTROL_CONTROL_H
#define SKVQD_CONTROL_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/loop.h"
#include "base/stats.h"
#include "cache/cache.h"
#include "control/conn.h"
#include "spill/store.h"

#define CALIBRATIONS_MAX 64u /* models of a tenant of which one is kept */
#define ADMIN_CONNECTIONS_MAX 8u /* beside those of the tenants */

struct session;
struct calibration;
struct manage;

/* Rounds over a tenant's pages, of each kind one at a time; op_manage.c. */
enum manage_kind { MANAGE_EVICT, MANAGE_VERIFY, MANAGE_DRAIN, MANAGE_KINDS };
#define MANAGE_WORDS 9 /* what one is, and its place */

/* One key that a new configuration changes; "" is none. */
struct control_change {
	char *name, *from, *to;
	bool restart; /* it would take a start, and stays as it is */
};
struct control_setting {
	const char *section, *key, *value;
};
/* What a change would do, worked out and found possible. */
struct control_plan {
	struct control_change *changes; /* [n] */
	uint32_t n;
};
/* How the daemon is steered; control/ knows no keys. Borrowed, as ctx. */
struct control_steer {
	void *ctx;
	/* The configuration as text, malloc'ed. -SKVQ_ENOMEM. */
	int (*show)(void *ctx, char **ret_text, size_t *ret_bytes, struct why *why);
	/* The i-th key and what happens when it changes (NULL: that takes a start), until the next call. NULL
	 * behind the last. */
	const char *(*key_at)(void *ctx, uint32_t i, const char **ret_live);
	/* Of a file's bytes (name: in sentences), or (n_settings not 0) of some keys. -SKVQ_EINVAL, -SKVQ_ENOMEM, -SKVQ_EBUSY. */
	int (*plan)(void *ctx, const char *name, const void *text, size_t bytes,
		    const struct control_setting *settings, size_t n_settings,
		    struct control_plan **ret, struct why *why);
	void (*apply)(void *ctx, struct control_plan *plan); /* at once after plan, at most once */
	void (*forget)(void *ctx, struct control_plan *plan);
};

/* Of the tenant with the same index in the cache. Borrowed arrays live as long as control. */
struct control_tenant_config {
	const uint32_t *uids, *gids; /* who is of it, by the credentials of the peer */
	uint32_t n_uids, n_gids;
	uint32_t connections_max;
	uint64_t calibration_max; /* bytes of calibration files together */
	uint64_t disk_max;        /* bytes of its store, for StatusReply */
	const char *socket;       /* its own, or the shared one; for StatusReply */
};

struct control_config {
	struct conn_limits conn;
	uint32_t connections_max;
	uint32_t pins_max;     /* of one connection */
	uint32_t requests_max; /* of one connection, not yet answered */
	uint32_t staging_max;  /* memfds of one connection */
	uint32_t restore_wait_ms;  /* a match waits for disk no longer */
	const struct control_steer *steer; /* NULL: it cannot be steered */
	bool handover; /* the arenas may outlive this process: see control/bequest.h */
	/* [n_tenants of the cache]. Without sections there is one, and everybody is of it and may
	 * look at all. */
	struct control_tenant_config tenants[TENANTS_MAX];
	bool sections;
	const uint32_t *admins; /* who may look at all, on the shared socket; borrowed, as what follows */
	uint32_t n_admins;
	const char *socket; /* the shared one, for StatusReply */
	const char *version;
};

/* What control/ keeps of a tenant. */
struct control_tenant {
	const struct control_tenant_config *config;
	struct tenant *tenant; /* the cache's */
	struct store *store;   /* NULL: none; for its counters, lists and checks of its records */
	uint32_t n_sessions;
	uint64_t last_session; /* connections it ever made */
	/* By model; see op_calibration.c. */
	struct calibration *calibrations;
	uint64_t calibration_bytes;
	uint32_t n_calibrations;
	bool calibration_busy; /* one is being checked */
	struct manage *manage[MANAGE_KINDS];
	uint64_t manage_next[MANAGE_KINDS][MANAGE_WORDS]; /* how the one before goes on */
};

struct control {
	struct control_config config;
	struct loop *loop;
	struct loop_hook hook;
	struct closer *closer; /* NULL: descriptors are closed at once */
	struct cache *cache;
	struct stats *stats;
	uint64_t boot_id; /* random, not 0, in every reply */
	uint64_t started_ms;
	struct control_tenant tenants[TENANTS_MAX]; /* [cache->n_tenants] */
	uint64_t last_stranger;                     /* connections of no tenant there ever were */
	bool closed; /* control_fini was here; a check of a calibration may still be under way */
	struct session *sessions;
	struct session *dead; /* to be freed after the batch */
	uint32_t n_sessions;
	uint32_t n_strangers; /* of these, of no tenant */
	struct manage *manage; /* rounds under way */
	struct loop_watch manage_watch;
	struct subscriber *subscribers; /* op_events.c */
	struct cache_watch watch;
};

/* The cache has its tenants. -SKVQ_ESYS if there is no randomness. */
int control_init(struct control *control, const struct control_config *config, struct loop *loop,
		 struct closer *closer, struct cache *cache, struct stats *stats);
/* Closes every connection. Publishes in flight, and the check of a calibration, go on without their
 * clients: the struct must live until the workers have ended. */
void control_fini(struct control *control);

/* After control->config was changed in place: what sessions keep of it is as that says. */
void control_limits_changed(struct control *control);

/* Takes a socket, non-blocking, that was accepted on the shared one (tenant NULL) or on the tenant's
 * own: serves it, or tells it SKVQ_EPERM, SKVQ_ECONNS or SKVQ_ETCONNS and closes it. */
void control_accept(struct control *control, int fd, struct control_tenant *tenant);

#endif /* SKVQD_CONTROL_CONTROL_H */
