/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor.h - what a daemon and engines need of this machine: each check says what it found and, if
 * that will not do, how to mend it.
 */
#ifndef SKVQCTL_DOCTOR_H
#define SKVQCTL_DOCTOR_H

#include <stddef.h>

#include "skvqctl.h"

enum doctor_state {
	DOCTOR_OK,
	DOCTOR_NOTE, /* works; could be better */
	DOCTOR_BAD,  /* something will not work  */
	DOCTOR_SKIP, /* could not be looked at   */
};

#define DOCTOR_CHECKS 24

struct doctor_finding {
	const char *name;
	enum doctor_state state;
	char found[256];
	char mend[256]; /* empty: nothing to do */
};

struct doctor {
	const char *socket;
	const char *store; /* folder of a store, or NULL */
	size_t n;
	struct doctor_finding findings[DOCTOR_CHECKS];
};

extern const char *const doctor_state_names[];

/* Adds one finding; mend NULL: none. */
void doctor_say(struct doctor *d, const char *name, enum doctor_state state, const char *mend,
		const char *format, ...) __attribute__((format(printf, 5, 6)));

void doctor_machine(struct doctor *d); /* processor, kernel, memory, limits */
void doctor_store(struct doctor *d);   /* the store's folder */
void doctor_daemon(struct doctor *d);  /* socket, and who answers */

#endif /* SKVQCTL_DOCTOR_H */
