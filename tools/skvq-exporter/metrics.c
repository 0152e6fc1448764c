/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/format.h>

/* Counters of the status that go down as well. */
static const char *const gauges[] = {"store_charged_bytes", "store_records", "store_transfers_lost",
				     "store_transfers_out"};

/* --- the format ------------------------------------------------------------------------------ */

static void head(FILE *f, const char *name, const char *type, const char *help)
{
	fprintf(f, "# HELP %s ", name);
	for (const char *p = help; *p; p++) {
		if (*p == '\\')
			fputs("\\\\", f);
		else
			fputc(*p == '\n' ? ' ' : *p, f);
	}
	fprintf(f, "\n# TYPE %s %s\n", name, type);
}

/* Values come from other processes by way of the daemon. */
static void label(FILE *f, const char *name, const char *value)
{
	fprintf(f, "%s=\"", name);
	for (const unsigned char *p = (const unsigned char *)value; *p; p++) {
		if (*p == '\\' || *p == '"')
			fprintf(f, "\\%c", *p);
		else
			fputc(*p < 0x20 || *p >= 0x7f ? '?' : *p, f);
	}
	fputc('"', f);
}

static void one(FILE *f, const char *name, const char *type, const char *help, double value)
{
	head(f, name, type, help);
	fprintf(f, "%s %.17g\n", name, value);
}

/* --- counters and histograms of the status ----------------------------------------------------- */

static bool ends(const char *text, const char *with)
{
	size_t n = strlen(text), m = strlen(with);
	return n >= m && !strcmp(text + n - m, with);
}

static bool sound(const char *name)
{
	return *name && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(name);
}

static bool is_gauge(const char *name)
{
	for (size_t i = 0; i < sizeof(gauges) / sizeof(gauges[0]); i++)
		if (!strcmp(name, gauges[i]))
			return true;
	return false;
}

/* bytes_copied is copied_bytes to Prometheus, and times are in seconds: names end in the unit. */
static void counter(FILE *f, const struct skvq_client_counter *c)
{
	char name[96];
	double value = (double)c->value;
	const char *help = *c->help ? c->help : "a counter of the daemon";

	if (!strncmp(c->name, "bytes_", 6)) {
		snprintf(name, sizeof(name), "skvqd_%s_bytes", c->name + 6);
	} else if (ends(c->name, "_ms")) {
		snprintf(name, sizeof(name), "skvqd_%.*s_seconds", (int)strlen(c->name) - 3, c->name);
		value *= 1e-3;
	} else {
		snprintf(name, sizeof(name), "skvqd_%s", c->name);
	}
	if (is_gauge(c->name) || ends(c->name, "_ms")) {
		one(f, name, "gauge", help, value);
		return;
	}
	strncat(name, "_total", sizeof(name) - strlen(name) - 1);
	one(f, name, "counter", help, value);
}

static void refusals(FILE *f, const struct skvq_client_status *s)
{
	head(f, "skvqd_refusals_total", "counter", "Requests answered with an error, by its code");
	for (size_t i = 0; i < s->n_counters; i++) {
		const struct skvq_client_counter *c = &s->counters[i];
		if (!strncmp(c->name, "refused_", 8) && sound(c->name))
			fprintf(f, "skvqd_refusals_total{code=\"%s\"} %" PRIu64 "\n", c->name + 8,
				c->value);
	}
}

static void counters(FILE *f, const struct skvq_client_status *s)
{
	for (size_t i = 0; i < s->n_counters; i++)
		if (strncmp(s->counters[i].name, "refused_", 8) && sound(s->counters[i].name))
			counter(f, &s->counters[i]);
	refusals(f, s);
}

static void histogram(FILE *f, const struct skvq_client_histogram *h)
{
	bool micro = ends(h->name, "_us");
	double unit = micro ? 1e-6 : 1e-3, le = unit;
	uint64_t sum = 0;
	char name[64];

	if ((!micro && !ends(h->name, "_ms")) || !sound(h->name))
		return; /* of a daemon newer than this */
	snprintf(name, sizeof(name), "skvqd_%.*s_seconds", (int)strlen(h->name) - 3, h->name);
	head(f, name, "histogram", *h->help ? h->help : "a histogram of the daemon");
	for (size_t i = 0; i + 1 < SKVQ_CLIENT_BUCKETS; i++, le *= 2) {
		sum += h->buckets[i];
		fprintf(f, "%s_bucket{le=\"%.9g\"} %" PRIu64 "\n", name, le, sum);
	}
	sum += h->buckets[SKVQ_CLIENT_BUCKETS - 1];
	fprintf(f, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, sum);
	fprintf(f, "%s_sum %.17g\n%s_count %" PRIu64 "\n", name, (double)h->sum * unit, name, sum);
}

/* --- the daemon as a whole --------------------------------------------------------------------- */

