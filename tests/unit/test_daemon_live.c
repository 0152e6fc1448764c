/* SPDX-License-Identifier: Apache-2.0 */
/* The real skvqd over its socket, with frames made by hand. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/calibration.h>
#include <skvq/error.h>

#include "support/daemon.h"
#include "support/page_maker.h"
#include "support/raw_client.h"

#define SLOTS 16u
#define SEALS (F_SEAL_GROW | F_SEAL_SHRINK)

static struct test_daemon daemon_;
static struct skvq_layout layout;

/* One client: socket, namespace, arena, staging with a map to write pages through. */
struct client {
	int sock, arena, staging_fd;
	uint32_t ns, staging;
	uint8_t *map;
	const uint8_t *pages;
	size_t arena_bytes;
};

static void ok(raw_reply *reply)
{
	assert_non_null(reply);
	if (reply->error)
		fail_msg("error %u: %s", reply->error, reply->detail);
	raw_free(reply);
}

static void refused(raw_reply *reply, uint32_t code, const char *says)
{
	assert_non_null(reply);
	assert_int_equal(reply->error, code);
	if (!strstr(reply->detail, says))
		fail_msg("\"%s\" does not say \"%s\"", reply->detail, says);
	assert_true(reply->boot_id != 0);
	raw_free(reply);
}

static int connect_hello(const char *name)
{
	int sock = raw_connect(daemon_.socket);

	assert_true(sock >= 0);
	ok(raw_hello(sock, name));
	return sock;
}

static struct client client_open(uint32_t seed)
{
	struct client c = {.sock = connect_hello("tester")};
	raw_reply *reply = raw_namespace_open(c.sock, raw_identity(seed), &c.arena);

	assert_non_null(reply);
	if (reply->error)
		fail_msg("%s", reply->detail);
	assert_int_equal(reply->namespace_open->slot_bytes, layout.slot_bytes);
	assert_int_equal(reply->namespace_open->base_bytes, layout.base_bytes);
	assert_int_equal(reply->namespace_open->sidecar_bytes, layout.sidecar_bytes);
	c.ns = reply->namespace_open->ns;
	c.arena_bytes = reply->namespace_open->arena_bytes;
	raw_free(reply);
	assert_true(c.arena >= 0);
	c.pages = mmap(NULL, c.arena_bytes, PROT_READ, MAP_SHARED, c.arena, 0);
	assert_ptr_not_equal(c.pages, MAP_FAILED);
	c.staging_fd = maker_memfd(SLOTS * layout.slot_bytes, SEALS);
	c.map = mmap(NULL, SLOTS * layout.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		     c.staging_fd, 0);
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
	if (c->sock >= 0)
		close(c->sock);
	munmap((void *)(uintptr_t)c->pages, c->arena_bytes);
	munmap(c->map, SLOTS * layout.slot_bytes);
	close(c->arena);
	close(c->staging_fd);
}

/* Publishes page number `page` of the sequence `seed` from staging slot `slot`. */
static raw_reply *publish(struct client *c, const Skvq__Wire__PageRef *parent, uint32_t seed,
			  uint32_t page, uint32_t slot)
{
	int32_t tokens[SKVQ_PAGE_TOKENS];
	uint32_t position = page * SKVQ_PAGE_TOKENS;

	maker_tokens(seed, page, tokens);
	maker_page(&layout, position, tokens, seed, c->map + slot * layout.slot_bytes);
	return raw_publish(c->sock, c->ns, parent, position, tokens, c->staging,
			   slot * layout.slot_bytes);
}

static void publish_chain(struct client *c, uint32_t seed, uint32_t n, Skvq__Wire__PageRef *refs)
{
	for (uint32_t i = 0; i < n; i++) {
		raw_reply *reply = publish(c, i ? &refs[i - 1] : NULL, seed, i, i % SLOTS);

		assert_non_null(reply);
		if (reply->error)
			fail_msg("page %u: %s", i, reply->detail);
		skvq__wire__page_ref__init(&refs[i]);
		refs[i].slot = reply->publish->page->slot;
		refs[i].generation = reply->publish->page->generation;
		raw_free(reply);
	}
}

static uint32_t match(struct client *c, uint32_t seed, uint32_t n_pages)
{
	int32_t tokens[8 * SKVQ_PAGE_TOKENS];
	raw_reply *reply;
	uint32_t n;

	for (uint32_t i = 0; i < n_pages; i++)
		maker_tokens(seed, i, tokens + i * SKVQ_PAGE_TOKENS);
	reply = raw_match(c->sock, c->ns, tokens, n_pages * SKVQ_PAGE_TOKENS);
	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	n = (uint32_t)reply->match->n_pages;
	raw_free(reply);
	return n;
}

static uint64_t pins(int sock)
{
	raw_reply *reply = raw_status(sock);
	uint64_t n = reply->status->pins;

	raw_free(reply);
	return n;
}

