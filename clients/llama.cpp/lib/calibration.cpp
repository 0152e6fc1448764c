// SPDX-License-Identifier: Apache-2.0
#include "calibration.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "error.h"

namespace skvq
{

// ---- files

std::string calibration_path(const Digest &weights)
{
	const char *data = std::getenv("XDG_DATA_HOME"), *home = std::getenv("HOME");
	std::string path;
	if (data && data[0] == '/')
		path = data;
	else if (home && home[0] == '/')
		path = std::string(home) + "/.local/share";
	else
		return {};
	return path + "/skvqd/calibration/" + digest_hex(weights) + ".skvqcal";
}

CalibrationBytes calibration_read(const std::string &path)
{
	const std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "rb"),
							  std::fclose);
	if (!file && errno == ENOENT)
		return {};
	struct stat st;
	if (!file || fstat(fileno(file.get()), &st) != 0)
		throw Error(SKVQ_EIO,
			    "cannot open calibration '" + path + "': " + std::strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size <= 0 ||
	    static_cast<uint64_t>(st.st_size) > SKVQ_CALIBRATION_BYTES_MAX)
		throw Error(SKVQ_ECORRUPT, "'" + path + "' is not a calibration file");
	const size_t size = static_cast<size_t>(st.st_size);
	CalibrationBytes bytes(std::malloc(size), size);
	if (bytes.empty())
		throw std::bad_alloc();
	if (std::fread(const_cast<void *>(bytes.data()), 1, size, file.get()) != size)
		throw Error(SKVQ_EIO,
			    "cannot read calibration '" + path + "': " + std::strerror(errno));
	return bytes;
}

bool calibration_write(const std::string &path, const CalibrationBytes &bytes, bool replace)
{
	const auto failed = [&] {
		throw Error(SKVQ_EIO,
			    "cannot write calibration '" + path + "': " + std::strerror(errno));
	};
	for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1))
		(void)mkdir(path.substr(0, at).c_str(), 0777); // if it fails, so does mkstemp
	std::string temporary = path + ".XXXXXX";
	const int fd = mkstemp(temporary.data());
	if (fd < 0)
		failed();
	const char *at = static_cast<const char *>(bytes.data());
	bool ok = fchmod(fd, 0644) == 0;
	for (uint64_t left = bytes.size(); ok && left;) {
		const ssize_t n = write(fd, at, left);
		ok = n > 0;
		at += n;
		left -= static_cast<uint64_t>(n);
	}
	ok = ok && fsync(fd) == 0;
	ok = close(fd) == 0 && ok;
	// A name that appears whole: rename takes the place of another, link does not.
	if (ok && replace && std::rename(temporary.c_str(), path.c_str()) == 0)
		return true;
	const bool made = ok && !replace && link(temporary.c_str(), path.c_str()) == 0;
	const int error = errno;
	(void)unlink(temporary.c_str());
	errno = error;
	if (!made && !(ok && !replace && errno == EEXIST))
		failed();
	return made;
}

// ---- the text, if there is none

namespace
{

// Texts generated side by side: a step of many costs little more than a step of one.
constexpr uint32_t n_streams = 64;
constexpr uint32_t stream_tokens = 64;
constexpr uint32_t context_tokens = 2048; // of one pass; far positions turn RoPE's slow pairs
constexpr uint32_t chunk_tokens = 512;
constexpr uint32_t default_positions = 8192;

struct ContextDeleter {
	void operator()(llama_context *context) const
	{
		llama_free(context);
	}
};
struct SamplerDeleter {
	void operator()(llama_sampler *sampler) const
	{
		llama_sampler_free(sampler);
	}
};

// Where texts begin: whole words, any of them, the same ones each time.
class Starts
{
      public:
	explicit Starts(const llama_vocab *vocab)
	{
		for (int32_t token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
			char piece[32];
			const int32_t n =
			    llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
			if (n < 4 || llama_vocab_is_control(vocab, token) || piece[0] != ' ')
				continue;
			if (std::all_of(piece + 1, piece + n, [](char c) {
				    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
			    }))
				words_.push_back(token);
		}
		for (int32_t token = 0; words_.empty() && token < llama_vocab_n_tokens(vocab);
		     ++token)
			words_.push_back(token);
	}
	int32_t next()
	{
		state_ = state_ * 6364136223846793005u + 1442695040888963407u;
		return words_[(state_ >> 33) % words_.size()];
	}

