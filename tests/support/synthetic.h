/* SPDX-License-Identifier: Apache-2.0 */
/*
 * support/synthetic.h - an engine for tests: a made-up model of three layers, run on the real
 * plugin. Two runs over the same tokens must give the same bits, wherever their pages are. A call
 * that fails fails the cmocka test.
 */
#ifndef SKVQ_TEST_SYNTHETIC_H
#define SKVQ_TEST_SYNTHETIC_H

#include <stdbool.h>
#include <stdint.h>

#include <skvq/client.h>
#include <skvq/plugin.h>

enum { LAYERS = 3, Q_HEADS = 6, KV_HEADS = 2, DIM = 64, TOKENS = 1200, CHUNK = 128 };

extern const skvq_api *api;
extern const uint8_t digest[32];
/* Of models registered from now on. */
extern const void *calibration;
extern uint64_t calibration_bytes;
extern const uint16_t *reorder_k, *reorder_v; /* [LAYERS][KV_HEADS][DIM] */
extern const char *profile;
/* In every second page a few channels of the second layer's keys are far larger than the rest. */
extern bool drown;
/* The layers' sliding windows, which attention is asked for with; NULL: none. */
extern const uint32_t *layer_window; /* [LAYERS] */
/* Of models registered and of sequences opened from now on. */
extern uint32_t model_flags;
extern uint32_t seq_flags;

struct run {
	skvq_session *session;
	skvq_model *model;
	skvq_seq *seq;
	int32_t tokens[TOKENS];
	uint32_t history; /* hash of all tokens so far */
	uint32_t at;
	int32_t matched;
};

/* Loads the plugin into api. False after a line on stderr. */
bool synthetic_load(const char *plugin);

uint32_t mix(uint32_t x);
void fill(float *x, uint32_t n, uint32_t seed);
/* K of one layer's token after so much history: [KV_HEADS][DIM]; and V. */
void fill_k(float *x, uint32_t layer, uint32_t position, uint32_t history);
void fill_v(float *x, uint32_t layer, uint32_t history);

void run_open_model(struct run *r, const char *socket, const char *numerics);
/* The first `shared` tokens are the same for every tail. */
void run_tokens(struct run *r, uint32_t shared, uint32_t tail);
/* A session, a model and a sequence on the first `prompt` tokens; socket NULL: embedded. */
void run_open(struct run *r, const char *socket, uint32_t shared, uint32_t tail, uint32_t prompt,
              const char *numerics);
void run_close(struct run *r);
/* Back to n tokens. */
void run_truncate(struct run *r, uint32_t n);
/* Tokens from n on are others now, the same for equal tails. */
void run_turn(struct run *r, uint32_t n, uint32_t tail);
/* One forward pass over the next n tokens; returns a hash of all attention output bits. */
uint64_t run_step(struct run *r, uint32_t n);

/* Memory of all stagings of this process, as the system counts it. */
uint64_t staging_bytes(void);
void nap_ms(long ms);
skvq_seq_info info_of(struct run *r);
/* Polls until so many pages are shared; bounded. */
skvq_seq_info wait_shared(struct run *r, uint32_t pages);
/* The first n tokens of both hold the same bits, sinks and all. */
void same_tokens(struct run *x, struct run *y, uint32_t n);

/* ---- what a daemon says of itself ---- */

struct skvq_client *observe(const char *socket); /* free with skvq_client_free */
struct skvq_client_status status_of(const char *socket);
uint64_t counter_of(const char *socket, const char *name);

#endif /* SKVQ_TEST_SYNTHETIC_H */
