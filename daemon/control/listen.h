/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/listen.h - the socket file: taken only if nobody lives there, removed only if still ours.
 */
#ifndef SKVQD_CONTROL_LISTEN_H
#define SKVQD_CONTROL_LISTEN_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>

#include "base/why.h"

/* Longest path, without the final zero. */
#define LISTEN_PATH_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

struct listener {
	int fd; /* -1: not listening */
	char path[LISTEN_PATH_MAX + 1];
	dev_t dev; /* of the socket file we made */
	ino_t ino;
	bool kept; /* somebody else's, who made it and takes it away */
};

/* Binds and listens, non-blocking, with exactly this file mode. A socket file that nobody answers
 * on is replaced. -SKVQ_EPATH: too long, empty, or another kind of file; -SKVQ_EINUSE: a daemon
 * answers; -SKVQ_EPERM, -SKVQ_ESYS. Before threads start: sets the umask for a moment. */
int listener_init(struct listener *listener, const char *path, mode_t mode, struct why *why);
/* The same of a socket that a service manager has bound and listens on; it takes the descriptor.
 * -SKVQ_EPATH: it is bound elsewhere, or is no Unix stream socket that listens; -SKVQ_ESYS. Clients are told
 * this process' credentials from then on, not the manager's. */
int listener_adopt(struct listener *listener, const char *path, int fd, struct why *why);
/* Whether a descriptor is a socket that listens, of whatever kind. */
bool listener_is_socket(int fd);
/* Where a Unix socket is bound; "" if it is none, or nowhere in the file system. */
void listener_where(int fd, char path[LISTEN_PATH_MAX + 1]);
/* Stops listening; removes the file if it is still the one we made. */
void listener_fini(struct listener *listener);

#endif /* SKVQD_CONTROL_LISTEN_H */
