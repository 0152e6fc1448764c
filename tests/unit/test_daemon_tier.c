/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache over the tier below it: cache/spill, cache/restore and the cold part of cache/match, on
 * a real store over a disk in memory. What comes back is compared with what was published.
 */
#include <string.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "base/clock.h"
#include "cache/explain.h"
#include "support/cache_rig.h"
#include "support/spill_disk.h"
#include "spill/faults.h"
#include "support/spill_rig.h"

#define PAGES   8u
#define WAIT_MS 5000u

struct bed {
	struct rig rig;
	struct spill_disk *disk;
	struct spill_io *faults;
	struct store_options options;
	uint8_t copy[RIG_MATCH_PAGES][32 << 10]; /* of pages as they were published */
};

static void bed_start(struct bed *b, uint32_t pages_max)
{
	static const struct tenant_params other = {.name = "other"};
	static const struct spill_fault_rates none;

	rig_init_tenants(&b->rig, pages_max, 1000, &other, 1);
	b->rig.cache.config.spill_percent = 50;
	b->faults = spill_faults_new(spill_disk_io(b->disk), 7, &none);
	b->rig.store = rig_open(&b->options, b->faults);
	b->rig.tenant->tier = store_tier(b->rig.store);
}

static void bed_init(struct bed *b, uint32_t pages_max)
{
	memset(b, 0, sizeof(*b));
	rig_options(&b->options);
	b->disk = spill_disk_new(11, store_files_max(&b->options), 2);
	bed_start(b, pages_max);
}

