/* SPDX-License-Identifier: Apache-2.0 */
/*
 * round.h - some seconds of one theme of faults on one folder, and what came of them.
 */
#ifndef SKVQ_BENCH_CHAOS_ROUND_H
#define SKVQ_BENCH_CHAOS_ROUND_H

#include "chaos.h"

/* Faults that were injected, by kind; a kind's name is never changed. */
#define FAULTS(X)                                                                                  \
	X(daemon_kill)            /* SIGKILL at any time */                                        \
	X(daemon_term)            /* SIGTERM, and a restart when it has ended */                   \
	X(daemon_crash_point)     /* ended itself at a named point */                              \
	X(daemon_pause)           /* SIGSTOP for a moment */                                       \
	X(client_kill)            /* SIGKILL at any time */                                        \
	X(client_kill_holding)    /* right after it was given pins */                              \
	X(client_kill_in_publish) /* right after it sent a publish */                              \
	X(client_stop)            /* SIGSTOP with pins, for the rest of the round */               \
	X(client_pause)           /* SIGSTOP for a moment */                                       \
	X(damage_flip)            /* to segment files while no daemon runs: bits */                \
	X(damage_truncate)                                                                         \
	X(damage_garbage) /* a block of noise */                                                   \
	X(damage_remove)                                                                           \
	X(damage_copy) /* blocks of another segment */                                             \
	X(io_error)    /* EIO, ENOSPC from the io */                                               \
	X(io_again)                                                                                \
	X(io_short)                                                                                \
	X(io_torn)                                                                                 \
	X(io_flip)                                                                                 \
	X(io_delay)                                                                                \
	X(io_lost)                                                                                 \
	X(disk_full)       /* rounds on a file system smaller than capacity_bytes */               \
	X(disk_small)      /* rounds with little capacity_bytes */                                 \
	X(write_budget)    /* rounds with next to no write budget */                               \
	X(memory_pressure) /* rounds whose ram_max is near what is pinned */

#define FAULT_ENUM_(name) FAULT_##name,
enum fault { FAULTS(FAULT_ENUM_) FAULT_COUNT };
#undef FAULT_ENUM_

/* Of the daemons' own counters, as far as they could be asked before they ended. */
#define SEEN(X)                                                                                    \
	X(restores)                                                                                \
	X(spills) X(evictions) X(evictions_lost) X(restore_check_failures) X(store_crc_failures)

#define SEEN_ENUM_(name) SEEN_##name,
enum seen { SEEN(SEEN_ENUM_) SEEN_COUNT };
#undef SEEN_ENUM_

struct totals {
	uint64_t faults[FAULT_COUNT];
	uint64_t seen[SEEN_COUNT];
	uint64_t lives;           /* of daemons */
	uint64_t leaks, hangs;    /* hangs: of the parent's watchdog and of daemons */
	uint64_t daemon_failures; /* ended by themselves, or with a wrong status */
	uint64_t client_failures;
};

struct round_config {
	const char *bin;    /* folder of skvqd and skvqd-faults */
	const char *folder; /* where a folder of its own is made */
	uint32_t clients;
	uint64_t ms;
	uint64_t anon_bytes; /* bound of a daemon's anonymous memory */
	const char *faults;  /* for skvqd-faults, instead of the theme's rates; NULL: the theme's */
	bool lie;            /* some clients publish wrong bytes */
	bool may_mount;      /* a small tmpfs, in a mount namespace of ours */
};

extern const uint32_t n_themes;
const char *theme_name(uint32_t theme);
extern volatile bool interrupted; /* ends a round early */

/* Adds to totals; counters of operations are in shared. -1: could not run, told on stderr. */
int round_run(const struct round_config *config, uint32_t theme, uint64_t seed,
	      struct shared *shared, struct totals *totals);

#endif /* SKVQ_BENCH_CHAOS_ROUND_H */
