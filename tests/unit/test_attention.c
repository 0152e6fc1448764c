/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of kernels/ref against softmax in double precision over the same stored values, on
 * sequences as the plugin makes them: [sinks | pages | open page | window]. What is checked is the
 * arithmetic and the masks; what the codec itself loses is test_codec.c's subject. The other tiers
 * are held to the bound of kernels.h on softmax shapes that occur.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <skvq/kernels.h>

#include "seeded.h"

/* ref/exp.h is a header of the tier "ref"; nothing of the tier is defined here. */
#define SKVQ_TIER_NAME ref
#include "ref/exp.h"

#define D      SKVQ_HEAD_DIM_MAX
#define ROWS   SKVQ_ATTN_ROWS_MAX
#define TOKENS 800

static struct skvq_kernels ref;
static struct skvq_kernels tested; /* ref, but for the test of all tiers */
static struct seeded rng;

/* A sequence of one KV head. k and v are what attention should see of each token, in engine space:
 * halves for sinks and window, decoded codes for pages. */
struct sequence {
	struct skvq_codec kc, vc;
	uint32_t n, sinks, paged; /* tokens, FP16 ones at the front, end of the last whole tile */
	uint16_t k_map[D], v_map[D];
	float matrices[5][D * D]; /* K: into, back, query; V: into, back */
	struct skvq_transform tk, tv;
	uint16_t k16[TOKENS * D], v16[TOKENS * D];
	float k[TOKENS * D], v[TOKENS * D];
	_Alignas(64) uint8_t k_codes[TOKENS / 80][80 * D * 2], v_codes[TOKENS / 80][80 * D * 2];
	_Alignas(64) uint8_t k_refine[TOKENS / 80][20 * D];
	uint8_t k_params[TOKENS / 80][16 * 80], v_params[TOKENS / 80][16 * 80];
};

struct query {
	struct skvq_attn_state s;
	float q[ROWS * D], q_stored[ROWS * D];
	uint32_t pos[ROWS], lo[ROWS];
	float max[ROWS], sum[ROWS], acc[ROWS * D], acc_stored[ROWS * D];
	uint32_t prep[SKVQ_ATTN_PREP_BYTES / 4];
	float out[ROWS * D], lse[ROWS];
	double want[ROWS * D], want_lse[ROWS];
};

static struct sequence seq;
static struct query query, again;

/* --- making ---------------------------------------------------------------------------------- */

/* None, channel maps, or maps after matrices that are not orthogonal: Hadamard times powers of two. */
static void transforms_make(uint32_t dk, uint32_t dv)
{
	uint32_t kind = seeded_below(&rng, 3);

	seq.tk = seq.tv = (struct skvq_transform){0};
	if (kind == 0)
		return;
	for (uint32_t i = 0; i < D; i++) {
		seq.k_map[i] = (uint16_t)((i * 7 + 3) % dk);
		seq.v_map[i] = (uint16_t)((i * 11 + 1) % dv);
	}
	seq.tk.reorder = seq.k_map;
	seq.tv.reorder = seq.v_map;
	if (kind == 1)
		return;
	for (uint32_t is_v = 0; is_v < 2; is_v++) {
		uint32_t dim = is_v ? dv : dk, block = dim & -dim;
		float *into = seq.matrices[3 * is_v], *back = seq.matrices[3 * is_v + 1];

		for (uint32_t i = 0; i < dim; i++) {
			for (uint32_t j = 0; j < dim; j++) {
				float scale = ldexpf(1.0f, (int)(i % 3) - 1);
				float h = i / block == j / block ? 1.0f / sqrtf((float)block) : 0;

				if (__builtin_popcount(i & j & (block - 1)) & 1)
					h = -h;
				into[i * dim + j] = scale * h;
				back[j * dim + i] = h / scale;
				if (!is_v)
					seq.matrices[2][i * dim + j] = h / scale;
			}
		}
		*(is_v ? &seq.tv.into : &seq.tk.into) = into;
		*(is_v ? &seq.tv.back : &seq.tk.back) = back;
	}
	seq.tk.query = seq.matrices[2];
}

