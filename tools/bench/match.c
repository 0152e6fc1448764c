/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-match: how long a match of a long prefix takes, resident or from disk. Pages of made-up
 * codes whose tokens follow from a seed, so that a later run finds what an earlier one published,
 * also after a restart of the daemon.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <jansson.h>

#include <skvq/client.h>
#include <skvq/layout.h>

#include "common.h"
#include "made_up.h"

#define TIMEOUT_MS 60000u
#define RUN        8u
#define SAMPLES    (1u << 20)

static const char help[] =
    "usage: bench-match --socket PATH [options]\n\n"
    "Publishes a chain of pages, then matches and unpins it again and again.\n"
    "  --pages N      of the chain; default 512 (40,960 tokens)\n"
    "  --seconds S    of matching; default 3\n"
    "  --seed N       of its tokens; default 1\n"
    "  --publish-only, --match-only\n"
    "  --once         one match: pages that are on disk are waited for\n"
    "  --layers N --kv-heads N --head-dim N   geometry; default 30, 3, 64 (SmolLM2-135M)\n"
    "  --profile P    default k4v2\n"
    "  --json         one flat object: pages, page_bytes, matched, matches, p50_us, p99_us, "
    "max_us\n";

struct bench {
	struct skvq_client *client;
	struct made_up_model model;
	struct skvq_client_ns ns;
	uint32_t pages, seed;
	int32_t *tokens;
	struct skvq_page_ref *refs;
	bool *base_only;
	double seconds;
	const char *profile;
	double *us; /* [SAMPLES] */
	uint32_t n_us, matched;
	uint64_t request; /* a publish in flight */
	int error;
	struct skvq_page_ref last;
};

static int open_namespace(struct bench *b)
{
	int arena = -1;
	int r = skvq_client_namespace_open(b->client, &b->model.identity, &b->ns, &arena);

	if (r < 0)
		return r;
	(void)close(arena);
	return b->ns.slot_bytes == b->model.layout.slot_bytes ? 0 : -SKVQ_EPROTO;
}

static void published(void *user, uint64_t id, int err, const char *detail,
		      const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct bench *b = user;

	(void)n_existed;
	if (id != b->request)
		return;
	b->request = 0;
	b->error = err;
	if (err < 0)
		(void)fprintf(stderr, "bench-match: %s\n", detail ? detail : "refused");
	if (n_pages)
		b->last = pages[n_pages - 1];
}

/* One request of n pages from page `first` on, waited for. Their pins are kept: they hold the chain
 * while it is made. */
static int publish_run(struct bench *b, uint32_t staging, uint8_t *map, uint32_t first, uint32_t n)
{
	const struct skvq_layout *l = &b->model.layout;
	const int32_t *tokens = b->tokens + (size_t)first * SKVQ_PAGE_TOKENS;
	int r;

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *page = map + i * l->slot_bytes;

		skvq_page_init(l, (first + i) * SKVQ_PAGE_TOKENS, page);
		memcpy(page + l->tokens_offset, tokens + (size_t)i * SKVQ_PAGE_TOKENS,
		       SKVQ_PAGE_TOKENS * sizeof(*tokens));
	}
	r = skvq_client_publish(b->client, b->ns.ns, b->last, first * SKVQ_PAGE_TOKENS, tokens, n,
				NULL, staging, 0, &b->request);
	while (r >= 0 && b->request)
		r = skvq_client_poll(b->client, TIMEOUT_MS);
	return r < 0 ? r : b->error;
}

static int publish(struct bench *b)
{
	size_t bytes = RUN * b->model.layout.slot_bytes;
	int fd = memfd_create("bench-match", MFD_CLOEXEC | MFD_ALLOW_SEALING), r;
	uint32_t staging;
	uint8_t *map;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
		return -SKVQ_ESYS;
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	r = map == MAP_FAILED ? -SKVQ_ENOMEM : skvq_client_staging_add(b->client, fd, &staging);
	(void)close(fd);
	for (uint32_t i = 0; i < b->pages && r >= 0; i += RUN)
		r = publish_run(b, staging, map, i, b->pages - i < RUN ? b->pages - i : RUN);
	if (map != MAP_FAILED)
		(void)munmap(map, bytes);
	return r;
}

static int match_once(struct bench *b)
{
	double start = bench_now_us();
	uint32_t n = b->pages * SKVQ_PAGE_TOKENS;
	int got = skvq_client_match(b->client, b->ns.ns, b->tokens, n, n, 0, b->refs, b->base_only,
				    b->pages);

	if (got < 0)
		return got;
	if (b->n_us < SAMPLES)
		b->us[b->n_us++] = bench_now_us() - start;
	b->matched = (uint32_t)got;
	return got ? skvq_client_unpin(b->client, b->ns.ns, b->refs, (uint32_t)got) : 0;
}

static double quantile(const struct bench *b, double q)
{
	return bench_quantile(b->us, b->n_us, q);
}

