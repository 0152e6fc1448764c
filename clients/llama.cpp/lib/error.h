// SPDX-License-Identifier: Apache-2.0
//
// How the library fails inside: one exception type that carries a code of skvq/error.h and a
// sentence for people. It never leaves the C functions of skvq/llama_client.h, nor the callback
// that llama.cpp runs.
#ifndef SKVQ_LLAMA_ERROR_H
#define SKVQ_LLAMA_ERROR_H

#include <cstdint>
#include <stdexcept>
#include <string>

#include <skvq/error.h>

namespace skvq
{

struct Error : std::runtime_error {
	Error(int32_t error_code, const std::string &what)
	    : std::runtime_error(what), code(error_code)
	{
	}
	int32_t code; // one of SKVQ_E*, positive
};

} // namespace skvq

#endif
