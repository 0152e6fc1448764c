/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.h - wires the modules together and runs them until a signal comes.
 */
#ifndef SKVQD_SERVER_H
#define SKVQD_SERVER_H

#include "base/why.h"
#include "config.h"

/* Serves until SIGTERM or SIGINT; logs event=ready once it listens. 0 after an orderly end, else a
 * negative code and a sentence. Blocks those signals and ignores SIGPIPE, process-wide. config is the
 * server's until then, and changes as it is steered; argc and argv are what it was made of. */
int server_run(struct config *config, int argc, char **argv, const char *version,
	       struct why *why);

#endif /* SKVQD_SERVER_H */
