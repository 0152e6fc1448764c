/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that any service by a socket would take on this machine at this moment: a process that
 * sends back what it gets, over socket pairs of its own, and does nothing else.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "load.h"

/* Until it is killed. */
static void serve(const int *fds, uint32_t n)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event events[16];
	char buf[ECHO_BYTES];

	for (uint32_t i = 0; i < n; i++) {
		struct epoll_event e = {.events = EPOLLIN, .data.fd = fds[i]};

		if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &e) < 0)
			_exit(1);
	}
	for (;;) {
		int ready = epoll_wait(epoll, events, 16, -1);

		for (int i = 0; i < ready; i++) {
			ssize_t r = recv(events[i].data.fd, buf, sizeof(buf), 0);

			if (r <= 0 || send(events[i].data.fd, buf, (size_t)r, MSG_NOSIGNAL) != r)
				(void)epoll_ctl(epoll, EPOLL_CTL_DEL, events[i].data.fd, NULL);
		}
	}
}

static void close_all(int *fds, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (fds[i] >= 0)
			(void)close(fds[i]);
		fds[i] = -1;
	}
}

pid_t echo_start(uint32_t n, int ret_fds[CLIENTS_MAX + 1])
{
	const struct timeval deadline = {.tv_sec = TIMEOUT_MS / 1000};
	pid_t parent = getpid(), pid = -1;
	int theirs[CLIENTS_MAX + 1];
	uint32_t made = 0;

	for (int pair[2]; made < n; made++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
			break;
		ret_fds[made] = pair[0];
		theirs[made] = pair[1];
		(void)setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline));
	}
	if (made == n)
		pid = fork();
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			serve(theirs, n);
		_exit(1);
	}
	close_all(theirs, made);
	if (pid < 0) {
		fprintf(stderr, "bench-load: no process that echoes: %s\n", strerror(errno));
		close_all(ret_fds, made);
	}
	return pid;
}

void echo_stop(pid_t pid, uint32_t n, int fds[CLIENTS_MAX + 1])
{
	if (pid > 0) {
		(void)kill(pid, SIGKILL);
		(void)waitpid(pid, NULL, 0);
		close_all(fds, n);
	}
}

bool echo_once(int fd)
{
	char buf[ECHO_BYTES] = {0};

	if (send(fd, buf, sizeof(buf), MSG_NOSIGNAL) != (ssize_t)sizeof(buf))
		return false;
	return recv(fd, buf, sizeof(buf), MSG_WAITALL) == (ssize_t)sizeof(buf);
}
