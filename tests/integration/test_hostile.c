/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients that break every rule of the protocol, against a real daemon, while another process that
 * keeps them goes on asking: its answers stay right and come in time. Behind it the daemon lives,
 * and holds nothing more than before.
 *
 *   test_hostile [--long]    SKVQ_SEED sets another seed
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/error.h>

#include "cache/fill.h"
#include "support/daemon.h"
#include "support/page_maker.h"
#include "support/raw_client.h"

#define SEALS      (F_SEAL_GROW | F_SEAL_SHRINK)
#define CHAIN      6u
#define OWN        3u    /* pages of an attacker */
#define LATE_MS    3000u /* a match and its unpins: the machine may be busy too */
#define GROWTH_KIB (96u << 10)

static struct test_daemon daemon_;
static struct skvq_layout layout;
static struct seeded rng;
static uint32_t effort = 1; /* --long: 10 */

static uint64_t now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void nap_ms(uint32_t ms)
{
	(void)nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000},
			NULL);
}

/* ---- one client ---- */

struct client {
	int sock, arena, staging_fd;
	uint32_t ns, staging;
	uint8_t *map;         /* staging */
	const uint8_t *pages; /* the arena */
	size_t arena_bytes;
	Skvq__Wire__PageRef refs[CHAIN];
};

static size_t staging_bytes(void)
{
	return CHAIN * layout.slot_bytes;
}

/* The error of a reply, which is freed; -1: the stream ended. */
static int error_of(raw_reply *reply)
{
	int error = reply ? (int)reply->error : -1;

	raw_free(reply);
	return error;
}

static int connect_hello(void)
{
	int sock = raw_connect(daemon_.socket);

	assert_true(sock >= 0);
	assert_int_equal(error_of(raw_hello(sock, "hostile")), 0);
	return sock;
}

static void open_ns(struct client *c, uint32_t seed)
{
	raw_reply *reply = raw_namespace_open(c->sock, raw_identity(seed), &c->arena);

	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	c->ns = reply->namespace_open->ns;
	c->arena_bytes = reply->namespace_open->arena_bytes;
	raw_free(reply);
	c->pages = mmap(NULL, c->arena_bytes, PROT_READ, MAP_SHARED, c->arena, 0);
	assert_ptr_not_equal(c->pages, MAP_FAILED);
}

static struct client client_open(uint32_t seed)
{
	struct client c = {.sock = connect_hello()};
	raw_reply *reply;

	open_ns(&c, seed);
	c.staging_fd = maker_memfd(staging_bytes(), SEALS);
	c.map = mmap(NULL, staging_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, c.staging_fd, 0);
	assert_ptr_not_equal(c.map, MAP_FAILED);
	reply = raw_staging_add(c.sock, c.staging_fd);
	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	c.staging = reply->staging_add->staging;
	raw_free(reply);
	return c;
}

static void client_close(struct client *c)
{
	(void)close(c->sock);
	(void)munmap((void *)(uintptr_t)c->pages, c->arena_bytes);
	(void)munmap(c->map, staging_bytes());
	(void)close(c->arena);
	(void)close(c->staging_fd);
}

static raw_reply *publish(struct client *c, uint32_t seed, uint32_t page)
{
	int32_t tokens[SKVQ_PAGE_TOKENS];
	uint32_t position = page * SKVQ_PAGE_TOKENS;

	maker_tokens(seed, page, tokens);
	maker_page(&layout, position, tokens, seed, c->map + page * layout.slot_bytes);
	return raw_publish(c->sock, c->ns, page ? &c->refs[page - 1] : NULL, position, tokens,
			   c->staging, page * layout.slot_bytes);
}

static void keep_ref(struct client *c, uint32_t page, const raw_reply *reply)
{
	skvq__wire__page_ref__init(&c->refs[page]);
	c->refs[page].slot = reply->publish->page->slot;
	c->refs[page].generation = reply->publish->page->generation;
}

static void publish_chain(struct client *c, uint32_t seed, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		raw_reply *reply = publish(c, seed, i);

		assert_non_null(reply);
		if (reply->error)
			fail_msg("page %u: %s", i, reply->detail);
		keep_ref(c, i, reply);
		raw_free(reply);
	}
}

