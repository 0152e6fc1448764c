/* SPDX-License-Identifier: Apache-2.0 */
/* Counters of the process, in the order of skvq/ggml_backend.h. Any thread. */
#ifndef SKVQ_GGML_COUNTERS_H
#define SKVQ_GGML_COUNTERS_H

#include <stdint.h>

#include <skvq/ggml_backend.h>

enum counter {
	COUNTER_NODES_SKVQ,
	COUNTER_NODES_GGML,
	COUNTER_TOKENS_TAKEN,
	COUNTER_TOKENS_DROPPED,
	COUNTER_CELLS_CHANGED,
	COUNTER_CONTEXTS_OFF,
	N_COUNTERS,
};

void counters_add(enum counter counter, uint64_t n);
/* A skvq_ggml_counters_fn. */
void counters_get(struct skvq_ggml_counters *ret_counters);

#endif
