/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real daemon, real plugin, one synthetic model: a run that shares pages equals a private one bit
 * for bit, through publishing, attaching, the daemon's death and its return; nobody's death leaks
 * pins, pages or descriptors; hitting the RAM cap and the pin bound stops nobody.
 */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <skvq/client.h>
#include <skvq/plugin.h>

#include "calibration_maker.h"
#include "daemon.h"
#include "synthetic.h"

static struct test_daemon daemon_;

static struct skvq_client *observer(void)
{
	return observe(daemon_.socket);
}

static struct skvq_client_status status(void)
{
	return status_of(daemon_.socket);
}

enum { SINKS = 5, PAGE = 80, TILE = 16 };

/* Relative error of a page as its engine should have measured it: the first tile's tokens as they
 * were appended against the same tokens as they are exported. */
static double page_error(struct run *r, uint32_t layer, bool is_v, uint32_t page)
{
	static float x[KV_HEADS][DIM], back[TILE][KV_HEADS][DIM];
	uint32_t first = page * PAGE, history = 0;
	double error = 0, energy = 0;
	skvq_export e = {.struct_size = sizeof e,
	                 .layer = layer,
	                 .position = first,
	                 .n_tokens = TILE,
	                 .type = SKVQ_F32,
	                 .k = is_v ? NULL : back,
	                 .v = is_v ? back : NULL,
	                 .k_token_stride = sizeof back[0],
	                 .k_head_stride = sizeof back[0][0],
	                 .v_token_stride = sizeof back[0],
	                 .v_head_stride = sizeof back[0][0]};

	assert_int_equal(api->export_kv(r->seq, &e), 0);
	for (uint32_t t = 0; t < first + TILE; t++) {
		history = mix(history ^ (uint32_t)r->tokens[t]);
		if (t < first || t < SINKS)
			continue;
		fill(&x[0][0], KV_HEADS * DIM, is_v ? history + layer * 37 + 1 : history + layer * 31);
		for (uint32_t i = 0; i < KV_HEADS * DIM; i++) {
			double v = (&x[0][0])[i], d = v - (&back[t - first][0][0])[i];

			error += d * d;
			energy += v * v;
		}
	}
	return error / energy;
}

