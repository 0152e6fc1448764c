/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/faults.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "spill/format.h"

#define OUT_MAX  1024
#define BLOCK    4096u
#define NEVER_MS UINT64_MAX

/* A request that is out below, or held here. */
struct held {
	struct spill_req *req; /* NULL: free */
	uint64_t said;         /* bytes to answer for a torn one; 0: as it comes */
	uint64_t ready_ms;     /* held: not before. 0: still below */
};

struct spill_faults {
	struct spill_io io;
	struct spill_io *below;
	uint64_t rng;
	struct spill_fault_rates rates;
	struct spill_fault_counts own, *counts;
	enum spill_crash crash;
	uint64_t crash_in; /* this many times the point is still to be reached */
	struct held held[OUT_MAX];
};

static struct spill_faults *faults_of(struct spill_io *io)
{
	return container_of(io, struct spill_faults, io);
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t random_u64(struct spill_faults *f)
{
	uint64_t z = f->rng += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0..n-1 */
static uint32_t draw(struct spill_faults *f, uint32_t n)
{
	return (uint32_t)(((random_u64(f) >> 32) * n) >> 32);
}

static bool hit(struct spill_faults *f, uint32_t rate)
{
	return rate && draw(f, 10000) < rate;
}

static void reached(struct spill_faults *f, enum spill_crash point)
{
	if (f->crash == point && --f->crash_in == 0)
		_exit(SPILL_CRASH_STATUS);
}

/* The points behind an answer from below. */
static void reached_behind(struct spill_faults *f, const struct spill_req *req)
{
	uint64_t magic = 0;

	if (f->crash == SPILL_CRASH_NONE || req->result < 0)
		return;
	if (req->buf && req->bytes >= sizeof(magic))
		memcpy(&magic, req->buf, sizeof(magic));
	if (req->op == SPILL_WRITE && magic == SPILL_MAGIC_RECORD)
		reached(f, SPILL_CRASH_AFTER_PUT);
	else if (req->op == SPILL_WRITE && magic == SPILL_MAGIC_TABLE)
		reached(f, SPILL_CRASH_MID_SEAL);
	else if (req->op == SPILL_READ && magic == SPILL_MAGIC_RECORD)
		reached(f, SPILL_CRASH_IN_RESTORE);
	else if (req->op == SPILL_CREATE)
		reached(f, SPILL_CRASH_AFTER_CREATE);
}

static void flip(struct spill_faults *f, struct spill_req *req)
{
	if (!req->bytes || !req->buf)
		return;
	((uint8_t *)req->buf)[draw(f, (uint32_t)req->bytes)] ^=
	    (uint8_t)(1u << draw(f, 8));
	f->counts->flips++;
}

static struct held *slot_of(struct spill_faults *f, const struct spill_req *req)
{
	for (int i = 0; i < OUT_MAX; i++)
		if (f->held[i].req == req)
			return &f->held[i];
	return NULL;
}

static int f_list(struct spill_io *io, spill_list_fn fn, void *ctx)
{
	return faults_of(io)->below->ops->list(faults_of(io)->below, fn, ctx);
}

static int f_open(struct spill_io *io, uint32_t file, uint64_t number, uint64_t *ret_bytes)
{
	return faults_of(io)->below->ops->open(faults_of(io)->below, file, number, ret_bytes);
}

static void f_close(struct spill_io *io, uint32_t file)
{
	faults_of(io)->below->ops->close(faults_of(io)->below, file);
}

static void f_pool(struct spill_io *io, void *base, size_t bytes)
{
	faults_of(io)->below->ops->pool(faults_of(io)->below, base, bytes);
}

static int f_submit(struct spill_io *io, struct spill_req *req)
{
	struct spill_faults *f = faults_of(io);
	bool moves = req->op == SPILL_READ || req->op == SPILL_WRITE;
	struct held *h = slot_of(f, NULL);
	uint64_t bytes = req->bytes;
	int r;

	if (!h || hit(f, f->rates.submit_eagain))
		return -EAGAIN;
	if (req->op == SPILL_SYNC)
		reached(f, SPILL_CRASH_BEFORE_SYNC);
	else if (req->op == SPILL_UNLINK)
		reached(f, SPILL_CRASH_BEFORE_UNLINK);
	*h = (struct held){.req = req};
	if (req->op == SPILL_WRITE && hit(f, f->rates.flip))
		flip(f, req);
	if (moves && bytes > BLOCK && hit(f, f->rates.torn)) {
		h->said = bytes;
		req->bytes = (1 + draw(f, (uint32_t)(bytes / BLOCK) - 1)) * BLOCK;
		f->counts->torn++;
	}
	r = f->below->ops->submit(f->below, req);
	if (r < 0) {
		req->bytes = bytes;
		h->req = NULL;
	}
	return r;
}

static void f_kick(struct spill_io *io)
{
	faults_of(io)->below->ops->kick(faults_of(io)->below);
}

/* What the answer becomes. */
static void spoil(struct spill_faults *f, struct held *h)
{
	struct spill_req *req = h->req;
	bool moves = req->op == SPILL_READ || req->op == SPILL_WRITE;

	if (h->said && req->result == (int64_t)req->bytes)
		req->result = (int64_t)h->said;
	if (h->said)
		req->bytes = h->said;
	if (hit(f, f->rates.eio)) {
		req->result = -EIO;
		f->counts->errors++;
	} else if (req->op != SPILL_READ && req->op != SPILL_UNLINK && hit(f, f->rates.enospc)) {
		req->result = -ENOSPC;
		f->counts->errors++;
	} else if (moves && hit(f, f->rates.eagain)) {
		req->result = draw(f, 2) ? -EAGAIN : -EINTR;
		f->counts->again++;
	} else if (moves && req->result > 1 && hit(f, f->rates.cut_short)) {
		req->result = 1 + draw(f, (uint32_t)req->result - 1);
		f->counts->shorts++;
	} else if (req->op == SPILL_READ && hit(f, f->rates.flip)) {
		flip(f, req);
	}
}

static struct spill_req *f_reap(struct spill_io *io)
{
	struct spill_faults *f = faults_of(io);
	uint64_t now = f->below->ops->now_ms(f->below);
	struct spill_req *req;

	for (int i = 0; i < OUT_MAX; i++) {
		if (!f->held[i].req || !f->held[i].ready_ms || f->held[i].ready_ms > now)
			continue;
		req = f->held[i].req;
		f->held[i].req = NULL;
		return req;
	}
	while ((req = f->below->ops->reap(f->below)) != NULL) {
		struct held *h = slot_of(f, req);

		reached_behind(f, req);
		spoil(f, h);
		if (hit(f, f->rates.lost)) {
			h->ready_ms = NEVER_MS;
			f->counts->lost++;
		} else if (hit(f, f->rates.delay)) {
			h->ready_ms = now + 1 + draw(f, f->rates.delay_ms);
			f->counts->delays++;
		} else {
			h->req = NULL;
			return req;
		}
	}
	return NULL;
}

static void f_wait(struct spill_io *io, uint32_t timeout_ms)
{
	struct spill_faults *f = faults_of(io);
	uint64_t now = f->below->ops->now_ms(f->below);

	for (int i = 0; i < OUT_MAX; i++) {
		uint64_t ready = f->held[i].req ? f->held[i].ready_ms : 0;

		if (ready && ready <= now)
			return;
		if (ready && ready - now < timeout_ms)
			timeout_ms = (uint32_t)(ready - now);
	}
	f->below->ops->wait(f->below, timeout_ms);
}

static int f_event_fd(struct spill_io *io)
{
	return faults_of(io)->below->ops->event_fd(faults_of(io)->below);
}

static uint64_t f_now_ms(struct spill_io *io)
{
	return faults_of(io)->below->ops->now_ms(faults_of(io)->below);
}

static void f_free(struct spill_io *io)
{
	struct spill_faults *f = faults_of(io);

	f->below->ops->free(f->below);
	free(f);
}

static const struct spill_io_ops faults_ops = {
    .list = f_list,
    .open = f_open,
    .close = f_close,
    .pool = f_pool,
    .submit = f_submit,
    .kick = f_kick,
    .reap = f_reap,
    .wait = f_wait,
    .event_fd = f_event_fd,
    .now_ms = f_now_ms,
    .free = f_free,
};

struct spill_io *spill_faults_new(struct spill_io *below, uint64_t seed,
				  const struct spill_fault_rates *rates)
{
	struct spill_faults *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->io = *below;
	f->io.ops = &faults_ops;
	f->below = below;
	f->rng = seed;
	f->rates = *rates;
	f->counts = &f->own;
	return &f->io;
}

void spill_faults_set(struct spill_io *io, const struct spill_fault_rates *rates)
{
	faults_of(io)->rates = *rates;
}

void spill_faults_release(struct spill_io *io)
{
	struct spill_faults *f = faults_of(io);

	for (int i = 0; i < OUT_MAX; i++)
		if (f->held[i].req && f->held[i].ready_ms)
			f->held[i].ready_ms = 1;
}

struct spill_fault_counts spill_faults_counts(struct spill_io *io)
{
	return *faults_of(io)->counts;
}

void spill_faults_count_in(struct spill_io *io, struct spill_fault_counts *counts)
{
	faults_of(io)->counts = counts;
}

void spill_faults_crash_at(struct spill_io *io, enum spill_crash point, uint64_t n)
{
	faults_of(io)->crash = point;
	faults_of(io)->crash_in = n;
}

enum spill_crash spill_crash_parse(const char *name)
{
#define NAME(point, text) text,
	static const char *const names[] = {"", SPILL_CRASH_POINTS(NAME)};
#undef NAME

	for (int i = 1; i < SPILL_CRASH_COUNT; i++)
		if (!strcmp(name, names[i]))
			return (enum spill_crash)i;
	return SPILL_CRASH_NONE;
}
