// SPDX-License-Identifier: Apache-2.0
//
// The seam in llama.cpp's graph: takes Q, K and V of each layer as they are computed and puts our
// attention in place of llama.cpp's.
//
// Every decode is a strict conversation, checked node by node: for layer 0, 1, ... the nodes Q, K
// and V of the architecture's table exactly once each, then the attention output. Anything else -
// a missing layer, K after the attention, another shape, type, scale - stops the graph, and
// finish() tells what it was. Nothing is guessed.
//
// llama.cpp's own attention node would be computed in vain, over cells without a past. It is turned
// into a no-op just before ggml reaches it, and back when the output node behind it has been seen.
#ifndef SKVQ_LLAMA_CAPTURE_H
#define SKVQ_LLAMA_CAPTURE_H

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <skvq/plugin.h>

#include "arch.h"
#include "team.h"

namespace skvq
{

class Capture
{
      public:
	Capture(const ModelShape &shape, const skvq_api *api, Team &team, uint32_t n_ubatch);

	// Told of each layer's Q, K and V, as [tokens][heads][head_dim] in the graph's channel order,
	// once they have been appended.
	using Observer = std::function<void(uint32_t layer, uint32_t position, uint32_t n_tokens,
					    const float *q, const float *k, const float *v)>;
	void observe(Observer observer)
	{
		observer_ = std::move(observer);
	}

	// For llama_context_params.cb_eval; user is the Capture.
	static bool callback(ggml_tensor *tensor, bool ask, void *user);

	// The next decode computes n_tokens from position on, and of the last layer's rows only
	// those from first_output on are looked at.
	void begin(skvq_seq *seq, uint32_t position, uint32_t n_tokens, uint32_t first_output);

	// Ends it. True if every layer was seen; else error() tells.
	bool finish();

	const std::string &error() const
	{
		return error_;
	}
	// What the plugin answered if it was the plugin that failed: its last_error() says more.
	int32_t plugin_rc() const
	{
		return plugin_rc_;
	}

	double attend_s() const
	{
		return attend_s_;
	}
	double append_s() const
	{
		return append_s_;
	}

      private:
	enum class Role { none, q, k, v, out };

	Role role_of(const ggml_tensor *tensor, uint32_t *layer) const;
	bool take(ggml_tensor *tensor);
	bool take_rows(const ggml_tensor *tensor, uint32_t n_heads, std::vector<float> &rows);
	bool put_out(ggml_tensor *tensor);
	void skip_attention(ggml_tensor *tensor);
	void restore_attention();
	bool check_attention(const ggml_tensor *out, float *ret_scale);
	bool check_mask(const ggml_tensor *out, const ggml_tensor *mask);
	bool query_scale(const ggml_tensor *query, float *ret_scale) const;
	bool append(const ggml_tensor *last);
	bool attend(ggml_tensor *out, float scale);
	static void attend_part(void *user, uint32_t ith, uint32_t nth);
	bool fail(const ggml_tensor *tensor, const std::string &why);

	const ModelShape &shape_;
	const skvq_api *api_;
	Team &team_;

	skvq_seq *seq_ = nullptr; // of the decode under way; NULL: none
	uint32_t position_ = 0;
	uint32_t n_tokens_ = 0;
	uint32_t first_output_ = 0;

	uint32_t layer_ = 0;             // the one under way
	ggml_tensor *skipped_ = nullptr; // the attention node, while it is a no-op
	const ggml_tensor *q_ = nullptr; // Q, K, V seen in this layer
	bool seen_k_ = false, seen_v_ = false;
	const ggml_tensor *mask_full_ = nullptr, *mask_sliding_ = nullptr; // of this decode
	std::vector<float> q_rows_, k_rows_, v_rows_; // their copies, [n_tokens][heads][head_dim]
	bool failed_ = false;
	std::string error_;
	int32_t plugin_rc_ = 0;
	Observer observer_;

	skvq_attn attn_{};
	std::atomic<int32_t> attend_rc_{0};
	double attend_s_ = 0;
	double append_s_ = 0;
};

} // namespace skvq

#endif
