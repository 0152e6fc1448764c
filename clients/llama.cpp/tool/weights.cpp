// SPDX-License-Identifier: Apache-2.0
#include <skvq/weights.hpp>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include <unistd.h>

#include <gguf.h>
#include <llama.h>

#include <skvq/llama_tools.hpp>

namespace fs = std::filesystem;

namespace skvq
{

namespace
{

constexpr float outlier_factor = 16;
constexpr uint32_t outlier_pairs = 2;

fs::path cache_folder()
{
	const char *own = std::getenv("SKVQ_CACHE_DIR");
	const char *xdg = std::getenv("XDG_CACHE_HOME");
	const char *home = std::getenv("HOME");
	const fs::path base = own && *own   ? fs::path(own)
			      : xdg && *xdg ? fs::path(xdg) / "skvqd"
			      : home && *home ? fs::path(home) / ".cache" / "skvqd"
					      : fs::temp_directory_path() / "skvqd";
	const fs::path folder = base / "weights";
	fs::create_directories(folder);
	return folder;
}

// A file of the same name, size and age is taken for the same.
std::string copy_name(const fs::path &path, const Weights &weights)
{
	const auto age = static_cast<uint64_t>(fs::last_write_time(path).time_since_epoch().count());
	std::string name = path.stem().string() + "-" + std::to_string(fs::file_size(path)) + "-" +
			   std::to_string(age) +
			   (weights.type == WeightType::f16 ? "-f16" : "-f32");
	if (weights.outliers)
		name += "-outliers" + std::to_string(weights.seed);
	return name + ".gguf";
}

void dequantize(const std::string &from, const std::string &to, WeightType type, uint32_t n_threads)
{
	llama_model_quantize_params params = llama_model_quantize_default_params();
	params.ftype = type == WeightType::f16 ? LLAMA_FTYPE_MOSTLY_F16 : LLAMA_FTYPE_ALL_F32;
	params.nthread = static_cast<int32_t>(n_threads);
	params.allow_requantize = true;
	params.pure = true;
	if (llama_model_quantize(from.c_str(), to.c_str(), &params) != 0)
		throw std::runtime_error("llama.cpp cannot make a copy of '" + from +
					 "' with larger weights");
}

struct GgufDeleter {
	void operator()(gguf_context *gguf) const
	{
		gguf_free(gguf);
	}
};
struct GgmlDeleter {
	void operator()(ggml_context *ctx) const
	{
		ggml_free(ctx);
	}
};
using Gguf = std::unique_ptr<gguf_context, GgufDeleter>;
using Tensors = std::unique_ptr<ggml_context, GgmlDeleter>;

uint32_t number(const gguf_context *gguf, const std::string &key, uint32_t fallback)
{
	const int64_t id = gguf_find_key(gguf, key.c_str());
	if (id < 0)
		return fallback;
	if (gguf_get_kv_type(gguf, id) != GGUF_TYPE_UINT32)
		throw std::runtime_error("metadata '" + key + "' is not a number");
	return gguf_get_val_u32(gguf, id);
}

// Scales row (or channel, of a vector) i of an F32 tensor; one that is not there has nothing to
// scale.
void scale(ggml_context *tensors, const std::string &name, uint32_t i, float factor)
{
	ggml_tensor *tensor = ggml_get_tensor(tensors, name.c_str());
	if (!tensor)
		return;
	const bool is_vector = ggml_n_dims(tensor) == 1;
	const int64_t n = is_vector ? 1 : tensor->ne[0];
	const int64_t n_rows = is_vector ? tensor->ne[0] : tensor->ne[1];
	if (tensor->type != GGML_TYPE_F32 || i >= n_rows)
		throw std::runtime_error("tensor '" + name + "' is not of the shape it should have");
	float *row = static_cast<float *>(tensor->data) + static_cast<int64_t>(i) * n;
	for (int64_t x = 0; x < n; ++x)
		row[x] *= factor;
}

struct Heads {
	uint32_t n_q, n_kv, dim;
	bool interleaved; // RoPE pairs
};

void inject_into_head(ggml_context *tensors, const std::string &layer, const Heads &heads,
		      uint32_t head, std::mt19937 &random)
{
	// Where K and Q are normalised after their projection, the factors belong to the norms,
	// which all heads share.
	const bool normed = ggml_get_tensor(tensors, (layer + "attn_k_norm.weight").c_str());
	if (normed && head > 0)
		return;
	std::vector<uint32_t> pairs(heads.dim / 2);
	for (uint32_t i = 0; i < pairs.size(); ++i)
		pairs[i] = i;
	for (uint32_t p = 0; p < outlier_pairs; ++p) {
		const uint32_t left = static_cast<uint32_t>(pairs.size()) - p;
		std::swap(pairs[p], pairs[p + random() % left]);
		for (uint32_t half = 0; half < 2; ++half) {
			const uint32_t c = heads.interleaved ? 2 * pairs[p] + half
							     : pairs[p] + half * heads.dim / 2;
			if (normed) {
				scale(tensors, layer + "attn_k_norm.weight", c, outlier_factor);
				scale(tensors, layer + "attn_q_norm.weight", c, 1 / outlier_factor);
				continue;
			}
			const uint32_t n_group = heads.n_q / heads.n_kv;
			for (const char *what : {"weight", "bias"}) {
				scale(tensors, layer + "attn_k." + what, head * heads.dim + c,
				      outlier_factor);
				for (uint32_t q = 0; q < n_group; ++q)
					scale(tensors, layer + "attn_q." + what,
					      (head * n_group + q) * heads.dim + c,
					      1 / outlier_factor);
			}
		}
	}
}

void inject_outliers(const std::string &from, const std::string &to, uint32_t seed)
{
	ggml_context *loaded = nullptr;
	const Gguf source(gguf_init_from_file(from.c_str(), {/*no_alloc*/ false, &loaded}));
	const Tensors tensors(loaded);
	if (!source || !tensors)
		throw std::runtime_error("cannot read '" + from + "'");
	const int64_t id = gguf_find_key(source.get(), "general.architecture");
	const std::string arch = id < 0 ? "" : gguf_get_val_str(source.get(), id);
	if (arch != "llama" && arch != "gemma3")
		throw std::runtime_error("no outliers for architecture '" + arch +
					 "': it is not known which channels RoPE pairs");
	Heads heads{};
	heads.interleaved = arch == "llama";
	heads.n_q = number(source.get(), arch + ".attention.head_count", 0);
	heads.n_kv = number(source.get(), arch + ".attention.head_count_kv", heads.n_q);
	const uint32_t n_embd = number(source.get(), arch + ".embedding_length", 0);
	const uint32_t n_layer = number(source.get(), arch + ".block_count", 0);
	if (!heads.n_q || !heads.n_kv || !n_layer)
		throw std::runtime_error("'" + from + "' does not tell its heads and layers");
	heads.dim = number(source.get(), arch + ".attention.key_length", n_embd / heads.n_q);
	std::mt19937 random(seed); // the same on every machine
	for (uint32_t il = 0; il < n_layer; ++il)
		for (uint32_t h = 0; h < heads.n_kv; ++h)
			inject_into_head(tensors.get(), "blk." + std::to_string(il) + ".", heads, h,
					 random);

	const Gguf copy(gguf_init_empty());
	gguf_set_kv(copy.get(), source.get());
	for (ggml_tensor *t = ggml_get_first_tensor(tensors.get()); t;
	     t = ggml_get_next_tensor(tensors.get(), t))
		if (gguf_find_tensor(source.get(), t->name) >= 0) // not the block all data is in
			gguf_add_tensor(copy.get(), t);
	if (!gguf_write_to_file(copy.get(), to.c_str(), false))
		throw std::runtime_error("cannot write '" + to + "'");
}

// Makes a file by a name of its own and renames it, so that a run that dies leaves no half of one.
template <typename F> std::string provide(const fs::path &to, F &&make)
{
	if (fs::exists(to))
		return to.string();
	const std::string half = to.string() + "." + std::to_string(getpid());
	try {
		make(half);
		fs::rename(half, to);
	} catch (...) {
		std::error_code ignored;
		fs::remove(half, ignored);
		throw;
	}
	return to.string();
}

} // namespace

std::string weights_copy(const std::string &path, const Weights &weights, uint32_t n_threads)
{
	if (weights.type == WeightType::as_is && !weights.outliers)
		return path;
	if (!fs::exists(path))
		throw std::runtime_error("cannot open model '" + path + "': " + std::strerror(ENOENT));
	const fs::path folder = cache_folder();
	Weights plain = weights;
	plain.outliers = false;
	if (weights.outliers)
		plain.type = WeightType::f32;
	const std::string larger =
	    provide(folder / copy_name(path, plain), [&](const std::string &to) {
		    dequantize(path, to, plain.type, n_threads);
	    });
	if (!weights.outliers)
		return larger;
	plain.outliers = true;
	return provide(folder / copy_name(path, plain), [&](const std::string &to) {
		inject_outliers(larger, to, weights.seed);
	});
}

bool weights_option(Weights &weights, int option, const char *value)
{
	switch (option) {
	case weights_f16:
		weights.type = WeightType::f16;
		return true;
	case weights_f32:
		weights.type = WeightType::f32;
		return true;
	case weights_outliers:
		weights.outliers = true;
		return true;
	case weights_seed:
		weights.seed = whole("--seed", value, 0, UINT32_MAX);
		return true;
	default:
		return false;
	}
}

void weights_check(const Weights &weights)
{
	if (weights.outliers && weights.type == WeightType::f16)
		throw UsageError("--inject-outliers works on F32 weights, not with --f16-weights");
}

const char *weights_name(const Weights &weights)
{
	if (weights.outliers)
		return "f32+outliers";
	return weights.type == WeightType::f16   ? "f16"
	       : weights.type == WeightType::f32 ? "f32"
						 : "as-is";
}

} // namespace skvq
