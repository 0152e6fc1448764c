/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/xfer.h - transfers: a request, mostly with a buffer, that ends by its deadline.
 *
 *   FREE --take--> HELD --start--> OUT --back--> HELD (fn called; start again, or give)
 *                                   | deadline: fn called with -SKVQ_ETIMEOUT
 *                                   +--> LOST --back, whenever--> FREE
 *
 * A short transfer is continued and a transient error tried again, a few times. A lost transfer's
 * buffer is not used for anything until the io gives the request back: the kernel may still write
 * into it. All memory is taken at start.
 */
#ifndef SKVQD_SPILL_XFER_H
#define SKVQD_SPILL_XFER_H

#include "spill/io.h"
#include "mem/tier.h"
#include "spill/pack.h"

#define XFER_NEVER UINT64_MAX

enum xfer_state { XFER_FREE, XFER_HELD, XFER_OUT, XFER_LOST };

struct xfer;
/* status 0 or -SKVQ_EIO, -SKVQ_ENOSPC, -SKVQ_ETIMEOUT; after the last the transfer is gone. */
typedef void (*xfer_fn)(struct xfer *x, int status);

struct xfer {
	struct spill_req req;
	enum xfer_state state;
	uint8_t *buf; /* NULL: of the plain ones, for SYNC, CREATE and UNLINK */
	uint64_t offset, bytes, done;
	uint64_t deadline_ms;
	uint32_t tries;
	bool queued; /* OUT, but the io had no room yet */
	xfer_fn fn;
	struct xfer *next; /* free list */

	/* What it is for: its owner's. */
	void *owner;
	uint32_t seg, entry;
	uint32_t from; /* the entry that is rescued */
	tier_put_fn put_fn;
	void *put_ctx;
	struct tier_key key; /* of a put */
	uint64_t put_deadline_ms;
	bool dropped;    /* while it was compressed */
	uint32_t blocks; /* and what it takes at most */
	struct pack_work work;
};

struct xfers {
	struct spill_io *io;
	struct xfer *all;
	uint32_t n, n_bufs;
	uint32_t buf_bytes;
	uint8_t *pool;
	struct xfer *free_bufs, *free_plain;
	uint32_t n_free_bufs;
	uint32_t n_lost, n_queued;
	uint32_t *out; /* by file: transfers that are not over, lost ones too */
	uint64_t written_bytes, read_bytes, timeouts, retries, shorts;
};

int xfers_init(struct xfers *p, struct spill_io *io, uint32_t bufs, uint32_t buf_bytes,
	       uint32_t plain, uint32_t files);
/* The io is gone by now. Memory of requests it never gave back is left behind. */
void xfers_fini(struct xfers *p);

/* One with a buffer, if more than keep of them are free; or a plain one. Or NULL. */
struct xfer *xfer_take(struct xfers *p, uint32_t keep);
struct xfer *xfer_take_plain(struct xfers *p);
void xfer_give(struct xfers *p, struct xfer *x);
/* bytes 0 for SYNC and UNLINK. fn comes out of xfers_pump, never out of here. */
void xfer_start(struct xfers *p, struct xfer *x, enum spill_op op, uint32_t file, uint64_t offset,
		uint64_t bytes, uint64_t deadline_ms, xfer_fn fn);

/* What came back, then what is late. */
void xfers_pump(struct xfers *p);
/* The earliest deadline, or XFER_NEVER. */
uint64_t xfers_deadline(const struct xfers *p);
/* Requests the io still has. */
uint32_t xfers_out(const struct xfers *p);

#endif /* SKVQD_SPILL_XFER_H */
