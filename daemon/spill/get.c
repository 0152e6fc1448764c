/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/store_impl.h"

#include <string.h>

#include <skvq/error.h>

#include "base/cleanup.h"

/* Of those with a buffer: one stays for the store's own writing. */
#define KEEP_BUFFERS 1u

static void finish(struct store *s, struct get *g, int status, const struct tier_page *page)
{
	tier_get_fn fn = g->fn;
	void *ctx = g->ctx;

	if (!status)
		COUNT(s, hits);
	else if (status == -SKVQ_ETIMEOUT)
		COUNT(s, gets_late);
	else if (status == -SKVQ_ECORRUPT)
		COUNT(s, crc_failures);
	else
		COUNT(s, gets_failed);
	g->fn = NULL;
	g->next = s->gets_free;
	s->gets_free = g;
	fn(ctx, status, page);
}

void store_hide(struct store *s, struct segment_ref ref, enum tier_gone why)
{
	const struct segment *seg = &s->segs.at[ref.seg];
	const struct spill_entry *entry = &seg->entry[ref.entry];

	if (s->tier.gone && seg->mark[ref.entry] >= MARK_LIVE)
		s->tier.gone(s->tier.gone_ctx, &entry->key, entry->position, why);
	segments_hide(&s->segs, ref);
}

void store_drop(struct tier *tier, const struct tier_key *key)
{
	struct store *s = (struct store *)tier;
	struct segment_ref ref;

	COUNT(s, drops);
	if (segments_find(&s->segs, key, &ref))
		store_hide(s, ref, TIER_GONE_DROPPED);
	/* One that is just being written must not come up afterwards. */
	for (uint32_t i = 0; i < s->xfers.n_bufs; i++) {
		struct xfer *x = &s->xfers.all[i];
		struct segment *seg;

		if (x->state == XFER_OUT && x->put_fn && !memcmp(&x->key, key, sizeof(*key)))
			x->dropped = true;
		if (x->state != XFER_OUT || x->req.op != SPILL_WRITE)
			continue;
		seg = &s->segs.at[x->seg];
		if (x->entry < seg->n && seg->mark[x->entry] == MARK_WRITING &&
		    !memcmp(&seg->entry[x->entry].key, key, sizeof(*key)))
			seg->mark[x->entry] = MARK_DEAD;
	}
}

void store_quarantine(struct store *s, struct segment_ref ref)
{
	/* Not written down: after a restart the checksum finds it again, at the price of one read,
	 * unless its segment was sealed without it. */
	COUNT(s, quarantined);
	store_hide(s, ref, TIER_GONE_BAD);
}

/* Whether the index still means the record that was read. */
static bool still_there(const struct store *s, const struct get *g)
{
	struct segment_ref ref;

	return segments_find(&s->segs, &g->key, &ref) && ref.seg == g->ref.seg &&
	       ref.entry == g->ref.entry && segments_entry(&s->segs, ref)->block == g->entry.block;
}

static void unpack_on_thread(struct spill_req *req)
{
	struct xfer *x = container_of(req, struct xfer, req);

	x->work.ok = pack_undo(x->work.packs, x->buf);
}

static void unpacked(struct xfer *x, int status)
{
	struct get *g = x->owner;
	struct store *s = x->put_ctx;
	struct tier_page page;

	if (status == -SKVQ_ETIMEOUT) {
		finish(s, g, status, NULL);
		return;
	}
	if (!status && !x->work.ok) {
		COUNT(s, unpack_failures);
		status = -SKVQ_EIO;
		if (still_there(s, g))
			store_quarantine(s, g->ref);
	}
	if (!status) {
		COUNT(s, unpacked);
		spill_record_page(x->buf, &page);
	}
	finish(s, g, status, status ? NULL : &page);
	xfer_give(&s->xfers, x);
}

static void unpack(struct store *s, struct get *g, struct xfer *x)
{
	x->work = (struct pack_work){.packs = s->packs};
	x->req.run = unpack_on_thread;
	xfer_start(&s->xfers, x, SPILL_RUN, g->ref.seg, 0, s->xfers.buf_bytes, g->deadline_ms,
		   unpacked);
}

