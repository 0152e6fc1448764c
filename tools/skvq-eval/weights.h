// SPDX-License-Identifier: Apache-2.0
//
// Copies of a model that measure better or harder.
//
// ggml quantizes activations to 8 bits before it multiplies them with quantized weights. That puts
// a floor under every KL divergence; a dequantized copy of the weights takes it away.
//
// Outliers: the same function, harder for codecs. In each layer and KV head two random RoPE pairs
// of channels get 16 times their size in K and a sixteenth in Q. Large models have such channels by
// nature; a codec that is only good without them is not good.
#ifndef SKVQ_EVAL_WEIGHTS_H
#define SKVQ_EVAL_WEIGHTS_H

#include <cstdint>
#include <string>

enum class WeightType { as_is, f16, f32 };

struct Weights {
	WeightType type = WeightType::as_is;
	bool outliers = false; // makes the type F32, where the factors are exact
	uint32_t seed = 1;     // of the outliers' places
};

// The path of such a copy: of a file made before, if there is one, below $SKVQ_CACHE_DIR, which is
// by default skvqd in the user's cache folder. Throws std::runtime_error.
std::string weights_copy(const std::string &path, const Weights &weights, uint32_t n_threads);

#endif
