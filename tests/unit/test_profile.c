/* SPDX-License-Identifier: Apache-2.0 */
/* Profile names and codecs: every good name, and the bad ones that look like good ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <skvq/error.h>
#include <skvq/profile.h>

static const char *const width_names[] = {"8", "4", "3", "2", "1.5"};
static const uint8_t width_bits[] = {SKVQ_BITS_8, SKVQ_BITS_4, SKVQ_BITS_3, SKVQ_BITS_2,
				     SKVQ_BITS_TERNARY};
static const unsigned width_m[] = {255, 15, 7, 3, 2};
#define N_WIDTHS 5

static void check_name(const char *prefix, int k, int v, unsigned group)
{
	int affine = strcmp(prefix, "affine-") == 0, plain = strcmp(prefix, "plain-") == 0;
	struct skvq_profile p;
	char name[64];

	if (group)
		snprintf(name, sizeof(name), "%sk%sv%s-g%u", prefix, width_names[k], width_names[v],
			 group);
	else
		snprintf(name, sizeof(name), "%sk%sv%s", prefix, width_names[k], width_names[v]);
	memset(&p, 0xa5, sizeof(p));
	if (affine && group == 0) {
		assert_int_equal(skvq_profile_parse(name, &p), -SKVQ_EPROFILE);
		return;
	}
	assert_int_equal(skvq_profile_parse(name, &p), 0);
	assert_string_equal(p.name, name);
	assert_int_equal(p.kind, affine ? SKVQ_CODEC_AFFINE : SKVQ_CODEC_SYM);
	assert_int_equal(p.k_bits, width_bits[k]);
	assert_int_equal(p.v_bits, width_bits[v]);
	assert_int_equal(p.group, group);
	assert_int_equal(p.rotate_k, !affine && !plain);
	assert_int_equal(p.rotate_v, !affine && !plain);
	assert_true(affine ? p.clip > 0.919f && p.clip < 0.921f : p.clip == 1.0f);
}

static void good_names(void **state)
{
	static const char *const prefixes[] = {"", "plain-", "affine-"};
	static const unsigned groups[] = {0, 32, 64, 128};
	struct skvq_profile p;

	(void)state;
	for (int i = 0; i < 3; i++)
		for (int k = 0; k < N_WIDTHS; k++)
			for (int v = 0; v < N_WIDTHS; v++)
				for (int g = 0; g < 4; g++)
					check_name(prefixes[i], k, v, groups[g]);

	assert_int_equal(skvq_profile_parse("fp16", &p), 0);
	assert_int_equal(p.kind, SKVQ_CODEC_FP16);
	assert_int_equal(p.k_bits, SKVQ_BITS_FP16);
	assert_int_equal(p.v_bits, SKVQ_BITS_FP16);
	assert_int_equal(p.rotate_k | p.rotate_v, 0);
	assert_int_equal(skvq_profile_parse(SKVQ_PROFILE_DEFAULT, &p), 0);
}

static void refused(const char *name, int error)
{
	struct skvq_profile p, before;

	memset(&p, 0xa5, sizeof(p));
	before = p;
	if (skvq_profile_parse(name, &p) != -error)
		fail_msg("\"%s\" gives %d", name ? name : "(null)", skvq_profile_parse(name, &p));
	assert_memory_equal(&p, &before, sizeof(p));
}

static void bad_names(void **state)
{
	static const char *const bad[] = {
	    "",
	    " ",
	    "k",
	    "k2",
	    "k2v",
	    "v2k2",
	    "K2V2",
	    "k2v2 ",
	    " k2v2",
	    "k2v2-",
	    "k2v2-g",
	    "k2v2-g0",
	    "k2v2-g16",
	    "k2v2-g256",
	    "k2v2-g640",
	    "k2v2-g64x",
	    "k2v2-g064",
	    "k2v2g64",
	    "k1v1",
	    "k1.v2",
	    "k1.6v2",
	    "k16v16",
	    "k5v5",
	    "k2v2.5",
	    "k02v2",
	    "k+2v2",
	    "k2v1.50",
	    "k2v1,5",
	    "fp16 ",
	    "fp16-g64",
	    "FP16",
	    "fp32",
	    "fp8",
	    "plain-",
	    "plain-fp16",
	    "plain",
	    "plain-plain-k2v2",
	    "plain-affine-k2v2-g64",
	    "affine-",
	    "affine",
	    "affine-k2v2",
	    "affine-fp16",
	    "affine-k2v2-g16",
	    "auto",
	    "auto-",
	    "auto-k2v2",
	    "auto-2.",
	    "auto-.4",
	    "auto-2.400",
	    "auto-16",
	    "auto-02",
	    "auto-2.4x",
	    "auto--2",
	    "e2.2",
	    "e2.1x",
	    "skvq-",
	    "skvq-k2v2",
	    "skvq-post-",
	    "skvq-post-post-k2v2-g64",
	    "skvq-fp16",
	    "e2.1-n",
	    "e2.1-n0",
	    "e2.1-n08",
	    "e2.1-n9999999999",
	    "e2.1-n16 ",
	    "e",
	    "skvqd",
	    "k2v2-g64-g64",
	    "k2v2-g64\n",
	    "k2v2%s",
	    "kk2v2",
	    "fp16-bare",
	    "k4v2-bare-g32",
	    "k4v2-bare-bare",
	    "k4v2bare",
	    "k4v2-bar",
	    "e2.1-bare",
	    "auto-3-bare",
	    "affine-k4v2-g64-bare",
	    "skvq-k4v2-g64-bare",
	    "k-2v2",
	    "\xff\xfe",
	};
	static const char *const later[] = {"skvq"};

	char name[SKVQ_PROFILE_NAME_MAX + 40];

	(void)state;
	refused(NULL, SKVQ_EPROFILE);
	memset(name, '4', sizeof(name));
	memcpy(name, "k2v2-g6", 7);
	name[sizeof(name) - 1] = '\0';
	refused(name, SKVQ_EPROFILE);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		refused(bad[i], SKVQ_EPROFILE);
	for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++)
		refused(later[i], SKVQ_ENOTSUP);
}

static void bare(void **state)
{
	static const struct {
		const char *name;
		int rotate, group, bare;
	} good[] = {{"k4v2-bare", 1, 0, 1},
		    {"k4v2", 1, 0, 0},
		    {"k2v1.5-g64-bare", 1, 64, 1},
		    {"plain-k3v3-bare", 0, 0, 1},
		    {"plain-k3v3-g32-bare", 0, 32, 1},
		    {"affine-k4v2-g64", 0, 64, 0}};
	struct skvq_profile p;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(skvq_profile_parse(good[i].name, &p), 0);
		assert_int_equal(p.rotate_k, good[i].rotate);
		assert_int_equal(p.group, good[i].group);
		assert_int_equal(p.bare, good[i].bare);
		assert_string_equal(p.name, good[i].name);
	}
}

static void elastic(void **state)
{
	struct skvq_profile p;
	struct skvq_codec k, v;

	(void)state;
	assert_int_equal(skvq_profile_parse("e2.1", &p), 0);
	assert_int_equal(p.young, 1024);
	assert_int_equal(skvq_codec_init(&p, 0, p.k_bits, 64, &k), 0);
	assert_int_equal(skvq_codec_init(&p, 1, p.v_bits, 64, &v), 0);
	assert_true(k.nested && !v.nested);
	assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_3, 64, &k), 0);
	assert_false(k.nested); /* by a bit table */
	assert_int_equal(skvq_profile_parse("e2.4-n7", &p), 0);
	assert_true(p.nested && p.k_bits == 0 && p.v_bits == 0 && p.young == 7);
	assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_2, 64, &k), 0);
	assert_true(k.nested); /* where the table gives two bits */
	assert_int_equal(skvq_profile_parse("e2.1-n1", &p), 0);
	assert_int_equal(p.young, 1);
	assert_int_equal(skvq_profile_parse("e2.1-n1073741824", &p), 0);
	assert_int_equal(p.young, 1 << 30);
	assert_int_equal(skvq_profile_parse("e2.1-nall", &p), 0);
	assert_true(p.young == UINT32_MAX);
}

