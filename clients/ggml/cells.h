/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a graph says of llama.cpp's cache: which cells are written, which ones rows of attention see,
 * and whether a cell still holds what it held. Plain reading of arrays: knows neither ggml nor the
 * plugin.
 */
#ifndef SKVQ_GGML_CELLS_H
#define SKVQ_GGML_CELLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The smallest of n cell numbers; 0 if one of them is not in [0, n_cells) or there is none. */
uint32_t cells_lowest(const int64_t *cells, int64_t n, uint32_t n_cells);

/* Whether the n cell numbers are first, first + 1, ...; all of them in [0, n_cells). */
bool cells_follow(const int64_t *cells, int64_t n, uint32_t n_cells, uint32_t *ret_first);

/* Whether row r of an F16 mask [n_rows][n_kv] shows cells 0 to first + r, all of them and no other:
 * 0 is shown, -infinity hidden, anything else is a mask of another kind. Rows are row_bytes apart. */
bool cells_causal(const void *mask, size_t row_bytes, uint32_t n_kv, uint32_t first, uint32_t n_rows);

/* 64 bits that tell rows of bytes apart; bytes is a multiple of 32. Not for adversaries. */
uint64_t cells_digest(const void *row, size_t bytes);

#endif
