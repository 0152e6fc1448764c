/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"
#include "traffic.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

#define SIZES_MAX    16u
#define TRACES_MAX   16u
#define PAGES_MIN    16u
#define TRAFFIC_SEED 1u

static const char help[] =
    "usage: bench-evict [options]\n"
    "Which part of the tokens that are asked for is in the cache, by policy of eviction and size "
    "of\n"
    "the cache, on traces and on made-up traffic. Pages, trees and the daemon's policy are the\n"
    "daemon's own code.\n"
    "  --trace FILE      in Mooncake's format, one JSON object a line with input_length and\n"
    "                    hash_ids; may be given again\n"
    "  --block-tokens N  of a hash in traces, default 512\n"
    "  --traffic NAME    chat, rag, agent, mix, scan (mix, and long documents that are read\n"
    "                    once), talk (short chats) or serve (mix and short chats); may be given\n"
    "                    again. Without any: all of them, unless there is a trace\n"
    "  --requests N      of made-up traffic, default 20000\n"
    "  --seed N          of made-up traffic, default 1\n"
    "  --sizes N,N,...   of the cache, percent of all different pages; default 1,2,5,10,20,50\n"
    "  --policy NAME     only this one; may be given again\n"
    "  --quick           2000 requests\n"
    "  --json            {\"traces\": [{\"name\", \"requests\", \"pages\", \"footprint_pages\",\n"
    "                    \"sizes_percent\", \"hit_percent\": {policy: [by size]},\n"
    "                    \"hit_percent_without_bound\", \"seconds\": {policy: of all sizes}}]}\n"
    "policies:\n";

struct options {
	const char *traces[TRACES_MAX], *traffic[TRACES_MAX], *policies[TRACES_MAX];
	uint32_t n_traces, n_traffic, n_policies, n_sizes;
	double sizes[SIZES_MAX];
	uint32_t block_tokens, requests;
	uint64_t seed;
	bool json;
};

static void usage(FILE *to)
{
	fputs(help, to);
	for (uint32_t i = 0; i < n_rivals; i++)
		fprintf(to, "  %-10s %s\n", rivals[i].name, rivals[i].what);
}

/* ---- one trace ---- */

static bool wanted(const struct options *o, const char *policy)
{
	for (uint32_t i = 0; i < o->n_policies; i++) {
		if (!strcmp(o->policies[i], policy))
			return true;
	}
	return !o->n_policies;
}

static double percent(uint64_t part, uint64_t of)
{
	return of ? 100.0 * (double)part / (double)of : 0;
}

static void print_head(const struct options *o, const struct trace *t, double most)
{
	printf("%s: %u requests, %llu pages of %u tokens, %u different; %.1f %% would be found if "
	       "nothing went\n%-12s",
	       t->name, t->n_requests, (unsigned long long)t->n_pages, SKVQ_PAGE_TOKENS,
	       t->footprint, most, "");
	for (uint32_t i = 0; i < o->n_sizes; i++)
		printf("%7g %%", o->sizes[i]);
	printf("\n");
}

static int run_policy(const struct options *o, const struct trace *t, const struct rival *rival,
		      json_t *hits, json_t *seconds)
{
	json_t *list = json_array();
	double spent = 0;

	if (!o->json)
		printf("%-12s", rival->name);
	for (uint32_t i = 0; i < o->n_sizes; i++) {
		double pages = t->footprint * o->sizes[i] / 100;
		struct sim_result r;

		if (sim_run(t, rival, pages < PAGES_MIN ? PAGES_MIN : (uint32_t)pages, &r) < 0) {
			json_decref(list);
			return -1;
		}
		spent += r.seconds;
		json_array_append_new(list, json_real(percent(r.hit, r.asked)));
		if (!o->json)
			printf("%9.2f", percent(r.hit, r.asked));
	}
	if (!o->json)
		printf("\n");
	json_object_set_new(hits, rival->name, list);
	json_object_set_new(seconds, rival->name, json_real(spent));
	return 0;
}

static int run_trace(const struct options *o, const struct trace *t, json_t *traces)
{
	double most = percent(t->n_pages - t->footprint, t->n_pages);
	json_t *hits = json_object(), *seconds = json_object(), *sizes = json_array();
	int status = 0;

	if (!o->json)
		print_head(o, t, most);
	for (uint32_t i = 0; i < n_rivals && !status; i++) {
		if (wanted(o, rivals[i].name))
			status = run_policy(o, t, &rivals[i], hits, seconds);
	}
	for (uint32_t i = 0; i < o->n_sizes; i++)
		json_array_append_new(sizes, json_real(o->sizes[i]));
	json_array_append_new(traces, json_pack("{s:s, s:i, s:I, s:I, s:o, s:o, s:f, s:o}", "name",
						t->name, "requests", (int)t->n_requests, "pages",
						(json_int_t)t->n_pages, "footprint_pages",
						(json_int_t)t->footprint, "sizes_percent", sizes,
						"hit_percent", hits, "hit_percent_without_bound",
						most, "seconds", seconds));
	if (!o->json)
		printf("\n");
	return status;
}