static void read_done(struct xfer *x, int status)
{
	struct get *g = x->owner;
	struct store *s = x->put_ctx;
	struct tier_page page;

	if (status == -SKVQ_ETIMEOUT) {
		finish(s, g, status, NULL);
		return;
	}
	if (!status && !spill_record_read(x->buf, &g->life, &g->entry, &page))
		status = -SKVQ_ECORRUPT;
	if (still_there(s, g)) {
		if (status < 0)
			store_quarantine(s, g->ref);
		else
			s->segs.at[g->ref.seg].mark[g->ref.entry] = MARK_TOUCHED;
	}
	if (!status && spill_record_packed(x->buf)) {
		unpack(s, g, x);
		return;
	}
	finish(s, g, status, status ? NULL : &page);
	xfer_give(&s->xfers, x); /* page lay in its buffer */
}

static void start(struct store *s, struct get *g, struct xfer *x)
{
	g->entry = *segments_entry(&s->segs, g->ref);
	g->life = s->segs.at[g->ref.seg].life;
	x->owner = g;
	x->put_ctx = s;
	xfer_start(&s->xfers, x, SPILL_READ, g->ref.seg, (uint64_t)g->entry.block * SPILL_BLOCK,
		   (uint64_t)g->entry.record_blocks * SPILL_BLOCK, g->deadline_ms, read_done);
}

int store_get(struct tier *tier, const struct tier_key *key, uint32_t timeout_ms, tier_get_fn fn,
	      void *ctx)
{
	struct store *s = (struct store *)tier;
	struct segment_ref ref;
	struct xfer *x;
	struct get *g;

	COUNT(s, gets);
	tier->touched = true;
	if (!segments_find(&s->segs, key, &ref)) {
		COUNT(s, misses);
		return 0;
	}
	g = s->gets_free;
	if (!g || s->closing) {
		COUNT(s, gets_refused);
		return -SKVQ_EBUSY;
	}
	s->gets_free = g->next;
	if (timeout_ms > s->opt.io_timeout_ms)
		timeout_ms = (uint32_t)s->opt.io_timeout_ms;
	*g = (struct get){.key = *key,
			  .fn = fn,
			  .ctx = ctx,
			  .deadline_ms = store_now(s) + timeout_ms,
			  .ref = ref};
	x = s->gets_head ? NULL : xfer_take(&s->xfers, KEEP_BUFFERS);
	if (x) {
		start(s, g, x);
		return 1;
	}
	if (s->gets_tail)
		s->gets_tail->next = g;
	else
		s->gets_head = g;
	s->gets_tail = g;
	return 1;
}

static struct get *pop(struct store *s)
{
	struct get *g = s->gets_head;

	s->gets_head = g->next;
	if (!s->gets_head)
		s->gets_tail = NULL;
	g->next = NULL;
	return g;
}

void store_gets_pump(struct store *s)
{
	uint64_t now = store_now(s);
	struct get *late = NULL, *g;

	/* Deadlines differ, so that late ones may stand anywhere. */
	for (struct get **at = &s->gets_head; *at;) {
		g = *at;
		if (now < g->deadline_ms) {
			at = &g->next;
			continue;
		}
		*at = g->next;
		g->next = late;
		late = g;
	}
	s->gets_tail = s->gets_head;
	while (s->gets_tail && s->gets_tail->next)
		s->gets_tail = s->gets_tail->next;
	while ((g = late) != NULL) {
		late = g->next;
		finish(s, g, -SKVQ_ETIMEOUT, NULL);
	}
	while (s->gets_head && s->xfers.n_free_bufs > KEEP_BUFFERS) {
		g = pop(s);
		if (segments_find(&s->segs, &g->key, &g->ref))
			start(s, g, xfer_take(&s->xfers, KEEP_BUFFERS));
		else
			finish(s, g, -SKVQ_ESTALE, NULL); /* it went while this waited */
	}
}

uint64_t store_gets_deadline(const struct store *s)
{
	uint64_t first = XFER_NEVER;

	for (const struct get *g = s->gets_head; g; g = g->next)
		if (g->deadline_ms < first)
			first = g->deadline_ms;
	return first;
}

void store_gets_fail(struct store *s, int status)
{
	while (s->gets_head)
		finish(s, pop(s), status, NULL);
}
