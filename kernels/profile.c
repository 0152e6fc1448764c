/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/profile.h>

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include <skvq/error.h>

/* SKVQ's README: "to avoid overfitting we now use unified clipping, 0.91-0.97". */
#define AFFINE_CLIP 0.92f

/* Of the tokens past the window, those whose keys are read with their refinement. */
#define YOUNG_DEFAULT 1024
#define YOUNG_MAX     (1u << 30)

struct width {
	const char *name;
	uint8_t bits;      /* SKVQ_BITS_*                                              */
	uint8_t levels_m1; /* M                                                        */
	int8_t sym_exp;    /* M * 448 * 2^sym_exp, the largest key, is then 336 to 448 */
	int8_t affine_exp; /* one more: E4M3 codes the whole step, not half of it      */
};

/* No name is the start of another, so the first that fits is the one meant. */
static const struct width widths[] = {
    {"8", SKVQ_BITS_8, 255, -8, -7},      {"4", SKVQ_BITS_4, 15, -4, -3},
    {"3", SKVQ_BITS_3, 7, -3, -2},        {"2", SKVQ_BITS_2, 3, -2, -1},
    {"1.5", SKVQ_BITS_TERNARY, 2, -1, 0},
};

/* Values are about eight times smaller than keys in the models we have seen. */
#define V_EXP (-3)

static const struct width *width_find(uint8_t bits)
{
	for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++)
		if (widths[i].bits == bits)
			return &widths[i];
	return NULL;
}

/* Moves *s past prefix if it starts with it. */
static bool take(const char **s, const char *prefix)
{
	size_t n = strlen(prefix);

	if (strncmp(*s, prefix, n) != 0)
		return false;
	*s += n;
	return true;
}

static bool take_width(const char **s, uint8_t *ret_bits)
{
	for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
		if (take(s, widths[i].name)) {
			*ret_bits = widths[i].bits;
			return true;
		}
	}
	return false;
}

/* "", "-nall" or "-n<tokens>" to the end. */
static bool take_young(const char *s, uint32_t *ret)
{
	uint32_t n = 0;

	*ret = YOUNG_DEFAULT;
	if (*s == '\0')
		return true;
	if (strcmp(s, "-nall") == 0) {
		*ret = UINT32_MAX;
		return true;
	}
	if (!take(&s, "-n") || *s < '1' || *s > '9') /* one spelling a number */
		return false;
	for (; *s >= '0' && *s <= '9'; s++) {
		n = 10 * n + (uint32_t)(*s - '0');
		if (n > YOUNG_MAX)
			return false;
	}
	*ret = n;
	return *s == '\0';
}

static bool is_reserved(const char *name)
{
	return strcmp(name, "skvq") == 0;
}

/* "2", "2.4", "2.38": at most 15.99. */
static bool is_average(const char *s)
{
	size_t n = strspn(s, "0123456789"), decimals = 0;

	if (n < 1 || n > 2 || (n == 2 && (s[0] != '1' || s[1] > '5')))
		return false;
	if (s[n] == '.') {
		decimals = strspn(s + n + 1, "0123456789");
		n += 1 + decimals;
		if (decimals < 1 || decimals > 2)
			return false;
	}
	return s[n] == '\0';
}

int skvq_profile_parse(const char *name, struct skvq_profile *ret)
{
	struct skvq_profile p = {
	    .kind = SKVQ_CODEC_SYM, .rotate_k = 1, .rotate_v = 1, .clip = 1.0f};
	const char *s = name;
	size_t n;

	if (!name)
		return -SKVQ_EPROFILE;
	n = strnlen(name, SKVQ_PROFILE_NAME_MAX + 1);
	if (n > SKVQ_PROFILE_NAME_MAX)
		return -SKVQ_EPROFILE;
	memcpy(p.name, name, n);
	if (is_reserved(name))
		return -SKVQ_ENOTSUP;

	if (strcmp(name, "fp16") == 0) {
		p.kind = SKVQ_CODEC_FP16;
		p.k_bits = p.v_bits = SKVQ_BITS_FP16;
		p.rotate_k = p.rotate_v = 0;
		*ret = p;
		return 0;
	}
	if (take(&s, "e2.1") || take(&s, "e2.4")) {
		if (s[-1] == '1')
			p.k_bits = p.v_bits = SKVQ_BITS_2; /* else a table says them */
		p.nested = 1;
		if (!take_young(s, &p.young))
			return -SKVQ_EPROFILE;
		*ret = p;
		return 0;
	}
	if (take(&s, "auto-")) { /* bits 0: a table says them */
		if (!is_average(s))
			return -SKVQ_EPROFILE;
		*ret = p;
		return 0;
	}
	if (take(&s, "plain-")) {
		p.rotate_k = p.rotate_v = 0;
	} else if (take(&s, "affine-")) {
		p.kind = SKVQ_CODEC_AFFINE;
		p.rotate_k = p.rotate_v = 0;
		p.clip = AFFINE_CLIP;
	} else if (take(&s, "skvq-")) {
		p.kind = SKVQ_CODEC_FAITHFUL;
		p.rotate_k = p.rotate_v = 0;
		p.clip = AFFINE_CLIP;
		p.pre_rope = !take(&s, "post-");
	}
	if (!take(&s, "k") || !take_width(&s, &p.k_bits) || !take(&s, "v") ||
	    !take_width(&s, &p.v_bits))
		return -SKVQ_EPROFILE;
	if (take(&s, "-g32"))
		p.group = 32;
	else if (take(&s, "-g64"))
		p.group = 64;
	else if (take(&s, "-g128"))
		p.group = 128;
	else if (p.kind != SKVQ_CODEC_SYM)
		return -SKVQ_EPROFILE;
	if (p.kind == SKVQ_CODEC_SYM)
		p.bare = take(&s, "-bare");
	if (*s != '\0')
		return -SKVQ_EPROFILE;
	*ret = p;
	return 0;
}

