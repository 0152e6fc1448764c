/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <skvq/kernels.h>

#define HEADS        8u
#define PROFILE      "k2v1.5"
#define LONG_TOKENS  (UINT32_C(1) << 20)
#define LONG_LAYERS  32u
#define LONG_RESERVE ((size_t)3 << 30) /* memory that must be left beside the long sequence */

static const char help[] =
    "usage: bench-attention [options]\n\n"
    "Our attention call and ggml's flash attention over the same keys and values in DRAM, in "
    "turn.\n\n"
    "  --quick          few shapes; under a minute\n"
    "  --full           all shapes, and 1M tokens of 32 layers (16 GiB)\n"
    "  --only PART      decode, profiles, rotation, prefill, batch, threads or long (1M tokens)\n"
    "  --threads N      of both sides; default 1\n"
    "  --rounds N       default 7, quick 5\n"
    "  --tokens N       no context longer than this\n"
    "  --working-set N  MiB that each side goes through; default 512, beyond any L3\n"
    "  --plot FILE      .svg or .png; wants python3-matplotlib\n"
    "  --json           the last line is one flat object: tier, threads, headline_tokens,\n"
    "                   speedup_f16_g1, speedup_f16_g4, speedup_q8_0_g1, speedup_q8_0_g4,\n"
    "                   speedup_q4_0_g1, speedup_q4_0_g4, bandwidth_share_g1,\n"
    "                   prefill_ratio_f16, shared_batch4_gain, threads2_scaling, rotation_share,\n"
    "                   and what each shape took: d<D>_g<G>_c<tokens>_...\n\n"
    "SKVQ_CPU=avx2 measures that tier of ours; ggml is what it was built for.\n";

size_t working_set = (size_t)512 << 20;

enum size { QUICK, STANDARD, FULL };

struct run {
	enum size size;
	uint32_t rounds, tokens_max;
	bool wall;
	struct team *team;
	struct reader *reader;
};

/* --- inputs ----------------------------------------------------------------------------------- */

static double uniform(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	*state = x;
	return ((double)(x >> 11) + 0.5) / 9007199254740992.0;
}

static void gauss(uint64_t *state, float *to, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (float)(sqrt(-2 * log(uniform(state))) *
				cos(6.283185307179586 * uniform(state)));
}

void base_make(struct base *b, const struct shape *s)
{
	size_t n = (size_t)BASE_TOKENS * s->dim,
	       n_q = (size_t)s->rows * s->heads * s->group * s->dim;
	uint64_t state = 0x9e3779b97f4a7c15u;

	b->dim = s->dim;
	b->k = take(n * sizeof *b->k);
	b->v = take(n * sizeof *b->v);
	b->q = take(n_q * sizeof *b->q);
	gauss(&state, b->k, n);
	gauss(&state, b->v, n);
	gauss(&state, b->q, n_q);
}

void base_free(struct base *b)
{
	free(b->k);
	free(b->v);
	free(b->q);
}

/* --- parts of a report ------------------------------------------------------------------------ */

static double error_between(const float *a, const double *b, size_t n)
{
	double diff = 0, norm = 0;

	for (size_t i = 0; i < n; i++) {
		diff += (a[i] - b[i]) * (a[i] - b[i]);
		norm += b[i] * b[i];
	}
	return sqrt(diff / norm);
}

__attribute__((format(printf, 2, 3))) static void put(double value, const char *format, ...)
{
	char key[96];
	va_list args;

	va_start(args, format);
	vsnprintf(key, sizeof key, format, args);
	va_end(args);
	put_number(key, value);
}

static size_t out_floats(const struct shape *s)
{
	return (size_t)s->rows * s->heads * s->group * s->dim;
}

