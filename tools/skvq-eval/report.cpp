// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>

#include <skvq/json_object.hpp>

namespace
{

std::string file_name(const std::string &path)
{
	return path.substr(path.rfind('/') + 1);
}

void put_setting(skvq::JsonObject &json, const Args &args)
{
	json.text("model", file_name(args.model));
	json.text("weights", skvq::weights_name(args.weights));
	json.text("text", file_name(args.text));
	json.whole("ctx", args.engine.n_ctx);
	json.whole("chunks", args.n_chunks);
	json.whole("piece", args.engine.n_piece);
	json.whole("threads", args.engine.n_threads);
}

void flush()
{
	if (std::fflush(stdout) != 0)
		throw std::runtime_error("cannot write to stdout");
}

double ratio(uint64_t part, uint64_t whole)
{
	return whole ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

void scores_json(const Args &args, const std::vector<Score> &scores)
{
	const Score &reference = scores.front();
	for (size_t i = 1; i < scores.size(); ++i) {
		const Score &score = scores[i];
		skvq::JsonObject json;
		json.text("profile", score.profile.name);
		json.real("bits", score.bits);
		json.real("kld", score.divergence.mean());
		json.real("kld_99", score.divergence.quantile(0.99));
		json.real("kld_999", score.divergence.quantile(0.999));
		json.real("kld_max", score.divergence.max());
		json.real("top1", score.divergence.top1_same());
		json.real("ppl", score.perplexity());
		json.real("ppl_ratio", score.perplexity() / reference.perplexity());
		json.whole("tokens", score.divergence.count());
		json.real("bytes_per_token", score.bytes_per_token);
		json.real("tokens_per_s", score.tokens_per_s());
		json.real("ppl_reference", reference.perplexity());
		json.flag("ours", score.profile.ours);
		if (score.profile.ours) {
			json.whole("window", score.window);
			json.whole("sinks", score.sinks);
			json.flag("data_free",
				  score.profile.data_free || args.engine.no_calibration);
		}
		json.whole("first", args.first_scored);
		put_setting(json, args);
		json.print_line();
	}
}

void scores_table(const Args &args, const std::vector<Score> &scores)
{
	const Score &reference = scores.front();
	std::printf(
	    "%s (weights %s) on %s: %u x %u tokens in pieces of %u, scored from position %u on (%zu positions)\n"
	    "reference: stock llama.cpp, FP16 K/V, perplexity %.4f; KLD in nats, KL(reference || "
	    "profile)\n\n"
	    "%-22s %6s %10s %9s %9s %7s %9s %8s %8s %7s\n",
	    file_name(args.model).c_str(), skvq::weights_name(args.weights),
	    file_name(args.text).c_str(), args.n_chunks,
	    args.engine.n_ctx, args.engine.n_piece, args.first_scored,
	    reference.divergence.count(), reference.perplexity(), "profile", "bits", "KLD", "99 %",
	    "99.9 %", "top-1", "ppl", "ratio", "B/token", "tok/s");
	for (const Score &score : scores)
		std::printf("%-22s %6.3f %10.6f %9.5f %9.5f %6.2f%% %9.4f %8.5f %8.0f %7.1f\n",
			    score.profile.name.c_str(), score.bits, score.divergence.mean(),
			    score.divergence.quantile(0.99), score.divergence.quantile(0.999),
			    100 * score.divergence.top1_same(), score.perplexity(),
			    score.perplexity() / reference.perplexity(), score.bytes_per_token,
			    score.tokens_per_s());
	const auto is_fp16 = [](const Score &score) { return score.profile.codec == "fp16"; };
	const auto floor = std::find_if(scores.begin(), scores.end(), is_fp16);
	if (floor != scores.end())
		std::printf("\nfloor: KLD %.6f is what %s has, which loses nothing: below it is only "
			    "the noise of the engine's own arithmetic\n",
			    floor->divergence.mean(), floor->profile.name.c_str());
	flush();
}

} // namespace

void report(const Args &args, const std::vector<Score> &scores)
{
	if (args.json)
		scores_json(args, scores);
	else
		scores_table(args, scores);
}

void report(const Args &args, const std::vector<NeedleScore> &scores)
{
	const NeedleScore &reference = scores.front();
	if (!args.json)
		std::printf("%s (weights %s): %u keys in each of %u x %u tokens\n\n"
			    "%-22s %8s %8s  found at depth, of %u\n",
			    file_name(args.model).c_str(), skvq::weights_name(args.weights), args.n_keys,
			    args.n_chunks, args.engine.n_ctx, "profile", "recall", "as ref.",
			    args.n_chunks);
	for (const NeedleScore &score : scores) {
		if (args.json && &score == &reference)
			continue;
		if (args.json) {
			skvq::JsonObject json;
			json.text("profile", score.profile.name);
			json.real("recall", ratio(score.n_found, score.n_keys));
			json.real("recall_reference", ratio(reference.n_found, reference.n_keys));
			json.real("same", ratio(score.n_same, score.n_keys));
			json.whole("keys", score.n_keys);
			json.list("found_at_depth", score.found_at_depth);
			put_setting(json, args);
			json.print_line();
			continue;
		}
		std::printf("%-22s %7.1f%% %7.1f%% ", score.profile.name.c_str(),
			    100 * ratio(score.n_found, score.n_keys),
			    100 * ratio(score.n_same, score.n_keys));
		for (const uint32_t n : score.found_at_depth)
			std::printf(" %u", n);
		std::putchar('\n');
	}
	flush();
}

void report(const Args &args, const std::vector<AgreeScore> &scores)
{
	if (!args.json)
		std::printf("%s (weights %s): greedy, %u prompts of %u tokens, at most %u more\n\n"
			    "%-22s %16s %10s\n",
			    file_name(args.model).c_str(), skvq::weights_name(args.weights), args.n_chunks,
			    args.engine.n_ctx - args.n_predict, args.n_predict, "profile",
			    "tokens the same", "all");
	for (size_t i = args.json ? 1 : 0; i < scores.size(); ++i) {
		const AgreeScore &score = scores[i];
		if (args.json) {
			skvq::JsonObject json;
			json.text("profile", score.profile.name);
			json.real("agreed", ratio(score.n_same, score.n_prompts));
			json.real("possible", ratio(score.n_possible, score.n_prompts));
			json.real("whole", ratio(score.n_whole, score.n_prompts));
			json.whole("prompts", score.n_prompts);
			json.whole("predict", args.n_predict);
			put_setting(json, args);
			json.print_line();
			continue;
		}
		std::printf("%-22s %7.1f of %5.1f %9.0f%%\n", score.profile.name.c_str(),
			    ratio(score.n_same, score.n_prompts),
			    ratio(score.n_possible, score.n_prompts),
			    100 * ratio(score.n_whole, score.n_prompts));
	}
	flush();
}

void report(const Args &args, const std::vector<SharedScore> &scores)
{
	if (!args.json)
		std::printf("%s (weights %s): pages taken from skvqd against the same computed "
			    "cold, and either against FP16 K/V (\"lost\")\n\n"
			    "%-16s %7s %7s %7s %9s %8s %7s %9s %9s %9s %6s\n",
			    file_name(args.model).c_str(), skvq::weights_name(args.weights), "profile",
			    "tokens", "matched", "refined", "KLD", "max", "top-1", "refilling", "lost",
			    "cold lost", "kept");
	for (const SharedScore &score : scores) {
		if (args.json) {
			skvq::JsonObject json;
			json.text("profile", score.profile.name);
			json.real("kld", score.divergence.mean());
			json.real("kld_max", score.divergence.max());
			json.real("top1", score.divergence.top1_same());
			json.whole("tokens", score.divergence.count());
			json.real("kld_refilling", score.refilling.mean());
			json.whole("prompt_tokens", score.n_prompt);
			json.whole("matched_tokens", score.n_matched);
			json.whole("paged_tokens", score.n_paged);
			json.whole("refined_tokens", score.n_refined);
			json.real("kld_to_fp16", score.shared_lost.mean());
			json.real("kld_to_fp16_cold", score.cold_lost.mean());
			json.whole("published_tokens", score.n_published);
			json.whole("kept_tokens", score.n_kept);
			put_setting(json, args);
			json.print_line();
			continue;
		}
		std::printf("%-16s %7llu %7llu %7llu %9.6f %8.5f %6.2f%% %9.6f %9.6f %9.6f %5.0f%%\n",
			    score.profile.name.c_str(),
			    static_cast<unsigned long long>(score.n_prompt),
			    static_cast<unsigned long long>(score.n_matched),
			    static_cast<unsigned long long>(score.n_refined),
			    score.divergence.mean(), score.divergence.max(),
			    100 * score.divergence.top1_same(), score.refilling.mean(),
			    score.shared_lost.mean(), score.cold_lost.mean(),
			    100 * ratio(score.n_kept, score.n_published));
	}
	flush();
}
