/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <string.h>

const uint32_t input_dims[INPUT_DIMS] = {16, 48, 64, 80, 96, 128, 192, 240, 256};

static const char *const names[INPUT_KINDS] = {
    "gauss", "laplace",  "outlier", "zero", "denormal",  "nan and inf",
    "huge",  "constant", "steps",   "tiny", "one-sided", "bits",
};

const char *input_name(unsigned kind)
{
	return names[kind];
}

static float bits_f32(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

void input_fill(struct seeded *rng, unsigned kind, float *x, size_t n)
{
	float scale = exp2f((float)seeded_below(rng, 8) - 4.0f), constant = seeded_gauss(rng);

	for (size_t i = 0; i < n; i++) {
		float g = seeded_gauss(rng);

		switch (kind) {
		case 0:
			x[i] = scale * g;
			break;
		case 1:
			x[i] = scale * seeded_laplace(rng);
			break;
		case 2:
			x[i] = seeded_below(rng, 64) ? g : 50.0f * g;
			break;
		case 3:
			x[i] = seeded_below(rng, 2) ? 0.0f : -0.0f;
			break;
		case 4:
			x[i] = bits_f32((uint32_t)seeded_u64(rng) & 0x807fffff);
			break;
		case 5: {
			static const uint32_t odd[] = {0x7f800000, 0xff800000, 0x7fc00000,
						       0xffc00001, 0x7f800001};

			x[i] = seeded_below(rng, 4) ? g : bits_f32(odd[seeded_below(rng, 5)]);
			break;
		}
		case 6:
			x[i] = g * 3e38f;
			break;
		case 7:
			x[i] = constant;
			break;
		case 8: /* falls on the borders of cells and on ties */
			x[i] = (float)((int)seeded_below(rng, 17) - 8) * 0.25f;
			break;
		case 9: /* around the smallest step */
			x[i] = g * 0x1p-12f;
			break;
		case 10:
			x[i] = 5.0f + fabsf(g);
			break;
		default:
			x[i] = bits_f32((uint32_t)seeded_u64(rng));
			break;
		}
	}
}

void input_codec(struct seeded *rng, int is_v, uint32_t dim, struct skvq_codec *ret, char *name)
{
	static const char *const kinds[] = {"", "plain-", "affine-"};
	static const char *const widths[] = {"8", "4", "3", "2", "1.5"};
	static const char *const groups[] = {"-g32", "-g64", "-g128", ""};
	struct skvq_profile p;
	uint32_t kind = seeded_below(rng, 16);

	if (kind == 15) {
		strcpy(name, "fp16");
	} else if (kind == 14) {
		strcpy(name, "e2.1");
	} else {
		const char *w = widths[seeded_below(rng, 5)];

		kind %= 3;
		snprintf(name, 64, "%sk%sv%s%s", kinds[kind], w, w,
			 groups[seeded_below(rng, kind == 2 ? 3 : 4)]);
	}
	if (skvq_profile_parse(name, &p) < 0 ||
	    skvq_codec_init(&p, is_v, is_v ? p.v_bits : p.k_bits, dim, ret) < 0) {
		fprintf(stderr, "skvq-check: no codec \"%s\" for %u\n", name, dim);
		exit(2);
	}
}

static void input_reorder(struct seeded *rng, uint16_t *map, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = seeded_below(rng, i + 1);

		map[i] = map[j];
		map[j] = (uint16_t)i;
	}
}

static float *input_matrix(struct seeded *rng, uint32_t dim, enum guard_side side)
{
	size_t n = (size_t)dim * dim;
	float *ret = guard_new(n * 4, side);

	for (size_t i = 0; i < n; i++)
		ret[i] = seeded_gauss(rng);
	guard_read_only(ret, n * 4);
	return ret;
}

void input_transform(struct seeded *rng, uint32_t dim, enum guard_side side,
		     struct skvq_transform *ret)
{
	*ret = (struct skvq_transform){0};
	if (seeded_below(rng, 2)) {
		uint16_t *map = guard_new(dim * 2ul, side);

		input_reorder(rng, map, dim);
		guard_read_only(map, dim * 2ul);
		ret->reorder = map;
	}
	if (seeded_below(rng, 2)) {
		ret->into = input_matrix(rng, dim, side);
		ret->back = input_matrix(rng, dim, side);
		if (seeded_below(rng, 2))
			ret->query = input_matrix(rng, dim, side);
	}
}

void input_transform_free(struct skvq_transform *t, uint32_t dim)
{
	guard_free((void *)(uintptr_t)t->reorder, dim * 2ul);
	guard_free((void *)(uintptr_t)t->into, (size_t)dim * dim * 4);
	guard_free((void *)(uintptr_t)t->query, (size_t)dim * dim * 4);
	guard_free((void *)(uintptr_t)t->back, (size_t)dim * dim * 4);
}
