/* SPDX-License-Identifier: Apache-2.0 */
/* cache: namespaces, matching, pins, eviction and bytes. Publishing itself: test_daemon_publish. */
#include <string.h>
#include <sys/mman.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "base/checked.h"
#include "support/cache_rig.h"
#include "support/page_maker.h"

static uint32_t always_seven(const uint64_t keys[INDEX_WORDS + 1],
			     const uint32_t words[INDEX_WORDS])
{
	(void)keys;
	(void)words;
	return 7;
}

static uint32_t match(struct rig *rig, struct pins *pins, uint32_t seed, uint32_t n_pages)
{
	struct rig_match rm;

	return rig_match(rig, &rm, pins, seed, n_pages, 0) < 0 ? 99 : rm.m.n;
}

static void assert_bytes_are_the_kernels(struct rig *rig)
{
	assert_int_equal(cache_kernel_bytes(&rig->cache), rig->cache.bytes);
	assert_true(rig->cache.bytes <= rig->cache.config.ram_max);
}

static void matches_the_longest_chain(index_hash_fn hash)
{
	struct page *chain[5], *other[2];
	struct rig rig;

	rig_init(&rig, 20, 100, hash);
	rig_chain(&rig, &rig.pins, 1, 5, chain);
	rig_chain(&rig, &rig.pins, 2, 2, other);
	assert_int_equal(match(&rig, &rig.pins, 1, 5), 5);
	assert_int_equal(match(&rig, &rig.pins, 1, 3), 3);
	assert_int_equal(match(&rig, &rig.pins, 1, 9), 5);
	assert_int_equal(match(&rig, &rig.pins, 2, 9), 2);
	assert_int_equal(match(&rig, &rig.pins, 3, 9), 0);
	assert_int_equal(chain[0]->pins, 1 + 3);
	assert_int_equal(chain[4]->pins, 1 + 2);
	assert_int_equal(chain[4]->hits, 2);
	assert_int_equal(chain[0]->children, 1);
	assert_int_equal(chain[4]->children, 0);
	assert_int_equal(rig.ns->tokens_asked, (5 + 3 + 9 + 9 + 9) * SKVQ_PAGE_TOKENS);
	assert_int_equal(rig.ns->tokens_matched, (5 + 3 + 5 + 2) * SKVQ_PAGE_TOKENS);
	assert_bytes_are_the_kernels(&rig);
	rig_fini(&rig);
}

static void longest_chain(void **state)
{
	(void)state;
	matches_the_longest_chain(NULL);
}

static void longest_chain_with_colliding_hashes(void **state)
{
	(void)state;
	matches_the_longest_chain(always_seven);
}

static void pins_bound_a_match(void **state)
{
	struct page *chain[5];
	struct pins poor, none;
	struct rig rig;
	struct rig_match rm;

	(void)state;
	rig_init(&rig, 20, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 5, chain);
	pins_init(&poor, 3);
	assert_int_equal(match(&rig, &poor, 1, 5), 3);
	assert_int_equal(rig.stats.n[STAT_matches_cut], 1);
	pins_init(&none, 0);
	assert_int_equal(rig_match(&rig, &rm, &poor, 1, 5, 0), -SKVQ_EPINS);
	assert_int_equal(chain[0]->pins, 2);
	assert_int_equal(cache_unpin_all(&rig.cache, &poor), 3);
	assert_int_equal(chain[0]->pins, 1);
	pins_fini(&poor);
	pins_fini(&none);
	rig_fini(&rig);
}

static void unpin_is_all_or_nothing(void **state)
{
	struct page *chain[3];
	struct page_ref refs[4];
	struct rig rig;
	struct why why;

	(void)state;
	rig_init(&rig, 20, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 3, chain);
	for (int i = 0; i < 3; i++)
		refs[i] = page_ref(chain[i]);
	refs[3] = refs[0]; /* once too often */
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, refs, 4, &why), -SKVQ_ESTALE);
	assert_non_null(strstr(why.text, "page 4 of 4"));
	refs[3] = (struct page_ref){refs[0].slot, refs[0].generation + 1};
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, refs, 4, &why), -SKVQ_ESTALE);
	refs[3] = (struct page_ref){UINT32_MAX, 1};
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, refs, 4, &why), -SKVQ_ESTALE);
	for (int i = 0; i < 3; i++)
		assert_int_equal(chain[i]->pins, 1);
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, refs, 3, &why), 0);
	assert_int_equal(rig.cache.pins, 0);
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, refs, 1, &why), -SKVQ_ESTALE);
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, refs, 0, &why), 0);
	rig_fini(&rig);
}

