/* SPDX-License-Identifier: Apache-2.0 */
/*
 * support/raw_client.h - the control protocol spoken by hand, so that a test can also speak it
 * wrongly. Shares no code with clients/ or daemon/. Calls block at most RAW_TIMEOUT_S; whatever the
 * machine refuses aborts the test.
 */
#ifndef SKVQ_TEST_RAW_CLIENT_H
#define SKVQ_TEST_RAW_CLIENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "skvq_control.pb-c.h"

#define RAW_TIMEOUT_S 20
#define RAW_MAGIC     0x4b53u

typedef Skvq__Wire__Request raw_request;
typedef Skvq__Wire__Reply raw_reply;

int raw_connect(const char *path); /* -1 with errno */
void raw_set_timeout(int sock);

/* Any bytes with any descriptors in one sendmsg. Returns what sendmsg does. */
ssize_t raw_send_bytes(int sock, const void *bytes, size_t n, const int *fds, size_t n_fds);
void raw_header(uint8_t ret[8], uint32_t payload_bytes, uint16_t n_fds, uint16_t magic);
/* A well-formed frame; fd -1: none. */
void raw_send(int sock, const raw_request *rq, int fd);
/* The next reply, to be freed with raw_free; NULL at the end of the stream. A descriptor that came
 * goes to *ret_fd (-1 if none did), or is closed if ret_fd is NULL. */
raw_reply *raw_recv(int sock, int *ret_fd);
void raw_free(raw_reply *reply);

/* ---- whole exchanges; id 0 is replaced by a running number ---- */

raw_reply *raw_call(int sock, raw_request *rq, int fd, int *ret_fd);
raw_reply *raw_hello(int sock, const char *name);
/* The identity of support/page_maker.h with a seed in the weights digest. Static storage. */
Skvq__Wire__Identity *raw_identity(uint32_t seed);
raw_reply *raw_namespace_open(int sock, Skvq__Wire__Identity *identity, int *ret_arena);
raw_reply *raw_staging_add(int sock, int fd);
raw_reply *raw_match(int sock, uint32_t ns, const int32_t *tokens, uint32_t n_tokens);
/* parent NULL: first page. */
raw_reply *raw_publish(int sock, uint32_t ns, const Skvq__Wire__PageRef *parent, uint32_t position,
		       const int32_t *tokens, uint32_t staging, uint64_t offset);
void raw_send_publish(int sock, uint64_t id, uint32_t ns, const Skvq__Wire__PageRef *parent,
		      uint32_t position, const int32_t *tokens, uint32_t staging, uint64_t offset);
raw_reply *raw_unpin(int sock, uint32_t ns, Skvq__Wire__PageRef *page);
raw_reply *raw_status(int sock);
uint64_t raw_counter(const raw_reply *status, const char *name); /* aborts if there is none */
uint64_t raw_recorded(const raw_reply *status, const char *histogram); /* values; the same */

#endif /* SKVQ_TEST_RAW_CLIENT_H */
