/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seeded.h - randomness that can be repeated. The seed is 1, or SKVQ_SEED from the environment, and
 * is printed once, so that a failure in a log can be run again. Not for threads.
 */
#ifndef SKVQ_TESTS_SEEDED_H
#define SKVQ_TESTS_SEEDED_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct seeded {
	uint64_t state;
};

static inline struct seeded seeded_init(void)
{
	const char *env = getenv("SKVQ_SEED");
	struct seeded s = {env ? strtoull(env, NULL, 0) : 1};

	printf("SKVQ_SEED=%llu\n", (unsigned long long)s.state);
	return s;
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t seeded_u64(struct seeded *s)
{
	uint64_t z = s->state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0..n-1 */
static inline uint32_t seeded_below(struct seeded *s, uint32_t n)
{
	return (uint32_t)(((seeded_u64(s) >> 32) * n) >> 32);
}

/* (0, 1) */
static inline double seeded_unit(struct seeded *s)
{
	return ((double)(seeded_u64(s) >> 12) + 0.5) * 0x1p-52;
}

static inline float seeded_gauss(struct seeded *s)
{
	double r = sqrt(-2.0 * log(seeded_unit(s)));

	return (float)(r * cos(6.283185307179586 * seeded_unit(s)));
}

static inline float seeded_laplace(struct seeded *s)
{
	double u = seeded_unit(s) - 0.5;

	return (float)((u < 0 ? 1.0 : -1.0) * log(1.0 - 2.0 * fabs(u)));
}

#endif /* SKVQ_TESTS_SEEDED_H */
