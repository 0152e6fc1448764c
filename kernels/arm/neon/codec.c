/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding, decoding and transforms of simd/ for NEON. */
#include "prim_codec.h"

#include "../../simd/simd.h"

#include "../../simd/transform.h"

#include "../../simd/encode.h"

#include "../../simd/decode.h"