/* As a daemon ends: nothing is punched, everything is told. */
static void bed_stop(struct bed *b)
{
	(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
	cache_close(&b->rig.cache);
	store_close(b->rig.store);
	b->rig.store = NULL;
	rig_fini(&b->rig);
}

static void bed_fini(struct bed *b)
{
	bed_stop(b);
	spill_disk_free(b->disk);
}

static void settle(struct bed *b)
{
	rig_settle(b->rig.store, 300);
	for (int i = 0; i < 20; i++) {
		spill_pump(&b->rig.cache);
		rig_step(&b->rig);
	}
}

static const uint8_t *bytes_of(const struct bed *b, const struct page *page)
{
	return b->rig.ns->arena.base + ns_page_offset(b->rig.ns, page);
}

/* Publishes n pages, remembers them, lets go of them. */
static void publish(struct bed *b, uint32_t seed, uint32_t n, bool keep)
{
	struct page *chain[RIG_MATCH_PAGES];

	rig_chain(&b->rig, &b->rig.pins, seed, n, chain);
	for (uint32_t i = 0; i < n && keep; i++) {
		assert_true(chain[i]->bytes <= sizeof(b->copy[i]));
		memcpy(b->copy[i], bytes_of(b, chain[i]), chain[i]->bytes);
	}
	(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
}

/* Other pages take the memory. */
static void flood(struct bed *b, uint32_t n)
{
	static uint32_t seed = 1000;

	for (uint32_t i = 0; i < n; i++)
		publish(b, seed++, 1, false);
}

static uint32_t match(struct bed *b, uint32_t seed, uint32_t n, uint32_t wait_ms)
{
	struct rig_match rm;

	assert_int_equal(rig_match(&b->rig, &rm, &b->rig.pins, seed, n, wait_ms), 0);
	for (uint32_t i = 0; i < rm.m.n; i++) {
		const struct page *page = page_table_get(&b->rig.ns->table, rm.refs[i]);

		assert_non_null(page);
		assert_true(page_readable(page));
		assert_true(page->pins > 0);
		assert_memory_equal(bytes_of(b, page), b->copy[i], page->bytes);
	}
	(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
	return rm.m.n;
}

static uint64_t stat(const struct bed *b, enum stats_id id)
{
	return b->rig.stats.n[id];
}

static void evicted_pages_come_back(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	publish(&b, 1, PAGES, true);
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	assert_int_equal(match(&b, 1, PAGES, 0), 0); /* who does not wait gets what is here */
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	assert_int_equal(stat(&b, STAT_restores), PAGES);
	assert_int_equal(stat(&b, STAT_tokens_restored), PAGES * SKVQ_PAGE_TOKENS);
	assert_int_equal(match(&b, 1, PAGES, 0), PAGES); /* and now they are */
	assert_int_equal(stat(&b, STAT_evictions_lost), 0);
	assert_true(b.rig.cache.bytes <= b.rig.cache.config.ram_max);
	assert_int_equal(cache_kernel_bytes(&b.rig.cache), b.rig.cache.bytes);
	bed_fini(&b);
}

static void nothing_is_written_while_memory_is_plenty(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 10 * PAGES);
	publish(&b, 1, PAGES, true);
	settle(&b);
	assert_int_equal(stat(&b, STAT_spills), 0);
	assert_int_equal(b.rig.tenant->spill_queue.n, PAGES);
	b.rig.cache.config.spill_percent = 100;
	settle(&b);
	assert_int_equal(stat(&b, STAT_spills), PAGES);
	assert_int_equal(b.rig.cache.bytes_stored, b.rig.cache.bytes);
	bed_fini(&b);
}

static void pinned_pages_are_written_too(void **state)
{
	struct page *chain[PAGES];
	struct bed b;

	(void)state;
	bed_init(&b, PAGES / 2 + 1);
	rig_chain(&b.rig, &b.rig.pins, 1, PAGES, chain);
	settle(&b);
	assert_true(stat(&b, STAT_spills) > 0);
	for (uint32_t i = 0; i < PAGES; i++)
		assert_int_equal(chain[i]->pins, 1);
	bed_fini(&b);
}

static void a_second_touch_is_waited_for(void **state)
{
	struct bed b;

	(void)state;
	memset(&b, 0, sizeof(b));
	rig_options(&b.options);
	b.options.touch_entries = 4096;
	b.disk = spill_disk_new(11, store_files_max(&b.options), 2);
	bed_start(&b, 2 * PAGES);
	publish(&b, 1, PAGES, true);
	publish(&b, 2, 2, false);
	assert_int_equal(match(&b, 1, PAGES, 0), PAGES); /* so these are hot */
	flood(&b, PAGES);
	settle(&b);
	flood(&b, 2 * PAGES);
	settle(&b);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	assert_int_equal(stat(&b, STAT_spills), PAGES);
	assert_true(stat(&b, STAT_evictions_lost) > 0);
	bed_fini(&b);
}

/* What the write budget refuses at the end is said to be left. */
static void what_was_not_drained_is_counted(void **state)
{
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	publish(&b, 1, PAGES, false);
	assert_int_equal(spill_left(&b.rig.cache, b.rig.tenant),
			 PAGES - stat(&b, STAT_spills));
	assert_int_equal(store_limit(b.rig.store, b.options.capacity_bytes, 1, &why), 0);
	cache_close(&b.rig.cache);
	while (spill_drain(&b.rig.cache, b.rig.tenant) || cache_bytes_spilling(&b.rig.cache))
		settle(&b);
	assert_true(store_stat(b.rig.store, STORE_STAT_refused_budget) > 0);
	assert_true(spill_left(&b.rig.cache, b.rig.tenant) > 0);
	bed_fini(&b);
}

static void a_restart_serves_what_was_drained(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 4 * PAGES);
	publish(&b, 1, PAGES, true);
	assert_int_equal(stat(&b, STAT_spills), 0);
	cache_close(&b.rig.cache);
	while (spill_drain(&b.rig.cache, b.rig.tenant) || cache_bytes_spilling(&b.rig.cache))
		rig_step(&b.rig);
	assert_int_equal(stat(&b, STAT_spills), PAGES);
	assert_int_equal(spill_left(&b.rig.cache, b.rig.tenant), 0);
	assert_int_equal(rig_flush(b.rig.store), 0);
	bed_stop(&b);
	spill_disk_killed(b.disk);
	bed_start(&b, 4 * PAGES);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	assert_int_equal(match(&b, 2, 3, WAIT_MS), 0);
	bed_fini(&b);
}

/* Another tenant with the same model asks: its namespace is not this one's. */
static void another_tenant_finds_nothing(void **state)
{
	struct identity id;
	struct tenant *other;
	struct ns *mine;
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 4 * PAGES);
	other = cache_tenant(&b.rig.cache, "other");
	other->tier = b.rig.tenant->tier; /* not in a daemon, where each has its own */
	b.rig.cache.config.spill_percent = 100;
	publish(&b, 1, PAGES, true);
	settle(&b);
	assert_int_equal(stat(&b, STAT_spills), PAGES);
	mine = b.rig.ns;
	rig_identity(0, &id);
	assert_int_equal(cache_ns_open(&b.rig.cache, other, &id, "tiny", &b.rig.ns, &why), 0);
	assert_memory_equal(mine->digest, b.rig.ns->digest, sizeof(mine->digest));
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), 0);
	cache_ns_close(&b.rig.cache, b.rig.ns);
	b.rig.ns = mine;
	bed_fini(&b);
}

static void flip_record(struct bed *b, uint32_t page)
{
	uint64_t number, bytes;
	uint8_t *file;

	for (uint32_t i = 0; (file = spill_disk_file(b->disk, i, &number, &bytes)); i++) {
		for (uint64_t at = 0; at + 4096 <= bytes; at += 4096) {
			if (!memcmp(file + at, b->copy[page], 256))
				file[at + 4000] ^= 1;
		}
	}
}

static void a_flipped_page_ends_the_chain(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	publish(&b, 1, PAGES, true);
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	flip_record(&b, 3);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), 3);
	assert_int_equal(stat(&b, STAT_restore_check_failures), 0); /* the record's own was enough */
	assert_true(stat(&b, STAT_restores_failed) > 0);
	settle(&b);
	/* What came behind it cannot be reached and is not kept. */
	assert_int_equal(b.rig.cache.n_restores, 0);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), 3);
	/* An engine computes it again; then all are there. */
	publish(&b, 1, 4, true);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	bed_fini(&b);
}

