/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/store_impl.h"

#include <string.h>

#include <skvq/error.h>

#include "base/cleanup.h"

static bool on_its_way(const struct store *s, const struct tier_key *key)
{
	for (uint32_t i = 0; i < s->xfers.n_bufs; i++) {
		const struct xfer *x = &s->xfers.all[i];

		if (x->state == XFER_OUT && x->put_fn && !memcmp(&x->key, key, sizeof(*key)))
			return true;
	}
	return false;
}

bool store_place(struct store *s, uint32_t blocks, uint32_t *ret_seg)
{
	if (s->active != SEG_NO && !segment_has_room(&s->segs.at[s->active], blocks))
		store_close_segment(s, s->active);
	if (s->active == SEG_NO) {
		if (s->spare == SEG_NO)
			return false;
		s->active = s->spare;
		s->spare = SEG_NO;
		s->segs.at[s->active].state = SEG_ACTIVE;
		if (!segment_has_room(&s->segs.at[s->active], blocks))
			return false;
	}
	*ret_seg = s->active;
	return true;
}

int store_write(struct store *s, struct xfer *x, const struct spill_entry *entry,
		uint64_t deadline_ms, xfer_fn done)
{
	struct segment *seg = &s->segs.at[x->seg];
	int r = segment_add(seg, entry, MARK_WRITING, &x->entry);

	if (r < 0)
		return r;
	budget_take(&s->budget, store_cost(entry->record_blocks));
	seg->writes++;
	x->owner = s;
	xfer_start(&s->xfers, x, SPILL_WRITE, x->seg, (uint64_t)entry->block * SPILL_BLOCK,
		   (uint64_t)entry->record_blocks * SPILL_BLOCK, deadline_ms, done);
	return 0;
}

int store_written(struct store *s, struct xfer *x, int status)
{
	struct segment_ref ref = {x->seg, x->entry};
	struct segment *seg = &s->segs.at[x->seg];

	seg->writes--;
	if (!status) {
		if (!seg->dirty)
			seg->dirty_since_ms = store_now(s);
		seg->dirty += (uint64_t)seg->entry[x->entry].record_blocks * SPILL_BLOCK;
		if (seg->mark[x->entry] != MARK_WRITING)
			return -SKVQ_ESTALE; /* dropped on the way */
		status = segments_show(&s->segs, ref);
	}
	if (status < 0) {
		/* Its blocks are skipped. If the write lands late, it is a whole record or none. */
		seg->mark[x->entry] = MARK_DEAD;
		if (++seg->failures >= WRITE_FAILURES && seg->state == SEG_ACTIVE)
			store_close_segment(s, x->seg);
	}
	return status;
}

/* x is the pool's again, unless it is lost. */
static void answer(struct store *s, struct xfer *x, int status, bool lost)
{
	tier_put_fn fn = x->put_fn;
	void *ctx = x->put_ctx;

	if (status < 0)
		COUNT(s, puts_failed);
	else
		COUNT(s, puts_stored);
	x->put_fn = NULL;
	if (!lost)
		xfer_give(&s->xfers, x);
	fn(ctx, status);
}

static void put_done(struct xfer *x, int status)
{
	struct store *s = x->owner;
	bool lost = status == -SKVQ_ETIMEOUT;
	uint32_t saved = lost ? 0 : spill_record_saved(x->buf);

	status = store_written(s, x, status);
	if (!status && saved) {
		COUNT(s, puts_packed);
		COUNT_N(s, packed_saved_bytes, (uint64_t)saved * SPILL_BLOCK);
	}
	answer(s, x, status, lost);
}

/* The record in x->buf goes to the tail of x->seg. 0, or -SKVQ_ENOMEM and x is still held. */
static int write_out(struct store *s, struct xfer *x)
{
	const struct segment *seg = &s->segs.at[x->seg];
	struct spill_entry entry;

	spill_record_move(x->buf, &seg->life, seg->tail, &entry);
	return store_write(s, x, &entry, x->put_deadline_ms, put_done);
}

static void pack_on_thread(struct spill_req *req)
{
	struct xfer *x = container_of(req, struct xfer, req);

	x->work.blocks = pack_do(x->work.packs, x->buf);
}

/* 0 if it is on its way. */
static int place_packed(struct store *s, struct xfer *x)
{
	if (x->dropped)
		return -SKVQ_ESTALE;
	/* Others may have been written while this one was compressed. */
	if (!budget_has(&s->budget, store_cost(x->work.blocks), store_now(s)))
		return -SKVQ_ELIMIT;
	if (!store_place(s, x->work.blocks, &x->seg))
		return -SKVQ_ENOSPC;
	return write_out(s, x);
}

