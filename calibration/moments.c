/* SPDX-License-Identifier: Apache-2.0 */
#include <complex.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/calibrate.h>
#include <skvq/error.h>
#include <skvq/kernels.h>
#include <skvq/rope.h>

/* Sinks stay in FP16; and the keys of a text's first tokens are like no others. */
#define SKIP_KEYS 8u
/* A query sees codes only beyond the window. */
#define SKIP_QUERIES 128u
#define SAMPLE_ROWS 128u /* of each head, for the errors: eight tiles, from different places */
#define SAMPLE_TAKE 16u  /* of one call */
#define ROWS_MIN 8u      /* for each channel, or the moments say nothing */

struct skvq_moments {
	uint32_t n_layer, n_q_heads, n_kv_heads, dim_k, dim_v, pairs_half;
	double *k, *q; /* sums of x x^T before RoPE, upper triangle: [layer][kv head][dim_k][dim_k] */
	uint32_t positions;
	float *sample_k, *sample_v; /* [layer][kv head][SAMPLE_ROWS][dim] */
	struct {
		uint64_t n_k, n_q;
		uint32_t n_sample;
	} *layers;
	/* What each channel showed: [layer], then all channels of K before RoPE, of K, of V. */
	struct skvq_rope rope;
	uint8_t *slides; /* [layer] */
	float *low, *high;
	bool not_finite;
	uint32_t bad_layer, bad_position;
};

/* Channels whose ranges are kept for a layer, and where those of a kind begin. */
static size_t ranges_of(const struct skvq_moments *m)
{
	return (size_t)m->n_kv_heads * (2 * m->dim_k + m->dim_v);
}

static size_t range_at(const struct skvq_moments *m, uint32_t layer, int channels)
{
	return layer * ranges_of(m) + (size_t)channels * m->n_kv_heads * m->dim_k;
}

static bool rope_fits(const struct skvq_calibrate_rope *rope, uint32_t dim_k)
{
	return !rope->dim || (rope->dim <= dim_k && rope->dim % 2 == 0 && rope->theta > 0 &&
			      isfinite(rope->theta) && rope->positions);
}

int skvq_moments_new(const struct skvq_calibration_key *key, const struct skvq_calibrate_rope *rope,
		     struct skvq_moments **ret)
{
	static const struct skvq_calibrate_rope none = {0};
	skvq_calibration_header h = {.flags = SKVQ_CALIBRATION_HAS_GROUPS,
				     .n_layer = (uint16_t)key->n_layer,
				     .n_q_heads = (uint16_t)key->n_q_heads,
				     .n_kv_heads = (uint16_t)key->n_kv_heads,
				     .head_dim_k = (uint16_t)key->head_dim_k,
				     .head_dim_v = (uint16_t)key->head_dim_v};
	struct skvq_calibration plan;
	size_t heads = (size_t)key->n_layer * key->n_kv_heads;

