/* SPDX-License-Identifier: Apache-2.0 */
#include "calibration_maker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/seeded.h"

enum { TOKENS = 64, OUTLIER = 3 };

static void check(int r, const char *what, const char *why)
{
	if (r < 0) {
		fprintf(stderr, "calibration_make: %s: %d, %s\n", what, r, why);
		abort();
	}
}

static void rows(struct seeded *s, float *x, size_t n, uint32_t dim, float outlier)
{
	for (size_t i = 0; i < n; i++)
		x[i] = seeded_gauss(s) * (i % (dim / 2) == OUTLIER ? outlier : 1);
}

void *calibration_make(const struct skvq_calibration_key *key,
		       const struct skvq_calibrate_rope *rope, float outlier, uint64_t seed,
		       uint64_t *ret_bytes)
{
	static const struct skvq_calibrate_target target = {"auto-2.4", 2.255};
	struct seeded s = {seed};
	struct skvq_moments *m = NULL;
	size_t n_k = (size_t)TOKENS * key->n_kv_heads * key->head_dim_k;
	size_t n_q = (size_t)TOKENS * key->n_q_heads * key->head_dim_k;
	size_t n_v = (size_t)TOKENS * key->n_kv_heads * key->head_dim_v;
	float *k = malloc(n_k * sizeof(*k)), *q = malloc(n_q * sizeof(*q)),
	      *v = malloc(n_v * sizeof(*v)), *sensitivity;
	struct skvq_calibration c;
	void *plain = NULL, *ret = NULL;
	uint64_t n_plain;
	char why[256] = "";

	check(skvq_moments_new(key, rope, &m), "moments", why);
	for (uint32_t at = 0; at < 9 * key->head_dim_k + 256; at += TOKENS)
		for (uint32_t l = 0; l < key->n_layer; l++) {
			rows(&s, k, n_k, key->head_dim_k, outlier);
			rows(&s, q, n_q, key->head_dim_k, 1 / outlier);
			rows(&s, v, n_v, key->head_dim_v, 1);
			skvq_moments_add(m, l, at, TOKENS, q, k, v);
		}
	check(skvq_moments_finish(m, key, "Gaussian rows", "calibration_make", &plain, &n_plain, why,
				  sizeof(why)),
	      "file", why);
	check(skvq_calibration_open(plain, n_plain, &c, why, sizeof(why)), "open", why);
	sensitivity = calloc(key->n_layer, 2 * sizeof(*sensitivity));
	sensitivity[2 * key->n_layer - 2] = sensitivity[2 * key->n_layer - 1] = 1;
	check(skvq_calibrate_tables(&c, sensitivity, &target, 1, &ret, ret_bytes, why, sizeof(why)),
	      "tables", why);
	free(sensitivity);
	free(plain);
	free(k);
	free(q);
	free(v);
	skvq_moments_free(m);
	return ret;
}

void calibration_ungroup(void *file, uint64_t *bytes)
{
	skvq_calibration_header h;
	struct skvq_calibration c;

	memcpy(&h, file, sizeof(h));
	h.flags &= ~SKVQ_CALIBRATION_HAS_GROUPS;
	check(skvq_calibration_plan(&h, &c), "plan", "");
	memcpy(file, &h, sizeof(h)); /* they are the end of the file */
	*bytes = h.file_bytes;
	skvq_calibration_seal(file, *bytes);
}
