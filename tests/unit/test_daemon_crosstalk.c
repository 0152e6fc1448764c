/* SPDX-License-Identifier: Apache-2.0 */
/* The real skvqd with three tenants: who is let in, and that nobody learns of another's. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
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

#include <skvq/error.h>

#include "support/daemon.h"
#include "support/page_maker.h"
#include "support/raw_client.h"

#define SEALS (F_SEAL_GROW | F_SEAL_SHRINK)
#define PAGES 4u

static struct test_daemon daemon_;
static struct skvq_layout layout;
static char conf[96], salt[96], sock_a[96], sock_b[96], sock_c[96];

static void write_file(const char *path, const char *text, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void start(void)
{
	const char *const args[] = {"--config", conf, NULL};

	test_daemon_start(&daemon_, SKVQD_PATH, args);
}

/* Everybody here is one user, so tenants have a socket each; c's names another user. */
static void begin(const char *more)
{
	char text[1024];

	snprintf(conf, sizeof(conf), "%s/conf", daemon_.dir);
	snprintf(salt, sizeof(salt), "%s/salt", daemon_.dir);
	snprintf(sock_a, sizeof(sock_a), "%s/a.sock", daemon_.dir);
	snprintf(sock_b, sizeof(sock_b), "%s/b.sock", daemon_.dir);
	snprintf(sock_c, sizeof(sock_c), "%s/c.sock", daemon_.dir);
	(void)unlink(salt);
	write_file(salt, "sixteen bytes, or more\n", 0400);
	snprintf(text, sizeof(text),
		 "[memory]\nram_max = 8M\ncalibration_max = 4M\n"
		 "[limits]\nconnections_max = 12\nnamespaces_max = 9\nbacklog_max = 8K\n"
		 "frame_max = 64K\n"
		 "[tenant a]\nsocket = %s\nram_min = 1M\nconnections_max = 3\npins_max = 8\n"
		 "salt_file = %s\n"
		 "[tenant b]\nsocket = %s\nram_max = 2M\n"
		 "[tenant c]\nsocket = %s\nuid = 4294967000\n%s",
		 sock_a, salt, sock_b, sock_c, more);
	write_file(conf, text, 0600);
	start();
}

static int setup(void **state)
{
	(void)state;
	maker_layout(&layout);
	test_daemon_init(&daemon_);
	begin("");
	return 0;
}

static bool has_store;

/* Files and then the folder. */
static void remove_folder(const char *name)
{
	char path[128];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/store/%s", daemon_.dir, name);
	dir = opendir(path);
	assert_non_null(dir);
	while ((e = readdir(dir)))
		(void)unlinkat(dirfd(dir), e->d_name, 0);
	closedir(dir);
	assert_int_equal(rmdir(path), 0);
}

static int teardown(void **state)
{
	int status;

	(void)state;
	if (!daemon_.pid)
		return -1;
	status = test_daemon_stop(&daemon_, SIGTERM);
	if (access(sock_a, F_OK) == 0 || access(sock_b, F_OK) == 0)
		return -1; /* they are removed as the shared one is */
	unlink(conf);
	unlink(salt);
	if (has_store) {
		remove_folder("a");
		remove_folder("b");
		remove_folder("c");
	}
	has_store = false;
	test_daemon_fini(&daemon_);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

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
	if (reply->error != code || !strstr(reply->detail, says))
		fail_msg("error %u, \"%s\": not %u, \"%s\"", reply->error, reply->detail, code,
			 says);
	raw_free(reply);
}

/* A daemon that answers on its first socket may not have made those of the tenants yet. */
static int reach(const char *path)
{
	int sock = raw_connect(path);

	for (int i = 0; sock < 0 && i < 1000; i++) {
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		sock = raw_connect(path);
	}
	return sock;
}

static int enter(const char *path, const char *name)
{
	int sock = reach(path);

	assert_true(sock >= 0);
	ok(raw_hello(sock, name));
	return sock;
}

/* The answer to whoever is not let in. */
static void turned_away(const char *path, uint32_t code, const char *says)
{
	int sock = reach(path);

	assert_true(sock >= 0);
	refused(raw_recv(sock, NULL), code, says);
	assert_null(raw_recv(sock, NULL));
	close(sock);
}

