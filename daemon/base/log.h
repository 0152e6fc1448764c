/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/log.h - one line an event to stderr, key=value (logfmt) or JSON; or fields to the journal.
 *
 *   log_event(LOG_INFO, "ready", LOG_STR("socket", path), LOG_U64("ram_max", n));
 *   time=2026-11-24T09:00:00.000Z level=info event=ready socket=/run/skvqd.sock ram_max=4294967296
 *
 * Strings may come from clients: a value with anything but plain characters is quoted, and bytes
 * that could end a line or move a cursor, and what is not UTF-8, are written as \xNN. In JSON they are
 * \u00NN and U+FFFD. A flood is cut: past LOG_BURST lines at once, lines below error are dropped
 * and the next one carries dropped=N. Any thread.
 */
#ifndef SKVQD_BASE_LOG_H
#define SKVQD_BASE_LOG_H

#include <stdint.h>
#include <sys/uio.h>

enum log_level { LOG_DEBUG = 0, LOG_INFO = 1, LOG_WARNING = 2, LOG_ERROR = 3 };

#define LOG_BURST      200u /* a client can cause lines: bounds what it costs in disk and time   */
#define LOG_PER_SECOND 50u

struct log_kv {
	const char *key; /* NULL ends the list */
	const char *str; /* or NULL: u64 is the value */
	uint64_t u64;
};

#define LOG_STR(k, v) ((struct log_kv){.key = (k), .str = (v)})
#define LOG_U64(k, v) ((struct log_kv){.key = (k), .str = NULL, .u64 = (uint64_t)(v)})

enum log_form { LOG_FORM_AUTO = 0, LOG_FORM_LOGFMT = 1, LOG_FORM_JSON = 2, LOG_FORM_JOURNAL = 3 };

/* What lines look like from here on; before it, logfmt. Auto is the journal if stderr is a stream of
 * it, else logfmt. The journal of a machine without one, or of a build without libsystemd, is logfmt
 * too. To be called while there is one thread. Returns what it came to be, never auto. */
enum log_form log_set_form(enum log_form form);
/* "auto", "logfmt", "json", "journal" to the form, or -1. */
int log_form_parse(const char *name);
const char *log_form_name(enum log_form form);

/* Events below this level are not written. Default LOG_INFO. */
void log_set_level(enum log_level level);
/* "debug", "info", "warning", "error" to the level, or -1. */
int log_level_parse(const char *name);
const char *log_level_name(enum log_level level);

/* One write(2) of one line, cut at 1024 bytes (JSON stays JSON, and says "cut"), or one message to
 * the journal. A line that cannot be written is lost; one that the journal does not take goes to
 * stderr. */
void log_write(enum log_level level, const char *event, const struct log_kv *kv);
/* The same text into buf, without time and rate limit; returns its length. The seam for tests. */
int log_format(char *buf, int buf_bytes, enum log_level level, const char *event,
	       const struct log_kv *kv);

/* The same as a JSON object, valid whatever was cut off, of at most buf_bytes >= LOG_JSON_MIN; time
 * (NULL: without) is the first key, dropped (0: without) the last. */
#define LOG_JSON_MIN 256
int log_format_json(char *buf, int buf_bytes, const char *time, enum log_level level,
		    const char *event, const struct log_kv *kv, uint64_t dropped);
/* The same as fields of a journal's message; their text is in buf. Returns how many: what does not
 * fit is left out. */
#define LOG_FIELDS_MAX 24
int log_format_fields(struct iovec fields[LOG_FIELDS_MAX], char *buf, int buf_bytes,
		      enum log_level level, const char *event, const struct log_kv *kv,
		      uint64_t dropped);

#define log_event(level, event, ...)                                                               \
	log_write((level), (event), (const struct log_kv[]){__VA_ARGS__ __VA_OPT__(, ){0}})

#endif /* SKVQD_BASE_LOG_H */
