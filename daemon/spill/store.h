/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/store.h - the tier on a disk: a log of records in segment files (docs/store-format.md).
 *
 * Records are appended to one segment at a time; room comes back a whole segment at a time, oldest
 * first, after the records that were asked for have been written again. What the store gives was
 * checked by CRC-32C; whatever goes wrong below is a miss and a counter. It never takes more of the
 * disk than capacity_bytes, and forgets at a power cut what is younger than sync_ms or sync_bytes.
 *
 * One thread owns it. Nothing in here waits for the disk but store_open and store_close: the owner
 * polls store_event_fd and calls store_pump when that is readable, after a batch of calls, and
 * when store_wait_ms have passed.
 */
#ifndef SKVQD_SPILL_STORE_H
#define SKVQD_SPILL_STORE_H

#include "spill/io.h"
#include "mem/tier.h"

/* name, kind, default, least, most, what it is. Kinds: COUNT, BYTES. */
#define STORE_OPTIONS(X)                                                                           \
	X(capacity_bytes, BYTES, UINT64_C(16) << 30, 1 << 20, UINT64_C(1) << 43,                   \
	  "bytes of disk that all segments together take at most; 4 to 8192 segments")             \
	X(segment_bytes, BYTES, 64 << 20, 128 << 10, 1 << 30, "of a file; multiple of 4096")       \
	X(record_bytes, BYTES, 4 << 20, 8 << 10, 64 << 20,                                         \
	  "longest record, header block counted; multiple of 4096, at most a quarter segment")     \
	X(buffers, COUNT, 16, 4, 256, "transfers at once; each has record_bytes of memory")        \
	X(gets_queued, COUNT, 4096, 1, 65536, "gets that wait for a buffer")                       \
	X(io_timeout_ms, COUNT, 5000, 1, 600000, "a transfer that takes longer has failed")        \
	X(sync_ms, COUNT, 1000, 1, 3600000, "written bytes are synced when they are this old")     \
	X(sync_bytes, BYTES, 32 << 20, 4096, UINT64_C(1) << 40, "or this many")                    \
	X(write_bytes_per_day, BYTES, UINT64_C(1) << 40, 0, UINT64_C(1) << 50,                     \
	  "all writes of the store; 0: no limit")                                                  \
	X(touch_entries, COUNT, 1 << 16, 0, 1 << 28,                                               \
	  "first touches remembered; 0: the first is enough")                                      \
	X(rescue_percent, COUNT, 25, 0, 50,                                                        \
	  "of a segment's bytes that are written again at most when it goes")                      \
	X(compression, COUNT, 0, 0, 1, "1: pages are stored compressed if that saves a sixteenth")

#define STORE_FIELD_(name, kind, def, least, most, help) uint64_t name;
struct store_options {
	STORE_OPTIONS(STORE_FIELD_)
};
#undef STORE_FIELD_

/* Names of the metrics to come; never renamed. */
#define STORE_STATS(X)                                                                             \
	X(puts, "pages offered")                                                                   \
	X(puts_stored, "of these, written")                                                        \
	X(puts_existed, "of these, there or on their way already")                                 \
	X(refused_first_touch, "of these, offered for the first time")                             \
	X(refused_budget, "of these, over the write budget")                                       \
	X(refused_size, "of these, longer than record_bytes")                                      \
	X(refused_busy, "of these, no buffer was free")                                            \
	X(refused_room, "of these, no segment was ready")                                          \
	X(puts_failed, "of these, the write failed")                                               \
	X(gets, "pages asked for")                                                                 \
	X(hits, "of these, given")                                                                 \
	X(misses, "of these, not there")                                                           \
	X(gets_refused, "of these, too many were waiting")                                         \
	X(gets_failed, "of these, the read failed")                                                \
	X(gets_late, "of these, not in time")                                                      \
	X(crc_failures, "of these, the record was not what was written")                           \
	X(scrubbed, "records read and checked though nobody asked")                                \
	X(scrubbed_bytes, "bytes of these")                                                        \
	X(scrub_failures, "of these, the record was not what was written")                         \
	X(quarantined, "records not looked at again, for a bad checksum or a failed read")         \
	X(drops, "pages dropped by the owner")                                                     \
	X(user_bytes, "bytes of pages written for puts")                                           \
	X(written_bytes, "bytes written in all; over user_bytes: the write amplification")         \
	X(read_bytes, "bytes read")                                                                \
	X(rescued, "records written again because they were asked for")                            \
	X(rescued_bytes, "bytes of these")                                                         \
	X(evicted, "records that went with their segment")                                         \
	X(segments_created, "segments made")                                                       \
	X(segments_sealed, "segments given their table")                                           \
	X(segments_unsealed, "segments closed without one, after a failure")                       \
	X(segments_removed, "segments removed")                                                    \
	X(create_failures, "segments that could not be made")                                      \
	X(remove_failures, "segments that could not be removed; tried again")                      \
	X(syncs, "fdatasync calls")                                                                \
	X(sync_failures, "of these, failed")                                                       \
	X(timeouts, "transfers that were given up")                                                \
	X(retries, "transfers tried again or continued")                                           \
	X(recovered, "records found at start")                                                     \
	X(puts_packed, "of puts_stored, compressed")                                               \
	X(packed_saved_bytes, "bytes that was shorter")                                            \
	X(unpacked, "of hits, decompressed")                                                       \
	X(unpack_failures, "records that hold and cannot be decompressed")                         \
	X(torn, "records found at start whose bytes do not hold")                                  \
	X(recovered_scans, "segments read record by record at start")                              \
	X(recovery_ms, "time that took")                                                           \
	X(charged_bytes, "bytes of disk taken, counted from the largest each segment may become")  \
	X(records, "records in the index")                                                         \
	X(transfers_lost, "transfers the kernel has not given back, with their buffers")           \
	X(transfers_out, "transfers the kernel has, those that are lost too")

