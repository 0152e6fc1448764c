/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin through its one symbol, embedded: arguments, order of calls, attention against a
 * double-precision oracle, the ways K and V may lie in memory, export, fork, reopening.
 */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <skvq/plugin.h>

#include "calibration_maker.h"

static const skvq_api *api;

/* A small model and its tokens, all in float32, rounded to binary16 where exactness is asked. */
struct toy {
	uint32_t layers, q_heads, kv_heads, dim, tokens;
	uint32_t window, sinks, pairs, chunk;
	const char *profile;
	const void *calibration;
	uint64_t calibration_bytes;
	float outlier; /* 0: none; else channel 3 of K, and its RoPE partner, so
	                * many times larger, of Q smaller */
	void (*log)(void *user, int32_t level, const char *utf8);
	void *log_user;
	float *k, *v, *q; /* [layers][tokens][heads][dim] */
	skvq_session *session;
	skvq_model *model;
	skvq_seq *seq;
};

static uint64_t rng = 88172645463325252u;

static float normal(void)
{
	float sum = 0;

	for (int i = 0; i < 4; i++) {
		rng ^= rng << 13;
		rng ^= rng >> 7;
		rng ^= rng << 17;
		sum += (float)(rng >> 40) / (float)(1 << 24) - 0.5f;
	}
	/* Multiples of 1/256 below 8 are exact in binary16. */
	return roundf(sum * 1.7f * 256) / 256;
}

static size_t kv_at(const struct toy *t, uint32_t layer, uint32_t token, uint32_t head)
{
	return (((size_t)layer * t->tokens + token) * t->kv_heads + head) * t->dim;
}

static size_t q_at(const struct toy *t, uint32_t layer, uint32_t token, uint32_t head)
{
	return (((size_t)layer * t->tokens + token) * t->q_heads + head) * t->dim;
}

static skvq_model_desc desc_of(const struct toy *t)
{
	static const uint8_t digest[32] = {1, 2, 3};

	return (skvq_model_desc){
	    .struct_size = sizeof(skvq_model_desc),
	    .weights_digest = digest,
	    .tokenizer_digest = digest,
	    .engine_numerics = "toy",
	    .n_layer = t->layers,
	    .n_q_heads = t->q_heads,
	    .n_kv_heads = t->kv_heads,
	    .head_dim_k = t->dim,
	    .head_dim_v = t->dim,
	    .rope_kind = SKVQ_ROPE_POST,
	    .rope_pairs = t->pairs,
	    .rope_theta = 10000,
	    .profile = t->profile,
	    .calibration = t->calibration,
	    .calibration_bytes = t->calibration_bytes,
	    .window = t->window,
	    .sinks = t->sinks,
	};
}

static void toy_open(struct toy *t)
{
	skvq_engine engine = {
	    .struct_size = sizeof engine, .name = "toy", .log = t->log, .user = t->log_user};
	size_t n_kv = (size_t)t->layers * t->tokens * t->kv_heads * t->dim;
	size_t n_q = (size_t)t->layers * t->tokens * t->q_heads * t->dim;

	t->k = calloc(n_kv, sizeof *t->k);
	t->v = calloc(n_kv, sizeof *t->v);
	t->q = calloc(n_q, sizeof *t->q);
	for (size_t i = 0; i < n_kv; i++) {
		t->k[i] = normal();
		t->v[i] = normal();
	}
	for (size_t i = 0; i < n_q; i++)
		t->q[i] = normal();
	for (size_t i = 3; t->outlier > 0 && i < n_kv; i += t->dim / 2)
		t->k[i] *= t->outlier;
	for (size_t i = 3; t->outlier > 0 && i < n_q; i += t->dim / 2)
		t->q[i] /= t->outlier;
	assert_int_equal(api->open(&engine, NULL, &t->session), 0);
	skvq_model_desc d = desc_of(t);
	assert_int_equal(api->model_register(t->session, &d, &t->model), 0);
	skvq_seq_desc sd = {.struct_size = sizeof sd, .max_tokens = t->tokens, .max_append = t->chunk};
	assert_int_equal(api->seq_open(t->model, &sd, &t->seq), 0);
}

static void toy_close(struct toy *t)
{
	api->seq_close(t->seq);
	assert_int_equal(api->model_unregister(t->model), 0);
	api->close(t->session);
	free(t->k);
	free(t->v);
	free(t->q);
}

static skvq_kv kv_of(const struct toy *t, uint32_t layer, uint32_t from, uint32_t n)
{
	int64_t head = (int64_t)(t->dim * sizeof(float));

	return (skvq_kv){.struct_size = sizeof(skvq_kv),
	                 .layer = layer,
	                 .position = from,
	                 .n_tokens = n,
	                 .k = t->k + kv_at(t, layer, from, 0),
	                 .v = t->v + kv_at(t, layer, from, 0),
	                 .k_token_stride = head * t->kv_heads,
	                 .k_head_stride = head,
	                 .v_token_stride = head * t->kv_heads,
	                 .v_head_stride = head};
}

static skvq_attn attn_of(const struct toy *t, uint32_t layer, uint32_t from, uint32_t n, float *out)
{
	int64_t head = (int64_t)(t->dim * sizeof(float));

	return (skvq_attn){.struct_size = sizeof(skvq_attn),
	                   .layer = layer,
	                   .position = from,
	                   .n_rows = n,
	                   .nth = 1,
	                   .scale = 1.0f / sqrtf((float)t->dim),
	                   .q = t->q + q_at(t, layer, from, 0),
	                   .q_row_stride = head * t->q_heads,
	                   .q_head_stride = head,
	                   .out = out,
	                   .out_row_stride = head * t->q_heads,
	                   .out_head_stride = head};
}

/* Appends and commits [from, to) in all layers; out of the last layer, if wanted. */
static void feed(struct toy *t, uint32_t from, uint32_t to, float *out)
{
	int32_t ids[4096];

	for (uint32_t layer = 0; layer < t->layers; layer++) {
		skvq_kv kv = kv_of(t, layer, from, to - from);
		assert_int_equal(api->append(t->seq, &kv), 0);
		if (out && layer + 1 == t->layers) {
			skvq_attn a = attn_of(t, layer, from, to - from, out);
			assert_int_equal(api->attend(&t->seq, &a, 1), 0);
		}
	}
	for (uint32_t i = from; i < to; i++)
		ids[i - from] = (int32_t)i;
	assert_int_equal(api->seq_commit(t->seq, ids, to - from), 0);
}

/* Exact attention of one row; log-sum-exp too. */
static double oracle(const struct toy *t, uint32_t layer, uint32_t row, uint32_t h, uint32_t limit,
                     double softcap, double *out)
{
	uint32_t kv = h / (t->q_heads / t->kv_heads);
	uint32_t lo = limit && row + 1 > limit ? row + 1 - limit : 0;
	double *p = calloc(row + 1, sizeof *p), max = -INFINITY, sum = 0;
	const float *q = t->q + q_at(t, layer, row, h);

	for (uint32_t i = lo; i <= row; i++) {
		for (uint32_t d = 0; d < t->dim; d++)
			p[i] += (double)q[d] * t->k[kv_at(t, layer, i, kv) + d];
		p[i] /= sqrt(t->dim);
		if (softcap > 0)
			p[i] = softcap * tanh(p[i] / softcap);
		max = p[i] > max ? p[i] : max;
	}
	for (uint32_t i = lo; i <= row; i++)
		sum += p[i] = exp(p[i] - max);
	for (uint32_t d = 0; d < t->dim; d++) {
		out[d] = 0;
		for (uint32_t i = lo; i <= row; i++)
			out[d] += p[i] / sum * t->v[kv_at(t, layer, i, kv) + d];
	}
	free(p);
	return max + log(sum);
}

