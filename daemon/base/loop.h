/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/loop.h - the event loop: epoll, one callback a descriptor, one thread.
 *
 * It knows descriptors and callbacks and nothing else; time comes in through a timerfd, signals
 * through a signalfd, other threads through an eventfd. All calls are for the loop's own thread.
 * A callback may remove any watch, its own included: a removed watch is never called again, not
 * even for events already fetched.
 */
#ifndef SKVQD_BASE_LOOP_H
#define SKVQD_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#define LOOP_BATCH 64

/* Embedded by its owner, who must keep it in place between loop_add and loop_del. */
struct loop_watch {
	int fd; /* -1: not added */
	uint32_t events;
	void (*fn)(void *ctx, uint32_t events); /* EPOLL* bits */
	void *ctx;
};

/* What runs after each batch: the place to free what died in it, or to send what it gathered.
 * Embedded by its owner. */
struct loop_hook {
	void (*fn)(void *ctx);
	void *ctx;
	struct loop_hook *next;
};

struct loop {
	int epoll_fd;
	bool stopping;
	int batch_at, batch_n; /* what loop_del must still take out */
	struct epoll_event batch[LOOP_BATCH];
	struct loop_hook *hooks; /* newest first */
};

int loop_init(struct loop *loop);  /* 0, or -SKVQ_ESYS (errno kept) */
void loop_fini(struct loop *loop); /* watches must be gone; a zeroed or failed loop is fine */

/* 0, or -SKVQ_ESYS (errno kept) and the watch is not added. */
int loop_add(struct loop *loop, struct loop_watch *watch);
/* Sets the wanted events; no system call if they are the same. */
int loop_mod(struct loop *loop, struct loop_watch *watch, uint32_t events);
/* Does not close the descriptor. A watch that is not added is fine. */
void loop_del(struct loop *loop, struct loop_watch *watch);

void loop_hook_add(struct loop *loop, struct loop_hook *hook);
/* Not out of a hook. One that was not added is fine. */
void loop_hook_del(struct loop *loop, struct loop_hook *hook);

/* One wait of at most timeout_ms (-1: for ever) and its callbacks. 0, or -SKVQ_ESYS. */
int loop_step(struct loop *loop, int timeout_ms);
/* Steps until loop_stop. */
int loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

#endif /* SKVQD_BASE_LOOP_H */
