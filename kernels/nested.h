/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nested.h - keys whose 2-bit code is refined by two more bits kept elsewhere. The 2-bit code alone
 * is that of a plain 2-bit codec: cell c of four, one step wide inside and open outside. The
 * refinement splits each cell in four, near to where a Gaussian's tokens lie in it:
 *
 *   inner cells, distance from 0 in steps   .143 .357 .643 .857
 *   outer cells                             1.143 1.357 1.714 2.214
 *
 * in fourteenths of a step (seventh of a half step), so that kernels multiply integers of six bits.
 * Index 4 * cell + refinement; values rise with it.
 */
#ifndef SKVQ_KERNELS_NESTED_H
#define SKVQ_KERNELS_NESTED_H

/* value = half step * (2 u - SKVQ_NESTED_M) / SKVQ_NESTED_STEP, u one of these. */
#define SKVQ_NESTED_STEP 14.0f
#define SKVQ_NESTED_M    64
#define SKVQ_NESTED_MAX  63
#define SKVQ_NESTED_LEVELS 1, 8, 13, 16, 20, 23, 27, 30, 34, 37, 41, 44, 48, 51, 56, 63

#endif /* SKVQ_KERNELS_NESTED_H */
