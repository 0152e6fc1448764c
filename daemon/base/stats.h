/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/stats.h - counters and histograms, each kind in one table. Names are what StatusReply and
 * metrics show; they are never renamed. Refusals are counted by error code beside them as "refused_<code>". Loop thread
 * only: jobs report through their done().
 */
#ifndef SKVQD_BASE_STATS_H
#define SKVQD_BASE_STATS_H

#include <stdint.h>

#define STATS_TABLE(X)                                                                             \
	X(connections_accepted, "connections taken")                                               \
	X(connections_refused, "connections turned away at connections_max")                       \
	X(connections_denied, "connections of users who are of no tenant, turned away")            \
	X(connections_piled_up, "connections closed because their replies were not read")          \
	X(protocol_errors, "connections closed for a broken frame or descriptor count")            \
	X(requests, "requests decoded")                                                            \
	X(requests_refused, "requests answered with an error; by code in refused_*")               \
	X(matches, "match requests served")                                                        \
	X(matches_cut, "matches made shorter by pins_max or the frame bound")                      \
	X(tokens_asked, "tokens given to match")                                                   \
	X(tokens_matched, "tokens of the pages match pinned")                                      \
	X(page_hits, "pages match pinned")                                                         \
	X(publishes, "publish requests answered with a page")                                      \
	X(publishes_existed, "of these, an equal page was there")                                  \
	X(publishes_joined, "of these, an equal page was just being copied")                       \
	X(bytes_copied, "bytes copied out of staging into pages")                                  \
	X(pages_safe, "copied pages whose keys are kept in 8 bits: see skvqctl errors")            \
	X(page_check_failures, "copied pages that failed their check")                             \
	X(evictions, "pages dropped to make room")                                                 \
	X(bytes_evicted, "bytes of these pages")                                                   \
	X(evictions_lost, "of these, pages that are not on disk either")                           \
	X(sheds, "refinements given up to make room")                                              \
	X(bytes_shed, "bytes of these")                                                            \
	X(refills, "refinements that came back with a publish")                                    \
	X(unrefines, "refinements that engines let go of")                                         \
	X(scrubbed, "pages in memory checked again")                                               \
	X(scrub_failures, "of these, pages that were not what had been published; nobody finds them")   \
	X(spills, "pages written to disk")                                                         \
	X(bytes_spilled, "bytes of these pages")                                                   \
	X(spills_failed, "pages the disk did not take in the end")                                 \
	X(restores, "pages read back from disk")                                                   \
	X(bytes_restored, "bytes of these pages")                                                  \
	X(restores_failed, "pages on disk that did not come back: late, lost or bad")              \
	X(restore_check_failures, "of these, pages that were not what had been published")         \
	X(restores_declined, "pages on disk not asked for: too slow for the engine")               \
	X(restores_refused, "pages on disk not asked for: no room, or too many out")               \
	X(tokens_restored, "tokens matched that came from disk, of tokens_matched")                \
	X(prefetches, "prefetch requests served")                                                  \
	X(listeners, "connections that asked for events")                                          \
	X(pages_returned, "pages published that had been dropped not long before")                 \
	X(pages_taken_over, "pages found in arenas that the daemon before has left")               \
	X(takeover_check_failures, "pages left there that were not what had been published")       \
	X(unpins, "pins given back by request")                                                    \
	X(pins_dropped, "pins that ended with their connection")                                   \
	X(stale_handles, "handles whose generation has passed")                                    \
	X(namespaces_created, "namespaces made")                                                   \
	X(namespaces_dropped, "namespaces dropped to make room for another")                       \
	X(index_collisions, "pages with an equal hash that were not the page looked for")          \
	X(calibrations_stored, "calibration files taken in")                                      \
	X(calibrations_replaced, "of these, in place of another")                                  \
	X(calibrations_given, "calibration files handed to clients")                               \
	X(holes_punched, "ranges given back that readers had faulted in")                          \
	X(punch_failures, "ranges the kernel did not take back at once")

#define STATS_ENUM_(name, help) STAT_##name,
enum stats_id { STATS_TABLE(STATS_ENUM_) STAT_COUNT };
#undef STATS_ENUM_

#define STATS_CODES 96u /* of skvq/error.h */

/* The end of a name is the unit. */
#define STATS_HISTOGRAMS(X)                                                                        \
	X(match_us, "of matches that were answered, with what they waited for the disk")           \
	X(publish_us, "of publish requests that were answered, each of 1 to 1,024 pages")          \
	X(restore_us, "from asking the disk for a page until it was there and checked")            \
	X(return_gap_ms, "from the eviction of a page until it was published or read back")

#define STATS_ENUM_(name, help) HISTOGRAM_##name,
enum stats_histogram_id { STATS_HISTOGRAMS(STATS_ENUM_) HISTOGRAM_COUNT };
#undef STATS_ENUM_

/* Bucket i: above 2^(i - 1) up to 2^i; the first from 0, the last also all that is more. */
#define STATS_BUCKETS 32u

struct stats_histogram {
	uint64_t n[STATS_BUCKETS];
	uint64_t sum; /* of the values */
};

struct stats {
	uint64_t n[STAT_COUNT];
	uint64_t refused[STATS_CODES];
	struct stats_histogram histogram[HISTOGRAM_COUNT];
};

void stats_record(struct stats *stats, enum stats_histogram_id id, uint64_t value);
const char *stats_histogram_name(enum stats_histogram_id id);
const char *stats_histogram_help(enum stats_histogram_id id);

/* Counts a refusal with a positive or negative code. */
void stats_refused(struct stats *stats, int code);

/* "requests" etc. for i < STAT_COUNT, then "refused_einval"...: every name exactly once, NULL at
 * the end. *ret_value is filled with each. For listing. */
const char *stats_at(const struct stats *stats, uint32_t i, uint64_t *ret_value);
/* What the i-th of them counts. */
const char *stats_help(uint32_t i);

/* "SKVQ_EPINS" for either sign, "SKVQ_OK" for 0, "unknown" else. */
const char *err_name(int code);

#endif /* SKVQD_BASE_STATS_H */
