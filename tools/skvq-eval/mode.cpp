// SPDX-License-Identifier: Apache-2.0
#include "mode.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace
{

uint32_t whole(const std::string &text, const std::string &value)
{
	char *end = nullptr;
	errno = 0;
	const unsigned long number = std::strtoul(value.c_str(), &end, 10);
	if (errno || value.empty() || value[0] < '0' || value[0] > '9' || *end || number > 1u << 20)
		throw UsageError("'" + value + "' in mode '" + text +
				 "' is not a number of tokens");
	return static_cast<uint32_t>(number);
}

Mode parse_ours(const std::string &text)
{
	Mode mode;
	mode.ours = true;
	size_t at = text.find(':') + 1;
	for (bool first = true; at <= text.size(); first = false) {
		const size_t comma = std::min(text.find(',', at), text.size());
		const std::string part = text.substr(at, comma - at);
		at = comma + 1;
		if (first)
			mode.profile = part;
		else if (part.compare(0, 7, "window=") == 0)
			mode.window = whole(text, part.substr(7));
		else if (part.compare(0, 6, "sinks=") == 0)
			mode.sinks = whole(text, part.substr(6));
		else if (part.compare(0, 12, "calibration=") == 0)
			mode.calibration = part.substr(12);
		else if (part == "data-free")
			mode.data_free = true;
		else
			throw UsageError("'" + part + "' in mode '" + text +
					 "' is none of window=N, sinks=N, calibration=FILE and "
					 "data-free");
	}
	if (mode.profile.empty())
		throw UsageError("mode '" + text + "' names no profile");
	return mode;
}

} // namespace

Mode mode_parse(const std::string &text)
{
	Mode mode;
	if (text.compare(0, 5, "skvq:") == 0) {
		mode = parse_ours(text);
	} else if (text == "plain-fa") {
		mode.flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED;
	} else if (text == "q8_0" || text == "q4_0") {
		mode.flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED; // quantized V needs it
		mode.type_kv = text == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_0;
	} else if (text != "plain-nofa") {
		throw UsageError("unknown mode '" + text + "'");
	}
	mode.name = text;
	return mode;
}

std::unique_ptr<skvq::Engine> mode_open(const Mode &mode, const skvq::Model &model,
					uint32_t n_tokens, uint32_t n_ubatch, uint32_t n_threads,
					const std::string &plugin)
{
	if (!mode.ours) {
		skvq::PlainOptions options;
		options.n_ctx = n_tokens;
		options.n_ubatch = n_ubatch;
		options.n_threads = n_threads;
		options.flash_attn = mode.flash_attn;
		options.type_kv = mode.type_kv;
		return std::make_unique<skvq::Plain>(model, options);
	}
	skvq_llama_options options{};
	options.struct_size = sizeof options;
	options.plugin_path = plugin.empty() ? nullptr : plugin.c_str();
	options.profile = mode.profile.c_str();
	options.flags = mode.data_free ? SKVQ_LLAMA_NO_CALIBRATION : 0;
	options.calibration_path = mode.calibration.empty() ? nullptr : mode.calibration.c_str();
	options.engine_name = "skvq-eval";
	options.window = mode.window;
	options.sinks = mode.sinks;
	options.n_ubatch = n_ubatch;
	options.n_threads = n_threads;
	options.max_tokens = n_tokens;
	options.all_logits = 1;
	options.log = [](void *, int32_t level, const char *message) {
		if (level >= SKVQ_LOG_WARNING)
			std::fprintf(stderr, "skvq-eval: %s\n", message);
	};
	return std::make_unique<skvq::Client>(model, options);
}
