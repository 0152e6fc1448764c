/* SPDX-License-Identifier: Apache-2.0 */
#include "notify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef SKVQD_SYSTEMD
#include <systemd/sd-daemon.h>

bool notify_is_built(void)
{
	return true;
}

bool notify_can_store(uint32_t n_fds)
{
	const char *most = getenv("FDSTORE"); /* systemd 254 and newer */
	char *end;
	unsigned long n;

	if (!getenv("NOTIFY_SOCKET"))
		return false;
	if (!most)
		return true;
	errno = 0;
	n = strtoul(most, &end, 10);
	return !errno && end != most && !*end && n >= n_fds;
}

void notify_state(const char *state)
{
	(void)sd_notify(0, state);
}

bool notify_store(const char *name, const int *fds, uint32_t n)
{
	char state[300];

	/* No poll: that a client has gone while nobody runs is for the next daemon to see. */
	(void)snprintf(state, sizeof(state), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	return sd_pid_notify_with_fds(0, 0, state, fds, n) > 0;
}

void notify_forget(const char *name)
{
	char state[300];

	(void)snprintf(state, sizeof(state), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	(void)sd_notify(0, state);
}

bool notify_barrier(uint32_t timeout_ms)
{
	return sd_notify_barrier(0, (uint64_t)timeout_ms * 1000) > 0;
}

struct notify_fd *notify_take(uint32_t *ret_n)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);
	struct notify_fd *ret = n > 0 ? calloc((size_t)n, sizeof(*ret)) : NULL;

	*ret_n = 0;
	for (int i = 0; i < n && names; i++) {
		if (ret)
			ret[(*ret_n)++] = (struct notify_fd){SD_LISTEN_FDS_START + i, names[i]};
		else
			free(names[i]);
	}
	free(names);
	return ret;
}

#else

bool notify_is_built(void)
{
	return false;
}

bool notify_can_store(uint32_t n_fds)
{
	(void)n_fds;
	return false;
}

void notify_state(const char *state)
{
	(void)state;
}

bool notify_store(const char *name, const int *fds, uint32_t n)
{
	(void)name;
	(void)fds;
	(void)n;
	return false;
}

void notify_forget(const char *name)
{
	(void)name;
}

bool notify_barrier(uint32_t timeout_ms)
{
	(void)timeout_ms;
	return false;
}

struct notify_fd *notify_take(uint32_t *ret_n)
{
	*ret_n = 0;
	return NULL;
}

#endif