/* Layer 0 in double precision. A base row counts as often as it comes among the tokens seen. */
static void exact(const struct shape *s, const struct base *b, double *out)
{
	uint32_t q_heads = s->heads * s->group, count[BASE_TOKENS];
	double p[BASE_TOKENS];

	for (uint32_t i = 0; i < s->rows * q_heads; i++) {
		const float *q = b->q + (size_t)i * s->dim;
		uint32_t head = i % q_heads / s->group,
			 seen = s->tokens - s->rows + i / q_heads + 1;
		double max = -INFINITY, sum = 0, *to = out + (size_t)i * s->dim;

		memset(count, 0, sizeof count);
		memset(to, 0, s->dim * sizeof *to);
		for (uint32_t t = 0; t < seen; t++)
			count[base_row(t, head, 0)]++;
		for (uint32_t j = 0; j < BASE_TOKENS; j++) {
			p[j] = 0;
			for (uint32_t d = 0; d < s->dim; d++)
				p[j] += (double)q[d] * b->k[(size_t)j * s->dim + d];
			p[j] /= sqrt(s->dim);
			max = count[j] && p[j] > max ? p[j] : max;
		}
		for (uint32_t j = 0; j < BASE_TOKENS; j++)
			sum += p[j] = count[j] * exp(p[j] - max);
		for (uint32_t j = 0; j < BASE_TOKENS; j++)
			for (uint32_t d = 0; d < s->dim; d++)
				to[d] += p[j] / sum * b->v[(size_t)j * s->dim + d];
	}
}

#define F16_ERROR_MAX 0.5

/* What the codec may lose of Gaussian keys and values: far above what it does, far below 1.4, the
 * distance of unrelated vectors. */
static double error_limit(const char *profile)
{
	if (strstr(profile, "k8v8"))
		return 0.03;
	return strstr(profile, "k4v4") ? 0.3 : 0.9;
}

struct errors {
	double ours, theirs;
};

/* The first unit of both sides holds the same keys and values, and both must be near the exact
 * result. ggml's F16 is not the measure: it sums in half precision where the CPU can. */
static struct errors check_outputs(struct contestant *ours, const struct store *st,
				   struct contestant *theirs, const struct peer *p,
				   const struct shape *s, const struct base *b, const char *profile)
{
	double *reference = take(out_floats(s) * sizeof *reference);
	struct errors e;

	exact(s, b, reference);
	ours->unit(ours->user, 0);
	theirs->unit(theirs->user, 0);
	e.ours = error_between(store_out(st), reference, out_floats(s));
	e.theirs = error_between(peer_out(p), reference, out_floats(s));
	free(reference);
	if (!(e.ours <= error_limit(profile)) || !(e.theirs <= F16_ERROR_MAX))
		die("%s, D=%u, %u tokens: our result is %.3g of its norm off, ggml's F16 %.3g: "
		    "nothing was measured",
		    profile, s->dim, s->tokens, e.ours, e.theirs);
	return e;
}

/* --- decoding --------------------------------------------------------------------------------- */

static void head_line(void)
{
	say("\n%-5s %-2s %-8s | %-22s | %-6s %-6s | %-23s %-23s %-23s | %s\n", "D", "G", "tokens",
	    "ours, ns/token/KV head", "GB/s", "share", "ggml f16: ns, x ours", "q8_0", "q4_0",
	    "error");
}