static const uint8_t *page_at(const struct client *c, const Skvq__Wire__PageRef *ref)
{
	return c->pages + ref->slot * layout.slot_bytes;
}

/* ---- the one that keeps the rules ---- */

static struct watched {
	atomic_bool stop;
	atomic_uint answers, wrong, slowest_ms;
} * good;

/* What it published, byte for byte but for what the daemon adds to the header. */
static bool is_mine(const struct client *c, const Skvq__Wire__PageRef *ref, uint32_t page)
{
	const uint8_t *at = page_at(c, ref), *mine = c->map + page * layout.slot_bytes;
	size_t n = skvq_layout_page_bytes(&layout, page * SKVQ_PAGE_TOKENS);
	skvq_page_header h;

	memcpy(&h, at, sizeof(h));
	return memcmp(at + sizeof(h), mine + sizeof(h), n - sizeof(h)) == 0 &&
	       page_sound(&layout, at, n, false, h.digest);
}

static bool ask(struct client *c, const int32_t *tokens)
{
	raw_reply *reply = raw_match(c->sock, c->ns, tokens, CHAIN * SKVQ_PAGE_TOKENS);
	bool right = reply && !reply->error && reply->match->n_pages == CHAIN;

	for (uint32_t i = 0; right && i < CHAIN; i++)
		right = is_mine(c, reply->match->pages[i], i);
	for (uint32_t i = 0; right && i < CHAIN; i++)
		right = error_of(raw_unpin(c->sock, c->ns, reply->match->pages[i])) == 0;
	raw_free(reply);
	return right;
}

static void be_good(void)
{
	struct client c = client_open(1);
	int32_t tokens[CHAIN * SKVQ_PAGE_TOKENS];

	publish_chain(&c, 1, CHAIN);
	for (uint32_t i = 0; i < CHAIN; i++)
		maker_tokens(1, i, tokens + i * SKVQ_PAGE_TOKENS);
	while (!atomic_load(&good->stop)) {
		uint64_t began = now_ms(), took;

		if (!ask(&c, tokens))
			atomic_fetch_add(&good->wrong, 1);
		took = now_ms() - began;
		if (took > atomic_load(&good->slowest_ms))
			atomic_store(&good->slowest_ms, (unsigned)took);
		atomic_fetch_add(&good->answers, 1);
		nap_ms(2);
	}
	client_close(&c);
}

static pid_t good_pid;

static void start_good(void)
{
	pid_t parent = getpid();

	good = mmap(NULL, sizeof(*good), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(good, MAP_FAILED);
	good_pid = fork();
	assert_true(good_pid >= 0);
	if (good_pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			be_good();
		_exit(0);
	}
	while (!atomic_load(&good->answers))
		nap_ms(2);
}

/* Its answers since the last call: some, all right, none late. */
static void good_is_well(const char *after)
{
	unsigned before = atomic_load(&good->answers);
	uint64_t began = now_ms();

	while (atomic_load(&good->answers) < before + 3) {
		if (now_ms() - began > 4 * LATE_MS)
			fail_msg("after %s the good client gets no answers", after);
		nap_ms(2);
	}
	if (atomic_load(&good->wrong))
		fail_msg("after %s the good client got %u wrong answers", after, good->wrong);
	if (atomic_load(&good->slowest_ms) > LATE_MS)
		fail_msg("after %s an exchange took %u ms", after, good->slowest_ms);
}

/* ---- what must be the same before and after ---- */

static struct holds {
	uint64_t pins, pages_failed, refused, protocol, turned_away, rss_kib;
	int fds;
} before;

static uint64_t rss_kib(void)
{
	char path[64], line[256];
	unsigned long long kib = 0;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)daemon_.pid);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		(void)sscanf(line, "RssAnon: %llu", &kib);
	(void)fclose(f);
	return kib;
}

static struct holds held(void)
{
	int sock = connect_hello();
	raw_reply *status = raw_status(sock);
	struct holds h = {.rss_kib = rss_kib(), .fds = test_daemon_fds(&daemon_)};

