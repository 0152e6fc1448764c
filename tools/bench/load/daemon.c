/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "load.h"

#define START_US 20e6
#define STOP_US  20e6

static void nap(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* In the child. */
static void become(const char *bin, const char *folder, const char *socket, uint64_t ram_bytes)
{
	char path[4200], ram[32];
	int log;

	(void)snprintf(path, sizeof(path), "%s/log", folder);
	log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(127);
	(void)close(log);
	(void)snprintf(path, sizeof(path), "%s/skvqd", bin);
	(void)snprintf(ram, sizeof(ram), "%" PRIu64, ram_bytes);
	(void)execl(path, "skvqd", "--socket", socket, "--ram-max", ram, "--connections-max", "256",
		    "--log-level", "warning", (char *)NULL);
	_exit(127);
}

static bool answers(const char *socket)
{
	char why[SKVQ_CLIENT_WHY_BYTES];
	struct skvq_client *c;

	if (skvq_client_connect(socket, "bench-load-start", TIMEOUT_MS, &c, why) < 0)
		return false;
	skvq_client_free(c);
	return true;
}

pid_t daemon_start(const char *bin, const char *folder, const char *socket, uint64_t ram_bytes)
{
	double until = bench_now_us() + START_US;
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		fprintf(stderr, "bench-load: fork: %s\n", strerror(errno));
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			become(bin, folder, socket, ram_bytes);
		_exit(127);
	}
	while (pid > 0 && bench_now_us() < until) {
		if (waitpid(pid, NULL, WNOHANG) == pid) {
			fprintf(stderr, "bench-load: skvqd of %s ended at once\n", bin);
			return -1;
		}
		if (answers(socket))
			return pid;
		nap();
	}
	if (pid > 0) {
		fprintf(stderr, "bench-load: skvqd does not answer\n");
		(void)kill(pid, SIGKILL);
		(void)waitpid(pid, NULL, 0);
	}
	return -1;
}

bool daemon_stop(pid_t pid)
{
	double until = bench_now_us() + STOP_US;
	int status = 0;
	pid_t ended;

	(void)kill(pid, SIGTERM);
	while ((ended = waitpid(pid, &status, WNOHANG)) == 0 && bench_now_us() < until)
		nap();
	if (ended == 0) {
		fprintf(stderr, "bench-load: skvqd does not end\n");
		(void)kill(pid, SIGKILL);
		(void)waitpid(pid, NULL, 0);
		return false;
	}
	return ended == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ---- sampling ---- */

static FILE *open_proc(pid_t pid, const char *what)
{
	char path[320];

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	return fopen(path, "re");
}

static bool sample_memory(pid_t pid, struct daemon_sample *s)
{
	FILE *f = open_proc(pid, "status");
	char line[256];
	uint64_t kib;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "RssAnon: %" SCNu64, &kib) == 1 ||
		    sscanf(line, "RssFile: %" SCNu64, &kib) == 1)
			s->rss_bytes += kib << 10;
	}
	if (f)
		(void)fclose(f);
	return f && s->rss_bytes;
}

uint64_t daemon_arena_bytes(const char *socket)
{
	struct skvq_client_status *status = malloc(sizeof(*status));
	char why[SKVQ_CLIENT_WHY_BYTES];
	struct skvq_client *c = NULL;
	uint64_t bytes = 0;

	if (status && skvq_client_connect(socket, "bench-load-status", TIMEOUT_MS, &c, why) == 0 &&
	    skvq_client_status(c, status) == 0)
		bytes = status->bytes_kernel;
	skvq_client_free(c);
	free(status);
	return bytes;
}

/* Of each entry but "." and "..". */
static uint32_t each_entry(pid_t pid, const char *folder, double *cpu_us)
{
	char path[64], stat[300];
	struct dirent *e;
	uint32_t n = 0;
	DIR *dir;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, folder);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		uint64_t ns = 0;
		FILE *f;

		if (e->d_name[0] == '.')
			continue;
		n++;
		if (!cpu_us)
			continue;
		(void)snprintf(stat, sizeof(stat), "task/%s/schedstat", e->d_name);
		f = open_proc(pid, stat);
		if (f && fscanf(f, "%" SCNu64, &ns) == 1)
			*cpu_us += (double)ns / 1e3;
		if (f)
			(void)fclose(f);
	}
	if (dir)
		(void)closedir(dir);
	return n;
}

bool daemon_sample(pid_t pid, struct daemon_sample *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->fds = each_entry(pid, "fd", NULL);
	(void)each_entry(pid, "task", &ret->cpu_us);
	return sample_memory(pid, ret);
}