static void decode_shape(const struct run *run, const struct shape *s, bool headline)
{
	struct base b;
	struct peer *peers[PEER_TYPES];
	struct contestant c[CONTESTANTS_MAX], *read = &c[1 + PEER_TYPES];
	double per_token = 1.0 / ((double)s->heads * s->tokens);
	char prefix[48];

	base_make(&b, s);
	struct store *st = store_open(s, PROFILE, &b, 0, 0, false);
	store_contestant(st, run->team, "ours", &c[0]);
	for (int i = 0; i < PEER_TYPES; i++) {
		peers[i] = peer_open(s, (enum peer_type)i, &b);
		peer_contestant(peers[i], run->team, &c[1 + i]);
	}
	reader_contestant(run->reader, read);
	struct errors error = check_outputs(&c[0], st, &c[1], peers[PEER_F16], s, &b, PROFILE);
	measure(c, 2 + PEER_TYPES, run->rounds, run->wall);

	struct spread ours = spread_of(&c[0], run->rounds);
	struct spread share =
	    ratio_of(read, reader_unit_bytes(run->reader), &c[0], store_bytes(st), run->rounds);
	double gbs = reader_unit_bytes(run->reader) / spread_of(read, run->rounds).median;

	snprintf(prefix, sizeof prefix, "d%u_g%u_c%u", s->dim, s->group, s->tokens);
	say("%-5u %-2u %-8u | %6.2f [%6.2f %6.2f] | %6.1f %4.0f %% |", s->dim, s->group, s->tokens,
	    ours.median * per_token, ours.min * per_token, ours.max * per_token, gbs,
	    100 * share.median);
	put(ours.median * per_token, "%s_ours_ns", prefix);
	put(ours.min * per_token, "%s_ours_min_ns", prefix);
	put(ours.max * per_token, "%s_ours_max_ns", prefix);
	put(share.median, "%s_bandwidth_share", prefix);
	put(gbs, "%s_read_gb_per_s", prefix);
	put(error.ours, "%s_error", prefix);
	put(error.theirs, "%s_f16_error", prefix);
	if (headline) {
		put(s->tokens, "headline_tokens");
		put(share.median, "bandwidth_share_g%u", s->group);
	}
	for (int i = 0; i < PEER_TYPES; i++) {
		struct spread ns = spread_of(&c[1 + i], run->rounds);
		struct spread x = ratio_of(&c[1 + i], 1, &c[0], 1, run->rounds);

		say(" %6.1f %5.1f [%4.1f %4.1f]", ns.median * per_token, x.median, x.min, x.max);
		put(ns.median * per_token, "%s_%s_ns", prefix, peer_names[i]);
		put(ns.min * per_token, "%s_%s_min_ns", prefix, peer_names[i]);
		put(ns.max * per_token, "%s_%s_max_ns", prefix, peer_names[i]);
		put(x.median, "%s_speedup_%s", prefix, peer_names[i]);
		if (headline)
			put(x.median, "speedup_%s_g%u", peer_names[i], s->group);
	}
	say(" | %.3f, f16 %.4f\n", error.ours, error.theirs);
	for (int i = 0; i < PEER_TYPES; i++)
		peer_close(peers[i]);
	store_close(st);
	base_free(&b);
}

static void decode_all(const struct run *run)
{
	static const uint32_t quick[][3] = {{128, 1, 32768}, {128, 4, 32768}, {64, 3, 8192}};
	static const uint32_t standard[][3] = {
	    {128, 1, 1024}, {128, 1, 8192},  {128, 1, 32768},  {128, 1, 131072}, {128, 4, 1024},
	    {128, 4, 8192}, {128, 4, 32768}, {128, 4, 131072}, {128, 8, 32768},  {64, 1, 32768},
	    {64, 3, 8192},  {64, 3, 131072}, {64, 4, 32768},   {256, 1, 32768},  {256, 4, 32768}};
	static const uint32_t dims[] = {64, 128, 256}, groups[] = {1, 3, 4, 8};
	static const uint32_t contexts[] = {1024, 4096, 16384, 65536, 131072};
	uint32_t best = 0;

	/* The headline is D = 128 at the longest context. */
	for (size_t i = 0; i < sizeof standard / sizeof *standard; i++) {
		uint32_t tokens = run->size == QUICK ? quick[0][2] : standard[i][2];
		best = tokens > best && tokens <= run->tokens_max ? tokens : best;
	}
	if (run->size == QUICK && run->tokens_max < quick[0][2])
		best = run->tokens_max;
	head_line();
	if (run->size == FULL) {
		for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
			for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
				for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
					struct shape s = {dims[d], groups[g], HEADS, contexts[i],
							  1};

					if (s.tokens <= run->tokens_max)
						decode_shape(run, &s,
							     s.dim == 128 && s.tokens == best);
				}
		return;
	}
	const uint32_t(*list)[3] = run->size == QUICK ? quick : standard;
	size_t n =
	    run->size == QUICK ? sizeof quick / sizeof *quick : sizeof standard / sizeof *standard;
	for (size_t i = 0; i < n; i++) {
		struct shape s = {list[i][0], list[i][1], HEADS, list[i][2], 1};

		if (run->size == QUICK && s.tokens > run->tokens_max)
			s.tokens = run->tokens_max;
		if (s.tokens <= run->tokens_max)
			decode_shape(run, &s, s.dim == 128 && s.tokens == best);
	}
}

