/* SPDX-License-Identifier: Apache-2.0 */
#include "counters.h"

#include <stdatomic.h>

static _Atomic uint64_t counters[N_COUNTERS];

static uint64_t get(enum counter counter)
{
	return atomic_load_explicit(&counters[counter], memory_order_relaxed);
}

void counters_add(enum counter counter, uint64_t n)
{
	atomic_fetch_add_explicit(&counters[counter], n, memory_order_relaxed);
}

void counters_get(struct skvq_ggml_counters *ret_counters)
{
	*ret_counters = (struct skvq_ggml_counters){
	    .nodes_skvq = get(COUNTER_NODES_SKVQ),
	    .nodes_ggml = get(COUNTER_NODES_GGML),
	    .tokens_taken = get(COUNTER_TOKENS_TAKEN),
	    .tokens_dropped = get(COUNTER_TOKENS_DROPPED),
	    .cells_changed = get(COUNTER_CELLS_CHANGED),
	    .contexts_off = get(COUNTER_CONTEXTS_OFF),
	};
}