/* The store's own checksums hold, the page's do not: memory went bad before it was written. */
static void a_page_that_was_bad_when_written_is_a_miss(void **state)
{
	struct page *chain[2];
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	rig_chain(&b.rig, &b.rig.pins, 1, 2, chain);
	memcpy(b.copy[0], bytes_of(&b, chain[0]), chain[0]->bytes);
	b.rig.ns->arena.base[ns_page_offset(b.rig.ns, chain[1]) + 4000] ^= 16;
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	b.rig.cache.config.spill_percent = 100;
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	assert_int_equal(match(&b, 1, 2, WAIT_MS), 1);
	assert_int_equal(stat(&b, STAT_restore_check_failures), 1);
	assert_int_equal(match(&b, 1, 2, WAIT_MS), 1);
	assert_int_equal(stat(&b, STAT_restore_check_failures), 1); /* it was dropped below too */
	bed_fini(&b);
}

static void ask(struct bed *b, struct rig_match *rm, const int32_t *tokens, uint32_t n)
{
	memset(rm, 0, sizeof(*rm));
	rm->m = (struct match){.ns = b->rig.ns,
			       .pins = &b->rig.pins,
			       .tokens = tokens,
			       .n_tokens = n * SKVQ_PAGE_TOKENS,
			       .max_pages = n,
			       .wait_ms = WAIT_MS,
			       .refs = rm->refs};
}

static int n_done;

static void count_done(struct match *m, int error, const char *why)
{
	(void)m;
	(void)why;
	assert_int_equal(error, 0);
	n_done++;
}

static void make_cold(struct bed *b)
{
	publish(b, 1, PAGES, true);
	settle(b);
	flood(b, 4 * PAGES);
	settle(b);
}

static void two_questions_join_one_read(void **state)
{
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	struct rig_match a, c, gone;
	struct publish p = {0};
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	rig_tokens(1, PAGES, tokens);
	ask(&b, &a, tokens, PAGES);
	ask(&b, &c, tokens, PAGES - 2);
	ask(&b, &gone, tokens, PAGES);
	a.m.done = c.m.done = gone.m.done = count_done;
	n_done = 0;
	assert_int_equal(cache_match(&b.rig.cache, &a.m, &why), 0);
	assert_int_equal(cache_match(&b.rig.cache, &c.m, &why), 0);
	assert_int_equal(cache_match(&b.rig.cache, &gone.m, &why), 0);
	cache_match_orphan(&gone.m); /* its client dies */
	/* A client cannot give back what it was not given yet. */
	assert_int_equal(cache_unpin(&b.rig.cache, b.rig.ns, &b.rig.pins, a.refs, 1, &why),
			 -SKVQ_ESTALE);
	/* A page that is on its way is not copied a second time. */
	p.ns = b.rig.ns;
	p.pins = &b.rig.pins;
	p.fd = b.rig.staging;
	memcpy(p.tokens, tokens, sizeof(p.tokens));
	assert_int_equal(cache_publish(&b.rig.cache, &p, &why), -SKVQ_EBUSY);
	for (int i = 0; n_done < 3 && i < 10000; i++)
		rig_step(&b.rig);
	assert_int_equal(n_done, 3);
	assert_int_equal(a.m.n, PAGES);
	assert_int_equal(c.m.n, PAGES - 2);
	assert_int_equal(stat(&b, STAT_restores), PAGES);
	assert_int_equal(b.rig.pins.total, 2 * PAGES - 2);
	assert_int_equal(b.rig.pins.reserved, 0);
	assert_int_equal(b.rig.cache.pins, b.rig.pins.total);
	bed_fini(&b);
}

/* Readable pages of the chain; all before the first that is not. */
static uint32_t pages_here(const struct bed *b, const struct match *m)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->n_chain; i++) {
		const struct page *page = page_table_get(&b->rig.ns->table, m->refs[i]);

		if (!page_readable(page))
			continue;
		assert_int_equal(n, i);
		n++;
	}
	return n;
}

