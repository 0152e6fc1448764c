// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

using namespace skvq;

namespace
{

// --compare-plain keeps the logits of every step; more than this is refused.
constexpr uint64_t logits_bytes_max = uint64_t{2} << 30;
// How long pages may take to reach the daemon after the last token.
constexpr double publish_wait_s = 5;

struct SamplerDeleter {
	void operator()(llama_sampler *sampler) const
	{
		llama_sampler_free(sampler);
	}
};
using Sampler = std::unique_ptr<llama_sampler, SamplerDeleter>;

Sampler make_sampler(double temperature, uint32_t seed)
{
	Sampler chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
	if (temperature > 0) {
		llama_sampler_chain_add(chain.get(),
					llama_sampler_init_temp(static_cast<float>(temperature)));
		llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(seed));
	} else {
		llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
	}
	return chain;
}

// What every step of a generation is told to.
struct Steps {
	FILE *out = nullptr; // logits
	bool keep = false;   // logits
	bool print = false;  // text
	uint32_t delay_ms = 0;
	uint32_t n_vocab = 0;
	std::vector<float> kept; // [step][n_vocab]
};

struct Generated {
	std::vector<int32_t> tokens;
	std::string text;
	bool ended = false;
	double ttft_s = 0, tokens_per_s = 0;
	uint32_t matched = 0;
};

void take_logits(Steps &steps, const float *logits)
{
	if (!logits)
		throw std::runtime_error("llama.cpp gave no logits");
	if (steps.keep)
		steps.kept.insert(steps.kept.end(), logits, logits + steps.n_vocab);
	if (steps.out &&
	    std::fwrite(logits, sizeof *logits, steps.n_vocab, steps.out) != steps.n_vocab)
		throw std::runtime_error(std::string("cannot write the logits: ") +
					 std::strerror(errno));
}

// The prompt, then up to n tokens. The time to the first token starts before the cache is asked.
Generated generate(Engine &engine, const Model &model, const std::vector<int32_t> &prompt,
		   uint32_t n, llama_sampler *sampler, Steps &steps)
{
	Generated got;
	const double start = seconds_now();
	got.matched = engine.begin(prompt);
	const uint32_t n_rest = static_cast<uint32_t>(prompt.size()) - got.matched;
	engine.prefill(prompt.data() + got.matched, n_rest);
	int32_t token = llama_sampler_sample(sampler, engine.context(), -1);
	got.ttft_s = seconds_now() - start;

	double busy_s = 0;
	uint32_t n_steps = 0;
	for (;;) {
		take_logits(steps, engine.logits(-1));
		if (llama_vocab_is_eog(model.vocab(), token)) {
			got.ended = true;
			break;
		}
		const std::string piece = model.piece(token);
		got.tokens.push_back(token);
		got.text += piece;
		if (steps.print) {
			std::fwrite(piece.data(), 1, piece.size(), stdout);
			std::fflush(stdout);
		}
		if (got.tokens.size() == n)
			break;
		if (steps.delay_ms)
			std::this_thread::sleep_for(std::chrono::milliseconds(steps.delay_ms));
		const double step_start = seconds_now();
		(void)engine.poll();
		engine.decode(&token, 1, false);
		token = llama_sampler_sample(sampler, engine.context(), -1);
		busy_s += seconds_now() - step_start;
		++n_steps;
	}
	got.tokens_per_s = busy_s > 0 ? n_steps / busy_s : 0;
	return got;
}

// Stock llama.cpp answers by itself; then it is led along our answer, and at each step its
// next-token distribution is compared with ours. As long as both agree one computation serves both.
void compare_plain(const Model &model, const std::vector<int32_t> &prompt, uint32_t n,
		   const PlainOptions &options, const Steps &ours, Result &result)
{
	Plain plain(model, options);
	Sampler sampler = make_sampler(0, 0);
	Steps steps;
	steps.keep = true;
	steps.n_vocab = ours.n_vocab;
	const Generated own = generate(plain, model, prompt, n, sampler.get(), steps);

	const size_t n_vocab = ours.n_vocab;
	const size_t n_steps = ours.kept.size() / n_vocab;
	const size_t n_own = steps.kept.size() / n_vocab;
	const auto first_other = std::mismatch(own.tokens.begin(), own.tokens.end(),
					       result.token_ids.begin(), result.token_ids.end());
	const size_t n_same = static_cast<size_t>(first_other.first - own.tokens.begin());
	// Step i is conditioned on the answer's first i tokens.
	const size_t n_reused = std::min({n_steps, n_own, n_same + 1});
	for (size_t i = 0; i < n_reused; ++i)
		result.divergence.add(&steps.kept[i * n_vocab], &ours.kept[i * n_vocab],
				      ours.n_vocab);
	plain.truncate(static_cast<uint32_t>(prompt.size() + n_reused - 1));
	for (size_t i = n_reused; i < n_steps; ++i) {
		plain.decode(&result.token_ids[i - 1], 1, false);
		result.divergence.add(plain.logits(-1), &ours.kept[i * n_vocab], ours.n_vocab);
	}
	result.compared = true;
	result.plain_text = own.text;
	result.ttft_plain_s = own.ttft_s;
	result.tokens_per_s_plain = own.tokens_per_s;
}

