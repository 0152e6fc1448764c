/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of one llama_context over pages.
 *
 * llama.cpp's F16 cells hold everything, all the time: they are the truth, and the plugin's sequence is
 * a coded copy of cells [0, held). An evaluation of the graph is ours if its rows see cells [0, n), all of
 * them and no other, the new ones last; everything else is left to ggml, which computes it over the F16
 * cells. Cells that a graph writes are seen in its SET_ROWS nodes. Those changed otherwise (a K-shift, a
 * state that was loaded) are found by a digest of each cell's key in the last layer, which depends on
 * all that came before it; it is compared before an evaluation is taken. docs/ggml-backend.md has the
 * whole argument.
 *
 * One thread at a time.
 */
#ifndef SKVQ_GGML_ATTENTION_H
#define SKVQ_GGML_ATTENTION_H

#include <stdbool.h>

#include <ggml.h>

#include "cpu.h"

struct attention;

/* cpu is borrowed. NULL without memory. */
struct attention *attention_new(struct cpu *cpu);
/* NULL is a no-op. */
void attention_free(struct attention *a);

/* Whether nodes of this kind come here at all; any thread. A SET_ROWS into a cache, an attention over
 * one: of F16 cells, one stream, without ALiBi and sinks. */
bool attention_takes_write(const struct ggml_tensor *node);
bool attention_takes(const struct ggml_tensor *node);

/* Tells of a SET_ROWS, in the order of the graph. It is computed by the caller. */
void attention_see_write(struct attention *a, const struct ggml_tensor *node);
/* Computes an attention node, or returns false: then it is ggml's. What the node reads has been
 * computed. */
bool attention_compute(struct attention *a, struct ggml_tensor *node);

#endif
