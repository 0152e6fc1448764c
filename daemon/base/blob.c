/* SPDX-License-Identifier: Apache-2.0 */
#include "base/blob.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BYTES 4096u

void blob_put(struct blob *blob, const void *data, size_t bytes)
{
	size_t cap = blob->cap ? blob->cap : FIRST_BYTES;
	uint8_t *bigger;

	if (blob->failed || bytes > SIZE_MAX / 4 - blob->bytes) {
		blob->failed = true;
		return;
	}
	while (cap < blob->bytes + bytes)
		cap *= 2;
	if (cap != blob->cap) {
		bigger = realloc(blob->data, cap);
		if (!bigger) {
			blob->failed = true;
			return;
		}
		blob->data = bigger;
		blob->cap = cap;
	}
	if (bytes)
		memcpy(blob->data + blob->bytes, data, bytes);
	blob->bytes += bytes;
}

static void put_le(struct blob *blob, uint64_t value, size_t bytes)
{
	uint8_t le[8];

	for (size_t i = 0; i < bytes; i++)
		le[i] = (uint8_t)(value >> 8 * i);
	blob_put(blob, le, bytes);
}

void blob_put_u32(struct blob *blob, uint32_t value)
{
	put_le(blob, value, 4);
}

void blob_put_u64(struct blob *blob, uint64_t value)
{
	put_le(blob, value, 8);
}

void blob_put_text(struct blob *blob, const char *text)
{
	size_t len = strlen(text);

	blob_put_u32(blob, (uint32_t)len);
	blob_put(blob, text, len);
}

void blob_fini(struct blob *blob)
{
	free(blob->data);
	*blob = (struct blob){0};
}

const uint8_t *blob_get(struct blob_cursor *cursor, size_t bytes)
{
	const uint8_t *at = cursor->at;

	if (cursor->failed || bytes > cursor->left) {
		cursor->failed = true;
		return NULL;
	}
	cursor->at += bytes;
	cursor->left -= bytes;
	return at;
}

static uint64_t get_le(struct blob_cursor *cursor, size_t bytes)
{
	const uint8_t *at = blob_get(cursor, bytes);
	uint64_t value = 0;

	for (size_t i = 0; at && i < bytes; i++)
		value |= (uint64_t)at[i] << 8 * i;
	return value;
}

uint32_t blob_get_u32(struct blob_cursor *cursor)
{
	return (uint32_t)get_le(cursor, 4);
}

uint64_t blob_get_u64(struct blob_cursor *cursor)
{
	return get_le(cursor, 8);
}

void blob_get_text(struct blob_cursor *cursor, char *ret, size_t room)
{
	uint32_t len = blob_get_u32(cursor);
	const uint8_t *at;

	ret[0] = '\0';
	if (len >= room) {
		cursor->failed = true;
		return;
	}
	at = blob_get(cursor, len);
	if (!at)
		return;
	if (memchr(at, '\0', len)) {
		cursor->failed = true;
		return;
	}
	memcpy(ret, at, len);
	ret[len] = '\0';
}
