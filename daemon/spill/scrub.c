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
/* Entries of one store_list: a few milliseconds. */
#define LOOKS_LISTED 65536u

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
	struct scrub_read *r = x->owner;
	struct store *s = r->store;
	uint64_t bytes = (uint64_t)r->entry.record_blocks * SPILL_BLOCK;
	struct segment_ref ref;
	struct tier_page page;
	bool good = !status && spill_record_read(x->buf, &r->life, &r->entry, &page);
	bool lost = status == -SKVQ_ETIMEOUT;

	r->out = false;
	/* A read that failed says nothing of the record: whoever wants it will try. */
	if (!status) {
		COUNT(s, scrubbed);
		COUNT_N(s, scrubbed_bytes, bytes);
	}
	if (!status && !good) {
		/* It may have gone, and its segment, while it was read. */
		status = -SKVQ_ESTALE;
		if (segments_find(&s->segs, &r->entry.key, &ref) &&
		    !memcmp(segments_entry(&s->segs, ref), &r->entry, sizeof(r->entry))) {
			COUNT(s, scrub_failures);
			store_quarantine(s, ref);
			status = -SKVQ_ECORRUPT;
		}
	}
	if (!lost)
		xfer_give(&s->xfers, x);
	if (r->fn)
		r->fn(r->ctx, status, bytes);
}

/* False: buffers are short. */
static bool begin(struct store *s, struct scrub_read *r, struct segment_ref ref)
{
	struct xfer *x = xfer_take(&s->xfers, (uint32_t)s->opt.buffers / 2);

	if (!x)
		return false;
	r->store = s;
	r->entry = *segments_entry(&s->segs, ref);
	r->life = s->segs.at[ref.seg].life;
	r->out = true;
	x->owner = r;
	xfer_start(&s->xfers, x, SPILL_READ, ref.seg, (uint64_t)r->entry.block * SPILL_BLOCK,
		   (uint64_t)r->entry.record_blocks * SPILL_BLOCK, store_io_deadline(s), read_done);
	return true;
}

void store_scrub_pump(struct store *s)
{
	struct scrub *scrub = &s->scrub;
	struct segment_ref ref;
	uint64_t bytes;

	if (scrub->read.out || !scrub->allowance || s->closing || !next_record(s, &ref))
		return;
	if (!begin(s, &scrub->read, ref)) {
		scrub->at = ref; /* it is this one's turn next time */
		return;
	}
	bytes = (uint64_t)scrub->read.entry.record_blocks * SPILL_BLOCK;
	scrub->allowance -= bytes < scrub->allowance ? bytes : scrub->allowance;
}

/* ---- for people ---- */

/* The next live record from *place on, or false. */
static bool find_from(const struct store *s, uint64_t *place, const uint8_t *ns, uint32_t *looks,
		      struct segment_ref *ret)
{
	uint32_t seg = (uint32_t)(*place >> 32), entry = (uint32_t)*place;

	for (; seg < s->segs.max; seg++, entry = 0) {
		const struct segment *at = &s->segs.at[seg];

		for (; entry < at->n && *looks; entry++, (*looks)--) {
			if (at->mark[entry] < MARK_LIVE ||
			    (ns && memcmp(at->entry[entry].key.ns, ns, TIER_DIGEST_BYTES)))
				continue;
			*ret = (struct segment_ref){seg, entry};
			*place = (uint64_t)seg << 32 | (entry + 1);
			return true;
		}
		if (!*looks) {
			*place = (uint64_t)seg << 32 | entry;
			return false;
		}
	}
	*place = 0;
	return false;
}

uint32_t store_list(struct store *s, uint64_t *place, const uint8_t *ns, struct store_record *ret,
		    uint32_t n)
{
	uint32_t looks = LOOKS_LISTED, found = 0;
	struct segment_ref ref;

	while (found < n && find_from(s, place, ns, &looks, &ref)) {
		const struct spill_entry *e = segments_entry(&s->segs, ref);

		ret[found++] = (struct store_record){
		    .key = e->key,
		    .position = e->position,
		    .bytes = (uint64_t)e->record_blocks * SPILL_BLOCK};
	}
	return found;
}

int store_verify(struct store *s, uint64_t *place, const uint8_t *ns, store_verify_fn fn, void *ctx)
{
	uint32_t looks = LOOKS, i = 0;
	uint64_t at = *place;
	struct segment_ref ref;

	while (i < STORE_VERIFY_DEPTH && s->scrub.asked[i].out)
		i++;
	if (i == STORE_VERIFY_DEPTH || s->closing)
		return -SKVQ_EBUSY;
	if (!find_from(s, &at, ns, &looks, &ref)) {
		*place = at;
		return 0;
	}
	if (!begin(s, &s->scrub.asked[i], ref))
		return -SKVQ_EBUSY;
	s->scrub.asked[i].fn = fn;
	s->scrub.asked[i].ctx = ctx;
	s->tier.touched = true;
	*place = at;
	return 1;
}

void store_scrub(struct store *s, uint64_t bytes)
{
	s->scrub.allowance = bytes;
	s->tier.touched = true;
}
