/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_MS_MAX 10000
#define STOP_MS_MAX 10000
#define ARGS_MAX 48

static void die(const char *what)
{
	fprintf(stderr, "test daemon: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

void test_daemon_init(struct test_daemon *d)
{
	memset(d, 0, sizeof *d);
	snprintf(d->dir, sizeof d->dir, "/tmp/skvqd-test-XXXXXX");
	if (!mkdtemp(d->dir))
		die("mkdtemp");
	snprintf(d->socket, sizeof d->socket, "%s/skvqd.sock", d->dir);
}

static int answers(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	int ok = fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
	close(fd);
	return ok;
}

void test_daemon_start(struct test_daemon *d, const char *program, const char *const *args)
{
	const char *argv[ARGS_MAX] = {program, "--socket", d->socket};
	int n = 3;

	while (args && *args && n < ARGS_MAX - 1)
		argv[n++] = *args++;
	pid_t parent = getpid();
	d->pid = fork();
	if (d->pid < 0)
		die("fork");
	if (d->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		if (!getenv("SKVQ_TEST_VERBOSE")) {
			int null = open("/dev/null", O_WRONLY);
			dup2(null, 1);
			dup2(null, 2);
		}
		if (d->in_child)
			d->in_child(d->ctx);
		execv(program, (char *const *)(void *)argv);
		_exit(127);
	}
	for (int ms = 0; ms < START_MS_MAX; ms += 5) {
		int status;

		if (answers(d->socket))
			return;
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			fprintf(stderr, "test daemon: '%s' ended with status %d\n", program, status);
			exit(1);
		}
		nap();
	}
	errno = ETIMEDOUT;
	die(d->socket);
}

int test_daemon_stop(struct test_daemon *d, int sig)
{
	int status = -1;

	if (!d->pid)
		return -1;
	kill(d->pid, sig);
	for (int ms = 0;; ms += 5) {
		if (waitpid(d->pid, &status, WNOHANG) == d->pid)
			break;
		if (ms > STOP_MS_MAX) {
			fprintf(stderr, "test daemon: still there %d ms after signal %d\n", ms, sig);
			kill(d->pid, SIGKILL);
			waitpid(d->pid, &status, 0);
			exit(1);
		}
		nap();
	}
	d->pid = 0;
	return status;
}

/* The store's folder, which has files alone. */
static void remove_store(const struct test_daemon *d)
{
	char path[sizeof d->dir + 16];
	struct dirent *e;

	snprintf(path, sizeof path, "%s/store", d->dir);
	DIR *dir = opendir(path);
	while (dir && (e = readdir(dir)))
		(void)unlinkat(dirfd(dir), e->d_name, 0);
	if (dir)
		closedir(dir);
	rmdir(path);
}

void test_daemon_fini(struct test_daemon *d)
{
	if (d->pid)
		test_daemon_stop(d, SIGTERM);
	unlink(d->socket);
	remove_store(d);
	rmdir(d->dir);
}

int test_daemon_fds(const struct test_daemon *d)
{
	char path[64];
	int n = 0;

	snprintf(path, sizeof path, "/proc/%d/fd", (int)d->pid);
	DIR *dir = opendir(path);
	if (!dir)
		die(path);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}
