// SPDX-License-Identifier: Apache-2.0
//
// How much a model's predictions suffer when one layer's keys or values alone are coded in 2 bits:
// one short run for each, with the codecs and the attention that engines will use.
#include "calibration.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "client.h"
#include "error.h"

namespace skvq
{

namespace
{

constexpr uint32_t run_tokens = 640; // sixty runs and more: each must be short
constexpr uint32_t first_scored = 256; // before it there is little but window
constexpr uint32_t chunk_tokens = 64;  // what leaves the window is coded between chunks
constexpr uint32_t rows_scored = 384;
// Rounding alone moves a prediction: llama.cpp codes activations in 8 bits, and whatever changes in a
// layer is amplified by those behind it. So much is measured at some layers and taken off.
constexpr uint32_t floor_layers = 5;
constexpr uint64_t reference_bytes_max = uint64_t{256} << 20;

double log_sum_exp(const float *x, uint32_t n)
{
	const float max = *std::max_element(x, x + n);
	double sum = 0;
	for (uint32_t i = 0; i < n; ++i)
		sum += static_cast<double>(std::exp(x[i] - max));
	return static_cast<double>(max) + std::log(sum);
}

double interpolate(const std::vector<std::pair<double, double>> &points, double x)
{
	for (size_t i = 1; i < points.size(); ++i) {
		const double from = points[i - 1].first, to = points[i].first;
		if (x <= to && to > from)
			return points[i - 1].second +
			       (x - from) / (to - from) * (points[i].second - points[i - 1].second);
	}
	return points.back().second;
}

// Runs a text and compares with the first run of it.
class Runs
{
      public:
	Runs(skvq_llama &client, const std::vector<int32_t> &text, uint32_t n_vocab)
	    : client_(client), text_(text), n_vocab_(n_vocab)
	{
		const uint32_t n_chunks =
		    static_cast<uint32_t>((text.size() - first_scored) / chunk_tokens);
		const uint64_t rows_max = std::min<uint64_t>(
		    rows_scored, reference_bytes_max / (n_vocab * sizeof(float)));
		const uint32_t want = std::clamp<uint32_t>(
		    static_cast<uint32_t>(rows_max / chunk_tokens), 1, n_chunks);
		for (uint32_t i = 0; i < want; ++i) // spread, the last chunk among them
			scored_.push_back(first_scored +
					  ((i + 1) * n_chunks / want - 1) * chunk_tokens);
	}

	// Mean KLD in nats against the first run.
	double run(const uint8_t *bit_table)
	{
		client_.register_model(bit_table);
		(void)client_.begin(nullptr, 0);
		double sum = 0;
		size_t row = 0;
		for (uint32_t at = 0; at < text_.size(); at += chunk_tokens) {
			const uint32_t n = std::min<uint32_t>(
			    chunk_tokens, static_cast<uint32_t>(text_.size()) - at);
			const bool scored =
			    std::find(scored_.begin(), scored_.end(), at) != scored_.end();
			client_.decode(&text_[at], n, scored);
			for (uint32_t i = 0; scored && i < n; ++i, ++row)
				sum += take(llama_get_logits_ith(client_.context.get(),
								 static_cast<int32_t>(i)),
					    row);
			if (at >= scored_.back())
				break;
		}
		first_ = false;
		return sum / static_cast<double>(row);
	}

      private:
	double take(const float *logits, size_t row)
	{
		if (!logits)
			throw Error(SKVQ_ESYS, "llama.cpp gave no logits");
		const double norm = log_sum_exp(logits, n_vocab_);
		if (first_) {
			for (uint32_t i = 0; i < n_vocab_; ++i)
				reference_.push_back(static_cast<float>(logits[i] - norm));
			return 0;
		}
		const float *reference = &reference_[row * n_vocab_];
		double sum = 0;
		for (uint32_t i = 0; i < n_vocab_; ++i)
			if (reference[i] > -25.0f) // the rest is below 1e-6 all together
				sum += static_cast<double>(std::exp(reference[i])) *
				       (reference[i] - (logits[i] - norm));
		return std::max(sum, 0.0);
	}