static void faithful(void **state)
{
	struct skvq_profile p;
	struct skvq_codec c;

	(void)state;
	assert_int_equal(skvq_profile_parse("skvq-k2v1.5-g64", &p), 0);
	assert_true(p.kind == SKVQ_CODEC_FAITHFUL && p.pre_rope && p.group == 64);
	assert_true(p.clip == 0.92f);
	assert_int_equal(skvq_codec_init(&p, 0, p.k_bits, 64, &c), 0);
	assert_int_equal(c.n_rows, 0); /* they are the layer's */
	assert_int_equal(c.levels_minus_1, 3);
	assert_int_equal(skvq_profile_parse("skvq-post-k4v3-g128", &p), 0);
	assert_true(!p.pre_rope && p.group == 128);
}

/* Their bits are a table's, so without one there is no codec. */
static void automatic(void **state)
{
	static const char *const names[] = {"auto-2.1", "auto-2.4", "auto-3", "auto-2.38", "auto-15.99"};
	struct skvq_profile p;
	struct skvq_codec c;

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		assert_int_equal(skvq_profile_parse(names[i], &p), 0);
		assert_string_equal(p.name, names[i]);
		assert_int_equal(p.kind, SKVQ_CODEC_SYM);
		assert_int_equal(p.rotate_k, 1);
		assert_int_equal(p.rotate_v, 1);
		assert_int_equal(p.group, 0);
		assert_int_equal(p.k_bits, 0);
		assert_int_equal(p.v_bits, 0);
		assert_int_equal(skvq_codec_init(&p, 0, p.k_bits, 64, &c), -SKVQ_EPROFILE);
		assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_3, 64, &c), 0);
	}
}