/* Reads that come in any order, or do not come. True if one was there before its page's parent. */
static bool read_in_any_order(struct bed *b, uint32_t wait_ms, uint32_t *ret_n)
{
	struct spill_fault_rates slow = {.delay = 10000, .delay_ms = 300};
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	struct rig_match rm;
	bool parked = false;
	struct why why;

	make_cold(b);
	spill_faults_set(b->faults, &slow);
	rig_tokens(1, PAGES, tokens);
	ask(b, &rm, tokens, PAGES);
	rm.m.wait_ms = wait_ms;
	rm.m.done = count_done;
	n_done = 0;
	assert_int_equal(cache_match(&b->rig.cache, &rm.m, &why), 0);
	assert_int_equal(rm.m.n_chain, PAGES);
	for (int i = 0; !n_done; i++) {
		uint32_t n = pages_here(b, &rm.m);

		assert_true(i < 10000);
		parked = parked || b->rig.cache.n_restores + n < PAGES;
		/* Who asks meanwhile is not given what has not been read. */
		assert_int_equal(match(b, 1, PAGES, 0), n);
		rig_step(&b->rig);
	}
	*ret_n = rm.m.n;
	(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
	return parked;
}

static void pages_are_seen_in_the_order_of_their_chain(void **state)
{
	struct bed b;
	uint32_t n;

	(void)state;
	bed_init(&b, 2 * PAGES);
	assert_true(read_in_any_order(&b, WAIT_MS, &n));
	assert_int_equal(n, PAGES);
	assert_int_equal(match(&b, 1, PAGES, 0), PAGES);
	bed_fini(&b);
}

static void what_follows_a_page_that_did_not_come_is_not_kept(void **state)
{
	struct bed b;
	uint32_t n;

	(void)state;
	bed_init(&b, 2 * PAGES);
	assert_true(read_in_any_order(&b, 150, &n));
	assert_true(n < PAGES);
	settle(&b);
	assert_int_equal(stat(&b, STAT_restores_failed), PAGES - n);
	assert_true(store_stat(b.rig.store, STORE_STAT_hits) > n);
	assert_int_equal(cache_kernel_bytes(&b.rig.cache), b.rig.cache.bytes);
	bed_fini(&b);
}

static void a_slow_disk_is_a_miss_in_time(void **state)
{
	struct spill_fault_rates slow = {.lost = 10000};
	struct spill_fault_rates none = {0};
	struct rig_match rm;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	spill_faults_set(b.faults, &slow);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), 0);
	spill_faults_set(b.faults, &none);
	spill_faults_release(b.faults);
	settle(&b);
	/* Late is not lost, unless the store gave the records up. */
	assert_int_equal(stat(&b, STAT_restore_check_failures), 0);
	/* An engine that computes faster than the disk reads is told so at once. */
	b.rig.tenant->restores.bytes_per_ms = 1024;
	assert_int_equal(rig_match(&b.rig, &rm, &b.rig.pins, 1, PAGES, 2), 0);
	assert_int_equal(rm.m.n, 0);
	bed_fini(&b);
}

static void cheaper_to_compute_is_a_miss(void **state)
{
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	struct rig_match rm;
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	rig_tokens(1, PAGES, tokens);
	ask(&b, &rm, tokens, PAGES);
	rm.m.recompute_us = 1;
	b.rig.tenant->restores.bytes_per_ms = 1024;
	assert_int_equal(cache_match(&b.rig.cache, &rm.m, &why), 1);
	assert_int_equal(rm.m.n, 0);
	assert_int_equal(stat(&b, STAT_restores_declined), PAGES);
	assert_int_equal(b.rig.pins.reserved, 0);
	b.rig.tenant->restores.bytes_per_ms = 512 << 10;
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	bed_fini(&b);
}

static void restores_are_bounded(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	b.rig.cache.config.restores_max = 3;
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), 3);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), 6);
	bed_fini(&b);
}

/* Fewer at once than are out: those come, and no more are asked for. */
static void a_lowered_bound_of_restores(void **state)
{
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	uint32_t here, coming;
	struct rig_match rm;
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	rig_tokens(1, PAGES, tokens);
	ask(&b, &rm, tokens, PAGES);
	rm.m.pins = NULL;
	b.rig.cache.config.restores_max = 3;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(cache_prefetch(&b.rig.cache, &rm.m, &here, &coming, &why), 0);
		assert_int_equal(b.rig.cache.n_restores, 3);
		b.rig.cache.config.restores_max = i ? 64 : 1;
		b.rig.tenant->limits.restores_max = i ? 2 : 0;
	}
	for (int i = 0; b.rig.cache.n_restores && i < 10000; i++)
		rig_step(&b.rig);
	assert_int_equal(stat(&b, STAT_restores), 3);
	bed_fini(&b);
}

/* The cap was raised while the daemon ran; the namespace has slots for the old one, and all are taken. */
static void a_full_namespace_makes_room_to_restore(void **state)
{
	struct cache_limits limits;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	publish(&b, 1, PAGES, true);
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	limits = (struct cache_limits){.ram_max = 8 * b.rig.cache.config.ram_max,
				       .namespaces_max = b.rig.cache.config.namespaces_max,
				       .spill_percent = b.rig.cache.config.spill_percent,
				       .restores_max = b.rig.cache.config.restores_max};
	cache_limit(&b.rig.cache, &limits);
	while (b.rig.ns->table.live < b.rig.ns->table.slots)
		flood(&b, 1);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	assert_int_equal(stat(&b, STAT_restores_refused), 0);
	bed_fini(&b);
}

static void prefetch_reads_and_pins_nothing(void **state)
{
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	uint32_t here = 99, coming = 99;
	struct rig_match rm;
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	rig_tokens(1, PAGES, tokens);
	ask(&b, &rm, tokens, PAGES);
	rm.m.pins = NULL;
	assert_int_equal(cache_prefetch(&b.rig.cache, &rm.m, &here, &coming, &why), 0);
	assert_int_equal(here, 0);
	assert_int_equal(coming, PAGES);
	assert_int_equal(b.rig.cache.pins, 0);
	for (int i = 0; b.rig.cache.n_restores && i < 10000; i++)
		rig_step(&b.rig);
	assert_int_equal(match(&b, 1, PAGES, 0), PAGES);
	assert_int_equal(cache_prefetch(&b.rig.cache, &rm.m, &here, &coming, &why), 0);
	assert_int_equal(here, PAGES);
	assert_int_equal(coming, 0);
	bed_fini(&b);
}

