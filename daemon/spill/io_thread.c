/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/io_thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define THREADS_MAX 16u
#define FREE_WAIT_S 2

struct list {
	struct spill_req *head, *tail;
};

struct io_thread {
	pthread_mutex_t lock; /* guards the lists and stopping */
	pthread_cond_t wake;
	struct list queue, done;
	bool stopping;
	struct folder *folder;
	int event_fd;
	uint32_t n;
	pthread_t threads[THREADS_MAX];
};

static void list_push(struct list *list, struct spill_req *req)
{
	req->next = NULL;
	if (list->tail)
		list->tail->next = req;
	else
		list->head = req;
	list->tail = req;
}

static struct spill_req *list_pop(struct list *list)
{
	struct spill_req *req = list->head;

	if (req) {
		list->head = req->next;
		if (!list->head)
			list->tail = NULL;
	}
	return req;
}

static int64_t perform(struct folder *folder, struct spill_req *req)
{
	int fd = folder->fds[req->file];
	ssize_t r;

	if (req->op == SPILL_RUN) {
		req->run(req);
		return 0;
	}
	switch (req->op) {
	case SPILL_READ:
		r = pread(fd, req->buf, req->bytes, (off_t)req->offset);
		break;
	case SPILL_WRITE:
		r = pwrite(fd, req->buf, req->bytes, (off_t)req->offset);
		break;
	case SPILL_SYNC:
		r = fdatasync(fd);
		break;
	case SPILL_CREATE:
		return folder_create(folder, req->file, req->number, req->bytes, &req->physical);
	case SPILL_UNLINK:
		return folder_unlink(folder, req->file, req->number);
	default:
		return -EINVAL;
	}
	return r < 0 ? -errno : r;
}

static void *thread_main(void *arg)
{
	struct io_thread *t = arg;
	uint64_t one = 1;

	(void)pthread_mutex_lock(&t->lock);
	for (;;) {
		struct spill_req *req = list_pop(&t->queue);

		if (!req && t->stopping)
			break;
		if (!req) {
			(void)pthread_cond_wait(&t->wake, &t->lock);
			continue;
		}
		(void)pthread_mutex_unlock(&t->lock);
		req->result = perform(t->folder, req);
		(void)pthread_mutex_lock(&t->lock);
		list_push(&t->done, req);
		(void)!write(t->event_fd, &one, sizeof(one));
	}
	(void)pthread_mutex_unlock(&t->lock);
	return NULL;
}

struct io_thread *io_thread_new(struct folder *folder, uint32_t threads)
{
	struct io_thread *t = calloc(1, sizeof(*t));
	sigset_t all, old;

	if (!t)
		return NULL;
	(void)pthread_mutex_init(&t->lock, NULL);
	(void)pthread_cond_init(&t->wake, NULL);
	t->folder = folder;
	t->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (threads > THREADS_MAX)
		threads = THREADS_MAX;
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	while (t->event_fd >= 0 && t->n < threads &&
	       pthread_create(&t->threads[t->n], NULL, thread_main, t) == 0)
		t->n++;
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (t->n)
		return t;
	(void)io_thread_free(t);
	return NULL;
}

bool io_thread_free(struct io_thread *t)
{
	struct timespec until;
	bool stuck = false;

	if (!t)
		return true;
	(void)pthread_mutex_lock(&t->lock);
	t->stopping = true;
	(void)pthread_cond_broadcast(&t->wake);
	(void)pthread_mutex_unlock(&t->lock);
	(void)clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += FREE_WAIT_S;
	for (uint32_t i = 0; i < t->n; i++) {
		if (pthread_timedjoin_np(t->threads[i], NULL, &until) != 0) {
			(void)pthread_detach(t->threads[i]);
			stuck = true;
		}
	}
	if (stuck)
		return false;
	(void)pthread_cond_destroy(&t->wake);
	(void)pthread_mutex_destroy(&t->lock);
	cleanup_fd(&t->event_fd);
	free(t);
	return true;
}

