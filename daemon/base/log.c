/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/journal.h"

#define LINE_BYTES 1024

/* Behind the last value of a JSON line: its end, cut and dropped. */
#define TAIL_BYTES 64
/* All fields of a message together: the line, and each value once more. */
#define FIELDS_BYTES 2560

static const char *const names[] = {"debug", "info", "warning", "error"};
static const char *const forms[] = {[LOG_FORM_AUTO] = "auto",
				    [LOG_FORM_LOGFMT] = "logfmt",
				    [LOG_FORM_JSON] = "json",
				    [LOG_FORM_JOURNAL] = "journal"};
/* Of syslog. */
static const char priorities[] = {'7', '6', '4', '3'};

static struct {
	pthread_mutex_t lock; /* guards the token bucket */
	int level;            /* relaxed atomic: read by every thread */
	enum log_form form;   /* set while there is one thread */
	uint64_t filled_ms;
	uint64_t tokens;
	uint64_t dropped;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = LOG_INFO,
	   .form = LOG_FORM_LOGFMT, .tokens = LOG_BURST};

/* A cursor that stops at the end instead of running over it. */
struct line {
	char *buf;
	int cap;
	int len;
};

static void put_char(struct line *l, char c)
{
	if (l->len < l->cap - 1)
		l->buf[l->len++] = c;
}

static void put_text(struct line *l, const char *s)
{
	for (; *s; s++)
		put_char(l, *s);
}

static bool is_plain(const char *s)
{
	if (!*s)
		return false;
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c <= 0x20 || c >= 0x7f || c == '"' || c == '=' || c == '\\')
			return false;
	}
	return true;
}

/* Bytes of the UTF-8 character at s, 1 to 4; 0: it is none. */
static int utf8_bytes(const unsigned char *s)
{
	int n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

	if (s[0] > 0xf4)
		return 0;
	for (int i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80) /* the end of the string too */
			return 0;
	}
	/* Longer than it need be, a surrogate, past U+10FFFF. */
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

/* Of the characters that move cursors: C0, DEL, and C1 as UTF-8 has them. n: of its bytes. */
static bool is_control(const unsigned char *s, int n)
{
	return n == 1 ? *s < 0x20 || *s == 0x7f : n == 2 && *s == 0xc2 && s[1] < 0xa0;
}

static void put_hex(struct line *l, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";

	put_text(l, "\\x");
	put_char(l, hex[c >> 4]);
	put_char(l, hex[c & 15]);
}

static void put_quoted(struct line *l, const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	put_char(l, '"');
	while (*s) {
		int n = utf8_bytes(s);
		bool plain = n && !is_control(s, n);

		if (*s == '"' || *s == '\\')
			put_char(l, '\\');
		for (n = n ? n : 1; n--; s++) {
			if (plain)
				put_char(l, (char)*s);
			else
				put_hex(l, *s);
		}
	}
	put_char(l, '"');
}

void log_set_level(enum log_level level)
{
	__atomic_store_n(&state.level, (int)level, __ATOMIC_RELAXED);
}

int log_level_parse(const char *name)
{
	for (int i = 0; i < (int)(sizeof(names) / sizeof(names[0])); i++) {
		if (!strcmp(name, names[i]))
			return i;
	}
	return -1;
}

const char *log_level_name(enum log_level level)
{
	return names[level];
}

enum log_form log_set_form(enum log_form form)
{
	if (form == LOG_FORM_AUTO)
		form = journal_is_stderr() ? LOG_FORM_JOURNAL : LOG_FORM_LOGFMT;
	if (form == LOG_FORM_JOURNAL && !journal_is_there())
		form = LOG_FORM_LOGFMT;
	state.form = form;
	return form;
}

int log_form_parse(const char *name)
{
	for (int i = 0; i < (int)(sizeof(forms) / sizeof(forms[0])); i++) {
		if (!strcmp(name, forms[i]))
			return i;
	}
	return -1;
}

const char *log_form_name(enum log_form form)
{
	return forms[form];
}

