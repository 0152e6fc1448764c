/* SPDX-License-Identifier: Apache-2.0 */
/* cache/shed: refinements go before pages, never under a pin that holds them, and come back. */
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "support/cache_rig.h"
#include "support/page_maker.h"
#include "support/spill_disk.h"
#include "support/spill_rig.h"

#define PAGES 6u

static uint8_t copy[PAGES][64 << 10];

static const uint8_t *bytes_of(const struct rig *rig, const struct page *page)
{
	return rig->ns->arena.base + ns_page_offset(rig->ns, page);
}

static bool refinement_is_zero(const struct rig *rig, const struct page *page)
{
	static uint8_t at[64 << 10];
	off_t from = (off_t)(ns_page_offset(rig->ns, page) + rig->layout.base_bytes);

	/* Not through the mapping: that would have the kernel fill the hole. */
	assert_int_equal(pread(rig->ns->arena.fd, at, rig->layout.refine_bytes, from),
			 rig->layout.refine_bytes);
	for (uint32_t i = 0; i < rig->layout.refine_bytes; i++) {
		if (at[i])
			return false;
	}
	return true;
}

/* All but a refinement that was shed is what it was. */
static void assert_same(const struct rig *rig, const struct page *page, const uint8_t *was)
{
	const struct skvq_layout *l = &rig->layout;
	const uint8_t *at = bytes_of(rig, page);
	uint64_t end = l->base_bytes + l->refine_bytes, span = ns_page_span(rig->ns, page);

	assert_memory_equal(at, was, l->base_bytes);
	assert_memory_equal(at + end, was + end, span - end);
	if (page->shed)
		assert_true(refinement_is_zero(rig, page));
	else
		assert_memory_equal(at + l->base_bytes, was + l->base_bytes, l->refine_bytes);
}

static void assert_books(struct rig *rig)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < rig->ns->table.touched; i++) {
		const struct page *page = &rig->ns->table.pages[i];

		sum += page->state == PAGE_FREE ? 0 : page->bytes;
	}
	assert_int_equal(sum, rig->cache.bytes);
	assert_int_equal(cache_kernel_bytes(&rig->cache), rig->cache.bytes);
	assert_true(rig->cache.bytes <= rig->cache.config.ram_max);
}

static void chain(struct rig *rig, struct page **ret)
{
	rig_chain(rig, &rig->pins, 1, PAGES, ret);
	for (uint32_t i = 0; i < PAGES; i++)
		memcpy(copy[i], bytes_of(rig, ret[i]), ret[i]->bytes);
}

static void unrefine(struct rig *rig, struct page *const *pages, uint32_t n)
{
	struct page_ref refs[PAGES];
	struct why why;

	for (uint32_t i = 0; i < n; i++)
		refs[i] = page_ref(pages[i]);
	assert_int_equal(cache_unrefine(&rig->cache, rig->ns, &rig->pins, refs, n, &why), 0);
}

static uint32_t heard[EVENT_NAMESPACE_DROPPED + 1];

static void hear(void *ctx, const struct cache_event *e)
{
	(void)ctx;
	heard[e->kind]++;
}

static void refinements_go_before_pages(void **state)
{
	struct page *pages[PAGES], *other;
	struct rig rig;
	struct why why;
	uint64_t room;

	(void)state;
	rig_init_elastic(&rig, PAGES, 100);
	memset(heard, 0, sizeof(heard));
	cache_watch(&rig.cache, &(struct cache_watch){.fn = hear});
	assert_true(rig.layout.refine_bytes > 0);
	chain(&rig, pages);
	assert_false(shed_one(&rig.cache, rig.tenant)); /* all are held */
	unrefine(&rig, pages, 3);
	assert_int_equal(rig.tenant->shed_queue.n, 3);
	room = rig.cache.config.ram_max - rig.cache.bytes;
	assert_int_equal(cache_make_room(&rig.cache, rig.tenant, room + 1, &why), 0);
	assert_true(pages[0]->shed); /* let go of first */
	assert_false(pages[1]->shed);
	assert_int_equal(rig.stats.n[STAT_sheds], 1);
	assert_int_equal(heard[EVENT_SHED], 1);
	assert_int_equal(heard[EVENT_STORED], PAGES);
	assert_int_equal(heard[EVENT_REMOVED], 0);
	/* More than the three hold: what is pinned stays, base and all. */
	assert_int_equal(cache_make_room(&rig.cache, rig.tenant, room + 4 * rig.layout.refine_bytes, &why),
			 -SKVQ_ENOSPC);
	for (uint32_t i = 0; i < PAGES; i++) {
		assert_int_equal(pages[i]->shed, i < 3);
		assert_same(&rig, pages[i], copy[i]);
	}
	assert_books(&rig);
	/* Let go of altogether: still there, and the base of a page before any other page. */
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	other = rig_publish(&rig, &rig.pins, NULL, 77, NULL);
	assert_non_null(other);
	assert_int_equal(rig.stats.n[STAT_evictions], 0);
	assert_false(other->shed);
	assert_books(&rig);
	cache_trim(&rig.cache);
	for (uint32_t i = 0; i < PAGES; i++)
		assert_same(&rig, pages[i], copy[i]);
	cache_watch(&rig.cache, NULL);
	rig_fini(&rig);
}

