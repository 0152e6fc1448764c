/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requests of a trace, one after the other, as one engine makes them: match, compute the rest (which
 * takes no time here), publish it, let go. Pages are made up and small.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common.h"
#include "publisher.h"
#include "trace.h"
#include "traces.h"

#define VOCABULARY 49152u
#define PAGES_MAX  8192u /* of a request: 655,000 tokens */

static const char profile[] = "k4v2";

struct times {
	double *us;
	size_t n;
};

struct replay {
	struct ctl *ctl;
	const struct trace_options *o;
	struct publisher p;
	struct trace trace;
	int32_t *tokens; /* of a request */
	struct skvq_page_ref *pages;
	bool *base_only;
	struct times match, publish;
	uint64_t requests, tokens_asked, tokens_found, pages_published, refused, late_ms, cut;
	uint64_t evictions[2]; /* of the daemon: before and after */
	double seconds;
};

/* As many layers of one head as make a page of so many bytes. */
static int init_model(struct replay *r)
{
	struct skvq_geometry geometry = {1, 1, 64, 64, 5};

	for (; geometry.n_layer <= SKVQ_LAYERS_MAX; geometry.n_layer++) {
		if (publisher_init(&r->p, r->ctl, "trace", &geometry, profile) < 0)
			return -1;
		if (r->p.model.layout.base_bytes >= r->o->page_bytes)
			return 0;
	}
	return -1;
}

/* The same page always has the same tokens, and no other has them. */
static void fill_tokens(struct replay *r, const struct request *request, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t page = r->trace.pages[request->first + i];
		int32_t *at = r->tokens + (size_t)i * SKVQ_PAGE_TOKENS;

		for (uint32_t t = 0; t < SKVQ_PAGE_TOKENS; t++)
			at[t] = (int32_t)(mix(page * SKVQ_PAGE_TOKENS + t) % VOCABULARY);
		at[0] = (int32_t)(page % VOCABULARY); /* these two alone tell pages apart */
		at[1] = (int32_t)(page / VOCABULARY % VOCABULARY);
	}
}

/* Until it is time for the request; how late it is. */
static void wait_for(struct replay *r, const struct request *request, double began_us)
{
	double due_us = r->o->speed > 0 ? (double)(request->time_ms - r->trace.requests[0].time_ms) * 1e3 /
						  r->o->speed
					: 0;
	double left_us = due_us - (bench_now_us() - began_us);
	struct timespec ts;

	if (r->o->speed <= 0 || request->time_ms < r->trace.requests[0].time_ms)
		return;
	if (left_us <= 0) {
		uint64_t late_ms = (uint64_t)(-left_us / 1e3);

		r->late_ms = late_ms > r->late_ms ? late_ms : r->late_ms;
		return;
	}
	ts = (struct timespec){.tv_sec = (time_t)(left_us / 1e6),
			       .tv_nsec = (long)(left_us - (double)(time_t)(left_us / 1e6) * 1e6) * 1000};
	nanosleep(&ts, NULL);
}

static int publish_rest(struct replay *r, uint32_t at, uint32_t n)
{
	while (at < n) {
		uint32_t run = n - at < PUBLISHER_RUN ? n - at : PUBLISHER_RUN;
		struct skvq_page_ref none = {0};
		double began = bench_now_us();
		int err = publisher_publish(&r->p, r->tokens + (size_t)at * SKVQ_PAGE_TOKENS, at, run,
					    at ? r->pages[at - 1] : none, r->pages + at);

		if (err < 0)
			return err;
		r->publish.us[r->publish.n++] = bench_now_us() - began;
		r->pages_published += r->p.n_done;
		at += r->p.n_done;
		if (r->p.failed || r->p.n_done < run) { /* no room: as an engine, it goes on without */
			r->refused++;
			break;
		}
	}
	return (int)at;
}

static int one(struct replay *r, const struct request *request)
{
	uint32_t most = skvq_client_hello(r->p.client)->pins_max, n = request->n;
	double began;
	int found, err;

	most = most < PAGES_MAX ? most : PAGES_MAX;
	r->cut += n > most;
	n = n < most ? n : most;
	if (!n)
		return 0;
	fill_tokens(r, request, n);
	began = bench_now_us();
	found = skvq_client_match(r->p.client, r->p.ns.ns, r->tokens, n * SKVQ_PAGE_TOKENS,
				  n * SKVQ_PAGE_TOKENS, 0, r->pages, r->base_only, n);
	if (found < 0)
		return ctl_failed(r->ctl, r->p.client, "match a prefix", found);
	r->match.us[r->match.n++] = bench_now_us() - began;
	r->requests++;
	r->tokens_asked += (uint64_t)n * SKVQ_PAGE_TOKENS;
	r->tokens_found += (uint64_t)found * SKVQ_PAGE_TOKENS;
	err = publish_rest(r, (uint32_t)found, n);
	if (err < 0)
		return ctl_failed(r->ctl, r->p.client, "take pages", err);
	err = err ? skvq_client_unpin(r->p.client, r->p.ns.ns, r->pages, (uint32_t)err) : 0;
	return err < 0 ? ctl_failed(r->ctl, r->p.client, "unpin pages", err) : CTL_OK;
}

