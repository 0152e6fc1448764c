/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/press.h"

#include <stdlib.h>
#include <string.h>

#include <zstd.h>

/* Higher levels look harder for repetitions, and there are none. */
#define LEVEL 1

struct press {
	ZSTD_CCtx *pack;
	ZSTD_DCtx *unpack;
	uint32_t bytes_max;
	uint8_t stage[]; /* streams of a section */
};

struct press *press_new(uint32_t bytes_max)
{
	struct press *press = calloc(1, sizeof(*press) + bytes_max);

	if (!press)
		return NULL;
	press->bytes_max = bytes_max;
	press->pack = ZSTD_createCCtx();
	press->unpack = ZSTD_createDCtx();
	if (press->pack && press->unpack)
		return press;
	press_free(press);
	return NULL;
}

void press_free(struct press *press)
{
	if (!press)
		return;
	(void)ZSTD_freeCCtx(press->pack);
	(void)ZSTD_freeDCtx(press->unpack);
	free(press);
}

/* The most that it may be stored in: less than it is, however little that is. */
static uint32_t worth(uint32_t bytes)
{
	return bytes - bytes / 16 - 1;
}

uint32_t press_pack(struct press *press, const uint8_t *from, uint32_t bytes, uint8_t *to)
{
	uint32_t at = sizeof(struct press_head), room = worth(bytes), counts[PLANE_STREAMS];
	uint8_t *stream[PLANE_STREAMS], *next = press->stage;
	struct press_head head = {0};

	if (!bytes || bytes > press->bytes_max || room <= at)
		return 0;
	planes_count(from, bytes, counts);
	for (int i = 0; i < PLANE_STREAMS; i++) {
		stream[i] = next;
		next += counts[i];
	}
	planes_gather(from, bytes, stream);
	for (int i = 0; i < PLANE_STREAMS; i++) {
		uint32_t n = counts[i], most;
		size_t r;

		if (!n)
			continue;
		most = worth(n);
		/* An error is no room, mostly: then it stays as it is. */
		r = ZSTD_compressCCtx(press->pack, to + at, most < room - at ? most : room - at,
				      stream[i], n, LEVEL);
		if (ZSTD_isError(r)) {
			if (n > room - at)
				return 0;
			memcpy(to + at, stream[i], n);
			r = n;
		}
		head.stream[i].bytes = n;
		head.stream[i].stored_bytes = (uint32_t)r;
		at += (uint32_t)r;
	}
	memcpy(to, &head, sizeof(head));
	return at;
}

/* One stream; *ret is where it is now: at to, or in the input. */
static bool expand(struct press *press, const uint8_t *from, uint32_t stored, uint8_t *to,
		   uint32_t bytes, const uint8_t **ret)
{
	size_t r;

	*ret = from;
	if (stored == bytes)
		return true;
	*ret = to;
	r = ZSTD_decompressDCtx(press->unpack, to, bytes, from, stored);
	return !ZSTD_isError(r) && r == bytes;
}

/* The head's lengths add up to those of the section and of the input. */
static bool head_holds(const struct press_head *head, uint32_t packed, uint32_t bytes)
{
	uint64_t sum = 0, stored = sizeof(*head);

	for (int i = 0; i < PLANE_STREAMS; i++) {
		if (head->stream[i].stored_bytes > head->stream[i].bytes ||
		    (head->stream[i].bytes && !head->stream[i].stored_bytes))
			return false;
		sum += head->stream[i].bytes;
		stored += head->stream[i].stored_bytes;
	}
	return sum == bytes && stored == packed;
}

bool press_unpack(struct press *press, const uint8_t *from, uint32_t packed, uint8_t *to,
		  uint32_t bytes)
{
	uint32_t counts[PLANE_STREAMS], front;
	const uint8_t *stream[PLANE_STREAMS], *at = from + sizeof(struct press_head);
	uint8_t *next = press->stage;
	struct press_head head;

	if (packed < sizeof(head) || bytes > press->bytes_max)
		return false;
	memcpy(&head, from, sizeof(head));
	if (!head_holds(&head, packed, bytes))
		return false;
	front = head.stream[PLANE_FRONT].bytes;
	if (!expand(press, at, head.stream[PLANE_FRONT].stored_bytes, to, front,
		    &stream[PLANE_FRONT]))
		return false;
	if (stream[PLANE_FRONT] != to)
		memcpy(to, stream[PLANE_FRONT], front);
	if (front == bytes)
		return true;
	planes_count(to, bytes, counts);
	at += head.stream[PLANE_FRONT].stored_bytes;
	for (int i = 0; i < PLANE_STREAMS; i++) {
		if (counts[i] != head.stream[i].bytes)
			return false;
		if (i == PLANE_FRONT)
			continue;
		if (!expand(press, at, head.stream[i].stored_bytes, next, counts[i], &stream[i]))
			return false;
		at += head.stream[i].stored_bytes;
		next += counts[i];
	}
	planes_scatter(to, bytes, stream);
	return true;
}
