/* SPDX-License-Identifier: Apache-2.0 */
#include "gather.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int by_bytes(const void *a, const void *b)
{
	const struct skvq_client_ns_info *x = a, *y = b;
	if (x->bytes != y->bytes)
		return x->bytes < y->bytes ? 1 : -1;
	return x->ns < y->ns ? -1 : x->ns > y->ns;
}

static void add(struct skvq_client_ns_info *sum, const struct skvq_client_ns_info *ns)
{
	sum->pages += ns->pages;
	sum->bytes += ns->bytes;
	sum->pins += ns->pins;
	sum->tokens_asked += ns->tokens_asked;
	sum->tokens_matched += ns->tokens_matched;
	sum->page_hits += ns->page_hits;
	sum->evictions += ns->evictions;
}

static int gather_namespaces(struct skvq_client *c, struct gathered *g)
{
	struct skvq_client_ns_info *all = NULL;
	size_t n = 0;
	int err = skvq_client_namespaces(c, &all, &n);

	if (err < 0)
		return err;
	qsort(all, n, sizeof(*all), by_bytes);
	for (size_t i = 0; i < n; i++) {
		if (i < GATHER_NAMESPACES) {
			g->ns[g->n_ns++].info = all[i];
		} else {
			add(&g->others, &all[i]);
			g->n_others++;
		}
	}
	free(all);
	/* One that was dropped meanwhile, or a daemon that keeps none: nothing is shown. */
	for (size_t i = 0; i < g->n_ns && i < GATHER_LAYERS_OF && !skvq_client_broken(c); i++)
		(void)skvq_client_errors(c, g->ns[i].info.ns, &g->ns[i].errors, &g->ns[i].n_errors);
	return skvq_client_broken(c) ? -SKVQ_ENODAEMON : 0;
}

static int gather_pins(struct skvq_client *c, struct gathered *g)
{
	struct skvq_client_pin_info *all = NULL;
	size_t n = 0;
	int err = skvq_client_pins(c, &all, &n);

	if (err < 0)
		return err;
	for (size_t i = 0; i < n; i++) {
		if (!all[i].pins)
			continue;
		g->pin_holders++;
		if (all[i].age_ms > g->pin_age_ms)
			g->pin_age_ms = all[i].age_ms;
	}
	free(all);
	return 0;
}

static int gather_all(struct skvq_client *c, struct gathered *g)
{
	int err = skvq_client_status_with_help(c, g->status);

	if (err >= 0)
		err = gather_namespaces(c, g);
	if (err >= 0)
		err = gather_pins(c, g);
	return err;
}

void gathered_fini(struct gathered *g)
{
	for (size_t i = 0; i < g->n_ns; i++)
		free(g->ns[i].errors);
	free(g->status);
	memset(g, 0, sizeof(*g));
}

/* One try, on a connection that was there or a new one. */
static int try(struct gatherer *gr, struct gathered *g)
{
	int err = 0;

	memset(g, 0, sizeof(*g));
	g->status = calloc(1, sizeof(*g->status));
	if (!g->status) {
		snprintf(g->why, sizeof(g->why), "no memory");
		return -SKVQ_ENOMEM;
	}
	if (!gr->client)
		err = skvq_client_connect(gr->socket, "skvq-exporter", GATHER_TIMEOUT_MS,
					  &gr->client, g->why);
	if (err < 0)
		return err;
	err = gather_all(gr->client, g);
	if (err < 0) {
		snprintf(g->why, sizeof(g->why), "%s", skvq_client_why(gr->client));
		skvq_client_free(gr->client);
		gr->client = NULL;
	}
	return err;
}

void gather(struct gatherer *gr, struct gathered *g)
{
	char why[sizeof(g->why)];
	double began = now();
	bool kept = gr->client != NULL;
	int err = try(gr, g);

	/* The daemon that was there may have been followed by another. */
	if (err < 0 && kept) {
		gathered_fini(g);
		err = try(gr, g);
	}
	if (err < 0) {
		memcpy(why, g->why, sizeof(why));
		gathered_fini(g);
		memcpy(g->why, why, sizeof(why));
	}
	g->up = err >= 0;
	g->seconds = now() - began;
}

void gatherer_fini(struct gatherer *gr)
{
	skvq_client_free(gr->client);
	gr->client = NULL;
}
