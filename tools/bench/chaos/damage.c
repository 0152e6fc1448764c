/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chaos.h"

#define FILES_MAX 512u
#define BLOCK     4096u

/* Segment files of the store; returns how many. */
static uint32_t list(int dir_fd, char ret[][64])
{
	DIR *dir = fdopendir(dup(dir_fd));
	struct dirent *e;
	uint32_t n = 0;

	while (dir && n < FILES_MAX && (e = readdir(dir)) != NULL)
		if (e->d_name[0] != '.' && strlen(e->d_name) < 64)
			memcpy(ret[n++], e->d_name, strlen(e->d_name) + 1);
	if (dir)
		(void)closedir(dir);
	return n;
}

static bool flip_bits(int fd, uint64_t bytes, uint64_t *random)
{
	for (uint32_t i = 0, n = 1 + draw_below(random, 20); i < n; i++) {
		off_t at = (off_t)(draw(random) % bytes);
		uint8_t byte;

		if (pread(fd, &byte, 1, at) != 1)
			return false;
		byte ^= (uint8_t)(1u << draw_below(random, 8));
		if (pwrite(fd, &byte, 1, at) != 1)
			return false;
	}
	return true;
}

static bool write_garbage(int fd, uint64_t bytes, uint64_t *random)
{
	uint64_t block[BLOCK / 8], at = draw(random) % bytes / BLOCK * BLOCK;

	for (uint32_t i = 0; i < BLOCK / 8; i++)
		block[i] = draw(random);
	return pwrite(fd, block, sizeof(block), (off_t)at) == (ssize_t)sizeof(block);
}

/* A stretch of one file in the place of the same stretch of another: whole records, of another
 * life. */
static bool copy_between(int from, int to, uint64_t bytes, uint64_t *random)
{
	uint64_t at = draw(random) % bytes / BLOCK * BLOCK;
	uint8_t block[BLOCK];

	for (uint32_t i = 0, n = 1 + draw_below(random, 16); i < n; i++, at += BLOCK)
		if (pread(from, block, BLOCK, (off_t)at) != BLOCK || at + BLOCK > bytes ||
		    pwrite(to, block, BLOCK, (off_t)at) != BLOCK)
			return i > 0;
	return true;
}

bool damage_one(const struct daemon_run *d, enum damage kind, uint64_t *random)
{
	static char names[FILES_MAX][64];
	int dir = open(d->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -1, other = -1;
	uint32_t n = dir < 0 ? 0 : list(dir, names), which;
	struct stat st;
	bool done = false;

	if (!n)
		goto out;
	which = draw_below(random, n);
	fd = openat(dir, names[which], O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size == 0)
		goto out;
	switch (kind) {
	case DAMAGE_FLIP:
		done = flip_bits(fd, (uint64_t)st.st_size, random);
		break;
	case DAMAGE_TRUNCATE:
		done = ftruncate(fd, (off_t)(draw(random) % (uint64_t)st.st_size)) == 0;
		break;
	case DAMAGE_GARBAGE:
		done = write_garbage(fd, (uint64_t)st.st_size, random);
		break;
	case DAMAGE_REMOVE:
		done = unlinkat(dir, names[which], 0) == 0;
		break;
	case DAMAGE_COPY:
		other = openat(dir, names[draw_below(random, n)], O_RDONLY | O_CLOEXEC);
		done = other >= 0 && copy_between(other, fd, (uint64_t)st.st_size, random);
		break;
	case DAMAGE_COUNT:
		break;
	}
out:
	if (other >= 0)
		(void)close(other);
	if (fd >= 0)
		(void)close(fd);
	if (dir >= 0)
		(void)close(dir);
	return done;
}
