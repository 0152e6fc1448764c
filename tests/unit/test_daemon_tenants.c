/* SPDX-License-Identifier: Apache-2.0 */
/* Several tenants in one cache: whose page goes, and what nobody can take from another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "support/cache_rig.h"
#include "support/page_maker.h"

#define CAP 32u /* first pages under the cap */

/* One tenant's client: a namespace and pins. */
struct side {
	struct tenant *tenant;
	struct ns *ns;
	struct pins pins;
};

static struct rig rig;
static uint64_t page_bytes;

static void begin(const struct tenant_params *others, uint32_t n)
{
	rig_init_tenants(&rig, CAP, 4096, others, n);
	page_bytes = skvq_layout_page_bytes(&rig.layout, 0);
}

static void side_open(struct side *s, const char *tenant)
{
	struct identity id;
	struct why why;

	rig_identity(0, &id);
	s->tenant = cache_tenant(&rig.cache, tenant);
	assert_non_null(s->tenant);
	assert_int_equal(cache_ns_open(&rig.cache, s->tenant, &id, "m", &s->ns, &why), 0);
	pins_init(&s->pins, 4096);
	s->pins.group = &s->tenant->pins_group;
}

static void side_close(struct side *s)
{
	(void)cache_unpin_all(&rig.cache, &s->pins);
	pins_fini(&s->pins);
	cache_ns_close(&rig.cache, s->ns);
}

/* A first page of its own, pinned; NULL and the error. */
static struct page *put_in(struct side *s, uint32_t seed, int *ret_error)
{
	struct ns *own = rig.ns;
	struct page *page;

	rig.ns = s->ns;
	page = rig_publish(&rig, &s->pins, NULL, seed, ret_error);
	rig.ns = own;
	return page;
}

static void let_go(struct side *s)
{
	(void)cache_unpin_all(&rig.cache, &s->pins);
}

/* Publishes n pages one after the other and keeps none. */
static void scan(struct side *s, uint32_t first_seed, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		int err;

		assert_non_null(put_in(s, first_seed + i, &err));
		let_go(s);
	}
}

/* How many of the first pages of n seeds a match finds; keeps no pins. */
static uint32_t found(struct side *s, uint32_t first_seed, uint32_t n)
{
	struct ns *own = rig.ns;
	struct rig_match rm;
	uint32_t sum = 0;

	rig.ns = s->ns;
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(rig_match(&rig, &rm, &s->pins, first_seed + i, 1, 0), 0);
		sum += rm.m.n;
		let_go(s);
	}
	rig.ns = own;
	return sum;
}

/* The books of every tenant, counted again page by page. */
static void assert_books(void)
{
	uint64_t all = 0;

	for (uint32_t i = 0; i < rig.cache.n_tenants; i++) {
		const struct tenant *t = rig.cache.tenants[i];
		uint64_t bytes = 0, held = 0, pages = 0, pins = 0;

		for (const struct ns *ns = rig.cache.namespaces; ns; ns = ns->next) {
			if (ns->tenant != t)
				continue;
			for (uint32_t k = 0; k < ns->table.touched; k++) {
				const struct page *p = &ns->table.pages[k];

				if (p->state == PAGE_FREE)
					continue;
				pages++;
				bytes += p->bytes;
				pins += p->pins;
				held += p->held ? p->bytes : 0;
				assert_int_equal(p->held,
						 p->pins || p->held_children || !page_readable(p));
			}
		}
		assert_int_equal(t->bytes, bytes);
		assert_int_equal(t->held, held);
		assert_int_equal(t->pages, pages);
		assert_int_equal(t->pins, pins);
		assert_int_equal(t->pins_group.n, pins);
		all += bytes;
	}
	assert_int_equal(rig.cache.bytes, all);
	assert_true(all <= rig.cache.config.ram_max);
}

