/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* | guard | ... bytes | guard |   or   | guard | bytes ... | guard | */
static size_t inner_bytes(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (bytes + page - 1) / page * page;
}

void *guard_new(size_t bytes, enum guard_side side)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = inner_bytes(bytes);
	uint8_t *p = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	/* qemu-user refuses to change the protection of no bytes. */
	if (p == MAP_FAILED ||
	    (inner > 0 && mprotect(p + page, inner, PROT_READ | PROT_WRITE) < 0)) {
		perror("skvq-check: guarded memory");
		exit(2);
	}
	return p + page + (side == GUARD_AFTER ? inner - bytes : 0);
}

static uint8_t *inner_of(void *p)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (uint8_t *)p - (uintptr_t)p % page;
}

void guard_read_only(void *p, size_t bytes)
{
	(void)mprotect(inner_of(p), inner_bytes(bytes), PROT_READ);
}

void guard_free(void *p, size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (p)
		(void)munmap(inner_of(p) - page, inner_bytes(bytes) + 2 * page);
}
