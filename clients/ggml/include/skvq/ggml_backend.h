/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/ggml_backend.h - what libggml-skvq.so tells of itself, for programs that want to see whether it
 * does anything. ggml_backend_reg_get_proc_address(reg, SKVQ_GGML_COUNTERS) gives the function.
 */
#ifndef SKVQ_GGML_BACKEND_H
#define SKVQ_GGML_BACKEND_H

#include <stdint.h>

#define SKVQ_GGML_COUNTERS "skvq_ggml_counters"

/* Sums over all contexts of the process since the backend was loaded. */
struct skvq_ggml_counters {
	uint64_t nodes_skvq;     /* attention nodes computed over pages                            */
	uint64_t nodes_ggml;     /* attention nodes that came here and were left to ggml           */
	uint64_t tokens_taken;   /* cells handed to the plugin, all layers of them                 */
	uint64_t tokens_dropped; /* of them, forgotten again because their cells were written anew */
	uint64_t cells_changed;  /* cells found changed that no graph had written                  */
	uint64_t contexts_off;   /* contexts left to ggml for good; the log says why               */
};

/* Any thread. */
typedef void (*skvq_ggml_counters_fn)(struct skvq_ggml_counters *ret_counters);

#endif
