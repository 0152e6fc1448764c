/* SPDX-License-Identifier: Apache-2.0 */
#include "e4m3.h"

/* (1.m or 0.m) * 2^(e - 7), with the subnormal exponent e = 0 counted as 1. */
#define V(s, e, m) (s) * ((e) ? 8.0f + (m) : 0.0f + (m)) * (float)(1u << ((e) ? (e) : 1)) / 1024.0f
#define ROW(s, e)                                                                                  \
	V(s, e, 0), V(s, e, 1), V(s, e, 2), V(s, e, 3), V(s, e, 4), V(s, e, 5), V(s, e, 6),        \
	    V(s, e, 7)
#define LAST_ROW(s)                                                                                \
	V(s, 15, 0), V(s, 15, 1), V(s, 15, 2), V(s, 15, 3), V(s, 15, 4), V(s, 15, 5), V(s, 15, 6), \
	    0.0f
#define HALF(s)                                                                                    \
	ROW(s, 0), ROW(s, 1), ROW(s, 2), ROW(s, 3), ROW(s, 4), ROW(s, 5), ROW(s, 6), ROW(s, 7),    \
	    ROW(s, 8), ROW(s, 9), ROW(s, 10), ROW(s, 11), ROW(s, 12), ROW(s, 13), ROW(s, 14),      \
	    LAST_ROW(s)

const float skvq_e4m3_value[256] = {HALF(1.0f), HALF(-1.0f)};
