/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/plugin.h - what an inference engine needs to keep its K/V cache in skvqd.
 *
 * The plugin (libskvq_plugin.so) exports one symbol, skvq_plugin_api(). The table it returns holds
 * every call. An engine opens a session, registers a model, opens sequences, and then per step and
 * layer hands over K and V (append) and asks for attention (attend); tokens older than the FP16
 * window live as low-bit pages, shared through the daemon if there is one. Read
 * examples/engine.c next: it is the smallest complete engine.
 *
 * Rules that hold for every call (plugin-abi/README.md has the whole promise):
 *  - Results: 0 or a count on success, -SKVQ_E* (skvq/error.h) on failure. Outputs named ret_ are
 *    last and untouched on failure. last_error() tells what and where.
 *  - Structs open with struct_size = sizeof as the caller was compiled. They only ever grow at the
 *    end; absent fields read as zero. Reserved fields and unknown flag bits must be zero.
 *  - Ownership: who allocates frees. Pointers passed in are borrowed for the call.
 *  - Threads: [control] calls of one session must not overlap with each other, those on a sequence
 *    (their first argument; close is on all of the session's) not with
 *    [data] calls on it either; any thread may make them, in turn, and they may block for at most the
 *    session's timeout. [data] calls may run on any threads at once as each call says, beside
 *    [control] calls on other sequences too; they never block, allocate or take a contended lock.
 *    "In turn" and "after" mean that the engine orders its threads, by a lock or a barrier. [any]
 *    calls have no restriction. A plugin built with SKVQ_CHECK_THREADS (debug and sanitizer builds)
 *    looks for calls that overlap and must not: it logs both as SKVQ_LOG_ENGINE_MISBEHAVING, on
 *    stderr if there is no log callback, and ends the process by abort(). No call works in a
 *    child after fork() (-SKVQ_EFORKED); seq_close and close free the child's copy there and touch
 *    nothing of the parent's, and a child that exits without them does no harm either.
 *  - The plugin starts no threads, installs no handlers, writes to no stream but as just said. It
 *    stays loaded once it was: dlclose with sessions open leaves these working.
 *
 * Session life:  open -> model_register -> seq_open -> { append*, attend*, commit }* -> seq_close
 *                -> model_unregister -> close. close() ends whatever is still open.
 */
#ifndef SKVQ_PLUGIN_H
#define SKVQ_PLUGIN_H

#include <stdint.h>

#include "error.h"

#if defined(__cplusplus)
extern "C" {
#endif

#define SKVQ_ABI_MAJOR 1u
#define SKVQ_ABI_MINOR 0u /* for messages only: never branch on it, look at struct_size */

#if defined(__GNUC__)
#define SKVQ_EXPORT __attribute__((visibility("default")))
#else
#define SKVQ_EXPORT
#endif

typedef struct skvq_session skvq_session; /* a connection (or none: embedded); freed by close()     */
typedef struct skvq_model skvq_model;     /* a registered identity; freed by model_unregister()     */
typedef struct skvq_seq skvq_seq;         /* one token sequence; freed by seq_close()               */

/* Levels of the log callback. MISBEHAVING names the side that broke a rule of this header. */
#define SKVQ_LOG_DEBUG 0
#define SKVQ_LOG_INFO 1
#define SKVQ_LOG_WARNING 2
#define SKVQ_LOG_ERROR 3
#define SKVQ_LOG_ENGINE_MISBEHAVING 4
#define SKVQ_LOG_DAEMON_MISBEHAVING 5

/* Element types of K, V, Q and exported rows. */
#define SKVQ_F32 0u
#define SKVQ_F16 1u
#define SKVQ_BF16 2u

/* How positions are in the keys handed to append(). */
#define SKVQ_ROPE_NONE 0u /* the model has no RoPE                                                */
#define SKVQ_ROPE_POST 1u /* keys and queries are rotated already: the portable default           */
#define SKVQ_ROPE_PRE 2u  /* keys are not rotated: a capability not implemented yet (-SKVQ_ENOTSUP) */

/* Which channels of a head RoPE rotates together. */
#define SKVQ_PAIRS_HALF 0u        /* (i, i + rope_dim/2): the canonical order in pages              */
#define SKVQ_PAIRS_INTERLEAVED 1u /* (2i, 2i + 1): K and Q are permuted to canonical order here     */

/* "Use the default" for window and sinks, where zero is a meaningful value. */
#define SKVQ_DEFAULT UINT32_C(0xffffffff)

/* What the engine is. Copied by open(). */
typedef struct skvq_engine {
	uint32_t struct_size;
	uint32_t reserved;
	void *user; /* handed back to log                                                      */
	/* [any thread that is inside a call] NULL for none. utf8 is valid during the callback,
	 * which must not call back into the session. */
	void (*log)(void *user, int32_t level, const char *utf8);
	const char *name;    /* shown by skvqctl, e.g. "skvq-llama"; NULL for none              */
	uint32_t timeout_ms; /* longest a [control] call waits for the daemon; 0 = 2000         */
	uint32_t reserved1;
} skvq_engine;

/* (id) Layers that see different extents (layer_window) keep their pages apart, so that
 * SKVQ_SEQ_DROP_UNSEEN lets go of what sliding layers do not see where others see everything. At
 * most 8 extents (-SKVQ_ELIMIT). README.md, Layer groups. */
#define SKVQ_MODEL_LAYER_GROUPS UINT32_C(1)

/* Everything that makes K/V bytes reusable, and how to store them. Two engines share pages only if
 * every field marked (id) is equal; a field that must be given and is not is -SKVQ_EIDENTITY. */
typedef struct skvq_model_desc {
	uint32_t struct_size;
	uint32_t flags;                  /* SKVQ_MODEL_*                                      */
	const uint8_t *weights_digest;   /* (id) 32 bytes over the weights; required          */
	const uint8_t *tokenizer_digest; /* (id) 32 bytes; required                           */
	const uint8_t *lora_digest;      /* (id) 32 bytes over adapters and scales; NULL: none */
	const char *engine_numerics;     /* (id) who computes K/V and how, e.g. "llama.cpp-b11434";
	                                  * required: equal tags promise equal numerics       */
	const char *model_name;          /* for people; not part of the identity              */
	uint32_t n_layer;                /* (id)                                              */
	uint32_t n_q_heads;              /* (id) multiple of n_kv_heads                       */
	uint32_t n_kv_heads;             /* (id)                                              */
	uint32_t head_dim_k;             /* (id) multiple of 16, at most 256                  */
	uint32_t head_dim_v;             /* (id)                                              */
	uint32_t rope_kind;              /* (id) SKVQ_ROPE_*                                  */
	uint32_t rope_pairs;             /* SKVQ_PAIRS_* of the K and Q handed over           */
	uint32_t rope_dim;               /* (id) rotated channels of a head; 0 = head_dim_k   */
	double rope_theta;               /* (id) frequency base; required unless ROPE_NONE    */
	const char *rope_scaling;        /* (id) canonical text of any scaling; NULL: none    */
	const char *profile;             /* (id) codec profile; NULL: "k4v2". docs/profiles.md */
	const void *calibration;         /* (id) calibration file bytes; NULL: data-free. Of
	                                  * other weights or geometry: -SKVQ_EIDENTITY; damaged:
	                                  * -SKVQ_ECORRUPT. docs/calibration.md               */
	uint64_t calibration_bytes;
	uint32_t window;                 /* (id) FP16 tokens kept, SKVQ_DEFAULT = 128         */
	uint32_t sinks;                  /* (id) first tokens kept FP16 for ever, default 5   */
	const uint8_t *bit_table;        /* (id) [n_layer][2] K and V bits, SKVQ_BITS_* of
	                                  * format.h; NULL: by the profile, for "auto-..." by the
	                                  * calibration                                       */
	const uint16_t *reorder_k;       /* (id) [n_layer][n_kv_heads][head_dim_k] static channel
	                                  * map inside each head, stored[i] = x[map[i]]; NULL: none */
	const uint16_t *reorder_v;       /* (id) the same for V                               */
	const uint32_t *layer_window;    /* (id) [n_layer] sliding-window extent of a layer in
	                                  * tokens, 0 = full attention; NULL: all full        */
	float clip;                      /* (id) clip factor of affine profiles in (0, 1];
	                                  * 0 = the profile's                                 */
	uint32_t reserved;
} skvq_model_desc;

#define SKVQ_SEQ_NO_MATCH UINT32_C(1)   /* do not look for shared pages                        */
#define SKVQ_SEQ_NO_PUBLISH UINT32_C(2) /* keep this sequence's pages to itself                */
/* Of an elastic profile: a shared page that the profile reads with its refinement, and whose
 * refinement the daemon has given up, is a miss and not read by its base alone. */
#define SKVQ_SEQ_WHOLE UINT32_C(4)
/* Where every layer has a layer_window: pages that none of them sees any more are let go of.
 * README.md, Sliding windows, says what then is an error. Where a layer has none, this changes
 * nothing; of a model with SKVQ_MODEL_LAYER_GROUPS it holds for each group by itself. */
#define SKVQ_SEQ_DROP_UNSEEN UINT32_C(8)

typedef struct skvq_seq_desc {
	uint32_t struct_size;
	uint32_t flags;        /* SKVQ_SEQ_*                                                  */
	const int32_t *tokens; /* the prompt, to be matched; may be NULL with n_tokens 0      */
	uint32_t n_tokens;
	uint32_t max_tokens;   /* capacity; memory is taken as tokens come, never beyond      */
	uint32_t max_append;   /* most tokens between two commits                             */
	uint32_t reserved;
	uint32_t recompute_us; /* what a prompt token costs this engine: pages on disk that would
	                        * come later than it could compute them are not waited for; 0: not
	                        * known                                                       */
	uint32_t reserved1;
} skvq_seq_desc;

/* Where a sequence's tokens are. Filled up to struct_size. */
typedef struct skvq_seq_info {
	uint32_t struct_size;
	uint32_t n_tokens;       /* committed                                                   */
	uint32_t n_matched;      /* found in the daemon when the sequence was opened            */
	uint32_t n_paged;        /* committed tokens whose codes are in pages (open one too), or
	                          * were in dropped ones                                        */
	uint32_t pages_shared;   /* pages read from the daemon's arena                          */
	uint32_t pages_local;    /* pages in this process, the open one included                */
	uint32_t pages_inflight; /* published, answer not here yet                              */
	uint32_t daemon;         /* 0 embedded, 1 attached, 2 lost (decoding goes on)           */
	uint64_t bytes_shared;   /* of shared pages this sequence reads                         */
	uint64_t bytes_local;    /* of local pages                                              */
	uint64_t bytes_window;   /* FP16 window buffer and sinks                                */
	uint64_t bytes_fp16;     /* what n_tokens would take in FP16                            */
	uint64_t boot_id;        /* of the daemon the sequence is attached to; 0 if none        */
	uint32_t n_refined;      /* of n_paged, what the next token reads with refinement       */
	uint32_t n_base;         /* and by base codes alone; all of it unless elastic or dropped */
	uint64_t page_code_bytes; /* of a full page: codes and parameters alone, all layers; the
	                           * mean of the sequence's where some pages are safe ones      */
	uint32_t pages_safe; /* of shared and local pages, those whose keys are kept in 8 bits: the
	                      * profile would lose them without a calibration. docs/profiles.md */
	uint32_t pages_dropped; /* the first pages, let go of: SKVQ_SEQ_DROP_UNSEEN             */
	uint32_t layer_groups;  /* 1, or with SKVQ_MODEL_LAYER_GROUPS how many extents there are: then
	                         * pages are a group's, and pages_ and bytes_ are sums over all groups;
	                         * n_paged, n_refined and n_base are those of the group that sees most */
	uint32_t reserved;
} skvq_seq_info;

/* K and V of n_tokens new tokens of one layer. Element [t][h][d] of K is at
 * k + t*k_token_stride + h*k_head_stride + d*size(k_type); strides are in bytes. */
typedef struct skvq_kv {
	uint32_t struct_size;
	uint32_t layer;
	uint32_t position; /* of the first token; must be the next one this layer has not seen  */
	uint32_t n_tokens;
	uint32_t k_type; /* SKVQ_F32, SKVQ_F16, SKVQ_BF16                                      */
	uint32_t v_type;
	const void *k;
	const void *v;
	int64_t k_token_stride;
	int64_t k_head_stride;
	int64_t v_token_stride;
	int64_t v_head_stride;
} skvq_kv;

/* Attention of n_rows query tokens of one layer. Row r is the token at position + r and sees every
 * appended token at or before it. out[r][h][d] = sum_t softmax_t(scale * q.k_t) v_t with optional
 * softcap: s = softcap * tanh(s / softcap). lse[r][h] = log sum_t exp(s_t), natural logarithm. */
typedef struct skvq_attn {
	uint32_t struct_size;
	uint32_t layer;
	uint32_t position; /* of the first query row                                            */
	uint32_t n_rows;
	uint32_t q_type;        /* SKVQ_F32, SKVQ_F16, SKVQ_BF16                                */
	uint32_t sliding_limit; /* a row sees the last so many tokens, itself included; 0 = all */
	uint32_t ith;           /* this caller's share of the work: 0 <= ith < nth. The callers */
	uint32_t nth;           /* write disjoint outputs; no order between them is needed      */
	float scale;            /* usually 1/sqrt(head_dim_k)                                   */
	float softcap;          /* 0 = none                                                     */
	const void *q;          /* [n_rows][n_q_heads][head_dim_k]                              */
	int64_t q_row_stride;   /* bytes                                                        */
	int64_t q_head_stride;
	float *out;             /* [n_rows][n_q_heads][head_dim_v], float32                     */
	int64_t out_row_stride; /* bytes                                                        */
	int64_t out_head_stride;
	float *lse;             /* [n_rows][n_q_heads] contiguous, or NULL                      */
} skvq_attn;

/* Copies tokens back out, decoded, in the engine's own channel order. */
typedef struct skvq_export {
	uint32_t struct_size;
	uint32_t layer;
	uint32_t position;
	uint32_t n_tokens;
	uint32_t type; /* of both outputs                                                       */
	uint32_t reserved;
	void *k; /* NULL: not wanted                                                            */
	void *v;
	int64_t k_token_stride; /* bytes                                                        */
	int64_t k_head_stride;
	int64_t v_token_stride;
	int64_t v_head_stride;
} skvq_export;

/* Counters of a session since open(). Filled up to struct_size. */
typedef struct skvq_stats {
	uint32_t struct_size;
	uint32_t daemon;         /* as in skvq_seq_info                                         */
	uint64_t boot_id;
	uint64_t tokens_asked;   /* prompt tokens handed to seq_open                            */
	uint64_t tokens_matched;
	uint64_t tokens_committed;
	uint64_t pages_published;
	uint64_t pages_deduplicated; /* published, but an equal page was there                  */
	uint64_t publish_refused;
	uint64_t reconnects;
	uint64_t pages_off; /* encoded here, and in some layer K or V lost more than 1.5 times what
	                     * its codec is expected to: the log says once which                */
	uint64_t pages_safe; /* encoded here with keys in 8 bits, as skvq_seq_info says         */
} skvq_stats;

/* Static, const, never freed. Entries beyond struct_size do not exist; entries may be NULL. */
typedef struct skvq_api {
	uint32_t struct_size;
	uint32_t abi_minor; /* for messages only                                                */

	/* [control] Opens a session. socket NULL: embedded, no daemon, private pages. The engine
	 * struct is copied. A daemon that cannot be reached is -SKVQ_ENODAEMON; falling back to
	 * embedded is the engine's decision. On failure *ret_session is untouched; err_name() and
	 * the log callback tell why. */
	int32_t (*open)(const skvq_engine *engine, const char *socket, skvq_session **ret_session);
	/* [control] Ends everything of the session. NULL is a no-op. */
	void (*close)(skvq_session *session);

	/* [control] Registers identity, geometry and profile. The desc and all it points to are
	 * copied. Free with model_unregister (close does it too). */
	int32_t (*model_register)(skvq_session *session, const skvq_model_desc *desc,
	                          skvq_model **ret_model);
	/* [control] -SKVQ_ESTATE while sequences of the model are open. NULL is a no-op. */
	int32_t (*model_unregister)(skvq_model *model);

	/* [control] Opens a sequence; the daemon pins the longest chain of shared pages that is a
	 * prefix of desc->tokens and leaves at least the window to compute. Pages that are on disk
	 * are waited for, at most three quarters of the session's timeout. Returns the number of
	 * tokens matched: the engine computes and appends the rest, from that position on. */
	int32_t (*seq_open)(skvq_model *model, const skvq_seq_desc *desc, skvq_seq **ret_seq);
	/* [control] Takes in what the daemon has answered (published pages, restores), sends full
	 * pages, encodes what a commit could not for want of memory. Returns 1 when nothing is in
	 * flight, else 0. Does not wait for a daemon that is there; finding a lost one again waits
	 * at most 200 ms (or the session's timeout), at growing intervals. */
	int32_t (*seq_poll)(skvq_seq *seq);
	/* [control] A descriptor that becomes readable when the daemon has sent something; owned by
	 * the session, never close it. Any control call of the session may read it empty: poll every
	 * sequence with pages in flight after it. It changes when the daemon is lost and found again
	 * (stats.reconnects). -SKVQ_ESTATE in embedded mode. */
	int32_t (*session_fd)(skvq_session *session);
	/* [control] States the token ids of the next n_tokens positions, all of whose layers have
	 * been appended. Encodes tiles that leave the window, hands full pages to the daemon
	 * without waiting for it. -SKVQ_ESTATE if a layer is missing. After -SKVQ_ENOMEM the tokens
	 * are committed and correct, but still wait in the window: seq_poll tries again. */
	int32_t (*seq_commit)(skvq_seq *seq, const int32_t *tokens, uint32_t n_tokens);
	/* [control] A second sequence with the same past, tokens that are appended and not committed
	 * included; flags and bounds are the same. Full pages are the same memory for both, the open page and
	 * the window are copied. The two go on without each other, and are closed in any order. Not
	 * during a [data] call on seq. */
	int32_t (*seq_fork)(skvq_seq *seq, skvq_seq **ret_seq);
	/* [control] Forgets tokens from n_tokens on, committed or not; exactly n_tokens are left, and the
	 * next append is at that position. Of what is still in FP16 nothing is lost: for the last 16
	 * committed tokens, where max_append is at least that, the sequence is bit for bit one that
	 * never had them. Further back codes stay what they are, and the tile of 16 that n_tokens falls in
	 * is read as what it decodes to until it is whole again. Shared pages behind n_tokens are let go
	 * of, one that it falls into is copied. README.md says which pages are published
	 * afterwards. -SKVQ_ERANGE beyond the end, and where the next token would see a page that was
	 * dropped; after these and -SKVQ_ENOMEM nothing has changed. */
	int32_t (*seq_truncate)(skvq_seq *seq, uint32_t n_tokens);
	/* [control] Unpins and frees. NULL is a no-op. */
	void (*seq_close)(skvq_seq *seq);
	/* [control] Bit-exact freeze and thaw, FP16 window included; docs/snapshot-format.md. *ret_bytes
	 * is the snapshot's size; it is written to buf if buf_bytes is that much, so ask with 0 first. The
	 * sequence goes on as if nothing had happened. -SKVQ_ESTATE while tokens are appended and not
	 * committed; -SKVQ_ECORRUPT if a page that the daemon has is not what it was any more: then
	 * nothing in buf is a snapshot, and the sequence is lost. Every page is in it: a resume works in another process, with the daemon,
	 * another one or none; pages that the daemon has, byte for byte, are used from there.
	 * Hostile bytes are -SKVQ_ECORRUPT, those of another model -SKVQ_EIDENTITY, a later format
	 * -SKVQ_EVERSION. */
	int32_t (*seq_snapshot)(skvq_seq *seq, void *buf, uint64_t buf_bytes, uint64_t *ret_bytes);
	int32_t (*seq_resume)(skvq_model *model, const void *buf, uint64_t buf_bytes,
	                      skvq_seq **ret_seq);
	/* [control] */
	int32_t (*seq_info)(skvq_seq *seq, skvq_seq_info *info);
	/* [control] */
	int32_t (*stats)(skvq_session *session, skvq_stats *stats);

	/* [data] Different layers of a sequence may be appended at once; one layer by one thread at
	 * a time, and not while that layer is attended or exported. At most max_append tokens between
	 * two commits. NaN or infinity, or what becomes infinite in binary16, is -SKVQ_EINVAL, and
	 * last_error() names layer, head and token: nothing of the call is kept, and the sequence goes
	 * on. */
	int32_t (*append)(skvq_seq *seq, const skvq_kv *kv);
	/* [data] One attn per sequence, all of the same model. Sequences that share pages may be
	 * handed over together, so that shared pages can be read once. Any number of threads at
	 * once, each with its own ith; after the append of the rows it sees, and not during a
	 * [control] call on the sequence. A call with nth shares is complete when all of them have
	 * returned; before that, the same layer of the same sequence must not be attended again, by the
	 * same ith or by another call. A call that is given up half-way is followed by an append or
	 * seq_truncate of that layer, or by a call with nth 1. A sequence that drops pages takes no
	 * sliding_limit of 0 or beyond the largest layer_window (-SKVQ_EINVAL), nor rows that would
	 * see a dropped page (-SKVQ_ERANGE). */
	int32_t (*attend)(skvq_seq *const *seqs, const skvq_attn *attns, uint32_t n_seqs);
	/* [data] For engines that cannot attend in place. Any number of threads at once, beside attend
	 * too; not during an append to the same layer. Lossy where the codec is. Named
	 * export_kv because "export" is a keyword in C++20. -SKVQ_ERANGE of dropped tokens. */
	int32_t (*export_kv)(skvq_seq *seq, const skvq_export *desc);

	/* [any] Static string, e.g. "SKVQ_EPINS"; "unknown" for other numbers. */
	const char *(*err_name)(int32_t err);
	/* [control] What the last failed call of this session said; truncated to size, always
	 * terminated. Returns its full length. */
	int32_t (*last_error)(skvq_session *session, char *buf, uint64_t buf_bytes);
	/* [any] Extensions by name and revision, e.g. "skvq.trim/1". NULL if unknown. */
	const void *(*get_extension)(skvq_session *session, const char *id);
} skvq_api;

/* get_extension("skvq.calibration/1"): engines of one tenant agree on one calibration for a model.
 * Codes mean something only with the calibration they were made with, so engines with different
 * ones share nothing. All calls are [control]; -SKVQ_ENODAEMON in embedded mode and while the daemon
 * is lost, -SKVQ_ENOTSUP if the daemon keeps none. */
#define SKVQ_EXT_CALIBRATION "skvq.calibration/1"

typedef struct skvq_calibration_of {
	uint32_t struct_size;
	uint32_t n_layer;
	const uint8_t *weights_digest; /* 32 bytes                                            */
	uint32_t n_q_heads;
	uint32_t n_kv_heads;
	uint32_t head_dim_k;
	uint32_t head_dim_v;
} skvq_calibration_of;

typedef struct skvq_ext_calibration {
	uint32_t struct_size;
	uint32_t reserved;
	/* The tenant's calibration of a model, for skvq_model_desc.calibration. *ret_bytes is its
	 * size; it is written to buf if buf_bytes is that much, so ask with 0 first.
	 * -SKVQ_EAGAIN if nobody has put one yet. */
	int32_t (*get)(skvq_session *session, const skvq_calibration_of *model, void *buf,
	               uint64_t buf_bytes, uint64_t *ret_bytes);
	/* Offers a calibration file to the tenant. 1: it is the tenant's from now on; 0: another
	 * was there before, which get() gives. -SKVQ_ECORRUPT, or -SKVQ_ELIMIT if the daemon has no
	 * room for it. */
	int32_t (*put)(skvq_session *session, const void *bytes, uint64_t n_bytes);
} skvq_ext_calibration;

/* get_extension("skvq.prefetch/1"): a hint that a prompt will come. */
#define SKVQ_EXT_PREFETCH "skvq.prefetch/1"

typedef struct skvq_ext_prefetch {
	uint32_t struct_size;
	uint32_t reserved;
	/* [control] Has the daemon read from disk what seq_open of these tokens would wait for.
	 * Pins nothing. Returns the tokens that are in memory or on their way there.
	 * -SKVQ_ENODAEMON in embedded mode and while the daemon is lost. */
	int32_t (*prefetch)(skvq_model *model, const int32_t *tokens, uint32_t n_tokens);
} skvq_ext_prefetch;

/* [any] The only exported symbol. NULL if this plugin does not serve that major version. */
SKVQ_EXPORT const skvq_api *skvq_plugin_api(uint32_t major);

typedef const skvq_api *(*skvq_plugin_api_fn)(uint32_t major); /* for dlsym */

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_PLUGIN_H */