static void tile_encode(const struct skvq_codec *c, const struct skvq_transform *tr, uint16_t *half,
			float *seen, uint32_t first, uint32_t from, uint8_t *codes, uint8_t *params,
			uint8_t *refine)
{
	float rows[16 * D], back[16 * D];
	uint32_t tile = first % 80 / 16;

	ref.f16_to_f32(half + (size_t)first * c->dim, rows, (size_t)16 * c->dim);
	ref.encode_tile(c, tr, rows, tile, codes, params, refine);
	ref.decode_tile(c, codes, params, refine, tile, back);
	for (uint32_t t = 0; t < 16; t++) {
		ref.from_stored(c, tr, back + t * c->dim);
		if (first + t >= from)
			memcpy(seen + (size_t)(first + t) * c->dim, back + t * c->dim,
			       c->dim * sizeof(float));
	}
}

static void sequence_make(const char *profile, uint32_t dk, uint32_t dv, uint32_t n, uint32_t sinks,
			  uint32_t window)
{
	struct skvq_profile p;

	assert_true(n <= TOKENS);
	assert_int_equal(skvq_profile_parse(profile, &p), 0);
	assert_int_equal(skvq_codec_init(&p, 0, p.k_bits, dk, &seq.kc), 0);
	assert_int_equal(skvq_codec_init(&p, 1, p.v_bits, dv, &seq.vc), 0);
	seq.n = n;
	seq.sinks = sinks < n ? sinks : n;
	seq.paged = n > window ? (n - window) / 16 * 16 : 0;
	transforms_make(dk, dv);
	for (size_t i = 0; i < (size_t)n * dk; i++)
		seq.k[i] = seeded_gauss(&rng);
	for (size_t i = 0; i < (size_t)n * dv; i++)
		seq.v[i] = seeded_gauss(&rng);
	ref.f32_to_f16(seq.k, seq.k16, (size_t)n * dk);
	ref.f32_to_f16(seq.v, seq.v16, (size_t)n * dv);
	ref.f16_to_f32(seq.k16, seq.k, (size_t)n * dk);
	ref.f16_to_f32(seq.v16, seq.v, (size_t)n * dv);
	for (uint32_t at = 0; at < seq.paged; at += 16) {
		uint32_t page = at / 80;

		tile_encode(&seq.kc, &seq.tk, seq.k16, seq.k, at, seq.sinks,
			    seq.k_codes[page], seq.k_params[page],
			    seq.kc.nested ? seq.k_refine[page] : NULL);
		tile_encode(&seq.vc, &seq.tv, seq.v16, seq.v, at, seq.sinks,
			    seq.v_codes[page], seq.v_params[page], NULL);
	}
}

/* G heads times n_query positions ending at `last`; sliding 0: none. */
static void query_make(struct query *q, uint32_t heads, uint32_t n_query, uint32_t last,
		       uint32_t sliding, float softcap, float sharp)
{
	uint32_t dk = seq.kc.dim;

	q->s = (struct skvq_attn_state){
	    .n_rows = heads * n_query,
	    .dim_k = dk,
	    .dim_v = seq.vc.dim,
	    .softcap = softcap,
	    .q = q->q,
	    .q_stored = q->q_stored,
	    .pos = q->pos,
	    .lo = q->lo,
	    .max = q->max,
	    .sum = q->sum,
	    .acc = q->acc,
	    .acc_stored = q->acc_stored,
	};
	for (uint32_t r = 0; r < q->s.n_rows; r++) {
		uint32_t back = n_query - 1 - r / heads;

		q->pos[r] = last >= back ? last - back : 0;
		q->lo[r] = sliding && q->pos[r] >= sliding ? q->pos[r] - sliding + 1 : 0;
		for (uint32_t i = 0; i < dk; i++)
			q->q[r * dk + i] = seeded_gauss(&rng) * sharp / sqrtf((float)dk);
	}
	memcpy(q->q_stored, q->q, sizeof(q->q));
	for (uint32_t r = 0; r < q->s.n_rows; r++)
		ref.query_to_stored(&seq.kc, &seq.tk, q->q_stored + r * dk);
}

/* --- the oracle ------------------------------------------------------------------------------ */

