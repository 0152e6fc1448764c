/* SPDX-License-Identifier: Apache-2.0 */
#include "top.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define INTERVAL_MIN_MS 100u
#define INTERVAL_MAX_MS 3600000u

struct batch {
	enum top_view view;
	size_t sort;
	uint64_t interval_ms, count; /* 0: for ever */
};

static void print_picture(const struct batch *b, const struct top_sample *was,
			  const struct top_sample *is)
{
	char lines[TOP_LINES][TOP_LINE_BYTES];
	struct top_table t = top_table(b->view, was, is, b->sort, false);
	struct ctl_table *out = ctl_table_new(t.n_columns, t.headings);

	top_head(was, is, lines);
	for (int i = 0; i < TOP_LINES; i++)
		puts(lines[i]);
	putchar('\n');
	for (size_t i = 0; i < t.n_rows; i++) {
		const char *row[TOP_COLUMNS];

		for (size_t column = 0; column < t.n_columns; column++)
			row[column] = t.rows[i].text[column];
		ctl_table_row(out, row);
	}
	ctl_table_print_free(out);
	putchar('\n');
	free(t.rows);
}

static int print_line(const struct top_sample *was, const struct top_sample *is)
{
	json_t *o = top_json(was, is);
	int bad = !o || json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));

	json_decref(o);
	putchar('\n');
	return bad ? CTL_FAILED : CTL_OK;
}

static void wait_ms(uint64_t ms)
{
	struct timespec ts = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

/* A picture each interval, the first of the time since the daemon started. */
static int run_batch(struct ctl *ctl, const struct batch *b)
{
	struct top_sample *s = calloc(2, sizeof(*s)), *was = NULL;
	struct skvq_client *c = ctl_connect(ctl);
	int result = c ? CTL_OK : ctl->result;

	if (!s)
		abort();
	for (uint64_t n = 0; result == CTL_OK && (!b->count || n < b->count); n++) {
		struct top_sample *is = &s[n & 1];

		if (n)
			wait_ms(b->interval_ms);
		top_sample_clear(is);
		int err = top_ask(c, is);
		if (err < 0) {
			result = ctl_failed(ctl, c, "tell its status", err);
			break;
		}
		if (ctl->json)
			result = print_line(was, is);
		else
			print_picture(b, was, is);
		if (result == CTL_OK)
			result = ctl_flush();
		was = is;
	}
	top_sample_clear(&s[0]);
	top_sample_clear(&s[1]);
	free(s);
	skvq_client_free(c);
	return result;
}

static int view_of(const char *name, enum top_view *ret)
{
	for (int i = 0; i < TOP_VIEWS; i++) {
		if (!strcmp(name, top_view_names[i])) {
			*ret = (enum top_view)i;
			return 0;
		}
	}
	fprintf(stderr, "skvqctl top: --view is namespaces, clients or tenants, not '%s'\n", name);
	return -1;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct batch b = {.view = TOP_NAMESPACES, .interval_ms = 2000};
	const char *sort = NULL;
	bool batch = false;
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_top, argc, argv)) > 0) {
		if (opt == 'b')
			batch = true;
		else if (opt == 'o')
			sort = optarg;
		else if (opt == 'v' ? view_of(optarg, &b.view) < 0
			 : opt == 'n'
			     ? !ctl_number("--count", optarg, 1, 1000000000, &b.count)
			     : !ctl_number("--interval", optarg, INTERVAL_MIN_MS, INTERVAL_MAX_MS,
					   &b.interval_ms))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	int column = sort ? top_column(b.view, sort) : (int)top_default_sort(b.view);
	if (column < 0) {
		fprintf(stderr, "skvqctl top: the %s have no column '%s'\n", top_view_names[b.view],
			sort);
		return CTL_USAGE;
	}
	b.sort = (size_t)column;
	if (batch || ctl->json)
		return run_batch(ctl, &b);
	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
		fputs("skvqctl top: this is no terminal; --batch prints text, --json lines of JSON\n",
		      stderr);
		return CTL_USAGE;
	}
	return top_screen(ctl, b.interval_ms, b.view, b.sort);
}

static const struct ctl_opt opts[] = {
    {'i', "interval", "MS", "between two looks; default 2000"},
    {'v', "view", "VIEW", "namespaces, clients or tenants; default namespaces"},
    {'o', "sort", "COLUMN", "a heading of the table; default bytes"},
    {'b', "batch", NULL, "print text instead of taking the terminal"},
    {'n', "count", "N", "with --batch or --json: so many times; default: until it is ended"},
};

const struct ctl_verb verb_top = {
    .name = "top",
    .summary = "who uses the cache now, refreshed",
    .about = "What happens in the cache: memory and disk, hit rate and latencies of the last interval, "
	     "and a table of namespaces, clients or tenants. Keys: 1 2 3 or Tab change the table, < and > "
	     "the column it is sorted by, r the direction, + and - the interval, space stops, h helps, q "
	     "ends. A daemon that goes away is looked for until it is back.\n\n"
	     "The first picture of a batch is of all the time since the daemon's start.",
    CTL_OPTS(opts),
    .json = "an object a line: boot_id, seconds (it is about), connections, pages, bytes_resident, "
	    "bytes_max, pins, disk_bytes, hit_share (of tokens, 0 to 1), per_second, an object of counter "
	    "and rate, within, an object of match_us, publish_us and restore_us, each with count, p50 and "
	    "p99, upper ends of buckets of powers of two.",
    .run = run,
};
