// SPDX-License-Identifier: Apache-2.0
//
// How far a long run is, on stderr, if that is a terminal.
#ifndef SKVQ_EVAL_PROGRESS_H
#define SKVQ_EVAL_PROGRESS_H

#include <cstddef>

class Progress
{
      public:
	// total: steps of about equal length.
	explicit Progress(size_t total);
	~Progress();
	Progress(const Progress &) = delete;
	Progress &operator=(const Progress &) = delete;

	void step(size_t n = 1);

      private:
	bool shown_;
	size_t total_, done_ = 0;
	double start_, drawn_ = 0;
};

#endif