      private:
	std::vector<int32_t> words_;
	uint64_t state_ = 1;
};

// n_streams texts of the model's own; at most n_tokens in all.
std::vector<int32_t> generate_round(llama_model *model, const CalibrateOptions &options,
				    Starts &starts, uint32_t seed, uint32_t n_each, uint32_t done,
				    uint32_t n_all)
{
	const llama_vocab *vocab = llama_model_get_vocab(model);
	llama_context_params params = llama_context_default_params();
	params.n_ctx = n_streams * n_each;
	params.n_batch = params.n_ubatch = n_streams;
	params.n_seq_max = n_streams;
	params.n_threads = params.n_threads_batch = static_cast<int32_t>(options.n_threads);
	params.no_perf = true;
	const std::unique_ptr<llama_context, ContextDeleter> context(
	    llama_init_from_model(model, params));
	if (!context)
		throw Error(SKVQ_ENOMEM, "llama.cpp cannot make a context to generate text with");
	const std::unique_ptr<llama_sampler, SamplerDeleter> sampler(
	    llama_sampler_chain_init(llama_sampler_chain_default_params()));
	llama_sampler_chain_add(sampler.get(), llama_sampler_init_top_k(50));
	llama_sampler_chain_add(sampler.get(), llama_sampler_init_temp(1.0f));
	llama_sampler_chain_add(sampler.get(), llama_sampler_init_dist(seed));

	std::vector<std::vector<int32_t>> texts(n_streams);
	std::vector<int32_t> tokens(n_streams), positions(n_streams), n_seq(n_streams, 1),
	    ids(n_streams);
	std::vector<int32_t *> id_of(n_streams);
	std::vector<int8_t> logits(n_streams, 1);
	for (uint32_t s = 0; s < n_streams; ++s) {
		ids[s] = static_cast<int32_t>(s);
		id_of[s] = &ids[s];
		tokens[s] = starts.next();
	}
	llama_batch batch{};
	batch.n_tokens = n_streams;
	batch.token = tokens.data();
	batch.pos = positions.data();
	batch.n_seq_id = n_seq.data();
	batch.seq_id = id_of.data();
	batch.logits = logits.data();
	for (uint32_t at = 0; at < n_each; ++at) {
		std::fill(positions.begin(), positions.end(), static_cast<int32_t>(at));
		if (llama_decode(context.get(), batch) != 0)
			throw Error(SKVQ_ESYS, "llama_decode failed while generating text");
		for (uint32_t s = 0; s < n_streams; ++s) {
			texts[s].push_back(tokens[s]);
			tokens[s] = llama_sampler_sample(sampler.get(), context.get(),
							 static_cast<int32_t>(s));
			if (llama_vocab_is_eog(vocab, tokens[s]))
				tokens[s] = starts.next();
		}
		if (options.progress)
			options.progress("text", double(done + (at + 1) * n_streams) / n_all);
	}
	std::vector<int32_t> all;
	for (const auto &text : texts)
		all.insert(all.end(), text.begin(), text.end());
	return all;
}

skvq_llama_options client_options(const CalibrateOptions &options)
{
	skvq_llama_options o{};
	o.struct_size = sizeof o;
	o.flags = SKVQ_LLAMA_NO_CALIBRATION;
	o.plugin_path = options.plugin_path.empty() ? nullptr : options.plugin_path.c_str();
	o.profile = "fp16";
	o.engine_name = "skvq calibration";
	o.window = SKVQ_DEFAULT;
	o.sinks = SKVQ_DEFAULT;
	o.n_threads = options.n_threads;
	return o;
}

[[noreturn]] void failed(int32_t rc, const char *why)
{
	throw Error(-rc, std::string("calibration: ") + why);
}

} // namespace

