/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The matrix that balances what queries see against what keys spend.
 *
 * With C = E[k k^T] = Lc Lc^T, G = E[q q^T] = Lg Lg^T and Lg^T Lc = U S V^T, keys are stored as k A
 * with A = Lc^-T V S^(1/2) H and queries become q A^-T. Both then have the covariance H S H: an
 * error anywhere in a stored key costs as much as anywhere else, and the Hadamard matrix H gives
 * every channel the same variance, which is what one scale for the vector wants.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lapacke.h>

#include <skvq/calibrate.h>
#include <skvq/error.h>

/* Directions that the text hardly showed: each channel by its own size, so that a model whose
 * channels are scaled differently, and does the same, is coded the same. */
#define RIDGE 1e-4
#define RIDGE_MEAN 1e-10 /* channels that are always zero */
#define STORED_RMS 8.0 /* of K: where the E4M3 scales of a page (kernels/profile.c) are at home */
#define NOTHING 1e-20  /* a mean square below it is a head that does nothing */

/* The kernels' rotation (kernels/ref/transform.c), in double; its own inverse. */
static void hadamard(double *x, uint32_t dim)
{
	uint32_t block = dim & -dim;
	double norm = 1 / sqrt((double)block);

	for (uint32_t half = 1; half < block; half *= 2)
		for (uint32_t i = 0; i < dim; i += 2 * half)
			for (uint32_t j = i; j < i + half; j++) {
				double a = x[j], b = x[j + half];

				x[j] = a + b;
				x[j + half] = a - b;
			}
	for (uint32_t i = 0; i < dim; i++)
		x[i] *= norm;
}

static double mean_diagonal(const double *m, uint32_t dim)
{
	double sum = 0;

	for (uint32_t i = 0; i < dim; i++)
		sum += m[(size_t)i * dim + i];
	return sum / dim;
}

/* Lower triangle, column-major: l[i + j*dim], zeros above. */
static int cholesky(const double *m, uint32_t dim, double *l)
{
	double mean = mean_diagonal(m, dim);

	memcpy(l, m, (size_t)dim * dim * sizeof(*l));
	for (uint32_t i = 0; i < dim; i++)
		l[i + (size_t)i * dim] += RIDGE * m[i + (size_t)i * dim] + RIDGE_MEAN * mean;
	if (LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'L', (int)dim, l, (int)dim) != 0)
		return -1;
	for (uint32_t j = 0; j < dim; j++)
		for (uint32_t i = 0; i < j; i++)
			l[i + (size_t)j * dim] = 0;
	return 0;
}

/* ret = a^T b, column-major, of lower triangles. */
static void triangles_product(const double *a, const double *b, uint32_t dim, double *ret)
{
	for (uint32_t j = 0; j < dim; j++)
		for (uint32_t i = 0; i < dim; i++) {
			double sum = 0;

			for (uint32_t k = i > j ? i : j; k < dim; k++)
				sum += a[k + (size_t)i * dim] * b[k + (size_t)j * dim];
			ret[i + (size_t)j * dim] = sum;
		}
}

/* Which singular direction goes to channel i before the rotation. Where it works in several blocks
 * they get large and small ones alike. */
static uint32_t direction_of(uint32_t i, uint32_t dim)
{
	uint32_t block = dim & -dim, n_blocks = dim / block;

	return i % block * n_blocks + i / block;
}

static void rotation_only(uint32_t dim, float *into, float *back)
{
	for (uint32_t i = 0; i < dim; i++) {
		double row[SKVQ_HEAD_DIM_MAX] = {0};

		row[i] = 1;
		hadamard(row, dim);
		for (uint32_t j = 0; j < dim; j++)
			into[(size_t)i * dim + j] = back[(size_t)i * dim + j] = (float)row[j];
	}
}