	assert_non_null(status);
	h.pins = status->status->pins;
	h.pages_failed = raw_counter(status, "page_check_failures");
	h.refused = raw_counter(status, "requests_refused");
	h.protocol = raw_counter(status, "protocol_errors");
	h.turned_away = raw_counter(status, "connections_refused");
	raw_free(status);
	(void)close(sock);
	return h;
}

/* The good client's own pins come and go: CHAIN for good, as many again while it compares. */
static bool is_as_before(const struct holds *h)
{
	return h->pins <= 2 * CHAIN && h->fds <= before.fds + 2;
}

static void nothing_is_left(const char *after)
{
	struct holds h;

	for (int i = 0; i < 400; i++) {
		h = held();
		if (is_as_before(&h))
			return;
		nap_ms(25);
	}
	fail_msg("after %s: %llu pins, %d descriptors (before: %d)", after,
		 (unsigned long long)h.pins, h.fds, before.fds);
}

/* ---- descriptors ---- */

enum {
	KIND_PIPE,
	KIND_FILE,
	KIND_FOLDER,
	KIND_SOCKET,
	KIND_UNSEALED,
	KIND_WRITE_ONLY,
	KIND_NULL,
	KINDS
};

static int make_kind(int kind)
{
	char path[64];
	int pair[2], fd;

	switch (kind) {
	case KIND_PIPE:
		assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
		break;
	case KIND_SOCKET:
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		break;
	case KIND_FILE:
		return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	case KIND_FOLDER:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case KIND_UNSEALED:
		return maker_memfd(staging_bytes(), F_SEAL_GROW);
	case KIND_WRITE_ONLY:
		fd = maker_memfd(staging_bytes(), SEALS);
		(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		pair[0] = open(path, O_WRONLY | O_CLOEXEC);
		(void)close(fd);
		return pair[0];
	default:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	}
	(void)close(pair[1]);
	return pair[0];
}

static void wrong_kinds_of_descriptors(void)
{
	int sock = connect_hello();

	for (int kind = 0; kind < KINDS; kind++) {
		int fd = make_kind(kind);
		int error;

		assert_true(fd >= 0);
		error = error_of(raw_staging_add(sock, fd));
		assert_int_equal(error, kind == KIND_UNSEALED ? SKVQ_ESEALS : SKVQ_EFD);
		(void)close(fd);
	}
	(void)close(sock);
}

static void floods_of_descriptors(void)
{
	int fds[60];

	for (int i = 0; i < 60; i++)
		fds[i] = make_kind(i % KINDS);
	for (uint32_t round = 0; round < 20 * effort; round++) {
		int sock = connect_hello();
		uint32_t n = 1 + seeded_below(&rng, 60);
		uint8_t frame[8 + 2] = {0};

		/* More than a frame may have, or than it says, or where there may be none. */
		raw_header(frame, 2, (uint16_t)(round % 3 ? n % 4 : n), RAW_MAGIC);
		(void)raw_send_bytes(sock, frame, round % 2 ? 10 : 8, fds, n);
		for (int i = 0; i < 8; i++)
			(void)raw_send_bytes(sock, frame, 1, fds, 60);
		(void)close(sock);
	}
	for (int i = 0; i < 60; i++)
		(void)close(fds[i]);
}

static void more_stagings_than_allowed(void)
{
	int sock = connect_hello(), fd = maker_memfd(4096, SEALS), error = 0;

	for (int i = 0; i < 10 && !error; i++)
		error = error_of(raw_staging_add(sock, fd));
	assert_int_equal(error, SKVQ_ESTAGINGS);
	(void)close(fd);
	(void)close(sock);
}

/* ---- bytes that change under the copy ---- */

struct hammer {
	struct client *c;
	atomic_bool stop;
};

/* Header and table most, where any bit matters. The race with who fills the page is what is wanted. */
__attribute__((no_sanitize("thread"))) static void *hammer(void *arg)
{
	struct hammer *h = arg;
	volatile uint8_t *at = h->c->map;

	for (size_t i = 0; !atomic_load_explicit(&h->stop, memory_order_relaxed); i += 61)
		at[i % (i & 64 ? layout.base_bytes : layout.layers_offset)] ^= (uint8_t)(1u << i % 8);
	return NULL;
}

static void staging_that_changes_during_the_copy(void)
{
	struct client c = client_open(2);
	struct hammer h = {.c = &c};
	uint32_t taken = 0, refused = 0;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, hammer, &h), 0);
	for (uint32_t i = 0; i < 300 * effort || (!refused && i < 20000); i++) {
		raw_reply *reply = publish(&c, 1000 + i, 0);
		skvq_page_header head;

		assert_non_null(reply);
		if (reply->error) {
			assert_int_equal(reply->error, SKVQ_ECORRUPT);
			refused++;
		} else {
			/* Whatever it is: what was checked is what everyone sees, and stays. */
			const uint8_t *at = page_at(&c, reply->publish->page);

			memcpy(&head, at, sizeof(head));
			assert_true(page_sound(&layout, at, skvq_layout_page_bytes(&layout, 0),
					       false, head.digest));
			assert_int_equal(error_of(raw_unpin(c.sock, c.ns, reply->publish->page)),
					 0);
			taken++;
		}
		raw_free(reply);
	}
	atomic_store(&h.stop, true);
	(void)pthread_join(thread, NULL);
	print_message("%u copies of changing bytes were refused, %u taken\n", refused, taken);
	assert_true(refused > 0);
	client_close(&c);
}

