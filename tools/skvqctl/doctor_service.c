/* SPDX-License-Identifier: Apache-2.0 */
/* The store's folder, the socket, and the daemon behind it. */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Of statfs(2): file systems of other machines, where a lock or a sync means less. */
static const struct {
	long type;
	const char *name;
} remote[] = {{0x6969, "NFS"},      {0x517b, "SMB"},        {0xff534d42, "CIFS"}, {0xfe534d42, "SMB2"},
	      {0x01021997, "9p"},   {0x65735546, "FUSE"},   {0x00c36400, "Ceph"}, {0x0bd00bd0, "Lustre"},
	      {0x01161970, "GFS2"}, {0x47504653, "GPFS"}};

static void file_system(struct doctor *d, int dir)
{
	struct statfs fs;
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES];
	const char *name = NULL;

	if (fstatfs(dir, &fs) < 0) {
		doctor_say(d, "store_room", DOCTOR_SKIP, NULL, "%s", strerror(errno));
		return;
	}
	for (size_t i = 0; i < sizeof(remote) / sizeof(remote[0]); i++)
		if ((long)fs.f_type == remote[i].type)
			name = remote[i].name;
	uint64_t block = (uint64_t)fs.f_bsize, room = block * (uint64_t)fs.f_bavail;
	if (name)
		doctor_say(d, "store_room", DOCTOR_NOTE,
			   "a folder on a disk of this machine: a match waits for what is read from there",
			   "the file system is %s", name);
	else
		doctor_say(d, "store_room", room < (UINT64_C(1) << 30) ? DOCTOR_NOTE : DOCTOR_OK,
			   room < (UINT64_C(1) << 30) ? "make room, or lower capacity_bytes" : NULL,
			   "%s free of %s", ctl_human_bytes(room, a),
			   ctl_human_bytes(block * (uint64_t)fs.f_blocks, b));
}

/* A file without a name: nothing stays behind. Where there are none, one that is removed. */
static int scratch(int dir, int flags)
{
	static const char name[] = ".skvq-doctor";
	int fd = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);

	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		fd = openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600);
		if (fd >= 0)
			(void)unlinkat(dir, name, 0);
	}
	return fd;
}

static void direct(struct doctor *d, int dir)
{
	void *block = NULL;
	int fd = scratch(dir, 0), e;

	if (fd < 0) {
		doctor_say(d, "store_write", DOCTOR_BAD,
			   "the daemon's user must own the folder: chown skvqd FOLDER, if this is that user",
			   "user %u cannot write there: %s", (unsigned)geteuid(), strerror(errno));
		return;
	}
	close(fd);
	fd = scratch(dir, O_DIRECT);
	if (posix_memalign(&block, 4096, 4096))
		block = NULL;
	if (block)
		memset(block, 0, 4096);
	e = fd < 0 ? errno : !block ? ENOMEM : pwrite(fd, block, 4096, 0) != 4096 ? errno : 0;
	if (e)
		doctor_say(d, "store_write", DOCTOR_NOTE,
			   "ext4 or xfs on a disk of its own; elsewhere the page cache holds a second copy",
			   "O_DIRECT is refused (%s): through the page cache", strerror(e));
	else
		doctor_say(d, "store_write", DOCTOR_OK, NULL, "written past the page cache");
	free(block);
	if (fd >= 0)
		close(fd);
}

void doctor_store(struct doctor *d)
{
	struct stat st;
	int dir;

	if (!d->store) {
		doctor_say(d, "store", DOCTOR_SKIP, NULL,
			   "no folder was named: --store FOLDER, the one in [store]");
		return;
	}
	dir = open(d->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0) {
		doctor_say(d, "store", DOCTOR_BAD, "make it, for the daemon's user alone: mode 0700",
			   "'%.120s': %s", d->store, strerror(errno));
		return;
	}
	if (fstat(dir, &st) == 0 && (st.st_mode & 077))
		doctor_say(d, "store", DOCTOR_NOTE, "chmod 700: who can read it reads everybody's tokens",
			   "'%.120s' has mode %04o", d->store, (unsigned)st.st_mode & 07777);
	else
		doctor_say(d, "store", DOCTOR_OK, NULL, "'%.120s', of user %u alone", d->store,
			   (unsigned)st.st_uid);
	file_system(d, dir);
	direct(d, dir);
	close(dir);
}

