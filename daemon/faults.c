/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes skvqd-faults out of skvqd's objects: the linker turns the server's call of
 * spill_io_new into one of __wrap_spill_io_new (-Wl,--wrap), which puts an injector around the io.
 * skvqd itself has none of this. What to inject is in the environment:
 *
 *   SKVQD_FAULTS="seed=7,eio=50,lost=2,delay=100,delay_ms=300,crash=mid-seal,crash_at=3,counts_fd=9"
 *
 * or, of the sandbox alone, "forbidden=execve": once it serves, it tries that, and ends with status
 * FAULT_DONE or FAULT_REFUSED, if it still can.
 *
 * Rates are of 10,000 (spill/faults.h). counts_fd is an inherited memfd with room for a struct
 * spill_fault_counts; there the counts can be read when this process has been killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "sandbox.h"
#include "spill/faults.h"

/* Exit statuses of a forbidden deed. */
#define FAULT_DONE    40
#define FAULT_REFUSED 41

struct plan {
	uint64_t seed, crash_at;
	struct spill_fault_rates rates;
	enum spill_crash crash;
	int counts_fd; /* -1: none */
};

int __real_spill_io_new(const struct spill_io_config *config, struct spill_io **ret_io,
			struct why *why);
int __wrap_spill_io_new(const struct spill_io_config *config, struct spill_io **ret_io,
			struct why *why);

static bool number(const char *text, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return *text >= '0' && *text <= '9' && !errno && !*end;
}

static bool set(struct plan *plan, const char *key, const char *value)
{
#define RATE(name) {#name, offsetof(struct spill_fault_rates, name)},
	static const struct {
		const char *name;
		size_t at;
	} rates[] = {SPILL_FAULT_RATES(RATE)};
#undef RATE
	uint64_t n = 0;

	if (!strcmp(key, "crash"))
		return (plan->crash = spill_crash_parse(value)) != SPILL_CRASH_NONE;
	if (!number(value, &n))
		return false;
	if (!strcmp(key, "seed"))
		plan->seed = n;
	else if (!strcmp(key, "crash_at"))
		plan->crash_at = n ? n : 1;
	else if (!strcmp(key, "counts_fd") && n <= INT32_MAX)
		plan->counts_fd = (int)n;
	else
		for (size_t i = 0;; i++) {
			if (i == sizeof(rates) / sizeof(rates[0]) || n > UINT32_MAX)
				return false;
			if (strcmp(key, rates[i].name) != 0)
				continue;
			*(uint32_t *)(void *)((char *)&plan->rates + rates[i].at) = (uint32_t)n;
			break;
		}
	return true;
}

static int parse(const char *text, struct plan *ret, struct why *why)
{
	CLEANUP_FREE char *copy = strdup(text);
	char *save = NULL;

	if (!copy)
		return why_fail(why, SKVQ_ENOMEM, "no memory");
	for (char *at = strtok_r(copy, ",", &save); at; at = strtok_r(NULL, ",", &save)) {
		char *value = strchr(at, '=');

		if (value)
			*value++ = '\0';
		if (!value || !set(ret, at, value))
			return why_fail(why, SKVQ_EINVAL,
					"SKVQD_FAULTS: \"%.40s\" is not understood", at);
	}
	return 0;
}

/* The descriptor is used up. */
static int count_in(struct spill_io *io, int fd, struct why *why)
{
	void *at = mmap(NULL, sizeof(struct spill_fault_counts), PROT_READ | PROT_WRITE, MAP_SHARED,
			fd, 0);

	if (at == MAP_FAILED)
		return why_fail_errno(why, SKVQ_ESYS, "SKVQD_FAULTS: mapping counts_fd %d", fd);
	(void)close(fd);
	spill_faults_count_in(io, at);
	return 0;
}

/* ---- what a daemon that was taken over might try ---- */

#define FORBIDDEN "forbidden="

