// SPDX-License-Identifier: Apache-2.0
//
// skvq-eval: how far K/V codecs move a model's next-token distributions, measured in llama.cpp.
#include <algorithm>
#include <cstdio>
#include <exception>

#include "args.h"
#include "measure.h"
#include "report.h"

namespace
{

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

void run_measure(Args &args)
{
	// The table shows the floor under all figures; a program asks for what it wants to see.
	const auto is_fp16 = [](const Profile &profile) { return profile.codec == "fp16"; };
	if (!args.json && std::none_of(args.profiles.begin(), args.profiles.end(), is_fp16))
		args.profiles.insert(args.profiles.begin(), profile_parse("fp16"));
	const bool for_client = std::any_of(args.profiles.begin(), args.profiles.end(),
					    [](const Profile &profile) { return profile.ours; });
	const skvq::Model model(args.model, for_client);
	Plan plan;
	plan.engine = args.engine;
	plan.chunks = take_chunks(model, args.text, args.engine.n_ctx, args.n_chunks);
	plan.first_scored = args.first_scored;
	report_scores(args, measure(model, plan, args.profiles));
}

} // namespace

int main(int argc, char **argv)
{
	try {
		Args args = args_parse(argc, argv);
		if (args.help) {
			std::fputs(args_usage, stdout);
			return 0;
		}
		skvq::llama_setup(args.verbose);
		run_measure(args);
		return 0;
	} catch (const skvq::UsageError &e) {
		std::fprintf(stderr, "skvq-eval: %s; see --help\n", e.what());
		return exit_usage;
	} catch (const std::exception &e) {
		std::fprintf(stderr, "skvq-eval: %s\n", e.what());
		return exit_failed;
	}
}
