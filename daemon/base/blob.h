/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/blob.h - little-endian numbers and byte strings, one behind the other: a buffer that grows
 * as it is written, and a cursor that never reads past its end.
 *
 * Both fail once and stay failed, so that a caller asks at the end and not after each field. A
 * failed cursor gives zeros.
 */
#ifndef SKVQD_BASE_BLOB_H
#define SKVQD_BASE_BLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Zeroed: empty. data is freed by blob_fini. */
struct blob {
	uint8_t *data;
	size_t bytes, cap;
	bool failed; /* no memory: what was put since is not there */
};

void blob_put(struct blob *blob, const void *data, size_t bytes);
void blob_put_u32(struct blob *blob, uint32_t value);
void blob_put_u64(struct blob *blob, uint64_t value);
/* Its length as u32, then the bytes without a final zero. */
void blob_put_text(struct blob *blob, const char *text);
void blob_fini(struct blob *blob);

/* The bytes are borrowed. */
struct blob_cursor {
	const uint8_t *at;
	size_t left;
	bool failed; /* something was asked for that is not there */
};

/* NULL if there are fewer. */
const uint8_t *blob_get(struct blob_cursor *cursor, size_t bytes);
uint32_t blob_get_u32(struct blob_cursor *cursor);
uint64_t blob_get_u64(struct blob_cursor *cursor);
/* As blob_put_text wrote it, with a final zero; room includes that. Fails on a text that does not
 * fit or has a zero inside; ret is then empty. */
void blob_get_text(struct blob_cursor *cursor, char *ret, size_t room);

#endif /* SKVQD_BASE_BLOB_H */
