/* SPDX-License-Identifier: Apache-2.0 */
#include "handover.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/blob.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"

/* Names in the store: what it is, and which handover it belongs to. */
#define MAP_PREFIX "skvqd-map-"
#define FD_PREFIX  "skvqd-fd-"
#define NAME_BYTES 48

#define MAGIC_BYTES  16u
#define HEADER_BYTES (MAGIC_BYTES + 4u) /* and the CRC of all that follows */
#define MAP_SEALS    (F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) /* not SHRINK: it is cut when read */

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020 /* Linux 6.3, where the system may add it */
#endif

#define BARRIER_MS 5000u

/* ---- leaving ---- */

struct fd_list {
	int *fds;
	uint32_t n, cap;
	bool failed;
};

static void add_fd(void *ctx, int fd)
{
	struct fd_list *list = ctx;

	if (list->n == list->cap) {
		uint32_t cap = list->cap ? list->cap * 2 : 64;
		int *bigger = realloc(list->fds, cap * sizeof(*bigger));

		if (!bigger) {
			list->failed = true;
			return;
		}
		list->fds = bigger;
		list->cap = cap;
	}
	list->fds[list->n++] = fd;
}

/* The whole description, with its header. */
static void describe(const struct cache *cache, const struct bequest *bequest, struct blob *blob)
{
	uint32_t crc;

	blob_put(blob, HANDOVER_MAGIC, MAGIC_BYTES);
	blob_put_u32(blob, 0);
	snapshot_write(cache, blob);
	bequest_write(bequest, blob);
	if (blob->failed)
		return;
	crc = crc32c(blob->data + HEADER_BYTES, blob->bytes - HEADER_BYTES);
	for (uint32_t i = 0; i < 4; i++)
		blob->data[MAGIC_BYTES + i] = (uint8_t)(crc >> 8 * i);
}

static int make_map(const struct blob *blob)
{
	CLEANUP_FD int fd = memfd_create("skvqd-handover", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	size_t at = 0;

	if (fd < 0)
		return -1;
	while (at < blob->bytes) {
		ssize_t n = write(fd, blob->data + at, blob->bytes - at);

		if (n < 0 && errno != EINTR)
			return -1;
		at += n > 0 ? (size_t)n : 0;
	}
	if (fchmod(fd, 0400) < 0 || fcntl(fd, F_ADD_SEALS, MAP_SEALS) < 0)
		return -1;
	return steal_fd(&fd);
}

/* The description goes last: who has it was sent all of the rest. */
static bool store_all(const struct fd_list *list, int map)
{
	char name[NAME_BYTES];
	uint64_t nonce = 0;

	if (getrandom(&nonce, sizeof(nonce), 0) != (ssize_t)sizeof(nonce))
		return false;
	(void)snprintf(name, sizeof(name), FD_PREFIX "%016" PRIx64, nonce);
	for (uint32_t at = 0; at < list->n; at += NOTIFY_FDS_MAX) {
		uint32_t n = list->n - at < NOTIFY_FDS_MAX ? list->n - at : NOTIFY_FDS_MAX;

		if (!notify_store(name, list->fds + at, n))
			return false;
	}
	(void)snprintf(name, sizeof(name), MAP_PREFIX "%016" PRIx64, nonce);
	return notify_store(name, &map, 1);
}

static int leave(const struct handover *handover, const struct cache *cache, struct blob *blob,
		 struct fd_list *list, struct why *why)
{
	CLEANUP_FD int map = -1;

	describe(cache, &handover->bequest, blob);
	if (list->failed || blob->failed)
		return why_fail(why, SKVQ_ENOMEM, "no memory to describe the arenas");
	if (blob->bytes > HANDOVER_BYTES_MAX)
		return why_fail(why, SKVQ_ELIMIT,
				"the arenas take %zu bytes to describe, at most %u", blob->bytes,
				HANDOVER_BYTES_MAX);
	if (!notify_can_store(list->n + 1))
		return why_fail(why, SKVQ_ELIMIT,
				"the service manager keeps fewer than %u descriptors "
				"(FileDescriptorStoreMax)",
				list->n + 1);
	map = make_map(blob);
	if (map < 0)
		return why_fail_errno(why, SKVQ_ESYS, "a memfd to describe the arenas");
	if (!store_all(list, map))
		return why_fail(why, SKVQ_ESYS, "the service manager takes no messages");
	return 0;
}

static void list_fds(const struct handover *handover, const struct cache *cache,
		     struct fd_list *list)
{
	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->table.live)
			add_fd(list, ns->arena.fd);
	}
	bequest_each_fd(&handover->bequest, add_fd, list);
}