static void report(struct bench *b, bool json)
{
	bench_sort(b->us, b->n_us);
	if (!json) {
		(void)printf("%u of %u pages of %u bytes: %u matches, p50 %.0f us, p99 %.0f us, "
			     "max %.0f us\n",
			     b->matched, b->pages, b->model.layout.base_bytes, b->n_us,
			     quantile(b, .5), quantile(b, .99), quantile(b, 1));
		return;
	}
	json_t *o =
	    json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "pages", (json_int_t)b->pages,
		      "page_bytes", (json_int_t)b->model.layout.base_bytes, "matched",
		      (json_int_t)b->matched, "matches", (json_int_t)b->n_us, "p50_us",
		      quantile(b, .5), "p99_us", quantile(b, .99), "max_us", quantile(b, 1));
	(void)json_dumpf(o, stdout, JSON_REAL_PRECISION(9));
	(void)putchar('\n');
	json_decref(o);
}

static int run(struct bench *b, bool do_publish, bool do_match, bool once)
{
	double until;
	int r = open_namespace(b);

	if (!r && do_publish)
		r = publish(b);
	until = bench_now_us() + b->seconds * 1e6;
	do {
		if (r >= 0 && do_match)
			r = match_once(b);
	} while (r >= 0 && do_match && !once && bench_now_us() < until);
	return r;
}

static uint32_t number(const char *name, const char *text, uint32_t max)
{
	return (uint32_t)bench_number("bench-match", name, text, 1, max);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	    {"socket", required_argument, NULL, 's'},   {"pages", required_argument, NULL, 'n'},
	    {"seconds", required_argument, NULL, 't'},  {"seed", required_argument, NULL, 'S'},
	    {"publish-only", no_argument, NULL, 'P'},   {"match-only", no_argument, NULL, 'M'},
	    {"once", no_argument, NULL, 'o'},           {"layers", required_argument, NULL, 'l'},
	    {"kv-heads", required_argument, NULL, 'k'}, {"head-dim", required_argument, NULL, 'd'},
	    {"profile", required_argument, NULL, 'p'},  {"json", no_argument, NULL, 'j'},
	    {"help", no_argument, NULL, 'h'},           {0}};
	static struct bench bench = {.pages = 512, .seed = 1, .seconds = 3, .profile = "k4v2"};
	struct bench *b = &bench;
	struct skvq_geometry geo = {30, 3, 64, 64, 5};
	static const uint8_t digest[32] = "bench-match";
	bool json = false, do_publish = true, do_match = true, once = false;
	const char *socket = NULL;
	char why[SKVQ_CLIENT_WHY_BYTES] = "";
	int opt, r;

	while ((opt = getopt_long(argc, argv, "hs:", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			socket = optarg;
			break;
		case 'n':
			b->pages = number("pages", optarg, 65536);
			break;
		case 't':
			b->seconds = number("seconds", optarg, 3600);
			break;
		case 'S':
			b->seed = number("seed", optarg, 1u << 20);
			break;
		case 'P':
			do_match = false;
			break;
		case 'M':
			do_publish = false;
			break;
		case 'o':
			once = true;
			break;
		case 'l':
			geo.n_layer = number("layers", optarg, SKVQ_LAYERS_MAX);
			break;
		case 'k':
			geo.n_kv_heads = number("kv-heads", optarg, SKVQ_KV_HEADS_MAX);
			break;
		case 'd':
			geo.head_dim_k = geo.head_dim_v =
			    number("head-dim", optarg, SKVQ_HEAD_DIM_MAX);
			break;
		case 'p':
			b->profile = optarg;
			break;
		case 'j':
			json = true;
			break;
		default:
			(void)fputs(help, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (!socket || optind < argc) {
		(void)fputs(help, stderr);
		return 2;
	}
	r = made_up_model_init(&b->model, &geo, b->profile, "bench-match", digest);
	if (r < 0) {
		(void)fprintf(stderr, "bench-match: profile '%s' with this geometry: %s\n",
			      b->profile, skvq_err_name(r));
		return 2;
	}
	b->tokens = calloc((size_t)b->pages * SKVQ_PAGE_TOKENS, sizeof(*b->tokens));
	b->refs = calloc(b->pages, sizeof(*b->refs));
	b->base_only = calloc(b->pages, sizeof(*b->base_only));
	b->us = malloc(SAMPLES * sizeof(*b->us));
	if (!b->tokens || !b->refs || !b->base_only || !b->us)
		abort();
	for (uint32_t i = 0; i < b->pages * SKVQ_PAGE_TOKENS; i++)
		b->tokens[i] = (int32_t)((b->seed * 2654435761u + i * 40503u) % 49152u);
	r = skvq_client_connect(socket, "bench-match", TIMEOUT_MS, &b->client, why);
	if (r < 0) {
		(void)fprintf(stderr, "bench-match: no daemon answers on '%s': %s\n", socket, why);
		return 1;
	}
	skvq_client_on_published(b->client, published, b);
	r = run(b, do_publish, do_match, once);
	if (r < 0)
		(void)fprintf(stderr, "bench-match: %s: %s\n", skvq_err_name(r),
			      skvq_client_why(b->client));
	else if (do_match)
		report(b, json);
	skvq_client_free(b->client);
	free(b->tokens);
	free(b->refs);
	free(b->base_only);
	free(b->us);
	return r < 0 ? 1 : 0;
}
