// SPDX-License-Identifier: Apache-2.0
#include "args.h"

#include <algorithm>
#include <thread>

#include <getopt.h>

#include "tasks.h"

using skvq::UsageError;
using skvq::whole;

const char args_usage[] =
    "usage: skvq-eval [COMMAND] --model FILE.gguf --text FILE --profiles LIST [options]\n"
    "\n"
    "How far K/V codecs move a model. docs/evaluation.md\n"
    "\n"
    "commands\n"
    "  measure            (default) perplexity, KL divergence of next-token distributions to stock\n"
    "                     llama.cpp with FP16 K/V, agreement on the likeliest token, bits, speed\n"
    "  needle             keys hidden in the text at several depths, then asked for; recall\n"
    "  agree              how many tokens of a greedy continuation are as with FP16 K/V\n"
    "  shared             with --socket: pages taken from the daemon against the same computed\n"
    "\n"
    "profiles, with commas between\n"
    "  fp16, k8v8, k4v4, k2v1.5 ...     skvq pages (docs/profiles.md); each may be followed by\n"
    "                                   :free (no calibration), :window=N, :sinks=N, :whole (no\n"
    "                                   layer groups)\n"
    "  llama-q8_0, llama-q4_0           stock llama.cpp's caches, rotated as it does by itself;\n"
    "  llama-q8_0-norot, llama-q4_0-norot   not rotated\n"
    "  llama-f16, llama-f16-nofa        its FP16 cache, flash attention on; off (the reference)\n"
    "what to compute\n"
    "  --ctx N            tokens of a chunk, at most the model's context; default 1024\n"
    "  --chunks N         how many chunks of the text; default 1\n"
    "  --first N          measure: positions of a chunk that are not scored; default 256\n"
    "  --keys N           needle: keys in a chunk; default 8\n"
    "  --predict N        agree: tokens generated after the rest of a chunk; default 64\n"
    "  --socket PATH      shared: of skvqd\n"
    "  --pressure N       shared: prompts published behind the one that is compared; default 0\n"
    "  --prefix N         shared: tokens asked of the daemon, the rest is computed; default all\n"
    "  --piece N          tokens computed at once; default 16: each position meets its history as\n"
    "                     decoding would. 1 is decoding itself\n"
    "  --window N         newest tokens kept in FP16; default 128\n"
    "  --sinks N          first tokens kept in FP16; default 5\n"
    "  --calibration FILE for all profiles but those with :free\n"
    "  --no-calibration   for none\n"
    "  --f16-weights, --f32-weights   a dequantized copy of the model, kept in the cache folder:\n"
    "                     takes away the noise of ggml's 8-bit activations\n"
    "  --inject-outliers  a copy (F32) that computes the same with a few key channels 16 times as\n"
    "                     large\n"
    "  --seed N           of outliers and keys; default 1\n"
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
	opt_keys,
	opt_predict,
	opt_socket,
	opt_pressure,
	opt_prefix,
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
    {"keys", required_argument, nullptr, opt_keys},
    {"predict", required_argument, nullptr, opt_predict},
    {"socket", required_argument, nullptr, opt_socket},
    {"pressure", required_argument, nullptr, opt_pressure},
    {"prefix", required_argument, nullptr, opt_prefix},
    {"piece", required_argument, nullptr, opt_piece},
    {"window", required_argument, nullptr, opt_window},
    {"sinks", required_argument, nullptr, opt_sinks},
    {"calibration", required_argument, nullptr, opt_calibration},
    {"no-calibration", no_argument, nullptr, opt_no_calibration},
    SKVQ_WEIGHTS_OPTIONS,
    {"threads", required_argument, nullptr, opt_threads},
    {"plugin", required_argument, nullptr, opt_plugin},
    {"json", no_argument, nullptr, opt_json},
    {"verbose", no_argument, nullptr, opt_verbose},
    {"help", no_argument, nullptr, 'h'},
    {nullptr, 0, nullptr, 0},
};

const struct {
	const char *name;
	Command command;
} commands[] = {
    {"measure", Command::measure},
    {"needle", Command::needle},
    {"agree", Command::agree},
    {"shared", Command::shared},
};

Command command_parse(const std::string &text)
{
	for (const auto &entry : commands)
		if (text == entry.name)
			return entry.command;
	throw UsageError("what is '" + text + "'?");
}

void check(const Args &args)
{
	if (args.model.empty() || args.text.empty() || args.profiles.empty())
		throw UsageError("--model, --text and --profiles are needed");
	skvq::weights_check(args.weights);
	if (args.command == Command::measure && args.first_scored + 1 >= args.engine.n_ctx)
		throw UsageError("--first " + std::to_string(args.first_scored) +
				 " leaves no position of --ctx " +
				 std::to_string(args.engine.n_ctx) + " to score");
	if (args.command == Command::agree && args.n_predict >= args.engine.n_ctx)
		throw UsageError("--predict " + std::to_string(args.n_predict) +
				 " leaves no prompt in --ctx " + std::to_string(args.engine.n_ctx));
	if ((args.command == Command::shared) == args.engine.socket.empty())
		throw UsageError("shared needs --socket, and nothing else does");
	if (args.command != Command::shared &&
	    (args.sharing.pressure || args.sharing.prefix != Sharing().prefix))
		throw UsageError("--pressure and --prefix are for shared alone");
	for (const Profile &profile : args.profiles)
		if (args.command == Command::shared && !profile.ours)
			throw UsageError("'" + profile.name + "' shares nothing");
}

} // namespace

Args args_parse(int argc, char **argv)
{
	Args args;
	args.engine.n_ctx = 1024;
	args.engine.n_threads = std::max(1u, std::thread::hardware_concurrency());
	if (argc > 1 && argv[1][0] != '-') {
		args.command = command_parse(argv[1]);
		--argc;
		++argv; // its name in place of the program's: getopt is told not to print
	}
	opterr = 0;
	for (int c; (c = getopt_long(argc, argv, "h", options, nullptr)) != -1;) {
		if (skvq::weights_option(args.weights, c, optarg))
			continue;
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
		case opt_keys:
			args.n_keys = whole("--keys", optarg, 1, needle_keys_max);
			break;
		case opt_predict:
			args.n_predict = whole("--predict", optarg, 1, 1 << 16);
			break;
		case opt_socket:
			args.engine.socket = optarg;
			break;
		case opt_pressure:
			args.sharing.pressure = whole("--pressure", optarg, 0, 1024);
			break;
		case opt_prefix:
			args.sharing.prefix = whole("--prefix", optarg, 1, 1 << 20);
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
