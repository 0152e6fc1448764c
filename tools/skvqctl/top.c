/* SPDX-License-Identifier: Apache-2.0 */
#include "top.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *const top_view_names[TOP_VIEWS] = {"namespaces", "clients", "tenants"};

static const char *const ns_headings[] = {"NS",   "<MODEL",  "<PROFILE", "<TENANT", "PAGES", "BYTES",
					  "PINS", "ASKED/S", "HIT%",     "EVICT/S"};
static const char *const client_headings[] = {"PID",  "<NAME", "UID", "CONNECTION",
					      "PINS", "PAGES", "BYTES", "AGE"};
static const char *const tenant_headings[] = {"<TENANT", "CONNECTIONS", "NAMESPACES", "PAGES",
					      "BYTES",   "MAX",         "HELD",       "PINS",
					      "DISK",    "EVICT/S",     "REFUSED/S"};

static const struct {
	const char *const *headings;
	size_t n, sort;
} views[TOP_VIEWS] = {
    [TOP_NAMESPACES] = {ns_headings, sizeof(ns_headings) / sizeof(*ns_headings), 5},
    [TOP_CLIENTS] = {client_headings, sizeof(client_headings) / sizeof(*client_headings), 6},
    [TOP_TENANTS] = {tenant_headings, sizeof(tenant_headings) / sizeof(*tenant_headings), 4},
};

/* --- samples ---------------------------------------------------------------------------------- */

int top_ask(struct skvq_client *c, struct top_sample *ret)
{
	struct timespec ts;
	int err;

	memset(ret, 0, sizeof(*ret));
	clock_gettime(CLOCK_MONOTONIC, &ts);
	ret->at_s = (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
	ret->boot_id = skvq_client_hello(c)->boot_id;
	err = skvq_client_status(c, &ret->status);
	if (err >= 0)
		err = skvq_client_namespaces(c, &ret->ns, &ret->n_ns);
	if (err >= 0)
		err = skvq_client_pins(c, &ret->pins, &ret->n_pins);
	return err < 0 ? err : 0;
}

void top_sample_clear(struct top_sample *s)
{
	free(s->ns);
	free(s->pins);
	s->ns = NULL;
	s->pins = NULL;
}

static uint64_t counter(const struct top_sample *s, const char *name)
{
	return s ? ctl_counter(&s->status, name) : 0;
}

/* The time between the samples, or since the daemon's start. */
static double seconds(const struct top_sample *was, const struct top_sample *is)
{
	double s = was ? is->at_s - was->at_s : (double)is->status.uptime_ms / 1e3;

	return s > .001 ? s : .001;
}

static double more(uint64_t was, uint64_t is)
{
	return is > was ? (double)(is - was) : 0;
}

static double rate(const struct top_sample *was, const struct top_sample *is, const char *name)
{
	return more(counter(was, name), counter(is, name)) / seconds(was, is);
}

/* Of the values that came between. */
static struct skvq_client_histogram between(const struct top_sample *was, const struct top_sample *is,
					    const char *name)
{
	struct skvq_client_histogram h = {0};

	for (size_t i = 0; i < is->status.n_histograms; i++)
		if (!strcmp(is->status.histograms[i].name, name))
			h = is->status.histograms[i];
	for (size_t i = 0; was && i < was->status.n_histograms; i++) {
		const struct skvq_client_histogram *old = &was->status.histograms[i];

		for (size_t b = 0; !strcmp(old->name, name) && b < SKVQ_CLIENT_BUCKETS; b++)
			h.buckets[b] -= old->buckets[b] < h.buckets[b] ? old->buckets[b] : h.buckets[b];
	}
	return h;
}

static double share(double part, double whole)
{
	return whole > 0 ? part / whole : 0;
}

#define BAR 20

/* --- the lines above ---------------------------------------------------------------------------- */

static double hit_share(const struct top_sample *was, const struct top_sample *is)
{
	return share(more(counter(was, "tokens_matched"), counter(is, "tokens_matched")),
		     more(counter(was, "tokens_asked"), counter(is, "tokens_asked")));
}

/* How full something is. */
static void bar(double part, char buf[BAR + 3])
{
	buf[0] = '[';
	for (int i = 0; i < BAR; i++)
		buf[1 + i] = part * BAR >= i + .5 ? '#' : '.';
	memcpy(buf + 1 + BAR, "]", 2);
}

/* Of one kind of request; at most 48 bytes. */
static int latency(char *to, const char *what, const struct skvq_client_histogram *h)
{
	if (!ctl_recorded(h))
		return sprintf(to, "%s -", what);
	return sprintf(to, "%s p50 %" PRIu64 " us, p99 %" PRIu64 " us", what, ctl_quantile(h, .5),
		       ctl_quantile(h, .99));
}

void top_head(const struct top_sample *was, const struct top_sample *is,
	      char lines[TOP_LINES][TOP_LINE_BYTES])
{
	const struct skvq_client_status *s = &is->status;
	struct skvq_client_histogram match = between(was, is, "match_us"),
				     publish = between(was, is, "publish_us"),
				     restore = between(was, is, "restore_us");
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES], fill[BAR + 3], version[sizeof(s->version)];

	memcpy(version, s->version, sizeof(version));
	snprintf(lines[0], TOP_LINE_BYTES,
		 "skvqd %s, pid %" PRIu64 ", up %s; %" PRIu32 " of %" PRIu32
		 " connections, %.1f requests/s, %.1f refused/s",
		 ctl_clean(version), s->pid, ctl_human_ms(s->uptime_ms, a), s->connections,
		 s->connections_max, rate(was, is, "requests"), rate(was, is, "requests_refused"));
	bar(share((double)s->bytes_resident, (double)s->bytes_max), fill);
	snprintf(lines[1], TOP_LINE_BYTES, "memory  %s %s of %s, %" PRIu64 " pages, %" PRIu64 " pins",
		 fill, ctl_human_bytes(s->bytes_resident, a), ctl_human_bytes(s->bytes_max, b),
		 s->pages, s->pins);
	bar(share((double)s->disk_bytes, (double)s->disk_bytes_max), fill);
	if (s->has_store)
		snprintf(lines[2], TOP_LINE_BYTES, "disk    %s %s of %s, %" PRIu64 " pages", fill,
			 ctl_human_bytes(s->disk_bytes, a), ctl_human_bytes(s->disk_bytes_max, b),
			 s->disk_pages);
	else
		snprintf(lines[2], TOP_LINE_BYTES, "disk    none");
	snprintf(lines[3], TOP_LINE_BYTES,
		 "hits    %.1f %% of %.0f tokens/s asked (%.1f %% since the start), %.0f tokens/s from disk",
		 100 * hit_share(was, is), rate(was, is, "tokens_asked"), 100 * hit_share(NULL, is),
		 rate(was, is, "tokens_restored"));
	int n = snprintf(lines[4], TOP_LINE_BYTES, "times   ");
	n += latency(lines[4] + n, "match", &match);
	n += latency(lines[4] + n, "; publish", &publish);
	(void)latency(lines[4] + n, "; restore", &restore);
	snprintf(lines[5], TOP_LINE_BYTES,
		 "pages   %.1f in/s, %.1f evicted/s (%.1f lost), %.1f written/s, %.1f read/s",
		 rate(was, is, "publishes"), rate(was, is, "evictions"),
		 rate(was, is, "evictions_lost"), rate(was, is, "spills"), rate(was, is, "restores"));
}