/* --- profiles, and what the rotation costs ---------------------------------------------------- */

static void profiles(const struct run *run)
{
	static const char *const names[] = {PROFILE, "plain-k2v1.5", "k4v4", "k8v8"};
	enum { N = sizeof names / sizeof *names };
	struct shape s = {128, 1, HEADS, run->size == QUICK ? 8192 : 32768, 1};
	double per_token = 0;
	struct base b;
	struct store *st[N];
	struct contestant c[N + 1];

	s.tokens = s.tokens > run->tokens_max ? run->tokens_max : s.tokens;
	per_token = 1.0 / ((double)s.heads * s.tokens);
	base_make(&b, &s);
	struct peer *f16 = peer_open(&s, PEER_F16, &b);
	peer_contestant(f16, run->team, &c[N]);
	for (int i = 0; i < N; i++) {
		st[i] = store_open(&s, names[i], &b, 0, 0, false);
		store_contestant(st[i], run->team, names[i], &c[i]);
	}
	measure(c, N + 1, run->rounds, run->wall);
	say("\nprofiles, D=128 G=1, %u tokens\n", s.tokens);
	for (int i = 0; i < N; i++) {
		struct spread ns = spread_of(&c[i], run->rounds);
		struct spread x = ratio_of(&c[N], 1, &c[i], 1, run->rounds);
		struct errors e = check_outputs(&c[i], st[i], &c[N], f16, &s, &b, names[i]);

		say("  %-13s %6.2f [%6.2f %6.2f] ns/token/KV head, %5.1f x ggml f16, error %.4f "
		    "(ggml f16 %.4f)\n",
		    names[i], ns.median * per_token, ns.min * per_token, ns.max * per_token,
		    x.median, e.ours, e.theirs);
		put(ns.median * per_token, "profile_%s_ns", names[i]);
		put(x.median, "profile_%s_speedup_f16", names[i]);
		put(e.ours, "profile_%s_error", names[i]);
		store_close(st[i]);
	}
	peer_close(f16);
	base_free(&b);
}

/* The Hadamard transform of the query and of the output, beside a whole call. By itself: the
 * difference of two profiles would drown in the noise. */
static void rotation(const struct run *run)
{
	const struct skvq_kernels *kn = skvq_kernels_get();
	struct skvq_profile p;
	struct skvq_codec kc, vc;
	float x[128];
	enum { LOOPS = 20000 };
	double ns[2];
	uint32_t tokens = run->tokens_max < 1024 ? run->tokens_max : 1024;
	struct shape s = {128, 1, HEADS, tokens, 1};
	struct base b;
	struct contestant c;

	if (skvq_profile_parse(PROFILE, &p) < 0 || skvq_codec_init(&p, 0, p.k_bits, 128, &kc) < 0 ||
	    skvq_codec_init(&p, 1, p.v_bits, 128, &vc) < 0)
		die("profile '%s' has no codec", PROFILE);
	base_make(&b, &s);
	memcpy(x, b.q, sizeof x);
	for (int back = 0; back < 2; back++) {
		double start = now_ns(false);

		for (int i = 0; i < LOOPS; i++) {
			if (back)
				kn->from_stored(&vc, NULL, x);
			else
				kn->query_to_stored(&kc, NULL, x);
		}
		ns[back] = (now_ns(false) - start) / LOOPS;
	}
	struct store *st = store_open(&s, PROFILE, &b, 0, 0, false);
	struct team *one = team_new(1);
	store_contestant(st, one, "ours", &c);
	measure(&c, 1, run->rounds, false);
	double call = spread_of(&c, run->rounds).median / HEADS;
	say("\nrotation, D=128: query %.0f ns, output %.0f ns a row; of a head's call at %u tokens "
	    "(%.0f ns) %.1f %%\n",
	    ns[0], ns[1], tokens, call, 100 * (ns[0] + ns[1]) / call);
	put(ns[0], "rotation_query_ns");
	put(ns[1], "rotation_output_ns");
	put((ns[0] + ns[1]) / call, "rotation_share");
	store_close(st);
	team_free(one);
	base_free(&b);
}

