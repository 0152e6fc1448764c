/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/store_impl.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>

#include <skvq/error.h>

static uint64_t unix_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

void store_segment_die(struct store *s, uint32_t seg)
{
	s->segs.at[seg].state = SEG_DYING;
	s->segs.at[seg].busy = false;
	s->segs.at[seg].since_ms = 0;
}

/* --- making: file, head, sync ---------------------------------------------------------------- */

static void create_failed(struct store *s, uint32_t seg, int status)
{
	COUNT(s, create_failures);
	s->create_retry_ms = store_now(s) + RETRY_MS;
	store_segment_die(s, seg);
	/* The file system is full: what is ours makes room for what is ours. */
	if (status == -SKVQ_ENOSPC)
		store_evict_start(s);
}

static void head_synced(struct xfer *x, int status)
{
	struct store *s = x->owner;
	uint32_t seg = x->seg;

	if (status != -SKVQ_ETIMEOUT)
		xfer_give(&s->xfers, x);
	COUNT(s, syncs);
	if (status < 0) {
		COUNT(s, sync_failures);
		create_failed(s, seg, status);
		return;
	}
	s->segs.at[seg].busy = false;
	if (s->spare != SEG_NO) { /* it was late, and another took its place */
		store_segment_die(s, seg);
		return;
	}
	COUNT(s, segments_created);
	s->segs.at[seg].state = SEG_SPARE;
	s->spare = seg;
}

static void head_written(struct xfer *x, int status)
{
	struct store *s = x->owner;
	uint32_t seg = x->seg;
	struct xfer *plain = status < 0 ? NULL : xfer_take_plain(&s->xfers);

	if (status != -SKVQ_ETIMEOUT)
		xfer_give(&s->xfers, x);
	if (!plain) {
		create_failed(s, seg, status);
		return;
	}
	plain->owner = s;
	plain->seg = seg;
	xfer_start(&s->xfers, plain, SPILL_SYNC, seg, 0, 0, store_io_deadline(s), head_synced);
}

static void write_head(struct store *s, uint32_t seg)
{
	struct xfer *x = xfer_take(&s->xfers, 0);
	struct segment *g = &s->segs.at[seg];

	if (!x)
		return;
	g->busy = true;
	spill_head_write(x->buf, &g->life, (uint64_t)g->blocks * SPILL_BLOCK, unix_ms());
	x->owner = s;
	x->seg = seg;
	xfer_start(&s->xfers, x, SPILL_WRITE, seg, 0, SPILL_BLOCK, store_io_deadline(s),
		   head_written);
}

static void created(struct xfer *x, int status)
{
	struct store *s = x->owner;
	uint32_t seg = x->seg;
	struct segment *g = &s->segs.at[seg];

	if (!status && x->req.physical > g->charged) {
		s->charged += x->req.physical - g->charged;
		g->charged = x->req.physical;
		if (s->charged > s->opt.capacity_bytes)
			status = -SKVQ_EIO;
	}
	xfer_give(&s->xfers, x);
	if (status < 0)
		create_failed(s, seg, status);
	else
		g->state = SEG_HEADING; /* and the pump goes on */
}

/* One that is not stuck is being made. */
static bool making(struct store *s)
{
	uint64_t now = store_now(s);

	for (uint32_t i = 0; i < s->segs.max; i++) {
		const struct segment *g = &s->segs.at[i];

		if ((g->state == SEG_CREATING || g->state == SEG_HEADING) &&
		    now < g->since_ms + s->opt.io_timeout_ms)
			return true;
	}
	return false;
}

/* Room that is about to come back. What cannot be removed is not waited for. */
static uint64_t going(struct store *s)
{
	uint64_t sum = 0, now = store_now(s);

	for (uint32_t i = 0; i < s->segs.max; i++) {
		const struct segment *g = &s->segs.at[i];

		if ((g->state == SEG_DYING && !g->since_ms && !s->xfers.out[i]) ||
		    (g->state == SEG_UNLINKING && now < g->since_ms + s->opt.io_timeout_ms))
			sum += g->charged;
	}
	return sum;
}

