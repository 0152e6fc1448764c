// SPDX-License-Identifier: Apache-2.0
//
// bench-decode: tokens a second of llama.cpp with its K/V in skvqd (the skvq client, embedded,
// whole decode steps) and of stock llama.cpp with F16, q8_0 and q4_0 caches, at growing contexts.
//
// Real prefill of long contexts takes stock llama.cpp many minutes. So a block of a document is
// computed for real by each of the four; then it is repeated until the cache is full, its keys
// moved to their positions: by llama.cpp's own K shift there, by a plugin in front of the plugin
// here. From then on all is real: K/V of new tokens are computed, encoded and attended to as ever.
// Before timing, next-token distributions of both sides are compared.
//
// With --ggml-backend stock llama.cpp runs once more, F16, with that backend loaded into it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <getopt.h>
#include <time.h>
#include <unistd.h>

#include <ggml-backend.h>
#include <jansson.h>

#include <skvq/llama_tools.hpp>

#include "fill.h"
#include "model_copy.h"
#include "plain.h"

using namespace skvq;

namespace
{

constexpr char help[] =
    "usage: bench-decode --model FILE [options]\n\n"
    "  --model FILE         a GGUF of an architecture the skvq client knows\n"
    "  --prompt-file FILE   text of the repeated block; default: made-up tokens\n"
    "  --quick              1k and 8k tokens, one thread, 3 rounds\n"
    "  --contexts A,B,...   in 1,024 tokens; default 1,8,16,32\n"
    "  --threads A,B,...    default 1,2\n"
    "  --rounds N           default 5\n"
    "  --steps N            tokens decoded in a round; default 16 at 1k, fewer at more\n"
    "  --block N            tokens computed for real, then repeated; default 512\n"
    "  --profile P          default k2v1.5\n"
    "  --ggml-backend FILE  libggml-skvq.so: stock llama.cpp with it, too\n"
    "  --json               the last line is one flat object: tokens_per_s_<who>_<n>k and\n"
    "                       tokens_per_s_ratio_<type>_<n>k for who = skvq, f16, q8_0, q4_0 and\n"
    "                       type = f16, q8_0, q4_0; kld_f16_<n>k; with more than one thread the\n"
    "                       keys end in _t<threads>; with --ggml-backend also\n"
    "                       tokens_per_s_ggml_<n>k, ggml_ratio_f16_<n>k, kld_ggml_<n>k\n";

constexpr uint32_t step_room = 2048; // positions for steps, behind the longest context
// Of the next token, from F16: far above what a codec costs, far below unrelated distributions.
constexpr double kld_max = 6;

struct Options {
	std::string model, prompt_file, ggml_backend, profile = "k2v1.5";
	std::vector<uint32_t> contexts{1, 8, 16, 32}, threads{1, 2};
	uint32_t rounds = 5, steps = 0, block = 512;
	bool json = false;
};

struct CacheType {
	const char *name;
	ggml_type type;
};
constexpr CacheType cache_types[] = {
    {"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}};
constexpr size_t n_types = sizeof cache_types / sizeof *cache_types;

// With one thread the CPU time of this one, so that other work on the machine is not counted.
double now_s(bool wall)
{
	timespec t{};
	(void)clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
	return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

std::string beside(const std::string &name)
{
	char self[4096];
	const ssize_t n = readlink("/proc/self/exe", self, sizeof self);
	if (n < 0)
		throw std::runtime_error("/proc/self/exe cannot be read");
	std::string path(self, static_cast<size_t>(n));
	path.resize(path.rfind('/'));
	return path + "/" + name;
}

double median(std::vector<double> values)
{
	std::sort(values.begin(), values.end());
	const size_t n = values.size();
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// The plugin in front of the plugin.
class FillPlugin
{
      public:
	FillPlugin() : path_(beside("../lib/libskvq_bench_fill.so"))
	{
		void *so = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
		if (!so)
			throw std::runtime_error(dlerror());
		fn_ = reinterpret_cast<bench_fill_fn>(dlsym(so, "bench_fill"));
		const char *env = std::getenv("SKVQ_PLUGIN");
		real_ = env && *env ? env : beside("../lib/libskvq_plugin.so");
	}
	void set(uint32_t block)
	{
		if (!fn_ || fn_(real_.c_str(), block) < 0)
			throw std::runtime_error("the plugin '" + real_ + "' cannot be used");
	}
	const std::string &path() const
	{
		return path_;
	}

      private:
	std::string path_, real_;
	bench_fill_fn fn_ = nullptr;
};

class Bench
{
      public:
	explicit Bench(const Options &options);
	void run();
	json_t *object()
	{
		return object_.get();
	}

      private:
	std::unique_ptr<Client> open_client(uint32_t n_threads);
	void record();
	void load_backend();
	void measure(uint32_t context_k, uint32_t n_threads, Client &client);
	void put(const std::string &key, double value)
	{
		json_object_set_new(object_.get(), key.c_str(), json_real(value));
	}

	Options options_;
	uint32_t tokens_max_;
	ModelCopy copy_;
	Model model_;
	FillPlugin plugin_;
	std::vector<int32_t> block_;
	std::unique_ptr<Filled> plains_[n_types];
	struct Decref {
		void operator()(json_t *o) const
		{
			json_decref(o);
		}
	};
	std::unique_ptr<json_t, Decref> object_;
};

Bench::Bench(const Options &options)
    : options_(options),
      tokens_max_(*std::max_element(options.contexts.begin(), options.contexts.end()) * 1024 +
		  step_room),
      copy_(options.model, tokens_max_), model_(copy_.path(), true), object_(json_object())
{
	if (!options_.prompt_file.empty())
		block_ = model_.tokenize(read_file(options_.prompt_file, "prompt file"), false);
	for (uint32_t x = 1; block_.size() < options_.block; x = x * 1103515245u + 12345u)
		block_.push_back(static_cast<int32_t>((x >> 8) % model_.n_vocab()));
	block_.resize(options_.block);
}

std::unique_ptr<Client> Bench::open_client(uint32_t n_threads)
{
	skvq_llama_options o{};
	o.struct_size = sizeof o;
	o.flags = SKVQ_LLAMA_NO_MATCH | SKVQ_LLAMA_NO_PUBLISH | SKVQ_LLAMA_NO_CALIBRATION;
	o.plugin_path = plugin_.path().c_str();
	o.profile = options_.profile.c_str();
	o.engine_name = "bench-decode";
	o.window = o.sinks = SKVQ_DEFAULT;
	o.n_ubatch = options_.block;
	o.n_threads = n_threads;
	o.max_tokens = tokens_max_;
	return std::make_unique<Client>(model_, o);
}

void Bench::record()
{
	const uint32_t n_threads =
	    *std::max_element(options_.threads.begin(), options_.threads.end());
	plugin_.set(options_.block);
	{
		const std::unique_ptr<Client> client = open_client(n_threads);
		client->begin(block_);
		client->prefill(block_.data(), options_.block);
	}
	plugin_.set(0);
	for (size_t i = 0; i < n_types; ++i) {
		plains_[i] = std::make_unique<Filled>(model_, cache_types[i].type, tokens_max_,
						      options_.block, n_threads);
		plains_[i]->record(block_);
	}
}

// Contexts that were made before know nothing of it.
void Bench::load_backend()
{
	if (options_.ggml_backend.empty())
		return;
	(void)setenv("SKVQ_GGML_PROFILE", options_.profile.c_str(), 1);
	if (!ggml_backend_load(options_.ggml_backend.c_str()))
		throw std::runtime_error("ggml does not take '" + options_.ggml_backend + "'");
}

void Bench::measure(uint32_t context_k, uint32_t n_threads, Client &client)
{
	const uint32_t n = context_k * 1024;
	const uint32_t n_steps = options_.steps   ? options_.steps
				 : context_k <= 1 ? 16
				 : context_k <= 8 ? 8
						  : 4;
	const bool wall = n_threads > 1;
	std::vector<int32_t> prompt;
	while (prompt.size() < n)
		prompt.insert(prompt.end(), block_.begin(), block_.end());
	prompt.resize(n);
	prompt.push_back(block_.front());
	if (client.begin(prompt) != n)
		throw std::runtime_error("the skvq client was not filled");
	client.prefill(&prompt.back(), 1);
	for (const auto &plain : plains_) {
		plain->threads(n_threads);
		plain->fill(n);
		plain->decode(&prompt.back(), 1);
	}
	double kld_backed = 0;
	std::unique_ptr<Filled> backed;
	if (!options_.ggml_backend.empty()) {
		// A new context: one into which states are loaded again and again is left to ggml for a while.
		backed = std::make_unique<Filled>(model_, GGML_TYPE_F16, tokens_max_, options_.block,
						  n_threads);
		backed->record(block_);
		backed->fill(n);
		backed->decode(&prompt.back(), 1);
		kld_backed =
		    kl_divergence(plains_[0]->logits(), backed->logits(), model_.n_vocab());
	}
	const double kld = kl_divergence(plains_[0]->logits(), client.logits(-1), model_.n_vocab());
	if (!(kld <= kld_max) || !(kld_backed <= kld_max))
		throw std::runtime_error("the next token's distribution is " +
					 std::to_string(std::max(kld, kld_backed)) +
					 " nats from llama.cpp's: nothing was measured");

	// Everybody decodes the same tokens; one step each to warm up.
	std::vector<double> s[n_types + 2];
	uint32_t at = 1;
	for (uint32_t round = 0; round <= options_.rounds; ++round) {
		const uint32_t steps = round ? n_steps : 1;
		for (size_t who = 0; who < n_types + (backed ? 2 : 1); ++who) {
			Filled *plain = who == 0        ? nullptr
					: who <= n_types ? plains_[who - 1].get()
							 : backed.get();
			const double start = now_s(wall);
			for (uint32_t i = 0; i < steps; ++i) {
				const int32_t *token = &block_[(at + i) % options_.block];
				if (plain)
					plain->decode(token, 1);
				else
					client.decode(token, 1, false);
			}
			if (round)
				s[who].push_back((now_s(wall) - start) / steps);
		}
		at += steps;
	}

	const std::string suffix =
	    "_" + std::to_string(context_k) + "k" +
	    (n_threads > 1 ? "_t" + std::to_string(n_threads) : std::string());
	const double ours = 1 / median(s[0]);
	put("tokens_per_s_skvq" + suffix, ours);
	put("kld_f16" + suffix, kld);
	std::printf("%4uk %7u | %8.2f [%7.2f %7.2f] |", context_k, n_threads, ours,
		    1 / *std::max_element(s[0].begin(), s[0].end()),
		    1 / *std::min_element(s[0].begin(), s[0].end()));
	for (size_t i = 0; i < n_types; ++i) {
		std::vector<double> ratios;
		for (uint32_t r = 0; r < options_.rounds; ++r)
			ratios.push_back(s[i + 1][r] / s[0][r]);
		const double theirs = 1 / median(s[i + 1]), ratio = median(ratios);
		put("tokens_per_s_" + std::string(cache_types[i].name) + suffix, theirs);
		put("tokens_per_s_ratio_" + std::string(cache_types[i].name) + suffix, ratio);
		std::printf(" %7.2f %5.2f x [%5.2f %5.2f]", theirs, ratio,
			    *std::min_element(ratios.begin(), ratios.end()),
			    *std::max_element(ratios.begin(), ratios.end()));
	}
	std::printf(" | %.3f", kld);
	if (backed) {
		std::vector<double> ratios;
		for (uint32_t r = 0; r < options_.rounds; ++r)
			ratios.push_back(s[1][r] / s[n_types + 1][r]);
		const double with = 1 / median(s[n_types + 1]), ratio = median(ratios);
		put("tokens_per_s_ggml" + suffix, with);
		put("ggml_ratio_f16" + suffix, ratio);
		put("kld_ggml" + suffix, kld_backed);
		std::printf(" | %7.2f, %5.2f x f16 [%5.2f %5.2f], KLD %.3f", with, ratio,
			    *std::min_element(ratios.begin(), ratios.end()),
			    *std::max_element(ratios.begin(), ratios.end()), kld_backed);
	}
	std::putchar('\n');
	std::fflush(stdout);
}

void Bench::run()
{
	json_object_set_new(object(), "profile", json_string(options_.profile.c_str()));
	put("rounds", options_.rounds);
	std::printf("tokens/s, medians [min max] of %u rounds; CPU time with one thread, wall time "
		    "with more\n\n%5s %7s | %26s | %-29s %-29s %-29s | %s\n",
		    options_.rounds, "ctx", "threads", ("skvq " + options_.profile).c_str(),
		    "llama.cpp f16: x ours", "q8_0", "q4_0",
		    options_.ggml_backend.empty() ? "KLD f16" : "KLD f16 | f16 with the backend");
	std::fflush(stdout);
	record();
	std::vector<std::unique_ptr<Client>> clients;
	for (const uint32_t n_threads : options_.threads)
		clients.push_back(open_client(n_threads));
	load_backend();
	for (size_t i = 0; i < clients.size(); ++i) {
		for (const uint32_t context_k : options_.contexts)
			measure(context_k, options_.threads[i], *clients[i]);
		clients[i].reset();
	}
}

std::vector<uint32_t> list(const char *name, const char *text, uint32_t max)
{
	std::vector<uint32_t> values;
	std::string rest = text;
	for (;;) {
		const size_t comma = rest.find(',');
		values.push_back(whole(name, rest.substr(0, comma).c_str(), 1, max));
		if (comma == std::string::npos)
			return values;
		rest.erase(0, comma + 1);
	}
}

// False: --help.
bool parse(int argc, char **argv, Options &options)
{
	static const option known[] = {{"model", required_argument, nullptr, 'm'},
				       {"prompt-file", required_argument, nullptr, 'f'},
				       {"quick", no_argument, nullptr, 'q'},
				       {"contexts", required_argument, nullptr, 'c'},
				       {"threads", required_argument, nullptr, 't'},
				       {"rounds", required_argument, nullptr, 'r'},
				       {"steps", required_argument, nullptr, 's'},
				       {"block", required_argument, nullptr, 'b'},
				       {"profile", required_argument, nullptr, 'p'},
				       {"ggml-backend", required_argument, nullptr, 'g'},
				       {"json", no_argument, nullptr, 'j'},
				       {"help", no_argument, nullptr, 'h'},
				       {}};
	int opt;
	while ((opt = getopt_long(argc, argv, "h", known, nullptr)) != -1) {
		switch (opt) {
		case 'm':
			options.model = optarg;
			break;
		case 'f':
			options.prompt_file = optarg;
			break;
		case 'q':
			options.contexts = {1, 8};
			options.threads = {1};
			options.rounds = 3;
			break;
		case 'c':
			options.contexts = list("--contexts", optarg, 1024);
			break;
		case 't':
			options.threads = list("--threads", optarg, 256);
			break;
		case 'r':
			options.rounds = whole("--rounds", optarg, 1, 100);
			break;
		case 's':
			options.steps = whole("--steps", optarg, 1, 64);
			break;
		case 'b':
			options.block = whole("--block", optarg, 32, 4096);
			break;
		case 'p':
			options.profile = optarg;
			break;
		case 'g':
			options.ggml_backend = optarg;
			break;
		case 'j':
			options.json = true;
			break;
		case 'h':
			return false;
		default:
			throw UsageError("see --help");
		}
	}
	if (optind < argc || options.model.empty())
		throw UsageError(optind < argc ? "too many arguments; see --help"
					       : "--model is missing; see --help");
	if (options.rounds * (options.steps ? options.steps : 16) + 2 > step_room)
		throw UsageError("rounds times steps is more than " + std::to_string(step_room));
	return true;
}

} // namespace

int main(int argc, char **argv)
{
	Options options;
	try {
		if (!parse(argc, argv, options)) {
			std::fputs(help, stdout);
			return 0;
		}
		llama_setup(false);
		Bench bench(options);
		bench.run();
		if (options.json) {
			if (json_dumpf(bench.object(), stdout,
				       JSON_COMPACT | JSON_REAL_PRECISION(6)) < 0)
				throw std::runtime_error("cannot print the JSON object");
			std::putchar('\n');
		}
	} catch (const UsageError &e) {
		std::fprintf(stderr, "bench-decode: %s\n", e.what());
		return 2;
	} catch (const std::exception &e) {
		std::fprintf(stderr, "bench-decode: %s\n", e.what());
		return 1;
	}
	return 0;
}
