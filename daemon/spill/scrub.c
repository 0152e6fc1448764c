/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking after records that nobody asks for: one at a time, round and round, as fast as the owner
 * lets it and while buffers are plenty. A record that does not hold is a miss before anyone waits
 * for it.
 */
#include "spill/store_impl.h"

#include <string.h>

#include <skvq/error.h>

/* Looked at in one pump without finding a record. */
#define LOOKS 4096u

/* The next record in the index, or false. Moves the cursor behind it. */
static bool next_record(struct store *s, struct segment_ref *ret)
{
	struct scrub *scrub = &s->scrub;

	for (uint32_t looks = 0; looks < LOOKS; looks++) {
		const struct segment *seg = &s->segs.at[scrub->at.seg];

		if (scrub->at.entry >= seg->n) {
			scrub->at.entry = 0;
			scrub->at.seg = (scrub->at.seg + 1) % s->segs.max;
			continue;
		}
		*ret = scrub->at;
		scrub->at.entry++;
		if (seg->mark[ret->entry] >= MARK_LIVE)
			return true;
	}
	return false;
}

static void read_done(struct xfer *x, int status)
{
	struct store *s = x->owner;
	struct scrub *scrub = &s->scrub;
	struct segment_ref ref;
	struct tier_page page;
	bool good = !status && spill_record_read(x->buf, &scrub->life, &scrub->entry, &page);

	scrub->out = false;
	/* A read that failed says nothing of the record: whoever wants it will try. */
	if (!status) {
		COUNT(s, scrubbed);
		COUNT_N(s, scrubbed_bytes, (uint64_t)scrub->entry.record_blocks * SPILL_BLOCK);
	}
	if (!status && !good && segments_find(&s->segs, &scrub->entry.key, &ref) &&
	    !memcmp(segments_entry(&s->segs, ref), &scrub->entry, sizeof(scrub->entry))) {
		COUNT(s, scrub_failures);
		store_quarantine(s, ref);
	}
	if (status != -SKVQ_ETIMEOUT)
		xfer_give(&s->xfers, x);
}

void store_scrub_pump(struct store *s)
{
	struct scrub *scrub = &s->scrub;
	struct segment_ref ref;
	struct xfer *x;
	uint64_t bytes;

	if (scrub->out || !scrub->allowance || s->closing || !next_record(s, &ref))
		return;
	x = xfer_take(&s->xfers, (uint32_t)s->opt.buffers / 2);
	if (!x) {
		scrub->at = ref; /* it is this one's turn next time */
		return;
	}
	scrub->entry = *segments_entry(&s->segs, ref);
	scrub->life = s->segs.at[ref.seg].life;
	bytes = (uint64_t)scrub->entry.record_blocks * SPILL_BLOCK;
	scrub->allowance -= bytes < scrub->allowance ? bytes : scrub->allowance;
	scrub->out = true;
	x->owner = s;
	xfer_start(&s->xfers, x, SPILL_READ, ref.seg, (uint64_t)scrub->entry.block * SPILL_BLOCK,
		   bytes, store_io_deadline(s), read_done);
}

void store_scrub(struct store *s, uint64_t bytes)
{
	s->scrub.allowance = bytes;
	s->tier.touched = true;
}
