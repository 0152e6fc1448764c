/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon that ends in order and the one that takes its arenas over, under a stand-in for a service
 * manager: engines stay on the same bits whatever of the handover is lost, old, cut or wrong, and
 * whatever the new daemon does with its memory.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <skvq/client.h>
#include <skvq/format.h>
#include <skvq/plugin.h>

#include "calibration_maker.h"
#include "daemon.h"
#include "manager.h"
#include "support/page_maker.h"
#include "support/raw_client.h"
#include "synthetic.h"

#define MAP "skvqd-map-"
#define FDS "skvqd-fd-"
#define PAGE 80

static struct test_daemon daemon_;
static struct test_manager manager;

static int setup(void **state)
{
	(void)state;
	profile = "k2v1.5";
	test_daemon_init(&daemon_);
	manager_init(&manager, &daemon_);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (daemon_.pid)
		(void)manager_stop(&manager, &daemon_, SIGTERM);
	manager_fini(&manager, &daemon_);
	test_daemon_fini(&daemon_);
	return 0;
}

static void start(const char *const *args)
{
	int ready = manager.ready;

	test_daemon_start(&daemon_, SKVQD_PATH, args);
	for (int i = 0; i < 5000 && manager.ready == ready; i++) {
		manager_pump(&manager);
		nap_ms(2);
	}
	assert_int_equal(manager.ready, ready + 1);
}

static void stop(void)
{
	int stopping = manager.stopping;

	assert_int_equal(manager_stop(&manager, &daemon_, SIGTERM), 0);
	assert_int_equal(manager.stopping, stopping + 1);
}

static void restart(const char *const *args)
{
	stop();
	start(args);
}

static struct skvq_client_status status(void)
{
	return status_of(daemon_.socket);
}

static uint64_t counter(const char *name)
{
	return counter_of(daemon_.socket, name);
}

static void step_both(struct run *x, struct run *y, uint32_t steps, uint32_t n)
{
	for (uint32_t i = 0; i < steps; i++)
		assert_true(run_step(x, n) == run_step(y, n));
}

/* Polls, without decoding, until the engine is attached and so many pages are shared with whoever it
 * is attached to. */
static void wait_attached(struct run *r, uint32_t pages)
{
	for (int i = 0; i < 2000; i++) {
		assert_true(api->seq_poll(r->seq) >= 0);
		skvq_seq_info info = info_of(r);
		if (info.daemon == 1 && !info.pages_inflight && info.pages_shared >= pages)
			return;
		nap_ms(5);
	}
	fail_msg("not attached, or fewer than %u pages shared, after ten seconds", pages);
}

/* All it has, and others find it. */
static uint32_t wait_all_shared(struct run *r)
{
	wait_attached(r, info_of(r).n_paged / PAGE);
	return info_of(r).n_paged / PAGE * PAGE;
}

static void wait_pins(uint64_t pins)
{
	for (int i = 0; i < 1000 && status().pins != pins; i++)
		nap_ms(5);
	assert_int_equal(status().pins, pins);
}

/* An engine that copies its pages back reads the refinements that were let go of with them: zeros,
 * which the kernel allocates for it. The daemon's next ticks give them back. */
static void wait_kernel_bytes(void)
{
	struct skvq_client_status s = status();

	for (int i = 0; i < 1000 && s.bytes_kernel > s.bytes_max; i++) {
		nap_ms(5);
		s = status();
	}
	assert_in_range(s.bytes_kernel, 0, s.bytes_max);
}