static double worst_error(const struct toy *t, uint32_t layer, uint32_t from, uint32_t n,
                          const float *out, uint32_t limit, double softcap)
{
	double worst = 0;

	for (uint32_t r = 0; r < n; r++) {
		for (uint32_t h = 0; h < t->q_heads; h++) {
			double exact[256], diff = 0, norm = 0;

			oracle(t, layer, from + r, h, limit, softcap, exact);
			for (uint32_t d = 0; d < t->dim; d++) {
				double e = out[((size_t)r * t->q_heads + h) * t->dim + d] - exact[d];
				diff += e * e;
				norm += exact[d] * exact[d];
			}
			worst = fmax(worst, sqrt(diff / (norm + 1e-12)));
		}
	}
	return worst;
}

static struct toy toy_default(void)
{
	return (struct toy){.layers = 2,
	                    .q_heads = 6,
	                    .kv_heads = 2,
	                    .dim = 64,
	                    .tokens = 400,
	                    .window = 32,
	                    .sinks = 5,
	                    .chunk = 96,
	                    .profile = "fp16"};
}

static void attention_is_exact_with_fp16_pages(void **state)
{
	(void)state;
	static const struct {
		uint32_t dim, q_heads, kv_heads, window, sinks;
	} shapes[] = {{64, 9, 3, 32, 5},  {128, 8, 1, 0, 0},  {256, 4, 1, 128, 5},
	              {96, 4, 4, 16, 64}, {16, 40, 1, 48, 17}, {64, 2, 2, 1, 1}};

	for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
		struct toy t = toy_default();
		t.dim = shapes[i].dim;
		t.q_heads = shapes[i].q_heads;
		t.kv_heads = shapes[i].kv_heads;
		t.window = shapes[i].window;
		t.sinks = shapes[i].sinks;
		t.tokens = 300;
		toy_open(&t);
		float *out = calloc((size_t)t.chunk * t.q_heads * t.dim, sizeof *out);
		uint32_t at = 0;
		while (at < t.tokens) {
			uint32_t n = at < 200 ? 50 : 1;
			feed(&t, at, at + n, out);
			double e = worst_error(&t, t.layers - 1, at, n, out, 0, 0);
			if (!(e < 1e-4))
				fail_msg("shape %zu, token %u: relative error %g", i, at, e);
			at += n;
		}
		skvq_seq_info info = {.struct_size = sizeof info};
		assert_int_equal(api->seq_info(t.seq, &info), 0);
		assert_int_equal(info.n_tokens, 300);
		assert_true(info.n_paged + t.window <= 300 && info.n_paged + t.window + 16 > 300);
		assert_int_equal(info.page_code_bytes, 80 * t.layers * t.kv_heads * 2 * t.dim * 2);
		free(out);
		toy_close(&t);
	}
}

static void codecs_err_within_their_bits(void **state)
{
	(void)state;
	static const struct {
		const char *profile;
		double bound;
	} rows[] = {{"k8v8", .03}, {"k4v4", .3}, {"k3v2", .8}, {"k2v1.5", 1.2}, {"affine-k4v4-g32", .3},
	            {"plain-k8v8-g64", .03},
	            {"skvq-k4v4-g32", .4},
	            {"skvq-post-k4v4-g64", .4},
	            {"skvq-k2v1.5-g32", 1.5}};

	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		struct toy t = toy_default();
		t.profile = rows[i].profile;
		toy_open(&t);
		float *out = calloc((size_t)t.chunk * t.q_heads * t.dim, sizeof *out);
		for (uint32_t at = 0; at < 384; at += 96)
			feed(&t, at, at + 96, NULL);
		feed(&t, 384, 400, out);
		double e = worst_error(&t, t.layers - 1, 384, 16, out, 0, 0);
		if (!(e < rows[i].bound && e > 1e-6))
			fail_msg("%s: relative error %g", rows[i].profile, e);
		free(out);
		toy_close(&t);
	}
}

static double elastic_error(const char *profile, uint32_t tokens, skvq_seq_info *info)
{
	struct toy t = toy_default();
	double e;

	t.profile = profile;
	t.tokens = tokens;
	rng = 88172645463325252u; /* the same numbers for every profile */
	toy_open(&t);
	float *out = calloc((size_t)t.chunk * t.q_heads * t.dim, sizeof *out);
	for (uint32_t at = 0; at + 96 <= tokens; at += 96)
		feed(&t, at, at + 96, at + 192 > tokens ? out : NULL);
	e = worst_error(&t, t.layers - 1, tokens / 96 * 96 - 96, 96, out, 0, 0);
	assert_int_equal(api->seq_info(t.seq, info), 0);
	free(out);
	toy_close(&t);
	return e;
}

/* The refinement brings keys near to those of 4 bits; without it they are those of 2 bits. */
static void elastic_keys_fade_with_age(void **state)
{
	skvq_seq_info all = {.struct_size = sizeof all}, young = all, plain = all, four = all;
	double e2 = elastic_error("k2v2", 960, &plain), e4 = elastic_error("k4v2", 960, &four);
	double e_all = elastic_error("e2.1-nall", 960, &all);
	double e_young = elastic_error("e2.1-n320", 960, &young);

	(void)state;
	if (!(e_all < .5 * (e2 + e4) && e_all < e_young && e_young < e2))
		fail_msg("errors: 2 bits %g, 4 bits %g, refined %g, the young ones %g", e2, e4,
			 e_all, e_young);
	assert_int_equal(plain.n_refined, 0);
	assert_int_equal(plain.n_base, plain.n_paged);
	assert_int_equal(all.n_refined, all.n_paged);
	assert_true(young.n_refined >= 320 && young.n_refined < 320 + 80);
	assert_int_equal(young.n_refined + young.n_base, young.n_paged);
	/* What is not read any more holds no memory; without an age limit, all of it does. */
	assert_true(young.bytes_local < all.bytes_local && young.bytes_local > plain.bytes_local);
}

static void sliding_limit_softcap_and_lse(void **state)
{
	(void)state;
	struct toy t = toy_default();

	toy_open(&t);
	float *out = calloc((size_t)t.chunk * t.q_heads * t.dim, sizeof *out);
	float lse[96 * 6];
	for (uint32_t at = 0; at < 384; at += 96)
		feed(&t, at, at + 96, NULL);
	skvq_kv kv = kv_of(&t, 0, 384, 16);
	assert_int_equal(api->append(t.seq, &kv), 0);
	skvq_attn a = attn_of(&t, 0, 384, 16, out);
	a.sliding_limit = 100;
	a.softcap = 2;
	a.lse = lse;
	assert_int_equal(api->attend(&t.seq, &a, 1), 0);
	assert_true(worst_error(&t, 0, 384, 16, out, 100, 2) < 1e-4);
	for (uint32_t r = 0; r < 16; r++)
		for (uint32_t h = 0; h < 6; h++) {
			double o[256];
			double exact = oracle(&t, 0, 384 + r, h, 100, 2, o);
			assert_true(fabs(lse[r * 6 + h] - exact) < 1e-4);
		}
	free(out);
	toy_close(&t);
}

static void shares_of_the_work_add_up(void **state)
{
	(void)state;
	struct toy t = toy_default();

	t.profile = "k2v1.5";
	toy_open(&t);
	size_t n = (size_t)t.chunk * t.q_heads * t.dim;
	float *one = calloc(n, sizeof *one), *many = calloc(n, sizeof *many);
	for (uint32_t at = 0; at < 288; at += 96)
		feed(&t, at, at + 96, NULL);
	feed(&t, 288, 384, one);
	for (uint32_t ith = 0; ith < 5; ith++) {
		skvq_attn a = attn_of(&t, 1, 288, 96, many);
		a.ith = ith;
		a.nth = 5;
		assert_int_equal(api->attend(&t.seq, &a, 1), 0);
	}
	/* After the commit more tokens are in pages: compare with the same state. */
	skvq_attn a = attn_of(&t, 1, 288, 96, one);
	assert_int_equal(api->attend(&t.seq, &a, 1), 0);
	assert_memory_equal(one, many, n * sizeof *one);
	free(one);
	free(many);
	toy_close(&t);
}

