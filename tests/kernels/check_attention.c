/* SPDX-License-Identifier: Apache-2.0 */
/* Attention: state and result against the reference, after each kind of segment; a row's result by
 * the norm of its error, as kernels.h promises it. */
#include "check.h"

#include <math.h>
#include <string.h>

#define ROWS SKVQ_ATTN_ROWS_MAX
#define D     SKVQ_HEAD_DIM_MAX
#define PAGES 6u

/* One call's inputs, all between guard pages, and room for two results. */
struct attn {
	struct skvq_codec kc, vc;
	enum guard_side side;
	uint32_t n_rows;
	float *q, *q_stored;
	uint32_t *pos, *lo;
	struct skvq_transform tv;
	uint32_t n_pages;
	uint8_t *k_codes, *k_params, *v_codes, *v_params, *k_refine; /* of all pages in a row */
	struct skvq_page_planes pages[PAGES];
	uint16_t *k, *v;
	void *prep; /* or NULL */
	uint32_t n_tokens, k_stride, v_stride;
	float softcap;
	double k_norm; /* of the longest key in the page */
};

struct result {
	struct skvq_attn_state s;
	float max[ROWS], sum[ROWS], acc[ROWS * D], acc_stored[ROWS * D];
	float out[ROWS * D], lse[ROWS];
};

static struct result want, have;

static float query_scale(struct check *c, uint32_t dim)
{
	return exp2f((float)seeded_below(&c->rng, 6) - 2.0f) / sqrtf((float)dim);
}

static void attn_new(struct check *c, struct attn *a, uint32_t i, bool hostile)
{
	uint32_t dk = input_dims[i % INPUT_DIMS], dv = dk;
	char kn[64], vn[64];

	if (seeded_below(&c->rng, 4) == 0)
		dv = input_dims[seeded_below(&c->rng, INPUT_DIMS)];
	a->side = i / INPUT_DIMS % 2 ? GUARD_AFTER : GUARD_BEFORE;
	input_codec(&c->rng, 0, dk, &a->kc, kn);
	input_codec(&c->rng, 1, dv, &a->vc, vn);
	a->n_rows = seeded_below(&c->rng, 4) ? 1 + seeded_below(&c->rng, 8)
					     : 1 + seeded_below(&c->rng, ROWS);
	a->softcap = seeded_below(&c->rng, 4) ? 0.0f : 10.0f;
	a->n_tokens = 1 + seeded_below(&c->rng, 100);
	a->k_stride = dk + 8 * seeded_below(&c->rng, 3);
	a->v_stride = dv + 8 * seeded_below(&c->rng, 3);
	a->q = guard_new(a->n_rows * dk * 4ul, a->side);
	a->q_stored = guard_new(a->n_rows * dk * 4ul, a->side);
	a->pos = guard_new(a->n_rows * 4ul, a->side);
	a->lo = guard_new(a->n_rows * 4ul, a->side);
	a->n_pages = seeded_below(&c->rng, 2) ? 1 : 1 + seeded_below(&c->rng, PAGES);
	a->k_codes = guard_new((size_t)a->n_pages * a->kc.head_bytes, a->side);
	a->v_codes = guard_new((size_t)a->n_pages * a->vc.head_bytes, a->side);
	a->k_params = guard_new(a->n_pages * a->kc.n_rows * 80ul, a->side);
	a->v_params = guard_new(a->n_pages * a->vc.n_rows * 80ul, a->side);
	a->k_refine =
	    a->kc.nested ? guard_new((size_t)a->n_pages * a->kc.head_bytes, a->side) : NULL;
	a->k = guard_new((a->n_tokens - 1ul) * a->k_stride * 2 + dk * 2, a->side);
	a->v = guard_new((a->n_tokens - 1ul) * a->v_stride * 2 + dv * 2, a->side);
	a->prep = i % 2 ? guard_new(SKVQ_ATTN_PREP_BYTES, a->side) : NULL;
	input_fill(&c->rng, hostile ? seeded_below(&c->rng, INPUT_KINDS) : 0, a->q,
		   (size_t)a->n_rows * dk);
	for (size_t j = 0; !hostile && j < (size_t)a->n_rows * dk; j++)
		a->q[j] *= query_scale(c, dk);
	memcpy(a->q_stored, a->q, a->n_rows * dk * 4ul);
	for (uint32_t r = 0; r < a->n_rows; r++)
		c->ref.to_stored(&a->kc, NULL, a->q_stored + (size_t)r * dk);
	input_transform(&c->rng, dv, a->side, &a->tv);
	snprintf(c->where, sizeof(c->where), "K %s %u, V %s %u, %u rows%s%s", kn, dk, vn, dv,
		 a->n_rows, a->softcap > 0 ? ", softcap" : "", hostile ? ", hostile" : "");
}

