/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences as engines use them: cut, forked, frozen and thawed, with and without a daemon. What a
 * sequence is afterwards is held against one that took the straight way, bit for bit.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon.h"
#include "synthetic.h"

static struct test_daemon daemon_;

static int setup(void **state)
{
	(void)state;
	test_daemon_init(&daemon_);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	test_daemon_fini(&daemon_);
	return 0;
}

static int teardown_profile(void **state)
{
	(void)state;
	profile = "k2v1.5";
	return 0;
}

static const char *const profiles[] = {
    "k4v2",     "k2v1.5",           "k3v2",          "k8v8",     "fp16",
    "e2.1-nall", "affine-k4v4-g32", "skvq-k4v4-g32", "skvq-k2v1.5-g32"};

enum { N_PROFILES = sizeof profiles / sizeof profiles[0] };

/* Embedded, without looking for pages. */
static void run_private(struct run *r, const char *name)
{
	profile = name;
	run_open(r, NULL, TOKENS, 0, 0, "n1");
}

static void run_to(struct run *r, uint32_t n)
{
	while (r->at < n)
		run_step(r, n - r->at < CHUNK ? n - r->at : CHUNK);
}

/* Another engine on the same prompt. */
static void run_open_tokens(struct run *r, const char *socket, const int32_t *tokens, uint32_t prompt)
{
	memset(r, 0, sizeof *r);
	run_open_model(r, socket, "n1");
	memcpy(r->tokens, tokens, sizeof r->tokens);
	skvq_seq_desc d = {.struct_size = sizeof d,
	                   .tokens = r->tokens,
	                   .n_tokens = prompt,
	                   .max_tokens = TOKENS,
	                   .max_append = CHUNK};
	r->matched = api->seq_open(r->model, &d, &r->seq);
	assert_true(r->matched >= 0);
}

/* Both go on to the end, one token at a time at first. */
static void same_from_here(struct run *a, struct run *b, uint32_t to)
{
	assert_int_equal(a->at, b->at);
	for (uint32_t i = 0; a->at < to; i++) {
		uint32_t n = i < 40 ? 1 : to - a->at < 50 ? to - a->at : 50;

		assert_true(run_step(a, n) == run_step(b, n));
	}
}

/* ---- seq_truncate ---- */

/* Drafts that are not taken leave no trace. */
static void a_draft_cut_off_was_never_there(void **state)
{
	(void)state;
	static struct run a, b;

	for (int p = 0; p < N_PROFILES; p++) {
		run_private(&a, profiles[p]);
		run_private(&b, profiles[p]);
		run_to(&a, 512);
		run_to(&b, 512);
		for (uint32_t round = 0; round < 25; round++) {
			uint32_t at = a.at, draft = 1 + round % 16, taken = round % 5 < draft ? round % 5 : 0;

			run_turn(&a, at + taken, 7);
			run_step(&a, draft + taken);
			run_truncate(&a, at + taken);
			run_turn(&a, at + taken, 0);
			if (taken)
				run_to(&b, at + taken);
			for (int i = 0; i < 2; i++)
				assert_true(run_step(&a, 1) == run_step(&b, 1));
			assert_int_equal(info_of(&a).n_paged, info_of(&b).n_paged);
		}
		same_tokens(&a, &b, a.at);
		same_from_here(&a, &b, 800);
		run_close(&a);
		run_close(&b);
	}
}

/* Below the rows that are kept: what is kept reads as before, and codes are as if it were new. */
static void a_deep_cut_keeps_what_attention_saw(void **state)
{
	(void)state;
	static const uint32_t cuts[] = {0, 3, 85, 96, 411, 643, 799, 835};
	static struct run a, b;

	for (int p = 0; p < N_PROFILES; p++) {
		for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
			run_private(&a, profiles[p]);
			run_private(&b, profiles[p]);
			run_to(&a, 900);
			run_to(&b, 900);
			run_truncate(&a, cuts[i]);
			skvq_seq_info info = info_of(&a);
			assert_int_equal(info.n_tokens, cuts[i]);
			assert_true(info.n_paged <= cuts[i]);
			assert_true(info.pages_local == (info.n_paged + 79) / 80);
			same_tokens(&a, &b, info.n_paged);
			run_to(&a, 900);
			same_tokens(&a, &b, 900);
			for (int k = 0; k < 5; k++)
				assert_true(run_step(&a, 1) == run_step(&b, 1));
			run_close(&a);
			run_close(&b);
		}
	}
}

