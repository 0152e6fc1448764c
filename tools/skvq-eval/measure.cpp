// SPDX-License-Identifier: Apache-2.0
#include "measure.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "progress.h"

using namespace skvq;

namespace
{

struct Runner {
	Score score;
	std::unique_ptr<Engine> engine;
};

// Rows of the piece at position at, from first_scored on, against what the reference says.
void compare(std::vector<Runner> &runners, const std::vector<int32_t> &tokens, uint32_t n_vocab,
	     uint32_t at, uint32_t n, uint32_t first_scored)
{
	for (uint32_t row = 0; row < n; ++row) {
		const uint32_t position = at + row;
		if (position < first_scored || position + 1 >= tokens.size())
			continue;
		const float *theirs = runners.front().engine->logits(static_cast<int32_t>(row));
		if (!theirs)
			throw std::runtime_error("llama.cpp gave no logits");
		const Distribution reference(theirs, n_vocab);
		for (Runner &runner : runners) {
			const float *ours = runner.engine->logits(static_cast<int32_t>(row));
			if (!ours)
				throw std::runtime_error("llama.cpp gave no logits");
			const Distribution::Compared compared = reference.compare(ours);
			runner.score.divergence.add(compared);
			runner.score.nll += compared.log_sum_exp -
					    static_cast<double>(ours[tokens[position + 1]]);
		}
	}
}

void run_chunk(std::vector<Runner> &runners, const Plan &plan, const std::vector<int32_t> &tokens,
	       uint32_t n_vocab, Progress &progress)
{
	const uint32_t n_tokens = static_cast<uint32_t>(tokens.size());
	for (Runner &runner : runners)
		(void)runner.engine->begin({});
	for (uint32_t at = 0; at < n_tokens;) {
		const uint32_t n = std::min(plan.engine.n_piece, n_tokens - at);
		const bool scored = at + n > plan.first_scored;
		for (Runner &runner : runners) {
			const double start = seconds_now();
			runner.engine->decode(&tokens[at], n, scored);
			runner.score.seconds += seconds_now() - start;
			runner.score.n_tokens += n;
			progress.step();
		}
		if (scored)
			compare(runners, tokens, n_vocab, at, n, plan.first_scored);
		at += n;
	}
}

void fill_storage(Runner &runner, const Model &model, const Plan &plan)
{
	Score &score = runner.score;
	const Client *client = dynamic_cast<const Client *>(runner.engine.get());
	if (!client) {
		score.bits = score.profile.stock_bits();
		score.bytes_per_token =
		    static_cast<double>(model.kv_bytes_per_token_fp16()) * score.bits / 16;
		return;
	}
	const skvq_llama_usage usage = client->usage();
	const uint64_t pages = usage.bytes_local - usage.bytes_window + usage.bytes_shared;
	score.bits = usage.bits;
	if (usage.n_paged)
		score.bytes_per_token = static_cast<double>(pages) / usage.n_paged;
	score.window = score.profile.window != SKVQ_DEFAULT ? score.profile.window
							    : plan.engine.window;
	score.sinks =
	    score.profile.sinks != SKVQ_DEFAULT ? score.profile.sinks : plan.engine.sinks;
}

} // namespace

double Score::perplexity() const
{
	return divergence.empty() ? 0 : std::exp(nll / static_cast<double>(divergence.count()));
}

double Score::tokens_per_s() const
{
	return seconds > 0 ? static_cast<double>(n_tokens) / seconds : 0;
}

std::vector<std::vector<int32_t>> take_chunks(const Model &model, const std::string &path,
					      uint32_t n_ctx, uint32_t n_chunks)
{
	if (n_ctx > model.n_ctx_train())
		throw std::runtime_error(
		    "--ctx " + std::to_string(n_ctx) + " is more than the " +
		    std::to_string(model.n_ctx_train()) + " tokens of context that '" + model.path() +
		    "' was trained for");
	const std::vector<int32_t> text = model.tokenize(read_file(path, "text"), false);
	const bool opens = llama_vocab_get_add_bos(model.vocab());
	const size_t n_opening = opens ? 1 : 0; // tokenize() has put it in front of the text
	const size_t n_new = n_ctx - n_opening;
	if (text.size() < n_opening + n_chunks * n_new)
		throw std::runtime_error("text '" + path + "' has " + std::to_string(text.size()) +
					 " tokens, and --chunks " + std::to_string(n_chunks) +
					 " of --ctx " + std::to_string(n_ctx) + " need " +
					 std::to_string(n_opening + n_chunks * n_new));
	std::vector<std::vector<int32_t>> chunks;
	for (uint32_t i = 0; i < n_chunks; ++i) {
		std::vector<int32_t> chunk;
		if (opens)
			chunk.push_back(llama_vocab_bos(model.vocab()));
		const auto from = text.begin() + static_cast<std::ptrdiff_t>(n_opening + i * n_new);
		chunk.insert(chunk.end(), from, from + static_cast<std::ptrdiff_t>(n_new));
		chunks.push_back(std::move(chunk));
	}
	return chunks;
}

std::vector<Score> measure(const Model &model, const Plan &plan,
			   const std::vector<Profile> &profiles)
{
	std::vector<Runner> runners;
	const auto open = [&](const Profile &profile) {
		Runner runner;
		runner.score.profile = profile;
		runner.engine = profile_open(profile, model, plan.engine);
		runners.push_back(std::move(runner));
	};
	open(profile_reference());
	for (const Profile &profile : profiles)
		open(profile);

	const uint32_t n_pieces = (plan.engine.n_ctx + plan.engine.n_piece - 1) / plan.engine.n_piece;
	Progress progress(plan.chunks.size() * n_pieces * runners.size());
	for (const std::vector<int32_t> &chunk : plan.chunks)
		run_chunk(runners, plan, chunk, model.n_vocab(), progress);

	std::vector<Score> scores;
	for (Runner &runner : runners) {
		fill_storage(runner, model, plan);
		scores.push_back(std::move(runner.score));
	}
	return scores;
}
