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
#include "calibration.h"
#include "capture.h"
#include "identity.h"
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
	void check_profile();
	void check_groups() const;
	void find_calibration(llama_model *llama, const std::string &gguf_path);
	void make_calibration(llama_model *llama, const std::string &gguf_path,
			      const std::string &path);
	bool calibration_from_daemon();
	void calibration_to_daemon();
	// bit_table: [n_layer][2] or null. A model that is registered already is replaced, and its
	// sequence closed.
	void register_model(const uint8_t *bit_table = nullptr);
	skvq_calibration_key calibration_key() const; // points into this object
	void make_context(llama_model *llama);
	uint32_t begin(const int32_t *tokens, uint32_t n_tokens);
	void decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits);
	[[noreturn]] void plugin_failed(const std::string &what, int32_t rc);
	void say(int32_t level, const std::string &text) const;
	static void log(void *user, int32_t level, const char *utf8);

	skvq::ModelShape shape;
	skvq_llama_options options; // its texts are in the strings below
	std::string profile, socket, engine_name, calibration_file;
	std::string numerics, error;
	skvq::Digest weights, tokenizer;
	skvq::CalibrationBytes calibration; // empty: none
	std::string calibration_source;     // what skvq_llama_calibration() says
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
	bool drops_unseen = false; // layers that slide have pages of their own, and let go of them
	double commit_s = 0;
};

#endif
