// SPDX-License-Identifier: Apache-2.0
#include "args.h"

#include <cmath>
#include <cstdlib>

#include <getopt.h>

const char args_usage[] =
    "usage: skvq-llama --model FILE.gguf (--prompt TEXT | --prompt-file FILE) [options]\n"
    "\n"
    "Generates text with llama.cpp while its K/V cache lives in skvqd as low-bit pages.\n"
    "\n"
    "where K/V lives\n"
    "  --socket PATH      in the skvqd that listens there; pages are shared\n"
    "  --embedded         in this process alone (default)\n"
    "  --plain            in stock llama.cpp, FP16, for comparison\n"
    "  --fallback         with --socket: go on embedded if skvqd cannot be reached\n"
    "  --profile NAME     codec profile, e.g. k4v2 (default), k2v2, auto-2.4, e2.1, k8v8, fp16\n"
    "  --calibration FILE  of skvq-calibrate; default: the one kept for the model, made on first use\n"
    "  --no-calibration   data-free codes; some models lose most of their accuracy below 4 bits\n"
    "  --window N         newest tokens kept in FP16; default 128\n"
    "  --sinks N          first tokens kept in FP16; default 5\n"
    "  --no-match         do not look for shared pages\n"
    "  --no-publish       share no pages\n"
    "  --no-layer-groups  one page for layers with and without a sliding window, all of them kept\n"
    "  --plugin FILE      libskvq_plugin.so; default $SKVQ_PLUGIN, then ../lib of this command\n"
    "what to compute\n"
    "  --prompt TEXT, --prompt-file FILE\n"
    "  --chat             the prompt is one message of a user, in the model's chat template\n"
    "  --ids              nothing: print the prompt's token ids, e.g. for skvqctl why-miss\n"
    "  -n, --predict N    most tokens to generate; default 64\n"
    "  --temp T           0 = greedy (default)\n"
    "  --seed N           of the sampler with --temp; default 0\n"
    "  --threads N        default: one per processor\n"
    "  --ubatch N         prompt tokens computed at once; default 512\n"
    "what to report\n"
    "  --json FILE        the summary as one flat JSON object; - for stdout instead of the text\n"
    "  --compare-plain    let stock llama.cpp do the same and report how far apart they are\n"
    "  --logits-out FILE  raw float32 logits of every generated step\n"
    "  --step-delay-ms N  wait between generated tokens (for tests)\n"
    "  --verbose          let llama.cpp speak on stderr\n"
    "  --help, --version\n";

namespace
{

enum Option {
	opt_model = 256,
	opt_socket,
	opt_embedded,
	opt_plain,
	opt_fallback,
	opt_profile,
	opt_calibration,
	opt_no_calibration,
	opt_window,
	opt_sinks,
	opt_no_match,
	opt_no_publish,
	opt_no_layer_groups,
	opt_plugin,
	opt_prompt,
	opt_prompt_file,
	opt_chat,
	opt_ids,
	opt_temp,
	opt_seed,
	opt_threads,
	opt_ubatch,
	opt_json,
	opt_compare_plain,
	opt_logits_out,
	opt_step_delay,
	opt_verbose,
	opt_version,
};

const option options[] = {
    {"model", required_argument, nullptr, opt_model},
    {"socket", required_argument, nullptr, opt_socket},
    {"embedded", no_argument, nullptr, opt_embedded},
    {"plain", no_argument, nullptr, opt_plain},
    {"fallback", no_argument, nullptr, opt_fallback},
    {"profile", required_argument, nullptr, opt_profile},
    {"calibration", required_argument, nullptr, opt_calibration},
    {"no-calibration", no_argument, nullptr, opt_no_calibration},
    {"window", required_argument, nullptr, opt_window},
    {"sinks", required_argument, nullptr, opt_sinks},
    {"no-match", no_argument, nullptr, opt_no_match},
    {"no-publish", no_argument, nullptr, opt_no_publish},
    {"no-layer-groups", no_argument, nullptr, opt_no_layer_groups},
    {"plugin", required_argument, nullptr, opt_plugin},
    {"prompt", required_argument, nullptr, opt_prompt},
    {"prompt-file", required_argument, nullptr, opt_prompt_file},
    {"chat", no_argument, nullptr, opt_chat},
    {"ids", no_argument, nullptr, opt_ids},
    {"predict", required_argument, nullptr, 'n'},
    {"temp", required_argument, nullptr, opt_temp},
    {"seed", required_argument, nullptr, opt_seed},
    {"threads", required_argument, nullptr, opt_threads},
    {"ubatch", required_argument, nullptr, opt_ubatch},
    {"json", required_argument, nullptr, opt_json},
    {"compare-plain", no_argument, nullptr, opt_compare_plain},
    {"logits-out", required_argument, nullptr, opt_logits_out},
    {"step-delay-ms", required_argument, nullptr, opt_step_delay},
    {"verbose", no_argument, nullptr, opt_verbose},
    {"help", no_argument, nullptr, 'h'},
    {"version", no_argument, nullptr, opt_version},
    {nullptr, 0, nullptr, 0},
};

double temperature(const char *text)
{
	char *end = nullptr;
	const double value = std::strtod(text, &end);
	if (end == text || *end || !std::isfinite(value) || value < 0 || value > 100)
		throw UsageError(std::string("--temp takes a number from 0 to 100, not '") + text +
				 "'");
	return value;
}

void check(const Args &args, int n_modes)
{
	if (args.help || args.version)
		return;
	if (args.model.empty())
		throw UsageError("--model is missing");
	if (n_modes > 1)
		throw UsageError("--socket, --embedded and --plain exclude each other");
	if (!args.calibration.empty() && args.no_calibration)
		throw UsageError("--calibration and --no-calibration exclude each other");
	if (args.fallback && args.mode != Mode::shared)
		throw UsageError("--fallback needs --socket");
}

} // namespace