	skvq_llama &client_;
	const std::vector<int32_t> &text_;
	uint32_t n_vocab_;
	std::vector<uint32_t> scored_; // first tokens of chunks
	std::vector<float> reference_; // log-probabilities, [row][n_vocab]
	bool first_ = true;
};

} // namespace

CalibrationBytes calibrate_tables(llama_model *model, const std::string &gguf_path,
				  const CalibrateOptions &options, const CalibrationBytes &file,
				  const std::vector<skvq_calibrate_target> &targets)
{
	skvq_calibration opened;
	char why[256] = "";
	if (int rc = skvq_calibration_open(file.data(), file.size(), &opened, why, sizeof why))
		throw Error(-rc, std::string("calibration: ") + why);
	if (options.text.size() < first_scored + chunk_tokens)
		throw Error(SKVQ_EINVAL, "the text is too short to measure sensitivities with");
	const std::vector<int32_t> text(
	    options.text.begin(),
	    options.text.begin() +
		static_cast<std::ptrdiff_t>(std::min<size_t>(
		    {options.text.size(), run_tokens,
		     static_cast<size_t>(llama_model_n_ctx_train(model))})));

	skvq_llama_options o{};
	o.struct_size = sizeof o;
	o.flags = SKVQ_LLAMA_NO_CALIBRATION; // this one, further down
	o.plugin_path = options.plugin_path.empty() ? nullptr : options.plugin_path.c_str();
	o.profile = "k2v2";
	o.engine_name = "skvq calibration";
	o.window = SKVQ_DEFAULT;
	o.sinks = SKVQ_DEFAULT;
	o.n_threads = options.n_threads;
	o.n_ubatch = chunk_tokens;
	o.max_tokens = static_cast<uint32_t>(text.size());
	o.all_logits = 1;
	skvq_llama client(model, gguf_path, o);
	void *copy = std::malloc(file.size());
	if (!copy)
		throw std::bad_alloc();
	std::memcpy(copy, file.data(), file.size());
	client.calibration = CalibrationBytes(copy, file.size());

	const uint32_t n = 2 * client.shape.n_layer;
	Runs runs(client, text,
		  static_cast<uint32_t>(llama_vocab_n_tokens(llama_model_get_vocab(model))));
	std::vector<uint8_t> bits(n, SKVQ_BITS_FP16);
	std::vector<float> sensitivity(n);
	const auto alone = [&](uint32_t i, uint8_t width) {
		bits[i] = width;
		const double kld = runs.run(bits.data());
		bits[i] = SKVQ_BITS_FP16;
		return kld;
	};
	(void)runs.run(bits.data());
	std::vector<std::pair<double, double>> floor; // layer, KLD
	for (uint32_t i = 0; i < floor_layers; ++i) {
		const uint32_t layer = i * (client.shape.n_layer - 1) / (floor_layers - 1);
		floor.emplace_back(layer, alone(2 * layer + 1, SKVQ_BITS_8));
	}
	for (uint32_t i = 0; i < n; ++i) {
		sensitivity[i] = static_cast<float>(
		    std::max(0.0, alone(i, SKVQ_BITS_2) - interpolate(floor, i / 2)));
		if (options.progress)
			options.progress("sensitivities", double(i + 1) / n);
	}
	void *bytes = nullptr;
	uint64_t size = 0;
	if (int rc = skvq_calibrate_tables(&opened, sensitivity.data(), targets.data(),
					   static_cast<uint32_t>(targets.size()), &bytes, &size,
					   why, sizeof why))
		throw Error(-rc, std::string("calibration: ") + why);
	return CalibrationBytes(bytes, size);
}

} // namespace skvq
