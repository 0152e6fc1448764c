// SPDX-License-Identifier: Apache-2.0
//
// The C interface: no exception leaves it.
#include "client.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include <skvq/format.h>

#include "error.h"

using skvq::Error;

namespace
{

// A caller's struct of any version as today's, absent fields zero.
skvq_llama_options copy_options(const skvq_llama_options *options)
{
	skvq_llama_options copy{};
	if (!options || options->struct_size < sizeof options->struct_size)
		throw Error(SKVQ_EINVAL, "options without a struct_size");
	std::memcpy(&copy, options, std::min<size_t>(options->struct_size, sizeof copy));
	return copy;
}

void put_error(char *error, size_t error_bytes, const char *text)
{
	if (!error || !error_bytes)
		return;
	const size_t n = std::min(std::strlen(text), error_bytes - 1);
	std::memcpy(error, text, n);
	error[n] = '\0';
}

template <typename F> int32_t guarded(std::string &error, F &&body)
{
	try {
		return body();
	} catch (const Error &e) {
		error = e.what();
		return -e.code;
	} catch (const std::bad_alloc &) {
		error = "out of memory";
		return -SKVQ_ENOMEM;
	} catch (const std::exception &e) {
		error = e.what();
		return -SKVQ_ESYS;
	}
}

} // namespace

extern "C" {

int32_t skvq_llama_check_model(const char *gguf_path, char *error, size_t error_bytes)
{
	std::string text;
	const int32_t rc = guarded(text, [&] {
		(void)skvq::shape_from_gguf(gguf_path ? gguf_path : "");
		return 0;
	});
	put_error(error, error_bytes, text.c_str());
	return rc;
}

int32_t skvq_llama_open(llama_model *model, const char *gguf_path,
			const skvq_llama_options *options, skvq_llama **ret, char *error,
			size_t error_bytes)
{
	std::string text;
	const int32_t rc = guarded(text, [&] {
		if (!model || !gguf_path)
			throw Error(SKVQ_EINVAL, "no model");
		*ret = new skvq_llama(model, gguf_path, copy_options(options));
		return 0;
	});
	put_error(error, error_bytes, text.c_str());
	return rc;
}

void skvq_llama_close(skvq_llama *client)
{
	delete client;
}

int32_t skvq_llama_begin(skvq_llama *client, const int32_t *tokens, uint32_t n_tokens)
{
	return guarded(client->error,
		       [&] { return static_cast<int32_t>(client->begin(tokens, n_tokens)); });
}

int32_t skvq_llama_decode(skvq_llama *client, const int32_t *tokens, uint32_t n_tokens,
			  int32_t all_logits)
{
	return guarded(client->error, [&] {
		client->decode(tokens, n_tokens, all_logits != 0);
		return 0;
	});
}

int32_t skvq_llama_prefill(skvq_llama *client, const int32_t *tokens, uint32_t n_tokens)
{
	return guarded(client->error, [&] {
		const uint32_t n_ubatch = client->options.n_ubatch;
		for (uint32_t done = 0; done < n_tokens;) {
			const uint32_t room = n_ubatch - client->position % n_ubatch;
			const uint32_t n = std::min(room, n_tokens - done);
			client->decode(tokens + done, n, false);
			done += n;
		}
		return 0;
	});
}

const float *skvq_llama_logits(const skvq_llama *client, int32_t row)
{
	return llama_get_logits_ith(client->context.get(), row);
}

int32_t skvq_llama_poll(skvq_llama *client)
{
	return guarded(client->error, [&] {
		const int32_t rc = client->seq ? client->plugin->seq_poll(client->seq) : 1;
		if (rc < 0)
			client->plugin_failed("the skvq plugin cannot be polled", rc);
		return rc;
	});
}

int32_t skvq_llama_usage_get(skvq_llama *client, skvq_llama_usage *usage)
{
	return guarded(client->error, [&] {
		if (!client->seq)
			throw Error(SKVQ_ESTATE, "no sequence is open");
		skvq_seq_info info{};
		info.struct_size = sizeof info;
		const int32_t rc = client->plugin->seq_info(client->seq, &info);
		if (rc < 0)
			client->plugin_failed("the skvq plugin tells nothing of the sequence", rc);
		skvq_llama_usage all{};
		all.struct_size = usage->struct_size;
		all.n_tokens = info.n_tokens;
		all.n_matched = client->n_matched;
		all.daemon = info.daemon;
		all.bytes_fp16 = info.bytes_fp16;
		all.bytes_local = info.bytes_local + info.bytes_window;
		all.bytes_shared = info.bytes_shared;
		all.bytes_window = info.bytes_window;
		all.bytes_engine = uint64_t{llama_n_ctx(client->context.get())} *
				   client->shape.n_layer * client->shape.n_kv_heads *
				   client->shape.head_dim * 2 * 2;
		all.n_paged = info.n_paged;
		all.n_refined = info.n_refined;
		all.attend_s = client->capture.attend_s();
		all.append_s = client->capture.append_s();
		all.commit_s = client->commit_s;
		const uint64_t numbers = uint64_t{client->shape.n_layer} *
					 client->shape.n_kv_heads * client->shape.head_dim * 2 *
					 SKVQ_PAGE_TOKENS;
		all.bits = 8 * static_cast<double>(info.page_code_bytes) /
			   static_cast<double>(numbers);
		std::memcpy(usage, &all, std::min<size_t>(usage->struct_size, sizeof all));
		return 0;
	});
}

llama_context *skvq_llama_context(skvq_llama *client)
{
	return client->context.get();
}

uint32_t skvq_llama_position(const skvq_llama *client)
{
	return client->position;
}

uint32_t skvq_llama_ubatch(const skvq_llama *client)
{
	return client->options.n_ubatch;
}

const char *skvq_llama_profile(const skvq_llama *client)
{
	return client->profile.c_str();
}

int32_t skvq_llama_fell_back(const skvq_llama *client)
{
	return client->fell_back;
}

const char *skvq_llama_calibration(const skvq_llama *client)
{
	return client->calibration_source.c_str();
}

const char *skvq_llama_numerics(const skvq_llama *client)
{
	return client->numerics.c_str();
}

const char *skvq_llama_error(const skvq_llama *client)
{
	return client->error.c_str();
}

} // extern "C"