Args args_parse(int argc, char **argv)
{
	Args args;
	int n_modes = 0, n_prompts = 0;
	const auto mode = [&](Mode value) {
		n_modes += n_modes == 0 || args.mode != value;
		args.mode = value;
	};
	opterr = 0;
	for (int c; (c = getopt_long(argc, argv, "n:h", options, nullptr)) != -1;) {
		switch (c) {
		case opt_model:
			args.model = optarg;
			break;
		case opt_socket:
			mode(Mode::shared);
			args.socket = optarg;
			if (args.socket.empty())
				throw UsageError("--socket takes a path");
			break;
		case opt_embedded:
			mode(Mode::embedded);
			break;
		case opt_plain:
			mode(Mode::plain);
			break;
		case opt_fallback:
			args.fallback = true;
			break;
		case opt_profile:
			args.profile = optarg;
			break;
		case opt_calibration:
			args.calibration = optarg;
			break;
		case opt_no_calibration:
			args.no_calibration = true;
			break;
		case opt_window:
			args.window = skvq::whole("--window", optarg, 0, 1 << 20);
			break;
		case opt_sinks:
			args.sinks = skvq::whole("--sinks", optarg, 0, 1 << 20);
			break;
		case opt_no_match:
			args.no_match = true;
			break;
		case opt_no_publish:
			args.no_publish = true;
			break;
		case opt_no_layer_groups:
			args.no_layer_groups = true;
			break;
		case opt_plugin:
			args.plugin = optarg;
			break;
		case opt_prompt:
			args.prompt = optarg;
			++n_prompts;
			break;
		case opt_prompt_file:
			args.prompt_file = optarg;
			++n_prompts;
			break;
		case opt_chat:
			args.chat = true;
			break;
		case opt_ids:
			args.ids = true;
			break;
		case 'n':
			args.n_predict = skvq::whole("-n", optarg, 1, 1 << 24);
			break;
		case opt_temp:
			args.temperature = temperature(optarg);
			break;
		case opt_seed:
			args.seed = skvq::whole("--seed", optarg, 0, UINT32_MAX);
			break;
		case opt_threads:
			args.n_threads = skvq::whole("--threads", optarg, 1, 512);
			break;
		case opt_ubatch:
			args.n_ubatch = skvq::whole("--ubatch", optarg, 1, 4096);
			break;
		case opt_json:
			args.json = optarg;
			break;
		case opt_compare_plain:
			args.compare_plain = true;
			break;
		case opt_logits_out:
			args.logits_out = optarg;
			break;
		case opt_step_delay:
			args.step_delay_ms = skvq::whole("--step-delay-ms", optarg, 0, 60000);
			break;
		case opt_verbose:
			args.verbose = true;
			break;
		case 'h':
			args.help = true;
			break;
		case opt_version:
			args.version = true;
			break;
		default:
			throw UsageError(
			    std::string("unknown option, or one without its value: '") +
			    argv[optind - 1] + "'");
		}
	}
	if (optind < argc)
		throw UsageError(std::string("what is '") + argv[optind] + "'?");
	check(args, n_modes);
	if (n_prompts != 1 && !args.help && !args.version)
		throw UsageError("exactly one of --prompt and --prompt-file is needed");
	return args;
}