/* A client with a namespace and pages of its own. */
struct client {
	int sock, fd;
	uint32_t ns, staging;
	uint8_t *map;
	Skvq__Wire__PageRef refs[PAGES];
};

static struct client client_open(const char *path, const char *name)
{
	struct client c = {.sock = enter(path, name)};
	raw_reply *reply = raw_namespace_open(c.sock, raw_identity(0), NULL);

	assert_int_equal(reply->error, 0);
	c.ns = reply->namespace_open->ns;
	raw_free(reply);
	c.fd = maker_memfd(PAGES * layout.slot_bytes, SEALS);
	c.map = mmap(NULL, PAGES * layout.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c.fd, 0);
	assert_ptr_not_equal(c.map, MAP_FAILED);
	reply = raw_staging_add(c.sock, c.fd);
	assert_int_equal(reply->error, 0);
	c.staging = reply->staging_add->staging;
	raw_free(reply);
	return c;
}

static void client_close(struct client *c)
{
	close(c->sock);
	munmap(c->map, PAGES * layout.slot_bytes);
	close(c->fd);
}

static raw_reply *publish(struct client *c, uint32_t seed, uint32_t page,
			  const Skvq__Wire__PageRef *parent)
{
	int32_t tokens[SKVQ_PAGE_TOKENS];
	uint32_t position = page * SKVQ_PAGE_TOKENS;

	maker_tokens(seed, page, tokens);
	maker_page(&layout, position, tokens, seed, c->map + page * layout.slot_bytes);
	return raw_publish(c->sock, c->ns, parent, position, tokens, c->staging,
			   page * layout.slot_bytes);
}

static void publish_all(struct client *c, uint32_t seed)
{
	for (uint32_t i = 0; i < PAGES; i++) {
		raw_reply *reply = publish(c, seed, i, i ? &c->refs[i - 1] : NULL);

		if (reply->error)
			fail_msg("page %u: %s", i, reply->detail);
		skvq__wire__page_ref__init(&c->refs[i]);
		c->refs[i].slot = reply->publish->page->slot;
		c->refs[i].generation = reply->publish->page->generation;
		raw_free(reply);
	}
}

static uint32_t match(int sock, uint32_t ns, uint32_t seed)
{
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	raw_reply *reply;
	uint32_t n;

	for (uint32_t i = 0; i < PAGES; i++)
		maker_tokens(seed, i, tokens + i * SKVQ_PAGE_TOKENS);
	reply = raw_match(sock, ns, tokens, PAGES * SKVQ_PAGE_TOKENS);
	assert_int_equal(reply->error, 0);
	n = (uint32_t)reply->match->n_pages;
	raw_free(reply);
	return n;
}

static raw_reply *ask(int sock, int body, void *message)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;

	rq.body_case = (Skvq__Wire__Request__BodyCase)body;
	rq.ping = message; /* of a union of pointers */
	return raw_call(sock, &rq, -1, NULL);
}

/* Everything a status says that activity of others could move. */
struct seen {
	uint64_t connections, namespaces, pages, bytes, kernel, pins, tenants, counters;
};

static struct seen look(int sock, const char *tenant)
{
	raw_reply *reply = raw_status(sock);
	const Skvq__Wire__StatusReply *s = reply->status;
	struct seen seen = {s->connections,  s->namespaces, s->pages,     s->bytes_resident,
			    s->bytes_kernel, s->pins,       s->n_tenants, 0};

	assert_int_equal(s->n_tenants, 1);
	assert_string_equal(s->tenants[0]->name, tenant);
	for (size_t i = 0; i < s->n_counters; i++) {
		if (strcmp(s->counters[i]->name, "requests"))
			seen.counters += s->counters[i]->value;
	}
	for (size_t i = 0; i < s->n_histograms; i++) {
		seen.counters += s->histograms[i]->sum;
		for (size_t n = 0; n < s->histograms[i]->n_buckets; n++)
			seen.counters += s->histograms[i]->buckets[n];
	}
	raw_free(reply);
	return seen;
}

