// SPDX-License-Identifier: Apache-2.0
//
// What a KL divergence does not tell: does a model still find what it has read, how long does it
// write the same, and are shared pages as good as one's own. All throw std::runtime_error.
#ifndef SKVQ_EVAL_TASKS_H
#define SKVQ_EVAL_TASKS_H

#include <cstdint>
#include <string>
#include <vector>

#include "measure.h"

// --- needle: several keys hidden in a long text at several depths, then asked for --------------

struct NeedlePlan {
	EngineOptions engine; // n_ctx tokens with keys and questions
	std::string text;     // path of the haystack
	uint32_t n_chunks = 1;
	uint32_t n_keys = 8; // a chunk
	uint32_t seed = 1;
};

struct NeedleScore {
	Profile profile;
	uint32_t n_found = 0, n_keys = 0;
	uint32_t n_same = 0;                 // keys that the reference found or missed as well
	std::vector<uint32_t> found_at_depth; // of n_chunks, by key from the first to the last
};

constexpr uint32_t needle_keys_max = 24;

// The reference first, then the profiles. A key is found if each token of its value is the
// likeliest one after question and value so far.
std::vector<NeedleScore> find_needles(const skvq::Model &model, const NeedlePlan &plan,
				      const std::vector<Profile> &profiles);

// --- agree: how many tokens of a greedy continuation are the reference's ------------------------

struct AgreePlan {
	EngineOptions engine;
	std::vector<std::vector<int32_t>> chunks; // each a prompt, and n_predict tokens not used
	uint32_t n_predict = 64;
};

struct AgreeScore {
	Profile profile;
	uint32_t n_prompts = 0;
	uint32_t n_whole = 0;   // prompts continued alike to the end
	uint64_t n_same = 0;    // tokens before the first differing one, over all prompts
	uint64_t n_possible = 0; // tokens of the reference
};

std::vector<AgreeScore> compare_greedy(const skvq::Model &model, const AgreePlan &plan,
				       const std::vector<Profile> &profiles);

// --- shared: a prefix taken from the daemon against the same computed cold ----------------------
//
// Who computed a prefix has its last tokens in the FP16 window; who takes it has them in codes
// alone. So the first tokens behind it are computed from a coarser past, until the window is full
// again. The daemon never matches so much that this would not be over by the end of the prompt.

// Under pressure other prompts of the same length are published behind the first. The daemon makes
// room for them, and what it still has of the first is what is compared.

struct Sharing {
	uint32_t pressure = 0;        // other prompts for each chunk
	uint32_t prefix = UINT32_MAX; // only so many tokens are asked of the daemon, the rest computed
};

struct SharedScore {
	Profile profile;
	skvq::Divergence divergence; // shared against cold, where the window is full again
	skvq::Divergence refilling;  // and before that
	// The same two against stock llama.cpp with FP16 K/V, where the window is full again.
	skvq::Divergence shared_lost, cold_lost;
	uint64_t n_prompt = 0, n_matched = 0; // tokens
	uint64_t n_paged = 0, n_refined = 0;  // at the end of the shared prompt, as it read them
	uint64_t n_published = 0, n_kept = 0; // tokens in pages of all prompts, and matched of them later
};

// plan.engine.socket names a daemon. Our profiles only.
std::vector<SharedScore> compare_shared(const skvq::Model &model, const Plan &plan,
					const std::vector<Profile> &profiles, const Sharing &sharing);

#endif
