/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.h - wires the modules together and runs them until a signal comes.
 */
#ifndef SKVQD_SERVER_H
#define SKVQD_SERVER_H

#include "base/why.h"
#include "config.h"

/* Serves until SIGTERM or SIGINT; logs event=ready once it listens. 0 after an orderly end, else a
 * negative code and a sentence. Blocks those signals and ignores SIGPIPE, process-wide. */
int server_run(const struct config *config, const char *version, struct why *why);

#endif /* SKVQD_SERVER_H */
