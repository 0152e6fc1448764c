// SPDX-License-Identifier: Apache-2.0
#include "plain.h"

#include <algorithm>
#include <stdexcept>

Filled::Filled(const skvq::Model &model, ggml_type type, uint32_t n_ctx, uint32_t n_ubatch,
	       uint32_t n_threads)
{
	llama_context_params params = llama_context_default_params();
	params.n_ctx = n_ctx;
	params.n_batch = params.n_ubatch = n_ubatch;
	params.n_seq_max = 2; // the sequence, and the block on its way into it
	params.kv_unified = true;
	params.n_threads = params.n_threads_batch = static_cast<int32_t>(n_threads);
	params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
	params.type_k = params.type_v = type;
	params.no_perf = true;
	context_.reset(llama_init_from_model(model.get(), params));
	if (!context_)
		throw std::runtime_error("llama.cpp cannot make a context of " +
					 std::to_string(n_ctx) + " tokens");
}

void Filled::threads(uint32_t n_threads)
{
	llama_set_n_threads(context_.get(), static_cast<int32_t>(n_threads),
			    static_cast<int32_t>(n_threads));
}

void Filled::decode(const int32_t *tokens, uint32_t n_tokens)
{
	// llama.cpp reads the tokens only, and goes on at the sequence's next position.
	const llama_batch batch =
	    llama_batch_get_one(const_cast<int32_t *>(tokens), static_cast<int32_t>(n_tokens));
	const int32_t rc = llama_decode(context_.get(), batch);
	if (rc != 0)
		throw std::runtime_error("llama_decode failed with " + std::to_string(rc));
	llama_synchronize(context_.get());
}

void Filled::record(const std::vector<int32_t> &block)
{
	llama_memory_clear(memory(), false);
	block_ = static_cast<uint32_t>(block.size());
	decode(block.data(), block_);
	state_.resize(llama_state_seq_get_size(context_.get(), 0));
	if (!llama_state_seq_get_data(context_.get(), state_.data(), state_.size(), 0))
		throw std::runtime_error("llama.cpp cannot save a sequence");
}

void Filled::fill(uint32_t n)
{
	llama_memory_clear(memory(), false);
	for (uint32_t done = 0; done < n; done += block_) {
		if (!llama_state_seq_set_data(context_.get(), state_.data(), state_.size(), 1))
			throw std::runtime_error("llama.cpp cannot restore a sequence of " +
						 std::to_string(block_) + " tokens at " +
						 std::to_string(done));
		const uint32_t left = n - done;
		if (left < block_)
			llama_memory_seq_rm(memory(), 1, static_cast<int32_t>(left), -1);
		llama_memory_seq_add(memory(), 1, 0, -1, static_cast<int32_t>(done));
		llama_memory_seq_cp(memory(), 1, 0, -1, -1);
		llama_memory_seq_rm(memory(), 1, -1, -1);
	}
}