struct share {
	struct toy *t;
	skvq_attn attn;
	int32_t err;
};

static void *share_thread(void *arg)
{
	struct share *s = arg;

	s->err = api->attend(&s->t->seq, &s->attn, 1);
	return NULL;
}

/* A long sequence is cut into parts: right, and the same bits for any number of threads. */
static void a_long_sequence_is_split(void **state)
{
	(void)state;
	struct toy t = {.layers = 1, .q_heads = 6, .kv_heads = 3, .dim = 16, .tokens = 7000,
	                .window = 32, .sinks = 5, .chunk = 1000, .profile = "fp16"};
	float one[3 * 6 * 16], many[3 * 6 * 16], two_out[3 * 6 * 16], lse[3 * 6], lse_many[3 * 6];

	toy_open(&t);
	for (uint32_t at = 0; at < 6000; at += 1000)
		feed(&t, at, at + 1000, NULL);
	for (uint32_t at = 6000; at < 6600; at += 3) {
		skvq_kv kv = kv_of(&t, 0, at, 3);
		int32_t ids[3] = {0};

		assert_int_equal(api->append(t.seq, &kv), 0);
		skvq_attn a = attn_of(&t, 0, at, 3, one);
		a.lse = lse;
		if (at % 2)
			a.sliding_limit = 4100;
		/* A caller that gave up half-way before is no trouble. */
		a.nth = 7;
		assert_int_equal(api->attend(&t.seq, &a, 1), 0);
		if (at % 6 == 0) { /* else the next call is alone and starts afresh */
			assert_int_equal(api->seq_truncate(t.seq, at), 0);
			assert_int_equal(api->append(t.seq, &kv), 0);
		}
		a.nth = 1;
		assert_int_equal(api->attend(&t.seq, &a, 1), 0);
		if (at % 60 == 0 || at % 60 == 3) {
			double e = worst_error(&t, 0, at, 3, one, a.sliding_limit, 0);
			double o[256];
			if (!(e < 1e-4))
				fail_msg("token %u: relative error %g", at, e);
			assert_true(fabs(lse[5] - oracle(&t, 0, at, 5, a.sliding_limit, 0, o)) < 1e-4);
		}
		/* Twice in one call, with other queries: each gets its own. */
		skvq_seq *twice[2] = {t.seq, t.seq};
		skvq_attn two[2] = {a, a};
		two[0].q = t.q;
		two[0].out = many;
		two[1].out = two_out;
		for (uint32_t i = 0; i < 2; i++) {
			two[0].ith = two[1].ith = i;
			two[0].nth = two[1].nth = 2;
			two[0].lse = two[1].lse = NULL;
			assert_int_equal(api->attend(twice, two, 2), 0);
		}
		for (uint32_t i = 0; i < 3 * 6 * 16; i++)
			assert_true(fabsf(one[i] - two_out[i]) < 1e-5f);
		enum { THREADS = 4 };
		struct share shares[THREADS];
		pthread_t threads[THREADS];
		memset(many, 0, sizeof many);
		for (uint32_t i = 0; i < THREADS; i++) {
			shares[i] = (struct share){.t = &t, .attn = a};
			shares[i].attn.ith = i;
			shares[i].attn.nth = THREADS;
			shares[i].attn.out = many;
			shares[i].attn.lse = lse_many;
			pthread_create(&threads[i], NULL, share_thread, &shares[i]);
		}
		for (uint32_t i = 0; i < THREADS; i++) {
			pthread_join(threads[i], NULL);
			assert_int_equal(shares[i].err, 0);
		}
		assert_memory_equal(one, many, sizeof one);
		assert_memory_equal(lse, lse_many, sizeof lse);
		assert_int_equal(api->seq_commit(t.seq, ids, 3), 0);
	}
	toy_close(&t);
}

static void interleaved_pairs_are_the_same_model(void **state)
{
	(void)state;
	struct toy a = toy_default(), b = toy_default();

	a.profile = b.profile = "k2v2";
	b.pairs = SKVQ_PAIRS_INTERLEAVED;
	toy_open(&a);
	toy_open(&b);
	uint32_t half = a.dim / 2;
	size_t rows = (size_t)a.layers * a.tokens * a.kv_heads;
	for (size_t r = 0; r < rows; r++)
		for (uint32_t i = 0; i < half; i++) {
			b.k[r * a.dim + 2 * i] = a.k[r * a.dim + i];
			b.k[r * a.dim + 2 * i + 1] = a.k[r * a.dim + half + i];
		}
	memcpy(b.v, a.v, rows * a.dim * sizeof *b.v);
	rows = (size_t)a.layers * a.tokens * a.q_heads;
	for (size_t r = 0; r < rows; r++)
		for (uint32_t i = 0; i < half; i++) {
			b.q[r * a.dim + 2 * i] = a.q[r * a.dim + i];
			b.q[r * a.dim + 2 * i + 1] = a.q[r * a.dim + half + i];
		}
	size_t n = (size_t)a.chunk * a.q_heads * a.dim;
	float *oa = calloc(n, sizeof *oa), *ob = calloc(n, sizeof *ob);
	for (uint32_t at = 0; at < 384; at += 96) {
		feed(&a, at, at + 96, oa);
		feed(&b, at, at + 96, ob);
		assert_memory_equal(oa, ob, n * sizeof *oa);
	}
	/* Export gives each engine its own order back. */
	float ka[64], kb[64];
	skvq_export e = {.struct_size = sizeof e, .position = 7, .n_tokens = 1, .k = ka,
	                 .k_token_stride = 256, .k_head_stride = 0};
	a.kv_heads = 1;
	e.k_head_stride = 0;
	assert_int_equal(api->export_kv(a.seq, &e), 0);
	e.k = kb;
	assert_int_equal(api->export_kv(b.seq, &e), 0);
	for (uint32_t i = 0; i < half; i++) {
		assert_true(ka[i] == kb[2 * i]);
		assert_true(ka[half + i] == kb[2 * i + 1]);
	}
	a.kv_heads = 2;
	free(oa);
	free(ob);
	toy_close(&a);
	toy_close(&b);
}

static void types_and_strides(void **state)
{
	(void)state;
	struct toy t = toy_default();

	t.layers = 1;
	t.tokens = 96;
	toy_open(&t);
	/* Head-major bf16 values and padded, head-major f16 keys. Small integers are exact in both. */
	static uint16_t k16[2][96][80], v16[2][96][64];
	for (uint32_t h = 0; h < 2; h++)
		for (uint32_t i = 0; i < 96; i++)
			for (uint32_t d = 0; d < 64; d++) {
				int x = (int)((i * 7 + d * 3 + h) % 5) - 2;
				static const uint16_t f16[5] = {0xc000, 0xbc00, 0, 0x3c00, 0x4000};
				static const uint16_t bf16[5] = {0xc000, 0xbf80, 0, 0x3f80, 0x4000};
				k16[h][i][d] = f16[x + 2];
				v16[h][i][d] = bf16[x + 2];
				t.k[kv_at(&t, 0, i, h) + d] = (float)x;
				t.v[kv_at(&t, 0, i, h) + d] = (float)x;
			}
	skvq_kv kv = {.struct_size = sizeof kv,
	              .n_tokens = 96,
	              .k_type = SKVQ_F16,
	              .v_type = SKVQ_BF16,
	              .k = k16,
	              .v = v16,
	              .k_token_stride = sizeof k16[0][0],
	              .k_head_stride = sizeof k16[0],
	              .v_token_stride = sizeof v16[0][0],
	              .v_head_stride = sizeof v16[0]};
	assert_int_equal(api->append(t.seq, &kv), 0);
	float *out = calloc((size_t)96 * t.q_heads * t.dim, sizeof *out);
	skvq_attn a = attn_of(&t, 0, 0, 96, out);
	assert_int_equal(api->attend(&t.seq, &a, 1), 0);
	assert_true(worst_error(&t, 0, 0, 96, out, 0, 0) < 1e-5);

	/* Export what went in, from sinks, pages and window alike, as bf16. */
	int32_t ids[96] = {0};
	assert_int_equal(api->seq_commit(t.seq, ids, 96), 0);
	static uint16_t back[96][2][64];
	skvq_export e = {.struct_size = sizeof e,
	                 .n_tokens = 96,
	                 .type = SKVQ_BF16,
	                 .v = back,
	                 .v_token_stride = sizeof back[0],
	                 .v_head_stride = sizeof back[0][0]};
	assert_int_equal(api->export_kv(t.seq, &e), 0);
	for (uint32_t h = 0; h < 2; h++)
		for (uint32_t i = 0; i < 96; i++)
			assert_memory_equal(back[i][h], v16[h][i], sizeof back[i][h]);
	free(out);
	toy_close(&t);
}

