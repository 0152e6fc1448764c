/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <stdlib.h>
#include <time.h>

#define ROUND_NS 15e6 /* long against the clock's step and a cold start */

double now_ns(bool wall)
{
	struct timespec t;

	(void)clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double run(struct contestant *c, uint32_t n, bool wall)
{
	double start = now_ns(wall);

	for (uint32_t i = 0; i < n; i++) {
		c->unit(c->user, c->next);
		c->next = (c->next + 1) % c->n_units;
	}
	return (now_ns(wall) - start) / n;
}

void measure(struct contestant *c, uint32_t n, uint32_t rounds, bool wall)
{
	for (uint32_t i = 0; i < n; i++) {
		if (c[i].cold)
			(void)run(&c[i], c[i].n_units, wall);
		c[i].cold = false;
		double ns = run(&c[i], 1, wall);

		/* A unit comes back when all others, and everybody else's, have been read. */
		c[i].per_round = ns < ROUND_NS ? (uint32_t)(ROUND_NS / ns) + 1 : 1;
		if (c[i].per_round > c[i].n_units)
			c[i].per_round = c[i].n_units;
	}
	for (uint32_t r = 0; r < rounds; r++)
		for (uint32_t i = 0; i < n; i++)
			c[i].ns[r] = run(&c[i], c[i].per_round, wall);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct spread spread(double *values, uint32_t n)
{
	qsort(values, n, sizeof *values, by_value);
	return (struct spread){.median =
				   n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2,
			       .min = values[0],
			       .max = values[n - 1]};
}

struct spread spread_of(const struct contestant *c, uint32_t rounds)
{
	double values[ROUNDS_MAX];

	for (uint32_t r = 0; r < rounds; r++)
		values[r] = c->ns[r];
	return spread(values, rounds);
}

struct spread ratio_of(const struct contestant *a, double weight_a, const struct contestant *b,
		       double weight_b, uint32_t rounds)
{
	double values[ROUNDS_MAX];

	for (uint32_t r = 0; r < rounds; r++)
		values[r] = (a->ns[r] / weight_a) / (b->ns[r] / weight_b);
	return spread(values, rounds);
}