static int run_all(const struct options *o)
{
	json_t *traces = json_array(), *all = json_pack("{s:o}", "traces", traces);
	int status = 0;

	for (uint32_t i = 0; i < o->n_traces + o->n_traffic && !status; i++) {
		struct trace t;

		status = i < o->n_traces
			     ? trace_load(o->traces[i], o->block_tokens, &t)
			     : trace_make(o->traffic[i - o->n_traces], o->seed, o->requests, false, &t);
		if (!status && run_trace(o, &t, traces) < 0) {
			fprintf(stderr, "bench-evict: no memory for '%s'\n", t.name);
			status = -1;
		}
		trace_free(&t);
	}
	if (!status && o->json) {
		json_dumpf(all, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
		printf("\n");
	}
	json_decref(all);
	return status;
}

/* ---- command line ---- */

/* Or exits: 2. */
static double number(const char *name, const char *text, double least, double most, char end)
{
	char *after;
	double n = strtod(text, &after);

	/* Written so that NaN is refused. */
	if (after == text || (*after && *after != end) || !(n >= least && n <= most)) {
		fprintf(stderr, "bench-evict: --%s takes %g to %g, not '%s'\n", name, least, most,
			text);
		exit(2);
	}
	return n;
}

static void put(const char *name, const char **list, uint32_t *n, const char *value)
{
	if (*n == TRACES_MAX) {
		fprintf(stderr, "bench-evict: --%s may be given %u times\n", name, TRACES_MAX);
		exit(2);
	}
	list[(*n)++] = value;
}

static void put_policy(struct options *o, const char *name)
{
	for (uint32_t i = 0; i < n_rivals; i++) {
		if (!strcmp(rivals[i].name, name)) {
			put("policy", o->policies, &o->n_policies, rivals[i].name);
			return;
		}
	}
	fprintf(stderr, "bench-evict: there is no policy '%s'\n", name);
	exit(2);
}

static void put_sizes(struct options *o, const char *text)
{
	o->n_sizes = 0;
	while (text && o->n_sizes < SIZES_MAX) {
		o->sizes[o->n_sizes++] = number("sizes", text, 0.01, 100, ',');
		text = strchr(text, ',');
		text = text ? text + 1 : NULL;
	}
	if (text) {
		fprintf(stderr, "bench-evict: --sizes takes up to %u\n", SIZES_MAX);
		exit(2);
	}
}

static void put_traffic(struct options *o, const char *name)
{
	for (uint32_t i = 0; i < trace_names_n; i++) {
		if (!strcmp(trace_names[i], name)) {
			put("traffic", o->traffic, &o->n_traffic, trace_names[i]);
			return;
		}
	}
	fprintf(stderr, "bench-evict: there is no traffic '%s'\n", name);
	exit(2);
}

static void parse(struct options *o, int argc, char **argv)
{
	static const struct option options[] = {{"trace", 1, 0, 't'},
						{"block-tokens", 1, 0, 'b'},
						{"traffic", 1, 0, 'm'},
						{"requests", 1, 0, 'r'},
						{"seed", 1, 0, 's'},
						{"sizes", 1, 0, 'z'},
						{"policy", 1, 0, 'p'},
						{"quick", 0, 0, 'q'},
						{"json", 0, 0, 'j'},
						{"help", 0, 0, 'h'},
						{0, 0, 0, 0}};
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 't':
			put("trace", o->traces, &o->n_traces, optarg);
			break;
		case 'b':
			o->block_tokens = (uint32_t)number("block-tokens", optarg, 1, 65536, 0);
			break;
		case 'm':
			put_traffic(o, optarg);
			break;
		case 'r':
			o->requests = (uint32_t)number("requests", optarg, 1, 1000000, 0);
			break;
		case 's':
			o->seed = (uint64_t)number("seed", optarg, 0, 4294967295.0, 0);
			break;
		case 'z':
			put_sizes(o, optarg);
			break;
		case 'p':
			put_policy(o, optarg);
			break;
		case 'q':
			o->requests = 2000;
			break;
		case 'j':
			o->json = true;
			break;
		default:
			usage(opt == 'h' ? stdout : stderr);
			exit(opt == 'h' ? 0 : 2);
		}
	}
	if (optind < argc) {
		usage(stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options o = {.block_tokens = 512, .requests = 20000, .seed = TRAFFIC_SEED};

	put_sizes(&o, "1,2,5,10,20,50");
	parse(&o, argc, argv);
	if (!o.n_traces && !o.n_traffic) {
		for (uint32_t i = 0; i < trace_names_n; i++)
			put_traffic(&o, trace_names[i]);
	}
	return run_all(&o) < 0 ? 1 : 0;
}
