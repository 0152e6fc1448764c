/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.h - who asks for which pages, in which order. A page is a number, the same wherever tokens
 * and all before them are the same; a request is the chain of full pages its prompt begins with.
 */
#ifndef SKVQ_BENCH_TRACE_H
#define SKVQ_BENCH_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct request {
	uint64_t first; /* of its pages, in trace->pages */
	uint64_t time_ms; /* when it comes; 0 in traffic that is made up */
	uint32_t n;
	uint32_t n_all; /* with those that its answer fills, behind the others; n without answers */
	uint32_t session;    /* whose turn it is; 0 in traces from files, which do not tell */
	uint32_t tokens;     /* of the prompt; in traces from files of its full pages */
	uint32_t tokens_all; /* with the answer */
};

struct trace {
	char name[64];
	struct request *requests;
	uint32_t n_requests;
	uint32_t *pages;
	uint64_t n_pages;   /* over all requests, answers too */
	uint32_t footprint; /* distinct pages: 0..footprint-1, a page after those before it */
};

/* A trace in Mooncake's format: one JSON object a line, with input_length and hash_ids of blocks of
 * block_tokens tokens. 0, or -1 after a message; the caller frees either way. */
int trace_load(const char *path, uint32_t block_tokens, struct trace *ret);
void trace_free(struct trace *trace);

/* ---- for those who make one ---- */

/* Spreads a number over 64 bits (the finalizer of SplitMix64). */
static inline uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

struct trace_maker;

struct trace_maker *trace_maker_new(struct trace *trace); /* NULL: no memory */
/* The next request begins. */
int trace_request(struct trace_maker *maker);
/* What follows is its answer. */
void trace_answer(struct trace_maker *maker);
/* Its next page; key tells it from other pages after the same ones. */
int trace_page(struct trace_maker *maker, uint64_t key);
void trace_maker_free(struct trace_maker *maker);

#endif /* SKVQ_BENCH_TRACE_H */
