/* SPDX-License-Identifier: Apache-2.0 */
#include "base/why.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int why_fail(struct why *why, int code, const char *fmt, ...)
{
	int saved = errno;

	if (why) {
		va_list ap;

		va_start(ap, fmt);
		(void)vsnprintf(why->text, sizeof(why->text), fmt, ap);
		va_end(ap);
	}
	errno = saved;
	return -code;
}

int why_fail_errno(struct why *why, int code, const char *fmt, ...)
{
	int saved = errno;

	if (why) {
		char err[64];
		size_t at;
		va_list ap;

		va_start(ap, fmt);
		(void)vsnprintf(why->text, sizeof(why->text), fmt, ap);
		va_end(ap);
		at = strlen(why->text);
		(void)snprintf(why->text + at, sizeof(why->text) - at, ": %s",
			       strerror_r(saved, err, sizeof(err)));
	}
	errno = saved;
	return -code;
}
