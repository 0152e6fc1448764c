/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of the calls that matter, on inputs of the sizes that matter; one thread, its CPU time, the
 * median of nine runs. L2-resident but for "decode", which reads a long context from DRAM and says
 * beside it how fast this core reads DRAM. For figures against peers see tools/bench.
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
		printf("%-16s %-6s %-16s D=%-4u %-6s %9.2f %s\n", function, tier->k.tier, codec,
		       dim, *more ? more + 1 : "", ns, unit);
}

static void codecs_of(const char *profile, uint32_t dim, struct skvq_codec *k, struct skvq_codec *v)
{
	struct skvq_profile p;

	if (skvq_profile_parse(profile, &p) < 0 || skvq_codec_init(&p, 0, p.k_bits, dim, k) < 0 ||
	    skvq_codec_init(&p, 1, p.v_bits, dim, v) < 0)
		abort();
}

/* --- tiles and transforms -------------------------------------------------------------------- */

struct tile_run {
	const struct skvq_kernels *k;
	struct skvq_codec codec;
	const struct skvq_transform *transform;
	const float *input;
	float rows[16 * SKVQ_HEAD_DIM_MAX];
	uint16_t halves[16 * SKVQ_HEAD_DIM_MAX];
	_Alignas(64) uint8_t codes[80 * 2 * SKVQ_HEAD_DIM_MAX];
	uint8_t params[16 * 80];
	_Alignas(64) uint8_t refine[20 * SKVQ_HEAD_DIM_MAX];
};

static void encode_tile_once(void *arg)
{
	struct tile_run *r = arg;

	memcpy(r->rows, r->input, 16u * r->codec.dim * sizeof(float));
	r->k->encode_tile(&r->codec, r->transform, r->rows, 0, r->codes, r->params,
			  r->codec.nested ? r->refine : NULL);
}

static void decode_tile_once(void *arg)
{
	struct tile_run *r = arg;

	r->k->decode_tile(&r->codec, r->codes, r->params, NULL, 0, r->rows);
}

/* What an engine's export of FP16 rows does with a tile. */
static void export_once(void *arg)
{
	struct tile_run *r = arg;

	r->k->decode_tile(&r->codec, r->codes, r->params, NULL, 0, r->rows);
	r->k->tile_from_stored(&r->codec, r->transform, r->rows);
	for (uint32_t t = 0; t < 16; t++)
		r->k->f32_to_f16(r->rows + t * r->codec.dim, r->halves + t * r->codec.dim,
				 r->codec.dim);
}

static void query_once(void *arg)
{
	struct tile_run *r = arg;

	memcpy(r->rows, r->input, 16u * r->codec.dim * sizeof(float));
	for (uint32_t t = 0; t < 16; t++)
		r->k->query_to_stored(&r->codec, r->transform, r->rows + t * r->codec.dim);
}

static void back_once(void *arg)
{
	struct tile_run *r = arg;

	memcpy(r->rows, r->input, 16u * r->codec.dim * sizeof(float));
	r->k->tile_from_stored(&r->codec, r->transform, r->rows);
}

static void bench_tile(const struct check_tier *tier, const char *function, void (*once)(void *),
		       bool json)
{
	static const char *const profiles[] = {
	    "k8v8", "k4v4", "k3v3", "k2v2", "k1.5v1.5", "affine-k4v4-g64", "affine-k2v2-g64", "fp16"};
	static struct tile_run r;
	static float input[16 * SKVQ_HEAD_DIM_MAX];
	struct seeded rng = {1};

	input_fill(&rng, 0, input, sizeof(input) / sizeof(input[0]));
	r.k = &tier->k;
	r.input = input;
	r.transform = NULL;
	for (size_t i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++) {
		for (uint32_t dim = 64; dim <= 128; dim *= 2) {
			for (int is_v = 0; is_v < 2; is_v++) {
				struct skvq_codec k, v;

				codecs_of(profiles[i], dim, &k, &v);
				r.codec = is_v ? v : k;
				encode_tile_once(&r);
				report(tier, function, profiles[i], dim, is_v ? "_v" : "_k",
				       measure(once, &r) / 16.0, "ns per vector", json);
			}
		}
	}
}

