/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chaos.h - a daemon, many clients, and everything that can go wrong between them, by seed.
 *
 * main.c runs rounds: each has a theme of faults, a folder, a daemon that may die many times, and
 * clients (client.c) as processes of their own, which check every byte of every page they have
 * pinned against what its tokens say it is (pages.c). What they share with the parent is one
 * struct shared.
 */
#ifndef SKVQ_BENCH_CHAOS_H
#define SKVQ_BENCH_CHAOS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <skvq/client.h>
#include <skvq/layout.h>

#include "made_up.h"

#define CLIENTS_MAX 64u
#define MODELS      2u
#define DEPTH_MAX   12u    /* pages of a sequence */
#define TIMEOUT_MS  10000u /* of one call, on a busy machine */
#define HANG_MS     (2 * TIMEOUT_MS)

uint64_t now_ms(void);
uint64_t mix64(uint64_t x);                       /* a bijection that spreads bits */
uint64_t draw(uint64_t *state);                   /* SplitMix64 */
uint32_t draw_below(uint64_t *state, uint32_t n); /* 0..n-1 */

/* ---- pages.c: what every byte must be ---- */

extern struct made_up_model models[MODELS];

/* Sequences are paths in a tree. Two of its branches differ in as little as one token, and equal
 * pages of tokens stand at many places: only the parent tells them apart. */
struct path {
	uint32_t model, n;
	uint64_t seed[DEPTH_MAX]; /* of each page's bytes: model and all tokens up to its end */
	int32_t tokens[DEPTH_MAX * SKVQ_PAGE_TOKENS];
};

int models_init(void);
/* Mostly trodden ways; the end of some is the client's own. */
void path_draw(struct path *ret, uint32_t client, uint64_t *random);
/* The i-th page as an engine would publish it. */
void path_page(const struct path *path, uint32_t i, void *at);
/* Bytes of a shared page that are not what they must be. parent: the shared page before it. */
uint64_t path_wrong(const struct path *path, uint32_t i, bool base_only, const uint8_t *identity,
		    const uint8_t *parent, const uint8_t *page);

/* ---- client.c ---- */

#define OPS(X)                                                                                     \
	X(ATTACH, attaches)                                                                        \
	X(MATCH, matches)                                                                          \
	X(PUBLISH, publishes)                                                                      \
	X(CHECK, page_checks)                                                                      \
	X(UNPIN, unpins)                                                                           \
	X(PREFETCH, prefetches)                                                                    \
	X(PING, pings)                                                                             \
	X(CLOSE, closes)

#define OP_ENUM_(name, text) OP_##name,
enum op { OPS(OP_ENUM_) OP_COUNT };
#undef OP_ENUM_

/* Where a client is to kill itself. */
enum death { DEATH_NONE, DEATH_HOLDING, DEATH_IN_PUBLISH };

/* Written by the client in it, but for death; counters outlive it. */
struct slot {
	_Atomic uint64_t ops[OP_COUNT];
	_Atomic uint64_t since_ms; /* when the present operation began; 0: none */
	_Atomic uint32_t op;
	_Atomic uint32_t death;
	_Atomic uint64_t bytes_checked, wrong_bytes, wrong_pages, hangs, bad_answers, refused,
	    pages_matched, pages_published;
};

struct shared {
	_Atomic bool stop;
	struct slot slots[CLIENTS_MAX];
};

#define CLIENT_KEEPS                                                                               \
	1u             /* stops itself (SIGSTOP) when it holds pins, and looks at them afterwards */
#define CLIENT_LIES 2u /* publishes other bytes than it should */

/* The whole life of a client process; returns its exit status. flags: CLIENT_*. */
int client_run(struct shared *shared, uint32_t slot, const char *socket, uint64_t seed,
	       uint32_t flags);

/* ---- daemon.c ---- */

struct life_counts {
	uint64_t errors, again, shorts, torn, flips, delays, lost; /* as spill/faults.h has them */
};

struct daemon_run {
	const char *bin; /* folder of skvqd and skvqd-faults */
	char folder[96]; /* of socket, log and store */
	char socket[112];
	char store[112];
	pid_t pid; /* 0: not running */
	int counts_fd;
	struct life_counts *counts; /* of the life that runs */
	uint32_t fds_other;         /* descriptors that are neither sockets, pages nor segments */
};

#define FAULTS_BYTES 512 /* of SKVQD_FAULTS */

/* Starts it and waits until it answers; 0, or -1 after a sentence on stderr. *ret_status is how it
 * ended if it did before that. faults: SKVQD_FAULTS, or NULL for skvqd itself. */
int daemon_start(struct daemon_run *d, const char *const *args, const char *faults,
		 int *ret_status);
/* True if it has ended; takes the status. */
bool daemon_ended(struct daemon_run *d, int *ret_status);
/* Sends the signal and waits. False: it did not end in time, and was killed. */
bool daemon_stop(struct daemon_run *d, int sig, uint64_t wait_ms, int *ret_status);
/* The last lines of its log to stderr. */
void daemon_log_tail(const struct daemon_run *d);

/* ---- leaks.c: with all clients gone ---- */

struct leak_bounds {
	uint64_t disk_bytes, anon_bytes;
};
/* Number of things left over, each told on stderr. Waits a few seconds for them to go. */
uint32_t leaks_of(struct daemon_run *d, const struct leak_bounds *bounds);
/* Bytes that the files of the store take. */
uint64_t store_bytes(const struct daemon_run *d);
void count_baseline(struct daemon_run *d);

/* ---- damage.c: to segment files, while no daemon has them ---- */

#define DAMAGES(X)                                                                                 \
	X(FLIP, flip) X(TRUNCATE, truncate) X(GARBAGE, garbage) X(REMOVE, remove) X(COPY, copy)
#define DAMAGE_ENUM_(name, text) DAMAGE_##name,
enum damage { DAMAGES(DAMAGE_ENUM_) DAMAGE_COUNT };
#undef DAMAGE_ENUM_

/* One kind, to one file. False if there was nothing to damage. */
bool damage_one(const struct daemon_run *d, enum damage kind, uint64_t *random);

#endif /* SKVQ_BENCH_CHAOS_H */
