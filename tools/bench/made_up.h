/* SPDX-License-Identifier: Apache-2.0 */
/*
 * made_up.h - pages of made-up codes that pass skvq_page_check, for benches that have no model.
 */
#ifndef SKVQ_BENCH_MADE_UP_H
#define SKVQ_BENCH_MADE_UP_H

#include <stdint.h>

#include <skvq/layout.h>

/* Fills codes, parameters, refinement and, at position 0, the sidecar, all from the seed. Padding,
 * header and tokens stay as they are. Not for 3-bit codes of a dimension that is no multiple of 32,
 * whose planes have unused bits. */
void made_up_fill(const struct skvq_layout *l, uint32_t position, uint64_t seed, void *page);

/* xorshift64; *state is not 0. */
uint64_t made_up_random(uint64_t *state);

#endif /* SKVQ_BENCH_MADE_UP_H */
