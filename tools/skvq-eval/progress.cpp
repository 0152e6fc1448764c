// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <cstdio>
#include <string>

#include <unistd.h>

#include <skvq/llama_tools.hpp>

namespace
{

constexpr size_t bar_chars = 30;
constexpr double redraw_s = 0.2;

} // namespace

Progress::Progress(size_t total)
    : shown_(total > 0 && isatty(STDERR_FILENO)), total_(total), start_(skvq::seconds_now())
{
}

Progress::~Progress()
{
	if (shown_)
		std::fputs("\r\033[K", stderr);
}

void Progress::step(size_t n)
{
	done_ += n;
	const double now = skvq::seconds_now();
	if (!shown_ || now - drawn_ < redraw_s)
		return;
	drawn_ = now;
	const double part = static_cast<double>(done_) / static_cast<double>(total_);
	const double left_s = (now - start_) * (1 - part) / part;
	const size_t filled = static_cast<size_t>(part * bar_chars);
	const std::string bar = std::string(filled, '=') + std::string(bar_chars - filled, ' ');
	std::fprintf(stderr, "\r[%s] %3.0f %%, %.0f s left \033[K", bar.c_str(), 100 * part, left_s);
}