static void no_shed_keeps_pages_whole(void **state)
{
	struct page *pages[PAGES];
	struct rig rig;

	(void)state;
	rig_init_elastic(&rig, PAGES, 100);
	rig.cache.config.no_shed = true;
	chain(&rig, pages);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	for (uint32_t seed = 10; seed < 20; seed++) {
		assert_non_null(rig_publish(&rig, &rig.pins, NULL, seed, NULL));
		(void)cache_unpin_all(&rig.cache, &rig.pins);
	}
	assert_int_equal(rig.stats.n[STAT_sheds], 0);
	assert_true(rig.stats.n[STAT_evictions] > 0);
	rig_fini(&rig);
}

static void shed_all(struct rig *rig)
{
	while (shed_one(&rig->cache, rig->tenant))
		;
}

static void a_match_tells_and_holds_what_is_there(void **state)
{
	struct page *pages[PAGES];
	struct rig_match rm;
	struct rig rig;

	(void)state;
	rig_init_elastic(&rig, 3 * PAGES, 100);
	chain(&rig, pages);
	unrefine(&rig, pages, 2);
	shed_all(&rig);
	assert_int_equal(rig_match(&rig, &rm, &rig.pins, 1, PAGES, 0), 0);
	assert_int_equal(rm.m.n, PAGES);
	assert_int_equal(pages[1]->refine_pins, 0);
	assert_int_equal(pages[2]->refine_pins, 2);
	unrefine(&rig, pages + 2, 1);
	shed_all(&rig);
	assert_false(pages[2]->shed); /* one of two pins let go */
	unrefine(&rig, pages + 2, 1);
	shed_all(&rig);
	assert_true(pages[2]->shed);
	/* Who does not know of all this gets whole pages alone. */
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	memset(&rm, 0, sizeof(rm));
	{
		int32_t tokens[PAGES * SKVQ_PAGE_TOKENS];
		struct why why;

		rig_tokens(1, PAGES, tokens);
		rm.m = (struct match){.ns = rig.ns,
				      .pins = &rig.pins,
				      .tokens = tokens,
				      .n_tokens = PAGES * SKVQ_PAGE_TOKENS,
				      .max_pages = PAGES,
				      .whole = true,
				      .refs = rm.refs};
		assert_int_equal(cache_match(&rig.cache, &rm.m, &why), 1);
		assert_int_equal(rm.m.n, 0);
	}
	rig_fini(&rig);
}

static void names_must_be_pinned(void **state)
{
	struct page *pages[PAGES];
	struct page_ref refs[2];
	struct rig rig;
	struct why why;

	(void)state;
	rig_init_elastic(&rig, PAGES, 100);
	chain(&rig, pages);
	refs[0] = page_ref(pages[0]);
	refs[1] = (struct page_ref){refs[0].slot, refs[0].generation + 1};
	assert_int_equal(cache_unrefine(&rig.cache, rig.ns, &rig.pins, refs, 2, &why), -SKVQ_ESTALE);
	assert_int_equal(pages[0]->refine_pins, 1); /* all or none */
	refs[1] = refs[0];
	assert_int_equal(cache_unrefine(&rig.cache, rig.ns, &rig.pins, refs, 2, &why), -SKVQ_ESTALE);
	assert_int_equal(cache_unrefine(&rig.cache, rig.ns, &rig.pins, refs, 1, &why), 0);
	assert_int_equal(cache_unrefine(&rig.cache, rig.ns, &rig.pins, refs, 1, &why), 0);
	assert_int_equal(pages[0]->pins, 1);
	rig_fini(&rig);
}

