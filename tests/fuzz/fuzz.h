/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h - what a fuzz target is, and how it reads its input.
 *
 * A target is one file with LLVMFuzzerTestOneInput, so that libFuzzer, AFL++ and driver.c run the
 * same code, and fuzz_seed, which makes its first inputs by the project's own writers. It aborts on
 * a finding. Each input is run from the same state. One thread.
 */
#ifndef SKVQ_TESTS_FUZZ_H
#define SKVQ_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_SEED_MAX 65536u

/* Writes the i-th seed to `at`, which has room for FUZZ_SEED_MAX. 0: there are no more. */
size_t fuzz_seed(uint32_t i, uint8_t *at);

/* Unlike assert it holds in every build, and says which promise was broken. */
#define FUZZ_CHECK(promise)                                                                        \
	do {                                                                                       \
		if (!(promise)) {                                                                  \
			(void)fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__,           \
				      #promise);                                                   \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* ---- reading: past the end everything is zero ---- */

struct fuzz_in {
	const uint8_t *at;
	size_t left;
};

static inline const uint8_t *fuzz_take(struct fuzz_in *in, size_t n)
{
	const uint8_t *at = in->at;

	in->at += n;
	in->left -= n;
	return at;
}

static inline uint8_t fuzz_u8(struct fuzz_in *in)
{
	return in->left ? *fuzz_take(in, 1) : 0;
}

static inline uint16_t fuzz_u16(struct fuzz_in *in)
{
	uint16_t low = fuzz_u8(in);

	return (uint16_t)(low | fuzz_u8(in) << 8);
}

/* A length of two bytes and so many bytes, or as many as there are. */
static inline struct fuzz_in fuzz_piece(struct fuzz_in *in)
{
	size_t n = fuzz_u16(in);
	struct fuzz_in piece = {.at = in->at, .left = n < in->left ? n : in->left};

	(void)fuzz_take(in, piece.left);
	return piece;
}

/* ---- writing seeds ---- */

struct fuzz_out {
	uint8_t *at;
	size_t n;
};

static inline void fuzz_put(struct fuzz_out *out, const void *data, size_t n)
{
	FUZZ_CHECK(n <= FUZZ_SEED_MAX - out->n);
	if (n)
		memcpy(out->at + out->n, data, n);
	out->n += n;
}

static inline void fuzz_put_u8(struct fuzz_out *out, uint8_t v)
{
	fuzz_put(out, &v, 1);
}

static inline void fuzz_put_piece(struct fuzz_out *out, const void *data, size_t n)
{
	fuzz_put_u8(out, (uint8_t)n);
	fuzz_put_u8(out, (uint8_t)(n >> 8));
	fuzz_put(out, data, n);
}

#endif /* SKVQ_TESTS_FUZZ_H */
