// SPDX-License-Identifier: Apache-2.0
//
// The conversation between llama.cpp's graph and the plugin: what is handed over in the right
// order, and that every other order, shape or kind of node fails the decode.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>

#include "arch.h"
#include "capture.h"
#include "team.h"

#include "cmocka_cpp.h"

namespace
{

constexpr uint32_t n_layer = 2, n_q = 4, n_kv = 2, dim = 16, n_tokens = 3;

const skvq::Arch toy_arch = {
    "toy",
    SKVQ_PAIRS_INTERLEAVED,
    {"Qcur", GGML_OP_ROPE},
    {"Kcur", GGML_OP_ROPE},
    {"Vcur", GGML_OP_RESHAPE},
    {"kqv_out", GGML_OP_RESHAPE},
};

skvq::Arch scaled_arch()
{
	skvq::Arch arch = toy_arch;
	arch.scaled_query = true;
	return arch;
}
const skvq::Arch toy_scaled_arch = scaled_arch();

struct Seen {
	int appends = 0, attends = 0;
	float first_k = 0, first_v = 0, first_q = 0, scale = 0;
	uint32_t position = 0, rows = 0, sliding_limit = 0;
	int32_t append_rc = 0, attend_rc = 0;
} seen;

int32_t fake_append(skvq_seq *, const skvq_kv *kv)
{
	++seen.appends;
	seen.first_k = *static_cast<const float *>(kv->k);
	seen.first_v = *static_cast<const float *>(kv->v);
	return seen.append_rc;
}

// Puts row + 1 into every channel of its rows.
int32_t fake_attend(skvq_seq *const *, const skvq_attn *attn, uint32_t)
{
	if (attn->ith)
		return 0;
	++seen.attends;
	seen.first_q = *static_cast<const float *>(attn->q);
	seen.scale = attn->scale;
	seen.position = attn->position;
	seen.rows = attn->n_rows;
	seen.sliding_limit = attn->sliding_limit;
	for (uint32_t r = 0; r < attn->n_rows; ++r) {
		float *row = reinterpret_cast<float *>(reinterpret_cast<char *>(attn->out) +
						       r * attn->out_row_stride);
		for (uint32_t i = 0; i < n_q * dim; ++i)
			row[i] = static_cast<float>(r + 1);
	}
	return seen.attend_rc;
}

const char *fake_err_name(int32_t)
{
	return "SKVQ_EFAKE";
}

struct ContextDeleter {
	void operator()(ggml_context *ctx) const
	{
		ggml_free(ctx);
	}
};
struct BackendDeleter {
	void operator()(ggml_backend *backend) const
	{
		ggml_backend_free(backend);
	}
};
struct BufferDeleter {
	void operator()(ggml_backend_buffer *buffer) const
	{
		ggml_backend_buffer_free(buffer);
	}
};

// The nodes of n_layer layers as llama.cpp builds them, allocated but not computed, and a capture
// that is fed with them by hand.
struct Rig {
	skvq_api api{};
	skvq::ModelShape shape;
	skvq::Team team{1};
	std::unique_ptr<skvq::Capture> capture;
	std::unique_ptr<ggml_context, ContextDeleter> ctx{
	    ggml_init({size_t{1} << 20, nullptr, true})};
	std::unique_ptr<ggml_backend, BackendDeleter> backend{ggml_backend_cpu_init()};
	std::unique_ptr<ggml_backend_buffer, BufferDeleter> buffer;
	ggml_tensor *q[n_layer], *k[n_layer], *v[n_layer], *attention[n_layer], *out[n_layer];

	explicit Rig(const skvq::Arch &arch = toy_arch)
	{
		seen = Seen{};
		api.struct_size = sizeof api;
		api.append = fake_append;
		api.attend = fake_attend;
		api.err_name = fake_err_name;
		shape.arch = &arch;
		shape.n_layer = n_layer;
		shape.n_q_heads = n_q;
		shape.n_kv_heads = n_kv;
		shape.head_dim = dim;
		capture = std::make_unique<skvq::Capture>(shape, &api, team, 8);
		for (uint32_t il = 0; il < n_layer; ++il)
			build(il, n_tokens);
		buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
		for (uint32_t il = 0; il < n_layer; ++il) {
			fill(q[il], 1);
			fill(k[il], 2);
			fill(v[il], 3);
			fill(out[il], -1);
		}
	}