/* --- prefill ---------------------------------------------------------------------------------- */

static void prefill(const struct run *run)
{
	static const uint32_t rows[] = {64, 256, 512};
	uint32_t tokens = run->size == QUICK ? 4096 : run->size == STANDARD ? 16384 : 32768;
	uint32_t rounds = run->rounds < 3 ? run->rounds : 3;

	tokens = tokens > run->tokens_max ? run->tokens_max : tokens;
	say("\nprefill, D=128 G=4, rows against %u tokens, ns per row, token and KV head\n",
	    tokens);
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		struct shape s = {128, 4, 2, tokens, rows[i]};
		struct base b;
		struct contestant c[2];

		if (run->size == QUICK && rows[i] == 256)
			continue;
		if (tokens < rows[i] + 512)
			s.rows = 64;
		base_make(&b, &s);
		struct store *st = store_open(&s, PROFILE, &b, 2, 1, false);
		struct peer *f16 = peer_open(&s, PEER_F16, &b);
		store_contestant(st, run->team, "ours", &c[0]);
		peer_contestant(f16, run->team, &c[1]);
		struct errors e = check_outputs(&c[0], st, &c[1], f16, &s, &b, PROFILE);
		measure(c, 2, rounds, run->wall);
		struct spread ours = spread_of(&c[0], rounds), theirs = spread_of(&c[1], rounds);
		struct spread x = ratio_of(&c[1], 1, &c[0], 1, rounds);
		double per = 1.0 / ((double)s.rows * s.heads * s.tokens);

		say("  %3u rows: ours %6.2f [%6.2f %6.2f], ggml f16 %6.2f: %.2f x [%.2f %.2f], "
		    "error %.3f\n",
		    s.rows, ours.median * per, ours.min * per, ours.max * per, theirs.median * per,
		    x.median, x.min, x.max, e.ours);
		put(ours.median * per, "prefill_r%u_ours_ns", rows[i]);
		put(theirs.median * per, "prefill_r%u_f16_ns", rows[i]);
		put(x.median, "prefill_r%u_ratio_f16", rows[i]);
		put(x.median, "prefill_ratio_f16"); /* the last, and largest, stays */
		peer_close(f16);
		store_close(st);
		base_free(&b);
	}
}

/* --- several sequences, several threads ------------------------------------------------------- */

static void shared_batch(const struct run *run)
{
	static const uint32_t groups[] = {1, 4}, seqs[] = {2, 4, 8};
	uint32_t tokens = run->size == QUICK ? 8192 : 32768;

	tokens = tokens > run->tokens_max ? run->tokens_max : tokens;
	say("\nsequences that share %u tokens, D=128: one call instead of n\n", tokens);
	for (size_t g = 0; g < 2; g++) {
		for (size_t n = 0; n < 3; n++) {
			struct shape s = {128, groups[g], HEADS, tokens, 1};
			struct base b;
			struct contestant c[2];

			if (run->size == QUICK && (seqs[n] != 4 || g))
				continue;
			base_make(&b, &s);
			struct store *st = store_open(&s, PROFILE, &b, 0, seqs[n], true);
			store_batch_contestant(st, run->team, true, "one call", &c[0]);
			store_batch_contestant(st, run->team, false, "n calls", &c[1]);
			measure(c, 2, run->rounds, run->wall);
			struct spread x = ratio_of(&c[1], 1, &c[0], 1, run->rounds);

			say("  G=%u, %u sequences: %.2f x [%.2f %.2f]\n", groups[g], seqs[n],
			    x.median, x.min, x.max);
			if (groups[g] == 1)
				put(x.median, "shared_batch%u_gain", seqs[n]);
			else
				put(x.median, "shared_batch%u_gain_g%u", seqs[n], groups[g]);
			store_close(st);
			base_free(&b);
		}
	}
}