/* Two engines on the first 768 tokens, one of them with the daemon: eight shared pages. */
static void open_both(struct run *a, struct run *b)
{
	run_open(a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(b, NULL, TOKENS, 0, 1000, "n1");
	step_both(a, b, 6, CHUNK);
	assert_int_equal(wait_shared(a, 8).pages_shared, 8);
}

/* A document of its own, published and left. */
static void publish_another(uint32_t tail, uint32_t chunks)
{
	static struct run r;

	run_open(&r, daemon_.socket, 0, tail, 1000, "n1");
	for (uint32_t i = 0; i < chunks; i++)
		run_step(&r, CHUNK);
	run_close(&r);
}

/* Whoever asks gets so many pages, and the bits of a private run. */
static void check_match(struct run *private, int32_t tokens)
{
	static struct run c;

	run_open(&c, daemon_.socket, TOKENS, 0, 900, "n1");
	assert_int_equal(c.matched, tokens);
	if (tokens)
		same_tokens(&c, private, (uint32_t)tokens);
	run_close(&c);
}

static void pages_survive_a_restart_in_mid_decode(void **state)
{
	static struct run a, b;

	(void)state;
	start(NULL);
	assert_int_equal(manager.ready, 1);
	open_both(&a, &b);
	uint64_t boot = info_of(&a).boot_id;
	stop();
	/* The arena, the engine's socket, and what they are. */
	assert_int_equal(manager.n, 3);
	assert_true(manager_find(&manager, MAP, 0) >= 0);
	step_both(&a, &b, 40, 1);
	assert_int_equal(info_of(&a).daemon, 2);

	start(NULL);
	assert_int_equal(manager.ready, 2);
	assert_int_equal(manager.n, 0); /* nothing to be used twice */
	assert_int_equal(counter("pages_taken_over"), 8);
	assert_int_equal(counter("takeover_check_failures"), 0);
	assert_int_equal(status().pages, 8);
	check_match(&b, 8 * PAGE);
	step_both(&a, &b, 40, 1);
	wait_attached(&a, info_of(&a).n_paged / PAGE);
	assert_true(info_of(&a).boot_id != boot);
	/* Its pages were there: nothing was copied but what is new. */
	assert_int_equal(counter("publishes_existed"), 8);
	step_both(&a, &b, 40, 1);
	wait_attached(&a, info_of(&a).n_paged / PAGE);
	/* The old connection has gone, and its pins with it. */
	wait_pins(info_of(&a).pages_shared);
	assert_int_equal(status().connections, 2);
	run_close(&a);
	wait_pins(0);
	check_match(&b, 800);
	run_close(&b);
}

static void many_restarts_leak_nothing(void **state)
{
	static struct run a, b;
	int fds = 0;

	(void)state;
	start(NULL);
	open_both(&a, &b);
	for (int i = 0; i < 8; i++) {
		restart(NULL);
		assert_int_equal(manager.n, 0);
		/* Sometimes the engine has come back before the next restart, sometimes not. */
		step_both(&a, &b, 10, 1);
		if (i % 2) {
			wait_attached(&a, 8);
			wait_pins(info_of(&a).pages_shared);
		}
		if (i == 3)
			fds = test_daemon_fds(&daemon_);
	}
	/* Sockets are closed on a thread of their own. */
	for (int i = 0; i < 400 && test_daemon_fds(&daemon_) > fds; i++)
		nap_ms(5);
	assert_true(fds && test_daemon_fds(&daemon_) <= fds);
	assert_true(status().pages >= 8);
	run_close(&a);
	run_close(&b);
	wait_pins(0);
	/* Without engines too: the arena alone is left. */
	for (int i = 0; i < 3; i++)
		restart(NULL);
	assert_true(status().pages >= 8);
	assert_int_equal(status().connections, 1);
}

/* An engine that does nothing holds what it held from the daemon before the last one. */
static void old_pins_hold_over_two_restarts_and_under_pressure(void **state)
{
	static struct run a, b;
	static const char *const args[] = {"--ram-max", "400K", NULL};

	(void)state;
	start(args);
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	step_both(&a, &b, 3, CHUNK);
	uint32_t held = wait_shared(&a, 3).pages_shared;
	for (int i = 0; i < 2; i++) {
		restart(args);
		assert_int_equal(status().pins, held);
		for (uint32_t tail = 1; tail < 5; tail++)
			publish_another(tail + 10 * (uint32_t)i, 4);
		assert_true(counter("evictions") > 0);
		assert_int_equal(status().pins, held);
	}
	step_both(&a, &b, 40, 1);
	/* Now it has copied them and let go; others press again. */
	wait_attached(&a, 0);
	for (uint32_t tail = 30; tail < 34; tail++) {
		publish_another(tail, 4);
		step_both(&a, &b, 10, 1);
	}
	run_close(&a);
	run_close(&b);
	wait_pins(0);
}

/* Pages of which the base alone is there, and pins that hold no more than that, are handed on as
 * such: refinements that are read stay, others go under pressure, before a restart and after it. */
static void refinements_survive_where_they_are_held(void **state)
{
	static struct run a, b;
	static const char *const args[] = {"--ram-max", "640K", NULL};
	uint64_t shed = 0, taken = 0;

	(void)state;
	profile = "e2.1-n320";
	start(args);
	run_open(&a, daemon_.socket, TOKENS, 0, 600, "n1");
	run_open(&b, NULL, TOKENS, 0, 600, "n1");
	step_both(&a, &b, 4, CHUNK);
	for (uint32_t tail = 1; tail < 8; tail++) {
		publish_another(tail, 4);
		step_both(&a, &b, 40, 1);
		shed += counter("sheds");
		restart(args);
		taken += counter("pages_taken_over");
		assert_int_equal(counter("takeover_check_failures"), 0);
		publish_another(20 + tail, 4);
		step_both(&a, &b, 20, 1);
		if (tail % 2)
			wait_attached(&a, 0); /* what lacks a refinement is not published again */
		wait_kernel_bytes();
		skvq_seq_info i = info_of(&a), j = info_of(&b);
		assert_int_equal(i.n_refined, j.n_refined);
		assert_int_equal(i.n_base, j.n_base);
	}
	assert_true(shed > 0 && taken > 0);
	run_close(&a);
	run_close(&b);
	wait_pins(0);
}

static void a_killed_daemon_leaves_nothing(void **state)
{
	static struct run a, b;

	(void)state;
	start(NULL);
	open_both(&a, &b);
	assert_true(WIFSIGNALED(manager_stop(&manager, &daemon_, SIGKILL)));
	assert_int_equal(manager.n, 0);
	step_both(&a, &b, 40, 1);
	start(NULL);
	assert_int_equal(counter("pages_taken_over"), 0);
	step_both(&a, &b, 20, 1);
	check_match(&b, (int32_t)wait_all_shared(&a));
	run_close(&a);
	run_close(&b);
}

/* The store still has it all, but another daemon was there in between and changed the arenas. */
static void a_handover_is_used_once(void **state)
{
	static struct run a, b;
	static const char *const args[] = {"--ram-max", "1M", NULL};

	(void)state;
	start(args);
	open_both(&a, &b);
	stop();
	manager.forgets_not = true;
	start(args);
	assert_int_equal(manager.n, 3);
	assert_int_equal(counter("pages_taken_over"), 8);
	wait_attached(&a, 8);
	assert_true(WIFSIGNALED(manager_stop(&manager, &daemon_, SIGKILL)));
	assert_int_equal(manager.n, 3);
	start(args);
	assert_int_equal(counter("pages_taken_over"), 0);
	for (uint32_t tail = 1; tail < 5; tail++)
		publish_another(tail, 6);
	step_both(&a, &b, 40, 1);
	manager.forgets_not = false;
	/* What is left of it does not disturb the next. */
	stop();
	start(args);
	assert_true(counter("pages_taken_over") > 0);
	assert_int_equal(manager.n, 0);
	step_both(&a, &b, 40, 1);
	run_close(&a);
	run_close(&b);
}

static void without_a_socket_that_holds_pins_nothing_is_taken(void **state)
{
	static struct run a, b;
	struct stat st;
	static const char *const args[] = {"--ram-max", "1M", NULL};

	(void)state;
	start(args);
	open_both(&a, &b);
	stop();
	for (int i = 0, fd; (fd = manager_find(&manager, FDS, i)) >= 0; i++) {
		if (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode)) {
			manager_drop(&manager, fd);
			break;
		}
	}
	assert_int_equal(manager.n, 2);
	start(args);
	assert_int_equal(counter("pages_taken_over"), 0);
	assert_int_equal(status().namespaces, 0);
	assert_int_equal(manager.n, 0);
	for (uint32_t tail = 1; tail < 5; tail++)
		publish_another(tail, 6);
	step_both(&a, &b, 40, 1);
	run_close(&a);
	run_close(&b);
	wait_pins(0);
}

