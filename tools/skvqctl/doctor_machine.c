/* SPDX-License-Identifier: Apache-2.0 */
/* Processor, kernel, memory and limits: what can be tried is tried, not guessed from versions. */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <skvq/kernels.h>

#define LANDLOCK_VERSION_FLAG 1u
#define SHMEM_HUGE            "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define URING_SWITCH          "/proc/sys/kernel/io_uring_disabled"
/* Most of what the example configuration comes to: 72 connections of 64 stagings each, and arenas. */
#define FILES_WANTED 8192u

static void processor(struct doctor *d)
{
	const struct skvq_kernels *k = skvq_kernels_get();

	if (!k)
		doctor_say(d, "processor", DOCTOR_BAD,
			   "unset SKVQ_CPU, or name a tier that is here: ref, avx2, avx512, neon",
			   "SKVQ_CPU is '%.40s', which cannot run here", getenv("SKVQ_CPU"));
	else if (!strcmp(k->tier, "ref"))
		doctor_say(d, "processor", DOCTOR_NOTE,
			   "results are right all the same; a machine with AVX2 or NEON is ten times faster",
			   "plain C kernels: neither AVX-512 VNNI, AVX2 with FMA nor NEON with dot products");
	else
		doctor_say(d, "processor", DOCTOR_OK, NULL, "kernels for %s", k->tier);
}

/* Everything an arena and a staging memfd need: seals, a second opening for reading, holes. */
static const char *try_memfd(void)
{
	int fd = memfd_create("skvq-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING), again = -1;
	const char *failed = NULL;
	char path[40];

	if (fd < 0)
		return "memfd_create";
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (ftruncate(fd, 65536) < 0 || pwrite(fd, "x", 1, 4096) != 1)
		failed = "writing to a memfd";
	else if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
		failed = "sealing a memfd";
	else if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8192) < 0)
		failed = "punching a hole into a memfd";
	else if ((again = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		failed = "opening /proc/self/fd, is /proc mounted?";
	if (again >= 0)
		close(again);
	close(fd);
	return failed;
}

static void memory_files(struct doctor *d)
{
	const char *failed = try_memfd();

	if (failed)
		doctor_say(d, "memfd", DOCTOR_BAD,
			   "allow it in the container's seccomp profile; arenas are made so, there is no other way",
			   "%s: %s", failed, strerror(errno));
	else
		doctor_say(d, "memfd", DOCTOR_OK, NULL,
			   "sealed memory files can be made, shared and given back");
}

/* The word in brackets of a file in /sys; false if it cannot be read. */
static bool chosen(const char *path, char *ret, size_t bytes)
{
	char line[256], *from, *to;
	FILE *f = fopen(path, "re");
	bool got = f && fgets(line, sizeof(line), f);

	if (f)
		fclose(f);
	from = got ? strchr(line, '[') : NULL;
	to = from ? strchr(from, ']') : NULL;
	if (!to)
		return false;
	*to = '\0';
	snprintf(ret, bytes, "%s", from + 1);
	return true;
}

static void huge_pages(struct doctor *d)
{
	char word[32];

	if (!chosen(SHMEM_HUGE, word, sizeof(word)))
		doctor_say(d, "huge_pages", DOCTOR_SKIP, NULL, "cannot read " SHMEM_HUGE);
	else if (!strcmp(word, "never") || !strcmp(word, "deny") || !strcmp(word, "advise"))
		doctor_say(d, "huge_pages", DOCTOR_OK, NULL,
			   "shared memory is in small pages (%s): arenas take what their pages take", word);
	else
		doctor_say(d, "huge_pages", DOCTOR_BAD, "echo advise > " SHMEM_HUGE,
			   "shared memory is in huge pages (%s): arenas take twice what their pages "
			   "take, and fill at a tenth of the speed",
			   word);
}

/* A ring that can be restricted, as the store makes it. */
static void ring(struct doctor *d)
{
	struct io_uring_params p = {.flags = IORING_SETUP_R_DISABLED};
	int fd = (int)syscall(SYS_io_uring_setup, 4, &p);
	char word[16] = "";
	FILE *f;

	if (fd >= 0) {
		close(fd);
		doctor_say(d, "io_uring", DOCTOR_OK, NULL, "rings can be made and restricted");
		return;
	}
	int e = errno;
	f = fopen(URING_SWITCH, "re");
	if (f && fgets(word, sizeof(word), f))
		word[strcspn(word, "\n")] = '\0';
	if (f)
		fclose(f);
	if (e == EPERM && word[0] && word[0] != '0')
		doctor_say(d, "io_uring", DOCTOR_NOTE, "sysctl kernel.io_uring_disabled=0",
			   "kernel.io_uring_disabled is %s: threads do the store's input and output", word);
	else
		doctor_say(d, "io_uring", DOCTOR_NOTE,
			   "Linux 5.10 or newer, and a container that lets io_uring_setup through",
			   "%s: threads do the store's input and output", strerror(e));
}

static void sandbox(struct doctor *d)
{
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION_FLAG);
	uint32_t action = SECCOMP_RET_KILL_PROCESS;

	if (version < 1)
		doctor_say(d, "landlock", DOCTOR_NOTE,
			   "Linux 5.13 or newer with landlock in CONFIG_LSM or on the kernel's command "
			   "line (lsm=)",
			   "%s: the daemon's sandbox goes without its rules for paths",
			   strerror(errno));
	else
		doctor_say(d, "landlock", DOCTOR_OK, NULL, "version %ld", version);
	if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0)
		doctor_say(d, "seccomp", DOCTOR_NOTE, "a kernel with CONFIG_SECCOMP_FILTER",
			   "%s: the daemon's sandbox goes without its list of system calls",
			   strerror(errno));
	else
		doctor_say(d, "seccomp", DOCTOR_OK, NULL, "filters can be set");
}

