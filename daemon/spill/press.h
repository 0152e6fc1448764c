/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/press.h - one section of a page, compressed without loss and back (docs/store-format.md).
 *
 * The section's streams (spill/planes.h) are compressed by zstd one by one, where that saves a
 * sixteenth; in effect its Huffman coder does the work, since codes do not repeat. What is read
 * back may be anything: no more than the room given is written, and nothing outside the input is
 * read. A press belongs to one thread at a time.
 */
#ifndef SKVQD_SPILL_PRESS_H
#define SKVQD_SPILL_PRESS_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "spill/planes.h"

/* Before the streams, which follow each other in this order. */
struct press_head {
	struct {
		uint32_t bytes;
		uint32_t stored_bytes; /* equal: as it is */
	} stream[PLANE_STREAMS];
};
static_assert(sizeof(struct press_head) == 96, "on disk");

struct press;

/* For sections up to bytes_max, about that and 2 MiB of memory. NULL: no memory. */
struct press *press_new(uint32_t bytes_max);
void press_free(struct press *press); /* NULL is fine */
/* Bytes written at to, fewer than `bytes` by at least a sixteenth; or 0: not worth it. to has room
 * for `bytes`. */
uint32_t press_pack(struct press *press, const uint8_t *from, uint32_t bytes, uint8_t *to);
/* False: these bytes are not `bytes` compressed. */
bool press_unpack(struct press *press, const uint8_t *from, uint32_t packed, uint8_t *to,
		  uint32_t bytes);

#endif /* SKVQD_SPILL_PRESS_H */
