/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"

static const char *const names[] = {
    [SANDBOX_OFF] = "off", [SANDBOX_ON] = "on", [SANDBOX_LOG] = "log"};

int sandbox_mode_parse(const char *name)
{
	for (int i = 0; i < (int)(sizeof(names) / sizeof(names[0])); i++) {
		if (!strcmp(name, names[i]))
			return i;
	}
	return -1;
}

const char *sandbox_mode_name(enum sandbox_mode mode)
{
	return names[mode];
}

/* ---- paths ---- */

/* Of later kernels than these headers: version 3, 5; and the struct as of 6. */
#define FS_TRUNCATE  (UINT64_C(1) << 14)
#define FS_IOCTL     (UINT64_C(1) << 15)
#define NET_TCP      UINT64_C(3) /* bind, connect: version 4 */
#define SCOPE_SIGNAL UINT64_C(2) /* to nobody outside: version 6 */

struct ruleset {
	uint64_t fs, net, scoped;
};

/* All rights there are: what no rule gives is refused. */
static struct ruleset everything(long version, size_t *ret_bytes)
{
	struct ruleset all = {.fs = LANDLOCK_ACCESS_FS_REFER - 1};

	all.fs |= version >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0;
	all.fs |= version >= 3 ? FS_TRUNCATE : 0;
	all.fs |= version >= 5 ? FS_IOCTL : 0;
	all.net = version >= 4 ? NET_TCP : 0;
	all.scoped = version >= 6 ? SCOPE_SIGNAL : 0;
	*ret_bytes = version >= 6 ? sizeof(all) : version >= 4 ? 16 : 8;
	return all;
}

static int allow_beneath(int ruleset, const char *path, uint64_t rights, struct why *why)
{
	CLEANUP_FD int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct landlock_path_beneath_attr rule = {.allowed_access = rights, .parent_fd = fd};

	if (fd < 0 ||
	    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		return why_fail_errno(why, SKVQ_ESYS, "keeping \"%.100s\" in the sandbox", path);
	return 0;
}

/* The end of the process takes its socket away. */
static int allow_socket(int ruleset, const char *path, struct why *why)
{
	CLEANUP_FREE char *folder = strdup(path);
	char *slash = folder ? strrchr(folder, '/') : NULL;

	if (!folder)
		return why_fail(why, SKVQ_ENOMEM, "no memory");
	if (slash)
		slash[slash == folder] = '\0';
	return allow_beneath(ruleset, slash ? folder : ".", LANDLOCK_ACCESS_FS_REMOVE_FILE, why);
}

static int allow_store(int ruleset, const char *folder, uint64_t all, struct why *why)
{
	uint64_t rights = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE |
			  LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
			  LANDLOCK_ACCESS_FS_MAKE_DIR | /* a folder for each tenant */
			  LANDLOCK_ACCESS_FS_REMOVE_FILE | FS_TRUNCATE;

	if (mkdir(folder, 0700) < 0 && errno != EEXIST)
		return why_fail_errno(why, SKVQ_ESYS, "cannot make the folder '%.100s'", folder);
	return allow_beneath(ruleset, folder, rights & all, why);
}

int sandbox_paths(enum sandbox_mode mode, const char *const *sockets, uint32_t n_sockets,
		  const char *store, struct why *why)
{
	long version;
	struct ruleset all;
	size_t bytes;
	int err = 0;

	if (mode != SANDBOX_ON || !sandbox_is_built())
		return 0;
	version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	if (version < 1)
		return why_fail_errno(why, SKVQ_ENOTSUP, "paths: this kernel has no Landlock");
	all = everything(version, &bytes);
	CLEANUP_FD int ruleset = (int)syscall(SYS_landlock_create_ruleset, &all, bytes, 0);

	if (ruleset < 0)
		return why_fail_errno(why, SKVQ_ESYS, "paths: Landlock");
	for (uint32_t i = 0; !err && i < n_sockets; i++)
		err = allow_socket(ruleset, sockets[i], why);
	if (!err && store && *store)
		err = allow_store(ruleset, store, all.fs, why);
	if (err < 0)
		return err;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
		return why_fail_errno(why, SKVQ_ESYS, "paths: Landlock");
	return 0;
}

/* ---- calls ---- */

#if defined(SKVQD_SECCOMP)
#include <linux/io_uring.h>
#include <seccomp.h>

#ifndef F_ADD_SEALS
#error "glibc with memfd seals is needed"
#endif

/* Whatever their arguments: they reach what is open, and memory. No connect: the doors have asked
 * who serves them before, and the service manager is sent to. No clone: all threads are there, and
 * jemalloc starts none unless MALLOC_CONF says background_thread. */
static const int calls[] = {
    /* descriptors */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(writev),
    SCMP_SYS(lseek),
    SCMP_SYS(close),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(statx),
    SCMP_SYS(lstat),
    SCMP_SYS(stat),
    SCMP_SYS(fstatfs),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate),
    SCMP_SYS(fchmod),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(pipe2),
    SCMP_SYS(memfd_create),
    SCMP_SYS(eventfd2),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    /* clients, and the service manager */
    SCMP_SYS(accept4),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(recvfrom),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    /* the end: the socket; and files of the store, within what sandbox_paths leaves */
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(getdents64),
    /* the ring is restricted by itself: see spill/io_uring.c */
    SCMP_SYS(io_uring_enter),
    /* memory, threads, time, signals of our own */
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    SCMP_SYS(futex),
    SCMP_SYS(sysinfo) /* qsort */,
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(getcpu),
    SCMP_SYS(membarrier),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(getrandom),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

/* Of an argument: these bits have this value. int arguments have no upper half to speak of. */
#define BITS(arg, mask, value) SCMP_CMP(arg, SCMP_CMP_MASKED_EQ, (mask), (value))
#define INT(arg, value)        BITS(arg, UINT64_C(0xffffffff), (uint32_t)(value))

static int allow_fcntl(scmp_filter_ctx f)
{
	static const int commands[] = {F_DUPFD_CLOEXEC, F_GETFD,     F_SETFD,    F_GETFL,
				       F_SETFL,         F_GET_SEALS, F_ADD_SEALS};
	int err = 0;

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]) && !err; i++)
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, INT(1, commands[i]));
	return err;
}

