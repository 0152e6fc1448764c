// SPDX-License-Identifier: Apache-2.0
//
// A way to keep K/V that is measured: stock llama.cpp's or one of ours.
#ifndef SKVQ_EVAL_MODE_H
#define SKVQ_EVAL_MODE_H

#include <cstdint>
#include <memory>
#include <string>

#include <skvq/llama_tools.hpp>

using skvq::UsageError;

struct Mode {
	std::string name; // as given
	bool ours = false;
	llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_DISABLED; // stock
	ggml_type type_kv = GGML_TYPE_F16;                                 // stock
	std::string profile;                                               // ours
	uint32_t window = SKVQ_DEFAULT, sinks = SKVQ_DEFAULT;              // ours
	std::string calibration;                                           // ours; empty: as kept
	bool data_free = false;                                            // ours
};

// "plain-nofa", "plain-fa", "q8_0", "q4_0", "skvq:<profile>[,window=N][,sinks=N]
// [,calibration=FILE|,data-free]". Throws
// UsageError.
Mode mode_parse(const std::string &text);

// An engine for n_tokens tokens that gives all logits of chunks of n_ubatch.
std::unique_ptr<skvq::Engine> mode_open(const Mode &mode, const skvq::Model &model,
					uint32_t n_tokens, uint32_t n_ubatch, uint32_t n_threads,
					const std::string &plugin);

#endif
