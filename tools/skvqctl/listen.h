/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listen.h - events as they come, until enough of them have, the time is over, or somebody presses
 * Ctrl-C. For events and trace.
 */
#ifndef SKVQCTL_LISTEN_H
#define SKVQCTL_LISTEN_H

#include "skvqctl.h"

struct ctl_listener {
	uint32_t what;    /* SKVQ_CLIENT_EVENTS_* */
	uint64_t count;   /* lines; 0: no bound */
	uint64_t seconds; /* 0: no bound */
	/* lost events before this one; e NULL: that is all. True if a line came of it, which counts. */
	bool (*event)(struct ctl_listener *l, uint64_t lost, const struct skvq_client_event *e);
	FILE *to; /* flushed behind what has come at once; one that fails ends it */

	uint64_t lines;
	uint64_t until_ms; /* of CLOCK_MONOTONIC; 0: no bound */
	bool failed; /* `to` took no more */
};

/* Connects and listens. SIGINT and SIGTERM end it in order. The exit status; all but CTL_OK was told. */
int ctl_listen(struct ctl *ctl, struct ctl_listener *l);

#endif /* SKVQCTL_LISTEN_H */
