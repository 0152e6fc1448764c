// SPDX-License-Identifier: Apache-2.0
#include "tasks.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <thread>

#include <skvq/format.h>

#include "progress.h"

using namespace skvq;

namespace
{

constexpr double publish_wait_s = 10;

// Tokens [from, to) in pieces that begin at multiples of the piece, wherever the sequence starts.
void feed(Engine &engine, const std::vector<int32_t> &tokens, uint32_t from, uint32_t to)
{
	for (uint32_t at = from; at < to;) {
		const uint32_t n = std::min(engine.ubatch() - at % engine.ubatch(), to - at);
		engine.decode(&tokens[at], n, false);
		at += n;
	}
}

// Leaves the prompt's pages with the daemon. Returns how many tokens they hold.
uint32_t publish(const Profile &profile, const Model &model, const EngineOptions &options,
	     const std::vector<int32_t> &tokens)
{
	const std::unique_ptr<Engine> writer = profile_open(profile, model, options);
	const uint32_t n_tokens = static_cast<uint32_t>(tokens.size());
	feed(*writer, tokens, writer->begin(tokens), n_tokens);
	const double deadline = seconds_now() + publish_wait_s;
	while (!writer->poll()) {
		if (seconds_now() > deadline)
			throw std::runtime_error("the daemon does not take the prompt's pages");
		std::this_thread::sleep_for(std::chrono::milliseconds(2));
	}
	return static_cast<Client &>(*writer).usage().n_paged / SKVQ_PAGE_TOKENS * SKVQ_PAGE_TOKENS;
}

// Prompts that share no page with the chunk or each other, and are as hard to code as it is.
std::vector<std::vector<int32_t>> other_prompts(const std::vector<int32_t> &tokens, uint32_t n)
{
	std::vector<std::vector<int32_t>> prompts;
	for (uint32_t i = 1; i <= n; ++i) {
		prompts.push_back(tokens);
		// From the second token on: the first may be the one that opens every text.
		const auto middle = static_cast<std::ptrdiff_t>(1 + i * (tokens.size() - 1) / (n + 1));
		std::rotate(prompts.back().begin() + 1, prompts.back().begin() + middle,
			    prompts.back().end());
	}
	return prompts;
}

struct Compared {
	std::unique_ptr<Engine> reference, cold, reader;
};

void compare_piece(const Compared &engines, const Model &model, const int32_t *tokens, uint32_t n,
		   uint32_t n_refilling, SharedScore &score)
{
	for (Engine *engine : {engines.reference.get(), engines.cold.get(), engines.reader.get()})
		engine->decode(tokens, n, true);
	for (uint32_t row = 0; row < n; ++row) {
		const int32_t at = static_cast<int32_t>(row);
		const float *exact = engines.reference->logits(at);
		const float *cold = engines.cold->logits(at), *shared = engines.reader->logits(at);
		if (!exact || !cold || !shared)
			throw std::runtime_error("llama.cpp gave no logits");
		if (row < n_refilling) {
			score.refilling.add(cold, shared, model.n_vocab());
			continue;
		}
		score.divergence.add(cold, shared, model.n_vocab());
		score.shared_lost.add(exact, shared, model.n_vocab());
		score.cold_lost.add(exact, cold, model.n_vocab());
	}
}

void compare_prompt(const Model &model, const EngineOptions &options,
		    const std::vector<int32_t> &tokens, uint32_t matched, Compared &engines,
		    SharedScore &score)
{
	EngineOptions alone = options;
	alone.socket.clear();
	engines.reference = profile_open(profile_reference(), model, alone);
	engines.cold = profile_open(score.profile, model, alone);
	(void)engines.reference->begin({});
	(void)engines.cold->begin({});
	feed(*engines.reference, tokens, 0, matched);
	feed(*engines.cold, tokens, 0, matched);
	const uint32_t window = score.profile.window != SKVQ_DEFAULT ? score.profile.window
								     : options.window;
	const uint32_t full = matched + window, n_tokens = static_cast<uint32_t>(tokens.size());
	for (uint32_t at = matched; at < n_tokens;) {
		const uint32_t n =
		    std::min(options.n_piece - at % options.n_piece, n_tokens - at);
		compare_piece(engines, model, &tokens[at], n, std::max(full, at) - at, score);
		at += n;
	}
	const skvq_llama_usage usage = static_cast<Client &>(*engines.reader).usage();
	score.n_paged += usage.n_paged;
	score.n_refined += usage.n_refined;
}

void share_prompt(const Model &model, const EngineOptions &options,
		  const std::vector<int32_t> &tokens, const Sharing &sharing, SharedScore &score)
{
	const auto others = other_prompts(tokens, sharing.pressure);
	score.n_published += publish(score.profile, model, options, tokens);
	for (const auto &other : others)
		score.n_published += publish(score.profile, model, options, other);
	Compared engines;
	engines.reader = profile_open(score.profile, model, options);
	// What is there of the others first: what the reader computes is published too.
	for (const auto &other : others)
		score.n_kept += engines.reader->begin(other);
	score.n_kept += engines.reader->begin(tokens);
	std::vector<int32_t> prefix = tokens;
	prefix.resize(std::min<size_t>(sharing.prefix, tokens.size()));
	const uint32_t matched = engines.reader->begin(prefix);
	if (matched)
		compare_prompt(model, options, tokens, matched, engines, score);
	else if (!sharing.pressure)
		throw std::runtime_error("the daemon matched nothing of a prompt it was given: "
					 "--ctx may be too short for a page behind the window");
	score.n_prompt += tokens.size();
	score.n_matched += matched;
}

} // namespace

std::vector<SharedScore> compare_shared(const Model &model, const Plan &plan,
					const std::vector<Profile> &profiles, const Sharing &sharing)
{
	Progress progress(profiles.size() * plan.chunks.size());
	std::vector<SharedScore> scores;
	for (const Profile &profile : profiles) {
		SharedScore score;
		score.profile = profile;
		for (const std::vector<int32_t> &chunk : plan.chunks) {
			share_prompt(model, plan.engine, chunk, sharing, score);
			progress.step();
		}
		scores.push_back(std::move(score));
	}
	return scores;
}