/* ---- eviction ---- */

static void evicts_leaves_of_the_oldest_first(void **state)
{
	struct page *a[3], *b[3], *c[1];
	struct page_ref ref_a[3], ref_b[3];
	struct rig rig;

	(void)state;
	/* First pages have a sidecar and are larger: six pages of two chains fit, a third chain's
	 * first page takes room from one later page or two. */
	rig_init(&rig, 6, 100, NULL);
	rig.cache.config.ram_max = 2 * skvq_layout_page_bytes(&rig.layout, 0) +
				   4 * skvq_layout_page_bytes(&rig.layout, 80);
	rig_chain(&rig, &rig.pins, 1, 3, a);
	rig_chain(&rig, &rig.pins, 2, 3, b);
	for (int i = 0; i < 3; i++) {
		ref_a[i] = page_ref(a[i]);
		ref_b[i] = page_ref(b[i]);
	}
	assert_int_equal(cache_unpin_all(&rig.cache, &rig.pins), 6);
	assert_int_equal(policy_may_go(&rig.tenant->policy), 2); /* only leaves may go */
	assert_int_equal(match(&rig, &rig.pins, 1, 3), 3);     /* a is younger now */
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	rig_chain(&rig, &rig.pins, 3, 1, c);
	/* b lost its tail, a nothing. */
	for (int i = 0; i < 3; i++)
		assert_ptr_equal(page_table_get(&rig.ns->table, ref_a[i]), a[i]);
	assert_null(page_table_get(&rig.ns->table, ref_b[2]));
	assert_non_null(page_table_get(&rig.ns->table, ref_b[0]));
	assert_int_equal(match(&rig, &rig.pins, 2, 3), (uint32_t)b[0]->children + 1);
	assert_true(rig.stats.n[STAT_evictions] >= 1);
	assert_int_equal(rig.ns->evictions, rig.stats.n[STAT_evictions]);
	assert_bytes_are_the_kernels(&rig);
	rig_fini(&rig);
}

static void a_parent_keeps_its_own_age(void **state)
{
	struct page *a[2], *b[1], *c[1];
	struct page_ref leaf, parent, single;
	struct rig rig;

	(void)state;
	rig_init(&rig, 3, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 2, a);
	leaf = page_ref(a[1]);
	parent = page_ref(a[0]);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	rig_chain(&rig, &rig.pins, 2, 1, b);
	single = page_ref(b[0]);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	/* a[0] used again, without its leaf: leaf oldest, then b, then a[0]. */
	assert_int_equal(match(&rig, &rig.pins, 1, 1), 1);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	rig_chain(&rig, &rig.pins, 3, 1, c);
	assert_null(page_table_get(&rig.ns->table, leaf));
	assert_non_null(page_table_get(&rig.ns->table, parent));
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	rig_chain(&rig, &rig.pins, 4, 1, c);
	assert_null(page_table_get(&rig.ns->table, single));
	assert_non_null(page_table_get(&rig.ns->table, parent));
	rig_fini(&rig);
}

/* With least recently used alone the chain would be the first to go. */
static void a_chain_that_was_matched_survives_a_scan(void **state)
{
	struct page *hot[3], *page;
	struct page_ref refs[3];
	struct rig rig;

	(void)state;
	rig_init(&rig, 12, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 3, hot);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	assert_int_equal(match(&rig, &rig.pins, 1, 3), 3);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	for (int i = 0; i < 3; i++)
		refs[i] = page_ref(hot[i]);
	for (uint32_t seed = 100; seed < 220; seed++) {
		assert_non_null(rig_publish(&rig, &rig.pins, NULL, seed, NULL));
		(void)cache_unpin_all(&rig.cache, &rig.pins);
	}
	assert_true(rig.stats.n[STAT_evictions] >= 100);
	for (int i = 0; i < 3; i++)
		assert_ptr_equal(page_table_get(&rig.ns->table, refs[i]), hot[i]);
	/* One that went a moment ago comes back, one that went long ago. */
	assert_int_equal(rig.stats.n[STAT_pages_returned], 0);
	assert_int_equal(match(&rig, &rig.pins, 209, 1), 0);
	page = rig_publish(&rig, &rig.pins, NULL, 209, NULL);
	assert_int_equal(page->queue, POLICY_AGAIN);
	assert_int_equal(rig.stats.n[STAT_pages_returned], 1);
	page = rig_publish(&rig, &rig.pins, NULL, 101, NULL);
	assert_int_equal(page->queue, POLICY_ONCE);
	assert_int_equal(rig.stats.n[STAT_pages_returned], 1);
	assert_bytes_are_the_kernels(&rig);
	rig_fini(&rig);
}