/* The daemon has the errors of pages from a, and of b's from page `own` on, and no others. */
static void check_errors(struct run *a, uint32_t a_pages, struct run *b, uint32_t own, uint32_t b_pages)
{
	struct skvq_client *c = observer();
	struct skvq_client_ns_info *ns = NULL;
	struct skvq_client_error_info *list = NULL;
	uint32_t pages = a_pages + (b ? b_pages - own : 0);
	size_t n = 0;

	assert_int_equal(skvq_client_namespaces(c, &ns, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(skvq_client_errors(c, ns[0].ns, &list, &n), 0);
	assert_int_equal(n, 2 * LAYERS);
	for (uint32_t i = 0; i < n; i++) {
		double sum = 0, max = 0;
		uint64_t in_histogram = 0;

		assert_int_equal(list[i].layer, i / 2);
		assert_int_equal(list[i].is_v, i % 2);
		assert_int_equal(list[i].bits, i % 2 ? 15 : 20);
		assert_int_equal(list[i].pages, pages);
		for (uint32_t p = 0; p < pages; p++) {
			double e = p < a_pages ? page_error(a, i / 2, i % 2, p)
			                       : page_error(b, i / 2, i % 2, own + p - a_pages);

			sum += e;
			max = e > max ? e : max;
		}
		for (int k = 0; k < SKVQ_CLIENT_ERROR_BUCKETS; k++)
			in_histogram += list[i].histogram[k];
		assert_int_equal(in_histogram, pages);
		/* A half has eleven bits; beside it, rotating back rounds. */
		if (!(fabs(list[i].sum / sum - 1) < 5e-4 && fabs(list[i].max / max - 1) < 1e-3))
			fail_msg("entry %u: sum %g, should be %g; max %g, should be %g", i, list[i].sum,
			         sum, list[i].max, max);
	}
	free(list);
	free(ns);
	skvq_client_free(c);
}

static void start(void **state, const char *const *args)
{
	(void)state;
	test_daemon_init(&daemon_);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
}

static int setup(void **state)
{
	start(state, NULL);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	test_daemon_fini(&daemon_);
	return 0;
}

static void *make_calibration(uint64_t seed, uint64_t *ret_bytes)
{
	const struct skvq_calibration_key key = {digest, LAYERS, Q_HEADS, KV_HEADS, DIM, DIM};

	return calibration_make(&key, NULL, 1, seed, ret_bytes);
}

/* Codes mean something only with the matrices that made them. */
static void calibrations_do_not_mix(void **state)
{
	(void)state;
	static const char *const profiles[] = {"k2v1.5", "auto-2.4", "skvq-k2v2-g64"};
	static struct run first, second;
	uint64_t n[2];
	void *files[2] = {make_calibration(1, &n[0]), make_calibration(2, &n[1])};
	uint64_t n_ungrouped;
	void *ungrouped = make_calibration(1, &n_ungrouped);

	calibration_ungroup(ungrouped, &n_ungrouped);
	for (size_t p = 0; p < 3; p++) {
		uint32_t tail = (uint32_t)p;

		profile = profiles[p];
		calibration = files[0];
		calibration_bytes = n[0];
		run_open(&first, daemon_.socket, 0, tail, 640, "numerics");
		for (int i = 0; i < 5; i++)
			run_step(&first, CHUNK);
		wait_shared(&first, 7);
		/* The same one: shared, and the same codes. */
		run_open(&second, daemon_.socket, 0, tail, 640, "numerics");
		assert_int_equal(second.matched, 560);
		while (second.at < first.at)
			run_step(&second, 16);
		same_tokens(&first, &second, 640);
		run_close(&second);
		/* Another one. */
		calibration = files[1];
		calibration_bytes = n[1];
		run_open(&second, daemon_.socket, 0, tail, 640, "numerics");
		assert_int_equal(second.matched, 0);
		run_close(&second);
		/* None. */
		calibration = NULL;
		calibration_bytes = 0;
		if (p == 1)
			profile = "k2v1.5"; /* without, there is no table */
		run_open(&second, daemon_.socket, 0, tail, 640, "numerics");
		assert_int_equal(second.matched, 0);
		run_close(&second);
		run_close(&first);
	}
	/* SKVQ's own use nothing but the groups: a calibration without any is none. */
	calibration = ungrouped;
	calibration_bytes = n_ungrouped;
	run_open(&first, daemon_.socket, 0, 8, 640, "numerics");
	for (int i = 0; i < 5; i++)
		run_step(&first, CHUNK);
	wait_shared(&first, 7);
	calibration = NULL;
	calibration_bytes = 0;
	run_open(&second, daemon_.socket, 0, 8, 640, "numerics");
	assert_int_equal(second.matched, 560);
	run_close(&second);
	run_close(&first);
	/* FP16 pages are not coded: with whatever calibration they are the same. */
	profile = "fp16";
	run_open(&first, daemon_.socket, 0, 9, 640, "numerics");
	for (int i = 0; i < 5; i++)
		run_step(&first, CHUNK);
	wait_shared(&first, 7);
	calibration = files[1];
	calibration_bytes = n[1];
	run_open(&second, daemon_.socket, 0, 9, 640, "numerics");
	assert_int_equal(second.matched, 560);
	run_close(&second);
	run_close(&first);
	calibration = NULL;
	profile = "k2v1.5";
	calibration_bytes = 0;
	free(files[0]);
	free(files[1]);
	free(ungrouped);
}

/* Engines that calibrated on their own end up with one calibration: the first one's. */
static void the_daemon_makes_calibrations_agree(void **state)
{
	(void)state;
	skvq_engine e = {.struct_size = sizeof e, .name = "test", .timeout_ms = 5000};
	skvq_calibration_of of = {.struct_size = sizeof of,
	                          .weights_digest = digest,
	                          .n_layer = LAYERS,
	                          .n_q_heads = Q_HEADS,
	                          .n_kv_heads = KV_HEADS,
	                          .head_dim_k = DIM,
	                          .head_dim_v = DIM};
	uint64_t n[2], got = 0;
	uint8_t *files[2] = {make_calibration(1, &n[0]), make_calibration(2, &n[1])};
	uint8_t *buf = calloc(1, n[0]), *bad = calloc(1, 1000);
	skvq_session *s[3];
	const skvq_ext_calibration *ext;

	for (int i = 0; i < 2; i++)
		assert_int_equal(api->open(&e, daemon_.socket, &s[i]), 0);
	assert_int_equal(api->open(&e, NULL, &s[2]), 0);
	ext = api->get_extension(s[0], SKVQ_EXT_CALIBRATION);
	assert_non_null(ext);
	assert_int_equal(ext->get(s[2], &of, NULL, 0, &got), -SKVQ_ENODAEMON);
	assert_int_equal(ext->put(s[2], files[0], n[0]), -SKVQ_ENODAEMON);
	assert_int_equal(ext->get(s[0], &of, NULL, 0, &got), -SKVQ_EAGAIN);
	/* What is no calibration is not kept. */
	assert_int_equal(ext->put(s[0], bad, 100), -SKVQ_EINVAL);
	assert_int_equal(ext->put(s[0], bad, 1000), -SKVQ_ECORRUPT);
	memcpy(bad, files[0], 1000);
	assert_int_equal(ext->put(s[0], bad, 1000), -SKVQ_ECORRUPT);
	assert_int_equal(ext->get(s[0], &of, NULL, 0, &got), -SKVQ_EAGAIN);
	/* The first stays, for whoever asks. */
	assert_int_equal(ext->put(s[0], files[0], n[0]), 1);
	assert_int_equal(ext->put(s[1], files[1], n[1]), 0);
	assert_int_equal(ext->get(s[1], &of, NULL, 0, &got), 0);
	assert_int_equal(got, n[0]);
	assert_int_equal(ext->get(s[1], &of, buf, got - 1, &got), 0);
	assert_int_equal(buf[0], 0);
	assert_int_equal(ext->get(s[1], &of, buf, got, &got), 0);
	assert_memory_equal(buf, files[0], n[0]);
	of.n_layer++;
	assert_int_equal(ext->get(s[1], &of, NULL, 0, &got), -SKVQ_EAGAIN);
	for (int i = 0; i < 3; i++)
		api->close(s[i]);
	for (int i = 0; i < 2; i++)
		free(files[i]);
	free(buf);
	free(bad);
}

static int setup_small_calibrations(void **state)
{
	static const char *const args[] = {"--calibration-max", "4K", NULL};

	start(state, args);
	return 0;
}

static void calibrations_are_bounded(void **state)
{
	(void)state;
	skvq_engine e = {.struct_size = sizeof e, .name = "test", .timeout_ms = 5000};
	const skvq_ext_calibration *ext;
	skvq_session *s;
	uint64_t n;
	void *file = make_calibration(1, &n);
	char why[256] = "";

	assert_int_equal(api->open(&e, daemon_.socket, &s), 0);
	ext = api->get_extension(s, SKVQ_EXT_CALIBRATION);
	assert_int_equal(ext->put(s, file, n), -SKVQ_ELIMIT);
	api->last_error(s, why, sizeof why);
	assert_non_null(strstr(why, "calibration_max"));
	api->close(s);
	free(file);
}

/* Cold with a daemon, whose pages move to the arena under way, against embedded. */
static void publishing_changes_no_bit(void **state)
{
	(void)state;
	static struct run a, b;

	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	assert_int_equal(a.matched, 0);
	while (a.at < TOKENS) {
		uint32_t n = a.at + CHUNK <= 1000 ? CHUNK : 1;
		assert_true(run_step(&a, n) == run_step(&b, n));
		if (a.at > 1000 && a.at % 40 == 0)
			nap_ms(5); /* let some answers come in between */
	}
	skvq_seq_info i = wait_shared(&a, (TOKENS - 64) / 80);
	assert_int_equal(i.pages_shared, (TOKENS - 64) / 80);
	assert_int_equal(i.daemon, 1);
	assert_int_equal(info_of(&b).pages_shared, 0);
	/* Everything older than the window is shared: only the open page is local. */
	assert_true(i.pages_local <= 1);
	run_close(&a);
	run_close(&b);
	struct skvq_client_status s = status();
	assert_int_equal(s.pages, (TOKENS - 64) / 80);
	assert_int_equal(s.pins, 0);
	assert_true(s.bytes_kernel >= s.bytes_resident);
}

/* An engine that attaches computes only the rest, and equals one that owns the same pages. */
static void attaching_equals_owning(void **state)
{
	(void)state;
	static struct run a, b, c;

	run_open(&a, daemon_.socket, 1000, 1, 1000, "n1");
	while (a.at < 1150)
		run_step(&a, a.at + CHUNK <= 1000 ? CHUNK : 1);
	wait_shared(&a, (1150 - 64) / 80);

	/* b attaches while a lives; c after a is gone: both start from the same pages. */
	run_open(&b, daemon_.socket, 1000, 2, 1040, "n1");
	assert_int_equal(b.matched, (1040 - 64) / 80 * 80);
	same_tokens(&a, &b, (uint32_t)b.matched);
	run_close(&a);
	run_open(&c, daemon_.socket, 1000, 2, 1040, "n1");
	assert_int_equal(c.matched, b.matched);
	while (b.at < TOKENS) {
		uint32_t n = b.at < 1040 ? 1040 - b.at < CHUNK ? 1040 - b.at : CHUNK : 1;
		assert_true(run_step(&b, n) == run_step(&c, n));
	}
	/* Their new pages hold the same tokens: one of each pair was deduplicated. */
	wait_shared(&b, (TOKENS - 64) / 80);
	wait_shared(&c, (TOKENS - 64) / 80);
	skvq_stats st = {.struct_size = sizeof st};
	assert_int_equal(api->stats(c.session, &st), 0);
	skvq_stats sb = {.struct_size = sizeof sb};
	assert_int_equal(api->stats(b.session, &sb), 0);
	assert_true(st.pages_deduplicated + sb.pages_deduplicated > 0);
	run_close(&b);
	run_close(&c);
}

/* Sequences with the same first pages, attended in one call: each gets what it would get alone. */
static void a_batch_reads_shared_pages_once(void **state)
{
	(void)state;
	enum { N = 4 };
	static struct run first, r[N];
	static float q[N][Q_HEADS][DIM], alone[N][Q_HEADS][DIM], batch[N][Q_HEADS][DIM];
	skvq_seq *seqs[N];
	skvq_attn attns[N];

	run_open(&first, daemon_.socket, 1000, 1, 1000, "n1");
	while (first.at < 1150)
		run_step(&first, first.at + CHUNK <= 1000 ? CHUNK : 1);
	wait_shared(&first, (1150 - 64) / 80);
	/* One session, several sequences; tails of different lengths. */
	memset(r, 0, sizeof r);
	run_open_model(&r[0], daemon_.socket, "n1");
	for (uint32_t i = 0; i < N; i++) {
		r[i].session = r[0].session;
		r[i].model = r[0].model;
		run_tokens(&r[i], i == 3 ? 500 : 1000, 10 + i);
		skvq_seq_desc d = {.struct_size = sizeof d, .tokens = r[i].tokens, .n_tokens = 1040,
		                   .max_tokens = TOKENS, .max_append = CHUNK};
		r[i].matched = api->seq_open(r[i].model, &d, &r[i].seq);
		assert_int_equal(r[i].matched, i == 3 ? 480 : 960);
		r[i].at = (uint32_t)r[i].matched;
		for (uint32_t t = 0; t < 5 + 30 * i; t++)
			run_step(&r[i], 1);
		seqs[i] = r[i].seq;
		fill(&q[i][0][0], Q_HEADS * DIM, 99 + i);
		attns[i] = (skvq_attn){.struct_size = sizeof attns[i],
		                       .layer = 1,
		                       .position = r[i].at - 1,
		                       .n_rows = 1,
		                       .nth = 1,
		                       .scale = 0.125f,
		                       .q = q[i],
		                       .q_head_stride = sizeof q[i][0],
		                       .out = alone[i][0],
		                       .out_head_stride = sizeof alone[i][0]};
		assert_int_equal(api->attend(&seqs[i], &attns[i], 1), 0);
		attns[i].out = batch[i][0];
	}
	assert_int_equal(api->attend(seqs, attns, N), 0);
	for (uint32_t i = 0; i < N; i++)
		for (uint32_t h = 0; h < Q_HEADS; h++)
			for (uint32_t d = 0; d < DIM; d++)
				assert_true(fabsf(alone[i][h][d] - batch[i][h][d]) < 1e-5f);
	/* The same sequence twice in a call is allowed and computed apart. */
	skvq_seq *twice[2] = {seqs[0], seqs[0]};
	skvq_attn two[2] = {attns[0], attns[0]};
	two[1].out = batch[1][0];
	assert_int_equal(api->attend(twice, two, 2), 0);
	assert_memory_equal(batch[0], batch[1], sizeof batch[0]);
	for (uint32_t i = 0; i < N; i++)
		api->seq_close(r[i].seq);
	api->close(r[0].session);
	run_close(&first);
}

/* Each page is counted once, whoever published it first. */
static void errors_of_pages_reach_the_daemon(void **state)
{
	(void)state;
	static struct run a, b;
	struct skvq_client *c = observer();
	struct skvq_client_error_info *list = NULL;
	size_t n = 0;

	assert_int_equal(skvq_client_errors(c, 1, &list, &n), -SKVQ_EINVAL);
	assert_non_null(strstr(skvq_client_why(c), "no namespace 1"));
	assert_null(list);
	skvq_client_free(c);
	run_open(&a, daemon_.socket, 400, 1, 640, "n1");
	for (int i = 0; i < 5; i++)
		run_step(&a, CHUNK);
	wait_shared(&a, (640 - 64) / PAGE);
	check_errors(&a, (640 - 64) / PAGE, NULL, 0, 0);
	run_open(&b, daemon_.socket, 400, 2, 800, "n1");
	assert_int_equal(b.matched, 400);
	run_step(&b, 100);
	for (int i = 0; i < 3; i++)
		run_step(&b, 100);
	wait_shared(&b, (800 - 64) / PAGE);
	check_errors(&a, (640 - 64) / PAGE, &b, 5, (800 - 64) / PAGE);
	run_close(&a);
	run_close(&b);
}

static uint64_t counter(const char *name)
{
	return counter_of(daemon_.socket, name);
}

static void export_layer(struct run *r, uint32_t layer, uint32_t n, float *k, float *v)
{
	skvq_export e = {.struct_size = sizeof e,
	                 .layer = layer,
	                 .n_tokens = n,
	                 .type = SKVQ_F32,
	                 .k = k,
	                 .v = v,
	                 .k_token_stride = KV_HEADS * DIM * sizeof *k,
	                 .k_head_stride = DIM * sizeof *k,
	                 .v_token_stride = KV_HEADS * DIM * sizeof *v,
	                 .v_head_stride = DIM * sizeof *v};

	assert_int_equal(api->export_kv(r->seq, &e), 0);
}

/* Another process takes the first pages and has the very numbers in them. */
static void another_process_reads(struct run *owner, uint32_t pages, uint32_t safe)
{
	static float k[LAYERS][TOKENS * KV_HEADS * DIM], v[LAYERS][TOKENS * KV_HEADS * DIM];
	static float x[TOKENS * KV_HEADS * DIM], y[TOKENS * KV_HEADS * DIM];
	size_t n = (size_t)pages * 80 * KV_HEADS * DIM * sizeof(float);
	int result;

	for (uint32_t layer = 0; layer < LAYERS; layer++)
		export_layer(owner, layer, pages * 80, k[layer], v[layer]);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		static struct run other;
		int bad = 0;

		run_open(&other, daemon_.socket, TOKENS, 0, pages * 80 + 100, "n1");
		bad |= other.matched == (int32_t)pages * 80 ? 0 : 1;
		bad |= info_of(&other).pages_safe == safe ? 0 : 2;
		for (uint32_t layer = 0; layer < LAYERS && !bad; layer++) {
			export_layer(&other, layer, pages * 80, x, y);
			bad |= memcmp(x, k[layer], n) == 0 && memcmp(y, v[layer], n) == 0 ? 0 : 4;
		}
		run_close(&other);
		_exit(bad);
	}
	assert_int_equal(waitpid(pid, &result, 0), pid);
	assert_true(WIFEXITED(result));
	assert_int_equal(WEXITSTATUS(result), 0);
}

/* Pages whose keys keep 8 bits are shared like the others they stand among, and outlive a daemon. */
static void safe_pages_are_shared(void **state)
{
	(void)state;
	static struct run a, b, c;
	enum { PAGES = 12, SAFE = 6 };

	drown = true;
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	while (a.at < 1080) {
		uint32_t n = a.at + CHUNK <= 1000 ? CHUNK : 1;
		assert_true(run_step(&a, n) == run_step(&b, n));
	}
	skvq_seq_info i = wait_shared(&a, PAGES);
	assert_int_equal(i.pages_safe, SAFE);
	assert_int_equal(info_of(&b).pages_safe, SAFE);
	assert_int_equal(counter("pages_safe"), SAFE);
	assert_int_equal(counter("page_check_failures"), 0);
	struct skvq_client_status s = status();
	assert_int_equal(s.pages, PAGES);
	assert_int_equal(s.bytes_resident, i.bytes_shared);
	assert_true(s.bytes_kernel >= s.bytes_resident);
	struct skvq_client *o = observer();
	struct skvq_client_ns_info *ns = NULL;
	struct skvq_client_error_info *errors = NULL;
	size_t n;
	assert_int_equal(skvq_client_namespaces(o, &ns, &n), 0);
	assert_int_equal(ns[0].pages_safe, SAFE);
	assert_int_equal(skvq_client_errors(o, ns[0].ns, &errors, &n), 0);
	for (uint32_t e = 0; e < 2 * LAYERS; e++)
		assert_int_equal(errors[e].pages, e % 2 ? PAGES : PAGES - SAFE);
	free(errors);
	free(ns);
	skvq_client_free(o);
	another_process_reads(&b, PAGES, SAFE);
	run_open(&c, daemon_.socket, TOKENS, 0, 1080, "n1");
	assert_int_equal(c.matched, PAGES * 80);
	assert_int_equal(info_of(&c).pages_safe, SAFE);
	assert_int_equal(info_of(&c).bytes_shared, i.bytes_shared);
	while (c.at < 1080)
		run_step(&c, 1);
	run_close(&c);

	assert_true(WIFSIGNALED(test_daemon_stop(&daemon_, SIGKILL)));
	for (int t = 0; t < 40; t++)
		assert_true(run_step(&a, 1) == run_step(&b, 1));
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	for (int t = 0; t < 1000; t++) {
		assert_true(api->seq_poll(a.seq) >= 0);
		i = info_of(&a);
		if (i.daemon == 1 && i.pages_inflight == 0 && status().pages >= i.n_paged / 80)
			break;
		nap_ms(10);
	}
	assert_int_equal(status().pages, i.n_paged / 80);
	assert_int_equal(counter("pages_safe"), i.n_paged / 80 / 2);
	assert_int_equal(counter("page_check_failures"), 0);
	assert_true(run_step(&a, 1) == run_step(&b, 1));
	same_tokens(&a, &b, 1000);
	another_process_reads(&b, PAGES, SAFE);
	run_close(&a);
	run_close(&b);
	drown = false;
}

static void another_identity_matches_nothing(void **state)
{
	(void)state;
	static struct run a, b;

	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	for (int i = 0; i < 7; i++)
		run_step(&a, CHUNK);
	wait_shared(&a, 10);
	run_open(&b, daemon_.socket, TOKENS, 0, 1000, "n2");
	assert_int_equal(b.matched, 0);
	run_close(&b);
	/* The same identity with other tokens: none either. */
	run_open(&b, daemon_.socket, 0, 77, 1000, "n1");
	assert_int_equal(b.matched, 0);
	run_close(&b);
	run_close(&a);
}

/* The daemon ends mid-decode, and returns: no bit changes, pages are published again. */
static void daemon_ends_and_comes_back(int sig)
{
	static struct run a, b;

	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	for (int i = 0; i < 6; i++)
		assert_true(run_step(&a, CHUNK) == run_step(&b, CHUNK));
	uint64_t boot = wait_shared(&a, 8).boot_id;
	int status_ = test_daemon_stop(&daemon_, sig);
	assert_true(sig == SIGKILL ? WIFSIGNALED(status_) : status_ == 0);
	for (int i = 0; i < 100; i++)
		assert_true(run_step(&a, 1) == run_step(&b, 1));
	assert_int_equal(info_of(&a).daemon, 2);

	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	skvq_seq_info i = {0};
	for (int n = 0; n < 1000; n++) {
		assert_true(api->seq_poll(a.seq) >= 0);
		i = info_of(&a);
		if (i.daemon == 1 && i.pages_inflight == 0 && status().pages >= i.n_paged / 80)
			break;
		nap_ms(10);
	}
	assert_int_equal(i.daemon, 1);
	assert_true(i.boot_id && i.boot_id != boot);
	assert_int_equal(status().pages, i.n_paged / 80);
	check_errors(&a, i.n_paged / 80, NULL, 0, 0); /* they came back with their pages */
	for (int n = 0; n < 100; n++)
		assert_true(run_step(&a, 1) == run_step(&b, 1));
	run_close(&a);

	/* What the new daemon holds now serves others: equal to private pages, bit for bit. */
	run_open(&a, daemon_.socket, TOKENS, 0, 900, "n1");
	assert_int_equal(a.matched, 800);
	same_tokens(&a, &b, 800);
	run_close(&a);
	run_close(&b);
}

static void the_daemon_is_killed_and_comes_back(void **state)
{
	(void)state;
	daemon_ends_and_comes_back(SIGKILL);
}

static void the_daemon_is_stopped_and_comes_back(void **state)
{
	(void)state;
	daemon_ends_and_comes_back(SIGTERM);
}

static void start_with_disk(const char *spill_percent)
{
	char folder[80];
	const char *args[] = {"--store-folder",        folder, "--store-spill-percent", spill_percent,
	                      "--store-touch-entries", "0",    "--store-capacity-bytes", "512M",
	                      NULL};

	snprintf(folder, sizeof folder, "%s/store", daemon_.dir);
	test_daemon_start(&daemon_, SKVQD_PATH, args);
}

/* Pages of engines that are gone, after the daemon was too: from disk, bit for bit. */
static void disk_survives(int sig, const char *spill_percent)
{
	static struct run a, b;
	const uint32_t pages = (1000 - 64) / 80;

	(void)test_daemon_stop(&daemon_, SIGTERM);
	start_with_disk(spill_percent);
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	while (a.at < 1000)
		run_step(&a, 1000 - a.at < CHUNK ? 1000 - a.at : CHUNK);
	wait_shared(&a, pages);
	run_close(&a);
	for (int i = 0; sig == SIGKILL && counter("spills") < pages; i++) {
		assert_true(i < 1000);
		nap_ms(10);
	}
	assert_true(status().has_store);
	(void)counter("store_transfers_lost"); /* the last there is */
	int status_ = test_daemon_stop(&daemon_, sig);
	assert_true(sig == SIGKILL ? WIFSIGNALED(status_) : status_ == 0);
	start_with_disk(spill_percent);
	assert_int_equal(status().pages, 0);
	assert_true(status().disk_pages >= pages);

	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	assert_int_equal(a.matched, pages * 80);
	assert_int_equal(counter("restores"), pages);
	assert_int_equal(counter("restores_failed"), 0);
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	while (b.at < 1000)
		run_step(&b, 1000 - b.at < CHUNK ? 1000 - b.at : CHUNK);
	same_tokens(&a, &b, (uint32_t)a.matched);
	run_close(&a);
	run_close(&b);
}

static void a_stopped_daemon_finds_its_pages_again(void **state)
{
	(void)state;
	disk_survives(SIGTERM, "25"); /* nothing was short: all is written at the end */
}

static void a_killed_daemon_finds_what_was_written(void **state)
{
	(void)state;
	disk_survives(SIGKILL, "100");
}

/* A hint brings pages back before anybody waits for them. */
static void prefetch_brings_pages_back(void **state)
{
	static struct run a;
	const uint32_t pages = (1000 - 64) / 80;

	(void)state;
	(void)test_daemon_stop(&daemon_, SIGTERM);
	start_with_disk("25");
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	while (a.at < 1000)
		run_step(&a, 1000 - a.at < CHUNK ? 1000 - a.at : CHUNK);
	wait_shared(&a, pages);
	run_close(&a);
	(void)test_daemon_stop(&daemon_, SIGTERM);
	start_with_disk("25");

	memset(&a, 0, sizeof a);
	run_open_model(&a, daemon_.socket, "n1");
	run_tokens(&a, TOKENS, 0);
	const skvq_ext_prefetch *ext = api->get_extension(a.session, SKVQ_EXT_PREFETCH);
	assert_non_null(ext);
	assert_int_equal(ext->prefetch(a.model, a.tokens, 1000), pages * 80);
	assert_int_equal(ext->prefetch(a.model, NULL, 1000), -SKVQ_EINVAL);
	for (int i = 0; counter("restores") < pages; i++) {
		assert_true(i < 1000);
		nap_ms(10);
	}
	assert_int_equal(status().pins, 0);
	api->close(a.session);
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	assert_int_equal(a.matched, pages * 80);
	assert_int_equal(counter("tokens_restored"), 0);
	run_close(&a);
}

/* An engine reads what its profile reads with refinements while others' pages press the daemon to
 * give refinements up: not one bit of its output changes. When it has let go, they go, and who comes
 * later is told what it reads by its base. */
static void refinements_go_under_pressure(void **state)
{
	static struct run a, b, other;
	const char *args[] = {"--ram-max", "640K", NULL};

	(void)teardown(state);
	start(state, args);
	profile = "e2.1-n320";
	run_open(&a, daemon_.socket, TOKENS, 0, 600, "n1");
	run_open(&b, NULL, TOKENS, 0, 600, "n1");
	for (uint32_t tail = 10; a.at < TOKENS; tail++) {
		for (int i = 0; i < 60 && a.at < TOKENS; i++) {
			uint32_t n = a.at + CHUNK <= 600 ? CHUNK : 1;
			assert_true(run_step(&a, n) == run_step(&b, n));
		}
		run_open(&other, daemon_.socket, 0, tail, 500, "n1");
		while (other.at < 480)
			run_step(&other, 80);
		run_close(&other);
	}
	assert_true(counter("unrefines") > 0);
	assert_true(counter("sheds") > 0);
	skvq_seq_info i = info_of(&a), j = info_of(&b);
	assert_int_equal(i.n_refined, j.n_refined);
	assert_int_equal(i.n_base, j.n_base);
	assert_true(i.pages_shared > 0);
	run_close(&a);
	run_close(&b);

	/* What is left of the first document: pages without refinement, and how many is told. */
	for (uint32_t tail = 50; tail < 54; tail++) {
		run_open(&other, daemon_.socket, 0, tail, 300, "n1");
		while (other.at < 240)
			run_step(&other, 80);
		run_close(&other);
	}
	run_open(&a, daemon_.socket, TOKENS, 0, 400, "n1");
	if (a.matched) {
		i = info_of(&a);
		assert_true(i.n_refined < (uint32_t)a.matched);
		assert_int_equal(i.n_refined + i.n_base, a.matched);
	}
	run_close(&a);
	/* Who wants young pages whole or not at all gets what he wants. */
	memset(&a, 0, sizeof a);
	run_open_model(&a, daemon_.socket, "n1");
	run_tokens(&a, TOKENS, 0);
	skvq_seq_desc d = {.struct_size = sizeof d,
	                   .flags = SKVQ_SEQ_WHOLE,
	                   .tokens = a.tokens,
	                   .n_tokens = 400,
	                   .max_tokens = TOKENS,
	                   .max_append = CHUNK};
	a.matched = api->seq_open(a.model, &d, &a.seq);
	assert_true(a.matched >= 0);
	i = info_of(&a);
	assert_int_equal(i.n_base, 0);
	run_close(&a);
	profile = "k2v1.5";
	assert_int_equal(status().pins, 0);
}

/* kill -9 of an engine: its pins end, the pages stay, no descriptor is left. */
static void an_engine_dies(void **state)
{
	(void)state;
	static struct run a;
	int fds_before;

	/* Its socket is there before it has opened all the rest: then it does not answer yet. */
	(void)status();
	nap_ms(100);
	fds_before = test_daemon_fds(&daemon_);
	for (int round = 0; round < 3; round++) {
		pid_t pid = fork();
		if (pid == 0) {
			memset(&a, 0, sizeof a);
			run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
			while (a.at < TOKENS)
				run_step(&a, a.at < 900 ? CHUNK : 1);
			for (;;)
				pause(); /* killed by now or in here */
		}
		/* Until it holds pins. */
		bool seen = false;
		for (int i = 0; i < 1000 && !seen; i++) {
			nap_ms(5);
			seen = status().pins > 0;
		}
		assert_true(seen);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		for (int i = 0; i < 1000 && status().pins > 0; i++)
			nap_ms(5);
		assert_int_equal(status().pins, 0);
	}
	assert_true(status().pages > 0);
	/* One arena came with the first engine; nothing else may stay. */
	for (int i = 0; i < 200 && test_daemon_fds(&daemon_) > fds_before + 2; i++)
		nap_ms(5);
	assert_true(test_daemon_fds(&daemon_) <= fds_before + 2);
}

/* Under a cap that holds few pages: unpinned ones make room, pinned ones refuse, decoding goes on. */
static void the_ram_cap_holds(void **state)
{
	static struct run a, b;
	const char *args[] = {"--ram-max", "1M", NULL};

	(void)teardown(state);
	start(state, args);
	run_open(&a, daemon_.socket, 0, 1, 1000, "n1");
	run_open(&b, NULL, 0, 1, 1000, "n1");
	while (a.at < TOKENS) {
		uint32_t n = a.at + CHUNK <= 1000 ? CHUNK : 1;
		assert_true(run_step(&a, n) == run_step(&b, n));
	}
	for (int i = 0; i < 20; i++) {
		assert_true(api->seq_poll(a.seq) >= 0);
		nap_ms(5);
	}
	struct skvq_client_status s = status();
	assert_true(s.bytes_resident <= s.bytes_max && s.bytes_kernel <= s.bytes_max);
	run_close(&a);
	run_close(&b);
	/* Another document takes the place of the first one's pages. */
	for (uint32_t tail = 2; tail < 6; tail++) {
		run_open(&a, daemon_.socket, 0, tail, 1000, "n1");
		while (a.at < 900)
			run_step(&a, CHUNK);
		run_close(&a);
		s = status();
		assert_true(s.pages > 0);
		assert_true(s.bytes_resident <= s.bytes_max && s.bytes_kernel <= s.bytes_max);
	}
}

/* The smallest bounds a daemon may have slow nobody down to nothing, and are not fatal. */
static void tight_bounds_still_publish(void **state)
{
	static struct run a;
	const char *args[] = {"--requests-max", "1", "--frame-max", "4K", NULL};

	(void)teardown(state);
	start(state, args);
	run_open(&a, daemon_.socket, TOKENS, 0, 0, "n1");
	for (int i = 0; i < 8; i++)
		run_step(&a, CHUNK);
	wait_shared(&a, (8 * CHUNK - 64) / 80);
	assert_int_equal(info_of(&a).daemon, 1);
	api->seq_close(a.seq);
	assert_int_equal(status().pins, 0);
	skvq_stats st = {.struct_size = sizeof st};
	assert_int_equal(api->stats(a.session, &st), 0);
	assert_int_equal(st.daemon, 1);
	api->close(a.session);
}

/* A child that lives on does not keep its parent's pins. */
static void a_forked_child_keeps_no_pins(void **state)
{
	(void)state;
	static struct run a;

	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	for (int i = 0; i < 6; i++)
		run_step(&a, CHUNK);
	wait_shared(&a, 8);
	pid_t pid = fork();
	if (pid == 0) {
		pause();
		_exit(0);
	}
	api->close(a.session);
	for (int i = 0; i < 400 && status().connections > 1; i++)
		nap_ms(5);
	struct skvq_client_status s = status();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(s.pins, 0);
	assert_int_equal(s.connections, 1);
}

/* More pins than allowed: the engine keeps its pages to itself and goes on. */
static void the_pin_bound_holds(void **state)
{
	static struct run a, b;
	const char *args[] = {"--pins-max", "4", NULL};

	(void)teardown(state);
	start(state, args);
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	while (a.at < TOKENS) {
		uint32_t n = a.at + CHUNK <= 1000 ? CHUNK : 1;
		assert_true(run_step(&a, n) == run_step(&b, n));
	}
	assert_true(status().pins <= 4);
	assert_true(info_of(&a).pages_shared <= 4);
	skvq_stats st = {.struct_size = sizeof st};
	assert_int_equal(api->stats(a.session, &st), 0);
	assert_true(st.publish_refused > 0);
	run_close(&a);
	run_close(&b);
	assert_int_equal(status().pins, 0);
}

/* A daemon that hangs (SIGSTOP) delays no step by more than the bounded wait. When it goes on it has
 * lost a client it still pins pages for; other documents press for their place. The engine reads
 * its own bytes all the time. */
static void a_hung_daemon_is_no_hung_engine(void **state)
{
	static struct run a, b, c;
	const char *args[] = {"--ram-max", "400K", NULL};
	struct timespec t0, t1;

	(void)teardown(state);
	start(state, args);
	run_open(&a, daemon_.socket, TOKENS, 0, 1000, "n1");
	run_open(&b, NULL, TOKENS, 0, 1000, "n1");
	for (int i = 0; i < 3; i++)
		assert_true(run_step(&a, CHUNK) == run_step(&b, CHUNK));
	wait_shared(&a, 3);
	kill(daemon_.pid, SIGSTOP);
	for (int i = 0; i < 40; i++) {
		clock_gettime(CLOCK_MONOTONIC, &t0);
		assert_true(run_step(&a, 1) == run_step(&b, 1));
		clock_gettime(CLOCK_MONOTONIC, &t1);
		assert_true(t1.tv_sec - t0.tv_sec < 3);
	}
	/* A second sequence of the session asks the daemon something, and times out: link broken. */
	skvq_seq *other = NULL;
	skvq_seq_desc d = {.struct_size = sizeof d, .tokens = a.tokens, .n_tokens = 900,
	                   .max_tokens = TOKENS, .max_append = CHUNK};
	assert_int_equal(api->seq_open(a.model, &d, &other), 0);
	assert_int_equal(info_of(&a).daemon, 2);
	api->seq_close(other);
	for (int i = 0; i < 40; i++) {
		clock_gettime(CLOCK_MONOTONIC, &t0);
		assert_true(run_step(&a, 1) == run_step(&b, 1));
		clock_gettime(CLOCK_MONOTONIC, &t1);
		assert_true(t1.tv_sec - t0.tv_sec < 3);
	}
	kill(daemon_.pid, SIGCONT);
	for (uint32_t tail = 1; tail < 5; tail++) {
		run_open(&c, daemon_.socket, 0, tail, 1000, "n1");
		for (int i = 0; i < 4; i++)
			run_step(&c, CHUNK);
		run_close(&c);
		for (int i = 0; i < 20; i++)
			assert_true(run_step(&a, 1) == run_step(&b, 1));
	}
	run_close(&a);
	run_close(&b);
	assert_int_equal(status().pins, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(publishing_changes_no_bit, setup, teardown),
	    cmocka_unit_test_setup_teardown(calibrations_do_not_mix, setup, teardown),
	    cmocka_unit_test_setup_teardown(the_daemon_makes_calibrations_agree, setup, teardown),
	    cmocka_unit_test_setup_teardown(calibrations_are_bounded, setup_small_calibrations,
	                                    teardown),
	    cmocka_unit_test_setup_teardown(attaching_equals_owning, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_batch_reads_shared_pages_once, setup, teardown),
	    cmocka_unit_test_setup_teardown(errors_of_pages_reach_the_daemon, setup, teardown),
	    cmocka_unit_test_setup_teardown(safe_pages_are_shared, setup, teardown),
	    cmocka_unit_test_setup_teardown(another_identity_matches_nothing, setup, teardown),
	    cmocka_unit_test_setup_teardown(the_daemon_is_killed_and_comes_back, setup, teardown),
	    cmocka_unit_test_setup_teardown(the_daemon_is_stopped_and_comes_back, setup,
	                                    teardown),
	    cmocka_unit_test_setup_teardown(a_stopped_daemon_finds_its_pages_again, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_killed_daemon_finds_what_was_written, setup, teardown),
	    cmocka_unit_test_setup_teardown(prefetch_brings_pages_back, setup, teardown),
	    cmocka_unit_test_setup_teardown(refinements_go_under_pressure, setup, teardown),
	    cmocka_unit_test_setup_teardown(an_engine_dies, setup, teardown),
	    cmocka_unit_test_setup_teardown(the_ram_cap_holds, setup, teardown),
	    cmocka_unit_test_setup_teardown(tight_bounds_still_publish, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_forked_child_keeps_no_pins, setup, teardown),
	    cmocka_unit_test_setup_teardown(the_pin_bound_holds, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_hung_daemon_is_no_hung_engine, setup, teardown),
	};

	if (!synthetic_load(SKVQ_PLUGIN_PATH))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
