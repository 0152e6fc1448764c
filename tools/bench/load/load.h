/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.h - a daemon under the load of many engines.
 *
 * main.c takes the options and runs the phases one after the other: idle, a long prefix matched,
 * four engines that publish, engines at the pace at which they compute, engines without a pause,
 * idle. Each phase forks its clients (client.c), which time every request into histograms in shared
 * memory (struct slot), while phase.c samples the daemon (daemon.c). echo.c tells what any service
 * would take beside them. peers.c gives the requests
 * that were made to caches of other kinds; report.c prints.
 */
#ifndef SKVQ_BENCH_LOAD_H
#define SKVQ_BENCH_LOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "made_up.h"
#include "trace.h"

#define CLIENTS_MAX 64u
#define SMALL_PAGES 8u   /* a match of so many is a small request: it fits 4 KiB */
#define LONG_PAGES  512u /* of the long prefix */
#define TIMEOUT_MS  20000u
#define WINDOW      128u   /* tokens an engine computes itself, whatever is shared */
#define RUN_PAGES   8u     /* published by one request: what a prefill of 640 tokens fills */
#define PROMPT_MAX  16384u /* tokens; longer prompts are left out */

/* ---- histograms: 64 buckets an octave, so within 1.6 % ---- */

#define OCTAVES 34u /* up to 2^39 ns */
#define BUCKETS (OCTAVES * 64u)

struct histogram {
	_Atomic uint32_t n[BUCKETS];
};

void histogram_add(struct histogram *h, double us);
/* to += from */
void histogram_sum(struct histogram *to, const struct histogram *from);
uint64_t histogram_count(const struct histogram *h);
double histogram_quantile(const struct histogram *h, double q); /* us; 0 if it is empty */

/* ---- what a client did ---- */

#define KINDS(X)                                                                                   \
	X(HELLO, hello)                                                                            \
	X(ECHO, echo)                                                                              \
	X(PING, ping)                                                                              \
	X(STATUS, status)                                                                          \
	X(MATCH_SMALL, match_small)                                                                \
	X(MATCH, match)                                                                            \
	X(MATCH_512, match_512)                                                                    \
	X(PUBLISH, publish)                                                                        \
	X(UNPIN_SMALL, unpin_small)                                                                \
	X(UNPIN, unpin)

#define KIND_ENUM_(name, text) KIND_##name,
enum kind { KINDS(KIND_ENUM_) KIND_COUNT };
#undef KIND_ENUM_

extern const char *const kind_names[KIND_COUNT];
/* Ping, match of at most SMALL_PAGES pages, and their unpin. */
bool kind_is_small(enum kind kind);

#define WINDOWS 10u /* equal parts of a phase */

/* Written by the client in it alone. */
struct slot {
	struct histogram kinds[KIND_COUNT];
	struct histogram small[WINDOWS];
	_Atomic uint64_t
	    served; /* requests of the trace that are done: the first so many of the client */
	_Atomic uint64_t tokens_asked, tokens_hit, pages_published, pages_existed, bytes_late;
	_Atomic uint64_t pages_checked, pages_compared, wrong_bytes, refused, failures;
};

struct shared {
	_Atomic bool stop;
	_Atomic uint32_t ready;
	_Atomic uint64_t start_us, end_us; /* of the phase; start 0: wait */
	int echo[CLIENTS_MAX + 1];         /* a socket of each client, there from the fork on */
	struct slot slots[CLIENTS_MAX + 1];
};

/* ---- echo.c ---- */

#define ECHO_BYTES 64u /* about what a ping takes each way */

/* A process that echoes on the other ends of n sockets, which are the caller's to close by
 * echo_stop; its pid, or -1 after a sentence. */
pid_t echo_start(uint32_t n, int ret_fds[CLIENTS_MAX + 1]);
void echo_stop(pid_t pid, uint32_t n, int fds[CLIENTS_MAX + 1]);
/* There and back. False: it is gone, or takes longer than TIMEOUT_MS. */
bool echo_once(int fd);

