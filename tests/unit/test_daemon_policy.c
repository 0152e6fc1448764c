/* SPDX-License-Identifier: Apache-2.0 */
/* mem/policy and mem/ghosts: against naive models, and that a scan does not wash out what is used.
 */
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "seeded.h"

#include "mem/ghosts.h"
#include "mem/policy.h"

/* ---- ghosts ---- */

#define KEYS 200u
#define MAX  30u

/* The lists as arrays, oldest first. */
struct model_list {
	uint64_t keys[MAX + 1];
	uint64_t since[MAX + 1];
	uint32_t n;
};

static void model_drop(struct model_list *l, uint32_t i)
{
	memmove(&l->keys[i], &l->keys[i + 1], (l->n - i - 1) * sizeof(l->keys[0]));
	memmove(&l->since[i], &l->since[i + 1], (l->n - i - 1) * sizeof(l->since[0]));
	l->n--;
}

static int model_take(struct model_list lists[GHOST_LISTS], uint64_t key, uint64_t *ret_since)
{
	for (uint32_t list = 0; list < GHOST_LISTS; list++) {
		for (uint32_t i = 0; i < lists[list].n; i++) {
			if (lists[list].keys[i] == key) {
				*ret_since = lists[list].since[i];
				model_drop(&lists[list], i);
				return (int)list;
			}
		}
	}
	return -1;
}

/* The same ghost as the model takes, and how long it has been one. */
static void take_both(struct ghosts *g, struct model_list lists[GHOST_LISTS], uint64_t key,
		      uint64_t now)
{
	uint64_t since = 0, ms, known_ms;
	int list = model_take(lists, key, &since);
	bool known = ghosts_know(g, key, now, &known_ms);

	assert_int_equal(known, list >= 0);
	assert_int_equal(ghosts_take(g, key, now, &ms), list);
	assert_int_equal(known_ms, ms);
	if (list < 0)
		assert_int_equal(ms, 0);
	else
		assert_int_equal(ms, (now / GHOST_TICK_MS - since / GHOST_TICK_MS) * GHOST_TICK_MS);
}

static void ghosts_are_two_bounded_queues(void **state)
{
	struct model_list lists[GHOST_LISTS] = {0};
	struct seeded rng = seeded_init();
	/* Ticks wrap on the way. */
	uint64_t now = (UINT64_C(1) << 36) - 100000, since;
	struct ghosts g;

	(void)state;
	assert_int_equal(ghosts_init(&g, MAX), 0);
	for (int step = 0; step < 50000; step++) {
		/* Many keys in one bucket. */
		uint64_t key = (uint64_t)seeded_below(&rng, KEYS) << 8;
		uint32_t list = seeded_below(&rng, GHOST_LISTS), what = seeded_below(&rng, 20);

		now += seeded_below(&rng, 100);
		if (what < 12) {
			ghosts_add(&g, key, list, now);
			(void)model_take(lists, key, &since);
			if (lists[list].n == MAX)
				model_drop(&lists[list], 0);
			lists[list].since[lists[list].n] = now;
			lists[list].keys[lists[list].n++] = key;
		} else if (what < 19) {
			take_both(&g, lists, key, now);
		} else {
			uint32_t n = seeded_below(&rng, MAX);

			ghosts_bound(&g, list, n);
			while (lists[list].n > n)
				model_drop(&lists[list], 0);
		}
		for (list = 0; list < GHOST_LISTS; list++)
			assert_int_equal(g.list[list].n, lists[list].n);
	}
	for (uint64_t key = 0; key < KEYS; key++)
		take_both(&g, lists, key << 8, now);
	assert_int_equal(g.list[0].n + g.list[1].n, 0);
	assert_true(g.touched <= GHOST_LISTS * MAX);
	ghosts_fini(&g);
}

static void without_memory_nothing_is_remembered(void **state)
{
	struct ghosts g = {0}; /* as ghosts_init leaves it */
	uint64_t ms;

	(void)state;
	ghosts_add(&g, 1, 0, 0);
	assert_int_equal(ghosts_take(&g, 1, 0, &ms), -1);
	ghosts_bound(&g, 0, 0);
	ghosts_fini(&g);
}

/* ---- a cache of pages, small enough to look through ---- */

#define SLOTS      64u
#define PAGE_BYTES (UINT64_C(1) << 16)

struct small_cache {
	struct policy policy;
	struct page_table table;
	uint64_t stamp;
};

static void cache_begin(struct small_cache *c, uint32_t slots)
{
	memset(c, 0, sizeof(*c));
	policy_init(&c->policy, slots);
	assert_int_equal(page_table_init(&c->table, slots), 0);
}

static bool may_go(const struct page *page)
{
	return page->state == PAGE_RESIDENT && !page->pins && !page->children;
}

