// SPDX-License-Identifier: Apache-2.0
//
// The yardstick: runs chunks of a text through the reference and all profiles side by side - the
// same tokens in the same pieces - and compares what they say comes next.
//
// A codec must be judged as it is met while decoding: the history of every scored position is
// stored as it would be then, and not only once a whole prompt has been computed in FP16. So the
// text is fed in pieces no longer than a tile (16 tokens): what leaves the window is encoded between
// pieces, and each row sees the last window + 1 .. window + 31 tokens in FP16, as in decoding one
// by one, where it is window + 1 .. window + 16. K and V of later layers come from states that the
// loss before them has touched already.
//
// Engines run in step, so that memory is bounded by the logits of a piece per engine, whatever the
// length of the text.
#ifndef SKVQ_EVAL_MEASURE_H
#define SKVQ_EVAL_MEASURE_H

#include <cstdint>
#include <string>
#include <vector>

#include <skvq/llama_tools.hpp>

#include "profile.h"

struct Plan {
	EngineOptions engine;
	std::vector<std::vector<int32_t>> chunks; // each of engine.n_ctx tokens
	uint32_t first_scored = 0;                // earlier positions know too little
};

struct Score {
	Profile profile;
	skvq::Divergence divergence; // over every scored position
	double nll = 0;              // sum over scored positions of -log p(next token)
	double bits = 0;             // of a number in a page, parameters included; 0: unknown
	double bytes_per_token = 0;  // of a token older than the window; 0: unknown or none
	double seconds = 0;
	uint64_t n_tokens = 0; // computed in them
	uint32_t window = 0, sinks = 0;

	double perplexity() const;
	double tokens_per_s() const;
};

// The text's chunks, each opened by the model's first token if it wants one. Throws
// std::runtime_error if the text is too short.
std::vector<std::vector<int32_t>> take_chunks(const skvq::Model &model, const std::string &path,
					      uint32_t n_ctx, uint32_t n_chunks);

// The reference first, then the profiles. Throws std::runtime_error.
std::vector<Score> measure(const skvq::Model &model, const Plan &plan,
			   const std::vector<Profile> &profiles);

#endif
