/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/dispatch.h - from a frame to the handler of its request, and replies on the way back.
 *
 * The wire messages (protobuf-c) are known here and in op_*.c, nowhere else in the daemon.
 * A request that was understood but cannot be served gets an error reply and the connection goes
 * on; a frame that cannot be understood ends the connection.
 */
#ifndef SKVQD_CONTROL_DISPATCH_H
#define SKVQD_CONTROL_DISPATCH_H

#include "base/why.h"
#include "control/session.h"
#include "skvq_control.pb-c.h"

#define WIRE_VERSION_MAJOR 1u
#define WIRE_VERSION_MINOR 0u
/* Bit 0: calibrations, 1: error_list, 2: prefetch, 3: unrefine, 4: calibration_replace,
 * 5: handover, of a daemon that may hand over alone, 6: match.fixed_tokens, 7: explain, 8: events,
 * 9: config, 10: page_get, evict, verify, drain. */
#define WIRE_FEATURES      (UINT64_C(511) | WIRE_CONFIG | WIRE_MANAGE)
#define WIRE_UNREFINE      UINT64_C(8)
#define WIRE_HANDOVER      UINT64_C(32)
#define WIRE_CONFIG        UINT64_C(512)
#define WIRE_MANAGE        UINT64_C(1024)
#define WIRE_PING_MAX      65536u
#define WIRE_PAGE_LIST_MAX 4096u
#define WIRE_PUBLISH_MAX   1024u

/* Tells the client why its frame breaks the protocol; the connection ends after it. */
void dispatch_broken(struct session *session, int code, const char *why);
/* Serves one frame of the session. */
void dispatch_frame(struct session *session, struct conn_frame *frame);

/* Sends a reply whose body the caller has set; id and boot_id are filled in here. fd (or -1) goes
 * along as a duplicate. A reply above frame_max becomes SKVQ_ELIMIT. */
void reply_send(struct session *session, uint64_t id, Skvq__Wire__Reply *reply, int fd);
/* code is positive or negative; counts the refusal. */
void reply_error(struct session *session, uint64_t id, int code, const char *detail);
/* The same with a body that the caller has set: what was done before the refusal. */
void reply_refuse(struct session *session, uint64_t id, int code, const char *detail,
		  Skvq__Wire__Reply *reply);

/* Only memfds (and unsealable tmpfs files, which the seals refuse) know seals. A sealed one cannot
 * shrink, so a size seen once holds, and reading it cannot wait on a disk or a peer. -SKVQ_EFD,
 * -SKVQ_ESEALS. */
int check_memfd(int fd, struct why *why);

/* What a handler gets. It replies (now or later) and returns 0, or returns a negative code with a
 * sentence in why and has changed nothing. */
struct request {
	struct session *session;
	uint64_t id;
	const Skvq__Wire__Request *msg; /* until the handler returns */
	struct conn_frame *frame;       /* for its descriptors: exactly as many as the table says */
};
typedef int (*op_fn)(const struct request *rq, struct why *why);

int op_hello(const struct request *rq, struct why *why);
int op_ping(const struct request *rq, struct why *why);
int op_namespace_open(const struct request *rq, struct why *why);
int op_staging_add(const struct request *rq, struct why *why);
int op_staging_drop(const struct request *rq, struct why *why);
int op_match(const struct request *rq, struct why *why);
int op_prefetch(const struct request *rq, struct why *why);
int op_publish(const struct request *rq, struct why *why);
int op_unrefine(const struct request *rq, struct why *why);
int op_unpin(const struct request *rq, struct why *why);
int op_calibration_get(const struct request *rq, struct why *why);
int op_calibration_put(const struct request *rq, struct why *why);
int op_status(const struct request *rq, struct why *why);
int op_namespace_list(const struct request *rq, struct why *why);
int op_page_list(const struct request *rq, struct why *why);
int op_pin_list(const struct request *rq, struct why *why);
int op_error_list(const struct request *rq, struct why *why);
int op_explain(const struct request *rq, struct why *why);
int op_page_get(const struct request *rq, struct why *why);
int op_evict(const struct request *rq, struct why *why);
int op_verify(const struct request *rq, struct why *why);
int op_drain(const struct request *rq, struct why *why);
int op_config_get(const struct request *rq, struct why *why);
int op_config_set(const struct request *rq, struct why *why);
int op_events(const struct request *rq, struct why *why);

#endif /* SKVQD_CONTROL_DISPATCH_H */