static void a_missing_arena_is_a_miss(void **state)
{
	static struct run a, b, c;
	struct stat st;

	(void)state;
	start(NULL);
	open_both(&a, &b);
	run_open(&c, daemon_.socket, TOKENS, 0, 1000, "n2");
	for (int i = 0; i < 6; i++)
		run_step(&c, CHUNK);
	wait_shared(&c, 8);
	stop();
	assert_int_equal(manager.n, 5);
	for (int i = 0, fd; (fd = manager_find(&manager, FDS, i)) >= 0; i++) {
		if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
			manager_drop(&manager, fd);
			break;
		}
	}
	start(NULL);
	assert_int_equal(counter("pages_taken_over"), 8);
	assert_int_equal(status().namespaces, 1);
	step_both(&a, &b, 40, 1);
	wait_attached(&c, 8);
	check_match(&b, (int32_t)wait_all_shared(&a));
	run_close(&a);
	run_close(&b);
	run_close(&c);
	wait_pins(0);
}

static void too_many_are_not_taken(void **state)
{
	static struct run a, b, c;
	static const char *const args[] = {"--namespaces-max", "1", NULL};

	(void)state;
	start(NULL);
	open_both(&a, &b);
	run_open(&c, daemon_.socket, TOKENS, 0, 1000, "n2");
	for (int i = 0; i < 6; i++)
		run_step(&c, CHUNK);
	wait_shared(&c, 8);
	stop();
	/* More than the next daemon may have. */
	start(args);
	assert_int_equal(counter("pages_taken_over"), 0);
	assert_int_equal(counter("namespaces_created"), 0);
	step_both(&a, &b, 20, 1);
	wait_attached(&a, 8);
	/* More than the manager keeps: the description is what it has no room for. */
	run_close(&c);
	manager.keep_max = 2;
	stop();
	assert_int_equal(manager.n, 2);
	step_both(&a, &b, 20, 1);
	start(args);
	assert_int_equal(counter("pages_taken_over"), 0);
	assert_int_equal(manager.n, 0);
	wait_attached(&a, 8);
	step_both(&a, &b, 20, 1);
	run_close(&a);
	run_close(&b);
}