static void tiers(FILE *f, const struct skvq_client_status *s)
{
	uint64_t matched = 0, restored = 0;

	for (size_t i = 0; i < s->n_counters; i++) {
		if (!strcmp(s->counters[i].name, "tokens_matched"))
			matched = s->counters[i].value;
		else if (!strcmp(s->counters[i].name, "tokens_restored"))
			restored = s->counters[i].value;
	}
	head(f, "skvqd_hit_tokens_total", "counter",
	     "Tokens matched, by where their pages were when they were asked for");
	fprintf(f, "skvqd_hit_tokens_total{tier=\"memory\"} %" PRIu64 "\n",
		matched > restored ? matched - restored : 0);
	fprintf(f, "skvqd_hit_tokens_total{tier=\"disk\"} %" PRIu64 "\n", restored);
	head(f, "skvqd_tier_bytes", "gauge", "Bytes of pages, by where they are");
	fprintf(f, "skvqd_tier_bytes{tier=\"memory\",state=\"memory_only\"} %" PRIu64 "\n",
		s->bytes_resident > s->bytes_stored ? s->bytes_resident - s->bytes_stored : 0);
	fprintf(f, "skvqd_tier_bytes{tier=\"memory\",state=\"on_disk_too\"} %" PRIu64 "\n",
		s->bytes_stored);
	fprintf(f, "skvqd_tier_bytes{tier=\"disk\",state=\"charged\"} %" PRIu64 "\n", s->disk_bytes);
	head(f, "skvqd_tier_max_bytes", "gauge", "Bytes a tier may take");
	fprintf(f, "skvqd_tier_max_bytes{tier=\"memory\"} %" PRIu64 "\n", s->bytes_max);
	fprintf(f, "skvqd_tier_max_bytes{tier=\"disk\"} %" PRIu64 "\n", s->disk_bytes_max);
}

static void whole(FILE *f, const struct gathered *g)
{
	const struct skvq_client_status *s = g->status;

	head(f, "skvqd_info", "gauge", "The daemon");
	fputs("skvqd_info{", f);
	label(f, "version", s->version);
	fputs("} 1\n", f);
	one(f, "skvqd_uptime_seconds", "gauge", "Since the daemon started",
	    (double)s->uptime_ms * 1e-3);
	one(f, "skvqd_connections", "gauge", "Connections that are open", s->connections);
	one(f, "skvqd_connections_limit", "gauge", "Connections there may be", s->connections_max);
	one(f, "skvqd_namespaces", "gauge", "Namespaces", s->namespaces);
	one(f, "skvqd_pages", "gauge", "Pages in memory", (double)s->pages);
	one(f, "skvqd_disk_pages", "gauge", "Pages on disk", (double)s->disk_pages);
	one(f, "skvqd_memory_kernel_bytes", "gauge", "What the kernel says the arenas take",
	    (double)s->bytes_kernel);
	one(f, "skvqd_pins", "gauge", "Pins held", (double)s->pins);
	one(f, "skvqd_pin_holders", "gauge", "Connections that hold pins", (double)g->pin_holders);
	one(f, "skvqd_pin_oldest_seconds", "gauge",
	    "Age of the oldest connection that holds pins: no pin is older",
	    (double)g->pin_age_ms * 1e-3);
	tiers(f, s);
	counters(f, s);
	for (size_t i = 0; i < s->n_histograms; i++)
		histogram(f, &s->histograms[i]);
}

/* --- tenants ----------------------------------------------------------------------------------- */

static uint64_t of_tenant(const struct skvq_client_tenant *t, size_t row)
{
	const uint64_t values[] = {t->connections, t->namespaces, t->pages,      t->bytes,
				   t->bytes_held,  t->bytes_min,  t->bytes_max,  t->pins,
				   t->disk_bytes,  t->disk_bytes_max, t->evictions};
	return values[row];
}

static void tenants(FILE *f, const struct skvq_client_status *s)
{
	static const struct {
		const char *name, *type, *help;
	} rows[] = {
	    {"skvqd_tenant_connections", "gauge", "Connections of a tenant"},
	    {"skvqd_tenant_namespaces", "gauge", "Namespaces of a tenant"},
	    {"skvqd_tenant_pages", "gauge", "Pages of a tenant in memory"},
	    {"skvqd_tenant_memory_bytes", "gauge", "Bytes of these"},
	    {"skvqd_tenant_memory_held_bytes", "gauge", "Of these, bytes that cannot go"},
	    {"skvqd_tenant_memory_guaranteed_bytes", "gauge", "Memory nobody else can take"},
	    {"skvqd_tenant_memory_max_bytes", "gauge", "Memory it may take at most"},
	    {"skvqd_tenant_pins", "gauge", "Pins of a tenant's connections"},
	    {"skvqd_tenant_disk_bytes", "gauge", "Disk a tenant takes"},
	    {"skvqd_tenant_disk_max_bytes", "gauge", "Disk it may take at most"},
	    {"skvqd_tenant_evictions_total", "counter", "Pages of a tenant dropped to make room"},
	};

	for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
		head(f, rows[r].name, rows[r].type, rows[r].help);
		for (size_t i = 0; i < s->n_tenants; i++) {
			fprintf(f, "%s{", rows[r].name);
			label(f, "tenant", s->tenants[i].name);
			fprintf(f, "} %" PRIu64 "\n", of_tenant(&s->tenants[i], r));
		}
	}
	head(f, "skvqd_tenant_refusals_total", "counter",
	     "Requests of a tenant answered with an error, by its code");
	for (size_t i = 0; i < s->n_tenants; i++) {
		const struct skvq_client_tenant *t = &s->tenants[i];
		for (size_t k = 0; k < t->n_refusals; k++) {
			const char *code = t->refusals[k].name;
			fputs("skvqd_tenant_refusals_total{", f);
			label(f, "tenant", t->name);
			fputc(',', f);
			label(f, "code", strncmp(code, "refused_", 8) ? code : code + 8);
			fprintf(f, "} %" PRIu64 "\n", t->refusals[k].value);
		}
	}
}

