/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/arena.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skvq/error.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3 */
#endif

static int make_memfd(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

int arena_init(struct arena *arena, const char *name, uint64_t bytes, struct why *why)
{
	char path[32];
	int code = SKVQ_ESYS;
	void *base;

	*arena = (struct arena){.fd = -1, .fd_ro = -1};
	if (bytes == 0 || bytes > INT64_MAX || bytes > SIZE_MAX)
		return why_fail(why, SKVQ_ENOMEM, "arena \"%s\" cannot be %llu bytes", name,
				(unsigned long long)bytes);
	arena->fd = make_memfd(name);
	if (arena->fd < 0) {
		(void)why_fail_errno(why, code, "memfd_create of arena \"%s\"", name);
		goto fail;
	}
	/* Reading is all that the mode allows, even to our own uid without DAC override. */
	if (ftruncate(arena->fd, (off_t)bytes) < 0 || fchmod(arena->fd, 0400) < 0) {
		(void)why_fail_errno(why, code, "sizing arena \"%s\" to %llu bytes", name,
				     (unsigned long long)bytes);
		goto fail;
	}
	if (fcntl(arena->fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0) {
		(void)why_fail_errno(why, code, "sealing arena \"%s\"", name);
		goto fail;
	}
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", arena->fd);
	arena->fd_ro = open(path, O_RDONLY | O_CLOEXEC);
	if (arena->fd_ro < 0) {
		(void)why_fail_errno(why, code, "reopening arena \"%s\" read-only by %s", name,
				     path);
		goto fail;
	}
	base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		    arena->fd, 0);
	if (base == MAP_FAILED) {
		code = SKVQ_ENOMEM;
		(void)why_fail_errno(why, code, "mapping %llu bytes of arena \"%s\"",
				     (unsigned long long)bytes, name);
		goto fail;
	}
	arena->base = base;
	arena->bytes = bytes;
	return 0;
fail:
	arena_fini(arena);
	return -code;
}

void arena_fini(struct arena *arena)
{
	if (arena->base)
		(void)munmap(arena->base, (size_t)arena->bytes);
	if (arena->fd_ro >= 0)
		(void)close(arena->fd_ro);
	if (arena->fd >= 0)
		(void)close(arena->fd);
	*arena = (struct arena){.fd = -1, .fd_ro = -1};
}

static void check_range(const struct arena *arena, uint64_t offset, uint64_t bytes)
{
	assert(offset <= arena->bytes && bytes > 0 && bytes <= arena->bytes - offset);
	(void)arena;
	(void)offset;
	(void)bytes;
}

static int allocate(const struct arena *arena, int mode, uint64_t offset, uint64_t bytes)
{
	int r;

	check_range(arena, offset, bytes);
	do
		r = fallocate(arena->fd, mode, (off_t)offset, (off_t)bytes);
	while (r < 0 && errno == EINTR);
	return r;
}

int arena_commit(const struct arena *arena, uint64_t offset, uint64_t bytes)
{
	return allocate(arena, FALLOC_FL_KEEP_SIZE, offset, bytes) < 0 ? -SKVQ_ENOMEM : 0;
}

int arena_write(const struct arena *arena, uint64_t offset, const void *data, uint64_t bytes)
{
	const uint8_t *from = data;

	check_range(arena, offset, bytes);
	while (bytes) {
		ssize_t n = pwrite(arena->fd, from, (size_t)bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -SKVQ_ENOMEM;
		from += n;
		offset += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

int arena_punch(const struct arena *arena, uint64_t offset, uint64_t bytes)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	return allocate(arena, mode, offset, bytes) < 0 ? -SKVQ_ESYS : 0;
}

int arena_kernel_bytes(const struct arena *arena, uint64_t *ret_bytes)
{
	struct stat st;

	if (fstat(arena->fd, &st) < 0)
		return -SKVQ_ESYS;
	*ret_bytes = (uint64_t)st.st_blocks * 512u;
	return 0;
}
