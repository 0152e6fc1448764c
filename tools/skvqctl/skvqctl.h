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

#include "args.h"

/* Exit statuses, in ctl_exit_list for people. Never renumbered. */
#define CTL_OK        0
#define CTL_FAILED    1 /* refused, or it could not be done           */
#define CTL_USAGE     2 /* the command line is wrong                  */
#define CTL_NO_DAEMON 3
#define CTL_DENIED    4
#define CTL_VERSION   5 /* another protocol, or it lacks the feature  */
#define CTL_FOUND     6 /* done; something is not as it should be     */

#define CTL_DEFAULT_SOCKET "/run/skvqd/skvqd.sock"

struct ctl {
	const char *socket;
	bool json;
	int result; /* what to exit with when ctl_getopt() or ctl_connect() ended it */
};

/* A decimal number in [min, max] of option `what`; complains and returns false otherwise. */
bool ctl_number(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *ret);

/* Connects, or says on stderr what was tried and what to do, sets ctl->result and returns NULL. The
 * caller frees. */
struct skvq_client *ctl_connect(struct ctl *ctl);
/* Says on stderr that the daemon did not do `what`; returns the exit status for that. */
int ctl_failed(const struct ctl *ctl, const struct skvq_client *c, const char *what, int err);

/* What the daemon says of itself, the caller's to free; the client's error, and NULL, if it does not. */
int ctl_status(struct skvq_client *c, struct skvq_client_status **ret);
/* One of its counters; 0 if it has none of that name. */
uint64_t ctl_counter(const struct skvq_client_status *s, const char *name);

/* Prints and frees an object; CTL_OK, or CTL_FAILED if stdout does not take it. */
int ctl_print_json(json_t *object);
/* CTL_OK, or CTL_FAILED if stdout did not take all that was printed. */
int ctl_flush(void);
/* A JSON string of bytes another process chose: what is not UTF-8 becomes '?'. */
json_t *ctl_json_text(const char *text);
/* The same for a terminal: control characters become '?' in place. Returns its argument. */
char *ctl_clean(char *text);

/* Human sizes and times into the caller's buffer; return it. */
#define CTL_HUMAN_BYTES 24
const char *ctl_human_bytes(uint64_t bytes, char buf[CTL_HUMAN_BYTES]);
const char *ctl_human_ms(uint64_t ms, char buf[CTL_HUMAN_BYTES]);
/* How many values there are, and the upper end of the bucket in which that share of them is reached;
 * 0 if there are none. */
uint64_t ctl_recorded(const struct skvq_client_histogram *h);
uint64_t ctl_quantile(const struct skvq_client_histogram *h, double share);
/* Digest as hex, n_bytes of it. buf holds 2 * n_bytes + 1. */
const char *ctl_hex(const uint8_t *digest, size_t n_bytes, char *buf);

/* A table: columns are as wide as their widest cell. Cells are copied. */
struct ctl_table;
/* Columns whose heading starts with '<' are set flush left, the others flush right. */
struct ctl_table *ctl_table_new(size_t n_columns, const char *const *headings);
void ctl_table_row(struct ctl_table *t, const char *const *cells);
void ctl_table_free(struct ctl_table *t);
void ctl_table_print_free(struct ctl_table *t);

/*
 * Before a verb throws something away: on a terminal asks, whether to do what the text says; else
 * `yes` (the option --yes) must have been given. CTL_OK: do it. Otherwise it was told, and is what
 * to exit with.
 */
int ctl_confirm(const char *verb, bool yes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* What another configuration changes, as text or JSON; frees the list. done: it was changed. */
int ctl_print_changes(const struct ctl *ctl, struct skvq_client_config_change *list, size_t n,
		      bool done);
/* A tenant's part of the status. */
json_t *ctl_tenant_json(struct skvq_client_tenant *t);

extern const struct ctl_verb verb_bench;
extern const struct ctl_verb verb_calibration;
extern const struct ctl_verb verb_config;
extern const struct ctl_verb verb_doctor;
extern const struct ctl_verb verb_errors;
extern const struct ctl_verb verb_events;
extern const struct ctl_verb verb_drain;
extern const struct ctl_verb verb_evict;
extern const struct ctl_verb verb_prefetch;
extern const struct ctl_verb verb_show;
extern const struct ctl_verb verb_verify;
extern const struct ctl_verb verb_ls;
extern const struct ctl_verb verb_pins;
extern const struct ctl_verb verb_ping;
extern const struct ctl_verb verb_quota;
extern const struct ctl_verb verb_status;
extern const struct ctl_verb verb_tenants;
extern const struct ctl_verb verb_top;
extern const struct ctl_verb verb_trace;
extern const struct ctl_verb verb_why_miss;

#endif /* SKVQCTL_H */
