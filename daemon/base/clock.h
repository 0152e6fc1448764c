/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/clock.h - time for ages and uptimes. Nothing in the daemon frees memory by a clock (I1).
 */
#ifndef SKVQD_BASE_CLOCK_H
#define SKVQD_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Milliseconds since some point before this process, as of the kernel's last tick; never goes back. It is
 * asked for each page of a match. */
static inline uint64_t clock_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

/* Microseconds of the same clock, to the microsecond: for what is measured once a request. */
static inline uint64_t clock_us(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

#endif /* SKVQD_BASE_CLOCK_H */
