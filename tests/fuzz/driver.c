/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target without a fuzzer: every input of the given files and folders, then seeded
 * mutations of them. It finds nothing new where libFuzzer has been for hours; it keeps what was
 * found from coming back, in every build and with any compiler.
 *
 *   fuzz_NAME [--runs N] [--seed S] [--first I] [FILE|FOLDER]...
 *   fuzz_NAME --write-corpus FOLDER
 *
 * Run I of seed S is the same whatever ran before it; on a crash both are printed.
 */
#include <dirent.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "seeded.h"

#define INPUTS_MAX 4096u

struct input {
	uint8_t *data;
	size_t n;
};

static struct input inputs[INPUTS_MAX];
static uint32_t n_inputs;
static char doing[256]; /* for the handler */

static void die(const char *what, const char *name)
{
	(void)fprintf(stderr, "%s: %s\n", name, what);
	exit(2);
}

static void keep(const void *data, size_t n)
{
	struct input *in = &inputs[n_inputs];

	if (n_inputs == INPUTS_MAX)
		die("too many inputs", "corpus");
	in->data = malloc(n + 1);
	if (!in->data)
		die("no memory", "corpus");
	memcpy(in->data, data, n);
	in->n = n;
	n_inputs++;
}

static void read_file(const char *path)
{
	static uint8_t buf[1 << 20];
	FILE *f = fopen(path, "rb");
	size_t n;

	if (!f)
		die("cannot be opened", path);
	n = fread(buf, 1, sizeof(buf), f);
	(void)fclose(f);
	(void)snprintf(doing, sizeof(doing), "crashed on %.200s\n", path);
	(void)LLVMFuzzerTestOneInput(buf, n);
	if (n <= FUZZ_SEED_MAX)
		keep(buf, n);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static void read_any(const char *path)
{
	struct dirent **list;
	struct stat st;
	int n;

	if (stat(path, &st) < 0)
		die("is not there", path);
	if (!S_ISDIR(st.st_mode)) {
		read_file(path);
		return;
	}
	n = scandir(path, &list, NULL, by_name);
	for (int i = 0; i < n; i++) {
		char file[4096];

		(void)snprintf(file, sizeof(file), "%s/%s", path, list[i]->d_name);
		if (list[i]->d_name[0] != '.')
			read_file(file);
		free(list[i]);
	}
	free(list);
}

/* What the project's own writers make now, beside what they made when the corpus was written. */
static void add_seeds(void)
{
	static uint8_t buf[FUZZ_SEED_MAX];
	size_t n;

	for (uint32_t i = 0; (n = fuzz_seed(i, buf)) > 0; i++) {
		(void)snprintf(doing, sizeof(doing), "crashed on seed %u\n", i);
		(void)LLVMFuzzerTestOneInput(buf, n);
		keep(buf, n);
	}
}

static void write_corpus(const char *folder)
{
	static uint8_t buf[FUZZ_SEED_MAX];
	size_t n;

	for (uint32_t i = 0; (n = fuzz_seed(i, buf)) > 0; i++) {
		char path[4096];
		FILE *f;

		(void)snprintf(path, sizeof(path), "%s/seed-%02u", folder, i);
		f = fopen(path, "wb");
		if (!f || fwrite(buf, 1, n, f) != n || fclose(f) != 0)
			die("cannot be written", path);
	}
}

/* ---- mutations ---- */

static const uint64_t edges[] = {0,
				 1,
				 0x7f,
				 0x80,
				 0xff,
				 0x7fff,
				 0x8000,
				 0xffff,
				 0x7fffffff,
				 0x80000000,
				 0xffffffff,
				 UINT64_C(0x7fffffffffffffff),
				 UINT64_C(0xffffffffffffffff)};

static size_t mutate_once(struct seeded *rng, uint8_t *at, size_t n)
{
	static const size_t widths[] = {1, 2, 4, 8};
	size_t where = n ? seeded_below(rng, (uint32_t)n) : 0;
	size_t some = 1 + seeded_below(rng, 16), width = widths[seeded_below(rng, 4)];
	const struct input *other = &inputs[seeded_below(rng, n_inputs)];

	if (some > n - where)
		some = n - where;
	switch (n ? seeded_below(rng, 7) : 5) {
	case 0:
		at[where] ^= (uint8_t)(1u << seeded_below(rng, 8));
		return n;
	case 1:
		at[where] = (uint8_t)seeded_u64(rng);
		return n;
	case 2: /* a number at its edge, or off by a little */
		if (width > n - where)
			return n;
		memcpy(at + where, &edges[seeded_below(rng, sizeof(edges) / sizeof(edges[0]))],
		       width);
		at[where] = (uint8_t)(at[where] + seeded_below(rng, 3) - 1);
		return n;
	case 3: /* bytes less */
		memmove(at + where, at + where + some, n - where - some);
		return n - some;
	case 4: /* bytes twice */
		if (some > FUZZ_SEED_MAX - n)
			return n;
		memmove(at + where + some, at + where, n - where);
		return n + some;
	case 5: /* the rest is another's */
		some = other->n ? seeded_below(rng, (uint32_t)other->n) : 0;
		if (other->n - some > FUZZ_SEED_MAX - where)
			return n;
		memcpy(at + where, other->data + some, other->n - some);
		return where + other->n - some;
	default: /* a piece of itself, elsewhere */
		memmove(at + where, at + seeded_below(rng, (uint32_t)(n - some + 1)), some);
		return n;
	}
}

static void run(uint64_t seed, uint64_t i)
{
	static uint8_t buf[FUZZ_SEED_MAX];
	struct seeded rng = {seed ^ (i + 1) * UINT64_C(0xd1342543de82ef95)};
	const struct input *from = &inputs[seeded_below(&rng, n_inputs)];
	uint32_t times = 1 + seeded_below(&rng, 6);
	size_t n = from->n;

	memcpy(buf, from->data, n);
	while (times--)
		n = mutate_once(&rng, buf, n);
	(void)snprintf(doing, sizeof(doing), "crashed on --seed %llu --first %llu --runs 1\n",
		       (unsigned long long)seed, (unsigned long long)i);
	/* A block of its own length, for the sanitizers to see its ends. */
	uint8_t *exact = malloc(n ? n : 1);
	if (!exact)
		die("no memory", "run");
	memcpy(exact, buf, n);
	(void)LLVMFuzzerTestOneInput(exact, n);
	free(exact);
}

static void on_crash(int sig)
{
	(void)!write(2, doing, strlen(doing));
	(void)signal(sig, SIG_DFL);
	(void)raise(sig);
}

static uint64_t number(const char *text)
{
	return text ? strtoull(text, NULL, 0) : 0;
}

int main(int argc, char **argv)
{
	uint64_t runs = 0, seed = 1, first = 0;

	(void)signal(SIGABRT, on_crash);
	(void)signal(SIGSEGV, on_crash);
	(void)signal(SIGFPE, on_crash);
	(void)signal(SIGBUS, on_crash);
	add_seeds();
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--write-corpus")) {
			write_corpus(argv[i + 1] ? argv[i + 1] : ".");
			return 0;
		}
		if (!strcmp(argv[i], "--runs"))
			runs = number(argv[++i]);
		else if (!strcmp(argv[i], "--seed"))
			seed = number(argv[++i]);
		else if (!strcmp(argv[i], "--first"))
			first = number(argv[++i]);
		else
			read_any(argv[i]);
	}
	if (!n_inputs)
		die("no inputs", argv[0]);
	for (uint64_t i = first; i < first + runs; i++)
		run(seed, i);
	(void)printf("%u inputs and %llu mutations of them, seed %llu\n", n_inputs,
		     (unsigned long long)runs, (unsigned long long)seed);
	for (uint32_t i = 0; i < n_inputs; i++)
		free(inputs[i].data);
	return 0;
}
