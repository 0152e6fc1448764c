/* SPDX-License-Identifier: Apache-2.0 */
/* mem/arena: I2, clients can't write shared pages; and its bytes are the kernel's. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "mem/arena.h"

#define BYTES (64u * 4096u)
#define SKIP  77

static struct arena arena;

static int setup(void **state)
{
	struct why why;

	(void)state;
	return arena_init(&arena, "test", BYTES, &why);
}

static int teardown(void **state)
{
	(void)state;
	arena_fini(&arena);
	return 0;
}

static void is_sealed_and_fixed(void **state)
{
	struct stat st;

	(void)state;
	assert_int_equal(fcntl(arena.fd_ro, F_GET_SEALS) &
			     (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL | F_SEAL_WRITE),
			 F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
	assert_int_equal(fstat(arena.fd_ro, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0400);
	assert_int_equal(st.st_size, BYTES);
	assert_int_equal(ftruncate(arena.fd, 2 * BYTES), -1);
	assert_int_equal(ftruncate(arena.fd, 4096), -1);
	assert_int_equal(fcntl(arena.fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_true(fcntl(arena.fd_ro, F_GETFD) & FD_CLOEXEC);
}

static void client_descriptor_is_read_only(void **state)
{
	uint8_t *p;

	(void)state;
	assert_int_equal(arena_commit(&arena, 0, 4096), 0);
	arena.base[5] = 0x5a;
	assert_ptr_equal(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, arena.fd_ro, 0),
			 MAP_FAILED);
	assert_int_equal(errno, EACCES);
	assert_int_equal(pwrite(arena.fd_ro, "x", 1, 0), -1);
	assert_int_equal(
	    fallocate(arena.fd_ro, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	p = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, arena.fd_ro, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(p[5], 0x5a);
	assert_int_equal(mprotect(p, BYTES, PROT_READ | PROT_WRITE), -1);
	assert_int_equal(errno, EACCES);
	/* A page given back reads as zero in the client's mapping, and does not fault. */
	assert_int_equal(arena_punch(&arena, 0, 4096), 0);
	assert_int_equal(p[5], 0);
	munmap(p, BYTES);
}

/* What a client of another uid can do with the descriptor it was sent. */
static int as_nobody(void)
{
	char path[64];

	if (setgid(65534) < 0 || setuid(65534) < 0)
		return SKIP;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", arena.fd_ro);
	if (open(path, O_RDWR) >= 0 || open(path, O_WRONLY) >= 0)
		return 1;
	if (open(path, O_RDONLY) >= 0)
		return 2; /* mode 0400 and not the owner */
	if (fchmod(arena.fd_ro, 0666) == 0)
		return 3;
	if (mmap(NULL, BYTES, PROT_READ, MAP_SHARED, arena.fd_ro, 0) == MAP_FAILED)
		return 4;
	return 0;
}

static void other_uid_cannot_reopen(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0)
		skip();
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(as_nobody());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == SKIP)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void bytes_are_the_kernels(void **state)
{
	uint64_t bytes;
	volatile uint8_t *p;

	(void)state;
	assert_int_equal(arena_kernel_bytes(&arena, &bytes), 0);
	assert_int_equal(bytes, 0);
	assert_int_equal(arena_commit(&arena, 8192, 3 * 4096), 0);
	assert_int_equal(arena_kernel_bytes(&arena, &bytes), 0);
	assert_int_equal(bytes, 3 * 4096);
	assert_int_equal(arena_commit(&arena, 8192, 3 * 4096), 0);
	assert_int_equal(arena_punch(&arena, 8192, 4096), 0);
	assert_int_equal(arena_kernel_bytes(&arena, &bytes), 0);
	assert_int_equal(bytes, 2 * 4096);
	/* A reader that looks into a hole costs memory: this is why the cache asks the kernel. */
	p = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, arena.fd_ro, 0);
	assert_int_equal(p[40 * 4096], 0);
	assert_int_equal(arena_kernel_bytes(&arena, &bytes), 0);
	assert_true(bytes > 2 * 4096);
	munmap((void *)(uintptr_t)p, BYTES);
}

static void impossible_sizes(void **state)
{
	struct arena bad;
	struct why why;

	(void)state;
	assert_int_equal(arena_init(&bad, "bad", 0, &why), -SKVQ_ENOMEM);
	assert_int_equal(arena_init(&bad, "bad", UINT64_MAX, &why), -SKVQ_ENOMEM);
	assert_true(arena_init(&bad, "bad", UINT64_C(1) << 62, &why) < 0);
	assert_int_equal(bad.fd, -1);
	arena_fini(&bad);
}

/* What a daemon left is taken as it is, and nothing else is. */
static void only_an_arena_is_adopted(void **state)
{
	static const struct {
		int seals;
		mode_t mode;
		uint64_t bytes;
		int code;
	} cases[] = {
	    {F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0400, BYTES, 0},
	    {0, 0400, BYTES, SKVQ_ESEALS},
	    {F_SEAL_GROW | F_SEAL_SHRINK, 0400, BYTES, SKVQ_ESEALS},
	    {F_SEAL_GROW | F_SEAL_SEAL, 0400, BYTES, SKVQ_ESEALS},
	    {F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL | F_SEAL_WRITE, 0400, BYTES, SKVQ_ESEALS},
	    {F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0600, BYTES, SKVQ_EFD},
	    {F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0400, BYTES - 4096, SKVQ_EFD},
	    {F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0400, 2 * BYTES, SKVQ_EFD},
	    {F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0400, 0, SKVQ_EFD},
	};
	struct arena a;
	struct why why;
	int fd;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fd = memfd_create("left", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(fd, (off_t)cases[i].bytes), 0);
		assert_int_equal(fchmod(fd, cases[i].mode), 0);
		if (cases[i].seals)
			assert_int_equal(fcntl(fd, F_ADD_SEALS, cases[i].seals), 0);
		assert_int_equal(arena_adopt(&a, &fd, BYTES, &why), -cases[i].code);
		assert_int_equal(fd == -1, cases[i].code == 0);
		assert_int_equal(a.fd == -1, cases[i].code != 0);
		arena_fini(&a);
		if (fd >= 0)
			close(fd);
	}
	/* As it was left: bytes and all. */
	assert_int_equal(arena_commit(&arena, 0, 4096), 0);
	arena.base[7] = 0x77;
	fd = fcntl(arena.fd, F_DUPFD_CLOEXEC, 3);
	assert_int_equal(arena_adopt(&a, &fd, BYTES, &why), 0);
	assert_int_equal(a.base[7], 0x77);
	assert_int_equal(fcntl(a.fd_ro, F_GETFL) & O_ACCMODE, O_RDONLY);
	arena_fini(&a);
	/* A client's descriptor, a pipe, nothing. */
	fd = fcntl(arena.fd_ro, F_DUPFD_CLOEXEC, 3);
	assert_int_equal(arena_adopt(&a, &fd, BYTES, &why), -SKVQ_EFD);
	close(fd);
	fd = -1;
	assert_int_equal(arena_adopt(&a, &fd, BYTES, &why), -SKVQ_ESEALS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(is_sealed_and_fixed, setup, teardown),
	    cmocka_unit_test_setup_teardown(client_descriptor_is_read_only, setup, teardown),
	    cmocka_unit_test_setup_teardown(other_uid_cannot_reopen, setup, teardown),
	    cmocka_unit_test_setup_teardown(bytes_are_the_kernels, setup, teardown),
	    cmocka_unit_test_setup_teardown(only_an_arena_is_adopted, setup, teardown),
	    cmocka_unit_test(impossible_sizes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