/* Cut again before the tile is whole, and again behind it. */
static void cuts_follow_cuts(void **state)
{
	(void)state;
	static struct run a, b;
	uint32_t seed = 1;

	for (int p = 0; p < N_PROFILES; p++) {
		run_private(&a, profiles[p]);
		run_private(&b, profiles[p]);
		run_to(&a, 700);
		for (int i = 0; i < 25; i++) {
			seed = mix(seed + 77);
			run_truncate(&a, a.at - seed % (a.at < 120 ? a.at + 1 : 120));
			run_turn(&a, a.at, seed % 3);
			run_to(&a, a.at + (seed >> 8) % 110);
		}
		run_truncate(&a, a.at / 2);
		memcpy(b.tokens, a.tokens, sizeof b.tokens);
		run_to(&a, 900);
		run_to(&b, 900);
		same_tokens(&a, &b, 900);
		same_from_here(&a, &b, 960);
		run_close(&a);
		run_close(&b);
	}
}

static void cuts_are_refused(void **state)
{
	(void)state;
	static struct run a;

	run_private(&a, profile);
	run_to(&a, 100);
	assert_int_equal(api->seq_truncate(a.seq, 101), -SKVQ_ERANGE);
	assert_int_equal(api->seq_truncate(NULL, 0), -SKVQ_EINVAL);
	assert_int_equal(info_of(&a).n_tokens, 100);
	run_close(&a);
}

/* Pages that an engine has published stay what they were when it goes back into them, and what it
 * publishes afterwards is what a fresh engine would have. */
static void published_pages_are_cut(void **state)
{
	(void)state;
	static const uint32_t cuts[] = {900, 803, 790, 640, 500, 419};
	static struct run a, b, c;

	for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
		uint32_t cut = cuts[i], tail = (uint32_t)i + 1;

		run_open(&a, daemon_.socket, TOKENS, 0, 0, "n1");
		run_to(&a, 1000);
		wait_shared(&a, (1000 - 64) / 80);
		run_truncate(&a, cut);
		assert_true(info_of(&a).pages_shared <= cut / 80);
		assert_int_equal(status_of(daemon_.socket).pins, info_of(&a).pages_shared);
		run_turn(&a, cut, tail);
		run_to(&a, 1100);
		assert_true(api->seq_poll(a.seq) >= 0);
		/* 419 and 803 are in the first tile of a page, which then stays private. */
		uint32_t shares = cut % 80 < 16 && cut % 80 ? cut / 80 : (1100 - 64) / 80;
		wait_shared(&a, shares);
		for (int k = 0; k < 20; k++) {
			assert_true(api->seq_poll(a.seq) >= 0);
			nap_ms(1);
		}
		assert_int_equal(info_of(&a).pages_shared, shares);

		run_open(&c, daemon_.socket, cut, tail, 1100, "n1");
		assert_memory_equal(a.tokens, c.tokens, sizeof a.tokens);
		assert_int_equal(c.matched, shares * 80);
		run_private(&b, profile);
		memcpy(b.tokens, a.tokens, sizeof b.tokens);
		run_to(&b, 1100);
		same_tokens(&c, &b, (uint32_t)c.matched);
		same_tokens(&a, &b, 1000);
		run_close(&b);
		run_close(&c);
		run_close(&a);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
	}
}

/* Cut while the daemon is asked to take the very pages in, hung or not. */
static void pages_in_flight_are_cut(void **state)
{
	(void)state;
	static struct run a, b, c;

	for (uint32_t round = 0; round < 6; round++) {
		run_open(&a, daemon_.socket, TOKENS, round, 0, "n1");
		run_turn(&a, 0, round);
		run_to(&a, 384);
		wait_shared(&a, 4);
		if (round % 2)
			assert_int_equal(kill(daemon_.pid, SIGSTOP), 0);
		run_to(&a, 640); /* three pages more, answers not taken in */
		run_truncate(&a, 400 + 16 * round);
		run_turn(&a, a.at, round + 50);
		run_to(&a, 640);
		if (round % 2)
			assert_int_equal(kill(daemon_.pid, SIGCONT), 0);
		wait_shared(&a, 7);
		run_to(&a, 800);
		wait_shared(&a, 9);

		run_private(&b, profile);
		memcpy(b.tokens, a.tokens, sizeof b.tokens);
		run_to(&b, 800);
		same_tokens(&a, &b, 720);
		run_open_tokens(&c, daemon_.socket, a.tokens, 800);
		assert_int_equal(c.matched, 720);
		same_tokens(&c, &b, 720);
		run_close(&b);
		run_close(&c);
		run_close(&a);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
	}
}

/* ---- seq_fork ---- */

/* The same model and session, another sequence. Ended by seq_close alone. */
static void run_fork(const struct run *from, struct run *to)
{
	*to = *from;
	to->seq = NULL;
	assert_int_equal(api->seq_fork(from->seq, &to->seq), 0);
	assert_non_null(to->seq);
}