int log_format(char *buf, int buf_bytes, enum log_level level, const char *event,
	       const struct log_kv *kv)
{
	struct line l = {.buf = buf, .cap = buf_bytes};

	put_text(&l, "level=");
	put_text(&l, names[level]);
	put_text(&l, " event=");
	put_text(&l, event);
	for (; kv->key; kv++) {
		put_char(&l, ' ');
		put_text(&l, kv->key);
		put_char(&l, '=');
		if (!kv->str) {
			char num[24];

			(void)snprintf(num, sizeof(num), "%llu", (unsigned long long)kv->u64);
			put_text(&l, num);
		} else if (is_plain(kv->str)) {
			put_text(&l, kv->str);
		} else {
			put_quoted(&l, kv->str);
		}
	}
	buf[l.len] = '\0';
	return l.len;
}

/* ---- JSON ---- */

/* The whole of it or nothing. */
static bool put_whole(struct line *l, const char *s, int n)
{
	if (l->len + n >= l->cap)
		return false;
	memcpy(l->buf + l->len, s, (size_t)n);
	l->len += n;
	return true;
}

/* The next character of a string, as JSON has it. False: there is no room. */
static bool put_json_char(struct line *l, const unsigned char **at)
{
	const unsigned char *s = *at;
	int n = utf8_bytes(s), bytes;
	char text[8];

	*at += n ? n : 1;
	if (n == 0)
		return put_whole(l, "\xef\xbf\xbd", 3);
	if (n == 1 && (*s == '"' || *s == '\\'))
		bytes = snprintf(text, sizeof(text), "\\%c", *s);
	else if (is_control(s, n))
		bytes = snprintf(text, sizeof(text), "\\u%04x", s[n - 1]);
	else
		return put_whole(l, (const char *)s, n);
	return put_whole(l, text, bytes);
}

/* ,"key": and the value. False: it was cut, and nothing may follow. The object stays closed by
 * `}`, whatever is left out. */
static bool put_member(struct line *l, const char *key, const char *str, uint64_t u64)
{
	char text[160];
	int n;

	if (!str) {
		n = snprintf(text, sizeof(text), "%s\"%.100s\":%llu", l->len > 1 ? "," : "", key,
			     (unsigned long long)u64);
		return put_whole(l, text, n);
	}
	n = snprintf(text, sizeof(text), "%s\"%.100s\":\"", l->len > 1 ? "," : "", key);
	if (!put_whole(l, text, n))
		return false;
	for (const unsigned char *s = (const unsigned char *)str; *s;) {
		if (!put_json_char(l, &s)) {
			l->buf[l->len++] = '"'; /* of the tail's room */
			return false;
		}
	}
	l->buf[l->len++] = '"';
	return true;
}

int log_format_json(char *buf, int buf_bytes, const char *time, enum log_level level,
		    const char *event, const struct log_kv *kv, uint64_t dropped)
{
	struct line l = {.buf = buf, .cap = buf_bytes - TAIL_BYTES};
	bool whole;

	put_char(&l, '{');
	whole = !time || put_member(&l, "time", time, 0);
	whole = whole && put_member(&l, "level", names[level], 0);
	whole = whole && put_member(&l, "event", event, 0);
	for (; whole && kv->key; kv++)
		whole = put_member(&l, kv->key, kv->str, kv->u64);
	l.cap = buf_bytes;
	if (!whole)
		put_text(&l, ",\"cut\":true");
	if (dropped)
		(void)put_member(&l, "dropped", NULL, dropped);
	put_char(&l, '}');
	l.buf[l.len] = '\0';
	return l.len;
}

/* ---- the journal ---- */

struct fields {
	struct iovec *iov;
	int n;
	struct line text;
};

