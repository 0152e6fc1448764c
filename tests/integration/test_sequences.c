/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences as engines use them: cut, forked, frozen and thawed, with and without a daemon. What a
 * sequence is afterwards is held against one that took the straight way, bit for bit.
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
#include <sys/stat.h>
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

static int teardown_both(void **state)
{
	(void)teardown_profile(state);
	return teardown(state);
}

static const char *const profiles[] = {
    "k4v2",      "k2v1.5",          "k3v2",          "k8v8",           "fp16",
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
static void run_open_tokens(struct run *r, const char *socket, const int32_t *tokens,
			    uint32_t prompt)
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
		for (uint32_t round = 0; round < 16; round++) {
			uint32_t at = a.at, draft = 1 + round % 16,
				 taken = round % 5 < draft ? round % 5 : 0;

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
		same_from_here(&a, &b, 650);
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
		for (size_t i = (size_t)p % 3; i < sizeof cuts / sizeof cuts[0]; i += 3) {
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
		run_to(&a, 500);
		for (int i = 0; i < 12; i++) {
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

	for (uint32_t round = 0; round < 4; round++) {
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

static void poll_until_daemon(struct run *r, uint32_t state)
{
	for (int i = 0; i < 1000 && info_of(r).daemon != state; i++) {
		assert_true(api->seq_poll(r->seq) >= 0);
		nap_ms(5);
	}
	assert_int_equal(info_of(r).daemon, state);
}

/* The daemon goes with pages in flight, and the one behind them is open: what comes into it next goes
 * where its first tiles are. */
static void a_daemon_goes_with_pages_in_flight(void **state)
{
	(void)state;
	static struct run a, b;

	for (uint32_t round = 0; round < 3; round++) {
		run_open(&a, daemon_.socket, TOKENS, round, 0, "n1");
		run_turn(&a, 0, round);
		run_to(&a, 384);
		wait_shared(&a, 4);
		assert_int_equal(kill(daemon_.pid, SIGSTOP), 0);
		run_to(&a, 592 + 16 * round);
		test_daemon_stop(&daemon_, SIGKILL);
		poll_until_daemon(&a, 2);
		test_daemon_start(&daemon_, SKVQD_PATH, NULL);
		poll_until_daemon(&a, 1);
		run_to(&a, 800);
		run_private(&b, profile);
		memcpy(b.tokens, a.tokens, sizeof b.tokens);
		run_to(&b, 800);
		same_tokens(&a, &b, 720);
		same_from_here(&a, &b, 860);
		wait_shared(&a, 9);
		run_close(&b);
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
			assert_true(run_step(&runs[i], 1 + k % 7) ==
				    run_step(&alone[i], 1 + k % 7));
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

/* ---- seq_snapshot, seq_resume ---- */

static uint8_t *freeze(struct run *r, uint64_t *ret_bytes)
{
	uint64_t bytes = 0, again = 0;

	assert_int_equal(api->seq_snapshot(r->seq, NULL, 0, &bytes), 0);
	uint8_t *buf = malloc(bytes);
	assert_non_null(buf);
	assert_int_equal(api->seq_snapshot(r->seq, buf, bytes - 1, &again), 0);
	assert_int_equal(api->seq_snapshot(r->seq, buf, bytes, &again), 0);
	assert_int_equal(bytes, again);
	*ret_bytes = bytes;
	return buf;
}

static int32_t thaw(struct run *r, const char *socket, const struct run *like, const uint8_t *buf,
		    uint64_t bytes)
{
	*r = *like;
	run_open_model(r, socket, "n1");
	return api->seq_resume(r->model, buf, bytes, &r->seq);
}

/* In a process that has nothing of this one: hashes of the next steps, as they come out there. */
static void steps_elsewhere(const struct run *like, const char *socket, const uint8_t *buf,
			    uint64_t bytes, uint64_t *ret, uint32_t n)
{
	char path[] = "/tmp/skvq-snapshot-XXXXXX", like_path[] = "/tmp/skvq-snapshot-XXXXXX",
	     count[16];
	int fd = mkstemp(path), like_fd = mkstemp(like_path), out[2], status;

	assert_true(fd >= 0 && like_fd >= 0 && pipe(out) == 0);
	assert_int_equal(write(fd, buf, bytes), (ssize_t)bytes);
	assert_int_equal(write(like_fd, like, sizeof *like), sizeof *like);
	snprintf(count, sizeof count, "%u", n);
	pid_t pid = fork();
	if (pid == 0) {
		if (dup2(out[1], 3) != 3)
			_exit(126);
		execl("/proc/self/exe", "test_sequences", "--thaw", path, like_path, count, profile,
		      socket ? socket : "", (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	uint8_t *at = (uint8_t *)ret;
	for (ssize_t got; (got = read(out[0], at, (size_t)((uint8_t *)(ret + n) - at))) > 0;)
		at += got;
	close(out[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	unlink(path);
	unlink(like_path);
	close(fd);
	close(like_fd);
	assert_int_equal(status, 0);
	assert_ptr_equal(at, ret + n);
}

/* The other process. */
static int thaw_main(char **argv)
{
	static struct run like, r;
	FILE *f = fopen(argv[2], "rb"), *l = fopen(argv[3], "rb");
	uint32_t n = (uint32_t)atoi(argv[4]);

	if (!f || !l || fread(&like, sizeof like, 1, l) != 1)
		return 1;
	fseek(f, 0, SEEK_END);
	long bytes = ftell(f);
	uint8_t *buf = malloc((size_t)bytes);
	rewind(f);
	if (!buf || fread(buf, (size_t)bytes, 1, f) != 1)
		return 1;
	fclose(f);
	fclose(l);
	profile = argv[5];
	if (thaw(&r, *argv[6] ? argv[6] : NULL, &like, buf, (uint64_t)bytes) != 0)
		return 1;
	free(buf);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t hash = run_step(&r, 1);

		if (write(3, &hash, sizeof hash) != sizeof hash)
			return 1;
	}
	run_close(&r);
	return 0;
}

static void thawed_equals(struct run *r, const char *socket, uint32_t n)
{
	uint64_t bytes, hashes[TOKENS];
	uint8_t *buf = freeze(r, &bytes);

	steps_elsewhere(r, socket, buf, bytes, hashes, n);
	for (uint32_t i = 0; i < n; i++)
		assert_true(run_step(r, 1) == hashes[i]);
	free(buf);
}

static void a_thawed_sequence_goes_on_elsewhere(void **state)
{
	(void)state;
	static const uint32_t at[] = {0, 3, 90, 330, 500, 560};
	static struct run r;

	for (int p = 0; p < N_PROFILES; p++) {
		run_private(&r, profiles[p]);
		run_to(&r, at[(uint32_t)p % 6]);
		thawed_equals(&r, NULL, 40);
		run_to(&r, 700);
		run_truncate(&r, 500); /* its window is short, and a tile is cut */
		thawed_equals(&r, NULL, 40);
		run_truncate(&r, 403); /* in a page's first tile */
		thawed_equals(&r, NULL, 150);
		run_close(&r);
	}
}

/* With the daemon that has the pages, with one that has lost them, with none. */
static void a_daemon_lends_its_pages_again(void **state)
{
	(void)state;
	static struct run a, b, alone;
	uint64_t bytes;

	run_open(&a, daemon_.socket, TOKENS, 0, 0, "n1");
	run_to(&a, 600);
	wait_shared(&a, (600 - 64) / 80);
	uint8_t *buf = freeze(&a, &bytes);
	thawed_equals(&a, daemon_.socket, 20);
	thawed_equals(&a, NULL, 20);
	run_close(&a);
	run_private(&alone, profile);
	run_to(&alone, 600);
	a = alone;
	assert_int_equal(thaw(&b, daemon_.socket, &a, buf, bytes), 0);
	assert_int_equal(info_of(&b).pages_shared, (600 - 64) / 80);
	assert_int_equal(info_of(&b).pages_local, 1);
	assert_int_equal(status_of(daemon_.socket).pins, (600 - 64) / 80);
	same_tokens(&b, &alone, 600);
	same_from_here(&b, &alone, 700);
	run_close(&b);
	test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	assert_int_equal(status_of(daemon_.socket).pages, 0);
	assert_int_equal(thaw(&b, daemon_.socket, &a, buf, bytes), 0);
	assert_int_equal(info_of(&b).pages_shared, 0);
	run_truncate(&alone, 600);
	run_close(&alone);
	run_private(&alone, profile);
	run_to(&alone, 600);
	same_from_here(&b, &alone, 700);
	wait_shared(&b, (700 - 64) / 80); /* and they are the daemon's again */
	run_close(&b);

	/* A daemon whose pages hold other numbers for the same tokens is not asked for them. */
	test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	run_open(&b, daemon_.socket, TOKENS, 0, 0, "n1");
	b.history = 77; /* keys and values follow from it */
	run_to(&b, 600);
	wait_shared(&b, (600 - 64) / 80);
	run_close(&b);
	assert_int_equal(thaw(&b, daemon_.socket, &a, buf, bytes), 0);
	assert_int_equal(info_of(&b).pages_shared, 0);
	run_close(&alone);
	run_private(&alone, profile);
	run_to(&alone, 600);
	same_from_here(&b, &alone, 700);
	assert_int_equal(info_of(&b).pages_shared, 0);
	run_close(&b);
	assert_int_equal(status_of(daemon_.socket).pins, 0);
	run_close(&alone);
	free(buf);
}

/* What a branch still reads whole stays whole, and the pages beside it do not wait for that. When the branch
 * has gone, nothing of it is left. */
static void refinements_go_beside_a_branch(void **state)
{
	(void)state;
	static struct run a, b, alone;

	profile = "e2.1-n320";
	for (int attached = 0; attached < 2; attached++) {
		const char *socket = attached ? daemon_.socket : NULL;

		run_open(&a, socket, TOKENS, 0, 0, "n1");
		run_to(&a, 500);
		if (attached)
			wait_shared(&a, 5);
		uint32_t before = info_of(&a).n_base / 80; /* whole pages of the branch: 5 but for these */
		run_fork(&a, &b);
		for (uint32_t at = 560; at <= 1100; at += 60) {
			run_to(&a, at);
			if (attached)
				wait_shared(&a, (at - 64) / 80);
		}
		run_to(&a, 1110);
		uint32_t old = info_of(&a).n_base / 80;
		assert_true(old >= 7);
		uint64_t held = attached ? counter_of(daemon_.socket, "unrefines") : staging_bytes();
		if (attached)
			assert_int_equal(held, old - 5 + before);
		api->seq_close(b.seq);
		for (uint32_t at = 1120; at <= 1190; at += 10)
			run_to(&a, at); /* another page becomes old, and with it they go */
		if (attached) {
			wait_shared(&a, (1190 - 64) / 80);
			run_to(&a, 1195);
			assert_int_equal(counter_of(daemon_.socket, "unrefines"), info_of(&a).n_base / 80);
			assert_true(info_of(&a).n_base / 80 > old);
		} else {
			run_open(&alone, NULL, TOKENS, 0, 0, "n1");
			uint64_t with = staging_bytes();
			run_to(&alone, 1190);
			assert_int_equal(staging_bytes() - with, with); /* as one that never had a branch */
			assert_true(held > with);
			run_close(&alone);
		}
		run_close(&a);
	}
}

/* Pages that were frozen without their refinement take the daemon's whole ones, and hold nothing of them
 * that they do not read. */
static void a_thawed_sequence_holds_what_it_reads(void **state)
{
	(void)state;
	static struct run a, b;
	uint64_t bytes, unrefines;

	profile = "e2.1-n320";
	run_open(&a, daemon_.socket, TOKENS, 0, 0, "n1");
	run_to(&a, 800);
	wait_shared(&a, (800 - 64) / 80);
	run_to(&a, 810); /* a commit behind the last answer lets go of what is old */
	assert_true(info_of(&a).n_base >= 2 * 80);
	uint8_t *buf = freeze(&a, &bytes);
	unrefines = counter_of(daemon_.socket, "unrefines");
	assert_int_equal(unrefines, info_of(&a).n_base / 80);
	assert_int_equal(thaw(&b, daemon_.socket, &a, buf, bytes), 0);
	assert_int_equal(info_of(&b).pages_shared, info_of(&a).pages_shared);
	assert_int_equal(info_of(&b).n_base, info_of(&a).n_base);
	assert_int_equal(counter_of(daemon_.socket, "unrefines"), 2 * unrefines);
	same_from_here(&b, &a, 830);
	run_close(&a);
	run_close(&b);
	free(buf);
}

/* Some bytes of each 4 KiB in what the daemon's arenas hold, as if the pages had gone to others. */
static void spoil_arenas(void)
{
	char path[64], name[128];
	uint32_t spoiled = 0;

	for (int n = 0; n < 256; n++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)daemon_.pid, n);
		ssize_t got = readlink(path, name, sizeof name - 1);
		name[got < 0 ? 0 : got] = 0;
		if (strncmp(name, "/memfd:skvq", 11) != 0 || chmod(path, 0600) < 0)
			continue;
		int fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		for (off_t at = 0; (at = lseek(fd, at, SEEK_DATA)) >= 0; at += 4096) {
			assert_int_equal(pwrite(fd, "another's", 9, at + 2048), 9);
			spoiled++;
		}
		close(fd);
	}
	assert_true(spoiled > 0);
}

static void a_snapshot_of_pages_taken_away_is_an_error(void **state)
{
	(void)state;
	static struct run a;
	uint64_t bytes, again;
	skvq_seq *thawed;

	run_open(&a, daemon_.socket, TOKENS, 0, 0, "n1");
	run_to(&a, 600);
	wait_shared(&a, (600 - 64) / 80);
	uint8_t *buf = freeze(&a, &bytes);
	spoil_arenas();
	assert_int_equal(api->seq_snapshot(a.seq, buf, bytes, &again), -SKVQ_ECORRUPT);
	assert_int_equal(api->seq_resume(a.model, buf, bytes, &thawed), -SKVQ_ECORRUPT);
	/* Nor is it read from any more. */
	assert_int_equal(api->seq_snapshot(a.seq, NULL, 0, &again), -SKVQ_ECORRUPT);
	run_close(&a);
	free(buf);
}

/* Reflected CRC-32C, bit by bit: an attacker can compute one too. */
static uint32_t crc_of(const uint8_t *data, uint64_t bytes)
{
	uint32_t table[256], crc = ~0u;

	for (uint32_t i = 0; i < 256; i++) {
		table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78u : 0);
	}
	for (uint64_t i = 0; i < bytes; i++)
		crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
	return ~crc;
}

static void seal(uint8_t *buf, uint64_t bytes)
{
	uint32_t crc = crc_of(buf + 128, bytes - 128);

	memcpy(buf + 16, &bytes, 8);
	memcpy(buf + 72, &crc, 4);
	memset(buf + 76, 0, 4);
	crc = crc_of(buf, 128);
	memcpy(buf + 76, &crc, 4);
}

/* Bytes with right checksums and wrong contents: refused, or a sequence that works and ends. */
static void hostile_bytes_are_refused(void **state)
{
	(void)state;
	static struct run r, b;
	uint64_t bytes;
	uint32_t seed = 5, taken = 0;

	run_private(&r, "k2v1.5");
	run_to(&r, 300);
	run_truncate(&r, 150);
	uint8_t *good = freeze(&r, &bytes), *bad = malloc(bytes + 64);
	assert_non_null(bad);
	memset(&b, 0, sizeof b);
	run_open_model(&b, NULL, "n1");

	/* Damaged without a new checksum: never taken. */
	for (uint32_t i = 0; i < 300; i++) {
		seed = mix(seed + i);
		memcpy(bad, good, bytes);
		bad[i < 128 ? i : seed % bytes] ^= (uint8_t)(1 + seed % 255);
		int32_t e = api->seq_resume(b.model, bad, bytes, &b.seq);
		assert_true(e == -SKVQ_ECORRUPT || e == -SKVQ_EVERSION);
		assert_int_equal(api->seq_resume(b.model, good, seed % bytes, &b.seq),
				 -SKVQ_ECORRUPT);
	}
	/* Header fields of an attacker who can compute checksums. */
	for (uint32_t at = 24; at < 128; at += 4) {
		static const uint32_t words[] = {0,   1,          15,         16,        80,
						 151, 0x7fffffff, 0x80000000, 0xffffffff};

		for (size_t i = 0; at != 72 && at != 76 && i < sizeof words / sizeof words[0];
		     i++) {
			memcpy(bad, good, bytes);
			memcpy(bad + at, &words[i], 4);
			seal(bad, bytes);
			int32_t e = api->seq_resume(b.model, bad, bytes, &b.seq);
			assert_true(e == 0 || e == -SKVQ_ECORRUPT || e == -SKVQ_EIDENTITY ||
				    e == -SKVQ_ENOMEM);
			if (e == 0) { /* e.g. other bounds, or what is only told */
				taken++;
				assert_int_equal(api->seq_truncate(b.seq, 20), 0);
				api->seq_close(b.seq);
			}
		}
	}
	assert_true(taken < 60);
	/* Bodies of such an attacker. */
	for (uint32_t i = 0; i < 600; i++) {
		memcpy(bad, good, bytes);
		for (uint32_t k = 0; k < 1 + i % 3; k++) {
			seed = mix(seed + k + 1);
			uint64_t at = i % 4 == 0 ? 128 + seed % 3000 : 128 + seed % (bytes - 128);
			bad[at] = (uint8_t)(i % 2 ? 0xff : mix(seed));
		}
		seal(bad, bytes);
		if (api->seq_resume(b.model, bad, bytes, &b.seq) != 0)
			continue;
		memcpy(b.tokens, r.tokens, sizeof b.tokens);
		b.at = 150;
		run_to(&b, 300);
		run_truncate(&b, 5);
		api->seq_close(b.seq);
	}
	/* Cut short and drawn out. */
	for (uint64_t n = 128; n < bytes; n += 97) {
		memcpy(bad, good, bytes);
		seal(bad, n);
		assert_true(api->seq_resume(b.model, bad, n, &b.seq) < 0);
	}
	memcpy(bad, good, bytes);
	memset(bad + bytes, 0, 64);
	seal(bad, bytes + 64);
	assert_int_equal(api->seq_resume(b.model, bad, bytes + 64, &b.seq), -SKVQ_ECORRUPT);
	assert_int_equal(api->seq_resume(b.model, good, bytes, NULL), -SKVQ_EINVAL);
	assert_int_equal(api->seq_resume(NULL, good, bytes, &b.seq), -SKVQ_EINVAL);
	assert_int_equal(api->seq_resume(b.model, good, bytes, &b.seq), 0);
	run_close(&b);

	/* Another engine's, another profile's. */
	memset(&b, 0, sizeof b);
	run_open_model(&b, NULL, "n2");
	assert_int_equal(api->seq_resume(b.model, good, bytes, &b.seq), -SKVQ_EIDENTITY);
	api->close(b.session);
	profile = "k4v2";
	run_open_model(&b, NULL, "n1");
	assert_int_equal(api->seq_resume(b.model, good, bytes, &b.seq), -SKVQ_EIDENTITY);
	api->close(b.session);
	run_close(&r);
	free(good);
	free(bad);
}

static void a_snapshot_in_the_middle_of_a_step_is_refused(void **state)
{
	(void)state;
	static struct run r;
	static float k[KV_HEADS][DIM];
	uint64_t bytes = 0;

	run_private(&r, profile);
	run_to(&r, 20);
	skvq_kv kv = {.struct_size = sizeof kv,
		      .position = 20,
		      .n_tokens = 1,
		      .k = k,
		      .v = k,
		      .k_head_stride = sizeof k[0],
		      .v_head_stride = sizeof k[0]};
	assert_int_equal(api->append(r.seq, &kv), 0);
	assert_int_equal(api->seq_snapshot(r.seq, NULL, 0, &bytes), -SKVQ_ESTATE);
	assert_int_equal(api->seq_truncate(r.seq, 20), 0);
	assert_int_equal(api->seq_snapshot(r.seq, NULL, 0, &bytes), 0);
	assert_int_equal(api->seq_snapshot(r.seq, NULL, 0, NULL), -SKVQ_EINVAL);
	assert_int_equal(api->seq_snapshot(NULL, NULL, 0, &bytes), -SKVQ_EINVAL);
	run_close(&r);
}

/* ---- sliding windows ---- */

static const uint32_t sliding[LAYERS] = {100, 60, 140};

enum { SIGHT = 140, UNSEEN_AFTER = SIGHT - 1 + 16, SEEN_PAGES = UNSEEN_AFTER / 80 + 2 };

static int setup_sliding(void **state)
{
	(void)state;
	layer_window = sliding;
	return 0;
}

static int teardown_sliding(void **state)
{
	layer_window = NULL;
	seq_flags = 0;
	return teardown_profile(state);
}

static int setup_sliding_daemon(void **state)
{
	setup_sliding(state);
	return setup(state);
}

static int teardown_sliding_daemon(void **state)
{
	teardown_sliding(state);
	return teardown(state);
}

/* One that drops what it cannot see, and one that keeps everything. */
static void open_sliding(struct run *drops, const char *socket, struct run *keeps)
{
	seq_flags = SKVQ_SEQ_DROP_UNSEEN;
	run_open(drops, socket, TOKENS, 0, 0, "n1");
	seq_flags = 0;
	run_open(keeps, NULL, TOKENS, 0, 0, "n1");
}

static int32_t export_at(struct run *r, uint32_t position, uint32_t n, void *k, void *v)
{
	skvq_export e = {.struct_size = sizeof e,
			 .layer = 1,
			 .position = position,
			 .n_tokens = n,
			 .type = SKVQ_F32,
			 .k = k,
			 .v = v,
			 .k_token_stride = KV_HEADS * DIM * sizeof(float),
			 .k_head_stride = DIM * sizeof(float),
			 .v_token_stride = KV_HEADS * DIM * sizeof(float),
			 .v_head_stride = DIM * sizeof(float)};

	return api->export_kv(r->seq, &e);
}

/* What is left holds the same bits, and so do the sinks. */
static void same_rest(struct run *drops, struct run *keeps)
{
	static float k[2][TOKENS][KV_HEADS][DIM], v[2][TOKENS][KV_HEADS][DIM];
	uint32_t from = info_of(drops).pages_dropped * 80, n = drops->at - from;

	assert_int_equal(drops->at, keeps->at);
	assert_int_equal(export_at(drops, from, n, k[0], v[0]), 0);
	assert_int_equal(export_at(keeps, from, n, k[1], v[1]), 0);
	assert_memory_equal(k[0], k[1], n * sizeof k[0][0]);
	assert_memory_equal(v[0], v[1], n * sizeof v[0][0]);
	assert_int_equal(export_at(drops, 0, 5, k[0], v[0]), 0);
	assert_int_equal(export_at(keeps, 0, 5, k[1], v[1]), 0);
	assert_memory_equal(k[0], k[1], 5 * sizeof k[0][0]);
	if (from) {
		assert_int_equal(export_at(drops, 0, 6, k[0], v[0]), -SKVQ_ERANGE);
		assert_int_equal(export_at(drops, from - 1, 2, k[0], v[0]), -SKVQ_ERANGE);
		assert_int_equal(export_at(drops, from - 1, 0, k[0], v[0]), 0);
	}
}

static void unseen_pages_leave_no_trace(void **state)
{
	(void)state;
	static struct run a, b;

	for (int p = 0; p < N_PROFILES; p++) {
		profile = profiles[p];
		open_sliding(&a, NULL, &b);
		for (uint32_t i = 0; a.at < 1150; i++) {
			uint32_t n = i < 3 ? 100 : i % (p ? 2 : 50) ? 1 : 37; /* one long decode */

			assert_true(run_step(&a, n) == run_step(&b, n));
			skvq_seq_info x = info_of(&a), y = info_of(&b);
			assert_true(a.at < UNSEEN_AFTER + 80 || x.pages_dropped > 0);
			assert_int_equal(x.pages_dropped + x.pages_local, y.pages_local);
			assert_true(x.pages_local <= SEEN_PAGES);
			assert_int_equal(x.n_paged, y.n_paged);
			assert_int_equal(y.pages_dropped, 0);
		}
		assert_int_equal(info_of(&a).pages_dropped, (a.at - UNSEEN_AFTER) / 80);
		same_rest(&a, &b);
		uint64_t both = staging_bytes(), most = info_of(&a).bytes_local;
		run_close(&b);
		assert_true(staging_bytes() <= most + 4096 && staging_bytes() < both / 3);
		run_close(&a);
	}
}

/* One layer that sees everything keeps everything for all. */
static void one_layer_sees_it_all(void **state)
{
	(void)state;
	static const uint32_t mixed[LAYERS] = {100, 0, 60};
	static struct run a, b;
	struct skvq_seq *q;

	layer_window = mixed;
	open_sliding(&a, NULL, &b);
	run_to(&a, 900);
	run_to(&b, 900);
	assert_int_equal(info_of(&a).pages_dropped, 0);
	same_tokens(&a, &b, 900);
	run_truncate(&a, 100);
	skvq_seq_desc d = {
	    .struct_size = sizeof d, .flags = 16, .max_tokens = TOKENS, .max_append = CHUNK};
	assert_int_equal(api->seq_open(a.model, &d, &q), -SKVQ_EINVAL);
	run_close(&a);
	run_close(&b);
}

static int32_t attend_at(struct run *r, uint32_t position, uint32_t limit)
{
	static float q[Q_HEADS][DIM], out[Q_HEADS][DIM];
	skvq_attn a = {.struct_size = sizeof a,
		       .position = position,
		       .n_rows = 1,
		       .sliding_limit = limit,
		       .nth = 1,
		       .scale = 1,
		       .q = q,
		       .q_row_stride = sizeof q,
		       .q_head_stride = sizeof q[0],
		       .out = &out[0][0],
		       .out_row_stride = sizeof out,
		       .out_head_stride = sizeof out[0]};

	return api->attend(&r->seq, &a, 1);
}

static void what_was_dropped_is_not_read(void **state)
{
	(void)state;
	static struct run a, b;

	open_sliding(&a, NULL, &b);
	run_to(&a, 900);
	run_to(&b, 900);
	uint32_t dropped = info_of(&a).pages_dropped * 80;
	assert_int_equal(dropped, 720);
	assert_int_equal(attend_at(&a, 899, 0), -SKVQ_EINVAL);
	assert_int_equal(attend_at(&a, 899, SIGHT + 1), -SKVQ_EINVAL);
	assert_int_equal(attend_at(&a, 899, SIGHT), 0);
	assert_int_equal(attend_at(&a, dropped + SIGHT - 1, SIGHT), 0);
	assert_int_equal(attend_at(&a, dropped + SIGHT - 2, SIGHT), -SKVQ_ERANGE);
	assert_int_equal(attend_at(&a, dropped + SIGHT - 2, SIGHT - 1), 0);
	assert_int_equal(attend_at(&a, 10, 100), -SKVQ_ERANGE);
	/* Refused cuts change nothing; the farthest that is not goes on as the other does. */
	skvq_seq_info before = info_of(&a);
	for (uint32_t n = 1; n < dropped + SIGHT - 1; n += 57)
		assert_int_equal(api->seq_truncate(a.seq, n), -SKVQ_ERANGE);
	assert_int_equal(api->seq_truncate(a.seq, dropped + SIGHT - 2), -SKVQ_ERANGE);
	skvq_seq_info after = info_of(&a);
	assert_memory_equal(&before, &after, sizeof before);
	assert_true(run_step(&a, 1) == run_step(&b, 1));
	run_truncate(&a, dropped + SIGHT - 1);
	run_truncate(&b, dropped + SIGHT - 1);
	same_from_here(&a, &b, 1000);
	/* From nothing nothing is missed. */
	run_truncate(&a, 0);
	run_truncate(&b, 0);
	assert_int_equal(info_of(&a).pages_dropped, 0);
	same_from_here(&a, &b, 700);
	same_rest(&a, &b);
	run_close(&a);
	run_close(&b);
}

/* Two branches in one call, and each alone. */
static void same_together(struct run *x, struct run *y)
{
	static float q[2][Q_HEADS][DIM], out[2][Q_HEADS][DIM], alone[2][Q_HEADS][DIM];
	skvq_seq *seqs[2] = {x->seq, y->seq};
	skvq_attn a[2];

	fill(&q[0][0][0], 2 * Q_HEADS * DIM, x->at);
	for (int i = 0; i < 2; i++)
		a[i] = (skvq_attn){.struct_size = sizeof a[i],
				   .layer = 2,
				   .position = x->at - 1,
				   .n_rows = 1,
				   .sliding_limit = layer_window[2],
				   .nth = 1,
				   .scale = 0.125f,
				   .q = q[i],
				   .q_row_stride = sizeof q[i],
				   .q_head_stride = sizeof q[i][0],
				   .out = &alone[i][0][0],
				   .out_row_stride = sizeof out[i],
				   .out_head_stride = sizeof out[i][0]};
	for (int i = 0; i < 2; i++) {
		assert_int_equal(api->attend(&seqs[i], &a[i], 1), 0);
		a[i].out = &out[i][0][0];
	}
	assert_int_equal(api->attend(seqs, a, 2), 0);
	assert_memory_equal(out, alone, sizeof out);
}

/* Cuts, forks and steps in any order, with and without a daemon: what is not refused is as if nothing
 * had been dropped. */
static void any_way_is_as_if_all_were_kept(void **state)
{
	(void)state;
	static const uint32_t windows[][LAYERS] = {{100, 60, 140}, {1, 1, 1}, {16, 9, 64}, {300, 2, 80}};
	static struct run a, b, other;
	uint32_t seed = 3, cuts = 0, refused = 0;

	for (int p = 0; p < 2 * N_PROFILES; p++) {
		bool attached = p >= N_PROFILES;
		uint32_t sight = 0;

		layer_window = windows[p % 4];
		for (int i = 0; i < LAYERS; i++)
			sight = layer_window[i] > sight ? layer_window[i] : sight;
		profile = profiles[p % N_PROFILES];
		open_sliding(&a, attached ? daemon_.socket : NULL, &b);
		for (int i = 0; i < 60; i++) {
			seed = mix(seed + 99);
			uint32_t dropped = info_of(&a).pages_dropped * 80,
				 most = i % 10 == 9 ? 500 : 40, n = 1 + (seed >> 8) % 90;
			uint32_t to = a.at - (seed % most < a.at ? seed % most : a.at);

			bool gone = to && dropped && to + 1 < dropped + sight;

			if (i % 3 == 0 && gone) {
				assert_int_equal(api->seq_truncate(a.seq, to), -SKVQ_ERANGE);
				refused++;
			} else if (i % 3 == 0) {
				cuts++;
				run_truncate(&a, to);
				run_truncate(&b, to);
				run_turn(&a, to, seed % 5);
				run_turn(&b, to, seed % 5);
			} else if (i % 7 == 6) { /* the older branch ends */
				run_fork(&a, &other);
				same_together(&a, &other);
				api->seq_close(a.seq);
				a = other;
				run_fork(&b, &other);
				api->seq_close(b.seq);
				b = other;
			} else if (a.at + n < 1100) {
				assert_true(run_step(&a, n) == run_step(&b, n));
			}
			assert_true(a.at < 1100);
			assert_true(run_step(&a, 1) == run_step(&b, 1));
		}
		same_rest(&a, &b);
		run_close(&a);
		run_close(&b);
		if (attached)
			assert_int_equal(status_of(daemon_.socket).pins, 0);
	}
	assert_true(cuts > 50 && refused > 10);
}

static void settle(struct run *r)
{
	for (int i = 0; i < 1000 && api->seq_poll(r->seq) == 0; i++)
		nap_ms(2);
	assert_int_equal(api->seq_poll(r->seq), 1);
}

/* Every page is published, and only those that are seen are pinned. */
static void unseen_pages_are_unpinned(void **state)
{
	(void)state;
	static struct run a, b, c, d;

	open_sliding(&a, daemon_.socket, &b);
	while (a.at < 1000) {
		uint32_t n = a.at < 300 ? 100 : 1;

		assert_true(run_step(&a, n) == run_step(&b, n));
		if (a.at % 50)
			continue;
		settle(&a);
		assert_true(info_of(&a).pages_shared <= SEEN_PAGES);
		assert_true(info_of(&a).pages_local <= 1);
		assert_true(status_of(daemon_.socket).pins <= SEEN_PAGES);
		assert_int_equal(staging_bytes(), info_of(&a).bytes_local + info_of(&b).bytes_local);
	}
	assert_int_equal(info_of(&a).pages_dropped, (1000 - UNSEEN_AFTER) / 80);
	assert_int_equal(status_of(daemon_.socket).pages, (1000 - 64) / 80);
	same_rest(&a, &b);

	/* Another engine finds all of them, and keeps what it sees. */
	seq_flags = SKVQ_SEQ_DROP_UNSEEN;
	run_open(&c, daemon_.socket, TOKENS, 0, 1000, "n1");
	assert_int_equal(c.matched, 880);
	assert_int_equal(info_of(&c).pages_dropped, (880 - UNSEEN_AFTER) / 80);
	assert_int_equal(info_of(&c).pages_shared, 11 - info_of(&c).pages_dropped);
	assert_int_equal(status_of(daemon_.socket).pins,
			 info_of(&a).pages_shared + info_of(&c).pages_shared);
	run_close(&a);
	run_to(&c, 1000);
	run_fork(&c, &d);
	run_turn(&d, 1000, 4);
	same_together(&c, &d);
	same_from_here(&c, &b, 1100);
	run_truncate(&b, 1000);
	run_close(&b);
	seq_flags = 0;
	run_open(&b, NULL, TOKENS, 0, 0, "n1");
	run_to(&b, 1000);
	run_turn(&b, 1000, 4);
	run_turn(&c, 1100, 4);
	same_from_here(&d, &b, 1100);
	same_together(&c, &d);
	same_from_here(&d, &b, 1150); /* its pages are those of c, which has let go of some */
	settle(&c);
	settle(&d);
	assert_int_equal(status_of(daemon_.socket).pages, (1150 - 64) / 80);
	assert_true(info_of(&d).pages_dropped > info_of(&c).pages_dropped);
	api->seq_close(c.seq);
	same_rest(&d, &b);
	assert_true(status_of(daemon_.socket).pins <= SEEN_PAGES);
	api->seq_close(d.seq);
	assert_int_equal(status_of(daemon_.socket).pins, 0);
	api->close(c.session);
	run_close(&b);
}

static void wait_daemon(struct run *r, uint32_t state)
{
	for (int i = 0; i < 1000 && info_of(r).daemon != state; i++) {
		assert_true(api->seq_poll(r->seq) >= 0);
		nap_ms(5);
	}
	assert_int_equal(info_of(r).daemon, state);
}

/* A chain that lost its beginning stays private; one that has it is published again. */
static void a_new_daemon_gets_whole_chains(void **state)
{
	(void)state;
	static struct run a, b;

	for (uint32_t start = 230; start < 900; start += 470) {
		bool whole = start < UNSEEN_AFTER + 80;

		open_sliding(&a, daemon_.socket, &b);
		run_to(&a, start);
		run_to(&b, start);
		settle(&a);
		assert_true(whole == (info_of(&a).pages_dropped == 0));
		test_daemon_stop(&daemon_, SIGKILL);
		same_from_here(&a, &b, start + 50);
		wait_daemon(&a, 2);
		test_daemon_start(&daemon_, SKVQD_PATH, NULL);
		wait_daemon(&a, 1);
		while (a.at < start + 300) {
			assert_true(run_step(&a, 1) == run_step(&b, 1));
			assert_true(info_of(&a).pages_local + info_of(&a).pages_shared <= SEEN_PAGES + 1 ||
				    whole);
		}
		settle(&a);
		skvq_seq_info info = info_of(&a);
		/* While it was away pages may have gone out of sight: then it is private too. */
		assert_true(status_of(daemon_.socket).pages <= (whole ? a.at / 80 : 0));
		assert_true(info.pages_dropped >= (a.at - UNSEEN_AFTER) / 80 - 1);
		assert_true(info.pages_local + info.pages_shared <= SEEN_PAGES + 1);
		if (whole)
			assert_int_equal(status_of(daemon_.socket).pages, (a.at - 64) / 80);
		same_rest(&a, &b);
		/* From its beginning it is published like any other. */
		run_truncate(&a, 0);
		run_turn(&a, 0, start);
		run_to(&a, 400);
		settle(&a);
		assert_true(status_of(daemon_.socket).pages >= (400 - 64) / 80);
		assert_int_equal(info_of(&a).pages_local, info_of(&a).n_paged % 80 != 0);
		run_close(&a);
		run_close(&b);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
	}
}

static void a_snapshot_leaves_out_what_was_dropped(void **state)
{
	(void)state;
	static struct run a, b, c;
	uint64_t bytes, all_bytes;

	open_sliding(&a, daemon_.socket, &b);
	run_to(&a, 900);
	run_to(&b, 900);
	settle(&a);
	uint8_t *buf = freeze(&a, &bytes), *all = freeze(&b, &all_bytes);
	struct run like = a;
	uint32_t dropped = info_of(&a).pages_dropped;
	skvq_seq_info kept = info_of(&b);
	assert_true(dropped >= 9);
	assert_true(all_bytes - bytes >= dropped * (kept.bytes_local / kept.pages_local));
	run_close(&a);

	/* Embedded; with the daemon that has the chain; with one that has not. */
	for (int i = 0; i < 3; i++) {
		if (i == 2) {
			test_daemon_stop(&daemon_, SIGTERM);
			test_daemon_start(&daemon_, SKVQD_PATH, NULL);
		}
		assert_int_equal(thaw(&c, i ? daemon_.socket : NULL, &like, buf, bytes), 0);
		assert_int_equal(info_of(&c).pages_dropped, dropped);
		assert_int_equal(info_of(&c).pages_shared, i == 1 ? (900 - 64) / 80 - dropped : 0);
		if (i)
			assert_int_equal(status_of(daemon_.socket).pins, info_of(&c).pages_shared);
		same_rest(&c, &b);
		same_from_here(&c, &b, 1150);
		settle(&c);
		same_rest(&c, &b);
		assert_int_equal(info_of(&c).pages_dropped, (1150 - UNSEEN_AFTER) / 80);
		if (i)
			assert_int_equal(status_of(daemon_.socket).pages, i == 1 ? (1150 - 64) / 80 : 0);
		run_close(&c);
		run_close(&b);
		seq_flags = 0;
		run_open(&b, NULL, TOKENS, 0, 0, "n1");
		run_to(&b, 900);
	}

	/* Numbers that do not go together. */
	memset(&c, 0, sizeof c);
	run_open_model(&c, NULL, "n1");
	for (uint32_t n = 0; n < 20; n++) {
		memcpy(buf + 80, &n, 4);
		seal(buf, bytes);
		assert_int_equal(api->seq_resume(c.model, buf, bytes, &c.seq),
				 n == dropped ? 0 : -SKVQ_ECORRUPT);
		if (n == dropped)
			api->seq_close(c.seq);
	}
	memcpy(buf + 80, &dropped, 4);
	uint32_t version = 1;
	memcpy(buf + 8, &version, 4);
	seal(buf, bytes);
	assert_int_equal(api->seq_resume(c.model, buf, bytes, &c.seq), -SKVQ_ECORRUPT);
	version = 3;
	memcpy(buf + 8, &version, 4);
	seal(buf, bytes);
	assert_int_equal(api->seq_resume(c.model, buf, bytes, &c.seq), -SKVQ_EVERSION);
	version = 2; /* of one that keeps everything */
	memcpy(all + 8, &version, 4);
	seal(all, all_bytes);
	assert_int_equal(api->seq_resume(c.model, all, all_bytes, &c.seq), -SKVQ_ECORRUPT);
	api->close(c.session);
	run_close(&b);
	free(buf);
	free(all);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(a_draft_cut_off_was_never_there, NULL,
					    teardown_profile),
	    cmocka_unit_test_setup_teardown(a_deep_cut_keeps_what_attention_saw, NULL,
					    teardown_profile),
	    cmocka_unit_test_setup_teardown(cuts_follow_cuts, NULL, teardown_profile),
	    cmocka_unit_test(cuts_are_refused),
	    cmocka_unit_test_setup_teardown(published_pages_are_cut, setup, teardown),
	    cmocka_unit_test_setup_teardown(pages_in_flight_are_cut, setup, teardown),
	    cmocka_unit_test_setup_teardown(branches_do_not_meet, NULL, teardown_profile),
	    cmocka_unit_test(a_branch_in_the_middle_of_a_step),
	    cmocka_unit_test_setup_teardown(a_daemon_goes_with_pages_in_flight, setup, teardown),
	    cmocka_unit_test_setup_teardown(branches_share_what_is_published, setup, teardown),
	    cmocka_unit_test_setup_teardown(refinements_go_beside_a_branch, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_pin_is_counted, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_thawed_sequence_goes_on_elsewhere, NULL,
					    teardown_profile),
	    cmocka_unit_test_setup_teardown(a_daemon_lends_its_pages_again, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_thawed_sequence_holds_what_it_reads, setup,
					    teardown_both),
	    cmocka_unit_test_setup_teardown(a_snapshot_of_pages_taken_away_is_an_error, setup,
					    teardown),
	    cmocka_unit_test_setup_teardown(hostile_bytes_are_refused, NULL, teardown_profile),
	    cmocka_unit_test(a_snapshot_in_the_middle_of_a_step_is_refused),
	    cmocka_unit_test_setup_teardown(unseen_pages_leave_no_trace, setup_sliding,
					    teardown_sliding),
	    cmocka_unit_test_setup_teardown(one_layer_sees_it_all, setup_sliding,
					    teardown_sliding),
	    cmocka_unit_test_setup_teardown(what_was_dropped_is_not_read, setup_sliding,
					    teardown_sliding),
	    cmocka_unit_test_setup_teardown(any_way_is_as_if_all_were_kept, setup_sliding_daemon,
					    teardown_sliding_daemon),
	    cmocka_unit_test_setup_teardown(unseen_pages_are_unpinned, setup_sliding_daemon,
					    teardown_sliding_daemon),
	    cmocka_unit_test_setup_teardown(a_new_daemon_gets_whole_chains, setup_sliding_daemon,
					    teardown_sliding_daemon),
	    cmocka_unit_test_setup_teardown(a_snapshot_leaves_out_what_was_dropped, setup_sliding_daemon,
					    teardown_sliding_daemon),
	};

	if (!synthetic_load(SKVQ_PLUGIN_PATH))
		return 1;
	if (argc == 7 && strcmp(argv[1], "--thaw") == 0)
		return thaw_main(argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