static void a_memfd_cannot_move_under_the_daemon(void)
{
	struct client c = client_open(2);
	int fd = maker_memfd(4096, SEALS);
	int32_t tokens[SKVQ_PAGE_TOKENS] = {0};
	raw_reply *reply;

	/* What it is sealed against, */
	assert_int_equal(ftruncate(c.staging_fd, 0), -1);
	assert_int_equal(ftruncate(c.staging_fd, (off_t)staging_bytes() * 2), -1);
	/* a page that does not lie in it whole, */
	reply = raw_staging_add(c.sock, fd);
	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	for (uint64_t offset = 0; offset < UINT64_MAX / 2; offset = offset * 3 + 4096) {
		int error = error_of(raw_publish(c.sock, c.ns, NULL, 0, tokens,
						 reply->staging_add->staging, offset));

		assert_true(error == SKVQ_ESHORT || error == SKVQ_EINVAL);
	}
	raw_free(reply);
	/* holes, whose bytes are zero. */
	assert_int_equal(fallocate(c.staging_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				   (off_t)staging_bytes()),
			 0);
	assert_int_equal(error_of(raw_publish(c.sock, c.ns, NULL, 0, tokens, c.staging, 0)),
			 SKVQ_ECORRUPT);
	(void)close(fd);
	client_close(&c);
}

/* ---- frames ---- */

static void say(const void *bytes, size_t n, int want)
{
	int sock = connect_hello(), error;
	raw_reply *reply;

	(void)raw_send_bytes(sock, bytes, n, NULL, 0);
	(void)shutdown(sock, SHUT_WR);
	reply = raw_recv(sock, NULL);
	error = error_of(reply);
	if (want)
		assert_int_equal(error, want);
	assert_null(raw_recv(sock, NULL)); /* and that was the end of it */
	(void)close(sock);
}

static void broken_frames(void)
{
	uint8_t frame[8 + 64] = {0};

	raw_header(frame, UINT32_MAX, 0, RAW_MAGIC);
	say(frame, 8, SKVQ_EFRAME);
	raw_header(frame, (64u << 10) + 1, 0, RAW_MAGIC);
	say(frame, 8, SKVQ_EFRAME);
	raw_header(frame, 0, 0, RAW_MAGIC);
	say(frame, 8, SKVQ_EPROTO);
	raw_header(frame, 1, 0, RAW_MAGIC ^ 1);
	say(frame, 8, SKVQ_EPROTO);
	raw_header(frame, 64, 0, RAW_MAGIC);
	say(frame, 8 + 64, SKVQ_EPROTO); /* not a Request */
	for (uint32_t i = 0; i < 200 * effort; i++) {
		uint32_t n = 1 + seeded_below(&rng, 63);

		for (uint32_t at = 0; at < sizeof(frame); at++)
			frame[at] = (uint8_t)seeded_u64(&rng);
		if (i % 2)
			raw_header(frame, n, 0, RAW_MAGIC);
		say(frame, 8 + n, 0);
	}
}

