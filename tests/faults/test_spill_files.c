/* SPDX-License-Identifier: Apache-2.0 */
/* The store on real files, by io_uring and by threads, and a process killed in the middle. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "support/spill_rig.h"

#include <skvq/error.h>

#include "base/loop.h"

static char folder[64];
static struct store_options options;

static int setup(void **state)
{
	(void)state;
	rig_options(&options);
	options.io_timeout_ms = 20000;
	options.capacity_bytes = 4 << 20;
	(void)snprintf(folder, sizeof(folder), "./skvq-files-XXXXXX");
	return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[96];

	(void)state;
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	return system(command);
}

static uint64_t folder_bytes(void)
{
	DIR *dir = opendir(folder);
	struct dirent *at;
	uint64_t sum = 0;

	assert_non_null(dir);
	while ((at = readdir(dir)) != NULL) {
		struct stat st;

		if (at->d_name[0] != '.' && fstatat(dirfd(dir), at->d_name, &st, 0) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	}
	(void)closedir(dir);
	return sum;
}

static struct store *open_on(bool no_uring, bool no_direct)
{
	struct spill_io_config config = {.folder = folder,
					 .files_max = store_files_max(&options),
					 .depth = store_io_depth(&options),
					 .threads = 4,
					 .no_uring = no_uring,
					 .no_direct = no_direct};
	struct spill_io *io = NULL;
	struct why why = {""};
	struct store *store;

	if (spill_io_new(&config, &io, &why) < 0)
		fail_msg("%s", why.text);
	store = rig_open(&options, io);
	print_message("%s%s%s %s\n", io->engine, io->direct ? ", O_DIRECT" : "",
		      io->registered ? ", registered" : "", io->warning.text);
	return store;
}

static void put_and_wait(struct store *store, uint64_t id)
{
	int r = -1;

	for (int i = 0; r < 0 && i < 200; i++) {
		r = rig_put(store, id, 0);
		if (r < 0)
			rig_settle(store, 20);
	}
	assert_int_equal(r, 0);
}

static void fill_and_read(bool no_uring, bool no_direct)
{
	struct store *store = open_on(no_uring, no_direct);
	uint64_t there = 0;

	for (uint64_t id = 0; id < 300; id++) {
		put_and_wait(store, id);
		assert_true(folder_bytes() <= options.capacity_bytes);
	}
	rig_settle(store, 1000); /* nothing is on its way out */
	for (uint64_t id = 0; id < 300; id++)
		there += rig_get(store, id) == 1;
	assert_true(there > 80);
	assert_int_equal(rig_get(store, 299), 1);
	store_close(store);
	/* The other engine reads it. */
	store = open_on(!no_uring, no_direct);
	for (uint64_t id = 0; id < 300; id++)
		there -= rig_get(store, id) == 1;
	assert_int_equal(there, 0);
	store_close(store);
}

static void by_io_uring(void **state)
{
	(void)state;
	fill_and_read(false, false);
}

static void by_threads(void **state)
{
	(void)state;
	fill_and_read(true, false);
}

static void through_the_page_cache(void **state)
{
	(void)state;
	fill_and_read(false, true);
}

static void on_pump(void *ctx, uint32_t events)
{
	(void)events;
	store_pump(ctx);
}

struct chain {
	struct store *store;
	uint64_t id, wrong;
	int left;
};

static void on_got(void *ctx, int status, const struct tier_page *page);

static void on_stored(void *ctx, int status)
{
	struct chain *c = ctx;
	struct tier *tier = store_tier(c->store);
	struct tier_key key;

	assert_int_equal(status, 0);
	rig_key(c->id, &key);
	assert_int_equal(tier->ops->get(tier, &key, 20000, on_got, c), 1);
}

static void on_got(void *ctx, int status, const struct tier_page *page)
{
	struct chain *c = ctx;

	assert_int_equal(status, 0);
	c->wrong += rig_wrong(c->id, page);
	c->left--;
}

