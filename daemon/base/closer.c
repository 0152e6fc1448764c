/* SPDX-License-Identifier: Apache-2.0 */
#include "base/closer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* How long an orderly end waits for a close that sleeps. */
#define FREE_WAIT_NS (200 * 1000 * 1000)

struct closer {
	pthread_mutex_t lock; /* guards everything below */
	pthread_cond_t wake;
	int *fds; /* a stack: order does not matter */
	uint32_t n, cap;
	bool stopping;
	pthread_t thread;
};

static void *thread_main(void *arg)
{
	struct closer *c = arg;

	(void)pthread_mutex_lock(&c->lock);
	for (;;) {
		int fd;

		while (!c->n && !c->stopping)
			(void)pthread_cond_wait(&c->wake, &c->lock);
		if (!c->n)
			break;
		fd = c->fds[--c->n];
		(void)pthread_mutex_unlock(&c->lock);
		(void)close(fd);
		(void)pthread_mutex_lock(&c->lock);
	}
	(void)pthread_mutex_unlock(&c->lock);
	return NULL;
}

struct closer *closer_new(void)
{
	struct closer *c = calloc(1, sizeof(*c));
	sigset_t all, old;
	int err;

	if (!c)
		return NULL;
	(void)pthread_mutex_init(&c->lock, NULL);
	(void)pthread_cond_init(&c->wake, NULL);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&c->thread, NULL, thread_main, c);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!err)
		return c;
	free(c);
	errno = err;
	return NULL;
}

void closer_free(struct closer *c)
{
	struct timespec until;

	if (!c)
		return;
	(void)pthread_mutex_lock(&c->lock);
	c->stopping = true;
	(void)pthread_cond_signal(&c->wake);
	(void)pthread_mutex_unlock(&c->lock);
	(void)clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += FREE_WAIT_NS;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	if (pthread_timedjoin_np(c->thread, NULL, &until) != 0) {
		(void)pthread_detach(c->thread);
		return;
	}
	(void)pthread_cond_destroy(&c->wake);
	(void)pthread_mutex_destroy(&c->lock);
	free(c->fds);
	free(c);
}

void closer_close(struct closer *c, int fd)
{
	bool queued = false;

	if (c) {
		(void)pthread_mutex_lock(&c->lock);
		if (c->n == c->cap) {
			uint32_t cap = c->cap ? c->cap * 2 : 64;
			int *bigger = realloc(c->fds, cap * sizeof(*bigger));

			if (bigger) {
				c->fds = bigger;
				c->cap = cap;
			}
		}
		if (c->n < c->cap) {
			c->fds[c->n++] = fd;
			queued = true;
			(void)pthread_cond_signal(&c->wake);
		}
		(void)pthread_mutex_unlock(&c->lock);
	}
	if (!queued)
		(void)close(fd);
}
