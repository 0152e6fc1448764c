/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32C (Castagnoli), four bytes at a time by tables made for each call, in the convention of
 * skvq/format.h. Snapshots are checked by it, and a page or two when a daemon was lost: it need not be
 * the fastest, and the plugin needs no library for it.
 */
#include "internal.h"

#define POLY 0x82f63b78u /* reflected */

uint32_t crc32c(const uint8_t *data, size_t bytes)
{
	uint32_t table[4][256], crc = ~0u;
	size_t i = 0;

	for (uint32_t k = 0; k < 256; k++) {
		table[0][k] = k;
		for (int bit = 0; bit < 8; bit++)
			table[0][k] = table[0][k] >> 1 ^ (table[0][k] & 1 ? POLY : 0);
	}
	for (uint32_t k = 0; k < 256; k++)
		for (int t = 1; t < 4; t++)
			table[t][k] = table[t - 1][k] >> 8 ^ table[0][table[t - 1][k] & 0xff];
	for (; i + 4 <= bytes; i += 4) {
		crc ^= (uint32_t)data[i] | (uint32_t)data[i + 1] << 8 | (uint32_t)data[i + 2] << 16 |
		       (uint32_t)data[i + 3] << 24;
		crc = table[3][crc & 0xff] ^ table[2][crc >> 8 & 0xff] ^ table[1][crc >> 16 & 0xff] ^
		      table[0][crc >> 24];
	}
	for (; i < bytes; i++)
		crc = crc >> 8 ^ table[0][(crc ^ data[i]) & 0xff];
	return ~crc;
}
