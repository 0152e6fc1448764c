/* SPDX-License-Identifier: Apache-2.0 */
/*
 * notify.h - the service manager: telling it how we are, and its fd store. Through libsystemd; in a
 * build without it, and in a process that no manager has started, every call is a no-op.
 */
#ifndef SKVQD_NOTIFY_H
#define SKVQD_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* Descriptors of one message: the kernel takes 253. */
#define NOTIFY_FDS_MAX 200u

bool notify_is_built(void);
/* Whether there is a manager that may keep so many descriptors. It may still refuse them: nobody
 * tells. */
bool notify_can_store(uint32_t n_fds);
/* "READY=1", "STOPPING=1\nSTATUS=...". A message that cannot be sent is lost. */
void notify_state(const char *state);
/* Puts descriptors into the store under a name, at most NOTIFY_FDS_MAX. The caller keeps its own.
 * False if the message could not be sent. */
bool notify_store(const char *name, const int *fds, uint32_t n);
/* Takes all of that name out of the store. */
void notify_forget(const char *name);
/* Waits until the manager has read what was sent. False: not in time, or it cannot tell. */
bool notify_barrier(uint32_t timeout_ms);

/* What came out of the store when this process was started, once, and sockets that listen for it; the
 * descriptors are close-on-exec, and the caller's. Names are malloc'ed, in a malloc'ed array. */
struct notify_fd {
	int fd;
	char *name;
};
struct notify_fd *notify_take(uint32_t *ret_n); /* NULL and 0: none */

#endif /* SKVQD_NOTIFY_H */
