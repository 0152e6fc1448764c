// SPDX-License-Identifier: Apache-2.0
//
// What skvq-llama does with a prompt, and what it found out.
#ifndef SKVQ_LLAMA_RUN_H
#define SKVQ_LLAMA_RUN_H

#include <cstdint>
#include <string>
#include <vector>

#include <skvq/llama_tools.hpp>

#include "args.h"

struct Result {
	std::string mode;   // plain, embedded, shared
	std::string daemon; // none, attached, lost
	std::string profile, numerics, calibration;
	std::string text;
	std::vector<int32_t> token_ids;
	bool ended = false; // by the model; else by -n
	uint32_t prompt_tokens = 0, matched_tokens = 0;
	double load_s = 0, ttft_s = 0, tokens_per_s = 0;
	double attend_s = 0, append_s = 0, commit_s = 0; // of the whole run, inside the plugin
	uint64_t kv_bytes_fp16 = 0;                      // all tokens in FP16
	uint64_t kv_bytes_local = 0;  // in this process: private pages, window, sinks
	uint64_t kv_bytes_window = 0; // of kv_bytes_local: room for window, sinks and one ubatch
	uint64_t kv_bytes_shared = 0; // in the daemon's arena
	uint64_t kv_bytes_engine = 0; // llama.cpp's own cells: one ubatch, whatever the length
	double bytes_per_token = 0;   // of a token older than the window; 0: there is none
	double bytes_per_token_fp16 = 0;
	uint32_t paged_tokens = 0;

	bool compared = false;
	double ttft_plain_s = 0, tokens_per_s_plain = 0;
	std::string plain_text;
	skvq::Divergence divergence;
};

// Prints the prompt's token ids to stdout; computes nothing. Throws std::runtime_error.
void print_ids(const Args &args);
// Prints the text to stdout as it comes unless quiet. Throws std::runtime_error.
Result run(const Args &args, bool quiet);

#endif
