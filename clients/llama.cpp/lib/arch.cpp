// SPDX-License-Identifier: Apache-2.0
#include "arch.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include <gguf.h>

#include <skvq/plugin.h>

#include "error.h"

namespace skvq
{

namespace
{

const char *const gemma3_keys[] = {
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
    nullptr,
};
const char *const gemma3_tensors[] = {"attn_q_norm.weight", "attn_k_norm.weight", nullptr};

// One entry per architecture whose graph was read and run. Checked with llama.cpp b11434.
const Arch archs[] = {
    {
	"llama",
	SKVQ_PAIRS_INTERLEAVED,
	{"Qcur", GGML_OP_ROPE},
	{"Kcur", GGML_OP_ROPE},
	{"Vcur", GGML_OP_RESHAPE},
	{"kqv_out", GGML_OP_RESHAPE},
    },
    // Q and K are normalised before RoPE; 1/sqrt(head_dim) is a node between RoPE and attention.
    {
	"gemma3",
	SKVQ_PAIRS_HALF,
	{"Qcur", GGML_OP_ROPE},
	{"Kcur", GGML_OP_ROPE},
	{"Vcur", GGML_OP_RESHAPE},
	{"kqv_out", GGML_OP_RESHAPE},
	true,
	6,
	10000.0,
	gemma3_keys,
	gemma3_tensors,
    },
};

// Metadata below "<arch>.attention.", "<arch>.rope." and "<arch>.attn_" that every architecture may
// have. Anything else there (ALiBi, clamping, soft caps, MLA ranks ...) is refused unless the
// architecture's own list has it.
const char *const common_keys[] = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    nullptr,
};

// Attention tensors of a layer, "blk.<n>.<this>".
const char *const common_tensors[] = {
    "attn_norm.weight", "attn_q.weight", "attn_k.weight",      "attn_v.weight",    "attn_q.bias",
    "attn_k.bias",      "attn_v.bias",   "attn_output.weight", "attn_output.bias",
    nullptr,
};

struct GgufDeleter {
	void operator()(gguf_context *gguf) const
	{
		gguf_free(gguf);
	}
};

// A GGUF header with typed, checked access.
class Gguf
{
      public:
	explicit Gguf(const std::string &path) : path_(path)
	{
		FILE *file = std::fopen(path.c_str(), "rb");
		if (!file)
			throw Error(SKVQ_EIO,
				    "cannot open model '" + path + "': " + std::strerror(errno));
		char magic[4];
		const size_t got = std::fread(magic, 1, sizeof magic, file);
		std::fclose(file);
		if (got != sizeof magic || std::memcmp(magic, GGUF_MAGIC, sizeof magic) != 0)
			throw Error(SKVQ_EINVAL, "'" + path + "' is not a GGUF file");
		gguf_.reset(
		    gguf_init_from_file(path.c_str(), {/*no_alloc*/ true, /*ctx*/ nullptr}));
		if (!gguf_)
			throw Error(SKVQ_ECORRUPT,
				    "the GGUF header of '" + path + "' cannot be read");
	}

	const gguf_context *get() const
	{
		return gguf_.get();
	}

	std::string text(const std::string &key) const
	{
		const int64_t id = gguf_find_key(get(), key.c_str());
		if (id < 0)
			return {};
		if (gguf_get_kv_type(get(), id) != GGUF_TYPE_STRING)
			refuse("metadata '" + key + "' is not a string");
		return gguf_get_val_str(get(), id);
	}

	// A whole number; fallback where the key is absent.
	uint32_t number(const std::string &key, uint32_t fallback) const
	{
		const int64_t id = gguf_find_key(get(), key.c_str());
		if (id < 0)
			return fallback;
		switch (gguf_get_kv_type(get(), id)) {
		case GGUF_TYPE_UINT16:
			return gguf_get_val_u16(get(), id);
		case GGUF_TYPE_UINT32:
			return gguf_get_val_u32(get(), id);
		case GGUF_TYPE_INT32:
			if (gguf_get_val_i32(get(), id) >= 0)
				return static_cast<uint32_t>(gguf_get_val_i32(get(), id));
			break;
		case GGUF_TYPE_UINT64:
			if (gguf_get_val_u64(get(), id) <= UINT32_MAX)
				return static_cast<uint32_t>(gguf_get_val_u64(get(), id));
			break;
		case GGUF_TYPE_ARRAY:
			refuse("'" + key + "' differs by layer");
		default:
			break;
		}
		refuse("metadata '" + key + "' is not a usable number");
	}