/* Room for what is read back is made like any other: what is pinned stays. */
static void restoring_never_takes_a_pinned_page(void **state)
{
	struct page *chain[28]; /* all but the room of three */
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	rig_chain(&b.rig, &b.rig.pins, 5, 28, chain);
	{
		struct pins other;
		struct rig_match rm;

		pins_init(&other, 100);
		assert_int_equal(rig_match(&b.rig, &rm, &other, 1, PAGES, WAIT_MS), 0);
		assert_int_equal(rm.m.n, 2);
		assert_true(stat(&b, STAT_restores_refused) > 0);
		(void)cache_unpin_all(&b.rig.cache, &other);
		pins_fini(&other);
	}
	for (uint32_t i = 0; i < 28; i++)
		assert_int_equal(chain[i]->pins, 1);
	bed_fini(&b);
}

static void scrub(struct bed *b, uint64_t rounds)
{
	for (uint64_t i = 0; i < rounds; i++) {
		cache_scrub(&b->rig.cache, UINT64_C(1) << 30);
		rig_step(&b->rig);
		b->rig.cache.scrubber.allowance = 0;
		while (b->rig.cache.scrubber.busy)
			rig_step(&b->rig);
	}
}

/* As publish(); every second page is a safe one, and each is remembered in a place of its own. */
static void publish_mixed(struct bed *b, uint32_t seed, uint32_t n)
{
	struct page *parent = NULL;

	for (uint32_t i = 0; i < n; i++) {
		struct rig_publish rp;
		struct why why;

		rig_prepare(&b->rig, &rp, &b->rig.pins, parent, seed, 0);
		if (i % 2)
			rig_make_safe(&b->rig, &rp, seed);
		assert_int_equal(cache_publish(&b->rig.cache, &rp.p, &why), 0);
		assert_int_equal(rig_wait(&b->rig, &rp), 0);
		parent = rp.p.page;
		assert_int_equal(parent->bytes,
				 skvq_layout_page_bytes(i % 2 ? &b->rig.ns->safe : &b->rig.layout,
							80 * i));
		memcpy(b->copy[i], bytes_of(b, parent), parent->bytes);
	}
	(void)cache_unpin_all(&b->rig.cache, &b->rig.pins);
}

static uint32_t safe_pages(const struct bed *b)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->rig.ns->table.touched; i++)
		n += page_readable(&b->rig.ns->table.pages[i]) && b->rig.ns->table.pages[i].safe;
	return n;
}

/* Pages of both kinds are looked at, go, come back as what they were, and outlive a restart; a safe
 * page takes its room when it comes, as it shows only then. */
static void safe_pages_come_back(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	publish_mixed(&b, 1, PAGES);
	assert_int_equal(safe_pages(&b), PAGES / 2);
	scrub(&b, 2 * PAGES);
	assert_true(stat(&b, STAT_scrubbed) >= PAGES);
	assert_int_equal(stat(&b, STAT_scrub_failures), 0);
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	assert_int_equal(safe_pages(&b), 0);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	assert_int_equal(stat(&b, STAT_restores), PAGES);
	assert_int_equal(stat(&b, STAT_restore_check_failures), 0);
	assert_int_equal(safe_pages(&b), PAGES / 2);
	assert_int_equal(b.rig.tenant->restores.bytes, 0);
	assert_int_equal(b.rig.cache.bytes, b.rig.ns->bytes);
	assert_int_equal(cache_kernel_bytes(&b.rig.cache), b.rig.cache.bytes);
	scrub(&b, 2 * PAGES);
	assert_int_equal(stat(&b, STAT_scrub_failures), 0);
	assert_int_equal(rig_flush(b.rig.store), 0);
	bed_stop(&b);
	spill_disk_killed(b.disk);
	bed_start(&b, 2 * PAGES);
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	assert_int_equal(safe_pages(&b), PAGES / 2);
	assert_int_equal(cache_kernel_bytes(&b.rig.cache), b.rig.cache.bytes);
	bed_fini(&b);
}

/* A bit turns over in memory: the page is found out and nobody gets it any more. */
static void a_page_that_goes_bad_in_memory_is_found(void **state)
{
	struct page *chain[PAGES];
	struct rig_match rm;
	struct bed b;

	(void)state;
	bed_init(&b, 4 * PAGES);
	rig_chain(&b.rig, &b.rig.pins, 1, PAGES, chain);
	scrub(&b, 5);
	assert_true(stat(&b, STAT_scrubbed) >= PAGES);
	assert_int_equal(stat(&b, STAT_scrub_failures), 0);
	b.rig.ns->arena.base[ns_page_offset(b.rig.ns, chain[3]) + 4001] ^= 4;
	scrub(&b, 5);
	assert_int_equal(stat(&b, STAT_scrub_failures), 1);
	assert_true(chain[3]->unlisted);
	assert_int_equal(chain[3]->pins, 1); /* whoever has it keeps it where it is */
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	assert_int_equal(rig_match(&b.rig, &rm, &b.rig.pins, 1, PAGES, 0), 0);
	assert_int_equal(rm.m.n, 3);
	(void)cache_unpin_all(&b.rig.cache, &b.rig.pins);
	bed_fini(&b);
}

