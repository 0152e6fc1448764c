/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon that was taken over by its socket could still do: skvqd-faults tries each deed once
 * it serves. In the sandbox the kernel ends it, or refuses; without it the same deed is done, so
 * that the test knows it was tried. All other tests run the daemon as it is by default: inside.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmocka_all.h"

#include "spill/ring.h"
#include "support/daemon.h"

/* Of daemon/faults.c. */
#define DONE    40
#define REFUSED 41

#define KILLED (-SIGSYS)

static char dir[64];

static int setup(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/skvqd-sandbox-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[96];

	(void)state;
	(void)unlink("/tmp/skvqd-forbidden");
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	return system(command);
}

/* How a daemon ends that does this: an exit status, or a signal negated. */
static int end_of(const char *deed, const char *mode, bool store)
{
	char socket[96], folder[96], faults[64];
	int status;
	pid_t pid;

	(void)snprintf(socket, sizeof(socket), "%s/s", dir);
	(void)snprintf(folder, sizeof(folder), "%s/store", dir);
	(void)snprintf(faults, sizeof(faults), "forbidden=%s", deed);
	(void)close(open("/tmp/skvqd-forbidden", O_CREAT | O_WRONLY, 0600));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)setenv("SKVQD_FAULTS", faults, 1);
		(void)alarm(30);
		execl(SKVQD_FAULTS_PATH, SKVQD_FAULTS_PATH, "--socket", socket, "--sandbox", mode,
		      "--log-level", "error", store ? "--store-folder" : NULL, folder, NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static const struct {
	const char *deed;
	int with_store, without; /* its end in the sandbox */
} deeds[] = {
    {"execve", KILLED, KILLED},    {"inet", KILLED, KILLED},   {"connect", KILLED, KILLED}, {"code", KILLED, KILLED},
    {"fork", KILLED, KILLED},      {"kill", KILLED, KILLED},   {"ptrace", KILLED, KILLED},
    {"ring", KILLED, KILLED},      {"bpf", KILLED, KILLED},    {"write", KILLED, KILLED},
    {"write_at", REFUSED, KILLED}, {"read", REFUSED, REFUSED}, {"unlink", REFUSED, REFUSED},
};

static bool has_landlock(void)
{
	return syscall(444 /* landlock_create_ruleset */, NULL, 0, 1 /* version */) > 0;
}

static void each_deed_ends_in_the_sandbox(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
		/* Paths are the kernel's newer layer. */
		if (!has_landlock() && deeds[i].with_store == REFUSED)
			continue;
		for (int store = 0; store < 2; store++) {
			int want = store ? deeds[i].with_store : deeds[i].without;
			int end = end_of(deeds[i].deed, "on", store);

			if (end != want)
				fail_msg("%s, %s store: ended with %d, not %d", deeds[i].deed,
					 store ? "with" : "without", end, want);
		}
	}
}

static void without_it_each_is_done(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
		int end = end_of(deeds[i].deed, "off", true);

		/* A successful execve ends as that program does; bpf and the ring are root's, or
		 * nobody's, in places. */
		if (end != DONE && end != 0 &&
		    !(end == REFUSED &&
		      (!strcmp(deeds[i].deed, "bpf") || !strcmp(deeds[i].deed, "ring") ||
		       !strcmp(deeds[i].deed, "ptrace"))))
			fail_msg("%s was not tried: it ended with %d", deeds[i].deed, end);
	}
}

static void log_mode_lets_them_pass(void **state)
{
	(void)state;
	assert_int_equal(end_of("inet", "log", false), DONE);
	assert_int_equal(end_of("read", "log", false), DONE);
}