/* Another cap is another arena. */
static void a_changed_cap_starts_empty(void **state)
{
	static struct run a, b;
	static const char *const args[] = {"--ram-max", "1G", NULL};

	(void)state;
	start(NULL);
	open_both(&a, &b);
	restart(args);
	assert_int_equal(counter("pages_taken_over"), 0);
	assert_int_equal(status().pins, 0);
	step_both(&a, &b, 20, 1);
	check_match(&b, (int32_t)wait_all_shared(&a));
	run_close(&a);
	run_close(&b);
}

static int arena_fd(void)
{
	struct stat st;

	for (int i = 0, fd; (fd = manager_find(&manager, FDS, i)) >= 0; i++)
		if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
			return fd;
	fail_msg("no arena is kept");
	return -1;
}

/* Flips a byte of the page at position p * 80, wherever it lies in the arena. */
static void flip(uint32_t p, uint64_t at)
{
	int fd = arena_fd();
	struct stat st;
	skvq_page_header h;
	uint8_t byte;

	assert_int_equal(fstat(fd, &st), 0);
	for (off_t off = 0; off < st.st_size; off += SKVQ_SECTION_ALIGN) {
		if ((off = lseek(fd, off, SEEK_DATA)) < 0)
			break;
		assert_int_equal(pread(fd, &h, sizeof h, off), sizeof h);
		if (h.magic != SKVQ_PAGE_MAGIC || h.position != p * PAGE)
			continue;
		assert_int_equal(pread(fd, &byte, 1, off + (off_t)at), 1);
		byte ^= 0x10;
		assert_int_equal(pwrite(fd, &byte, 1, off + (off_t)at), 1);
		return;
	}
	fail_msg("page %u is not in the arena", p);
}