static void pinned_pages_stay(void **state)
{
	struct page *a[3];
	struct rig rig;
	int err;

	(void)state;
	rig_init(&rig, 3, 100, NULL);
	rig.cache.config.ram_max =
	    skvq_layout_page_bytes(&rig.layout, 0) + 2 * skvq_layout_page_bytes(&rig.layout, 80);
	rig_chain(&rig, &rig.pins, 1, 3, a);
	/* Give back all but the last: its ancestors stay for its sake. */
	for (int i = 0; i < 2; i++) {
		struct page_ref ref = page_ref(a[i]);
		struct why why;

		assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, &ref, 1, &why), 0);
	}
	assert_null(rig_publish(&rig, &rig.pins, NULL, 2, &err));
	assert_int_equal(err, -SKVQ_ENOSPC);
	assert_int_equal(rig.cache.pages, 3);
	assert_int_equal(rig.stats.n[STAT_evictions], 0);
	assert_int_equal(rig.pins.reserved, 0);
	assert_bytes_are_the_kernels(&rig);
	rig_fini(&rig);
}

static void readers_that_fill_holes(void **state)
{
	struct page *a[3];
	struct rig rig;
	const volatile uint8_t *p;
	uint64_t bytes;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 3, a);
	bytes = rig.ns->arena.bytes;
	p = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, rig.ns->arena.fd_ro, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	for (uint64_t i = 0; i < bytes; i += 4096)
		(void)p[i];
	assert_int_equal(cache_kernel_bytes(&rig.cache), bytes); /* all of it, by reading alone */
	assert_true(cache_bytes_used(&rig.cache) > rig.cache.bytes);
	cache_trim(&rig.cache);
	assert_bytes_are_the_kernels(&rig);
	assert_true(rig.stats.n[STAT_holes_punched] >= 1);
	/* Pages kept what they hold. */
	assert_memory_equal((const void *)(uintptr_t)(p + ns_page_offset(rig.ns, a[0])), "SKVQPAGE",
			    8);
	/* Again, and now a publish needs the room. */
	for (uint64_t i = 0; i < bytes; i += 4096)
		(void)p[i];
	assert_non_null(rig_publish(&rig, &rig.pins, NULL, 9, NULL));
	assert_bytes_are_the_kernels(&rig);
	munmap((void *)(uintptr_t)p, (size_t)bytes);
	rig_fini(&rig);
}

/* ---- namespaces ---- */

static struct ns *ns_open(struct rig *rig, const char *tenant, uint32_t seed, int want)
{
	struct ns *ns = NULL;
	struct identity id;
	struct why why;

	rig_identity(seed, &id);
	assert_int_equal(cache_ns_open(&rig->cache, cache_tenant(&rig->cache, tenant), &id, "m",
				       &ns, &why),
			 want);
	return ns;
}

/* Many pages in one namespace do not keep the trim from the holes of another. */
static void holes_of_all_namespaces_go(void **state)
{
	enum { PAGES = 300 };
	static struct page *pages[PAGES];
	const volatile uint8_t *old, *young;
	struct ns *first;
	struct rig rig;
	uint64_t bytes;

	(void)state;
	rig_init(&rig, PAGES + 8, PAGES, NULL);
	first = rig.ns;
	rig.ns = ns_open(&rig, "default", 1, 0);
	rig_chain(&rig, &rig.pins, 1, PAGES, pages);
	bytes = rig.ns->arena.bytes;
	young = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, rig.ns->arena.fd_ro, 0);
	old = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, first->arena.fd_ro, 0);
	assert_true(young != MAP_FAILED && old != MAP_FAILED);
	for (int i = 0; i < 3; i++) {
		(void)young[bytes - 4096];
		(void)old[0];
		(void)old[bytes / 2];
		assert_true(cache_bytes_used(&rig.cache) > rig.cache.bytes);
		cache_trim(&rig.cache);
		assert_int_equal(cache_kernel_bytes(&rig.cache), rig.cache.bytes);
	}
	munmap((void *)(uintptr_t)young, (size_t)bytes);
	munmap((void *)(uintptr_t)old, (size_t)bytes);
	cache_ns_close(&rig.cache, rig.ns);
	rig.ns = first;
	rig_fini(&rig);
}