	rope = rope ? rope : &none;
	if (key->n_layer > UINT16_MAX || key->n_q_heads > UINT16_MAX ||
	    key->n_kv_heads > UINT16_MAX || key->head_dim_k > UINT16_MAX ||
	    key->head_dim_v > UINT16_MAX || skvq_calibration_plan(&h, &plan) < 0 ||
	    !rope_fits(rope, key->head_dim_k))
		return -SKVQ_EGEOMETRY;
	struct skvq_moments *m = calloc(1, sizeof(*m));
	if (!m)
		return -SKVQ_ENOMEM;
	*m = (struct skvq_moments){.n_layer = key->n_layer,
				   .n_q_heads = key->n_q_heads,
				   .n_kv_heads = key->n_kv_heads,
				   .dim_k = key->head_dim_k,
				   .dim_v = key->head_dim_v,
				   .positions = rope->positions,
				   .pairs_half = rope->interleaved ? rope->dim / 2 : 0};
	m->k = calloc(heads * m->dim_k * m->dim_k, sizeof(*m->k));
	m->q = calloc(heads * m->dim_k * m->dim_k, sizeof(*m->q));
	m->sample_k = calloc(heads * SAMPLE_ROWS * m->dim_k, sizeof(*m->sample_k));
	m->sample_v = calloc(heads * SAMPLE_ROWS * m->dim_v, sizeof(*m->sample_v));
	m->layers = calloc(key->n_layer, sizeof(*m->layers));
	m->slides = calloc(key->n_layer, sizeof(*m->slides));
	m->low = calloc(key->n_layer * ranges_of(m), sizeof(*m->low));
	m->high = calloc(key->n_layer * ranges_of(m), sizeof(*m->high));
	if (!m->k || !m->q || !m->sample_k || !m->sample_v || !m->layers || !m->slides ||
	    !m->low || !m->high) {
		skvq_moments_free(m);
		return -SKVQ_ENOMEM;
	}
	/* Keys that cannot be turned back are taken as they come: where the text's positions are,
	 * that is as good. */
	(void)skvq_rope_init(rope->dim, rope->theta, rope->scaling, &m->rope);
	for (uint32_t i = 0; i < key->n_layer; i++)
		m->slides[i] = rope->layer_window && rope->layer_window[i];
	for (size_t i = 0; i < key->n_layer * ranges_of(m); i++) {
		m->low[i] = INFINITY;
		m->high[i] = -INFINITY;
	}
	*ret = m;
	return 0;
}

void skvq_moments_free(struct skvq_moments *m)
{
	if (!m)
		return;
	free(m->k);
	free(m->q);
	free(m->sample_k);
	free(m->sample_v);
	free(m->layers);
	free(m->slides);
	free(m->low);
	free(m->high);
	free(m);
}

static bool finite_row(const float *x, uint32_t n)
{
	float zero = 0;

	for (uint32_t i = 0; i < n; i++)
		zero += 0.0f * x[i]; /* NaN for anything that is not finite */
	return zero == 0.0f;
}

/* Into the pages' channel order, as double. */
static void load(const struct skvq_moments *m, const float *x, double *ret)
{
	uint32_t half = m->pairs_half;

	for (uint32_t i = 0; i < half; i++) {
		ret[i] = x[2 * i];
		ret[half + i] = x[2 * i + 1];
	}
	for (uint32_t i = 2 * half; i < m->dim_k; i++)
		ret[i] = x[i];
}

/* The same before RoPE, where that is known. */
static void load_before(const struct skvq_moments *m, uint32_t layer, uint32_t position,
			const float *x, double *ret)
{
	float row[SKVQ_HEAD_DIM_MAX];

	load(m, x, ret);
	if (!m->rope.pairs)
		return;
	for (uint32_t i = 0; i < m->dim_k; i++)
		row[i] = (float)ret[i];
	skvq_rope_turn(&m->rope, m->slides[layer], position, -1, row);
	for (uint32_t i = 0; i < m->dim_k; i++)
		ret[i] = row[i];
}

/* Four rows at a time: each sum is then read and written a quarter as often. */
static void add_rows(double *sum, uint32_t dim, double rows[4][SKVQ_HEAD_DIM_MAX])
{
	for (uint32_t i = 0; i < dim; i++) {
		double a = rows[0][i], b = rows[1][i], c = rows[2][i], d = rows[3][i];
		double *to = sum + (size_t)i * dim;

		for (uint32_t j = i; j < dim; j++)
			to[j] += a * rows[0][j] + b * rows[1][j] + c * rows[2][j] + d * rows[3][j];
	}
}

/* Heads [first, first + n_heads) of rows [n_tokens][n_all][dim_k], positions from position on. */
static void add_heads(const struct skvq_moments *m, uint32_t layer, uint32_t position, double *sum,
		      const float *x, uint32_t n_tokens, uint32_t n_all, uint32_t first,
		      uint32_t n_heads)
{
	double rows[4][SKVQ_HEAD_DIM_MAX] = {{0}};
	uint32_t n = 0;

	for (uint32_t t = 0; t < n_tokens; t++) {
		for (uint32_t h = first; h < first + n_heads; h++) {
			load_before(m, layer, position + t, x + ((size_t)t * n_all + h) * m->dim_k,
				    rows[n]);
			if (++n == 4) {
				add_rows(sum, m->dim_k, rows);
				n = 0;
			}
		}
	}
	if (n) {
		memset(rows + n, 0, (4 - n) * sizeof(rows[0]));
		add_rows(sum, m->dim_k, rows);
	}
}

