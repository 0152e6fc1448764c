/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/faults.h - an io that hands everything on to another and spoils some of it, by seed.
 *
 * Not in skvqd: in the tests, and in skvqd-faults (daemon/faults.c), which is skvqd with this
 * around the io of its store.
 */
#ifndef SKVQD_SPILL_FAULTS_H
#define SKVQD_SPILL_FAULTS_H

#include "spill/io.h"

/* How many of 10,000, but for delay_ms. */
#define SPILL_FAULT_RATES(X)                                                                       \
	X(eio)                                                                                     \
	X(enospc)                                                                                  \
	X(eagain)                                                                                  \
	X(submit_eagain)                                                                           \
	X(cut_short) /* says less than was done */                                                 \
	X(torn)      /* does less than it says */                                                  \
	X(flip)      /* one bit, on the way in or out */                                           \
	X(delay)     /* by up to delay_ms, and until the io is looked at next */                   \
	X(lost)      /* done, and never told */                                                    \
	X(delay_ms)

#define SPILL_FAULT_FIELD_(name) uint32_t name;
struct spill_fault_rates {
	SPILL_FAULT_RATES(SPILL_FAULT_FIELD_)
};
#undef SPILL_FAULT_FIELD_

struct spill_fault_counts {
	uint64_t errors, again, shorts, torn, flips, delays, lost;
};

/* Where a process can be made to end, as if it had been killed there. */
#define SPILL_CRASH_POINTS(X)                                                                      \
	X(AFTER_PUT, "after-put")         /* a record is written, nobody knows yet */              \
	X(MID_SEAL, "mid-seal")           /* a table is written, not synced */                     \
	X(BEFORE_SYNC, "before-sync")                                                              \
	X(IN_RESTORE, "in-restore")       /* a record has been read; also while recovering */      \
	X(AFTER_CREATE, "after-create")   /* a segment is made, and has no head */                 \
	X(BEFORE_UNLINK, "before-unlink") /* a segment is about to be removed */

#define SPILL_CRASH_ENUM_(name, text) SPILL_CRASH_##name,
enum spill_crash { SPILL_CRASH_NONE, SPILL_CRASH_POINTS(SPILL_CRASH_ENUM_) SPILL_CRASH_COUNT };
#undef SPILL_CRASH_ENUM_

/* Exit status of such an end. */
#define SPILL_CRASH_STATUS 86

/* below is freed with it. NULL without memory: below is the caller's. */
struct spill_io *spill_faults_new(struct spill_io *below, uint64_t seed,
				  const struct spill_fault_rates *rates);
void spill_faults_set(struct spill_io *io, const struct spill_fault_rates *rates);
void spill_faults_release(struct spill_io *io); /* what was lost comes back now */
struct spill_fault_counts spill_faults_counts(struct spill_io *io);
/* Counts go to memory of the caller's from here on, which may outlive the process. */
void spill_faults_count_in(struct spill_io *io, struct spill_fault_counts *counts);
/* _exit at the n-th time that point is reached; n counts from 1. */
void spill_faults_crash_at(struct spill_io *io, enum spill_crash point, uint64_t n);
/* SPILL_CRASH_NONE for a name that is none. */
enum spill_crash spill_crash_parse(const char *name);

#endif /* SKVQD_SPILL_FAULTS_H */
