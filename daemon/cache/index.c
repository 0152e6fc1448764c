/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <skvq/error.h>

uint32_t index_hash(const uint64_t keys[INDEX_WORDS + 1], const uint32_t words[INDEX_WORDS])
{
	uint64_t h = keys[INDEX_WORDS];

	for (uint32_t i = 0; i < INDEX_WORDS; i++)
		h += keys[i] * words[i];
	return (uint32_t)(h >> 32);
}

static uint32_t hash_of(const struct index *index, const struct page *parent,
			const int32_t tokens[SKVQ_PAGE_TOKENS])
{
	uint32_t words[INDEX_WORDS];

	words[0] = parent ? parent->slot : PAGE_NONE;
	words[1] = parent ? parent->generation : 0;
	memcpy(words + 2, tokens, SKVQ_PAGE_TOKENS * sizeof(*tokens));
	return index->hash(index->keys, words);
}

int index_init(struct index *index, uint32_t slots, index_hash_fn hash, uint64_t *collisions)
{
	uint64_t buckets = 16;

	memset(index, 0, sizeof(*index));
	if (getrandom(index->keys, sizeof(index->keys), 0) != (ssize_t)sizeof(index->keys))
		return -SKVQ_ESYS;
	while (buckets < slots)
		buckets *= 2;
	index->buckets = calloc(buckets, sizeof(*index->buckets));
	if (!index->buckets)
		return -SKVQ_ENOMEM;
	index->mask = (uint32_t)(buckets - 1);
	index->hash = hash ? hash : index_hash;
	index->collisions = collisions;
	return 0;
}

void index_fini(struct index *index)
{
	free(index->buckets);
	memset(index, 0, sizeof(*index));
}

struct page *index_find(struct index *index, const struct page_table *table,
			const struct page *parent, const int32_t tokens[SKVQ_PAGE_TOKENS])
{
	uint32_t hash = hash_of(index, parent, tokens);
	uint32_t parent_slot = parent ? parent->slot : PAGE_NONE;

	for (uint32_t at = index->buckets[hash & index->mask]; at;
	     at = table->pages[at - 1].hash_next) {
		struct page *page = &table->pages[at - 1];

		if (page->hash != hash)
			continue;
		/* A parent outlives its children, so its slot still means the same page. */
		if (page->parent == parent_slot &&
		    !memcmp(page->tokens, tokens, SKVQ_PAGE_TOKENS * sizeof(*tokens)))
			return page;
		(*index->collisions)++;
	}
	return NULL;
}

void index_insert(struct index *index, struct page *page)
{
	uint32_t *bucket;

	page->hash = hash_of(index, page_parent(page), page->tokens);
	bucket = &index->buckets[page->hash & index->mask];
	page->hash_next = *bucket;
	*bucket = page->slot + 1;
}

void index_remove(struct index *index, struct page *page)
{
	uint32_t *at = &index->buckets[page->hash & index->mask];

	while (*at != page->slot + 1) {
		assert(*at);
		at = &page->table->pages[*at - 1].hash_next;
	}
	*at = page->hash_next;
	page->hash_next = 0;
}
