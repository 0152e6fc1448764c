/* SPDX-License-Identifier: Apache-2.0 */
#include "base/journal.h"

#ifdef SKVQD_SYSTEMD
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

/* libsystemd's own, which nothing can change. */
#define SOCKET_PATH "/run/systemd/journal/socket"

bool journal_is_built(void)
{
	return true;
}

bool journal_is_stderr(void)
{
	const char *text = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;
	char rest;

	return text && sscanf(text, "%llu:%llu%c", &dev, &ino, &rest) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

/* sd_journal_sendv says that it sent where there is no socket, so that is looked for first. */
bool journal_is_there(void)
{
	struct stat st;

	return stat(SOCKET_PATH, &st) == 0 && S_ISSOCK(st.st_mode);
}

bool journal_send(const struct iovec *fields, int n)
{
	return sd_journal_sendv(fields, n) >= 0;
}

#else

bool journal_is_built(void)
{
	return false;
}

bool journal_is_stderr(void)
{
	return false;
}

bool journal_is_there(void)
{
	return false;
}

bool journal_send(const struct iovec *fields, int n)
{
	(void)fields;
	(void)n;
	return false;
}

#endif
