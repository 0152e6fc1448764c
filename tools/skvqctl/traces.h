/* SPDX-License-Identifier: Apache-2.0 */
/*
 * traces.h - the traffic of a daemon as a file in Mooncake's format, and back: one file an action of the
 * verb `trace`.
 */
#ifndef SKVQCTL_TRACES_H
#define SKVQCTL_TRACES_H

#include "skvqctl.h"

#define TRACE_VERB "skvqctl trace"

struct trace_options {
	const char *path;
	uint64_t count, seconds; /* 0: no bound */
	/* Of replay. */
	uint64_t block_tokens;
	uint64_t page_bytes; /* at least */
	double speed;        /* times that of the trace; 0: as fast as it goes */
	bool yes;
};

/* Each the exit status; all but CTL_OK was told. */
int trace_replay(struct ctl *ctl, const struct trace_options *o);
int trace_record(struct ctl *ctl, const struct trace_options *o);

#endif /* SKVQCTL_TRACES_H */
