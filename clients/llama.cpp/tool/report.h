// SPDX-License-Identifier: Apache-2.0
//
// A Result for people and for programs.
#ifndef SKVQ_LLAMA_REPORT_H
#define SKVQ_LLAMA_REPORT_H

#include <string>

#include "run.h"

// To stderr.
void report_text(const Result &result);

// One flat JSON object into a file, "-" for stdout. Throws std::runtime_error.
void report_json(const Result &result, const std::string &path);

#endif
