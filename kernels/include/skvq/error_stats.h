/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/error_stats.h - how much of K or V the codes of a page lose, as its layer table says it: the
 * relative squared error sum |x - x'|^2 / sum |x|^2 over a sample of the page, as a binary16.
 *
 * The same rows give the same number everywhere: sums are doubles in 16 lanes and one fixed tree.
 * Pure functions, any thread, no allocation.
 */
#ifndef SKVQ_ERROR_STATS_H
#define SKVQ_ERROR_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <skvq/profile.h>

#define SKVQ_ERROR_LANES 16u

/* All zero to begin with. */
struct skvq_error_sum {
	double error[SKVQ_ERROR_LANES];  /* of |x - x'|^2 */
	double energy[SKVQ_ERROR_LANES]; /* of |x|^2      */
};

/* As the encoders take what is not finite: NaN as 0, the rest as +-65504. */
void skvq_error_finite(float *x, size_t n);
/* n values and what became of them; n is a multiple of 16, all are finite. */
void skvq_error_add(struct skvq_error_sum *sum, const float *x, const float *decoded, size_t n);
/* What a page says: 0 if there was no energy, else at least 2^-24 and at most 65504. */
uint16_t skvq_error_half(const struct skvq_error_sum *sum);

/* Whether a page may say this: finite and not negative. */
bool skvq_error_valid(uint16_t half);
float skvq_error_value(uint16_t half);

/* Histogram: bucket i is 2^(0.75 i - 12) to 2^(0.75 (i + 1) - 12), the first also what is less, the
 * last also what is more. */
#define SKVQ_ERROR_BUCKETS 16u
uint32_t skvq_error_bucket(float error);

/* The error a codec has on Gaussian vectors, which is what rotation makes of most heads; 0 if there
 * is nothing to expect: FP16, and codecs without rotation, whose error is a matter of the model. */
float skvq_error_gaussian(const struct skvq_codec *c);

/* The error of one head's tokens against its middle channel: the mean over channels of
 * sum (x - x')^2 over the median over channels of sum x^2; 0 if that is 0. Rounding errors reach
 * all channels of a head alike, so a few channels much larger than the rest leave nothing of the
 * rest. The relative error does not see it: they are most of its energy. x: [n_tokens][dim] as the
 * engine has them, finite; head: the sum over the same tokens, in stored space. */
double skvq_error_of_middle(const struct skvq_error_sum *head, const float *x, uint32_t n_tokens,
			    uint32_t dim);

/* A layer's keys are drowned if the mean of the above over its heads is more than so many times
 * what a rotated Gaussian vector loses at these bits: docs/measurements.md says what models have.
 */
#define SKVQ_ERROR_DROWNED 7.0f
/* How many times it is; never drowned are keys of 8 bits and more: 0. */
float skvq_error_times(const struct skvq_codec *k, double mean_of_middle);

#endif /* SKVQ_ERROR_STATS_H */
