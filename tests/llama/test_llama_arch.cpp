// SPDX-License-Identifier: Apache-2.0
//
// Which GGUF files the llama.cpp client takes: one that it knows in all its parts, and nothing
// else.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>

#include <unistd.h>

#include <gguf.h>

#include <skvq/plugin.h>

#include "arch.h"
#include "error.h"

#include "cmocka_cpp.h"

namespace
{

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

// A GGUF file of a small llama, changed by the test, on disk until the end of the test.
class File
{
      public:
	using Change = std::function<void(gguf_context *, ggml_context *)>;

	explicit File(const Change &change, const char *arch = "llama")
	{
		const std::unique_ptr<gguf_context, GgufDeleter> gguf(gguf_init_empty());
		const std::unique_ptr<ggml_context, GgmlDeleter> ctx(
		    ggml_init({size_t{1} << 16, nullptr, false}));
		const std::string own = std::string(arch) + ".";
		gguf_set_val_str(gguf.get(), "general.architecture", arch);
		gguf_set_val_str(gguf.get(), "general.name", "toy");
		gguf_set_val_u32(gguf.get(), (own + "block_count").c_str(), 2);
		gguf_set_val_u32(gguf.get(), (own + "context_length").c_str(), 256);
		gguf_set_val_u32(gguf.get(), (own + "embedding_length").c_str(), 128);
		gguf_set_val_u32(gguf.get(), (own + "attention.head_count").c_str(), 4);
		gguf_set_val_u32(gguf.get(), (own + "attention.head_count_kv").c_str(), 2);
		gguf_set_val_u32(gguf.get(), (own + "rope.dimension_count").c_str(), 32);
		gguf_set_val_f32(gguf.get(), (own + "rope.freq_base").c_str(), 50000.0f);
		change(gguf.get(), ctx.get());
		const int fd = mkstemp(path_);
		assert_true(fd >= 0);
		close(fd);
		assert_true(gguf_write_to_file(gguf.get(), path_, false));
	}
	~File()
	{
		unlink(path_);
	}
	File(const File &) = delete;
	File &operator=(const File &) = delete;
	const char *path() const
	{
		return path_;
	}

      private:
	char path_[32] = "/tmp/skvq-gguf-XXXXXX";
};

void add_tensor(gguf_context *gguf, ggml_context *ctx, const char *name)
{
	ggml_tensor *tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 4);
	ggml_set_name(tensor, name);
	gguf_add_tensor(gguf, tensor);
}

void expect_refused(const char *path, int32_t code, const char *because)
{
	try {
		(void)skvq::shape_from_gguf(path);
	} catch (const skvq::Error &e) {
		if (std::string(e.what()).find(because) == std::string::npos)
			fail_msg("'%s' does not mention '%s'", e.what(), because);
		assert_int_equal(e.code, code);
		return;
	}
	fail_msg("not refused; expected '%s'", because);
}

void refuse(const File::Change &change, const char *because)
{
	const File file(change);
	expect_refused(file.path(), SKVQ_ENOTSUP, because);
}

void reads_the_shape(void **)
{
	const File file([](gguf_context *gguf, ggml_context *ctx) {
		add_tensor(gguf, ctx, "blk.0.attn_q.weight");
		add_tensor(gguf, ctx, "blk.0.attn_q.bias");
		add_tensor(gguf, ctx, "blk.0.ffn_up.weight");
	});
	const skvq::ModelShape shape = skvq::shape_from_gguf(file.path());
	assert_string_equal(shape.arch->name, "llama");
	assert_int_equal(shape.arch->rope_pairs, SKVQ_PAIRS_INTERLEAVED);
	assert_string_equal(shape.name.c_str(), "toy");
	assert_int_equal(shape.n_layer, 2);
	assert_int_equal(shape.n_q_heads, 4);
	assert_int_equal(shape.n_kv_heads, 2);
	assert_int_equal(shape.head_dim, 32);
	assert_int_equal(shape.n_ctx_train, 256);
	assert_true(shape.rope_theta == 50000.0);
	assert_string_equal(shape.rope_scaling.c_str(), "");
}

