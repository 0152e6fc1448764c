/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layer groups: a model whose layers see different extents, with pages of their own for each. It is
 * held against the same model without groups, which keeps everything, bit for bit.
 */
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

#include "calibration_maker.h"
#include "daemon.h"
#include "synthetic.h"

enum { PAGE = 80, WINDOW = 64, KEPT = 16 };

static struct test_daemon daemon_;

static const uint32_t mixed[LAYERS] = {100, 0, 60}, twice[LAYERS] = {100, 0, 100},
		      sliding[LAYERS] = {140, 60, 140};
static const uint32_t *const patterns[] = {mixed, twice, sliding};
static const uint32_t groups_of[] = {3, 2, 2};

static const char *const profiles[] = {"k4v2", "k2v1.5", "fp16", "e2.1-nall", "affine-k4v4-g32",
				       "skvq-k4v4-g32", "skvq-k2v1.5-g32"};

enum { N_PROFILES = sizeof profiles / sizeof profiles[0] };

static int setup_model(void **state)
{
	(void)state;
	layer_window = mixed;
	return 0;
}

static int teardown_model(void **state)
{
	(void)state;
	layer_window = NULL;
	model_flags = seq_flags = 0;
	profile = "k2v1.5";
	calibration = NULL;
	calibration_bytes = 0;
	drown = false;
	reorder_k = reorder_v = NULL;
	return 0;
}

static int setup(void **state)
{
	setup_model(state);
	test_daemon_init(&daemon_);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	return 0;
}

static int teardown(void **state)
{
	teardown_model(state);
	test_daemon_fini(&daemon_);
	return 0;
}

static void open_grouped(struct run *r, const char *socket, uint32_t prompt)
{
	model_flags = SKVQ_MODEL_LAYER_GROUPS;
	seq_flags = SKVQ_SEQ_DROP_UNSEEN;
	run_open(r, socket, TOKENS, 0, prompt, "n1");
	model_flags = seq_flags = 0;
}

/* Embedded, one page for all layers, nothing dropped. */
static void open_whole(struct run *r)
{
	model_flags = seq_flags = 0;
	run_open(r, NULL, TOKENS, 0, 0, "n1");
}

static void run_to(struct run *r, uint32_t n)
{
	while (r->at < n)
		run_step(r, n - r->at < CHUNK ? n - r->at : CHUNK);
}

/* Both go on, a few tokens at a time at first. */
static void same_from_here(struct run *a, struct run *b, uint32_t to)
{
	assert_int_equal(a->at, b->at);
	for (uint32_t i = 0; a->at < to; i++) {
		uint32_t n = i < 20 ? 1 : to - a->at < 50 ? to - a->at : 50;

		assert_true(run_step(a, n) == run_step(b, n));
	}
}

static void settle(struct run *r)
{
	for (int i = 0; i < 2000 && api->seq_poll(r->seq) == 0; i++)
		nap_ms(5);
	assert_int_equal(api->seq_poll(r->seq), 1);
}

static void wait_daemon(struct run *r, uint32_t state)
{
	for (int i = 0; i < 2000 && info_of(r).daemon != state; i++) {
		assert_true(api->seq_poll(r->seq) >= 0);
		nap_ms(5);
	}
	assert_int_equal(info_of(r).daemon, state);
}

