/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The description of a handover, from anywhere: what is taken over is sound pages and pins on them;
 * nothing is taken twice; whatever it says, everything ends in order.
 *
 *   input: flags; the description. Where it names a file by MARK and a number it gets the device
 *   and inode of what was really given: an arena, a calibration, two sockets.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/crc32c.h"
#include "cache/fill.h"
#include "control/dispatch.h"
#include "handover.h"
#include "rig.h"
#include "support/cache_rig.h"
#include "support/page_maker.h"

#define MARK UINT64_C(0x4b52414d4b52414d)

enum { FILE_ARENA, FILE_CALIBRATION, FILE_SOCKET, FILE_SOCKET_2, FILES };
enum { REPAIR = 1, CLIENT_GONE = 2, OTHER_PAGES = 4 }; /* flags */

#define HEADER_BYTES 20u /* magic and CRC */
#define MAP_SEALS    (F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
#define ARENA_SEALS  (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

/* What a daemon left once: the bytes of its arena, and its description with MARKs. */
static uint8_t *arena_bytes;
static size_t arena_size, arena_used;
static uint8_t description[FUZZ_SEED_MAX];
static size_t description_size;

/* ---- the daemon before ---- */

static void keep_mark(uint8_t *at, size_t n, int fd, uint64_t number)
{
	struct snapshot_file is = snapshot_file(fd);
	const uint64_t mark[2] = {MARK, number};

	for (size_t i = 0; i + sizeof(is) <= n; i++)
		if (memcmp(at + i, &is, sizeof(is)) == 0)
			memcpy(at + i, mark, sizeof(mark));
}

static void leave(struct session *s, struct ns *ns)
{
	struct bequest bequest;
	struct blob blob = {0};
	int socket = s->conn.fd;

	cache_close(&rig.cache);
	FUZZ_CHECK(control_bequeath(&rig.control, &bequest, NULL) == 0 && bequest.n_conns == 1);
	blob_put(&blob, HANDOVER_MAGIC, 16);
	blob_put_u32(&blob, 0);
	snapshot_write(&rig.cache, &blob);
	bequest_write(&bequest, &blob);
	/* The calibration by hand: the last number is how many there are. */
	blob.bytes -= 4;
	blob_put_u32(&blob, 1);
	snapshot_put_file(&blob, fz_fd(RIG_FD_CALIBRATION));
	blob_put_text(&blob, "default");
	blob_put_u64(&blob, 2352);
	FUZZ_CHECK(!blob.failed && blob.bytes <= sizeof(description));
	memcpy(description, blob.data, blob.bytes);
	description_size = blob.bytes;
	keep_mark(description, blob.bytes, ns->arena.fd, FILE_ARENA);
	keep_mark(description, blob.bytes, fz_fd(RIG_FD_CALIBRATION), FILE_CALIBRATION);
	keep_mark(description, blob.bytes, socket, FILE_SOCKET);
	arena_size = ns->arena.bytes;
	arena_used = RIG_PAGES * ns->layout.slot_bytes;
	arena_bytes = malloc(arena_used);
	FUZZ_CHECK(arena_bytes);
	memcpy(arena_bytes, ns->arena.base, arena_used);
	blob_fini(&blob);
	bequest_fini(&bequest, &rig.cache);
}

static void on_published(struct publish *p, int error, const char *why)
{
	(void)p;
	(void)why;
	FUZZ_CHECK(error == 0);
}

static void init(void)
{
	static bool done;
	struct publish p = {.done = on_published};
	struct identity id;
	struct ns *ns;

	if (done)
		return;
	done = true;
	fz_begin();
	fz_connect();
	rig.session->hello = true;
	rig.session->features = WIRE_FEATURES;
	rig_identity(0, &id);
	FUZZ_CHECK(cache_ns_open(&rig.cache, rig.cache.tenants[0], &id, "m", &ns, NULL) == 0);
	FUZZ_CHECK(session_open_ns(rig.session, ns) == 0);
	for (uint32_t i = 0; i < RIG_PAGES; i++) {
		p.has_parent = i > 0;
		if (i)
			p.parent = page_ref(p.page);
		p.ns = ns;
		p.pins = &rig.session->pins;
		p.fd = fz_fd(RIG_FD_STAGING);
		p.position = i * SKVQ_PAGE_TOKENS;
		p.offset = i * ns->layout.slot_bytes;
		maker_tokens(1, i, p.tokens);
		FUZZ_CHECK(cache_publish(&rig.cache, &p, NULL) == 0);
		fz_work();
	}
	leave(rig.session, ns);
	fz_end();
}

/* ---- what is given ---- */

static int make_arena(bool other)
{
	int fd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	FUZZ_CHECK(fd >= 0 && ftruncate(fd, (off_t)arena_size) == 0);
	FUZZ_CHECK(pwrite(fd, arena_bytes, arena_used, 0) == (ssize_t)arena_used);
	if (other) /* one page is not what it was */
		FUZZ_CHECK(pwrite(fd, "x", 1, (off_t)(arena_used / RIG_PAGES + 2000)) == 1);
	FUZZ_CHECK(fchmod(fd, 0400) == 0 && fcntl(fd, F_ADD_SEALS, ARENA_SEALS) == 0);
	return fd;
}

