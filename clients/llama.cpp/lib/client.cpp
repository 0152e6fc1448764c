// SPDX-License-Identifier: Apache-2.0
#include "client.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "error.h"

using skvq::Error;

namespace
{

constexpr const char *default_profile = "k4v2"; // the plugin's, too; it cannot be asked
constexpr uint32_t default_ubatch = 512;
constexpr uint32_t ubatch_max = 4096;
constexpr uint32_t threads_max = 512; // as many as a ggml pool takes

double now_s()
{
	using clock = std::chrono::steady_clock;
	return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

skvq_llama_options with_defaults(skvq_llama_options options, const skvq::ModelShape &shape)
{
	if (!options.n_ubatch)
		options.n_ubatch = default_ubatch;
	if (!options.n_threads)
		options.n_threads = std::max(1u, std::thread::hardware_concurrency());
	if (!options.max_tokens)
		options.max_tokens = shape.n_ctx_train;
	if (options.n_ubatch > ubatch_max)
		throw Error(SKVQ_EINVAL, "a ubatch of " + std::to_string(options.n_ubatch) +
					     " tokens is above the limit of " +
					     std::to_string(ubatch_max));
	if (options.n_threads > threads_max)
		throw Error(SKVQ_EINVAL, std::to_string(options.n_threads) +
					     " threads are above the limit of " +
					     std::to_string(threads_max));
	if (options.max_tokens > shape.n_ctx_train)
		throw Error(SKVQ_EINVAL,
			    "a sequence of " + std::to_string(options.max_tokens) +
				" tokens is longer than the model's trained context of " +
				std::to_string(shape.n_ctx_train));
	if (options.flags & ~(SKVQ_LLAMA_FALLBACK | SKVQ_LLAMA_NO_MATCH | SKVQ_LLAMA_NO_PUBLISH |
			      SKVQ_LLAMA_NO_CALIBRATION | SKVQ_LLAMA_NO_LAYER_GROUPS))
		throw Error(SKVQ_EINVAL, "an unknown flag in the options");
	return options;
}

} // namespace

skvq_llama::skvq_llama(llama_model *model_, const std::string &gguf_path,
		       const skvq_llama_options &opts)
    : shape(skvq::shape_from_gguf(gguf_path)), options(with_defaults(opts, shape)),
      profile(opts.profile ? opts.profile : default_profile),
      socket(opts.socket ? opts.socket : ""),
      engine_name(opts.engine_name ? opts.engine_name : "skvq_llama"),
      calibration_file(opts.calibration_path ? opts.calibration_path : ""),
      weights(skvq::digest_file(gguf_path)),
      tokenizer(skvq::digest_vocab(llama_model_get_vocab(model_))), plugin(opts.plugin_path), team(options.n_threads), capture(shape, plugin.get(), team, options.n_ubatch)
{
	try {
		open_session();
		find_calibration(model_, gguf_path);
		check_groups();
		register_model();
		make_context(model_);
	} catch (...) {
		plugin->close(session);
		throw;
	}
}

skvq_llama::~skvq_llama()
{
	plugin->close(session);
}

void skvq_llama::plugin_failed(const std::string &what, int32_t rc)
{
	char detail[512] = "";
	if (session)
		(void)plugin->last_error(session, detail, sizeof detail);
	const std::string why = detail[0] ? detail : refusal;
	throw Error(-rc,
		    what + (why.empty() ? "" : ": " + why) + " (" + plugin->err_name(rc) + ")");
}

// Why open() failed is told to the log alone; it belongs into the error, once.
void skvq_llama::log(void *user, int32_t level, const char *utf8)
{
	skvq_llama *self = static_cast<skvq_llama *>(user);
	if (!self->session && level >= SKVQ_LOG_WARNING)
		self->refusal = utf8;
	else if (self->options.log)
		self->options.log(self->options.user, level, utf8);
}

void skvq_llama::say(int32_t level, const std::string &text) const
{
	if (options.log)
		options.log(options.user, level, text.c_str());
}

void skvq_llama::open_session()
{
	skvq_engine engine{};
	engine.struct_size = sizeof engine;
	engine.user = this;
	engine.log = log;
	engine.name = engine_name.c_str();
	const char *path = socket.empty() ? nullptr : socket.c_str();
	int32_t rc = plugin->open(&engine, path, &session);
	const bool nobody = rc == -SKVQ_ENODAEMON || rc == -SKVQ_ETIMEOUT;
	if (nobody && path && (options.flags & SKVQ_LLAMA_FALLBACK)) {
		fell_back = true;
		path = nullptr;
		rc = plugin->open(&engine, path, &session);
	}
	if (rc < 0)
		plugin_failed(!path    ? "the skvq plugin cannot open a session"
			      : nobody ? "no skvqd can be reached at '" + socket + "'"
				       : "the skvqd at '" + socket + "' cannot be used",
			      rc);
}

skvq_calibration_key skvq_llama::calibration_key() const
{
	return {weights.data(),   shape.n_layer,  shape.n_q_heads,
		shape.n_kv_heads, shape.head_dim, shape.head_dim};
}

// A name that nobody knows is refused before anybody calibrates for it.
void skvq_llama::check_profile()
{
	const std::vector<uint8_t> bits(2 * size_t{shape.n_layer}, SKVQ_BITS_FP16);
	skvq_engine engine{};
	engine.struct_size = sizeof engine;
	skvq_session *own = session;
	session = nullptr;
	int32_t rc = plugin->open(&engine, nullptr, &session);
	try {
		if (rc < 0)
			plugin_failed("the skvq plugin cannot open a session", rc);
		register_model(bits.data());
	} catch (...) {
		plugin->close(session);
		session = own;
		throw;
	}
	plugin->close(session); // and the model
	model = nullptr;
	session = own;
}

// The one that was named; else the tenant's, the one that is kept for these weights, or a new one.
// Only profiles that rotate can use its matrices, and SKVQ's own its channel groups.
void skvq_llama::find_calibration(llama_model *llama, const std::string &gguf_path)
{
	bool usable = false;
	for (const char *family : {"k", "auto-", "e2.", "skvq-"})
		usable |= profile.compare(0, std::strlen(family), family) == 0;
	calibration_source = usable ? "none" : "not used";
	if (!usable)
		return;
	check_profile();
	if (!calibration_file.empty()) {
		calibration = skvq::calibration_read(calibration_file);
		if (calibration.empty())
			throw Error(SKVQ_EIO,
				    "there is no calibration file '" + calibration_file + "'");
		calibration_source = calibration_file;
		return;
	}
	if (options.flags & SKVQ_LLAMA_NO_CALIBRATION)
		return say(SKVQ_LOG_WARNING,
			   "running without calibration: where a few key channels are far larger than "
			   "the rest, pages keep keys in 8 bits, or lose most of their accuracy");
	if (calibration_from_daemon())
		return;
	const std::string kept = skvq::calibration_path(weights);
	if (!kept.empty())
		calibration = skvq::calibration_read(kept);
	if (calibration.empty())
		make_calibration(llama, gguf_path, kept);
	else
		calibration_source = kept;
	calibration_to_daemon();
}

// Files that were made before there were groups are as good as ever for all other profiles. Whether
// it is a calibration at all is the plugin's to say.
void skvq_llama::check_groups() const
{
	skvq_calibration_header header;
	if (profile.compare(0, 5, "skvq-") != 0 || calibration.size() < sizeof header)
		return;
	std::memcpy(&header, calibration.data(), sizeof header);
	if (!(header.flags & SKVQ_CALIBRATION_HAS_GROUPS))
		say(SKVQ_LOG_WARNING, "the calibration has no channel groups, so neighbours share a "
				      "scale: skvq-calibrate makes one that has them");
}

void skvq_llama::make_calibration(llama_model *llama, const std::string &gguf_path,
				  const std::string &path)
{
	say(SKVQ_LOG_WARNING, "these weights are used for the first time: calibrating, which takes "
			      "some seconds to minutes, once");
	skvq::CalibrateOptions how;
	how.plugin_path = options.plugin_path ? options.plugin_path : "";
	how.n_threads = options.n_threads;
	const double start = now_s();
	calibration = skvq::calibrate(llama, gguf_path, how);
	calibration_source = "made now";
	char seconds[32];
	std::snprintf(seconds, sizeof seconds, "%.1f", now_s() - start);
	std::string said = std::string("calibrated in ") + seconds + " seconds";
	try {
		if (path.empty())
			throw Error(SKVQ_EIO, "there is neither XDG_DATA_HOME nor HOME");
		if (!skvq::calibration_write(path, calibration, false)) {
			calibration = skvq::calibration_read(path); // another was faster: agree
			calibration_source = path;
		}
		said += ", kept in '" + path + "'";
	} catch (const Error &e) {
		said += std::string(", not kept: ") + e.what();
	}
	say(SKVQ_LOG_WARNING, said);
}

// An engine that came before has settled which one this tenant's engines use. Not being able to ask
// costs sharing and nothing else, so it is no failure.
bool skvq_llama::calibration_from_daemon()
{
	const auto *ext = static_cast<const skvq_ext_calibration *>(
	    plugin->get_extension(session, SKVQ_EXT_CALIBRATION));
	if (!ext)
		return false;
	skvq_calibration_of of{};
	of.struct_size = sizeof of;
	of.weights_digest = weights.data();
	of.n_layer = shape.n_layer;
	of.n_q_heads = shape.n_q_heads;
	of.n_kv_heads = shape.n_kv_heads;
	of.head_dim_k = of.head_dim_v = shape.head_dim;
	uint64_t size = 0;
	if (ext->get(session, &of, nullptr, 0, &size) < 0 || !size)
		return false;
	skvq::CalibrationBytes bytes(std::malloc(size), size);
	if (bytes.empty())
		throw std::bad_alloc();
	uint64_t got = 0;
	if (ext->get(session, &of, const_cast<void *>(bytes.data()), size, &got) < 0 || got != size)
		return false;
	calibration = std::move(bytes);
	calibration_source = "daemon";
	return true;
}

void skvq_llama::calibration_to_daemon()
{
	const auto *ext = static_cast<const skvq_ext_calibration *>(
	    plugin->get_extension(session, SKVQ_EXT_CALIBRATION));
	if (!ext)
		return;
	const int32_t rc = ext->put(session, calibration.data(), calibration.size());
	if (rc == 0)
		(void)calibration_from_daemon(); // another engine was first
	else if (rc < 0 && rc != -SKVQ_ENODAEMON && rc != -SKVQ_ENOTSUP)
		say(SKVQ_LOG_WARNING,
		    std::string("skvqd does not keep this calibration (") + plugin->err_name(rc) +
			"): engines that make their own share no pages with this one");
}

void skvq_llama::register_model(const uint8_t *bit_table)
{
	plugin->seq_close(seq);
	seq = nullptr;
	(void)plugin->model_unregister(model);
	model = nullptr;
	if (numerics.empty())
		numerics = skvq::numerics_tag(options.n_ubatch);

	skvq_model_desc desc{};
	desc.struct_size = sizeof desc;
	desc.weights_digest = weights.data();
	desc.tokenizer_digest = tokenizer.data();
	desc.engine_numerics = numerics.c_str();
	desc.model_name = shape.name.c_str();
	desc.n_layer = shape.n_layer;
	desc.n_q_heads = shape.n_q_heads;
	desc.n_kv_heads = shape.n_kv_heads;
	desc.head_dim_k = desc.head_dim_v = shape.head_dim;
	desc.rope_kind = SKVQ_ROPE_POST;
	desc.rope_pairs = shape.arch->rope_pairs;
	desc.rope_theta = shape.rope_theta;
	desc.rope_scaling = shape.rope_scaling.empty() ? nullptr : shape.rope_scaling.c_str();
	desc.layer_window = shape.layer_window.empty() ? nullptr : shape.layer_window.data();
	desc.profile = profile.c_str();
	desc.window = options.window;
	desc.sinks = options.sinks;
	desc.calibration = calibration.data();
	desc.calibration_bytes = calibration.size();
	desc.bit_table = bit_table;
	drops_unseen = shape.n_swa && !(options.flags & SKVQ_LLAMA_NO_LAYER_GROUPS);
	desc.flags = drops_unseen ? SKVQ_MODEL_LAYER_GROUPS : 0;
	int32_t rc = plugin->model_register(session, &desc, &model);
	if (rc == -SKVQ_EINVAL && drops_unseen) { // a plugin that does not know it yet
		drops_unseen = false;
		desc.flags = 0;
		rc = plugin->model_register(session, &desc, &model);
	}
	if (rc == -SKVQ_EPROFILE && !bit_table && profile.compare(0, 5, "auto-") == 0)
		plugin_failed("the skvq plugin refuses the model (skvq-calibrate makes the tables "
			      "that 'auto-' profiles need)",
			      rc);
	if (rc < 0)
		plugin_failed("the skvq plugin refuses the model", rc);
}

void skvq_llama::make_context(llama_model *llama)
{
	if (llama_model_has_encoder(llama) || llama_model_is_recurrent(llama) ||
	    llama_model_is_hybrid(llama))
		throw Error(SKVQ_ENOTSUP, "the model has recurrent or encoder layers, "
					  "which this client does not support");
	const auto same = [](int32_t theirs, uint32_t ours) {
		return theirs >= 0 && static_cast<uint32_t>(theirs) == ours;
	};
	if (!same(llama_model_n_layer(llama), shape.n_layer) ||
	    !same(llama_model_n_head(llama), shape.n_q_heads) ||
	    !same(llama_model_n_head_kv(llama), shape.n_kv_heads) ||
	    !same(llama_model_n_swa(llama), shape.n_swa))
		throw Error(SKVQ_EINVAL,
			    "the model was not loaded from the GGUF file named with it");
	// No cell outlives a decode, so one ubatch of them is enough; llama.cpp rounds up by
	// itself.
	llama_context_params params = llama_context_default_params();
	params.n_ctx = options.n_ubatch;
	params.n_batch = options.n_ubatch;
	params.n_ubatch = options.n_ubatch;
	params.n_seq_max = 1;
	params.n_outputs_max = options.all_logits ? 0 : 1;
	params.n_threads = static_cast<int32_t>(options.n_threads);
	params.n_threads_batch = static_cast<int32_t>(options.n_threads);
	params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
	params.offload_kqv = false;
	params.op_offload = false;
	params.no_perf = true;
	params.cb_eval = skvq::Capture::callback;
	params.cb_eval_user_data = &capture;
	context.reset(llama_init_from_model(llama, params));
	if (!context)
		throw Error(SKVQ_ENOMEM, "llama.cpp cannot make a context of " +
					     std::to_string(options.n_ubatch) + " tokens");
	if (llama_n_ubatch(context.get()) != options.n_ubatch)
		throw Error(SKVQ_EINVAL, "llama.cpp makes the ubatch " +
					     std::to_string(llama_n_ubatch(context.get())) +
					     " tokens instead of " +
					     std::to_string(options.n_ubatch));
	llama_attach_threadpool(context.get(), team.pool(), team.pool());

	batch_pos.resize(options.n_ubatch);
	batch_n_seq.assign(options.n_ubatch, 1);
	batch_seq.assign(options.n_ubatch, &seq_id);
	batch_logits.resize(options.n_ubatch);
}

uint32_t skvq_llama::begin(const int32_t *tokens, uint32_t n_tokens)
{
	if (n_tokens > options.max_tokens)
		throw Error(SKVQ_EFULL, "a prompt of " + std::to_string(n_tokens) +
					    " tokens does not fit a sequence of " +
					    std::to_string(options.max_tokens));
	plugin->seq_close(seq);
	seq = nullptr;
	position = n_matched = 0;

	skvq_seq_desc desc{};
	desc.struct_size = sizeof desc;
	desc.flags = (options.flags & SKVQ_LLAMA_NO_MATCH ? SKVQ_SEQ_NO_MATCH : 0) |
		     (options.flags & SKVQ_LLAMA_NO_PUBLISH ? SKVQ_SEQ_NO_PUBLISH : 0) |
		     (drops_unseen ? SKVQ_SEQ_DROP_UNSEEN : 0);
	desc.tokens = tokens;
	desc.n_tokens = n_tokens;
	desc.max_tokens = options.max_tokens;
	desc.max_append = std::min(options.n_ubatch, options.max_tokens);
	const int32_t rc = plugin->seq_open(model, &desc, &seq);
	if (rc < 0)
		plugin_failed("the skvq plugin cannot open a sequence", rc);
	llama_memory_clear(llama_get_memory(context.get()), false);
	position = n_matched = static_cast<uint32_t>(rc);
	return position;
}

void skvq_llama::decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits)
{
	if (!seq)
		throw Error(SKVQ_ESTATE, "no sequence is open");
	if (!n_tokens || n_tokens > options.n_ubatch)
		throw Error(SKVQ_EINVAL, "a decode takes 1 to " + std::to_string(options.n_ubatch) +
					     " tokens, not " + std::to_string(n_tokens));
	if (all_logits && !options.all_logits)
		throw Error(SKVQ_EINVAL, "all_logits was not asked for when the client was opened");
	if (n_tokens > options.max_tokens - position)
		throw Error(SKVQ_EFULL, "the sequence is full: it takes " +
					    std::to_string(options.max_tokens) + " tokens");
	for (uint32_t i = 0; i < n_tokens; ++i) {
		batch_pos[i] = static_cast<int32_t>(position + i);
		batch_logits[i] = all_logits || i + 1 == n_tokens;
	}
	llama_batch batch{};
	batch.n_tokens = static_cast<int32_t>(n_tokens);
	batch.token = const_cast<int32_t *>(tokens); // llama.cpp reads it only
	batch.pos = batch_pos.data();
	batch.n_seq_id = batch_n_seq.data();
	batch.seq_id = batch_seq.data();
	batch.logits = batch_logits.data();

	capture.begin(seq, position, n_tokens, all_logits ? 0 : n_tokens - 1);
	const int32_t rc = llama_decode(context.get(), batch);
	const bool complete = capture.finish();
	// The plugin has the past; cells would only make llama.cpp attend to them in vain. An empty
	// memory takes any next position.
	llama_memory_clear(llama_get_memory(context.get()), false);
	if (rc != 0 || !complete) {
		char detail[512] = "";
		(void)plugin->last_error(session, detail, sizeof detail);
		(void)plugin->seq_truncate(seq, position);
		if (!complete && capture.plugin_rc() < 0)
			throw Error(-capture.plugin_rc(), capture.error() + ", " + detail);
		if (!complete)
			throw Error(SKVQ_EPROTO, capture.error());
		throw Error(SKVQ_ESYS, "llama_decode failed with " + std::to_string(rc));
	}
	const double start = now_s();
	const int32_t committed = plugin->seq_commit(seq, tokens, n_tokens);
	commit_s += now_s() - start;
	if (committed < 0)
		plugin_failed("the skvq plugin cannot commit", committed);
	position += n_tokens;
}