static void attn_free(struct attn *a)
{
	uint32_t dk = a->kc.dim, dv = a->vc.dim;

	guard_free(a->prep, SKVQ_ATTN_PREP_BYTES);
	guard_free(a->q, a->n_rows * dk * 4ul);
	guard_free(a->q_stored, a->n_rows * dk * 4ul);
	guard_free(a->pos, a->n_rows * 4ul);
	guard_free(a->lo, a->n_rows * 4ul);
	input_transform_free(&a->tv, dv);
	guard_free(a->k_codes, (size_t)a->n_pages * a->kc.head_bytes);
	guard_free(a->v_codes, (size_t)a->n_pages * a->vc.head_bytes);
	guard_free(a->k_params, a->n_pages * a->kc.n_rows * 80ul);
	guard_free(a->v_params, a->n_pages * a->vc.n_rows * 80ul);
	guard_free(a->k_refine, (size_t)a->n_pages * a->kc.head_bytes);
	guard_free(a->k, (a->n_tokens - 1ul) * a->k_stride * 2 + dk * 2);
	guard_free(a->v, (a->n_tokens - 1ul) * a->v_stride * 2 + dv * 2);
}

static double row_norm(const float *x, uint32_t n)
{
	double sum = 0.0;

	for (uint32_t i = 0; i < n; i++)
		sum += (double)x[i] * (double)x[i];
	return sqrt(sum);
}

/* Some of a nested K's pages are read without their refinement: old ones first, as a rule. */
static void fill_pages(struct check *c, struct attn *a)
{
	uint32_t base_only = seeded_below(&c->rng, a->n_pages + 1);
	static float rows[16 * D];

	a->k_norm = 0.0;
	for (uint32_t i = 0; i < a->n_pages; i++) {
		uint8_t *k = a->k_codes + (size_t)i * a->kc.head_bytes;
		uint8_t *v = a->v_codes + (size_t)i * a->vc.head_bytes;
		uint8_t *kp = a->k_params + i * a->kc.n_rows * 80ul;
		uint8_t *vp = a->v_params + i * a->vc.n_rows * 80ul;
		uint8_t *refine = a->k_refine ? a->k_refine + (k - a->k_codes) : NULL;

		for (uint32_t t = 0; t < SKVQ_PAGE_TILES; t++) {
			input_fill(&c->rng, seeded_below(&c->rng, 3), rows, 16ul * a->kc.dim);
			c->ref.encode_tile(&a->kc, NULL, rows, t, k, kp, refine);
			c->ref.decode_tile(&a->kc, k, kp, refine, t, rows);
			for (uint32_t j = 0; j < 16; j++)
				a->k_norm =
				    fmax(a->k_norm, row_norm(rows + j * a->kc.dim, a->kc.dim));
			input_fill(&c->rng, seeded_below(&c->rng, 3), rows, 16ul * a->vc.dim);
			c->ref.encode_tile(&a->vc, NULL, rows, t, v, vp, NULL);
		}
		a->pages[i] = (struct skvq_page_planes){k, kp, v, vp, i < base_only ? NULL : refine};
	}
	guard_read_only(a->k_codes, (size_t)a->n_pages * a->kc.head_bytes);
	guard_read_only(a->v_codes, (size_t)a->n_pages * a->vc.head_bytes);
}