static void a_scan_takes_nothing_guaranteed(void **state)
{
	struct tenant_params others[] = {{.name = "quiet"}, {.name = "loud"}};
	struct side quiet, loud;

	(void)state;
	begin(NULL, 0); /* for page_bytes */
	others[0].ram_min = 8 * page_bytes;
	rig_fini(&rig);
	begin(others, 2);
	side_open(&quiet, "quiet");
	side_open(&loud, "loud");
	scan(&quiet, 100, 8);
	scan(&loud, 1000, 10 * CAP);
	assert_int_equal(found(&quiet, 100, 8), 8);
	assert_int_equal(quiet.tenant->stats.n[STAT_evictions], 0);
	assert_int_equal(quiet.tenant->bytes, 8 * page_bytes);
	assert_int_equal(loud.tenant->bytes, (CAP - 8) * page_bytes); /* all the rest */
	/* Also if the pages of the scan come back, and so are thought worth more. */
	for (uint32_t i = 0; i < 5; i++) {
		scan(&loud, 1000, 2 * CAP);
		(void)found(&loud, 1000, 2 * CAP);
	}
	assert_int_equal(found(&quiet, 100, 8), 8);
	assert_books();
	side_close(&quiet);
	side_close(&loud);
	rig_fini(&rig);
}

/* A guarantee that is no whole number of pages: a page that lies across it does not go either, though its
 * tenant has more above its guarantee than the one that asks. */
static void a_page_across_the_guarantee_stays(void **state)
{
	struct tenant_params others[] = {{.name = "quiet"}, {.name = "loud"}};
	struct side quiet, loud;

	(void)state;
	others[0].ram_min = 7 * page_bytes + page_bytes * 2 / 5;
	others[1].ram_min = 24 * page_bytes + page_bytes * 3 / 5;
	begin(others, 2);
	side_open(&quiet, "quiet");
	side_open(&loud, "loud");
	scan(&quiet, 100, 8);
	scan(&loud, 1000, CAP - 8);
	assert_int_equal(rig.cache.bytes, CAP * page_bytes);
	scan(&loud, 2000, 1);
	assert_int_equal(quiet.tenant->pages, 8);
	assert_int_equal(loud.tenant->stats.n[STAT_evictions], 1);
	assert_books();
	side_close(&quiet);
	side_close(&loud);
	rig_fini(&rig);
}

static void pins_take_nothing_guaranteed(void **state)
{
	struct tenant_params others[] = {{.name = "quiet"}, {.name = "loud"}};
	struct side quiet, loud;
	uint32_t n = 0;
	int err = 0;

	(void)state;
	others[0].ram_min = 8 * page_bytes;
	begin(others, 2);
	side_open(&quiet, "quiet");
	side_open(&loud, "loud");
	/* Nobody is there yet, and still what is guaranteed cannot be pinned away. */
	while (put_in(&loud, 1000 + n, &err))
		n++;
	assert_int_equal(err, -SKVQ_ETRAM);
	assert_int_equal(n, CAP - 8);
	for (uint32_t i = 0; i < 8; i++)
		assert_non_null(put_in(&quiet, 100 + i, &err));
	assert_null(put_in(&quiet, 200, &err)); /* more than that all others have pinned */
	assert_int_equal(err, -SKVQ_ETRAM);
	assert_books();
	/* What lies in idle guaranteed room may be used, and goes when it is asked for. */
	let_go(&quiet);
	let_go(&loud);
	scan(&quiet, 300, 1);
	assert_books();
	side_close(&quiet);
	side_close(&loud);
	rig_fini(&rig);
}

static void a_match_pins_nothing_guaranteed(void **state)
{
	struct tenant_params others[] = {{.name = "quiet"}, {.name = "loud"}};
	struct rig_match rm[CAP];
	struct side quiet, loud;
	struct ns *own;
	uint32_t n = 0;
	int err;

	(void)state;
	others[0].ram_min = 8 * page_bytes;
	begin(others, 2);
	side_open(&quiet, "quiet");
	side_open(&loud, "loud");
	own = rig.ns;
	/* Unpinned pages fill all memory, borrowed room too. */
	scan(&loud, 1000, CAP);
	assert_int_equal(loud.tenant->bytes, CAP * page_bytes);
	rig.ns = loud.ns;
	for (uint32_t i = 0; i < CAP; i++) {
		assert_int_equal(rig_match(&rig, &rm[i], &loud.pins, 1000 + i, 1, 0), 0);
		n += rm[i].m.n;
	}
	rig.ns = own;
	assert_int_equal(n, CAP - 8);
	assert_int_equal(loud.tenant->stats.n[STAT_matches_cut], 8);
	assert_int_equal(loud.pins.reserved, 0);
	for (uint32_t i = 0; i < 8; i++)
		assert_non_null(put_in(&quiet, 100 + i, &err));
	assert_books();
	side_close(&quiet);
	side_close(&loud);
	rig_fini(&rig);
}

