/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/folder.h - a locked folder of segment files and their descriptors.
 *
 * folder_create and folder_unlink may run in another thread than the rest, for different files.
 */
#ifndef SKVQD_SPILL_FOLDER_H
#define SKVQD_SPILL_FOLDER_H

#include "spill/io.h"

struct folder {
	int dir_fd;
	int lock_fd; /* flock: one process a folder */
	bool direct;
	uint32_t files_max;
	int *fds; /* -1: not open */
};

/* Makes the folder if it is not there, and opens it. *ret_fd is the caller's. -SKVQ_EPERM: it is not
 * this user's, or others may write to it; -SKVQ_ESYS. */
int folder_own(const char *path, int *ret_fd, struct why *why);

int folder_init(struct folder *folder, const struct spill_io_config *config, struct why *warning,
		struct why *why);
void folder_fini(struct folder *folder); /* closes what is open; a zeroed one is not fine */

/* All -errno. */
int folder_list(struct folder *folder, spill_list_fn fn, void *ctx);
int folder_open(struct folder *folder, uint32_t file, uint64_t number, uint64_t *ret_bytes);
int folder_create(struct folder *folder, uint32_t file, uint64_t number, uint64_t bytes,
		  uint64_t *ret_physical);
int folder_unlink(struct folder *folder, uint32_t file, uint64_t number);
void folder_close(struct folder *folder, uint32_t file);

#endif /* SKVQD_SPILL_FOLDER_H */
