/* SPDX-License-Identifier: Apache-2.0 */
#include "base/heap.h"

#include <stddef.h>

/* jemalloc's, where it is linked: in skvqd, and not in tests or with a sanitizer. */
extern int mallctl(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes)
    __attribute__((weak));

/* MALLCTL_ARENAS_ALL */
#define DECAY_OF_ALL "arena.4096.decay"

bool heap_tick(void)
{
	return mallctl && mallctl(DECAY_OF_ALL, NULL, NULL, NULL, 0) == 0;
}
