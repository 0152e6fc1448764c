// SPDX-License-Identifier: Apache-2.0
//
// A way to keep K/V that is measured: one of our profiles, or one of stock llama.cpp's caches.
#ifndef SKVQ_EVAL_PROFILE_H
#define SKVQ_EVAL_PROFILE_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <skvq/llama_tools.hpp>

struct Profile {
	std::string name; // as given
	bool ours = true;
	bool data_free = false;                               // ours, ":free"
	bool whole = false;                                   // ours, ":whole": no layer groups
	std::string codec;                                    // ours, as the plugin knows it
	uint32_t window = SKVQ_DEFAULT, sinks = SKVQ_DEFAULT; // ours; SKVQ_DEFAULT: by the options
	// Stock llama.cpp:
	llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED;
	ggml_type type_kv = GGML_TYPE_F16;
	bool rotated = true; // its own Hadamard rotation of quantized K and V

	// Bits of a number of K or V in stock llama.cpp.
	double stock_bits() const;
};

// What holds for all profiles of a run.
struct EngineOptions {
	uint32_t n_ctx = 0;
	uint32_t n_piece = 16; // most tokens of a decode
	uint32_t n_threads = 1;
	uint32_t window = 128, sinks = 5; // the plugin's defaults
	bool no_calibration = false;
	std::string calibration, plugin;
	std::string socket; // of a daemon; empty: embedded
	uint32_t flags = 0; // SKVQ_LLAMA_*
};

// "k2v1.5", "k4v4:free", "k4v4:whole", "k2v2:window=64:sinks=0", "llama-q4_0", "llama-q4_0-norot", "llama-f16",
// "llama-f16-nofa". Throws skvq::UsageError.
Profile profile_parse(const std::string &text);
std::vector<Profile> profiles_parse(const std::string &list); // with commas between

// What everything is held against: stock llama.cpp, K/V in FP16, attention without the shortcuts of
// its flash attention.
Profile profile_reference();

// Gives logits of every row of a decode.
std::unique_ptr<skvq::Engine> profile_open(const Profile &profile, const skvq::Model &model,
					   const EngineOptions &options);

#endif
