/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real skvqd for a test: its own folder and socket, stopped by process id, killed with the test.
 * Functions print and exit on failure: a test without its daemon tests nothing.
 */
#ifndef SKVQ_TEST_DAEMON_H
#define SKVQ_TEST_DAEMON_H

#include <sys/types.h>

struct test_daemon {
	char dir[64];
	char socket[96];
	pid_t pid; /* 0: not running */
	/* Called in the new process before it becomes skvqd; NULL: not. */
	void (*in_child)(void *ctx);
	void *ctx;
};

/* Makes the folder. program is the path of skvqd. */
void test_daemon_init(struct test_daemon *d);
/* Starts skvqd on d->socket with more arguments (NULL-terminated list, may be NULL) and waits until
 * it answers. */
void test_daemon_start(struct test_daemon *d, const char *program, const char *const *args);
/* Sends sig and waits for the end. Returns the wait status. */
int test_daemon_stop(struct test_daemon *d, int sig);
/* Stops it if it runs, removes the folder, and in it `store`, if a test had the daemon make that. */
void test_daemon_fini(struct test_daemon *d);
/* Open descriptors of the daemon. */
int test_daemon_fds(const struct test_daemon *d);

#endif /* SKVQ_TEST_DAEMON_H */