/* Of every thread of the process. */
static void every_thread_is_inside(void **state)
{
	const char *const args[] = {"--log-level", "error", NULL};
	struct test_daemon d;
	struct dirent *at;
	char path[320];
	int threads = 0;
	DIR *tasks;

	(void)state;
	test_daemon_init(&d);
	test_daemon_start(&d, SKVQD_PATH, args);
	(void)usleep(
	    200000); /* it listens before it is inside; connecting does not wait for that */
	(void)snprintf(path, sizeof(path), "/proc/%d/task", (int)d.pid);
	tasks = opendir(path);
	assert_non_null(tasks);
	while ((at = readdir(tasks)) != NULL) {
		char line[256];
		int mode = -1;
		FILE *f;

		if (at->d_name[0] == '.')
			continue;
		(void)snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)d.pid,
			       at->d_name);
		f = fopen(path, "r");
		assert_non_null(f);
		while (fgets(line, sizeof(line), f))
			(void)sscanf(line, "Seccomp: %d", &mode);
		(void)fclose(f);
		assert_int_equal(mode, 2);
		threads++;
	}
	(void)closedir(tasks);
	assert_true(threads >= 4); /* loop, closer, two workers */
	assert_int_equal(test_daemon_stop(&d, SIGTERM), 0);
	test_daemon_fini(&d);
}

/* ---- the ring, which no filter of calls sees into ---- */

static int through(struct io_uring *ring, void (*prepare)(struct io_uring_sqe *sqe))
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int r;

	assert_non_null(sqe);
	prepare(sqe);
	assert_int_equal(io_uring_submit_and_wait(ring, 1), 1);
	assert_int_equal(io_uring_wait_cqe(ring, &cqe), 0);
	r = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return r;
}

static int zero_fd;
static char byte;

static void prepare_read(struct io_uring_sqe *sqe)
{
	io_uring_prep_read(sqe, zero_fd, &byte, 1, 0);
}

static void prepare_open(struct io_uring_sqe *sqe)
{
	io_uring_prep_openat(sqe, -100 /* AT_FDCWD */, "/etc/passwd", 0, 0);
}

static void prepare_socket(struct io_uring_sqe *sqe)
{
	io_uring_prep_rw(45 /* IORING_OP_SOCKET */, sqe, 2 /* AF_INET */, NULL, 0, 1);
}

static void prepare_nop(struct io_uring_sqe *sqe)
{
	io_uring_prep_nop(sqe);
}

static void prepare_linked(struct io_uring_sqe *sqe)
{
	io_uring_prep_read(sqe, zero_fd, &byte, 1, 0);
	sqe->flags |= IOSQE_ASYNC;
}

static void the_ring_does_what_the_store_needs_alone(void **state)
{
	struct io_uring ring;
	bool restricted = false;

	(void)state;
	zero_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	assert_true(zero_fd >= 0);
	if (spill_ring_init(&ring, 4) < 0)
		skip();
	assert_int_equal(spill_ring_enable(&ring, &restricted), 0);
	if (!restricted) {
		io_uring_queue_exit(&ring);
		skip();
	}
	assert_int_equal(through(&ring, prepare_read), 1);
	assert_int_equal(through(&ring, prepare_open), -EACCES);
	assert_int_equal(through(&ring, prepare_socket), -EACCES);
	assert_int_equal(through(&ring, prepare_nop), -EACCES);
	assert_int_equal(through(&ring, prepare_linked), -EACCES);
	assert_int_equal(io_uring_register_personality(&ring), -EACCES);
	assert_int_equal(io_uring_register_files(&ring, &zero_fd, 1), -EACCES);
	io_uring_queue_exit(&ring);
	(void)close(zero_fd);
}

int main(void)
{
	const struct CMUnitTest ring[] = {
	    cmocka_unit_test(the_ring_does_what_the_store_needs_alone),
	};
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(each_deed_ends_in_the_sandbox, setup, teardown),
	    cmocka_unit_test_setup_teardown(without_it_each_is_done, setup, teardown),
	    cmocka_unit_test_setup_teardown(log_mode_lets_them_pass, setup, teardown),
	    cmocka_unit_test(every_thread_is_inside),
	};
	int failed = cmocka_run_group_tests(ring, NULL, NULL);

	if (!failed && SANDBOX_BUILT)
		failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed;
}
