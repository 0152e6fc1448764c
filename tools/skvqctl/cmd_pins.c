/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>


static json_t *pin_json(const struct skvq_client_pin_info *p)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I}", "connection",
			 (json_int_t)p->connection, "pid", (json_int_t)p->pid, "uid",
			 (json_int_t)p->uid, "gid", (json_int_t)p->gid, "name",
			 ctl_json_text(p->name), "pins", (json_int_t)p->pins, "pages",
			 (json_int_t)p->pages, "bytes", (json_int_t)p->bytes, "age_ms",
			 (json_int_t)p->age_ms);
}

static void print_text(const struct skvq_client_pin_info *list, size_t n)
{
	static const char *const headings[] = {"CONNECTION", "<NAME", "PID",   "UID", "GID",
					       "PINS",       "PAGES", "BYTES", "AGE"};
	if (!n) {
		puts("nobody is connected but this command");
		return;
	}
	struct ctl_table *t = ctl_table_new(sizeof(headings) / sizeof(headings[0]), headings);
	for (size_t i = 0; i < n; i++) {
		char num[8][CTL_HUMAN_BYTES];
		snprintf(num[0], sizeof(num[0]), "%" PRIu64, list[i].connection);
		snprintf(num[1], sizeof(num[1]), "%" PRId32, list[i].pid);
		snprintf(num[2], sizeof(num[2]), "%" PRIu32, list[i].uid);
		snprintf(num[3], sizeof(num[3]), "%" PRIu32, list[i].gid);
		snprintf(num[4], sizeof(num[4]), "%" PRIu64, list[i].pins);
		snprintf(num[5], sizeof(num[5]), "%" PRIu64, list[i].pages);
		ctl_human_bytes(list[i].bytes, num[6]);
		ctl_human_ms(list[i].age_ms, num[7]);
		const char *row[] = {num[0], list[i].name, num[1], num[2], num[3],
				     num[4], num[5],       num[6], num[7]};
		ctl_table_row(t, row);
	}
	ctl_table_print_free(t);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client_pin_info *list = NULL;
	struct skvq_client *c;
	size_t n = 0;
	int result = CTL_OK, err;

	if (ctl_getopt(ctl, &verb_pins, argc, argv) < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	err = skvq_client_pins(c, &list, &n);
	if (err < 0) {
		result = ctl_failed(ctl, c, "list pins", err);
	} else if (ctl->json) {
		json_t *array = json_array();
		for (size_t i = 0; i < n; i++)
			json_array_append_new(array, pin_json(&list[i]));
		result = ctl_print_json(json_pack("{s:o}", "pins", array));
	} else {
		print_text(list, n);
	}
	free(list);
	skvq_client_free(c);
	return result;
}

const struct ctl_verb verb_pins = {
    .name = "pins",
    .summary = "who holds pages",
    .about = "Who holds pages in memory: one line per connection. Pins end when their connection "
	     "does.",
    .json = "pins, an array of connection, pid, uid, gid, name (what the client calls itself), pins, "
	    "pages (distinct), bytes, age_ms.",
    .run = run,
};
