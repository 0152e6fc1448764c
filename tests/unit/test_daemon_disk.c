/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a daemon with several stores: each gets its tenant's pages, whatever the others do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "disk.h"
#include "spill/faults.h"
#include "support/cache_rig.h"
#include "support/spill_disk.h"
#include "support/spill_rig.h"

#define SIDES   3u
#define PAGES   6u
#define LONG_MS 60000u

struct bed {
	struct rig rig;
	struct tenant *tenants[SIDES];
	struct ns *ns[SIDES];
	struct spill_disk *media[SIDES];
	struct spill_io *faults[SIDES];
	struct disk disks[SIDES];
};

static const struct tenant_params others[SIDES - 1] = {{.name = "second"}, {.name = "third"}};

static void give_disk(struct bed *b, uint32_t i, const struct store_options *options)
{
	static const struct spill_fault_rates none;

	b->media[i] = spill_disk_new(11 + i, store_files_max(options), 2);
	b->faults[i] = spill_faults_new(spill_disk_io(b->media[i]), 7, &none);
	b->disks[i] = (struct disk){.store = rig_open(options, b->faults[i]),
				    .loop = &b->rig.loop,
				    .cache = &b->rig.cache,
				    .tenant = b->tenants[i],
				    .event_watch.fd = -1,
				    .timer_watch.fd = -1};
	b->tenants[i]->tier = store_tier(b->disks[i].store);
}

static void bed_init(struct bed *b, const struct store_options *options, uint64_t shutdown_ms)
{
	struct identity id;
	struct why why;

	memset(b, 0, sizeof(*b));
	rig_init_tenants(&b->rig, 10 * SIDES * PAGES, 1000, others, SIDES - 1);
	for (uint32_t i = 0; i < SIDES; i++) {
		rig_identity(0, &id);
		b->tenants[i] = b->rig.cache.tenants[i];
		assert_int_equal(
		    cache_ns_open(&b->rig.cache, b->tenants[i], &id, "tiny", &b->ns[i], &why), 0);
		give_disk(b, i, options);
		b->disks[i].shutdown_ms = shutdown_ms;
	}
}

