/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

static json_t *object;
static bool print_object;

_Noreturn void die(const char *format, ...)
{
	va_list args;

	fflush(stdout);
	fputs("bench-attention: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

void *take_large(size_t bytes)
{
	void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);

	if (!p)
		die("no memory for %zu bytes", bytes);
	return p;
}

void *take(size_t bytes)
{
	return memset(take_large(bytes), 0, bytes);
}

void report_open(bool json)
{
	print_object = json;
	object = json_object();
	if (!object)
		die("no memory");
}

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	fflush(stdout);
}

void put_number(const char *key, double value)
{
	if (json_object_set_new(object, key, json_real(value)) < 0)
		die("'%s' is no number", key);
}

void put_text(const char *key, const char *value)
{
	if (json_object_set_new(object, key, json_string(value)) < 0)
		die("'%s' is no text", key);
}

/* The script beside this executable draws; it gets the object on its standard input. */
static void make_plot(const char *path)
{
	char self[4096], command[4200];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	int pipe_fd[2], status = -1;

	if (n < 0)
		die("/proc/self/exe: %s", strerror(errno));
	self[n] = 0;
	snprintf(command, sizeof command, "%s-plot", self);
	if (pipe(pipe_fd) < 0)
		die("pipe: %s", strerror(errno));
	pid_t pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (pid == 0) {
		(void)dup2(pipe_fd[0], 0);
		close(pipe_fd[1]);
		execl(command, command, path, (char *)NULL);
		_exit(127);
	}
	close(pipe_fd[0]);
	FILE *to = fdopen(pipe_fd[1], "w");
	if (!to || json_dumpf(object, to, JSON_COMPACT) < 0)
		die("cannot write to '%s'", command);
	fclose(to);
	waitpid(pid, &status, 0);
	if (status != 0)
		die("no plot '%s': '%s' failed", path, command);
}

int report_close(const char *plot)
{
	if (print_object) {
		if (json_dumpf(object, stdout,
			       JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6)) < 0)
			die("cannot print the JSON object");
		putchar('\n');
	}
	int status = fflush(stdout) == 0 ? 0 : 1;
	if (plot) /* last: without matplotlib the figures are there all the same */
		make_plot(plot);
	json_decref(object);
	return status;
}
