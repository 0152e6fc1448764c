/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-attention: our attend() and ggml's flash attention over the same keys and values.
 *
 * main.c    what is measured, and the options
 * measure.c rounds: each contestant in turn, so that a busy machine hurts all of them alike
 * store.c   ours: pages in a skvqd of the bench's own, sequences that map them, the plugin's attend
 * peer.c    llama.cpp's: caches in its layout, GGML_OP_FLASH_ATTN_EXT
 * read.c    how fast memory can be read at all
 * report.c  a table for people, one JSON object, a plot
 *
 * Keys and values repeat after BASE_TOKENS tokens, so that memory is filled by copying; each copy
 * is memory of its own. Nothing here is fast or slow by the values.
 */
#ifndef BENCH_ATTENTION_H
#define BENCH_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <skvq/format.h>
#include <skvq/plugin.h>

#define BASE_PAGES      8u
#define BASE_TOKENS     (BASE_PAGES * SKVQ_PAGE_TOKENS)
#define ROUNDS_MAX      64u
#define CONTESTANTS_MAX 12u

/* Bytes that each contestant has and goes through: beyond any cache we know of, if not told
 * otherwise. */
extern size_t working_set;

/* One attention layer, in the terms of both sides. */
struct shape {
	uint32_t dim;   /* of a head, K and V                                                */
	uint32_t group; /* query heads a KV head                                             */
	uint32_t heads; /* KV heads                                                          */
	uint32_t tokens;
	uint32_t rows; /* query tokens: the last ones                                        */
};

/* Gaussian, [BASE_TOKENS][dim]: head h of layer l has at position t row base_row(t, h, l). */
struct base {
	uint32_t dim;
	float *k, *v;
	float *q; /* [rows][heads * group][dim] */
};

static inline uint32_t base_page(uint32_t page, uint32_t head, uint32_t layer)
{
	return (page + head + layer) % BASE_PAGES;
}

static inline uint32_t base_row(uint32_t t, uint32_t head, uint32_t layer)
{
	return base_page(t / SKVQ_PAGE_TOKENS, head, layer) * SKVQ_PAGE_TOKENS +
	       t % SKVQ_PAGE_TOKENS;
}

void base_make(struct base *b, const struct shape *s);
void base_free(struct base *b);

/* --- measure.c ------------------------------------------------------------------------------- */

/* Somebody who can do a unit of work; units differ in the memory they read. */
struct contestant {
	char name[32];
	void (*unit)(void *user, uint32_t i);
	void *user;
	uint32_t n_units, next;
	uint32_t per_round;    /* units timed together                                          */
	bool cold;             /* its memory must be read once before it counts: page faults    */
	double ns[ROUNDS_MAX]; /* of one unit, by round                                      */
};

struct spread {
	double median, min, max;
};

double now_ns(bool wall);
/* Rounds of all contestants in turn. wall: else the calling thread's CPU time, which is right for
 * one thread and does not count what else the machine is doing. */
void measure(struct contestant *c, uint32_t n, uint32_t rounds, bool wall);
struct spread spread_of(const struct contestant *c, uint32_t rounds);
/* By round: how many times longer a takes than b, each of its unit divided by its weight. */
struct spread ratio_of(const struct contestant *a, double weight_a, const struct contestant *b,
		       double weight_b, uint32_t rounds);

/* --- team: ggml's threads, for all contestants alike (peer.c) ------------------------------- */

struct team;
typedef void (*team_fn)(void *user, uint32_t ith, uint32_t nth);
struct team *team_new(uint32_t n_threads);
void team_free(struct team *t);
uint32_t team_threads(const struct team *t);
void team_run(struct team *t, team_fn fn, void *user);

/* --- store.c: ours ---------------------------------------------------------------------------- */

struct store;
/* A skvqd with tokens of n_seqs different sequences (same_tokens: of one, opened n_seqs times),
 * each of n_layers layers, and a session that has attached to them. 0 for n_seqs: as many as fill
 * working_set; for n_layers: a sensible number. Exits with a sentence if it cannot. */
struct store *store_open(const struct shape *s, const char *profile, const struct base *b,
			 uint32_t n_layers, uint32_t n_seqs, bool same_tokens);
void store_close(struct store *st);
uint32_t store_layers(const struct store *st);
uint32_t store_seqs(const struct store *st);
double store_bytes(const struct store *st); /* one layer of one sequence */
uint64_t store_total(const struct store *st);
/* Contestants: unit i is layer i % layers of sequence i / layers. */
void store_contestant(struct store *st, struct team *t, const char *name, struct contestant *c);
/* Has each thread add the CPU time it spends in attend() to busy[ith]. */
void store_busy(struct contestant *c, double *busy);
/* Unit i is layer i of all sequences: in one call, or one after another. */
void store_batch_contestant(struct store *st, struct team *t, bool one_call, const char *name,
			    struct contestant *c);
/* Output of the last unit: [rows][heads * group][dim]. */
const float *store_out(const struct store *st);

/* --- peer.c: ggml ----------------------------------------------------------------------------- */

struct peer;
enum peer_type { PEER_F16, PEER_Q8_0, PEER_Q4_0, PEER_TYPES };
extern const char *const peer_names[PEER_TYPES];
struct peer *peer_open(const struct shape *s, enum peer_type type, const struct base *b);
void peer_close(struct peer *p);
/* Unit i is layer i. */
void peer_contestant(struct peer *p, struct team *t, struct contestant *c);
const float *peer_out(const struct peer *p);

/* --- read.c ----------------------------------------------------------------------------------- */

struct reader;
struct reader *reader_new(struct team *t);
void reader_free(struct reader *r);
void reader_contestant(struct reader *r, struct contestant *c);
double reader_unit_bytes(const struct reader *r);

/* --- report.c --------------------------------------------------------------------------------- */

void report_open(bool json);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void put_number(const char *key, double value);
void put_text(const char *key, const char *value);
/* Prints the object if asked to, and makes the plot if plot is not NULL. Exit status. */
int report_close(const char *plot);

_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *take(size_t bytes);       /* zeroed, 64-byte aligned, or die */
void *take_large(size_t bytes); /* the same, not zeroed            */

#endif