static void share(struct doctor *d, const struct skvq_client_status *s)
{
	uint64_t asked = ctl_counter(s, "tokens_asked"), hit = ctl_counter(s, "tokens_matched");

	if (!asked)
		doctor_say(d, "hits", DOCTOR_NOTE,
			   "engines that attach with the same weights, tokenizer and profile share: "
			   "'skvqctl ls' shows who is there",
			   "no engine has asked for anything yet");
	else if (!hit)
		doctor_say(d, "hits", DOCTOR_NOTE, "'skvqctl why-miss' says of given tokens why",
			   "none of %" PRIu64 " tokens that were asked for were there", asked);
	else
		doctor_say(d, "hits", DOCTOR_OK, NULL, "%.1f %% of %" PRIu64 " tokens",
			   100 * (double)hit / (double)asked, asked);
}

/* What a daemon counts that nobody wants to see counted. */
static void troubles(struct doctor *d, const struct skvq_client_status *s)
{
	static const struct {
		const char *counter, *mend;
	} list[] = {
	    {"scrub_failures", "memory that changes by itself: test the machine's RAM"},
	    {"restore_check_failures", "a disk that does not give back what it got: see its health"},
	    {"store_crc_failures", "a disk that does not give back what it got: see its health"},
	    {"page_check_failures", "an engine publishes broken pages: 'skvqctl pins' shows who is there"},
	    {"connections_refused", "raise connections_max"},
	    {"connections_denied", "a user who is of no tenant: uid and gid in [tenant NAME]"},
	    {"connections_piled_up", "a client that does not read its replies"},
	};
	bool any = false;

	for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
		uint64_t n = ctl_counter(s, list[i].counter);

		if (n)
			doctor_say(d, "counters", DOCTOR_NOTE, list[i].mend,
				   "%s is %" PRIu64 " since the daemon's start", list[i].counter, n);
		any |= n != 0;
	}
	if (!any)
		doctor_say(d, "counters", DOCTOR_OK, NULL, "nothing broken, nobody turned away");
}

static void answers(struct doctor *d, struct skvq_client *c)
{
	struct skvq_client_status *s = calloc(1, sizeof(*s));
	const struct skvq_client_hello *hello = skvq_client_hello(c);
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES], why[SKVQ_CLIENT_WHY_BYTES],
	    version[sizeof(hello->version)];

	memcpy(version, hello->version, sizeof(version));
	ctl_clean(version);
	if (strcmp(version, SKVQ_VERSION_STRING))
		doctor_say(d, "daemon", DOCTOR_NOTE, "use daemon, plugin and skvqctl of one version",
			   "skvqd is %s, skvqctl is " SKVQ_VERSION_STRING, version);
	else
		doctor_say(d, "daemon", DOCTOR_OK, NULL, "skvqd %s answers", version);
	if (!s || skvq_client_status(c, s) < 0) {
		snprintf(why, sizeof(why), "%s", s ? skvq_client_why(c) : "no memory");
		doctor_say(d, "status", DOCTOR_BAD, NULL, "%.200s", ctl_clean(why));
		free(s);
		return;
	}
	if (s->bytes_kernel > s->bytes_max + s->bytes_max / 8)
		doctor_say(d, "arenas", DOCTOR_BAD, "see huge_pages",
			   "the kernel counts %s, ram_max is %s", ctl_human_bytes(s->bytes_kernel, a),
			   ctl_human_bytes(s->bytes_max, b));
	else
		doctor_say(d, "arenas", DOCTOR_OK, NULL, "%s of %s by the kernel's count",
			   ctl_human_bytes(s->bytes_kernel, a), ctl_human_bytes(s->bytes_max, b));
	share(d, s);
	troubles(d, s);
	free(s);
}

void doctor_daemon(struct doctor *d)
{
	struct skvq_client *c = NULL;
	char why[SKVQ_CLIENT_WHY_BYTES] = "";
	int err = skvq_client_connect(d->socket, "skvqctl doctor", 5000, &c, why);

	if (err >= 0) {
		answers(d, c);
		skvq_client_free(c);
		return;
	}
	ctl_clean(why);
	if (err == -SKVQ_EPERM)
		doctor_say(d, "daemon", DOCTOR_BAD,
			   "uid or gid in a section [tenant NAME] of skvqd.conf, or admin", "%.200s", why);
	else if (access(d->socket, R_OK | W_OK) < 0 && errno == EACCES)
		doctor_say(d, "daemon", DOCTOR_BAD,
			   "join the socket's group (socket_mode = 0660), or run this as the daemon's user",
			   "user %u may not use the socket: %.180s", (unsigned)geteuid(), why);
	else
		doctor_say(d, "daemon", DOCTOR_BAD,
			   "skvqd --socket PATH, or systemctl start skvqd; or name the socket with --socket",
			   "%.200s", why);
}