	void build(uint32_t il, uint32_t n)
	{
		ggml_context *c = ctx.get();
		ggml_tensor *pos = ggml_new_tensor_1d(c, GGML_TYPE_I32, n);
		ggml_tensor *raw_q = ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, n_q, n);
		ggml_tensor *raw_k = ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, n_kv, n);
		ggml_tensor *raw_v = ggml_new_tensor_2d(c, GGML_TYPE_F32, dim * n_kv, n);
		ggml_tensor *cells = ggml_new_tensor_3d(c, GGML_TYPE_F16, dim, 32, n_kv);
		q[il] = ggml_rope(c, raw_q, pos, dim, 0);
		k[il] = ggml_rope(c, raw_k, pos, dim, 0);
		v[il] = ggml_reshape_3d(c, raw_v, dim, n_kv, n);
		ggml_tensor *query = shape.arch->scaled_query ? ggml_scale(c, q[il], 0.5f) : q[il];
		attention[il] = ggml_flash_attn_ext(c, ggml_permute(c, query, 0, 2, 1, 3), cells,
						    cells, nullptr, 0.25f, 0.0f, 0.0f);
		out[il] = ggml_reshape_2d(c, attention[il], dim * n_q, n);
		ggml_format_name(q[il], "Qcur-%u", il);
		ggml_format_name(k[il], "Kcur-%u", il);
		ggml_format_name(v[il], "Vcur-%u", il);
		ggml_format_name(out[il], "kqv_out-%u", il);
	}

	static void fill(ggml_tensor *tensor, float value)
	{
		float *data = static_cast<float *>(tensor->data);
		for (int64_t i = 0; i < ggml_nelements(tensor); ++i)
			data[i] = value;
	}

	// As ggml's scheduler does: ask, compute, hand over if asked for.
	bool node(ggml_tensor *tensor)
	{
		return !skvq::Capture::callback(tensor, true, capture.get()) ||
		       skvq::Capture::callback(tensor, false, capture.get());
	}

	bool nodes(const std::vector<ggml_tensor *> &list)
	{
		for (ggml_tensor *tensor : list)
			if (!node(tensor))
				return false;
		return true;
	}

	bool layer(uint32_t il)
	{
		return nodes({q[il], v[il], k[il], attention[il], out[il]});
	}

	void begin(uint32_t first_output = 0)
	{
		// The capture only passes the sequence on.
		capture->begin(reinterpret_cast<skvq_seq *>(this), 7, n_tokens, first_output);
	}

	void expect_failed(const char *because)
	{
		assert_false(capture->finish());
		if (capture->error().find(because) == std::string::npos)
			fail_msg("'%s' does not mention '%s'", capture->error().c_str(), because);
		for (uint32_t il = 0; il < n_layer; ++il)
			assert_int_equal(attention[il]->op, GGML_OP_FLASH_ATTN_EXT);
	}
};

float row_of(const ggml_tensor *out, uint32_t row)
{
	return static_cast<const float *>(out->data)[row * n_q * dim];
}

void takes_and_puts(void **)
{
	Rig rig;
	rig.begin();
	assert_true(rig.nodes({rig.q[0], rig.v[0], rig.k[0]}));
	assert_int_equal(seen.appends, 1);
	// The scheduler asks about the nodes up to the output before it computes them.
	assert_false(skvq::Capture::callback(rig.attention[0], true, rig.capture.get()));
	assert_int_equal(rig.attention[0]->op, GGML_OP_NONE);
	Rig::fill(rig.q[0], 99); // llama.cpp may reuse its memory
	assert_true(rig.node(rig.out[0]));
	assert_int_equal(rig.attention[0]->op, GGML_OP_FLASH_ATTN_EXT);
	assert_true(seen.first_q == 1 && seen.first_k == 2 && seen.first_v == 3);
	assert_true(seen.scale == 0.25f);
	assert_int_equal(seen.position, 7);
	assert_int_equal(seen.rows, n_tokens);
	assert_true(rig.layer(1));
	assert_true(rig.capture->finish());
	assert_int_equal(seen.appends, 2);
	assert_int_equal(seen.attends, 2);
	for (uint32_t r = 0; r < n_tokens; ++r)
		assert_true(row_of(rig.out[0], r) == static_cast<float>(r + 1));
}