std::vector<int32_t> generate_text(llama_model *model, const CalibrateOptions &options)
{
	Starts starts(llama_model_get_vocab(model));
	const uint32_t n_each =
	    std::min(stream_tokens, static_cast<uint32_t>(llama_model_n_ctx_train(model)));
	std::vector<int32_t> text;
	for (uint32_t seed = 1; text.size() < options.n_tokens; ++seed) {
		const auto more =
		    generate_round(model, options, starts, seed, n_each,
				   static_cast<uint32_t>(text.size()),
				   (options.n_tokens + n_each * n_streams - 1) /
				       (n_each * n_streams) * n_each * n_streams);
		text.insert(text.end(), more.begin(), more.end());
	}
	text.resize(options.n_tokens);
	return text;
}

// ---- moments

CalibrationBytes calibrate(llama_model *model, const std::string &gguf_path,
			   const CalibrateOptions &options)
{
	std::vector<int32_t> text =
	    options.text.empty() ? generate_text(model, options) : options.text;
	const std::string name = options.text.empty() ? "generated by the model" : options.text_name;
	text.resize(std::min<size_t>(text.size(), options.n_tokens));

	skvq_llama_options o = client_options(options);
	o.n_ubatch = chunk_tokens;
	o.max_tokens =
	    std::min(context_tokens, static_cast<uint32_t>(llama_model_n_ctx_train(model)));
	skvq_llama client(model, gguf_path, o);
	const skvq_calibration_key key = client.calibration_key();
	skvq_calibrate_rope rope{};
	rope.dim = client.shape.head_dim;
	rope.interleaved = client.shape.arch->rope_pairs == SKVQ_PAIRS_INTERLEAVED;
	rope.theta = client.shape.rope_theta;
	rope.scaling = client.shape.rope_scaling.c_str();
	rope.positions = options.n_positions ? options.n_positions
					     : std::min(client.shape.n_ctx_train, default_positions);
	rope.layer_window =
	    client.shape.layer_window.empty() ? nullptr : client.shape.layer_window.data();
	skvq_moments *made = nullptr;
	if (int rc = skvq_moments_new(&key, &rope, &made))
		failed(rc, "no memory for the moments of this model");
	const std::unique_ptr<skvq_moments, void (*)(skvq_moments *)> moments(made,
									      skvq_moments_free);
	client.capture.observe([&](uint32_t layer, uint32_t position, uint32_t n, const float *q,
				   const float *k, const float *v) {
		skvq_moments_add(moments.get(), layer, position, n, q, k, v);
	});
	for (size_t at = 0; at < text.size();) {
		const uint32_t n_context = static_cast<uint32_t>(
		    std::min<size_t>(o.max_tokens, text.size() - at));
		(void)client.begin(nullptr, 0);
		for (uint32_t done = 0; done < n_context;) {
			const uint32_t n = std::min(chunk_tokens, n_context - done);
			client.decode(&text[at + done], n, false);
			done += n;
			if (options.progress)
				options.progress("moments", double(at + done) / double(text.size()));
		}
		at += n_context;
	}
	if (options.progress)
		options.progress("matrices", 0);
	void *bytes = nullptr;
	uint64_t size = 0;
	char why[256] = "";
	const std::string tool = std::string("skvq 0.1, llama.cpp ") + llama_version();
	if (int rc = skvq_moments_finish(moments.get(), &key, name.c_str(), tool.c_str(), &bytes,
					 &size, why, sizeof why))
		failed(rc, why);
	if (options.progress)
		options.progress("matrices", 1);
	return CalibrationBytes(bytes, size);
}

} // namespace skvq
