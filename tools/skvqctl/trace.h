/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.h - the traffic of a daemon as a file in Mooncake's format, and back: one file an action of the
 * verb `trace`.
 */
#ifndef SKVQCTL_TRACE_H
#define SKVQCTL_TRACE_H

#include "skvqctl.h"

#define TRACE_VERB "skvqctl trace"

struct trace_options {
	const char *path;
	uint64_t count, seconds; /* 0: no bound */
};

/* Each the exit status; all but CTL_OK was told. */
int trace_record(struct ctl *ctl, const struct trace_options *o);

#endif /* SKVQCTL_TRACE_H */