/* By rotation, by a matrix and by a map of channels. */
static void bench_transform(const struct check_tier *tier, const char *function,
			    void (*once)(void *), bool json)
{
	static const char *const by[] = {"rotation", "matrix", "map"};
	static struct tile_run r;
	static float input[16 * SKVQ_HEAD_DIM_MAX];
	struct seeded rng = {1};

	input_fill(&rng, 0, input, sizeof(input) / sizeof(input[0]));
	r.k = &tier->k;
	r.input = input;
	for (uint32_t dim = 64; dim <= 128; dim *= 2) {
		float *m = malloc((size_t)dim * dim * sizeof(float));
		uint16_t map[SKVQ_HEAD_DIM_MAX];
		struct skvq_transform t[3] = {{0}, {.into = m, .back = m}, {.reorder = map}};
		struct skvq_codec v;

		if (!m)
			abort();
		input_fill(&rng, 0, m, (size_t)dim * dim);
		for (uint32_t i = 0; i < dim; i++)
			map[i] = (uint16_t)((i * 7 + 3) % dim);
		for (int i = 0; i < 3; i++) {
			codecs_of(i == 2 ? "plain-k2v2" : "k2v2", dim, &r.codec, &v);
			r.transform = &t[i];
			report(tier, function, by[i], dim, "", measure(once, &r) / 16.0,
			       "ns per vector", json);
		}
		free(m);
	}
}

/* --- halves ---------------------------------------------------------------------------------- */

#define HALVES 2048u

struct halves_run {
	const struct skvq_kernels *k;
	float f[HALVES];
	uint16_t h[HALVES];
};

static void f16_to_f32_once(void *arg)
{
	struct halves_run *r = arg;

	r->k->f16_to_f32(r->h, r->f, HALVES);
}

static void f32_to_f16_once(void *arg)
{
	struct halves_run *r = arg;

	r->k->f32_to_f16(r->f, r->h, HALVES);
}

static void bf16_to_f32_once(void *arg)
{
	struct halves_run *r = arg;

	r->k->bf16_to_f32(r->h, r->f, HALVES);
}

static void f32_to_bf16_once(void *arg)
{
	struct halves_run *r = arg;

	r->k->f32_to_bf16(r->f, r->h, HALVES);
}

static void bench_halves(const struct check_tier *tier, const char *function, void (*once)(void *),
			 bool json)
{
	static struct halves_run r;
	struct seeded rng = {1};

	r.k = &tier->k;
	input_fill(&rng, 0, r.f, HALVES);
	r.k->f32_to_f16(r.f, r.h, HALVES);
	report(tier, function, "-", 128, "", measure(once, &r) * 128 / HALVES, "ns per vector", json);
}

