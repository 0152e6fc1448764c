/* SPDX-License-Identifier: Apache-2.0 */
/*
 * support/manager.h - stands in for a service manager: a notify socket, a store of descriptors, and
 * the environment in which it would start a daemon. Whatever the machine refuses ends the test.
 */
#ifndef SKVQ_TEST_MANAGER_H
#define SKVQ_TEST_MANAGER_H

#include <stdbool.h>

#include "daemon.h"

#define MANAGER_FDS 64

struct test_manager {
	char path[96];
	int sock;
	int keep_max;     /* more are dropped, as FileDescriptorStoreMax has it */
	bool forgets_not; /* as one that is slow: FDSTOREREMOVE is not obeyed */
	int ready, stopping;
	int n;
	struct {
		int fd;
		char name[64];
	} kept[MANAGER_FDS];
};

/* A socket in the daemon's folder. From now on test_daemon_start starts it as a service. */
void manager_init(struct test_manager *m, struct test_daemon *d);
/* Drops what is kept; the daemon starts without a manager from now on. */
void manager_fini(struct test_manager *m, struct test_daemon *d);
/* Takes in what has come. */
void manager_pump(struct test_manager *m);
/* Ends the daemon, pumping. Returns the wait status. */
int manager_stop(struct test_manager *m, struct test_daemon *d, int sig);
/* The kept descriptor with this at the start of its name; the i-th of them. -1: none. */
int manager_find(const struct test_manager *m, const char *prefix, int i);
/* Drops one of them. */
void manager_drop(struct test_manager *m, int fd);

#endif /* SKVQ_TEST_MANAGER_H */