static void publishing_brings_a_refinement_back(void **state)
{
	struct page *pages[PAGES], *again;
	struct rig_publish rp;
	struct rig rig;
	struct why why;

	(void)state;
	rig_init_elastic(&rig, 3 * PAGES, 100);
	chain(&rig, pages);
	unrefine(&rig, pages, PAGES);
	shed_all(&rig);
	again = rig_publish(&rig, &rig.pins, pages[0], 1, NULL);
	assert_ptr_equal(again, pages[1]);
	assert_false(again->shed);
	assert_int_equal(again->refine_pins, 1);
	assert_int_equal(rig.stats.n[STAT_refills], 1);
	assert_same(&rig, again, copy[1]);
	assert_books(&rig);
	/* Another refinement than the page had: refused, and nothing of it stays. */
	rig_prepare(&rig, &rp, &rig.pins, pages[1], 1, 0);
	rig.staging_map[rp.p.offset + rig.layout.base_bytes] ^= 1;
	assert_int_equal(cache_publish(&rig.cache, &rp.p, &why), 0);
	assert_int_equal(rig_wait(&rig, &rp), -SKVQ_ECORRUPT);
	assert_true(pages[2]->shed);
	assert_same(&rig, pages[2], copy[2]);
	assert_books(&rig);
	assert_int_equal(rig.pins.reserved, 0);
	/* Two at once, the first of them bad: the second is taken. */
	{
		struct rig_publish good;

		rig_prepare(&rig, &rp, &rig.pins, pages[1], 1, 0);
		rig_prepare(&rig, &good, &rig.pins, pages[1], 1, 1);
		rig.staging_map[rp.p.offset + rig.layout.base_bytes] ^= 1;
		assert_int_equal(cache_publish(&rig.cache, &rp.p, &why), 0);
		assert_int_equal(cache_publish(&rig.cache, &good.p, &why), 0);
		assert_int_equal(rig_wait(&rig, &rp), -SKVQ_ECORRUPT);
		assert_int_equal(rig_wait(&rig, &good), 0);
		assert_ptr_equal(good.p.page, pages[2]);
		assert_false(pages[2]->shed);
		assert_same(&rig, pages[2], copy[2]);
	}
	rig_fini(&rig);
}

/* One that is on its way counts: two do not take the room that is left for one. */
static void a_refinement_counts_before_it_is_there(void **state)
{
	struct rig_publish one, two;
	struct page *pages[PAGES];
	struct rig_gate gate;
	struct rig rig;
	struct why why;
	uint64_t before, refine;

	(void)state;
	rig_init_elastic(&rig, 3 * PAGES, 100);
	refine = rig.layout.refine_bytes;
	chain(&rig, pages);
	unrefine(&rig, pages, PAGES);
	shed_all(&rig);
	before = rig.cache.bytes;
	rig.cache.config.ram_max = before + refine;
	rig_prepare(&rig, &one, &rig.pins, pages[1], 1, 0);
	rig_prepare(&rig, &two, &rig.pins, pages[2], 1, 1);
	rig.staging_map[one.p.offset + rig.layout.base_bytes] ^= 1;
	rig_gate_shut(&rig, &gate);
	assert_int_equal(cache_publish(&rig.cache, &one.p, &why), 0);
	assert_int_equal(rig.cache.bytes, before + refine);
	assert_int_equal(rig.tenant->bytes, before + refine);
	assert_int_equal(rig.tenant->held, before + refine);
	assert_int_equal(rig.ns->bytes, before + refine);
	assert_int_equal(cache_publish(&rig.cache, &two.p, &why), -SKVQ_ENOSPC);
	rig_gate_open(&rig, &gate);
	/* It was bad: what it counted is given back, and the other may come. */
	assert_int_equal(rig_wait(&rig, &one), -SKVQ_ECORRUPT);
	assert_int_equal(rig.tenant->bytes, before);
	assert_int_equal(rig.tenant->held, before);
	assert_books(&rig);
	rig_prepare(&rig, &two, &rig.pins, pages[2], 1, 1);
	assert_int_equal(cache_publish(&rig.cache, &two.p, &why), 0);
	assert_int_equal(rig_wait(&rig, &two), 0);
	assert_int_equal(rig.tenant->bytes, before + refine);
	assert_false(pages[3]->shed);
	assert_same(&rig, pages[3], copy[3]);
	assert_books(&rig);
	rig_fini(&rig);
}

static void on_checked(void *ctx, enum check_end end, uint64_t bytes)
{
	assert_true(bytes > 0);
	*(int *)ctx = (int)end;
}

