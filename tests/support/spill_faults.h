/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill_faults.h - an io that hands everything on to another and spoils some of it, by seed.
 */
#ifndef SKVQ_TESTS_SPILL_FAULTS_H
#define SKVQ_TESTS_SPILL_FAULTS_H

#include "spill/io.h"

/* How many of 10,000. */
struct spill_fault_rates {
	uint32_t eio, enospc, eagain;
	uint32_t submit_eagain;
	uint32_t cut_short; /* says less than was done */
	uint32_t torn;      /* does less than it says */
	uint32_t flip;      /* one bit, on the way in or out */
	uint32_t delay;     /* by up to delay_ms */
	uint32_t lost;      /* done, and never told */
	uint32_t delay_ms;
};

struct spill_fault_counts {
	uint64_t errors, again, shorts, torn, flips, delays, lost;
};

struct spill_faults;

/* Takes below on success of store_open or not: freed with it. */
struct spill_io *spill_faults_new(struct spill_io *below, uint64_t seed,
				  const struct spill_fault_rates *rates);
void spill_faults_set(struct spill_io *io, const struct spill_fault_rates *rates);
void spill_faults_release(struct spill_io *io); /* what was lost comes back now */
struct spill_fault_counts spill_faults_counts(struct spill_io *io);

#endif /* SKVQ_TESTS_SPILL_FAULTS_H */