static void fill_rows(struct check *c, struct attn *a, bool hostile)
{
	for (uint32_t t = 0; t < a->n_tokens; t++) {
		float k[D], v[D];

		for (uint32_t j = 0; j < D; j++) {
			k[j] = seeded_gauss(&c->rng);
			v[j] = seeded_gauss(&c->rng);
			if (hostile && seeded_below(&c->rng, 200) == 0)
				k[j] = v[j] = INFINITY;
		}
		c->ref.f32_to_f16(k, a->k + (size_t)t * a->k_stride, a->kc.dim);
		c->ref.f32_to_f16(v, a->v + (size_t)t * a->v_stride, a->vc.dim);
	}
}

/* What the rows see of tokens first_position.. + n: all, a causal end, a window, or nothing. */
static void fill_masks(struct check *c, struct attn *a, uint32_t position, uint32_t n)
{
	for (uint32_t r = 0; r < a->n_rows; r++) {
		switch (seeded_below(&c->rng, 4)) {
		case 0:
			a->lo[r] = 0;
			a->pos[r] = UINT32_MAX;
			break;
		case 1:
			a->lo[r] = 0;
			a->pos[r] = position + seeded_below(&c->rng, n);
			break;
		case 2:
			a->lo[r] = position + seeded_below(&c->rng, n);
			a->pos[r] = a->lo[r] + seeded_below(&c->rng, 20);
			break;
		default:
			a->lo[r] = position + n + seeded_below(&c->rng, 9);
			a->pos[r] = a->lo[r];
			break;
		}
	}
}

/* Half the calls lend memory for what is derived from the query, unaligned to anything but floats.
 */
static void begin(const struct attn *a, const struct skvq_kernels *k, struct result *r)
{
	memset(r, 0xa5, sizeof(*r)); /* rows past n_rows must stay so */
	r->s = (struct skvq_attn_state){
	    .n_rows = a->n_rows,
	    .dim_k = a->kc.dim,
	    .dim_v = a->vc.dim,
	    .softcap = a->softcap,
	    .q = a->q,
	    .q_stored = a->q_stored,
	    .pos = a->pos,
	    .lo = a->lo,
	    .max = r->max,
	    .sum = r->sum,
	    .acc = r->acc,
	    .acc_stored = r->acc_stored,
	    .prep = a->prep,
	    .prep_key = 0xa5a5a5a5, /* attn_begin resets it */
	};
	k->attn_begin(&r->s);
}

static void finish(const struct attn *a, const struct skvq_kernels *k, struct result *r,
		   const struct skvq_transform *tv)
{
	float *out[ROWS];

	for (uint32_t i = 0; i < a->n_rows; i++)
		out[i] = r->out + (size_t)i * a->vc.dim;
	k->attn_finish(&r->s, &a->vc, tv, out, r->lse);
}

static bool untouched(const float *x, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++) {
		uint32_t u;

		memcpy(&u, &x[i], sizeof(u));
		if (u != 0xa5a5a5a5)
			return false;
	}
	return true;
}

/* |have - want| / |want|; 0 / 0 is 0. */
static double row_error(const float *x, const float *y, uint32_t n)
{
	float d[D];
	double error;

	for (uint32_t i = 0; i < n; i++)
		d[i] = x[i] - y[i];
	error = row_norm(d, n);
	return error == 0.0 ? 0.0 : error / row_norm(y, n);
}

/* Inputs of which some are NaN or infinite have no result to compare, only memory to respect. */
static void compare(struct check *c, const struct attn *a, bool hostile)
{
	size_t n = (size_t)a->n_rows * a->vc.dim;
	float bound = c->tier->attn_bound;

	check_that(c,
		   untouched(have.out, n, ROWS * D) && untouched(have.lse, a->n_rows, ROWS) &&
		       untouched(have.acc, n, ROWS * D) &&
		       untouched(have.acc_stored, n, ROWS * D) &&
		       untouched(have.max, a->n_rows, ROWS) && untouched(have.sum, a->n_rows, ROWS),
		   "rows beyond n_rows were written");
	if (bound == 0.0f) {
		check_floats(c, have.out, want.out, n, "out");
		check_floats(c, have.lse, want.lse, a->n_rows, "lse");
		return;
	}
	if (hostile)
		return;
	for (uint32_t r = 0; r < a->n_rows; r++) {
		size_t at = (size_t)r * a->vc.dim;
		double error = row_error(have.out + at, want.out + at, a->vc.dim);
		double norm = row_norm(a->q_stored + (size_t)r * a->kc.dim, a->kc.dim) * a->k_norm;
		double most = (double)bound * fmax(1.0, norm / SKVQ_ATTN_ERROR_NORM);

		check_that(c, error <= most, "row %u is off by %g of its norm, not %g", r, error,
			   most);
		check_near(c, &have.lse[r], &want.lse[r], 1, (float)most, "lse");
	}
}

