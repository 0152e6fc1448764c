/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check.h - what the parts of skvq-check share (after dav1d's checkasm): the tier under test beside
 * the reference, inputs, and memory between guard pages. One thread.
 */
#ifndef SKVQ_TESTS_CHECK_H
#define SKVQ_TESTS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <skvq/kernels.h>

#include "../unit/seeded.h"

struct check_tier {
	struct skvq_kernels k;
	/* SKVQ_ATTN_ERROR_MAX of kernels.h, or 0: bit for bit. Codes, halves and transforms are
	 * always bit for bit. */
	float attn_bound;
};

struct check {
	const struct check_tier *tier;
	struct skvq_kernels ref;
	struct seeded rng;
	const char *function; /* being checked; with `where`, what a crash report names */
	char where[192];
	unsigned long n_checks, n_failed;
};

/* Notes a case; the first failures of each function are printed. */
__attribute__((format(printf, 3, 4))) void check_that(struct check *c, bool ok, const char *fmt,
						      ...);
/* Compares two arrays bit for bit; any NaN equals any NaN. */
void check_floats(struct check *c, const float *have, const float *want, size_t n,
		  const char *what);
void check_bytes(struct check *c, const void *have, const void *want, size_t n, const char *what);
void check_near(struct check *c, const float *have, const float *want, size_t n, float bound,
		const char *what);

/* guard.c: zeroed memory with an unreadable page right after its last byte (GUARD_AFTER; start
 * aligned as bytes allows) or right before its first one (GUARD_BEFORE). */
enum guard_side { GUARD_AFTER, GUARD_BEFORE };
void *guard_new(size_t bytes, enum guard_side side);
void guard_read_only(void *p, size_t bytes); /* a write is then a crash, as beyond the end */
void guard_free(void *p, size_t bytes);

/* inputs.c: kinds of vectors, from ordinary to hostile. */
#define INPUT_KINDS 12u
const char *input_name(unsigned kind);
void input_fill(struct seeded *rng, unsigned kind, float *x, size_t n);
/* A codec drawn from all profiles, widths and dimensions; name holds at least 64 bytes. */
void input_codec(struct seeded *rng, int is_v, uint32_t dim, struct skvq_codec *ret, char *name);
extern const uint32_t input_dims[];
#define INPUT_DIMS 9u
/* Any of map and matrices, of random numbers, in read-only memory between guards. */
void input_transform(struct seeded *rng, uint32_t dim, enum guard_side side,
		     struct skvq_transform *ret);
void input_transform_free(struct skvq_transform *t, uint32_t dim);

/* check_codec.c, check_attention.c */
void check_f16_to_f32(struct check *c);
void check_f32_to_f16(struct check *c);
void check_bf16_to_f32(struct check *c);
void check_f32_to_bf16(struct check *c);
void check_to_stored(struct check *c);
void check_from_stored(struct check *c);
void check_query_to_stored(struct check *c);
void check_tile_from_stored(struct check *c);
void check_encode_tile(struct check *c);
void check_decode_tile(struct check *c);
void check_attn_pages(struct check *c);
void check_attn_rows(struct check *c);
void check_attn_finish(struct check *c);

/* bench.c: name is a function or NULL for all; json prints ", \"key\": value" pairs. */
void bench(const struct check_tier *tier, const char *function, bool json);

#endif /* SKVQ_TESTS_CHECK_H */
