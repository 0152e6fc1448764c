/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/bequest.h - what clients leave to the next daemon: the sockets of those that hold pins,
 * with these pins, and the tenants' calibrations.
 *
 * A client goes on reading pages that it had pinned until it has copied them, and says so by
 * closing its socket. So a connection with pins is not closed: the client reads the end of file,
 * and the next daemon keeps the socket, and the pins with it, until the client closes its side.
 * Loop thread only.
 */
#ifndef SKVQD_CONTROL_BEQUEST_H
#define SKVQD_CONTROL_BEQUEST_H

#include "base/blob.h"
#include "cache/snapshot.h"
#include "control/control.h"

struct bequest {
	uint32_t n_conns, n_calibrations;
	struct bequest_conn *conns; /* control/bequest.c */
	struct bequest_calibration *calibrations;
};

/* Ends all connections with pins and takes their sockets and pins over. After cache_close, before
 * control_fini. -SKVQ_ENOTSUP if a client that holds pins would take the end of this process for
 * the end of its arenas, -SKVQ_ENOMEM: then nothing has changed, and the bequest is empty. */
int control_bequeath(struct control *control, struct bequest *ret, struct why *why);
/* Calls fn for each descriptor. */
void bequest_each_fd(const struct bequest *bequest, void (*fn)(void *ctx, int fd), void *ctx);
void bequest_write(const struct bequest *bequest, struct blob *blob);
/* Unpins and closes. A zeroed bequest is fine. */
void bequest_fini(struct bequest *bequest, struct cache *cache);

/* Takes over what was written, between snapshot_adopt and snapshot_verify. *ret_conns: how many. A
 * calibration that is missing or bad is left out; a connection may not be. -SKVQ_ECORRUPT,
 * -SKVQ_EFD, -SKVQ_ELIMIT, -SKVQ_ENOMEM: then the caller calls control_abandon, and
 * cache_abandon. */
int control_inherit(struct control *control, struct blob_cursor *cursor,
		    const struct snapshot_files *files, const struct snapshot *snapshot,
		    uint32_t *ret_conns, struct why *why);
/* Closes all connections, before the first that was accepted. */
void control_abandon(struct control *control);

#endif /* SKVQD_CONTROL_BEQUEST_H */
