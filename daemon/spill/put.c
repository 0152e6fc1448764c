/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/store_impl.h"

#include <string.h>

#include <skvq/error.h>

static bool on_its_way(const struct store *s, const struct tier_key *key)
{
	for (uint32_t i = 0; i < s->xfers.n_bufs; i++) {
		const struct xfer *x = &s->xfers.all[i];

		if (x->state == XFER_OUT && x->put_fn &&
		    !memcmp(&s->segs.at[x->seg].entry[x->entry].key, key, sizeof(*key)))
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

int store_write(struct store *s, struct xfer *x, const struct spill_entry *entry, xfer_fn done)
{
	struct segment *seg = &s->segs.at[x->seg];
	int r = segment_add(seg, entry, MARK_WRITING, &x->entry);

	if (r < 0)
		return r;
	budget_take(&s->budget, store_cost(entry->record_blocks));
	seg->writes++;
	x->owner = s;
	xfer_start(&s->xfers, x, SPILL_WRITE, x->seg, (uint64_t)entry->block * SPILL_BLOCK,
		   (uint64_t)entry->record_blocks * SPILL_BLOCK, store_io_deadline(s), done);
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

static void put_done(struct xfer *x, int status)
{
	struct store *s = x->owner;
	tier_put_fn fn = x->put_fn;
	void *ctx = x->put_ctx;
	bool lost = status == -SKVQ_ETIMEOUT;

	status = store_written(s, x, status);
	if (status < 0)
		COUNT(s, puts_failed);
	else
		COUNT(s, puts_stored);
	x->put_fn = NULL;
	if (!lost)
		xfer_give(&s->xfers, x);
	fn(ctx, status);
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
	struct spill_entry entry;
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
	if (s->closing || s->flush_fn || !store_place(s, blocks, &x->seg)) {
		xfer_give(&s->xfers, x);
		COUNT(s, refused_room);
		return -SKVQ_ENOSPC;
	}
	spill_record_write(x->buf, page, &s->segs.at[x->seg].life, s->segs.at[x->seg].tail, &entry);
	x->put_fn = fn;
	x->put_ctx = ctx;
	r = store_write(s, x, &entry, put_done);
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
