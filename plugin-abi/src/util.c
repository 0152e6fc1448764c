/* SPDX-License-Identifier: Apache-2.0 */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int set_error(struct skvq_session *s, int err, const char *fmt, ...)
{
	va_list ap;

	/* [data] calls of several threads may fail at once: one message wins, nobody waits. */
	if (!atomic_flag_test_and_set_explicit(&s->error_busy, memory_order_acquire)) {
		va_start(ap, fmt);
		vsnprintf(s->error, sizeof s->error, fmt, ap);
		va_end(ap);
		atomic_flag_clear_explicit(&s->error_busy, memory_order_release);
	}
	return -err;
}

int32_t api_last_error(skvq_session *s, char *buf, uint64_t bytes)
{
	if (!s || (!buf && bytes))
		return -SKVQ_EINVAL;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED; /* and error_busy may have been taken when it forked */
	char copy[sizeof s->error];
	/* A [data] call of another sequence may be writing: that takes as long as a printf. */
	while (atomic_flag_test_and_set_explicit(&s->error_busy, memory_order_acquire))
		;
	memcpy(copy, s->error, sizeof copy);
	atomic_flag_clear_explicit(&s->error_busy, memory_order_release);
	return snprintf(buf, bytes < 4096 ? (size_t)bytes : 4096, "%s", copy);
}

void log_event(struct skvq_session *s, int32_t level, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	if (!s->log)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	s->log(s->user, level, line);
}

int check_fork(const struct skvq_session *s)
{
	return *s->fork_guard ? 0 : -SKVQ_EFORKED;
}

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int copy_in(void *dst, uint32_t ours, const void *src)
{
	uint32_t theirs;

	memset(dst, 0, ours);
	if (!src)
		return -SKVQ_EINVAL;
	memcpy(&theirs, src, sizeof theirs);
	if (theirs < sizeof theirs)
		return -SKVQ_EINVAL;
	memcpy(dst, src, theirs < ours ? theirs : ours);
	return 0;
}

int copy_out(void *dst, const void *src, uint32_t ours)
{
	uint32_t theirs;

	if (!dst)
		return -SKVQ_EINVAL;
	memcpy(&theirs, dst, sizeof theirs);
	if (theirs < sizeof theirs)
		return -SKVQ_EINVAL;
	uint32_t n = theirs < ours ? theirs : ours;
	memcpy((uint8_t *)dst + sizeof theirs, (const uint8_t *)src + sizeof theirs,
	       n - sizeof theirs);
	return 0;
}
