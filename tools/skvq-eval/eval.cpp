// SPDX-License-Identifier: Apache-2.0
#include "eval.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

using namespace skvq;

namespace
{

struct Runner {
	Score score;
	std::unique_ptr<Engine> engine;
};

// Positions [at, at + n) were computed by both: compare what they say comes next.
void compare(Runner &runner, Engine &reference, const Plan &plan, uint32_t n_vocab, uint32_t at,
	     uint32_t n)
{
	for (uint32_t row = 0; row < n; ++row) {
		const uint32_t position = at + row;
		if (position < plan.first_scored || position + 1 >= plan.tokens.size())
			continue;
		const float *theirs = reference.logits(static_cast<int32_t>(row));
		const float *ours = runner.engine->logits(static_cast<int32_t>(row));
		if (!theirs || !ours)
			throw std::runtime_error("llama.cpp gave no logits");
		runner.score.all.add(theirs, ours, n_vocab);
		if (position >= plan.n_prefill)
			runner.score.decode.add(theirs, ours, n_vocab);
		runner.score.nll += log_sum_exp(ours, n_vocab) -
				    static_cast<double>(ours[plan.tokens[position + 1]]);
	}
}

void step(std::vector<Runner> &runners, const Plan &plan, uint32_t n_vocab, uint32_t at, uint32_t n)
{
	for (Runner &runner : runners) {
		const double start = seconds_now();
		runner.engine->decode(&plan.tokens[at], n, true);
		(at < plan.n_prefill ? runner.score.prefill_s : runner.score.decode_s) +=
		    seconds_now() - start;
	}
	for (Runner &runner : runners)
		compare(runner, *runners.front().engine, plan, n_vocab, at, n);
}

} // namespace

double Score::perplexity() const
{
	return all.empty() ? 0 : std::exp(nll / static_cast<double>(all.count()));
}

std::vector<Score> evaluate(const Model &model, const Plan &plan, const std::vector<Mode> &modes)
{
	const uint32_t n_tokens = static_cast<uint32_t>(plan.tokens.size());
	std::vector<Runner> runners;
	const auto open = [&](const Mode &mode) {
		Runner runner;
		runner.score.mode = mode.name;
		runner.engine =
		    mode_open(mode, model, n_tokens, plan.n_ubatch, plan.n_threads, plan.plugin);
		(void)runner.engine->begin({});
		runners.push_back(std::move(runner));
	};
	open(mode_parse("plain-nofa"));
	for (const Mode &mode : modes)
		open(mode);

	uint32_t at = 0;
	while (at < n_tokens) {
		const uint32_t n =
		    at < plan.n_prefill ? std::min(plan.n_ubatch, plan.n_prefill - at) : 1;
		step(runners, plan, model.n_vocab(), at, n);
		at += n;
	}

	std::vector<Score> scores;
	for (Runner &runner : runners) {
		if (const Client *client = dynamic_cast<const Client *>(runner.engine.get())) {
			const skvq_llama_usage usage = client->usage();
			const uint64_t pages =
			    usage.bytes_local - usage.bytes_window + usage.bytes_shared;
			if (usage.n_paged)
				runner.score.bytes_per_token =
				    static_cast<double>(pages) / usage.n_paged;
		}
		scores.push_back(std::move(runner.score));
	}
	return scores;
}
