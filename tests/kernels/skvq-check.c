/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq-check - compares every kernel of every tier this machine can run with the reference, on the
 * same seeded inputs, ordinary and hostile, between guard pages; and with --bench, times them.
 *
 * Exit status: 0 all agree, 1 some do not, 2 wrong usage or no memory, 77 the tier asked for cannot
 * run here.
 */
#include "check.h"

#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static const struct {
	const char *name;
	void (*check)(struct check *c);
} functions[] = {
    {"f16_to_f32", check_f16_to_f32},   {"f32_to_f16", check_f32_to_f16},
    {"bf16_to_f32", check_bf16_to_f32}, {"f32_to_bf16", check_f32_to_bf16},
    {"to_stored", check_to_stored},     {"from_stored", check_from_stored},
    {"query_to_stored", check_query_to_stored},
    {"tile_from_stored", check_tile_from_stored},
    {"encode_tile", check_encode_tile}, {"decode_tile", check_decode_tile},
    {"attn_pages", check_attn_pages},   {"attn_rows", check_attn_rows},
    {"attn_finish", check_attn_finish},
};
#define N_FUNCTIONS (sizeof(functions) / sizeof(functions[0]))

static const struct {
	const char *name;
	float attn_bound;
} tiers[] = {
    {"ref", 0.0f}, /* against itself: for the guard pages */
    {"avx2", SKVQ_ATTN_ERROR_MAX},
    {"avx512", SKVQ_ATTN_ERROR_MAX},
    {"neon", SKVQ_ATTN_ERROR_MAX},
};
#define N_TIERS (sizeof(tiers) / sizeof(tiers[0]))

static struct check *running;

/* The case that crashed is worth more than a core file. */
static void on_crash(int sig)
{
	char line[320];
	int n = snprintf(line, sizeof(line), "skvq-check: %s in %s %s: %s\n", strsignal(sig),
			 running ? running->tier->k.tier : "-", running ? running->function : "-",
			 running ? running->where : "-");

	(void)!write(STDERR_FILENO, line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1);
	_exit(1);
}