static void strangers_are_turned_away(void **state)
{
	int admin = enter(daemon_.socket, "admin");
	raw_reply *reply;

	(void)state;
	turned_away(sock_c, SKVQ_EPERM, "of no tenant");
	turned_away(sock_c, SKVQ_EPERM, "of no tenant");
	reply = raw_status(admin);
	assert_int_equal(raw_counter(reply, "connections_denied"), 2);
	assert_int_equal(raw_counter(reply, "refused_eperm"), 2);
	assert_int_equal(reply->status->n_tenants, 3);
	raw_free(reply);
	/* Who is of no tenant and an admin looks, and no more. */
	refused(raw_namespace_open(admin, raw_identity(0), NULL), SKVQ_EPERM, "may only look");
	close(admin);
}

static raw_reply *listen_to(int sock)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__EventsSubscribe m = SKVQ__WIRE__EVENTS_SUBSCRIBE__INIT;

	m.tokens = m.matches = true;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_EVENTS;
	rq.events = &m;
	return raw_call(sock, &rq, -1, NULL);
}

/* The tenants of the first n events. */
static void hear(int sock, uint32_t n, uint32_t *ret_a, uint32_t *ret_b)
{
	*ret_a = *ret_b = 0;
	while (*ret_a + *ret_b < n) {
		raw_reply *reply = raw_recv(sock, NULL);

		assert_non_null(reply);
		for (size_t i = 0; i < reply->events->n_events; i++) {
			const char *tenant = reply->events->events[i]->tenant;

			*ret_a += !strcmp(tenant, "a");
			*ret_b += !strcmp(tenant, "b");
		}
		raw_free(reply);
	}
}

static void events_of_a_tenant_are_its_own(void **state)
{
	int admin = enter(daemon_.socket, "admin"), ear_a = enter(sock_a, "ear"),
	    ear_b = enter(sock_b, "ear");
	struct client a, b;
	uint32_t n_a, n_b;

	(void)state;
	ok(listen_to(admin));
	ok(listen_to(ear_a));
	ok(listen_to(ear_b));
	a = client_open(sock_a, "a");
	publish_all(&a, 1);
	b = client_open(sock_b, "b");
	publish_all(&b, 1);
	/* A namespace and four pages each: who heard more than its own would say so. */
	hear(admin, 10, &n_a, &n_b);
	assert_int_equal(n_a, 5);
	assert_int_equal(n_b, 5);
	hear(ear_a, 5, &n_a, &n_b);
	assert_int_equal(n_a, 5);
	hear(ear_b, 5, &n_a, &n_b);
	assert_int_equal(n_b, 5);
	client_close(&a);
	client_close(&b);
	close(ear_a);
	close(ear_b);
	close(admin);
}

static void connections_of_a_tenant_are_bounded(void **state)
{
	int a[3], b, admin;
	raw_reply *reply;

	(void)state;
	for (int i = 0; i < 3; i++)
		a[i] = enter(sock_a, "a");
	turned_away(sock_a, SKVQ_ETCONNS, "all 3 connections of this tenant");
	b = enter(sock_b, "b"); /* others are */
	admin = enter(daemon_.socket, "admin");
	reply = raw_status(a[0]);
	assert_int_equal(raw_counter(reply, "connections_refused"), 1);
	assert_int_equal(raw_counter(reply, "refused_etconns"), 1);
	assert_string_equal(reply->status->tenants[0]->refusals[0]->name, "refused_etconns");
	assert_int_equal(reply->status->connections, 3);
	assert_int_equal(reply->status->connections_max, 3);
	raw_free(reply);
	reply = raw_status(b);
	assert_int_equal(raw_counter(reply, "refused_etconns"), 0);
	raw_free(reply);
	for (int i = 0; i < 3; i++)
		close(a[i]);
	close(b);
	close(admin);
}

