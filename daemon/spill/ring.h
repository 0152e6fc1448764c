/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/ring.h - a ring that can do what the store needs, and nothing else. For io_uring.c, and for
 * tests that try to do something else with it.
 */
#ifndef SKVQD_SPILL_RING_H
#define SKVQD_SPILL_RING_H

#include <stdbool.h>
#include <stdint.h>

struct io_uring;

/* Makes it; nothing can be asked of it yet, but things can be registered. -errno. */
int spill_ring_init(struct io_uring *ring, uint32_t depth);
/* Restricts it, where the kernel can (5.10), and lets it run. -errno. */
int spill_ring_enable(const struct io_uring *ring, bool *ret_restricted);

#endif /* SKVQD_SPILL_RING_H */