static void codecs(void **state)
{
	static const int sym_exp[] = {-8, -4, -3, -2, -1};
	struct skvq_profile sym, affine;
	struct skvq_codec c;

	(void)state;
	assert_int_equal(skvq_profile_parse("k2v2-g32", &sym), 0);
	assert_int_equal(skvq_profile_parse("affine-k2v2-g64", &affine), 0);
	for (int w = 0; w < N_WIDTHS; w++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			assert_int_equal(skvq_codec_init(&sym, is_v, width_bits[w], 80, &c), 0);
			assert_int_equal(c.kind, SKVQ_CODEC_SYM);
			assert_int_equal(c.is_v, is_v);
			assert_int_equal(c.rotate, 1);
			assert_int_equal(c.group, 32);
			assert_int_equal(c.n_groups, 3);
			assert_int_equal(c.n_rows, 3);
			assert_int_equal(c.levels_minus_1, width_m[w]);
			assert_int_equal(c.scale_exp, sym_exp[w] - 3 * is_v);

			assert_int_equal(skvq_codec_init(&affine, is_v, width_bits[w], 64, &c), 0);
			assert_int_equal(c.kind, SKVQ_CODEC_AFFINE);
			assert_int_equal(c.rotate, 0);
			assert_int_equal(c.n_groups, 1);
			assert_int_equal(c.n_rows, 2);
			assert_int_equal(c.scale_exp, sym_exp[w] + 1 - 3 * is_v);
			assert_int_equal(c.zero_exp, -3 * is_v);
		}
	}
}

static void codec_sizes(void **state)
{
	/* By hand from skvq/format.h: dim, then bytes of a tile at 16, 8, 4, 3, 2 bits. */
	static const uint32_t want[][6] = {
	    {16, 512, 256, 128, 64 + 64, 64},          {64, 2048, 1024, 512, 256 + 128, 256},
	    {80, 2560, 1280, 640, 320 + 192, 320},     {96, 3072, 1536, 768, 384 + 192, 384},
	    {128, 4096, 2048, 1024, 512 + 256, 512},   {192, 6144, 3072, 1536, 768 + 384, 768},
	    {256, 8192, 4096, 2048, 1024 + 512, 1024},
	};
	static const uint8_t bits[] = {SKVQ_BITS_FP16, SKVQ_BITS_8, SKVQ_BITS_4, SKVQ_BITS_3,
				       SKVQ_BITS_2};
	struct skvq_profile p;
	struct skvq_codec c;

	(void)state;
	assert_int_equal(skvq_profile_parse("k2v2", &p), 0);
	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		for (int b = 0; b < 5; b++) {
			assert_int_equal(skvq_codec_init(&p, 0, bits[b], want[i][0], &c), 0);
			assert_int_equal(c.tile_bytes, want[i][b + 1]);
			assert_int_equal(c.head_bytes, 5 * want[i][b + 1]);
			assert_int_equal(c.n_rows, b == 0 ? 0 : 1);
		}
		assert_int_equal(skvq_codec_init(&p, 1, SKVQ_BITS_TERNARY, want[i][0], &c), 0);
		assert_int_equal(c.tile_bytes, 0);
		assert_int_equal(c.head_bytes, 16 * want[i][0]); /* 1.6 bits, 80 tokens */
	}
}

static void bad_codecs(void **state)
{
	static const uint32_t bad_dims[] = {0,  1,   8,   15,  17,  24,
					    72, 100, 257, 272, 512, UINT32_MAX};
	struct skvq_codec c, before;
	struct skvq_profile p, fp16;

	(void)state;
	assert_int_equal(skvq_profile_parse("k2v2", &p), 0);
	assert_int_equal(skvq_profile_parse("fp16", &fp16), 0);
	memset(&c, 0xa5, sizeof(c));
	before = c;
	for (size_t i = 0; i < sizeof(bad_dims) / sizeof(bad_dims[0]); i++)
		assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_2, bad_dims[i], &c),
				 -SKVQ_EGEOMETRY);
	for (unsigned bits = 0; bits < 256; bits++) {
		int known = bits == 160 || bits == 80 || bits == 40 || bits == 30 || bits == 20 ||
			    bits == 15;
		struct skvq_codec d;

		assert_int_equal(skvq_codec_init(&p, 0, (uint8_t)bits, 64, &d),
				 known ? 0 : -SKVQ_EPROFILE);
		/* An FP16 profile has no quantiser to give the other widths. */
		assert_int_equal(skvq_codec_init(&fp16, 0, (uint8_t)bits, 64, &d),
				 bits == 160 ? 0 : -SKVQ_EPROFILE);
	}
	p.group = 48;
	assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_2, 64, &c), -SKVQ_EPROFILE);
	p.group = 0;
	p.kind = 9;
	assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_2, 64, &c), -SKVQ_EPROFILE);
	p.kind = SKVQ_CODEC_AFFINE;
	p.clip = -1.0f;
	assert_int_equal(skvq_codec_init(&p, 0, SKVQ_BITS_2, 64, &c), -SKVQ_EPROFILE);
	assert_memory_equal(&c, &before, sizeof(c));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(good_names),  cmocka_unit_test(bad_names),  cmocka_unit_test(elastic),
	    cmocka_unit_test(faithful),    cmocka_unit_test(automatic),
	    cmocka_unit_test(codecs),      cmocka_unit_test(bare),
	    cmocka_unit_test(codec_sizes), cmocka_unit_test(bad_codecs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
