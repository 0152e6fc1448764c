/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in the folder: sealed segments by their table, others record by record. Waits for each
 * read in turn; runs before anything else does.
 */
#include "spill/store_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#define TIMEOUTS_MAX 3u /* a disk that does not answer is given up */

struct found {
	uint64_t number, physical;
};

struct recovery {
	struct store *s;
	struct found *found;
	size_t n, cap;
	bool no_memory;
	uint32_t timeouts;
};

struct wait {
	bool done;
	int status;
};

static void on_done(struct xfer *x, int status)
{
	struct wait *w = x->owner;

	w->done = true;
	w->status = status;
}

/* 0 or the transfer's status; after -SKVQ_ETIMEOUT x is gone. */
static int run(struct recovery *r, struct xfer *x, enum spill_op op, uint32_t file, uint64_t offset,
	       uint64_t bytes)
{
	struct store *s = r->s;
	struct wait w = {.done = false};
	uint64_t deadline = store_io_deadline(s);

	x->owner = &w;
	xfer_start(&s->xfers, x, op, file, offset, bytes, deadline, on_done);
	while (!w.done) {
		uint64_t now = store_now(s), left = now < deadline ? deadline - now : 0;

		s->io->ops->kick(s->io);
		/* One that the io would not take is not out: nothing would end the wait. */
		s->io->ops->wait(s->io, x->queued && left ? 1 : (uint32_t)left);
		xfers_pump(&s->xfers);
	}
	if (w.status == -SKVQ_ETIMEOUT)
		r->timeouts++;
	return w.status;
}

/* Reads blocks into *x, which is taken again if it was lost. False: they could not be read. */
static bool read_blocks(struct recovery *r, struct xfer **x, uint32_t seg, uint32_t block,
			uint32_t n)
{
	int status;

	if (!*x)
		*x = xfer_take(&r->s->xfers, 0);
	if (!*x || r->timeouts >= TIMEOUTS_MAX)
		return false;
	status =
	    run(r, *x, SPILL_READ, seg, (uint64_t)block * SPILL_BLOCK, (uint64_t)n * SPILL_BLOCK);
	if (status == -SKVQ_ETIMEOUT)
		*x = NULL;
	return status == 0;
}

static int keep(struct store *s, uint32_t seg, const struct spill_entry *entry)
{
	struct segment_ref ref = {.seg = seg};
	int r;

	if ((uint64_t)entry->record_blocks * SPILL_BLOCK > s->xfers.buf_bytes)
		return 0; /* record_bytes was larger when it was written: it is left alone */
	r = segment_add(&s->segs.at[seg], entry, MARK_DEAD, &ref.entry);

	if (!r)
		r = segments_show(&s->segs, ref); /* a later record of the same page wins */
	if (!r)
		COUNT(s, recovered);
	return r;
}

/* By its table. 1: done. 0: a block of it does not hold, and nothing was kept. */
static int read_table(struct recovery *r, struct xfer **x, uint32_t seg,
		      const struct spill_foot *foot)
{
	struct store *s = r->s;
	uint32_t room = s->xfers.buf_bytes / SPILL_BLOCK, n = 0;
	struct spill_entry *all = malloc(((size_t)foot->n + 1) * sizeof(*all));
	int status = all ? 1 : -SKVQ_ENOMEM;

	for (uint32_t at = 0; status > 0 && at < foot->table_blocks; at += room) {
		uint32_t blocks = foot->table_blocks - at < room ? foot->table_blocks - at : room;

		if (!read_blocks(r, x, seg, foot->table_block + at, blocks))
			status = 0;
		for (uint32_t i = 0; status > 0 && i < blocks; i++) {
			struct spill_table table;

			if (!spill_table_read((*x)->buf + (size_t)i * SPILL_BLOCK, foot, at + i,
					      &table)) {
				status = 0;
				break;
			}
			memcpy(all + n, table.entry, table.n * sizeof(*all));
			n += table.n;
		}
	}
	for (uint32_t i = 0; status > 0 && i < n; i++)
		if (keep(s, seg, &all[i]) < 0)
			status = -SKVQ_ENOMEM;
	free(all);
	return status;
}

