/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "spill/format.h"

#define NAME_BYTES 32

static const char lock_name[] = "lock", probe_name[] = "probe";

static void name_of(char name[NAME_BYTES], uint64_t number)
{
	(void)snprintf(name, NAME_BYTES, "%016" PRIx64 ".seg", number);
}

/* Exactly the names that name_of writes. */
static bool number_of(const char *name, uint64_t *ret_number)
{
	char again[NAME_BYTES];
	uint64_t number = strtoull(name, NULL, 16);

	name_of(again, number);
	if (strcmp(name, again) != 0)
		return false;
	*ret_number = number;
	return true;
}

/* 0 if the file system takes aligned O_DIRECT writes, else -errno. */
static int probe_direct(int dir_fd)
{
	CLEANUP_FREE void *block = NULL;
	CLEANUP_FD int fd =
	    openat(dir_fd, probe_name, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
	int r = 0;

	if (fd < 0)
		r = -errno;
	else if (posix_memalign(&block, SPILL_BLOCK, SPILL_BLOCK) != 0)
		r = -ENOMEM;
	else if (memset(block, 0, SPILL_BLOCK), pwrite(fd, block, SPILL_BLOCK, 0) < 0)
		r = -errno;
	(void)unlinkat(dir_fd, probe_name, 0);
	return r;
}

int folder_own(const char *path, int *ret_fd, struct why *why)
{
	CLEANUP_FD int fd = -1;
	struct stat st;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return why_fail_errno(why, SKVQ_ESYS, "cannot make the folder '%s'", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return why_fail_errno(why, SKVQ_ESYS, "cannot open the folder '%s'", path);
	/* A checksum is no signature: whoever writes here decides what is in a page. */
	if (fstat(fd, &st) < 0)
		return why_fail_errno(why, SKVQ_ESYS, "cannot look at '%s'", path);
	if (st.st_uid != geteuid() || (st.st_mode & 022))
		return why_fail(
		    why, SKVQ_EPERM,
		    "the folder '%s' must belong to this user and be writable by no other", path);
	*ret_fd = steal_fd(&fd);
	return 0;
}

int folder_init(struct folder *folder, const struct spill_io_config *config, struct why *warning,
		struct why *why)
{
	int r;

	*folder = (struct folder){.dir_fd = -1, .lock_fd = -1, .files_max = config->files_max};
	r = folder_own(config->folder, &folder->dir_fd, why);
	if (r < 0)
		return r;
	folder->lock_fd = openat(folder->dir_fd, lock_name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (folder->lock_fd < 0)
		return why_fail_errno(why, SKVQ_ESYS, "cannot open '%s/%s'", config->folder,
				      lock_name);
	if (flock(folder->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return why_fail_errno(why, errno == EWOULDBLOCK ? SKVQ_EINUSE : SKVQ_ESYS,
				      "cannot lock '%s/%s'", config->folder, lock_name);
	folder->fds = malloc(folder->files_max * sizeof(*folder->fds));
	if (!folder->fds)
		return why_fail(why, SKVQ_ENOMEM, "no memory for %u files", folder->files_max);
	for (uint32_t i = 0; i < folder->files_max; i++)
		folder->fds[i] = -1;
	r = config->no_direct ? 0 : probe_direct(folder->dir_fd);
	folder->direct = !config->no_direct && r == 0;
	if (r < 0)
		(void)why_fail(warning, SKVQ_ENOTSUP,
			       "'%s' refuses O_DIRECT (%s): through the page cache", config->folder,
			       strerror(-r));
	return 0;
}

void folder_fini(struct folder *folder)
{
	for (uint32_t i = 0; folder->fds && i < folder->files_max; i++)
		folder_close(folder, i);
	free(folder->fds);
	cleanup_fd(&folder->dir_fd);
	cleanup_fd(&folder->lock_fd);
}

static int open_file(struct folder *folder, uint64_t number, int flags)
{
	char name[NAME_BYTES];
	int fd;

	name_of(name, number);
	flags |= O_RDWR | O_CLOEXEC | O_NOFOLLOW | (folder->direct ? O_DIRECT : 0);
	do
		fd = openat(folder->dir_fd, name, flags, 0600);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

int folder_list(struct folder *folder, spill_list_fn fn, void *ctx)
{
	int fd = openat(folder->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *at;
	int r = 0;

	if (!dir) {
		r = -errno;
		cleanup_fd(&fd);
		return r;
	}
	while (errno = 0, (at = readdir(dir)) != NULL) {
		struct stat st;
		uint64_t number;

		if (!number_of(at->d_name, &number) ||
		    fstatat(fd, at->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
			continue;
		fn(ctx, number, (uint64_t)st.st_blocks * 512u);
	}
	r = -errno;
	(void)closedir(dir);
	return r;
}

int folder_open(struct folder *folder, uint32_t file, uint64_t number, uint64_t *ret_bytes)
{
	CLEANUP_FD int fd = open_file(folder, number, 0);
	struct stat st;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	*ret_bytes = (uint64_t)st.st_size;
	folder->fds[file] = steal_fd(&fd);
	return 0;
}

static int allocate(int fd, uint64_t bytes)
{
	int r;

	do
		r = fallocate(fd, 0, 0, (off_t)bytes);
	while (r < 0 && errno == EINTR);
	/* Without it space is not promised, and a write may fail where it could not have. */
	if (r < 0 && errno == EOPNOTSUPP)
		r = ftruncate(fd, (off_t)bytes);
	return r < 0 ? -errno : 0;
}

int folder_create(struct folder *folder, uint32_t file, uint64_t number, uint64_t bytes,
		  uint64_t *ret_physical)
{
	CLEANUP_FD int fd = open_file(folder, number, O_CREAT | O_EXCL);
	char name[NAME_BYTES];
	struct stat st;
	int r;

	if (fd < 0)
		return fd;
	r = allocate(fd, bytes);
	if (!r && (fsync(fd) < 0 || fsync(folder->dir_fd) < 0 || fstat(fd, &st) < 0))
		r = -errno;
	if (r < 0) {
		name_of(name, number);
		(void)unlinkat(folder->dir_fd, name, 0);
		return r;
	}
	*ret_physical = (uint64_t)st.st_blocks * 512u;
	folder->fds[file] = steal_fd(&fd);
	return 0;
}

int folder_unlink(struct folder *folder, uint32_t file, uint64_t number)
{
	char name[NAME_BYTES];
	int r;

	name_of(name, number);
	r = unlinkat(folder->dir_fd, name, 0) < 0 ? -errno : 0;
	folder_close(folder, file);
	return r;
}

void folder_close(struct folder *folder, uint32_t file)
{
	cleanup_fd(&folder->fds[file]);
}
