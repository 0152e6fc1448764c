/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/faithful.h - SKVQ's own quantizer (arXiv 2405.06219; its authors' fake quantization in half
 * precision): the baseline that the project's codecs are measured against. One token's channels of
 * all KV heads of a layer are quantized together, in groups of any size that a calibration made:
 *
 *     lo = a min, hi = a max          a = clip factor
 *     s = max((hi - lo) / M, 1e-5)    M = 2^b - 1, ternary 2
 *     q = rint(clamp((x - lo) / s, 0, M))
 *     x' = q e4m3(s) + e4m3(lo)
 *
 * Every operation is rounded to binary16, codes come from unrounded s and lo as in the authors'
 * code; E4M3 saturates at 448 where theirs gives NaN. Pure functions, any thread, no allocation.
 */
#ifndef SKVQ_FAITHFUL_H
#define SKVQ_FAITHFUL_H

#include <stdint.h>

/* n channels in n_groups groups: channel i is in group of[i]. Every group has a channel. */
struct skvq_channel_groups {
	uint32_t n, n_groups; /* n_groups at most SKVQ_FAITHFUL_GROUPS_MAX */
	const uint16_t *of;
};

#define SKVQ_FAITHFUL_GROUPS_MAX 1024u

/* x[n] binary16, finite (others count as 0 and +-65504); codes[n]; scale and zero: E4M3 codes,
 * `stride` bytes from a group's to the next. */
void skvq_faithful_encode(const struct skvq_channel_groups *g, uint32_t levels_minus_1, float clip,
			  const uint16_t *x, uint8_t *codes, uint8_t *scale, uint8_t *zero,
			  uint32_t stride);

/* Channels first..first + n - 1, whose codes these are, back to binary16. */
void skvq_faithful_decode(const struct skvq_channel_groups *g, const uint8_t *codes,
			  const uint8_t *scale, const uint8_t *zero, uint32_t stride,
			  uint32_t first, uint32_t n, uint16_t *ret);

/* The groups of a layer that no calibration has grouped: neighbours, `size` channels each, the last
 * one the rest. ret[n]; returns their number. */
uint32_t skvq_faithful_neighbours(uint32_t n, uint32_t size, uint16_t *ret);

#endif /* SKVQ_FAITHFUL_H */
