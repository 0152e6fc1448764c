/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages of made-up codes, of the geometry of a small model, go into a namespace of their own and are
 * matched and read there: what this daemon on this machine does for its engines, without one.
 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "publisher.h"

#define MATCHES  50u
#define PINGS    1000u

static const struct skvq_geometry geometry = {30, 3, 64, 64, 5}; /* SmolLM2-135M's */
static const char profile[] = "k4v2";

struct bench {
	struct ctl *ctl;
	struct publisher p;
	uint32_t n_pages;
	uint8_t *arena;  /* all of it, NULL: not mapped */
	int32_t *tokens; /* of all pages */
	struct skvq_page_ref *pages;
	bool *base_only;
	uint32_t n_published;
	double ping_us[PINGS], match_us[MATCHES], publish_us, read_us;
};

static int fail(struct bench *b, const char *what, int err)
{
	return ctl_failed(b->ctl, b->p.client, what, err);
}

static int open_all(struct bench *b)
{
	int arena = -1, result = publisher_open(&b->p, &arena);

	if (result != CTL_OK)
		return result;
	b->arena = mmap(NULL, b->p.ns.arena_bytes, PROT_READ, MAP_SHARED, arena, 0);
	close(arena);
	if (b->arena == MAP_FAILED) {
		b->arena = NULL;
		fputs("skvqctl bench: cannot map the arena\n", stderr);
		return CTL_FAILED;
	}
	return CTL_OK;
}

static int measure_pings(struct bench *b)
{
	uint8_t payload[32] = {0};

	for (uint32_t i = 0; i < PINGS; i++) {
		double at = bench_now_us();
		int err = skvq_client_ping(b->p.client, payload, sizeof(payload));

		if (err < 0)
			return fail(b, "answer a ping", err);
		b->ping_us[i] = bench_now_us() - at;
	}
	bench_sort(b->ping_us, PINGS);
	return CTL_OK;
}

static int publish_run(struct bench *b)
{
	uint32_t first = b->n_published, left = b->n_pages - first;
	struct skvq_page_ref none = {0};
	int err = publisher_publish(&b->p, b->tokens + first * SKVQ_PAGE_TOKENS, first,
				    left < PUBLISHER_RUN ? left : PUBLISHER_RUN,
				    first ? b->pages[first - 1] : none, b->pages + first);

	b->n_published += b->p.n_done;
	return err;
}

static int measure_publish(struct bench *b)
{
	double at = bench_now_us();

	while (b->n_published < b->n_pages) {
		int err = publish_run(b);

		if (err < 0)
			return fail(b, "take pages", err);
		if (b->p.failed) {
			fprintf(stderr, "skvqctl bench: after %" PRIu32 " pages: %s (%s)\n",
				b->n_published, ctl_clean(b->p.why), skvq_err_name(b->p.failed));
			return CTL_FAILED;
		}
	}
	b->publish_us = bench_now_us() - at;
	return CTL_OK;
}

/* As an engine attaches to a prefix that is there. All pages stay pinned by the first of them. */
static int measure_match(struct bench *b)
{
	uint32_t n_tokens = b->n_pages * SKVQ_PAGE_TOKENS;

	for (uint32_t i = 0; i < MATCHES; i++) {
		double at = bench_now_us();
		int n = skvq_client_match(b->p.client, b->p.ns.ns, b->tokens, n_tokens, n_tokens, 0, b->pages,
					  b->base_only, b->n_pages);

		b->match_us[i] = bench_now_us() - at;
		if (n < 0)
			return fail(b, "match the pages", n);
		if ((uint32_t)n != b->n_pages) {
			fprintf(stderr,
				"skvqctl bench: %d of %" PRIu32 " pages are there still: others need the "
				"room\n",
				n, b->n_pages);
			return CTL_FAILED;
		}
		n = skvq_client_unpin(b->p.client, b->p.ns.ns, b->pages, b->n_pages);
		if (n < 0)
			return fail(b, "unpin the pages", n);
	}
	bench_sort(b->match_us, MATCHES);
	return CTL_OK;
}

/* In place, by one thread, as attention reads it; the second round, when all is mapped. */
static void measure_read(struct bench *b)
{
	size_t words = b->p.model.layout.base_bytes / sizeof(uint64_t);
	volatile uint64_t sink = 0;

	for (int round = 0; round < 2; round++) {
		double at = bench_now_us();

		for (uint32_t p = 0; p < b->n_pages; p++) {
			const uint64_t *from =
			    (const void *)(b->arena + b->pages[p].slot * b->p.ns.slot_bytes);
			uint64_t sum = 0;

			for (size_t i = 0; i < words; i++)
				sum += from[i];
			sink = sink + sum;
		}
		b->read_us = bench_now_us() - at;
	}
}