/* As a daemon would: nothing but the descriptor and the time it asks for. */
static void an_event_loop_drives_it(void **state)
{
	struct store *store = open_on(false, false);
	struct chain c = {.store = store, .left = 30};
	struct loop_watch watch = {
	    .fd = store_event_fd(store), .events = EPOLLIN, .fn = on_pump, .ctx = store};
	uint8_t buf[RIG_PAGE_BYTES];
	struct loop loop;
	int before = c.left + 1;

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	assert_int_equal(loop_add(&loop, &watch), 0);
	while (c.left) {
		struct tier *tier = store_tier(store);
		uint32_t wait;
		struct tier_page page;

		if (c.left < before) {
			rig_page(++c.id, buf, &page);
			if (tier->ops->put(tier, &page, 0, on_stored, &c) == 1)
				before = c.left;
		}
		store_pump(store);
		wait = store_wait_ms(store);
		/* A put that was refused has no event of its own: the pump just now may have made
		 * the room it wanted, and nothing is out any more. */
		if (c.left < before && wait > 20)
			wait = 20;
		assert_int_equal(loop_step(&loop, wait == UINT32_MAX ? -1 : (int)wait), 0);
		store_pump(store);
	}
	assert_int_equal(c.wrong, 0);
	assert_int_equal(store_stat(store, STORE_STAT_timeouts), 0);
	loop_del(&loop, &watch);
	loop_fini(&loop);
	store_close(store);
}

static void where_no_ring_is_to_be_had_threads_do_it(void **state)
{
	/* No kernel gives a ring of that depth; a seccomp filter refuses in the same place. */
	struct spill_io_config config = {
	    .folder = folder, .files_max = 40, .depth = 1u << 20, .threads = 2};
	struct spill_io *io = NULL;
	struct why why = {""};
	struct store *store;

	(void)state;
	assert_int_equal(spill_io_new(&config, &io, &why), 0);
	assert_string_equal(io->engine, "threads");
	assert_non_null(strstr(io->warning.text, "io_uring"));
	store = rig_open(&options, io);
	put_and_wait(store, 1);
	assert_int_equal(rig_get(store, 1), 1);
	store_close(store);
}

static void a_folder_has_one_owner(void **state)
{
	struct store *store = open_on(false, false);
	struct spill_io_config config = {
	    .folder = folder, .files_max = 8, .depth = 8, .threads = 1};
	struct spill_io *io;
	struct why why;

	(void)state;
	assert_int_equal(spill_io_new(&config, &io, &why), -SKVQ_EINUSE);
	store_close(store);
	assert_int_equal(chmod(folder, 0770), 0);
	assert_int_equal(spill_io_new(&config, &io, &why), -SKVQ_EPERM);
	config.folder = "./no/such/folder";
	assert_int_equal(spill_io_new(&config, &io, &why), -SKVQ_ESYS);
}

static void a_killed_process_loses_nothing_that_was_told_done(void **state)
{
	(void)state;
	options.capacity_bytes = 32 << 20;
	for (uint64_t round = 0; round < 5; round++) {
		uint64_t done = 0, id;
		struct store *store;
		int pipes[2], status;
		pid_t child;

		assert_int_equal(pipe(pipes), 0);
		child = fork();
		assert_true(child >= 0);
		if (!child) {
			(void)close(pipes[0]);
			store = open_on(round & 1, false);
			for (id = round * 1000;; id++) {
				put_and_wait(store, id);
				(void)!write(pipes[1], &id, sizeof(id));
			}
		}
		(void)close(pipes[1]);
		for (uint64_t n = 0; n < 20 + round * 7; n++)
			assert_int_equal(read(pipes[0], &done, sizeof(done)), sizeof(done));
		assert_int_equal(kill(child, SIGKILL), 0);
		assert_int_equal(waitpid(child, &status, 0), child);
		while (read(pipes[0], &id, sizeof(id)) == sizeof(id))
			done = id;
		(void)close(pipes[0]);
		store = open_on(false, false);
		for (id = round * 1000; id <= done; id++)
			assert_int_equal(rig_get(store, id), 1);
		for (; id < done + 20; id++)
			assert_int_equal(rig_get(store, id), rig_contains(store, id));
		store_close(store);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(by_io_uring),
	    TEST(by_threads),
	    TEST(through_the_page_cache),
	    TEST(an_event_loop_drives_it),
	    TEST(where_no_ring_is_to_be_had_threads_do_it),
	    TEST(a_folder_has_one_owner),
	    TEST(a_killed_process_loses_nothing_that_was_told_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
