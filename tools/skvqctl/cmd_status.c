/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: skvqctl status [--socket PATH] [--json]\n\n"
    "How the daemon is: memory, connections, pages and counters since it started.\n\n"
    "JSON: version, socket, boot_id, pid, uptime_ms, connections, connections_max, namespaces,\n"
    "pages, bytes_resident (by the daemon's books), bytes_kernel (what the kernel says the\n"
    "arenas take), bytes_max, pins, disk (null without one; else pages, bytes, bytes_max and\n"
    "bytes_resident_too, of pages that are in memory as well), and counters, an object of name\n"
    "and value.\n";

static int print_json(const struct skvq_client_status *s, const char *boot_id)
{
	json_t *counters = json_object();
	for (size_t i = 0; i < s->n_counters; i++)
		json_object_set_new(counters, s->counters[i].name,
				    json_integer((json_int_t)s->counters[i].value));
	json_t *disk = s->has_store
			   ? json_pack("{s:I, s:I, s:I, s:I}", "pages", (json_int_t)s->disk_pages,
				       "bytes", (json_int_t)s->disk_bytes, "bytes_max",
				       (json_int_t)s->disk_bytes_max, "bytes_resident_too",
				       (json_int_t)s->bytes_stored)
			   : json_null();
	return ctl_print_json(json_pack(
	    "{s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "version",
	    ctl_json_text(s->version), "socket", ctl_json_text(s->socket), "boot_id", boot_id,
	    "pid", (json_int_t)s->pid, "uptime_ms", (json_int_t)s->uptime_ms, "connections",
	    (json_int_t)s->connections, "connections_max", (json_int_t)s->connections_max,
	    "namespaces", (json_int_t)s->namespaces, "pages", (json_int_t)s->pages,
	    "bytes_resident", (json_int_t)s->bytes_resident, "bytes_kernel",
	    (json_int_t)s->bytes_kernel, "bytes_max", (json_int_t)s->bytes_max, "pins",
	    (json_int_t)s->pins, "disk", disk, "counters", counters));
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

int cmd_status(struct ctl *ctl, int argc, char **argv)
{
	static const struct option options[] = {CTL_LONG_OPTIONS, {0}};
	int opt;
	while ((opt = getopt_long(argc, argv, CTL_SHORT_OPTIONS, options, NULL)) != -1)
		if (!ctl_option(ctl, opt))
			return ctl_usage(opt, help);
	if (ctl_no_arguments("status", argc, argv) != CTL_OK)
		return CTL_USAGE;

	struct skvq_client *c = ctl_connect(ctl);
	if (!c)
		return CTL_FAILED;
	int result = CTL_OK;
	struct skvq_client_status *s = calloc(1, sizeof(*s));
	int err = s ? skvq_client_status(c, s) : -SKVQ_ENOMEM;
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
