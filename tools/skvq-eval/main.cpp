// SPDX-License-Identifier: Apache-2.0
//
// skvq-eval: how far K/V codecs move a model's next-token distributions, measured in llama.cpp.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

#include <getopt.h>

#include "eval.h"
#include "report.h"

namespace
{

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

const char usage[] =
    "usage: skvq-eval --model FILE.gguf --text FILE --mode MODE [--mode MODE ...] [options]\n"
    "\n"
    "Feeds a text to stock llama.cpp with FP16 K/V and no flash attention (the reference) and to "
    "each\n"
    "mode, token for token, and compares the next-token distributions.\n"
    "\n"
    "modes\n"
    "  plain-fa, plain-nofa             stock llama.cpp, FP16, flash attention on, off\n"
    "  q8_0, q4_0                       stock llama.cpp, K and V in that type, flash attention on\n"
    "  skvq:PROFILE[,window=N][,sinks=N]  skvq pages, embedded; ,calibration=FILE or ,data-free for\n"
    "                                   this mode alone\n"
    "options\n"
    "  --tokens N     how many; default 1024\n"
    "  --prefill N    of them, computed in pieces; the rest one by one; default 512\n"
    "  --ubatch N     tokens of a piece; default 128. The logits of one piece are kept per mode\n"
    "  --skip N       positions at the start that are not scored; default 64\n"
    "  --threads N    default: one per processor\n"
    "  --calibration FILE  for all skvq modes; default: the one kept for the model\n"
    "  --no-calibration    data-free codes in all skvq modes\n"
    "  --plugin FILE  libskvq_plugin.so\n"
    "  --json         one flat JSON object instead of the table\n"
    "  --verbose      let llama.cpp speak on stderr\n";

struct Args {
	std::string model, text, calibration;
	bool data_free = false;
	std::vector<Mode> modes;
	Plan plan;
	uint32_t n_tokens = 1024;
	bool json = false, verbose = false, help = false;
};

Args parse(int argc, char **argv)
{
	const option options[] = {
	    {"model", required_argument, nullptr, 'm'},
	    {"text", required_argument, nullptr, 't'},
	    {"mode", required_argument, nullptr, 'M'},
	    {"tokens", required_argument, nullptr, 'n'},
	    {"prefill", required_argument, nullptr, 'p'},
	    {"ubatch", required_argument, nullptr, 'u'},
	    {"skip", required_argument, nullptr, 's'},
	    {"threads", required_argument, nullptr, 'T'},
	    {"calibration", required_argument, nullptr, 'c'},
	    {"no-calibration", no_argument, nullptr, 'C'},
	    {"plugin", required_argument, nullptr, 'P'},
	    {"json", no_argument, nullptr, 'j'},
	    {"verbose", no_argument, nullptr, 'v'},
	    {"help", no_argument, nullptr, 'h'},
	    {nullptr, 0, nullptr, 0},
	};
	Args args;
	args.plan.n_prefill = 512;
	args.plan.n_ubatch = 128;
	args.plan.first_scored = 64;
	args.plan.n_threads = std::max(1u, std::thread::hardware_concurrency());
	opterr = 0;
	for (int c; (c = getopt_long(argc, argv, "h", options, nullptr)) != -1;) {
		switch (c) {
		case 'm':
			args.model = optarg;
			break;
		case 't':
			args.text = optarg;
			break;
		case 'M':
			args.modes.push_back(mode_parse(optarg));
			break;
		case 'n':
			args.n_tokens = skvq::whole("--tokens", optarg, 2, 1 << 20);
			break;
		case 'p':
			args.plan.n_prefill = skvq::whole("--prefill", optarg, 0, 1 << 20);
			break;
		case 'u':
			args.plan.n_ubatch = skvq::whole("--ubatch", optarg, 1, 4096);
			break;
		case 's':
			args.plan.first_scored = skvq::whole("--skip", optarg, 0, 1 << 20);
			break;
		case 'T':
			args.plan.n_threads = skvq::whole("--threads", optarg, 1, 512);
			break;
		case 'c':
			args.calibration = optarg;
			break;
		case 'C':
			args.data_free = true;
			break;
		case 'P':
			args.plan.plugin = optarg;
			break;
		case 'j':
			args.json = true;
			break;
		case 'v':
			args.verbose = true;
			break;
		case 'h':
			args.help = true;
			return args;
		default:
			throw UsageError(
			    std::string("unknown option, or one without its value: '") +
			    argv[optind - 1] + "'");
		}
	}
	if (optind < argc)
		throw UsageError(std::string("what is '") + argv[optind] + "'?");
	if (args.model.empty() || args.text.empty() || args.modes.empty())
		throw UsageError("--model, --text and at least one --mode are needed");
	for (Mode &each : args.modes) {
		if (each.calibration.empty() && !each.data_free) {
			each.calibration = args.calibration;
			each.data_free = args.data_free;
		}
	}
	if (args.plan.n_prefill > args.n_tokens)
		throw UsageError("--prefill is more than --tokens");
	if (args.plan.first_scored + 1 >= args.n_tokens)
		throw UsageError("--skip leaves no position to score");
	return args;
}

std::vector<int32_t> read_tokens(const Args &args, const skvq::Model &model)
{
	const std::string text = skvq::read_file(args.text, "text");
	if (args.n_tokens > model.n_ctx_train())
		throw std::runtime_error(
		    "--tokens " + std::to_string(args.n_tokens) + " is more than the " +
		    std::to_string(model.n_ctx_train()) + " tokens of context that '" + args.model +
		    "' was trained for");
	std::vector<int32_t> tokens = model.tokenize(text, false);
	if (tokens.size() < args.n_tokens)
		throw std::runtime_error(
		    "text '" + args.text + "' has " + std::to_string(tokens.size()) +
		    " tokens, and --tokens asks for " + std::to_string(args.n_tokens));
	tokens.resize(args.n_tokens);
	return tokens;
}

} // namespace

int main(int argc, char **argv)
{
	try {
		Args args = parse(argc, argv);
		if (args.help) {
			std::fputs(usage, stdout);
			return 0;
		}
		skvq::llama_setup(args.verbose);
		const bool for_client = std::any_of(args.modes.begin(), args.modes.end(),
						    [](const Mode &mode) { return mode.ours; });
		const skvq::Model model(args.model, for_client);
		args.plan.tokens = read_tokens(args, model);
		const std::vector<Score> scores = evaluate(model, args.plan, args.modes);
		if (args.json)
			report_json(args.plan, scores);
		else
			report_text(args.plan, scores);
		return 0;
	} catch (const UsageError &e) {
		std::fprintf(stderr, "skvq-eval: %s; see --help\n", e.what());
		return exit_usage;
	} catch (const std::exception &e) {
		std::fprintf(stderr, "skvq-eval: %s\n", e.what());
		return exit_failed;
	}
}
