/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/worker.h - a few threads for work that would hold up the loop: copying, checking, hashing.
 *
 *   loop thread                     worker threads
 *   worker_submit(job) ──queue──►   job->run(job)
 *   job->done(job)     ◄─eventfd──  finished list
 *
 * A job owns, or holds by a reference kept for it, everything that run() touches; the loop does not
 * look into a job between submit and done. The pool's lock gives the ordering both ways.
 *
 * Jobs wait in lanes, one for each kind of work of each source. Threads take from the lanes in turn, so
 * a job waits for one of every other lane at the most for each that is before it in its own. Each
 * lane is bounded for itself: a full one is -SKVQ_EBUSY, an answer and not a wait.
 */
#ifndef SKVQD_BASE_WORKER_H
#define SKVQD_BASE_WORKER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/loop.h"

#define WORKER_THREADS_MAX 64u

/* Embedded in the caller's struct. */
struct job {
	struct job *next;
	void (*run)(struct job *job);  /* worker thread */
	void (*done)(struct job *job); /* loop thread, exactly once; may free or resubmit the job */
	bool cancelled;                /* in done: the pool ended before run() was called */
};

/* Embedded in what the jobs are of, and the worker's while jobs are in it. */
struct lane {
	struct job *head, *tail;
	uint32_t queued; /* not yet taken by a thread */
	uint32_t max;
	struct lane *next; /* whose turn is behind it */
};

struct worker {
	pthread_mutex_t lock; /* guards the lists, all lanes' counts and stopping */
	pthread_cond_t wake;
	struct lane *turn_head, *turn_tail; /* those that have jobs */
	struct lane own;                    /* of worker_submit */
	struct job *done_head, *done_tail;
	bool stopping;
	uint32_t n_threads;
	pthread_t threads[WORKER_THREADS_MAX];
	int event_fd;
	struct loop *loop;
	struct loop_watch watch;
};

/* Starts n_threads (1..WORKER_THREADS_MAX) with all signals blocked; queue_max of the worker's own
 * lane. 0 or -SKVQ_ESYS (errno). */
int worker_init(struct worker *w, struct loop *loop, uint32_t n_threads, uint32_t queue_max);
/* Waits for jobs that run, cancels those that do not yet, then calls done() of all of them. */
void worker_fini(struct worker *w);
/* max: jobs that may wait in it. */
void lane_init(struct lane *lane, uint32_t max);
/* A new bound for a lane that may have jobs in it, which stay. NULL: the worker's own. Loop thread. */
void lane_limit(struct worker *w, struct lane *lane, uint32_t max);
/* 0, or -SKVQ_EBUSY and the job stays the caller's. Loop thread. The lane outlives the job's wait. */
int worker_submit_to(struct worker *w, struct lane *lane, struct job *job);
/* The same in the worker's own lane, which is for work that nobody waits for. */
int worker_submit(struct worker *w, struct job *job);

#endif /* SKVQD_BASE_WORKER_H */
