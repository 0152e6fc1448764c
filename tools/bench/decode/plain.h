// SPDX-License-Identifier: Apache-2.0
//
// Stock llama.cpp, flash attention on, whose cache can be filled cheaply: a block of tokens is
// computed for real, its state saved, and restored again and again; llama.cpp itself moves the keys
// to their new positions (its K shift).
#ifndef BENCH_DECODE_PLAIN_H
#define BENCH_DECODE_PLAIN_H

#include <cstdint>
#include <memory>
#include <vector>

#include <llama.h>

#include <skvq/llama_tools.hpp>

class Filled
{
      public:
	Filled(const skvq::Model &model, ggml_type type, uint32_t n_ctx, uint32_t n_ubatch,
	       uint32_t n_threads);
	// Computes the block, for later fills.
	void record(const std::vector<int32_t> &block);
	void threads(uint32_t n_threads);
	// Starts over with n tokens: the block, repeated.
	void fill(uint32_t n);
	void decode(const int32_t *tokens, uint32_t n_tokens);
	const float *logits()
	{
		return llama_get_logits_ith(context_.get(), -1);
	}

      private:
	llama_memory_t memory()
	{
		return llama_get_memory(context_.get());
	}
	struct Deleter {
		void operator()(llama_context *ctx) const
		{
			llama_free(ctx);
		}
	};
	std::unique_ptr<llama_context, Deleter> context_;
	std::vector<uint8_t> state_; // of the block
	uint32_t block_ = 0;
};

#endif
