/* SPDX-License-Identifier: Apache-2.0 */
#include "base/worker.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <skvq/error.h>

/* A list's end; of an empty one *tail says nothing. */
static void push(struct job **head, struct job **tail, struct job *job)
{
	job->next = NULL;
	if (*head)
		(*tail)->next = job;
	else
		*head = job;
	*tail = job;
}

/* The first of the lane whose turn it is, or NULL. */
static struct job *take(struct worker *w)
{
	struct lane *lane = w->turn_head;
	struct job *job;

	if (!lane)
		return NULL;
	job = lane->head;
	lane->head = job->next;
	lane->queued--;
	w->turn_head = lane->next;
	lane->next = NULL;
	if (!lane->head)
		return job;
	if (w->turn_head)
		w->turn_tail->next = lane;
	else
		w->turn_head = lane;
	w->turn_tail = lane;
	return job;
}

static void put(struct worker *w, struct lane *lane, struct job *job)
{
	if (!lane->head) {
		lane->next = NULL;
		if (w->turn_head)
			w->turn_tail->next = lane;
		else
			w->turn_head = lane;
		w->turn_tail = lane;
	}
	push(&lane->head, &lane->tail, job);
	lane->queued++;
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
		struct job *job = take(w);

		if (!job) {
			if (w->stopping)
				break;
			(void)pthread_cond_wait(&w->wake, &w->lock);
			continue;
		}
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
	lane_init(&w->own, queue_max);
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
	struct job *job;

	(void)pthread_mutex_lock(&w->lock);
	w->stopping = true;
	while ((job = take(w)) != NULL) {
		job->cancelled = true;
		push(&w->done_head, &w->done_tail, job);
	}
	(void)pthread_cond_broadcast(&w->wake);
	(void)pthread_mutex_unlock(&w->lock);
	while (w->n_threads)
		(void)pthread_join(w->threads[--w->n_threads], NULL);
	finish_jobs(w);
	assert(!w->turn_head && !w->done_head);
	loop_del(w->loop, &w->watch);
	if (w->event_fd >= 0)
		(void)close(w->event_fd);
	w->event_fd = -1;
	(void)pthread_cond_destroy(&w->wake);
	(void)pthread_mutex_destroy(&w->lock);
}

void lane_init(struct lane *lane, uint32_t max)
{
	*lane = (struct lane){.max = max};
}

void lane_limit(struct worker *w, struct lane *lane, uint32_t max)
{
	(void)pthread_mutex_lock(&w->lock);
	(lane ? lane : &w->own)->max = max;
	(void)pthread_mutex_unlock(&w->lock);
}

int worker_submit_to(struct worker *w, struct lane *lane, struct job *job)
{
	int err = 0;

	(void)pthread_mutex_lock(&w->lock);
	if (lane->queued >= lane->max || w->stopping) {
		err = -SKVQ_EBUSY;
	} else {
		job->cancelled = false;
		put(w, lane, job);
		(void)pthread_cond_signal(&w->wake);
	}
	(void)pthread_mutex_unlock(&w->lock);
	return err;
}

int worker_submit(struct worker *w, struct job *job)
{
	return worker_submit_to(w, &w->own, job);
}