static int32_t export_at(struct run *r, uint32_t layer, uint32_t position, uint32_t n, void *k, void *v)
{
	skvq_export e = {.struct_size = sizeof e,
			 .layer = layer,
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

/* Tokens of a layer whose pages are gone. */
static uint32_t dropped_of(struct run *r, uint32_t layer)
{
	static float k[KV_HEADS][DIM];
	uint32_t n = 0;

	while (n + 10 < r->at && export_at(r, layer, n + 10, 1, k, NULL) == -SKVQ_ERANGE)
		n += PAGE;
	return n;
}

/* What is left of the first n tokens of each layer holds the same bits, and so do the sinks. */
static void same_up_to(struct run *grouped, struct run *whole, uint32_t end)
{
	static float k[2][TOKENS][KV_HEADS][DIM], v[2][TOKENS][KV_HEADS][DIM];

	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		uint32_t from = dropped_of(grouped, layer), n = end - from;

		assert_true(layer_window[layer] || from == 0);
		assert_int_equal(export_at(grouped, layer, from, n, k[0], v[0]), 0);
		assert_int_equal(export_at(whole, layer, from, n, k[1], v[1]), 0);
		assert_memory_equal(k[0], k[1], n * sizeof k[0][0]);
		assert_memory_equal(v[0], v[1], n * sizeof v[0][0]);
		n = end < 5 ? end : 5;
		assert_int_equal(export_at(grouped, layer, 0, n, k[0], v[0]), 0);
		assert_int_equal(export_at(whole, layer, 0, n, k[1], v[1]), 0);
		assert_memory_equal(k[0], k[1], n * sizeof k[0][0]);
	}
}

static void same_rest(struct run *grouped, struct run *whole)
{
	assert_int_equal(grouped->at, whole->at);
	same_up_to(grouped, whole, grouped->at);
}

/* One that has matched some tokens, and one that computes them all. Tokens behind the match are in
 * FP16 with both only when both have computed them. */
static void same_after_match(struct run *grouped, struct run *whole, uint32_t to)
{
	uint32_t matched = grouped->at, first = matched + 2 * WINDOW;

	run_to(whole, first);
	same_up_to(grouped, whole, matched);
	run_to(grouped, first);
	same_from_here(grouped, whole, to);
}

/* Pages of a group whose layers see so much that a sequence of n tokens keeps, and lets go of. */
static uint32_t pages_of(uint32_t n, uint32_t extent, uint32_t *ret_dropped)
{
	uint32_t encoded = n < WINDOW ? 0 : (n - WINDOW) / 16 * 16, seen = extent - 1 + KEPT;
	uint32_t gone = extent && n > seen ? n - seen : 0;

	*ret_dropped = (gone < encoded ? gone : encoded) / PAGE;
	return (encoded + PAGE - 1) / PAGE - *ret_dropped;
}

/* ---- embedded ---- */

static void groups_leave_no_trace(void **state)
{
	(void)state;
	static struct run a, b;

	for (int p = 0; p < N_PROFILES; p++) {
		profile = profiles[p];
		layer_window = patterns[p % 3];
		open_whole(&b);
		open_grouped(&a, NULL, 0);
		for (uint32_t i = 0; a.at < 1000; i++) {
			uint32_t n = i < 3 ? 100 : i % 8 ? 1 : 67, pages = 0, dropped = 0;

			assert_true(run_step(&a, n) == run_step(&b, n));
			skvq_seq_info x = info_of(&a), y = info_of(&b);
			assert_int_equal(x.n_tokens, y.n_tokens);
			assert_int_equal(x.n_paged, y.n_paged);
			assert_int_equal(x.n_refined, y.n_refined);
			assert_int_equal(x.bytes_fp16, y.bytes_fp16);
			assert_int_equal(x.page_code_bytes, y.page_code_bytes);
			assert_int_equal(x.layer_groups, groups_of[p % 3]);
			assert_int_equal(y.layer_groups, 1);
			for (uint32_t l = 0; l < LAYERS; l++) {
				uint32_t gone, own = pages_of(a.at, layer_window[l], &gone);

				if (l == 2 && layer_window[2] == layer_window[0])
					continue; /* of one group */
				pages += own;
				dropped += gone;
			}
			assert_int_equal(x.pages_local, pages);
			assert_int_equal(x.pages_dropped, dropped);
		}
		same_rest(&a, &b);
		/* One of three layers keeps its pages, or none; and the system sees it. */
		uint64_t kept = info_of(&a).bytes_local, all = info_of(&b).bytes_local;
		assert_true(kept < all * 2 / 3);
		run_close(&b);
		assert_true(staging_bytes() <= kept + 3 * 4096);
		run_close(&a);
	}
}

/* The same, by tables and matrices that a calibration has for each layer. */
static void each_layer_has_its_own_calibration(void **state)
{
	(void)state;
	static const char *const calibrated[] = {"k2v1.5", "auto-2.4", "skvq-k2v2-g64"};
	const struct skvq_calibration_key key = {digest, LAYERS, Q_HEADS, KV_HEADS, DIM, DIM};
	void *file = calibration_make(&key, NULL, 4, 1, &calibration_bytes);
	static struct run a, b;

	calibration = file;
	for (size_t p = 0; p < sizeof calibrated / sizeof calibrated[0]; p++) {
		profile = calibrated[p];
		layer_window = patterns[p];
		open_grouped(&a, NULL, 0);
		open_whole(&b);
		while (a.at < 700)
			assert_true(run_step(&a, 100) == run_step(&b, 100));
		assert_int_equal(info_of(&a).page_code_bytes, info_of(&b).page_code_bytes);
		same_rest(&a, &b);
		run_close(&a);
		run_close(&b);
	}
	free(file);
}

/* And channel maps. */
static void each_layer_has_its_own_maps(void **state)
{
	(void)state;
	static uint16_t maps[2][LAYERS][KV_HEADS][DIM];
	static struct run a, b;

	for (uint32_t i = 0; i < 2 * LAYERS * KV_HEADS * DIM; i++)
		(&maps[0][0][0][0])[i] = (uint16_t)((i * 5 + i / DIM * 11) % DIM);
	for (uint32_t i = 0; i < 3; i++) { /* both, and one without the other */
		reorder_k = i == 1 ? NULL : &maps[0][0][0][0];
		reorder_v = i == 2 ? NULL : &maps[1][0][0][0];
		profile = i ? "plain-k4v4" : "affine-k4v4-g32";
		layer_window = patterns[i];
		open_grouped(&a, NULL, 0);
		open_whole(&b);
		while (a.at < 500)
			assert_true(run_step(&a, 100) == run_step(&b, 100));
		assert_true(info_of(&a).pages_dropped > 0);
		same_rest(&a, &b);
		run_close(&a);
		run_close(&b);
	}
	maps[0][1][0][3] = maps[0][1][0][4];
	reorder_k = &maps[0][0][0][0];
	skvq_engine e = {.struct_size = sizeof e};
	skvq_model_desc d = {.struct_size = sizeof d,
			     .flags = SKVQ_MODEL_LAYER_GROUPS,
			     .weights_digest = digest,
			     .tokenizer_digest = digest,
			     .engine_numerics = "n1",
			     .n_layer = LAYERS,
			     .n_q_heads = Q_HEADS,
			     .n_kv_heads = KV_HEADS,
			     .head_dim_k = DIM,
			     .head_dim_v = DIM,
			     .profile = "k4v2",
			     .reorder_k = reorder_k,
			     .layer_window = mixed};
	assert_int_equal(api->open(&e, NULL, &a.session), 0);
	assert_int_equal(api->model_register(a.session, &d, &a.model), -SKVQ_EINVAL);
	api->close(a.session);
}

/* Only the group with the layer whose keys drown takes safe pages. */
static void a_group_is_safe_by_itself(void **state)
{
	(void)state;
	static struct run a, b;
	static float k[2][TOKENS][KV_HEADS][DIM];

	drown = true;
	profile = "k4v2";
	open_grouped(&a, NULL, 0);
	open_whole(&b);
	run_to(&a, 600);
	run_to(&b, 600);
	assert_true(info_of(&b).pages_safe > 0);
	assert_int_equal(info_of(&a).pages_safe, info_of(&b).pages_safe);
	assert_true(info_of(&a).page_code_bytes < info_of(&b).page_code_bytes);
	assert_int_equal(export_at(&a, 1, 0, 600, k[0], NULL), 0);
	assert_int_equal(export_at(&b, 1, 0, 600, k[1], NULL), 0);
	assert_memory_equal(k[0], k[1], 600 * sizeof k[0][0]);
	run_close(&a);
	run_close(&b);
}

static int32_t attend_at(struct run *r, uint32_t layer, uint32_t position, uint32_t limit)
{
	static float q[Q_HEADS][DIM], out[Q_HEADS][DIM];
	skvq_attn a = {.struct_size = sizeof a,
		       .layer = layer,
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

static void says(struct run *r, const char *what)
{
	char said[512];

	(void)api->last_error(r->session, said, sizeof said);
	if (!strstr(said, what))
		fail_msg("'%s' does not say '%s'", said, what);
}

/* Errors name layers as the engine does, and change nothing. */
static void what_is_refused_is_named(void **state)
{
	(void)state;
	static struct run a, b;
	static float k[KV_HEADS][DIM];
	uint32_t windows[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0};
	skvq_model *m;

	open_grouped(&a, NULL, 0);
	open_whole(&b);
	run_to(&a, 900);
	run_to(&b, 900);
	assert_int_equal(attend_at(&a, 1, 899, 0), 0);
	assert_int_equal(attend_at(&a, 2, 899, 61), -SKVQ_EINVAL);
	says(&a, "layer 2: sliding_limit 61, the largest layer_window is 60");
	assert_int_equal(attend_at(&a, 0, 899, 0), -SKVQ_EINVAL);
	assert_int_equal(attend_at(&a, 2, 700, 60), -SKVQ_ERANGE);
	says(&a, "layer 2: token 700");
	assert_int_equal(attend_at(&a, 1, 700, 0), 0);
	assert_int_equal(attend_at(&a, LAYERS, 899, 1), -SKVQ_EGEOMETRY);
	assert_int_equal(export_at(&a, LAYERS, 0, 1, k, NULL), -SKVQ_EGEOMETRY);
	skvq_kv kv = {.struct_size = sizeof kv,
		      .layer = 2,
		      .position = 901,
		      .n_tokens = 1,
		      .k = k,
		      .v = k,
		      .k_head_stride = sizeof k[0],
		      .v_head_stride = sizeof k[0]};
	assert_int_equal(api->append(a.seq, &kv), -SKVQ_ESTATE);
	says(&a, "layer 2 at token 901");
	kv.layer = LAYERS;
	assert_int_equal(api->append(a.seq, &kv), -SKVQ_EGEOMETRY);
	kv.layer = 1;
	kv.position = 900;
	assert_int_equal(api->append(a.seq, &kv), 0);
	assert_int_equal(api->seq_commit(a.seq, a.tokens, 1), -SKVQ_ESTATE);
	says(&a, "layer 0 has seen only 900");
	assert_int_equal(api->seq_truncate(a.seq, 901), -SKVQ_ERANGE);
	run_truncate(&a, 900);
	assert_int_equal(api->seq_truncate(a.seq, 500), -SKVQ_ERANGE);
	assert_int_equal(info_of(&a).n_tokens, 900);
	same_from_here(&a, &b, 960);
	assert_int_equal(api->model_unregister(a.model), -SKVQ_ESTATE);
	skvq_model_desc d = {.struct_size = sizeof d,
			     .flags = SKVQ_MODEL_LAYER_GROUPS,
			     .weights_digest = digest,
			     .tokenizer_digest = digest,
			     .engine_numerics = "n1",
			     .n_layer = 10,
			     .n_q_heads = 1,
			     .n_kv_heads = 1,
			     .head_dim_k = DIM,
			     .head_dim_v = DIM,
			     .layer_window = windows};
	assert_int_equal(api->model_register(a.session, &d, &m), -SKVQ_ELIMIT);
	says(&a, "more than 8 different extents");
	windows[0] = windows[1] = 9;
	assert_int_equal(api->model_register(a.session, &d, &m), 0);
	assert_int_equal(api->model_unregister(m), 0);
	run_close(&a);
	run_close(&b);
}

/* ---- cuts and forks ---- */

static void run_fork(const struct run *from, struct run *to)
{
	*to = *from;
	to->seq = NULL;
	assert_int_equal(api->seq_fork(from->seq, &to->seq), 0);
}

/* Two branches in one call, by several callers, and each alone. */
static void same_together(struct run *x, struct run *y)
{
	static float q[2][Q_HEADS][DIM], out[2][Q_HEADS][DIM], alone[2][Q_HEADS][DIM];
	skvq_seq *seqs[2] = {x->seq, y->seq};
	skvq_attn a[2];

	fill(&q[0][0][0], 2 * Q_HEADS * DIM, x->at);
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (int i = 0; i < 2; i++) {
			a[i] = (skvq_attn){.struct_size = sizeof a[i],
					   .layer = layer,
					   .position = x->at - 1,
					   .n_rows = 1,
					   .sliding_limit = layer_window[layer],
					   .nth = 1,
					   .scale = 0.125f,
					   .q = q[i],
					   .q_row_stride = sizeof q[i],
					   .q_head_stride = sizeof q[i][0],
					   .out = &alone[i][0][0],
					   .out_row_stride = sizeof out[i],
					   .out_head_stride = sizeof out[i][0]};
			assert_int_equal(api->attend(&seqs[i], &a[i], 1), 0);
			a[i].out = &out[i][0][0];
			a[i].nth = 2;
		}
		for (uint32_t ith = 0; ith < 2; ith++) {
			a[0].ith = a[1].ith = ith;
			assert_int_equal(api->attend(seqs, a, 2), 0);
		}
		assert_memory_equal(out, alone, sizeof out);
	}
	/* Different layers, and so groups, in one call. */
	a[0].layer = 0;
	a[1].layer = 1;
	a[0].nth = a[1].nth = 1;
	a[0].ith = a[1].ith = 0;
	a[0].sliding_limit = layer_window[0];
	a[1].sliding_limit = layer_window[1];
	assert_int_equal(api->attend(seqs, a, 2), 0);
	for (int i = 0; i < 2; i++) {
		a[i].out = &alone[i][0][0];
		assert_int_equal(api->attend(&seqs[i], &a[i], 1), 0);
	}
	assert_memory_equal(out, alone, sizeof out);
}

/* Whether the next token after a cut would see what some layer has let go of. */
static bool misses(struct run *r, uint32_t to)
{
	for (uint32_t l = 0; l < LAYERS; l++) {
		uint32_t gone = layer_window[l] ? dropped_of(r, l) : 0;

		if (to && gone && to + 1 < gone + layer_window[l])
			return true;
	}
	return false;
}

/* Cuts, forks and steps in any order, with and without a daemon: what is not refused is as if nothing
 * had been dropped, and what is refused changes no group. */
static void any_way_is_as_if_all_were_kept(void **state)
{
	(void)state;
	static struct run a, b, other;
	uint32_t seed = 3, cuts = 0, refused = 0;

	for (int p = 0; p < 2 * N_PROFILES; p++) {
		bool attached = p >= N_PROFILES;

		layer_window = patterns[p % 3];
		profile = profiles[p % N_PROFILES];
		open_whole(&b);
		open_grouped(&a, attached ? daemon_.socket : NULL, 0);
		for (int i = 0; i < 40; i++) {
			seed = mix(seed + 99);
			uint32_t most = i % 10 == 9 ? 500 : 40, n = 1 + (seed >> 8) % 90;
			uint32_t to = a.at - (seed % most < a.at ? seed % most : a.at);

			if (i % 3 == 0 && misses(&a, to)) {
				skvq_seq_info before = info_of(&a), after;

				assert_int_equal(api->seq_truncate(a.seq, to), -SKVQ_ERANGE);
				after = info_of(&a);
				/* What the daemon has taken in meanwhile is not a change. */
				assert_int_equal(before.n_paged, after.n_paged);
				assert_int_equal(before.pages_dropped, after.pages_dropped);
				assert_int_equal(before.pages_local + before.pages_shared,
						 after.pages_local + after.pages_shared);
				refused++;
			} else if (i % 3 == 0) {
				cuts++;
				run_truncate(&a, to);
				run_truncate(&b, to);
				run_turn(&a, to, seed % 5);
				run_turn(&b, to, seed % 5);
			} else if (i % 7 == 6 && a.at) { /* the older branch ends */
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
	assert_true(cuts > 40 && refused > 8);
}

/* ---- with a daemon ---- */

/* Every group's pages are published, only those that are seen are pinned, and another engine takes
 * up all of them. */
static void another_engine_takes_up_all_groups(void **state)
{
	(void)state;
	static struct run a, b, c;
	uint32_t published = (1000 - WINDOW) / PAGE;

	open_whole(&b);
	open_grouped(&a, daemon_.socket, 0);
	while (a.at < 1000) {
		uint32_t n = a.at < 800 ? 100 : 50;

		assert_true(run_step(&a, n) == run_step(&b, n));
		settle(&a);
	}
	skvq_seq_info info = info_of(&a);
	assert_int_equal(status_of(daemon_.socket).pages, 3 * published);
	assert_int_equal(status_of(daemon_.socket).namespaces, 3);
	assert_int_equal(status_of(daemon_.socket).pins, info.pages_shared);
	assert_true(info.pages_dropped >= 2 * ((1000 - 100 - KEPT) / PAGE) - 2);
	assert_int_equal(info.pages_shared + info.pages_dropped, 3 * published);
	assert_int_equal(staging_bytes(), info.bytes_local + info_of(&b).bytes_local);
	same_rest(&a, &b);

	open_grouped(&c, daemon_.socket, 1000);
	assert_int_equal(c.matched, published * PAGE);
	assert_true(info_of(&c).pages_dropped > 0);
	assert_int_equal(status_of(daemon_.socket).pins,
			 info_of(&a).pages_shared + info_of(&c).pages_shared);
	run_close(&a);
	run_to(&c, 1000);
	same_from_here(&c, &b, 1150);
	same_rest(&c, &b);
	settle(&c);
	const skvq_ext_prefetch *ext = api->get_extension(c.session, SKVQ_EXT_PREFETCH);
	assert_int_equal(ext->prefetch(c.model, c.tokens, 1000), 1000 / PAGE * PAGE);
	run_close(&c);
	assert_int_equal(status_of(daemon_.socket).pins, 0);

	/* Pages of all layers are others'. */
	run_open(&c, daemon_.socket, TOKENS, 0, 1000, "n1");
	assert_int_equal(c.matched, 0);
	run_to(&c, 400);
	settle(&c);
	run_close(&c);
	/* So are those of other extents elsewhere: what these layers' K and V follow from differs. */
	static const uint32_t other[LAYERS] = {100, 0, 61};
	layer_window = other;
	open_grouped(&c, daemon_.socket, 1000);
	assert_int_equal(c.matched, 0);
	run_close(&c);
	run_close(&b);
}

/* One extent is one group, and the model is the one it was. */
static void one_extent_is_no_group(void **state)
{
	(void)state;
	static const uint32_t same[LAYERS] = {100, 100, 100};
	static struct run a, b;

	for (int i = 0; i < 2; i++) {
		layer_window = i ? same : NULL;
		seq_flags = 0;
		run_open(&a, daemon_.socket, TOKENS, 0, 0, "n1");
		run_to(&a, 600);
		settle(&a);
		open_grouped(&b, daemon_.socket, 600);
		assert_int_equal(b.matched, (600 - WINDOW) / PAGE * PAGE);
		assert_int_equal(info_of(&b).layer_groups, 1);
		run_to(&b, 600);
		same_from_here(&a, &b, 700);
		run_close(&a);
		run_close(&b);
	}
}

/* A daemon that dies and one that comes: decoding goes on, what is whole is published again. */
static void daemons_come_and_go(void **state)
{
	(void)state;
	static struct run a, b, c;

	for (uint32_t start = 150; start < 900; start += 500) {
		open_whole(&b);
		open_grouped(&a, daemon_.socket, 0);
		run_to(&a, start);
		run_to(&b, start);
		settle(&a);
		test_daemon_stop(&daemon_, SIGKILL);
		same_from_here(&a, &b, start + 30);
		wait_daemon(&a, 2);
		assert_true(api->seq_truncate(a.seq, start + 20) == 0);
		a.at = start + 30;
		run_truncate(&a, start + 20);
		run_truncate(&b, start + 20);
		same_from_here(&a, &b, start + 40);
		test_daemon_start(&daemon_, SKVQD_PATH, NULL);
		wait_daemon(&a, 1);
		same_from_here(&a, &b, start + 200);
		settle(&a);
		same_rest(&a, &b);
		/* The group that sees everything is whole again; one that lost its beginning is not, so
		 * that others match what all have. */
		uint32_t whole = (a.at - WINDOW) / PAGE;
		assert_true(status_of(daemon_.socket).pages >= whole);
		if (start == 150)
			assert_int_equal(status_of(daemon_.socket).pages, 3 * whole);
		else
			assert_true(status_of(daemon_.socket).pages < 3 * whole);
		open_grouped(&c, daemon_.socket, a.at);
		assert_int_equal(c.matched, start == 150 ? whole * PAGE : 0);
		run_to(&c, a.at);
		same_from_here(&c, &b, a.at + 60);
		run_close(&c);
		run_close(&a);
		run_close(&b);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
	}
}

/* ---- a group that lacks pages ---- */

/* The first n tokens of one layer, published as the group of that layer alone would. */
static void publish_layer(uint32_t layer, uint32_t extent, uint32_t n)
{
	static struct run r;
	struct skvq_client *c = observe(daemon_.socket);
	struct skvq_client_ns_info *list;
	size_t n_list;
	char begin[32], numerics[128] = "";
	skvq_engine e = {.struct_size = sizeof e, .timeout_ms = 5000};

	snprintf(begin, sizeof begin, "n1; layers that see %u ", extent);
	assert_int_equal(skvq_client_namespaces(c, &list, &n_list), 0);
	for (size_t i = 0; i < n_list; i++)
		if (strncmp(list[i].engine_numerics, begin, strlen(begin)) == 0)
			strcpy(numerics, list[i].engine_numerics);
	free(list);
	skvq_client_free(c);
	assert_true(numerics[0]);

	memset(&r, 0, sizeof r);
	assert_int_equal(api->open(&e, daemon_.socket, &r.session), 0);
	skvq_model_desc d = {.struct_size = sizeof d,
			     .weights_digest = digest,
			     .tokenizer_digest = digest,
			     .engine_numerics = numerics,
			     .n_layer = 1,
			     .n_q_heads = Q_HEADS,
			     .n_kv_heads = KV_HEADS,
			     .head_dim_k = DIM,
			     .head_dim_v = DIM,
			     .rope_kind = SKVQ_ROPE_NONE,
			     .profile = profile,
			     .layer_window = &extent,
			     .window = WINDOW,
			     .sinks = 5};
	assert_int_equal(api->model_register(r.session, &d, &r.model), 0);
	skvq_seq_desc sd = {.struct_size = sizeof sd, .max_tokens = TOKENS, .max_append = CHUNK};
	assert_int_equal(api->seq_open(r.model, &sd, &r.seq), 0);
	run_tokens(&r, TOKENS, 0);
	for (uint32_t t = 0; t < n; t++) {
		float k[KV_HEADS][DIM], v[KV_HEADS][DIM];
		skvq_kv kv = {.struct_size = sizeof kv,
			      .position = t,
			      .n_tokens = 1,
			      .k = k,
			      .v = v,
			      .k_head_stride = sizeof k[0],
			      .v_head_stride = sizeof v[0]};

		r.history = mix(r.history ^ (uint32_t)r.tokens[t]);
		fill_k(&k[0][0], layer, t, r.history);
		fill_v(&v[0][0], layer, r.history);
		assert_int_equal(api->append(r.seq, &kv), 0);
		assert_int_equal(api->seq_commit(r.seq, r.tokens + t, 1), 0);
	}
	settle(&r);
	run_close(&r);
}

/* A match is as long as the shortest group's chain, whichever that is; what others have beyond it is
 * computed again and found to be there. */
static void the_shortest_chain_counts(void **state)
{
	(void)state;
	static const uint32_t lengths[][LAYERS] = {
	    {944, 544, 784}, {384, 944, 944}, {944, 944, 304}, {944, 0, 944}, {464, 944, 0}};
	static struct run a, b;

	for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
		uint32_t least = UINT32_MAX, pages = 0;

		open_grouped(&a, daemon_.socket, 0); /* makes the namespaces */
		for (uint32_t l = 0; l < LAYERS; l++) {
			uint32_t own = lengths[i][l] > WINDOW ? (lengths[i][l] - WINDOW) / PAGE : 0;

			publish_layer(l, mixed[l], lengths[i][l]);
			least = own < least ? own : least;
			pages += own;
		}
		run_close(&a);
		assert_int_equal(status_of(daemon_.socket).pages, pages);
		open_grouped(&a, daemon_.socket, 1000);
		assert_int_equal(a.matched, least * PAGE);
		const skvq_ext_prefetch *ext = api->get_extension(a.session, SKVQ_EXT_PREFETCH);
		assert_int_equal(ext->prefetch(a.model, a.tokens, 1000), least * PAGE);
		assert_int_equal(info_of(&a).n_matched, a.matched);
		assert_int_equal(status_of(daemon_.socket).pins, info_of(&a).pages_shared);
		open_whole(&b);
		same_after_match(&a, &b, 1050);
		settle(&a);
		same_rest(&a, &b);
		assert_int_equal(status_of(daemon_.socket).pages, 3 * ((1050 - WINDOW) / PAGE));
		run_close(&a);
		run_close(&b);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
		test_daemon_stop(&daemon_, SIGTERM);
		test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	}
}

/* Under a cap that holds a part of it pages of all groups come and go. */
static void pages_are_evicted_and_never_wrong(void **state)
{
	(void)state;
	static const char *const small[] = {"--ram-max", "700K", NULL};
	static struct run a, b;
	uint32_t seed = 9;

	test_daemon_stop(&daemon_, SIGTERM);
	test_daemon_start(&daemon_, SKVQD_PATH, small);
	for (uint32_t i = 0; i < 12; i++) {
		uint32_t tail = mix(seed + i) % 4;

		model_flags = SKVQ_MODEL_LAYER_GROUPS;
		seq_flags = SKVQ_SEQ_DROP_UNSEEN;
		run_open(&a, daemon_.socket, 300, tail, 900, "n1");
		model_flags = seq_flags = 0;
		run_open(&b, NULL, 300, tail, 0, "n1");
		same_after_match(&a, &b, 1000);
		for (int k = 0; k < 20; k++) {
			assert_true(api->seq_poll(a.seq) >= 0);
			nap_ms(1);
		}
		same_rest(&a, &b);
		run_close(&a);
		run_close(&b);
		assert_int_equal(status_of(daemon_.socket).pins, 0);
	}
	assert_true(counter_of(daemon_.socket, "evictions") > 0);
}

/* ---- snapshots ---- */

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
	model_flags = SKVQ_MODEL_LAYER_GROUPS;
	run_open_model(r, socket, "n1");
	model_flags = 0;
	return api->seq_resume(r->model, buf, bytes, &r->seq);
}

/* In a process that has nothing of this one. */
static void steps_elsewhere(const struct run *like, const uint8_t *buf, uint64_t bytes, uint64_t *ret,
			    uint32_t n)
{
	char path[] = "/tmp/skvq-groups-XXXXXX", count[16];
	int fd = mkstemp(path), out[2], status;

	assert_true(fd >= 0 && pipe(out) == 0);
	assert_int_equal(write(fd, like, sizeof *like), sizeof *like);
	assert_int_equal(write(fd, buf, bytes), (ssize_t)bytes);
	snprintf(count, sizeof count, "%u", n);
	pid_t pid = fork();
	if (pid == 0) {
		if (dup2(out[1], 3) != 3)
			_exit(126);
		execl("/proc/self/exe", "test_groups", "--thaw", path, count, daemon_.socket, profile,
		      (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(read(out[0], &ret[i], sizeof ret[i]), sizeof ret[i]);
	close(out[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	unlink(path);
	close(fd);
}

static int thaw_main(char **argv)
{
	static struct run like, r;
	FILE *f = fopen(argv[2], "rb");
	struct stat st;

	layer_window = mixed;
	profile = argv[5];
	if (!f || fstat(fileno(f), &st) < 0 || fread(&like, sizeof like, 1, f) != 1)
		return 1;
	uint64_t bytes = (uint64_t)st.st_size - sizeof like;
	uint8_t *buf = malloc(bytes);
	if (!buf || fread(buf, bytes, 1, f) != 1)
		return 1;
	fclose(f);
	if (thaw(&r, argv[4], &like, buf, bytes) != 0)
		return 1;
	free(buf);
	for (int i = 0; i < atoi(argv[3]); i++) {
		uint64_t hash = run_step(&r, 1);

		if (write(3, &hash, sizeof hash) != sizeof hash)
			return 1;
	}
	run_close(&r);
	return 0;
}

static void a_snapshot_has_all_groups(void **state)
{
	(void)state;
	static struct run a, b, c;
	uint64_t bytes, all_bytes, hashes[30];

	profile = "k8v8";
	open_whole(&b);
	open_grouped(&a, daemon_.socket, 0);
	run_to(&a, 900);
	run_to(&b, 900);
	settle(&a);
	uint8_t *buf = freeze(&a, &bytes), *all = freeze(&b, &all_bytes);
	struct run like = a;
	skvq_seq_info info = info_of(&a);
	skvq_seq_info kept = info_of(&b);
	assert_true(all_bytes - bytes > info.pages_dropped * (kept.bytes_local / kept.pages_local) / 4);
	run_close(&a);
	steps_elsewhere(&like, buf, bytes, hashes, 30);

	/* With the daemon that has the chains; embedded; with one that has none. */
	for (int i = 0; i < 3; i++) {
		if (i == 2) {
			test_daemon_stop(&daemon_, SIGTERM);
			test_daemon_start(&daemon_, SKVQD_PATH, NULL);
		}
		assert_int_equal(thaw(&c, i == 1 ? NULL : daemon_.socket, &like, buf, bytes), 0);
		assert_int_equal(info_of(&c).layer_groups, 3);
		assert_int_equal(info_of(&c).pages_dropped, info.pages_dropped);
		assert_int_equal(info_of(&c).pages_shared, i == 0 ? info.pages_shared : 0);
		if (i == 0)
			assert_int_equal(status_of(daemon_.socket).pins, info_of(&c).pages_shared);
		same_rest(&c, &b);
		for (int k = 0; k < 30; k++) {
			uint64_t hash = run_step(&c, 1);

			assert_true(hash == hashes[k]);
			assert_true(hash == run_step(&b, 1));
		}
		same_from_here(&c, &b, 1150);
		settle(&c);
		same_rest(&c, &b);
		run_close(&c);
		run_close(&b);
		open_whole(&b);
		run_to(&b, 900);
	}
	/* Groups and none are different models. */
	assert_int_equal(thaw(&c, NULL, &like, all, all_bytes), -SKVQ_EIDENTITY);
	assert_int_equal(api->seq_resume(b.model, buf, bytes, &c.seq), -SKVQ_EIDENTITY);
	api->close(c.session);
	layer_window = twice;
	assert_int_equal(thaw(&c, NULL, &like, buf, bytes), -SKVQ_EIDENTITY);
	api->close(c.session);
	run_close(&b);
	free(buf);
	free(all);
}

/* Reflected CRC-32C, bit by bit: an attacker can compute one too. */
static uint32_t crc_of(const uint8_t *data, uint64_t bytes)
{
	uint32_t crc = ~0u;

	for (uint64_t i = 0; i < bytes; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return ~crc;
}

/* Of the header before the groups. */
static void seal(uint8_t *buf)
{
	memset(buf + 28, 0, 4);
	uint32_t crc = crc_of(buf, 128);
	memcpy(buf + 28, &crc, 4);
}

static void hostile_groups_are_refused(void **state)
{
	(void)state;
	static struct run a, b, c;
	uint64_t bytes, other_bytes, size[2];

	open_grouped(&a, NULL, 0);
	open_grouped(&b, NULL, 0);
	run_turn(&b, 0, 3); /* another sequence of as many tokens */
	run_to(&a, 300);
	run_to(&b, 300);
	uint8_t *good = freeze(&a, &bytes), *other = freeze(&b, &other_bytes);
	uint8_t *bad = malloc(bytes + 64);
	assert_non_null(bad);
	assert_int_equal(bytes, other_bytes);
	memcpy(size, good + 32, sizeof size);
	assert_int_equal(thaw(&c, NULL, &a, good, bytes), 0);
	api->seq_close(c.seq);

	/* Groups of two sequences; groups in another order. */
	memcpy(bad, good, bytes);
	memcpy(bad + 128 + size[0], other + 128 + size[0], size[1]);
	assert_int_equal(api->seq_resume(c.model, bad, bytes, &c.seq), -SKVQ_ECORRUPT);
	says(&c, "different sequences");
	memcpy(bad, good, bytes);
	memcpy(bad + 32, &size[1], 8);
	memcpy(bad + 40, &size[0], 8);
	memcpy(bad + 128, good + 128 + size[0], size[1]);
	memcpy(bad + 128 + size[1], good + 128, size[0]);
	seal(bad);
	assert_true(api->seq_resume(c.model, bad, bytes, &c.seq) < 0);

	/* Every byte of the header, with a right checksum and without. */
	for (uint32_t at = 0; at < 128; at++) {
		memcpy(bad, good, bytes);
		bad[at] ^= 1 + at % 255;
		assert_true(api->seq_resume(c.model, bad, bytes, &c.seq) < 0);
		seal(bad);
		if (at < 28 || at >= 32)
			assert_true(api->seq_resume(c.model, bad, bytes, &c.seq) < 0);
	}
	/* Bytes of the groups. */
	for (uint64_t at = 128; at < bytes; at += 1 + bytes / 61) {
		memcpy(bad, good, bytes);
		bad[at] ^= 0x41;
		assert_int_equal(api->seq_resume(c.model, bad, bytes, &c.seq) < 0, 1);
	}
	/* Cut short and drawn out. */
	for (uint64_t n = 0; n < bytes; n += 1 + bytes / 67)
		assert_true(api->seq_resume(c.model, good, n, &c.seq) < 0);
	memcpy(bad, good, bytes);
	memset(bad + bytes, 0, 64);
	assert_int_equal(api->seq_resume(c.model, bad, bytes + 64, &c.seq), -SKVQ_ECORRUPT);
	assert_int_equal(api->seq_resume(c.model, good, bytes, &c.seq), 0);
	c.at = 300;
	c.history = a.history;
	assert_true(run_step(&c, 5) == run_step(&a, 5));
	run_close(&c);
	run_close(&a);
	run_close(&b);
	free(good);
	free(other);
	free(bad);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(groups_leave_no_trace, setup_model, teardown_model),
	    cmocka_unit_test_setup_teardown(each_layer_has_its_own_calibration, setup_model,
					    teardown_model),
	    cmocka_unit_test_setup_teardown(each_layer_has_its_own_maps, setup_model, teardown_model),
	    cmocka_unit_test_setup_teardown(a_group_is_safe_by_itself, setup_model, teardown_model),
	    cmocka_unit_test_setup_teardown(what_is_refused_is_named, setup_model, teardown_model),
	    cmocka_unit_test_setup_teardown(any_way_is_as_if_all_were_kept, setup, teardown),
	    cmocka_unit_test_setup_teardown(another_engine_takes_up_all_groups, setup, teardown),
	    cmocka_unit_test_setup_teardown(one_extent_is_no_group, setup, teardown),
	    cmocka_unit_test_setup_teardown(daemons_come_and_go, setup, teardown),
	    cmocka_unit_test_setup_teardown(the_shortest_chain_counts, setup, teardown),
	    cmocka_unit_test_setup_teardown(pages_are_evicted_and_never_wrong, setup, teardown),
	    cmocka_unit_test_setup_teardown(a_snapshot_has_all_groups, setup, teardown),
	    cmocka_unit_test_setup_teardown(hostile_groups_are_refused, setup_model, teardown_model),
	};

	if (!synthetic_load(SKVQ_PLUGIN_PATH))
		return 1;
	if (argc == 6 && strcmp(argv[1], "--thaw") == 0)
		return thaw_main(argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
