/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/fill.h - getting a page into the arena, out of a client's memfd or from the tier below, and
 * believing none of it.
 *
 * Pure work for a worker thread: reads with pread, never maps the client's memory, checks the copy
 * and not the original, then writes digests and CRCs. It touches the slot's bytes and its own
 * struct, nothing else; the namespace is held by ns->fills.
 */
#ifndef SKVQD_CACHE_FILL_H
#define SKVQD_CACHE_FILL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/why.h"
#include "cache/identity.h"
#include "mem/arena.h"

struct fill_task {
	const struct arena *arena;
	const struct skvq_layout *layout;
	uint64_t slot_offset;
	uint64_t page_bytes; /* with its refinement */
	bool shed;           /* the refinement is not there */
	uint32_t position;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	uint8_t identity[IDENTITY_DIGEST];
	uint8_t parent[IDENTITY_DIGEST]; /* zeros for a first page */
	int fd;
	uint64_t fd_offset;

	uint8_t digest[IDENTITY_DIGEST]; /* results */
	struct why why;
};

/* 0 and digest; or -SKVQ_ENOMEM, -SKVQ_EIO, -SKVQ_ESHORT, -SKVQ_ECORRUPT and why, and what was
 * committed of the slot is left for the caller to punch. */
int fill_run(struct fill_task *task);

/* For bytes that lie in the slot already, as they came from the tier below: a page that was sealed
 * by fill_run with this identity, parent, position, tokens and digest (given, not a result), its
 * checksums and its structure. fd is not used. 0 or -SKVQ_ECORRUPT. */
int fill_verify(struct fill_task *task);

/* The refinement alone, for a page that lies sealed in its slot without: copied out of staging, and
 * equal by the checksum in the page's header. 0, or as fill_run. */
int fill_refine(struct fill_task *task);

/* A sealed page where it lies: its header and every section against its checksums, and its digest;
 * bytes and shed as in fill_task. Reads only. */
bool page_sound(const struct skvq_layout *layout, const uint8_t *page, uint64_t bytes, bool shed,
		const uint8_t digest[IDENTITY_DIGEST]);

#endif /* SKVQD_CACHE_FILL_H */
