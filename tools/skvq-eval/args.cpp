// SPDX-License-Identifier: Apache-2.0
#include "args.h"

#include <algorithm>
#include <thread>

#include <getopt.h>

using skvq::UsageError;
using skvq::whole;

const char args_usage[] =
    "usage: skvq-eval --model FILE.gguf --text FILE --profiles LIST [options]\n"
    "\n"
    "How far K/V codecs move a model's next-token distributions: perplexity, KL divergence to stock\n"
    "llama.cpp with FP16 K/V, agreement on the likeliest token, bits, speed. docs/evaluation.md\n"
    "\n"
    "profiles, with commas between\n"
    "  fp16, k8v8, k4v4, k2v1.5 ...     skvq pages (docs/profiles.md); each may be followed by\n"
    "                                   :free (no calibration), :window=N, :sinks=N\n"
    "  llama-q8_0, llama-q4_0           stock llama.cpp's caches, rotated as it does by itself;\n"
    "  llama-q8_0-norot, llama-q4_0-norot   not rotated\n"
    "  llama-f16, llama-f16-nofa        its FP16 cache, flash attention on; off (the reference)\n"
    "what to compute\n"
    "  --ctx N            tokens of a chunk, at most the model's context; default 1024\n"
    "  --chunks N         how many chunks of the text; default 1\n"
    "  --first N          positions of a chunk that are not scored; default 256\n"
    "  --piece N          tokens computed at once; default 16: each position meets its history as\n"
    "                     decoding would. 1 is decoding itself\n"
    "  --window N         newest tokens kept in FP16; default 128\n"
    "  --sinks N          first tokens kept in FP16; default 5\n"
    "  --calibration FILE for all profiles but those with :free\n"
    "  --no-calibration   for none\n"
    "  --threads N        default: one per processor\n"
    "  --plugin FILE      libskvq_plugin.so\n"
    "what to report\n"
    "  --json             one JSON object a line for each profile instead of the table\n"
    "  --verbose          let llama.cpp speak on stderr\n";

namespace
{

enum Option {
	opt_model = 256,
	opt_text,
	opt_profiles,
	opt_ctx,
	opt_chunks,
	opt_first,
	opt_piece,
	opt_window,
	opt_sinks,
	opt_calibration,
	opt_no_calibration,
	opt_threads,
	opt_plugin,
	opt_json,
	opt_verbose,
};

const option options[] = {
    {"model", required_argument, nullptr, opt_model},
    {"text", required_argument, nullptr, opt_text},
    {"profiles", required_argument, nullptr, opt_profiles},
    {"ctx", required_argument, nullptr, opt_ctx},
    {"chunks", required_argument, nullptr, opt_chunks},
    {"first", required_argument, nullptr, opt_first},
    {"piece", required_argument, nullptr, opt_piece},
    {"window", required_argument, nullptr, opt_window},
    {"sinks", required_argument, nullptr, opt_sinks},
    {"calibration", required_argument, nullptr, opt_calibration},
    {"no-calibration", no_argument, nullptr, opt_no_calibration},
    {"threads", required_argument, nullptr, opt_threads},
    {"plugin", required_argument, nullptr, opt_plugin},
    {"json", no_argument, nullptr, opt_json},
    {"verbose", no_argument, nullptr, opt_verbose},
    {"help", no_argument, nullptr, 'h'},
    {nullptr, 0, nullptr, 0},
};

void check(const Args &args)
{
	if (args.model.empty() || args.text.empty() || args.profiles.empty())
		throw UsageError("--model, --text and --profiles are needed");
	if (args.first_scored + 1 >= args.engine.n_ctx)
		throw UsageError("--first " + std::to_string(args.first_scored) +
				 " leaves no position of --ctx " +
				 std::to_string(args.engine.n_ctx) + " to score");
}

} // namespace

Args args_parse(int argc, char **argv)
{
	Args args;
	args.engine.n_ctx = 1024;
	args.engine.n_threads = std::max(1u, std::thread::hardware_concurrency());
	opterr = 0;
	for (int c; (c = getopt_long(argc, argv, "h", options, nullptr)) != -1;) {
		switch (c) {
		case opt_model:
			args.model = optarg;
			break;
		case opt_text:
			args.text = optarg;
			break;
		case opt_profiles:
			args.profiles = profiles_parse(optarg);
			break;
		case opt_ctx:
			args.engine.n_ctx = whole("--ctx", optarg, 2, 1 << 20);
			break;
		case opt_chunks:
			args.n_chunks = whole("--chunks", optarg, 1, 1 << 16);
			break;
		case opt_first:
			args.first_scored = whole("--first", optarg, 0, 1 << 20);
			break;
		case opt_piece:
			args.engine.n_piece = whole("--piece", optarg, 1, 4096);
			break;
		case opt_window:
			args.engine.window = whole("--window", optarg, 0, 65536);
			break;
		case opt_sinks:
			args.engine.sinks = whole("--sinks", optarg, 0, 65536);
			break;
		case opt_calibration:
			args.engine.calibration = optarg;
			break;
		case opt_no_calibration:
			args.engine.no_calibration = true;
			break;
		case opt_threads:
			args.engine.n_threads = whole("--threads", optarg, 1, 512);
			break;
		case opt_plugin:
			args.engine.plugin = optarg;
			break;
		case opt_json:
			args.json = true;
			break;
		case opt_verbose:
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
	check(args);
	return args;
}
