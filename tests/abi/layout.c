/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints every field of every struct that crosses the plugin boundary with its offset and size. It
 * is built twice, against the frozen header and today's; compare.py holds that what was released is
 * still where it was.
 */
#include <stddef.h>
#include <stdio.h>

#include <skvq/error.h>
#include <skvq/plugin.h>

#define S(type) printf("size %s %zu\n", #type, sizeof(type))
#define F(type, field)                                                                             \
	printf("field %s.%s %zu %zu\n", #type, #field, offsetof(type, field),                      \
	       sizeof(((type *)0)->field))
#define V(name) printf("value %s %ld\n", #name, (long)(name))

int main(void)
{
	S(skvq_engine);
	F(skvq_engine, struct_size); F(skvq_engine, reserved); F(skvq_engine, user);
	F(skvq_engine, log); F(skvq_engine, name); F(skvq_engine, timeout_ms);
	F(skvq_engine, reserved1);
	S(skvq_model_desc);
	F(skvq_model_desc, struct_size); F(skvq_model_desc, flags);
	F(skvq_model_desc, weights_digest); F(skvq_model_desc, tokenizer_digest);
	F(skvq_model_desc, lora_digest); F(skvq_model_desc, engine_numerics);
	F(skvq_model_desc, model_name); F(skvq_model_desc, n_layer);
	F(skvq_model_desc, n_q_heads); F(skvq_model_desc, n_kv_heads);
	F(skvq_model_desc, head_dim_k); F(skvq_model_desc, head_dim_v);
	F(skvq_model_desc, rope_kind); F(skvq_model_desc, rope_pairs);
	F(skvq_model_desc, rope_dim); F(skvq_model_desc, rope_theta);
	F(skvq_model_desc, rope_scaling); F(skvq_model_desc, profile);
	F(skvq_model_desc, calibration); F(skvq_model_desc, calibration_bytes);
	F(skvq_model_desc, window); F(skvq_model_desc, sinks); F(skvq_model_desc, bit_table);
	F(skvq_model_desc, reorder_k); F(skvq_model_desc, reorder_v);
	F(skvq_model_desc, layer_window); F(skvq_model_desc, clip); F(skvq_model_desc, reserved);
	S(skvq_seq_desc);
	F(skvq_seq_desc, struct_size); F(skvq_seq_desc, flags); F(skvq_seq_desc, tokens);
	F(skvq_seq_desc, n_tokens); F(skvq_seq_desc, max_tokens); F(skvq_seq_desc, max_append);
	F(skvq_seq_desc, reserved);
	S(skvq_seq_info);
	F(skvq_seq_info, struct_size); F(skvq_seq_info, n_tokens); F(skvq_seq_info, n_matched);
	F(skvq_seq_info, n_paged); F(skvq_seq_info, pages_shared); F(skvq_seq_info, pages_local);
	F(skvq_seq_info, pages_inflight); F(skvq_seq_info, daemon);
	F(skvq_seq_info, bytes_shared); F(skvq_seq_info, bytes_local);
	F(skvq_seq_info, bytes_window); F(skvq_seq_info, bytes_fp16); F(skvq_seq_info, boot_id);
	S(skvq_kv);
	F(skvq_kv, struct_size); F(skvq_kv, layer); F(skvq_kv, position); F(skvq_kv, n_tokens);
	F(skvq_kv, k_type); F(skvq_kv, v_type); F(skvq_kv, k); F(skvq_kv, v);
	F(skvq_kv, k_token_stride); F(skvq_kv, k_head_stride); F(skvq_kv, v_token_stride);
	F(skvq_kv, v_head_stride);
	S(skvq_attn);
	F(skvq_attn, struct_size); F(skvq_attn, layer); F(skvq_attn, position);
	F(skvq_attn, n_rows); F(skvq_attn, q_type); F(skvq_attn, sliding_limit);
	F(skvq_attn, ith); F(skvq_attn, nth); F(skvq_attn, scale); F(skvq_attn, softcap);
	F(skvq_attn, q); F(skvq_attn, q_row_stride); F(skvq_attn, q_head_stride);
	F(skvq_attn, out); F(skvq_attn, out_row_stride); F(skvq_attn, out_head_stride);
	F(skvq_attn, lse);
	S(skvq_export);
	F(skvq_export, struct_size); F(skvq_export, layer); F(skvq_export, position);
	F(skvq_export, n_tokens); F(skvq_export, type); F(skvq_export, reserved);
	F(skvq_export, k); F(skvq_export, v); F(skvq_export, k_token_stride);
	F(skvq_export, k_head_stride); F(skvq_export, v_token_stride);
	F(skvq_export, v_head_stride);
	S(skvq_stats);
	F(skvq_stats, struct_size); F(skvq_stats, daemon); F(skvq_stats, boot_id);
	F(skvq_stats, tokens_asked); F(skvq_stats, tokens_matched);
	F(skvq_stats, tokens_committed); F(skvq_stats, pages_published);
	F(skvq_stats, pages_deduplicated); F(skvq_stats, publish_refused);
	F(skvq_stats, reconnects);
	S(skvq_api);
	F(skvq_api, struct_size); F(skvq_api, abi_minor); F(skvq_api, open); F(skvq_api, close);
	F(skvq_api, model_register); F(skvq_api, model_unregister); F(skvq_api, seq_open);
	F(skvq_api, seq_poll); F(skvq_api, session_fd); F(skvq_api, seq_commit);
	F(skvq_api, seq_fork); F(skvq_api, seq_truncate); F(skvq_api, seq_close);
	F(skvq_api, seq_snapshot); F(skvq_api, seq_resume); F(skvq_api, seq_info);
	F(skvq_api, stats); F(skvq_api, append); F(skvq_api, attend); F(skvq_api, export_kv);
	F(skvq_api, err_name); F(skvq_api, last_error); F(skvq_api, get_extension);
	V(SKVQ_EINVAL); V(SKVQ_ENOTSUP); V(SKVQ_ESTATE); V(SKVQ_EGEOMETRY); V(SKVQ_EPROFILE);
	V(SKVQ_EIDENTITY); V(SKVQ_ERANGE); V(SKVQ_EMISALIGNED); V(SKVQ_ESTALE); V(SKVQ_EFORKED);
	V(SKVQ_EPATH); V(SKVQ_EIO); V(SKVQ_ENOMEM); V(SKVQ_ENODAEMON); V(SKVQ_EPROTO);
	V(SKVQ_EVERSION); V(SKVQ_ECORRUPT); V(SKVQ_EFD); V(SKVQ_ESEALS); V(SKVQ_ESHORT);
	V(SKVQ_EINUSE); V(SKVQ_EPERM); V(SKVQ_ESYS); V(SKVQ_EAGAIN); V(SKVQ_ETIMEOUT);
	V(SKVQ_ENOSPC); V(SKVQ_EPINS); V(SKVQ_ECONNS); V(SKVQ_EFRAME); V(SKVQ_EBUSY);
	V(SKVQ_ELIMIT); V(SKVQ_EFULL);
	V(SKVQ_F32); V(SKVQ_F16); V(SKVQ_BF16); V(SKVQ_ROPE_NONE); V(SKVQ_ROPE_POST);
	V(SKVQ_ROPE_PRE); V(SKVQ_PAIRS_HALF); V(SKVQ_PAIRS_INTERLEAVED); V(SKVQ_ABI_MAJOR);
	V(SKVQ_SEQ_NO_MATCH); V(SKVQ_SEQ_NO_PUBLISH); V(SKVQ_DEFAULT);
	return 0;
}
