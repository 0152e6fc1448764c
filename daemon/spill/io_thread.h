/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/io_thread.h - requests done by a few threads with pread and pwrite: where there is no ring,
 * and beside the ring for what a ring of old kernels cannot do.
 */
#ifndef SKVQD_SPILL_IO_THREAD_H
#define SKVQD_SPILL_IO_THREAD_H

#include "spill/folder.h"

struct io_thread;

/* folder is borrowed, and must outlive threads that are stuck. NULL: no memory or thread. */
struct io_thread *io_thread_new(struct folder *folder, uint32_t threads);
/* Waits a moment. False: a thread is stuck in the kernel and was left behind, with its memory. */
bool io_thread_free(struct io_thread *t);
void io_thread_submit(struct io_thread *t, struct spill_req *req);
struct spill_req *io_thread_reap(struct io_thread *t);
int io_thread_event_fd(const struct io_thread *t);
void io_thread_clear_event(struct io_thread *t);

/* The whole io over it. */
int spill_io_threads_new(struct folder *folder, uint32_t threads, struct spill_io **ret_io);
/* -SKVQ_ENOTSUP: the kernel refuses the ring; why says how. */
int spill_io_uring_new(struct folder *folder, uint32_t depth, uint32_t work_threads,
		       struct spill_io **ret_io, struct why *why);
/* Both take the folder on success; it was malloc'ed. */

uint64_t spill_clock_ms(struct spill_io *io);
void spill_wait_fd(int fd, uint32_t timeout_ms);

#endif /* SKVQD_SPILL_IO_THREAD_H */
