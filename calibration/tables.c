/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bits by layer. A layer's loss is taken as its sensitivity at 2 bits times how its codes' error
 * changes with the bits; from the narrowest table on, the next bit goes where it takes away most
 * for what it costs, until the average is reached.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/calibrate.h>
#include <skvq/error.h>

/* From wide to narrow, as skvq_calibration_layer.error has them; stored bits. */
static const struct {
	uint8_t bits;
	double stored;
} widths[SKVQ_CALIBRATION_WIDTHS] = {
    {SKVQ_BITS_8, 8}, {SKVQ_BITS_4, 4}, {SKVQ_BITS_3, 3}, {SKVQ_BITS_2, 2}, {SKVQ_BITS_TERNARY, 1.6},
};
enum { WIDEST = 1, TWO_BITS = 3, NARROWEST_K = 3, NARROWEST_V = 4 };

static double gain_of(const struct skvq_calibration *c, const float *sensitivity, uint32_t i,
		      uint32_t width)
{
	const float *error = skvq_calibration_layer_of(c, i / 2)->error[i % 2];

	if (!(error[TWO_BITS] > 0))
		return 0;
	/* A layer that showed nothing still gets its bits before none does. */
	return fmax((double)sensitivity[i], 1e-7) *
	       (double)((error[width] - error[width - 1]) / error[TWO_BITS]);
}

/* Fills bits[n_layer][2]; returns the average of stored bits, without scales. */
static double fill(const struct skvq_calibration *c, const float *sensitivity, double code_bits,
		   uint8_t *bits)
{
	uint32_t n = 2u * c->header.n_layer, width[2 * SKVQ_LAYERS_MAX];
	double dims[2] = {c->header.head_dim_k, c->header.head_dim_v}, spent = 0;
	double all = (dims[0] + dims[1]) * c->header.n_layer, budget = code_bits * all + 1e-9;

	for (uint32_t i = 0; i < n; i++) {
		width[i] = i % 2 ? NARROWEST_V : NARROWEST_K;
		spent += widths[width[i]].stored * dims[i % 2];
	}
	for (;;) {
		uint32_t best = n;
		double best_rate = -1;

		for (uint32_t i = 0; i < n; i++) {
			if (width[i] == WIDEST)
				continue;
			double cost = (widths[width[i] - 1].stored - widths[width[i]].stored) *
				      dims[i % 2];
			double rate = gain_of(c, sensitivity, i, width[i]) / cost;

			if (spent + cost <= budget && rate > best_rate) {
				best = i;
				best_rate = rate;
			}
		}
		if (best == n)
			break;
		spent += (widths[width[best] - 1].stored - widths[width[best]].stored) *
			 dims[best % 2];
		width[best]--;
	}
	for (uint32_t i = 0; i < n; i++)
		bits[i] = widths[width[i]].bits;
	return spent / all;
}

int skvq_calibrate_tables(const struct skvq_calibration *c, const float *sensitivity,
			  const struct skvq_calibrate_target *targets, uint32_t n_targets,
			  void **ret, uint64_t *ret_bytes, char *why, size_t why_bytes)
{
	skvq_calibration_header h = c->header;
	struct skvq_calibration out;
	double scale_bits = 8.0 * 2 / (h.head_dim_k + h.head_dim_v); /* one byte a vector */

	h.flags |= SKVQ_CALIBRATION_HAS_SENSITIVITY;
	h.n_tables = (uint16_t)n_targets;
	if (n_targets > SKVQ_CALIBRATION_TABLES_MAX || skvq_calibration_plan(&h, &out) < 0) {
		snprintf(why, why_bytes, "%u tables, at most %u", n_targets,
			 SKVQ_CALIBRATION_TABLES_MAX);
		return -SKVQ_ELIMIT;
	}
	uint8_t *bytes = calloc(1, h.file_bytes);
	if (!bytes) {
		snprintf(why, why_bytes, "no memory for a file of %llu bytes",
			 (unsigned long long)h.file_bytes);
		return -SKVQ_ENOMEM;
	}
	memcpy(bytes, &h, sizeof(h));
	for (uint32_t i = 0; i < h.n_layer; i++) {
		skvq_calibration_layer *layer = (void *)(bytes + sizeof(h) + i * sizeof(*layer));

		*layer = *skvq_calibration_layer_of(c, i);
		for (int j = 0; j < 2; j++)
			layer->sensitivity[j] = fmaxf(sensitivity[2 * i + j], 0);
	}
	for (uint32_t i = 0; i < n_targets; i++) {
		uint8_t *at = bytes + out.tables_offset + i * out.table_bytes;
		skvq_calibration_table t = {.average = 0};

		snprintf(t.name, sizeof(t.name), "%s", targets[i].name);
		t.average = (float)(fill(c, sensitivity, targets[i].code_bits, at + sizeof(t)) +
				    scale_bits);
		memcpy(at, &t, sizeof(t));
	}
	memcpy(bytes + out.matrices_offset, c->bytes + c->matrices_offset,
	       h.file_bytes - out.matrices_offset);
	skvq_calibration_seal(bytes, h.file_bytes);
	int r = skvq_calibration_open(bytes, h.file_bytes, &out, why, why_bytes);
	if (r < 0) {
		free(bytes);
		return r;
	}
	*ret = bytes;
	*ret_bytes = h.file_bytes;
	return 0;
}