/* Every refusal has its own code and a sentence that names the culprit. */
static void expect(const struct toy *t, int32_t got, int32_t want, const char *word)
{
	char why[256] = "";

	api->last_error(t->session, why, sizeof why);
	if (got != want || !strstr(why, word))
		fail_msg("got %s (%s), expected %s naming '%s'", api->err_name(got), why,
		         api->err_name(want), word);
}

static void model_register_refuses(void **state)
{
	(void)state;
	struct toy t = toy_default();
	skvq_model *m = NULL;
	static const uint8_t bits[4] = {20, 77, 20, 20};
	uint16_t map[2 * 2 * 64] = {0};

	toy_open(&t);
#define REFUSED(code, word, ...)                                                                   \
	do {                                                                                       \
		skvq_model_desc d = desc_of(&t);                                                   \
		__VA_ARGS__;                                                                       \
		expect(&t, api->model_register(t.session, &d, &m), -(code), word);                 \
		assert_null(m);                                                                    \
	} while (0)
	REFUSED(SKVQ_EIDENTITY, "weights_digest", d.weights_digest = NULL);
	REFUSED(SKVQ_EIDENTITY, "tokenizer_digest", d.tokenizer_digest = NULL);
	REFUSED(SKVQ_EIDENTITY, "engine_numerics", d.engine_numerics = "");
	REFUSED(SKVQ_EIDENTITY, "rope_theta", d.rope_theta = 0);
	REFUSED(SKVQ_EIDENTITY, "rope_theta", d.rope_theta = NAN);
	REFUSED(SKVQ_EINVAL, "rope_kind", d.rope_kind = 9);
	REFUSED(SKVQ_EINVAL, "rope_pairs", d.rope_pairs = 2);
	REFUSED(SKVQ_ENOTSUP, "pre-RoPE", d.rope_kind = SKVQ_ROPE_PRE);
	REFUSED(SKVQ_EINVAL, "calibration", d.calibration = map);
	REFUSED(SKVQ_EINVAL, "calibration", d.calibration_bytes = 8);
	REFUSED(SKVQ_ECORRUPT, "file of 8 bytes", d.calibration = map; d.calibration_bytes = 8);
	REFUSED(SKVQ_ELIMIT, "at most", d.calibration = map; d.calibration_bytes = UINT64_MAX);
	REFUSED(SKVQ_EPROFILE, "there is no calibration", d.profile = "auto-2.4");
	REFUSED(SKVQ_EGEOMETRY, "query heads", d.n_q_heads = 5);
	REFUSED(SKVQ_EGEOMETRY, "KV heads", d.n_kv_heads = 0);
	REFUSED(SKVQ_EGEOMETRY, "head_dim", d.head_dim_k = 72);
	REFUSED(SKVQ_EGEOMETRY, "head_dim", d.head_dim_v = 512);
	REFUSED(SKVQ_EGEOMETRY, "layers", d.n_layer = 100000);
	REFUSED(SKVQ_EGEOMETRY, "rope_dim", d.rope_dim = 100);
	REFUSED(SKVQ_EPROFILE, "k9v9", d.profile = "k9v9");
	REFUSED(SKVQ_ENOTSUP, "yarn", d.profile = "skvq-k2v2-g64"; d.rope_scaling = "yarn:4:4096");
	REFUSED(SKVQ_ENOTSUP, "linear", d.profile = "skvq-k2v2-g64"; d.rope_scaling = "linear:-1");
	REFUSED(SKVQ_EINVAL, "channel maps", d.profile = "skvq-k2v2-g64"; d.reorder_k = map);
	REFUSED(SKVQ_EPROFILE, "SKVQ_BITS", d.bit_table = bits);
	REFUSED(SKVQ_EINVAL, "window", d.window = 1000000);
	REFUSED(SKVQ_EINVAL, "sinks", d.sinks = 65);
	REFUSED(SKVQ_EINVAL, "clip", d.clip = 2);
	REFUSED(SKVQ_EINVAL, "permutation", d.reorder_k = map);
	REFUSED(SKVQ_EINVAL, "struct_size", d.struct_size = 2);
	REFUSED(SKVQ_EINVAL, "flags", d.flags = 2);
	toy_close(&t);
}

static void *toy_calibration(const struct toy *t, const struct skvq_calibrate_rope *rope,
                             uint64_t seed, uint64_t *ret_bytes)
{
	const struct skvq_calibration_key key = {(const uint8_t[32]){1, 2, 3}, t->layers, t->q_heads,
	                                         t->kv_heads, t->dim, t->dim};

	return calibration_make(&key, rope, t->outlier > 0 ? t->outlier : 1, seed, ret_bytes);
}

static void calibrations_of_others_are_refused(void **state)
{
	(void)state;
	struct toy t = toy_default();
	skvq_model *m = NULL;
	uint64_t n;
	uint8_t *file = toy_calibration(&t, NULL, 1, &n), *odd = malloc(n + 1);
	static const uint8_t other[32] = {1, 2, 4};

	toy_open(&t);
#define CALIBRATED d.calibration = file, d.calibration_bytes = n
	REFUSED(SKVQ_EIDENTITY, "other weights", CALIBRATED; d.weights_digest = other);
	REFUSED(SKVQ_EIDENTITY, "n_layer", CALIBRATED; d.n_layer = 3);
	REFUSED(SKVQ_EIDENTITY, "n_kv_heads", CALIBRATED; d.n_kv_heads = 3);
	REFUSED(SKVQ_EIDENTITY, "head_dim_v", CALIBRATED; d.head_dim_v = 128);
	REFUSED(SKVQ_EPROFILE, "none of that name", CALIBRATED; d.profile = "auto-2.1");
	file[n / 2] ^= 1;
	REFUSED(SKVQ_ECORRUPT, "digest at offset 72", CALIBRATED);
	file[n / 2] ^= 1;
	REFUSED(SKVQ_ECORRUPT, "file_bytes", CALIBRATED - 1);
	/* Aligned or not, and it may go once the model is registered. */
	memcpy(odd + 1, file, n);
	skvq_model_desc d = desc_of(&t);
	d.calibration = odd + 1;
	d.calibration_bytes = n;
	d.profile = "auto-2.4";
	assert_int_equal(api->model_register(t.session, &d, &m), 0);
	assert_int_equal(api->model_unregister(m), 0);
	free(odd);
	free(file);
	toy_close(&t);
#undef CALIBRATED
}

/* Mean relative error of attention over the tokens that are in pages. */
static double mean_error(struct toy *t)
{
	float *out = calloc((size_t)t->chunk * t->q_heads * t->dim, sizeof *out);
	double sum = 0;
	uint32_t n = 0;

	toy_open(t);
	for (uint32_t at = 0; at < t->tokens; at += 50) {
		feed(t, at, at + 50, out);
		if (at >= 200) {
			sum += worst_error(t, t->layers - 1, at, 50, out, 0, 0);
			n++;
		}
	}
	free(out);
	toy_close(t);
	return sum / n;
}