/* A page that only its continuation keeps is held like a pinned one. */
static void ancestors_are_held(void **state)
{
	const struct tenant_params other = {.name = "other"};
	struct page *chain[4];
	struct page_ref refs[4];
	struct why why;
	struct side s;
	struct ns *own;

	(void)state;
	begin(&other, 1);
	side_open(&s, "other");
	own = rig.ns;
	rig.ns = s.ns;
	rig_chain(&rig, &s.pins, 7, 4, chain);
	rig.ns = own;
	for (uint32_t i = 0; i < 4; i++)
		refs[i] = page_ref(chain[i]);
	assert_int_equal(cache_unpin(&rig.cache, s.ns, &s.pins, refs, 3, &why), 0);
	assert_int_equal(s.tenant->held, s.tenant->bytes);
	assert_books();
	assert_int_equal(cache_unpin(&rig.cache, s.ns, &s.pins, refs + 3, 1, &why), 0);
	assert_int_equal(s.tenant->held, 0);
	assert_books();
	side_close(&s);
	rig_fini(&rig);
}

static void tenants_come_to_equal_parts(void **state)
{
	const struct tenant_params others[] = {{.name = "a"}, {.name = "b"}, {.name = "c"}};
	struct side side[3];

	(void)state;
	begin(others, 3);
	for (uint32_t i = 0; i < 3; i++)
		side_open(&side[i], others[i].name);
	scan(&side[0], 1000, 4 * CAP); /* alone: everything */
	assert_int_equal(side[0].tenant->bytes, CAP * page_bytes);
	scan(&side[1], 2000, 4 * CAP); /* half each, however long it reads */
	assert_true(side[0].tenant->pages >= CAP / 2 - 1);
	scan(&side[2], 3000, 4 * CAP);
	for (uint32_t i = 0; i < 3; i++)
		assert_in_range(side[i].tenant->pages, CAP / 3 - 1, CAP / 3 + 2);
	/* A tenant that has less than its part is not touched by the others. */
	let_go(&side[2]);
	assert_books();
	for (uint32_t i = 0; i < 3; i++)
		side_close(&side[i]);
	rig_fini(&rig);
}

/* A small working set beside a scan: its hit rate stays what it is alone. */
static void a_scan_beside_costs_no_hits(void **state)
{
	const struct tenant_params others[] = {{.name = "worker"}, {.name = "scanner"}};
	struct side worker, scanner;
	uint32_t hits = 0, rounds = 40, set = CAP / 4;

	(void)state;
	begin(others, 2);
	side_open(&worker, "worker");
	side_open(&scanner, "scanner");
	scan(&worker, 100, set);
	for (uint32_t i = 0; i < rounds; i++) {
		scan(&scanner, 1000 + i * CAP, CAP);
		hits += found(&worker, 100, set);
	}
	assert_int_equal(hits, rounds * set);
	assert_books();
	side_close(&worker);
	side_close(&scanner);
	rig_fini(&rig);
}

static void caps_of_its_own(void **state)
{
	struct tenant_params other = {.name = "other", .pins_max = 3, .namespaces_max = 2};
	struct side s;
	struct identity id;
	struct ns *ns[2];
	struct why why;
	int err;

	(void)state;
	other.ram_max = 4 * page_bytes;
	begin(&other, 1);
	side_open(&s, "other");
	for (uint32_t i = 0; i < 3; i++)
		assert_non_null(put_in(&s, i, &err));
	assert_null(put_in(&s, 3, &err));
	assert_int_equal(err, -SKVQ_ETPINS);
	let_go(&s);
	/* Its own pages go at its own cap, with most of the memory free. */
	scan(&s, 100, 20);
	assert_true(s.tenant->bytes <= 4 * page_bytes);
	assert_int_equal(rig.cache.bytes, s.tenant->bytes);
	s.tenant->pins_group.max = 100;
	for (uint32_t i = 0; i < 4; i++)
		assert_non_null(put_in(&s, 200 + i, &err));
	assert_null(put_in(&s, 300, &err));
	assert_int_equal(err, -SKVQ_ETRAM);
	/* Namespaces: one more, and no third; "default" has its own. */
	rig_identity(1, &id);
	assert_int_equal(cache_ns_open(&rig.cache, s.tenant, &id, "m", &ns[0], &why), 0);
	rig_identity(2, &id);
	assert_int_equal(cache_ns_open(&rig.cache, s.tenant, &id, "m", &ns[1], &why),
			 -SKVQ_ENAMESPACES);
	assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "m", &ns[1], &why), 0);
	assert_true(ns[0]->id != ns[1]->id);
	assert_books();
	cache_ns_close(&rig.cache, ns[0]);
	cache_ns_close(&rig.cache, ns[1]);
	side_close(&s);
	rig_fini(&rig);
}