json_t *top_json(const struct top_sample *was, const struct top_sample *is)
{
	static const char *const rates[] = {"requests", "requests_refused", "tokens_asked",
					    "tokens_matched", "tokens_restored", "publishes",
					    "bytes_copied", "evictions", "evictions_lost", "spills",
					    "restores"};
	static const char *const times[] = {"match_us", "publish_us", "restore_us"};
	const struct skvq_client_status *s = &is->status;
	char boot_id[17];

	snprintf(boot_id, sizeof(boot_id), "%016" PRIx64, is->boot_id);
	json_t *o = json_pack("{s:s, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "boot_id", boot_id,
			      "seconds", seconds(was, is), "connections", (json_int_t)s->connections,
			      "pages", (json_int_t)s->pages, "bytes_resident",
			      (json_int_t)s->bytes_resident, "bytes_max", (json_int_t)s->bytes_max,
			      "pins", (json_int_t)s->pins, "disk_bytes", (json_int_t)s->disk_bytes,
			      "hit_share", hit_share(was, is));
	json_t *per_second = json_object(), *within = json_object();
	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
		json_object_set_new(per_second, rates[i], json_real(rate(was, is, rates[i])));
	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		struct skvq_client_histogram h = between(was, is, times[i]);

		json_object_set_new(within, times[i],
				    json_pack("{s:I, s:I, s:I}", "count",
					      (json_int_t)ctl_recorded(&h), "p50",
					      (json_int_t)ctl_quantile(&h, .5), "p99",
					      (json_int_t)ctl_quantile(&h, .99)));
	}
	json_object_set_new(o, "per_second", per_second);
	json_object_set_new(o, "within", within);
	return o;
}

/* --- tables ------------------------------------------------------------------------------------ */

size_t top_default_sort(enum top_view view)
{
	return views[view].sort;
}

int top_column(enum top_view view, const char *name)
{
	for (size_t i = 0; i < views[view].n; i++) {
		const char *heading = views[view].headings[i];

		if (!strcasecmp(heading + (heading[0] == '<'), name))
			return (int)i;
	}
	return -1;
}

/* Fills one row, a column after the other. */
struct cursor {
	struct top_row *row;
	size_t column;
};

static void cell_text(struct cursor *c, const char *text)
{
	snprintf(c->row->text[c->column], TOP_CELL, "%.*s", TOP_CELL - 1, text);
	ctl_clean(c->row->text[c->column++]);
}

static void cell_number(struct cursor *c, const char *format, double number)
{
	c->row->number[c->column] = number;
	snprintf(c->row->text[c->column++], TOP_CELL, format, number);
}

