/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/control.h - all clients: who is connected, and what ends with them.
 *
 * It takes accepted sockets, keeps their number bounded, serves their requests out of the cache and
 * cleans up after each. It does not know how sockets come about (server.c). Loop thread only.
 */
#ifndef SKVQD_CONTROL_CONTROL_H
#define SKVQD_CONTROL_CONTROL_H

#include <stdint.h>

#include "base/loop.h"
#include "base/stats.h"
#include "cache/cache.h"
#include "control/conn.h"

struct session;

struct control_config {
	struct conn_limits conn;
	uint32_t connections_max;
	uint32_t pins_max;     /* of one connection */
	uint32_t requests_max; /* of one connection, not yet answered */
	uint32_t staging_max;  /* memfds of one connection */
	const char *tenant;    /* of everyone on this socket; borrowed, as the next two */
	const char *socket;    /* for StatusReply */
	const char *version;
};

struct control {
	struct control_config config;
	struct loop *loop;
	struct closer *closer; /* NULL: descriptors are closed at once */
	struct cache *cache;
	struct stats *stats;
	uint64_t boot_id; /* random, not 0, in every reply */
	uint64_t started_ms;
	uint64_t last_id; /* of a connection */
	struct session *sessions;
	struct session *dead; /* to be freed after the batch */
	uint32_t n_sessions;
};

/* Installs itself as the loop's after-hook. -SKVQ_ESYS if there is no randomness. */
int control_init(struct control *control, const struct control_config *config, struct loop *loop,
		 struct closer *closer, struct cache *cache, struct stats *stats);
/* Closes every connection. Publishes in flight go on without their clients. */
void control_fini(struct control *control);

/* Takes an accepted, non-blocking socket: serves it, or tells it SKVQ_ECONNS and closes it. */
void control_accept(struct control *control, int fd);

#endif /* SKVQD_CONTROL_CONTROL_H */