static void copies_at_once_are_bounded(void **state)
{
	const struct tenant_params other = {.name = "other", .fills_max = 2};
	struct rig_publish rp[3];
	struct side s;
	struct ns *own;

	(void)state;
	begin(&other, 1);
	side_open(&s, "other");
	own = rig.ns;
	rig.ns = s.ns;
	for (uint32_t i = 0; i < 3; i++) {
		rig_prepare(&rig, &rp[i], &s.pins, NULL, i, i);
		assert_int_equal(cache_publish(&rig.cache, &rp[i].p, &rp[i].why),
				 i < 2 ? 0 : -SKVQ_EQUEUE);
	}
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(rig_wait(&rig, &rp[i]), 0);
	assert_int_equal(s.tenant->n_fills, 0);
	assert_int_equal(cache_publish(&rig.cache, &rp[2].p, &rp[2].why), 0);
	assert_int_equal(rig_wait(&rig, &rp[2]), 0);
	rig.ns = own;
	assert_books();
	side_close(&s);
	rig_fini(&rig);
}

static void on_checked(void *ctx, enum check_end end, uint64_t bytes)
{
	uint32_t *n = ctx;

	(void)bytes;
	assert_int_equal(end, CHECK_GOOD);
	(*n)++;
}

static void nothing_to_do(struct job *job)
{
	(void)job;
}

/* Who asks for many leaves room for others'. */
static void checks_at_once_are_bounded(void **state)
{
	const struct tenant_params other = {.name = "other"};
	struct job job = {.run = nothing_to_do, .done = nothing_to_do};
	uint32_t n = 0, n_own = 0, asked = 0;
	struct page *page, *own;
	struct rig_gate gate;
	struct side s;
	int err;

	(void)state;
	begin(&other, 1);
	side_open(&s, "other");
	page = put_in(&s, 1, &err);
	assert_non_null(page);
	own = rig_publish(&rig, &rig.pins, NULL, 2, &err);
	assert_non_null(own);
	rig_gate_shut(&rig, &gate);
	while (asked < 1000 && !(err = cache_check(&rig.cache, page, on_checked, &n)))
		asked++;
	assert_int_equal(err, -SKVQ_EBUSY);
	assert_int_equal(cache_check(&rig.cache, own, on_checked, &n_own), 0);
	assert_int_equal(worker_submit(&rig.worker, &job), 0);
	rig_gate_open(&rig, &gate);
	while (n < asked || !n_own)
		rig_step(&rig);
	side_close(&s);
	rig_fini(&rig);
}

/* ---- bounds that change ---- */

static void limit_all(uint64_t pages)
{
	const struct cache_config *now = &rig.cache.config;
	const struct cache_limits limits = {.ram_max = pages * page_bytes,
					    .namespaces_max = now->namespaces_max,
					    .spill_percent = now->spill_percent,
					    .restores_max = now->restores_max,
					    .fills_max = now->fills_max};

	cache_limit(&rig.cache, &limits);
}

static void limit_one(struct side *s, uint64_t min_pages, uint64_t max_pages)
{
	struct tenant_params params = s->tenant->limits;

	params.ram_min = min_pages * page_bytes;
	params.ram_max = max_pages * page_bytes;
	cache_limit_tenant(&rig.cache, s->tenant, &params);
}

