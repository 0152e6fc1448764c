// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include <skvq/json_object.hpp>

namespace
{

const char *mib(uint64_t bytes, char (&buf)[32])
{
	std::snprintf(buf, sizeof buf, "%.2f MiB", static_cast<double>(bytes) / 1048576);
	return buf;
}

} // namespace

void report_text(const Result &result)
{
	char a[32], b[32], c[32], d[32];
	std::fprintf(stderr,
		     "\nprofile      %s, %s, daemon: %s\n"
		     "prompt       %u tokens, %u of them matched in the cache\n"
		     "first token  after %.3f s\n"
		     "generated    %zu tokens%s, %.2f tokens/s\n"
		     "K/V          %s local, %s shared; FP16 would take %s (and %s of cells in "
		     "llama.cpp)\n",
		     result.profile.c_str(), result.mode.c_str(), result.daemon.c_str(),
		     result.prompt_tokens, result.matched_tokens, result.ttft_s,
		     result.token_ids.size(), result.ended ? " and an end" : "",
		     result.tokens_per_s, mib(result.kv_bytes_local, a),
		     mib(result.kv_bytes_shared, b), mib(result.kv_bytes_fp16, c),
		     mib(result.kv_bytes_engine, d));
	if (result.bytes_per_token > 0)
		std::fprintf(stderr,
			     "per token    %.0f bytes beyond the window, %.0f in FP16: 1/%.2f\n",
			     result.bytes_per_token, result.bytes_per_token_fp16,
			     result.bytes_per_token_fp16 / result.bytes_per_token);
	if (result.mode != "plain")
		std::fprintf(stderr,
			     "in plugin    %.3f s attention, %.3f s append, %.3f s commit\n",
			     result.attend_s, result.append_s, result.commit_s);
	if (result.compared)
		std::fprintf(
		    stderr,
		    "plain        first token after %.3f s, %.2f tokens/s\n"
		    "apart        KLD mean %.6f, max %.6f over %zu positions; top token the same "
		    "in %.1f %%\n",
		    result.ttft_plain_s, result.tokens_per_s_plain, result.divergence.mean(),
		    result.divergence.max(), result.divergence.count(),
		    100 * result.divergence.top1_same());
}

void report_json(const Result &result, const std::string &path)
{
	skvq::JsonObject json;
	json.text("mode", result.mode);
	json.text("daemon", result.daemon);
	json.text("profile", result.profile);
	json.text("calibration", result.calibration);
	json.text("engine_numerics", result.numerics);
	json.whole("prompt_tokens", result.prompt_tokens);
	json.whole("matched_tokens", result.matched_tokens);
	json.real("load_s", result.load_s);
	json.real("ttft_s", result.ttft_s);
	json.whole("tokens_generated", result.token_ids.size());
	json.flag("ended", result.ended);
	json.real("tokens_per_s", result.tokens_per_s);
	json.real("attend_s", result.attend_s);
	json.real("append_s", result.append_s);
	json.real("commit_s", result.commit_s);
	json.whole("kv_bytes_fp16", result.kv_bytes_fp16);
	json.whole("kv_bytes_local", result.kv_bytes_local);
	json.whole("kv_bytes_window", result.kv_bytes_window);
	json.whole("kv_bytes_shared", result.kv_bytes_shared);
	json.whole("kv_bytes_engine", result.kv_bytes_engine);
	json.whole("paged_tokens", result.paged_tokens);
	json.real("bytes_per_token", result.bytes_per_token);
	json.real("bytes_per_token_fp16", result.bytes_per_token_fp16);
	json.text("text", result.text);
	json.list("token_ids", result.token_ids);
	if (result.compared) {
		json.real("kld_mean", result.divergence.mean());
		json.real("kld_max", result.divergence.max());
		json.real("top1_same", result.divergence.top1_same());
		json.whole("kld_positions", result.divergence.count());
		json.real("ttft_plain_s", result.ttft_plain_s);
		json.real("tokens_per_s_plain", result.tokens_per_s_plain);
		json.text("plain_text", result.plain_text);
	}
	if (path == "-") {
		json.write(stdout, "stdout");
		return;
	}
	std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "w"), std::fclose);
	if (!file)
		throw std::runtime_error("cannot write '" + path + "': " + std::strerror(errno));
	json.write(file.get(), path);
}