/* Without a folder: for reading alone, which the arenas need to reopen theirs by /proc. */
static int allow_open(scmp_filter_ctx f, bool has_store)
{
	const uint64_t writes = O_ACCMODE | O_CREAT | O_TRUNC;
	int err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(openat), 2, INT(0, AT_FDCWD),
				   BITS(2, writes, O_RDONLY));

	if (!err && has_store) /* relative to a descriptor */
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
				       BITS(0, UINT64_C(0x80000000), 0));
	return err;
}

/* Memory that can be written and run, or that becomes it; signals to others; sockets but ours;
 * another ring. */
static int allow_checked(scmp_filter_ctx f, bool has_store)
{
	const uint32_t me = (uint32_t)getpid();
	int err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, BITS(2, PROT_EXEC, 0));

	if (!err)
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
				       BITS(2, PROT_EXEC, 0));
	if (!err)
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, INT(0, me));
	if (!err)
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, INT(0, me));
	if (!err)
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1, INT(0, AF_UNIX));
	if (!err)
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(io_uring_register), 1,
				       INT(1, IORING_REGISTER_FILES_UPDATE));
	if (!err)
		err = allow_fcntl(f);
	return err ? err : allow_open(f, has_store);
}

static int build(scmp_filter_ctx f, bool has_store)
{
	int err = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);

	/* The first ones are tried first: what is called most is in front of its list. */
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]) && !err; i++) {
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, calls[i], 0);
		if (err == -EDOM) /* this machine has no such call */
			err = 0;
	}
	return err ? err : allow_checked(f, has_store);
}

bool sandbox_is_built(void)
{
	return true;
}

int sandbox_calls(enum sandbox_mode mode, bool has_store, struct why *why)
{
	scmp_filter_ctx f;
	int err;

	if (mode == SANDBOX_OFF)
		return 0;
	f = seccomp_init(mode == SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS);
	if (!f)
		return why_fail(why, SKVQ_ENOTSUP, "system calls: this kernel has no seccomp");
	err = build(f, has_store);
	if (!err)
		err = seccomp_load(f);
	seccomp_release(f);
	if (err < 0)
		return why_fail(why, SKVQ_ESYS, "system calls: the filter was not taken (%s)",
				strerror(-err));
	return 0;
}

#else

bool sandbox_is_built(void)
{
	return false;
}

int sandbox_calls(enum sandbox_mode mode, bool has_store, struct why *why)
{
	(void)has_store;
	if (mode == SANDBOX_OFF)
		return 0;
	return why_fail(why, SKVQ_ENOTSUP, "this skvqd was built without a sandbox");
}

#endif
