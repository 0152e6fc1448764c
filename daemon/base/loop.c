/* SPDX-License-Identifier: Apache-2.0 */
#include "base/loop.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <skvq/error.h>

int loop_init(struct loop *loop)
{
	memset(loop, 0, sizeof(*loop));
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return loop->epoll_fd < 0 ? -SKVQ_ESYS : 0;
}

void loop_fini(struct loop *loop)
{
	if (loop->epoll_fd > 0)
		(void)close(loop->epoll_fd);
	loop->epoll_fd = -1;
}

int loop_add(struct loop *loop, struct loop_watch *watch)
{
	struct epoll_event ev = {.events = watch->events, .data.ptr = watch};

	assert(watch->fd >= 0 && watch->fn);
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, watch->fd, &ev) < 0) {
		watch->fd = -1;
		return -SKVQ_ESYS;
	}
	return 0;
}

int loop_mod(struct loop *loop, struct loop_watch *watch, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = watch};

	if (watch->events == events)
		return 0;
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &ev) < 0)
		return -SKVQ_ESYS;
	watch->events = events;
	return 0;
}

void loop_del(struct loop *loop, struct loop_watch *watch)
{
	if (watch->fd < 0)
		return;
	(void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	watch->fd = -1;
	for (int i = loop->batch_at; i < loop->batch_n; i++) {
		if (loop->batch[i].data.ptr == watch)
			loop->batch[i].data.ptr = NULL;
	}
}

void loop_hook_add(struct loop *loop, struct loop_hook *hook)
{
	hook->next = loop->hooks;
	loop->hooks = hook;
}

void loop_hook_del(struct loop *loop, struct loop_hook *hook)
{
	for (struct loop_hook **at = &loop->hooks; *at; at = &(*at)->next) {
		if (*at == hook) {
			*at = hook->next;
			return;
		}
	}
}

int loop_step(struct loop *loop, int timeout_ms)
{
	int n = epoll_wait(loop->epoll_fd, loop->batch, LOOP_BATCH, timeout_ms);

	if (n < 0 && errno != EINTR)
		return -SKVQ_ESYS;
	loop->batch_n = n < 0 ? 0 : n;
	for (loop->batch_at = 0; loop->batch_at < loop->batch_n;) {
		struct epoll_event ev = loop->batch[loop->batch_at++];
		struct loop_watch *watch = ev.data.ptr;

		if (watch)
			watch->fn(watch->ctx, ev.events);
	}
	loop->batch_n = 0;
	for (struct loop_hook *hook = loop->hooks; hook; hook = hook->next)
		hook->fn(hook->ctx);
	return 0;
}

int loop_run(struct loop *loop)
{
	while (!loop->stopping) {
		int err = loop_step(loop, -1);

		if (err < 0)
			return err;
	}
	return 0;
}

void loop_stop(struct loop *loop)
{
	loop->stopping = true;
}