static void add_sample(struct skvq_moments *m, uint32_t layer, uint32_t n_tokens, const float *k,
		       const float *v)
{
	uint32_t at = m->layers[layer].n_sample;

	if (n_tokens < SAMPLE_TAKE || at + SAMPLE_TAKE > SAMPLE_ROWS)
		return;
	for (uint32_t t = 0; t < SAMPLE_TAKE; t++) {
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			size_t head = (size_t)layer * m->n_kv_heads + h;
			size_t from = (size_t)t * m->n_kv_heads + h;
			float *to_k = m->sample_k + (head * SAMPLE_ROWS + at + t) * m->dim_k;
			double row[SKVQ_HEAD_DIM_MAX];

			load(m, k + from * m->dim_k, row);
			for (uint32_t i = 0; i < m->dim_k; i++)
				to_k[i] = (float)row[i];
			memcpy(m->sample_v + (head * SAMPLE_ROWS + at + t) * m->dim_v,
			       v + from * m->dim_v, m->dim_v * sizeof(*v));
		}
	}
	m->layers[layer].n_sample += SAMPLE_TAKE;
}

static void widen(struct skvq_moments *m, size_t at, const float *x, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		m->low[at + i] = fminf(m->low[at + i], x[i]);
		m->high[at + i] = fmaxf(m->high[at + i], x[i]);
	}
}

static void add_ranges(struct skvq_moments *m, uint32_t layer, uint32_t position, uint32_t n_tokens,
		       const float *k, const float *v)
{
	size_t before = range_at(m, layer, SKVQ_CHANNELS_K_BEFORE);
	size_t after = range_at(m, layer, SKVQ_CHANNELS_K_AFTER);

	for (uint32_t t = 0; t < n_tokens; t++) {
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			size_t at = (size_t)h * m->dim_k;
			double canonical[SKVQ_HEAD_DIM_MAX];
			float row[SKVQ_HEAD_DIM_MAX];

			load(m, k + ((size_t)t * m->n_kv_heads + h) * m->dim_k, canonical);
			for (uint32_t i = 0; i < m->dim_k; i++)
				row[i] = (float)canonical[i];
			widen(m, after + at, row, m->dim_k);
			skvq_rope_turn(&m->rope, m->slides[layer], position + t, -1, row);
			widen(m, before + at, row, m->dim_k);
		}
		widen(m, range_at(m, layer, SKVQ_CHANNELS_V),
		      v + (size_t)t * m->n_kv_heads * m->dim_v, m->n_kv_heads * m->dim_v);
	}
}

void skvq_moments_add(struct skvq_moments *m, uint32_t layer, uint32_t position, uint32_t n_tokens,
		      const float *q, const float *k, const float *v)
{
	size_t kv_row = (size_t)m->n_kv_heads * m->dim_k, q_row = (size_t)m->n_q_heads * m->dim_k;
	uint32_t group = m->n_q_heads / m->n_kv_heads;

	for (uint32_t t = 0; t < n_tokens; t++) {
		if (!finite_row(k + t * kv_row, (uint32_t)kv_row) ||
		    !finite_row(q + t * q_row, (uint32_t)q_row) ||
		    !finite_row(v + (size_t)t * m->n_kv_heads * m->dim_v,
				m->n_kv_heads * m->dim_v)) {
			if (!m->not_finite) {
				m->bad_layer = layer;
				m->bad_position = position + t;
			}
			m->not_finite = true;
			return;
		}
	}
	uint32_t skip_k = position < SKIP_KEYS ? SKIP_KEYS - position : 0;
	uint32_t skip_q = position < SKIP_QUERIES ? SKIP_QUERIES - position : 0;
	if (skip_k >= n_tokens)
		return;
	skip_q = skip_q < n_tokens ? skip_q : n_tokens;
	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		size_t at = ((size_t)layer * m->n_kv_heads + h) * m->dim_k * m->dim_k;

		add_heads(m, layer, position + skip_k, m->k + at, k + skip_k * kv_row,
			  n_tokens - skip_k, m->n_kv_heads, h, 1);
		add_heads(m, layer, position + skip_q, m->q + at, q + skip_q * q_row,
			  n_tokens - skip_q, m->n_q_heads, h * group, group);
	}
	m->layers[layer].n_k += n_tokens - skip_k;
	m->layers[layer].n_q += (uint64_t)(n_tokens - skip_q) * group;
	add_ranges(m, layer, position + skip_k, n_tokens - skip_k, k + skip_k * kv_row,
		   v + (size_t)skip_k * m->n_kv_heads * m->dim_v);
	add_sample(m, layer, n_tokens - skip_k, k + skip_k * kv_row,
		   v + (size_t)skip_k * m->n_kv_heads * m->dim_v);
}

