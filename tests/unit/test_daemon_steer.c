/* SPDX-License-Identifier: Apache-2.0 */
/* The real skvqd, given another configuration while it runs: what changes, and what it refuses. */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static struct test_daemon daemon_;
static struct skvq_layout layout;
static char conf[96], sock_a[96], sock_b[96], text[4096], head[1024];
static int admin;

static int connect_to(const char *path)
{
	int sock = raw_connect(path);
	raw_reply *reply;

	assert_true(sock >= 0);
	reply = raw_hello(sock, "tester");
	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	raw_free(reply);
	return sock;
}

static void write_conf(void)
{
	int fd = open(conf, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, head, strlen(head)), strlen(head));
	close(fd);
}

static void begin(const char *more, const char *flag, const char *value)
{
	const char *const args[] = {"--config", conf, flag, value, NULL};

	maker_layout(&layout);
	test_daemon_init(&daemon_);
	snprintf(conf, sizeof(conf), "%s/conf", daemon_.dir);
	snprintf(sock_a, sizeof(sock_a), "%s/a.sock", daemon_.dir);
	snprintf(sock_b, sizeof(sock_b), "%s/b.sock", daemon_.dir);
	snprintf(head, sizeof(head),
		 "[limits]\nconnections_max = 12\nnamespaces_max = 8\nframe_max = 64K\n"
		 "[memory]\nram_max = 8M\n"
		 "[tenant a]\nsocket = %s\nram_min = 1M\n"
		 "[tenant b]\nsocket = %s\n%s",
		 sock_a, sock_b, more);
	write_conf();
	test_daemon_start(&daemon_, SKVQD_PATH, args);
	admin = connect_to(daemon_.socket);
}

static int setup(void **state)
{
	(void)state;
	begin("", NULL, NULL);
	return 0;
}

static int teardown(void **state)
{
	int status;

	(void)state;
	if (!daemon_.pid)
		return -1;
	close(admin);
	status = test_daemon_stop(&daemon_, SIGTERM);
	unlink(conf);
	test_daemon_fini(&daemon_);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

/* ---- requests ---- */

static raw_reply *set_bytes(int sock, const void *bytes, size_t n, bool check)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__ConfigSet m = SKVQ__WIRE__CONFIG_SET__INIT;

	m.text.data = (uint8_t *)(uintptr_t)bytes;
	m.text.len = n;
	m.check = check;
	m.name = (char *)(uintptr_t) "f";
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CONFIG_SET;
	rq.config_set = &m;
	return raw_call(sock, &rq, -1, NULL);
}

/* The file as it was, with more behind it: later lines win. */
static raw_reply *set_more(const char *more, bool check)
{
	snprintf(text, sizeof(text), "%s%s", head, more);
	return set_bytes(admin, text, strlen(text), check);
}

static raw_reply *quota(const char *section, const char *key, const char *value)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__ConfigSet m = SKVQ__WIRE__CONFIG_SET__INIT;
	Skvq__Wire__ConfigSetting s = SKVQ__WIRE__CONFIG_SETTING__INIT, *at = &s;

	s.section = (char *)(uintptr_t)section;
	s.key = (char *)(uintptr_t)key;
	s.value = (char *)(uintptr_t)value;
	m.n_settings = 1;
	m.settings = &at;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CONFIG_SET;
	rq.config_set = &m;
	return raw_call(admin, &rq, -1, NULL);
}

static raw_reply *get(int sock)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__ConfigGet m = SKVQ__WIRE__CONFIG_GET__INIT;

	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CONFIG_GET;
	rq.config_get = &m;
	return raw_call(sock, &rq, -1, NULL);
}

static void refused(raw_reply *reply, uint32_t code, const char *says)
{
	assert_non_null(reply);
	if (reply->error != code || !strstr(reply->detail, says))
		fail_msg("error %u, \"%s\": not %u, \"%s\"", reply->error, reply->detail, code,
			 says);
	raw_free(reply);
}

