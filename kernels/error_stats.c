/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/error_stats.h>

#include <assert.h>

#define SKVQ_TIER_NAME ref
#include "ref/tier.h"

#define F16_MAX      65504.0f
#define F16_MAX_BITS 0x7bffu

void skvq_error_finite(float *x, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		float v = x[i] == x[i] ? x[i] : 0.0f;

		v = v < F16_MAX ? v : F16_MAX;
		x[i] = v > -F16_MAX ? v : -F16_MAX;
	}
}

void skvq_error_add(struct skvq_error_sum *sum, const float *x, const float *decoded, size_t n)
{
	assert(n % SKVQ_ERROR_LANES == 0);
	for (size_t at = 0; at < n; at += SKVQ_ERROR_LANES) {
		for (size_t i = 0; i < SKVQ_ERROR_LANES; i++) {
			double v = x[at + i], e = v - (double)decoded[at + i];

			sum->error[i] += e * e;
			sum->energy[i] += v * v;
		}
	}
}

static double tree(const double lanes[SKVQ_ERROR_LANES])
{
	double s[SKVQ_ERROR_LANES];

	memcpy(s, lanes, sizeof(s));
	for (uint32_t half = SKVQ_ERROR_LANES / 2; half > 0; half /= 2)
		for (uint32_t i = 0; i < half; i++)
			s[i] += s[i + half];
	return s[0];
}

uint16_t skvq_error_half(const struct skvq_error_sum *sum)
{
	double energy = tree(sum->energy), ratio;
	uint16_t half;

	if (!(energy > 0.0))
		return 0;
	ratio = tree(sum->error) / energy;
	if (!(ratio < (double)F16_MAX))
		return F16_MAX_BITS;
	half = f16_encode((float)ratio);
	return half ? half : 1; /* zero says that nobody measured */
}

bool skvq_error_valid(uint16_t half)
{
	return half <= F16_MAX_BITS;
}

float skvq_error_value(uint16_t half)
{
	return f16_decode(half);
}

uint32_t skvq_error_bucket(float error)
{
	/* 2^(0.75 i - 12), i = 1..15 */
	static const float edges[SKVQ_ERROR_BUCKETS - 1] = {
	    4.10593e-4f, 6.90534e-4f, 1.16134e-3f, 1.953125e-3f, 3.28475e-3f,
	    5.52427e-3f, 9.29068e-3f, .015625f,    .0262780f,    .0441942f,
	    .0743254f,   .125f,       .210224f,    .353553f,     .594604f};
	uint32_t i = 0;

	while (i < SKVQ_ERROR_BUCKETS - 1 && error >= edges[i])
		i++;
	return i;
}

/* The n-th smallest of x[0..len-1], by Hoare's selection; x is shuffled. */
static double nth_smallest(double *x, uint32_t len, uint32_t n)
{
	uint32_t from = 0, to = len - 1;

	while (from < to) {
		double pivot = x[from + (to - from) / 2];
		uint32_t i = from, j = to;

		for (;;) {
			while (x[i] < pivot)
				i++;
			while (pivot < x[j])
				j--;
			if (i >= j)
				break;
			double t = x[i];
			x[i++] = x[j];
			x[j--] = t;
		}
		/* x[from..j] <= pivot <= x[j + 1..to] */
		if (n <= j)
			to = j;
		else
			from = j + 1;
	}
	return x[n];
}

double skvq_error_of_middle(const struct skvq_error_sum *head, const float *x, uint32_t n_tokens,
			    uint32_t dim)
{
	double energy[SKVQ_HEAD_DIM_MAX] = {0}, middle;

	assert(dim && dim <= SKVQ_HEAD_DIM_MAX);
	for (uint32_t t = 0; t < n_tokens; t++)
		for (uint32_t i = 0; i < dim; i++) {
			double v = x[(size_t)t * dim + i];

			energy[i] += v * v;
		}
	middle = nth_smallest(energy, dim, dim / 2);
	return middle > 0.0 ? tree(head->error) / dim / middle : 0.0;
}

static float gaussian(uint32_t bits)
{
	switch (bits) { /* measured with one scale for 64 to 256 channels; fewer err less */
	case SKVQ_BITS_8:
		return 1e-4f; /* twice what was measured: nobody notices as little */
	case SKVQ_BITS_4:
		return .0115f;
	case SKVQ_BITS_3:
		return .037f;
	case SKVQ_BITS_2:
		return .119f;
	case SKVQ_BITS_TERNARY:
		return .19f;
	default:
		return 0.0f;
	}
}

float skvq_error_gaussian(const struct skvq_codec *c)
{
	return c->kind == SKVQ_CODEC_SYM && c->rotate ? gaussian(c->bits) : 0.0f;
}

float skvq_error_times(const struct skvq_codec *k, double mean_of_middle)
{
	return k->bits < SKVQ_BITS_8 ? (float)(mean_of_middle / (double)gaussian(k->bits)) : 0.0f;
}
