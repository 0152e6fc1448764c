/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32C (Castagnoli) by a table of one byte, in the convention of skvq/format.h. A page or two is
 * checked when a daemon was lost: speed is no matter, and the plugin needs no library for it.
 */
#include "internal.h"

#define POLY 0x82f63b78u /* reflected */

uint32_t crc32c(const uint8_t *data, size_t bytes)
{
	uint32_t table[256], crc = ~0u;

	for (uint32_t i = 0; i < 256; i++) {
		table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? POLY : 0);
	}
	for (size_t i = 0; i < bytes; i++)
		crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
	return ~crc;
}