/* Waits for what follows from a closed socket, which the daemon learns in its own time. */
static bool pins_become(int sock, uint64_t want)
{
	for (int i = 0; i < 1000; i++) {
		if (pins(sock) == want)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	return false;
}

/* Closing is done behind the loop's back. */
static bool fds_fall_to(int want)
{
	for (int i = 0; i < 1000; i++) {
		if (test_daemon_fds(&daemon_) <= want)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	return false;
}

static void start(const char *const *args)
{
	test_daemon_init(&daemon_);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
}

static int setup(void **state)
{
	const char *const args[] = {"--ram-max",
				    "4M",
				    "--frame-max",
				    "64K",
				    "--connections-max",
				    "6",
				    "--staging-max",
				    "3",
				    "--pins-max",
				    "32",
				    NULL};

	(void)state;
	maker_layout(&layout);
	start(args);
	return 0;
}

static int teardown(void **state)
{
	int status;

	(void)state;
	/* Whatever the test did: it still lives, and ends in order. */
	if (!daemon_.pid)
		return -1;
	status = test_daemon_stop(&daemon_, SIGTERM);
	if (access(daemon_.socket, F_OK) == 0)
		return -1;
	test_daemon_fini(&daemon_);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

/* ---- the straight way ---- */

static void a_page_is_shared(void **state)
{
	struct client a = client_open(0), b = client_open(0);
	Skvq__Wire__PageRef refs[3];
	const uint8_t *page;
	raw_reply *reply;
	int32_t tokens[SKVQ_PAGE_TOKENS];

	(void)state;
	publish_chain(&a, 1, 3, refs);
	assert_int_equal(match(&b, 1, 3), 3);
	assert_int_equal(a.ns, b.ns);
	/* The other client reads the very bytes, and cannot write them. */
	page = b.pages + refs[1].slot * layout.slot_bytes;
	maker_tokens(1, 1, tokens);
	assert_memory_equal(page, "SKVQPAGE", 8);
	assert_memory_equal(page + layout.tokens_offset, tokens, sizeof(tokens));
	assert_ptr_equal(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, b.arena, 0), MAP_FAILED);
	assert_int_equal(mprotect((void *)(uintptr_t)b.pages, 4096, PROT_READ | PROT_WRITE), -1);
	/* An equal page published by the other is the same page. */
	reply = publish(&b, &refs[0], 1, 1, 0);
	assert_int_equal(reply->error, 0);
	assert_true(reply->publish->existed);
	assert_int_equal(reply->publish->page->slot, refs[1].slot);
	assert_int_equal(reply->publish->page->generation, refs[1].generation);
	raw_free(reply);
	assert_int_equal(pins(a.sock), 3 + 3 + 1);
	ok(raw_unpin(a.sock, a.ns, &refs[2]));
	refused(raw_unpin(a.sock, a.ns, &refs[2]), SKVQ_ESTALE, "not pinned");
	assert_int_equal(pins(a.sock), 3 + 3);
	client_close(&a);
	assert_true(pins_become(b.sock, 4));
	client_close(&b);
}

static void status_adds_up(void **state)
{
	struct client a = client_open(0);
	Skvq__Wire__PageRef refs[2];
	raw_reply *reply;

	(void)state;
	publish_chain(&a, 1, 2, refs);
	assert_int_equal(match(&a, 1, 4), 2);
	reply = raw_status(a.sock);
	assert_int_equal(reply->status->pages, 2);
	assert_int_equal(reply->status->bytes_resident, reply->status->bytes_kernel);
	assert_int_equal(reply->status->bytes_resident,
			 2 * layout.base_bytes + layout.sidecar_bytes);
	assert_int_equal(reply->status->bytes_max, 4 << 20);
	assert_int_equal(reply->status->connections_max, 6);
	assert_string_equal(reply->status->socket, daemon_.socket);
	assert_int_equal(reply->status->pid, daemon_.pid);
	assert_int_equal(raw_counter(reply, "publishes"), 2);
	assert_int_equal(raw_counter(reply, "tokens_asked"), 320);
	assert_int_equal(raw_counter(reply, "tokens_matched"), 160);
	assert_int_equal(raw_counter(reply, "refused_epins"), 0);
	assert_int_equal(raw_recorded(reply, "match_us"), 1);
	assert_int_equal(raw_recorded(reply, "publish_us"), 2);
	assert_int_equal(raw_recorded(reply, "restore_us"), 0);
	raw_free(reply);
	client_close(&a);
}

static void lists(void **state)
{
	struct client a = client_open(0), b = client_open(1);
	Skvq__Wire__PageRef refs[3];
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__NamespaceList nl = SKVQ__WIRE__NAMESPACE_LIST__INIT;
	Skvq__Wire__PageList pl = SKVQ__WIRE__PAGE_LIST__INIT;
	Skvq__Wire__PinList pins_m = SKVQ__WIRE__PIN_LIST__INIT;
	Skvq__Wire__ErrorList el = SKVQ__WIRE__ERROR_LIST__INIT;
	raw_reply *reply;

	(void)state;
	publish_chain(&a, 1, 3, refs);
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_NAMESPACE_LIST;
	rq.namespace_list = &nl;
	reply = raw_call(a.sock, &rq, -1, NULL);
	assert_int_equal(reply->namespace_list->n_namespaces, 2);
	assert_string_equal(reply->namespace_list->namespaces[1]->tenant, "default");
	assert_string_equal(reply->namespace_list->namespaces[1]->model_name, "tiny");
	assert_string_equal(reply->namespace_list->namespaces[1]->profile, MAKER_PROFILE);
	assert_int_equal(reply->namespace_list->namespaces[1]->pages, 3);
	assert_int_equal(reply->namespace_list->namespaces[1]->pins, 3);
	raw_free(reply);

	rq.id = 0;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PAGE_LIST;
	rq.page_list = &pl;
	pl.ns = a.ns;
	pl.max = 2;
	reply = raw_call(b.sock, &rq, -1, NULL); /* lists are for everyone on the socket */
	assert_int_equal(reply->page_list->n_pages, 2);
	assert_null(reply->page_list->pages[0]->parent);
	assert_int_equal(reply->page_list->pages[1]->parent->slot, refs[0].slot);
	assert_string_equal(reply->page_list->pages[1]->state, "resident");
	assert_int_equal(reply->page_list->pages[1]->pins, 1);
	assert_int_equal(reply->page_list->pages[1]->children, 1);
	pl.first_slot = reply->page_list->next_slot;
	assert_int_not_equal(pl.first_slot, 0);
	raw_free(reply);
	rq.id = 0;
	reply = raw_call(b.sock, &rq, -1, NULL);
	assert_int_equal(reply->page_list->n_pages, 1);
	assert_int_equal(reply->page_list->next_slot, 0);
	raw_free(reply);
	rq.id = 0;
	pl.ns = 99;
	refused(raw_call(b.sock, &rq, -1, NULL), SKVQ_EINVAL, "no namespace 99");

	rq.id = 0;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_ERROR_LIST;
	rq.error_list = &el;
	el.ns = a.ns;
	reply = raw_call(b.sock, &rq, -1, NULL);
	assert_int_equal(reply->error_list->n_errors, 2 * MAKER_LAYERS);
	for (uint32_t i = 0; i < 2 * MAKER_LAYERS; i++) {
		const Skvq__Wire__ErrorInfo *e = reply->error_list->errors[i];

		assert_int_equal(e->layer, i / 2);
		assert_int_equal(e->is_v, i % 2);
		assert_int_equal(e->bits, SKVQ_BITS_4);
		assert_int_equal(e->pages, 0); /* made by hand: nobody measured */
		assert_int_equal(e->n_histogram, 16);
	}
	raw_free(reply);
	rq.id = 0;
	el.ns = 99;
	refused(raw_call(b.sock, &rq, -1, NULL), SKVQ_EINVAL, "no namespace 99");

	rq.id = 0;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PIN_LIST;
	rq.pin_list = &pins_m;
	reply = raw_call(b.sock, &rq, -1, NULL);
	assert_int_equal(reply->pin_list->n_pins, 2);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(reply->pin_list->pins[i]->pid, getpid());
		assert_int_equal(reply->pin_list->pins[i]->uid, getuid());
		assert_string_equal(reply->pin_list->pins[i]->name, "tester");
	}
	assert_int_equal(reply->pin_list->pins[0]->pins + reply->pin_list->pins[1]->pins, 3);
	raw_free(reply);
	client_close(&a);
	client_close(&b);
}

/* ---- clients that die ---- */

static void a_killed_client_lets_go(void **state)
{
	int watch = connect_hello("watch"), status;
	pid_t pid;

	(void)state;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct client c = client_open(0);
		Skvq__Wire__PageRef refs[4];

		publish_chain(&c, 1, 4, refs);
		(void)match(&c, 1, 4);
		pause();
		_exit(1);
	}
	assert_true(pins_become(watch, 8));
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(pins_become(watch, 0));
	close(watch);
}