static void settle(struct small_cache *c, struct page *page)
{
	if (may_go(page) && !page->in_lru)
		policy_add(&c->policy, page);
	else if (!may_go(page) && page->in_lru)
		policy_remove(&c->policy, page);
}

static void drop(struct small_cache *c, struct page *page)
{
	struct page *parent = page_parent(page);

	policy_gone(&c->policy, page, 0);
	page_move(page, PAGE_FREE);
	if (!parent)
		return;
	parent->children--;
	settle(c, parent);
}

static struct page *publish(struct small_cache *c, struct page *parent, uint64_t key,
			    bool *ret_back)
{
	uint64_t away_ms;
	struct page *page;
	bool back;

	if (c->table.live == c->table.slots) {
		page = policy_victim(&c->policy);
		if (!page)
			return NULL;
		drop(c, page);
	}
	page = page_table_take(&c->table, PAGE_FILLING);
	page->bytes = PAGE_BYTES;
	memcpy(page->digest, &key, sizeof(key));
	if (parent) {
		page->parent = parent->slot;
		page->position = parent->position + SKVQ_PAGE_TOKENS;
		parent->children++;
		settle(c, parent);
	}
	page->stamp = ++c->stamp;
	page_move(page, PAGE_RESIDENT);
	back = policy_born(&c->policy, page, 0, &away_ms);
	if (ret_back)
		*ret_back = back;
	settle(c, page);
	return page;
}

static void use(struct small_cache *c, struct page *page)
{
	policy_hit(&c->policy, page);
	page->stamp = ++c->stamp;
	settle(c, page);
}

static void cache_end(struct small_cache *c)
{
	struct page *page;

	while ((page = policy_victim(&c->policy)))
		drop(c, page);
	assert_int_equal(c->table.live, 0);
	policy_fini(&c->policy);
	page_table_fini(&c->table);
}

/* ---- what a user wants of it ---- */

#define HOT  16u
#define ROOM 64u

/* A chain that was asked for once again, and then ten times the cache of pages that are not. */
static void a_hot_chain_survives_a_scan_of_ten_times_the_cache(void **state)
{
	struct page *hot[HOT], *scan = NULL;
	struct page_ref refs[HOT];
	struct small_cache c;

	(void)state;
	cache_begin(&c, ROOM);
	for (uint64_t i = 0; i < HOT; i++)
		hot[i] = publish(&c, i ? hot[i - 1] : NULL, 1 + i, NULL);
	for (uint32_t i = 0; i < HOT; i++) {
		use(&c, hot[i]);
		refs[i] = page_ref(hot[i]);
	}
	for (uint64_t i = 0; i < 10 * ROOM; i++) {
		/* Documents of 20 pages. */
		scan = publish(&c, i % 20 ? scan : NULL, 1000 + i, NULL);
		assert_non_null(scan);
	}
	for (uint32_t i = 0; i < HOT; i++)
		assert_ptr_equal(page_table_get(&c.table, refs[i]), hot[i]);
	cache_end(&c);
}

/* The same hot pages, but nobody asks for them any more and others are: they make room. */
static void what_was_hot_once_goes_in_the_end(void **state)
{
	struct page *old[HOT], *page = NULL;
	struct page_ref refs[HOT];
	struct small_cache c;
	uint32_t left = 0;

	(void)state;
	cache_begin(&c, ROOM);
	for (uint64_t i = 0; i < HOT; i++) {
		old[i] = publish(&c, NULL, 1 + i, NULL);
		use(&c, old[i]);
		refs[i] = page_ref(old[i]);
	}
	for (uint64_t i = 0; i < 4 * ROOM; i++) {
		page = publish(&c, NULL, 1000 + i, NULL);
		use(&c, page);
	}
	for (uint32_t i = 0; i < HOT; i++)
		left += page_table_get(&c.table, refs[i]) != NULL;
	assert_int_equal(left, 0);
	cache_end(&c);
}

static void a_page_that_comes_back_is_kept_as_one_that_was_used(void **state)
{
	struct small_cache c;
	struct page *page;
	bool back;

	(void)state;
	cache_begin(&c, ROOM);
	page = publish(&c, NULL, 7, &back);
	assert_false(back);
	assert_int_equal(page->queue, POLICY_ONCE);
	for (uint64_t i = 0; i < ROOM; i++)
		(void)publish(&c, NULL, 1000 + i, NULL);
	page = publish(&c, NULL, 7, &back);
	assert_true(back);
	assert_int_equal(page->queue, POLICY_AGAIN);
	assert_true(c.policy.share > UINT64_C(1) << 31); /* more room for new ones */
	/* As many pages later as there is room it is forgotten. */
	for (uint64_t i = 0; i < 3 * ROOM; i++)
		use(&c, publish(&c, NULL, 5000 + i, NULL));
	(void)publish(&c, NULL, 7, &back);
	assert_false(back);
	cache_end(&c);
}

