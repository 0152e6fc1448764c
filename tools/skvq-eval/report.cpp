// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cstdio>
#include <memory>
#include <stdexcept>

#include <jansson.h>

namespace
{

// One object, one line.
class JsonLine
{
      public:
	JsonLine() : object_(json_object()) {}
	void text(const char *key, const std::string &value)
	{
		set(key, json_stringn(value.data(), value.size()));
	}
	void whole(const char *key, uint64_t value)
	{
		set(key, json_integer(static_cast<json_int_t>(value)));
	}
	void real(const char *key, double value)
	{
		set(key, json_real(value));
	}
	void flag(const char *key, bool value)
	{
		set(key, json_boolean(value));
	}
	void print() const
	{
		if (json_dumpf(object_.get(), stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0 ||
		    std::putchar('\n') == EOF || std::fflush(stdout) != 0)
			throw std::runtime_error("cannot write to stdout");
	}

      private:
	void set(const char *key, json_t *value)
	{
		if (json_object_set_new(object_.get(), key, value) != 0)
			throw std::runtime_error(std::string("cannot write '") + key + "' as JSON");
	}
	struct Deleter {
		void operator()(json_t *json) const
		{
			json_decref(json);
		}
	};
	std::unique_ptr<json_t, Deleter> object_;
};

std::string file_name(const std::string &path)
{
	return path.substr(path.rfind('/') + 1);
}

void scores_json(const Args &args, const std::vector<Score> &scores)
{
	const Score &reference = scores.front();
	for (size_t i = 1; i < scores.size(); ++i) {
		const Score &score = scores[i];
		JsonLine json;
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
		json.text("model", file_name(args.model));
		json.text("text", file_name(args.text));
		json.whole("ctx", args.engine.n_ctx);
		json.whole("chunks", args.n_chunks);
		json.whole("first", args.first_scored);
		json.whole("piece", args.engine.n_piece);
		json.whole("threads", args.engine.n_threads);
		json.print();
	}
}

void scores_table(const Args &args, const std::vector<Score> &scores)
{
	const Score &reference = scores.front();
	std::printf(
	    "%s on %s: %u x %u tokens in pieces of %u, scored from position %u on (%zu positions)\n"
	    "reference: stock llama.cpp, FP16 K/V, perplexity %.4f; KLD in nats, KL(reference || "
	    "profile)\n\n"
	    "%-22s %6s %10s %9s %9s %7s %9s %8s %8s %7s\n",
	    file_name(args.model).c_str(), file_name(args.text).c_str(), args.n_chunks,
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
	for (const Score &score : scores)
		if (score.profile.codec == "fp16" && score.profile.ours)
			std::printf("\nfloor: KLD %.6f is what fp16 has, which loses nothing: smaller "
				    "differences are noise of the engine's own arithmetic\n",
				    score.divergence.mean());
	if (std::fflush(stdout) != 0)
		throw std::runtime_error("cannot write to stdout");
}

} // namespace

void report_scores(const Args &args, const std::vector<Score> &scores)
{
	if (args.json)
		scores_json(args, scores);
	else
		scores_table(args, scores);
}
