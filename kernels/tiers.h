/* SPDX-License-Identifier: Apache-2.0 */
/* tiers.h - the entry points of the tiers, for dispatch.c alone. */
#ifndef SKVQ_KERNELS_TIERS_H
#define SKVQ_KERNELS_TIERS_H

struct skvq_kernels;

/* Each writes the whole table, or the entries in which it is better than the tier below. */
void skvq_ref_fill(struct skvq_kernels *table);
#ifdef SKVQ_HAVE_X86
void skvq_avx2_fill(struct skvq_kernels *table);
void skvq_avx512_fill(struct skvq_kernels *table);
#endif
#ifdef SKVQ_HAVE_ARM
void skvq_neon_fill(struct skvq_kernels *table);
#endif

#endif /* SKVQ_KERNELS_TIERS_H */