static void pins_of_a_tenant_are_bounded(void **state)
{
	struct client one = client_open(sock_a, "one"), two = client_open(sock_a, "two");

	(void)state;
	publish_all(&one, 1);                            /* 4 pins */
	assert_int_equal(match(two.sock, two.ns, 1), 4); /* 8 */
	refused(publish(&two, 9, 0, NULL), SKVQ_ETPINS, "this tenant hold 8 pins of 8");
	refused(publish(&one, 9, 0, NULL), SKVQ_ETPINS, "8");
	client_close(&one);
	/* They come back when the daemon has seen the end of the socket. */
	for (int i = 0; look(two.sock, "a").pins > 4; i++) {
		assert_true(i < 1000);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	ok(publish(&two, 9, 0, NULL));
	client_close(&two);
}

/* Every request there is, asked by b about what is a's. */
static void nothing_of_another_is_seen(void **state)
{
	struct client a = client_open(sock_a, "a"), b = client_open(sock_b, "b");
	Skvq__Wire__NamespaceList nl = SKVQ__WIRE__NAMESPACE_LIST__INIT;
	Skvq__Wire__PageList pl = SKVQ__WIRE__PAGE_LIST__INIT;
	Skvq__Wire__PinList pil = SKVQ__WIRE__PIN_LIST__INIT;
	Skvq__Wire__ErrorList el = SKVQ__WIRE__ERROR_LIST__INIT;
	Skvq__Wire__Prefetch pf = SKVQ__WIRE__PREFETCH__INIT;
	Skvq__Wire__CalibrationGet cg = SKVQ__WIRE__CALIBRATION_GET__INIT;
	Skvq__Wire__Unpin up = SKVQ__WIRE__UNPIN__INIT;
	Skvq__Wire__Unrefine ur = SKVQ__WIRE__UNREFINE__INIT;
	Skvq__Wire__StagingDrop sd = SKVQ__WIRE__STAGING_DROP__INIT;
	Skvq__Wire__PageGet pg = SKVQ__WIRE__PAGE_GET__INIT;
	Skvq__Wire__Sweep sw = SKVQ__WIRE__SWEEP__INIT;
	Skvq__Wire__PageRef *ref = &a.refs[1];
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	uint8_t weights[32];
	struct seen before = look(b.sock, "b"), after;
	raw_reply *reply;

	(void)state;
	assert_int_not_equal(a.ns, b.ns);
	publish_all(&a, 1);
	for (uint32_t i = 0; i < PAGES; i++)
		maker_tokens(1, i, tokens + i * SKVQ_PAGE_TOKENS);
	/* match, prefetch: the same model and tokens, and nothing there. */
	assert_int_equal(match(b.sock, b.ns, 1), 0);
	pf.ns = b.ns;
	pf.tokens = tokens;
	pf.n_tokens = PAGES * SKVQ_PAGE_TOKENS;
	reply = ask(b.sock, SKVQ__WIRE__REQUEST__BODY_PREFETCH, &pf);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->prefetch->n_resident + reply->prefetch->n_coming, 0);
	raw_free(reply);
	/* The other's namespace by its number: as one that never was. */
	refused(raw_match(b.sock, a.ns, tokens, SKVQ_PAGE_TOKENS), SKVQ_EINVAL, "not open");
	pf.ns = a.ns;
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_PREFETCH, &pf), SKVQ_EINVAL,
		"there is no namespace");
	for (uint32_t ns = a.ns; ns < a.ns + 1000; ns += 999) {
		pl.ns = el.ns = ns;
		refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_PAGE_LIST, &pl), SKVQ_EINVAL,
			"there is no namespace");
		refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_ERROR_LIST, &el), SKVQ_EINVAL,
			"there is no namespace");
		pg.ns = sw.ns = ns;
		refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_PAGE_GET, &pg), SKVQ_EINVAL,
			"there is no namespace");
		for (int body = SKVQ__WIRE__REQUEST__BODY_EVICT;
		     body <= SKVQ__WIRE__REQUEST__BODY_DRAIN; body++)
			refused(ask(b.sock, body, &sw), SKVQ_EINVAL, "there is no namespace");
	}
	/* By its tenant's name, which is as good as any other. */
	sw.ns = 0;
	sw.tenant = "a";
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_EVICT, &sw), SKVQ_EINVAL, "no such tenant");
	sw.tenant = "nobody";
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_EVICT, &sw), SKVQ_EINVAL, "no such tenant");
	sw.tenant = "b"; /* its own: which has nothing to give */
	sw.wait_ms = 100;
	reply = ask(b.sock, SKVQ__WIRE__REQUEST__BODY_EVICT, &sw);
	assert_int_equal(reply->error, 0);
	assert_true(reply->evict->done);
	assert_int_equal(reply->evict->pages + reply->evict->held, 0);
	raw_free(reply);
	/* Its pages by name, in its arena and in one's own. */
	up.n_pages = ur.n_pages = 1;
	up.pages = ur.pages = &ref;
	publish_all(&b, 2); /* something to hold, so that naming pages is no nonsense */
	up.ns = ur.ns = a.ns;
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_UNPIN, &up), SKVQ_EINVAL, "not open");
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_UNREFINE, &ur), SKVQ_EINVAL, "not open");
	reply =
	    publish(&b, 1, 2, &a.refs[1]); /* a parent that is the other's: not its tokens here */
	assert_int_equal(reply->error, 0); /* the slot is one's own page, seed 2 */
	assert_false(reply->publish->existed);
	raw_free(reply);
	for (uint32_t slot = 0; slot < 64; slot++) {
		for (uint32_t generation = 1; generation < 4; generation++) {
			Skvq__Wire__PageRef guess = SKVQ__WIRE__PAGE_REF__INIT;

			guess.slot = slot + 16;
			guess.generation = generation;
			refused(raw_unpin(b.sock, b.ns, &guess), SKVQ_ESTALE, "not pinned");
		}
	}
	sd.staging = a.staging + 100;
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_STAGING_DROP, &sd), SKVQ_EINVAL,
		"not one of this connection's");
	memset(weights, 0x11, sizeof(weights));
	cg.weights_digest = (ProtobufCBinaryData){sizeof(weights), weights};
	cg.n_layer = MAKER_LAYERS;
	refused(ask(b.sock, SKVQ__WIRE__REQUEST__BODY_CALIBRATION_GET, &cg), SKVQ_EAGAIN, "nobody");
	/* Lists. */
	reply = ask(b.sock, SKVQ__WIRE__REQUEST__BODY_NAMESPACE_LIST, &nl);
	assert_int_equal(reply->namespace_list->n_namespaces, 1);
	assert_string_equal(reply->namespace_list->namespaces[0]->tenant, "b");
	raw_free(reply);
	reply = ask(b.sock, SKVQ__WIRE__REQUEST__BODY_PIN_LIST, &pil);
	assert_int_equal(reply->pin_list->n_pins, 1);
	assert_string_equal(reply->pin_list->pins[0]->name, "b");
	raw_free(reply);
	/* a's pins and pages are untouched by all of this. */
	assert_int_equal(look(a.sock, "a").pins, PAGES);
	assert_int_equal(look(a.sock, "a").pages, PAGES);
	client_close(&b);
	/* Status: what a does moves nothing that b sees. */
	b = client_open(sock_b, "b");
	before = look(b.sock, "b");
	assert_int_equal(match(a.sock, a.ns, 1), PAGES);
	refused(raw_unpin(a.sock, 77, &a.refs[0]), SKVQ_EINVAL, "not open");
	turned_away(sock_c, SKVQ_EPERM, "");
	after = look(b.sock, "b");
	assert_memory_equal(&before, &after, sizeof(before));
	client_close(&a);
	client_close(&b);
}

