/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/events.h - events for those clients that have asked for them (docs/events.md). What cannot be
 * sent at once waits in a queue of each, which is bounded: who does not read loses events, and is told
 * how many. For control/ alone. Loop thread only.
 */
#ifndef SKVQD_CONTROL_EVENTS_H
#define SKVQD_CONTROL_EVENTS_H

#include "control/control.h"
#include "control/session.h"

/* Of one tenant's clients, and of those who are of none. */
#define SUBSCRIBERS_MAX 4u

/* What a match asked for, as long as it takes to answer it. */
struct asked;

/* malloc'ed, to be freed by the caller; NULL: nobody wants to know, or no memory. tokens[n] are read now. */
struct asked *events_asked(const struct control *control, struct ns *ns, const int32_t *tokens,
			   uint32_t n);
/* It has been answered. */
void events_match(struct control *control, const struct match *m, const struct asked *asked);

/* Sends what waits and can go. After each batch of the loop. */
void events_pump(struct control *control);
/* The daemon ends: tells everybody, as far as their sockets take it. */
void events_clear(struct control *control);
/* The session asks for no more. */
void events_end(struct session *session);

#endif /* SKVQD_CONTROL_EVENTS_H */
