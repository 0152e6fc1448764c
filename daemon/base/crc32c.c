/* SPDX-License-Identifier: Apache-2.0 */
#include "base/crc32c.h"

#include <assert.h>
#include <isa-l/crc.h>
#include <limits.h>

uint32_t crc32c(const void *data, size_t bytes)
{
	assert(bytes <= INT_MAX);
	/* ISA-L inverts neither way and forgot the const. */
	return ~crc32_iscsi((unsigned char *)(uintptr_t)data, (int)bytes, UINT32_MAX);
}