/* A record that nobody asks for goes bad: the store finds it by itself. */
static void a_record_that_goes_bad_is_found(void **state)
{
	struct bed b;

	(void)state;
	bed_init(&b, 4 * PAGES);
	b.rig.cache.config.spill_percent = 100;
	publish(&b, 1, PAGES, true);
	settle(&b);
	assert_int_equal(stat(&b, STAT_spills), PAGES);
	for (int i = 0; i < 200; i++) {
		store_scrub(b.rig.store, 64 << 10);
		store_step(b.rig.store, 10);
	}
	assert_true(store_stat(b.rig.store, STORE_STAT_scrubbed) >= PAGES);
	assert_int_equal(store_stat(b.rig.store, STORE_STAT_scrub_failures), 0);
	flip_record(&b, 2);
	for (int i = 0; i < 200; i++) {
		store_scrub(b.rig.store, 64 << 10);
		store_step(b.rig.store, 10);
	}
	assert_int_equal(store_stat(b.rig.store, STORE_STAT_scrub_failures), 1);
	assert_int_equal(store_stat(b.rig.store, STORE_STAT_records), PAGES - 1);
	bed_fini(&b);
}

/* Any number of pages that have been read and wait for a worker leave the publishes their place. */
static void what_comes_back_does_not_keep_publishes_out(void **state)
{
	enum { COLD = 60 };
	int32_t tokens[COLD * SKVQ_PAGE_TOKENS];
	struct rig_publish rp;
	struct rig_gate gate;
	struct rig_match rm;
	struct why why;
	struct bed b;

	(void)state;
	memset(&b, 0, sizeof(b));
	rig_options(&b.options);
	b.options.gets_queued = COLD;
	b.disk = spill_disk_new(11, store_files_max(&b.options), 2);
	bed_start(&b, COLD + 4);
	b.rig.cache.config.spill_percent = 100;
	publish(&b, 1, COLD, false);
	for (int i = 0; stat(&b, STAT_spills) < COLD; i++) {
		assert_true(i < 10000);
		settle(&b);
	}
	b.rig.tenant->tier = NULL; /* what takes their place is not written */
	flood(&b, 2 * COLD);
	b.rig.tenant->tier = store_tier(b.rig.store);
	rig_tokens(1, COLD, tokens);
	ask(&b, &rm, tokens, COLD);
	rm.m.done = count_done;
	n_done = 0;
	b.rig.cache.config.restores_max = COLD;
	lane_init(&b.rig.tenant->fill_lane, 4); /* fewer than are read back */
	rig_gate_shut(&b.rig, &gate);
	assert_int_equal(cache_match(&b.rig.cache, &rm.m, &why), 0);
	assert_true(rm.m.n_chain > 30);
	for (int i = 0; b.rig.tenant->verify_lane.queued < rm.m.n_chain; i++) {
		assert_true(i < 10000);
		rig_step(&b.rig);
	}
	rig_prepare(&b.rig, &rp, &b.rig.pins, NULL, 99, 0);
	assert_int_equal(cache_publish(&b.rig.cache, &rp.p, &rp.why), 0);
	rig_gate_open(&b.rig, &gate);
	assert_int_equal(rig_wait(&b.rig, &rp), 0);
	for (int i = 0; !n_done && i < 10000; i++)
		rig_step(&b.rig);
	assert_int_equal(n_done, 1);
	assert_int_equal(stat(&b, STAT_restores), rm.m.n);
	bed_fini(&b);
}

/* The daemon ends while a question waits. */
static void the_end_answers_everybody(void **state)
{
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
	struct rig_match rm;
	struct why why;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	make_cold(&b);
	rig_tokens(1, PAGES, tokens);
	ask(&b, &rm, tokens, PAGES);
	rm.m.done = count_done;
	n_done = 0;
	assert_int_equal(cache_match(&b.rig.cache, &rm.m, &why), 0);
	cache_match_orphan(&rm.m);
	cache_close(&b.rig.cache);
	store_close(b.rig.store);
	b.rig.store = NULL;
	worker_fini(&b.rig.worker);
	assert_int_equal(n_done, 1);
	assert_int_equal(b.rig.cache.pins, 0);
	assert_int_equal(worker_init(&b.rig.worker, &b.rig.loop, 1, 4), 0); /* for rig_fini */
	rig_fini(&b.rig);
	spill_disk_free(b.disk);
}

/* ---- why a match ends ---- */

static struct explain explain(struct bed *b, const int32_t *tokens, uint32_t n_tokens)
{
	struct explain e = {.ns = b->rig.ns, .tokens = tokens, .n_tokens = n_tokens};
	uint64_t bytes = b->rig.cache.bytes, n_restores = stat(b, STAT_restores);

	assert_int_equal(cache_explain(&b->rig.cache, &e, NULL), 0);
	assert_int_equal(e.next_slot, 0);
	/* It only looks. */
	assert_int_equal(b->rig.cache.bytes, bytes);
	assert_int_equal(stat(b, STAT_restores), n_restores);
	assert_int_equal(stat(b, STAT_matches), 0);
	return e;
}