void last_layer_attends_to_what_gives_logits(void **)
{
	Rig rig;
	rig.begin(n_tokens - 1);
	assert_true(rig.layer(0));
	assert_int_equal(seen.rows, n_tokens);
	assert_true(rig.layer(1));
	assert_int_equal(seen.rows, 1);
	assert_int_equal(seen.position, 7 + n_tokens - 1);
	assert_true(rig.capture->finish());
	assert_true(row_of(rig.out[1], 0) == 0 && row_of(rig.out[1], n_tokens - 1) == 1);
}

void other_nodes_pass_by(void **)
{
	Rig rig;
	rig.begin();
	ggml_set_name(rig.q[1], "Qcur-0 (view)");
	assert_true(rig.node(rig.q[1]));
	ggml_set_name(rig.q[1], "Qcur-");
	assert_true(rig.node(rig.q[1]));
	ggml_set_name(rig.q[1], "Qcur-1");
	ggml_set_name(rig.v[1], "Qcur-0"); // the name, but not the operation
	assert_true(rig.node(rig.v[1]));
	ggml_set_name(rig.v[1], "Vcur-1");
	assert_true(rig.layer(0) && rig.layer(1));
	assert_true(rig.capture->finish());
}

void order_is_held(void **)
{
	{
		Rig rig;
		rig.begin();
		assert_true(rig.layer(0));
		rig.expect_failed("computed 1 of 2 attention layers");
	}
	{
		Rig rig;
		rig.begin();
		assert_false(rig.layer(1));
		rig.expect_failed("layer 0 is not complete");
	}
	{
		Rig rig;
		rig.begin();
		assert_false(
		    rig.nodes({rig.q[0], rig.v[0], rig.attention[0], rig.out[0], rig.k[0]}));
		rig.expect_failed("before Q, K and V");
	}
	{
		Rig rig;
		rig.begin();
		assert_false(rig.nodes({rig.q[0], rig.k[0], rig.k[0]}));
		rig.expect_failed("computed twice");
	}
	{
		Rig rig;
		rig.begin();
		assert_true(rig.layer(0));
		assert_false(rig.layer(0));
		rig.expect_failed("layer 1 is not complete");
	}
	{
		Rig rig; // an attention that our output is not behind
		rig.begin();
		assert_true(rig.nodes({rig.q[0], rig.v[0], rig.k[0], rig.attention[1]}));
		assert_false(rig.node(rig.out[0]));
		rig.expect_failed("not the result of this layer's flash attention");
	}
}

void a_failed_decode_stays_failed_and_the_next_may_succeed(void **)
{
	Rig rig;
	rig.begin();
	assert_false(rig.layer(1));
	assert_true(skvq::Capture::callback(rig.q[0], true, rig.capture.get()));
	assert_false(skvq::Capture::callback(rig.q[0], false, rig.capture.get()));
	rig.expect_failed("layer 0");
	rig.begin();
	assert_true(rig.layer(0) && rig.layer(1));
	assert_true(rig.capture->finish());
}

void nothing_is_taken_outside_of_a_decode(void **)
{
	Rig rig;
	assert_false(rig.node(rig.q[0]));
	assert_int_equal(seen.appends, 0);
}

void shapes_and_kinds_are_checked(void **)
{
	{
		Rig rig;
		rig.capture->begin(reinterpret_cast<skvq_seq *>(&rig), 0, n_tokens + 1, 0);
		assert_false(rig.layer(0));
		rig.expect_failed("another shape");
	}
	{
		Rig rig;
		rig.begin();
		rig.k[0]->type = GGML_TYPE_F16;
		assert_false(rig.layer(0));
		rig.expect_failed("of type f16");
	}
	{
		Rig rig;
		rig.begin();
		rig.attention[0]->src[4] = rig.q[0];
		assert_false(rig.layer(0));
		rig.expect_failed("sink");
	}
	for (int which = 1; which <= 2; ++which) {
		Rig rig;
		rig.begin();
		const float value = 8;
		std::memcpy(&rig.attention[0]->op_params[which], &value, sizeof value);
		assert_false(rig.layer(0));
		rig.expect_failed("ALiBi or a soft cap");
	}
	{
		Rig rig;
		rig.begin();
		rig.attention[0]->src[0] = rig.attention[1]->src[0];
		assert_false(rig.layer(0));
		rig.expect_failed("query is not the one");
	}
}