static void cell_bytes(struct cursor *c, uint64_t bytes)
{
	char buf[CTL_HUMAN_BYTES];

	c->row->number[c->column] = (double)bytes;
	snprintf(c->row->text[c->column++], TOP_CELL, "%s", ctl_human_bytes(bytes, buf));
}

static void cell_ms(struct cursor *c, uint64_t ms)
{
	char buf[CTL_HUMAN_BYTES];

	c->row->number[c->column] = (double)ms;
	snprintf(c->row->text[c->column++], TOP_CELL, "%s", ctl_human_ms(ms, buf));
}

static void ns_row(const struct top_sample *was, const struct top_sample *is,
		   const struct skvq_client_ns_info *n, struct cursor c)
{
	static const struct skvq_client_ns_info none;
	const struct skvq_client_ns_info *old = &none;

	for (size_t i = 0; was && i < was->n_ns; i++)
		if (was->ns[i].ns == n->ns && !strcmp(was->ns[i].tenant, n->tenant))
			old = &was->ns[i];
	double asked = more(old->tokens_asked, n->tokens_asked), s = seconds(was, is);
	cell_number(&c, "%.0f", n->ns);
	cell_text(&c, n->model_name);
	cell_text(&c, n->profile);
	cell_text(&c, n->tenant);
	cell_number(&c, "%.0f", (double)n->pages);
	cell_bytes(&c, n->bytes);
	cell_number(&c, "%.0f", (double)n->pins);
	cell_number(&c, "%.0f", asked / s);
	cell_number(&c, "%.1f", 100 * share(more(old->tokens_matched, n->tokens_matched), asked));
	cell_number(&c, "%.1f", more(old->evictions, n->evictions) / s);
}

static void client_row(const struct skvq_client_pin_info *p, struct cursor c)
{
	cell_number(&c, "%.0f", p->pid);
	cell_text(&c, p->name);
	cell_number(&c, "%.0f", p->uid);
	cell_number(&c, "%.0f", (double)p->connection);
	cell_number(&c, "%.0f", (double)p->pins);
	cell_number(&c, "%.0f", (double)p->pages);
	cell_bytes(&c, p->bytes);
	cell_ms(&c, p->age_ms);
}

static uint64_t refusals(const struct skvq_client_tenant *t)
{
	uint64_t n = 0;

	for (size_t i = 0; i < t->n_refusals; i++)
		n += t->refusals[i].value;
	return n;
}

static void tenant_row(const struct top_sample *was, const struct top_sample *is,
		       const struct skvq_client_tenant *t, struct cursor c)
{
	const struct skvq_client_tenant *old = NULL;

	for (size_t i = 0; was && i < was->status.n_tenants; i++)
		if (!strcmp(was->status.tenants[i].name, t->name))
			old = &was->status.tenants[i];
	cell_text(&c, t->name);
	cell_number(&c, "%.0f", t->connections);
	cell_number(&c, "%.0f", t->namespaces);
	cell_number(&c, "%.0f", (double)t->pages);
	cell_bytes(&c, t->bytes);
	cell_bytes(&c, t->bytes_max);
	cell_bytes(&c, t->bytes_held);
	cell_number(&c, "%.0f", (double)t->pins);
	cell_bytes(&c, t->disk_bytes);
	cell_number(&c, "%.1f", more(old ? old->evictions : 0, t->evictions) / seconds(was, is));
	cell_number(&c, "%.1f", more(old ? refusals(old) : 0, refusals(t)) / seconds(was, is));
}

struct order {
	size_t column;
	bool text, reverse;
};

static int by_column(const void *a, const void *b, void *arg)
{
	const struct top_row *x = a, *y = b;
	const struct order *o = arg;
	double dx = x->number[o->column], dy = y->number[o->column];
	int r = o->text ? strcmp(x->text[o->column], y->text[o->column]) : (dy > dx) - (dy < dx);

	return o->reverse ? -r : r;
}

struct top_table top_table(enum top_view view, const struct top_sample *was,
			   const struct top_sample *is, size_t sort, bool reverse)
{
	struct top_table t = {.headings = views[view].headings, .n_columns = views[view].n};
	struct order order = {sort, t.headings[sort][0] == '<', reverse};

	t.n_rows = view == TOP_NAMESPACES ? is->n_ns
		   : view == TOP_CLIENTS  ? is->n_pins
					  : is->status.n_tenants;
	t.rows = calloc(t.n_rows + 1, sizeof(*t.rows));
	if (!t.rows)
		abort();
	for (size_t i = 0; i < t.n_rows; i++) {
		struct cursor c = {.row = &t.rows[i]};

		if (view == TOP_NAMESPACES)
			ns_row(was, is, &is->ns[i], c);
		else if (view == TOP_CLIENTS)
			client_row(&is->pins[i], c);
		else
			tenant_row(was, is, &is->status.tenants[i], c);
	}
	qsort_r(t.rows, t.n_rows, sizeof(*t.rows), by_column, &order);
	return t;
}
