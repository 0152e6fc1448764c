/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/index.h - from (parent page, 80 tokens) to the page that holds them, in one namespace.
 *
 * The hash only finds candidates. A page is found if its parent is the very page asked for and its
 * tokens are equal; that the namespace is equal holds because each has its own index. Page digests
 * are not the key: hashing 328 bytes with SHA-256 on every match step costs more than the rest of
 * the match, and a proof by comparison is needed anyhow.
 *
 * The hash is multilinear with random 64-bit keys (Lemire and Kaser, "Strongly universal string
 * hashing is fast"): for any two different inputs the chance of a collision is 2^-32 whatever a
 * client chooses, so that chains cannot be grown on purpose. Loop thread only.
 */
#ifndef SKVQD_CACHE_INDEX_H
#define SKVQD_CACHE_INDEX_H

#include <stdint.h>

#include "mem/page.h"

#define INDEX_WORDS (2u + SKVQ_PAGE_TOKENS) /* parent slot, parent generation, tokens */

/* A seam: tests put in a hash that collides. */
typedef uint32_t (*index_hash_fn)(const uint64_t keys[INDEX_WORDS + 1],
				  const uint32_t words[INDEX_WORDS]);

struct index {
	uint32_t *buckets; /* slot + 1 of the first page; 0: empty, as fresh memory is */
	uint32_t mask;
	uint64_t *collisions; /* counts candidates of equal hash that were another page */
	index_hash_fn hash;
	uint64_t keys[INDEX_WORDS + 1];
};

uint32_t index_hash(const uint64_t keys[INDEX_WORDS + 1], const uint32_t words[INDEX_WORDS]);

/* Sized for the table's slots once. keys come from getrandom; hash NULL: index_hash. collisions is
 * borrowed. -SKVQ_ENOMEM, -SKVQ_ESYS. */
int index_init(struct index *index, uint32_t slots, index_hash_fn hash, uint64_t *collisions);
void index_fini(struct index *index); /* a zeroed index is fine */

/* parent NULL: a first page. A page in any state but free may be found, the caller looks. NULL if
 * there is none. */
struct page *index_find(struct index *index, const struct page_table *table,
			const struct page *parent, const int32_t tokens[SKVQ_PAGE_TOKENS]);
/* By page->parent and the numbers at page->tokens, which must stay what they are until index_remove. */
void index_insert(struct index *index, struct page *page);
void index_remove(struct index *index, struct page *page);

#endif /* SKVQD_CACHE_INDEX_H */