void a_scale_before_attention_counts(void **)
{
	{
		Rig rig(toy_scaled_arch);
		rig.begin();
		assert_true(rig.layer(0) && rig.layer(1));
		assert_true(rig.capture->finish());
		assert_true(seen.scale == 0.125f && seen.first_q == 1);
	}
	{
		Rig rig(toy_scaled_arch); // not for an architecture that has none
		rig.shape.arch = &toy_arch;
		rig.begin();
		assert_false(rig.layer(0));
		rig.expect_failed("query is not the one");
	}
	{
		Rig rig; // nor none for one that has it
		rig.shape.arch = &toy_scaled_arch;
		rig.begin();
		assert_false(rig.layer(0));
		rig.expect_failed("query is not the one");
	}
	{
		Rig rig(toy_scaled_arch); // a shifted query is another one
		const float shift = 1;
		std::memcpy(&rig.attention[0]->src[0]->view_src->op_params[1], &shift, sizeof shift);
		rig.begin();
		assert_false(rig.layer(0));
		rig.expect_failed("query is not the one");
	}
}

void sliding_windows_are_held_against_masks(void **)
{
	const auto slide = [](Rig &rig, uint32_t first, uint32_t second) {
		rig.shape.n_swa = 2;
		rig.shape.layer_window = {first, second};
		rig.begin();
	};
	{
		Rig rig;
		slide(rig, 2, 0);
		rig.attention[0]->src[3] = rig.q[0]; // any two tensors
		rig.attention[1]->src[3] = rig.k[0];
		assert_true(rig.layer(0));
		assert_int_equal(seen.sliding_limit, 2);
		assert_true(rig.layer(1));
		assert_int_equal(seen.sliding_limit, 0);
		assert_true(rig.capture->finish());
	}
	{
		Rig rig; // one mask for what should be two kinds
		slide(rig, 2, 0);
		rig.attention[0]->src[3] = rig.attention[1]->src[3] = rig.q[0];
		assert_true(rig.layer(0));
		assert_false(rig.layer(1));
		rig.expect_failed("another window");
	}
	{
		Rig rig; // two masks for what should be one
		slide(rig, 2, 2);
		rig.attention[0]->src[3] = rig.q[0];
		rig.attention[1]->src[3] = rig.k[0];
		assert_true(rig.layer(0));
		assert_false(rig.layer(1));
		rig.expect_failed("another window");
	}
}

void plugin_errors_fail_the_decode(void **)
{
	{
		Rig rig;
		seen.append_rc = -1;
		rig.begin();
		assert_false(rig.layer(0));
		rig.expect_failed("SKVQ_EFAKE");
	}
	{
		Rig rig;
		seen.attend_rc = -1;
		rig.begin();
		assert_false(rig.layer(0));
		rig.expect_failed("SKVQ_EFAKE");
	}
}

void team_runs_every_share_once(void **)
{
	for (uint32_t n = 1; n <= 3; ++n) {
		skvq::Team team(n);
		std::vector<int> shares(8, 0);
		for (int round = 0; round < 20; ++round)
			assert_true(team.run(
			    [](void *user, uint32_t ith, uint32_t nth) {
				    std::vector<int> &counts =
					*static_cast<std::vector<int> *>(user);
				    for (uint32_t i = ith; i < counts.size(); i += nth)
					    ++counts[i];
			    },
			    &shares));
		for (const int count : shares)
			assert_int_equal(count, 20);
	}
}

} // namespace

int main()
{
	const CMUnitTest tests[] = {
	    cmocka_unit_test(takes_and_puts),
	    cmocka_unit_test(last_layer_attends_to_what_gives_logits),
	    cmocka_unit_test(other_nodes_pass_by),
	    cmocka_unit_test(order_is_held),
	    cmocka_unit_test(a_failed_decode_stays_failed_and_the_next_may_succeed),
	    cmocka_unit_test(nothing_is_taken_outside_of_a_decode),
	    cmocka_unit_test(shapes_and_kinds_are_checked),
	    cmocka_unit_test(a_scale_before_attention_counts),
	    cmocka_unit_test(sliding_windows_are_held_against_masks),
	    cmocka_unit_test(plugin_errors_fail_the_decode),
	    cmocka_unit_test(team_runs_every_share_once),
	};
	return cmocka_run_group_tests(tests, nullptr, nullptr);
}