static int call(int sock, raw_request *rq, uint64_t id)
{
	rq->id = id;
	raw_send(sock, rq, -1);
	return error_of(raw_recv(sock, NULL));
}

static void wrong_greetings(void)
{
	raw_request ping = SKVQ__WIRE__REQUEST__INIT, hello = SKVQ__WIRE__REQUEST__INIT,
		    nothing = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Ping m = SKVQ__WIRE__PING__INIT;
	Skvq__Wire__Hello h = SKVQ__WIRE__HELLO__INIT;
	int sock = raw_connect(daemon_.socket);

	assert_true(sock >= 0);
	ping.body_case = SKVQ__WIRE__REQUEST__BODY_PING;
	ping.ping = &m;
	hello.body_case = SKVQ__WIRE__REQUEST__BODY_HELLO;
	hello.hello = &h;
	assert_int_equal(call(sock, &ping, 1), SKVQ_EPROTO); /* before hello */
	h.version_major = 77;
	assert_int_equal(call(sock, &hello, 2), SKVQ_EVERSION);
	h.version_major = 1;
	assert_int_equal(call(sock, &hello, 3), 0);
	assert_int_equal(call(sock, &hello, 4), SKVQ_ESTATE); /* twice */
	assert_int_equal(call(sock, &nothing, 5), SKVQ_ENOTSUP);
	assert_int_equal(call(sock, &ping, 6), 0); /* the connection goes on */
	assert_int_equal(call(sock, &ping, 0), SKVQ_EPROTO);
	assert_null(raw_recv(sock, NULL));
	(void)close(sock);
}

/* Sockets that wait in the middle of something while others are served. */
static void half_frames_and_silence(void)
{
	int socks[24];
	uint8_t frame[8 + 100] = {0};

	for (int i = 0; i < 24; i++) {
		socks[i] = connect_hello();
		raw_header(frame, 60000, 0, RAW_MAGIC);
		(void)raw_send_bytes(socks[i], frame, (size_t)(1 + i * 4), NULL, 0);
	}
	good_is_well("half frames");
	nap_ms(200 * effort);
	good_is_well("silence");
	for (int i = 0; i < 24; i++)
		(void)close(socks[i]);
}

static void never_reading(void)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StatusGet m = SKVQ__WIRE__STATUS_GET__INIT;
	uint8_t frame[64];
	int socks[4];
	size_t n;

	rq.id = 9;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_STATUS;
	rq.status = &m;
	n = protobuf_c_message_get_packed_size(&rq.base);
	raw_header(frame, (uint32_t)n, 0, RAW_MAGIC);
	(void)protobuf_c_message_pack(&rq.base, frame + 8);
	for (int i = 0; i < 4; i++)
		socks[i] = connect_hello();
	for (uint32_t round = 0; round < 3000 * effort; round++)
		for (int i = 0; i < 4; i++)
			(void)send(socks[i], frame, 8 + n, MSG_DONTWAIT | MSG_NOSIGNAL);
	nap_ms(300);
	good_is_well("replies that nobody reads");
	for (int i = 0; i < 4; i++)
		(void)close(socks[i]);
}

/* ---- pages of others ---- */

