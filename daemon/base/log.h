/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/log.h - one line an event, key=value (logfmt), to stderr.
 *
 *   log_event(LOG_INFO, "ready", LOG_STR("socket", path), LOG_U64("ram_max", n));
 *   time=2026-11-24T09:00:00.000Z level=info event=ready socket=/run/skvqd.sock ram_max=4294967296
 *
 * Strings may come from clients: a value with anything but plain characters is quoted, and bytes
 * that could end a line or move a cursor are written as \xNN. A flood is cut: past LOG_BURST lines
 * at once, lines below error are dropped and the next one carries dropped=N. Any thread.
 */
#ifndef SKVQD_BASE_LOG_H
#define SKVQD_BASE_LOG_H

#include <stdint.h>

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

/* Events below this level are not written. Default LOG_INFO. */
void log_set_level(enum log_level level);
/* "debug", "info", "warning", "error" to the level, or -1. */
int log_level_parse(const char *name);
const char *log_level_name(enum log_level level);

/* One write(2) of one line, cut at 1024 bytes. A line that cannot be written is lost. */
void log_write(enum log_level level, const char *event, const struct log_kv *kv);
/* The same text into buf, without time and rate limit; returns its length. The seam for tests. */
int log_format(char *buf, int buf_bytes, enum log_level level, const char *event,
	       const struct log_kv *kv);

#define log_event(level, event, ...)                                                               \
	log_write((level), (event), (const struct log_kv[]){__VA_ARGS__ __VA_OPT__(, ){0}})

#endif /* SKVQD_BASE_LOG_H */
