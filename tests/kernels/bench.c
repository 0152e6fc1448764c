/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of the calls that matter, on inputs of the sizes that matter; L2-resident, one thread, the
 * median of nine runs. For figures against memory and peers see tools/bench.
 */
#include "check.h"

#include <string.h>
#include <time.h>

#define RUNS   9
#define RUN_NS 4e6 /* long against the clock's step, short against a time slice */
#define PAGES  8
#define ROWS   SKVQ_ATTN_ROWS_MAX

static double now_ns(void)
{
	struct timespec t;

	/* The thread's own time: what else runs on the machine takes cache from it, not time. */
	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Median time of one call of fn(arg). */
static double measure(void (*fn)(void *), void *arg)
{
	double times[RUNS];
	unsigned long n = 1;

	for (int run = -1; run < RUNS;) {
		double start = now_ns(), ns;

		for (unsigned long i = 0; i < n; i++)
			fn(arg);
		ns = now_ns() - start;
		if (ns < RUN_NS / 2) {
			n = ns < RUN_NS / 64 ? n * 8 : (unsigned long)((double)n * RUN_NS / ns) + 1;
			continue;
		}
		if (run >= 0) /* the first long one warms up */
			times[run] = ns / (double)n;
		run++;
	}
	qsort(times, RUNS, sizeof(times[0]), by_value);
	return times[RUNS / 2];
}

static void report(const struct check_tier *tier, const char *function, const char *codec,
		   uint32_t dim, const char *more, double ns, const char *unit, bool json)
{
	if (json)
		printf(", \"%s.%s.%s.d%u%s_ns\": %.3f", function, tier->k.tier, codec, dim, more,
		       ns);
	else
		printf("%-12s %-6s %-16s D=%-4u %-6s %9.2f %s\n", function, tier->k.tier, codec,
		       dim, *more ? more + 1 : "", ns, unit);
}

static void codecs_of(const char *profile, uint32_t dim, struct skvq_codec *k, struct skvq_codec *v)
{
	struct skvq_profile p;

	if (skvq_profile_parse(profile, &p) < 0 || skvq_codec_init(&p, 0, p.k_bits, dim, k) < 0 ||
	    skvq_codec_init(&p, 1, p.v_bits, dim, v) < 0)
		abort();
}

/* --- encode_tile ----------------------------------------------------------------------------- */

struct encode_run {
	const struct skvq_kernels *k;
	struct skvq_codec codec;
	const float *input;
	float rows[16 * SKVQ_HEAD_DIM_MAX];
	_Alignas(64) uint8_t codes[80 * 2 * SKVQ_HEAD_DIM_MAX];
	uint8_t params[16 * 80];
};

static void encode_once(void *arg)
{
	struct encode_run *r = arg;

	memcpy(r->rows, r->input, 16u * r->codec.dim * sizeof(float));
	r->k->encode_tile(&r->codec, NULL, r->rows, 0, r->codes, r->params);
}

static void bench_encode(const struct check_tier *tier, bool json)
{
	static const char *const profiles[] = {
	    "k8v8", "k4v4", "k3v3", "k2v2", "k1.5v1.5", "affine-k2v2-g64", "fp16"};
	static struct encode_run r;
	static float input[16 * SKVQ_HEAD_DIM_MAX];
	struct seeded rng = {1};
	struct skvq_codec v;

	input_fill(&rng, 0, input, sizeof(input) / sizeof(input[0]));
	r.k = &tier->k;
	r.input = input;
	for (size_t i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++) {
		for (uint32_t dim = 64; dim <= 128; dim *= 2) {
			codecs_of(profiles[i], dim, &r.codec, &v);
			report(tier, "encode_tile", profiles[i], dim, "",
			       measure(encode_once, &r) / 16.0, "ns per vector", json);
		}
	}
}

/* --- attn_page, attn_rows -------------------------------------------------------------------- */

struct attn_run {
	const struct skvq_kernels *k;
	struct skvq_codec kc, vc;
	struct skvq_attn_state s;
	uint32_t pos[ROWS], lo[ROWS];
	float max[ROWS], sum[ROWS];
	float q[ROWS * 128], acc[ROWS * 128], acc_stored[ROWS * 128];
	_Alignas(64) uint8_t k_codes[PAGES][80 * 2 * 128], v_codes[PAGES][80 * 2 * 128];
	uint8_t k_params[PAGES][8 * 80], v_params[PAGES][8 * 80];
};

static void pages_once(void *arg)
{
	struct attn_run *r = arg;

	r->k->attn_begin(&r->s);
	for (uint32_t i = 0; i < PAGES; i++)
		r->k->attn_page(&r->s, &r->kc, &r->vc, r->k_codes[i], r->k_params[i], r->v_codes[i],
				r->v_params[i], 0, 80, i * 80);
}

static void rows_once(void *arg)
{
	struct attn_run *r = arg;

	r->k->attn_begin(&r->s);
	for (uint32_t i = 0; i < PAGES; i++)
		r->k->attn_rows(&r->s, (const uint16_t *)r->k_codes[i], r->kc.dim,
				(const uint16_t *)r->v_codes[i], r->vc.dim, 80, i * 80);
}

static void attn_setup(struct attn_run *r, const struct check_tier *tier, const char *profile,
		       uint32_t dim)
{
	static float rows[16 * 128];
	struct seeded rng = {1};

	memset(r, 0, sizeof(*r));
	r->k = &tier->k;
	codecs_of(profile, dim, &r->kc, &r->vc);
	for (uint32_t i = 0; i < PAGES; i++) {
		for (uint32_t t = 0; t < 5; t++) {
			input_fill(&rng, 0, rows, 16u * dim);
			tier->k.encode_tile(&r->kc, NULL, rows, t, r->k_codes[i], r->k_params[i]);
			input_fill(&rng, 0, rows, 16u * dim);
			tier->k.encode_tile(&r->vc, NULL, rows, t, r->v_codes[i], r->v_params[i]);
		}
	}
	for (uint32_t i = 0; i < ROWS * 128; i++)
		r->q[i] = seeded_gauss(&rng) / sqrtf((float)dim);
	for (uint32_t i = 0; i < ROWS; i++)
		r->pos[i] = PAGES * 80;
	r->s = (struct skvq_attn_state){
	    .dim_k = dim,
	    .dim_v = dim,
	    .q = r->q,
	    .q_stored = r->q,
	    .pos = r->pos,
	    .lo = r->lo,
	    .max = r->max,
	    .sum = r->sum,
	    .acc = r->acc,
	    .acc_stored = r->acc_stored,
	};
}

static void bench_attn(const struct check_tier *tier, const char *function, void (*once)(void *),
		       const char *const *profiles, size_t n, bool json)
{
	static const uint32_t n_rows[] = {1, 4, 64};
	static struct attn_run r;

	for (size_t i = 0; i < n; i++) {
		for (uint32_t dim = 64; dim <= 128; dim *= 2) {
			attn_setup(&r, tier, profiles[i], dim);
			for (size_t g = 0; g < 3; g++) {
				char more[16];

				r.s.n_rows = n_rows[g];
				snprintf(more, sizeof(more), ".r%u", n_rows[g]);
				report(tier, function, profiles[i], dim, more,
				       measure(once, &r) / (PAGES * 80.0),
				       "ns per token and KV head", json);
			}
		}
	}
}

void bench(const struct check_tier *tier, const char *function, bool json)
{
	static const char *const pages[] = {"k2v1.5",          "k2v2", "k3v2", "k4v4", "k8v8",
					    "affine-k2v2-g64", "fp16"};
	static const char *const rows[] = {"fp16"};

	if (!function || strcmp(function, "encode_tile") == 0)
		bench_encode(tier, json);
	if (!function || strcmp(function, "attn_page") == 0)
		bench_attn(tier, "attn_page", pages_once, pages, sizeof(pages) / sizeof(pages[0]),
			   json);
	if (!function || strcmp(function, "attn_rows") == 0)
		bench_attn(tier, "attn_rows", rows_once, rows, 1, json);
}