/* Down to what is pinned, and to the goal when that is let go of; nobody's guarantee is touched. */
static void a_lowered_cap_comes_down(void **state)
{
	struct tenant_params others[] = {{.name = "quiet"}, {.name = "loud"}};
	struct side quiet, loud;
	int err;

	(void)state;
	begin(NULL, 0);
	others[0].ram_min = 4 * page_bytes;
	rig_fini(&rig);
	begin(others, 2);
	side_open(&quiet, "quiet");
	side_open(&loud, "loud");
	scan(&quiet, 100, 4);
	scan(&loud, 1000, 20);
	for (uint32_t i = 0; i < 6; i++)
		assert_non_null(put_in(&loud, 2000 + i, &err));
	limit_all(8);
	/* Nothing has gone yet, and nothing that comes makes it more. */
	assert_int_equal(rig.cache.pages, 30);
	assert_int_equal(rig.cache.config.ram_max, 30 * page_bytes);
	assert_non_null(put_in(&loud, 3000, &err));
	assert_int_equal(rig.cache.pages, 30);
	assert_true(cache_shrink(&rig.cache)); /* 7 are pinned, 4 guaranteed */
	assert_int_equal(rig.cache.pages, 11);
	assert_int_equal(quiet.tenant->pages, 4);
	assert_int_equal(rig.cache.config.ram_max, 11 * page_bytes);
	assert_true(cache_shrink(&rig.cache));
	let_go(&loud);
	assert_false(cache_shrink(&rig.cache));
	assert_int_equal(rig.cache.pages, 8);
	assert_int_equal(found(&quiet, 100, 4), 4);
	assert_int_equal(rig.cache.config.ram_max, 8 * page_bytes);
	assert_false(cache_shrink(&rig.cache));
	scan(&loud, 4000, 10);
	assert_int_equal(rig.cache.pages, 8);
	/* And up again, at once; in the midst of a shrink too. */
	limit_all(2 + 4);
	limit_all(20);
	assert_int_equal(rig.cache.ram_goal, 0);
	scan(&loud, 5000, 30);
	assert_int_equal(rig.cache.pages, 20);
	assert_books();
	side_close(&quiet);
	side_close(&loud);
	rig_fini(&rig);
}

static void a_tenants_cap_comes_down(void **state)
{
	const struct tenant_params other = {.name = "other"};
	struct side s;

	(void)state;
	begin(&other, 1);
	side_open(&s, "other");
	scan(&s, 0, 20);
	limit_one(&s, 0, 5);
	assert_int_equal(s.tenant->limits.ram_max, 20 * page_bytes);
	assert_false(cache_shrink(&rig.cache));
	assert_int_equal(s.tenant->pages, 5);
	assert_int_equal(s.tenant->limits.ram_max, 5 * page_bytes);
	scan(&s, 100, 10);
	assert_int_equal(s.tenant->pages, 5);
	limit_one(&s, 2, 0); /* none any more, and a guarantee */
	scan(&s, 200, 40);
	assert_int_equal(s.tenant->pages, CAP);
	assert_int_equal(s.tenant->limits.ram_min, 2 * page_bytes);
	assert_books();
	side_close(&s);
	rig_fini(&rig);
}

/* A namespace that was made under a small cap has slots for that. Its own pages make room then. */
static void a_raised_cap_and_an_old_namespace(void **state)
{
	struct side small, other;
	struct identity id;
	struct why why;
	struct ns *ns;

	(void)state;
	begin(NULL, 0);
	limit_all(4);
	small = (struct side){.tenant = rig.tenant};
	rig_identity(7, &id);
	assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "m", &small.ns, &why), 0);
	pins_init(&small.pins, 4096);
	ns = small.ns;
	limit_all(CAP);
	other = (struct side){.tenant = rig.tenant, .ns = rig.ns};
	rig.ns->openers++;
	pins_init(&other.pins, 4096);
	scan(&other, 500, 3);
	scan(&small, 0, 3 * CAP);
	assert_true(ns->table.slots < CAP);
	assert_int_equal(ns->table.live, ns->table.slots); /* all of them in use, none refused */
	assert_int_equal(found(&other, 500, 3), 3);
	assert_int_equal(found(&small, 3 * CAP - 2, 2), 2);
	/* Older pages of another namespace do not go for it. */
	scan(&small, 1000, 5);
	assert_int_equal(found(&other, 500, 3), 3);
	assert_books();
	side_close(&small);
	side_close(&other);
	rig_fini(&rig);
}

