/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring: reads, writes and syncs with registered files and buffers where the kernel gives them.
 * Making and removing files is left to one thread: the ring's own calls for it came late, and each
 * of these takes milliseconds.
 *
 * What goes through a ring goes past a filter of system calls (sandbox.h), so the ring itself is
 * told what it may do, for good.
 */
#include "spill/ring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "spill/io_thread.h"

struct ring_io {
	struct spill_io io;
	struct folder *folder;
	struct io_thread *t; /* also owns the eventfd that both complete through */
	struct io_uring ring;
	bool files; /* registered */
	bool cleared;
	uint32_t out, depth;
};

static struct ring_io *ring_of(struct spill_io *io)
{
	return container_of(io, struct ring_io, io);
}

/* Where it fails, the plain descriptor is used from here on: nothing else depends on it. */
static void register_file(struct ring_io *own, uint32_t file, int fd)
{
	if (own->files && io_uring_register_files_update(&own->ring, file, &fd, 1) != 1)
		own->files = false;
}

static int ring_list(struct spill_io *io, spill_list_fn fn, void *ctx)
{
	return folder_list(ring_of(io)->folder, fn, ctx);
}

static int ring_open(struct spill_io *io, uint32_t file, uint64_t number, uint64_t *ret_bytes)
{
	struct ring_io *own = ring_of(io);
	int r = folder_open(own->folder, file, number, ret_bytes);

	if (!r)
		register_file(own, file, own->folder->fds[file]);
	return r;
}

static void ring_close(struct spill_io *io, uint32_t file)
{
	struct ring_io *own = ring_of(io);

	register_file(own, file, -1);
	folder_close(own->folder, file);
}

static void ring_pool(struct spill_io *io, void *base, size_t bytes)
{
	struct ring_io *own = ring_of(io);
	struct iovec iov = {.iov_base = base, .iov_len = bytes};

	/* Counts against RLIMIT_MEMLOCK, and at most 1 GiB: without it, the same by plain calls. */
	own->io.registered = io_uring_register_buffers(&own->ring, &iov, 1) == 0;
}

static void fill_sqe(struct ring_io *own, struct io_uring_sqe *sqe, struct spill_req *req)
{
	int fd = own->files ? (int)req->file : own->folder->fds[req->file];
	unsigned bytes = (unsigned)req->bytes;

	if (req->op == SPILL_SYNC)
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	else if (req->op == SPILL_READ && own->io.registered)
		io_uring_prep_read_fixed(sqe, fd, req->buf, bytes, req->offset, 0);
	else if (req->op == SPILL_READ)
		io_uring_prep_read(sqe, fd, req->buf, bytes, req->offset);
	else if (own->io.registered)
		io_uring_prep_write_fixed(sqe, fd, req->buf, bytes, req->offset, 0);
	else
		io_uring_prep_write(sqe, fd, req->buf, bytes, req->offset);
	if (own->files)
		sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, req);
}

static int ring_submit(struct spill_io *io, struct spill_req *req)
{
	struct ring_io *own = ring_of(io);
	struct io_uring_sqe *sqe;

	if (req->op == SPILL_CREATE || req->op == SPILL_UNLINK || req->op == SPILL_RUN) {
		if (req->op == SPILL_UNLINK)
			register_file(own, req->file, -1);
		io_thread_submit(own->t, req);
		return 0;
	}
	/* Never more out than the completion queue holds. */
	if (own->out >= own->depth)
		return -EAGAIN;
	sqe = io_uring_get_sqe(&own->ring);
	if (!sqe) {
		(void)io_uring_submit(&own->ring);
		sqe = io_uring_get_sqe(&own->ring);
	}
	if (!sqe)
		return -EAGAIN;
	fill_sqe(own, sqe, req);
	own->out++;
	return 0;
}

static void ring_kick(struct spill_io *io)
{
	/* What could not go out now stays in the queue and goes with the next kick. */
	if (io_uring_sq_ready(&ring_of(io)->ring))
		(void)io_uring_submit(&ring_of(io)->ring);
}

static struct spill_req *ring_reap(struct spill_io *io)
{
	struct ring_io *own = ring_of(io);
	struct io_uring_cqe *cqe;
	struct spill_req *req;

	if (!own->cleared)
		io_thread_clear_event(own->t);
	own->cleared = true;
	if (io_uring_peek_cqe(&own->ring, &cqe) == 0) {
		req = io_uring_cqe_get_data(cqe);
		req->result = cqe->res;
		io_uring_cqe_seen(&own->ring, cqe);
		own->out--;
		return req;
	}
	req = io_thread_reap(own->t);
	if (req && req->op == SPILL_CREATE && req->result == 0)
		register_file(own, req->file, own->folder->fds[req->file]);
	own->cleared = req != NULL;
	return req;
}

