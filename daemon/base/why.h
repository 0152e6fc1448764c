/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/why.h - the sentence that goes with an error code.
 *
 * A function that can fail for reasons a person must act on takes a struct why; on failure it
 * writes one sentence naming what and where, and returns the negative code. Nobody reads the
 * sentence on success. The same text ends in the log and in Reply.detail.
 */
#ifndef SKVQD_BASE_WHY_H
#define SKVQD_BASE_WHY_H

#include <stdarg.h>

#define WHY_BYTES 256

struct why {
	char text[WHY_BYTES];
};

/* Writes the sentence (cut at WHY_BYTES) and returns -code. why may be NULL. Keeps errno. */
int why_fail(struct why *why, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same, with ": " and strerror(errno) behind the sentence. */
int why_fail_errno(struct why *why, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif /* SKVQD_BASE_WHY_H */
