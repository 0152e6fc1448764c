/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ref/quant.h - the part of quantising a tile that is a few operations for each token and group:
 * from sums over a group to its parameters. simd/encode.h shares it; the loops over channels each
 * has for itself. Lane t of LANES is token t of the tile.
 */
#ifndef SKVQ_KERNELS_REF_QUANT_H
#define SKVQ_KERNELS_REF_QUANT_H

#include <math.h>
#include <stdbool.h>

#include "tier.h"

/* 2^23: the sum's last place is 1, so adding rounds to an even integer. */
#define MAGIC 8388608.0f

/* code = rint(clamp((x - zero) * inverse + middle, 0, M)), for each group. */
struct quant {
	float zero[GROUPS_MAX][LANES];
	float inverse[GROUPS_MAX][LANES];
	float middle;
};

/* Half step over sigma that is best for a Gaussian (half of .0308, .335, .586, .9957, 1.224). */
static inline float gauss_half_step(const struct skvq_codec *c)
{
	switch (c->bits) {
	case SKVQ_BITS_8:
		return 0.0154f;
	case SKVQ_BITS_4:
		return 0.1675f;
	case SKVQ_BITS_3:
		return 0.293f;
	case SKVQ_BITS_2:
		return 0.49785f;
	default:
		return 0.612f;
	}
}

/* Whether a half step is scored by excess_scores rather than by residual_scores. */
static inline bool has_few_levels(const struct skvq_codec *c)
{
	return c->levels_minus_1 < 4;
}

/* The half steps to try, as codes from..to, n_steps at most, and the best so far. */
struct search {
	uint8_t from[LANES], to[LANES];
	uint32_t n_steps;
	float best[LANES]; /* score */
	float step[LANES]; /* 0: none is better than giving up the group */
};

/* top and square: the group's largest |x| and sum of squares. */
static inline void search_begin(const struct skvq_codec *c, uint32_t n, const float *top,
				const float *square, struct search *ret)
{
	float to_code = e4m3_exp2(-c->scale_exp), m = c->levels_minus_1;
	float half_step = gauss_half_step(c);
	bool few = has_few_levels(c);
	uint8_t longest = 0;

	for (uint32_t t = 0; t < LANES; t++) {
		uint32_t gauss = e4m3_encode(half_step * sqrtf(square[t] / (float)n) * to_code);
		uint32_t outlier = e4m3_encode(top[t] / m * to_code);
		uint32_t from = gauss < outlier ? gauss : outlier;
		uint32_t to = (gauss < outlier ? outlier : gauss) + 1;

		ret->from[t] = (uint8_t)(from > 4 ? from - 3 : 1);
		ret->to[t] = (uint8_t)(to < E4M3_MAX_CODE ? to : E4M3_MAX_CODE);
		ret->best[t] = few ? 0.0f : -square[t];
		ret->step[t] = 0.0f;
	}
	for (uint32_t t = 0; t < LANES; t++) {
		uint8_t steps = (uint8_t)(ret->to[t] - ret->from[t] + 1);

		longest = longest > steps ? longest : steps;
	}
	ret->n_steps = longest;
}

/* The codes of step i; a token that has fewer repeats its last. */
static inline void search_codes(const struct search *s, uint32_t i, uint8_t ret[LANES])
{
	for (uint32_t t = 0; t < LANES; t++) {
		uint8_t left = (uint8_t)(s->to[t] - s->from[t]);

		ret[t] = (uint8_t)(s->from[t] + (left < i ? left : i));
	}
}

/* From the codes in column 0 of a parameter row to how x becomes a code. */
static inline void quant_sym(const struct skvq_codec *c, const struct search *s, uint32_t group,
			     uint8_t *scale, struct quant *q)
{
	float to_code = e4m3_exp2(-c->scale_exp);

	q->middle = 0.5f * (float)c->levels_minus_1;
	for (uint32_t t = 0; t < LANES; t++) {
		float d = s->step[t];

		scale[t] = e4m3_encode(d * to_code);
		q->zero[group][t] = 0.0f;
		/* Step 0: all codes M / 2, rounded up. */
		q->inverse[group][t] = d > 0.0f ? 1.0f / (2.0f * d) : 0.0f;
	}
}

/* low and high: the group's smallest and largest x. */
static inline void quant_affine(const struct skvq_codec *c, const float *low, const float *high,
				uint32_t group, uint8_t *scale, uint8_t *zero, struct quant *q)
{
	float step_exp = e4m3_exp2(c->scale_exp), zero_exp = e4m3_exp2(c->zero_exp);
	float step_to_code = e4m3_exp2(-c->scale_exp), zero_to_code = e4m3_exp2(-c->zero_exp);
	float m = c->levels_minus_1;

	q->middle = 0.0f;
	for (uint32_t t = 0; t < LANES; t++) {
		float z = c->clip * low[t], s = (c->clip * high[t] - z) / m;
		uint8_t s_code = e4m3_encode(s * step_to_code);
		uint8_t z_code = e4m3_encode(z * zero_to_code);

		scale[t] = s_code ? s_code : 1;
		zero[t] = z_code == 0x80 ? 0 : z_code; /* equal vectors have equal bytes */
	}
	for (uint32_t t = 0; t < LANES; t++) {
		q->zero[group][t] = skvq_e4m3_value[zero[t]] * zero_exp;
		q->inverse[group][t] = 1.0f / (skvq_e4m3_value[scale[t]] * step_exp);
	}
}

#endif /* SKVQ_KERNELS_REF_QUANT_H */
