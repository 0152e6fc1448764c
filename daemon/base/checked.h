/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/checked.h - arithmetic on sizes from outside that says when it overflows.
 *
 * Each returns true and writes *ret if the exact result fits, else false and *ret is untouched.
 */
#ifndef SKVQD_BASE_CHECKED_H
#define SKVQD_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t sum;

	if (__builtin_add_overflow(a, b, &sum))
		return false;
	*ret = sum;
	return true;
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t product;

	if (__builtin_mul_overflow(a, b, &product))
		return false;
	*ret = product;
	return true;
}

/* Up to the next multiple of align, which is not zero. */
static inline bool checked_round_up(uint64_t a, uint64_t align, uint64_t *ret)
{
	uint64_t rest = a % align;

	return checked_add(a, rest ? align - rest : 0, ret);
}

#endif /* SKVQD_BASE_CHECKED_H */