static void either_queue_keeps_a_quarter(void **state)
{
	struct small_cache c;
	struct page *page;
	uint64_t quarter = UINT64_C(1) << 30;

	(void)state;
	cache_begin(&c, ROOM);
	/* Round and round through a little more than fits, never used again in time. */
	for (uint64_t i = 0; i < 40 * ROOM; i++) {
		(void)publish(&c, NULL, i % (ROOM + ROOM / 2), NULL);
		assert_in_range(c.policy.share, quarter, 3 * quarter);
	}
	for (uint64_t i = 0; i < 40 * ROOM; i++) {
		page = publish(&c, NULL, 5000 + i % (ROOM + ROOM / 2), NULL);
		if (i % 3)
			use(&c, page);
		assert_in_range(c.policy.share, quarter, 3 * quarter);
	}
	cache_end(&c);
}

/* ---- against a search through all ---- */

static bool is_older(const struct page *a, const struct page *b)
{
	return a->stamp != b->stamp ? a->stamp < b->stamp : a->position > b->position;
}

/* What the policy must say, from the pages and the share alone. */
static const struct page *naive_victim(const struct small_cache *c)
{
	const struct page *oldest[POLICY_QUEUES] = {0};
	uint64_t bytes[POLICY_QUEUES] = {0};
	uint32_t queue;

	for (uint32_t i = 0; i < c->table.touched; i++) {
		const struct page *page = &c->table.pages[i];

		if (page->state == PAGE_FREE)
			continue;
		bytes[page->queue] += page->bytes;
		if (may_go(page) && (!oldest[page->queue] || is_older(page, oldest[page->queue])))
			oldest[page->queue] = page;
	}
	queue = (double)bytes[POLICY_ONCE] > (double)(bytes[POLICY_ONCE] + bytes[POLICY_AGAIN]) *
						 ((double)c->policy.share / 4294967296.0)
		    ? POLICY_ONCE
		    : POLICY_AGAIN;
	return oldest[queue] ? oldest[queue] : oldest[POLICY_ONCE + POLICY_AGAIN - queue];
}

static void some_step(struct small_cache *c, struct seeded *rng)
{
	struct page *page = &c->table.pages[seeded_below(rng, SLOTS)];
	uint32_t what = seeded_below(rng, 10);

	if (what < 5) {
		bool below = what < 3 && page->state == PAGE_RESIDENT;

		if (below)
			page->pins++; /* as a parent is: its child is published */
		if (below)
			settle(c, page);
		(void)publish(c, below ? page : NULL, seeded_below(rng, 4 * SLOTS), NULL);
		if (below) {
			page->pins--;
			settle(c, page);
		}
	} else if (page->state != PAGE_RESIDENT) {
		return;
	} else if (what < 7) {
		use(c, page);
	} else if (what < 8) {
		page->pins = !page->pins;
		settle(c, page);
	} else if (what < 9) {
		if (may_go(page))
			drop(c, page);
	} else {
		/* A refinement goes or comes back. */
		uint64_t bytes = PAGE_BYTES * (1 + seeded_below(rng, 4));
		uint64_t delta = bytes - page->bytes;

		page->bytes = bytes;
		policy_resized(&c->policy, page, delta);
	}
}

static void chooses_as_a_search_through_all_does(void **state)
{
	struct seeded rng = seeded_init();
	struct small_cache c;
	uint64_t came_back = 0;

	(void)state;
	cache_begin(&c, SLOTS);
	for (int step = 0; step < 60000; step++) {
		uint64_t candidates = 0;

		some_step(&c, &rng);
		for (uint32_t i = 0; i < SLOTS; i++)
			candidates += may_go(&c.table.pages[i]);
		assert_int_equal(policy_may_go(&c.policy), candidates);
		assert_ptr_equal(policy_victim(&c.policy), naive_victim(&c));
		assert_int_equal(c.policy.pages[POLICY_ONCE] + c.policy.pages[POLICY_AGAIN],
				 c.table.live);
		assert_true(c.policy.ghosts.list[0].n + c.policy.ghosts.list[1].n <= 2 * SLOTS);
		came_back += c.policy.pages[POLICY_AGAIN] > 0;
	}
	assert_true(came_back > 0);
	for (uint32_t i = 0; i < SLOTS; i++) {
		c.table.pages[i].pins = 0;
		settle(&c, &c.table.pages[i]);
	}
	cache_end(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(ghosts_are_two_bounded_queues),
	    cmocka_unit_test(without_memory_nothing_is_remembered),
	    cmocka_unit_test(a_hot_chain_survives_a_scan_of_ten_times_the_cache),
	    cmocka_unit_test(what_was_hot_once_goes_in_the_end),
	    cmocka_unit_test(a_page_that_comes_back_is_kept_as_one_that_was_used),
	    cmocka_unit_test(either_queue_keeps_a_quarter),
	    cmocka_unit_test(chooses_as_a_search_through_all_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
