// SPDX-License-Identifier: Apache-2.0
#ifndef SKVQ_EVAL_REPORT_H
#define SKVQ_EVAL_REPORT_H

#include <vector>

#include "eval.h"

// The first score is the reference's. To stdout, for people or as one flat JSON object whose keys
// are "<mode>.<figure>". Throws std::runtime_error.
void report_text(const Plan &plan, const std::vector<Score> &scores);
void report_json(const Plan &plan, const std::vector<Score> &scores);

#endif