/* PREFIX, the key in capitals, "=", the value as it is: a message may have any bytes. */
static void add_field(struct fields *f, const char *prefix, const char *key, const char *value,
		      int value_bytes)
{
	int start = f->text.len;
	int bytes = (int)(strlen(prefix) + strlen(key)) + 1 + value_bytes;

	if (f->n == LOG_FIELDS_MAX || start + bytes >= f->text.cap)
		return;
	put_text(&f->text, prefix);
	for (; *key; key++) {
		char c = *key;

		put_char(&f->text, c >= 'a' && c <= 'z'					     ? (char)(c - 'a' + 'A')
				   : (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ? c
											 : '_');
	}
	put_char(&f->text, '=');
	(void)put_whole(&f->text, value, value_bytes);
	f->iov[f->n++] = (struct iovec){.iov_base = f->text.buf + start,
					.iov_len = (size_t)(f->text.len - start)};
}

static void add_number(struct fields *f, const char *key, uint64_t v)
{
	char num[24];

	add_field(f, "SKVQD_", key, num,
		  snprintf(num, sizeof(num), "%llu", (unsigned long long)v));
}

int log_format_fields(struct iovec fields[LOG_FIELDS_MAX], char *buf, int buf_bytes,
		      enum log_level level, const char *event, const struct log_kv *kv,
		      uint64_t dropped)
{
	struct fields f = {.iov = fields, .text = {.buf = buf, .cap = buf_bytes}};
	char line[LINE_BYTES];
	int n = log_format(line, sizeof(line), level, event, kv);

	add_field(&f, "", "MESSAGE", line, n);
	add_field(&f, "", "PRIORITY", &priorities[level], 1);
	add_field(&f, "", "SYSLOG_IDENTIFIER", "skvqd", 5);
	add_field(&f, "SKVQD_", "event", event, (int)strlen(event));
	if (dropped)
		add_number(&f, "dropped", dropped);
	for (; kv->key; kv++) {
		size_t bytes = kv->str ? strlen(kv->str) : 0;

		if (!kv->str)
			add_number(&f, kv->key, kv->u64);
		else /* as much of it as the line could have */
			add_field(&f, "SKVQD_", kv->key, kv->str,
				  bytes < LINE_BYTES ? (int)bytes : LINE_BYTES);
	}
	return f.n;
}

static bool to_journal(enum log_level level, const char *event, const struct log_kv *kv,
		       uint64_t dropped)
{
	struct iovec fields[LOG_FIELDS_MAX];
	char buf[FIELDS_BYTES];

	return journal_send(fields, log_format_fields(fields, buf, sizeof(buf), level, event, kv,
						      dropped));
}

/* ---- out ---- */

/* Takes one token; errors always pass. *ret_dropped is what to confess in this line. */
static bool admit(enum log_level level, uint64_t *ret_dropped)
{
	uint64_t now = clock_ms(), add;
	bool pass = true;

	(void)pthread_mutex_lock(&state.lock);
	add = (now - state.filled_ms) * LOG_PER_SECOND / 1000u;
	if (add) {
		state.tokens += add;
		if (state.tokens > LOG_BURST)
			state.tokens = LOG_BURST;
		state.filled_ms = now;
	}
	if (state.tokens)
		state.tokens--;
	else if (level < LOG_ERROR)
		pass = false;
	if (pass) {
		*ret_dropped = state.dropped;
		state.dropped = 0;
	} else {
		state.dropped++;
	}
	(void)pthread_mutex_unlock(&state.lock);
	return pass;
}

/* 2026-11-24T09:00:00.000Z */
static void format_time(char *buf, size_t buf_bytes)
{
	struct timespec ts;
	struct tm tm;
	size_t n;

	(void)clock_gettime(CLOCK_REALTIME, &ts);
	(void)gmtime_r(&ts.tv_sec, &tm);
	n = strftime(buf, buf_bytes, "%Y-%m-%dT%H:%M:%S", &tm);
	(void)snprintf(buf + n, buf_bytes - n, ".%03dZ", (int)(ts.tv_nsec / 1000000));
}

void log_write(enum log_level level, const char *event, const struct log_kv *kv)
{
	char buf[LINE_BYTES + TAIL_BYTES], time[40];
	uint64_t dropped = 0;
	int n;

	if ((int)level < __atomic_load_n(&state.level, __ATOMIC_RELAXED) || !admit(level, &dropped))
		return;
	if (state.form == LOG_FORM_JOURNAL && to_journal(level, event, kv, dropped))
		return;
	format_time(time, sizeof(time));
	if (state.form == LOG_FORM_JSON) {
		n = log_format_json(buf, sizeof(buf) - 1, time, level, event, kv, dropped);
	} else {
		n = snprintf(buf, sizeof(buf), "time=%s ", time);
		n += log_format(buf + n, LINE_BYTES - n, level, event, kv);
		if (dropped)
			n += snprintf(buf + n, sizeof(buf) - (size_t)n - 1, " dropped=%llu",
				      (unsigned long long)dropped);
	}
	buf[n++] = '\n';
	if (write(STDERR_FILENO, buf, (size_t)n) < 0)
		return;
}