void check_that(struct check *c, bool ok, const char *fmt, ...)
{
	va_list ap;

	c->n_checks++;
	if (ok)
		return;
	if (++c->n_failed > 10)
		return;
	fprintf(stderr, "%s %s, %s: ", c->tier->k.tier, c->function, c->where);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static bool same(float a, float b)
{
	return memcmp(&a, &b, sizeof(a)) == 0 || (isnan(a) && isnan(b));
}

void check_floats(struct check *c, const float *have, const float *want, size_t n, const char *what)
{
	check_near(c, have, want, n, 0.0f, what);
}

void check_near(struct check *c, const float *have, const float *want, size_t n, float bound,
		const char *what)
{
	for (size_t i = 0; i < n; i++) {
		if (same(have[i], want[i]) || fabsf(have[i] - want[i]) < bound)
			continue;
		check_that(c, false, "%s[%zu] is %a, not %a", what, i, (double)have[i],
			   (double)want[i]);
		return;
	}
	check_that(c, true, "%s", what);
}

void check_bytes(struct check *c, const void *have, const void *want, size_t n, const char *what)
{
	const uint8_t *h = have, *w = want;

	for (size_t i = 0; i < n; i++) {
		if (h[i] == w[i])
			continue;
		check_that(c, false, "%s: byte %zu is 0x%02x, not 0x%02x", what, i, h[i], w[i]);
		return;
	}
	check_that(c, true, "%s", what);
}

struct options {
	const char *function;
	const char *cpu;
	uint64_t seed;
	bool bench;
	bool json;
};

static int usage(FILE *to)
{
	fputs("usage: skvq-check [--function=NAME] [--cpu=TIER] [--seed=N] [--bench] [--json]\n"
	      "       skvq-check --list\n"
	      "Compares the kernels of each tier with the reference; exit 0 if all agree.\n",
	      to);
	return 2;
}

static int list(void)
{
	for (size_t i = 0; i < N_TIERS; i++) {
		uint32_t mask = skvq_tiers_by_name(tiers[i].name);

		printf("tier %s%s\n", tiers[i].name,
		       mask & ~skvq_cpu_tiers() ? " (not on this machine)" : "");
	}
	for (size_t i = 0; i < N_FUNCTIONS; i++)
		printf("function %s\n", functions[i].name);
	return 0;
}

static void check_tier(const struct options *o, const struct check_tier *t, unsigned long *checks,
		       unsigned long *failed)
{
	for (size_t i = 0; i < N_FUNCTIONS; i++) {
		struct check c = {.tier = t, .function = functions[i].name, .rng = {o->seed}};

		if (o->function && strcmp(o->function, functions[i].name) != 0)
			continue;
		skvq_kernels_fill(&c.ref, SKVQ_TIER_REF);
		running = &c;
		functions[i].check(&c);
		running = NULL;
		if (!o->json)
			printf("%-6s %-16s %8lu checks %s\n", t->k.tier, c.function, c.n_checks,
			       c.n_failed ? "FAILED" : "ok");
		*checks += c.n_checks;
		*failed += c.n_failed;
	}
}

static int run(const struct options *o)
{
	unsigned long checks = 0, failed = 0;
	bool any = false;

	if (o->json)
		printf("{\"seed\": %llu", (unsigned long long)o->seed);
	else
		printf("seed %llu\n", (unsigned long long)o->seed);
	for (size_t i = 0; i < N_TIERS; i++) {
		uint32_t mask = skvq_tiers_by_name(tiers[i].name);
		struct check_tier t = {.attn_bound = tiers[i].attn_bound};

		if ((mask & ~skvq_cpu_tiers()) || (o->cpu && strcmp(o->cpu, tiers[i].name) != 0))
			continue;
		skvq_kernels_fill(&t.k, mask);
		any = true;
		check_tier(o, &t, &checks, &failed);
		if (o->bench)
			bench(&t, o->function, o->json);
	}
	if (o->json)
		printf(", \"checks\": %lu, \"failed\": %lu}\n", checks, failed);
	else
		printf("%lu checks, %lu failed\n", checks, failed);
	if (!any)
		return 77;
	return failed ? 1 : 0;
}

static bool known(const char *function)
{
	for (size_t i = 0; i < N_FUNCTIONS; i++)
		if (strcmp(functions[i].name, function) == 0)
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
	    {"list", no_argument, NULL, 'l'},      {"function", required_argument, NULL, 'f'},
	    {"cpu", required_argument, NULL, 'c'}, {"seed", required_argument, NULL, 's'},
	    {"bench", no_argument, NULL, 'b'},     {"json", no_argument, NULL, 'j'},
	    {"help", no_argument, NULL, 'h'},      {NULL, 0, NULL, 0},
	};
	struct options o = {.seed = 1};
	int opt;

	while ((opt = getopt_long(argc, argv, "", longs, NULL)) >= 0) {
		char *end = NULL;

		switch (opt) {
		case 'l':
			return list();
		case 'f':
			if (!known(optarg))
				return usage(stderr);
			o.function = optarg;
			break;
		case 'c':
			if (skvq_tiers_by_name(optarg) == 0)
				return usage(stderr);
			o.cpu = optarg;
			break;
		case 's':
			o.seed = strtoull(optarg, &end, 0);
			if (*optarg == '\0' || *end != '\0')
				return usage(stderr);
			break;
		case 'b':
			o.bench = true;
			break;
		case 'j':
			o.json = true;
			break;
		case 'h':
			(void)usage(stdout);
			return 0;
		default:
			return usage(stderr);
		}
	}
	if (optind != argc)
		return usage(stderr);
	(void)signal(SIGSEGV, on_crash);
	(void)signal(SIGBUS, on_crash);
	(void)signal(SIGFPE, on_crash);
	(void)signal(SIGILL, on_crash);
	return run(&o);
}