/* Into each tenant's memory; nothing is offered to a store before the end. */
static void publish(struct bed *b)
{
	struct ns *own = b->rig.ns;
	struct page *chain[PAGES];

	b->rig.cache.config.spill_percent = 0;
	for (uint32_t i = 0; i < SIDES; i++) {
		b->rig.ns = b->ns[i];
		rig_chain(&b->rig, &b->rig.pins, i, PAGES, chain);
		(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
		assert_int_equal(b->tenants[i]->stats.n[STAT_spills], 0);
	}
	b->rig.ns = own;
}

static void bed_end(struct bed *b, const bool *hurry)
{
	for (uint32_t i = 0; i < SIDES; i++)
		cache_ns_close(&b->rig.cache, b->ns[i]);
	cache_close(&b->rig.cache);
	disks_close(b->disks, SIDES, hurry);
}

static void bed_fini(struct bed *b)
{
	rig_fini(&b->rig);
	for (uint32_t i = 0; i < SIDES; i++)
		spill_disk_free(b->media[i]);
}

/* Records a store finds when it is opened again. */
static uint64_t records(struct bed *b, uint32_t i, const struct store_options *options)
{
	struct store *store;
	uint64_t n;

	spill_disk_limit(b->media[i], 0);
	spill_disk_killed(b->media[i]);
	store = rig_open(options, spill_disk_io(b->media[i]));
	n = store_stat(store, STORE_STAT_records);
	store_close(store);
	return n;
}

static void each_gets_its_own(void **state)
{
	struct store_options options;
	const bool hurry = false;
	struct bed b;

	(void)state;
	rig_options(&options);
	bed_init(&b, &options, LONG_MS);
	publish(&b);
	bed_end(&b, &hurry);
	for (uint32_t i = 0; i < SIDES; i++) {
		assert_int_equal(b.tenants[i]->stats.n[STAT_spills], PAGES);
		assert_int_equal(records(&b, i, &options), PAGES);
	}
	bed_fini(&b);
}

/* Ends it when all but the second have written everything. */
struct waiter {
	struct loop_hook hook;
	struct bed *bed;
	bool hurry;
};

static void look(void *ctx)
{
	struct waiter *w = ctx;

	w->hurry = w->bed->tenants[0]->stats.n[STAT_spills] == PAGES &&
		   w->bed->tenants[2]->stats.n[STAT_spills] == PAGES;
}

static void all_but_the_second(struct bed *b, const struct store_options *options)
{
	struct waiter w = {.bed = b};

	w.hook = (struct loop_hook){.fn = look, .ctx = &w};
	publish(b);
	loop_hook_add(&b->rig.loop, &w.hook);
	bed_end(b, &w.hurry);
	loop_hook_del(&b->rig.loop, &w.hook);
	assert_true(w.hurry); /* and not the end of LONG_MS */
	assert_int_equal(b->tenants[1]->stats.n[STAT_spills], 0);
	assert_int_equal(records(b, 0, options), PAGES);
	assert_int_equal(records(b, 2, options), PAGES);
}

/* No segment can be made in the second: it refuses for ever, and alone goes without. */
static void one_that_is_full_keeps_back_no_other(void **state)
{
	struct store_options options;
	struct bed b;

	(void)state;
	rig_options(&options);
	bed_init(&b, &options, LONG_MS);
	spill_disk_limit(b.media[1], 1);
	all_but_the_second(&b, &options);
	bed_fini(&b);
}

/* What the second is given never comes back, and its buffers with it: it is busy. */
static void one_that_is_busy_keeps_back_no_other(void **state)
{
	const struct spill_fault_rates lost = {.lost = 10000};
	struct store_options options;
	struct bed b;

	(void)state;
	rig_options(&options);
	options.io_timeout_ms = LONG_MS;
	bed_init(&b, &options, LONG_MS);
	spill_faults_set(b.faults[1], &lost);
	all_but_the_second(&b, &options);
	bed_fini(&b);
}

static void folders_of_nobody_are_named(void **state)
{
	static const char *const made[] = {"", "/gone", "/here", "/.hidden"};
	char root[] = "/tmp/skvqd-disk-XXXXXX", path[64];
	static struct config config;
	FILE *f;

	(void)state;
	config_defaults(&config);
	assert_int_equal(disks_left(&config), 0); /* memory only */
	assert_non_null(mkdtemp(root));
	for (int i = 1; i < 4; i++) {
		(void)snprintf(path, sizeof(path), "%s%s", root, made[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	(void)snprintf(path, sizeof(path), "%s/file", root);
	f = fopen(path, "w");
	assert_non_null(f);
	(void)fclose(f);
	(void)snprintf(config.store_folder, sizeof(config.store_folder), "%s", root);
	assert_int_equal(disks_left(&config), 2); /* one tenant, in the folder itself */
	config.n_tenants = 1;
	strcpy(config.tenants[0].name, "here");
	assert_int_equal(disks_left(&config), 1);
	assert_int_equal(unlink(path), 0);
	for (int i = 3; i >= 0; i--) {
		(void)snprintf(path, sizeof(path), "%s%s", root, made[i]);
		assert_int_equal(rmdir(path), 0);
	}
}

static void hurry_ends_it(void **state)
{
	struct store_options options;
	const bool hurry = true;
	struct bed b;

	(void)state;
	rig_options(&options);
	bed_init(&b, &options, LONG_MS);
	spill_disk_limit(b.media[1], 1);
	publish(&b);
	bed_end(&b, &hurry);
	bed_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(each_gets_its_own),
	    cmocka_unit_test(one_that_is_full_keeps_back_no_other),
	    cmocka_unit_test(one_that_is_busy_keeps_back_no_other),
	    cmocka_unit_test(hurry_ends_it),
	    cmocka_unit_test(folders_of_nobody_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