static void one_pages(struct check *c, uint32_t i, bool hostile)
{
	uint32_t first = seeded_below(&c->rng, 3) ? 0 : seeded_below(&c->rng, 81);
	uint32_t position = seeded_below(&c->rng, 1000) * 80, n;
	struct attn a;

	attn_new(c, &a, i, hostile);
	fill_pages(c, &a);
	n = 80 * (a.n_pages - 1) + 16 * (1 + seeded_below(&c->rng, 5));
	if (hostile && i % 3 == 0)
		position = UINT32_MAX - 80 * a.n_pages + 1;
	fill_masks(c, &a, position, n);
	begin(&a, &c->ref, &want);
	begin(&a, &c->tier->k, &have);
	for (int twice = 0; twice < 2; twice++) {
		c->ref.attn_pages(&want.s, &a.kc, &a.vc, a.pages, a.n_pages, 0, first, n, position);
		c->tier->k.attn_pages(&have.s, &a.kc, &a.vc, a.pages, a.n_pages, 0, first, n,
				      position);
	}
	finish(&a, &c->ref, &want, NULL);
	finish(&a, &c->ref, &have, NULL);
	compare(c, &a, hostile);
	attn_free(&a);
}

static void one_rows(struct check *c, uint32_t i, bool hostile)
{
	uint32_t position = seeded_below(&c->rng, 100000);
	struct attn a = {.k_norm = 0.0};

	attn_new(c, &a, i, hostile);
	fill_rows(c, &a, hostile);
	fill_masks(c, &a, position, a.n_tokens);
	begin(&a, &c->ref, &want);
	begin(&a, &c->tier->k, &have);
	for (int twice = 0; twice < 2; twice++) {
		c->ref.attn_rows(&want.s, a.k, a.k_stride, a.v, a.v_stride, a.n_tokens, position);
		c->tier->k.attn_rows(&have.s, a.k, a.k_stride, a.v, a.v_stride, a.n_tokens,
				     position);
	}
	finish(&a, &c->ref, &want, NULL);
	finish(&a, &c->ref, &have, NULL);
	compare(c, &a, hostile);
	attn_free(&a);
}

static void one_finish(struct check *c, uint32_t i)
{
	struct attn a;

	attn_new(c, &a, i, false);
	fill_pages(c, &a);
	fill_rows(c, &a, false);
	fill_masks(c, &a, 0, 80);
	begin(&a, &c->ref, &want);
	begin(&a, &c->tier->k, &have);
	c->ref.attn_pages(&want.s, &a.kc, &a.vc, a.pages, 1, 0, 0, 80, 0);
	c->ref.attn_rows(&want.s, a.k, a.k_stride, a.v, a.v_stride, a.n_tokens, 80);
	memcpy(have.max, want.max, sizeof(have.max));
	memcpy(have.sum, want.sum, sizeof(have.sum));
	memcpy(have.acc, want.acc, sizeof(have.acc));
	memcpy(have.acc_stored, want.acc_stored, sizeof(have.acc_stored));
	finish(&a, &c->ref, &want, i % 2 ? &a.tv : NULL);
	finish(&a, &c->tier->k, &have, i % 2 ? &a.tv : NULL);
	compare(c, &a, false);
	attn_free(&a);
}

void check_attn_pages(struct check *c)
{
	for (uint32_t i = 0; i < INPUT_DIMS * 24; i++)
		one_pages(c, i, i % 4 == 3);
}

void check_attn_rows(struct check *c)
{
	for (uint32_t i = 0; i < INPUT_DIMS * 24; i++)
		one_rows(c, i, i % 4 == 3);
}

void check_attn_finish(struct check *c)
{
	for (uint32_t i = 0; i < INPUT_DIMS * 6; i++)
		one_finish(c, i);
}