/* ---- the file ---- */

static const uint8_t widths[SKVQ_CALIBRATION_WIDTHS] = {SKVQ_BITS_8, SKVQ_BITS_4, SKVQ_BITS_3,
							SKVQ_BITS_2, SKVQ_BITS_TERNARY};

/* Squared error of the codes over the square, of all heads of a layer, in stored space: there, all
 * channels matter alike. */
static float layer_error(const struct skvq_moments *m, const struct skvq_calibration *c,
			 uint32_t layer, int is_v, uint8_t bits)
{
	const struct skvq_kernels *kn = skvq_kernels_get();
	uint32_t dim = is_v ? m->dim_v : m->dim_k;
	struct skvq_profile p;
	struct skvq_codec codec;
	double error = 0, square = 0;
	uint8_t *codes = NULL, params[SKVQ_PAGE_TOKENS];

	if (!kn || skvq_profile_parse("k2v2", &p) < 0 ||
	    skvq_codec_init(&p, is_v, bits, dim, &codec) < 0 || codec.n_rows != 1 ||
	    !(codes = malloc(codec.head_bytes)))
		return 0;
	for (uint32_t h = 0; h < m->n_kv_heads; h++) {
		struct skvq_transform t = {.into = skvq_calibration_into(c, layer, h, is_v),
					   .back = skvq_calibration_back(c, layer, h, is_v)};
		const float *from = (is_v ? m->sample_v : m->sample_k) +
				    ((size_t)layer * m->n_kv_heads + h) * SAMPLE_ROWS * dim;

		for (uint32_t at = 0; at + SKVQ_TILE_TOKENS <= m->layers[layer].n_sample;
		     at += SKVQ_TILE_TOKENS) {
			float rows[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];
			float coded[SKVQ_TILE_TOKENS * SKVQ_HEAD_DIM_MAX];
			size_t n = (size_t)SKVQ_TILE_TOKENS * dim;

			memcpy(rows, from + (size_t)at * dim, n * sizeof(*rows));
			memset(codes, 0, codec.head_bytes);
			memset(params, 0, sizeof(params));
			kn->encode_tile(&codec, &t, rows, 0, codes, params, NULL);
			kn->decode_tile(&codec, codes, params, NULL, 0, coded);
			memcpy(rows, from + (size_t)at * dim, n * sizeof(*rows));
			for (uint32_t r = 0; r < SKVQ_TILE_TOKENS; r++)
				kn->to_stored(&codec, &t, rows + (size_t)r * dim);
			for (size_t i = 0; i < n; i++) {
				double e = (double)rows[i] - (double)coded[i];

				error += e * e;
				square += (double)rows[i] * (double)rows[i];
			}
		}
	}
	free(codes);
	return square > 0 ? (float)(error / square) : 0;
}

/* E[x x^T] from the upper triangle of the sum. */
static void mean_of(const double *sum, uint64_t n, uint32_t dim, double *ret)
{
	for (uint32_t i = 0; i < dim; i++)
		for (uint32_t j = i; j < dim; j++)
			ret[(size_t)i * dim + j] = ret[(size_t)j * dim + i] =
			    sum[(size_t)i * dim + j] / (double)n;
}