static void names_that_are_not_ours(void)
{
	struct client c = client_open(1);
	int32_t tokens[SKVQ_PAGE_TOKENS];
	Skvq__Wire__PageRef ref = SKVQ__WIRE__PAGE_REF__INIT;

	publish_chain(&c, 500, OWN);
	/* The good client's pages lie in the same arena. */
	for (uint32_t slot = 0; slot < 20; slot++) {
		int error;

		ref.slot = slot;
		ref.generation = 1;
		if (slot == c.refs[0].slot || slot == c.refs[1].slot || slot == c.refs[2].slot)
			continue;
		error = error_of(raw_unpin(c.sock, c.ns, &ref));
		assert_int_equal(error, SKVQ_ESTALE);
	}
	for (uint32_t i = 0; i < 60 * effort; i++) {
		ref.slot = (uint32_t)seeded_u64(&rng);
		ref.generation = (uint32_t)seeded_u64(&rng);
		assert_int_equal(error_of(raw_unpin(c.sock, c.ns, &ref)), SKVQ_ESTALE);
		maker_tokens(501, 1, tokens);
		assert_true(error_of(raw_publish(c.sock, c.ns, &ref, SKVQ_PAGE_TOKENS, tokens,
						 c.staging, 0)) > 0);
	}
	/* Numbers of things that are not there. */
	assert_int_equal(error_of(raw_match(c.sock, c.ns + 77, tokens, 80)), SKVQ_EINVAL);
	assert_int_equal(error_of(raw_publish(c.sock, c.ns, NULL, 0, tokens, c.staging + 9, 0)),
			 SKVQ_EINVAL);
	assert_true(error_of(raw_publish(c.sock, c.ns, NULL, 0, tokens, c.staging, 1)) > 0);
	assert_true(error_of(raw_publish(c.sock, c.ns, &c.refs[0], 17, tokens, c.staging, 0)) > 0);
	assert_true(
	    error_of(raw_publish(c.sock, c.ns, NULL, SKVQ_PAGE_TOKENS, tokens, c.staging, 0)) > 0);
	/* A page under tokens that are not in it; checksums that the daemon alone may write. */
	maker_page(&layout, 0, tokens, 3, c.map);
	tokens[5]++;
	assert_int_equal(error_of(raw_publish(c.sock, c.ns, NULL, 0, tokens, c.staging, 0)),
			 SKVQ_ECORRUPT);
	tokens[5]--;
	((skvq_page_header *)(void *)c.map)->crc_base = 1;
	assert_int_equal(error_of(raw_publish(c.sock, c.ns, NULL, 0, tokens, c.staging, 0)),
			 SKVQ_ECORRUPT);
	client_close(&c);
}

/* ---- the end, at any byte ---- */

static size_t put_frame(uint8_t *at, raw_request *rq, uint64_t id, uint16_t n_fds)
{
	size_t n;

	rq->id = id;
	n = protobuf_c_message_pack(&rq->base, at + 8);
	raw_header(at, (uint32_t)n, n_fds, RAW_MAGIC);
	return 8 + n;
}

/* hello, namespace_open, staging_add (from *ret_fd_at on), publish. */
static size_t conversation(uint8_t *at, uint32_t ns, size_t *ret_fd_at)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Hello hello = SKVQ__WIRE__HELLO__INIT;
	Skvq__Wire__NamespaceOpen open = SKVQ__WIRE__NAMESPACE_OPEN__INIT;
	Skvq__Wire__StagingAdd add = SKVQ__WIRE__STAGING_ADD__INIT;
	Skvq__Wire__Publish pub = SKVQ__WIRE__PUBLISH__INIT;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	size_t n;

	hello.version_major = 1;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_HELLO;
	rq.hello = &hello;
	n = put_frame(at, &rq, 1, 0);
	open.identity = raw_identity(2);
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_NAMESPACE_OPEN;
	rq.namespace_open = &open;
	n += put_frame(at + n, &rq, 2, 0);
	*ret_fd_at = n;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_STAGING_ADD;
	rq.staging_add = &add;
	n += put_frame(at + n, &rq, 3, 1);
	maker_tokens(900, 0, tokens);
	pub.ns = ns;
	pub.staging = 1;
	pub.tokens = tokens;
	pub.n_tokens = SKVQ_PAGE_TOKENS;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PUBLISH;
	rq.publish = &pub;
	return n + put_frame(at + n, &rq, 4, 0);
}