static void namespaces_are_tenant_and_identity(void **state)
{
	const struct tenant_params others[] = {
	    {.name = "other"}, {.name = "third", .salt = (const uint8_t *)"0123456789abcdef", .salt_bytes = 16}};
	struct ns *same, *tenant, *other, *salted;
	struct rig rig;

	(void)state;
	rig_init_tenants(&rig, 8, 100, others, 2);
	same = ns_open(&rig, "default", 0, 0);
	tenant = ns_open(&rig, "other", 0, 0);
	other = ns_open(&rig, "default", 1, 0);
	assert_ptr_equal(same, rig.ns);
	assert_ptr_not_equal(tenant, rig.ns);
	assert_ptr_not_equal(other, rig.ns);
	assert_ptr_equal(cache_ns_by_id(&rig.cache, other->id), other);
	assert_null(cache_ns_by_id(&rig.cache, 99));
	salted = ns_open(&rig, "third", 0, 0);
	assert_memory_equal(tenant->digest, rig.ns->digest, IDENTITY_DIGEST);
	assert_memory_equal(salted->digest, rig.ns->digest, IDENTITY_DIGEST);
	assert_memory_not_equal(tenant->tier_name, rig.ns->tier_name, IDENTITY_DIGEST);
	assert_memory_not_equal(salted->tier_name, rig.ns->tier_name, IDENTITY_DIGEST);
	cache_ns_close(&rig.cache, salted);
	assert_memory_not_equal(other->digest, rig.ns->digest, IDENTITY_DIGEST);
	cache_ns_close(&rig.cache, same);
	cache_ns_close(&rig.cache, tenant);
	cache_ns_close(&rig.cache, other);
	rig_fini(&rig);
}

static void namespaces_are_bounded(void **state)
{
	struct page *a[2];
	struct ns *ns[3];
	struct rig rig;
	uint32_t id;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 2, a);
	for (uint32_t i = 0; i < 3; i++)
		ns[i] = ns_open(&rig, "default", i + 1, 0);
	(void)ns_open(&rig, "default", 9, -SKVQ_ENAMESPACES);
	/* One that nobody has open goes; those that are open stay. */
	id = ns[1]->id;
	cache_ns_close(&rig.cache, ns[1]);
	ns[1] = ns_open(&rig, "default", 9, 0);
	assert_null(cache_ns_by_id(&rig.cache, id));
	assert_int_equal(rig.stats.n[STAT_namespaces_dropped], 1);
	for (uint32_t i = 0; i < 3; i++)
		cache_ns_close(&rig.cache, ns[i]);
	/* One with pages goes after the empty ones, pages and all. */
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	cache_ns_close(&rig.cache, rig.ns);
	id = rig.ns->id;
	for (uint32_t i = 0; i < 3; i++)
		cache_ns_close(&rig.cache, ns_open(&rig, "default", 20 + i, 0));
	assert_non_null(cache_ns_by_id(&rig.cache, id));
	for (uint32_t i = 0; i < 4; i++)
		ns[i % 3] = ns_open(&rig, "default", 30 + i, i < 4 ? 0 : -SKVQ_ENAMESPACES);
	assert_null(cache_ns_by_id(&rig.cache, id));
	assert_int_equal(rig.cache.pages, 0);
	assert_int_equal(rig.cache.bytes, 0);
	for (struct ns *at = rig.cache.namespaces; at; at = at->next)
		at->openers = 0;
	rig.ns = ns[0];
	rig.ns->openers = 1;
	rig_fini(&rig);
}

static void a_cap_below_one_page_is_refused(void **state)
{
	struct rig rig;
	struct identity id;
	struct ns *ns;
	struct why why;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig.cache.config.ram_max = skvq_layout_page_bytes(&rig.layout, 0) - 1;
	rig_identity(5, &id);
	assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "m", &ns, &why), -SKVQ_ENOSPC);
	assert_non_null(strstr(why.text, "RAM cap"));
	rig_fini(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(longest_chain),
	    cmocka_unit_test(longest_chain_with_colliding_hashes),
	    cmocka_unit_test(pins_bound_a_match),
	    cmocka_unit_test(unpin_is_all_or_nothing),
	    cmocka_unit_test(evicts_leaves_of_the_oldest_first),
	    cmocka_unit_test(a_parent_keeps_its_own_age),
	    cmocka_unit_test(a_chain_that_was_matched_survives_a_scan),
	    cmocka_unit_test(pinned_pages_stay),
	    cmocka_unit_test(readers_that_fill_holes),
	    cmocka_unit_test(holes_of_all_namespaces_go),
	    cmocka_unit_test(namespaces_are_tenant_and_identity),
	    cmocka_unit_test(namespaces_are_bounded),
	    cmocka_unit_test(a_cap_below_one_page_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