/* The same by the CPU time inside attend(): how evenly the work is cut, whoever else is running. */
static double scaling_by_cpu(struct contestant *one, struct contestant *two)
{
	double busy_one[1] = {0}, busy_two[2] = {0};

	store_busy(one, busy_one);
	store_busy(two, busy_two);
	for (uint32_t i = 0; i < one->n_units; i++) {
		one->unit(one->user, i);
		two->unit(two->user, i);
	}
	store_busy(one, NULL);
	store_busy(two, NULL);
	return busy_one[0] / (busy_two[0] > busy_two[1] ? busy_two[0] : busy_two[1]);
}

static void two_threads(const struct run *run)
{
	uint32_t tokens = run->size == QUICK ? 32768 : 131072;
	struct shape s = {128, 1, HEADS, tokens, 1};
	struct base b;
	struct contestant c[4];

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return;
	s.tokens = s.tokens > run->tokens_max ? run->tokens_max : s.tokens;
	base_make(&b, &s);
	struct store *st = store_open(&s, PROFILE, &b, 0, 0, false);
	struct team *one = team_new(1), *two = team_new(2);
	struct reader *read_one = reader_new(one), *read_two = reader_new(two);
	store_contestant(st, one, "1 thread", &c[0]);
	store_contestant(st, two, "2 threads", &c[1]);
	reader_contestant(read_one, &c[2]);
	reader_contestant(read_two, &c[3]);
	measure(c, 4, run->rounds, true);
	struct spread x = ratio_of(&c[0], 1, &c[1], 1, run->rounds);
	struct spread read = ratio_of(&c[2], 1, &c[3], 1, run->rounds);
	double cpu = scaling_by_cpu(&c[0], &c[1]);
	say("\n2 threads on one sequence of %u tokens: %.2f x [%.2f %.2f]; by CPU time %.2f x; "
	    "reading alone %.2f x [%.2f %.2f]\n",
	    s.tokens, x.median, x.min, x.max, cpu, read.median, read.min, read.max);
	put(x.median, "threads2_scaling");
	put(x.max, "threads2_scaling_max");
	put(cpu, "threads2_scaling_cpu");
	put(read.median, "threads2_scaling_read");
	reader_free(read_one);
	reader_free(read_two);
	store_close(st);
	team_free(one);
	team_free(two);
	base_free(&b);
}

/* --- a million tokens ------------------------------------------------------------------------- */

static size_t memory_available(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	size_t kib = 0;

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "MemAvailable: %zu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib << 10;
}

static void long_sequence(const struct run *run)
{
	struct shape s = {128, 4, HEADS, LONG_TOKENS, 1};
	struct base b;
	struct contestant c;
	size_t page_bytes = 1224704, have = memory_available(); /* docs/page-format.md */
	uint32_t rounds = run->rounds < 3 ? run->rounds : 3;

	s.tokens = s.tokens > run->tokens_max ? run->tokens_max : s.tokens;
	size_t wanted = s.tokens / SKVQ_PAGE_TOKENS * page_bytes + LONG_RESERVE;
	if (have < wanted) {
		say("\n%u tokens of %u layers need %zu MiB; %zu are available: left out\n",
		    s.tokens, LONG_LAYERS, wanted >> 20, have >> 20);
		return;
	}
	base_make(&b, &s);
	struct store *st = store_open(&s, PROFILE, &b, LONG_LAYERS, 1, false);
	store_contestant(st, run->team, "long", &c);
	measure(&c, 1, 1, run->wall); /* the first pass faults the mapping in */
	for (uint32_t r = 0; r < rounds; r++) {
		double start = now_ns(run->wall);

		for (uint32_t i = 0; i < LONG_LAYERS; i++)
			c.unit(c.user, i);
		c.ns[r] = now_ns(run->wall) - start;
	}
	struct spread all = spread_of(&c, rounds);
	double per = 1.0 / ((double)s.tokens * s.heads * LONG_LAYERS);
	say("\n%u tokens, %u layers, %u KV heads, D=128 G=4, %u threads: %.0f ms a token [%.0f "
	    "%.0f], "
	    "%.2f ns/token/KV head, %.2f GiB\n",
	    s.tokens, LONG_LAYERS, s.heads, team_threads(run->team), all.median / 1e6,
	    all.min / 1e6, all.max / 1e6, all.median * per, (double)store_total(st) / (1 << 30));
	put(all.median / 1e6, "long_ms_per_token");
	put(all.median * per, "long_ns");
	put(s.tokens, "long_tokens");
	put((double)store_total(st), "long_bytes");
	store_close(st);
	base_free(&b);
}