static long try_execve(void)
{
	char *const argv[] = {(char *)(uintptr_t) "true", NULL};

	return execve("/bin/true", argv, argv + 1);
}

static long try_inet(void)
{
	return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

/* To nobody, which any socket of the kind can; with a name it would be any service of the machine. */
static long try_connect(void)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	return connect(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), &nobody, sizeof(nobody));
}

static long try_read(void)
{
	return open("/etc/passwd", O_RDONLY | O_CLOEXEC);
}

static long try_write(void)
{
	return open("/tmp/skvqd-forbidden", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

/* Relative to a descriptor, which the store's files are too. */
static long try_write_at(void)
{
	return openat(0, "/tmp/skvqd-forbidden", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

static long try_unlink(void)
{
	return unlink("/tmp/skvqd-forbidden"); /* which the test has put there */
}

static long try_code(void)
{
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);

	return at == MAP_FAILED ? -1 : 0;
}

static long try_fork(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	(void)waitpid(pid, NULL, 0); /* it has our socket and our lock */
	return pid;
}

static long try_kill(void)
{
	return kill(getppid(), 0);
}

static long try_ptrace(void)
{
	return ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static long try_ring(void)
{
	uint8_t params[120] = {0};

	return syscall(SYS_io_uring_setup, 1, params);
}

static long try_bpf(void)
{
	return syscall(SYS_bpf, 0, NULL, 0) < 0 && errno != EINVAL && errno != EFAULT ? -1 : 0;
}

static void do_forbidden(const char *name)
{
	static const struct {
		const char *name;
		long (*fn)(void);
	} deeds[] = {{"execve", try_execve}, {"inet", try_inet}, {"connect", try_connect},        {"read", try_read},
		     {"write", try_write},   {"write_at", try_write_at}, {"unlink", try_unlink},
		     {"code", try_code},     {"fork", try_fork},         {"kill", try_kill},
		     {"ptrace", try_ptrace}, {"ring", try_ring},         {"bpf", try_bpf}};

	for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
		if (!strcmp(name, deeds[i].name))
			_exit(deeds[i].fn() < 0 ? FAULT_REFUSED : FAULT_DONE);
	}
	(void)fprintf(stderr, "SKVQD_FAULTS: \"%.40s\" is not understood\n", name);
	_exit(2);
}

int __real_sandbox_calls(enum sandbox_mode mode, bool has_store, struct why *why);
int __wrap_sandbox_calls(enum sandbox_mode mode, bool has_store, struct why *why);

int __wrap_sandbox_calls(enum sandbox_mode mode, bool has_store, struct why *why)
{
	const char *text = getenv("SKVQD_FAULTS");
	int err = __real_sandbox_calls(mode, has_store, why);

	if (text && !strncmp(text, FORBIDDEN, strlen(FORBIDDEN)))
		do_forbidden(text + strlen(FORBIDDEN));
	return err;
}

int __wrap_spill_io_new(const struct spill_io_config *config, struct spill_io **ret_io,
			struct why *why)
{
	struct plan plan = {.seed = 1, .crash_at = 1, .counts_fd = -1};
	const char *text = getenv("SKVQD_FAULTS");
	struct spill_io *below, *io;
	int err = 0;

	if (text && strncmp(text, FORBIDDEN, strlen(FORBIDDEN)) != 0)
		err = parse(text, &plan, why);
	if (!err)
		err = __real_spill_io_new(config, &below, why);
	if (err < 0)
		return err;
	io = spill_faults_new(below, plan.seed, &plan.rates);
	if (!io) {
		below->ops->free(below);
		return why_fail(why, SKVQ_ENOMEM, "no memory");
	}
	if (plan.crash != SPILL_CRASH_NONE)
		spill_faults_crash_at(io, plan.crash, plan.crash_at);
	if (plan.counts_fd >= 0)
		err = count_in(io, plan.counts_fd, why);
	if (err < 0) {
		io->ops->free(io);
		return err;
	}
	*ret_io = io;
	return 0;
}