	double real(const std::string &key, double fallback) const
	{
		const int64_t id = gguf_find_key(get(), key.c_str());
		if (id < 0)
			return fallback;
		switch (gguf_get_kv_type(get(), id)) {
		case GGUF_TYPE_FLOAT32:
			return static_cast<double>(gguf_get_val_f32(get(), id));
		case GGUF_TYPE_FLOAT64:
			return gguf_get_val_f64(get(), id);
		default:
			refuse("metadata '" + key + "' is not a floating-point number");
		}
	}

	[[noreturn]] void refuse(const std::string &why) const
	{
		throw Error(SKVQ_ENOTSUP, "model '" + path_ + "' is not supported: " + why);
	}

      private:
	std::string path_;
	std::unique_ptr<gguf_context, GgufDeleter> gguf_;
};

const Arch *find_arch(const std::string &name)
{
	std::string supported;
	for (const Arch &arch : archs) {
		if (name == arch.name)
			return &arch;
		supported += (supported.empty() ? "" : ", ") + std::string(arch.name);
	}
	throw Error(SKVQ_ENOTSUP, "architecture '" + name +
				      "' is not supported yet (supported: " + supported + ")");
}

bool listed(const char *const *list, const std::string &name)
{
	for (; list && *list; ++list)
		if (name == *list)
			return true;
	return false;
}

bool starts_with(const std::string &text, const std::string &prefix)
{
	return text.compare(0, prefix.size(), prefix) == 0;
}

void check_keys(const Gguf &gguf, const Arch &arch)
{
	const std::string own = std::string(arch.name) + ".";
	for (int64_t i = 0; i < gguf_get_n_kv(gguf.get()); ++i) {
		const std::string key = gguf_get_key(gguf.get(), i);
		if (!starts_with(key, own))
			continue;
		const std::string tail = key.substr(own.size());
		if (!starts_with(tail, "attention.") && !starts_with(tail, "rope.") &&
		    !starts_with(tail, "attn_"))
			continue;
		if (!listed(common_keys, tail) && !listed(arch.keys, tail))
			gguf.refuse("metadata '" + key +
				    "' changes attention in a way this client does not know");
	}
	if (gguf.number("split.count", 1) > 1)
		gguf.refuse("it is split over several files");
}

void check_tensors(const Gguf &gguf, const Arch &arch)
{
	for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
		const std::string name = gguf_get_tensor_name(gguf.get(), i);
		if (!starts_with(name, "blk."))
			continue;
		const size_t dot = name.find('.', 4);
		const std::string tail = dot == std::string::npos ? "" : name.substr(dot + 1);
		if (starts_with(tail, "attn_") && !listed(common_tensors, tail) &&
		    !listed(arch.tensors, tail))
			gguf.refuse("tensor '" + name +
				    "' is not part of the attention this client knows");
		if (starts_with(tail, "rope_factors"))
			gguf.refuse("tensor '" + name +
				    "': long and short RoPE factors are not supported");
	}
}

// RoPE scaling as llama.cpp reads it, in one canonical text.
std::string rope_scaling(const Gguf &gguf, const std::string &arch)
{
	const std::string type = gguf.text(arch + ".rope.scaling.type");
	if (!type.empty() && type != "none" && type != "linear" && type != "yarn")
		gguf.refuse("RoPE scaling type '" + type + "' is not known");
	const double factor =
	    gguf.real(arch + ".rope.scaling.factor", gguf.real(arch + ".rope.scale_linear", 0.0));
	std::string text;
	if (!type.empty() && type != "none" && factor > 0.0) {
		char buf[96];
		std::snprintf(buf, sizeof buf, "%s:%.9g:%u", type.c_str(), factor,
			      gguf.number(arch + ".rope.scaling.original_context_length", 0));
		text = buf;
	} else if (factor > 0.0) {
		char buf[96];
		std::snprintf(buf, sizeof buf, "linear:%.9g:0", factor);
		text = buf;
	}
	// Llama 3: per-frequency factors are a tensor, so the weights' digest covers their values.
	if (gguf_find_tensor(gguf.get(), "rope_freqs.weight") >= 0)
		text += text.empty() ? "rope_freqs" : "+rope_freqs";
	return text;
}