static void calibration_tames_outliers(void **state)
{
	(void)state;
	static const uint32_t dims[] = {64, 80, 128};

	for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
		double plain, free_, kept, calibrated, automatic;
		struct toy t = toy_default();

		t.dim = dims[i];
		t.profile = "k2v2-bare";
		rng = 1;
		plain = mean_error(&t);
		t.outlier = 32;
		rng = 1;
		free_ = mean_error(&t);
		t.profile = "k2v2"; /* pages keep keys in 8 bits: values alone lose */
		rng = 1;
		kept = mean_error(&t);
		void *file = toy_calibration(&t, NULL, 1, &t.calibration_bytes);
		t.calibration = file;
		rng = 1;
		calibrated = mean_error(&t);
		t.profile = "auto-2.4"; /* the last layer, which is measured, has more bits */
		rng = 1;
		automatic = mean_error(&t);
		if (!(free_ > 1.5 * plain && kept < 0.9 * plain && calibrated < 1.1 * plain &&
		      automatic < 0.9 * plain))
			fail_msg("head_dim %u: %g without outliers, %g with, %g in safe pages, %g calibrated, "
			         "%g auto-2.4",
			         t.dim, plain, free_, kept, calibrated, automatic);
		/* FP16 pages hold the rows as they are. */
		t.profile = "fp16";
		assert_true(mean_error(&t) < 1e-4);
		free(file);
	}
}

/* SKVQ's groups: large channels, which stand in all heads, share a scale with each other and spoil no
 * others. Without groups in the calibration, or without one, neighbours share. */
static void groups_tame_outliers(void **state)
{
	(void)state;
	static const char *const profiles[] = {"skvq-post-k4v4-g32", "skvq-post-k4v4-g64",
	                                       "skvq-k4v4-g32", "skvq-k2v2-g64", "skvq-k3v3-g128"};

	for (size_t i = 0; i < sizeof profiles / sizeof profiles[0]; i++) {
		double neighbours, grouped, ungrouped;
		struct toy t = toy_default();
		const struct skvq_calibrate_rope rope = {.dim = t.dim, .theta = 10000, .positions = 1};

		t.profile = profiles[i];
		t.kv_heads = 3;
		t.outlier = 32;
		rng = 1;
		neighbours = mean_error(&t);
		void *file = toy_calibration(&t, &rope, 1, &t.calibration_bytes);
		t.calibration = file;
		rng = 1;
		grouped = mean_error(&t);
		if (!(grouped < 0.5 * neighbours))
			fail_msg("%s: error %g with neighbours, %g with groups", t.profile, neighbours,
			         grouped);
		calibration_ungroup(file, &t.calibration_bytes);
		rng = 1;
		ungrouped = mean_error(&t);
		assert_true(ungrouped == neighbours);
		free(file);
	}
}

static void numbers_that_are_not_finite_are_refused(void **state)
{
	(void)state;
	static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, 70000};
	struct toy t = toy_default();
	float out[6 * 64];

	toy_open(&t);
	feed(&t, 0, 60, NULL);
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			/* Token 63, KV head 1, layer 0; layers before and after it are fine. */
			float *at = (is_v ? t.v : t.k) + kv_at(&t, 0, 63, 1) + 17, was = *at;
			skvq_kv kv = kv_of(&t, 0, 60, 8);

			*at = bad[i];
			expect(&t, api->append(t.seq, &kv), -SKVQ_EINVAL,
			       is_v ? "layer 0: V of head 1, token 63" : "layer 0: K of head 1, token 63");
			skvq_attn a = attn_of(&t, 0, 60, 1, out);
			expect(&t, api->attend(&t.seq, &a, 1), -SKVQ_ERANGE, "60 tokens appended");
			*at = was;
		}
	}
	/* Nothing of it is left: what follows is exact. */
	float *all = calloc((size_t)t.chunk * t.q_heads * t.dim, sizeof *all);
	feed(&t, 60, 100, all);
	assert_true(worst_error(&t, t.layers - 1, 60, 40, all, 0, 0) < 1e-4);
	free(all);
	toy_close(&t);
}

static void calls_out_of_order_are_refused(void **state)
{
	(void)state;
	struct toy t = toy_default();
	float out[6 * 64];
	int32_t ids[400] = {0};

	toy_open(&t);
	skvq_kv kv = kv_of(&t, 0, 0, 10);
	skvq_attn a = attn_of(&t, 0, 0, 1, out);
	expect(&t, api->attend(&t.seq, &a, 1), -SKVQ_ERANGE, "0 tokens appended");
	assert_int_equal(api->append(t.seq, &kv), 0);
	expect(&t, api->append(t.seq, &kv), -SKVQ_ESTATE, "the next is 10");
	expect(&t, api->seq_commit(t.seq, ids, 10), -SKVQ_ESTATE, "layer 1");
	kv.layer = 2;
	expect(&t, api->append(t.seq, &kv), -SKVQ_EGEOMETRY, "layer 2");
	kv = kv_of(&t, 1, 0, 97);
	expect(&t, api->append(t.seq, &kv), -SKVQ_ELIMIT, "max_append");
	kv = kv_of(&t, 1, 0, 10);
	kv.k = (const char *)kv.k + 1;
	expect(&t, api->append(t.seq, &kv), -SKVQ_EMISALIGNED, "k is not aligned");
	kv = kv_of(&t, 1, 0, 10);
	kv.v = NULL;
	expect(&t, api->append(t.seq, &kv), -SKVQ_EINVAL, "v is NULL");
	kv = kv_of(&t, 1, 0, 10);
	kv.v_type = 3;
	expect(&t, api->append(t.seq, &kv), -SKVQ_EMISALIGNED, "unknown element type");
	kv = kv_of(&t, 1, 0, 10);
	assert_int_equal(api->append(t.seq, &kv), 0);
	a = attn_of(&t, 0, 9, 2, out);
	expect(&t, api->attend(&t.seq, &a, 1), -SKVQ_ERANGE, "10 tokens appended");
	a = attn_of(&t, 0, 9, 1, out);
	a.ith = 1;
	expect(&t, api->attend(&t.seq, &a, 1), -SKVQ_EINVAL, "nth");
	/* Uncommitted tokens can be dropped and appended again. */
	assert_int_equal(api->seq_truncate(t.seq, 0), 0);
	for (uint32_t at = 0; at < 384; at += 96)
		feed(&t, at, at + 96, NULL);
	expect(&t, api->seq_truncate(t.seq, 500), -SKVQ_ERANGE, "500");
	feed(&t, 384, 400, NULL);
	kv = kv_of(&t, 0, 0, 1);
	kv.position = 400;
	expect(&t, api->append(t.seq, &kv), -SKVQ_EFULL, "at most 400");
	skvq_export e = {.struct_size = sizeof e, .position = 399, .n_tokens = 2};
	expect(&t, api->export_kv(t.seq, &e), -SKVQ_ERANGE, "401");
	assert_int_equal(api->model_unregister(t.model), -SKVQ_ESTATE);
	skvq_seq *s2 = NULL;
	skvq_seq_desc sd = {.struct_size = sizeof sd, .max_tokens = 10, .max_append = 20};
	expect(&t, api->seq_open(t.model, &sd, &s2), -SKVQ_EINVAL, "max_append");
	expect(&t, api->seq_fork(t.seq, NULL), -SKVQ_EINVAL, "fork");
	expect(&t, api->seq_snapshot(t.seq, NULL, 0, NULL), -SKVQ_EINVAL, "ret_bytes");
	expect(&t, api->seq_resume(t.model, NULL, 0, &s2), -SKVQ_EINVAL, "buf");
	assert_int_equal(api->session_fd(t.session), -SKVQ_ESTATE);
	assert_null(api->get_extension(t.session, "skvq.nothing/1"));
	toy_close(&t);
}