static void ring_wait(struct spill_io *io, uint32_t timeout_ms)
{
	ring_kick(io);
	spill_wait_fd(io_thread_event_fd(ring_of(io)->t), timeout_ms);
}

static int ring_event_fd(struct spill_io *io)
{
	return io_thread_event_fd(ring_of(io)->t);
}

static void ring_free(struct spill_io *io)
{
	struct ring_io *own = ring_of(io);

	io_uring_queue_exit(&own->ring);
	if (io_thread_free(own->t)) {
		folder_fini(own->folder);
		free(own->folder);
	}
	free(own);
}

static const struct spill_io_ops ring_ops = {
    .list = ring_list,
    .open = ring_open,
    .close = ring_close,
    .pool = ring_pool,
    .submit = ring_submit,
    .kick = ring_kick,
    .reap = ring_reap,
    .wait = ring_wait,
    .event_fd = ring_event_fd,
    .now_ms = spill_clock_ms,
    .free = ring_free,
};

/* liburing 2.3 declares calls for what follows and does not export them. */
static int ring_register(const struct io_uring *ring, unsigned opcode, const void *arg, unsigned n)
{
	return syscall(SYS_io_uring_register, ring->ring_fd, opcode, arg, n) < 0 ? -errno : 0;
}

/* Reads, writes and syncs of files that are open, and what is registered once the ring runs. Linux
 * 5.10; before that any. */
static int restrict_ring(const struct io_uring *ring)
{
	static const uint8_t ops[] = {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED,
				      IORING_OP_WRITE_FIXED, IORING_OP_FSYNC};
	static const uint8_t registers[] = {IORING_REGISTER_BUFFERS, IORING_REGISTER_FILES_UPDATE};
	struct io_uring_restriction list[sizeof(ops) + sizeof(registers) + 1] = {
	    {.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = IOSQE_FIXED_FILE}};
	unsigned n = 1;

	for (size_t i = 0; i < sizeof(ops); i++)
		list[n++] = (struct io_uring_restriction){.opcode = IORING_RESTRICTION_SQE_OP,
							  .sqe_op = ops[i]};
	for (size_t i = 0; i < sizeof(registers); i++)
		list[n++] = (struct io_uring_restriction){.opcode = IORING_RESTRICTION_REGISTER_OP,
							  .register_op = registers[i]};
	return ring_register(ring, IORING_REGISTER_RESTRICTIONS, list, n);
}

int spill_ring_init(struct io_uring *ring, uint32_t depth)
{
	return io_uring_queue_init(depth, ring, IORING_SETUP_R_DISABLED) == 0
		   ? 0
		   : io_uring_queue_init(depth, ring, 0);
}

int spill_ring_enable(const struct io_uring *ring, bool *ret_restricted)
{
	*ret_restricted = false;
	if (!(ring->flags & IORING_SETUP_R_DISABLED))
		return 0;
	*ret_restricted = restrict_ring(ring) == 0;
	return ring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int spill_io_uring_new(struct folder *folder, uint32_t depth, uint32_t work_threads,
		       struct spill_io **ret_io, struct why *why)
{
	struct ring_io *own = calloc(1, sizeof(*own));
	int r;

	if (!own)
		return why_fail(why, SKVQ_ENOMEM, "no memory");
	r = spill_ring_init(&own->ring, depth);
	if (r < 0) {
		free(own);
		return why_fail(why, SKVQ_ENOTSUP, "no io_uring (%s): by threads", strerror(-r));
	}
	own->depth = depth;
	own->folder = folder;
	own->t = io_thread_new(folder, 1 + work_threads);
	r = own->t ? io_uring_register_eventfd(&own->ring, io_thread_event_fd(own->t)) : -ENOMEM;
	own->files = !r && io_uring_register_files_sparse(&own->ring, folder->files_max) == 0;
	if (!r)
		r = spill_ring_enable(&own->ring, &own->io.restricted);
	if (r < 0) {
		io_uring_queue_exit(&own->ring);
		(void)io_thread_free(own->t);
		free(own);
		return why_fail(why, SKVQ_ENOTSUP, "no io_uring (%s): by threads", strerror(-r));
	}
	own->io.ops = &ring_ops;
	own->io.engine = "io_uring";
	own->io.direct = folder->direct;
	*ret_io = &own->io;
	return 0;
}