// Which layers see a sliding window, as llama.cpp tells them apart: a list of the model's own, or
// all but the last of every few.
std::vector<uint32_t> layer_windows(const Gguf &gguf, const Arch &arch, uint32_t n_layer,
				    uint32_t n_swa)
{
	const std::string key = std::string(arch.name) + ".attention.sliding_window_pattern";
	const int64_t id = gguf_find_key(gguf.get(), key.c_str());
	std::vector<uint32_t> windows(n_layer, 0);
	if (id >= 0 && gguf_get_kv_type(gguf.get(), id) == GGUF_TYPE_ARRAY) {
		if (gguf_get_arr_type(gguf.get(), id) != GGUF_TYPE_BOOL ||
		    gguf_get_arr_n(gguf.get(), id) != n_layer)
			gguf.refuse("'" + key + "' is not a list of yes and no for each layer");
		const bool *slides = static_cast<const bool *>(gguf_get_arr_data(gguf.get(), id));
		for (uint32_t il = 0; il < n_layer; ++il)
			windows[il] = slides[il] ? n_swa : 0;
		return windows;
	}
	const uint32_t period = gguf.number(key, arch.swa_period);
	for (uint32_t il = 0; il < n_layer; ++il)
		windows[il] = period == 0 || il % period + 1 < period ? n_swa : 0;
	return windows;
}

void read_sliding_windows(const Gguf &gguf, ModelShape &shape)
{
	const std::string name = shape.arch->name;
	shape.n_swa = gguf.number(name + ".attention.sliding_window", 0);
	if (!shape.n_swa)
		return;
	shape.layer_window = layer_windows(gguf, *shape.arch, shape.n_layer, shape.n_swa);
	char buf[64];
	std::snprintf(buf, sizeof buf, "%sswa:%.9g", shape.rope_scaling.empty() ? "" : "+",
		      gguf.real(name + ".rope.freq_base_swa", shape.arch->swa_theta));
	shape.rope_scaling += buf;
}

} // namespace

ModelShape shape_from_gguf(const std::string &path)
{
	const Gguf gguf(path);
	const std::string name = gguf.text("general.architecture");
	if (name.empty())
		gguf.refuse("it does not name its architecture");

	ModelShape shape;
	shape.arch = find_arch(name);
	check_keys(gguf, *shape.arch);
	check_tensors(gguf, *shape.arch);

	shape.name = gguf.text("general.name");
	shape.n_layer = gguf.number(name + ".block_count", 0);
	shape.n_ctx_train = gguf.number(name + ".context_length", 0);
	shape.n_q_heads = gguf.number(name + ".attention.head_count", 0);
	shape.n_kv_heads = gguf.number(name + ".attention.head_count_kv", shape.n_q_heads);
	const uint32_t n_embd = gguf.number(name + ".embedding_length", 0);
	if (!shape.n_layer || !shape.n_ctx_train || !shape.n_q_heads || !shape.n_kv_heads ||
	    !n_embd)
		gguf.refuse("its layer count, heads, width or context length is missing");
	if (shape.n_q_heads % shape.n_kv_heads != 0)
		gguf.refuse("its query heads are not a multiple of its K/V heads");

	const uint32_t by_width = n_embd / shape.n_q_heads;
	shape.head_dim = gguf.number(name + ".attention.key_length", by_width);
	const uint32_t value_dim = gguf.number(name + ".attention.value_length", by_width);
	if (value_dim != shape.head_dim)
		gguf.refuse("keys have " + std::to_string(shape.head_dim) +
			    " channels and values " + std::to_string(value_dim));
	const uint32_t rope_dim = gguf.number(name + ".rope.dimension_count", shape.head_dim);
	if (rope_dim != shape.head_dim)
		gguf.refuse("RoPE turns " + std::to_string(rope_dim) + " of " +
			    std::to_string(shape.head_dim) + " channels");
	shape.rope_theta = gguf.real(name + ".rope.freq_base", 10000.0);
	shape.rope_scaling = rope_scaling(gguf, name);
	read_sliding_windows(gguf, shape);
	return shape;
}

} // namespace skvq