void io_thread_submit(struct io_thread *t, struct spill_req *req)
{
	(void)pthread_mutex_lock(&t->lock);
	list_push(&t->queue, req);
	(void)pthread_cond_signal(&t->wake);
	(void)pthread_mutex_unlock(&t->lock);
}

struct spill_req *io_thread_reap(struct io_thread *t)
{
	struct spill_req *req;

	(void)pthread_mutex_lock(&t->lock);
	req = list_pop(&t->done);
	(void)pthread_mutex_unlock(&t->lock);
	return req;
}

int io_thread_event_fd(const struct io_thread *t)
{
	return t->event_fd;
}

void io_thread_clear_event(struct io_thread *t)
{
	uint64_t count;

	(void)!read(t->event_fd, &count, sizeof(count));
}

uint64_t spill_clock_ms(struct spill_io *io)
{
	(void)io;
	return clock_ms();
}

void spill_wait_fd(int fd, uint32_t timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	(void)poll(&p, 1, timeout_ms > INT32_MAX ? INT32_MAX : (int)timeout_ms);
}

/* --- the io ---------------------------------------------------------------------------------- */

struct threads_io {
	struct spill_io io;
	struct folder *folder;
	struct io_thread *t;
	bool cleared; /* the event was taken back since reap last found nothing */
};

static struct threads_io *threads_of(struct spill_io *io)
{
	return container_of(io, struct threads_io, io);
}

static int threads_list(struct spill_io *io, spill_list_fn fn, void *ctx)
{
	return folder_list(threads_of(io)->folder, fn, ctx);
}

static int threads_open(struct spill_io *io, uint32_t file, uint64_t number, uint64_t *ret_bytes)
{
	return folder_open(threads_of(io)->folder, file, number, ret_bytes);
}

static void threads_close(struct spill_io *io, uint32_t file)
{
	folder_close(threads_of(io)->folder, file);
}

static void threads_pool(struct spill_io *io, void *base, size_t bytes)
{
	(void)io;
	(void)base;
	(void)bytes;
}

static int threads_submit(struct spill_io *io, struct spill_req *req)
{
	io_thread_submit(threads_of(io)->t, req);
	return 0;
}

static void threads_kick(struct spill_io *io)
{
	(void)io;
}

static struct spill_req *threads_reap(struct spill_io *io)
{
	struct threads_io *own = threads_of(io);
	struct spill_req *req;

	/* Cleared before the list is looked at, so that what comes later makes it readable again.
	 */
	if (!own->cleared)
		io_thread_clear_event(own->t);
	req = io_thread_reap(own->t);
	own->cleared = req != NULL;
	return req;
}

static void threads_wait(struct spill_io *io, uint32_t timeout_ms)
{
	spill_wait_fd(io_thread_event_fd(threads_of(io)->t), timeout_ms);
}

static int threads_event_fd(struct spill_io *io)
{
	return io_thread_event_fd(threads_of(io)->t);
}

static void threads_free(struct spill_io *io)
{
	struct threads_io *own = threads_of(io);

	if (io_thread_free(own->t)) {
		folder_fini(own->folder);
		free(own->folder);
	}
	free(own);
}

static const struct spill_io_ops threads_ops = {
    .list = threads_list,
    .open = threads_open,
    .close = threads_close,
    .pool = threads_pool,
    .submit = threads_submit,
    .kick = threads_kick,
    .reap = threads_reap,
    .wait = threads_wait,
    .event_fd = threads_event_fd,
    .now_ms = spill_clock_ms,
    .free = threads_free,
};

int spill_io_threads_new(struct folder *folder, uint32_t threads, struct spill_io **ret_io)
{
	struct threads_io *own = calloc(1, sizeof(*own));

	if (!own)
		return -SKVQ_ENOMEM;
	own->folder = folder;
	own->t = io_thread_new(folder, threads);
	if (!own->t) {
		free(own);
		return -SKVQ_ENOMEM;
	}
	own->io.ops = &threads_ops;
	own->io.engine = "threads";
	own->io.direct = folder->direct;
	*ret_io = &own->io;
	return 0;
}
