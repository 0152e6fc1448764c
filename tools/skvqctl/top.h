/* SPDX-License-Identifier: Apache-2.0 */
/*
 * top.h - what 'skvqctl top' shows, without a terminal: two samples make a picture of the time
 * between them. screen.c puts it on a terminal, cmd_top.c into batches of text and JSON.
 */
#ifndef SKVQCTL_TOP_H
#define SKVQCTL_TOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "skvqctl.h"

enum top_view { TOP_NAMESPACES, TOP_CLIENTS, TOP_TENANTS, TOP_VIEWS };

/* What the daemon says at one moment. */
struct top_sample {
	double at_s; /* CLOCK_MONOTONIC */
	uint64_t boot_id;
	struct skvq_client_status status;
	struct skvq_client_ns_info *ns;
	struct skvq_client_pin_info *pins;
	size_t n_ns, n_pins;
};

#define TOP_COLUMNS 12
#define TOP_CELL    48

struct top_row {
	char text[TOP_COLUMNS][TOP_CELL];
	double number[TOP_COLUMNS]; /* to sort by; columns flush left are sorted by their text */
};

struct top_table {
	const char *const *headings; /* [n_columns]; '<' in front: flush left */
	size_t n_columns, n_rows;
	struct top_row *rows;
};

#define TOP_LINES      6
#define TOP_LINE_BYTES 160

/* Asks; 0, or the daemon's error. The caller frees with top_sample_clear, also after an error. */
int top_ask(struct skvq_client *c, struct top_sample *ret);
void top_sample_clear(struct top_sample *s);

/* The lines above the table. was: the sample before, or NULL; then rates are those since the start. */
void top_head(const struct top_sample *was, const struct top_sample *is,
	      char lines[TOP_LINES][TOP_LINE_BYTES]);
/* The same as an object. */
json_t *top_json(const struct top_sample *was, const struct top_sample *is);

extern const char *const top_view_names[TOP_VIEWS];
/* The column a view is sorted by at first. */
size_t top_default_sort(enum top_view view);
/* One of its columns by name, as people write it ("bytes", "hit%"); -1: there is none. */
int top_column(enum top_view view, const char *name);
/* Rows sorted by the column, largest first (text: in the alphabet's order), or the other way. The
 * caller frees rows. */
struct top_table top_table(enum top_view view, const struct top_sample *was,
			   const struct top_sample *is, size_t sort, bool reverse);

/* Runs on the terminal until q. An exit status. */
int top_screen(struct ctl *ctl, uint64_t interval_ms, enum top_view view, size_t sort);

#endif /* SKVQCTL_TOP_H */
