/* SPDX-License-Identifier: Apache-2.0 */
/* The attention of simd/ for NEON. */
#include "prim.h"

#include "../../simd/simd.h"

#include "../../simd/unpack.h"

#include "../../simd/dots.h"

#include "../../simd/softmax.h"

#include "../../simd/query.h"

#include "../../simd/scores.h"

#include "../../simd/values.h"

#include "../../simd/rows.h"

#include "../../simd/page.h"
