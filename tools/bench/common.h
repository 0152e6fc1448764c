/* SPDX-License-Identifier: Apache-2.0 */
/*
 * common.h - what benches share: time, quantiles, numbers on the command line.
 */
#ifndef SKVQ_BENCH_COMMON_H
#define SKVQ_BENCH_COMMON_H

#include <stddef.h>
#include <stdint.h>

/* Of CLOCK_MONOTONIC. */
double bench_now_us(void);
/* Sorts ascending. */
void bench_sort(double *values, size_t n);
/* Of sorted values, q in 0..1; 0 if there are none. */
double bench_quantile(const double *sorted, size_t n, double q);
/* The number that option --name was given, least..most, or exits with 2 after a sentence. */
uint64_t bench_number(const char *program, const char *name, const char *text, uint64_t least,
		      uint64_t most);
/* The folder of our own executable, without a slash at its end. Static. */
const char *bench_own_folder(void);

#endif /* SKVQ_BENCH_COMMON_H */
