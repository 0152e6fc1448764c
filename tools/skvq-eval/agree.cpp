// SPDX-License-Identifier: Apache-2.0
#include "tasks.h"

#include <algorithm>
#include <stdexcept>

#include "progress.h"

using namespace skvq;

namespace
{

using Tokens = std::vector<int32_t>;

// Up to n tokens, the one that ends the text included.
Tokens greedy(Engine &engine, const Model &model, const Tokens &prompt, uint32_t n,
	      Progress &progress)
{
	(void)engine.begin({});
	for (size_t at = 0; at < prompt.size();) {
		const uint32_t piece =
		    static_cast<uint32_t>(std::min<size_t>(engine.ubatch(), prompt.size() - at));
		engine.decode(&prompt[at], piece, false);
		at += piece;
	}
	Tokens tokens;
	for (;;) {
		const float *logits = engine.logits(-1);
		if (!logits)
			throw std::runtime_error("llama.cpp gave no logits");
		tokens.push_back(static_cast<int32_t>(top_token(logits, model.n_vocab())));
		if (tokens.size() == n || llama_vocab_is_eog(model.vocab(), tokens.back()))
			break;
		engine.decode(&tokens.back(), 1, false);
	}
	progress.step();
	return tokens;
}

} // namespace

std::vector<AgreeScore> compare_greedy(const Model &model, const AgreePlan &plan,
				       const std::vector<Profile> &profiles)
{
	std::vector<Profile> all = {profile_reference()};
	all.insert(all.end(), profiles.begin(), profiles.end());
	Progress progress(all.size() * plan.chunks.size());
	std::vector<AgreeScore> scores;
	std::vector<Tokens> reference;
	for (const Profile &profile : all) {
		const std::unique_ptr<Engine> engine = profile_open(profile, model, plan.engine);
		AgreeScore score;
		score.profile = profile;
		for (size_t i = 0; i < plan.chunks.size(); ++i) {
			Tokens prompt = plan.chunks[i];
			prompt.resize(prompt.size() - plan.n_predict);
			const Tokens tokens =
			    greedy(*engine, model, prompt, plan.n_predict, progress);
			if (scores.empty())
				reference.push_back(tokens);
			const Tokens &theirs = reference[i];
			const auto other = std::mismatch(theirs.begin(), theirs.end(),
							 tokens.begin(), tokens.end());
			score.n_prompts++;
			score.n_whole += other.first == theirs.end();
			score.n_same += static_cast<uint64_t>(other.first - theirs.begin());
			score.n_possible += theirs.size();
		}
		scores.push_back(std::move(score));
	}
	return scores;
}
