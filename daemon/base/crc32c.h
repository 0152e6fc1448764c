/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/crc32c.h - CRC-32C (Castagnoli) by ISA-L, in the usual convention: initial value and final
 * xor all ones, so that "123456789" gives 0xe3069283. Any thread.
 */
#ifndef SKVQD_BASE_CRC32C_H
#define SKVQD_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(const void *data, size_t bytes); /* bytes at most INT_MAX */

#endif /* SKVQD_BASE_CRC32C_H */