static void a_flipped_byte_is_a_miss(void **state)
{
	static struct run a, b;

	(void)state;
	start(NULL);
	open_both(&a, &b);
	run_close(&a);
	wait_pins(0);
	stop();
	flip(5, 5000);
	start(NULL);
	assert_int_equal(counter("pages_taken_over"), 5);
	assert_int_equal(counter("takeover_check_failures"), 3);
	assert_int_equal(status().pages, 5);
	check_match(&b, 5 * PAGE);
	run_open(&a, daemon_.socket, TOKENS, 0, 768, "n1");
	while (a.at < 768)
		run_step(&a, 16);
	same_tokens(&a, &b, 768);
	step_both(&a, &b, 20, 1);
	run_close(&a);
	run_close(&b);
}

/* The same to a page that an engine reads; the byte is one that the engine does not look at. */
static void a_bad_page_stays_while_it_is_pinned(void **state)
{
	static struct run a, b;
	static const char *const args[] = {"--ram-max", "400K", NULL};

	(void)state;
	start(args);
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	step_both(&a, &b, 3, CHUNK);
	uint32_t held = wait_shared(&a, 3).pages_shared;
	stop();
	flip(1, offsetof(skvq_page_header, digest));
	start(args);
	assert_int_equal(counter("pages_taken_over"), 1);
	assert_int_equal(counter("takeover_check_failures"), held - 1);
	assert_int_equal(status().pages, held);
	assert_int_equal(status().pins, held);
	check_match(&b, PAGE);
	for (uint32_t tail = 1; tail < 5; tail++)
		publish_another(tail, 4);
	assert_int_equal(status().pins, held);
	step_both(&a, &b, 40, 1);
	wait_attached(&a, 0);
	step_both(&a, &b, 40, 1);
	run_close(&a);
	run_close(&b);
	wait_pins(0);
}

static uint8_t *read_all(int fd, size_t *ret_bytes)
{
	struct stat st;
	uint8_t *data;

	assert_int_equal(fstat(fd, &st), 0);
	*ret_bytes = (size_t)st.st_size;
	data = malloc(*ret_bytes + 1);
	assert_non_null(data);
	assert_int_equal(pread(fd, data, *ret_bytes, 0), *ret_bytes);
	return data;
}

