/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/calibrate.h - from a model's keys, values and queries to a calibration file.
 *
 * Knows no engine: whoever runs the model hands over rows. One pass keeps second moments in double
 * and a small sample of rows, so memory does not grow with the text. docs/calibration.md explains
 * what is computed. One thread at a time for each struct skvq_moments. Functions return 0 or
 * -SKVQ_E* with a sentence in why.
 */
#ifndef SKVQ_CALIBRATE_H
#define SKVQ_CALIBRATE_H

#include <stddef.h>
#include <stdint.h>

#include <skvq/calibration.h>

#if defined(__cplusplus)
extern "C" {
#endif

struct skvq_moments; /* made by skvq_moments_new, freed by skvq_moments_free */

/* How the model turns its keys: as in skvq_model_desc. */
struct skvq_calibrate_rope {
	uint32_t dim;    /* channels that are turned; 0: none */
	int interleaved; /* rows come with SKVQ_PAIRS_INTERLEAVED */
	double theta;
	const char *scaling;
	uint32_t positions; /* that a sequence may have: the trained context; at least 1 */
	const uint32_t *layer_window; /* [n_layer], not 0: the layer slides; NULL: none does */
};

/* Only the geometry of key is used here. rope NULL: there is none. -SKVQ_EGEOMETRY, -SKVQ_ENOMEM. */
int skvq_moments_new(const struct skvq_calibration_key *key, const struct skvq_calibrate_rope *rope,
		     struct skvq_moments **ret);
/* NULL is a no-op. */
void skvq_moments_free(struct skvq_moments *m);

/* Rows of one layer: q [n_tokens][n_q_heads][head_dim_k], k and v [n_tokens][n_kv_heads][..], after
 * RoPE, positions from position on. The first tokens of a text are kept in FP16 by every profile
 * and do not count. */
void skvq_moments_add(struct skvq_moments *m, uint32_t layer, uint32_t position, uint32_t n_tokens,
		      const float *q, const float *k, const float *v);

/* Matrices, groups and errors as a file without tables, to be freed with free(). key says whose; text and
 * tool are cut where they do not fit. -SKVQ_EINVAL if there were too few rows or any was not
 * finite. */
int skvq_moments_finish(const struct skvq_moments *m, const struct skvq_calibration_key *key,
			const char *text, const char *tool, void **ret, uint64_t *ret_bytes,
			char *why, size_t why_bytes);

/* The matrices of one head from its moments c = E[k k^T] and g = E[q q^T], [dim][dim]: into and back
 * as in a file. What skvq_moments_finish does for each head; alone for tests. */
int skvq_calibrate_balance(const double *c, const double *g, uint32_t dim, float *into, float *back,
			   char *why, size_t why_bytes);

/* Groups of n channels, size each on average, by the least and the largest number each showed:
 * k-means, the best of ten starts. of[n]; every number below n / size, rounded up, is there.
 * -SKVQ_ENOMEM. What skvq_moments_finish does for each layer; alone for tests. */
int skvq_calibrate_groups(const float *low, const float *high, uint32_t n, uint32_t size,
			  uint16_t *of);

/* A bit table that is wanted: as good as may be with at most code_bits bits a number on average,
 * scales not included. */
struct skvq_calibrate_target {
	const char *name; /* "auto-2.4" */
	double code_bits;
};

/* A new file: that one, with sensitivities ([n_layer][2], K and V) and tables made from them. */
int skvq_calibrate_tables(const struct skvq_calibration *c, const float *sensitivity,
			  const struct skvq_calibrate_target *targets, uint32_t n_targets,
			  void **ret, uint64_t *ret_bytes, char *why, size_t why_bytes);

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_CALIBRATE_H */
