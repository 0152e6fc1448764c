/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokens {
	uint64_t asked, matched;
};

/* Of the namespaces that the tenant has now. */
static struct tokens tokens_of(const struct skvq_client_ns_info *list, size_t n, const char *tenant)
{
	struct tokens t = {0};

	for (size_t i = 0; i < n; i++) {
		if (strcmp(list[i].tenant, tenant))
			continue;
		t.asked += list[i].tokens_asked;
		t.matched += list[i].tokens_matched;
	}
	return t;
}

static uint64_t refusals(const struct skvq_client_tenant *t)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < t->n_refusals; i++)
		sum += t->refusals[i].value;
	return sum;
}

static int print_json(struct skvq_client_status *s, const struct skvq_client_ns_info *list, size_t n)
{
	json_t *array = json_array();

	for (size_t i = 0; i < s->n_tenants; i++) {
		struct tokens tokens = tokens_of(list, n, s->tenants[i].name);
		json_t *o = ctl_tenant_json(&s->tenants[i]);
		json_object_set_new(o, "tokens_asked", json_integer((json_int_t)tokens.asked));
		json_object_set_new(o, "tokens_matched", json_integer((json_int_t)tokens.matched));
		json_array_append_new(array, o);
	}
	return ctl_print_json(json_pack("{s:o}", "tenants", array));
}

static void of(char *buf, size_t bytes, uint64_t n, uint64_t max)
{
	if (max)
		snprintf(buf, bytes, "%" PRIu64 "/%" PRIu64, n, max);
	else
		snprintf(buf, bytes, "%" PRIu64, n);
}

static void print_row(struct ctl_table *table, const struct skvq_client_tenant *t,
		      struct tokens tokens)
{
	char connections[48], namespaces[48], pins[48], refused[24], hits[24] = "-";
	char memory[CTL_HUMAN_BYTES], held[CTL_HUMAN_BYTES], min[CTL_HUMAN_BYTES],
	    max[CTL_HUMAN_BYTES], disk[CTL_HUMAN_BYTES], disk_max[CTL_HUMAN_BYTES];

	of(connections, sizeof(connections), t->connections, t->connections_max);
	of(namespaces, sizeof(namespaces), t->namespaces, t->namespaces_max);
	of(pins, sizeof(pins), t->pins, t->pins_max);
	snprintf(refused, sizeof(refused), "%" PRIu64, refusals(t));
	if (tokens.asked)
		snprintf(hits, sizeof(hits), "%.0f %%",
			 100 * (double)tokens.matched / (double)tokens.asked);
	const char *row[] = {t->name,
			     connections,
			     namespaces,
			     ctl_human_bytes(t->bytes, memory),
			     ctl_human_bytes(t->bytes_held, held),
			     ctl_human_bytes(t->bytes_min, min),
			     ctl_human_bytes(t->bytes_max, max),
			     t->disk_bytes_max ? ctl_human_bytes(t->disk_bytes, disk) : "-",
			     t->disk_bytes_max ? ctl_human_bytes(t->disk_bytes_max, disk_max) : "-",
			     pins,
			     hits,
			     refused};
	ctl_table_row(table, row);
}

static int print_text(struct skvq_client_status *s, const struct skvq_client_ns_info *list, size_t n)
{
	static const char *const headings[] = {"<TENANT", "CONNECTIONS", "NAMESPACES", "MEMORY",
					       "HELD",	  "GUARANTEED",	 "MAX",	       "DISK",
					       "DISK MAX", "PINS",	 "HITS",       "REFUSED"};
	struct ctl_table *table = ctl_table_new(sizeof(headings) / sizeof(headings[0]), headings);

	for (size_t i = 0; i < s->n_tenants; i++)
		print_row(table, &s->tenants[i], tokens_of(list, n, s->tenants[i].name));
	ctl_table_print_free(table);
	return ctl_flush();
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client_ns_info *list = NULL;
	struct skvq_client *c;
	size_t n = 0;
	int result;

	if (ctl_getopt(ctl, &verb_tenants, argc, argv) < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	struct skvq_client_status *s;
	int err = ctl_status(c, &s);
	if (err >= 0)
		err = skvq_client_namespaces(c, &list, &n);
	if (err < 0)
		result = ctl_failed(ctl, c, "tell of its tenants", err);
	else
		result = ctl->json ? print_json(s, list, n) : print_text(s, list, n);
	free(list);
	free(s);
	skvq_client_free(c);
	return result;
}

const struct ctl_verb verb_tenants = {
    .name = "tenants",
    .summary = "what each tenant has and may have",
    .about = "Connections, namespaces, memory (of it held: pinned, on its way, or above such), disk and pins "
	     "of each tenant, with their bounds; the share of tokens asked for that its namespaces of now "
	     "had; and refusals since the start ('skvqctl status' lists them by error). Your own tenant, or "
	     "all for root, the daemon's user and admins.",
    .json = "tenants, a list of those that you may see; each with name, connections, connections_max, "
	    "namespaces, namespaces_max, pages, bytes, bytes_held, bytes_min, bytes_max, pins, pins_max, "
	    "disk_bytes, disk_bytes_max, calibration_bytes, calibration_bytes_max, evictions, refusals (an "
	    "object of error code and count), tokens_asked and tokens_matched.",
    .run = run,
};
