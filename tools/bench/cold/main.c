/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <skvq/format.h>

#define ROUNDS_MAX 32u
#define FIELDS     (sizeof(struct stored) / sizeof(double))
#define CODERS_MAX 16u
#define PAGE_BYTES SKVQ_PAGE_BYTES_MAX

static const char help[] =
    "usage: bench-cold --pages FILE [--folder DIR] [options]\n"
    "What compression does to real pages, and what it costs. FILE holds pages as they lie in an\n"
    "arena, one behind the other: tools/bench/cold/run makes one and calls this.\n"
    "  --pages FILE   pages; every one comes back byte for byte, or this fails\n"
    "  --folder DIR   also whole stores, in a folder made there and removed: with and without\n"
    "                 compression in turn, medians\n"
    "  --mib N        of pages put into each store, default 1024\n"
    "  --threads N    of the store that compress, default 2\n"
    "  --rounds N     default 5\n"
    "  --quick        64 MiB, 2 rounds\n"
    "  --json         one flat object: pages, page_bytes; for each coder CODER_ratio (of bytes\n"
    "                 after to before), CODER_pack_mb_s and CODER_unpack_mb_s (of one thread, in\n"
    "                 bytes before); with --folder plain_ and packed_ put_mb_s, get_mb_s,\n"
    "                 put_cpu_s_gb, get_cpu_s_gb, one_ms (a get by itself), ratio\n";

struct result {
	const struct coder *coder;
	double ratio, pack_mb_s, unpack_mb_s; /* ratio 0: it knows no such pages */
};

