// SPDX-License-Identifier: Apache-2.0
#include "tasks.h"

#include <algorithm>
#include <random>
#include <stdexcept>

#include "progress.h"

using namespace skvq;

namespace
{

const char *const owners[needle_keys_max] = {
    "heron",  "otter", "badger", "falcon", "beaver", "lizard", "walrus",  "donkey",
    "spider", "goose", "camel",  "rabbit", "turtle", "salmon", "raven",   "moose",
    "cricket", "panda", "weasel", "pigeon", "lobster", "hornet", "ferret", "monkey"};
// Where a sentence ends is looked for among so many tokens.
constexpr size_t sentence_tokens = 64;

using Tokens = std::vector<int32_t>;

// Without what opens a text.
Tokens inner_tokens(const Model &model, const std::string &text)
{
	Tokens tokens = model.tokenize(text, false);
	if (llama_vocab_get_add_bos(model.vocab()) && !tokens.empty())
		tokens.erase(tokens.begin());
	return tokens;
}

struct Question {
	Tokens tokens;       // with the value at the end
	uint32_t n_value = 0; // tokens of it
	uint32_t key = 0;
};

struct Case {
	Tokens haystack; // with the keys in it
	std::vector<Question> questions;
};

void append(Tokens &to, const Tokens &from)
{
	to.insert(to.end(), from.begin(), from.end());
}

bool ends_sentence(const Model &model, int32_t token)
{
	return model.piece(token).find_first_of(".\n") != std::string::npos;
}

Case make_case(const Model &model, const NeedlePlan &plan, const Tokens &text, size_t &used,
	       std::mt19937 &random)
{
	Case made;
	std::vector<Tokens> needles;
	size_t n_other = 1;
	for (uint32_t k = 0; k < plan.n_keys; ++k) {
		const std::string value = std::to_string(10000 + random() % 90000);
		const std::string about = std::string("The secret number of the ") + owners[k] + " is";
		needles.push_back(inner_tokens(model, " " + about + " " + value + ".\n"));
		Question question;
		question.key = k;
		question.tokens = inner_tokens(model, "\n" + about);
		const Tokens answer = inner_tokens(model, " " + value);
		question.n_value = static_cast<uint32_t>(answer.size());
		append(question.tokens, answer);
		n_other += needles.back().size() + question.tokens.size();
		made.questions.push_back(std::move(question));
	}
	std::shuffle(made.questions.begin(), made.questions.end(), random);
	if (plan.engine.n_ctx < 2 * n_other)
		throw std::runtime_error("--ctx " + std::to_string(plan.engine.n_ctx) +
					 " is too short for " + std::to_string(plan.n_keys) + " keys");
	const size_t n_hay = plan.engine.n_ctx - n_other;
	if (used + n_hay > text.size())
		throw std::runtime_error("text '" + plan.text + "' is too short");
	if (llama_vocab_get_add_bos(model.vocab()))
		made.haystack.push_back(llama_vocab_bos(model.vocab()));
	uint32_t next = 0;
	size_t due = n_hay / plan.n_keys / 2;
	for (size_t i = 0; i < n_hay; ++i) {
		made.haystack.push_back(text[used + i]);
		if (next < plan.n_keys && i >= due &&
		    (ends_sentence(model, text[used + i]) || i >= due + sentence_tokens ||
		     i + 1 == n_hay)) {
			append(made.haystack, needles[next++]);
			due = n_hay * (2 * next + 1) / (2 * plan.n_keys);
		}
	}
	used += n_hay;
	return made;
}

// Asks for all keys in one sequence. What was asked before is followed by its true value, whatever
// the model had said, so that each question has the same past in every engine.
std::vector<bool> ask(Engine &engine, const Case &asked, uint32_t n_keys, uint32_t n_vocab,
		      Progress &progress)
{
	(void)engine.begin({});
	const uint32_t n_piece = engine.ubatch();
	for (size_t at = 0; at < asked.haystack.size();) {
		const uint32_t n = static_cast<uint32_t>(
		    std::min<size_t>(n_piece, asked.haystack.size() - at));
		engine.decode(&asked.haystack[at], n, false);
		progress.step(n);
		at += n;
	}
	std::vector<bool> found(n_keys, true);
	for (const Question &question : asked.questions) {
		const size_t n_tokens = question.tokens.size();
		for (size_t at = 0; at < n_tokens;) {
			const uint32_t n =
			    static_cast<uint32_t>(std::min<size_t>(n_piece, n_tokens - at));
			engine.decode(&question.tokens[at], n, true);
			for (uint32_t row = 0; row < n; ++row) {
				const size_t next = at + row + 1;
				if (next + question.n_value < n_tokens || next >= n_tokens)
					continue;
				const float *logits = engine.logits(static_cast<int32_t>(row));
				if (!logits)
					throw std::runtime_error("llama.cpp gave no logits");
				if (static_cast<int32_t>(top_token(logits, n_vocab)) !=
				    question.tokens[next])
					found[question.key] = false;
			}
			at += n;
		}
	}
	return found;
}

} // namespace

std::vector<NeedleScore> find_needles(const Model &model, const NeedlePlan &plan,
				      const std::vector<Profile> &profiles)
{
	if (plan.engine.n_ctx > model.n_ctx_train())
		throw std::runtime_error("--ctx is more than the model's " +
					 std::to_string(model.n_ctx_train()) + " tokens of context");
	const Tokens text = inner_tokens(model, read_file(plan.text, "text"));
	std::mt19937 random(plan.seed);
	std::vector<Case> cases;
	size_t used = 0;
	for (uint32_t i = 0; i < plan.n_chunks; ++i)
		cases.push_back(make_case(model, plan, text, used, random));

	std::vector<Profile> all = {profile_reference()};
	all.insert(all.end(), profiles.begin(), profiles.end());
	Progress progress(cases.size() * plan.engine.n_ctx * all.size());
	std::vector<NeedleScore> scores;
	std::vector<std::vector<bool>> reference;
	for (const Profile &profile : all) {
		const std::unique_ptr<Engine> engine = profile_open(profile, model, plan.engine);
		NeedleScore score;
		score.profile = profile;
		score.found_at_depth.resize(plan.n_keys);
		for (size_t i = 0; i < cases.size(); ++i) {
			const std::vector<bool> found =
			    ask(*engine, cases[i], plan.n_keys, model.n_vocab(), progress);
			if (scores.empty())
				reference.push_back(found);
			for (uint32_t k = 0; k < plan.n_keys; ++k) {
				score.n_keys++;
				score.n_found += found[k];
				score.found_at_depth[k] += found[k];
				score.n_same += found[k] == reference[i][k];
			}
		}
		scores.push_back(std::move(score));
	}
	return scores;
}
