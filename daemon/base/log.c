/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define LINE_BYTES 1024

static const char *const names[] = {"debug", "info", "warning", "error"};

static struct {
	pthread_mutex_t lock; /* guards the token bucket */
	int level;            /* relaxed atomic: read by every thread */
	uint64_t filled_ms;
	uint64_t tokens;
	uint64_t dropped;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = LOG_INFO, .tokens = LOG_BURST};

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

static void put_quoted(struct line *l, const char *s)
{
	static const char hex[] = "0123456789abcdef";

	put_char(l, '"');
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\') {
			put_char(l, '\\');
			put_char(l, (char)c);
		} else if (c < 0x20 || c == 0x7f) {
			put_text(l, "\\x");
			put_char(l, hex[c >> 4]);
			put_char(l, hex[c & 15]);
		} else {
			put_char(l, (char)c);
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

void log_write(enum log_level level, const char *event, const struct log_kv *kv)
{
	char buf[LINE_BYTES + 64];
	uint64_t dropped = 0;
	struct timespec ts;
	struct tm tm;
	int n;

	if ((int)level < __atomic_load_n(&state.level, __ATOMIC_RELAXED) || !admit(level, &dropped))
		return;
	(void)clock_gettime(CLOCK_REALTIME, &ts);
	(void)gmtime_r(&ts.tv_sec, &tm);
	n = (int)strftime(buf, sizeof(buf), "time=%Y-%m-%dT%H:%M:%S", &tm);
	n += snprintf(buf + n, sizeof(buf) - (size_t)n, ".%03dZ ", (int)(ts.tv_nsec / 1000000));
	n += log_format(buf + n, LINE_BYTES - n, level, event, kv);
	if (dropped)
		n += snprintf(buf + n, sizeof(buf) - (size_t)n - 1, " dropped=%llu",
			      (unsigned long long)dropped);
	buf[n++] = '\n';
	if (write(STDERR_FILENO, buf, (size_t)n) < 0)
		return;
}
