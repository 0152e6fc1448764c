/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/store_impl.h"

#include <skvq/error.h>

void store_evict_start(struct store *s)
{
	uint32_t seg;

	if (s->evict.seg != SEG_NO)
		return;
	seg = segments_oldest(&s->segs, SEG_CLOSED);
	if (seg == SEG_NO)
		return;
	s->segs.at[seg].state = SEG_EVICTING;
	s->evict = (struct eviction){.seg = seg};
}

static void let_go(struct store *s, uint32_t entry)
{
	if (s->segs.at[s->evict.seg].mark[entry] < MARK_LIVE)
		return;
	COUNT(s, evicted);
	store_hide(s, (struct segment_ref){s->evict.seg, entry}, TIER_GONE_EVICTED);
}

static void rescue_written(struct xfer *x, int status)
{
	struct store *s = x->owner;
	bool lost = status == -SKVQ_ETIMEOUT;
	uint32_t blocks = s->segs.at[x->seg].entry[x->entry].record_blocks;

	if (store_written(s, x, status) == 0) {
		COUNT(s, rescued);
		COUNT_N(s, rescued_bytes, (uint64_t)blocks * SPILL_BLOCK);
	}
	let_go(s, x->from); /* if it is not the new one that the index means */
	s->evict.out--;
	if (!lost)
		xfer_give(&s->xfers, x);
}

static void rescue_read(struct xfer *x, int status)
{
	struct store *s = x->owner;
	struct segment *from = &s->segs.at[s->evict.seg];
	struct spill_entry entry = from->entry[x->from];
	struct tier_page page;

	if (status == -SKVQ_ETIMEOUT) {
		let_go(s, x->from);
		s->evict.out--;
		return;
	}
	if (!status && !spill_record_read(x->buf, &from->life, &entry, &page)) {
		COUNT(s, quarantined);
		status = -SKVQ_ECORRUPT;
	}
	/* It may have been dropped meanwhile, or put again. */
	if (!status && from->mark[x->from] >= MARK_LIVE &&
	    budget_has(&s->budget, store_cost(entry.record_blocks), store_now(s)) &&
	    store_place(s, entry.record_blocks, &x->seg)) {
		spill_record_move(x->buf, &s->segs.at[x->seg].life, s->segs.at[x->seg].tail,
				  &entry);
		if (store_write(s, x, &entry, store_io_deadline(s), rescue_written) == 0)
			return;
	}
	let_go(s, x->from);
	s->evict.out--;
	xfer_give(&s->xfers, x);
}

static bool worth_it(struct store *s, uint32_t blocks)
{
	uint64_t share = s->segs.at[s->evict.seg].blocks * s->opt.rescue_percent / 100;

	return s->evict.blocks + blocks <= share && s->active != SEG_NO &&
	       (uint64_t)blocks * SPILL_BLOCK <= s->xfers.buf_bytes &&
	       segment_has_room(&s->segs.at[s->active], blocks) &&
	       budget_has(&s->budget, store_cost(blocks), store_now(s));
}

void store_evict_pump(struct store *s)
{
	struct eviction *ev = &s->evict;
	struct segment *g;

	/* At the end what is on the disk stays there. */
	if (ev->seg == SEG_NO || s->closing)
		return;
	g = &s->segs.at[ev->seg];
	for (; ev->next < g->n; ev->next++) {
		uint32_t blocks = g->entry[ev->next].record_blocks;
		struct xfer *x;

		if (g->mark[ev->next] != MARK_TOUCHED || !worth_it(s, blocks)) {
			let_go(s, ev->next);
			continue;
		}
		x = xfer_take(&s->xfers, (uint32_t)s->opt.buffers / 4);
		if (!x)
			return; /* buffers come back, by their deadlines at the latest */
		ev->blocks += blocks;
		ev->out++;
		x->owner = s;
		x->seg = ev->seg;
		x->from = ev->next;
		xfer_start(&s->xfers, x, SPILL_READ, ev->seg,
			   (uint64_t)g->entry[ev->next].block * SPILL_BLOCK,
			   (uint64_t)blocks * SPILL_BLOCK, store_io_deadline(s), rescue_read);
	}
	if (ev->out)
		return;
	g->state = SEG_DYING;
	g->since_ms = 0;
	ev->seg = SEG_NO;
}