/* ---- client.c ---- */

struct load {
	struct made_up_model model;
	struct trace trace;
	const char *socket;
	uint32_t clients;
	uint64_t seed;
	double pace; /* tokens a second that an engine computes; 0: no time passes */
};

/* What a client process does until shared->stop; clients are numbered from 0. */
typedef void (*client_fn)(const struct load *load, struct shared *shared, uint32_t number);

void client_engine(const struct load *load, struct shared *shared, uint32_t number);
/* The same prefix of LONG_PAGES pages again and again. */
void client_long_prefix(const struct load *load, struct shared *shared, uint32_t number);
/* Long prefix, hello and status ten times a second: who looks on while others are busy. */
void client_onlooker(const struct load *load, struct shared *shared, uint32_t number);
/* New pages, two runs of them in flight. */
void client_publisher(const struct load *load, struct shared *shared, uint32_t number);

/* Full pages of so many tokens but for the last `window`. */
static inline uint32_t pages_before(uint32_t tokens, uint32_t window)
{
	return tokens > window ? (tokens - window) / SKVQ_PAGE_TOKENS : 0;
}

/* Whether the client serves the request. */
static inline bool is_served_by(const struct load *load, const struct request *r, uint32_t client)
{
	return r->session % load->clients == client && r->tokens <= PROMPT_MAX;
}

/* ---- daemon.c ---- */

struct daemon_sample {
	uint64_t rss_bytes; /* without the arenas */
	uint32_t fds;
	double cpu_us; /* of all threads since the start */
};

/* Starts skvqd of that folder with a socket in the folder given; its process, or -1 after a
 * sentence. */
pid_t daemon_start(const char *bin, const char *folder, const char *socket, uint64_t ram_bytes);
/* False if it had ended before, or not with 0. */
bool daemon_stop(pid_t pid);
bool daemon_sample(pid_t pid, struct daemon_sample *ret);
/* As the kernel counts them; 0 if the daemon does not say. */
uint64_t daemon_arena_bytes(const char *socket);

/* ---- phase.c ---- */

#define SAMPLES_MAX 2048u

struct phase {
	double seconds;
	struct slot sum; /* of all clients */
	uint64_t served[CLIENTS_MAX];
	double cpu_percent; /* of one core, of the daemon */
	struct daemon_sample first,
	    last;             /* medians of the first and last fifth after the warm-up */
	double rss_slope;     /* bytes a minute after it */
	uint64_t arena_bytes; /* at its end */
	uint32_t failed;      /* clients that did not end with 0 */
};

/* Runs n clients, and onlookers beside them, for so long. False: no memory or no processes. */
bool phase_run(const struct load *load, pid_t daemon, client_fn fn, uint32_t n, bool onlooker,
	       double seconds, struct phase *ret);

/* ---- peers.c ---- */

struct peer {
	const char *name;
	double hit_rate; /* of tokens asked */
	uint64_t tokens_recomputed;
	uint64_t page_bytes, pages; /* a cache's size */
};

enum { PEER_PRIVATE_FP16, PEER_PRIVATE_FP16_ARC, PEER_PRIVATE_PAGES, PEER_SHARED_FP16, PEER_COUNT };

/* The requests that the clients served, to caches that have ram_bytes together. -1: no memory. */
int peers_run(const struct load *load, const struct phase *phase, uint64_t ram_bytes,
	      struct peer ret[PEER_COUNT]);

/* ---- report.c ---- */

struct results {
	const struct load *load;
	const char *scenario;
	uint64_t ram_bytes;
	struct phase idle_first, idle_last, attach, publish, busy, saturated;
	struct peer peers[PEER_COUNT];
};

void report_text(const struct results *r);
void report_json(const struct results *r);

#endif /* SKVQ_BENCH_LOAD_H */