/* Puts another description in the place of the one that is kept. */
static void replace_map(const uint8_t *data, size_t bytes, int seals)
{
	int *kept = NULL;
	int fd = memfd_create("map", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	for (int i = 0; i < manager.n; i++)
		if (!strncmp(manager.kept[i].name, MAP, strlen(MAP)))
			kept = &manager.kept[i].fd;
	assert_non_null(kept);
	assert_int_equal(write(fd, data, bytes), bytes);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	close(*kept);
	*kept = fd;
}

enum { GOOD_SEALS = F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL };

/* The same bytes in a memfd that is not sealed as it should be, cut, or changed in one place. */
static void a_wrong_description_is_not_believed(void **state)
{
	static struct run a, b;
	enum { CASES = 12 };

	(void)state;
	start(NULL);
	open_both(&a, &b);
	for (int i = 0; i < CASES; i++) {
		size_t bytes;

		stop();
		uint8_t *data = read_all(manager_find(&manager, MAP, 0), &bytes);
		if (i == 0)
			replace_map(data, bytes, F_SEAL_GROW | F_SEAL_SEAL);
		else if (i == 1)
			replace_map(data, bytes, GOOD_SEALS | F_SEAL_SHRINK);
		else if (i == 2)
			replace_map(data, bytes - 1, GOOD_SEALS);
		else if (i == 3)
			replace_map(data, 7, GOOD_SEALS);
		else if (i == 4)
			replace_map(data, 0, GOOD_SEALS);
		else {
			data[(bytes - 1) * (size_t)(i - 5) / (CASES - 6)] ^= 1;
			replace_map(data, bytes, GOOD_SEALS);
		}
		free(data);
		start(NULL);
		assert_int_equal(counter("pages_taken_over"), 0);
		assert_int_equal(manager.n, 0);
		step_both(&a, &b, 2, 1);
		wait_attached(&a, 8);
		step_both(&a, &b, 2, 1);
	}
	/* The right bytes in another memfd are as good as the first. */
	stop();
	size_t bytes;
	uint8_t *data = read_all(manager_find(&manager, MAP, 0), &bytes);
	replace_map(data, bytes, GOOD_SEALS);
	free(data);
	start(NULL);
	assert_true(counter("pages_taken_over") >= 8);
	step_both(&a, &b, 10, 1);
	run_close(&a);
	run_close(&b);
}

/* An arena by another name is not the one that was described. */
static void a_foreign_arena_is_not_adopted(void **state)
{
	static struct run a, b;

	(void)state;
	start(NULL);
	open_both(&a, &b);
	stop();
	int other = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING), fd = arena_fd();
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(ftruncate(other, st.st_size), 0);
	assert_int_equal(fchmod(other, 0400), 0);
	assert_int_equal(fcntl(other, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL), 0);
	for (int i = 0; i < manager.n; i++)
		if (manager.kept[i].fd == fd)
			manager.kept[i].fd = other;
	close(fd);
	start(NULL);
	assert_int_equal(counter("pages_taken_over"), 0);
	step_both(&a, &b, 20, 1);
	wait_attached(&a, 8);
	run_close(&a);
	run_close(&b);
}

/* Written to disk and handed over: a stop after which nothing is kept finds the pages on disk, a
 * restart finds them in memory and knows that they are on disk. */
static void disk_and_memory_both_have_them(void **state)
{
	static struct run a, b;
	char folder[80];
	const char *args[] = {"--store-folder", folder, "--store-touch-entries", "0",
	                      "--store-capacity-bytes", "512M", NULL};

	(void)state;
	snprintf(folder, sizeof folder, "%s/store", daemon_.dir);
	start(args);
	open_both(&a, &b);
	run_close(&a);
	wait_pins(0);
	stop();
	assert_int_equal(manager.n, 2);
	start(args);
	assert_int_equal(counter("pages_taken_over"), 8);
	assert_true(status().bytes_stored == status().bytes_resident);
	check_match(&b, 8 * PAGE);
	assert_int_equal(counter("restores"), 0);
	stop();
	while (manager.n)
		manager_drop(&manager, manager.kept[0].fd);
	start(args);
	assert_int_equal(status().pages, 0);
	check_match(&b, 8 * PAGE);
	assert_int_equal(counter("restores"), 8);
	run_close(&b);
}

static void a_calibration_survives(void **state)
{
	skvq_engine e = {.struct_size = sizeof e, .name = "test", .timeout_ms = 5000};
	skvq_calibration_of of = {.struct_size = sizeof of,
	                          .weights_digest = digest,
	                          .n_layer = LAYERS,
	                          .n_q_heads = Q_HEADS,
	                          .n_kv_heads = KV_HEADS,
	                          .head_dim_k = DIM,
	                          .head_dim_v = DIM};
	const struct skvq_calibration_key key = {digest, LAYERS, Q_HEADS, KV_HEADS, DIM, DIM};
	const skvq_ext_calibration *ext;
	skvq_session *s;
	uint64_t n, got = 0;

	(void)state;
	uint8_t *file = calibration_make(&key, NULL, 1, 1, &n), *buf = calloc(1, n);
	start(NULL);
	assert_int_equal(api->open(&e, daemon_.socket, &s), 0);
	ext = api->get_extension(s, SKVQ_EXT_CALIBRATION);
	assert_non_null(ext);
	assert_int_equal(ext->put(s, file, n), 1);
	api->close(s);
	for (int i = 0; i < 2; i++) {
		restart(NULL);
		assert_int_equal(api->open(&e, daemon_.socket, &s), 0);
		memset(buf, 0, n);
		assert_int_equal(ext->get(s, &of, buf, n, &got), 0);
		assert_int_equal(got, n);
		assert_memory_equal(buf, file, n);
		api->close(s);
	}
	/* One that was damaged is none. */
	stop();
	file[n - 1] ^= 1;
	assert_int_equal(pwrite(arena_fd(), file + n - 1, 1, (off_t)n - 1), 1);
	start(NULL);
	assert_int_equal(api->open(&e, daemon_.socket, &s), 0);
	assert_int_equal(ext->get(s, &of, buf, n, &got), -SKVQ_EAGAIN);
	api->close(s);
	free(file);
	free(buf);
}

