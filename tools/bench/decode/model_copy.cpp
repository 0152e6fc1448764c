// SPDX-License-Identifier: Apache-2.0
#include "model_copy.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include <sys/mman.h>
#include <unistd.h>

#include <skvq/llama_tools.hpp>

namespace
{

// In GGUF a key is followed by its type, 4 for a 32-bit number, and the number.
constexpr char key[] = "llama.context_length";
constexpr uint32_t type_uint32 = 4;

uint32_t word(const std::string &bytes, size_t at)
{
	uint32_t value;
	std::memcpy(&value, bytes.data() + at, sizeof value);
	return value;
}

} // namespace

ModelCopy::ModelCopy(const std::string &path, uint32_t context_length)
    : fd_(memfd_create("model", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_))
{
	if (fd_ < 0)
		throw std::runtime_error(std::string("memfd_create: ") + std::strerror(errno));
	std::string bytes = skvq::read_file(path, "model");
	const size_t found = bytes.find(key);
	const size_t at = found + sizeof key - 1;
	if (found == std::string::npos || at + 8 > bytes.size() || word(bytes, at) != type_uint32)
		throw std::runtime_error("'" + path + "' has no '" + key + "'");
	const uint32_t value = std::max(word(bytes, at + 4), context_length);
	std::memcpy(&bytes[at + 4], &value, sizeof value);
	for (size_t done = 0; done < bytes.size();) {
		const ssize_t n = write(fd_, bytes.data() + done, bytes.size() - done);
		if (n <= 0)
			throw std::runtime_error(
			    std::string("no memory for a copy of the model: ") +
			    std::strerror(errno));
		done += static_cast<size_t>(n);
	}
}

ModelCopy::~ModelCopy()
{
	close(fd_);
}
