/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/io.h - the seam between the store and a folder of segment files.
 *
 * Requests go in, come back in any order, and may take for ever: deadlines are the caller's. A
 * request and its buffer belong to the io from a submit that returned 0 until reap gives it back.
 * Behind it stand a ring (io_uring.c), threads (io_thread.c), and in tests a disk in memory and an
 * injector of faults. Owner thread only.
 */
#ifndef SKVQD_SPILL_IO_H
#define SKVQD_SPILL_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/why.h"

enum spill_op {
	SPILL_READ, /* bytes at offset into buf; result: bytes, perhaps fewer, or -errno */
	SPILL_WRITE,
	SPILL_SYNC,   /* what was written before it is durable: fdatasync */
	SPILL_CREATE, /* makes segment `number` of `bytes`, allocated, and opens it as `file`;
		       * durable but for its contents. Sets physical. A failure leaves no file if it
		       * can. */
	SPILL_UNLINK, /* removes it and closes `file`, whatever the result */
	SPILL_RUN,    /* run(req) on a thread: work that would hold up the owner */
};

struct spill_req {
	enum spill_op op;
	uint32_t file; /* chosen by the caller, below files_max; open from CREATE or open on */
	uint64_t number;
	uint64_t offset;
	void *buf; /* in the pool */
	uint64_t bytes;
	void (*run)(struct spill_req *req); /* of RUN */
	int64_t result;                     /* out */
	uint64_t physical;      /* out, of CREATE: bytes the file system says it takes */
	struct spill_req *next; /* the io's while it has the request */
};

typedef void (*spill_list_fn)(void *ctx, uint64_t number, uint64_t physical);

struct spill_io;
struct spill_io_ops {
	/* Every segment file of the folder, in any order. -errno. Waits. */
	int (*list)(struct spill_io *io, spill_list_fn fn, void *ctx);
	/* An existing segment as `file`; *ret_bytes is its length. -errno. Waits. */
	int (*open)(struct spill_io *io, uint32_t file, uint64_t number, uint64_t *ret_bytes);
	void (*close)(struct spill_io *io, uint32_t file); /* no request of it may be out */
	/* All buffers will lie in here: a hint, once, before the first request. */
	void (*pool)(struct spill_io *io, void *base, size_t bytes);
	/* 0, or -EAGAIN and the request stays the caller's. Goes out with the next kick at the
	 * latest. */
	int (*submit)(struct spill_io *io, struct spill_req *req);
	void (*kick)(struct spill_io *io);
	struct spill_req *(*reap)(struct spill_io *io); /* NULL: none now */
	/* Until something may be reaped or timeout_ms have passed: for start and end alone. */
	void (*wait)(struct spill_io *io, uint32_t timeout_ms);
	int (*event_fd)(struct spill_io *io); /* readable when something may be reaped; or -1 */
	uint64_t (*now_ms)(struct spill_io *io);
	/* Requests that are still out then may touch their memory until the process ends: the
	 * caller must leave it alone. */
	void (*free)(struct spill_io *io);
};

struct spill_io {
	const struct spill_io_ops *ops;
	const char *engine; /* "io_uring", "threads" */
	bool direct;        /* O_DIRECT */
	bool registered;    /* the pool is known to the kernel */
	bool restricted;    /* a ring that refuses whatever the store does not need */
	struct why warning; /* what was wanted and could not be had; empty if nothing */
};

struct spill_io_config {
	const char *folder; /* made if it is not there, 0700; locked while the io lives */
	uint32_t files_max;
	uint32_t depth;        /* requests out at once */
	uint32_t threads;      /* without a ring; they run RUN too */
	uint32_t work_threads; /* beside a ring, for RUN; 0: one */
	bool no_uring, no_direct;
};

/* By io_uring, else by threads. -SKVQ_EINUSE: another process has the folder. -SKVQ_EPERM: others
 * may write to it. -SKVQ_ESYS, -SKVQ_ENOMEM. */
int spill_io_new(const struct spill_io_config *config, struct spill_io **ret_io, struct why *why);

#endif /* SKVQD_SPILL_IO_H */
