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
#include <stdint.h>

#include "base/loop.h"
#include "base/stats.h"
#include "cache/cache.h"
#include "control/conn.h"
#include "spill/store.h"

#define CALIBRATIONS_MAX 64u /* models of which one is kept */

struct session;
struct calibration;

struct control_config {
	struct conn_limits conn;
	uint32_t connections_max;
	uint32_t pins_max;     /* of one connection */
	uint32_t requests_max; /* of one connection, not yet answered */
	uint32_t staging_max;  /* memfds of one connection */
	uint32_t restore_wait_ms;  /* a match waits for disk no longer */
	uint64_t disk_max;         /* bytes of the store, for StatusReply */
	uint64_t calibration_max; /* bytes of calibration files together */
	bool handover; /* the arenas may outlive this process: see control/bequest.h */
	const char *tenant;    /* of everyone on this socket; borrowed, as the next two */
	const char *socket;    /* for StatusReply */
	const char *version;
};

struct control {
	struct control_config config;
	struct loop *loop;
	struct loop_hook hook;
	struct closer *closer; /* NULL: descriptors are closed at once */
	struct cache *cache;
	struct stats *stats;
	struct store *store; /* NULL: none; for its counters alone */
	uint64_t boot_id; /* random, not 0, in every reply */
	uint64_t started_ms;
	uint64_t last_id; /* of a connection */
	/* Of the tenant, by model; see op_calibration.c. */
	struct calibration *calibrations;
	uint64_t calibration_bytes;
	uint32_t n_calibrations;
	bool calibration_busy; /* one is being checked */
	bool closed;           /* control_fini was here; a check may still be under way */
	struct session *sessions;
	struct session *dead; /* to be freed after the batch */
	uint32_t n_sessions;
};

/* -SKVQ_ESYS if there is no randomness. */
int control_init(struct control *control, const struct control_config *config, struct loop *loop,
		 struct closer *closer, struct cache *cache, struct stats *stats);
/* Closes every connection. Publishes in flight, and the check of a calibration, go on without their
 * clients: the struct must live until the workers have ended. */
void control_fini(struct control *control);

/* Takes an accepted, non-blocking socket: serves it, or tells it SKVQ_ECONNS and closes it. */
void control_accept(struct control *control, int fd);

#endif /* SKVQD_CONTROL_CONTROL_H */
