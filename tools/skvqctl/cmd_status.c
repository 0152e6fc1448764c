/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


json_t *ctl_tenant_json(struct skvq_client_tenant *t)
{
	json_t *refusals = json_object();
	for (size_t i = 0; i < t->n_refusals; i++)
		json_object_set_new(refusals, t->refusals[i].name,
				    json_integer((json_int_t)t->refusals[i].value));
	const struct {
		const char *name;
		uint64_t value;
	} numbers[] = {
	    {"connections", t->connections},
	    {"connections_max", t->connections_max},
	    {"namespaces", t->namespaces},
	    {"namespaces_max", t->namespaces_max},
	    {"pages", t->pages},
	    {"bytes", t->bytes},
	    {"bytes_held", t->bytes_held},
	    {"bytes_min", t->bytes_min},
	    {"bytes_max", t->bytes_max},
	    {"pins", t->pins},
	    {"pins_max", t->pins_max},
	    {"disk_bytes", t->disk_bytes},
	    {"disk_bytes_max", t->disk_bytes_max},
	    {"calibration_bytes", t->calibration_bytes},
	    {"calibration_bytes_max", t->calibration_bytes_max},
	    {"evictions", t->evictions},
	};
	json_t *o = json_pack("{s:o, s:o}", "name", ctl_json_text(t->name), "refusals", refusals);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		json_object_set_new(o, numbers[i].name,
				    json_integer((json_int_t)numbers[i].value));
	return o;
}

static json_t *histograms_json(const struct skvq_client_status *s)
{
	json_t *all = json_object();
	for (size_t i = 0; i < s->n_histograms; i++) {
		const struct skvq_client_histogram *h = &s->histograms[i];
		json_t *buckets = json_array();
		for (size_t b = 0; b < SKVQ_CLIENT_BUCKETS; b++)
			json_array_append_new(buckets, json_integer((json_int_t)h->buckets[b]));
		json_object_set_new(all, h->name,
				    json_pack("{s:I, s:I, s:o}", "count",
					      (json_int_t)ctl_recorded(h), "sum", (json_int_t)h->sum,
					      "buckets", buckets));
	}
	return all;
}

static int print_json(struct skvq_client_status *s, const char *boot_id)
{
	json_t *counters = json_object();
	for (size_t i = 0; i < s->n_counters; i++)
		json_object_set_new(counters, s->counters[i].name,
				    json_integer((json_int_t)s->counters[i].value));
	json_t *tenants = json_array();
	for (size_t i = 0; i < s->n_tenants; i++)
		json_array_append_new(tenants, ctl_tenant_json(&s->tenants[i]));
	json_t *disk = s->has_store
			   ? json_pack("{s:I, s:I, s:I, s:I}", "pages", (json_int_t)s->disk_pages,
				       "bytes", (json_int_t)s->disk_bytes, "bytes_max",
				       (json_int_t)s->disk_bytes_max, "bytes_resident_too",
				       (json_int_t)s->bytes_stored)
			   : json_null();
	return ctl_print_json(json_pack(
	    "{s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "version",
	    ctl_json_text(s->version), "socket", ctl_json_text(s->socket), "boot_id", boot_id,
	    "pid", (json_int_t)s->pid, "uptime_ms", (json_int_t)s->uptime_ms, "connections",
	    (json_int_t)s->connections, "connections_max", (json_int_t)s->connections_max,
	    "namespaces", (json_int_t)s->namespaces, "pages", (json_int_t)s->pages,
	    "bytes_resident", (json_int_t)s->bytes_resident, "bytes_kernel",
	    (json_int_t)s->bytes_kernel, "bytes_max", (json_int_t)s->bytes_max, "pins",
	    (json_int_t)s->pins, "disk", disk, "counters", counters,
	    "histograms", histograms_json(s), "tenants", tenants));
}

static void print_tenant(struct skvq_client_tenant *t)
{
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES], k[CTL_HUMAN_BYTES];
	printf("tenant       %s\n", ctl_clean(t->name));
	printf("  connections  %" PRIu32 " of %" PRIu32 ", namespaces %" PRIu32 " of %" PRIu32 "\n",
	       t->connections, t->connections_max, t->namespaces, t->namespaces_max);
	printf("  memory       %" PRIu64 " pages, %s of %s", t->pages, ctl_human_bytes(t->bytes, a),
	       ctl_human_bytes(t->bytes_max, b));
	if (t->bytes_min)
		printf(", %s guaranteed", ctl_human_bytes(t->bytes_min, k));
	printf("; %s cannot go, %" PRIu64 " evictions\n", ctl_human_bytes(t->bytes_held, a),
	       t->evictions);
	printf("  pins         %" PRIu64, t->pins);
	if (t->pins_max)
		printf(" of %" PRIu64, t->pins_max);
	printf("\n  calibrations %s of %s\n", ctl_human_bytes(t->calibration_bytes, a),
	       ctl_human_bytes(t->calibration_bytes_max, b));
	if (t->disk_bytes_max)
		printf("  disk         %s of %s\n", ctl_human_bytes(t->disk_bytes, a),
		       ctl_human_bytes(t->disk_bytes_max, b));
	for (size_t i = 0; i < t->n_refusals; i++)
		printf("  %-28s %" PRIu64 "\n", ctl_clean(t->refusals[i].name),
		       t->refusals[i].value);
}