static void an_end_at_each_byte(void)
{
	uint8_t wire[4096];
	struct client c = client_open(2); /* keeps the namespace, and its number */
	int32_t tokens[SKVQ_PAGE_TOKENS];
	size_t fd_at, n = conversation(wire, c.ns, &fd_at);
	int fd = maker_memfd(staging_bytes(), SEALS);
	uint8_t *map = mmap(NULL, staging_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_ptr_not_equal(map, MAP_FAILED);
	maker_tokens(900, 0, tokens);
	maker_page(&layout, 0, tokens, 9, map);
	for (size_t cut = 0; cut <= n; cut += effort > 1 ? 1 : 1 + cut % 3) {
		int sock = raw_connect(daemon_.socket);

		assert_true(sock >= 0);
		(void)raw_send_bytes(sock, wire, cut < fd_at ? cut : fd_at, NULL, 0);
		if (cut > fd_at)
			(void)raw_send_bytes(sock, wire + fd_at, cut - fd_at, &fd, 1);
		if (cut % 2) /* a reset, with replies unread */
			nap_ms(cut % 16 == 1);
		(void)close(sock);
	}
	(void)munmap(map, staging_bytes());
	(void)close(fd);
	client_close(&c);
}

/* ---- very many ---- */

static void ten_thousand_connections(void)
{
	enum { WAVE = 400 };
	uint32_t all = 0, turned_away = 0, served = 0;
	int socks[WAVE];

	while (all < 10000) {
		uint32_t n = 0;

		for (; n < WAVE && all < 10000; n++, all++) {
			socks[n] = raw_connect(daemon_.socket);
			if (socks[n] < 0)
				fail_msg("connection %u: %s", all, strerror(errno));
		}
		for (uint32_t i = 0; i < n; i++) {
			raw_reply *reply = raw_hello(socks[i], "one of many");
			int error = error_of(reply);

			/* Turned away, it may read that or, if its own words crossed it, nothing.
			 */
			assert_true(error == 0 || error == SKVQ_ECONNS || error == -1);
			served += error == 0;
			turned_away += error != 0;
		}
		for (uint32_t i = 0; i < n; i++)
			(void)close(socks[i]);
	}
	print_message("of 10000 connections %u were served, %u turned away\n", served, turned_away);
	assert_true(served > 0 && turned_away > 0);
}

/* ---- all of it ---- */

static int setup(void **state)
{
	const char *const args[] = {"--ram-max",
				    "4M",
				    "--frame-max",
				    "64K",
				    "--backlog-max",
				    "64K",
				    "--staging-max",
				    "3",
				    "--connections-max",
				    "32",
				    "--pins-max",
				    "64",
				    "--log-level",
				    "error",
				    NULL};

	(void)state;
	maker_layout(&layout);
	rng = seeded_init();
	test_daemon_init(&daemon_);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
	start_good();
	before = held();
	return 0;
}

static int teardown(void **state)
{
	int status = 0;

	(void)state;
	atomic_store(&good->stop, true);
	(void)waitpid(good_pid, &status, 0);
	status |= test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_fini(&daemon_);
	return status;
}

static void hostile(void **state)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} attacks[] = {
#define A(fn) {#fn, fn}
	    A(wrong_kinds_of_descriptors),
	    A(floods_of_descriptors),
	    A(more_stagings_than_allowed),
	    A(staging_that_changes_during_the_copy),
	    A(a_memfd_cannot_move_under_the_daemon),
	    A(broken_frames),
	    A(wrong_greetings),
	    A(half_frames_and_silence),
	    A(never_reading),
	    A(names_that_are_not_ours),
	    A(an_end_at_each_byte),
	    A(ten_thousand_connections),
#undef A
	};
	struct holds after;

	(void)state;
	for (uint32_t round = 0; round < effort; round++) {
		for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
			attacks[i].fn();
			good_is_well(attacks[i].name);
			nothing_is_left(attacks[i].name);
		}
	}
	after = held();
	assert_true(after.protocol > before.protocol && after.refused > before.refused);
	assert_true(after.pages_failed > before.pages_failed);
	assert_true(after.turned_away > before.turned_away);
	print_message("good client: %u exchanges, none took longer than %u ms; daemon's memory: "
		      "%llu KiB, then %llu\n",
		      good->answers, good->slowest_ms, (unsigned long long)before.rss_kib,
		      (unsigned long long)after.rss_kib);
#ifndef SANITIZED
	assert_true(after.rss_kib < before.rss_kib + GROWTH_KIB);
#endif
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(hostile, setup, teardown),
	};

	if (argc > 1 && !strcmp(argv[1], "--long"))
		effort = 10;
	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
