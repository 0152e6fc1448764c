// SPDX-License-Identifier: Apache-2.0
#include "profile.h"

#include <cstdio>
#include <cstdlib>

using skvq::UsageError;

namespace
{

const struct {
	const char *name;
	llama_flash_attn_type flash_attn; // quantized V needs it
	ggml_type type_kv;
	bool rotated;
} stock[] = {
    {"llama-f16", LLAMA_FLASH_ATTN_TYPE_ENABLED, GGML_TYPE_F16, true},
    {"llama-f16-nofa", LLAMA_FLASH_ATTN_TYPE_DISABLED, GGML_TYPE_F16, true},
    {"llama-q8_0", LLAMA_FLASH_ATTN_TYPE_ENABLED, GGML_TYPE_Q8_0, true},
    {"llama-q8_0-norot", LLAMA_FLASH_ATTN_TYPE_ENABLED, GGML_TYPE_Q8_0, false},
    {"llama-q4_0", LLAMA_FLASH_ATTN_TYPE_ENABLED, GGML_TYPE_Q4_0, true},
    {"llama-q4_0-norot", LLAMA_FLASH_ATTN_TYPE_ENABLED, GGML_TYPE_Q4_0, false},
};

void apply_suffix(Profile &profile, const std::string &part)
{
	const std::string what = "in profile '" + profile.name + "', '" + part + "'";
	if (part == "free")
		profile.data_free = true;
	else if (part == "whole")
		profile.whole = true;
	else if (part.compare(0, 7, "window=") == 0)
		profile.window = skvq::whole((what + ": window").c_str(), part.c_str() + 7, 0, 65536);
	else if (part.compare(0, 6, "sinks=") == 0)
		profile.sinks = skvq::whole((what + ": sinks").c_str(), part.c_str() + 6, 0, 65536);
	else
		throw UsageError(what + " is none of free, whole, window=N, sinks=N");
}

// Texts separated by a character; empty ones too.
std::vector<std::string> split(const std::string &text, char separator)
{
	std::vector<std::string> parts;
	for (size_t at = 0; at <= text.size();) {
		const size_t end = std::min(text.find(separator, at), text.size());
		parts.push_back(text.substr(at, end - at));
		at = end + 1;
	}
	return parts;
}

// llama.cpp reads it when it makes a context.
class Rotation
{
      public:
	explicit Rotation(bool on)
	{
		if (on)
			unsetenv(name);
		else
			setenv(name, "1", 1);
	}
	~Rotation()
	{
		unsetenv(name);
	}
	Rotation(const Rotation &) = delete;
	Rotation &operator=(const Rotation &) = delete;

      private:
	static constexpr const char *name = "LLAMA_ATTN_ROT_DISABLE";
};

} // namespace

double Profile::stock_bits() const
{
	return 8.0 * static_cast<double>(ggml_type_size(type_kv)) /
	       static_cast<double>(ggml_blck_size(type_kv));
}

Profile profile_parse(const std::string &text)
{
	Profile profile;
	profile.name = text;
	for (const auto &entry : stock) {
		if (text != entry.name)
			continue;
		profile.ours = false;
		profile.flash_attn = entry.flash_attn;
		profile.type_kv = entry.type_kv;
		profile.rotated = entry.rotated;
		return profile;
	}
	if (text.compare(0, 6, "llama-") == 0) {
		std::string known;
		for (const auto &entry : stock)
			known += (known.empty() ? "" : ", ") + std::string(entry.name);
		throw UsageError("'" + text + "' is none of " + known);
	}
	const std::vector<std::string> parts = split(text, ':');
	profile.codec = parts[0];
	if (profile.codec.empty())
		throw UsageError("'" + text + "' names no profile");
	for (size_t i = 1; i < parts.size(); ++i)
		apply_suffix(profile, parts[i]);
	return profile;
}

std::vector<Profile> profiles_parse(const std::string &list)
{
	std::vector<Profile> profiles;
	for (const std::string &part : split(list, ','))
		profiles.push_back(profile_parse(part));
	return profiles;
}

Profile profile_reference()
{
	return profile_parse("llama-f16-nofa");
}

std::unique_ptr<skvq::Engine> profile_open(const Profile &profile, const skvq::Model &model,
					   const EngineOptions &engine)
{
	if (!profile.ours) {
		skvq::PlainOptions options;
		options.n_ctx = engine.n_ctx;
		options.n_ubatch = engine.n_piece;
		options.n_threads = engine.n_threads;
		options.flash_attn = profile.flash_attn;
		options.type_kv = profile.type_kv;
		const Rotation rotation(profile.rotated);
		return std::make_unique<skvq::Plain>(model, options);
	}
	const bool data_free = engine.no_calibration || profile.data_free;
	skvq_llama_options options{};
	options.struct_size = sizeof options;
	options.flags = engine.flags | (data_free ? SKVQ_LLAMA_NO_CALIBRATION : 0) |
			(profile.whole ? SKVQ_LLAMA_NO_LAYER_GROUPS : 0);
	options.plugin_path = engine.plugin.empty() ? nullptr : engine.plugin.c_str();
	options.socket = engine.socket.empty() ? nullptr : engine.socket.c_str();
	options.profile = profile.codec.c_str();
	options.engine_name = "skvq-eval";
	options.window = profile.window != SKVQ_DEFAULT ? profile.window : engine.window;
	options.sinks = profile.sinks != SKVQ_DEFAULT ? profile.sinks : engine.sinks;
	options.n_ubatch = engine.n_piece;
	options.n_threads = engine.n_threads;
	options.max_tokens = engine.n_ctx;
	options.all_logits = 1;
	options.calibration_path =
	    data_free || engine.calibration.empty() ? nullptr : engine.calibration.c_str();
	options.log = [](void *, int32_t level, const char *message) {
		if (level >= SKVQ_LOG_WARNING)
			std::fprintf(stderr, "skvq-eval: %s\n", message);
	};
	return std::make_unique<skvq::Client>(model, options);
}
