/* SPDX-License-Identifier: Apache-2.0 */
/*
 * made_up.h - pages of made-up codes that pass skvq_page_check, for benches that have no model.
 */
#ifndef SKVQ_BENCH_MADE_UP_H
#define SKVQ_BENCH_MADE_UP_H

#include <stdbool.h>
#include <stdint.h>

#include <skvq/client.h>
#include <skvq/layout.h>

/* A model that nobody runs: what a client needs to open its namespace. Stays where it is, its
 * identity points into it. */
struct made_up_model {
	struct skvq_layout layout;
	struct skvq_client_identity identity;
	uint8_t digest[32]; /* of weights and tokenizer: another one is another model */
	uint8_t bits[SKVQ_LAYERS_MAX][2];
};

/* profile and numerics are borrowed for the model's life. Negative: as skvq_profile_parse or
 * skvq_layout_init. */
int made_up_model_init(struct made_up_model *m, const struct skvq_geometry *geo,
		       const char *profile, const char *numerics, const uint8_t digest[32]);

/* Fills codes, parameters, refinement and, at position 0, the sidecar, all from the seed. Padding,
 * header and tokens stay as they are. Not for 3-bit codes of a dimension that is no multiple of 32,
 * whose planes have unused bits. */
void made_up_fill(const struct skvq_layout *l, uint32_t position, uint64_t seed, void *page);

/* Bytes of a shared page that are not what was published; want: the page as it was published,
 * parent: the shared page before it, or NULL. base_only: its refinement is not looked at. */
uint64_t made_up_wrong(const struct skvq_layout *l, const void *want, const uint8_t *page,
		       bool base_only, const uint8_t *identity, const uint8_t *parent);

/* xorshift64; *state is not 0. */
uint64_t made_up_random(uint64_t *state);

#endif /* SKVQ_BENCH_MADE_UP_H */