#define STORE_STAT_(name, help) STORE_STAT_##name,
enum store_stat { STORE_STATS(STORE_STAT_) STORE_STAT_COUNT };
#undef STORE_STAT_

struct store;

void store_options_default(struct store_options *ret_options);
/* Bounds of each, and of one to another. -SKVQ_EINVAL. */
int store_options_check(const struct store_options *options, struct why *why);
/* capacity_bytes and write_bytes_per_day of a store that is open. Less capacity than it takes: the oldest
 * segments go, one after the other. -SKVQ_EINVAL, and nothing changed: more than it was opened with. */
int store_limit(struct store *store, uint64_t capacity_bytes, uint64_t write_bytes_per_day,
		struct why *why);
/* Whether that would be taken. */
int store_limit_check(const struct store *store, uint64_t capacity_bytes, struct why *why);
/* What the io for such a store must be able to hold. */
uint32_t store_files_max(const struct store_options *options);
uint32_t store_io_depth(const struct store_options *options);

/* Finds what is there, by reading; waits for that. The io is the store's from here on, also when
 * it fails: -SKVQ_EINVAL, -SKVQ_ENOMEM, -SKVQ_EIO. */
int store_open(const struct store_options *options, struct spill_io *io, struct store **ret_store,
	       struct why *why);
/* Tells every waiting callback -SKVQ_ESTATE; waits a moment for what is out and syncs. What the
 * kernel does not give back by then is left behind. NULL is fine. */
void store_close(struct store *store);

struct tier *store_tier(struct store *store);
int store_event_fd(struct store *store);
void store_pump(struct store *store);
/* Until the next pump is due if nothing happens; UINT32_MAX: never. */
uint32_t store_wait_ms(struct store *store);
/* The io's own wait, then a pump: for tests and tools. */
void store_step(struct store *store, uint32_t timeout_ms);

/* fn(ctx, 0) when all puts that were answered before are durable; -SKVQ_EIO: a sync of some of them
 * failed, once and for all. Puts are refused meanwhile. One at a time: -SKVQ_EBUSY. */
int store_flush(struct store *store, tier_put_fn fn, void *ctx);

/* Reads records and checks them, at most so many bytes until it is called again. */
void store_scrub(struct store *store, uint64_t bytes);

/* A record, for people. A place in the index is a number; 0 is the start, and the end. It is of the index as it
 * is now: records that are rescued meanwhile, or evicted, are told twice or not at all. */
struct store_record {
	struct tier_key key;
	uint64_t position;
	uint64_t bytes; /* of disk */
};
/* Up to n records from *place on, which is moved; of one namespace (tier_key.ns), NULL: all. Looks at a
 * bounded number of entries, so that fewer than n need not be the end. Returns how many. */
uint32_t store_list(struct store *store, uint64_t *place, const uint8_t *ns,
		    struct store_record *ret, uint32_t n);

#define STORE_VERIFY_DEPTH 4u
/* status 0; -SKVQ_ECORRUPT: it was not what was written and is not found any more; else the read
 * failed. bytes: of disk. */
typedef void (*store_verify_fn)(void *ctx, int status, uint64_t bytes);
/* Reads and checks the next record from *place on, which is moved. 1: fn will be called. 0: looked at
 * many without finding one, or *place is 0: there are no more. -SKVQ_EBUSY: STORE_VERIFY_DEPTH are out,
 * or buffers are short. */
int store_verify(struct store *store, uint64_t *place, const uint8_t *ns, store_verify_fn fn,
		 void *ctx);

/* name and value for i < STORE_STAT_COUNT, NULL behind. */
const char *store_stat_at(struct store *store, uint32_t i, uint64_t *ret_value);
const char *store_stat_help(enum store_stat stat);
uint64_t store_stat(struct store *store, enum store_stat stat);

#endif /* SKVQD_SPILL_STORE_H */