static void a_miss_is_explained(void **state)
{
	const uint32_t all = PAGES * SKVQ_PAGE_TOKENS;
	int32_t tokens[PAGES * SKVQ_PAGE_TOKENS + 1];
	struct identity id;
	struct explain e;
	struct ns *other;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	b.rig.cache.config.spill_percent = 0; /* nothing goes to disk for now */
	rig_tokens(1, PAGES, tokens);
	tokens[all] = 7;
	e = explain(&b, tokens, all);
	assert_int_equal(e.end, EXPLAIN_UNKNOWN);
	assert_int_equal(e.n_memory + e.n_disk + e.same_tokens, 0);
	publish(&b, 1, PAGES, true);
	e = explain(&b, tokens, all + 1);
	assert_int_equal(e.end, EXPLAIN_ALL);
	assert_int_equal(e.n_memory, PAGES);
	/* One token of the third page is another. */
	tokens[2 * SKVQ_PAGE_TOKENS + 33] ^= 1;
	e = explain(&b, tokens, all);
	assert_int_equal(e.end, EXPLAIN_DIFFERS);
	assert_int_equal(e.n_memory, 2);
	assert_int_equal(e.same_tokens, 33);
	tokens[2 * SKVQ_PAGE_TOKENS + 33] ^= 1;
	/* An engine that leaves out the first token, and one that puts one in front. */
	e = explain(&b, tokens + 1, all);
	assert_int_equal(e.n_memory, 0);
	assert_int_equal(e.shift, 1);
	memmove(tokens + 1, tokens, all * sizeof(*tokens));
	tokens[0] = 5;
	e = explain(&b, tokens, all);
	assert_int_equal(e.shift, -1);
	rig_tokens(1, PAGES, tokens);
	/* Another identity has them, and this one does not. */
	rig_identity(1, &id);
	assert_int_equal(cache_ns_open(&b.rig.cache, b.rig.tenant, &id, "made-up", &other, NULL), 0);
	e = (struct explain){.ns = other, .tokens = tokens, .n_tokens = all};
	assert_int_equal(cache_explain(&b.rig.cache, &e, NULL), 0);
	assert_int_equal(e.end, EXPLAIN_UNKNOWN);
	assert_ptr_equal(e.other, b.rig.ns);
	assert_int_equal(e.other_pages, PAGES);
	assert_non_null(e.other_differs);
	/* Of one in which nobody may look, nothing is said. */
	other->tenant = cache_tenant(&b.rig.cache, "other");
	e = (struct explain){.ns = other, .tokens = tokens, .n_tokens = all};
	assert_int_equal(cache_explain(&b.rig.cache, &e, NULL), 0);
	assert_null(e.other);
	other->tenant = b.rig.tenant;
	cache_ns_close(&b.rig.cache, other);
	/* The memory is wanted by others. */
	flood(&b, 4 * PAGES);
	e = explain(&b, tokens, all);
	assert_int_equal(e.n_memory, 0);
	assert_true(e.n_memory < PAGES);
	assert_in_range(e.gone_ms, 0, 600000);
	bed_fini(&b);
}

static void what_is_on_disk_is_told(void **state)
{
	int32_t tokens[(PAGES + 1) * SKVQ_PAGE_TOKENS];
	struct explain e;
	struct bed b;

	(void)state;
	bed_init(&b, 2 * PAGES);
	publish(&b, 1, PAGES, true);
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	rig_tokens(1, PAGES + 1, tokens);
	e = explain(&b, tokens, (PAGES + 1) * SKVQ_PAGE_TOKENS);
	assert_int_equal(e.n_memory, 0);
	assert_int_equal(e.n_disk, PAGES);
	assert_true(e.disk_ms > 0);
	assert_int_equal(e.end, EXPLAIN_UNKNOWN); /* of the one behind */
	e = explain(&b, tokens, PAGES * SKVQ_PAGE_TOKENS);
	assert_int_equal(e.end, EXPLAIN_ALL);
	bed_fini(&b);
}

/* ---- events ---- */

struct heard {
	struct {
		enum cache_event_kind kind;
		bool on_disk, in_memory;
		const char *why;
		uint8_t digest[IDENTITY_DIGEST], parent[IDENTITY_DIGEST];
		uint32_t position;
	} at[512];
	uint32_t n;
};

static void hear(void *ctx, const struct cache_event *e)
{
	struct heard *h = ctx;

	assert_true(h->n < 512);
	assert_non_null(e->ns);
	h->at[h->n].kind = e->kind;
	h->at[h->n].on_disk = e->on_disk;
	h->at[h->n].in_memory = e->page != NULL;
	h->at[h->n].why = e->why ? e->why : "";
	h->at[h->n].position = e->position;
	memcpy(h->at[h->n].digest, e->digest, IDENTITY_DIGEST);
	if (e->parent)
		memcpy(h->at[h->n].parent, e->parent, IDENTITY_DIGEST);
	else
		memset(h->at[h->n].parent, 0, IDENTITY_DIGEST);
	h->n++;
}

/* The index of the first such event of the page from `from` on; -1: there is none. */
static int heard_at(const struct heard *h, const uint8_t *digest, int from, enum cache_event_kind kind,
		    bool on_disk, const char *why)
{
	for (uint32_t i = (uint32_t)from; i < h->n; i++) {
		if (h->at[i].kind == kind && h->at[i].on_disk == on_disk && !strcmp(h->at[i].why, why) &&
		    !memcmp(h->at[i].digest, digest, IDENTITY_DIGEST))
			return (int)i;
	}
	return -1;
}