static uint64_t meminfo(const char *key)
{
	char line[128];
	uint64_t kib = 0;
	FILE *f = fopen("/proc/meminfo", "re");
	size_t n = strlen(key);

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, n) && line[n] == ':')
			(void)sscanf(line + n + 1, "%" SCNu64, &kib);
	if (f)
		fclose(f);
	return kib * 1024;
}

/* What the control group of this process may have at most; 0: no bound, or not known. */
static uint64_t group_max(void)
{
	char line[512] = "", path[640], *group = NULL;
	uint64_t bytes = 0;
	FILE *f = fopen("/proc/self/cgroup", "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "0::", 3)) {
			line[strcspn(line, "\n")] = '\0';
			group = line + 3;
			break;
		}
	}
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.max", group ? group : "");
	f = group ? fopen(path, "re") : NULL;
	if (f && fscanf(f, "%" SCNu64, &bytes) != 1)
		bytes = 0;
	if (f)
		fclose(f);
	return bytes;
}

static void memory(struct doctor *d)
{
	uint64_t total = meminfo("MemTotal"), free = meminfo("MemAvailable"), most = group_max();
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES], c[CTL_HUMAN_BYTES];

	if (!total)
		doctor_say(d, "memory", DOCTOR_SKIP, NULL, "cannot read /proc/meminfo");
	else if (most && most < total)
		doctor_say(d, "memory", DOCTOR_NOTE,
			   "arenas count there: a daemon in it wants ram_max below that",
			   "%s, %s available; this control group may have %s", ctl_human_bytes(total, a),
			   ctl_human_bytes(free, b), ctl_human_bytes(most, c));
	else
		doctor_say(d, "memory", DOCTOR_OK, NULL, "%s, %s available",
			   ctl_human_bytes(total, a), ctl_human_bytes(free, b));
}

static void limits(struct doctor *d)
{
	struct rlimit files = {0}, lock = {0};
	char a[CTL_HUMAN_BYTES];

	getrlimit(RLIMIT_NOFILE, &files);
	getrlimit(RLIMIT_MEMLOCK, &lock);
	if (files.rlim_max < FILES_WANTED)
		doctor_say(d, "open_files", DOCTOR_NOTE,
			   "ulimit -Hn 65536, or LimitNOFILE= in the unit; or lower connections_max and "
			   "staging_max",
			   "at most %" PRIu64 "; %u are enough for the bounds that are set by default",
			   (uint64_t)files.rlim_max, FILES_WANTED);
	else
		doctor_say(d, "open_files", DOCTOR_OK, NULL, "at most %" PRIu64,
			   (uint64_t)files.rlim_max);
	if (lock.rlim_cur == RLIM_INFINITY || geteuid() == 0)
		doctor_say(d, "locked_memory", DOCTOR_OK, NULL, "no bound");
	else if (lock.rlim_cur < UINT64_C(64) << 20)
		doctor_say(d, "locked_memory", DOCTOR_NOTE,
			   "ulimit -l, or LimitMEMLOCK= in the unit: buffers times record_bytes of [store]",
			   "%s: a store's transfer buffers beyond that are not registered, and slower",
			   ctl_human_bytes(lock.rlim_cur, a));
	else
		doctor_say(d, "locked_memory", DOCTOR_OK, NULL, "at most %s",
			   ctl_human_bytes(lock.rlim_cur, a));
}

static void kernel(struct doctor *d)
{
	struct utsname u;
	unsigned major = 0, minor = 0;

	uname(&u);
	(void)sscanf(u.release, "%u.%u", &major, &minor);
	if (major * 1000 + minor < 5010)
		doctor_say(d, "kernel", DOCTOR_NOTE, "Linux 5.10 is the oldest that is tested",
			   "%s %s", u.sysname, u.release);
	else
		doctor_say(d, "kernel", DOCTOR_OK, NULL, "%s %s", u.sysname, u.release);
}

void doctor_machine(struct doctor *d)
{
	kernel(d);
	processor(d);
	memory(d);
	memory_files(d);
	huge_pages(d);
	ring(d);
	sandbox(d);
	limits(d);
}
