/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/simd.h - attention on pages by integer dot products, written once for all ISAs.
 *
 * The files of simd/ are one text, included in this order by <isa>/attention.c after that ISA's
 * prim.h: simd.h, unpack.h, dots.h, softmax.h, query.h, scores.h, values.h, rows.h, page.h. prim.h
 * gives codes  64 bytes, one code each, and their shifts, masks and base-3 digits; quad   four
 * signed bytes, broadcast; dot    sixteen sums: dot_add adds the products of each four codes with
 * the four bytes; i32s   sixteen integers; f32s sixteen floats; and says how many fit the
 * registers: DIGIT_BITS(code_max)  bits of the lower of the two digits a number is split into;
 *   DOT_STEPS(code_max)   dot_adds before dot_sums must be taken;
 *   WIDE_BIAS             what codes_load_wide takes from 8-bit codes, for signed dot_adds;
 *   PLANE_SUMS, TRIT_SUMS, TRIT_KEYS_FUSED, DOT_ROWS, DOT_X, DOT_SHAPES, VALUE_BLOCKS
 *                         the shapes of loops;
 *   TRIT_RAISED(k)        codes_trits_raised() gives digit k times 2 to this.
 *
 * The arithmetic. A number to be multiplied with codes (a query's channel; a token's softmax weight
 * times its step) is an integer x = hi * 2^DIGIT_BITS + lo times one float scale, with signed bytes
 * hi and lo: 15 bits and a sign, or 13 where products of 8-bit codes would overflow 16 bits (AVX2).
 * The sums over codes are exact integers, and
 *     symmetric: sum x (2c - M) = 2 sum x c - M sum x, exact as well (it wraps, the result does
 * not) affine:    step * sum x c + zero * sum x so that what is lost against the reference is the
 * rounding of x alone. scores:  x = query, one scale a row;       sixteen lanes are the tokens of a
 * tile values:  x = weight * step, one scale a    sixteen lanes are channels row, block and group
 */
#ifndef SKVQ_KERNELS_SIMD_H
#define SKVQ_KERNELS_SIMD_H

#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "../nested.h"
#include "../ref/tier.h"

/* The text once for each i below n, both known to the compiler. gcc 12 unrolls loops too late to
 * see that an array indexed by one belongs in registers, and keeps a copy on the stack. */
#define REPEAT(i, n, ...)                                                                          \
	do {                                                                                       \
		REPEAT_ONE(i, 0, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 1, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 2, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 3, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 4, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 5, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 6, n, __VA_ARGS__)                                                   \
		REPEAT_ONE(i, 7, n, __VA_ARGS__)                                                   \
	} while (0)
#define REPEAT_ONE(i, value, n, ...)                                                               \
	{                                                                                          \
		const uint32_t i = (value) < (n) ? (value) : 0;                                    \
		if ((value) < (n)) {                                                               \
			__VA_ARGS__                                                                \
		}                                                                                  \
	}

#define ROWS_MAX   SKVQ_ATTN_ROWS_MAX
#define TOKENS     SKVQ_PAGE_TOKENS
#define TILES      SKVQ_PAGE_TILES
#define FUSED_ROWS 2u /* rows that read the planes directly: no copy is worth its stores      */
#define COPY_BYTES (TOKENS * DIM_MAX) /* a page's codes, one a byte */

/* Most pages of one softmax step: the sums over V's codes, the maximum and the scale of the weights
 * are then taken once for all of them. */
#define BLOCK_PAGES  4u
#define BLOCK_TOKENS (BLOCK_PAGES * TOKENS)

/* Tiles from..to-1 of a page or, in five times as many, of a block of pages. */
struct tiles {
	uint32_t from, to;
};

/* Steps and zeros of a block as floats, [group][token]. */
struct page_params {
	float step[GROUPS_MAX][BLOCK_TOKENS];
	float zero[GROUPS_MAX][BLOCK_TOKENS]; /* affine only */
};

/* Of one page's tiles n, from token `at` of the block on. factor: what steps are multiplied by. */
static inline void page_params_load(const struct skvq_codec *c, const uint8_t *params,
				    const struct tiles *n, uint32_t at, float factor,
				    struct page_params *ret)
{
	/* f32_from_e4m3 gives a 256th. */
	f32s step = f32_set(e4m3_exp2(c->scale_exp) * 256.0f * factor);
	f32s zero = f32_set(e4m3_exp2(c->zero_exp) * 256.0f);
	bool affine = c->kind == SKVQ_CODEC_AFFINE;

	for (uint32_t g = 0; g < c->n_groups; g++) {
		const uint8_t *s = params + (size_t)g * TOKENS;
		const uint8_t *z = s + (size_t)c->n_groups * TOKENS;

		for (uint32_t t = n->from * LANES; t < n->to * LANES; t += LANES) {
			f32_store(ret->step[g] + at + t, f32_mul(f32_from_e4m3(s + t), step));
			if (affine)
				f32_store(ret->zero[g] + at + t,
					  f32_mul(f32_from_e4m3(z + t), zero));
		}
	}
}

/* How codes are read: SKVQ_BITS_*, or 2-bit codes with the two bits that refine them. */
#define BITS_NESTED 0xf0u

static inline uint32_t code_max(uint32_t bits)
{
	switch (bits) {
	case SKVQ_BITS_8:
		return 255;
	case BITS_NESTED:
		return SKVQ_NESTED_MAX;
	case SKVQ_BITS_4:
		return 15;
	case SKVQ_BITS_3:
		return 7;
	case SKVQ_BITS_2:
		return 3;
	default:
		return 2;
	}
}

/* What dot_add gets less than the codes: sums of x * code lack this times the sum of x. */
static inline uint32_t code_bias(uint32_t bits)
{
	return code_max(bits) > 127 ? WIDE_BIAS : 0;
}

/* The largest x that two digits hold, the lower one signed. */
static inline int32_t digits_max(uint32_t digit_bits)
{
	return ((1 << (digit_bits - 1)) - 1) * ((1 << digit_bits) + 1);
}

/* Sixteen x of magnitude digits_max or less to hi[16] and lo[16]. */
SIMD void digits_store(i32s x, uint32_t digit_bits, int8_t *hi, int8_t *lo)
{
	i32s h = i32_sar(i32_add(x, i32_set(1 << (digit_bits - 1))), digit_bits);

	i32_store_bytes(hi, h);
	i32_store_bytes(lo, i32_sub(x, i32_shl(h, digit_bits)));
}

SIMD i32s digits_join(i32s hi, i32s lo, uint32_t digit_bits)
{
	return i32_add(i32_shl(hi, digit_bits), lo);
}

#endif /* SKVQ_KERNELS_SIMD_H */
