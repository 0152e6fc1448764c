/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugin-abi/src/elems.h - the engine's rows in and out: element types, alignment, channel order.
 */
#ifndef SKVQ_PLUGIN_ELEMS_H
#define SKVQ_PLUGIN_ELEMS_H

#include "internal.h"

#include <string.h>

static inline uint32_t elem_bytes(uint32_t type)
{
	switch (type) {
	case SKVQ_F32:
		return 4;
	case SKVQ_F16:
	case SKVQ_BF16:
		return 2;
	default:
		return 0;
	}
}

/* NULL, or what is wrong with a tensor of the engine's. */
static inline const char *tensor_fault(const void *p, uint32_t type, int64_t stride_a, int64_t stride_b)
{
	uint32_t bytes = elem_bytes(type);

	if (!bytes)
		return "has an unknown element type";
	if (!p)
		return "is NULL";
	if ((uintptr_t)p % bytes || stride_a % bytes || stride_b % bytes)
		return "is not aligned to its element type";
	return NULL;
}

static inline void load_row(const struct skvq_kernels *k, const void *p, uint32_t type, float *x, uint32_t n)
{
	switch (type) {
	case SKVQ_F32:
		memcpy(x, p, n * sizeof *x);
		break;
	case SKVQ_F16:
		k->f16_to_f32(p, x, n);
		break;
	default:
		k->bf16_to_f32(p, x, n);
	}
}

static inline void store_row(const struct skvq_kernels *k, const float *x, void *p, uint32_t type,
                      uint32_t n)
{
	switch (type) {
	case SKVQ_F32:
		memcpy(p, x, n * sizeof *x);
		break;
	case SKVQ_F16:
		k->f32_to_f16(x, p, n);
		break;
	default:
		k->f32_to_bf16(x, p, n);
	}
}

/* Interleaved RoPE pairs (2i, 2i+1) to canonical (i, i + half), and back. Channels beyond the
 * rotated ones stay. half 0: nothing to do. */
static inline void to_canonical(uint32_t half, float *x)
{
	float t[SKVQ_HEAD_DIM_MAX];

	for (uint32_t i = 0; i < half; i++) {
		t[i] = x[2 * i];
		t[half + i] = x[2 * i + 1];
	}
	memcpy(x, t, 2 * half * sizeof *x);
}

static inline void from_canonical(uint32_t half, float *x)
{
	float t[SKVQ_HEAD_DIM_MAX];

	for (uint32_t i = 0; i < half; i++) {
		t[2 * i] = x[i];
		t[2 * i + 1] = x[half + i];
	}
	memcpy(x, t, 2 * half * sizeof *x);
}

#endif /* SKVQ_PLUGIN_ELEMS_H */
