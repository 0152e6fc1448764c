/* SPDX-License-Identifier: Apache-2.0 */
#include "base/worker.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <skvq/error.h>

static void push(struct job **head, struct job **tail, struct job *job)
{
	job->next = NULL;
	if (*head)
		(*tail)->next = job;
	else
		*head = job;
	*tail = job;
}

static void poke(int event_fd)
{
	uint64_t one = 1;
	ssize_t n;

	do
		n = write(event_fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
}

static void *thread_main(void *arg)
{
	struct worker *w = arg;

	(void)pthread_mutex_lock(&w->lock);
	for (;;) {
		struct job *job = w->queue_head;

		if (!job) {
			if (w->stopping)
				break;
			(void)pthread_cond_wait(&w->wake, &w->lock);
			continue;
		}
		w->queue_head = job->next;
		w->queued--;
		(void)pthread_mutex_unlock(&w->lock);
		job->run(job);
		(void)pthread_mutex_lock(&w->lock);
		push(&w->done_head, &w->done_tail, job);
		poke(w->event_fd);
	}
	(void)pthread_mutex_unlock(&w->lock);
	return NULL;
}

static void finish_jobs(struct worker *w)
{
	struct job *job;

	(void)pthread_mutex_lock(&w->lock);
	job = w->done_head;
	w->done_head = NULL;
	(void)pthread_mutex_unlock(&w->lock);
	while (job) {
		struct job *next = job->next;

		job->done(job);
		job = next;
	}
}

static void on_event(void *ctx, uint32_t events)
{
	struct worker *w = ctx;
	uint64_t n;

	(void)events;
	if (read(w->event_fd, &n, sizeof(n)) < 0 && errno != EAGAIN && errno != EINTR)
		return;
	finish_jobs(w);
}

int worker_init(struct worker *w, struct loop *loop, uint32_t n_threads, uint32_t queue_max)
{
	sigset_t all, old;
	int err = 0;

	assert(n_threads >= 1 && n_threads <= WORKER_THREADS_MAX && queue_max >= 1);
	memset(w, 0, sizeof(*w));
	(void)pthread_mutex_init(&w->lock, NULL);
	(void)pthread_cond_init(&w->wake, NULL);
	w->queue_max = queue_max;
	w->loop = loop;
	w->watch.fd = -1;
	w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->event_fd < 0)
		goto fail;
	w->watch =
	    (struct loop_watch){.fd = w->event_fd, .events = EPOLLIN, .fn = on_event, .ctx = w};
	if (loop_add(loop, &w->watch) < 0)
		goto fail;
	/* Signals belong to the loop's signalfd alone. */
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	while (w->n_threads < n_threads && !err) {
		err = pthread_create(&w->threads[w->n_threads], NULL, thread_main, w);
		if (!err)
			w->n_threads++;
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!err)
		return 0;
	errno = err;
fail:
	err = errno;
	worker_fini(w);
	errno = err;
	return -SKVQ_ESYS;
}

void worker_fini(struct worker *w)
{
	(void)pthread_mutex_lock(&w->lock);
	w->stopping = true;
	while (w->queue_head) {
		struct job *job = w->queue_head;

		w->queue_head = job->next;
		w->queued--;
		job->cancelled = true;
		push(&w->done_head, &w->done_tail, job);
	}
	(void)pthread_cond_broadcast(&w->wake);
	(void)pthread_mutex_unlock(&w->lock);
	while (w->n_threads)
		(void)pthread_join(w->threads[--w->n_threads], NULL);
	finish_jobs(w);
	assert(!w->queue_head && !w->done_head);
	loop_del(w->loop, &w->watch);
	if (w->event_fd >= 0)
		(void)close(w->event_fd);
	w->event_fd = -1;
	(void)pthread_cond_destroy(&w->wake);
	(void)pthread_mutex_destroy(&w->lock);
}

int worker_submit(struct worker *w, struct job *job)
{
	int err = 0;

	(void)pthread_mutex_lock(&w->lock);
	if (w->queued >= w->queue_max || w->stopping) {
		err = -SKVQ_EBUSY;
	} else {
		job->cancelled = false;
		push(&w->queue_head, &w->queue_tail, job);
		w->queued++;
		(void)pthread_cond_signal(&w->wake);
	}
	(void)pthread_mutex_unlock(&w->lock);
	return err;
}
