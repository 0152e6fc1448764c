/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/planes.h - the bytes of a page sorted by kind, for an entropy coder, and back.
 *
 * Keys of neighbouring tokens are alike: of a channel's 2-bit codes two thirds equal the one
 * before. Codes of 2, 4 and 8 bits of keys are replaced by their difference from the code of the
 * same channel one token earlier, modulo the number of levels; what is in each stream then has one
 * distribution. Where the planes are is taken from the page itself. Bytes that make no page are
 * one stream, so that anything comes back as it was; a header that lies costs room and nothing
 * else. Pure functions, any thread.
 */
#ifndef SKVQD_SPILL_PLANES_H
#define SKVQD_SPILL_PLANES_H

#include <stdint.h>

enum plane_stream {
	PLANE_FRONT, /* header, tokens, layer table; or all of it */
	PLANE_REST,  /* parameter rows, FP16 rows, padding */
	PLANE_CODES, /* K in 8, 4, 3, 2, 1.5 bits, then V */
	PLANE_STREAMS = PLANE_CODES + 10,
};

/* How many bytes of a section go to each stream. The front is the section's own beginning, and all
 * else follows from it: of the rest nothing is read. */
void planes_count(const uint8_t *section, uint32_t bytes, uint32_t ret_bytes[PLANE_STREAMS]);
/* The section into its streams, each of its count. */
void planes_gather(const uint8_t *section, uint32_t bytes, uint8_t *const stream[PLANE_STREAMS]);
/* And back; the section's front is there already, and what is there is all that was counted. */
void planes_scatter(uint8_t *section, uint32_t bytes, const uint8_t *const stream[PLANE_STREAMS]);

#endif /* SKVQD_SPILL_PLANES_H */