static void print_text(struct skvq_client_status *s, const char *boot_id)
{
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES], k[CTL_HUMAN_BYTES];
	printf("skvqd %s, pid %" PRIu64 ", boot %s, up %s\n", ctl_clean(s->version), s->pid,
	       boot_id, ctl_human_ms(s->uptime_ms, a));
	printf("socket       %s\n", ctl_clean(s->socket));
	printf("connections  %" PRIu32 " of %" PRIu32 "\n", s->connections, s->connections_max);
	printf("namespaces   %" PRIu32 "\n", s->namespaces);
	printf("pages        %" PRIu64 ", held by %" PRIu64 " pins\n", s->pages, s->pins);
	printf("memory       %s of %s (the kernel counts %s)\n",
	       ctl_human_bytes(s->bytes_resident, a), ctl_human_bytes(s->bytes_max, b),
	       ctl_human_bytes(s->bytes_kernel, k));
	if (s->has_store)
		printf("disk         %" PRIu64 " pages, %s of %s; %s of memory is there too\n",
		       s->disk_pages, ctl_human_bytes(s->disk_bytes, a),
		       ctl_human_bytes(s->disk_bytes_max, b), ctl_human_bytes(s->bytes_stored, k));
	for (size_t i = 0; i < s->n_tenants; i++)
		print_tenant(&s->tenants[i]);
	for (size_t i = 0; i < s->n_histograms; i++) {
		const struct skvq_client_histogram *h = &s->histograms[i];
		if (ctl_recorded(h))
			printf("%-12s %" PRIu64 " times, half within %" PRIu64
			       ", 99 %% within %" PRIu64 "\n",
			       h->name, ctl_recorded(h), ctl_quantile(h, .5), ctl_quantile(h, .99));
	}
	size_t n_zero = 0;
	puts("counters");
	for (size_t i = 0; i < s->n_counters; i++) {
		if (s->counters[i].value)
			printf("  %-28s %" PRIu64 "\n", ctl_clean(s->counters[i].name),
			       s->counters[i].value);
		else
			n_zero++;
	}
	printf("  and %zu that are 0 (--json lists them)\n", n_zero);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client *c;
	int result = CTL_OK;

	if (ctl_getopt(ctl, &verb_status, argc, argv) < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	struct skvq_client_status *s;
	int err = ctl_status(c, &s);
	if (err < 0) {
		result = ctl_failed(ctl, c, "tell its status", err);
	} else {
		char boot_id[17];
		snprintf(boot_id, sizeof(boot_id), "%016" PRIx64, skvq_client_hello(c)->boot_id);
		if (ctl->json)
			result = print_json(s, boot_id);
		else
			print_text(s, boot_id);
	}
	free(s);
	skvq_client_free(c);
	return result;
}

const struct ctl_verb verb_status = {
    .name = "status",
    .summary = "how the daemon is: memory, connections, counters",
    .about = "How the daemon is: memory, connections, pages and counters since it started.",
    .json = "version, socket, boot_id, pid, uptime_ms, connections, connections_max, namespaces, pages, "
	    "bytes_resident (by the daemon's books), bytes_kernel (what the kernel says the arenas "
	    "take), bytes_max, pins, disk (null without one; else pages, bytes, bytes_max and "
	    "bytes_resident_too, of pages that are in memory as well), counters, an object of name and "
	    "value, histograms, an object of name and object (count, sum, buckets: values above "
	    "2^(i - 1) up to 2^i, the last also what is more; the end of the name is the unit), and "
	    "tenants: your own, or all for root, the daemon's user and those it calls admins; each with "
	    "name, connections, namespaces, pages, bytes, bytes_held, bytes_min, pins, disk_bytes, "
	    "calibration_bytes, most of them with a bound of the same name and _max, evictions and "
	    "refusals, an object of error code and count.",
    .run = run,
};
