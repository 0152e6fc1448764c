// SPDX-License-Identifier: Apache-2.0
//
// The command line of skvq-llama.
#ifndef SKVQ_LLAMA_ARGS_H
#define SKVQ_LLAMA_ARGS_H

#include <cstdint>
#include <string>

#include <skvq/llama_tools.hpp>
#include <skvq/plugin.h>

using skvq::UsageError;

enum class Mode { plain, embedded, shared };

struct Args {
	Mode mode = Mode::embedded;
	std::string model, socket, profile, plugin, calibration;
	std::string prompt, prompt_file;
	std::string json, logits_out;
	uint32_t window = SKVQ_DEFAULT, sinks = SKVQ_DEFAULT;
	uint32_t n_predict = 64;
	uint32_t n_threads = 0; // 0: one per processor
	uint32_t n_ubatch = 512;
	uint32_t step_delay_ms = 0;
	uint32_t seed = 0;
	double temperature = 0;
	bool chat = false, compare_plain = false, fallback = false, verbose = false;
	bool no_match = false, no_publish = false, no_calibration = false, no_layer_groups = false;
	bool ids = false;
	bool help = false, version = false;
};

// Throws UsageError.
Args args_parse(int argc, char **argv);

extern const char args_usage[];

#endif