std::unique_ptr<Client> open_client(const Args &args, const Model &model, uint32_t n_threads,
				    uint32_t max_tokens)
{
	skvq_llama_options options{};
	options.struct_size = sizeof options;
	options.flags = (args.fallback ? SKVQ_LLAMA_FALLBACK : 0) |
			(args.no_match ? SKVQ_LLAMA_NO_MATCH : 0) |
			(args.no_publish ? SKVQ_LLAMA_NO_PUBLISH : 0) |
			(args.no_calibration ? SKVQ_LLAMA_NO_CALIBRATION : 0) |
			(args.no_layer_groups ? SKVQ_LLAMA_NO_LAYER_GROUPS : 0);
	options.calibration_path = args.calibration.empty() ? nullptr : args.calibration.c_str();
	options.plugin_path = args.plugin.empty() ? nullptr : args.plugin.c_str();
	options.socket = args.mode == Mode::shared ? args.socket.c_str() : nullptr;
	options.profile = args.profile.empty() ? nullptr : args.profile.c_str();
	options.engine_name = "skvq-llama";
	options.window = args.window;
	options.sinks = args.sinks;
	options.n_ubatch = args.n_ubatch;
	options.n_threads = n_threads;
	options.max_tokens = max_tokens;
	options.log = [](void *, int32_t level, const char *text) {
		if (level >= SKVQ_LOG_WARNING)
			std::fprintf(stderr, "skvq-llama: %s\n", text);
	};
	auto client = std::make_unique<Client>(model, options);
	if (skvq_llama_fell_back(client->get()))
		std::fprintf(stderr, "skvq-llama: no skvqd at '%s': going on embedded\n",
			     args.socket.c_str());
	return client;
}

void wait_published(Client &client)
{
	const double deadline = seconds_now() + publish_wait_s;
	while (!client.poll() && seconds_now() < deadline)
		std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

void report_usage(const Client &client, Result &result)
{
	const skvq_llama_usage usage = client.usage();
	const uint64_t page_bytes = usage.bytes_local - usage.bytes_window + usage.bytes_shared;
	result.daemon = usage.daemon == 0 ? "none" : usage.daemon == 1 ? "attached" : "lost";
	result.mode = usage.daemon == 0 ? "embedded" : "shared";
	result.profile = skvq_llama_profile(client.get());
	result.calibration = skvq_llama_calibration(client.get());
	result.numerics = skvq_llama_numerics(client.get());
	result.kv_bytes_fp16 = usage.bytes_fp16;
	result.kv_bytes_local = usage.bytes_local;
	result.kv_bytes_window = usage.bytes_window;
	result.kv_bytes_shared = usage.bytes_shared;
	result.kv_bytes_engine = usage.bytes_engine;
	result.paged_tokens = usage.n_paged;
	result.bytes_per_token =
	    usage.n_paged ? static_cast<double>(page_bytes) / usage.n_paged : 0;
	result.attend_s = usage.attend_s;
	result.append_s = usage.append_s;
	result.commit_s = usage.commit_s;
}

void report_plain(const Model &model, uint32_t n_tokens, uint32_t n_cells, Result &result)
{
	result.mode = "plain";
	result.daemon = "none";
	result.profile = "fp16";
	result.calibration = "not used";
	result.kv_bytes_fp16 = model.kv_bytes_per_token_fp16() * n_tokens;
	result.kv_bytes_local = result.kv_bytes_fp16;
	result.kv_bytes_engine = model.kv_bytes_per_token_fp16() * n_cells;
	result.bytes_per_token = static_cast<double>(model.kv_bytes_per_token_fp16());
}

std::vector<int32_t> tokenize_prompt(const Args &args, const Model &model)
{
	const std::string text =
	    args.prompt_file.empty() ? args.prompt : read_file(args.prompt_file, "prompt file");
	if (text.empty())
		throw std::runtime_error(args.prompt_file.empty()
					     ? "the prompt is empty"
					     : "prompt file '" + args.prompt_file + "' is empty");
	std::vector<int32_t> tokens =
	    model.tokenize(args.chat ? model.chat(text) : text, args.chat);
	if (tokens.empty())
		throw std::runtime_error("the prompt is empty: it has no tokens");
	return tokens;
}

std::vector<int32_t> make_prompt(const Args &args, const Model &model)
{
	std::vector<int32_t> tokens = tokenize_prompt(args, model);
	if (tokens.size() >= model.n_ctx_train())
		throw std::runtime_error(
		    "the prompt's " + std::to_string(tokens.size()) +
		    " tokens leave no room in the " + std::to_string(model.n_ctx_train()) +
		    " tokens of context that '" + model.path() + "' was trained for");
	return tokens;
}

} // namespace