static void put_packed(struct xfer *x, int status)
{
	struct store *s = x->owner;
	bool lost = status == -SKVQ_ETIMEOUT;

	if (!status)
		status = place_packed(s, x);
	if (status < 0)
		answer(s, x, status, lost);
}

/* Its place is looked for when its length is known. */
static void pack(struct store *s, struct xfer *x, uint32_t blocks)
{
	x->owner = s;
	x->dropped = false;
	x->blocks = blocks;
	x->work = (struct pack_work){.packs = s->packs};
	x->req.run = pack_on_thread;
	/* Half of the put's time, so that the write has the other half at least. The file says
	 * nothing here, but for one whose removal would wait for this. */
	xfer_start(&s->xfers, x, SPILL_RUN, s->active != SEG_NO ? s->active : s->spare, 0,
		   s->xfers.buf_bytes, store_now(s) + (s->opt.io_timeout_ms + 1) / 2, put_packed);
}

/* For so many blocks beside those that are being compressed, should none of them shrink. */
static bool will_have_room(const struct store *s, uint32_t blocks)
{
	uint64_t sum = blocks;

	for (uint32_t i = 0; i < s->xfers.n_bufs; i++) {
		const struct xfer *x = &s->xfers.all[i];

		if (x->state == XFER_OUT && x->put_fn && x->req.op == SPILL_RUN)
			sum += x->blocks;
	}
	if (sum > UINT32_MAX / 2)
		return false;
	return (s->active != SEG_NO && segment_has_room(&s->segs.at[s->active], (uint32_t)sum)) ||
	       (s->spare != SEG_NO && segment_has_room(&s->segs.at[s->spare], (uint32_t)sum));
}

static bool has_room(struct store *s, uint32_t blocks, uint32_t *ret_seg)
{
	if (s->closing || s->flush_fn)
		return false;
	if (s->opt.compression)
		return will_have_room(s, blocks);
	return store_place(s, blocks, ret_seg);
}

/* 0, or why it is not worth or not possible to write it. */
static int refuse(struct store *s, const struct tier_page *page, uint32_t flags, uint32_t blocks)
{
	if (!blocks || (uint64_t)blocks * SPILL_BLOCK > s->opt.record_bytes) {
		COUNT(s, refused_size);
		return -SKVQ_ELIMIT;
	}
	/* Noted even when it counts for nothing now. */
	if (!touches_again(&s->touches, segments_hash(&s->segs, &page->key)) &&
	    !(flags & TIER_PUT_HOT)) {
		COUNT(s, refused_first_touch);
		return -SKVQ_EAGAIN;
	}
	if (!budget_has(&s->budget, store_cost(blocks), store_now(s))) {
		COUNT(s, refused_budget);
		return -SKVQ_ELIMIT;
	}
	return 0;
}

int store_put(struct tier *tier, const struct tier_page *page, uint32_t flags, tier_put_fn fn,
	      void *ctx)
{
	struct store *s = (struct store *)tier;
	uint32_t blocks = spill_record_blocks(page);
	struct segment_ref ref;
	struct xfer *x;
	int r;

	COUNT(s, puts);
	tier->touched = true;
	if (segments_find(&s->segs, &page->key, &ref) || on_its_way(s, &page->key)) {
		COUNT(s, puts_existed);
		return 0;
	}
	r = refuse(s, page, flags, blocks);
	if (r < 0)
		return r;
	/* A quarter of the buffers is for reading: puts can wait, an engine cannot. */
	x = xfer_take(&s->xfers, (uint32_t)s->opt.buffers / 4);
	if (!x) {
		COUNT(s, refused_busy);
		return -SKVQ_EBUSY;
	}
	if (!has_room(s, blocks, &x->seg)) {
		xfer_give(&s->xfers, x);
		COUNT(s, refused_room);
		return -SKVQ_ENOSPC;
	}
	spill_record_fill(x->buf, page);
	x->key = page->key;
	x->put_fn = fn;
	x->put_ctx = ctx;
	x->put_deadline_ms = store_io_deadline(s);
	if (s->opt.compression) {
		pack(s, x, blocks);
	} else {
		spill_record_sum(x->buf);
		r = write_out(s, x);
	}
	if (r < 0) {
		x->put_fn = NULL;
		xfer_give(&s->xfers, x);
		COUNT(s, refused_busy);
		return r;
	}
	for (int i = 0; i < TIER_SECTIONS; i++)
		COUNT_N(s, user_bytes, page->section[i].bytes);
	return 1;
}