static void death_in_the_middle_of_a_publish(void **state)
{
	struct client c;
	int watch = connect_hello("watch");
	int32_t tokens[SKVQ_PAGE_TOKENS];

	(void)state;
	for (uint32_t i = 0; i < 20; i++) {
		c = client_open(0);
		for (uint32_t k = 0; k < SLOTS; k++) {
			maker_tokens(100 * i + k, 0, tokens);
			maker_page(&layout, 0, tokens, k, c.map + k * layout.slot_bytes);
			raw_send_publish(c.sock, k + 1, c.ns, NULL, 0, tokens, c.staging,
					 k * layout.slot_bytes);
		}
		client_close(&c);
	}
	assert_true(pins_become(watch, 0));
	close(watch);
}

static void many_come_and_go(void **state)
{
	int watch = connect_hello("watch"), before;

	(void)state;
	before = test_daemon_fds(&daemon_);
	for (uint32_t i = 0; i < 200; i++) {
		struct client c = client_open(i % 3);
		Skvq__Wire__PageRef refs[2];

		if (i % 2)
			publish_chain(&c, i, 2, refs);
		client_close(&c);
	}
	assert_true(pins_become(watch, 0));
	/* Three arenas, two descriptors each. */
	assert_true(fds_fall_to(before + 6));
	close(watch);
}

/* ---- what is refused ---- */

static void hello_comes_first(void **state)
{
	int sock = raw_connect(daemon_.socket);
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Hello m = SKVQ__WIRE__HELLO__INIT;
	char name[80];
	raw_reply *reply;

	(void)state;
	refused(raw_status(sock), SKVQ_EPROTO, "status before hello");
	m.version_major = 2;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_HELLO;
	rq.hello = &m;
	refused(raw_call(sock, &rq, -1, NULL), SKVQ_EVERSION, "version 2");
	rq.id = 0;
	m.version_major = 1;
	memset(name, 'n', sizeof(name));
	name[64] = '\0';
	m.name = name;
	refused(raw_call(sock, &rq, -1, NULL), SKVQ_EINVAL, "64 bytes");
	reply = raw_hello(sock, "evil\nname");
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->hello->version_major, 1);
	assert_int_equal(reply->hello->features, 2015); /* masked: what both know */
	assert_int_equal(reply->hello->frame_bytes_max, 65536);
	assert_int_equal(reply->hello->pins_max, 32);
	raw_free(reply);
	refused(raw_hello(sock, "again"), SKVQ_ESTATE, "second hello");
	ok(raw_status(sock));
	close(sock);
}

static void partial_identity(void **state)
{
	int sock = connect_hello("t"), fd;
	Skvq__Wire__Identity *id = raw_identity(0);

	(void)state;
	refused(raw_namespace_open(sock, NULL, &fd), SKVQ_EIDENTITY, "identity is missing");
	id->weights_digest.len = 0;
	refused(raw_namespace_open(sock, id, &fd), SKVQ_EIDENTITY, "weights_digest is missing");
	id = raw_identity(0);
	id->tokenizer_digest.len = 31;
	refused(raw_namespace_open(sock, id, &fd), SKVQ_EIDENTITY, "31 bytes");
	id = raw_identity(0);
	id->profile = (char *)(uintptr_t) "no-such-codec";
	refused(raw_namespace_open(sock, id, &fd), SKVQ_EPROFILE, "no-such-codec");
	assert_int_equal(fd, -1);
	close(sock);
}

static void stagings_must_be_sealed_memfds(void **state)
{
	int sock = connect_hello("t");
	int file = open("/dev/zero", O_RDONLY | O_CLOEXEC), pipes[2];
	int unsealed = maker_memfd(4096, 0), half = maker_memfd(4096, F_SEAL_GROW);
	int good = maker_memfd(4096, SEALS);
	char tmp[] = "/tmp/skvqd-live-XXXXXX";
	int regular = mkstemp(tmp);

	(void)state;
	unlink(tmp);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	refused(raw_staging_add(sock, -1), SKVQ_EPROTO, "takes 1 descriptors, 0 came");
	refused(raw_staging_add(sock, file), SKVQ_EFD, "not a memfd");
	refused(raw_staging_add(sock, pipes[0]), SKVQ_EFD, "not a memfd");
	refused(raw_staging_add(sock, sock), SKVQ_EFD, "not a memfd");
	assert_int_not_equal(regular, -1);
	{
		raw_reply *reply = raw_staging_add(sock, regular);

		/* On tmpfs it has seals, but not these. */
		assert_true(reply->error == SKVQ_EFD || reply->error == SKVQ_ESEALS);
		raw_free(reply);
	}
	refused(raw_staging_add(sock, unsealed), SKVQ_ESEALS, "GROW SHRINK");
	refused(raw_staging_add(sock, half), SKVQ_ESEALS, "seals SHRINK");
	for (int i = 0; i < 3; i++)
		ok(raw_staging_add(sock, good));
	refused(raw_staging_add(sock, good), SKVQ_ESTAGINGS, "staging_max");
	close(pipes[0]);
	close(pipes[1]);
	close(file);
	close(unsealed);
	close(half);
	close(good);
	close(regular);
	close(sock);
}

static void a_descriptor_nobody_asked_for(void **state)
{
	int sock = connect_hello("t");
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Ping m = SKVQ__WIRE__PING__INIT;
	raw_reply *reply;
	int before;

	(void)state;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PING;
	rq.ping = &m;
	m.payload.data = (uint8_t *)(uintptr_t) "ping!";
	m.payload.len = 5;
	before = test_daemon_fds(&daemon_);
	refused(raw_call(sock, &rq, 0, NULL), SKVQ_EPROTO, "ping takes 0 descriptors, 1 came");
	rq.id = 0;
	reply = raw_call(sock, &rq, -1, NULL);
	assert_int_equal(reply->ping->payload.len, 5);
	assert_memory_equal(reply->ping->payload.data, "ping!", 5);
	raw_free(reply);
	assert_true(fds_fall_to(before));
	close(sock);
}