static void oracle(struct query *q)
{
	uint32_t dk = seq.kc.dim, dv = seq.vc.dim;
	static double score[TOKENS];

	for (uint32_t r = 0; r < q->s.n_rows; r++) {
		double max = -INFINITY, sum = 0;

		memset(q->want + (size_t)r * dv, 0, dv * sizeof(double));
		for (uint32_t t = 0; t < seq.n; t++) {
			double s = 0;

			for (uint32_t i = 0; i < dk; i++)
				s += (double)q->q[r * dk + i] * (double)seq.k[t * dk + i];
			if (q->s.softcap > 0)
				s = (double)q->s.softcap * tanh(s / (double)q->s.softcap);
			score[t] = t >= q->lo[r] && t <= q->pos[r] ? s : -INFINITY;
			max = score[t] > max ? score[t] : max;
		}
		for (uint32_t t = 0; max > -INFINITY && t < seq.n; t++) {
			double w = exp(score[t] - max);

			sum += w;
			for (uint32_t i = 0; i < dv; i++)
				q->want[r * dv + i] += w * (double)seq.v[t * dv + i];
		}
		for (uint32_t i = 0; sum > 0 && i < dv; i++)
			q->want[r * dv + i] /= sum;
		q->want_lse[r] = sum > 0 ? max + log(sum) : -INFINITY;
	}
}

/* --- running --------------------------------------------------------------------------------- */

static void run_fp16(struct query *q, uint32_t from, uint32_t to)
{
	uint32_t dk = seq.kc.dim, dv = seq.vc.dim;

	if (from < to)
		tested.attn_rows(&q->s, seq.k16 + (size_t)from * dk, dk,
				 seq.v16 + (size_t)from * dv, dv, to - from, from);
}

/* Tokens first..end-1 of a page, counted from its start. */
static void run_page(struct query *q, uint32_t page, uint32_t first, uint32_t end)
{
	struct skvq_page_planes planes = {seq.k_codes[page], seq.k_params[page], seq.v_codes[page],
					  seq.v_params[page],
					  seq.kc.nested ? seq.k_refine[page] : NULL};

	tested.attn_pages(&q->s, &seq.kc, &seq.vc, &planes, 1, 0, first, end, page * 80);
}

static uint32_t page_first(uint32_t page)
{
	return seq.sinks > page * 80 ? seq.sinks - page * 80 : 0;
}

static uint32_t page_end(uint32_t page)
{
	return seq.paged - page * 80 < 80 ? seq.paged - page * 80 : 80;
}

static void run_finish(struct query *q)
{
	float *out[ROWS];

	for (uint32_t r = 0; r < q->s.n_rows; r++)
		out[r] = q->out + (size_t)r * seq.vc.dim;
	tested.attn_finish(&q->s, &seq.vc, &seq.tv, out, q->lse);
}

static void run(struct query *q)
{
	tested.attn_begin(&q->s);
	run_fp16(q, 0, seq.sinks);
	for (uint32_t page = 0; page * 80 < seq.paged; page++)
		if (page_first(page) < page_end(page))
			run_page(q, page, page_first(page), page_end(page));
	run_fp16(q, seq.paged > seq.sinks ? seq.paged : seq.sinks, seq.n);
	run_finish(q);
}

/* Values are unit Gaussian, so an absolute bound is a relative one. */
#define OUT_BOUND 5e-6
#define LSE_BOUND 1e-5

static void compare(const struct query *q, const char *what)
{
	uint32_t dv = seq.vc.dim;

	for (uint32_t r = 0; r < q->s.n_rows; r++) {
		for (uint32_t i = 0; i < dv; i++) {
			double have = (double)q->out[r * dv + i], want = q->want[r * dv + i];

			if (!(fabs(have - want) < OUT_BOUND))
				fail_msg("%s: row %u channel %u is %.9g, not %.9g", what, r, i,
					 have, want);
		}
		if (isinf(q->want_lse[r]))
			assert_true(isinf(q->lse[r]) && q->lse[r] < 0);
		else if (!(fabs((double)q->lse[r] - q->want_lse[r]) < LSE_BOUND))
			fail_msg("%s: row %u lse is %.9g, not %.9g", what, r, (double)q->lse[r],
				 q->want_lse[r]);
	}
}

/* --- tests ----------------------------------------------------------------------------------- */

