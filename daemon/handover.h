/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handover.h - a daemon that ends in order leaves its arenas to the next, through the fd store of
 * the service manager.
 *
 *   old:  clients read the end of file; memfds, sockets that hold pins, and last a description of
 *         them all go into the store
 *   new:  reads the description, makes it void, checks each part of it, and serves
 *
 * The description is a memfd that nobody can write any more, only cut: the first who reads it cuts
 * it to nothing. So it is used once, whatever becomes of the store and of its reader; to use it
 * twice would be to trust pages of a daemon that has changed them since. All or nothing for
 * connections: without one that holds pins, no arena is touched. Whatever is not taken over is
 * closed and not punched, for engines may be reading it.
 */
#ifndef SKVQD_HANDOVER_H
#define SKVQD_HANDOVER_H

#include "cache/cache.h"
#include "control/bequest.h"
#include "control/control.h"
#include "notify.h"

/* Begins a description; another version is another text. */
#define HANDOVER_MAGIC "skvqd-handover/2"
/* Of a description: five million pages. */
#define HANDOVER_BYTES_MAX 0x7fffffffu

struct handover {
	struct notify_fd *given; /* fd -1: used or closed */
	uint32_t n_given;
	bool leaving; /* bequest is filled */
	struct bequest bequest;
};

/* Before any descriptor is opened: what the process was given. A zeroed handover. */
void handover_begin(struct handover *handover);
/* With the workers and the tier there, before the first client: takes over what can be. Never
 * fails: what is wrong is logged, and the cache is empty then. */
void handover_take(struct handover *handover, struct control *control);

/* In place of control_fini's closing of connections with pins; after cache_close. */
void handover_prepare(struct handover *handover, struct control *control);
/* When nothing is in flight any more. */
void handover_leave(struct handover *handover, struct cache *cache);
void handover_fini(struct handover *handover, struct cache *cache);

#endif /* SKVQD_HANDOVER_H */