void handover_prepare(struct handover *handover, struct control *control)
{
	struct why why = {{0}};

	if (!control->config.handover)
		return;
	if (control_bequeath(control, &handover->bequest, &why) < 0)
		log_event(LOG_WARNING, "not_handed_over", LOG_STR("detail", why.text));
	else
		handover->leaving = true;
}

void handover_leave(struct handover *handover, struct cache *cache)
{
	struct blob blob = {0};
	struct fd_list list = {0};
	struct why why = {{0}};

	if (!handover->leaving)
		return;
	list_fds(handover, cache, &list);
	if (!list.n)
		return;
	if (leave(handover, cache, &blob, &list, &why) == 0)
		log_event(LOG_INFO, "handed_over", LOG_U64("pages", cache->pages),
			  LOG_U64("bytes", cache->bytes),
			  LOG_U64("connections", handover->bequest.n_conns),
			  LOG_U64("pins", cache->pins), LOG_U64("descriptors", list.n + 1),
			  LOG_U64("read", notify_barrier(BARRIER_MS)));
	else
		log_event(LOG_WARNING, "not_handed_over", LOG_STR("detail", why.text));
	blob_fini(&blob);
	free(list.fds);
}

void handover_fini(struct handover *handover, struct cache *cache)
{
	if (handover->leaving)
		bequest_fini(&handover->bequest, cache);
	handover->leaving = false;
}

/* ---- taking ---- */

static bool has_prefix(const char *name, const char *prefix)
{
	return strncmp(name, prefix, strlen(prefix)) == 0;
}

void handover_begin(struct handover *handover)
{
	handover->given = notify_take(&handover->n_given);
}

/* Bytes of a description, copied; then it is void. -SKVQ_EAGAIN: it was before. */
static int read_map(int fd, uint8_t **ret, uint64_t *ret_bytes, struct why *why)
{
	CLEANUP_FREE uint8_t *data = NULL;
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	uint64_t at = 0, bytes;

	if (seals < 0 || (seals & ~F_SEAL_EXEC) != MAP_SEALS || fstat(fd, &st) < 0 ||
	    st.st_uid != geteuid() || st.st_size < 0)
		return why_fail(why, SKVQ_EFD,
				"the description is not a memfd sealed as it should be");
	bytes = (uint64_t)st.st_size;
	if (bytes == 0)
		return why_fail(why, SKVQ_EAGAIN, "the description was used before");
	if (bytes > HANDOVER_BYTES_MAX || bytes < HEADER_BYTES)
		return why_fail(why, SKVQ_ECORRUPT, "the description has %llu bytes",
				(unsigned long long)bytes);
	data = malloc(bytes);
	if (!data)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a description of %llu bytes",
				(unsigned long long)bytes);
	while (at < bytes) {
		ssize_t n = pread(fd, data + at, bytes - at, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return why_fail(why, SKVQ_ESHORT, "the description ends too soon");
		at += (uint64_t)n;
	}
	if (ftruncate(fd, 0) < 0 || fstat(fd, &st) < 0 || st.st_size != 0)
		return why_fail_errno(why, SKVQ_ESYS, "making the description void");
	*ret = steal_ptr(&data);
	*ret_bytes = bytes;
	return 0;
}

static int check_map(const uint8_t *data, uint64_t bytes, struct blob_cursor *ret, struct why *why)
{
	struct blob_cursor head = {.at = data + MAGIC_BYTES, .left = 4};

	if (memcmp(data, HANDOVER_MAGIC, MAGIC_BYTES) != 0)
		return why_fail(why, SKVQ_EVERSION, "the description is of another version");
	if (blob_get_u32(&head) != crc32c(data + HEADER_BYTES, bytes - HEADER_BYTES))
		return why_fail(why, SKVQ_ECORRUPT, "the description's checksum is wrong");
	*ret = (struct blob_cursor){.at = data + HEADER_BYTES, .left = bytes - HEADER_BYTES};
	return 0;
}

