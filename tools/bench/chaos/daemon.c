/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "chaos.h"

#define START_MS_MAX 30000u
#define ARGS_MAX     64
#define TAIL_BYTES   2000

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* In the child. */
static void become(const struct daemon_run *d, const char *const *args, const char *faults)
{
	const char *argv[ARGS_MAX] = {faults ? "skvqd-faults" : "skvqd",
				      "--socket",
				      d->socket,
				      "--store-folder",
				      d->store,
				      "--log-level",
				      "warning"};
	char path[4200], text[FAULTS_BYTES + 32];
	int n = 7, log;

	(void)snprintf(path, sizeof(path), "%s/log", d->folder);
	log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(127);
	(void)close(log);
	while (*args && n < ARGS_MAX - 1)
		argv[n++] = *args++;
	if (faults) {
		(void)snprintf(text, sizeof(text), "%s,counts_fd=%d", faults, d->counts_fd);
		if (setenv("SKVQD_FAULTS", text, 1) < 0 || fcntl(d->counts_fd, F_SETFD, 0) < 0)
			_exit(127);
	}
	(void)snprintf(path, sizeof(path), "%s/%s", d->bin, argv[0]);
	(void)execv(path, (char *const *)(void *)argv);
	_exit(127);
}

static bool answers(const struct daemon_run *d)
{
	char why[SKVQ_CLIENT_WHY_BYTES];
	struct skvq_client *c;

	if (skvq_client_connect(d->socket, "chaos-start", TIMEOUT_MS, &c, why) < 0)
		return false;
	skvq_client_free(c);
	return true;
}

int daemon_start(struct daemon_run *d, const char *const *args, const char *faults, int *ret_status)
{
	uint64_t until = now_ms() + START_MS_MAX;
	pid_t parent = getpid();

	d->pid = fork();
	if (d->pid < 0) {
		fprintf(stderr, "chaos: fork: %s\n", strerror(errno));
		d->pid = 0;
		return -1;
	}
	if (d->pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			become(d, args, faults);
		_exit(127);
	}
	while (now_ms() < until) {
		if (daemon_ended(d, ret_status))
			return -1;
		if (answers(d)) {
			count_baseline(d);
			return 0;
		}
		nap();
	}
	fprintf(stderr, "chaos: the daemon does not answer %u ms after its start\n", START_MS_MAX);
	(void)daemon_stop(d, SIGKILL, TIMEOUT_MS, ret_status);
	return -1;
}

bool daemon_ended(struct daemon_run *d, int *ret_status)
{
	if (!d->pid || waitpid(d->pid, ret_status, WNOHANG) != d->pid)
		return false;
	d->pid = 0;
	return true;
}

bool daemon_stop(struct daemon_run *d, int sig, uint64_t wait_ms, int *ret_status)
{
	uint64_t until = now_ms() + wait_ms;

	if (!d->pid)
		return true;
	(void)kill(d->pid, sig);
	while (!daemon_ended(d, ret_status)) {
		if (now_ms() > until) {
			(void)kill(d->pid, SIGKILL);
			(void)waitpid(d->pid, ret_status, 0);
			d->pid = 0;
			return false;
		}
		nap();
	}
	return true;
}

void daemon_log_tail(const struct daemon_run *d)
{
	char path[128], text[TAIL_BYTES + 1];
	struct stat st;
	ssize_t n;
	int fd;

	(void)snprintf(path, sizeof(path), "%s/log", d->folder);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0) {
		n = pread(fd, text, TAIL_BYTES,
			  st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0);
		text[n > 0 ? n : 0] = '\0';
		fprintf(stderr, "chaos: its log ends:\n%s\n", text);
	}
	(void)close(fd);
}