/* Its changes as "name:from>to;", with ! behind those that take a start. */
static void changes(raw_reply *reply, const char *want)
{
	char got[1024] = "";

	assert_non_null(reply);
	if (reply->error)
		fail_msg("error %u: %s", reply->error, reply->detail);
	for (size_t i = 0; i < reply->config_set->n_changes; i++) {
		const Skvq__Wire__ConfigChange *c = reply->config_set->changes[i];
		size_t at = strlen(got);

		snprintf(got + at, sizeof(got) - at, "%s:%s>%s%s;", c->name, c->from, c->to,
			 c->restart ? "!" : "");
	}
	assert_string_equal(got, want);
	raw_free(reply);
}

static bool shows(const char *line)
{
	raw_reply *reply = get(admin);
	char *copy;
	bool found;

	assert_non_null(reply);
	assert_int_equal(reply->error, 0);
	copy = strndup((char *)reply->config_get->text.data, reply->config_get->text.len);
	found = strstr(copy, line) != NULL;
	free(copy);
	raw_free(reply);
	return found;
}

static uint64_t bytes_max(uint64_t *ret_tenant_a)
{
	raw_reply *reply = raw_status(admin);
	uint64_t max = reply->status->bytes_max;

	*ret_tenant_a = reply->status->tenants[0]->bytes_max;
	raw_free(reply);
	return max;
}

/* ---- what is shown ---- */

static void the_whole_is_shown(void **state)
{
	raw_reply *reply = get(admin);
	size_t live = 0;

	(void)state;
	assert_int_equal(reply->error, 0);
	for (size_t i = 0; i < reply->config_get->n_keys; i++) {
		const Skvq__Wire__ConfigKey *key = reply->config_get->keys[i];

		live += *key->live != 0;
		if (!strcmp(key->name, "memory.ram_max"))
			assert_true(*key->live);
		if (!strcmp(key->name, "workers.threads"))
			assert_false(*key->live);
	}
	assert_true(live > 20 && live < reply->config_get->n_keys);
	/* It can be given back as it is, and changes nothing. */
	changes(set_bytes(admin, reply->config_get->text.data, reply->config_get->text.len, false),
		"");
	raw_free(reply);
	assert_true(shows("\nram_max = 8M\n"));
	assert_true(shows("[tenant b]"));
}

/* ---- what changes ---- */

static void a_reload_changes_what_can(void **state)
{
	uint64_t a;

	(void)state;
	changes(set_more("[memory]\nram_max = 16M\nshed = 0\n[workers]\nthreads = 3\n"
			 "[tenant a]\nram_max = 4M\n",
			 true),
		"memory.ram_max:8M>16M;memory.shed:1>0;tenant a.ram_max:0>4M;workers.threads:2>3!;");
	assert_int_equal(bytes_max(&a), 8 << 20); /* it was only asked */
	changes(set_more("[memory]\nram_max = 16M\n[workers]\nthreads = 3\n[tenant a]\nram_max = 4M\n",
			 false),
		"memory.ram_max:8M>16M;tenant a.ram_max:0>4M;workers.threads:2>3!;");
	assert_int_equal(bytes_max(&a), 16 << 20);
	assert_int_equal(a, 4 << 20);
	assert_true(shows("threads = 2\n"));
	/* The same again differs in the key that could not change, and in no other. */
	changes(set_more("[memory]\nram_max = 16M\n[workers]\nthreads = 3\n[tenant a]\nram_max = 4M\n",
			 false),
		"workers.threads:2>3!;");
	changes(set_more("", false), "memory.ram_max:16M>8M;tenant a.ram_max:4M>0;");
	assert_int_equal(bytes_max(&a), 8 << 20);
	assert_int_equal(a, 8 << 20);
}

static void flags_win(void **state)
{
	uint64_t a;

	(void)state;
	changes(set_more("[memory]\nram_max = 16M\n[log]\nlevel = error\n", false),
		"log.level:info>error;");
	assert_int_equal(bytes_max(&a), 2 << 20);
}

static int setup_flags(void **state)
{
	(void)state;
	begin("", "--ram-max", "2M");
	return 0;
}