/* What every call answers in a child; the number of those that answered otherwise. */
static int calls_in_a_child(struct toy *t)
{
	uint8_t buf[8];
	uint64_t bytes = 0;
	int32_t id = 1;
	float out[6 * 64];
	char text[8];
	skvq_model *m = NULL;
	skvq_seq *q = NULL;
	skvq_kv kv = kv_of(t, 0, 96, 1);
	skvq_attn a = attn_of(t, 0, 90, 1, out);
	skvq_export e = {.struct_size = sizeof e};
	skvq_seq_info info = {.struct_size = sizeof info};
	skvq_stats stats = {.struct_size = sizeof stats};
	skvq_model_desc md = desc_of(t);
	skvq_seq_desc sd = {.struct_size = sizeof sd, .max_tokens = 100, .max_append = 10};
	skvq_calibration_of of = {.struct_size = sizeof of};
	const skvq_ext_calibration *cal = api->get_extension(t->session, SKVQ_EXT_CALIBRATION);
	const skvq_ext_prefetch *pre = api->get_extension(t->session, SKVQ_EXT_PREFETCH);
	const int32_t answers[] = {
	    api->append(t->seq, &kv),
	    api->attend(&t->seq, &a, 1),
	    api->export_kv(t->seq, &e),
	    api->seq_info(t->seq, &info),
	    api->seq_poll(t->seq),
	    api->seq_commit(t->seq, &id, 1),
	    api->seq_truncate(t->seq, 50),
	    api->seq_fork(t->seq, &q),
	    api->seq_snapshot(t->seq, NULL, 0, &bytes),
	    api->seq_resume(t->model, buf, sizeof buf, &q),
	    api->seq_open(t->model, &sd, &q),
	    api->model_register(t->session, &md, &m),
	    api->model_unregister(t->model),
	    api->stats(t->session, &stats),
	    api->session_fd(t->session),
	    api->last_error(t->session, text, sizeof text),
	    cal->get(t->session, &of, NULL, 0, &bytes),
	    cal->put(t->session, buf, sizeof buf),
	    pre->prefetch(t->model, &id, 1),
	};
	int wrong = 0;

	for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
		if (answers[i] != -SKVQ_EFORKED) {
			fprintf(stderr, "call %zu in a child: %d\n", i, answers[i]);
			wrong++;
		}
	}
	return wrong;
}

/* Workers forked from a process with a session: one that exits, one that ends what it has inherited,
 * one that goes on with a session of its own, and a child of a child. */