static void random_sequences(void **state)
{
	static const char *const profiles[] = {
	    "k2v1.5",
	    "k2v2",
	    "k3v2",
	    "k4v4",
	    "k8v8",
	    "k1.5v1.5",
	    "k2v2-g32",
	    "plain-k3v4-g64",
	    "affine-k2v2-g64",
	    "affine-k4v1.5-g32",
	    "fp16",
	};
	static const uint32_t dims[] = {64, 128, 256, 80, 96, 192, 16};

	(void)state;
	for (uint32_t i = 0; i < 77; i++) {
		const char *profile = profiles[i % 11];
		uint32_t dk = dims[i % 7], dv = i % 5 == 4 ? dims[(i + 1) % 7] : dk;
		uint32_t n = 1 + seeded_below(&rng, i % 3 ? 300 : 60),
			 heads = 1 + seeded_below(&rng, 8);
		uint32_t n_query = 1 + seeded_below(&rng, seeded_below(&rng, 2) ? 64 / heads : 2);
		uint32_t sliding = seeded_below(&rng, 3) ? 0 : 1 + seeded_below(&rng, n);
		float softcap = seeded_below(&rng, 3) ? 0.0f : 5.0f;
		char what[96];

		snprintf(what, sizeof(what),
			 "%s D=%u/%u n=%u heads=%u queries=%u sliding=%u cap=%g", profile, dk, dv,
			 n, heads, n_query, sliding, (double)softcap);
		sequence_make(profile, dk, dv, n, seeded_below(&rng, 24),
			      1 + seeded_below(&rng, 150));
		query_make(&query, heads, n_query, n - 1, sliding, softcap, 2.0f);
		oracle(&query);
		run(&query);
		compare(&query, what);
	}
}

/* Sharp queries: a maximum that climbs from tile to tile, and weights that underflow. */
static void peaked_scores(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 6; i++) {
		sequence_make("k4v4", 64, 64, 300, 5, 40);
		query_make(&query, 4, 3, 299, 0, 0.0f, 12.0f);
		for (uint32_t t = 0; i % 2 && t < 64; t++) /* follows the last token: climbs late */
			query.q[t] = seq.k[299 * 64 + t] * 2.0f;
		memcpy(query.q_stored, query.q, sizeof(query.q));
		for (uint32_t r = 0; r < query.s.n_rows; r++)
			ref.query_to_stored(&seq.kc, &seq.tk, query.q_stored + r * 64);
		oracle(&query);
		run(&query);
		/* Scores near 100 have an ulp near 8e-6: bounds in proportion. */
		for (uint32_t r = 0; r < query.s.n_rows; r++) {
			for (uint32_t c = 0; c < 64; c++)
				assert_true(fabs((double)query.out[r * 64 + c] -
						 query.want[r * 64 + c]) < 2e-4);
			assert_true(fabs((double)query.lse[r] - query.want_lse[r]) <
				    1e-5 + 1e-6 * fabs(query.want_lse[r]));
		}
	}
}

static void rows_that_see_nothing(void **state)
{
	(void)state;
	sequence_make("k2v1.5", 64, 64, 200, 5, 40);
	query_make(&query, 8, 1, 199, 0, 0.0f, 2.0f);
	query.lo[1] = 200; /* beyond the end */
	query.pos[1] = 300;
	query.lo[2] = 100; /* an empty interval */
	query.pos[2] = 99;
	query.pos[3] = 2;  /* sinks only */
	query.lo[4] = 199; /* the last token only */
	query.lo[5] = 17;
	query.pos[5] = 17; /* one token of a page */
	query.lo[6] = UINT32_MAX;
	query.pos[6] = UINT32_MAX;
	oracle(&query);
	run(&query);
	compare(&query, "masks");
	for (uint32_t c = 0; c < 64; c++)
		assert_true(query.out[64 + c] == 0.0f && query.out[128 + c] == 0.0f &&
			    query.out[6 * 64 + c] == 0.0f);
	/* Nobody sees anything at all. */
	for (uint32_t r = 0; r < 8; r++)
		query.lo[r] = query.pos[r] = 1000;
	oracle(&query);
	run(&query);
	compare(&query, "all masked");
}