/* One that took the way of r by itself. */
static void run_alone(struct run *alone, const struct run *r)
{
	run_private(alone, profile);
	memcpy(alone->tokens, r->tokens, sizeof r->tokens);
	for (uint32_t i = 0; alone->at < r->at; i++)
		run_step(alone, r->at - alone->at < 50 ? r->at - alone->at : 50);
}

/* Several that go on at once, each beside one of its own. */
static void each_equals(struct run *runs, struct run *alone, uint32_t n, uint32_t tokens)
{
	for (uint32_t k = 0; k < tokens; k += 1 + k % 7)
		for (uint32_t i = 0; i < n; i++)
			assert_true(run_step(&runs[i], 1 + k % 7) == run_step(&alone[i], 1 + k % 7));
	for (uint32_t i = 0; i < n; i++)
		same_tokens(&runs[i], &alone[i], runs[i].at);
}

/* Both branches, and a branch of a branch, whichever closes first. */
static void branches_do_not_meet(void **state)
{
	(void)state;
	static const uint32_t at[] = {0, 7, 70, 300, 384, 464, 470};
	static struct run r[4], alone[4];

	for (int p = 0; p < N_PROFILES; p++) {
		uint32_t first = at[(uint32_t)p % (sizeof at / sizeof at[0])];

		run_private(&r[0], profiles[p]);
		for (uint32_t i = 0; r[0].at < first; i++)
			run_step(&r[0], first - r[0].at < 50 ? first - r[0].at : 50);
		run_fork(&r[0], &r[1]);
		run_turn(&r[1], r[1].at, 1);
		run_alone(&alone[0], &r[0]);
		run_alone(&alone[1], &r[1]);
		each_equals(r, alone, 2, 170);
		run_fork(&r[1], &r[2]);
		run_turn(&r[2], r[2].at, 2);
		run_alone(&alone[2], &r[2]);
		run_fork(&r[0], &r[3]);
		run_turn(&r[3], r[3].at, 3);
		run_alone(&alone[3], &r[3]);
		each_equals(r, alone, 4, 60);
		run_truncate(&r[2], r[2].at - 11);
		run_truncate(&alone[2], alone[2].at - 11);
		each_equals(r, alone, 4, 60);
		/* The first goes first; what the others have of it stays. */
		api->seq_close(r[p % 2].seq);
		each_equals(r + 2, alone + 2, 2, 100);
		api->seq_close(r[3].seq);
		each_equals(r + 2, alone + 2, 1, 40);
		api->seq_close(r[1 - p % 2].seq);
		run_truncate(&r[2], 40);
		run_truncate(&alone[2], 40);
		each_equals(r + 2, alone + 2, 1, 120);
		api->seq_close(r[2].seq);
		api->close(r[0].session);
		for (int i = 0; i < 4; i++)
			run_close(&alone[i]);
	}
}

/* With tokens that are appended and not committed. */
static void a_branch_in_the_middle_of_a_step(void **state)
{
	(void)state;
	static struct run a, b;
	static float k[KV_HEADS][DIM], v[KV_HEADS][DIM], back[2][KV_HEADS][DIM];

	run_private(&a, profile);
	run_to(&a, 200);
	fill(&k[0][0], KV_HEADS * DIM, 1);
	fill(&v[0][0], KV_HEADS * DIM, 2);
	skvq_kv kv = {.struct_size = sizeof kv,
	              .layer = 1,
	              .position = 200,
	              .n_tokens = 1,
	              .k = k,
	              .v = v,
	              .k_head_stride = sizeof k[0],
	              .v_head_stride = sizeof v[0]};
	assert_int_equal(api->append(a.seq, &kv), 0);
	run_fork(&a, &b);
	for (int i = 0; i < 2; i++) {
		skvq_export e = {.struct_size = sizeof e,
		                 .layer = 1,
		                 .position = 200,
		                 .n_tokens = 1,
		                 .k = back[i],
		                 .k_head_stride = sizeof back[i][0],
		                 .v_head_stride = sizeof back[i][0]};
		assert_int_equal(api->export_kv(i ? b.seq : a.seq, &e), 0);
	}
	assert_memory_equal(back[0], back[1], sizeof back[0]);
	kv.position = 201;
	assert_int_equal(api->append(b.seq, &kv), 0); /* each has a window of its own */
	assert_int_equal(api->append(a.seq, &kv), 0);
	assert_int_equal(api->seq_fork(NULL, &b.seq), -SKVQ_EINVAL);
	assert_int_equal(api->seq_fork(a.seq, NULL), -SKVQ_EINVAL);
	run_close(&a); /* the session's end ends b */
}

