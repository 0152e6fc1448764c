/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/store_impl.h - the store's own state, shared by put.c, get.c, life.c, seal.c, evict.c,
 * recover.c.
 */
#ifndef SKVQD_SPILL_STORE_IMPL_H
#define SKVQD_SPILL_STORE_IMPL_H

#include "spill/admit.h"
#include "spill/pack.h"
#include "spill/segment.h"
#include "spill/store.h"
#include "spill/xfer.h"

/* What a file system may add to a file for its own maps; ext4: a block for 340 extents. */
#define SEGMENT_SLACK  (32u << 10)
#define SEGMENTS_LEAST 4u
#define SEGMENTS_MOST  8192u /* each pump looks at all of them */
#define RETRY_MS       1000u
#define POLL_MS        50u
#define WRITE_FAILURES 3u /* of one segment; then it takes no more */
#define FILES_SPARE    8u /* files that could not be removed, beside what fits the capacity */
#define PLAIN_XFERS    32u

struct get {
	struct tier_key key;
	tier_get_fn fn; /* NULL: free */
	void *ctx;
	uint64_t deadline_ms;
	struct segment_ref ref;
	struct spill_entry entry; /* as it was when the read began */
	struct spill_life life;
	struct get *next; /* waiting, or free */
};

struct eviction {
	uint32_t seg;    /* SEG_NO: none */
	uint32_t next;   /* entry to look at */
	uint32_t out;    /* rescues on their way */
	uint64_t blocks; /* rescued */
};

/* A record that is read to be checked. */
struct scrub_read {
	struct store *store;
	bool out;
	struct spill_entry entry;
	struct spill_life life;
	store_verify_fn fn; /* NULL: nobody asked */
	void *ctx;
};

struct scrub {
	struct segment_ref at; /* looked at next */
	uint64_t allowance;    /* bytes that may still be read */
	struct scrub_read read;
	struct scrub_read asked[STORE_VERIFY_DEPTH];
};

struct store {
	struct tier tier;
	struct store_options opt;
	struct spill_io *io;
	struct xfers xfers;
	struct packs *packs;
	struct segments segs;
	struct touches touches;
	struct budget budget;
	uint64_t next_number;
	uint32_t active, spare; /* SEG_NO: none */
	uint64_t charged;       /* against capacity_bytes */
	uint64_t create_retry_ms;
	struct eviction evict;
	struct scrub scrub;
	struct get *gets, *gets_free, *gets_head, *gets_tail;
	tier_put_fn flush_fn;
	void *flush_ctx;
	bool closing;
	uint64_t stat[STORE_STAT_COUNT];
};

#define COUNT(s, name)       ((s)->stat[STORE_STAT_##name]++)
#define COUNT_N(s, name, by) ((s)->stat[STORE_STAT_##name] += (by))

static inline uint64_t store_now(struct store *s)
{
	return s->io->ops->now_ms(s->io);
}

static inline uint64_t store_io_deadline(struct store *s)
{
	return store_now(s) + s->opt.io_timeout_ms;
}

static inline uint64_t store_charge_of(uint64_t segment_bytes)
{
	return segment_bytes + SEGMENT_SLACK;
}

/* put.c */
int store_put(struct tier *tier, const struct tier_page *page, uint32_t flags, tier_put_fn fn,
	      void *ctx);
/* The segment whose tail is the place for a record of so many blocks. False: no room now. */
bool store_place(struct store *s, uint32_t blocks, uint32_t *ret_seg);
/* The record in x->buf, placed by entry in x->seg, goes out; done calls store_written first.
 * -SKVQ_ENOMEM. */
int store_write(struct store *s, struct xfer *x, const struct spill_entry *entry,
		uint64_t deadline_ms, xfer_fn done);
/* Accounts the write. 0 if the record is in the index now. */
int store_written(struct store *s, struct xfer *x, int status);
/* What a record costs the budget, its share of the table included. */
static inline uint64_t store_cost(uint32_t blocks)
{
	return (uint64_t)blocks * SPILL_BLOCK + sizeof(struct spill_entry) * 2;
}

/* get.c */
int store_get(struct tier *tier, const struct tier_key *key, uint32_t timeout_ms, tier_get_fn fn,
	      void *ctx);
void store_gets_pump(struct store *s);
uint64_t store_gets_deadline(const struct store *s);
void store_gets_fail(struct store *s, int status); /* all that wait */
void store_drop(struct tier *tier, const struct tier_key *key);
void store_quarantine(struct store *s, struct segment_ref ref);
/* Takes the entry out of the index, if that means it, and tells the tier's owner. */
void store_hide(struct store *s, struct segment_ref ref, enum tier_gone why);

/* life.c: making and removing segments, and what drives all of them */
void store_life_pump(struct store *s);
uint64_t store_life_deadline(struct store *s);
/* Of a segment without a live entry: its file goes when no request has it any more. */
void store_segment_die(struct store *s, uint32_t seg);

/* seal.c */
void store_close_segment(struct store *s, uint32_t seg); /* it takes no more records */
void store_sync_if_due(struct store *s, uint32_t seg, uint64_t now);
void store_seal(struct store *s, uint32_t seg); /* the next step of a CLOSING one, if it is time */
bool store_all_synced(const struct store *s);   /* or tried to */
bool store_all_safe(const struct store *s);     /* no sync of what is still there has failed */

/* evict.c */
void store_evict_pump(struct store *s);
void store_evict_start(struct store *s);

/* scrub.c */
void store_scrub_pump(struct store *s);

/* recover.c */
int store_recover(struct store *s, struct why *why);

#endif /* SKVQD_SPILL_STORE_IMPL_H */