static raw_reply *open_ns(int sock, uint32_t seed, uint32_t window)
{
	Skvq__Wire__Identity *id = raw_identity(seed);

	id->window = window;
	return raw_namespace_open(sock, id, NULL);
}

/* An engine learns why it shares nothing with another of its tenant, and nothing of other tenants.
 */
static void the_field_that_differs_is_told(void **state)
{
	int a = enter(sock_a, "a"), b = enter(sock_b, "b");
	raw_reply *reply = open_ns(a, 0, 128);
	uint32_t first = reply->namespace_open->ns;

	(void)state;
	assert_int_equal(reply->namespace_open->nearest_ns, 0);
	assert_string_equal(reply->namespace_open->nearest_differs, "");
	raw_free(reply);
	reply = open_ns(b, 0, 64); /* the other tenant's model is as if it were not there */
	assert_int_equal(reply->namespace_open->nearest_ns, 0);
	raw_free(reply);
	reply = open_ns(a, 0, 64);
	assert_int_equal(reply->namespace_open->nearest_ns, first);
	assert_string_equal(reply->namespace_open->nearest_differs, "window");
	raw_free(reply);
	/* Other weights under the same model name: nearest is the one of the same window. */
	reply = open_ns(a, 1, 128);
	assert_int_equal(reply->namespace_open->nearest_ns, first);
	assert_string_equal(reply->namespace_open->nearest_differs, "weights_digest");
	raw_free(reply);
	close(a);
	close(b);
}

