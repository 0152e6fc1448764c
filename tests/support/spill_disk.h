/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill_disk.h - a disk in memory behind spill/io.h, with a power switch.
 *
 * Time is its own and passes in wait. Requests take 0..latency_ms and end in any order. A write is
 * safe when a sync that began after it has ended; spill_disk_power_cut loses, keeps or tears each
 * one that is not, sector by sector or block by block, and brings back files whose removal was not
 * safe. The disk outlives the ios on it, as a disk does.
 */
#ifndef SKVQ_TESTS_SPILL_DISK_H
#define SKVQ_TESTS_SPILL_DISK_H

#include "spill/io.h"

struct spill_disk;

struct spill_disk *spill_disk_new(uint64_t seed, uint32_t files_max, uint32_t latency_ms);
/* Another disk with the same files. */
struct spill_disk *spill_disk_copy(const struct spill_disk *disk);
void spill_disk_free(struct spill_disk *disk);
/* One at a time; freed by its own op. */
struct spill_io *spill_disk_io(struct spill_disk *disk);

/* The power fails instead of the n-th write, sync, create or unlink from here on; 0: never. From
 * then on everything is -EIO. */
void spill_disk_fail_at(struct spill_disk *disk, uint64_t n);
bool spill_disk_failed(const struct spill_disk *disk);
uint64_t spill_disk_changes(const struct spill_disk *disk); /* such operations so far */
/* What survives is what is there from here on; the power is back. */
void spill_disk_power_cut(struct spill_disk *disk);
/* As if the process alone had been killed: what was told done is there, what was under way may be.
 */
void spill_disk_killed(struct spill_disk *disk);

/* Bytes of all files, and the most there ever were. */
uint64_t spill_disk_bytes(const struct spill_disk *disk);
uint64_t spill_disk_bytes_max(const struct spill_disk *disk);
uint64_t spill_disk_written(const struct spill_disk *disk);
void spill_disk_limit(struct spill_disk *disk, uint64_t bytes); /* -ENOSPC beyond; 0: none */
/* The i-th file's contents, or NULL. May be changed in place. */
uint8_t *spill_disk_file(struct spill_disk *disk, uint32_t i, uint64_t *ret_number,
			 uint64_t *ret_bytes);
void spill_disk_sleep(struct spill_disk *disk, uint64_t ms);

#endif /* SKVQ_TESTS_SPILL_DISK_H */