static void quotas(void **state)
{
	uint64_t a;

	(void)state;
	changes(quota("tenant a", "ram_max", "2M"), "tenant a.ram_max:0>2M;");
	assert_int_equal(bytes_max(&a), 8 << 20);
	assert_int_equal(a, 2 << 20);
	refused(quota("tenant a", "ram_max", "1"), SKVQ_EINVAL, "more than ram_max");
	refused(quota("tenant a", "ram_min", "9M"), SKVQ_EINVAL, "more than ram_max");
	refused(quota("tenant a", "socket", "/x"), SKVQ_EINVAL, "cannot change");
	refused(quota("tenant c", "ram_max", "2M"), SKVQ_EINVAL, "no tenant \"c\"");
	refused(quota("tenant a", "uid", "x"), SKVQ_EINVAL, "expected numbers");
	refused(quota("", "", ""), SKVQ_EINVAL, "no key");
	assert_int_equal(bytes_max(&a), 8 << 20);
	assert_int_equal(a, 2 << 20);
	/* A reload brings back what the file says. */
	changes(set_more("", false), "tenant a.ram_max:2M>0;");
}

/* Each of these bounds is felt by a client. */
static void connections(void **state)
{
	int one = connect_to(sock_a), two;

	(void)state;
	changes(quota("tenant a", "connections_max", "1"), "tenant a.connections_max:0>1;");
	two = raw_connect(sock_a);
	refused(raw_recv(two, NULL), SKVQ_ETCONNS, "all 1 connections");
	close(two);
	raw_free(raw_status(one)); /* the one that is there stays */
	changes(quota("tenant a", "connections_max", "2"), "tenant a.connections_max:1>2;");
	two = connect_to(sock_a);
	close(two);
	close(one);
}

static void limits_of_connections(void **state)
{
	int sock = connect_to(sock_a), fds[3];
	Skvq__Wire__Identity *identity = raw_identity(0);

	(void)state;
	for (int i = 0; i < 3; i++)
		fds[i] = maker_memfd(4096, SEALS);
	changes(set_more("[limits]\nstaging_max = 1\n[tenant a]\nnamespaces_max = 1\n", false),
		"limits.staging_max:64>1;tenant a.namespaces_max:0>1;");
	raw_free(raw_staging_add(sock, fds[0]));
	refused(raw_staging_add(sock, fds[1]), SKVQ_ESTAGINGS, "has 1 stagings");
	raw_free(raw_namespace_open(sock, identity, NULL));
	refused(raw_namespace_open(sock, raw_identity(1), NULL), SKVQ_ENAMESPACES, "all 1");
	changes(set_more("[limits]\nstaging_max = 2\n[tenant a]\nnamespaces_max = 2\n", false),
		"limits.staging_max:1>2;tenant a.namespaces_max:1>2;");
	raw_free(raw_staging_add(sock, fds[1]));
	refused(raw_staging_add(sock, fds[2]), SKVQ_ESTAGINGS, "has 2 stagings");
	{
		raw_reply *reply = raw_namespace_open(sock, raw_identity(1), NULL);

		assert_int_equal(reply->error, 0);
		raw_free(reply);
	}
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	close(sock);
}

struct engine {
	int sock, staging_fd;
	uint32_t ns, staging;
	uint8_t slot[65536];
};

static struct engine engine_open(const char *path)
{
	struct engine e = {.sock = connect_to(path)};
	raw_reply *reply = raw_namespace_open(e.sock, raw_identity(0), NULL);

	assert_int_equal(reply->error, 0);
	e.ns = reply->namespace_open->ns;
	raw_free(reply);
	e.staging_fd = maker_memfd(layout.slot_bytes, SEALS);
	reply = raw_staging_add(e.sock, e.staging_fd);
	e.staging = reply->staging_add->staging;
	raw_free(reply);
	return e;
}

static raw_reply *publish(struct engine *e, uint32_t seed)
{
	int32_t tokens[SKVQ_PAGE_TOKENS];

	assert_true(layout.slot_bytes <= sizeof(e->slot));
	maker_tokens(seed, 0, tokens);
	maker_page(&layout, 0, tokens, seed, e->slot);
	assert_int_equal(pwrite(e->staging_fd, e->slot, layout.slot_bytes, 0), layout.slot_bytes);
	return raw_publish(e->sock, e->ns, NULL, 0, tokens, e->staging, 0);
}

static void publish_all(struct engine *e, uint32_t n, bool keep)
{
	for (uint32_t i = 0; i < n; i++) {
		raw_reply *reply = publish(e, i);

		assert_int_equal(reply->error, 0);
		if (!keep)
			raw_free(raw_unpin(e->sock, e->ns, reply->publish->page));
		raw_free(reply);
	}
}