/* Records that lie whole in n blocks read from `at` on. How many blocks were dealt with. */
static int64_t scan_blocks(struct store *s, uint32_t seg, const uint8_t *buf, uint32_t at,
			   uint32_t n)
{
	struct segment *g = &s->segs.at[seg];
	uint32_t longest = s->xfers.buf_bytes / SPILL_BLOCK, i = 0;

	if (longest > g->blocks - at)
		longest = g->blocks - at;
	while (i < n) {
		const uint8_t *record = buf + (size_t)i * SPILL_BLOCK;
		struct spill_entry entry;
		struct tier_page page;

		if (!spill_record_head(record, &g->life, at + i, longest, &entry)) {
			i++;
			continue;
		}
		if (entry.record_blocks > n - i) {
			if (i)
				break; /* read again, from here on */
			i++; /* longer than any buffer: it was written under other options */
			continue;
		}
		if (spill_record_read(record, &g->life, &entry, &page)) {
			if (keep(s, seg, &entry) < 0)
				return -SKVQ_ENOMEM;
			i += entry.record_blocks;
			continue;
		}
		/* Torn. Its place was given out, so nothing is appended over it. */
		COUNT(s, torn);
		if (entry.block + entry.record_blocks > g->tail)
			g->tail = entry.block + entry.record_blocks;
		i++;
	}
	return i;
}

/* 1: all of it was read. 0: not all. */
static int scan(struct recovery *r, struct xfer **x, uint32_t seg)
{
	struct store *s = r->s;
	uint32_t room = s->xfers.buf_bytes / SPILL_BLOCK, blocks = s->segs.at[seg].blocks;
	int status = 1;

	COUNT(s, recovered_scans);
	for (uint32_t at = 1; at < blocks;) {
		uint32_t n = blocks - at < room ? blocks - at : room;
		int64_t dealt = n;

		if (read_blocks(r, x, seg, at, n))
			dealt = scan_blocks(s, seg, (*x)->buf, at, n);
		else
			status = 0;
		if (dealt < 0)
			return (int)dealt;
		at += (uint32_t)dealt;
	}
	return status;
}

/* What becomes of a segment whose records were found by scan. */
static void settle(struct store *s, uint32_t seg, bool whole, bool open)
{
	struct segment *g = &s->segs.at[seg];
	bool fits = open && (uint64_t)g->blocks * SPILL_BLOCK == s->opt.segment_bytes;

	if (whole && !g->n) {
		/* It was made and never used: its head is written again, to be sure of it. */
		g->state = fits && g->tail == 1 ? SEG_HEADING : SEG_DYING;
		g->since_ms = g->state == SEG_HEADING ? store_now(s) : 0;
		return;
	}
	/* As it is: what could not be read now may be at the next start. */
	if (!whole || !segment_has_room(g, 0))
		return;
	g->state = SEG_CLOSING;                     /* gets its table now */
	g->dirty = (uint64_t)g->tail * SPILL_BLOCK; /* read is not yet durable */
	g->dirty_since_ms = store_now(s);
	if (!fits)
		return;
	/* The last one goes on where it was. */
	g->state = SEG_ACTIVE;
	if (s->active != SEG_NO)
		s->segs.at[s->active].state = SEG_CLOSING;
	s->active = seg;
}

/* One file. 0, or -SKVQ_ENOMEM. */
static int load(struct recovery *r, uint32_t seg, uint64_t bytes)
{
	struct store *s = r->s;
	struct segment *g = &s->segs.at[seg];
	struct xfer *x = NULL;
	struct spill_life life = {.number = g->life.number};
	struct spill_foot foot = {.n = 0};
	bool head = false, sealed = false, whole = true;
	int status = 0;

	g->tail = 1;
	if (!bytes || bytes % SPILL_BLOCK || bytes / SPILL_BLOCK > UINT32_MAX) {
		g->state = SEG_DYING; /* creation was cut off */
		return 0;
	}
	g->blocks = (uint32_t)(bytes / SPILL_BLOCK);
	if (read_blocks(r, &x, seg, 0, 1))
		head = spill_head_read(x->buf, life.number, bytes, &life);
	else
		whole = false;
	if (read_blocks(r, &x, seg, g->blocks - 1, 1))
		sealed = spill_foot_read(x->buf, life.number, bytes, &foot);
	else
		whole = false;
	if (head && sealed && memcmp(&life, &foot.life, sizeof(life)) != 0)
		sealed = false;
	if (head || sealed) {
		g->life = head ? life : foot.life;
		if (sealed)
			status = read_table(r, &x, seg, &foot);
		g->sealed = status == 1;
		if (g->sealed)
			g->tail = g->blocks;
		else if (status == 0)
			status = scan(r, &x, seg);
		whole = whole && status == 1;
	}
	if (x)
		xfer_give(&s->xfers, x);
	if (status < 0)
		return status;
	/* With a damaged foot it is full all the same; one that is whole never lost its head. */
	if (!g->sealed)
		settle(s, seg, whole, head && !sealed);
	return 0;
}