/* An admin sees each tenant, and their sum. */
static void an_admin_sees_all(void **state)
{
	struct client a = client_open(sock_a, "a"), b = client_open(sock_b, "b");
	Skvq__Wire__NamespaceList nl = SKVQ__WIRE__NAMESPACE_LIST__INIT;
	Skvq__Wire__PageList pl = SKVQ__WIRE__PAGE_LIST__INIT;
	int admin = enter(daemon_.socket, "admin");
	raw_reply *reply;

	(void)state;
	publish_all(&a, 1);
	publish_all(&b, 1); /* equal pages, kept twice */
	reply = raw_status(admin);
	assert_int_equal(reply->status->pages, 2 * PAGES);
	assert_int_equal(reply->status->pins, 2 * PAGES);
	assert_int_equal(reply->status->tenants[0]->pages, PAGES);
	assert_int_equal(reply->status->tenants[0]->bytes_min, 1 << 20);
	assert_int_equal(reply->status->tenants[1]->bytes_max, 2 << 20);
	assert_int_equal(reply->status->tenants[1]->bytes_held, reply->status->tenants[1]->bytes);
	raw_free(reply);
	reply = ask(admin, SKVQ__WIRE__REQUEST__BODY_NAMESPACE_LIST, &nl);
	assert_int_equal(reply->namespace_list->n_namespaces, 2);
	raw_free(reply);
	pl.ns = a.ns;
	reply = ask(admin, SKVQ__WIRE__REQUEST__BODY_PAGE_LIST, &pl);
	assert_int_equal(reply->page_list->n_pages, PAGES);
	raw_free(reply);
	client_close(&a);
	client_close(&b);
	close(admin);
}

/* As match, waiting for the disk; how many pages came from there. */
static uint32_t restored(int sock, uint32_t ns, uint32_t seed)
{
	Skvq__Wire__Match m = SKVQ__WIRE__MATCH__INIT;
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	raw_reply *reply;
	uint32_t n;

	for (uint32_t i = 0; i < PAGES; i++)
		maker_tokens(seed, i, tokens + i * SKVQ_PAGE_TOKENS);
	m.ns = ns;
	m.tokens = tokens;
	m.n_tokens = m.max_tokens = PAGES * SKVQ_PAGE_TOKENS;
	m.wait_ms = 2000;
	reply = ask(sock, SKVQ__WIRE__REQUEST__BODY_MATCH, &m);
	assert_int_equal(reply->error, 0);
	n = reply->match->n_restored;
	raw_free(reply);
	return n;
}

/* Each tenant has a store of its own, and finds again what it wrote there. */
static void disks_are_apart(void **state)
{
	char more[256];
	struct client a, b;
	raw_reply *reply;

	(void)state;
	test_daemon_stop(&daemon_, SIGTERM);
	snprintf(more, sizeof(more),
		 "[store]\nfolder = %s/store\ncapacity_bytes = 32M\nsegment_bytes = 1M\n"
		 "record_bytes = 64K\ntouch_entries = 0\n"
		 /* It ends some milliseconds after its start: that earns no budget. */
		 "write_bytes_per_day = 0\n",
		 daemon_.dir);
	begin(more);
	has_store = true;
	a = client_open(sock_a, "a");
	publish_all(&a, 1);
	client_close(&a);
	assert_int_equal(test_daemon_stop(&daemon_, SIGTERM), 0);
	start();
	a = client_open(sock_a, "a");
	b = client_open(sock_b, "b");
	assert_int_equal(restored(b.sock, b.ns, 1), 0);
	assert_int_equal(restored(a.sock, a.ns, 1), PAGES);
	reply = raw_status(a.sock);
	assert_int_equal(reply->status->disk_pages, PAGES);
	assert_int_equal(raw_recorded(reply, "restore_us"), PAGES);
	assert_int_equal(reply->status->disk_bytes_max, (32 << 20) / 3);
	raw_free(reply);
	reply = raw_status(b.sock);
	assert_true(reply->status->has_store);
	assert_int_equal(reply->status->disk_pages, 0);
	assert_int_equal(raw_counter(reply, "store_puts"), 0);
	assert_int_equal(raw_counter(reply, "restores"), 0);
	raw_free(reply);
	client_close(&a);
	client_close(&b);
	assert_int_equal(test_daemon_stop(&daemon_, SIGTERM), 0);
	/* Salt that others may read is none, and the daemon does not start with it. */
	assert_int_equal(chmod(salt, 0440), 0);
	{
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			execl(SKVQD_PATH, "skvqd", "--socket", daemon_.socket, "--config", conf,
			      (char *)NULL);
			_exit(127);
		}
		assert_true(pid > 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(WEXITSTATUS(status), 1);
	}
	assert_int_equal(chmod(salt, 0400), 0);
	start();
}

