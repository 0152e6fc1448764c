/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/pack.h - whole records compressed and back, in the buffer they lie in, on any thread.
 *
 * A set of presses serves all threads: each run borrows one, and there come to be as many as ever
 * ran at once.
 */
#ifndef SKVQD_SPILL_PACK_H
#define SKVQD_SPILL_PACK_H

#include <stdbool.h>
#include <stdint.h>

struct packs;

/* For records up to record_bytes, their block of header counted. NULL: no memory. */
struct packs *packs_new(uint32_t record_bytes);
/* Nothing may be running. NULL is fine. */
void packs_free(struct packs *packs);
/* Instead, when something may be running for ever: kept in sight of leak checkers. */
void packs_leave(struct packs *packs);

/* Compresses sections of a filled record (spill_record_fill) where that makes the record shorter
 * by a sixteenth, and writes their checksums. How many blocks it has now. */
uint32_t pack_do(struct packs *packs, uint8_t *record);
/* The record as it was filled. False: it cannot be read, or is longer than record_bytes, or there
 * is no memory; then it is left as it was. Checksums were compared before. */
bool pack_undo(struct packs *packs, uint8_t *record);

/* What a thread is told, and what it says. */
struct pack_work {
	struct packs *packs;
	uint32_t blocks; /* out, of pack_do */
	bool ok;         /* out, of pack_undo */
};

#endif /* SKVQD_SPILL_PACK_H */
