/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/llama_client.h - llama.cpp with its K/V cache in skvqd.
 *
 * A skvq_llama is one llama_context whose attention is computed by the skvq plugin: K, V and Q are
 * taken from llama.cpp's graph as it runs (cb_eval), appended to a plugin sequence, and the
 * attention output is put back into the graph. llama.cpp itself keeps no past at all; the FP16
 * window, the sinks and the low-bit pages are the plugin's. Only llama.cpp's public API is used.
 *
 * One skvq_llama is used by one thread at a time. It borrows the llama_model, which must outlive it
 * and may serve other contexts. Functions return 0 or a count, or -SKVQ_E* with a sentence in
 * skvq_llama_error(). After a failed decode the sequence still holds what was committed before it.
 */
#ifndef SKVQ_LLAMA_CLIENT_H
#define SKVQ_LLAMA_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include <skvq/plugin.h>

#if defined(__cplusplus)
extern "C" {
#endif

struct llama_model;
struct llama_context;

typedef struct skvq_llama skvq_llama;

#define SKVQ_LLAMA_FALLBACK   UINT32_C(1) /* no daemon: go on embedded, and say so            */
#define SKVQ_LLAMA_NO_MATCH   UINT32_C(2) /* do not look for shared pages                     */
#define SKVQ_LLAMA_NO_PUBLISH UINT32_C(4) /* share nothing                                    */
#define SKVQ_LLAMA_NO_CALIBRATION UINT32_C(8) /* data-free: below 4 bits some models lose most of
					       * their accuracy                               */
#define SKVQ_LLAMA_NO_LAYER_GROUPS UINT32_C(16) /* pages of all layers together, and all are kept,
						 * though some layers have a sliding window   */

typedef struct skvq_llama_options {
	uint32_t struct_size;
	uint32_t flags;          /* SKVQ_LLAMA_*                                               */
	const char *plugin_path; /* NULL: $SKVQ_PLUGIN, else ../lib/libskvq_plugin.so beside the
				  * executable                                                 */
	const char *socket;      /* of the daemon; NULL: embedded, private pages               */
	const char *profile;     /* NULL: the plugin's default                                 */
	const char *engine_name; /* for skvqctl; NULL: "skvq_llama"                            */
	uint32_t window;         /* FP16 tokens kept; SKVQ_DEFAULT                             */
	uint32_t sinks;          /* first tokens kept FP16; SKVQ_DEFAULT                       */
	uint32_t n_ubatch;       /* most tokens of one decode; 0 = 512                         */
	uint32_t n_threads;      /* 0 = one per online processor                               */
	uint32_t max_tokens;     /* capacity of a sequence; 0 = the model's trained context    */
	uint32_t all_logits;     /* 1: skvq_llama_decode() may be asked for every row's logits;
				  * llama.cpp takes memory for them                            */
	void *user;              /* handed to log                                              */
	void (*log)(void *user, int32_t level, const char *utf8); /* SKVQ_LOG_*; NULL: none    */
	const char *calibration_path; /* a calibration file; NULL: the one that is kept for these
				       * weights, else it is made now and kept. docs/calibration.md */
} skvq_llama_options;

/* What is held for the open sequence, in bytes. Filled up to struct_size. */
typedef struct skvq_llama_usage {
	uint32_t struct_size;
	uint32_t n_tokens;     /* committed                                                   */
	uint32_t n_matched;    /* of them, found in the daemon at the start                   */
	uint32_t daemon;       /* 0 embedded, 1 attached, 2 lost                              */
	uint64_t bytes_fp16;   /* what n_tokens would take in FP16                            */
	uint64_t bytes_local;  /* private pages, the open one, window and sinks               */
	uint64_t bytes_shared; /* pages read from the daemon's arena                          */
	uint64_t bytes_window; /* of bytes_local: FP16 window and sinks                       */
	uint64_t bytes_engine; /* llama.cpp's own cells: scratch of one ubatch, whatever the
				* length of the sequence                                      */
	uint32_t n_paged;      /* committed tokens that are in pages                          */
	uint32_t n_refined;    /* of them, read with a refinement (elastic profiles)           */
	double attend_s; /* spent in the plugin since open: attention,                  */
	double append_s; /* taking K and V,                                             */
	double commit_s; /* encoding and publishing                                     */
	double bits;     /* stored for a number of K or V in a page, codes and parameters;
			  * 0: the plugin does not tell                                 */
} skvq_llama_usage;

/* Looks at a GGUF file without loading it: 0 if this client can run the model exactly, else
 * -SKVQ_E* with the reason in error (always terminated). */
int32_t skvq_llama_check_model(const char *gguf_path, char *error, size_t error_bytes);

/* Makes the context and the plugin session. gguf_path is the file model was loaded from: its bytes
 * are the weights' identity. On failure *ret is untouched and error tells why. */
int32_t skvq_llama_open(struct llama_model *model, const char *gguf_path,
			const skvq_llama_options *options, skvq_llama **ret, char *error,
			size_t error_bytes);
/* NULL is a no-op. */
void skvq_llama_close(skvq_llama *client);

/* Starts a sequence, ending the one before. Returns how many of the tokens need not be computed:
 * the next decode starts at that position. */
int32_t skvq_llama_begin(skvq_llama *client, const int32_t *tokens, uint32_t n_tokens);

/* Computes the next n_tokens (at most n_ubatch) of the sequence and commits them. Logits: of the
 * last row, or of all rows if all_logits is not 0. */
int32_t skvq_llama_decode(skvq_llama *client, const int32_t *tokens, uint32_t n_tokens,
			  int32_t all_logits);

/* decode() in chunks that end at multiples of n_ubatch, so that the same text is cut the same way
 * wherever it starts. Logits of the very last row. */
int32_t skvq_llama_prefill(skvq_llama *client, const int32_t *tokens, uint32_t n_tokens);

/* Logits of a row of the last decode; row -1 is the last. Valid until the next decode. NULL for a
 * row without logits. */
const float *skvq_llama_logits(const skvq_llama *client, int32_t row);

/* Takes in what the daemon has answered; call it between steps, and before closing until it returns
 * 1: nothing is outstanding (or for as long as one cares to wait). Never blocks. */
int32_t skvq_llama_poll(skvq_llama *client);

int32_t skvq_llama_usage_get(skvq_llama *client, skvq_llama_usage *usage);

/* For samplers; do not decode with it. Freed with the client. */
struct llama_context *skvq_llama_context(skvq_llama *client);
uint32_t skvq_llama_position(const skvq_llama *client);
uint32_t skvq_llama_ubatch(const skvq_llama *client);
const char *skvq_llama_profile(const skvq_llama *client);
/* 1 if it was asked to attach to a daemon and fell back to embedded. */
int32_t skvq_llama_fell_back(const skvq_llama *client);
/* What its codes are calibrated by: "none", "not used" by this profile, "made now", "daemon", or a
 * file's path. */
const char *skvq_llama_calibration(const skvq_llama *client);
/* The identity's engine_numerics tag. */
const char *skvq_llama_numerics(const skvq_llama *client);

/* What the last failed call said; valid until the next call. */
const char *skvq_llama_error(const skvq_llama *client);

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_LLAMA_CLIENT_H */
