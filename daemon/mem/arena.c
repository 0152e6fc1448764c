/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/arena.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <skvq/error.h>

/* Linux 6.3 */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

static int make_memfd(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

/* The rest of an arena whose descriptor is there and good. */
static int open_both_ways(struct arena *arena, const char *name, uint64_t bytes, struct why *why)
{
	char path[32];
	void *base;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", arena->fd);
	arena->fd_ro = open(path, O_RDONLY | O_CLOEXEC);
	if (arena->fd_ro < 0)
		return why_fail_errno(why, SKVQ_ESYS, "reopening arena \"%s\" read-only by %s",
				      name, path);
	base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		    arena->fd, 0);
	if (base == MAP_FAILED)
		return why_fail_errno(why, SKVQ_ENOMEM, "mapping %llu bytes of arena \"%s\"",
				      (unsigned long long)bytes, name);
	arena->base = base;
	arena->bytes = bytes;
	return 0;
}

int arena_init(struct arena *arena, const char *name, uint64_t bytes, struct why *why)
{
	int code = SKVQ_ESYS, err;

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
	err = open_both_ways(arena, name, bytes, why);
	if (!err)
		return 0;
	code = -err;
fail:
	arena_fini(arena);
	return -code;
}

/* Everything that arena_init made sure of, asked of a descriptor that came from elsewhere. */
static int check_adopted(int fd, uint64_t bytes, struct why *why)
{
	int seals = fcntl(fd, F_GET_SEALS), flags = fcntl(fd, F_GETFL);
	struct statfs fs;
	struct stat st;

	if (seals < 0 || (seals & ~F_SEAL_EXEC) != (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
		return why_fail(why, SKVQ_ESEALS, "seals are 0x%x, not those of an arena",
				(unsigned)seals);
	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC ||
	    !S_ISREG(st.st_mode) || (flags & O_ACCMODE) != O_RDWR)
		return why_fail(why, SKVQ_EFD, "not a memfd open for reading and writing");
	if (st.st_uid != geteuid() || (st.st_mode & 07777) != 0400)
		return why_fail(why, SKVQ_EFD, "owner %u and mode %04o are not an arena's of ours",
				(unsigned)st.st_uid, (unsigned)st.st_mode & 07777);
	if (bytes == 0 || st.st_size < 0 || (uint64_t)st.st_size != bytes || bytes > SIZE_MAX)
		return why_fail(why, SKVQ_EFD, "%lld bytes, an arena here has %llu",
				(long long)st.st_size, (unsigned long long)bytes);
	return 0;
}

int arena_adopt(struct arena *arena, int *fd, uint64_t bytes, struct why *why)
{
	int err = check_adopted(*fd, bytes, why);

	*arena = (struct arena){.fd = -1, .fd_ro = -1};
	if (err < 0)
		return err;
	arena->fd = *fd;
	err = open_both_ways(arena, "adopted", bytes, why);
	if (err < 0) {
		arena->fd = -1; /* still the caller's */
		arena_fini(arena);
		return err;
	}
	*fd = -1;
	return 0;
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

bool arena_has(const struct arena *arena, uint64_t offset, uint64_t bytes)
{
	off_t at = lseek(arena->fd, (off_t)offset, SEEK_DATA);

	check_range(arena, offset, bytes);
	return at < 0 ? errno != ENXIO : (uint64_t)at < offset + bytes;
}

int arena_kernel_bytes(const struct arena *arena, uint64_t *ret_bytes)
{
	struct stat st;

	if (fstat(arena->fd, &st) < 0)
		return -SKVQ_ESYS;
	*ret_bytes = (uint64_t)st.st_blocks * 512u;
	return 0;
}
