/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/xfer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "spill/format.h"

#define TRIES_MAX 32u

/* What could not be freed: kept in sight of leak checkers, and of nobody else. */
static struct xfer *left_behind;

int xfers_init(struct xfers *p, struct spill_io *io, uint32_t bufs, uint32_t buf_bytes,
	       uint32_t plain, uint32_t files)
{
	size_t bytes = (size_t)bufs * buf_bytes;

	*p = (struct xfers){.io = io, .n = bufs + plain, .n_bufs = bufs, .buf_bytes = buf_bytes};
	p->all = calloc(p->n, sizeof(*p->all));
	p->out = calloc(files, sizeof(*p->out));
	p->pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p->pool == MAP_FAILED)
		p->pool = NULL;
	if (!p->all || !p->out || !p->pool) {
		xfers_fini(p);
		return -SKVQ_ENOMEM;
	}
	for (uint32_t i = p->n; i-- > 0;) {
		struct xfer *x = &p->all[i];

		x->buf = i < bufs ? p->pool + (size_t)i * buf_bytes : NULL;
		x->state = XFER_HELD;
		xfer_give(p, x);
	}
	io->ops->pool(io, p->pool, bytes);
	return 0;
}

void xfers_fini(struct xfers *p)
{
	if (p->all && xfers_out(p)) {
		p->all[0].next = left_behind;
		left_behind = p->all;
	} else {
		free(p->all);
		if (p->pool)
			(void)munmap(p->pool, (size_t)p->n_bufs * p->buf_bytes);
	}
	free(p->out);
	*p = (struct xfers){.n = 0};
}

struct xfer *xfer_take(struct xfers *p, uint32_t keep)
{
	struct xfer *x = p->free_bufs;

	if (p->n_free_bufs <= keep)
		return NULL;
	p->free_bufs = x->next;
	p->n_free_bufs--;
	x->state = XFER_HELD;
	return x;
}

struct xfer *xfer_take_plain(struct xfers *p)
{
	struct xfer *x = p->free_plain;

	if (x) {
		p->free_plain = x->next;
		x->state = XFER_HELD;
	}
	return x;
}

void xfer_give(struct xfers *p, struct xfer *x)
{
	struct xfer **list = x->buf ? &p->free_bufs : &p->free_plain;

	assert(x->state == XFER_HELD);
	x->state = XFER_FREE;
	x->owner = NULL;
	x->next = *list;
	*list = x;
	p->n_free_bufs += x->buf != NULL;
}

static void submit(struct xfers *p, struct xfer *x)
{
	struct spill_req *req = &x->req;
	bool was = x->queued;

	req->offset = x->offset + x->done;
	req->buf = x->buf ? x->buf + x->done : NULL;
	req->bytes = x->bytes - x->done;
	x->queued = p->io->ops->submit(p->io, req) < 0;
	p->n_queued += (uint32_t)x->queued - (uint32_t)was;
}

void xfer_start(struct xfers *p, struct xfer *x, enum spill_op op, uint32_t file, uint64_t offset,
		uint64_t bytes, uint64_t deadline_ms, xfer_fn fn)
{
	assert(x->state == XFER_HELD);
	assert(!x->buf || (bytes && bytes <= p->buf_bytes && bytes % SPILL_BLOCK == 0));
	x->state = XFER_OUT;
	x->offset = offset;
	x->bytes = bytes;
	x->done = 0;
	x->tries = 0;
	x->deadline_ms = deadline_ms;
	x->fn = fn;
	x->req.op = op;
	x->req.file = file;
	p->out[file]++;
	submit(p, x);
}

static int code_of(int64_t err)
{
	return err == -ENOSPC || err == -EDQUOT ? -SKVQ_ENOSPC : -SKVQ_EIO;
}

/* True: it went out again. */
static bool again(struct xfers *p, struct xfer *x)
{
	if (++x->tries > TRIES_MAX)
		return false;
	p->retries++;
	submit(p, x);
	return true;
}

static void came_back(struct xfers *p, struct xfer *x)
{
	int64_t r = x->req.result;
	bool moves = x->req.op == SPILL_READ || x->req.op == SPILL_WRITE;

	if (x->state == XFER_LOST) {
		p->n_lost--;
		p->out[x->req.file]--;
		x->state = XFER_HELD;
		xfer_give(p, x);
		return;
	}
	assert(x->state == XFER_OUT);
	if (r > 0 && x->req.op == SPILL_WRITE)
		p->written_bytes += (uint64_t)r;
	else if (r > 0 && x->req.op == SPILL_READ)
		p->read_bytes += (uint64_t)r;
	if ((r == -EAGAIN || r == -EINTR || r == -EBUSY) && again(p, x))
		return;
	if (moves && r > 0 && (uint64_t)r < x->bytes - x->done) {
		/* The rest from a whole block on: O_DIRECT knows nothing else. */
		p->shorts++;
		x->done += (uint64_t)r / SPILL_BLOCK * SPILL_BLOCK;
		if (again(p, x))
			return;
		r = -EIO;
	} else if (moves && (r == 0 || (r > 0 && (uint64_t)r > x->bytes - x->done))) {
		r = -EIO; /* the file ends here, or nonsense */
	}
	p->out[x->req.file]--;
	x->state = XFER_HELD;
	x->fn(x, r < 0 ? code_of(r) : 0);
}

/* Of one whose time is up. */
static void give_up(struct xfers *p, struct xfer *x)
{
	p->timeouts++;
	if (x->queued) {
		x->queued = false;
		p->n_queued--;
		p->out[x->req.file]--;
		x->state = XFER_HELD;
		x->fn(x, -SKVQ_EIO); /* never went out, so its buffer is free */
		return;
	}
	x->state = XFER_LOST;
	p->n_lost++;
	if (x->req.op == SPILL_WRITE) /* it may have been written, for all we know */
		p->written_bytes += x->bytes - x->done;
	x->fn(x, -SKVQ_ETIMEOUT);
}

void xfers_pump(struct xfers *p)
{
	struct spill_req *req;
	uint64_t now;

	while ((req = p->io->ops->reap(p->io)) != NULL)
		came_back(p, container_of(req, struct xfer, req));
	now = p->io->ops->now_ms(p->io);
	for (uint32_t i = 0; i < p->n; i++) {
		struct xfer *x = &p->all[i];

		if (x->state == XFER_OUT && now >= x->deadline_ms)
			give_up(p, x);
		else if (x->state == XFER_OUT && x->queued)
			submit(p, x);
	}
}

uint64_t xfers_deadline(const struct xfers *p)
{
	uint64_t first = XFER_NEVER;

	for (uint32_t i = 0; i < p->n; i++) {
		const struct xfer *x = &p->all[i];

		if (x->state == XFER_OUT && x->deadline_ms < first)
			first = x->deadline_ms;
	}
	return first;
}

uint32_t xfers_out(const struct xfers *p)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < p->n; i++)
		n += (p->all[i].state == XFER_OUT && !p->all[i].queued) ||
		     p->all[i].state == XFER_LOST;
	return n;
}