/* Two publishes that arrive as one piece, where one may be in flight. */
static void requests_in_flight_are_bounded(void **state)
{
	static uint8_t frames[8192];
	Skvq__Wire__Publish m = SKVQ__WIRE__PUBLISH__INIT;
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	struct client a;
	size_t at = 0;
	raw_reply *reply;
	uint32_t busy = 0;

	(void)state;
	assert_int_equal(test_daemon_stop(&daemon_, SIGTERM), 0);
	begin("[limits]\nrequests_max = 1\n");
	a = client_open(sock_a, "a");
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PUBLISH;
	rq.publish = &m;
	m.ns = a.ns;
	m.staging = a.staging;
	m.tokens = tokens;
	m.n_tokens = SKVQ_PAGE_TOKENS;
	for (uint32_t i = 0; i < 2; i++) {
		size_t n;

		maker_tokens(20 + i, 0, tokens);
		maker_page(&layout, 0, tokens, 20 + i, a.map + i * layout.slot_bytes);
		m.offset = i * layout.slot_bytes;
		rq.id = 100 + i;
		n = protobuf_c_message_get_packed_size(&rq.base);
		assert_true(at + 8 + n <= sizeof(frames));
		raw_header(frames + at, (uint32_t)n, 0, RAW_MAGIC);
		at += 8 + protobuf_c_message_pack(&rq.base, frames + at + 8);
	}
	assert_int_equal(raw_send_bytes(a.sock, frames, at, NULL, 0), at);
	for (int i = 0; i < 2; i++) {
		reply = raw_recv(a.sock, NULL);
		assert_non_null(reply);
		assert_int_equal(reply->error, reply->id == 101 ? SKVQ_EBUSY : 0);
		busy += reply->error == SKVQ_EBUSY;
		raw_free(reply);
	}
	assert_int_equal(busy, 1);
	reply = raw_status(a.sock);
	assert_int_equal(raw_counter(reply, "refused_ebusy"), 1);
	raw_free(reply);
	client_close(&a);
}

/* ---- users and groups, on the shared socket ---- */

#define USER  60001u /* of tenant u */
#define GROUP 60002u /* of tenant g */
#define OTHER 60003u /* another group, of tenant h */
#define ADMIN 60009u
#define NONE  60010u

/* What a process of that user and these groups is to the daemon: 'u', 'g', 'h' a tenant's, 'A' an
 * admin of none, 'X' refused. */