static const struct {
	const char *name;
	void (*measure)(const struct run *run);
	enum size least;
} parts[] = {
    {"decode", decode_all, QUICK}, {"profiles", profiles, QUICK},  {"rotation", rotation, QUICK},
    {"prefill", prefill, QUICK},   {"batch", shared_batch, QUICK}, {"threads", two_threads, QUICK},
    {"long", long_sequence, FULL},
};
#define N_PARTS (sizeof parts / sizeof *parts)

/* --- options ---------------------------------------------------------------------------------- */

static uint32_t number(const char *name, const char *text, uint32_t min, uint32_t max)
{
	char *end;

	errno = 0;
	unsigned long v = strtoul(text, &end, 10);
	if (errno || end == text || *end || v < min || v > max) {
		fprintf(stderr, "bench-attention: --%s takes a number from %u to %u, not '%s'\n",
			name, min, max, text);
		exit(2);
	}
	return (uint32_t)v;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"quick", no_argument, NULL, 'q'},
						{"full", no_argument, NULL, 'f'},
						{"only", required_argument, NULL, 'o'},
						{"threads", required_argument, NULL, 't'},
						{"rounds", required_argument, NULL, 'r'},
						{"tokens", required_argument, NULL, 'c'},
						{"working-set", required_argument, NULL, 'w'},
						{"plot", required_argument, NULL, 'p'},
						{"json", no_argument, NULL, 'j'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	struct run run = {.size = STANDARD, .tokens_max = LONG_TOKENS};
	uint32_t threads = 1;
	const char *plot = NULL, *only = NULL;
	bool json = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 'q':
			run.size = QUICK;
			break;
		case 'f':
			run.size = FULL;
			break;
		case 'o':
			only = optarg;
			break;
		case 't':
			threads = number("threads", optarg, 1, 256);
			break;
		case 'r':
			run.rounds = number("rounds", optarg, 1, ROUNDS_MAX);
			break;
		case 'c':
			run.tokens_max = number("tokens", optarg, 1024, LONG_TOKENS) / 256 * 256;
			break;
		case 'w':
			working_set = (size_t)number("working-set", optarg, 1, 1u << 16) << 20;
			break;
		case 'p':
			plot = optarg;
			break;
		case 'j':
			json = true;
			break;
		default:
			fputs(help, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (optind < argc) {
		fputs(help, stderr);
		return 2;
	}
	bool known = !only;
	for (size_t i = 0; i < N_PARTS; i++)
		known = known || strcmp(only, parts[i].name) == 0;
	if (!known) {
		fprintf(stderr, "bench-attention: there is no part '%s'; see --help\n", only);
		return 2;
	}
	const struct skvq_kernels *kn = skvq_kernels_get();
	if (!kn) {
		fprintf(stderr, "bench-attention: SKVQ_CPU names a tier that cannot run here\n");
		return 2;
	}
	if (!run.rounds)
		run.rounds = run.size == QUICK ? 5 : 7;
	run.wall = threads > 1;
	report_open(json);
	run.team = team_new(threads);
	run.reader = reader_new(run.team);
	put_text("tier", kn->tier);
	put_text("profile", PROFILE);
	put_number("threads", threads);
	put_number("rounds", run.rounds);
	put_number("working_set_bytes", (double)working_set);
	say("%s, tier %s, %u thread%s, %u KV heads, %s time, medians [min max] of %u rounds\n",
	    PROFILE, kn->tier, threads, threads > 1 ? "s" : "", HEADS, run.wall ? "wall" : "CPU",
	    run.rounds);
	for (size_t i = 0; i < N_PARTS; i++)
		if (only ? strcmp(only, parts[i].name) == 0 : run.size >= parts[i].least)
			parts[i].measure(&run);
	reader_free(run.reader);
	team_free(run.team);
	return report_close(plot);
}