/* Slot 0 as one first page, about which n bytes of a value are said. */
static raw_reply *publish_safe(struct client *c, int32_t *tokens, size_t n, uint8_t value)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Publish m = SKVQ__WIRE__PUBLISH__INIT;
	uint8_t safe[2] = {value, value};

	maker_page(&layout, 0, tokens, 1, c->map);
	m.ns = c->ns;
	m.tokens = tokens;
	m.n_tokens = SKVQ_PAGE_TOKENS;
	m.staging = c->staging;
	m.safe.data = safe;
	m.safe.len = n;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PUBLISH;
	rq.publish = &m;
	return raw_call(c->sock, &rq, -1, NULL);
}

static void publish_refusals(void **state)
{
	struct client a = client_open(0), b = client_open(0);
	Skvq__Wire__PageRef refs[2], ref;
	int32_t tokens[SKVQ_PAGE_TOKENS] = {0};
	raw_reply *reply;

	(void)state;
	publish_chain(&a, 1, 2, refs);
	refused(publish(&b, &refs[0], 1, 1, 0), SKVQ_ESTALE, "not pinned by this connection");
	ref = refs[0];
	ref.generation += 7;
	refused(publish(&a, &ref, 1, 1, 0), SKVQ_ESTALE, "is gone");
	refused(publish(&a, &refs[1], 1, 1, 0), SKVQ_EINVAL, "not right before 80");
	refused(raw_publish(a.sock, 99, NULL, 0, tokens, a.staging, 0), SKVQ_EINVAL,
		"namespace 99");
	refused(raw_publish(a.sock, a.ns, NULL, 0, tokens, 99, 0), SKVQ_EINVAL, "staging 99");
	refused(raw_publish(a.sock, a.ns, NULL, 0, tokens, a.staging, SLOTS * layout.slot_bytes),
		SKVQ_ESHORT, "does not fit");
	/* The slot still holds the page meant for position 80. */
	refused(raw_publish(a.sock, a.ns, NULL, 0, tokens, a.staging, 0), SKVQ_ECORRUPT, "header");
	refused(publish_safe(&a, tokens, 2, 1), SKVQ_EINVAL,
		"of 2 pages if they are safe, not of 1");
	refused(publish_safe(&a, tokens, 1, 2), SKVQ_EINVAL, "says 2 of page 0");
	refused(publish_safe(&a, tokens, 1, 1), SKVQ_ECORRUPT, "header flags");
	reply = raw_status(a.sock);
	assert_int_equal(raw_counter(reply, "page_check_failures"), 2);
	assert_int_equal(raw_counter(reply, "pages_safe"), 0);
	assert_int_equal(raw_counter(reply, "refused_estale"), 2);
	assert_int_equal(reply->status->pages, 2);
	raw_free(reply);
	client_close(&a);
	client_close(&b);
}

/* Tokens as they lie in memory are the same question. */
static void a_match_of_fixed_tokens(void **state)
{
	int32_t tokens[2 * SKVQ_PAGE_TOKENS];
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Match m = SKVQ__WIRE__MATCH__INIT;
	struct client a = client_open(0);
	Skvq__Wire__PageRef refs[2];
	raw_reply *reply;

	(void)state;
	publish_chain(&a, 1, 2, refs);
	maker_tokens(1, 0, tokens);
	maker_tokens(1, 1, tokens + SKVQ_PAGE_TOKENS);
	m.ns = a.ns;
	m.fixed_tokens = tokens;
	m.n_fixed_tokens = m.max_tokens = 2 * SKVQ_PAGE_TOKENS;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_MATCH;
	rq.match = &m;
	reply = raw_call(a.sock, &rq, -1, NULL);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->match->n_pages, 2);
	assert_int_equal(reply->match->pages[1]->slot, refs[1].slot);
	raw_free(reply);
	tokens[SKVQ_PAGE_TOKENS] ^= 1;
	reply = raw_call(a.sock, &rq, -1, NULL);
	assert_int_equal(reply->match->n_pages, 1);
	raw_free(reply);
	m.tokens = tokens;
	m.n_tokens = SKVQ_PAGE_TOKENS;
	refused(raw_call(a.sock, &rq, -1, NULL), SKVQ_EINVAL, "both kinds");
	client_close(&a);
}

static void pins_are_bounded(void **state)
{
	struct client a = client_open(0);
	Skvq__Wire__PageRef refs[8];

	(void)state;
	publish_chain(&a, 1, 8, refs);
	assert_int_equal(match(&a, 1, 8), 8);
	assert_int_equal(match(&a, 1, 8), 8);
	assert_int_equal(match(&a, 1, 6), 6);
	assert_int_equal(match(&a, 1, 8), 2); /* 32 */
	{
		int32_t tokens[SKVQ_PAGE_TOKENS];

		maker_tokens(1, 0, tokens);
		refused(raw_match(a.sock, a.ns, tokens, SKVQ_PAGE_TOKENS), SKVQ_EPINS, "32");
	}
	refused(publish(&a, NULL, 2, 0, 0), SKVQ_EPINS, "of 32");
	client_close(&a);
}

static void a_full_arena_is_enospc_then_evicts(void **state)
{
	const char *const args[] = {"--ram-max", "64K", NULL};
	struct client a, b;
	Skvq__Wire__PageRef refs[16];
	uint32_t fit = 0;
	raw_reply *reply;

	(void)state;
	(void)test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
	a = client_open(0);
	b = client_open(0);
	for (; fit < 16; fit++) {
		reply = publish(&a, NULL, fit, 0, 0);
		assert_non_null(reply);
		if (reply->error) {
			assert_int_equal(reply->error, SKVQ_ENOSPC);
			assert_non_null(strstr(reply->detail, "65536"));
			raw_free(reply);
			break;
		}
		refs[fit] = *reply->publish->page;
		raw_free(reply);
	}
	assert_int_equal(fit, 65536 / (layout.base_bytes + layout.sidecar_bytes));
	assert_int_equal(refs[0].generation, 1);
	client_close(&a);
	assert_true(pins_become(b.sock, 0));
	ok(publish(&b, NULL, 99, 0, 0));
	assert_int_equal(match(&b, 99, 1), 1);
	reply = raw_status(b.sock);
	assert_int_equal(raw_counter(reply, "evictions"), 1);
	assert_true(reply->status->bytes_kernel <= 65536);
	raw_free(reply);
	client_close(&b);
}