static bool memory_falls_to(uint64_t want, uint64_t *ret_max)
{
	for (int i = 0; i < 2000; i++) {
		raw_reply *reply = raw_status(admin);
		uint64_t now = reply->status->bytes_resident;

		*ret_max = reply->status->bytes_max;
		raw_free(reply);
		if (now <= want && *ret_max <= want)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	return false;
}

static void memory_comes_down(void **state)
{
	struct engine e = engine_open(sock_b);
	uint64_t max, a;

	(void)state;
	publish_all(&e, 200, false); /* 1.6 MB and more */
	changes(set_more("[memory]\nram_max = 1M\n[tenant a]\nram_min = 0\n", false),
		"memory.ram_max:8M>1M;tenant a.ram_min:1M>0;");
	assert_true(memory_falls_to(1 << 20, &max));
	assert_int_equal(max, 1 << 20);
	publish_all(&e, 200, false);
	assert_true(memory_falls_to(1 << 20, &max));
	/* Up, and what is pinned is no room to give up. */
	changes(set_more("", false), "memory.ram_max:1M>8M;tenant a.ram_min:0>1M;");
	assert_int_equal(bytes_max(&a), 8 << 20);
	publish_all(&e, 200, true);
	refused(set_more("[memory]\nram_max = 1M\n[tenant a]\nram_min = 0\n", false), SKVQ_EBUSY,
		"engines have pinned");
	refused(quota("tenant b", "ram_max", "64K"), SKVQ_EBUSY, "[tenant b]");
	close(e.sock);
	close(e.staging_fd);
}

static void pins(void **state)
{
	struct engine e = engine_open(sock_b);

	(void)state;
	publish_all(&e, 4, true);
	changes(set_more("[limits]\npins_max = 5\n", false), "limits.pins_max:65536>5;");
	raw_free(publish(&e, 4));
	refused(publish(&e, 5), SKVQ_EPINS, "5 pins");
	changes(quota("tenant b", "pins_max", "5"), "tenant b.pins_max:0>5;");
	changes(quota("limits", "pins_max", "100"), "limits.pins_max:5>100;");
	refused(publish(&e, 5), SKVQ_ETPINS, "5 pins of 5");
	close(e.sock);
	close(e.staging_fd);
}

/* ---- what is refused ---- */

/* All or nothing: each has a good line before the bad one. */
static void bad_texts(void **state)
{
	static const struct {
		const char *more, *says;
	} bad[] = {
	    {"[memory]\nram_max = 16M\nnonsense = 1\n", "f:14: there is no key \"nonsense\""},
	    {"[memory]\nram_max = 16M\n[nowhere]\nx = 1\n", "section \"nowhere\""},
	    {"[memory]\nram_max = 16Q\n", "f:13: memory.ram_max"},
	    {"[memory]\nram_max = 16M\n!\n", "f:14: "},
	    {"[memory]\nram_max = 512K\n", "[tenant a], line 9, ram_min: more than"},
	    {"[log]\nlevel = debug\n[tenant b]\nram_min = 7680K\n", "guaranteed"},
	    {"[memory]\nram_max = 16M\n[tenant a]\nram_max = 32M\n", "line 15, ram_max: more than"},
	    {"[memory]\nram_max = 16M\n[tenant c]\nram_min = 0\n", "nobody can be of it"},
	    {"[memory]\nram_max = 16M\n[limits]\nconnections_max = 4096\nstaging_max = 1024\n",
	     "reserved at the start"},
	};
	char *junk = malloc(60000);
	uint64_t a;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		refused(set_more(bad[i].more, false), SKVQ_EINVAL, bad[i].says);
	refused(set_bytes(admin, "[log]\n\0level = debug\n", 21, false), SKVQ_EINVAL,
		"f:2: a zero byte");
	assert_non_null(junk);
	memset(junk, 'j', 60000);
	refused(set_bytes(admin, junk, 60000, false), SKVQ_EINVAL, "f:1: ");
	memset(junk, '[', 60000);
	refused(set_bytes(admin, junk, 60000, false), SKVQ_EINVAL, "f:1: ");
	free(junk);
	assert_int_equal(bytes_max(&a), 8 << 20);
	assert_true(shows("ram_max = 8M\n"));
	raw_free(raw_status(admin));
}

/* They need a start; what they leave to those that run must still be possible. */
static void tenants_that_come_and_go(void **state)
{
	char more[256];

	(void)state;
	snprintf(more, sizeof(more), "[tenant c]\nuid = 77\n");
	changes(set_more(more, false), "tenant c:>there!;");
	snprintf(text, sizeof(text),
		 "[limits]\nconnections_max = 12\nnamespaces_max = 8\nframe_max = 64K\n"
		 "[memory]\nram_max = 8M\n[tenant a]\nsocket = %s\nram_min = 1M\npins_max = 9\n",
		 sock_a);
	changes(set_bytes(admin, text, strlen(text), false), "tenant a.pins_max:0>9;tenant b:there>!;");
	close(connect_to(sock_b)); /* it runs on */
	/* All of the memory to one, while another that runs has been promised a part of it. */
	snprintf(text, sizeof(text),
		 "[limits]\nconnections_max = 12\nnamespaces_max = 8\nframe_max = 64K\n"
		 "[memory]\nram_max = 8M\n[tenant b]\nsocket = %s\nram_min = 8M\n",
		 sock_b);
	refused(set_bytes(admin, text, strlen(text), false), SKVQ_EINVAL,
		"does not go with what needs a start");
	/* No sections at all. */
	changes(set_bytes(admin, "[memory]\nram_max = 4M\n", 21, true),
		"memory.ram_max:8M>4M;limits.connections_max:12>64;limits.namespaces_max:8>64;"
		"limits.frame_max:64K>4M!;tenant a:there>!;tenant b:there>!;");
}

static void bad_requests(void **state)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__ConfigSet m = SKVQ__WIRE__CONFIG_SET__INIT;
	Skvq__Wire__ConfigSetting s = SKVQ__WIRE__CONFIG_SETTING__INIT, *at[65];

	(void)state;
	s.section = (char *)(uintptr_t) "log";
	s.key = (char *)(uintptr_t) "level";
	s.value = (char *)(uintptr_t) "debug";
	for (int i = 0; i < 65; i++)
		at[i] = &s;
	m.settings = at;
	m.n_settings = 65;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_CONFIG_SET;
	rq.config_set = &m;
	refused(raw_call(admin, &rq, -1, NULL), SKVQ_ELIMIT, "65 settings");
	m.n_settings = 1;
	m.text = (ProtobufCBinaryData){1, (uint8_t *)(uintptr_t) "\n"};
	rq.id = 0;
	refused(raw_call(admin, &rq, -1, NULL), SKVQ_EINVAL, "a text and settings");
}

