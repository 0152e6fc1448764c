/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/arena.h - the shared memory of one namespace: a sealed memfd that we alone can write.
 *
 * Fixed size and sparse: a range costs memory from arena_commit to arena_punch. Clients get the
 * read-only descriptor; they can neither write through it, nor map it for writing, nor reopen it
 * (mode 0400; another uid is refused by the kernel). Seals are GROW|SHRINK|SEAL. FUTURE_WRITE is
 * not among them, for it would keep us from punching holes. The arena knows nothing of pages.
 *
 * A reader that touches a hole through its mapping makes the kernel fill it with a zero page, so
 * arena_kernel_bytes may exceed what was committed; cache/evict.c takes such pages back.
 */
#ifndef SKVQD_MEM_ARENA_H
#define SKVQD_MEM_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/why.h"

struct arena {
	int fd;        /* ours, read-write; never leaves the process */
	int fd_ro;     /* for clients; owned by the arena */
	uint8_t *base; /* the whole arena, mapped shared and writable */
	uint64_t bytes;
};

/* bytes: multiple of 4096. name is for /proc/PID/maps. -SKVQ_ESYS, -SKVQ_ENOMEM; then the arena
 * is as after arena_fini. Needs /proc. */
int arena_init(struct arena *arena, const char *name, uint64_t bytes, struct why *why);
/* An arena that another process of ours made and left, with what is in it: seals, kind, owner, mode
 * and size must be what arena_init would have given it. Takes *fd and sets it to -1 on success.
 * -SKVQ_ESEALS, -SKVQ_EFD, -SKVQ_ESYS, -SKVQ_ENOMEM; then the arena is as after arena_fini. */
int arena_adopt(struct arena *arena, int *fd, uint64_t bytes, struct why *why);
/* Mappings of clients stay valid until they unmap. A zeroed arena with fd -1 is fine. */
void arena_fini(struct arena *arena);

/* Backs a range with memory, so that writing it through base cannot fault (SIGBUS). Whatever was
 * there stays, the rest reads as zero. -SKVQ_ENOMEM if the kernel has none. Any thread. */
int arena_commit(const struct arena *arena, uint64_t offset, uint64_t bytes);
/* Backs a range and writes it, without a page fault for each page as through base. -SKVQ_ENOMEM;
 * part of it may be backed then. Any thread. */
int arena_write(const struct arena *arena, uint64_t offset, const void *data, uint64_t bytes);
/* Gives a range back; it reads as zero in every mapping. -SKVQ_ESYS (errno). Any thread. */
int arena_punch(const struct arena *arena, uint64_t offset, uint64_t bytes);
/* Whether anything was written or read in a range that was punched or never backed; true if the kernel
 * does not say. */
bool arena_has(const struct arena *arena, uint64_t offset, uint64_t bytes);
/* What the kernel holds for this arena (st_blocks). -SKVQ_ESYS (errno). */
int arena_kernel_bytes(const struct arena *arena, uint64_t *ret_bytes);

#endif /* SKVQD_MEM_ARENA_H */
