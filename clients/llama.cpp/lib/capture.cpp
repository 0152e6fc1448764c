// SPDX-License-Identifier: Apache-2.0
#include "capture.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

#include <ggml-backend.h>

namespace skvq
{

namespace
{

double now_s()
{
	using clock = std::chrono::steady_clock;
	return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// The <layer> of "<prefix>-<layer>"; false for any other name, "(view)" and the like included.
bool layer_of(const char *name, const char *prefix, uint32_t *ret_layer)
{
	const size_t n = std::strlen(prefix);
	if (std::strncmp(name, prefix, n) != 0 || name[n] != '-')
		return false;
	const char *digits = name + n + 1;
	if (*digits < '0' || *digits > '9')
		return false;
	char *end = nullptr;
	const unsigned long layer = std::strtoul(digits, &end, 10);
	if (*end != '\0' || layer > UINT32_MAX)
		return false;
	*ret_layer = static_cast<uint32_t>(layer);
	return true;
}

// What a flash attention node computes with; ggml keeps it as three floats.
struct FlashParams {
	float scale, max_bias, softcap;
};

} // namespace

Capture::Capture(const ModelShape &shape, const skvq_api *api, Team &team, uint32_t n_ubatch)
    : shape_(shape), api_(api), team_(team)
{
	const size_t n_channels = static_cast<size_t>(n_ubatch) * shape.head_dim;
	q_rows_.resize(n_channels * shape.n_q_heads);
	k_rows_.resize(n_channels * shape.n_kv_heads);
	v_rows_.resize(n_channels * shape.n_kv_heads);
}

void Capture::begin(skvq_seq *seq, uint32_t position, uint32_t n_tokens, uint32_t first_output)
{
	seq_ = seq;
	position_ = position;
	n_tokens_ = n_tokens;
	first_output_ = first_output;
	layer_ = 0;
	q_ = nullptr;
	seen_k_ = seen_v_ = false;
	mask_full_ = mask_sliding_ = nullptr;
	failed_ = false;
	error_.clear();
	plugin_rc_ = 0;
}

bool Capture::finish()
{
	seq_ = nullptr;
	restore_attention();
	if (!failed_ && layer_ != shape_.n_layer) {
		failed_ = true;
		error_ = "llama.cpp computed " + std::to_string(layer_) + " of " +
			 std::to_string(shape_.n_layer) + " attention layers as expected";
	}
	return !failed_;
}

bool Capture::callback(ggml_tensor *tensor, bool ask, void *user)
{
	Capture *self = static_cast<Capture *>(user);
	if (ask) {
		uint32_t layer;
		if (tensor->op == GGML_OP_FLASH_ATTN_EXT)
			self->skip_attention(tensor);
		return self->failed_ || self->role_of(tensor, &layer) != Role::none;
	}
	return !self->failed_ && self->take(tensor);
}

Capture::Role Capture::role_of(const ggml_tensor *tensor, uint32_t *layer) const
{
	const Arch &arch = *shape_.arch;
	const struct {
		const NodeSpec &spec;
		Role role;
	} table[] = {
	    {arch.q, Role::q}, {arch.k, Role::k}, {arch.v, Role::v}, {arch.out, Role::out}};
	for (const auto &entry : table)
		if (tensor->op == entry.spec.op && layer_of(tensor->name, entry.spec.prefix, layer))
			return entry.role;
	return Role::none;
}

bool Capture::take(ggml_tensor *tensor)
{
	uint32_t layer = 0;
	const Role role = role_of(tensor, &layer);
	if (!seq_)
		return fail(tensor, "computed outside of a decode of this client");
	if (role == Role::none)
		return fail(tensor, "not a node of this architecture");
	if (layer != layer_)
		return fail(tensor, "layer " + std::to_string(layer_) + " is not complete");
	if (tensor->type != GGML_TYPE_F32)
		return fail(tensor, std::string("of type ") + ggml_type_name(tensor->type));
	if (!tensor->data || !tensor->buffer || !ggml_backend_buffer_is_host(tensor->buffer))
		return fail(tensor, "not in host memory");
	if (role == Role::out)
		return put_out(tensor);
	if (role == Role::q ? q_ != nullptr : role == Role::k ? seen_k_ : seen_v_)
		return fail(tensor, "computed twice");
	if (role == Role::q) {
		q_ = tensor;
		return take_rows(tensor, shape_.n_q_heads, q_rows_);
	}
	(role == Role::k ? seen_k_ : seen_v_) = true;
	return take_rows(tensor, shape_.n_kv_heads, role == Role::k ? k_rows_ : v_rows_) &&
	       (!seen_k_ || !seen_v_ || append(tensor));
}

// llama.cpp may reuse a node's memory as soon as its own use of it is over: copy it now.
bool Capture::take_rows(const ggml_tensor *tensor, uint32_t n_heads, std::vector<float> &rows)
{
	if (tensor->ne[0] != shape_.head_dim || tensor->ne[1] != n_heads ||
	    tensor->ne[2] != n_tokens_ || tensor->ne[3] != 1 || tensor->nb[0] != sizeof(float))
		return fail(tensor, "of another shape than [head_dim, heads, tokens]");
	const size_t head_bytes = shape_.head_dim * sizeof(float);
	const char *from = static_cast<const char *>(tensor->data);
	char *to = reinterpret_cast<char *>(rows.data());
	for (uint32_t t = 0; t < n_tokens_; ++t)
		for (uint32_t h = 0; h < n_heads; ++h, to += head_bytes)
			std::memcpy(to, from + t * tensor->nb[2] + h * tensor->nb[1], head_bytes);
	return true;
}

bool Capture::append(const ggml_tensor *last)
{
	const int64_t head_bytes = static_cast<int64_t>(shape_.head_dim * sizeof(float));
	skvq_kv kv{};
	kv.struct_size = sizeof kv;
	kv.layer = layer_;
	kv.position = position_;
	kv.n_tokens = n_tokens_;
	kv.k_type = kv.v_type = SKVQ_F32;
	kv.k = k_rows_.data();
	kv.v = v_rows_.data();
	kv.k_token_stride = kv.v_token_stride = head_bytes * shape_.n_kv_heads;
	kv.k_head_stride = kv.v_head_stride = head_bytes;
	const double start = now_s();
	const int32_t rc = api_->append(seq_, &kv);
	append_s_ += now_s() - start;
	if (rc < 0) {
		plugin_rc_ = rc;
		return fail(last, std::string("refused by the plugin: ") + api_->err_name(rc));
	}
	return true;
}

// Only one that put_out() can be about: anything else is computed, and refused there.
void Capture::skip_attention(ggml_tensor *tensor)
{
	if (!seq_ || failed_ || skipped_ || !q_ || !seen_k_ || !seen_v_)
		return;
	skipped_ = tensor;
	tensor->op = GGML_OP_NONE;
}

void Capture::restore_attention()
{
	if (skipped_)
		skipped_->op = GGML_OP_FLASH_ATTN_EXT;
	skipped_ = nullptr;
}

// The query must be Q itself or, where the architecture has it so, Q times a number.
bool Capture::query_scale(const ggml_tensor *query, float *ret_scale) const
{
	*ret_scale = 1.0f;
	if (!query)
		return false;
	const ggml_tensor *base = query->view_src ? query->view_src : query;
	if (!shape_.arch->scaled_query)
		return base == q_;
	float params[2]; // factor and summand, as ggml keeps them
	std::memcpy(params, base->op_params, sizeof params);
	if (base->op != GGML_OP_SCALE || base->src[0] != q_ || params[1] != 0.0f)
		return false;
	*ret_scale = params[0];
	return true;
}

// llama.cpp has one mask for layers with a sliding window and one for all others: a model whose
// layers are divided in another way than we took them for is noticed here.
bool Capture::check_mask(const ggml_tensor *out, const ggml_tensor *mask)
{
	const bool slides = shape_.window_of(layer_) != 0;
	const ggml_tensor *&own = slides ? mask_sliding_ : mask_full_;
	const ggml_tensor *other = slides ? mask_full_ : mask_sliding_;
	if (!own)
		own = mask;
	if (shape_.n_swa && (mask != own || mask == other))
		return fail(out, "of an attention with another window than this layer's");
	return true;
}

// The output must be a plain view of the flash attention node that was skipped, whose query is the
// one we took.
bool Capture::check_attention(const ggml_tensor *out, float *ret_scale)
{
	const ggml_tensor *attention = out->src[0];
	if (!attention || attention != skipped_)
		return fail(out, "not the result of this layer's flash attention");
	float factor;
	if (!query_scale(attention->src[0], &factor))
		return fail(out, "of an attention whose query is not the one seen");
	if (attention->src[4])
		return fail(out, "of an attention with sink logits");
	FlashParams params;
	static_assert(sizeof params <= sizeof attention->op_params, "ggml keeps them in op_params");
	std::memcpy(&params, attention->op_params, sizeof params);
	if (params.max_bias != 0.0f || params.softcap != 0.0f)
		return fail(out, "of an attention with ALiBi or a soft cap");
	if (!(params.scale * factor > 0.0f))
		return fail(out, "of an attention without a scale");
	*ret_scale = params.scale * factor;
	return check_mask(out, attention->src[3]);
}

bool Capture::put_out(ggml_tensor *tensor)
{
	if (!q_ || !seen_k_ || !seen_v_)
		return fail(tensor, "computed before Q, K and V");
	const int64_t row = static_cast<int64_t>(shape_.n_q_heads) * shape_.head_dim;
	if (tensor->ne[0] != row || tensor->ne[1] != n_tokens_ || tensor->ne[2] != 1 ||
	    tensor->ne[3] != 1 || tensor->nb[0] != sizeof(float))
		return fail(tensor, "of another shape than [heads * head_dim, tokens]");
	float scale = 0.0f;
	if (!check_attention(tensor, &scale) || !attend(tensor, scale))
		return false;
	restore_attention();
	if (observer_)
		observer_(layer_, position_, n_tokens_, q_rows_.data(), k_rows_.data(),
			  v_rows_.data());
	q_ = nullptr;
	seen_k_ = seen_v_ = false;
	++layer_;
	return true;
}

bool Capture::attend(ggml_tensor *out, float scale)
{
	// Rows of the last layer that give no logits reach nothing; but they are computed with.
	const uint32_t first = layer_ + 1 == shape_.n_layer ? first_output_ : 0;
	std::memset(out->data, 0, first * out->nb[1]);
	if (first >= n_tokens_)
		return true;
	const size_t q_head_bytes = shape_.head_dim * sizeof(float);
	const size_t q_row_bytes = q_head_bytes * shape_.n_q_heads;

	attn_ = skvq_attn{};
	attn_.struct_size = sizeof attn_;
	attn_.layer = layer_;
	attn_.position = position_ + first;
	attn_.n_rows = n_tokens_ - first;
	attn_.q_type = SKVQ_F32;
	attn_.sliding_limit = shape_.window_of(layer_);
	attn_.scale = scale;
	attn_.q = reinterpret_cast<const char *>(q_rows_.data()) + first * q_row_bytes;
	attn_.q_row_stride = static_cast<int64_t>(q_row_bytes);
	attn_.q_head_stride = static_cast<int64_t>(q_head_bytes);
	attn_.out = reinterpret_cast<float *>(static_cast<char *>(out->data) + first * out->nb[1]);
	attn_.out_row_stride = static_cast<int64_t>(out->nb[1]);
	attn_.out_head_stride = static_cast<int64_t>(q_head_bytes);

	attend_rc_.store(0, std::memory_order_relaxed);
	const double start = now_s();
	const bool ran = team_.run(attend_part, this);
	attend_s_ += now_s() - start;
	if (!ran)
		return fail(out, "not computed: ggml's threads did not run");
	const int32_t rc = attend_rc_.load(std::memory_order_relaxed);
	if (rc < 0) {
		plugin_rc_ = rc;
		return fail(out, std::string("not computed by the plugin: ") + api_->err_name(rc));
	}
	return true;
}

void Capture::attend_part(void *user, uint32_t ith, uint32_t nth)
{
	Capture *self = static_cast<Capture *>(user);
	skvq_attn part = self->attn_;
	part.ith = ith;
	part.nth = nth;
	const int32_t rc = self->api_->attend(&self->seq_, &part, 1);
	if (rc < 0)
		self->attend_rc_.store(rc, std::memory_order_relaxed);
}

bool Capture::fail(const ggml_tensor *tensor, const std::string &why)
{
	if (!failed_) {
		failed_ = true;
		error_ = std::string("llama.cpp's node '") + tensor->name + "' (" +
			 ggml_op_name(tensor->op) + ") was " + why;
	}
	return false;
}

} // namespace skvq