/* While it is being read its refinement goes and comes back; what the reader saw was zeros. */
static void a_scrub_judges_nothing_torn(void **state)
{
	struct page *pages[PAGES];
	struct rig_publish rp;
	struct rig_gate gate;
	struct rig rig;
	struct why why;
	int end = -1;

	(void)state;
	rig_init_elastic(&rig, 3 * PAGES, 100);
	chain(&rig, pages);
	unrefine(&rig, pages, PAGES);
	rig_gate_shut(&rig, &gate);
	rig.cache.scrubber.ns = rig.ns->id;
	cache_scrub(&rig.cache, 1); /* the first page, and no other */
	assert_true(rig.cache.scrubber.busy);
	assert_int_equal(rig.cache.scrubber.busy_slot, pages[0]->slot);
	/* The workers stand: the read will see the refinement of a page that is thought whole gone. */
	assert_true(shed_one(&rig.cache, rig.tenant));
	assert_true(pages[0]->shed);
	assert_int_equal(rig.tenant->verify_lane.queued, 0);
	rig_gate_open(&rig, &gate);
	while (rig.cache.scrubber.busy)
		rig_step(&rig);
	assert_int_equal(rig.stats.n[STAT_scrub_failures], 0);
	assert_int_equal(rig.stats.n[STAT_scrubbed], 0);
	assert_false(pages[0]->unlisted);
	/* Now such a read, and a refinement that is back when it is judged. */
	rig_gate_shut(&rig, &gate);
	assert_int_equal(cache_check(&rig.cache, pages[0], on_checked, &end), 0);
	rig_prepare(&rig, &rp, &rig.pins, NULL, 1, 0);
	assert_int_equal(cache_publish(&rig.cache, &rp.p, &why), 0);
	rig_gate_open(&rig, &gate);
	assert_int_equal(rig_wait(&rig, &rp), 0);
	while (end < 0)
		rig_step(&rig);
	assert_false(pages[0]->shed);
	assert_int_equal(end, CHECK_TORN);
	rig.cache.scrubber = (struct scrubber){0};
	/* What was not judged is looked at again. */
	cache_scrub(&rig.cache, UINT64_C(1) << 30);
	while (rig.cache.scrubber.busy) {
		if (rig.stats.n[STAT_scrubbed] >= PAGES)
			rig.cache.scrubber.allowance = 0;
		rig_step(&rig);
	}
	assert_int_equal(rig.stats.n[STAT_scrub_failures], 0);
	rig_fini(&rig);
}

/* A page without its refinement is stored so and comes back so; a whole one comes back whole. */
static void the_disk_keeps_what_there_is(void **state)
{
	struct store_options options;
	struct spill_disk *disk;
	struct page *pages[PAGES];
	struct rig_match rm;
	struct rig rig;

	(void)state;
	rig_init_elastic(&rig, 3 * PAGES, 1000);
	rig_options(&options);
	options.capacity_bytes *= 4;
	disk = spill_disk_new(3, store_files_max(&options), 1);
	rig.store = rig_open(&options, spill_disk_io(disk));
	chain(&rig, pages);
	unrefine(&rig, pages, 2);
	shed_all(&rig);
	rig.tenant->tier = store_tier(rig.store);
	rig.cache.config.spill_percent = 100;
	for (uint32_t i = 0; i < PAGES; i++)
		spill_want(pages[i]);
	for (int i = 0; i < 200 && rig.stats.n[STAT_spills] < PAGES; i++) {
		spill_pump(&rig.cache);
		rig_step(&rig);
	}
	assert_int_equal(rig.stats.n[STAT_spills], PAGES);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	rig.cache.config.no_shed = true;
	for (uint32_t seed = 10; seed < 10 + 6 * PAGES; seed++) {
		assert_non_null(rig_publish(&rig, &rig.pins, NULL, seed, NULL));
		(void)cache_unpin_all(&rig.cache, &rig.pins);
	}
	assert_int_equal(rig_match(&rig, &rm, &rig.pins, 1, PAGES, 5000), 0);
	assert_int_equal(rm.m.n, PAGES);
	assert_int_equal(rm.m.n_restored, PAGES);
	for (uint32_t i = 0; i < PAGES; i++) {
		const struct page *page = page_table_get(&rig.ns->table, rm.refs[i]);

		assert_int_equal(page->shed, i < 2);
		assert_same(&rig, page, copy[i]);
	}
	assert_books(&rig);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	cache_close(&rig.cache);
	store_close(rig.store);
	rig.store = NULL;
	rig_fini(&rig);
	spill_disk_free(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(refinements_go_before_pages),
	    cmocka_unit_test(no_shed_keeps_pages_whole),
	    cmocka_unit_test(a_match_tells_and_holds_what_is_there),
	    cmocka_unit_test(names_must_be_pinned),
	    cmocka_unit_test(publishing_brings_a_refinement_back),
	    cmocka_unit_test(a_refinement_counts_before_it_is_there),
	    cmocka_unit_test(a_scrub_judges_nothing_torn),
	    cmocka_unit_test(the_disk_keeps_what_there_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
