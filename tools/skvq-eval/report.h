// SPDX-License-Identifier: Apache-2.0
//
// What was found out, as a table for people and as a JSON object a line for programs. Throws
// std::runtime_error.
#ifndef SKVQ_EVAL_REPORT_H
#define SKVQ_EVAL_REPORT_H

#include <string>
#include <vector>

#include "args.h"
#include "measure.h"
#include "tasks.h"

// The reference first, where there is one.
void report(const Args &args, const std::vector<Score> &scores);
void report(const Args &args, const std::vector<NeedleScore> &scores);
void report(const Args &args, const std::vector<AgreeScore> &scores);
void report(const Args &args, const std::vector<SharedScore> &scores);

#endif
