/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/rope.h>

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

/* A word of the text up to '+' or the end: "name:number[:...]". */
static bool take_word(const char **text, const char *name, double *ret)
{
	size_t n = strlen(name), end = strcspn(*text, "+");
	char *stop;

	if (strncmp(*text, name, n) != 0 || (*text)[n] != ':')
		return false;
	*ret = strtod(*text + n + 1, &stop);
	if (!(*ret > 0) || !isfinite(*ret) || (*stop != ':' && stop != *text + end))
		return false;
	*text += end;
	*text += **text == '+';
	return true;
}

int skvq_rope_init(uint32_t dim, double theta, const char *scaling, struct skvq_rope *ret)
{
	const char *text = scaling ? scaling : "";
	double linear = 1, swa = theta, x;

	assert(dim <= SKVQ_HEAD_DIM_MAX && dim % 2 == 0);
	while (*text) {
		if (take_word(&text, "linear", &x))
			linear = x;
		else if (take_word(&text, "swa", &x))
			swa = x;
		else
			return -SKVQ_ENOTSUP;
	}
	ret->pairs = dim / 2;
	for (uint32_t i = 0; i < ret->pairs; i++) {
		double turn = -2.0 * i / dim;

		ret->frequency[0][i] = pow(theta, turn) / linear;
		ret->frequency[1][i] = pow(swa, turn);
	}
	return 0;
}

void skvq_rope_turn(const struct skvq_rope *r, int slides, uint32_t position, int way, float *x)
{
	const double *frequency = r->frequency[slides != 0];

	for (uint32_t i = 0; i < r->pairs; i++) {
		double angle = (double)way * position * frequency[i];
		float c = (float)cos(angle), s = (float)sin(angle);
		float a = x[i], b = x[i + r->pairs];

		x[i] = a * c - b * s;
		x[i + r->pairs] = a * s + b * c;
	}
}
