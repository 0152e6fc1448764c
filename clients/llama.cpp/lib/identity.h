// SPDX-License-Identifier: Apache-2.0
//
// What makes K/V bytes of this engine reusable by another process: digests of the weights and of
// the tokenizer, and a tag for how llama.cpp computes.
#ifndef SKVQ_LLAMA_IDENTITY_H
#define SKVQ_LLAMA_IDENTITY_H

#include <array>
#include <cstdint>
#include <string>

#include <llama.h>

namespace skvq
{

using Digest = std::array<uint8_t, 32>;

// In lower-case hexadecimal digits.
std::string digest_hex(const Digest &digest);

// SHA-256 over the bytes of a file. Throws Error.
Digest digest_file(const std::string &path);

// SHA-256 over everything of the vocabulary that the public API shows.
Digest digest_vocab(const llama_vocab *vocab);

// "llama.cpp-<version>/lib-<hash>/cpu-<hash>/ub<n>/fa": which libraries compute K and V, on what
// instruction sets, in how large pieces. Equal tags promise equal numerics. Throws Error.
std::string numerics_tag(uint32_t n_ubatch);

} // namespace skvq

#endif
