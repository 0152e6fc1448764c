// SPDX-License-Identifier: Apache-2.0
#include <skvq/llama_tools.hpp>

#include <cerrno>
#include <cstdlib>

namespace skvq
{

uint32_t whole(const char *name, const char *text, uint32_t min, uint32_t max)
{
	char *end = nullptr;
	errno = 0;
	const unsigned long value = std::strtoul(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end || value < min || value > max)
		throw UsageError(std::string(name) + " takes a whole number from " +
				 std::to_string(min) + " to " + std::to_string(max) + ", not '" +
				 text + "'");
	return static_cast<uint32_t>(value);
}

} // namespace skvq