static void wait_published(struct run *r, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		wait_shared(&r[i], info_of(&r[i]).n_paged / 80);
}

/* Beams on a daemon: every page is there once, pins are counted, and the daemon may come and go. */
static void branches_share_what_is_published(void **state)
{
	(void)state;
	static struct run r[3], alone[3];

	for (uint32_t lost = 0; lost < 2; lost++) {
		run_open(&r[0], daemon_.socket, TOKENS, 0, 0, "n1");
		run_to(&r[0], 500); /* its pages are shared, in flight or local when it is forked */
		if (lost)
			wait_shared(&r[0], 5);
		run_fork(&r[0], &r[1]);
		run_turn(&r[1], r[1].at, 1);
		run_fork(&r[1], &r[2]);
		run_turn(&r[2], r[2].at, 2);
		for (uint32_t i = 0; i < 3; i++) {
			profile = "k2v1.5";
			run_private(&alone[i], profile);
			memcpy(alone[i].tokens, r[i].tokens, sizeof r[i].tokens);
			run_to(&alone[i], 500);
		}
		each_equals(r, alone, 3, 150);
		wait_published(r, 3);
		/* Six pages of what they have in common, once, and what each has for itself. */
		uint64_t pages = status_of(daemon_.socket).pages;
		assert_int_equal(pages, 6 + 3 * ((650 - 64) / 80 - 6));
		if (lost) {
			test_daemon_stop(&daemon_, SIGKILL);
			each_equals(r, alone, 3, 20);
			test_daemon_start(&daemon_, SKVQD_PATH, NULL);
			nap_ms(100);
			each_equals(r, alone, 3, 100);
			for (int k = 0; k < 500 && info_of(&r[2]).daemon != 1; k++) {
				assert_true(api->seq_poll(r[2].seq) >= 0);
				nap_ms(10);
			}
			wait_published(r, 3);
			assert_true(status_of(daemon_.socket).pages >= pages);
		}
		api->seq_close(r[0].seq);
		each_equals(r + 1, alone + 1, 2, 30);
		api->seq_close(r[2].seq);
		run_truncate(&r[1], 450);
		run_truncate(&alone[1], 450);
		each_equals(r + 1, alone + 1, 1, 100);
		api->seq_close(r[1].seq);
		assert_int_equal(api->seq_poll(NULL), -SKVQ_EINVAL);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
		api->close(r[0].session);
		for (int i = 0; i < 3; i++)
			run_close(&alone[i]);
		teardown(NULL);
		setup(NULL);
	}
}

/* A fork pins nothing anew, and the page is held until the last one lets go. */
static void a_pin_is_counted(void **state)
{
	(void)state;
	static struct run r[3];

	run_open(&r[0], daemon_.socket, TOKENS, 0, 0, "n1");
	run_to(&r[0], 500);
	wait_shared(&r[0], 5);
	run_fork(&r[0], &r[1]);
	run_fork(&r[1], &r[2]);
	assert_int_equal(info_of(&r[2]).pages_shared, 5);
	assert_int_equal(status_of(daemon_.socket).pins, 5);
	api->seq_close(r[0].seq);
	run_truncate(&r[1], 100);
	assert_int_equal(api->seq_poll(r[2].seq), 1);
	assert_int_equal(status_of(daemon_.socket).pins, 5);
	api->seq_close(r[2].seq);
	assert_int_equal(status_of(daemon_.socket).pins, info_of(&r[1]).pages_shared);
	api->seq_close(r[1].seq);
	assert_int_equal(status_of(daemon_.socket).pins, 0);
	api->close(r[0].session);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(a_draft_cut_off_was_never_there, NULL, teardown_profile),
	    cmocka_unit_test_setup_teardown(a_deep_cut_keeps_what_attention_saw, NULL, teardown_profile),
	    cmocka_unit_test_setup_teardown(cuts_follow_cuts, NULL, teardown_profile),
	    cmocka_unit_test(cuts_are_refused),
	    cmocka_unit_test_setup_teardown(published_pages_are_cut, setup, teardown),
	    cmocka_unit_test_setup_teardown(pages_in_flight_are_cut, setup, teardown),
	    cmocka_unit_test_setup_teardown(branches_do_not_meet, NULL, teardown_profile),
	    cmocka_unit_test(a_branch_in_the_middle_of_a_step),
	    cmocka_unit_test_setup_teardown(branches_share_what_is_published, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_pin_is_counted, setup, teardown),
	};

	if (!synthetic_load(SKVQ_PLUGIN_PATH))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