/* Code bytes of one tile, by the planes of skvq/format.h. */
static uint32_t tile_bytes_of(uint8_t bits, uint32_t dim)
{
	uint32_t n = dim / 4; /* raw vectors */

	switch (bits) {
	case SKVQ_BITS_FP16:
		return SKVQ_TILE_TOKENS * dim * 2;
	case SKVQ_BITS_8:
		return 64 * n;
	case SKVQ_BITS_4:
		return 64 * ((n + 1) / 2);
	case SKVQ_BITS_3:
		return 64 * ((n + 3) / 4 + (n + 7) / 8);
	case SKVQ_BITS_2:
		return 64 * ((n + 3) / 4);
	default:
		return 0; /* ternary: a byte holds all five tiles */
	}
}

int skvq_codec_init(const struct skvq_profile *profile, int is_v, uint8_t bits, uint32_t dim,
		    struct skvq_codec *ret)
{
	const struct width *w = width_find(bits);
	struct skvq_codec c = {0};

	if (dim < 16 || dim > SKVQ_HEAD_DIM_MAX || dim % 16 != 0)
		return -SKVQ_EGEOMETRY;
	if (profile->group != 0 && profile->group != 32 && profile->group != 64 &&
	    profile->group != 128)
		return -SKVQ_EPROFILE;

	c.bits = bits;
	c.is_v = is_v != 0;
	c.dim = (uint16_t)dim;
	c.group = c.dim;
	c.n_groups = 1;
	c.clip = 1.0f;
	c.tile_bytes = tile_bytes_of(bits, dim);
	c.head_bytes = bits == SKVQ_BITS_TERNARY ? 64 * (dim / 4) : SKVQ_PAGE_TILES * c.tile_bytes;
	assert(c.head_bytes % SKVQ_PLANE_ALIGN == 0);

	if (bits == SKVQ_BITS_FP16) {
		c.kind = SKVQ_CODEC_FP16; /* no rows, no rotation: nothing to gain from one */
		*ret = c;
		return 0;
	}
	if (!w || profile->kind == SKVQ_CODEC_FP16 || profile->kind > SKVQ_CODEC_FAITHFUL)
		return -SKVQ_EPROFILE;
	if (!(profile->clip > 0.0f && profile->clip <= 1.0f))
		return -SKVQ_EPROFILE;

	c.kind = profile->kind;
	c.levels_minus_1 = w->levels_m1;
	if (c.kind == SKVQ_CODEC_FAITHFUL) {
		c.group = profile->group;
		c.n_groups = 0;
		c.clip = profile->clip;
		*ret = c;
		return 0;
	}
	c.nested = profile->nested && !is_v && bits == SKVQ_BITS_2;
	c.rotate = (is_v ? profile->rotate_v : profile->rotate_k) != 0;
	if (profile->group != 0 && profile->group < dim)
		c.group = profile->group;
	c.n_groups = (uint16_t)((dim + c.group - 1) / c.group);
	if (c.kind == SKVQ_CODEC_AFFINE) {
		c.n_rows = (uint16_t)(2 * c.n_groups);
		c.scale_exp = (int16_t)(w->affine_exp + (is_v ? V_EXP : 0));
		c.zero_exp = is_v ? V_EXP : 0;
		c.clip = profile->clip;
	} else {
		c.n_rows = c.n_groups;
		c.scale_exp = (int16_t)(w->sym_exp + (is_v ? V_EXP : 0));
	}
	*ret = c;
	return 0;
}
