// SPDX-License-Identifier: Apache-2.0
#include <skvq/llama_tools.hpp>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace skvq
{

namespace
{

void log_nothing(ggml_log_level, const char *, void *) {}

void log_stderr(ggml_log_level, const char *text, void *)
{
	std::fputs(text, stderr);
}

} // namespace

void llama_setup(bool verbose)
{
	llama_log_set(verbose ? log_stderr : log_nothing, nullptr);
	llama_backend_init();
}

double seconds_now()
{
	using clock = std::chrono::steady_clock;
	return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

std::string read_file(const std::string &path, const char *what)
{
	const std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "rb"),
							  std::fclose);
	std::string text;
	char buf[65536];
	size_t n = 0;
	while (file && (n = std::fread(buf, 1, sizeof buf, file.get())) > 0)
		text.append(buf, n);
	if (!file || std::ferror(file.get()))
		throw std::runtime_error(std::string("cannot read ") + what + " '" + path +
					 "': " + std::strerror(errno));
	return text;
}

Model::Model(const std::string &path, bool for_client, bool vocab_only) : path_(path)
{
	if (for_client) {
		char error[512];
		if (skvq_llama_check_model(path.c_str(), error, sizeof error) < 0)
			throw std::runtime_error(error);
	} else if (FILE *file = std::fopen(path.c_str(), "rb")) {
		std::fclose(file);
	} else {
		throw std::runtime_error("cannot open model '" + path +
					 "': " + std::strerror(errno));
	}
	llama_model_params params = llama_model_default_params();
	params.n_gpu_layers = 0;
	params.vocab_only = vocab_only;
	model_.reset(llama_model_load_from_file(path.c_str(), params));
	if (!model_)
		throw std::runtime_error(
		    "llama.cpp cannot load '" + path +
		    "': not a GGUF model, damaged, or of a kind it does not know");
}

uint32_t Model::n_ctx_train() const
{
	return static_cast<uint32_t>(llama_model_n_ctx_train(get()));
}

std::string Model::metadata(const std::string &key) const
{
	char text[256];
	return llama_model_meta_val_str(get(), key.c_str(), text, sizeof text) < 0 ? "" : text;
}

uint64_t Model::kv_bytes_per_token_fp16() const
{
	const uint64_t n_head = static_cast<uint64_t>(llama_model_n_head(get()));
	uint64_t head_dim = static_cast<uint64_t>(llama_model_n_embd(get())) / n_head;
	const std::string given = metadata(metadata("general.architecture") + ".attention.key_length");
	if (!given.empty())
		head_dim = std::strtoul(given.c_str(), nullptr, 10);
	return static_cast<uint64_t>(llama_model_n_layer(get())) *
	       static_cast<uint64_t>(llama_model_n_head_kv(get())) * head_dim * 2 * 2;
}

std::vector<int32_t> Model::tokenize(const std::string &text, bool special) const
{
	if (text.size() > INT32_MAX)
		throw std::runtime_error("a text of more than 2 GiB cannot be tokenized");
	const int32_t size = static_cast<int32_t>(text.size());
	int32_t n = -llama_tokenize(vocab(), text.data(), size, nullptr, 0, true, special);
	std::vector<int32_t> tokens(n > 0 ? static_cast<size_t>(n) : 0);
	if (n > 0)
		n = llama_tokenize(vocab(), text.data(), size, tokens.data(), n, true, special);
	if (n < 0)
		throw std::runtime_error("llama.cpp cannot tokenize the text");
	tokens.resize(static_cast<size_t>(n));
	return tokens;
}

std::string Model::piece(int32_t token) const
{
	std::string text(32, '\0');
	for (;;) {
		const int32_t room = static_cast<int32_t>(text.size());
		const int32_t n = llama_token_to_piece(vocab(), token, &text[0], room, 0, false);
		text.resize(static_cast<size_t>(n < 0 ? -n : n));
		if (n >= 0)
			return text;
	}
}

std::string Model::chat(const std::string &text) const
{
	const char *chat_template = llama_model_chat_template(get(), nullptr);
	if (!chat_template)
		throw std::runtime_error("model '" + path_ + "' has no chat template");
	const llama_chat_message message = {"user", text.c_str()};
	std::string out(text.size() + 1024, '\0');
	for (;;) {
		const int32_t room = static_cast<int32_t>(out.size());
		const int32_t n =
		    llama_chat_apply_template(chat_template, &message, 1, true, &out[0], room);
		if (n < 0)
			throw std::runtime_error("llama.cpp does not know the chat template of '" +
						 path_ + "'");
		out.resize(static_cast<size_t>(n));
		if (n <= room)
			return out;
	}
}

} // namespace skvq