static int ask_evictions(struct replay *r, uint64_t *ret)
{
	struct skvq_client_status *s;
	int err = ctl_status(r->p.client, &s);

	if (err >= 0)
		*ret = ctl_counter(s, "evictions");
	free(s);
	return err < 0 ? ctl_failed(r->ctl, r->p.client, "tell its status", err) : CTL_OK;
}

static int report(struct replay *r)
{
	double share = r->tokens_asked ? (double)r->tokens_found / (double)r->tokens_asked : 0;
	uint64_t evictions = r->evictions[1] - r->evictions[0];
	double m50, m99, p50, p99;

	bench_sort(r->match.us, r->match.n);
	bench_sort(r->publish.us, r->publish.n);
	m50 = bench_quantile(r->match.us, r->match.n, .5);
	m99 = bench_quantile(r->match.us, r->match.n, .99);
	p50 = bench_quantile(r->publish.us, r->publish.n, .5);
	p99 = bench_quantile(r->publish.us, r->publish.n, .99);
	if (r->ctl->json)
		return ctl_print_json(json_pack(
		    "{s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I}",
		    "requests", (json_int_t)r->requests, "tokens", (json_int_t)r->tokens_asked, "hit_share",
		    share, "pages_published", (json_int_t)r->pages_published, "pages_different",
		    (json_int_t)r->trace.footprint, "page_bytes", (json_int_t)r->p.model.layout.base_bytes,
		    "refused", (json_int_t)r->refused, "evictions", (json_int_t)evictions, "seconds",
		    r->seconds, "match_p50_us", m50, "match_p99_us", m99, "publish_p50_us", p50,
		    "publish_p99_us", p99, "late_ms", (json_int_t)r->late_ms, "cut", (json_int_t)r->cut));
	printf("%" PRIu64 " requests in %.1f s: %.1f %% of %" PRIu64 " tokens were found\n", r->requests,
	       r->seconds, 100 * share, r->tokens_asked);
	printf("match     p50 %.0f us, p99 %.0f us\n", m50, m99);
	printf("publish   p50 %.0f us, p99 %.0f us, of up to %u pages; %" PRIu64 " pages of %u bytes, %" PRIu64
	       " requests refused\n",
	       p50, p99, PUBLISHER_RUN, r->pages_published, r->p.model.layout.base_bytes, r->refused);
	printf("evictions %" PRIu64 "; the trace has %" PRIu32 " different pages\n", evictions,
	       r->trace.footprint);
	if (r->late_ms > 1000)
		printf("late      by up to %.1f s: the trace is faster than this\n", (double)r->late_ms / 1e3);
	return ctl_flush();
}

static int play(struct replay *r)
{
	double began;
	int result = ask_evictions(r, &r->evictions[0]);

	if (result == CTL_OK)
		result = publisher_open(&r->p, NULL);
	began = bench_now_us();
	for (uint32_t i = 0; result == CTL_OK && i < r->trace.n_requests; i++) {
		if (r->o->count && i >= r->o->count)
			break;
		if (r->o->seconds && bench_now_us() - began > (double)r->o->seconds * 1e6)
			break;
		wait_for(r, &r->trace.requests[i], began);
		result = one(r, &r->trace.requests[i]);
	}
	r->seconds = (bench_now_us() - began) / 1e6;
	if (result == CTL_OK)
		result = ask_evictions(r, &r->evictions[1]);
	return result == CTL_OK ? report(r) : result;
}

/* -1: no memory. */
static int make_room(struct replay *r)
{
	uint64_t runs = r->trace.n_pages / PUBLISHER_RUN + r->trace.n_requests;

	r->tokens = malloc((size_t)PAGES_MAX * SKVQ_PAGE_TOKENS * sizeof(*r->tokens));
	r->pages = malloc(PAGES_MAX * sizeof(*r->pages));
	r->base_only = malloc(PAGES_MAX * sizeof(*r->base_only));
	r->match.us = malloc(r->trace.n_requests * sizeof(double));
	r->publish.us = malloc(runs * sizeof(double));
	return r->tokens && r->pages && r->base_only && r->match.us && r->publish.us ? 0 : -1;
}

int trace_replay(struct ctl *ctl, const struct trace_options *o)
{
	struct replay *r = calloc(1, sizeof(*r));
	int result = CTL_FAILED;

	if (!r)
		abort();
	r->ctl = ctl;
	r->o = o;
	if (trace_load(o->path, (uint32_t)o->block_tokens, &r->trace) == 0) { /* else it was told */
		if (init_model(r) < 0 || make_room(r) < 0)
			fputs(TRACE_VERB ": no memory, or there are no pages of so many bytes\n", stderr);
		else
			result = publisher_connect(&r->p);
	}
	if (r->p.client)
		result = publisher_ask_for_room(&r->p, r->trace.footprint, false, o->yes);
	if (r->p.client && result == CTL_OK)
		result = play(r);
	publisher_close(&r->p);
	trace_free(&r->trace);
	free(r->tokens);
	free(r->pages);
	free(r->base_only);
	free(r->match.us);
	free(r->publish.us);
	free(r);
	return result;
}
