// SPDX-License-Identifier: Apache-2.0
//
// The client itself: a llama_context, a plugin session and the capture between them. Throws Error;
// api.cpp is the C interface in front of it.
#ifndef SKVQ_LLAMA_CLIENT_PRIVATE_H
#define SKVQ_LLAMA_CLIENT_PRIVATE_H

#include <skvq/llama_client.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <llama.h>

#include "arch.h"
#include "capture.h"
#include "plugin.h"
#include "team.h"

// Members are destroyed from the last to the first: the context before the pool it runs on, all of
// the plugin's objects before the plugin.
struct skvq_llama {
	skvq_llama(llama_model *model_, const std::string &gguf_path,
		   const skvq_llama_options &opts);
	~skvq_llama();
	skvq_llama(const skvq_llama &) = delete;
	skvq_llama &operator=(const skvq_llama &) = delete;

	void open_session();
	void register_model(llama_model *llama, const std::string &gguf_path);
	void make_context(llama_model *llama);
	uint32_t begin(const int32_t *tokens, uint32_t n_tokens);
	void decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits);
	[[noreturn]] void plugin_failed(const std::string &what, int32_t rc);
	static void log(void *user, int32_t level, const char *utf8);

	skvq::ModelShape shape;
	skvq_llama_options options; // its texts are in the strings below
	std::string profile, socket, engine_name;
	std::string numerics, error;
	std::string refusal; // what the plugin said while there was no session to ask
	skvq::Plugin plugin;
	skvq::Team team;
	skvq::Capture capture;
	skvq_session *session = nullptr;
	skvq_model *model = nullptr;
	skvq_seq *seq = nullptr;
	struct ContextDeleter {
		void operator()(llama_context *ctx) const
		{
			llama_free(ctx);
		}
	};
	std::unique_ptr<llama_context, ContextDeleter> context;

	std::vector<int32_t> batch_pos, batch_n_seq;
	std::vector<int32_t *> batch_seq;
	std::vector<int8_t> batch_logits;
	int32_t seq_id = 0;
	uint32_t position = 0;
	uint32_t n_matched = 0;
	bool fell_back = false;
	double commit_s = 0;
};

#endif