void names_rope_scaling(void **)
{
	const File linear([](gguf_context *gguf, ggml_context *) {
		gguf_set_val_str(gguf, "llama.rope.scaling.type", "linear");
		gguf_set_val_f32(gguf, "llama.rope.scaling.factor", 4.0f);
	});
	assert_string_equal(skvq::shape_from_gguf(linear.path()).rope_scaling.c_str(),
			    "linear:4:0");
	const File factors([](gguf_context *gguf, ggml_context *ctx) {
		add_tensor(gguf, ctx, "rope_freqs.weight");
	});
	assert_string_equal(skvq::shape_from_gguf(factors.path()).rope_scaling.c_str(),
			    "rope_freqs");
}

void refuses_other_architectures(void **)
{
	const File file([](gguf_context *, ggml_context *) {}, "gemma2");
	expect_refused(file.path(), SKVQ_ENOTSUP,
		       "architecture 'gemma2' is not supported yet (supported: llama, gemma3)");
}

void gemma_slides(gguf_context *gguf, ggml_context *ctx)
{
	gguf_set_val_u32(gguf, "gemma3.block_count", 8);
	gguf_set_val_u32(gguf, "gemma3.attention.key_length", 64);
	gguf_set_val_u32(gguf, "gemma3.attention.value_length", 64);
	gguf_set_val_u32(gguf, "gemma3.rope.dimension_count", 64);
	gguf_set_val_u32(gguf, "gemma3.attention.sliding_window", 96);
	add_tensor(gguf, ctx, "blk.0.attn_q_norm.weight");
	add_tensor(gguf, ctx, "blk.0.attn_k_norm.weight");
}

void reads_sliding_windows(void **)
{
	const File by_default(gemma_slides, "gemma3");
	skvq::ModelShape shape = skvq::shape_from_gguf(by_default.path());
	assert_string_equal(shape.arch->name, "gemma3");
	assert_int_equal(shape.arch->rope_pairs, SKVQ_PAIRS_HALF);
	assert_int_equal(shape.head_dim, 64);
	assert_int_equal(shape.n_swa, 96);
	for (uint32_t il = 0; il < 8; ++il)
		assert_int_equal(shape.window_of(il), il == 5 ? 0 : 96);
	assert_string_equal(shape.rope_scaling.c_str(), "swa:10000");

	const File by_number(
	    [](gguf_context *gguf, ggml_context *ctx) {
		    gemma_slides(gguf, ctx);
		    gguf_set_val_u32(gguf, "gemma3.attention.sliding_window_pattern", 2);
		    gguf_set_val_f32(gguf, "gemma3.rope.freq_base_swa", 500.0f);
		    gguf_set_val_str(gguf, "gemma3.rope.scaling.type", "linear");
		    gguf_set_val_f32(gguf, "gemma3.rope.scaling.factor", 8.0f);
	    },
	    "gemma3");
	shape = skvq::shape_from_gguf(by_number.path());
	for (uint32_t il = 0; il < 8; ++il)
		assert_int_equal(shape.window_of(il), il % 2 ? 0 : 96);
	assert_string_equal(shape.rope_scaling.c_str(), "linear:8:0+swa:500");

	const bool list[8] = {false, true, true, false, false, true, false, true};
	const File by_list(
	    [&](gguf_context *gguf, ggml_context *ctx) {
		    gemma_slides(gguf, ctx);
		    gguf_set_arr_data(gguf, "gemma3.attention.sliding_window_pattern",
				      GGUF_TYPE_BOOL, list, 8);
	    },
	    "gemma3");
	shape = skvq::shape_from_gguf(by_list.path());
	for (uint32_t il = 0; il < 8; ++il)
		assert_int_equal(shape.window_of(il), list[il] ? 96 : 0);

	const File short_list(
	    [&](gguf_context *gguf, ggml_context *ctx) {
		    gemma_slides(gguf, ctx);
		    gguf_set_arr_data(gguf, "gemma3.attention.sliding_window_pattern",
				      GGUF_TYPE_BOOL, list, 7);
	    },
	    "gemma3");
	expect_refused(short_list.path(), SKVQ_ENOTSUP, "is not a list of yes and no");
}