static void bench_codec(const struct check_tier *tier, const char *function, bool json)
{
	static const struct {
		const char *name;
		void (*bench)(const struct check_tier *tier, const char *function,
			      void (*once)(void *), bool json);
		void (*once)(void *);
	} benches[] = {
	    {"encode_tile", bench_tile, encode_tile_once},
	    {"decode_tile", bench_tile, decode_tile_once},
	    {"export", bench_tile, export_once},
	    {"encode_tile", bench_transform, encode_tile_once},
	    {"query_to_stored", bench_transform, query_once},
	    {"tile_from_stored", bench_transform, back_once},
	    {"f16_to_f32", bench_halves, f16_to_f32_once},
	    {"f32_to_f16", bench_halves, f32_to_f16_once},
	    {"bf16_to_f32", bench_halves, bf16_to_f32_once},
	    {"f32_to_bf16", bench_halves, f32_to_bf16_once},
	};

	for (size_t i = 0; i < sizeof(benches) / sizeof(benches[0]); i++) {
		const char *of = strcmp(benches[i].name, "export") == 0 ? "decode_tile"
									 : benches[i].name;

		if (!function || strcmp(function, of) == 0)
			benches[i].bench(tier, benches[i].name, benches[i].once, json);
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
	_Alignas(64) uint8_t k_refine[PAGES][20 * 128];
	uint8_t k_params[PAGES][8 * 80], v_params[PAGES][8 * 80];
	struct skvq_page_planes pages[PAGES];
};

static void pages_once(void *arg)
{
	struct attn_run *r = arg;

	r->k->attn_begin(&r->s);
	r->k->attn_pages(&r->s, &r->kc, &r->vc, r->pages, PAGES, 0, 0, PAGES * 80, 0);
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
			tier->k.encode_tile(&r->kc, NULL, rows, t, r->k_codes[i], r->k_params[i],
					    r->kc.nested ? r->k_refine[i] : NULL);
			input_fill(&rng, 0, rows, 16u * dim);
			tier->k.encode_tile(&r->vc, NULL, rows, t, r->v_codes[i], r->v_params[i],
					    NULL);
		}
		r->pages[i] = (struct skvq_page_planes){r->k_codes[i], r->k_params[i],
							r->v_codes[i], r->v_params[i],
							r->kc.nested ? r->k_refine[i] : NULL};
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

/* --- decode: a long context that no cache holds ------------------------------------------------
 */

#define CONTEXT      131040u      /* tokens a head, whole pages                                  */
#define MEMORY_BYTES (512u << 20) /* heads are as many as fill it: beyond the largest cache seen   \
				   */
#define PASSES 3

/* Time a byte of reading all of it in four streams, which is faster than one. */
static double read_ns(const uint8_t *p, size_t bytes)
{
	uint64_t sum[4][8] = {{0}}, x[8];
	size_t quarter = bytes / 256 * 64;
	double start = now_ns();
	volatile uint64_t sink = 0;

	for (size_t at = 0; at < quarter; at += sizeof(x)) {
		for (int i = 0; i < 4; i++) {
			memcpy(x, p + quarter * (size_t)i + at, sizeof(x));
			for (int j = 0; j < 8; j++)
				sum[i][j] ^= x[j];
		}
	}
	for (int i = 0; i < 32; i++)
		sink = sink ^ sum[i / 8][i % 8];
	return (now_ns() - start) / (double)bytes;
}

/* Where a page of decode's memory has what. */
struct decode_page {
	size_t v, refine, params, stride;
};

static struct decode_page decode_layout(const struct attn_run *r)
{
	struct decode_page p;

	p.v = r->kc.head_bytes;
	p.refine = p.v + r->vc.head_bytes;
	p.params = p.refine + (r->kc.nested ? r->kc.head_bytes : 0);
	p.stride = (p.params + (r->kc.n_rows + r->vc.n_rows) * 80ul + 63) / 64 * 64;
	return p;
}

#define RUN 60u

/* One head after another over its pages, which lie side by side. base: without refinements. */
static void decode_once(struct attn_run *r, const uint8_t *memory, const struct decode_page *l,
			uint32_t heads, bool base)
{
	struct skvq_page_planes planes[RUN + 4];
	const uint32_t pages = CONTEXT / 80;

	for (uint32_t head = 0; head < heads; head++, memory += pages * l->stride) {
		r->k->attn_begin(&r->s);
		for (uint32_t at = 0; at < pages; at += RUN) {
			uint32_t n = pages - at < RUN ? pages - at : RUN;
			uint32_t ahead = pages - at - n < 4 ? pages - at - n : 4;

			for (uint32_t i = 0; i < n + ahead; i++) {
				const uint8_t *p = memory + (at + i) * l->stride;

				planes[i] = (struct skvq_page_planes){
				    p, p + l->params, p + l->v, p + l->params + r->kc.n_rows * 80ul,
				    r->kc.nested && !base ? p + l->refine : NULL};
			}
			r->k->attn_pages(&r->s, &r->kc, &r->vc, planes, n, ahead, 0, n * 80,
					 at * 80);
		}
	}
}

static void decode_report(const struct check_tier *tier, const char *profile, uint32_t dim,
			  struct attn_run *r, const uint8_t *memory, const struct decode_page *l,
			  bool base, bool json)
{
	uint32_t heads = MEMORY_BYTES / (uint32_t)(l->stride * (CONTEXT / 80));
	double times[PASSES], reads[PASSES], tokens = (double)CONTEXT * heads, per_token;
	size_t bytes = l->stride * (CONTEXT / 80) * heads;
	char more[16];

	for (int i = 0; i < PASSES; i++) { /* interleaved: neighbours come and go */
		double start = now_ns();

		decode_once(r, memory, l, heads, base);
		times[i] = (now_ns() - start) / tokens;
		reads[i] = read_ns(memory, bytes);
	}
	qsort(times, PASSES, sizeof(times[0]), by_value);
	qsort(reads, PASSES, sizeof(reads[0]), by_value);
	per_token = (double)(l->stride - (base ? r->kc.head_bytes : 0)) / 80.0;
	snprintf(more, sizeof(more), ".r%u%s", r->s.n_rows, base ? ".base" : "");
	report(tier, "decode", profile, dim, more, times[PASSES / 2], "ns per token and KV head",
	       json);
	if (!json)
		printf("%49s%9.2f is what reading its %.1f bytes takes (%.1f GB/s): %.0f %%\n", "",
		       reads[PASSES / 2] * per_token, per_token, 1 / reads[PASSES / 2],
		       100 * reads[PASSES / 2] * per_token / times[PASSES / 2]);
	else
		printf(", \"decode.%s.%s.d%u%s_share\": %.3f", tier->k.tier, profile, dim, more,
		       reads[PASSES / 2] * per_token / times[PASSES / 2]);
}

static void bench_decode(const struct check_tier *tier, const char *profile, uint32_t dim,
			 bool json)
{
	static const uint32_t n_rows[] = {1, 4, 8};
	static struct attn_run r;
	static uint32_t prep[SKVQ_ATTN_PREP_BYTES / 4];
	struct decode_page l;
	uint8_t *memory;
	size_t pages;

	attn_setup(&r, tier, profile, dim);
	l = decode_layout(&r);
	pages = MEMORY_BYTES / l.stride;
	memory = aligned_alloc(64, l.stride * pages);
	if (!memory)
		abort();
	for (size_t i = 0; i < pages; i++) {
		uint8_t *p = memory + i * l.stride;

		memset(p, 0, l.stride);
		memcpy(p, r.k_codes[i % PAGES], r.kc.head_bytes);
		memcpy(p + l.v, r.v_codes[i % PAGES], r.vc.head_bytes);
		if (r.kc.nested)
			memcpy(p + l.refine, r.k_refine[i % PAGES], r.kc.head_bytes);
		memcpy(p + l.params, r.k_params[i % PAGES], r.kc.n_rows * 80ul);
		memcpy(p + l.params + r.kc.n_rows * 80ul, r.v_params[i % PAGES],
		       r.vc.n_rows * 80ul);
	}
	for (uint32_t i = 0; i < ROWS; i++)
		r.pos[i] = CONTEXT;
	r.s.prep = prep;
	for (size_t g = 0; g < 3; g++) {
		r.s.n_rows = n_rows[g];
		decode_report(tier, profile, dim, &r, memory, &l, false, json);
		if (r.kc.nested)
			decode_report(tier, profile, dim, &r, memory, &l, true, json);
	}
	free(memory);
}

void bench(const struct check_tier *tier, const char *function, bool json)
{
	static const char *const pages[] = {"k2v1.5", "k2v2", "e2.1",            "k3v2",
					    "k4v4",   "k8v8", "affine-k2v2-g64", "fp16"};
	static const char *const rows[] = {"fp16"};

	bench_codec(tier, function, json);
	if (!function || strcmp(function, "attn_pages") == 0)
		bench_attn(tier, "attn_pages", pages_once, pages, sizeof(pages) / sizeof(pages[0]),
			   json);
	if (!function || strcmp(function, "attn_pages") == 0) {
		bench_decode(tier, "k2v1.5", 64, json);
		bench_decode(tier, "k2v1.5", 128, json);
		bench_decode(tier, "k4v4", 128, json);
		bench_decode(tier, "e2.1", 128, json);
	}
	if (!function || strcmp(function, "attn_rows") == 0)
		bench_attn(tier, "attn_rows", rows_once, rows, 1, json);
}