static int who(uid_t uid, gid_t gid, const gid_t *groups, size_t n_groups)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		raw_reply *reply;
		int sock;

		if (setgroups(n_groups, groups) < 0 || setgid(gid) < 0 || setuid(uid) < 0)
			_exit('?');
		sock = reach(daemon_.socket);
		if (sock < 0)
			_exit('!');
		reply = raw_hello(sock, "who");
		if (!reply || reply->error)
			_exit(reply && reply->error == SKVQ_EPERM ? 'X' : '!');
		reply = raw_namespace_open(sock, raw_identity(0), NULL);
		if (reply->error)
			_exit(reply->error == SKVQ_EPERM ? 'A' : '!');
		reply = raw_status(sock);
		_exit(reply->status->n_tenants == 1 ? reply->status->tenants[0]->name[0] : 'B');
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void users_and_groups_are_told_by_the_kernel(void **state)
{
	const gid_t both[] = {GROUP, OTHER};
	char text[512];

	(void)state;
	if (geteuid() != 0)
		skip();
	assert_int_equal(test_daemon_stop(&daemon_, SIGTERM), 0);
	snprintf(text, sizeof(text),
		 "[socket]\nsocket_mode = 0666\nadmin = %u\n"
		 "[tenant u]\nuid = %u\n[tenant g]\ngid = %u\n[tenant h]\ngid = %u\n",
		 ADMIN, USER, GROUP, OTHER);
	write_file(conf, text, 0600);
	assert_int_equal(chmod(daemon_.dir, 0711), 0);
	start();
	assert_int_equal(who(USER, NONE, NULL, 0), 'u');
	assert_int_equal(who(USER, GROUP, both, 2), 'u'); /* named himself, whatever his groups */
	assert_int_equal(who(NONE, GROUP, NULL, 0), 'g');
	assert_int_equal(who(NONE, NONE, both, 1), 'g');      /* by a group beside his own */
	assert_int_equal(who(NONE, GROUP, both + 1, 1), 'X'); /* of two tenants */
	assert_int_equal(who(NONE, NONE, NULL, 0), 'X');
	assert_int_equal(who(ADMIN, NONE, NULL, 0), 'A');
	assert_int_equal(who(ADMIN, OTHER, NULL, 0), 'B'); /* of a tenant, and sees all */
	assert_int_equal(chmod(daemon_.dir, 0700), 0);
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int by_value(const void *x, const void *y)
{
	uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;

	return a < b ? -1 : a > b;
}

#define PINGS 400

/* Median of so many status round trips. */
static uint64_t median_us(int sock)
{
	uint64_t us[PINGS];

	for (int i = 0; i < PINGS; i++) {
		uint64_t start = now_us();

		ok(raw_status(sock));
		us[i] = now_us() - start;
	}
	qsort(us, PINGS, sizeof(us[0]), by_value);
	return us[PINGS / 2];
}

/* Sends requests until the socket takes no more, and reads none of the answers. */
static void flood(int sock)
{
	static uint8_t frame[8 + 4096];
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Ping ping = SKVQ__WIRE__PING__INIT;
	static uint8_t payload[4000];
	size_t n;

	ping.payload = (ProtobufCBinaryData){sizeof(payload), payload};
	rq.id = 7;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PING;
	rq.ping = &ping;
	n = protobuf_c_message_get_packed_size(&rq.base);
	raw_header(frame, (uint32_t)n, 0, RAW_MAGIC);
	protobuf_c_message_pack(&rq.base, frame + 8);
	assert_int_equal(fcntl(sock, F_SETFL, O_NONBLOCK), 0);
	for (int quiet = 0; quiet < 20;) {
		if (raw_send_bytes(sock, frame, 8 + n, NULL, 0) == (ssize_t)(8 + n))
			quiet = 0;
		else if (quiet++ < 20)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

/* Clients that never read hold what their sockets and backlog_max hold, and nobody up. */
static void who_never_reads_holds_up_nobody(void **state)
{
	int b = enter(sock_b, "b"), lazy[3];
	uint64_t alone = median_us(b), beside;
	raw_reply *reply;

	(void)state;
	for (int i = 0; i < 3; i++) {
		lazy[i] = enter(sock_a, "lazy");
		flood(lazy[i]);
	}
	beside = median_us(b);
	print_message(
	    "status round trip, median: %llu us alone, %llu us beside 3 that never read\n",
	    (unsigned long long)alone, (unsigned long long)beside);
	assert_true(beside < 20 * alone + 20000);
	/* The daemon stopped reading them; it did not close them, and they did not make it grow. */
	reply = raw_status(b);
	assert_int_equal(reply->status->connections, 1);
	raw_free(reply);
	for (int i = 0; i < 3; i++)
		close(lazy[i]);
	close(b);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(strangers_are_turned_away),
	    TEST(events_of_a_tenant_are_its_own),
	    TEST(connections_of_a_tenant_are_bounded),
	    TEST(pins_of_a_tenant_are_bounded),
	    TEST(nothing_of_another_is_seen),
	    TEST(the_field_that_differs_is_told),
	    TEST(disks_are_apart),
	    TEST(requests_in_flight_are_bounded),
	    TEST(users_and_groups_are_told_by_the_kernel),
	    TEST(an_admin_sees_all),
	    TEST(who_never_reads_holds_up_nobody),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
