/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sandbox.h - what this process may still ask of the kernel once it serves.
 *
 * Whoever takes the daemon over by its socket shall find no more in it than the daemon needs: no
 * programs, no files but the store's, no network, no code that was not there. Two layers: paths
 * (Landlock, Linux 5.13), set before the first thread; system calls (seccomp, by libseccomp), set
 * for all threads when everything is open. Neither can be taken back. What the kernel or the build
 * does not have is left out, with a line in the log. Sanitizers' runtimes need other calls: built
 * with one, there is no sandbox.
 */
#ifndef SKVQD_SANDBOX_H
#define SKVQD_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/why.h"

enum sandbox_mode {
	SANDBOX_OFF,
	SANDBOX_ON,  /* a call that is not on the list ends the process (SIGSYS) */
	SANDBOX_LOG, /* it is done, and the kernel's log says so; paths are not bounded */
};

/* "off", "on", "log" to the mode, or -1. */
int sandbox_mode_parse(const char *name);
const char *sandbox_mode_name(enum sandbox_mode mode);
bool sandbox_is_built(void); /* with the filter of calls */

/* From here on this thread, and all that it starts, open nothing but files in the store's folder
 * (NULL or empty: none; it is made if it is not there) and remove nothing but those and files
 * beside the n_sockets sockets. -SKVQ_ENOTSUP: the kernel has no Landlock. -SKVQ_ESYS. */
int sandbox_paths(enum sandbox_mode mode, const char *const *sockets, uint32_t n_sockets,
		  const char *store, struct why *why);
/* From here on no thread of this process makes other calls than those of the daemon at work and at
 * its end. has_store: it opens files. -SKVQ_ENOTSUP: not built, or the kernel has no seccomp.
 * -SKVQ_ESYS. */
int sandbox_calls(enum sandbox_mode mode, bool has_store, struct why *why);

#endif /* SKVQD_SANDBOX_H */