/* (e^(i w n) - 1) / (i w n): the mean of e^(i w p) over positions p from 0 to n. */
static double complex mean_turn(double w, uint32_t n)
{
	double angle = w * n;

	return fabs(angle) < 1e-9 ? 1 : (cexp(I * angle) - 1) / (I * angle);
}

/* From moments before RoPE to those after it, as the mean over all positions a sequence may have. A
 * text says what keys are like at the positions it has; further out RoPE has turned the same keys
 * elsewhere. With z = x_i + i x_(i+pairs), position p turns z_j by f_j p, so E[z_i z_j*] turns by
 * (f_i - f_j) p and E[z_i z_j] by (f_i + f_j) p. */
static void turn_moments(const struct skvq_moments *m, uint32_t layer, double *c)
{
	const double *f = m->rope.frequency[m->slides[layer] != 0];
	uint32_t dim = m->dim_k, n = m->rope.pairs, positions = m->positions;

	for (uint32_t i = 0; i < n; i++) {
		double *a = c + (size_t)i * dim, *b = a + (size_t)n * dim;

		for (uint32_t j = 0; j < n; j++) {
			double complex same = a[j] + b[j + n] + I * (b[j] - a[j + n]);
			double complex both = a[j] - b[j + n] + I * (b[j] + a[j + n]);

			same *= mean_turn(f[i] - f[j], positions);
			both *= mean_turn(f[i] + f[j], positions);
			a[j] = creal(both + same) / 2;
			b[j + n] = creal(same - both) / 2;
			b[j] = cimag(same + both) / 2;
			a[j + n] = cimag(both - same) / 2;
		}
		for (uint32_t j = 2 * n; j < dim; j++) { /* channels that are not turned */
			double complex x = (a[j] + I * b[j]) * mean_turn(f[i], positions);

			a[j] = c[(size_t)j * dim + i] = creal(x);
			b[j] = c[(size_t)j * dim + i + n] = cimag(x);
		}
	}
}

static int fill_matrices(const struct skvq_moments *m, const struct skvq_calibration *c, char *why,
			 size_t why_bytes)
{
	size_t n = (size_t)m->dim_k * m->dim_k;
	double *moments = malloc(2 * n * sizeof(*moments));
	int r = moments ? 0 : -SKVQ_ENOMEM;

	if (r < 0)
		snprintf(why, why_bytes, "no memory for the moments of a head");
	for (uint32_t layer = 0; !r && layer < m->n_layer; layer++) {
		for (uint32_t h = 0; !r && h < m->n_kv_heads; h++) {
			size_t at = ((size_t)layer * m->n_kv_heads + h) * n;
			char detail[160];

			mean_of(m->k + at, m->layers[layer].n_k, m->dim_k, moments);
			mean_of(m->q + at, m->layers[layer].n_q, m->dim_k, moments + n);
			turn_moments(m, layer, moments);
			turn_moments(m, layer, moments + n);
			r = skvq_calibrate_balance(
			    moments, moments + n, m->dim_k,
			    (float *)(uintptr_t)skvq_calibration_into(c, layer, h, 0),
			    (float *)(uintptr_t)skvq_calibration_back(c, layer, h, 0), detail,
			    sizeof(detail));
			if (r < 0)
				snprintf(why, why_bytes, "layer %u head %u: %s", layer, h, detail);
		}
	}
	free(moments);
	return r;
}

static int fill_groups(const struct skvq_moments *m, const struct skvq_calibration *c, char *why,
		       size_t why_bytes)
{
	int r = 0;

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (int ch = 0; ch < (int)SKVQ_CALIBRATION_CHANNELS; ch++)
			for (uint32_t i = 0; !r && i < SKVQ_CALIBRATION_GROUP_SIZES; i++) {
				uint32_t size = SKVQ_CALIBRATION_GROUP_SIZE(i);
				uint32_t dim = ch == SKVQ_CHANNELS_V ? m->dim_v : m->dim_k;
				size_t at = range_at(m, layer, ch);

				r = skvq_calibrate_groups(
				    m->low + at, m->high + at, m->n_kv_heads * dim, size,
				    (uint16_t *)(uintptr_t)skvq_calibration_groups(c, layer, ch,
										   size, NULL));
			}
	if (r < 0)
		snprintf(why, why_bytes, "no memory for the channels of a layer");
	return r;
}

