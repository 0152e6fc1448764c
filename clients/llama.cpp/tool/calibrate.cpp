// SPDX-License-Identifier: Apache-2.0
//
// skvq-calibrate: looks at a model's keys, values and queries once, and writes down how to code them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <thread>

#include <getopt.h>
#include <skvq/json_object.hpp>
#include <unistd.h>

#include <skvq/llama_tools.hpp>
#include <skvq/weights.hpp>

#include "calibration.h"

using namespace skvq;

namespace
{

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;
constexpr uint32_t default_tokens = 4096;

const char usage[] =
    "usage: skvq-calibrate --model FILE.gguf [--text FILE ...] [options]\n"
    "\n"
    "Makes the calibration file of a model: for each head the matrix that lets few bits serve best,\n"
    "which channels share a scale (profiles skvq-...), how much each layer suffers from few bits,\n"
    "and tables of bits by layer (profiles auto-2.1, auto-2.4, auto-3). Without --text the model\n"
    "generates a text itself.\n"
    "\n"
    "  --text FILE         plain text, any kind the model will meet; may be given again. Never the\n"
    "                      text that accuracy is measured on\n"
    "  --tokens N          of the text, at most; default 4096\n"
    "  --context N         positions that sequences will have, as a rule; default: what the model\n"
    "                      was trained for, at most 8192\n"
    "  --output FILE       default: where engines look for it, in $XDG_DATA_HOME or ~/.local/share\n"
    "  --no-sensitivity    matrices and groups only: a minute instead of some; no tables\n"
    "  --bits AVERAGE      one more table, profile auto-AVERAGE: at most so many stored bits a\n"
    "                      number, scales included; e.g. 2.6. May be given again\n"
    "  --f16-weights, --f32-weights, --inject-outliers, --seed N   for the copy of the model that\n"
    "                      skvq-eval measures with the same options\n"
    "  --threads N         default: one per processor\n"
    "  --plugin FILE       libskvq_plugin.so\n"
    "  --json              what was made as one flat JSON object\n"
    "  --quiet             no progress\n"
    "  --verbose           let llama.cpp speak on stderr\n";

struct Args {
	std::string model, output, plugin;
	Weights weights;
	std::vector<std::string> texts, bits;
	uint32_t n_tokens = default_tokens, n_positions = 0;
	uint32_t n_threads = std::max(1u, std::thread::hardware_concurrency());
	bool sensitivity = true, json = false, quiet = false, verbose = false, help = false;
};

Args parse(int argc, char **argv)
{
	const option options[] = {
	    {"model", required_argument, nullptr, 'm'},
	    {"text", required_argument, nullptr, 't'},
	    {"tokens", required_argument, nullptr, 'n'},
	    {"context", required_argument, nullptr, 'c'},
	    {"output", required_argument, nullptr, 'o'},
	    {"no-sensitivity", no_argument, nullptr, 'S'},
	    {"bits", required_argument, nullptr, 'b'},
	    SKVQ_WEIGHTS_OPTIONS,
	    {"threads", required_argument, nullptr, 'T'},
	    {"plugin", required_argument, nullptr, 'P'},
	    {"json", no_argument, nullptr, 'j'},
	    {"quiet", no_argument, nullptr, 'q'},
	    {"verbose", no_argument, nullptr, 'v'},
	    {"help", no_argument, nullptr, 'h'},
	    {nullptr, 0, nullptr, 0},
	};
	Args args;
	opterr = 0;
	for (int c; (c = getopt_long(argc, argv, "h", options, nullptr)) != -1;) {
		if (weights_option(args.weights, c, optarg))
			continue;
		switch (c) {
		case 'm':
			args.model = optarg;
			break;
		case 't':
			args.texts.push_back(optarg);
			break;
		case 'n':
			args.n_tokens = whole("--tokens", optarg, 512, 1 << 22);
			break;
		case 'c':
			args.n_positions = whole("--context", optarg, 1, 1 << 22);
			break;
		case 'o':
			args.output = optarg;
			break;
		case 'S':
			args.sensitivity = false;
			break;
		case 'b':
			args.bits.push_back(optarg);
			break;
		case 'T':
			args.n_threads = whole("--threads", optarg, 1, 512);
			break;
		case 'P':
			args.plugin = optarg;
			break;
		case 'j':
			args.json = true;
			break;
		case 'q':
			args.quiet = true;
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
	if (args.model.empty())
		throw UsageError("--model is missing");
	weights_check(args.weights);
	if (!args.sensitivity && !args.bits.empty())
		throw UsageError("--bits needs sensitivities, --no-sensitivity measures none");
	return args;
}

// One line that is written over on a terminal; elsewhere a line for each quarter.
class Bar
{
      public:
	explicit Bar(bool quiet) : quiet_(quiet), tty_(isatty(STDERR_FILENO)) {}

	void operator()(const char *what, double done)
	{
		if (quiet_)
			return;
		if (what_ != what) {
			what_ = what;
			start_ = seconds_now();
			quarter_ = 0;
		}
		const double spent = seconds_now() - start_;
		const double left = done > 0 ? spent * (1 - done) / done : 0;
		if (tty_) {
			std::string bar(30, '.');
			std::fill_n(bar.begin(), static_cast<int>(30 * done), '#');
			std::fprintf(stderr, "\r%-14s [%s] %3.0f%%, %.0f s left   ", what,
				     bar.c_str(), 100 * done, left);
			if (done >= 1)
				std::fprintf(stderr, "\r%-14s %.1f s%50s\n", what, spent, "");
		} else if (static_cast<int>(4 * done) > quarter_) {
			quarter_ = static_cast<int>(4 * done);
			std::fprintf(stderr, "%s: %.0f%%, %.0f s, %.0f s left\n", what, 100 * done,
				     spent, left);
		}
	}

      private:
	bool quiet_, tty_;
	std::string what_;
	double start_ = 0;
	int quarter_ = 0;
};

// "2.6": stored bits, scales included, to bits of the codes.
struct Target {
	std::string name;
	double code_bits;
};

std::vector<Target> make_targets(const Args &args, uint32_t dim)
{
	// 2.13, 2.38 and 3.0 stored bits at head_dim 64; less for longer heads, whose scales cost
	// less.
	std::vector<Target> targets = {{"auto-2.1", 2.005}, {"auto-2.4", 2.255}, {"auto-3", 2.875}};
	for (const std::string &text : args.bits) {
		char *end = nullptr;
		const double bits = std::strtod(text.c_str(), &end);
		const double code_bits = bits - 8.0 / dim;
		if (end == text.c_str() || *end || !(code_bits >= 1.8 && code_bits <= 4))
			throw UsageError("--bits takes an average from " +
					 std::to_string(1.8 + 8.0 / dim) + " to " +
					 std::to_string(4 + 8.0 / dim) + ", not '" + text + "'");
		const std::string name = "auto-" + text;
		targets.erase(std::remove_if(targets.begin(), targets.end(),
					     [&](const Target &t) { return t.name == name; }),
			      targets.end());
		targets.push_back({name, code_bits});
	}
	return targets;
}

std::string text_name(const std::vector<std::string> &paths)
{
	std::string name;
	for (const std::string &path : paths)
		name += (name.empty() ? "" : ", ") + path.substr(path.rfind('/') + 1);
	return name;
}

void report(const Args &args, const skvq_calibration &c, const std::string &output, double seconds)
{
	const skvq_calibration_header &h = c.header;
	const bool known = h.flags & SKVQ_CALIBRATION_HAS_SENSITIVITY;
	const bool grouped = h.flags & SKVQ_CALIBRATION_HAS_GROUPS;
	if (!args.json) {
		std::printf("%s\n  %u layers, %u KV heads of %u channels; %u tokens, %s; %.1f s\n",
			    output.c_str(), h.n_layer, h.n_kv_heads, h.head_dim_k, h.n_tokens, h.text,
			    seconds);
		if (grouped)
			std::printf("  channel groups for profiles skvq-...\n");
		for (uint32_t i = 0; i < h.n_tables; ++i)
			std::printf("  %-10s %.3f bits a number\n", skvq_calibration_table_at(&c, i)->name,
				    static_cast<double>(skvq_calibration_table_at(&c, i)->average));
		return;
	}
	JsonObject json;
	json.text("output", output);
	json.text("text", h.text);
	json.whole("tokens", h.n_tokens);
	json.real("seconds", seconds);
	json.whole("bytes", h.file_bytes);
	std::vector<uint32_t> groups;
	for (uint32_t i = 0; grouped && i < SKVQ_CALIBRATION_GROUP_SIZES; ++i)
		groups.push_back(SKVQ_CALIBRATION_GROUP_SIZE(i));
	json.list("groups", groups);
	for (uint32_t i = 0; i < h.n_tables; ++i)
		json.real(skvq_calibration_table_at(&c, i)->name,
			  static_cast<double>(skvq_calibration_table_at(&c, i)->average));
	for (int is_v = 0; is_v < 2; ++is_v) {
		std::vector<double> errors, sensitivities;
		for (uint32_t i = 0; i < h.n_layer; ++i) {
			const skvq_calibration_layer *layer = skvq_calibration_layer_of(&c, i);
			errors.push_back(static_cast<double>(layer->error[is_v][3]));
			sensitivities.push_back(static_cast<double>(layer->sensitivity[is_v]));
		}
		json.list(is_v ? "error_2bit_v" : "error_2bit_k", errors);
		if (known)
			json.list(is_v ? "sensitivity_v" : "sensitivity_k", sensitivities);
	}
	json.write(stdout, "stdout");
}

void run(const Args &args)
{
	llama_setup(args.verbose);
	const double start = seconds_now();
	const Model model(weights_copy(args.model, args.weights, args.n_threads), true);
	const std::string output =
	    args.output.empty() ? calibration_path(digest_file(model.path())) : args.output;
	if (output.empty())
		throw std::runtime_error("there is neither XDG_DATA_HOME nor HOME: name an --output");
	Bar bar(args.quiet);
	CalibrateOptions options;
	options.plugin_path = args.plugin;
	options.n_threads = args.n_threads;
	options.n_tokens = args.n_tokens;
	options.n_positions = args.n_positions;
	options.progress = [&](const char *what, double done) { bar(what, done); };
	if (args.texts.empty()) {
		options.text = generate_text(model.get(), options);
		options.text_name = "generated by the model";
	}
	for (const std::string &path : args.texts) {
		const auto tokens = model.tokenize(read_file(path, "text"), false);
		options.text.insert(options.text.end(), tokens.begin(), tokens.end());
		options.text_name = text_name(args.texts);
	}
	const auto targets = make_targets(
	    args, static_cast<uint32_t>(llama_model_n_embd(model.get()) /
					std::max(1, llama_model_n_head(model.get()))));
	CalibrationBytes file = calibrate(model.get(), model.path(), options);
	if (args.sensitivity) {
		std::vector<skvq_calibrate_target> list;
		for (const Target &target : targets)
			list.push_back({target.name.c_str(), target.code_bits});
		file = calibrate_tables(model.get(), model.path(), options, file, list);
	}
	(void)calibration_write(output, file, true);
	skvq_calibration opened;
	char why[256];
	if (skvq_calibration_open(file.data(), file.size(), &opened, why, sizeof why) < 0)
		throw std::runtime_error(why);
	report(args, opened, output, seconds_now() - start);
}

} // namespace

int main(int argc, char **argv)
{
	try {
		const Args args = parse(argc, argv);
		if (args.help)
			std::fputs(usage, stdout);
		else
			run(args);
		return 0;
	} catch (const UsageError &e) {
		std::fprintf(stderr, "skvq-calibrate: %s; see --help\n", e.what());
		return exit_usage;
	} catch (const std::exception &e) {
		std::fprintf(stderr, "skvq-calibrate: %s\n", e.what());
		return exit_failed;
	}
}