void gemma_is_not_taken_with_more(void **)
{
	for (const char *key : {"gemma3.attn_logit_softcapping", "gemma3.attention.scale"}) {
		const File file(
		    [=](gguf_context *gguf, ggml_context *ctx) {
			    gemma_slides(gguf, ctx);
			    gguf_set_val_f32(gguf, key, 8);
		    },
		    "gemma3");
		expect_refused(file.path(), SKVQ_ENOTSUP, key);
	}
	const File file(
	    [](gguf_context *gguf, ggml_context *ctx) {
		    gemma_slides(gguf, ctx);
		    add_tensor(gguf, ctx, "blk.0.attn_sinks.weight");
	    },
	    "gemma3");
	expect_refused(file.path(), SKVQ_ENOTSUP, "blk.0.attn_sinks.weight");
}

void refuses_other_attention(void **)
{
	for (const char *key : {"llama.attention.sliding_window", "llama.attention.kv_lora_rank",
				"llama.attention.indexer.top_k", "llama.rope.dimension_sections"})
		refuse([=](gguf_context *gguf, ggml_context *) { gguf_set_val_u32(gguf, key, 16); },
		       key);
	for (const char *key : {"llama.attention.max_alibi_bias", "llama.attention.clamp_kqv",
				"llama.attention.scale", "llama.attn_logit_softcapping"})
		refuse([=](gguf_context *gguf, ggml_context *) { gguf_set_val_f32(gguf, key, 8); },
		       key);
	for (const char *name : {"blk.1.attn_qkv.weight", "blk.0.attn_q_norm.weight",
				 "blk.0.attn_sinks.weight", "blk.0.attn_kv_a_mqa.weight"})
		refuse([=](gguf_context *gguf, ggml_context *ctx) { add_tensor(gguf, ctx, name); },
		       name);
}

void refuses_other_geometry(void **)
{
	refuse([](gguf_context *gguf,
		  ggml_context *) { gguf_set_val_u32(gguf, "llama.attention.value_length", 64); },
	       "keys have 32 channels and values 64");
	refuse([](gguf_context *gguf,
		  ggml_context *) { gguf_set_val_u32(gguf, "llama.rope.dimension_count", 16); },
	       "RoPE turns 16 of 32");
	refuse([](gguf_context *gguf,
		  ggml_context *) { gguf_set_val_u32(gguf, "llama.attention.head_count_kv", 3); },
	       "not a multiple");
	refuse(
	    [](gguf_context *gguf, ggml_context *) {
		    const uint32_t heads[2] = {2, 4};
		    gguf_set_arr_data(gguf, "llama.attention.head_count_kv", GGUF_TYPE_UINT32,
				      heads, 2);
	    },
	    "differs by layer");
	refuse(
	    [](gguf_context *gguf, ggml_context *) { gguf_remove_key(gguf, "llama.block_count"); },
	    "missing");
	refuse(
	    [](gguf_context *gguf, ggml_context *) {
		    gguf_set_val_str(gguf, "llama.rope.scaling.type", "longrope");
	    },
	    "'longrope' is not known");
	refuse([](gguf_context *gguf, ggml_context *) { gguf_set_val_u16(gguf, "split.count", 2); },
	       "several files");
}

void refuses_what_is_not_a_model(void **)
{
	expect_refused("/nonexistent/x.gguf", SKVQ_EIO, "cannot open model '/nonexistent/x.gguf'");
	expect_refused("/etc/passwd", SKVQ_EINVAL, "'/etc/passwd' is not a GGUF file");
	expect_refused("/dev/null", SKVQ_EINVAL, "not a GGUF file");
	const File file([](gguf_context *, ggml_context *) {});
	assert_int_equal(truncate(file.path(), 40), 0);
	expect_refused(file.path(), SKVQ_ECORRUPT, "cannot be read");
}

} // namespace

int main()
{
	ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
	const CMUnitTest tests[] = {
	    cmocka_unit_test(reads_the_shape),
	    cmocka_unit_test(names_rope_scaling),
	    cmocka_unit_test(refuses_other_architectures),
	    cmocka_unit_test(reads_sliding_windows),
	    cmocka_unit_test(gemma_is_not_taken_with_more),
	    cmocka_unit_test(refuses_other_attention),
	    cmocka_unit_test(refuses_other_geometry),
	    cmocka_unit_test(refuses_what_is_not_a_model),
	};
	return cmocka_run_group_tests(tests, nullptr, nullptr);
}