/* --- namespaces -------------------------------------------------------------------------------- */

static uint64_t of_ns(const struct skvq_client_ns_info *n, size_t row)
{
	const uint64_t values[] = {n->pages, n->bytes, n->pins, n->tokens_asked,
				   n->tokens_matched, n->page_hits, n->evictions};
	return values[row];
}

static void namespaces(FILE *f, const struct gathered *g)
{
	static const struct {
		const char *name, *type, *help;
	} rows[] = {
	    {"skvqd_namespace_pages", "gauge", "Pages of a namespace in memory"},
	    {"skvqd_namespace_bytes", "gauge", "Bytes of these"},
	    {"skvqd_namespace_pins", "gauge", "Pins of these"},
	    {"skvqd_namespace_requested_tokens_total", "counter", "Tokens given to match"},
	    {"skvqd_namespace_hit_tokens_total", "counter", "Tokens of the pages that matched"},
	    {"skvqd_namespace_page_hits_total", "counter", "Pages that matched"},
	    {"skvqd_namespace_evictions_total", "counter", "Pages dropped to make room"},
	};

	head(f, "skvqd_namespace_info", "gauge", "Who shares a namespace's pages");
	for (size_t i = 0; i < g->n_ns; i++) {
		const struct skvq_client_ns_info *n = &g->ns[i].info;
		fprintf(f, "skvqd_namespace_info{ns=\"%" PRIu32 "\",", n->ns);
		label(f, "tenant", n->tenant);
		fputc(',', f);
		label(f, "model", n->model_name);
		fputc(',', f);
		label(f, "profile", n->profile);
		fputc(',', f);
		label(f, "engine", n->engine_numerics);
		fputs("} 1\n", f);
	}
	head(f, "skvqd_namespace_token_bytes", "gauge",
	     "Bytes a token takes with its refinement left out");
	for (size_t i = 0; i < g->n_ns; i++)
		fprintf(f, "skvqd_namespace_token_bytes{ns=\"%" PRIu32 "\"} %.17g\n",
			g->ns[i].info.ns, (double)g->ns[i].info.page_bytes / SKVQ_PAGE_TOKENS);
	for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
		head(f, rows[r].name, rows[r].type, rows[r].help);
		for (size_t i = 0; i < g->n_ns; i++)
			fprintf(f, "%s{ns=\"%" PRIu32 "\"} %" PRIu64 "\n", rows[r].name,
				g->ns[i].info.ns, of_ns(&g->ns[i].info, r));
		if (g->n_others)
			fprintf(f, "%s{ns=\"others\"} %" PRIu64 "\n", rows[r].name,
				of_ns(&g->others, r));
	}
}

static void errors_row(FILE *f, const struct gathered *g, const char *name, bool max)
{
	for (size_t i = 0; i < g->n_ns; i++) {
		for (size_t k = 0; k < g->ns[i].n_errors; k++) {
			const struct skvq_client_error_info *e = &g->ns[i].errors[k];
			if (!e->pages)
				continue;
			fprintf(f, "%s{ns=\"%" PRIu32 "\",layer=\"%" PRIu32 "\",of=\"%s\"} %.9g\n",
				name, g->ns[i].info.ns, e->layer, e->is_v ? "v" : "k",
				max ? e->max : e->sum / (double)e->pages);
		}
	}
}

static void errors(FILE *f, const struct gathered *g)
{
	head(f, "skvqd_quantization_error_ratio", "gauge",
	     "Mean over pages of the relative squared error of a layer's K or V, of the largest "
	     "namespaces");
	errors_row(f, g, "skvqd_quantization_error_ratio", false);
	head(f, "skvqd_quantization_error_max_ratio", "gauge", "The largest of a page");
	errors_row(f, g, "skvqd_quantization_error_max_ratio", true);
}

char *metrics_text(const struct gathered *g, size_t *ret_bytes)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, ret_bytes);
	bool bad;

	if (!f)
		return NULL;
	one(f, "skvqd_up", "gauge", "1 if the daemon answered", g->up);
	one(f, "skvqd_scrape_duration_seconds", "gauge", "How long it took to ask the daemon",
	    g->seconds);
	if (g->up) {
		whole(f, g);
		tenants(f, g->status);
		namespaces(f, g);
		errors(f, g);
	}
	bad = ferror(f);
	if (fclose(f) || bad) {
		free(text);
		return NULL;
	}
	return text;
}