static void on_found(void *ctx, uint64_t number, uint64_t physical)
{
	struct recovery *r = ctx;

	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 64;
		struct found *more = realloc(r->found, cap * sizeof(*more));

		if (!more) {
			r->no_memory = true;
			return;
		}
		r->found = more;
		r->cap = cap;
	}
	r->found[r->n++] = (struct found){number, physical};
}

static int by_number(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number;
}

/* Of one that does not fit any more. What cannot be removed stays charged. */
static void remove_now(struct recovery *r, uint32_t file, const struct found *found)
{
	struct xfer *x = xfer_take_plain(&r->s->xfers);
	int status = -SKVQ_EIO;

	if (x) {
		x->req.number = found->number;
		status = run(r, x, SPILL_UNLINK, file, 0, 0);
		if (status != -SKVQ_ETIMEOUT)
			xfer_give(&r->s->xfers, x);
	}
	if (status < 0) {
		COUNT(r->s, remove_failures);
		r->s->charged += found->physical;
	} else {
		COUNT(r->s, segments_removed);
	}
}

static int load_all(struct recovery *r, struct why *why)
{
	struct store *s = r->s;
	size_t first = r->n, seg_at = 0;
	uint64_t sum = 0;
	int status = 0;

	/* The newest that fit; capacity may have been lowered. */
	while (first > 0 && r->n - first < s->segs.max - FILES_SPARE) {
		uint64_t charge = store_charge_of(s->opt.segment_bytes);

		if (r->found[first - 1].physical > charge)
			charge = r->found[first - 1].physical;
		if (sum + charge > s->opt.capacity_bytes)
			break;
		sum += charge;
		first--;
	}
	for (size_t i = 0; i < first; i++)
		remove_now(r, s->segs.max - 1, &r->found[i]);
	if (r->n)
		s->next_number = r->found[r->n - 1].number + 1;
	for (size_t i = first; i < r->n && !status; i++, seg_at++) {
		struct segment *g = &s->segs.at[seg_at];
		uint64_t bytes = 0, charge;

		g->state = SEG_CLOSED;
		g->life.number = r->found[i].number;
		if (s->io->ops->open(s->io, (uint32_t)seg_at, g->life.number, &bytes) < 0)
			g->state = SEG_DYING;
		charge =
		    store_charge_of(bytes > s->opt.segment_bytes ? bytes : s->opt.segment_bytes);
		g->charged = r->found[i].physical > charge ? r->found[i].physical : charge;
		s->charged += g->charged;
		if (g->state == SEG_CLOSED)
			status = load(r, (uint32_t)seg_at, bytes);
		if (r->timeouts >= TIMEOUTS_MAX)
			return why_fail(why, SKVQ_EIO, "the store's disk does not answer");
	}
	return status < 0 ? why_fail(why, -status, "no memory for the store's index") : 0;
}

int store_recover(struct store *s, struct why *why)
{
	struct recovery r = {.s = s};
	uint64_t began = store_now(s);
	int status = s->io->ops->list(s->io, on_found, &r);

	s->next_number = 1;
	if (status < 0)
		status = why_fail(why, SKVQ_EIO, "cannot list the store's folder (%s)",
				  strerror(-status));
	else if (r.no_memory)
		status = why_fail(why, SKVQ_ENOMEM, "no memory for the store's folder");
	if (!status) {
		if (r.n)
			qsort(r.found, r.n, sizeof(*r.found), by_number);
		status = load_all(&r, why);
	}
	free(r.found);
	s->stat[STORE_STAT_recovery_ms] = store_now(s) - began;
	return status;
}
