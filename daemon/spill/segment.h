/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/segment.h - segments in memory, their entries, and the index over them.
 *
 *   NONE -> CREATING -> HEADING -> SPARE -> ACTIVE -> CLOSING -> CLOSED -> EVICTING -> DYING
 *    ^          |          |                             (found at start)                |
 *    +----------+----------+----------------- UNLINKING <--------------------------------+
 *
 * SPARE is ready to be written to, its head durable. CLOSING takes no more records and writes its
 * table; CLOSED has it, or does without. DYING waits for requests that are still out. A segment is
 * charged from CREATING on until its file is known to be gone. Owner thread only.
 */
#ifndef SKVQD_SPILL_SEGMENT_H
#define SKVQD_SPILL_SEGMENT_H

#include "spill/format.h"

#define SEG_NO UINT32_MAX

enum segment_state {
	SEG_NONE,
	SEG_CREATING,
	SEG_HEADING,
	SEG_SPARE,
	SEG_ACTIVE,
	SEG_CLOSING,
	SEG_CLOSED,
	SEG_EVICTING,
	SEG_DYING,
	SEG_UNLINKING,
};

enum entry_mark {
	MARK_DEAD,    /* failed, dropped, bad, or there is a newer one */
	MARK_WRITING, /* not in the index yet */
	MARK_LIVE,    /* in the index */
	MARK_TOUCHED, /* and was asked for since it was written */
};

struct segment {
	enum segment_state state;
	struct spill_life life;
	uint32_t blocks;
	uint64_t charged;
	uint32_t tail; /* the first free block */
	struct spill_entry *entry;
	uint8_t *mark;
	uint32_t n, cap;
	uint32_t writes;   /* records on their way */
	uint32_t failures; /* of writes */
	uint64_t dirty;    /* bytes written and not yet synced */
	uint64_t dirty_since_ms;
	bool syncing, sync_failed;
	struct spill_entry *table;  /* CLOSING: what the table will hold */
	uint32_t table_n, table_at; /* entries; blocks of it written, the foot being the last */
	bool busy;                  /* HEADING, CLOSING: the next step is under way */
	bool sealed;
	uint64_t since_ms; /* CREATING, HEADING, UNLINKING: began. DYING: not before */
};

struct segment_ref {
	uint32_t seg, entry;
};

struct index_slot {
	struct segment_ref ref; /* seg SEG_NO: empty */
};

struct segments {
	struct segment *at; /* also the io's file */
	uint32_t max;
	struct index_slot *slots; /* open addressing, linear; mask + 1 of them */
	uint64_t mask, n;
	uint64_t seed;
};

int segments_init(struct segments *s, uint32_t max, uint64_t seed);
void segments_fini(struct segments *s);

uint64_t segments_hash(const struct segments *s, const struct tier_key *key);
uint32_t segments_free_slot(const struct segments *s); /* or SEG_NO */
/* Of the lowest number in this state, or SEG_NO. */
uint32_t segments_oldest(const struct segments *s, enum segment_state state);
/* Empties the slot: its entries must be out of the index. */
void segment_clear(struct segment *seg);

/* Whether a record of so many blocks fits before the table it would need. */
bool segment_has_room(const struct segment *seg, uint32_t blocks);
/* Appends; the tail moves behind it if it lies beyond. Its number in *ret_entry; -SKVQ_ENOMEM. */
int segment_add(struct segment *seg, const struct spill_entry *entry, enum entry_mark mark,
		uint32_t *ret_entry);

/* False: not there. */
bool segments_find(const struct segments *s, const struct tier_key *key,
		   struct segment_ref *ret_ref);
/* The entry is WRITING or DEAD and becomes LIVE, in the index; an older one of its key becomes
 * DEAD. -SKVQ_ENOMEM: it stays as it is. */
int segments_show(struct segments *s, struct segment_ref ref);
/* Takes the entry out, if the index means this very one; it becomes DEAD in any case. */
void segments_hide(struct segments *s, struct segment_ref ref);

static inline const struct spill_entry *segments_entry(const struct segments *s,
						       struct segment_ref ref)
{
	return &s->at[ref.seg].entry[ref.entry];
}

#endif /* SKVQD_SPILL_SEGMENT_H */
