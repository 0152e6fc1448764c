/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/restores.h - what a tenant has asked its tier for, and how fast it comes. Each tenant's own, so
 * that one's reads neither delay another's plans nor show in them. Loop thread only.
 */
#ifndef SKVQD_CACHE_RESTORES_H
#define SKVQD_CACHE_RESTORES_H

#include <stdint.h>

struct restores {
	uint32_t n;            /* pages out */
	uint64_t bytes;        /* of these */
	uint64_t bytes_per_ms; /* measured while reads were out; never 0 */
	uint64_t since_ms, done_bytes; /* of the measurement under way */
};

void restores_init(struct restores *restores);
/* Until bytes more would be here, behind what is out already. */
uint64_t restores_estimate_ms(const struct restores *restores, uint64_t bytes);
/* The most bytes that would be here in ms. */
uint64_t restores_within(const struct restores *restores, uint64_t ms);

#endif /* SKVQD_CACHE_RESTORES_H */
