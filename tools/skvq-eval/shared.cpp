// SPDX-License-Identifier: Apache-2.0
#include "tasks.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <thread>

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

// Leaves the prompt's pages with the daemon.
void publish(const Profile &profile, const Model &model, const EngineOptions &options,
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
}

void compare_prompt(const Model &model, const EngineOptions &options,
		    const std::vector<int32_t> &tokens, SharedScore &score)
{
	publish(score.profile, model, options, tokens);
	EngineOptions alone = options;
	alone.socket.clear();
	const std::unique_ptr<Engine> reader = profile_open(score.profile, model, options);
	const std::unique_ptr<Engine> cold = profile_open(score.profile, model, alone);
	const uint32_t n_tokens = static_cast<uint32_t>(tokens.size());
	const uint32_t matched = reader->begin(tokens);
	if (!matched)
		throw std::runtime_error("the daemon matched nothing of a prompt it was given: "
					 "--ctx may be too short for a page behind the window");
	(void)cold->begin({});
	feed(*cold, tokens, 0, matched);
	const uint32_t window = score.profile.window != SKVQ_DEFAULT ? score.profile.window
								     : options.window;
	for (uint32_t at = matched; at < n_tokens;) {
		const uint32_t n =
		    std::min(options.n_piece - at % options.n_piece, n_tokens - at);
		cold->decode(&tokens[at], n, true);
		reader->decode(&tokens[at], n, true);
		for (uint32_t row = 0; row < n; ++row) {
			const float *a = cold->logits(static_cast<int32_t>(row));
			const float *b = reader->logits(static_cast<int32_t>(row));
			if (!a || !b)
				throw std::runtime_error("llama.cpp gave no logits");
			(at + row >= matched + window ? score.divergence : score.refilling)
			    .add(a, b, model.n_vocab());
		}
		at += n;
	}
	score.n_prompt += n_tokens;
	score.n_matched += matched;
}

} // namespace

std::vector<SharedScore> compare_shared(const Model &model, const Plan &plan,
					const std::vector<Profile> &profiles)
{
	Progress progress(profiles.size() * plan.chunks.size());
	std::vector<SharedScore> scores;
	for (const Profile &profile : profiles) {
		SharedScore score;
		score.profile = profile;
		for (const std::vector<int32_t> &chunk : plan.chunks) {
			compare_prompt(model, plan.engine, chunk, score);
			progress.step();
		}
		scores.push_back(std::move(score));
	}
	return scores;
}
