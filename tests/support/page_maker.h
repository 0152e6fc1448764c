/* SPDX-License-Identifier: Apache-2.0 */
/*
 * support/page_maker.h - valid pages and identities for tests that do not care what is in them.
 */
#ifndef SKVQ_TEST_PAGE_MAKER_H
#define SKVQ_TEST_PAGE_MAKER_H

#include <stdint.h>

#include <skvq/layout.h>

/* The smallest model worth having: 2 layers, 1 KV head, head_dim 16, profile "k4v4", 5 sinks. */
#define MAKER_LAYERS  2u
#define MAKER_DIM     16u
#define MAKER_SINKS   5u
#define MAKER_PROFILE "k4v4"

void maker_layout(struct skvq_layout *ret);
/* The same model in an elastic profile: 2 bits of K and V, 2 more of K. */
#define MAKER_ELASTIC "e2.1"
void maker_layout_elastic(struct skvq_layout *ret);

/* 80 tokens that differ by seed and page number. */
void maker_tokens(uint32_t seed, uint32_t page, int32_t ret[SKVQ_PAGE_TOKENS]);

/* A page that passes skvq_page_check; at has room for skvq_layout_page_bytes(l, position). Codes
 * depend on seed. */
void maker_page(const struct skvq_layout *l, uint32_t position, const int32_t *tokens,
		uint32_t seed, void *at);

/* A memfd of that size, sealed GROW|SHRINK; aborts on failure. */
int maker_memfd(uint64_t bytes, int seals);

#endif /* SKVQ_TEST_PAGE_MAKER_H */
