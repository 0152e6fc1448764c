// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cstdio>
#include <memory>
#include <stdexcept>

#include <jansson.h>

void report_text(const Plan &plan, const std::vector<Score> &scores)
{
	const Score &reference = scores.front();
	std::printf("%zu tokens: %u in pieces of %u, the rest one by one; scored from position %u "
		    "on (%zu)\n"
		    "reference %s, perplexity %.4f; KLD in nats, KL(reference || mode)\n\n"
		    "%-28s %10s %10s %10s %7s %9s %8s %9s %8s %8s\n",
		    plan.tokens.size(), plan.n_prefill, plan.n_ubatch, plan.first_scored,
		    reference.all.count(), reference.mode.c_str(), reference.perplexity(), "mode",
		    "KLD mean", "KLD 99.9%", "decode", "top-1", "ppl", "ratio", "B/token",
		    "prefill", "decode");
	for (const Score &score : scores)
		std::printf("%-28s %10.6f %10.5f %10.6f %6.2f%% %9.4f %8.5f %9.0f %7.2fs %7.2fs\n",
			    score.mode.c_str(), score.all.mean(), score.all.quantile(0.999),
			    score.decode.mean(), 100 * score.all.top1_same(), score.perplexity(),
			    score.perplexity() / reference.perplexity(), score.bytes_per_token,
			    score.prefill_s, score.decode_s);
}

void report_json(const Plan &plan, const std::vector<Score> &scores)
{
	struct Deleter {
		void operator()(json_t *json) const
		{
			json_decref(json);
		}
	};
	const std::unique_ptr<json_t, Deleter> object(json_object());
	const auto set = [&](const std::string &key, json_t *value) {
		if (json_object_set_new(object.get(), key.c_str(), value) != 0)
			throw std::runtime_error("cannot write '" + key + "' as JSON");
	};
	const auto whole = [&](const std::string &key, size_t value) {
		set(key, json_integer(static_cast<json_int_t>(value)));
	};
	const auto real = [&](const std::string &key, double value) { set(key, json_real(value)); };

	const Score &reference = scores.front();
	set("reference", json_string(reference.mode.c_str()));
	whole("tokens", plan.tokens.size());
	whole("prefill", plan.n_prefill);
	whole("ubatch", plan.n_ubatch);
	whole("first_scored", plan.first_scored);
	whole("positions", reference.all.count());
	whole("positions_decode", reference.decode.count());
	real("ppl_reference", reference.perplexity());
	for (size_t i = 1; i < scores.size(); ++i) {
		const Score &score = scores[i];
		const std::string own = score.mode + ".";
		real(own + "kld_mean", score.all.mean());
		real(own + "kld_999", score.all.quantile(0.999));
		real(own + "kld_max", score.all.max());
		real(own + "kld_mean_decode", score.decode.mean());
		real(own + "top1_same", score.all.top1_same());
		real(own + "ppl", score.perplexity());
		real(own + "ppl_ratio", score.perplexity() / reference.perplexity());
		real(own + "bytes_per_token", score.bytes_per_token);
		real(own + "prefill_s", score.prefill_s);
		real(own + "decode_s", score.decode_s);
	}
	if (json_dumpf(object.get(), stdout, JSON_INDENT(2)) != 0 || std::putchar('\n') == EOF ||
	    std::fflush(stdout) != 0)
		throw std::runtime_error("cannot write to stdout");
}