static int finish(const double *lc, const double *x, const double *s, const double *vt, uint32_t dim,
		  float *into, float *back, char *why, size_t why_bytes)
{
	double mean = 0;

	for (uint32_t i = 0; i < dim; i++)
		mean += s[i] / dim;
	double scale = STORED_RMS / sqrt(mean);
	for (uint32_t r = 0; r < dim; r++) { /* rows of Lc^-T V S^(1/2), times H */
		double row[SKVQ_HEAD_DIM_MAX];

		for (uint32_t i = 0; i < dim; i++) {
			uint32_t d = direction_of(i, dim);

			row[i] = scale * sqrt(s[d]) * x[r + (size_t)d * dim];
		}
		hadamard(row, dim);
		for (uint32_t i = 0; i < dim; i++)
			into[(size_t)r * dim + i] = (float)row[i];
	}
	for (uint32_t c = 0; c < dim; c++) { /* columns of S^(-1/2) V^T Lc^T, H before them */
		double column[SKVQ_HEAD_DIM_MAX];

		for (uint32_t i = 0; i < dim; i++) {
			uint32_t d = direction_of(i, dim);
			double sum = 0;

			for (uint32_t k = 0; k <= c; k++)
				sum += vt[d + (size_t)k * dim] * lc[c + (size_t)k * dim];
			column[i] = sum / (scale * sqrt(s[d]));
		}
		hadamard(column, dim);
		for (uint32_t i = 0; i < dim; i++)
			back[(size_t)i * dim + c] = (float)column[i];
	}
	for (size_t i = 0; i < (size_t)dim * dim; i++)
		if (!(fabsf(into[i]) <= SKVQ_CALIBRATION_ENTRY_MAX &&
		      fabsf(back[i]) <= SKVQ_CALIBRATION_ENTRY_MAX)) {
			snprintf(why, why_bytes, "its balancing matrix has an entry beyond %g",
				 (double)SKVQ_CALIBRATION_ENTRY_MAX);
			return -SKVQ_ERANGE;
		}
	return 0;
}

int skvq_calibrate_balance(const double *c, const double *g, uint32_t dim, float *into, float *back,
			   char *why, size_t why_bytes)
{
	size_t n = (size_t)dim * dim;
	double *work, *lc, *lg, *product, *u, *vt, *s;
	int r;

	if (dim < 16 || dim > SKVQ_HEAD_DIM_MAX || dim % 16) {
		snprintf(why, why_bytes, "head_dim %u", dim);
		return -SKVQ_EGEOMETRY;
	}
	if (!(mean_diagonal(c, dim) > NOTHING && mean_diagonal(g, dim) > NOTHING)) {
		rotation_only(dim, into, back);
		return 0;
	}
	work = calloc(5 * n + dim, sizeof(*work));
	if (!work) {
		snprintf(why, why_bytes, "no memory for matrices of head_dim %u", dim);
		return -SKVQ_ENOMEM;
	}
	lc = work;
	lg = lc + n;
	product = lg + n;
	u = product + n;
	vt = u + n;
	s = vt + n;
	if (cholesky(c, dim, lc) < 0 || cholesky(g, dim, lg) < 0) {
		snprintf(why, why_bytes, "the moments are not those of finite numbers");
		r = -SKVQ_EINVAL;
		goto out;
	}
	triangles_product(lg, lc, dim, product);
	if (LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'A', (int)dim, (int)dim, product, (int)dim, s, u,
			   (int)dim, vt, (int)dim) != 0 ||
	    !(s[dim - 1] > 0)) {
		snprintf(why, why_bytes, "the singular value decomposition did not converge");
		r = -SKVQ_EINVAL;
		goto out;
	}
	for (uint32_t i = 0; i < dim; i++) /* u has done its work: V goes there */
		for (uint32_t j = 0; j < dim; j++)
			u[i + (size_t)j * dim] = vt[j + (size_t)i * dim];
	if (LAPACKE_dtrtrs(LAPACK_COL_MAJOR, 'L', 'T', 'N', (int)dim, (int)dim, lc, (int)dim, u,
			   (int)dim) != 0) {
		snprintf(why, why_bytes, "the keys' moments are singular");
		r = -SKVQ_EINVAL;
		goto out;
	}
	r = finish(lc, u, s, vt, dim, into, back, why, why_bytes);
out:
	free(work);
	return r;
}
