// SPDX-License-Identifier: Apache-2.0
//
// Runs a text through the reference and all modes side by side: the same tokens in the same pieces,
// compared after each piece. Memory is bounded by one piece's logits per engine, not by the text.
#ifndef SKVQ_EVAL_EVAL_H
#define SKVQ_EVAL_EVAL_H

#include <cstdint>
#include <string>
#include <vector>

#include <skvq/llama_tools.hpp>

#include "mode.h"

struct Plan {
	std::vector<int32_t> tokens;
	uint32_t n_prefill = 0; // of them, computed in pieces of n_ubatch; the rest one by one
	uint32_t n_ubatch = 0;
	uint32_t first_scored = 0; // earlier positions know too little to be compared
	uint32_t n_threads = 1;
	std::string plugin;
};

struct Score {
	std::string mode;
	skvq::Divergence all;    // over every scored position
	skvq::Divergence decode; // over those computed one by one
	double nll = 0;          // sum over scored positions of -log p(next token)
	double prefill_s = 0, decode_s = 0;
	double bytes_per_token = 0; // of a token older than the window; 0: unknown or none

	double perplexity() const;
};

// The reference (stock llama.cpp, FP16 K/V, no flash attention) first, then the modes.
// Throws std::runtime_error.
std::vector<Score> evaluate(const skvq::Model &model, const Plan &plan,
			    const std::vector<Mode> &modes);

#endif