static void create(struct store *s)
{
	uint64_t bytes = s->opt.segment_bytes;
	uint32_t seg = segments_free_slot(&s->segs);
	struct segment *g;
	struct xfer *x;

	if (s->charged + store_charge_of(bytes) > s->opt.capacity_bytes) {
		if (s->charged - going(s) + store_charge_of(bytes) > s->opt.capacity_bytes)
			store_evict_start(s);
		return;
	}
	/* Head, foot, and the last table block that is not full. */
	if (seg == SEG_NO || !budget_has(&s->budget, 3 * SPILL_BLOCK, store_now(s)))
		return;
	x = xfer_take_plain(&s->xfers);
	if (!x)
		return;
	budget_take(&s->budget, 3 * SPILL_BLOCK);
	g = &s->segs.at[seg];
	*g = (struct segment){.state = SEG_CREATING,
			      .life = {.number = s->next_number++},
			      .blocks = (uint32_t)(bytes / SPILL_BLOCK),
			      .charged = store_charge_of(bytes),
			      .tail = 1,
			      .since_ms = store_now(s)};
	if (getrandom(g->life.random, sizeof(g->life.random), 0) !=
	    (ssize_t)sizeof(g->life.random)) {
		g->state = SEG_NONE;
		xfer_give(&s->xfers, x);
		return;
	}
	s->charged += g->charged;
	x->owner = s;
	x->seg = seg;
	x->req.number = g->life.number;
	/* No deadline: a file that may still come up stays charged. */
	xfer_start(&s->xfers, x, SPILL_CREATE, seg, 0, bytes, XFER_NEVER, created);
}

static bool wants_spare(struct store *s)
{
	const struct segment *g = s->active == SEG_NO ? NULL : &s->segs.at[s->active];

	return s->spare == SEG_NO && !s->closing && (!g || g->tail > g->blocks / 2) &&
	       store_now(s) >= s->create_retry_ms && !making(s);
}

/* --- removing -------------------------------------------------------------------------------- */

static void removed(struct xfer *x, int status)
{
	struct store *s = x->owner;
	struct segment *g = &s->segs.at[x->seg];

	if (status < 0 && x->req.result != -ENOENT) {
		COUNT(s, remove_failures);
		g->state = SEG_DYING;
		g->since_ms = store_now(s) + RETRY_MS;
	} else {
		if (!status) {
			COUNT(s, segments_removed);
			s->create_retry_ms = 0; /* if room was missing, here it is */
		}
		s->charged -= g->charged;
		segment_clear(g);
	}
	xfer_give(&s->xfers, x);
}

static void remove_if_quiet(struct store *s, uint32_t seg)
{
	struct segment *g = &s->segs.at[seg];
	struct xfer *x;

	if (s->xfers.out[seg] || store_now(s) < g->since_ms)
		return;
	x = xfer_take_plain(&s->xfers);
	if (!x)
		return;
	g->state = SEG_UNLINKING;
	g->since_ms = store_now(s);
	x->owner = s;
	x->seg = seg;
	x->req.number = g->life.number;
	xfer_start(&s->xfers, x, SPILL_UNLINK, seg, 0, 0, XFER_NEVER, removed);
}

/* --- the pump -------------------------------------------------------------------------------- */

void store_life_pump(struct store *s)
{
	uint64_t now = store_now(s);

	for (uint32_t i = 0; i < s->segs.max; i++) {
		struct segment *g = &s->segs.at[i];

		if (g->state == SEG_HEADING && !g->busy)
			write_head(s, i);
		if (g->state == SEG_ACTIVE || g->state == SEG_CLOSING)
			store_sync_if_due(s, i, now);
		if (g->state == SEG_CLOSING)
			store_seal(s, i);
		if (g->state == SEG_DYING)
			remove_if_quiet(s, i);
	}
	/* The bound was lowered. */
	if (s->evict.seg == SEG_NO && s->charged > s->opt.capacity_bytes &&
	    s->charged - going(s) > s->opt.capacity_bytes) {
		store_evict_start(s);
		s->tier.touched = s->tier.touched || s->evict.seg != SEG_NO; /* pump again */
	}
	if (wants_spare(s))
		create(s);
}

/* Only what no transfer's own deadline brings about. */
uint64_t store_life_deadline(struct store *s)
{
	uint64_t first = XFER_NEVER, now = store_now(s);

	for (uint32_t i = 0; i < s->segs.max; i++) {
		const struct segment *g = &s->segs.at[i];
		uint64_t at = XFER_NEVER;

		if (g->dirty && !g->syncing)
			at = g->dirty_since_ms + s->opt.sync_ms;
		else if (g->state == SEG_DYING && !s->xfers.out[i])
			at = g->since_ms;
		else if (g->state == SEG_CREATING)
			at = g->since_ms + s->opt.io_timeout_ms;
		if (at < first)
			first = at;
	}
	if (s->spare == SEG_NO && s->active == SEG_NO) {
		/* Room or budget may be missing: looked at now and then. */
		uint64_t at = now + POLL_MS;

		if (at < s->create_retry_ms)
			at = s->create_retry_ms;
		if (at < first)
			first = at;
	}
	return first;
}