static void children_after_fork_are_refused(void **state)
{
	(void)state;
	struct toy t = toy_default();
	float before[6 * 64], after[6 * 64];
	int status;

	toy_open(&t);
	for (uint32_t at = 0; at < 288; at += 96)
		feed(&t, at, at + 96, NULL);
	skvq_seq *branch = NULL; /* pages with two users */
	assert_int_equal(api->seq_fork(t.seq, &branch), 0);
	skvq_attn a = attn_of(&t, 1, 287, 1, before);
	assert_int_equal(api->attend(&t.seq, &a, 1), 0);
	for (int kind = 0; kind < 4; kind++) {
		pid_t pid = fork();
		if (pid == 0) {
			int wrong = calls_in_a_child(&t);

			if (kind == 1)
				api->seq_close(t.seq);
			if (kind == 1 || kind == 2)
				api->close(t.session);
			if (kind == 2) {
				struct toy own = toy_default();

				toy_open(&own);
				feed(&own, 0, 96, NULL);
				toy_close(&own);
			}
			if (kind == 3) {
				pid_t grandchild = fork();

				if (grandchild == 0) {
					wrong = calls_in_a_child(&t);
					api->close(t.session);
					_exit(wrong);
				}
				if (waitpid(grandchild, &status, 0) != grandchild)
					wrong++;
				wrong += status != 0;
			}
			_exit(wrong);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		a.out = after;
		assert_int_equal(api->attend(&t.seq, &a, 1), 0);
		assert_memory_equal(before, after, sizeof before);
		assert_int_equal(api->attend(&branch, &a, 1), 0);
		assert_memory_equal(before, after, sizeof before);
	}
	api->seq_close(branch);
	feed(&t, 288, 384, NULL);
	toy_close(&t);
}

static void an_engine_with_shorter_structs_works(void **state)
{
	(void)state;
	struct toy t = toy_default();
	skvq_model *m = NULL;

	toy_open(&t);
	/* As an engine built before the last fields existed, with garbage behind its struct. */
	struct {
		skvq_model_desc d;
	} old = {desc_of(&t)};
	old.d.struct_size = offsetof(skvq_model_desc, bit_table);
	memset((char *)&old.d + old.d.struct_size, 0xee, sizeof old.d - old.d.struct_size);
	assert_int_equal(api->model_register(t.session, &old.d, &m), 0);
	assert_int_equal(api->model_unregister(m), 0);
	/* A caller's shorter info struct is filled that far and no further. */
	skvq_seq_info info;
	memset(&info, 0xee, sizeof info);
	info.struct_size = offsetof(skvq_seq_info, n_paged);
	assert_int_equal(api->seq_info(t.seq, &info), 0);
	assert_int_equal(info.n_tokens, 0);
	assert_int_equal(info.n_paged, 0xeeeeeeee);
	skvq_stats st;
	memset(&st, 0xee, sizeof st);
	st.struct_size = offsetof(skvq_stats, pages_off);
	assert_int_equal(api->stats(t.session, &st), 0);
	assert_int_equal(st.reconnects, 0);
	assert_true(st.pages_off == UINT64_C(0xeeeeeeeeeeeeeeee));
	memset(&info, 0xee, sizeof info);
	info.struct_size = offsetof(skvq_seq_info, pages_safe);
	assert_int_equal(api->seq_info(t.seq, &info), 0);
	assert_int_equal(info.page_code_bytes, 80 * t.layers * t.kv_heads * 2 * t.dim * 2);
	assert_int_equal(info.pages_safe, 0xeeeeeeee);
	toy_close(&t);
}

/* Warnings by what they name. */
struct warnings {
	uint32_t n;
	char text[8][512];
};

static void take_warning(void *user, int32_t level, const char *utf8)
{
	struct warnings *w = user;

	if (level != SKVQ_LOG_WARNING)
		return;
	if (w->n < 8)
		snprintf(w->text[w->n], sizeof w->text[0], "%s", utf8);
	w->n++;
}

/* After rotation a head's mean is one channel, far beyond the others: no step serves both. */
static void add_mean(const struct toy *t, float *x, uint32_t layer, float mean)
{
	for (size_t i = kv_at(t, layer, 0, 0); i < kv_at(t, layer + 1, 0, 0); i++)
		x[i] += mean;
}

static void errors_beyond_expectation_are_told_once(void **state)
{
	static const char *const profiles[] = {"k2v1.5", "e2.1", "k2v2-g32", "k3v3", "k4v4", "k8v8"};

	(void)state;
	for (size_t p = 0; p < sizeof profiles / sizeof profiles[0]; p++) {
		for (int spoilt = 0; spoilt < 2; spoilt++) {
			struct warnings w = {0};
			struct toy t = toy_default();

			if (spoilt && p > 1)
				continue;
			t.profile = profiles[p];
			t.log = take_warning;
			t.log_user = &w;
			toy_open(&t);
			if (spoilt) {
				add_mean(&t, t.k, 1, 1);
				add_mean(&t, t.v, 0, 1);
			}
			for (uint32_t at = 0; at < 384; at += 96)
				feed(&t, at, at + 96, NULL);
			skvq_stats st = {.struct_size = sizeof st};
			assert_int_equal(api->stats(t.session, &st), 0);
			if (w.n != (spoilt ? 2 : 0) || st.pages_off != (spoilt ? 5 : 0))
				fail_msg("%s: %u warnings, first '%s', %llu pages off", t.profile, w.n,
				         w.text[0], (unsigned long long)st.pages_off);
			if (spoilt) {
				assert_non_null(strstr(w.text[0], "layer 0: the relative error of V"));
				assert_non_null(strstr(w.text[1], "layer 1: the relative error of K"));
				assert_non_null(strstr(w.text[1], "expected is 0.119"));
				assert_non_null(strstr(w.text[1], t.profile));
			}
			toy_close(&t);
		}
	}
}

/* Nothing is expected of these, whatever they lose. */
static void profiles_without_rotation_warn_of_nothing(void **state)
{
	static const char *const profiles[] = {"plain-k2v1.5-bare", "affine-k2v1.5-g32",
	                                       "skvq-k2v1.5-g32", "fp16"};

	(void)state;
	for (size_t p = 0; p < sizeof profiles / sizeof profiles[0]; p++) {
		struct warnings w = {0};
		struct toy t = toy_default();

		t.profile = profiles[p];
		t.log = take_warning;
		t.log_user = &w;
		toy_open(&t);
		for (size_t i = 0; i < kv_at(&t, 2, 0, 0); i += 37)
			t.k[i] = t.v[i] = 100;
		for (uint32_t at = 0; at < 384; at += 96)
			feed(&t, at, at + 96, NULL);
		skvq_stats st = {.struct_size = sizeof st};
		assert_int_equal(api->stats(t.session, &st), 0);
		assert_int_equal(w.n, 0);
		assert_int_equal(st.pages_off, 0);
		toy_close(&t);
	}
}

/* Four channels of each head's keys in a layer, so many times larger over tokens from..to-1. */
static void enlarge(struct toy *t, uint32_t layer, uint32_t from, uint32_t to, float times)
{
	for (size_t i = kv_at(t, layer, from, 0); i < kv_at(t, layer, to, 0); i++)
		if (i % (t->dim / 4) == 3)
			t->k[i] *= times;
}

/* What pages give back of a layer, in the place of what was appended. */
static void take_back(const struct toy *t, uint32_t layer, uint32_t n, float *k, float *v)
{
	int64_t head = (int64_t)(t->dim * sizeof(float));
	skvq_export e = {.struct_size = sizeof e,
	                 .layer = layer,
	                 .n_tokens = n,
	                 .type = SKVQ_F32,
	                 .k = k + kv_at(t, layer, 0, 0),
	                 .v = v + kv_at(t, layer, 0, 0),
	                 .k_token_stride = head * t->kv_heads,
	                 .k_head_stride = head,
	                 .v_token_stride = head * t->kv_heads,
	                 .v_head_stride = head};

	assert_int_equal(api->export_kv(t->seq, &e), 0);
}

static double lost(const struct toy *t, const float *x, const float *back, uint32_t layer,
                   uint32_t from, uint32_t to)
{
	double error = 0, energy = 0;

	for (size_t i = kv_at(t, layer, from, 0); i < kv_at(t, layer, to, 0); i++) {
		error += pow((double)x[i] - back[i], 2);
		energy += pow(x[i], 2);
	}
	return error / energy;
}

enum { SAFE_TOKENS = 2912, SAFE_FED = 2896 };

/* A sequence in whose second layer each third page from `first` on has large channels; fed in
 * pieces of so many tokens. */
static void mixed_open(struct toy *t, const char *profile, uint32_t first, uint32_t piece,
                       struct warnings *w)
{
	*t = toy_default();
	t->tokens = SAFE_TOKENS;
	t->profile = profile;
	t->log = take_warning;
	t->log_user = w;
	rng = 5;
	toy_open(t);
	for (uint32_t at = 80 * first; at < t->tokens; at += 240)
		enlarge(t, 1, at, at + 80 < t->tokens ? at + 80 : t->tokens, 32);
	for (size_t i = 3; i < q_at(t, t->layers, 0, 0); i += t->dim / 4)
		t->q[i] /= 32;
	for (uint32_t at = 0; at < SAFE_FED; at += piece)
		feed(t, at, at + piece < SAFE_FED ? at + piece : SAFE_FED, NULL);
}

/* Pages in which a few channels would drown the rest keep keys in 8 bits, others do not, and one
 * attention over both is that over what they hold. */
static void drowned_pages_keep_keys(void **state)
{
	static const char *const profiles[] = {"k4v2", "k2v1.5", "k3v3-g32", "plain-k4v4"};

	(void)state;
	for (uint32_t p = 0; p < 4; p++) {
		struct warnings w = {0};
		struct toy t, held;

		mixed_open(&t, profiles[p], p % 2, 96, &w);
		size_t n = kv_at(&t, t.layers, 0, 0);
		float *back = calloc(2 * n, sizeof *back);
		float *one = calloc(16 * t.q_heads * t.dim, sizeof *one);
		float *many = calloc(16 * t.q_heads * t.dim, sizeof *many);

		skvq_seq_info info = {.struct_size = sizeof info};
		skvq_stats st = {.struct_size = sizeof st};
		assert_int_equal(api->seq_info(t.seq, &info), 0);
		assert_int_equal(api->stats(t.session, &st), 0);
		assert_int_equal(info.pages_local, 36); /* 2,864 of 2,896 tokens */
		assert_int_equal(info.pages_safe, 12);
		assert_int_equal(st.pages_safe, 12);
		assert_int_equal(w.n, 1);
		assert_non_null(strstr(w.text[0], "layer 1: a few channels drown the rest of K"));
		assert_non_null(strstr(w.text[0], p % 2 ? "token 80" : "token 0"));
		assert_non_null(strstr(w.text[0], profiles[p]));

		for (uint32_t layer = 0; layer < t.layers; layer++)
			take_back(&t, layer, SAFE_FED, back, back + n);
		for (uint32_t i = 0; i < info.n_paged / 80; i++) {
			uint32_t from = i ? 80 * i : t.sinks, to = 80 * i + 80;
			bool safe = i % 3 == p % 2;

			for (uint32_t layer = 0; layer < t.layers; layer++) {
				double k = lost(&t, t.k, back, layer, from, to);
				double v = lost(&t, t.v, back + n, layer, from, to);

				if (!(safe ? k < 3e-4 : k > 2e-3) || !(v > 3e-3))
					fail_msg("%s: page %u, layer %u: K loses %g, V %g", profiles[p],
					         i, layer, k, v);
			}
		}

		held = t;
		held.k = back;
		held.v = back + n;
		for (uint32_t layer = 0; layer < t.layers; layer++) {
			skvq_kv kv = kv_of(&t, layer, SAFE_FED, 16);
			assert_int_equal(api->append(t.seq, &kv), 0);
			memcpy(held.k + kv_at(&t, layer, SAFE_FED, 0), kv.k,
			       16 * t.kv_heads * t.dim * sizeof(float));
			memcpy(held.v + kv_at(&t, layer, SAFE_FED, 0), kv.v,
			       16 * t.kv_heads * t.dim * sizeof(float));
			/* Few rows and many; the second is split along the sequence. */
			for (uint32_t rows = 16; rows; rows = rows > 1 ? 1 : 0) {
				skvq_attn a = attn_of(&t, layer, SAFE_FED + 16 - rows, rows, one);
				assert_int_equal(api->attend(&t.seq, &a, 1), 0);
				double e = worst_error(&held, layer, SAFE_FED + 16 - rows, rows, one, 0, 0);
				if (!(e < 3e-3))
					fail_msg("%s: layer %u, %u rows: %g off what is held", profiles[p],
					         layer, rows, e);
				a.out = many;
				a.nth = 3;
				for (a.ith = 0; a.ith < 3; a.ith++)
					assert_int_equal(api->attend(&t.seq, &a, 1), 0);
				assert_memory_equal(one, many, rows * t.q_heads * t.dim * sizeof *one);
			}
		}
		free(back);
		free(one);
		free(many);
		toy_close(&t);
	}
}

/* However the tokens come; and not where the profile says otherwise. */
static void drowned_pages_are_the_same_pages(void **state)
{
	static const struct {
		const char *profile;
		uint32_t piece, safe;
	} rows[] = {{"k2v2", 96, 12},     {"k2v2", 1, 12}, {"k2v2", 37, 12}, {"k2v2-bare", 96, 0},
	            {"k8v2", 96, 0},      {"e2.1", 96, 0}, {"affine-k2v2-g64", 96, 0},
	            {"fp16", 96, 0}};
	float *first = NULL;

	(void)state;
	for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
		struct warnings w = {0};
		struct toy t;

		mixed_open(&t, rows[r].profile, 1, rows[r].piece, &w);
		size_t n = kv_at(&t, t.layers, 0, 0);
		float *back = calloc(2 * n, sizeof *back);
		skvq_seq_info info = {.struct_size = sizeof info};

		assert_int_equal(api->seq_info(t.seq, &info), 0);
		if (info.pages_safe != rows[r].safe)
			fail_msg("%s in pieces of %u: %u safe pages", rows[r].profile, rows[r].piece,
			         info.pages_safe);
		for (uint32_t layer = 0; layer < t.layers; layer++)
			take_back(&t, layer, SAFE_FED, back, back + n);
		if (r == 0)
			first = back;
		else if (rows[r].safe)
			assert_memory_equal(first, back, 2 * n * sizeof *back);
		if (r > 0)
			free(back);
		toy_close(&t);
	}
	free(first);
}