static void one_too_many_connections(void **state)
{
	int socks[6], extra;
	raw_reply *reply;

	(void)state;
	for (int i = 0; i < 6; i++)
		socks[i] = connect_hello("t");
	extra = raw_connect(daemon_.socket);
	reply = raw_recv(extra, NULL);
	assert_int_equal(reply->id, 0);
	refused(reply, SKVQ_ECONNS, "6 connections");
	assert_null(raw_recv(extra, NULL));
	close(extra);
	close(socks[0]);
	/* The place is free as soon as the daemon has seen the end. */
	for (int i = 0; i < 1000; i++) {
		socks[0] = raw_connect(daemon_.socket);
		reply = raw_hello(socks[0], "t");
		if (reply && reply->error == 0)
			break;
		raw_free(reply);
		close(socks[0]);
		reply = NULL;
	}
	ok(reply);
	for (int i = 0; i < 6; i++)
		close(socks[i]);
}

/* ---- garbage ---- */

static void garbage_ends_only_its_connection(void **state)
{
	int good = connect_hello("good");
	uint8_t frame[8 + 16];
	raw_reply *reply;

	(void)state;
	for (int i = 0; i < 3; i++) {
		int bad = raw_connect(daemon_.socket);

		raw_header(frame, i == 2 ? 1u << 30 : 16, 0, i == 1 ? 0 : RAW_MAGIC);
		memset(frame + 8, 0xff, 16);
		assert_int_equal(raw_send_bytes(bad, frame, sizeof(frame), NULL, 0),
				 (int)sizeof(frame));
		reply = raw_recv(bad, NULL);
		assert_int_equal(reply->id, 0);
		refused(reply, i == 2 ? SKVQ_EFRAME : SKVQ_EPROTO,
			i == 0 ? "not a Request" : "frame header");
		assert_null(raw_recv(bad, NULL));
		close(bad);
	}
	ok(raw_status(good));
	close(good);
}

static void too_many_parts(void **state)
{
	int sock = connect_hello("t");
	static uint8_t frame[8 + 60000];
	size_t at = 8;

	(void)state;
	/* Unpin with thousands of empty PageRefs: 2 bytes each here, 40 and more unpacked. */
	frame[at++] = 0x08;
	frame[at++] = 1;
	frame[at++] = 0x82; /* field 16, bytes */
	frame[at++] = 0x01;
	frame[at++] = 0xa0; /* 50080 */
	frame[at++] = 0x87;
	frame[at++] = 0x03;
	for (int i = 0; i < 50080 / 2; i++) {
		frame[at++] = 0x12;
		frame[at++] = 0;
	}
	raw_header(frame, (uint32_t)(at - 8), 0, RAW_MAGIC);
	assert_int_equal(raw_send_bytes(sock, frame, at, NULL, 0), (int)at);
	refused(raw_recv(sock, NULL), SKVQ_EPROTO, "too many parts");
	assert_null(raw_recv(sock, NULL));
	close(sock);
}

/* Valid requests with bytes changed: each is answered or ends the connection, nothing else. */
static void mutated_requests(void **state)
{
	struct seeded rng = seeded_init();
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__NamespaceOpen m = SKVQ__WIRE__NAMESPACE_OPEN__INIT;
	uint8_t frame[1024], copy[1024];
	size_t n;
	int watch = connect_hello("watch"), sock = -1;

	(void)state;
	rq.id = 7;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_NAMESPACE_OPEN;
	rq.namespace_open = &m;
	m.identity = raw_identity(0);
	n = skvq__wire__request__pack(&rq, frame + 8);
	assert_true(n <= sizeof(frame) - 8);
	raw_header(frame, (uint32_t)n, 0, RAW_MAGIC);
	for (int i = 0; i < 1500; i++) {
		raw_reply *reply;
		uint32_t changes = 1 + seeded_below(&rng, 4);

		if (sock < 0)
			sock = connect_hello("mutant");
		memcpy(copy, frame, 8 + n);
		while (changes--)
			copy[8 + seeded_below(&rng, (uint32_t)n)] ^=
			    (uint8_t)(1u << seeded_below(&rng, 8));
		(void)raw_send_bytes(sock, copy, 8 + n, NULL, 0);
		reply = raw_recv(sock, NULL);
		if (!reply || reply->id == 0) {
			close(sock);
			sock = -1;
		}
		raw_free(reply);
	}
	if (sock >= 0)
		close(sock);
	ok(raw_status(watch));
	close(watch);
}

static void half_a_frame_disturbs_nobody(void **state)
{
	int slow = raw_connect(daemon_.socket), good = connect_hello("good");
	uint8_t header[8];

	(void)state;
	raw_header(header, 60000, 0, RAW_MAGIC);
	assert_int_equal(raw_send_bytes(slow, header, 8, NULL, 0), 8);
	for (int i = 0; i < 100; i++)
		ok(raw_status(good));
	close(slow);
	close(good);
}

