/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/closer.h - a thread that closes descriptors which came from clients.
 *
 * close() of a stranger's descriptor may sleep for as long as the stranger likes: a TCP socket with
 * SO_LINGER, a file of a FUSE server that does not answer, a memfd with gigabytes to free. So may
 * closing a connection whose unread messages carry such descriptors. The loop never does it. While
 * the thread sleeps descriptors pile up, at most to RLIMIT_NOFILE.
 */
#ifndef SKVQD_BASE_CLOSER_H
#define SKVQD_BASE_CLOSER_H

struct closer;

/* NULL with errno if there is no memory or thread. */
struct closer *closer_new(void);
/* Waits a moment for what is queued; a thread that still sleeps then is left behind, with its
 * memory, to end with the process. NULL is fine. */
void closer_free(struct closer *closer);
/* Takes fd. closer NULL, or no memory: closes here and now. Loop thread. */
void closer_close(struct closer *closer, int fd);

#endif /* SKVQD_BASE_CLOSER_H */
