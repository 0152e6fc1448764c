// SPDX-License-Identifier: Apache-2.0
//
// Which models the client can take over attention for, and what their graphs look like. An
// architecture without a table, and a model whose GGUF shows anything the table does not cover, is
// refused: a wrong guess would give wrong tokens.
#ifndef SKVQ_LLAMA_ARCH_H
#define SKVQ_LLAMA_ARCH_H

#include <cstdint>
#include <string>
#include <vector>

#include <ggml.h>

namespace skvq
{

// A graph node, recognised by its exact name "<prefix>-<layer>" and operation.
struct NodeSpec {
	const char *prefix;
	enum ggml_op op;
};

struct Arch {
	const char *name;    // general.architecture
	uint32_t rope_pairs; // SKVQ_PAIRS_* of K and Q in the graph
	NodeSpec q;          // F32 [head_dim, q heads, tokens], rotated
	NodeSpec k;          // F32 [head_dim, kv heads, tokens], rotated
	NodeSpec v;          // F32 [head_dim, kv heads, tokens]
	NodeSpec out;        // F32 [head_dim * q heads, tokens], view of the attention's result
	// The attention's query is Q times a scale, a node of its own.
	bool scaled_query = false;
	// Of so many layers the last sees all tokens, if the model has sliding windows and does not
	// say which layers have them.
	uint32_t swa_period = 0;
	double swa_theta = 0; // RoPE base of layers with a sliding window unless the model has one
	// What a file may have beside that which every architecture may; NULL ends a list.
	const char *const *keys = nullptr;
	const char *const *tensors = nullptr;
};

// What a GGUF file says about its model's attention.
struct ModelShape {
	const Arch *arch = nullptr;
	std::string name;
	uint32_t n_layer = 0;
	uint32_t n_q_heads = 0;
	uint32_t n_kv_heads = 0;
	uint32_t head_dim = 0;
	uint32_t n_ctx_train = 0;
	double rope_theta = 0;
	std::string rope_scaling; // canonical text; empty: none
	uint32_t n_swa = 0;       // extent of sliding windows; 0: no layer has one
	std::vector<uint32_t> layer_window; // n_swa or 0 for each layer; empty: all 0

	uint32_t window_of(uint32_t layer) const
	{
		return layer_window.empty() ? 0 : layer_window[layer];
	}
};

// Reads the header of a GGUF file. Throws Error: no such file, not a GGUF file, not supported.
ModelShape shape_from_gguf(const std::string &path);

} // namespace skvq

#endif
