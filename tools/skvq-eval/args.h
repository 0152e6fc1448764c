// SPDX-License-Identifier: Apache-2.0
//
// The command line of skvq-eval.
#ifndef SKVQ_EVAL_ARGS_H
#define SKVQ_EVAL_ARGS_H

#include <cstdint>
#include <string>
#include <vector>

#include <skvq/weights.hpp>

#include "profile.h"
#include "tasks.h"

enum class Command { measure, needle, agree, shared };

struct Args {
	Command command = Command::measure;
	std::string model, text;
	std::vector<Profile> profiles;
	skvq::Weights weights;
	EngineOptions engine; // its n_ctx is the length of a chunk
	uint32_t n_chunks = 1;
	uint32_t first_scored = 256;
	uint32_t n_keys = 8;     // needle: in a chunk
	uint32_t n_predict = 64; // agree
	Sharing sharing;         // shared
	bool json = false, verbose = false, help = false;
};

// Throws skvq::UsageError.
Args args_parse(int argc, char **argv);

extern const char args_usage[];

#endif