static void a_client_that_never_reads(void **state)
{
	int lazy = connect_hello("lazy"), good = connect_hello("good");
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StatusGet m = SKVQ__WIRE__STATUS_GET__INIT;
	uint8_t frame[64];
	size_t n;
	raw_reply *reply;

	(void)state;
	rq.id = 1;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_STATUS;
	rq.status = &m;
	n = skvq__wire__request__pack(&rq, frame + 8);
	raw_header(frame, (uint32_t)n, 0, RAW_MAGIC);
	assert_int_equal(fcntl(lazy, F_SETFL, O_NONBLOCK), 0);
	/* Until the daemon takes no more of its requests. */
	for (int quiet = 0; quiet < 50;) {
		if (raw_send_bytes(lazy, frame, 8 + n, NULL, 0) > 0) {
			quiet = 0;
			continue;
		}
		assert_int_equal(errno, EAGAIN);
		quiet++;
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	ok(raw_status(good));
	/* It may still come to its senses. */
	assert_int_equal(fcntl(lazy, F_SETFL, 0), 0);
	for (int i = 0; i < 100; i++) {
		reply = raw_recv(lazy, NULL);
		ok(reply);
	}
	close(lazy);
	close(good);
}

/* A TCP socket whose close() sleeps for a minute: unsent bytes and SO_LINGER. Its own descriptors
 * are left open in *ret_peer, which does not read. */
static int lingering_socket(int *ret_peer)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct linger linger = {.l_onoff = 1, .l_linger = 60};
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	static char bytes[65536];

	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	assert_int_equal(connect(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
	*ret_peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(*ret_peer >= 0);
	close(listener);
	assert_int_equal(setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	while (send(sock, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	return sock;
}

/* Sent to us as staging, or as surplus, or left unread in a socket that is closed: the last close
 * of it is ours, and the loop must not be the one that sleeps. */
static void closing_that_sleeps(void **state)
{
	int good = connect_hello("good"), bad = connect_hello("bad");
	int peers[3], fds[3];
	uint8_t frames[12] = {0};
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StagingAdd m = SKVQ__WIRE__STAGING_ADD__INIT;
	struct timespec a, b;

	(void)state;
	for (int i = 0; i < 3; i++)
		fds[i] = lingering_socket(&peers[i]);
	rq.id = 1;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_STAGING_ADD;
	rq.staging_add = &m;
	/* Stopped, so that our own closes are never the last, nor the broken frame read before the
	 * message behind it is there. */
	assert_int_equal(kill(daemon_.pid, SIGSTOP), 0);
	raw_send(bad, &rq, fds[0]);
	raw_header(frames, 4, 0, RAW_MAGIC);
	assert_int_equal(raw_send_bytes(bad, frames, 12, &fds[1], 1), 12);
	assert_int_equal(raw_send_bytes(bad, frames, 12, &fds[2], 1), 12);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	assert_int_equal(kill(daemon_.pid, SIGCONT), 0);
	refused(raw_recv(bad, NULL), SKVQ_EFD, "not a memfd");
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (int i = 0; i < 100; i++)
		ok(raw_status(good));
	refused(raw_recv(bad, NULL), SKVQ_EPROTO, "says 0 descriptors, 1 came");
	assert_null(raw_recv(bad, NULL));
	clock_gettime(CLOCK_MONOTONIC, &b);
	assert_true(b.tv_sec - a.tv_sec < 10);
	close(good);
	close(bad);
	for (int i = 0; i < 3; i++)
		close(peers[i]);
}

/* ---- events ---- */

static raw_reply *listen_to(int sock, bool tokens, bool matches, bool no_pages)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__EventsSubscribe m = SKVQ__WIRE__EVENTS_SUBSCRIBE__INIT;

	m.tokens = tokens;
	m.matches = matches;
	m.no_pages = no_pages;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_EVENTS;
	rq.events = &m;
	return raw_call(sock, &rq, -1, NULL);
}

/* One after the other, out of the replies they come in. */
struct ear {
	int sock;
	raw_reply *reply;
	size_t next;
	uint64_t number, lost;
};

static struct ear ear_open(bool tokens, bool matches)
{
	struct ear ear = {.sock = connect_hello("ear")};
	raw_reply *reply = listen_to(ear.sock, tokens, matches, false);

	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->events->first, 1);
	assert_int_equal(reply->events->n_events + reply->events->lost, 0);
	raw_free(reply);
	return ear;
}

/* Valid until the next; NULL at the end of the stream. */
static const Skvq__Wire__Event *hear(struct ear *ear)
{
	while (!ear->reply || ear->next == ear->reply->events->n_events) {
		if (ear->reply)
			raw_free(ear->reply);
		ear->reply = raw_recv(ear->sock, NULL);
		if (!ear->reply)
			return NULL;
		assert_int_equal(ear->reply->error, 0);
		assert_int_equal(ear->reply->body_case, SKVQ__WIRE__REPLY__BODY_EVENTS);
		/* Gaps are what it says was lost. */
		assert_int_equal(ear->reply->events->first, ear->number + ear->reply->events->lost + 1);
		ear->lost += ear->reply->events->lost;
		ear->number = ear->reply->events->first - 1;
		ear->next = 0;
	}
	ear->number++;
	return ear->reply->events->events[ear->next++];
}

static void ear_close(struct ear *ear)
{
	if (ear->reply)
		raw_free(ear->reply);
	close(ear->sock);
}

static void events_are_told(void **state)
{
	struct ear all = ear_open(true, true), few = ear_open(false, false);
	struct client c = client_open(0);
	Skvq__Wire__PageRef refs[3];
	const Skvq__Wire__Event *e;
	uint8_t digest[3][32];
	int32_t tokens[SKVQ_PAGE_TOKENS];

	(void)state;
	publish_chain(&c, 1, 3, refs);
	assert_int_equal(match(&c, 1, 5), 3);
	e = hear(&all);
	assert_string_equal(e->kind, "namespace_opened");
	assert_string_equal(e->tenant, "default");
	assert_int_equal(e->ns, c.ns);
	assert_int_equal(e->identity_digest.len, 32);
	for (uint32_t i = 0; i < 3; i++) {
		e = hear(&all);
		assert_string_equal(e->kind, "stored");
		assert_string_equal(e->tier, "memory");
		assert_string_equal(e->why, "published");
		assert_true(e->time_ms > UINT64_C(1700000000000));
		assert_int_equal(e->ns, c.ns);
		assert_int_equal(e->position, i * SKVQ_PAGE_TOKENS);
		assert_int_equal(e->span, SKVQ_PAGE_TOKENS);
		assert_int_equal(e->page->slot, refs[i].slot);
		assert_int_equal(e->page->generation, refs[i].generation);
		assert_int_equal(e->digest.len, 32);
		memcpy(digest[i], e->digest.data, 32);
		assert_int_equal(e->parent.len, i ? 32 : 0);
		if (i)
			assert_memory_equal(e->parent.data, digest[i - 1], 32);
		maker_tokens(1, i, tokens);
		assert_int_equal(e->n_tokens, SKVQ_PAGE_TOKENS);
		assert_memory_equal(e->tokens, tokens, sizeof(tokens));
	}
	e = hear(&all);
	assert_string_equal(e->kind, "match");
	assert_int_equal(e->span, 5 * SKVQ_PAGE_TOKENS);
	assert_int_equal(e->chain.len, 5 * 32);
	assert_memory_equal(e->chain.data, digest, 3 * 32);
	assert_false(e->chain_cut);
	assert_int_equal(e->n_memory, 3);
	assert_int_equal(e->n_disk, 0);
	/* Who did not ask for them has neither tokens nor matches. */
	assert_string_equal(hear(&few)->kind, "namespace_opened");
	for (uint32_t i = 0; i < 3; i++) {
		e = hear(&few);
		assert_string_equal(e->kind, "stored");
		assert_int_equal(e->n_tokens, 0);
	}
	ok(publish(&c, NULL, 9, 0, 0));
	assert_string_equal(hear(&few)->kind, "stored");
	assert_int_equal(few.number, 5);
	/* The end is told, as far as there is time. */
	client_close(&c);
	(void)test_daemon_stop(&daemon_, SIGTERM);
	e = hear(&few);
	assert_string_equal(e->kind, "cleared");
	assert_string_equal(e->why, "daemon_ends");
	assert_null(hear(&few));
	few.reply = NULL;
	ear_close(&few);
	ear_close(&all);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
}

static void what_goes_is_told(void **state)
{
	const char *const args[] = {"--ram-max", "64K", "--namespaces-max", "1", NULL};
	struct client c;
	struct ear ear;
	const Skvq__Wire__Event *e;
	uint8_t first[32];

	(void)state;
	(void)test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
	ear = ear_open(false, false);
	c = client_open(0);
	assert_string_equal(hear(&ear)->kind, "namespace_opened");
	for (uint32_t seed = 1; seed < 20; seed++) {
		raw_reply *reply = publish(&c, NULL, seed, 0, 0);

		assert_int_equal(reply->error, 0);
		ok(raw_unpin(c.sock, c.ns, reply->publish->page));
		raw_free(reply);
	}
	e = hear(&ear);
	assert_string_equal(e->kind, "stored");
	memcpy(first, e->digest.data, 32);
	do
		e = hear(&ear);
	while (!strcmp(e->kind, "stored"));
	assert_string_equal(e->kind, "removed");
	assert_string_equal(e->tier, "memory");
	assert_string_equal(e->why, "evicted");
	assert_memory_equal(e->digest.data, first, 32);
	/* One event for all of a namespace. */
	client_close(&c);
	for (int i = 0; i < 1000; i++) {
		raw_reply *reply;
		int sock = connect_hello("other");
		uint32_t error;

		reply = raw_namespace_open(sock, raw_identity(7), NULL);
		error = reply->error;
		raw_free(reply);
		close(sock);
		if (!error)
			break;
		assert_int_equal(error, SKVQ_ENAMESPACES); /* the other is not closed yet */
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	do
		e = hear(&ear);
	while (!strcmp(e->kind, "stored") || !strcmp(e->kind, "removed"));
	assert_string_equal(e->kind, "namespace_dropped");
	assert_string_equal(hear(&ear)->kind, "namespace_opened");
	ear_close(&ear);
}

static void who_does_not_listen_loses_events(void **state)
{
	enum { ASKED = 60, MATCHES = 4000 };
	struct client c = client_open(0);
	struct ear ear = ear_open(false, true);
	static int32_t tokens[ASKED * SKVQ_PAGE_TOKENS];
	uint64_t n = 0;

	(void)state;
	for (uint32_t i = 0; i < MATCHES; i++) {
		tokens[0] = (int32_t)i;
		ok(raw_match(c.sock, c.ns, tokens, ASKED * SKVQ_PAGE_TOKENS));
	}
	/* It was never waited for, and its connection is good for other things. */
	ok(publish(&c, NULL, 1, 0, 0));
	while (ear.lost + n < MATCHES) {
		const Skvq__Wire__Event *e = hear(&ear);

		assert_non_null(e);
		if (ear.lost) /* behind the gap is what found room later */
			break;
		assert_string_equal(e->kind, "match");
		assert_int_equal(e->chain.len, ASKED * 32);
		n++;
	}
	assert_true(n > 100);
	assert_true(ear.lost > 100);
	ok(raw_status(c.sock));
	ear_close(&ear);
	client_close(&c);
}

static void listeners_are_bounded(void **state)
{
	struct ear ears[4];
	int sock = connect_hello("fifth");
	raw_reply *reply = NULL;
	uint32_t error = SKVQ_ELIMIT;

	(void)state;
	refused(listen_to(sock, false, false, true), SKVQ_EINVAL, "neither");
	for (int i = 0; i < 4; i++)
		ears[i] = ear_open(false, false);
	refused(listen_to(ears[0].sock, false, false, false), SKVQ_ESTATE, "already");
	refused(listen_to(sock, false, false, false), SKVQ_ELIMIT, "at most 4");
	ear_close(&ears[0]);
	for (int i = 0; i < 1000 && error; i++) {
		reply = listen_to(sock, true, true, true);
		error = reply->error;
		raw_free(reply);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	assert_int_equal(error, 0);
	for (int i = 1; i < 4; i++)
		ear_close(&ears[i]);
	close(sock);
}

static void ends_within_a_second(void **state)
{
	struct timespec a, b;
	struct client c = client_open(0);
	struct stat st;
	int status;

	(void)state;
	assert_int_equal(stat(daemon_.socket, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	clock_gettime(CLOCK_MONOTONIC, &a);
	status = test_daemon_stop(&daemon_, SIGINT);
	clock_gettime(CLOCK_MONOTONIC, &b);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_true((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 1000);
	assert_int_equal(access(daemon_.socket, F_OK), -1);
	/* What is mapped stays readable without a daemon. */
	assert_int_equal(c.pages[0], 0);
	client_close(&c);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
}

static void boot_id_tells_a_new_daemon(void **state)
{
	int sock = raw_connect(daemon_.socket);
	raw_reply *reply = raw_hello(sock, "t");
	uint64_t first = reply->boot_id;

	(void)state;
	raw_free(reply);
	close(sock);
	(void)test_daemon_stop(&daemon_, SIGKILL); /* leaves a stale socket */
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	sock = raw_connect(daemon_.socket);
	reply = raw_hello(sock, "t");
	assert_int_not_equal(reply->boot_id, 0);
	assert_int_not_equal(reply->boot_id, first);
	raw_free(reply);
	close(sock);
}

static raw_reply *calibration_offer(int sock, uint64_t bytes, int fd, bool replace)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__CalibrationPut put = SKVQ__WIRE__CALIBRATION_PUT__INIT;

	put.bytes = bytes;
	put.replace = replace;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CALIBRATION_PUT;
	rq.calibration_put = &put;
	return raw_call(sock, &rq, fd, NULL);
}

static raw_reply *calibration_put(int sock, uint64_t bytes, int fd)
{
	return calibration_offer(sock, bytes, fd, false);
}

/* Whatever is offered as a calibration, the daemon keeps what is one, and lives. */
static void calibrations_are_checked(void **state)
{
	static uint8_t digest[33];
	Skvq__Wire__CalibrationGet get = SKVQ__WIRE__CALIBRATION_GET__INIT;
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	int sock = connect_hello("tester"), sealed = maker_memfd(8192, SEALS),
	    open_ = maker_memfd(8192, 0), null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	(void)state;
	refused(calibration_put(sock, 8192, null), SKVQ_EFD, "not a memfd");
	refused(calibration_put(sock, 8192, open_), SKVQ_ESEALS, "GROW SHRINK");
	refused(calibration_put(sock, 8193, sealed), SKVQ_ESHORT, "8192 bytes, not 8193");
	refused(calibration_put(sock, 255, sealed), SKVQ_EINVAL, "255 bytes");
	refused(calibration_put(sock, UINT64_MAX, sealed), SKVQ_EINVAL, "at most");
	refused(calibration_put(sock, UINT64_C(300) << 20, sealed), SKVQ_ELIMIT, "calibration_max");
	refused(calibration_put(sock, 8192, sealed), SKVQ_ECORRUPT, "magic at offset 0");
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CALIBRATION_GET;
	rq.calibration_get = &get;
	for (size_t n = 0; n <= sizeof(digest); n++) {
		get.weights_digest.len = n;
		get.weights_digest.data = digest;
		rq.id = 0;
		refused(raw_call(sock, &rq, -1, NULL), n == 32 ? SKVQ_EAGAIN : SKVQ_EIDENTITY,
			n == 32 ? "nobody" : "weights_digest");
	}
	/* A client that does not wait for the answer. */
	for (int i = 0; i < 20; i++) {
		raw_request put = SKVQ__WIRE__REQUEST__INIT;
		Skvq__Wire__CalibrationPut body = SKVQ__WIRE__CALIBRATION_PUT__INIT;
		int other = connect_hello("hasty");

		body.bytes = 8192;
		put.id = 1;
		put.body_case = SKVQ__WIRE__REQUEST__BODY_CALIBRATION_PUT;
		put.calibration_put = &body;
		raw_send(other, &put, sealed);
		close(other);
	}
	ok(raw_status(sock));
	close(sealed);
	close(open_);
	close(null);
	close(sock);
}

/* Of a model with one small head, whose matrices are one; a memfd. */
static int small_calibration(uint8_t weights, const char *text, uint64_t *ret_bytes)
{
	skvq_calibration_header h = {.magic = SKVQ_CALIBRATION_MAGIC,
				     .version = SKVQ_CALIBRATION_VERSION,
				     .header_bytes = sizeof(h),
				     .n_layer = 1,
				     .n_q_heads = 1,
				     .n_kv_heads = 1,
				     .head_dim_k = 16,
				     .head_dim_v = 16};
	struct skvq_calibration plan;
	uint8_t file[8192] = {0};
	int fd = memfd_create("calibration", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	memset(h.weights, weights, sizeof(h.weights));
	snprintf(h.text, sizeof(h.text), "%s", text);
	snprintf(h.tool, sizeof(h.tool), "test");
	assert_int_equal(skvq_calibration_plan(&h, &plan), 0);
	assert_true(h.file_bytes <= sizeof(file));
	memcpy(file, &h, sizeof(h));
	for (int m = 0; m < 2; m++)
		for (int i = 0; i < 16; i++) {
			const float one = 1;

			memcpy(file + plan.matrices_offset + (m * 256 + i * 17) * sizeof(one), &one,
			       sizeof(one));
		}
	skvq_calibration_seal(file, h.file_bytes);
	assert_int_equal(write(fd, file, h.file_bytes), (ssize_t)h.file_bytes);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	*ret_bytes = h.file_bytes;
	return fd;
}

static void offered(raw_reply *reply, bool stored, bool replaced)
{
	assert_non_null(reply);
	if (reply->error)
		fail_msg("error %u: %s", reply->error, reply->detail);
	assert_int_equal(reply->calibration_put->stored, stored);
	assert_int_equal(reply->calibration_put->replaced, replaced);
	raw_free(reply);
}

static void reads(int fd, const char *text)
{
	skvq_calibration_header h;

	assert_int_equal(pread(fd, &h, sizeof(h), 0), sizeof(h));
	assert_string_equal(h.text, text);
}

/* What a newcomer is given. */
static int calibration_get(int sock, uint8_t weights)
{
	uint8_t digest[32];
	Skvq__Wire__CalibrationGet get = SKVQ__WIRE__CALIBRATION_GET__INIT;
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	int fd = -1;

	memset(digest, weights, sizeof(digest));
	get.weights_digest.data = digest;
	get.weights_digest.len = sizeof(digest);
	get.n_layer = get.n_q_heads = get.n_kv_heads = 1;
	get.head_dim_k = get.head_dim_v = 16;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CALIBRATION_GET;
	rq.calibration_get = &get;
	raw_free(raw_call(sock, &rq, -1, &fd));
	return fd;
}

/* On purpose alone; who has the old one keeps it; a bad one takes nobody's place. There is room for
 * two: one that goes does not count. */
static void calibrations_are_replaced(void **state)
{
	static const char *const args[] = {"--calibration-max", "5000", NULL};
	uint64_t bytes;
	int first, second, other, third, bad = maker_memfd(8192, SEALS), old, sock, fds;

	(void)state;
	first = small_calibration(1, "first", &bytes);
	second = small_calibration(1, "second", &bytes);
	other = small_calibration(2, "other", &bytes);
	third = small_calibration(3, "third", &bytes);
	assert_true(2 * bytes <= 5000 && 3 * bytes > 5000);
	(void)test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
	sock = connect_hello("tester");
	offered(calibration_offer(sock, bytes, first, true), true, false);
	offered(calibration_put(sock, bytes, second), false, false);
	offered(calibration_put(sock, bytes, other), true, false);
	old = calibration_get(sock, 1);
	reads(old, "first");
	refused(calibration_offer(sock, 4096, bad, true), SKVQ_ECORRUPT, "magic at offset 0");
	refused(calibration_offer(sock, 5001, bad, true), SKVQ_ELIMIT, "calibration_max");
	fds = test_daemon_fds(&daemon_);
	for (int i = 0; i < 50; i++)
		offered(calibration_offer(sock, bytes, i % 2 ? first : second, true), true, true);
	offered(calibration_offer(sock, bytes, second, true), true, true);
	assert_true(fds_fall_to(fds));
	reads(old, "first");
	close(old);
	old = calibration_get(sock, 1);
	reads(old, "second");
	close(old);
	old = calibration_get(sock, 2);
	reads(old, "other");
	close(old);
	/* One of a model that has none would be one more. */
	refused(calibration_offer(sock, bytes, third, true), SKVQ_ELIMIT, "calibration_max");
	close(first);
	close(second);
	close(other);
	close(third);
	close(bad);
	close(sock);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
	    T(calibrations_are_checked),
	    T(calibrations_are_replaced),
	    T(a_page_is_shared),
	    T(status_adds_up),
	    T(lists),
	    T(a_killed_client_lets_go),
	    T(death_in_the_middle_of_a_publish),
	    T(many_come_and_go),
	    T(hello_comes_first),
	    T(partial_identity),
	    T(stagings_must_be_sealed_memfds),
	    T(a_descriptor_nobody_asked_for),
	    T(publish_refusals),
	    T(pins_are_bounded),
	    T(a_match_of_fixed_tokens),
	    T(a_full_arena_is_enospc_then_evicts),
	    T(one_too_many_connections),
	    T(garbage_ends_only_its_connection),
	    T(too_many_parts),
	    T(mutated_requests),
	    T(half_a_frame_disturbs_nobody),
	    T(a_client_that_never_reads),
	    T(closing_that_sleeps),
	    T(events_are_told),
	    T(what_goes_is_told),
	    T(who_does_not_listen_loses_events),
	    T(listeners_are_bounded),
	    T(ends_within_a_second),
	    T(boot_id_tells_a_new_daemon),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