static void begin_and_finish_alone(void **state)
{
	(void)state;
	sequence_make("k2v2", 64, 64, 64, 0, 0);
	query_make(&query, 2, 1, 63, 0, 0.0f, 1.0f);
	tested.attn_begin(&query.s);
	run_finish(&query);
	for (uint32_t c = 0; c < 128; c++)
		assert_true(query.out[c] == 0.0f);
	assert_true(isinf(query.lse[0]) && query.lse[0] < 0);
}

/* Any order, any cut: rows in pieces, pages in halves, queries one by one. */
static void splitting(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 8; i++) {
		static const char *const profiles[] = {"k2v1.5", "affine-k3v2-g32", "fp16",
						       "k4v4-g32"};
		uint32_t window;

		sequence_make(profiles[i % 4], i % 2 ? 64 : 128, 64, 330, 5, 60);
		query_make(&query, 3, 4, 329, i % 3 ? 0 : 100, 0.0f, 3.0f);
		oracle(&query);
		run(&query);
		compare(&query, "whole");

		again = query;
		again.s.q = again.q;
		again.s.q_stored = again.q_stored;
		again.s.pos = again.pos;
		again.s.lo = again.lo;
		again.s.max = again.max;
		again.s.sum = again.sum;
		again.s.acc = again.acc;
		again.s.acc_stored = again.acc_stored;
		tested.attn_begin(&again.s);
		window = seq.paged;
		for (uint32_t at = seq.n; at > window;) { /* backwards, in odd pieces */
			uint32_t n = 1 + seeded_below(&rng, 21), from;

			from = at - window > n ? at - n : window;
			run_fp16(&again, from, at);
			at = from;
		}
		for (uint32_t page = seq.paged / 80 + 1; page-- > 0;) {
			uint32_t first = page_first(page), end, middle;

			if (page * 80 >= seq.paged)
				continue;
			end = page_end(page);
			middle = 16 * seeded_below(&rng, end / 16 + 1);
			if (middle < end)
				run_page(&again, page, first > middle ? first : middle, end);
			if (first < middle)
				run_page(&again, page, first, middle);
		}
		run_fp16(&again, 0, seq.sinks);
		run_finish(&again);
		compare(&again, "in pieces");
	}
}

static void rows_do_not_depend_on_company(void **state)
{
	uint32_t dv;

	(void)state;
	sequence_make("k3v2", 128, 128, 330, 5, 60);
	query_make(&query, 8, 8, 329, 0, 0.0f, 3.0f);
	run(&query);
	dv = seq.vc.dim;
	for (uint32_t r = 0; r < 64; r += 7) {
		again = query;
		again.s.n_rows = 1;
		again.s.q = query.q + r * 128;
		again.s.q_stored = query.q_stored + r * 128;
		again.s.pos = query.pos + r;
		again.s.lo = query.lo + r;
		again.s.max = again.max;
		again.s.sum = again.sum;
		again.s.acc = again.acc;
		again.s.acc_stored = again.acc_stored;
		memset(again.out, 0xa5, sizeof(again.out));
		run(&again);
		assert_memory_equal(again.out, query.out + r * dv, dv * sizeof(float));
		assert_memory_equal(again.lse, query.lse + r, sizeof(float));
		for (uint32_t i = dv; i < 2 * dv; i++) /* rows beyond n_rows */
			assert_int_equal(((uint8_t *)again.out)[4 * i], 0xa5);
	}
}

/* Two parts merged by their lse are the whole: what threads and engines rely on. */
static void lse_merges(void **state)
{
	(void)state;
	sequence_make("k4v4", 64, 64, 330, 0, 60);
	query_make(&query, 4, 2, 329, 0, 0.0f, 3.0f);
	oracle(&query);
	tested.attn_begin(&query.s);
	for (uint32_t page = 0; page < 2; page++)
		run_page(&query, page, 0, 80);
	run_finish(&query);
	again = query;
	tested.attn_begin(&query.s);
	for (uint32_t page = 2; page * 80 < seq.paged; page++)
		run_page(&query, page, 0, page_end(page));
	run_fp16(&query, seq.paged, seq.n);
	run_finish(&query);
	for (uint32_t r = 0; r < 8; r++) {
		double a = exp((double)again.lse[r] - query.want_lse[r]);
		double b = exp((double)query.lse[r] - query.want_lse[r]);

		assert_true(fabs(a + b - 1.0) < 1e-5);
		for (uint32_t c = 0; c < 64; c++)
			assert_true(fabs(a * (double)again.out[r * 64 + c] +
					 b * (double)query.out[r * 64 + c] -
					 query.want[r * 64 + c]) < OUT_BOUND);
	}
}

