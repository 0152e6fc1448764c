/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/faithful.h>

#include <assert.h>

#define SKVQ_TIER_NAME ref
#include "ref/tier.h"

#define STEP_MIN 1e-5f
#define F16_MAX  65504.0f

/* What a half-precision operation leaves of its exact result: the operands are halves, so the float
 * operation before this rounds to nearest even with bits to spare. */
static float half(float x)
{
	return f16_decode(f16_encode(x));
}

static float finite_half(float x)
{
	if (!(x == x))
		return 0.0f;
	return x > F16_MAX ? F16_MAX : x < -F16_MAX ? -F16_MAX : x;
}

struct range {
	float low, high;
};

struct params {
	float step, zero;
};

static struct params params_of(struct range r, float m, float clip)
{
	float low = half(clip * r.low), high = half(clip * r.high);
	float step = half(half(high - low) / m);
	struct params ret = {step > half(STEP_MIN) ? step : half(STEP_MIN), low};

	if (!(ret.step <= F16_MAX)) /* high - low may overflow */
		ret.step = F16_MAX;
	return ret;
}

void skvq_faithful_encode(const struct skvq_channel_groups *g, uint32_t levels_minus_1, float clip,
			  const uint16_t *x, uint8_t *codes, uint8_t *scale, uint8_t *zero,
			  uint32_t stride)
{
	struct range ranges[SKVQ_FAITHFUL_GROUPS_MAX];
	struct params params[SKVQ_FAITHFUL_GROUPS_MAX];
	float m = (float)levels_minus_1;

	assert(g->n_groups <= SKVQ_FAITHFUL_GROUPS_MAX);
	for (uint32_t i = 0; i < g->n_groups; i++)
		ranges[i] = (struct range){F16_MAX, -F16_MAX};
	for (uint32_t i = 0; i < g->n; i++) {
		struct range *r = &ranges[g->of[i]];
		float v = finite_half(f16_decode(x[i]));

		r->low = v < r->low ? v : r->low;
		r->high = v > r->high ? v : r->high;
	}
	for (uint32_t i = 0; i < g->n_groups; i++) {
		params[i] = params_of(ranges[i], m, half(clip));
		scale[(size_t)i * stride] = e4m3_encode(params[i].step);
		zero[(size_t)i * stride] = e4m3_encode(params[i].zero);
		if (zero[(size_t)i * stride] == 0x80)
			zero[(size_t)i * stride] = 0; /* one zero: equal vectors, equal bytes */
	}
	for (uint32_t i = 0; i < g->n; i++) {
		const struct params *p = &params[g->of[i]];
		float q = half(half(finite_half(f16_decode(x[i])) - p->zero) / p->step);

		q = q > 0.0f ? q : 0.0f;
		q = q < m ? q : m;
		/* 2^23 + q: the sum's last place is 1, so adding rounds to an even integer. */
		codes[i] = (uint8_t)f32_bits(q + 8388608.0f);
	}
}

void skvq_faithful_decode(const struct skvq_channel_groups *g, const uint8_t *codes,
			  const uint8_t *scale, const uint8_t *zero, uint32_t stride,
			  uint32_t first, uint32_t n, uint16_t *ret)
{
	for (uint32_t i = 0; i < n; i++) {
		size_t at = (size_t)g->of[first + i] * stride;
		float step = skvq_e4m3_value[scale[at]], low = skvq_e4m3_value[zero[at]];

		ret[i] = f16_encode(half((float)codes[i] * step) + low);
	}
}

uint32_t skvq_faithful_neighbours(uint32_t n, uint32_t size, uint16_t *ret)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = (uint16_t)(i / size);
	return (n + size - 1) / size;
}