/* Descriptors that came with the description, by what they are. */
struct finder {
	struct handover *handover;
	const char *nonce; /* behind the prefix of the name */
};

static int *find(void *ctx, struct snapshot_file file)
{
	struct finder *f = ctx;

	for (uint32_t i = 0; i < f->handover->n_given; i++) {
		struct notify_fd *g = &f->handover->given[i];
		struct snapshot_file is;

		if (g->fd < 0 || !has_prefix(g->name, FD_PREFIX) ||
		    strcmp(g->name + strlen(FD_PREFIX), f->nonce) != 0)
			continue;
		is = snapshot_file(g->fd);
		if (is.ino && is.dev == file.dev && is.ino == file.ino)
			return &g->fd;
	}
	return NULL;
}

/* Takes over what the description says. On failure everything is as if it had not been there. */
static int adopt(struct control *control, struct finder *finder, struct blob_cursor *cursor,
		 struct snapshot *snapshot, uint32_t *ret_conns, struct why *why)
{
	struct snapshot_files files = {.find = find, .ctx = finder};
	struct cache *cache = control->cache;
	int err = snapshot_adopt(cache, cursor, &files, snapshot, why);

	if (!err)
		err = control_inherit(control, cursor, &files, snapshot, ret_conns, why);
	if (!err)
		err = snapshot_verify(cache, snapshot, why);
	if (err < 0) {
		cache_close(cache); /* engines read what their connections let go now */
		control_abandon(control);
		cache_abandon(cache);
	}
	return err;
}

static int take(struct handover *handover, const struct notify_fd *map, struct control *control,
		struct why *why)
{
	CLEANUP_FREE struct snapshot *snapshot = calloc(1, sizeof(*snapshot));
	CLEANUP_FREE uint8_t *data = NULL;
	struct finder finder = {handover, map->name + strlen(MAP_PREFIX)};
	struct blob_cursor cursor;
	uint64_t bytes = 0, start = clock_ms();
	uint32_t n_conns = 0;
	int err;

	if (!snapshot)
		return why_fail(why, SKVQ_ENOMEM, "no memory to take anything over");
	err = read_map(map->fd, &data, &bytes, why);
	if (!err)
		err = check_map(data, bytes, &cursor, why);
	if (!err)
		err = adopt(control, &finder, &cursor, snapshot, &n_conns, why);
	if (err < 0)
		return err;
	log_event(snapshot->bad ? LOG_WARNING : LOG_INFO, "taken_over",
		  LOG_U64("pages", snapshot->pages), LOG_U64("bytes", control->cache->bytes),
		  LOG_U64("bad", snapshot->bad), LOG_U64("connections", n_conns),
		  LOG_U64("pins", control->cache->pins), LOG_U64("ms", clock_ms() - start));
	return 0;
}

/* Out of the store, and closed unless it was taken over. */
static void drop_given(struct handover *handover)
{
	const char *last = "";

	for (uint32_t i = 0; i < handover->n_given; i++) {
		struct notify_fd *g = &handover->given[i];

		if ((has_prefix(g->name, MAP_PREFIX) || has_prefix(g->name, FD_PREFIX)) &&
		    strcmp(g->name, last) != 0)
			notify_forget(g->name); /* and all others of that name */
		last = g->name;
		if (g->fd >= 0)
			(void)close(g->fd);
	}
	for (uint32_t i = 0; i < handover->n_given; i++)
		free(handover->given[i].name);
	free(handover->given);
	handover->given = NULL;
	handover->n_given = 0;
}

void handover_take(struct handover *handover, struct control *control)
{
	for (uint32_t i = 0; i < handover->n_given; i++) {
		const struct notify_fd *g = &handover->given[i];
		struct why why = {{0}};
		int err;

		if (!has_prefix(g->name, MAP_PREFIX))
			continue;
		err = take(handover, g, control, &why);
		if (!err)
			break; /* any other is older, or void */
		log_event(err == -SKVQ_EAGAIN ? LOG_INFO : LOG_WARNING, "not_taken_over",
			  LOG_STR("detail", why.text));
	}
	drop_given(handover);
}