static void odd_queries_do_no_harm(void **state)
{
	static const float odd[] = {NAN, NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f};

	(void)state;
	sequence_make("k2v1.5", 64, 64, 200, 5, 40);
	for (uint32_t i = 0; i < 7; i++) {
		query_make(&query, 4, 1, 199, 0, i % 2 ? 30.0f : 0.0f, 2.0f);
		for (uint32_t c = 0; c < 64; c++)
			query.q[c] = query.q_stored[c] = odd[i];
		query.q[64] = query.q_stored[64] = odd[i];
		oracle(&query);
		run(&query);
		/* A NaN score is no score. */
		for (uint32_t c = 0; i < 2 && c < 2 * 64; c++)
			assert_true(query.out[c] == 0.0f && query.lse[c / 64] == -INFINITY);
		/* The other rows do not notice. */
		for (uint32_t c = 2 * 64; c < 4 * 64; c++)
			assert_true(fabs((double)query.out[c] - query.want[c]) < OUT_BOUND);
	}
}

/* Infinite V behind the mask must not leak: 0 * inf is NaN. */
static void masked_tokens_do_not_leak(void **state)
{
	(void)state;
	sequence_make("k2v2", 64, 64, 60, 0, 60);
	for (uint32_t c = 0; c < 64; c++)
		seq.v16[50 * 64 + c] = seq.k16[51 * 64 + c] = c % 2 ? 0x7c00 : 0x7e00;
	query_make(&query, 2, 1, 49, 0, 0.0f, 2.0f);
	seq.n = 50;
	oracle(&query);
	seq.n = 60;
	run(&query);
	compare(&query, "masked");
}

/* --- all tiers ------------------------------------------------------------------------------- */

enum shape { FLAT, PEAKED, HEAVY_TAIL, SHAPES };

/* Scores of standard deviation .1; one token 20 above the rest; a few tokens with most of the mass
 * and many with little (scores of deviation 3, a lognormal). */
static void query_shape(struct query *q, enum shape shape, uint32_t heads)
{
	static const float sharp[SHAPES] = {0.1f, 1.0f, 3.0f};
	uint32_t dk = seq.kc.dim;

	query_make(q, heads, 1, seq.n - 1, 0, 0.0f, sharp[shape]);
	for (uint32_t r = 0; shape == PEAKED && r < heads; r++) {
		const float *k = seq.k + (size_t)seeded_below(&rng, seq.paged) * dk;
		float norm = 0.0f;

		for (uint32_t i = 0; i < dk; i++)
			norm += k[i] * k[i];
		for (uint32_t i = 0; i < dk; i++)
			q->q[r * dk + i] += 20.0f * k[i] / norm;
		memcpy(q->q_stored + r * dk, q->q + r * dk, dk * sizeof(float));
		ref.query_to_stored(&seq.kc, &seq.tk, q->q_stored + r * dk);
	}
}

/* The largest |out - want| / |want| of a row. */
static double query_error(const struct query *q)
{
	uint32_t dv = seq.vc.dim;
	double worst = 0.0;

	for (uint32_t r = 0; r < q->s.n_rows; r++) {
		double error = 0.0, norm = 0.0;

		for (uint32_t i = 0; i < dv; i++) {
			double want = q->want[r * dv + i], d = (double)q->out[r * dv + i] - want;

			error += d * d;
			norm += want * want;
		}
		worst = fmax(worst, sqrt(error / norm));
	}
	return worst;
}

