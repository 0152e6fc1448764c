/* SPDX-License-Identifier: Apache-2.0 */
/* What a daemon still has when its clients have gone. */
#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "chaos.h"

#define SETTLE_MS 8000u /* holes that readers faulted in go within seconds, deleted files too */

struct fds {
	uint32_t sockets, staging, arenas, segments, deleted, other;
};

static void count_fds(const struct daemon_run *d, struct fds *ret)
{
	char path[64];
	struct dirent *e;
	DIR *dir;

	*ret = (struct fds){0};
	(void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir)) != NULL) {
		char to[512];
		ssize_t n = readlinkat(dirfd(dir), e->d_name, to, sizeof(to) - 1);

		if (n <= 0)
			continue;
		to[n] = '\0';
		if (!strncmp(to, "socket:", 7))
			ret->sockets++;
		else if (!strncmp(to, "/memfd:chaos", 12))
			ret->staging++;
		else if (!strncmp(to, "/memfd:", 7))
			ret->arenas++;
		else if (strncmp(to, d->store, strlen(d->store)) != 0 || !to[strlen(d->store)])
			ret->other++;
		else if (strstr(to, " (deleted)"))
			ret->deleted++;
		else
			ret->segments++;
	}
	if (dir)
		(void)closedir(dir);
}

void count_baseline(struct daemon_run *d)
{
	struct fds fds;

	count_fds(d, &fds);
	d->fds_other = fds.other;
}

static uint64_t rss_anon_bytes(const struct daemon_run *d)
{
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)d->pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %" SCNu64, &kib) == 1)
			break;
	if (f)
		(void)fclose(f);
	return kib << 10;
}

uint64_t store_bytes(const struct daemon_run *d)
{
	DIR *dir = opendir(d->store);
	struct dirent *e;
	uint64_t sum = 0;

	while (dir && (e = readdir(dir)) != NULL) {
		struct stat st;

		if (e->d_name[0] != '.' && fstatat(dirfd(dir), e->d_name, &st, 0) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	}
	if (dir)
		(void)closedir(dir);
	return sum;
}

static uint32_t differs(bool tell, bool wrong, const char *what, uint64_t have, uint64_t want)
{
	if (wrong && tell)
		fprintf(stderr, "chaos: left over: %s: %" PRIu64 ", should be %" PRIu64 "\n", what,
			have, want);
	return wrong;
}

static uint32_t look(const struct daemon_run *d, const struct leak_bounds *b,
		     const struct skvq_client_status *s, bool tell)
{
	uint64_t anon = rss_anon_bytes(d), disk = store_bytes(d);
	uint32_t n = 0;
	struct fds fds;

	count_fds(d, &fds);
	n += differs(tell, s->pins != 0, "pins", s->pins, 0);
	n += differs(tell, s->connections != 1, "connections", s->connections, 1);
	n += differs(tell, s->bytes_resident != s->bytes_kernel, "bytes of pages in the kernel",
		     s->bytes_kernel, s->bytes_resident);
	n += differs(tell, s->bytes_resident > s->bytes_max, "bytes of pages", s->bytes_resident,
		     s->bytes_max);
	n += differs(tell, fds.sockets != 2, "sockets", fds.sockets, 2); /* listener and ours */
	n += differs(tell, fds.staging != 0, "staging memfds", fds.staging, 0);
	n += differs(tell, fds.arenas != 2 * s->namespaces, "descriptors of arenas", fds.arenas,
		     2ull * s->namespaces);
	n += differs(tell, fds.deleted != 0, "removed segments that are open", fds.deleted, 0);
	n += differs(tell, fds.other != d->fds_other, "other descriptors", fds.other, d->fds_other);
	n += differs(tell, disk > b->disk_bytes, "bytes of disk", disk, b->disk_bytes);
	n += differs(tell, anon > b->anon_bytes, "bytes of anonymous memory", anon, b->anon_bytes);
	return n;
}

uint32_t leaks_of(struct daemon_run *d, const struct leak_bounds *bounds)
{
	static struct skvq_client_status status; /* large */
	uint64_t until = now_ms() + SETTLE_MS;
	char why[SKVQ_CLIENT_WHY_BYTES] = "";
	struct skvq_client *c;
	uint32_t n = 1;

	if (skvq_client_connect(d->socket, "chaos-leaks", TIMEOUT_MS, &c, why) < 0) {
		fprintf(stderr, "chaos: no daemon to look at for leaks: %s\n", why);
		return 1;
	}
	while (n && skvq_client_status(c, &status) >= 0) {
		bool last = now_ms() > until;

		n = look(d, bounds, &status, last);
		if (last)
			break;
		if (n)
			nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	}
	skvq_client_free(c);
	return n;
}
