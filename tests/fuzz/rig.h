/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h - the daemon's control over its cache, without a process around it, for one input.
 *
 * Everything is the daemon's own but the worker pool: jobs wait in a list until fz_work runs them
 * here (the linker's --wrap=worker_submit, worker_submit_to), so that an input always does the same.
 */
#ifndef SKVQ_TESTS_FUZZ_RIG_H
#define SKVQ_TESTS_FUZZ_RIG_H

#include "control/control.h"
#include "control/session.h"
#include "fuzz.h"

#define RIG_FRAME_MAX 8192u

struct fuzz_rig {
	struct loop loop; /* these live as long as the process */
	struct worker worker;
	struct stats stats; /* these are made for each input */
	struct cache cache;
	struct control control;
	int peer;                /* the client's end of the last connection; -1: closed */
	struct session *session; /* the daemon's; NULL once it is dead */
	int fd_floor;            /* the lowest descriptor that is free when nothing is open */
	bool refuse_jobs;        /* worker_submit answers -SKVQ_EBUSY */
};

extern struct fuzz_rig rig;

/* A cache and a control with nothing in them. */
void fz_begin(void);
/* Ends everything and checks that nothing is left: sessions, pins, jobs, descriptors. */
void fz_end(void);
void fz_connect(void);
void fz_hang_up(void); /* the client closes */
/* Events that are there now, at most a few rounds. */
void fz_step(void);
/* Runs the jobs that wait, and what they lead to. */
void fz_work(void);
/* Reads replies, and checks that they are whole frames, as far as they have come. */
void fz_drain(void);

/* Descriptors that a client might send, open for good. */
enum fz_fd {
	RIG_FD_STAGING,     /* sealed; pages of the maker's model lie in it, RIG_PAGES of them */
	RIG_FD_CALIBRATION, /* sealed, a small good file */
	RIG_FD_UNSEALED,
	RIG_FD_WRITE_ONLY, /* sealed */
	RIG_FD_PIPE,
	RIG_FD_NULL,
	RIG_FD_FOLDER,
	RIG_FD_SOCKET,
	RIG_FDS
};
int fz_fd(enum fz_fd which);

#define RIG_PAGES 3u /* a chain in staging, slot_bytes apart: tokens of maker_tokens(1, page) */

/* One request as bytes on the wire: Request{id, body field number: body}. */
size_t fz_request(uint8_t *at, size_t room, uint64_t id, uint32_t field, struct fuzz_in body);

#endif /* SKVQ_TESTS_FUZZ_RIG_H */
