/* SPDX-License-Identifier: Apache-2.0 */
/* What makes written records durable, and a full segment readable by its table. */
#include "spill/store_impl.h"

#include <stdlib.h>

#include <skvq/error.h>

/* --- syncing --------------------------------------------------------------------------------- */

static void synced(struct xfer *x, int status)
{
	struct store *s = x->owner;
	struct segment *g = &s->segs.at[x->seg];

	g->syncing = false;
	COUNT(s, syncs);
	if (status < 0) {
		/* The kernel says it once and forgets; no promise can be made for this file. */
		COUNT(s, sync_failures);
		g->sync_failed = true;
		if (g->state == SEG_ACTIVE)
			store_close_segment(s, x->seg);
	}
	if (status != -SKVQ_ETIMEOUT)
		xfer_give(&s->xfers, x);
}

void store_sync_if_due(struct store *s, uint32_t seg, uint64_t now)
{
	struct segment *g = &s->segs.at[seg];
	bool due = g->dirty >= s->opt.sync_bytes || now >= g->dirty_since_ms + s->opt.sync_ms ||
		   (g->state == SEG_CLOSING && !g->writes) || s->flush_fn || s->closing;
	struct xfer *x;

	if (!g->dirty || g->syncing || !due)
		return;
	x = xfer_take_plain(&s->xfers);
	if (!x)
		return;
	g->syncing = true;
	g->dirty = 0; /* what comes back from now on waits for the next one */
	x->owner = s;
	x->seg = seg;
	xfer_start(&s->xfers, x, SPILL_SYNC, seg, 0, 0, store_io_deadline(s), synced);
}

/* --- closing: table and foot, sync ----------------------------------------------------------- */

void store_close_segment(struct store *s, uint32_t seg)
{
	s->segs.at[seg].state = SEG_CLOSING;
	if (s->active == seg)
		s->active = SEG_NO;
}

static void closed(struct store *s, uint32_t seg, bool sealed)
{
	struct segment *g = &s->segs.at[seg];

	free(g->table);
	g->table = NULL;
	g->busy = false;
	g->sealed = sealed;
	g->state = SEG_CLOSED;
	if (sealed)
		COUNT(s, segments_sealed);
	else
		COUNT(s, segments_unsealed);
}

static void seal_synced(struct xfer *x, int status)
{
	struct store *s = x->owner;

	COUNT(s, syncs);
	if (status < 0)
		COUNT(s, sync_failures);
	closed(s, x->seg, status == 0);
	if (status != -SKVQ_ETIMEOUT)
		xfer_give(&s->xfers, x);
}

static void write_table(struct store *s, struct xfer *x);

static void table_written(struct xfer *x, int status)
{
	struct store *s = x->owner;
	uint32_t seg = x->seg;
	struct segment *g = &s->segs.at[seg];
	struct xfer *plain;

	if (!status && g->table_at <= spill_table_blocks(g->table_n)) {
		write_table(s, x);
		return;
	}
	if (status != -SKVQ_ETIMEOUT)
		xfer_give(&s->xfers, x);
	plain = status < 0 ? NULL : xfer_take_plain(&s->xfers);
	if (!plain) {
		closed(s, seg, false);
		return;
	}
	plain->owner = s;
	plain->seg = seg;
	xfer_start(&s->xfers, plain, SPILL_SYNC, seg, 0, 0, store_io_deadline(s), seal_synced);
}

/* As many blocks as the buffer takes; the foot goes with the last. */
static void write_table(struct store *s, struct xfer *x)
{
	struct segment *g = &s->segs.at[x->seg];
	uint32_t blocks = spill_table_blocks(g->table_n), n = 0;
	uint32_t first = g->blocks - 1 - blocks, from = g->table_at;

	for (; n < s->xfers.buf_bytes / SPILL_BLOCK && g->table_at <= blocks; n++, g->table_at++) {
		uint8_t *block = x->buf + (size_t)n * SPILL_BLOCK;
		uint32_t at = g->table_at * SPILL_TABLE_ENTRIES, rest = g->table_n - at;

		if (g->table_at == blocks)
			spill_foot_write(block, &g->life, first, g->table_n);
		else
			spill_table_write(block, &g->life, g->table_at, g->table + at,
					  rest < SPILL_TABLE_ENTRIES ? rest : SPILL_TABLE_ENTRIES);
	}
	xfer_start(&s->xfers, x, SPILL_WRITE, x->seg, (uint64_t)(first + from) * SPILL_BLOCK,
		   (uint64_t)n * SPILL_BLOCK, store_io_deadline(s), table_written);
}

void store_seal(struct store *s, uint32_t seg)
{
	struct segment *g = &s->segs.at[seg];
	struct xfer *x;

	if (g->writes || g->dirty || g->syncing || g->busy)
		return;
	if (g->sync_failed) {
		closed(s, seg, false); /* a table would vouch for what may not be there */
		return;
	}
	x = xfer_take(&s->xfers, 0);
	if (!x)
		return;
	g->table = malloc(((size_t)g->n + 1) * sizeof(*g->table));
	g->table_n = 0;
	g->table_at = 0;
	for (uint32_t i = 0; g->table && i < g->n; i++)
		if (g->mark[i] >= MARK_LIVE)
			g->table[g->table_n++] = g->entry[i];
	if (!g->table || !g->table_n) {
		xfer_give(&s->xfers, x);
		if (g->table)
			store_segment_die(s, seg);
		else
			closed(s, seg, false);
		return;
	}
	g->busy = true;
	x->owner = s;
	x->seg = seg;
	write_table(s, x);
}

bool store_all_synced(const struct store *s)
{
	for (uint32_t i = 0; i < s->segs.max; i++) {
		const struct segment *g = &s->segs.at[i];

		if (g->writes || g->dirty || g->syncing)
			return false;
	}
	return true;
}

bool store_all_safe(const struct store *s)
{
	for (uint32_t i = 0; i < s->segs.max; i++)
		if (s->segs.at[i].sync_failed && s->segs.at[i].state < SEG_DYING)
			return false;
	return true;
}