static void put_text(char *to, size_t bytes, const char *text)
{
	size_t n = text ? strlen(text) : 0;

	n = n < bytes ? n : bytes - 1;
	for (size_t i = 0; i < n; i++)
		to[i] = text[i] >= 0x20 && text[i] <= 0x7e ? text[i] : '?';
}

static int check_enough(const struct skvq_moments *m, char *why, size_t why_bytes)
{
	if (m->not_finite) {
		snprintf(why, why_bytes, "layer %u gave numbers that are not finite at token %u",
			 m->bad_layer, m->bad_position);
		return -SKVQ_EINVAL;
	}
	for (uint32_t i = 0; i < m->n_layer; i++) {
		uint64_t want = (uint64_t)ROWS_MIN * m->dim_k;

		if (m->layers[i].n_k < want || m->layers[i].n_q < want || !m->layers[i].n_sample) {
			snprintf(why, why_bytes,
				 "layer %u saw %llu keys and %llu queries that count, and needs %llu "
				 "of each: the text is too short",
				 i, (unsigned long long)m->layers[i].n_k,
				 (unsigned long long)m->layers[i].n_q, (unsigned long long)want);
			return -SKVQ_EINVAL;
		}
	}
	return 0;
}

int skvq_moments_finish(const struct skvq_moments *m, const struct skvq_calibration_key *key,
			const char *text, const char *tool, void **ret, uint64_t *ret_bytes,
			char *why, size_t why_bytes)
{
	uint64_t n_tokens = m->layers[0].n_k;
	skvq_calibration_header h = {
	    .magic = SKVQ_CALIBRATION_MAGIC,
	    .version = SKVQ_CALIBRATION_VERSION,
	    .header_bytes = sizeof(h),
	    .flags = SKVQ_CALIBRATION_HAS_GROUPS,
	    .n_layer = (uint16_t)m->n_layer,
	    .n_q_heads = (uint16_t)m->n_q_heads,
	    .n_kv_heads = (uint16_t)m->n_kv_heads,
	    .head_dim_k = (uint16_t)m->dim_k,
	    .head_dim_v = (uint16_t)m->dim_v,
	    .n_tokens = n_tokens < UINT32_MAX ? (uint32_t)n_tokens : UINT32_MAX,
	};
	struct skvq_calibration c;
	int r = check_enough(m, why, why_bytes);

	if (r < 0)
		return r;
	memcpy(h.weights, key->weights, sizeof(h.weights));
	put_text(h.text, sizeof(h.text), text);
	put_text(h.tool, sizeof(h.tool), tool);
	(void)skvq_calibration_plan(&h, &c); /* as in skvq_moments_new */
	uint8_t *bytes = calloc(1, h.file_bytes);
	if (!bytes) {
		snprintf(why, why_bytes, "no memory for a file of %llu bytes",
			 (unsigned long long)h.file_bytes);
		return -SKVQ_ENOMEM;
	}
	memcpy(bytes, &h, sizeof(h));
	c.bytes = bytes;
	r = fill_matrices(m, &c, why, why_bytes);
	if (!r)
		r = fill_groups(m, &c, why, why_bytes);
	for (uint32_t i = 0; !r && i < m->n_layer; i++) {
		skvq_calibration_layer *layer = (void *)(bytes + sizeof(h) + i * sizeof(*layer));

		for (int is_v = 0; is_v < 2; is_v++)
			for (uint32_t w = 0; w < SKVQ_CALIBRATION_WIDTHS; w++)
				layer->error[is_v][w] = layer_error(m, &c, i, is_v, widths[w]);
	}
	if (!r) {
		skvq_calibration_seal(bytes, h.file_bytes);
		r = skvq_calibration_open(bytes, h.file_bytes, &c, why, why_bytes);
	}
	if (r < 0) {
		free(bytes);
		return r;
	}
	*ret = bytes;
	*ret_bytes = h.file_bytes;
	return 0;
}
