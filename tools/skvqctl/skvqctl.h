/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvqctl.h - what the verbs of skvqctl share: how they are called, how they reach the daemon, how
 * they print. A verb parses its own options, asks through libskvq and prints text or JSON; it knows
 * nothing of the wire.
 */
#ifndef SKVQCTL_H
#define SKVQCTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <getopt.h>
#include <jansson.h>

#include <skvq/client.h>

#define CTL_OK     0
#define CTL_FAILED 1 /* the daemon could not be reached, or refused */
#define CTL_USAGE  2 /* the command line is wrong                   */

struct ctl {
	const char *socket;
	bool json;
};

/* Options every verb takes, for its getopt tables; ctl_option() handles them. */
#define CTL_SHORT_OPTIONS "hs:j"
#define CTL_LONG_OPTIONS                                                                           \
	{"help", no_argument, NULL, 'h'}, {"socket", required_argument, NULL, 's'},                \
	{                                                                                          \
		"json", no_argument, NULL, 'j'                                                     \
	}

/* Takes one getopt result: true if it was -s or -j, false if it is the verb's or an error. */
bool ctl_option(struct ctl *ctl, int opt);

/* What to return for an option getopt did not know, or --help. */
int ctl_usage(int opt, const char *help);
/* Complains of arguments left after the options. CTL_OK or CTL_USAGE. */
int ctl_no_arguments(const char *verb, int argc, char **argv);
/* A decimal number in [min, max] of option `what`; complains and returns false otherwise. */
bool ctl_number(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *ret);

/* Connects, or says on stderr what was tried and what to do, and returns NULL. The caller frees. */
struct skvq_client *ctl_connect(const struct ctl *ctl);
/* Says on stderr that the daemon did not do `what`; returns CTL_FAILED. */
int ctl_failed(const struct ctl *ctl, const struct skvq_client *c, const char *what, int err);

/* Prints and frees an object; CTL_OK, or CTL_FAILED if stdout does not take it. */
int ctl_print_json(json_t *object);
/* A JSON string of bytes another process chose: what is not UTF-8 becomes '?'. */
json_t *ctl_json_text(const char *text);
/* The same for a terminal: control characters become '?' in place. Returns its argument. */
char *ctl_clean(char *text);

/* Human sizes and times into the caller's buffer; return it. */
#define CTL_HUMAN_BYTES 24
const char *ctl_human_bytes(uint64_t bytes, char buf[CTL_HUMAN_BYTES]);
const char *ctl_human_ms(uint64_t ms, char buf[CTL_HUMAN_BYTES]);
/* Digest as hex, n_bytes of it. buf holds 2 * n_bytes + 1. */
const char *ctl_hex(const uint8_t *digest, size_t n_bytes, char *buf);

/* A table: columns are as wide as their widest cell. Cells are copied. */
struct ctl_table;
/* Columns whose heading starts with '<' are set flush left, the others flush right. */
struct ctl_table *ctl_table_new(size_t n_columns, const char *const *headings);
void ctl_table_row(struct ctl_table *t, const char *const *cells);
void ctl_table_free(struct ctl_table *t);
void ctl_table_print_free(struct ctl_table *t);

struct ctl_verb {
	const char *name;
	const char *summary;
	int (*run)(struct ctl *ctl, int argc, char **argv); /* argv[0] is the verb */
};

int cmd_calibration(struct ctl *ctl, int argc, char **argv);
int cmd_errors(struct ctl *ctl, int argc, char **argv);
int cmd_ls(struct ctl *ctl, int argc, char **argv);
int cmd_pins(struct ctl *ctl, int argc, char **argv);
int cmd_ping(struct ctl *ctl, int argc, char **argv);
int cmd_status(struct ctl *ctl, int argc, char **argv);
int cmd_why_miss(struct ctl *ctl, int argc, char **argv);

#endif /* SKVQCTL_H */