double now_s(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

double cpu_s(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int load(const char *path, struct pages *ret)
{
	FILE *f = fopen(path, "rb");
	size_t bytes = 0, at = 0;
	long length = -1;

	if (f && fseek(f, 0, SEEK_END) == 0)
		length = ftell(f);
	if (length > 0) {
		bytes = (size_t)length;
		rewind(f);
		ret->bytes = malloc(bytes);
	}
	if (!ret->bytes || fread(ret->bytes, 1, bytes, f) != bytes) {
		fprintf(stderr, "bench-cold: cannot read '%s'\n", path);
		if (f)
			(void)fclose(f);
		return -1;
	}
	(void)fclose(f);
	while (at < bytes && ret->n < PAGES_MAX) {
		struct page *p = &ret->page[ret->n++];
		skvq_page_header h = {0};
		uint64_t sum = 0;

		if (bytes - at >= sizeof(h))
			memcpy(&h, ret->bytes + at, sizeof(h));
		p->section[TIER_BASE] = h.base_bytes;
		p->section[TIER_REFINEMENT] = h.refine_bytes;
		p->section[TIER_SIDECAR] = h.sidecar_bytes;
		for (int i = 0; i < TIER_SECTIONS; i++)
			sum += p->section[i];
		if (h.magic != SKVQ_PAGE_MAGIC || h.base_bytes < 4096 || sum > bytes - at ||
		    sum > PAGE_BYTES) {
			fprintf(stderr, "bench-cold: '%s' has no page at byte %zu\n", path, at);
			return -1;
		}
		p->at = ret->bytes + at;
		p->bytes = (uint32_t)sum;
		if (p->bytes > ret->longest)
			ret->longest = p->bytes;
		ret->total += sum;
		at += sum;
	}
	return 0;
}

/* All pages by one coder. -1 after a message. */
static int try_coder(const struct pages *pages, struct result *r)
{
	size_t room = (size_t)pages->longest * 2 + 4096;
	uint8_t *to = malloc(room), *back = malloc(pages->longest);
	double pack_s = 0, unpack_s = 0;
	uint64_t after = 0;
	int status = to && back ? 0 : -1;

	for (uint32_t i = 0; !status && i < pages->n; i++) {
		const struct page *p = &pages->page[i];
		double began = cpu_s();
		uint32_t n = r->coder->pack(p, to, room);

		pack_s += cpu_s() - began;
		if (!n)
			break;             /* not of these */
		memcpy(back, p->at, 4096); /* where planes are, for those that ask */
		began = cpu_s();
		status = r->coder->unpack(p, to, n, back) ? 0 : -1;
		unpack_s += cpu_s() - began;
		if (status || memcmp(back, p->at, p->bytes) != 0) {
			fprintf(stderr, "bench-cold: %s: page %u did not come back\n",
				r->coder->text, i);
			status = -1;
		}
		after += n;
		r->ratio = (double)after / (double)pages->total;
	}
	r->pack_mb_s = (double)pages->total / pack_s / 1e6;
	r->unpack_mb_s = (double)pages->total / unpack_s / 1e6;
	free(to);
	free(back);
	return status;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static struct stored median(const struct stored *rounds, uint32_t n)
{
	double v[ROUNDS_MAX], out[FIELDS];
	struct stored ret;

	for (size_t f = 0; f < FIELDS; f++) {
		for (uint32_t i = 0; i < n; i++)
			memcpy(&v[i], (const double *)&rounds[i] + f, sizeof(v[i]));
		qsort(v, n, sizeof(v[0]), by_value);
		out[f] = n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
	}
	memcpy(&ret, out, sizeof(ret));
	return ret;
}

static void coders_report(const struct pages *pages, const struct result *results, uint32_t n,
			  bool json)
{
	if (json)
		printf("{\"pages\":%u,\"page_bytes\":%llu", pages->n,
		       (unsigned long long)(pages->total / pages->n));
	else
		printf("%u pages of %llu bytes\n%-42s %8s %9s %14s %14s\n", pages->n,
		       (unsigned long long)(pages->total / pages->n), "", "ratio", "capacity",
		       "pack MB/s", "unpack MB/s");
	for (uint32_t i = 0; i < n; i++) {
		const struct result *r = &results[i];

		if (r->ratio <= 0)
			continue;
		if (json)
			printf(",\"%s_ratio\":%.4f,\"%s_pack_mb_s\":%.1f,\"%s_unpack_mb_s\":%.1f",
			       r->coder->name, r->ratio, r->coder->name, r->pack_mb_s,
			       r->coder->name, r->unpack_mb_s);
		else
			printf("%-42s %8.4f %+7.1f %% %14.0f %14.0f\n", r->coder->text, r->ratio,
			       100 / r->ratio - 100, r->pack_mb_s, r->unpack_mb_s);
	}
}

static void store_report(const char *name, const struct stored *s, bool json)
{
	if (json)
		printf(",\"%s_put_mb_s\":%.1f,\"%s_get_mb_s\":%.1f,\"%s_put_cpu_s_gb\":%.3f,"
		       "\"%s_get_cpu_s_gb\":%.3f,\"%s_one_ms\":%.4f,\"%s_ratio\":%.4f",
		       name, s->put_mb_s, name, s->get_mb_s, name, s->put_cpu_s_gb, name,
		       s->get_cpu_s_gb, name, s->one_ms, name, s->ratio);
	else
		printf("%-10s %10.0f %10.0f %14.2f %14.2f %10.3f %8.4f\n", name, s->put_mb_s,
		       s->get_mb_s, s->put_cpu_s_gb, s->get_cpu_s_gb, s->one_ms, s->ratio);
}

/* Both in turn. -1 after a message. */
static int stores(const struct pages *pages, const char *folder, uint64_t bytes, uint32_t threads,
		  uint32_t rounds, struct stored ret[2])
{
	static struct stored seen[2][ROUNDS_MAX];
	char own[512];
	int status = 0;

	(void)snprintf(own, sizeof(own), "%s/skvq-bench-XXXXXX", folder);
	if (!mkdtemp(own)) {
		fprintf(stderr, "bench-cold: cannot make a folder in '%s'\n", folder);
		return -1;
	}
	for (uint32_t i = 0; i < 2 * rounds && !status; i++)
		status = store_run(pages, own, bytes, threads, i % 2, &seen[i % 2][i / 2]);
	(void)rmdir(own);
	for (int i = 0; i < 2 && !status; i++)
		ret[i] = median(seen[i], rounds);
	return status;
}

/* Or exits: 2. */
static uint64_t number(const char *name, const char *text, uint64_t least, uint64_t most)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (*end || end == text || n < least || n > most) {
		fprintf(stderr, "bench-cold: --%s takes %llu to %llu, not '%s'\n", name,
			(unsigned long long)least, (unsigned long long)most, text);
		exit(2);
	}
	return n;
}

struct args {
	const char *pages, *folder;
	uint64_t bytes;
	uint32_t threads, rounds;
	bool json;
};

/* Or exits. */
static struct args parse(int argc, char **argv)
{
	static const struct option options[] = {
	    {"pages", 1, 0, 'p'},   {"folder", 1, 0, 'f'}, {"mib", 1, 0, 'm'},
	    {"threads", 1, 0, 't'}, {"rounds", 1, 0, 'r'}, {"quick", 0, 0, 'q'},
	    {"json", 0, 0, 'j'},    {"help", 0, 0, 'h'},   {0, 0, 0, 0}};
	struct args a = {.bytes = UINT64_C(1) << 30, .threads = 2, .rounds = 5};
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt == 'p') {
			a.pages = optarg;
		} else if (opt == 'f') {
			a.folder = optarg;
		} else if (opt == 'm') {
			a.bytes = number("mib", optarg, 16, 1 << 20) << 20;
		} else if (opt == 't') {
			a.threads = (uint32_t)number("threads", optarg, 1, 15);
		} else if (opt == 'r') {
			a.rounds = (uint32_t)number("rounds", optarg, 1, ROUNDS_MAX);
		} else if (opt == 'q') {
			a.bytes = 64 << 20;
			a.rounds = 2;
		} else if (opt == 'j') {
			a.json = true;
		} else {
			fputs(help, opt == 'h' ? stdout : stderr);
			exit(opt == 'h' ? 0 : 2);
		}
	}
	if (!a.pages || optind < argc) {
		fputs(help, stderr);
		exit(2);
	}
	return a;
}

int main(int argc, char **argv)
{
	struct args a = parse(argc, argv);
	static struct pages pages;
	struct result results[CODERS_MAX];
	const struct coder *coders;
	struct stored seen[2];
	uint32_t n = 0;
	int status = load(a.pages, &pages);

	coders = status ? NULL : coders_open(pages.longest);
	for (; coders && !status && coders[n].name && n < CODERS_MAX; n++) {
		results[n] = (struct result){.coder = &coders[n]};
		status = try_coder(&pages, &results[n]);
	}
	if (!status && coders && a.folder)
		status = stores(&pages, a.folder, a.bytes, a.threads, a.rounds, seen);
	if (!status && coders) {
		coders_report(&pages, results, n, a.json);
		if (a.folder && !a.json)
			printf("\nstores of %llu MiB, %u threads, median of %u rounds\n"
			       "%-10s %10s %10s %14s %14s %10s %8s\n",
			       (unsigned long long)(a.bytes >> 20), a.threads, a.rounds, "",
			       "put MB/s", "get MB/s", "put CPU s/GB", "get CPU s/GB", "one ms",
			       "ratio");
		for (int i = 0; i < 2 && a.folder; i++)
			store_report(i ? "packed" : "plain", &seen[i], a.json);
		if (a.json)
			puts("}");
	}
	if (coders)
		coders_close();
	free(pages.bytes);
	return status || !coders ? 1 : 0;
}
