/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/ns.h - a namespace: one tenant, one identity, one arena, and the pages in it.
 *
 * This module makes and frees the thing; cache/cache.c says when. Loop thread only, except that
 * jobs read layout, digest and arena, which do not change while ns->fills is not zero.
 */
#ifndef SKVQD_CACHE_NS_H
#define SKVQD_CACHE_NS_H

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "cache/errors.h"
#include "cache/identity.h"
#include "cache/index.h"
#include "cache/tenant.h"
#include "mem/arena.h"
#include "mem/page.h"

#define NS_NAME_MAX   255u
/* A page costs about half a KiB of ours beside its arena bytes; this bounds the table's address
 * space (8 GiB) where pages are tiny and the RAM cap is huge. */
#define NS_SLOTS_MAX (1u << 24)

struct ns {
	struct ns *next;
	uint32_t id; /* on the wire; never reused by this process */
	struct tenant *tenant;
	char model_name[NS_NAME_MAX + 1]; /* for people, from the first opener */
	struct identity identity;
	uint32_t canon_bytes;
	uint8_t canon[IDENTITY_CANON_MAX];
	uint8_t digest[IDENTITY_DIGEST];
	uint8_t tier_name[IDENTITY_DIGEST]; /* namespace_digest: this namespace in the tier */
	struct skvq_layout layout;
	bool has_safe;
	struct skvq_layout safe; /* of safe pages, if there may be any */
	struct arena arena;
	struct page_table table;
	struct index index;
	uint32_t openers;      /* connections */
	uint32_t fills;        /* jobs that read this namespace */
	uint64_t used;         /* stamp of the last open, match or publish */
	uint64_t bytes;        /* committed to pages */
	uint64_t kernel_bytes; /* st_blocks when last asked */
	uint32_t trim_slot;    /* where cache/evict.c goes on looking for faulted-in holes */
	uint32_t free_slot;    /* and for a page to drop */
	uint64_t pins;
	uint64_t tokens_asked, tokens_matched, page_hits, evictions;
	uint64_t pages_safe;         /* copied in */
	struct layer_errors *errors; /* [n_layer][2], K and V */
};

/* What a namespace is made of; all borrowed for the call, collisions for its life. */
struct ns_params {
	struct tenant *tenant; /* for its life */
	const char *model_name;
	const struct identity *identity;  /* checked */
	const struct skvq_layout *layout; /* of this identity */
	uint64_t ram_max;                 /* bytes of pages the arena must be able to hold */
	index_hash_fn hash;               /* NULL: index_hash */
	uint64_t *collisions;
	int *arena_fd; /* NULL: a fresh arena. Else one to adopt; -1 once it is taken */
};

/* -SKVQ_ENOSPC if not one first page fits under ram_max, -SKVQ_ENOMEM, -SKVQ_ESYS; errors of
 * arena_adopt. An adopted arena must have the size that a fresh one would have. */
int ns_new(const struct ns_params *params, struct ns **ret, struct why *why);
void ns_free(struct ns *ns); /* NULL is fine; no openers, no fills, no pins */

/* Canonical bytes equal: the proof behind an equal digest. */
bool ns_is(const struct ns *ns, const uint8_t *canon, uint32_t canon_bytes);

static inline struct ns *ns_of(const struct page *page)
{
	return container_of(page->table, struct ns, table);
}

/* Of a page that says it is safe, or not; NULL if there are no such pages here. */
static inline const struct skvq_layout *ns_layout(const struct ns *ns, bool safe)
{
	return !safe ? &ns->layout : ns->has_safe ? &ns->safe : NULL;
}

/* From its first byte to its last, with a refinement that may be shed. */
static inline uint64_t ns_page_span(const struct ns *ns, const struct page *page)
{
	return skvq_layout_page_bytes(ns_layout(ns, page->safe), page->position);
}

static inline uint64_t ns_page_offset(const struct ns *ns, const struct page *page)
{
	return page->slot * ns->layout.slot_bytes;
}

/* Of a page that is readable, or about to be: its tokens are those that lie in it. */
static inline void ns_own_tokens(struct page *page)
{
	const struct ns *ns = ns_of(page);

	page->tokens = (const int32_t *)(const void *)(ns->arena.base + ns_page_offset(ns, page) +
						       ns_layout(ns, page->safe)->tokens_offset);
}

#endif /* SKVQD_CACHE_NS_H */