void print_ids(const Args &args)
{
	llama_setup(args.verbose);
	const Model model(args.model, false, true);
	const char *between = "[";
	for (const int32_t token : tokenize_prompt(args, model)) {
		std::printf("%s%d", between, token);
		between = ", ";
	}
	std::puts("]");
	if (std::fflush(stdout) != 0)
		throw std::runtime_error(std::string("cannot write the token ids: ") +
					 std::strerror(errno));
}

Result run(const Args &args, bool quiet)
{
	llama_setup(args.verbose);
	const double start = seconds_now();
	const Model model(args.model, args.mode != Mode::plain);
	const std::vector<int32_t> prompt = make_prompt(args, model);
	const uint32_t n_prompt = static_cast<uint32_t>(prompt.size());
	const uint32_t n = std::min(args.n_predict, model.n_ctx_train() - n_prompt);
	if (n < args.n_predict)
		std::fprintf(stderr,
			     "skvq-llama: generating at most %u tokens, as the model was trained "
			     "for %u in all\n",
			     n, model.n_ctx_train());

	std::unique_ptr<FILE, int (*)(FILE *)> logits(nullptr, std::fclose);
	if (!args.logits_out.empty()) {
		logits.reset(std::fopen(args.logits_out.c_str(), "wb"));
		if (!logits)
			throw std::runtime_error("cannot write '" + args.logits_out +
						 "': " + std::strerror(errno));
	}
	Steps steps;
	steps.out = logits.get();
	steps.keep = args.compare_plain;
	steps.print = !quiet;
	steps.delay_ms = args.step_delay_ms;
	steps.n_vocab = model.n_vocab();
	if (steps.keep && uint64_t{n} * steps.n_vocab * sizeof(float) > logits_bytes_max)
		throw std::runtime_error(
		    "--compare-plain keeps the logits of every step, and those of " +
		    std::to_string(n) + " steps are more than 2 GiB; lower -n");

	PlainOptions plain;
	plain.n_ctx = n_prompt + n;
	plain.n_ubatch = std::min(args.n_ubatch, plain.n_ctx);
	plain.n_threads =
	    args.n_threads ? args.n_threads : std::max(1u, std::thread::hardware_concurrency());

	std::unique_ptr<Client> client;
	std::unique_ptr<Engine> stock;
	if (args.mode == Mode::plain)
		stock = std::make_unique<Plain>(model, plain);
	else
		client = open_client(args, model, plain.n_threads, n_prompt + n);
	Engine &engine = client ? static_cast<Engine &>(*client) : *stock;

	Result result;
	result.load_s = seconds_now() - start;
	Sampler sampler = make_sampler(args.temperature, args.seed);
	Generated got = generate(engine, model, prompt, n, sampler.get(), steps);
	result.prompt_tokens = n_prompt;
	result.matched_tokens = got.matched;
	result.ttft_s = got.ttft_s;
	result.tokens_per_s = got.tokens_per_s;
	result.ended = got.ended;
	result.text = std::move(got.text);
	result.token_ids = std::move(got.tokens);
	result.bytes_per_token_fp16 = static_cast<double>(model.kv_bytes_per_token_fp16());
	if (client) {
		wait_published(*client);
		report_usage(*client, result);
	} else {
		report_plain(model, engine.position(), llama_n_ctx(engine.context()), result);
	}
	if (logits && std::fclose(logits.release()) != 0)
		throw std::runtime_error("cannot write '" + args.logits_out +
					 "': " + std::strerror(errno));
	if (args.compare_plain) {
		client.reset(); // its memory first
		stock.reset();
		compare_plain(model, prompt, n, plain, steps, result);
	}
	return result;
}
