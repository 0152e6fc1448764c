// SPDX-License-Identifier: Apache-2.0
//
// skvq/weights.hpp - copies of a model that measure better or harder. Each has a digest of its own,
// and so wants a calibration of its own.
//
// ggml quantizes activations to 8 bits before it multiplies them with quantized weights. That puts
// a floor under every KL divergence; a dequantized copy of the weights takes it away.
//
// Outliers: the same function, harder for codecs. In each layer and KV head two random RoPE pairs
// of channels get 16 times their size in K and a sixteenth in Q. Large models have such channels by
// nature; a codec that is only good without them is not good.
#ifndef SKVQ_WEIGHTS_HPP
#define SKVQ_WEIGHTS_HPP

#include <cstdint>
#include <string>

#include <getopt.h>

namespace skvq
{

enum class WeightType { as_is, f16, f32 };

struct Weights {
	WeightType type = WeightType::as_is;
	bool outliers = false; // makes the type F32, where the factors are exact
	uint32_t seed = 1;     // of the outliers' places
};

// The path of such a copy: of a file made before, if there is one, below $SKVQ_CACHE_DIR, which is
// by default skvqd in the user's cache folder. Throws std::runtime_error.
std::string weights_copy(const std::string &path, const Weights &weights, uint32_t n_threads);

// Their options, for getopt_long tables of commands whose own numbers are below 512.
enum WeightsOption { weights_f16 = 512, weights_f32, weights_outliers, weights_seed };
#define SKVQ_WEIGHTS_OPTIONS                                                                       \
	{"f16-weights", no_argument, nullptr, skvq::weights_f16},                                  \
	    {"f32-weights", no_argument, nullptr, skvq::weights_f32},                              \
	    {"inject-outliers", no_argument, nullptr, skvq::weights_outliers},                     \
	{                                                                                          \
		"seed", required_argument, nullptr, skvq::weights_seed                             \
	}
// Takes what getopt_long returned, if it is one of these. UsageError, as from the next.
bool weights_option(Weights &weights, int option, const char *value);
void weights_check(const Weights &weights);
const char *weights_name(const Weights &weights); // "as-is", "f16", "f32", "f32+outliers"

} // namespace skvq

#endif