static void tier_error(const char *tier, double *ret_worst)
{
	static const char *const profiles[] = {"k2v1.5",          "k1.5v2", "k3v3-g32",
					       "k4v4-g64",        "k8v8",   "affine-k2v2-g64",
					       "affine-k8v4-g32", "fp16"};
	static const uint32_t dims[] = {128, 64, 96, 256}, heads[] = {1, 2, 4, 33};

	skvq_kernels_fill(&tested, skvq_tiers_by_name(tier));
	assert_string_equal(tested.tier, tier);
	for (uint32_t i = 0; i < 32; i++) {
		sequence_make(profiles[i % 8], dims[i / 8], dims[i / 8], 720, 5, 48);
		for (int shape = FLAT; shape < SHAPES; shape++) {
			double error;

			query_shape(&query, (enum shape)shape, heads[(i + i / 8) % 4]);
			query.s.prep = i % 2 ? query.prep : NULL;
			oracle(&query);
			run(&query);
			error = query_error(&query);
			ret_worst[shape] = fmax(ret_worst[shape], error);
			if (!(error <= (double)SKVQ_ATTN_ERROR_MAX))
				fail_msg("%s, %s, D %u, shape %d: off by %g of the norm", tier,
					 profiles[i % 8], seq.kc.dim, shape, error);
		}
	}
}

static void tiers_keep_the_bound(void **state)
{
	static const char *const names[] = {"ref", "avx2", "avx512", "neon"};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		double worst[SHAPES] = {0};

		if (skvq_tiers_by_name(names[i]) & ~skvq_cpu_tiers())
			continue;
		tier_error(names[i], worst);
		printf("%s: off by %.1e flat, %.1e peaked, %.1e heavy-tailed\n", names[i],
		       worst[FLAT], worst[PEAKED], worst[HEAVY_TAIL]);
	}
	skvq_kernels_fill(&tested, SKVQ_TIER_REF);
}

static void exp_and_tanh(void **state)
{
	double worst = 0, worst_tanh = 0;
	float at = 0;

	(void)state;
	for (uint32_t i = 0; i < 4000000; i++) {
		float x = i < 2000000 ? -87.0f * (float)i / 2000000.0f
				      : -expf(-20.0f + 24.4f * (float)(i - 2000000) / 2000000.0f);
		double want, ulp, error;

		if (x < -87.0f)
			continue;
		want = exp((double)x);
		ulp = ldexp(1.0, ilogb(want) - 23);
		error = fabs((double)exp_nonpositive(x) - want) / ulp;
		if (error > worst) {
			worst = error;
			at = x;
		}
	}
	for (int i = -400000; i <= 400000; i++) {
		float x = (float)i * 5e-5f;
		double error = fabs((double)tanh_capped(x) - tanh((double)x));

		worst_tanh = error > worst_tanh ? error : worst_tanh;
	}
	printf("exp within %.3f ulp (at %g), tanh within %.3g\n", worst, (double)at, worst_tanh);
	assert_true(worst < 2.0);
	assert_true(worst_tanh < 2e-7);
	assert_true(exp_nonpositive(0.0f) == 1.0f);
	assert_true(exp_nonpositive(-87.0f) > 0.0f);
	assert_true(exp_nonpositive(-87.01f) == 0.0f);
	assert_true(exp_nonpositive(-INFINITY) == 0.0f);
	assert_true(exp_nonpositive(NAN) == 0.0f);
	assert_true(exp_nonpositive(INFINITY) == 1.0f);
	assert_true(tanh_capped(INFINITY) == 1.0f && tanh_capped(-INFINITY) == -1.0f);
}

static int setup(void **state)
{
	(void)state;
	rng = seeded_init();
	skvq_kernels_fill(&ref, SKVQ_TIER_REF);
	skvq_kernels_fill(&tested, SKVQ_TIER_REF);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_sequences),
	    cmocka_unit_test(peaked_scores),
	    cmocka_unit_test(rows_that_see_nothing),
	    cmocka_unit_test(begin_and_finish_alone),
	    cmocka_unit_test(splitting),
	    cmocka_unit_test(rows_do_not_depend_on_company),
	    cmocka_unit_test(lse_merges),
	    cmocka_unit_test(odd_queries_do_no_harm),
	    cmocka_unit_test(masked_tokens_do_not_leak),
	    cmocka_unit_test(tiers_keep_the_bound),
	    cmocka_unit_test(exp_and_tanh),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