static int report(const struct bench *b)
{
	double bytes = (double)b->n_pages * b->p.model.layout.base_bytes;
	double publish = bytes / b->publish_us / 1e3, read = bytes / b->read_us / 1e3;
	double ping50 = bench_quantile(b->ping_us, PINGS, .5),
	       ping99 = bench_quantile(b->ping_us, PINGS, .99),
	       match50 = bench_quantile(b->match_us, MATCHES, .5);
	char size[CTL_HUMAN_BYTES];

	if (b->ctl->json)
		return ctl_print_json(json_pack(
		    "{s:I, s:I, s:s, s:f, s:f, s:f, s:f, s:f}", "pages", (json_int_t)b->n_pages,
		    "page_bytes", (json_int_t)b->p.model.layout.base_bytes, "profile", profile, "ping_p50_us",
		    ping50, "ping_p99_us", ping99, "publish_gb_s", publish, "match_p50_us", match50,
		    "read_gb_s", read));
	printf("request   p50 %.1f us, p99 %.1f us\n", ping50, ping99);
	printf("publish   %.2f GB/s: %" PRIu32 " pages, %s, %s\n", publish, b->n_pages,
	       ctl_human_bytes((uint64_t)bytes, size), profile);
	printf("match     p50 %.0f us for a prefix of %" PRIu32 " pages, %u tokens\n", match50,
	       b->n_pages, b->n_pages * SKVQ_PAGE_TOKENS);
	printf("read      %.1f GB/s in place, by one thread\n", read);
	return ctl_flush();
}

static int make_model(struct bench *b)
{
	b->tokens = calloc((size_t)b->n_pages * SKVQ_PAGE_TOKENS, sizeof(*b->tokens));
	b->pages = calloc(b->n_pages, sizeof(*b->pages));
	b->base_only = calloc(b->n_pages, sizeof(*b->base_only));
	if (!b->tokens || !b->pages || !b->base_only ||
	    publisher_init(&b->p, b->ctl, "bench", &geometry, profile) < 0)
		return -1;
	for (uint32_t i = 0; i < b->n_pages * SKVQ_PAGE_TOKENS; i++)
		b->tokens[i] = (int32_t)(made_up_random(&b->p.random) % 49152);
	return 0;
}

static int measure(struct bench *b, bool yes)
{
	int result = publisher_ask_for_room(&b->p, b->n_pages, true, yes);

	if (result == CTL_OK)
		result = open_all(b);
	if (result == CTL_OK)
		result = measure_pings(b);
	if (result == CTL_OK)
		result = measure_publish(b);
	if (result == CTL_OK)
		result = measure_match(b);
	if (result != CTL_OK)
		return result;
	measure_read(b);
	return report(b);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct bench *b = calloc(1, sizeof(*b));
	uint64_t pages = 512;
	bool yes = false;
	int opt, result;

	if (!b)
		abort();
	while ((opt = ctl_getopt(ctl, &verb_bench, argc, argv)) > 0) {
		if (opt == 'y') {
			yes = true;
		} else if (!ctl_number("--pages", optarg, 1, 65536, &pages)) {
			free(b);
			return CTL_USAGE;
		}
	}
	b->ctl = ctl;
	b->n_pages = (uint32_t)pages;
	result = opt < 0 ? ctl->result : CTL_FAILED;
	if (opt == 0 && make_model(b) < 0)
		fputs("skvqctl bench: no memory for so many pages\n", stderr);
	else if (opt == 0)
		result = publisher_connect(&b->p);
	if (b->p.client)
		result = measure(b, yes);
	if (b->arena)
		munmap(b->arena, b->p.ns.arena_bytes);
	publisher_close(&b->p);
	free(b->tokens);
	free(b->pages);
	free(b->base_only);
	free(b);
	return result;
}

static const struct ctl_opt opts[] = {
    {'p', "pages", "N", "so many pages; default 512, which take about 190 MB"},
    {'y', "yes", NULL, "also if pages of others have to go for it"},
};

const struct ctl_verb verb_bench = {
    .name = "bench",
    .summary = "how fast this daemon is on this machine",
    .about = "Publishes pages of made-up codes into a namespace of their own, matches them as an engine "
	     "does that attaches to a prefix, and reads them in place: round trip of a small request, "
	     "publish rate, time of a match, read rate of one thread.\n\n"
	     "The pages stay until their room is needed: they are the first to go that nobody uses. If "
	     "there is no room for them without dropping others, it asks, or wants --yes.",
    CTL_OPTS(opts),
    .json = "pages, page_bytes, profile, ping_p50_us, ping_p99_us, publish_gb_s, match_p50_us (of all "
	    "pages), read_gb_s.",
    .run = run,
};