/* A client that holds one page, and says in its hello what it understands. */
static int raw_holder(uint64_t features)
{
	struct skvq_layout layout;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Hello hello = SKVQ__WIRE__HELLO__INIT;
	int sock = raw_connect(daemon_.socket);

	assert_true(sock >= 0);
	hello.version_major = 1;
	hello.features = features;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_HELLO;
	rq.hello = &hello;
	raw_free(raw_call(sock, &rq, -1, NULL));
	raw_reply *reply = raw_namespace_open(sock, raw_identity(1), NULL);
	uint32_t ns = reply->namespace_open->ns;
	raw_free(reply);
	maker_layout(&layout);
	int staging = maker_memfd(layout.slot_bytes, F_SEAL_GROW | F_SEAL_SHRINK);
	void *page = mmap(NULL, layout.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, staging, 0);
	maker_tokens(1, 0, tokens);
	maker_page(&layout, 0, tokens, 1, page);
	munmap(page, layout.slot_bytes);
	reply = raw_staging_add(sock, staging);
	uint32_t id = reply->staging_add->staging;
	raw_free(reply);
	close(staging);
	reply = raw_publish(sock, ns, NULL, 0, tokens, id, 0);
	assert_int_equal(reply->error, 0);
	raw_free(reply);
	return sock;
}

/* It would believe that its pages are its own once the process has ended: so the process takes them
 * with it. */
static char conf[96], sock_a[96], sock_b[96];

/* A config of two tenants, the first of this name, with a socket each. */
static void write_tenants(const char *first)
{
	snprintf(conf, sizeof conf, "%s/conf", daemon_.dir);
	snprintf(sock_a, sizeof sock_a, "%s/a.sock", daemon_.dir);
	snprintf(sock_b, sizeof sock_b, "%s/b.sock", daemon_.dir);
	FILE *f = fopen(conf, "w");
	assert_non_null(f);
	fprintf(f, "[tenant %s]\nsocket = %s\n[tenant b]\nsocket = %s\n", first, sock_a, sock_b);
	assert_int_equal(fclose(f), 0);
}

/* An engine on the tenant's socket finds so many tokens. */
static void finds(const char *socket, int32_t tokens)
{
	static struct run c;

	run_open(&c, socket, TOKENS, 0, 900, "n1");
	assert_int_equal(c.matched, tokens);
	run_close(&c);
}

/* What each tenant had it has again. What belongs to no tenant of the new config is not taken over,
 * and its engine reads the same bits all the same. */
