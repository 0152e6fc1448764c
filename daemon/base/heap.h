/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/heap.h - memory that was freed goes back to the kernel, also when nobody allocates any more.
 *
 * jemalloc gives back what has been free for a while when it is called for something, and an idle
 * daemon does not call it; a thread of jemalloc's own could not be started in the sandbox.
 */
#ifndef SKVQD_BASE_HEAP_H
#define SKVQD_BASE_HEAP_H

#include <stdbool.h>

/* To be called now and then, from any thread. False: the process has another allocator, which is left
 * alone. */
bool heap_tick(void);

#endif /* SKVQD_BASE_HEAP_H */