static void what_happens_to_pages_is_told(void **state)
{
	static struct heard h;
	const struct cache_watch watch = {.fn = hear, .ctx = &h};
	uint8_t digest[PAGES][IDENTITY_DIGEST];
	struct tier_key key;
	uint32_t n;
	struct bed b;

	(void)state;
	memset(&h, 0, sizeof(h));
	bed_init(&b, 2 * PAGES);
	cache_watch(&b.rig.cache, &watch);
	publish(&b, 1, PAGES, true);
	assert_int_equal(h.n, PAGES);
	for (uint32_t i = 0; i < PAGES; i++) {
		static const uint8_t none[IDENTITY_DIGEST];

		memcpy(digest[i], h.at[i].digest, IDENTITY_DIGEST);
		assert_int_equal(h.at[i].position, i * SKVQ_PAGE_TOKENS);
		assert_memory_equal(h.at[i].parent, i ? digest[i - 1] : none, IDENTITY_DIGEST);
		assert_int_equal(heard_at(&h, digest[i], 0, EVENT_STORED, false, "published"), i);
	}
	settle(&b);
	flood(&b, 4 * PAGES);
	settle(&b);
	for (uint32_t i = 0; i < PAGES; i++) {
		int disk = heard_at(&h, digest[i], 0, EVENT_STORED, true, "");
		int gone = heard_at(&h, digest[i], 0, EVENT_REMOVED, false, "evicted");

		assert_true(disk >= 0 && gone >= 0);
		assert_true(h.at[gone].in_memory); /* it can still be looked at */
		if (i)
			assert_memory_equal(h.at[disk].parent, digest[i - 1], IDENTITY_DIGEST);
	}
	n = h.n;
	assert_int_equal(match(&b, 1, PAGES, WAIT_MS), PAGES);
	for (uint32_t i = 0; i < PAGES; i++)
		assert_true(heard_at(&h, digest[i], (int)n, EVENT_STORED, false, "restored") >= 0);
	/* From disk, and nobody but the store knows. */
	memset(&key, 0, sizeof(key));
	restore_key(b.rig.ns, digest[PAGES - 1], &key);
	b.rig.tenant->tier->ops->drop(b.rig.tenant->tier, &key);
	assert_true(heard_at(&h, digest[PAGES - 1], 0, EVENT_REMOVED, true, "dropped") >= 0);
	/* Told once, when it is not found any more, though it goes later. */
	n = h.n;
	for (uint32_t i = 0; i < b.rig.ns->table.touched; i++) {
		struct page *page = &b.rig.ns->table.pages[i];

		if (page_readable(page) && !memcmp(page->digest, digest[PAGES - 1], IDENTITY_DIGEST))
			cache_unlist(&b.rig.cache, page);
	}
	assert_int_equal(h.n, n + 1);
	assert_int_equal(heard_at(&h, digest[PAGES - 1], (int)n, EVENT_REMOVED, false, "failed_check"), n);
	cache_watch(&b.rig.cache, NULL);
	n = h.n;
	flood(&b, 2);
	assert_int_equal(h.n, n);
	bed_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(evicted_pages_come_back),
	    cmocka_unit_test(nothing_is_written_while_memory_is_plenty),
	    cmocka_unit_test(pinned_pages_are_written_too),
	    cmocka_unit_test(a_second_touch_is_waited_for),
	    cmocka_unit_test(a_restart_serves_what_was_drained),
	    cmocka_unit_test(what_was_not_drained_is_counted),
	    cmocka_unit_test(another_tenant_finds_nothing),
	    cmocka_unit_test(a_flipped_page_ends_the_chain),
	    cmocka_unit_test(a_page_that_was_bad_when_written_is_a_miss),
	    cmocka_unit_test(two_questions_join_one_read),
	    cmocka_unit_test(pages_are_seen_in_the_order_of_their_chain),
	    cmocka_unit_test(what_follows_a_page_that_did_not_come_is_not_kept),
	    cmocka_unit_test(a_slow_disk_is_a_miss_in_time),
	    cmocka_unit_test(cheaper_to_compute_is_a_miss),
	    cmocka_unit_test(restores_are_bounded),
	    cmocka_unit_test(a_lowered_bound_of_restores),
	    cmocka_unit_test(a_full_namespace_makes_room_to_restore),
	    cmocka_unit_test(prefetch_reads_and_pins_nothing),
	    cmocka_unit_test(restoring_never_takes_a_pinned_page),
	    cmocka_unit_test(safe_pages_come_back),
	    cmocka_unit_test(a_page_that_goes_bad_in_memory_is_found),
	    cmocka_unit_test(a_record_that_goes_bad_is_found),
	    cmocka_unit_test(what_comes_back_does_not_keep_publishes_out),
	    cmocka_unit_test(the_end_answers_everybody),
	    cmocka_unit_test(a_miss_is_explained),
	    cmocka_unit_test(what_is_on_disk_is_told),
	    cmocka_unit_test(what_happens_to_pages_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
