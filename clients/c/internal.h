/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clients/c/internal.h - what the files of libskvq share: the connection, frames, and requests in
 * flight. Not installed.
 */
#ifndef SKVQ_CLIENT_INTERNAL_H
#define SKVQ_CLIENT_INTERNAL_H

#include <skvq/client.h>

#include "skvq_control.pb-c.h"

#define FRAME_HEADER_BYTES 8
#define FRAME_MAGIC 0x4b53
#define FRAME_FDS_MAX 4
#define REPLY_BYTES_MAX (16u << 20) /* a larger reply is a broken daemon */
#define FEATURE_ERROR_LIST UINT64_C(2)
#define FEATURE_PREFETCH UINT64_C(4)
#define FEATURE_UNREFINE UINT64_C(8)
#define FEATURE_CALIBRATION_REPLACE UINT64_C(16)
#define FEATURE_HANDOVER UINT64_C(32)
#define FEATURE_FIXED_TOKENS UINT64_C(64)
#define FEATURE_EXPLAIN UINT64_C(128)
#define FEATURE_EVENTS UINT64_C(256)
#define FEATURE_CONFIG UINT64_C(512)
#define FEATURE_MANAGE UINT64_C(1024)
#define FEATURES (SKVQ_CLIENT_HAS_CALIBRATIONS | FEATURE_ERROR_LIST | FEATURE_PREFETCH | \
                  FEATURE_UNREFINE | FEATURE_CALIBRATION_REPLACE | FEATURE_HANDOVER | \
                  FEATURE_FIXED_TOKENS | FEATURE_EXPLAIN | FEATURE_EVENTS | FEATURE_CONFIG | FEATURE_MANAGE)
#define MATCH_BYTES 64u              /* of a match beside its tokens, at most */
#define INFLIGHT_MAX 32             /* asynchronous requests; the daemon's bound may be lower */

struct inflight {
	uint64_t id;
	bool is_publish; /* else nobody waits for the answer */
};

struct skvq_client {
	int fd;
	int pidfd; /* of the daemon; -1: not known */
	bool broken;
	uint32_t timeout_ms;
	uint64_t next_id;
	struct skvq_client_hello hello;
	char why[SKVQ_CLIENT_WHY_BYTES];

	uint8_t *out; /* bytes not yet taken by the socket: [out_off, out_len) */
	size_t out_off, out_len, out_cap;
	uint8_t *in; /* bytes of the frame being read */
	size_t in_len, in_cap;
	int fds[FRAME_FDS_MAX]; /* that came with it */
	size_t n_fds;

	struct inflight inflight[INFLIGHT_MAX];
	size_t n_inflight;
	skvq_client_published_fn published;
	void *published_user;

	uint64_t events_id; /* of the request they answer; 0: not asked for */
	skvq_client_event_fn event;
	void *event_user;
};

/* Sets why and returns -err. */
int client_fail(struct skvq_client *c, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The same, and the connection is broken: nothing more can be trusted on it. Its descriptor stays
 * open until skvq_client_free, because the pins end with it. */
int client_break(struct skvq_client *c, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Sends req (its id is set here) with at most one descriptor (-1: none), waits for the answer.
 * *ret is freed with skvq__wire__reply__free_unpacked; its body is checked to be of the case
 * `want`. ret_fd: NULL if no descriptor may come, else exactly one must. */
int client_call(struct skvq_client *c, Skvq__Wire__Request *req, int fd,
                Skvq__Wire__Reply__BodyCase want, Skvq__Wire__Reply **ret, int *ret_fd);
/* Sends req without waiting. */
int client_post(struct skvq_client *c, Skvq__Wire__Request *req, bool is_publish, uint64_t *ret_id);

/* A reply to the request for events: calls event for each. 0, or an error if the connection broke. */
int client_events(struct skvq_client *c, const Skvq__Wire__Reply *r);

/* Milliseconds of CLOCK_MONOTONIC. */
uint64_t client_now_ms(void);

/* What is too long is cut. */
#define COPY_TEXT(dst, src) snprintf(dst, sizeof(dst), "%s", src)
/* One of another length leaves `to` as it is. */
void client_digest(const ProtobufCBinaryData *from, uint8_t to[32]);
/* p has a page. */
void client_page_info(const Skvq__Wire__PageInfo *p, struct skvq_client_page_info *o);

#endif /* SKVQ_CLIENT_INTERNAL_H */