static void tenants_stay_apart(void **state)
{
	static struct run a, b, private;
	const char *const args[] = {"--config", conf, NULL};

	(void)state;
	write_tenants("a");
	start(args);
	run_open(&a, sock_a, TOKENS, 0, 1000, "n1");
	run_open(&b, sock_b, TOKENS, 0, 1000, "n1");
	run_open(&private, NULL, TOKENS, 0, 1000, "n1");
	step_both(&a, &private, 6, CHUNK);
	for (int i = 0; i < 6; i++)
		run_step(&b, CHUNK);
	assert_int_equal(wait_shared(&a, 8).pages_shared, 8);
	assert_int_equal(wait_shared(&b, 8).pages_shared, 8);
	restart(args);
	assert_int_equal(counter("pages_taken_over"), 16);
	struct skvq_client_status s = status();
	assert_int_equal(s.n_tenants, 2);
	assert_int_equal(s.tenants[0].pages, 8);
	assert_int_equal(s.tenants[1].pages, 8);
	finds(sock_a, 8 * PAGE);
	finds(sock_b, 8 * PAGE);
	step_both(&a, &private, 20, 1);
	wait_attached(&a, 8);
	/* Its socket now is another tenant's. */
	write_tenants("x");
	restart(args);
	assert_int_equal(counter("pages_taken_over"), 8);
	s = status();
	assert_string_equal(s.tenants[0].name, "x");
	assert_int_equal(s.tenants[0].pages, 0);
	assert_int_equal(s.tenants[0].pins, 0);
	assert_int_equal(s.tenants[1].pages, 8);
	finds(sock_a, 0);
	finds(sock_b, 8 * PAGE);
	step_both(&a, &private, 20, 1);
	run_close(&a);
	run_close(&b);
	run_close(&private);
	wait_pins(0);
	unlink(conf);
}

static void a_client_of_old_is_not_deceived(void **state)
{
	const uint64_t knows[] = {UINT64_MAX, UINT64_MAX & ~UINT64_C(32)};

	(void)state;
	for (int i = 0; i < 2; i++) {
		start(NULL);
		int sock = raw_holder(knows[i]);
		assert_int_equal(status().pins, 1);
		stop();
		assert_int_equal(manager.n, i == 0 ? 3 : 0);
		assert_null(raw_recv(sock, NULL)); /* the end of the stream */
		start(NULL);
		assert_int_equal(status().pins, i == 0 ? 1 : 0);
		close(sock);
		wait_pins(0);
		stop();
		while (manager.n)
			manager_drop(&manager, manager.kept[0].fd);
	}
	/* One that has let go is in nobody's way. */
	start(NULL);
	close(raw_holder(knows[1]));
	wait_pins(0);
	stop();
	assert_int_equal(manager.n, 2);
}

/* The manager is gone: nobody waits for it, and it ends as without one. */
static void a_manager_that_is_gone_changes_nothing(void **state)
{
	static struct run a, b;

	(void)state;
	start(NULL);
	open_both(&a, &b);
	close(manager.sock);
	manager.sock = -1;
	assert_int_equal(test_daemon_stop(&daemon_, SIGTERM), 0);
	assert_int_equal(manager.n, 0);
	step_both(&a, &b, 20, 1);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	wait_attached(&a, 8);
	step_both(&a, &b, 20, 1);
	run_close(&a);
	run_close(&b);
	assert_int_equal(test_daemon_stop(&daemon_, SIGTERM), 0);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(pages_survive_a_restart_in_mid_decode),
	    TEST(many_restarts_leak_nothing),
	    TEST(old_pins_hold_over_two_restarts_and_under_pressure),
	    TEST(refinements_survive_where_they_are_held),
	    TEST(a_killed_daemon_leaves_nothing),
	    TEST(a_handover_is_used_once),
	    TEST(without_a_socket_that_holds_pins_nothing_is_taken),
	    TEST(a_missing_arena_is_a_miss),
	    TEST(too_many_are_not_taken),
	    TEST(a_changed_cap_starts_empty),
	    TEST(a_flipped_byte_is_a_miss),
	    TEST(a_bad_page_stays_while_it_is_pinned),
	    TEST(a_wrong_description_is_not_believed),
	    TEST(a_foreign_arena_is_not_adopted),
	    TEST(disk_and_memory_both_have_them),
	    TEST(a_calibration_survives),
	    TEST(tenants_stay_apart),
	    TEST(a_client_of_old_is_not_deceived),
	    TEST(a_manager_that_is_gone_changes_nothing),
	};

#ifndef SKVQ_HANDOVER
	return 77; /* built without libsystemd */
#endif
	if (!synthetic_load(SKVQ_PLUGIN_PATH))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