static int make_calibration(void)
{
	static uint8_t file[4096];
	int fd = memfd_create("calibration", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	FUZZ_CHECK(fd >= 0 && ftruncate(fd, sizeof(file)) == 0);
	FUZZ_CHECK(pread(fz_fd(RIG_FD_CALIBRATION), file, sizeof(file), 0) > 0);
	FUZZ_CHECK(pwrite(fd, file, sizeof(file), 0) == sizeof(file));
	FUZZ_CHECK(fchmod(fd, 0400) == 0 && fcntl(fd, F_ADD_SEALS, ARENA_SEALS) == 0);
	return fd;
}

static void name_files(uint8_t *at, size_t n, const struct notify_fd *given)
{
	const uint64_t mark = MARK;

	for (size_t i = 0; i + 16 <= n; i++) {
		struct snapshot_file is;

		if (memcmp(at + i, &mark, sizeof(mark)) != 0)
			continue;
		is = snapshot_file(given[1 + at[i + 8] % FILES].fd);
		memcpy(at + i, &is, sizeof(is));
		i += 15;
	}
}

static int make_map(const uint8_t *data, size_t n)
{
	int fd = memfd_create("map", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	FUZZ_CHECK(fd >= 0 && (!n || write(fd, data, n) == (ssize_t)n));
	FUZZ_CHECK(fcntl(fd, F_ADD_SEALS, MAP_SEALS) == 0);
	return fd;
}

static char *name_of(const char *text)
{
	char *name = strdup(text);

	FUZZ_CHECK(name);
	return name;
}

/* Descriptors with their names, as the service manager gives them: the description first. */
static struct notify_fd *give(struct fuzz_in in, uint8_t flags, int peers[2])
{
	struct notify_fd *given = calloc(1 + FILES, sizeof(*given));
	uint8_t *map = malloc(in.left + 1);
	int pair[2];

	FUZZ_CHECK(given && map);
	given[1 + FILE_ARENA].fd = make_arena(flags & OTHER_PAGES);
	given[1 + FILE_CALIBRATION].fd = make_calibration();
	for (int i = 0; i < 2; i++) {
		FUZZ_CHECK(
		    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
		given[1 + FILE_SOCKET + i].fd = pair[0];
		peers[i] = pair[1];
	}
	for (int i = 1; i <= FILES; i++)
		given[i].name = name_of("skvqd-fd-1");
	if (in.left)
		memcpy(map, in.at, in.left);
	name_files(map, in.left, given);
	if (flags & REPAIR && in.left >= HEADER_BYTES) {
		uint32_t crc = crc32c(map + HEADER_BYTES, in.left - HEADER_BYTES);

		memcpy(map + 16, &crc, sizeof(crc));
	}
	given[0] = (struct notify_fd){make_map(map, in.left), name_of("skvqd-map-1")};
	free(map);
	return given;
}

/* Nobody may find a page that is not what was published. */
static void check_cache(void)
{
	uint64_t pages = 0;

	for (struct ns *ns = rig.cache.namespaces; ns; ns = ns->next) {
		for (uint32_t i = 0; i < ns->table.touched; i++) {
			const struct page *page = &ns->table.pages[i];

			pages += page->state != PAGE_FREE;
			if (page->state == PAGE_FREE || page->unlisted)
				continue;
			FUZZ_CHECK(page_readable(page));
			FUZZ_CHECK(page_sound(ns_layout(ns, page->safe),
					      ns->arena.base + ns_page_offset(ns, page),
					      ns_page_span(ns, page), page->shed, page->digest));
		}
	}
	FUZZ_CHECK(pages == rig.cache.pages);
}

static uint64_t taken_over; /* pages, of the last input */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	uint8_t flags = fuzz_u8(&in);
	static struct handover handover;
	int peers[2];

	init();
	if (size > FUZZ_SEED_MAX)
		return 0;
	fz_begin();
	rig.refuse_jobs = true; /* pages are checked here and now */
	handover = (struct handover){.given = give(in, flags, peers), .n_given = 1 + FILES};
	handover_take(&handover, &rig.control);
	FUZZ_CHECK(!handover.given && !handover.n_given);
	taken_over = rig.stats.n[STAT_pages_taken_over];
	check_cache();
	for (int i = 0; i < 2; i++)
		if (flags & CLIENT_GONE)
			(void)close(peers[i]);
	fz_step();
	if (flags & CLIENT_GONE)
		FUZZ_CHECK(rig.cache.pins == 0);
	check_cache();
	for (int i = 0; i < 2; i++)
		if (!(flags & CLIENT_GONE))
			(void)close(peers[i]);
	fz_end();
	return 0;
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	struct fuzz_out out = {.at = at};

	init();
	if (i > 2)
		return 0;
	fuzz_put_u8(&out,
		    (uint8_t)(REPAIR | (i == 1 ? CLIENT_GONE : 0) | (i == 2 ? OTHER_PAGES : 0)));
	fuzz_put(&out, description, description_size);
	/* What a daemon of today leaves is taken over: else nothing behind the first check is reached. */
	(void)LLVMFuzzerTestOneInput(out.at, out.n);
	FUZZ_CHECK(taken_over == (i == 2 ? 1 : RIG_PAGES));
	return out.n;
}