/* Nobody but root and the daemon's own user, whomever the config calls an admin. */
static void others_may_not(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (getuid() != 0)
		skip();
	assert_int_equal(chmod(daemon_.dir, 0755), 0);
	assert_int_equal(chmod(daemon_.socket, 0666), 0);
	changes(set_more("[socket]\nadmin = 65534\n", false), "socket.admin:>65534;");
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		raw_reply *reply;
		int sock, bad = setgid(65534) || setuid(65534);

		sock = raw_connect(daemon_.socket);
		reply = raw_hello(sock, "stranger");
		bad |= !reply || reply->error;
		reply = raw_status(sock); /* an admin may look */
		bad |= !reply || reply->error;
		reply = get(sock);
		bad |= !reply || reply->error != SKVQ_EPERM || !strstr(reply->detail, "user 65534");
		reply = set_bytes(sock, "[log]\nlevel = debug\n", 20, true);
		bad |= !reply || reply->error != SKVQ_EPERM;
		/* The parent takes the admin's rights away: he is of no tenant, and has to go. */
		kill(getpid(), SIGSTOP);
		while ((reply = raw_recv(sock, NULL)))
			raw_free(reply);
		_exit(bad);
	}
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	changes(set_more("", false), "socket.admin:65534>;");
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(the_whole_is_shown),
	    TEST(a_reload_changes_what_can),
	    cmocka_unit_test_setup_teardown(flags_win, setup_flags, teardown),
	    TEST(quotas),
	    TEST(connections),
	    TEST(limits_of_connections),
	    TEST(memory_comes_down),
	    TEST(pins),
	    TEST(bad_texts),
	    TEST(tenants_that_come_and_go),
	    TEST(bad_requests),
	    TEST(others_may_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
