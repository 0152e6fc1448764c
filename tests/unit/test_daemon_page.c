/* SPDX-License-Identifier: Apache-2.0 */
/* mem/page: the state table and handles; mem/lru: the order of eviction. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"

#include "mem/lru.h"
#include "mem/page.h"

/* The table written a second time, as the design draws it. */
static const char *const legal[PAGE_STATES] = {
    [PAGE_FREE] = "filling restoring",
    [PAGE_FILLING] = "resident free",
    [PAGE_RESIDENT] = "resident+stored free",
    [PAGE_RESIDENT_STORED] = "resident free",
    [PAGE_RESTORING] = "resident+stored free",
};

static bool has_word(const char *words, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = words; *at;) {
		size_t len = strcspn(at, " ");

		if (len == n && !strncmp(at, word, n))
			return true;
		at += len + (at[len] == ' ');
	}
	return false;
}

static void every_transition(void **state)
{
	(void)state;
	for (enum page_state from = 0; from < PAGE_STATES; from++) {
		for (enum page_state to = 0; to < PAGE_STATES; to++)
			assert_int_equal(page_legal(from, to),
					 has_word(legal[from], page_state_name(to)));
	}
	assert_false(page_legal(PAGE_STATES, PAGE_FREE));
	assert_false(page_legal(PAGE_FREE, PAGE_STATES));
}

/* Runs fn in a child; true if it aborted. */
static bool aborts(void (*fn)(struct page *), struct page *page)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (!freopen("/dev/null", "w", stderr))
			_exit(1);
		signal(SIGABRT, SIG_DFL);
		fn(page);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void to_free(struct page *page)
{
	page_move(page, PAGE_FREE);
}

static void to_restoring(struct page *page)
{
	page_move(page, PAGE_RESTORING);
}

static void illegal_moves_assert(void **state)
{
	struct page_table table;
	struct page *page;

	(void)state;
	assert_int_equal(page_table_init(&table, 2), 0);
	page = page_table_take(&table, PAGE_FILLING);
	assert_true(aborts(to_restoring, page));
	page_move(page, PAGE_RESIDENT);
	page->pins = 1; /* I1: a pinned page is never dropped */
	assert_true(aborts(to_free, page));
	page->pins = 0;
	page->children = 1;
	assert_true(aborts(to_free, page));
	page->children = 0;
	page->in_spill = true;
	assert_true(aborts(to_free, page));
	page->in_spill = false;
	assert_false(aborts(to_free, page));
	page_table_fini(&table);
}

static void stale_handles_fail(void **state)
{
	struct page_table table;
	struct page *a, *b;
	struct page_ref ref, none = {0, 0}, outside = {7, 1}, never = {1, 1};

	(void)state;
	assert_int_equal(page_table_init(&table, 2), 0);
	a = page_table_take(&table, PAGE_FILLING);
	ref = page_ref(a);
	assert_int_equal(ref.generation, 1);
	assert_ptr_equal(page_table_get(&table, ref), a);
	assert_null(page_table_get(&table, none));
	assert_null(page_table_get(&table, outside));
	assert_null(page_table_get(&table, never));
	page_move(a, PAGE_FREE);
	assert_null(page_table_get(&table, ref));
	assert_null(page_table_get(&table, page_ref(a))); /* the next generation, but free */
	b = page_table_take(&table, PAGE_FILLING);
	assert_ptr_equal(a, b); /* the slot is used again */
	assert_null(page_table_get(&table, ref));
	assert_int_equal(b->generation, 2);
	/* The generation goes round without ever being 0. */
	b->generation = UINT32_MAX;
	page_move(b, PAGE_FREE);
	b = page_table_take(&table, PAGE_FILLING);
	assert_int_equal(b->generation, 1);
	assert_non_null(page_table_take(&table, PAGE_FILLING));
	assert_null(page_table_take(&table, PAGE_FILLING)); /* full */
	assert_int_equal(table.live, 2);
	page_table_fini(&table);
}

/* ---- lru ---- */

#define N 500

static bool is_older(const struct page *a, const struct page *b)
{
	return a->stamp != b->stamp ? a->stamp < b->stamp : a->position > b->position;
}

/* Against a search through all, with adds, removes and pops mixed. */
static void lru_orders(void **state)
{
	struct seeded rng = seeded_init();
	struct page *pages = calloc(N, sizeof(*pages));
	struct lru lru = {0};

	(void)state;
	for (int step = 0; step < 20000; step++) {
		struct page *page = &pages[seeded_below(&rng, N)], *oldest = NULL;
		uint64_t n = 0;

		if (page->in_lru) {
			lru_remove(&lru, page);
		} else {
			page->stamp = seeded_below(&rng, 50);
			page->position = 80 * seeded_below(&rng, 1000);
			lru_add(&lru, page);
		}
		if (step % 16)
			continue;
		for (int i = 0; i < N; i++) {
			n += pages[i].in_lru;
			if (pages[i].in_lru && (!oldest || is_older(&pages[i], oldest)))
				oldest = &pages[i];
		}
		assert_int_equal(lru.n, n);
		assert_true(!oldest == !lru_oldest(&lru));
		if (oldest) {
			assert_int_equal(lru_oldest(&lru)->stamp, oldest->stamp);
			assert_int_equal(lru_oldest(&lru)->position, oldest->position);
			lru_remove(&lru, lru_oldest(&lru));
		}
	}
	for (struct page *last = NULL, *page; (page = lru_oldest(&lru)); last = page) {
		assert_true(!last || !is_older(page, last));
		lru_remove(&lru, page);
	}
	assert_int_equal(lru.n, 0);
	lru_remove(&lru, &pages[0]); /* not in: no-op */
	free(pages);
}

static void adopted_slots_keep_their_names(void **state)
{
	struct page_table table;
	struct page *page;

	(void)state;
	assert_int_equal(page_table_init(&table, 8), 0);
	page = page_table_adopt(&table, (struct page_ref){5, 9});
	assert_non_null(page);
	assert_int_equal(page->state, PAGE_FILLING);
	assert_non_null(page_table_adopt(&table, (struct page_ref){2, 30}));
	assert_null(page_table_adopt(&table, (struct page_ref){5, 10})); /* taken */
	assert_null(page_table_adopt(&table, (struct page_ref){8, 1}));  /* none */
	assert_null(page_table_adopt(&table, (struct page_ref){1, 0}));
	page_table_adopted(&table);
	assert_int_equal(table.live, 2);
	assert_ptr_equal(page_table_get(&table, (struct page_ref){5, 9}), page);
	/* Each slot between is there once, under a name that nobody has had. */
	for (uint32_t seen = 0; table.live < 8;) {
		page = page_table_take(&table, PAGE_FILLING);
		assert_non_null(page);
		assert_true(page->slot != 5 && page->slot != 2 && !(seen & 1u << page->slot));
		assert_int_equal(page->generation, page->slot < 5 ? 31 : 1);
		seen |= 1u << page->slot;
	}
	assert_null(page_table_take(&table, PAGE_FILLING));
	page_table_fini(&table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_transition),
	    cmocka_unit_test(illegal_moves_assert),
	    cmocka_unit_test(stale_handles_fail),
	    cmocka_unit_test(adopted_slots_keep_their_names),
	    cmocka_unit_test(lru_orders),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
