/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/journal.h - the journal of systemd, through libsystemd. Without that in the build, there is
 * none.
 */
#ifndef SKVQD_BASE_JOURNAL_H
#define SKVQD_BASE_JOURNAL_H

#include <stdbool.h>
#include <sys/uio.h>

bool journal_is_built(void);
/* Whether stderr is a stream of the journal's: JOURNAL_STREAM names its device and inode. */
bool journal_is_stderr(void);
/* Whether there is one to send to. */
bool journal_is_there(void);
/* One message of n fields "NAME=value". False: it was not taken. Any thread; needs no more of the
 * kernel than socket and sendmsg, also in the sandbox. */
bool journal_send(const struct iovec *fields, int n);

#endif /* SKVQD_BASE_JOURNAL_H */
