/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steer.h - a running daemon's configuration: shown, compared with another, changed as far as it can be.
 *
 * A change is worked out as a whole (steer_ops.plan) and then done as a whole, or not at all. It comes
 * as the text of a file, never as its name: the sandbox lets the daemon open none. What the command line
 * said wins over it, as at the start. Loop thread only.
 */
#ifndef SKVQD_STEER_H
#define SKVQD_STEER_H

#include "config.h"
#include "control/control.h"
#include "spill/store.h"

struct steer {
	struct config *config; /* what runs; changed in place, for others borrow from it */
	int argc;              /* the daemon's command line */
	char **argv;
	struct control *control;
	struct worker *worker; /* NULL: none */
	uint64_t *shutdown_ms; /* NULL, or where the end looks */
	uint64_t fds_max;      /* descriptors that the process may have */
	struct control_steer ops;
	char key[CONFIG_KEY_MAX];
};

/* Fills in ops, with steer as their ctx. config is of the daemon that runs, and checked. */
void steer_init(struct steer *steer, struct config *config, int argc, char **argv,
		uint64_t fds_max);
/* Where the changes go, once that is there. */
void steer_bind(struct steer *steer, struct control *control, struct worker *worker,
		uint64_t *shutdown_ms);

#endif /* SKVQD_STEER_H */
