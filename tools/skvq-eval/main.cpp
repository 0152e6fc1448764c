// SPDX-License-Identifier: Apache-2.0
//
// skvq-eval: how far K/V codecs move a model's next-token distributions, measured in llama.cpp.
#include <algorithm>
#include <cstdio>
#include <exception>

#include "args.h"
#include "measure.h"
#include "report.h"
#include "tasks.h"

namespace
{

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

skvq::Model load(const Args &args)
{
	const bool for_client = std::any_of(args.profiles.begin(), args.profiles.end(),
					    [](const Profile &profile) { return profile.ours; });
	return skvq::Model(skvq::weights_copy(args.model, args.weights, args.engine.n_threads),
			   for_client);
}

Plan make_plan(const Args &args, const skvq::Model &model)
{
	Plan plan;
	plan.engine = args.engine;
	plan.chunks = take_chunks(model, args.text, args.engine.n_ctx, args.n_chunks);
	plan.first_scored = args.first_scored;
	return plan;
}

void run_measure(Args &args)
{
	// The table shows the floor under all figures; a program asks for what it wants to see.
	const auto is_fp16 = [](const Profile &profile) { return profile.codec == "fp16"; };
	if (!args.json && std::none_of(args.profiles.begin(), args.profiles.end(), is_fp16))
		args.profiles.insert(args.profiles.begin(), profile_parse("fp16"));
	const skvq::Model model = load(args);
	report(args, measure(model, make_plan(args, model), args.profiles));
}

void run_needle(const Args &args)
{
	const skvq::Model model = load(args);
	NeedlePlan plan;
	plan.engine = args.engine;
	plan.text = args.text;
	plan.n_chunks = args.n_chunks;
	plan.n_keys = args.n_keys;
	plan.seed = args.weights.seed;
	report(args, find_needles(model, plan, args.profiles));
}

void run_agree(const Args &args)
{
	const skvq::Model model = load(args);
	AgreePlan plan;
	plan.engine = args.engine;
	plan.chunks = make_plan(args, model).chunks;
	plan.n_predict = args.n_predict;
	report(args, compare_greedy(model, plan, args.profiles));
}

void run_shared(const Args &args)
{
	const skvq::Model model = load(args);
	report(args, compare_shared(model, make_plan(args, model), args.profiles, args.sharing));
}

void run(Args &args)
{
	switch (args.command) {
	case Command::measure:
		return run_measure(args);
	case Command::needle:
		return run_needle(args);
	case Command::agree:
		return run_agree(args);
	case Command::shared:
		return run_shared(args);
	}
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
		run(args);
		return 0;
	} catch (const skvq::UsageError &e) {
		std::fprintf(stderr, "skvq-eval: %s; see --help\n", e.what());
		return exit_usage;
	} catch (const std::exception &e) {
		std::fprintf(stderr, "skvq-eval: %s\n", e.what());
		return exit_failed;
	}
}
