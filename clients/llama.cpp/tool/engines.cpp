// SPDX-License-Identifier: Apache-2.0
#include <skvq/llama_tools.hpp>

#include <algorithm>
#include <stdexcept>

namespace skvq
{

Plain::Plain(const Model &model, const PlainOptions &options)
{
	llama_context_params params = llama_context_default_params();
	params.n_ctx = options.n_ctx;
	params.n_batch = options.n_ubatch;
	params.n_ubatch = options.n_ubatch;
	params.n_seq_max = 1;
	params.n_threads = static_cast<int32_t>(options.n_threads);
	params.n_threads_batch = static_cast<int32_t>(options.n_threads);
	params.flash_attn_type = options.flash_attn;
	params.type_k = options.type_kv;
	params.type_v = options.type_kv;
	params.no_perf = true;
	context_.reset(llama_init_from_model(model.get(), params));
	if (!context_)
		throw std::runtime_error("llama.cpp cannot make a context of " +
					 std::to_string(options.n_ctx) + " tokens");
}

uint32_t Plain::begin(const std::vector<int32_t> &)
{
	truncate(0);
	return 0;
}

void Plain::truncate(uint32_t n)
{
	if (!llama_memory_seq_rm(llama_get_memory(context()), 0, static_cast<int32_t>(n), -1))
		throw std::runtime_error("llama.cpp cannot forget tokens of this model");
	position_ = n;
}

void Plain::decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits)
{
	std::vector<int8_t> wanted(n_tokens, all_logits);
	wanted.back() = 1;
	llama_batch batch{};
	batch.n_tokens = static_cast<int32_t>(n_tokens);
	batch.token = const_cast<int32_t *>(tokens); // llama.cpp reads it only
	batch.logits = wanted.data();
	const int32_t rc = llama_decode(context(), batch);
	if (rc != 0)
		throw std::runtime_error("llama_decode failed with " + std::to_string(rc));
	llama_synchronize(context());
	position_ += n_tokens;
}

void Plain::prefill(const int32_t *tokens, uint32_t n_tokens)
{
	for (uint32_t done = 0; done < n_tokens;) {
		const uint32_t n = std::min(ubatch() - position_ % ubatch(), n_tokens - done);
		decode(tokens + done, n, false);
		done += n;
	}
}

Client::Client(const Model &model, const skvq_llama_options &options)
{
	char error[1024];
	skvq_llama *client = nullptr;
	if (skvq_llama_open(model.get(), model.path().c_str(), &options, &client, error,
			    sizeof error) < 0)
		throw std::runtime_error(error);
	client_.reset(client);
}

int32_t Client::check(int32_t rc) const
{
	if (rc < 0)
		throw std::runtime_error(skvq_llama_error(get()));
	return rc;
}

uint32_t Client::begin(const std::vector<int32_t> &prompt)
{
	return static_cast<uint32_t>(
	    check(skvq_llama_begin(get(), prompt.data(), static_cast<uint32_t>(prompt.size()))));
}

void Client::decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits)
{
	check(skvq_llama_decode(get(), tokens, n_tokens, all_logits));
}

void Client::prefill(const int32_t *tokens, uint32_t n_tokens)
{
	check(skvq_llama_prefill(get(), tokens, n_tokens));
}

bool Client::poll()
{
	return check(skvq_llama_poll(get())) == 1;
}

skvq_llama_usage Client::usage() const
{
	skvq_llama_usage usage{};
	usage.struct_size = sizeof usage;
	check(skvq_llama_usage_get(get(), &usage));
	return usage;
}

} // namespace skvq
