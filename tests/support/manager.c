/* SPDX-License-Identifier: Apache-2.0 */
#include "manager.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STOP_MS_MAX 20000
#define FIRST_FD 3 /* SD_LISTEN_FDS_START */

static void die(const char *what)
{
	fprintf(stderr, "test manager: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* In the child: its environment, and the kept descriptors from 3 on. */
static void become_service(void *ctx)
{
	struct test_manager *m = ctx;
	char names[MANAGER_FDS * 65] = "", number[16];
	int high[MANAGER_FDS];

	setenv("NOTIFY_SOCKET", m->path, 1);
	if (!m->n)
		return;
	for (int i = 0; i < m->n; i++) {
		high[i] = fcntl(m->kept[i].fd, F_DUPFD_CLOEXEC, 500);
		if (high[i] < 0)
			_exit(126);
		strcat(names, i ? ":" : "");
		strcat(names, m->kept[i].name);
	}
	for (int i = 0; i < m->n; i++)
		if (dup2(high[i], FIRST_FD + i) < 0)
			_exit(126);
	snprintf(number, sizeof number, "%d", m->n);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	snprintf(number, sizeof number, "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
}

void manager_init(struct test_manager *m, struct test_daemon *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	memset(m, 0, sizeof *m);
	m->keep_max = MANAGER_FDS;
	snprintf(m->path, sizeof m->path, "%s/notify", d->dir);
	snprintf(a.sun_path, sizeof a.sun_path, "%s", m->path);
	m->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (m->sock < 0 || bind(m->sock, (struct sockaddr *)&a, sizeof a) < 0)
		die(m->path);
	d->in_child = become_service;
	d->ctx = m;
}

void manager_drop(struct test_manager *m, int fd)
{
	for (int i = 0; i < m->n; i++) {
		if (m->kept[i].fd != fd)
			continue;
		close(fd);
		memmove(&m->kept[i], &m->kept[i + 1], (size_t)(m->n - i - 1) * sizeof m->kept[0]);
		m->n--;
		return;
	}
}

void manager_fini(struct test_manager *m, struct test_daemon *d)
{
	while (m->n)
		manager_drop(m, m->kept[0].fd);
	close(m->sock);
	unlink(m->path);
	d->in_child = NULL;
}

static bool says(const char *text, const char *line)
{
	size_t n = strlen(line);

	for (const char *at = text; (at = strstr(at, line)); at++)
		if ((at == text || at[-1] == '\n') && (!at[n] || at[n] == '\n'))
			return true;
	return false;
}

static void obey(struct test_manager *m, const char *text, const int *fds, int n)
{
	const char *at = strstr(text, "FDNAME=");
	char name[64] = "stored";

	if (at)
		snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 7, "\n"), at + 7);
	m->ready += says(text, "READY=1");
	m->stopping += says(text, "STOPPING=1");
	for (int i = 0; i < n; i++) {
		/* Without FDPOLL=0 a manager drops sockets whose other end has gone. */
		if (!says(text, "FDSTORE=1") || !says(text, "FDPOLL=0") || m->n >= m->keep_max) {
			close(fds[i]);
			continue;
		}
		m->kept[m->n].fd = fds[i];
		strcpy(m->kept[m->n++].name, name);
	}
	for (int i = 0; says(text, "FDSTOREREMOVE=1") && !m->forgets_not && i < m->n;) {
		if (!strcmp(m->kept[i].name, name))
			manager_drop(m, m->kept[i].fd);
		else
			i++;
	}
}

void manager_pump(struct test_manager *m)
{
	for (;;) {
		union {
			struct cmsghdr align;
			char bytes[CMSG_SPACE(253 * sizeof(int))];
		} control;
		char text[1024];
		int fds[253], n = 0;
		struct iovec iov = {.iov_base = text, .iov_len = sizeof text - 1};
		struct msghdr msg = {.msg_iov = &iov,
		                     .msg_iovlen = 1,
		                     .msg_control = &control,
		                     .msg_controllen = sizeof control};
		ssize_t got = recvmsg(m->sock, &msg, MSG_CMSG_CLOEXEC);

		if (got < 0)
			return;
		text[got] = 0;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
			if (c->cmsg_type != SCM_RIGHTS)
				continue;
			n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds, CMSG_DATA(c), (size_t)n * sizeof(int));
		}
		obey(m, text, fds, n);
	}
}

int manager_stop(struct test_manager *m, struct test_daemon *d, int sig)
{
	int status = -1;

	kill(d->pid, sig);
	for (int ms = 0; waitpid(d->pid, &status, WNOHANG) != d->pid; ms += 2) {
		manager_pump(m);
		if (ms > STOP_MS_MAX) {
			kill(d->pid, SIGKILL);
			errno = ETIMEDOUT;
			die("the daemon does not end");
		}
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	}
	manager_pump(m);
	d->pid = 0;
	return status;
}

int manager_find(const struct test_manager *m, const char *prefix, int i)
{
	for (int at = 0; at < m->n; at++)
		if (!strncmp(m->kept[at].name, prefix, strlen(prefix)) && i-- == 0)
			return m->kept[at].fd;
	return -1;
}
