/* SPDX-License-Identifier: Apache-2.0 */
#include "cells.h"

#include <string.h>

enum { SHOWN = 0x0000, HIDDEN = 0xfc00 }; /* binary16: 0, -infinity */

uint32_t cells_lowest(const int64_t *cells, int64_t n, uint32_t n_cells)
{
	int64_t lowest = n > 0 ? cells[0] : 0;

	for (int64_t i = 0; i < n; i++) {
		if (cells[i] < 0 || cells[i] >= n_cells)
			return 0;
		lowest = cells[i] < lowest ? cells[i] : lowest;
	}
	return (uint32_t)lowest;
}

bool cells_follow(const int64_t *cells, int64_t n, uint32_t n_cells, uint32_t *ret_first)
{
	if (n < 1 || cells[0] < 0 || cells[0] >= n_cells || n > n_cells - cells[0])
		return false;
	for (int64_t i = 1; i < n; i++)
		if (cells[i] != cells[0] + i)
			return false;
	*ret_first = (uint32_t)cells[0];
	return true;
}

bool cells_causal(const void *mask, size_t row_bytes, uint32_t n_kv, uint32_t first, uint32_t n_rows)
{
	if (n_kv < n_rows || first > n_kv - n_rows)
		return false;
	for (uint32_t r = 0; r < n_rows; r++) {
		const uint16_t *row = (const uint16_t *)((const char *)mask + r * row_bytes);
		uint32_t n_shown = first + r + 1;
		unsigned wrong = 0;

		for (uint32_t i = 0; i < n_shown; i++)
			wrong |= row[i] ^ SHOWN;
		for (uint32_t i = n_shown; i < n_kv; i++)
			wrong |= row[i] ^ HIDDEN;
		if (wrong)
			return false;
	}
	return true;
}

/* The two halves of a product of 128 bits, after wyhash. */
static uint64_t fold(uint64_t a, uint64_t b)
{
	__extension__ typedef unsigned __int128 wide;
	wide product = (wide)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t cells_digest(const void *row, size_t bytes)
{
	static const uint64_t k[] = {UINT64_C(0xa0761d6478bd642f), UINT64_C(0xe7037ed1a0b428db),
				     UINT64_C(0x8ebc6af09c88c6e3), UINT64_C(0x589965cc75374cc3)};
	const unsigned char *at = row;
	uint64_t a = bytes, b = ~bytes, word[4]; /* two lanes, so that products overlap */

	for (size_t i = 0; i < bytes; i += sizeof word) {
		memcpy(word, at + i, sizeof word);
		a = fold(word[0] ^ k[0] ^ a, word[1] ^ k[1]);
		b = fold(word[2] ^ k[2] ^ b, word[3] ^ k[3]);
	}
	return fold(a ^ k[0], b ^ k[3]);
}
