/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/rope.h - rotary position embedding as the identity names it, to take it off a key and put it
 * back: profiles "skvq-..." keep keys as they were before, and their channels are grouped by what
 * they were before. Pure functions, any thread, no allocation.
 */
#ifndef SKVQ_ROPE_H
#define SKVQ_ROPE_H

#include <stdint.h>

#include <skvq/format.h>

#if defined(__cplusplus)
extern "C" {
#endif

struct skvq_rope {
	uint32_t pairs; /* of channels i and i + pairs; 0: nothing is turned */
	double frequency[2][SKVQ_HEAD_DIM_MAX / 2]; /* full attention, sliding window */
};

/* dim, theta and scaling are the identity's rope_dim (even, at most SKVQ_HEAD_DIM_MAX; 0: there is
 * no RoPE), rope_theta and rope_scaling (NULL is ""): words joined by '+', of which "linear:<factor>"
 * and "swa:<theta>" are known. -SKVQ_ENOTSUP for any other; ret is untouched then. */
int skvq_rope_init(uint32_t dim, double theta, const char *scaling, struct skvq_rope *ret);

/* Turns the head x, in half-split order, by its position (way 1) or back (-1); slides: the layer has
 * a sliding window. */
void skvq_rope_turn(const struct skvq_rope *r, int slides, uint32_t position, int way, float *x);

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_ROPE_H */
