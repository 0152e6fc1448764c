/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/snapshot.h - what the cache knows of its arenas, put into words for the process that takes
 * them over, and believed by that one only as far as it can be checked.
 *
 * An adopted page goes through three steps, because engines may still be reading it:
 *   adopt    it has its slot back, and its place under its parent; nobody can find it
 *   pin      by the caller: what connections of the process before still hold
 *   verify   its bytes, on the workers. A sound page under a listed parent is listed. Any other
 *            stays unlisted while it is pinned, and goes otherwise
 * Nothing is punched or handed out between the first step and the last. Loop thread only, before
 * the first client.
 */
#ifndef SKVQD_CACHE_SNAPSHOT_H
#define SKVQD_CACHE_SNAPSHOT_H

#include "base/blob.h"
#include "cache/cache.h"

#define SNAPSHOT_NS_MAX 1024u

/* A descriptor by what fstat says of it. */
struct snapshot_file {
	uint64_t dev, ino;
};

struct snapshot_file snapshot_file(int fd); /* zeros if fstat fails */
void snapshot_put_file(struct blob *blob, int fd);
struct snapshot_file snapshot_get_file(struct blob_cursor *cursor);

/* Where the adopting side finds descriptors: -1 if it was not given this one. *fd stays its own
 * unless it is set to -1. */
struct snapshot_files {
	int *(*find)(void *ctx, struct snapshot_file file);
	void *ctx;
};

/* Namespaces by the number they had in the process before. */
struct snapshot {
	uint32_t n;
	struct {
		uint32_t id;
		struct ns *ns; /* NULL: its pages stay what engines hold of them */
	} of[SNAPSHOT_NS_MAX];
	uint64_t pages, bad; /* listed; not listed */
};

/* Every namespace with pages. When nothing is in flight any more. */
void snapshot_write(const struct cache *cache, struct blob *blob);

/* Makes the namespaces of the cache's tenants whose arenas were given and are what they should be; others
 * are left out, with a line in the log. -SKVQ_ECORRUPT: the description contradicts itself;
 * -SKVQ_ELIMIT, -SKVQ_ENOMEM. Then the caller calls cache_abandon. */
int snapshot_adopt(struct cache *cache, struct blob_cursor *cursor,
		   const struct snapshot_files *files, struct snapshot *ret, struct why *why);
/* The page that was called this; *ret NULL: its namespace was left out. -SKVQ_ECORRUPT if there is
 * no such page. */
int snapshot_page(const struct snapshot *snapshot, uint32_t ns, struct page_ref ref,
		  struct page **ret);
/* -SKVQ_ENOMEM; then as above. */
int snapshot_verify(struct cache *cache, struct snapshot *snapshot, struct why *why);

#endif /* SKVQD_CACHE_SNAPSHOT_H */