/* A calibration makes a large channel as large as any other: its pages stay as they are. */
static void calibrated_pages_are_never_safe(void **state)
{
	struct toy t = toy_default();
	skvq_seq_info info = {.struct_size = sizeof info};

	(void)state;
	t.profile = "k2v2";
	t.outlier = 64;
	for (int calibrated = 0; calibrated < 2; calibrated++) {
		void *file = calibrated ? toy_calibration(&t, NULL, 1, &t.calibration_bytes) : NULL;

		t.calibration = file;
		toy_open(&t);
		for (uint32_t at = 0; at < 384; at += 96)
			feed(&t, at, at + 96, NULL);
		assert_int_equal(api->seq_info(t.seq, &info), 0);
		assert_int_equal(info.pages_safe, calibrated ? 0 : info.pages_local);
		toy_close(&t);
		free(file);
	}
}

static void opening_refuses(void **state)
{
	(void)state;
	skvq_engine e = {.struct_size = sizeof e};
	skvq_session *s = NULL;
	char long_path[200];

	memset(long_path, 'x', sizeof long_path);
	long_path[sizeof long_path - 1] = 0;
	assert_int_equal(api->open(NULL, NULL, &s), -SKVQ_EINVAL);
	assert_int_equal(api->open(&e, "/nonexistent/skvqd.sock", &s), -SKVQ_ENODAEMON);
	assert_int_equal(api->open(&e, long_path, &s), -SKVQ_EPATH);
	e.reserved = 1;
	assert_int_equal(api->open(&e, NULL, &s), -SKVQ_EINVAL);
	assert_null(s);
	api->close(NULL);
	api->seq_close(NULL);
	assert_int_equal(api->model_unregister(NULL), 0);
	assert_string_equal(api->err_name(-SKVQ_EPINS), "SKVQ_EPINS");
	assert_string_equal(api->err_name(-999), "unknown");
}

struct reader {
	struct toy *t;
	uint32_t layer;
	int failures;
};

static void *layer_thread(void *arg)
{
	struct reader *r = arg;
	float out[6 * 64];

	for (uint32_t i = 0; i < 40; i++) {
		skvq_kv kv = kv_of(r->t, r->layer, 192 + i, 1);
		skvq_attn a = attn_of(r->t, r->layer, 192 + i, 1, out);
		r->failures += api->append(r->t->seq, &kv) != 0;
		r->failures += api->attend(&r->t->seq, &a, 1) != 0;
		r->failures += !(worst_error(r->t, r->layer, 192 + i, 1, out, 0, 0) < 1e-4);
	}
	return NULL;
}

/* [data] calls of different layers at once, as the thread classes allow; run under TSan too. */
static void layers_in_parallel(void **state)
{
	(void)state;
	struct toy t = toy_default();
	struct reader readers[2];
	pthread_t threads[2];

	toy_open(&t);
	feed(&t, 0, 96, NULL);
	feed(&t, 96, 192, NULL);
	for (uint32_t i = 0; i < 2; i++) {
		readers[i] = (struct reader){.t = &t, .layer = i};
		pthread_create(&threads[i], NULL, layer_thread, &readers[i]);
	}
	for (uint32_t i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(readers[i].failures, 0);
	}
	int32_t ids[40] = {0};
	assert_int_equal(api->seq_commit(t.seq, ids, 40), 0);
	toy_close(&t);
}

static void *load(void)
{
	void *so = dlopen(SKVQ_PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
	skvq_plugin_api_fn get;

	if (!so) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	*(void **)&get = dlsym(so, "skvq_plugin_api");
	assert_non_null(get);
	assert_null(get(SKVQ_ABI_MAJOR + 1));
	assert_null(get(0));
	api = get(SKVQ_ABI_MAJOR);
	assert_non_null(api);
	assert_int_equal(api->struct_size, sizeof(skvq_api));
	return so;
}

static void unloads_and_loads_again(void **state)
{
	(void)state;
	struct toy t = toy_default();
	void *so = load();

	toy_open(&t);
	feed(&t, 0, 96, NULL);
	/* close() ends what is still open. */
	api->close(t.session);
	free(t.k);
	free(t.v);
	free(t.q);
	assert_int_equal(dlclose(so), 0);
}

/* Two engines in a process, each with a copy of the library; ends interleaved, and one gives its copy up
 * with its session open. */
static void two_copies_do_not_meet(void **state)
{
	(void)state;
	char path[] = "/tmp/skvq-copy-XXXXXX", command[4200];
	struct toy t[2] = {toy_default(), toy_default()};
	const skvq_api *mine = api;
	skvq_plugin_api_fn get;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	close(fd);
	snprintf(command, sizeof command, "cp '%s' '%s'", SKVQ_PLUGIN_PATH, path);
	assert_int_equal(system(command), 0);
	void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	assert_non_null(so);
	*(void **)&get = dlsym(so, "skvq_plugin_api");
	assert_non_null(get);
	const skvq_api *other = get(SKVQ_ABI_MAJOR);
	assert_ptr_not_equal(other, mine);
	toy_open(&t[0]);
	feed(&t[0], 0, 96, NULL);
	api = other;
	toy_open(&t[1]);
	feed(&t[1], 0, 96, NULL);
	api = mine;
	feed(&t[0], 96, 192, NULL);
	toy_close(&t[0]);
	api = other;
	assert_int_equal(dlclose(so), 0);
	feed(&t[1], 96, 192, NULL);
	toy_close(&t[1]);
	api = mine;
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(unloads_and_loads_again),
	    cmocka_unit_test(attention_is_exact_with_fp16_pages),
	    cmocka_unit_test(codecs_err_within_their_bits),
	    cmocka_unit_test(elastic_keys_fade_with_age),
	    cmocka_unit_test(sliding_limit_softcap_and_lse),
	    cmocka_unit_test(shares_of_the_work_add_up),
	    cmocka_unit_test(a_long_sequence_is_split),
	    cmocka_unit_test(interleaved_pairs_are_the_same_model),
	    cmocka_unit_test(types_and_strides),
	    cmocka_unit_test(model_register_refuses),
	    cmocka_unit_test(calibrations_of_others_are_refused),
	    cmocka_unit_test(calibration_tames_outliers),
	    cmocka_unit_test(groups_tame_outliers),
	    cmocka_unit_test(numbers_that_are_not_finite_are_refused),
	    cmocka_unit_test(calls_out_of_order_are_refused),
	    cmocka_unit_test(children_after_fork_are_refused),
	    cmocka_unit_test(an_engine_with_shorter_structs_works),
	    cmocka_unit_test(errors_beyond_expectation_are_told_once),
	    cmocka_unit_test(profiles_without_rotation_warn_of_nothing),
	    cmocka_unit_test(drowned_pages_keep_keys),
	    cmocka_unit_test(drowned_pages_are_the_same_pages),
	    cmocka_unit_test(calibrated_pages_are_never_safe),
	    cmocka_unit_test(opening_refuses),
	    cmocka_unit_test(two_copies_do_not_meet),
	    cmocka_unit_test(layers_in_parallel),
	};

	load();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
