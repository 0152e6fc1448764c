/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/cleanup.h - locals that undo themselves, and how to hand them on.
 *
 *   CLEANUP_FD int fd = open(...);     closed at the end of the scope, errno kept
 *   CLEANUP_FREE char *p = malloc(n);  freed at the end of the scope
 *   return steal_fd(&fd);              success: the caller owns it now
 */
#ifndef SKVQD_BASE_CLEANUP_H
#define SKVQD_BASE_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_fd(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;

		(void)close(*fd);
		errno = saved;
		*fd = -1;
	}
}

static inline void cleanup_free(void *at)
{
	void **p = at;

	free(*p);
	*p = NULL;
}

static inline int steal_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

static inline void *steal_ptr_(void *at)
{
	void **p = at;
	void *taken = *p;

	*p = NULL;
	return taken;
}

#define CLEANUP_FD    __attribute__((cleanup(cleanup_fd)))
#define CLEANUP_FREE  __attribute__((cleanup(cleanup_free)))
#define steal_ptr(pp) ((__typeof__(*(pp)))steal_ptr_(pp))

/* From a pointer to a member to the struct around it. */
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#endif /* SKVQD_BASE_CLEANUP_H */