static void lowered_bounds_of_pins_and_namespaces(void **state)
{
	struct side s;
	struct ns *ns[3];
	struct identity id;
	struct why why;
	struct tenant_params params;
	int err;

	(void)state;
	begin(NULL, 0);
	s = (struct side){.tenant = rig.tenant, .ns = rig.ns};
	rig.ns->openers++;
	pins_init(&s.pins, 8);
	s.pins.group = &s.tenant->pins_group;
	for (uint32_t i = 0; i < 5; i++)
		assert_non_null(put_in(&s, i, &err));
	s.pins.max = 3; /* those that are there stay */
	assert_int_equal(pins_left(&s.pins), 0);
	assert_null(put_in(&s, 10, &err));
	assert_int_equal(err, -SKVQ_EPINS);
	s.pins.max = 8;
	params = s.tenant->limits;
	params.pins_max = 4;
	params.namespaces_max = 2;
	for (uint32_t i = 0; i < 3; i++) {
		rig_identity(i + 1, &id);
		assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "m", &ns[i], &why), 0);
		cache_ns_close(&rig.cache, ns[i]);
	}
	cache_limit_tenant(&rig.cache, s.tenant, &params);
	assert_null(put_in(&s, 10, &err));
	assert_int_equal(err, -SKVQ_ETPINS);
	assert_int_equal(rig.tenant->n_namespaces, 4);
	rig_identity(9, &id);
	assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "m", &ns[0], &why), 0);
	assert_int_equal(rig.tenant->n_namespaces, 2); /* all three that nobody has open went */
	cache_ns_close(&rig.cache, ns[0]);
	side_close(&s);
	rig_fini(&rig);
}

/* The bound of all was lowered below what another has open: nothing of one's own goes in vain. */
static void nothing_goes_for_a_namespace_that_cannot_be(void **state)
{
	const struct tenant_params other = {.name = "other"};
	struct side s;
	struct identity id;
	struct why why;
	struct ns *ns[4], *mine;

	(void)state;
	begin(&other, 1);
	side_open(&s, "other");
	scan(&s, 0, 3);
	rig.cache.config.namespaces_max = 8;
	for (uint32_t i = 0; i < 4; i++) {
		rig_identity(i + 1, &id);
		assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "m", &ns[i], &why), 0);
	}
	cache_ns_close(&rig.cache, s.ns);
	rig.cache.config.namespaces_max = 3;
	rig_identity(9, &id);
	assert_int_equal(cache_ns_open(&rig.cache, s.tenant, &id, "m", &mine, &why),
			 -SKVQ_ENAMESPACES);
	assert_int_equal(s.tenant->n_namespaces, 1);
	assert_int_equal(s.tenant->pages, 3);
	/* Its own may go for its own. */
	rig.cache.config.namespaces_max = 6;
	assert_int_equal(cache_ns_open(&rig.cache, s.tenant, &id, "m", &mine, &why), 0);
	assert_int_equal(s.tenant->n_namespaces, 1);
	cache_ns_close(&rig.cache, mine);
	for (uint32_t i = 0; i < 4; i++)
		cache_ns_close(&rig.cache, ns[i]);
	pins_fini(&s.pins);
	rig_fini(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_scan_takes_nothing_guaranteed),
	    cmocka_unit_test(a_page_across_the_guarantee_stays),
	    cmocka_unit_test(pins_take_nothing_guaranteed),
	    cmocka_unit_test(a_match_pins_nothing_guaranteed),
	    cmocka_unit_test(ancestors_are_held),
	    cmocka_unit_test(tenants_come_to_equal_parts),
	    cmocka_unit_test(a_scan_beside_costs_no_hits),
	    cmocka_unit_test(caps_of_its_own),
	    cmocka_unit_test(copies_at_once_are_bounded),
	    cmocka_unit_test(checks_at_once_are_bounded),
	    cmocka_unit_test(a_lowered_cap_comes_down),
	    cmocka_unit_test(a_tenants_cap_comes_down),
	    cmocka_unit_test(a_raised_cap_and_an_old_namespace),
	    cmocka_unit_test(lowered_bounds_of_pins_and_namespaces),
	    cmocka_unit_test(nothing_goes_for_a_namespace_that_cannot_be),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
