/* SPDX-License-Identifier: Apache-2.0 */
/* Page layout over many geometries, and the check that has to refuse every page that differs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <skvq/error.h>
#include <skvq/layout.h>

#include "seeded.h"

static const uint32_t dims[] = {16, 64, 80, 96, 128, 192, 256};
#define N_DIMS (sizeof(dims) / sizeof(dims[0]))

static const uint8_t all_bits[] = {SKVQ_BITS_FP16, SKVQ_BITS_8, SKVQ_BITS_4,
				   SKVQ_BITS_3,    SKVQ_BITS_2, SKVQ_BITS_TERNARY};

static struct seeded rng;
static struct skvq_layout layout, safe; /* large: not on the stack */

static struct skvq_profile profile_of(const char *name)
{
	struct skvq_profile p;

	assert_int_equal(skvq_profile_parse(name, &p), 0);
	return p;
}

/* Marks [at, at + bytes) as used, once. */
static void claim(uint8_t *map, size_t map_bytes, size_t at, size_t bytes)
{
	assert_true(at <= map_bytes && bytes <= map_bytes - at);
	for (size_t i = 0; i < bytes; i++) {
		assert_int_equal(map[at + i], 0);
		map[at + i] = 1;
	}
}

static size_t unclaimed(const uint8_t *map, size_t from, size_t to)
{
	size_t n = 0;

	for (size_t i = from; i < to; i++)
		n += map[i] == 0;
	return n;
}

static void check_planes(const struct skvq_layout *l)
{
	size_t bytes = skvq_layout_page_bytes(l, 0);
	uint8_t *map = calloc(1, bytes);
	size_t base = l->base_bytes;

	assert_non_null(map);
	claim(map, bytes, 0, 256);
	claim(map, bytes, l->tokens_offset, 320);
	claim(map, bytes, l->layers_offset, (size_t)l->geo.n_layer * 16);
	assert_int_equal(l->tokens_offset, 256);
	assert_int_equal(l->layers_offset, 576);
	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		const struct skvq_layer_layout *ll = &l->layers[i];

		assert_int_equal(ll->offset % SKVQ_PLANE_ALIGN, 0);
		assert_int_equal(ll->bytes % SKVQ_PLANE_ALIGN, 0);
		if (i > 0)
			assert_int_equal(ll->offset, ll[-1].offset + ll[-1].bytes);
		assert_int_equal(skvq_layout_k_codes(l, i, 0), ll->offset);
		assert_int_equal(skvq_layout_k_params(l, i, 0), ll->param_offset);
		for (uint32_t h = 0; h < l->geo.n_kv_heads; h++) {
			size_t k = skvq_layout_k_codes(l, i, h), v = skvq_layout_v_codes(l, i, h);

			assert_int_equal(k % SKVQ_PLANE_ALIGN, 0);
			assert_int_equal(v % SKVQ_PLANE_ALIGN, 0);
			claim(map, base, k, ll->k.head_bytes);
			claim(map, base, v, ll->v.head_bytes);
			claim(map, base, skvq_layout_k_params(l, i, h), 80u * ll->k.n_rows);
			claim(map, base, skvq_layout_v_params(l, i, h), 80u * ll->v.n_rows);
			claim(map, bytes, skvq_layout_k_sinks(l, i, h),
			      (size_t)l->geo.n_sinks * l->geo.head_dim_k * 2);
			claim(map, bytes, skvq_layout_v_sinks(l, i, h),
			      (size_t)l->geo.n_sinks * l->geo.head_dim_v * 2);
		}
		claim(map, base, skvq_layout_k_params(l, i, 0), 80u * ll->k_rows);
		claim(map, base, skvq_layout_v_params(l, i, 0), 80u * ll->v_rows);
		for (uint32_t h = 0; ll->k.nested && h < l->geo.n_kv_heads; h++)
			claim(map, base + l->refine_bytes, skvq_layout_k_refine(l, i, h),
			      ll->k.head_bytes);
		assert_true(unclaimed(map, ll->offset, (size_t)ll->offset + ll->bytes) <
			    SKVQ_PLANE_ALIGN);
	}
	/* What is left over is rounding, nothing else. */
	assert_true(unclaimed(map, 0, l->layers[0].offset) < SKVQ_PLANE_ALIGN);
	assert_true(unclaimed(map, l->layers[0].offset, base) <
		    SKVQ_SECTION_ALIGN + (size_t)l->geo.n_layer * SKVQ_PLANE_ALIGN);
	assert_true(unclaimed(map, base, base + l->refine_bytes) < SKVQ_SECTION_ALIGN);
	assert_true(unclaimed(map, base + l->refine_bytes, bytes) < SKVQ_SECTION_ALIGN);
	free(map);
}

/* The pages that go with `layout` and keep keys in 8 bits, if there are any, fill a slot. */
static void check_safe(const struct skvq_profile *p)
{
	bool fewer = false;
	int r;

	for (uint32_t i = 0; i < layout.geo.n_layer; i++)
		fewer |= layout.layers[i].k.bits < SKVQ_BITS_8;
	memset(&safe, 0xa5, sizeof(safe));
	r = skvq_layout_init_safe(&layout, p, &safe);
	if (!skvq_profile_has_safe(p, 0) || !fewer) {
		assert_int_equal(r, skvq_profile_has_safe(p, 0) ? -SKVQ_EGEOMETRY : -SKVQ_EPROFILE);
		assert_int_equal(safe.layers_offset, 0xa5a5a5a5);
		assert_int_equal(layout.slot_bytes, skvq_layout_page_bytes(&layout, 0));
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(safe.safe, 1);
	assert_int_equal(safe.slot_bytes, layout.slot_bytes);
	assert_int_equal(safe.slot_bytes, skvq_layout_page_bytes(&safe, 0));
	assert_true(skvq_layout_page_bytes(&layout, 0) <= layout.slot_bytes);
	assert_int_equal(safe.layers_offset, layout.layers_offset);
	assert_int_equal(safe.tokens_offset, layout.tokens_offset);
	assert_int_equal(safe.sidecar_bytes, layout.sidecar_bytes);
	for (uint32_t i = 0; i < layout.geo.n_layer; i++) {
		const struct skvq_layer_layout *s = &safe.layers[i], *l = &layout.layers[i];

		assert_int_equal(s->k.bits, l->k.bits < SKVQ_BITS_8 ? SKVQ_BITS_8 : l->k.bits);
		assert_int_equal(s->k.rotate, l->k.rotate); /* one query serves both */
		assert_int_equal(s->k.group, l->k.group);
		assert_memory_equal(&s->v, &l->v, sizeof(l->v));
	}
	check_planes(&safe);
}

static void check_layout(const struct skvq_geometry *g, const struct skvq_profile *p,
			 const uint8_t *table)
{
	assert_int_equal(skvq_layout_init(g, p, table, &layout), 0);
	assert_memory_equal(&layout.geo, g, sizeof(*g));
	assert_int_equal(layout.base_bytes % SKVQ_SECTION_ALIGN, 0);
	assert_int_equal(layout.sidecar_bytes % SKVQ_SECTION_ALIGN, 0);
	assert_int_equal(layout.refine_bytes == 0, !p->nested);
	assert_int_equal(layout.refine_bytes % SKVQ_SECTION_ALIGN, 0);
	assert_int_equal(layout.sidecar_bytes == 0, g->n_sinks == 0);
	assert_int_equal(skvq_layout_page_bytes(&layout, 0), (uint64_t)layout.base_bytes +
								 layout.refine_bytes +
								 layout.sidecar_bytes);
	assert_int_equal(skvq_layout_page_bytes(&layout, 80),
			 layout.base_bytes + layout.refine_bytes);
	assert_int_equal(layout.safe, 0);
	check_planes(&layout);
	check_safe(p);
}

static void grid(void **state)
{
	static const char *const profiles[] = {
	    "k2v1.5", "k8v4-g32", "k3v3-g64", "affine-k2v1.5-g32", "plain-k4v2-g128", "fp16",
	    "skvq-k2v1.5-g64", "skvq-post-k4v3-g128", "e2.1", "k4v2-bare"};

	(void)state;
	for (size_t p = 0; p < sizeof(profiles) / sizeof(profiles[0]); p++) {
		struct skvq_profile profile = profile_of(profiles[p]);

		for (size_t dk = 0; dk < N_DIMS; dk++) {
			struct skvq_geometry g = {
			    .n_layer = 1 + seeded_below(&rng, 5),
			    .n_kv_heads = 1 + seeded_below(&rng, 5),
			    .head_dim_k = dims[dk],
			    .head_dim_v = dims[seeded_below(&rng, N_DIMS)],
			    .n_sinks = seeded_below(&rng, 2) ? seeded_below(&rng, 65) : 5,
			};

			check_layout(&g, &profile, NULL);
			g.n_sinks = 0;
			g.head_dim_v = g.head_dim_k;
			check_layout(&g, &profile, NULL);
		}
	}
}

static void mixed_bit_tables(void **state)
{
	struct skvq_profile profile = profile_of("k2v2-g64");
	uint8_t table[2 * 24];

	(void)state;
	for (int round = 0; round < 8; round++) {
		struct skvq_geometry g = {24, 1 + seeded_below(&rng, 3),
					  dims[seeded_below(&rng, N_DIMS)],
					  dims[seeded_below(&rng, N_DIMS)], 4};

		for (size_t i = 0; i < sizeof(table); i++)
			table[i] = all_bits[seeded_below(&rng, 6)];
		check_layout(&g, &profile, table);
		for (uint32_t i = 0; i < 24; i++) {
			assert_int_equal(layout.layers[i].k.bits, table[2 * i]);
			assert_int_equal(layout.layers[i].v.bits, table[2 * i + 1]);
		}
	}
	table[31] = 25;
	assert_int_equal(
	    skvq_layout_init(&(struct skvq_geometry){24, 1, 64, 64, 4}, &profile, table, &layout),
	    -SKVQ_EPROFILE);
}

static void known_sizes(void **state)
{
	/* SmolLM2-135M: 30 layers, 3 heads of 64. K 2 bit: 5 * 256, V ternary: 16 * 64, 2 rows. */
	struct skvq_geometry g = {30, 3, 64, 64, 5};
	struct skvq_profile p = profile_of("k2v1.5");

	(void)state;
	assert_int_equal(skvq_layout_init(&g, &p, NULL, &layout), 0);
	assert_int_equal(layout.layers[0].offset, 1088); /* 576 + 480 up to a multiple of 64 */
	assert_int_equal(layout.layers[0].bytes, 3 * (1280 + 1024) + 512); /* 3 * 2 * 80 = 480 */
	assert_int_equal(layout.base_bytes, 225280);
	assert_int_equal(layout.sidecar_bytes, 118784);
}

static void refuse_geometry(struct skvq_geometry g, const char *profile)
{
	struct skvq_profile p = profile_of(profile);

	memset(&layout, 0xa5, sizeof(layout));
	assert_int_equal(skvq_layout_init(&g, &p, NULL, &layout), -SKVQ_EGEOMETRY);
	for (size_t i = 0; i < sizeof(layout); i++)
		assert_int_equal(((uint8_t *)&layout)[i], 0xa5);
}

static void bad_geometry(void **state)
{
	static const uint32_t bad_dims[] = {0, 8, 24, 100, 272, UINT32_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(bad_dims) / sizeof(bad_dims[0]); i++) {
		refuse_geometry((struct skvq_geometry){1, 1, bad_dims[i], 64, 0}, "k2v2");
		refuse_geometry((struct skvq_geometry){1, 1, 64, bad_dims[i], 0}, "k2v2");
	}
	refuse_geometry((struct skvq_geometry){0, 1, 64, 64, 0}, "k2v2");
	refuse_geometry((struct skvq_geometry){257, 1, 64, 64, 0}, "k2v2");
	refuse_geometry((struct skvq_geometry){UINT32_MAX, 1, 64, 64, 0}, "k2v2");
	refuse_geometry((struct skvq_geometry){1, 0, 64, 64, 0}, "k2v2");
	refuse_geometry((struct skvq_geometry){1, 129, 64, 64, 0}, "k2v2");
	refuse_geometry((struct skvq_geometry){1, UINT32_MAX, 64, 64, 0}, "k2v2");
	refuse_geometry((struct skvq_geometry){1, 1, 64, 64, 65}, "k2v2");
	refuse_geometry((struct skvq_geometry){1, 1, 64, 64, UINT32_MAX}, "k2v2");
	/* Each number in bounds, the page not: base, and base with sidecar. */
	refuse_geometry((struct skvq_geometry){256, 128, 256, 256, 0}, "fp16");
	refuse_geometry((struct skvq_geometry){256, 128, 256, 256, 64}, "k2v1.5");
	refuse_geometry((struct skvq_geometry){64, 32, 128, 128, 64}, "k4v4");
	assert_int_equal(
	    skvq_layout_init(&(struct skvq_geometry){64, 32, 128, 128, 5},
			     &(struct skvq_profile){
				 .kind = SKVQ_CODEC_SYM, .k_bits = 40, .v_bits = 40, .clip = 1.0f},
			     NULL, &layout),
	    0);
}

static void who_has_safe_pages(void **state)
{
	static const struct {
		const char *name;
		int has;
	} rows[] = {{"k4v2", 1},          {"k2v1.5-g64", 1}, {"plain-k3v3", 1},
		    {"k8v8", 1},          {"auto-2.4", 1},   {"fp16", 0},
		    {"e2.1", 0},          {"e2.4-nall", 0},  {"affine-k4v4-g64", 0},
		    {"skvq-k4v4-g64", 0}, {"k4v2-bare", 0},  {"plain-k3v3-bare", 0}};
	struct skvq_geometry g = {140, 32, 128, 128, 5}, small = {3, 2, 64, 64, 5};
	struct skvq_profile p;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		p = profile_of(rows[i].name);
		assert_int_equal(skvq_profile_has_safe(&p, 0), rows[i].has);
		assert_int_equal(skvq_profile_has_safe(&p, 1), 0);
	}
	/* 8 bits are as safe as it gets. */
	p = profile_of("k8v2");
	assert_int_equal(skvq_layout_init(&small, &p, NULL, &layout), 0);
	assert_int_equal(skvq_layout_init_safe(&layout, &p, &safe), -SKVQ_EGEOMETRY);
	/* A page that just fits has no other. */
	p = profile_of("k8v4");
	assert_int_equal(skvq_layout_init(&g, &p, NULL, &layout), -SKVQ_EGEOMETRY);
	p = profile_of("k4v4");
	assert_int_equal(skvq_layout_init(&g, &p, NULL, &layout), 0);
	assert_int_equal(skvq_layout_init_safe(&layout, &p, &safe), -SKVQ_EGEOMETRY);
	assert_int_equal(layout.slot_bytes, skvq_layout_page_bytes(&layout, 0));
}

/* --- skvq_page_check ------------------------------------------------------------------------- */

struct page {
	int32_t tokens[SKVQ_PAGE_TOKENS];
	uint32_t position;
	uint8_t *bytes;
	size_t n;
};

/* A page with random codes and parameters of which each is legal. */
static struct page page_make(uint32_t position)
{
	struct page p = {.position = position, .n = skvq_layout_page_bytes(&layout, position)};

	p.bytes = calloc(1, p.n);
	assert_non_null(p.bytes);
	memset(p.bytes, 0xee, 256);
	skvq_page_init(&layout, position, p.bytes);
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		p.tokens[i] = (int32_t)seeded_u64(&rng);
	memcpy(p.bytes + layout.tokens_offset, p.tokens, sizeof(p.tokens));
	for (uint32_t i = 0; i < layout.geo.n_layer; i++) {
		const struct skvq_layer_layout *ll = &layout.layers[i];
		size_t end = skvq_layout_v_params(&layout, i, layout.geo.n_kv_heads - 1) +
			     80u * (ll->v.n_rows + ll->v_rows);

		for (size_t at = ll->offset; at < ll->param_offset; at++)
			p.bytes[at] = (uint8_t)seeded_below(&rng, 243);
		for (size_t at = ll->param_offset; at < end; at++)
			p.bytes[at] =
			    (uint8_t)(seeded_below(&rng, 127) | (seeded_u64(&rng) & 0x80));
		for (uint32_t h = 0;
		     ll->k.bits == SKVQ_BITS_3 && ll->k.dim == 80 && h < layout.geo.n_kv_heads;
		     h++) {
			/* 20 raw vectors in 3 high vectors: 7 + 7 + 6 of 24 bits are used. */
			for (uint32_t t = 0; t < 5; t++) {
				uint8_t *high = p.bytes + skvq_layout_k_codes(&layout, i, h) +
						t * ll->k.tile_bytes + 5 * 64;

				for (uint32_t b = 0; b < 192; b++)
					high[b] &= b < 128 ? 0x7f : 0x3f;
			}
		}
	}
	return p;
}

static int page_ok(const struct page *p, char *why, size_t why_bytes)
{
	return skvq_page_check(&layout, p->position, p->tokens, p->bytes, p->n, why, why_bytes);
}

/* Sets one byte and expects a refusal whose sentence holds what, and the offset if given. */
static void refuse_byte(const struct page *p, size_t at, uint8_t value, const char *what)
{
	uint8_t old = p->bytes[at];
	char why[160] = "", offset[32];

	p->bytes[at] = value;
	assert_int_equal(page_ok(p, why, sizeof(why)), -SKVQ_ECORRUPT);
	p->bytes[at] = old;
	if (!strstr(why, what))
		fail_msg("offset %zu: \"%s\" lacks \"%s\"", at, why, what);
	snprintf(offset, sizeof(offset), "offset %zu", at);
	if (strncmp(what, "header", 6) != 0 && strncmp(what, "token", 5) != 0 &&
	    strncmp(what, "table", 5) != 0 && !strstr(why, offset))
		fail_msg("\"%s\" lacks \"%s\"", why, offset);
}

static void layout_small(const char *profile, uint32_t dim, uint32_t sinks)
{
	struct skvq_geometry g = {3, 2, dim, dim, sinks};
	struct skvq_profile p = profile_of(profile);

	assert_int_equal(skvq_layout_init(&g, &p, NULL, &layout), 0);
}

static void check_accepts(void **state)
{
	static const char *const profiles[] = {"k2v1.5",           "fp16",            "k3v2-g32",
					       "affine-k4v1.5-g64", "skvq-k3v2-g64", "e2.1"};
	char why[8];

	(void)state;
	for (size_t i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++) {
		layout_small(profiles[i], 80, i % 2 ? 5 : 0);
		for (uint32_t position = 0; position < 240; position += 80) {
			struct page p = page_make(position);

			assert_int_equal(page_ok(&p, why, sizeof(why)), 0);
			assert_int_equal(page_ok(&p, NULL, 0), 0);
			free(p.bytes);
		}
	}
}

static void check_every_header_bit(void **state)
{
	(void)state;
	layout_small("k2v1.5", 64, 5);
	for (uint32_t position = 0; position < 160; position += 80) {
		struct page p = page_make(position);

		for (size_t at = 0; at < 256; at++)
			for (int bit = 0; bit < 8; bit++)
				refuse_byte(&p, at, (uint8_t)(p.bytes[at] ^ 1 << bit), "header");
		for (size_t at = 256; at < 576; at++)
			refuse_byte(&p, at, (uint8_t)(p.bytes[at] ^ 0x10), "token");
		for (size_t at = 576; at < 576 + 3 * 16; at++)
			if ((at - 576) % 16 < offsetof(skvq_page_layer, k_error))
				refuse_byte(&p, at, (uint8_t)(p.bytes[at] ^ 0x01), "table entry");
		for (size_t at = 576 + 3 * 16; at < layout.layers[0].offset; at++)
			refuse_byte(&p, at, 1, "padding");
		free(p.bytes);
	}
}

static void check_names_the_field(void **state)
{
	struct page p;
	char why[160];

	(void)state;
	layout_small("k2v1.5", 64, 5);
	p = page_make(0);
	p.bytes[offsetof(skvq_page_header, head_dim_v)] = 65;
	assert_int_equal(page_ok(&p, why, sizeof(why)), -SKVQ_ECORRUPT);
	assert_string_equal(why, "header head_dim_v at offset 28 is 65, not 64");
	p.bytes[offsetof(skvq_page_header, head_dim_v)] = 64;
	p.bytes[offsetof(skvq_page_header, digest) + 5] = 1;
	assert_int_equal(page_ok(&p, why, sizeof(why)), -SKVQ_ECORRUPT);
	assert_string_equal(why, "header digest at offset 136 is not zero");
	/* A message too long for its buffer is cut, and ends in a zero. */
	memset(why, 'x', sizeof(why));
	assert_int_equal(page_ok(&p, why, 10), -SKVQ_ECORRUPT);
	assert_string_equal(why, "header di");
	assert_int_equal(why[10], 'x');
	free(p.bytes);
}

/* What an engine measured is taken as it is if it is a number. */
static void check_layer_errors(void **state)
{
	static const uint16_t good[] = {0, 1, 0x03ff, 0x0400, 0x2f9e, 0x3c00, 0x7bff};
	static const struct {
		uint16_t half;
		const char *what;
	} bad[] = {{0x7c00, "infinity"}, {0x7e00, "NaN"},        {0x7c01, "NaN"}, {0x7fff, "NaN"},
		   {0x8000, "-0"},       {0x8001, "negative"},   {0xbc00, "-1"},  {0xfbff, "-65504"},
		   {0xfc00, "-infinity"}, {0xffff, "-NaN"}};
	struct page p;

	(void)state;
	layout_small("k2v1.5", 64, 5);
	p = page_make(80);
	for (uint32_t i = 0; i < 3; i++) {
		for (int is_v = 0; is_v < 2; is_v++) {
			size_t at = 576 + 16 * i + (is_v ? offsetof(skvq_page_layer, v_error)
							 : offsetof(skvq_page_layer, k_error));
			char why[160] = "", want[64];

			for (size_t k = 0; k < sizeof(good) / sizeof(good[0]); k++) {
				memcpy(p.bytes + at, &good[k], 2);
				assert_int_equal(page_ok(&p, why, sizeof(why)), 0);
			}
			snprintf(want, sizeof(want), "layer %u: table entry %c_error at offset %zu", i,
				 is_v ? 'v' : 'k', at);
			for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
				memcpy(p.bytes + at, &bad[k].half, 2);
				if (page_ok(&p, why, sizeof(why)) != -SKVQ_ECORRUPT ||
				    !strstr(why, want))
					fail_msg("%s: \"%s\"", bad[k].what, why);
			}
			memcpy(p.bytes + at, &good[4], 2);
		}
	}
	free(p.bytes);
}

static void check_planes_bytes(void **state)
{
	struct page p;

	(void)state;
	layout_small("k3v1.5-g32", 80, 5);
	p = page_make(0);
	for (uint32_t i = 0; i < 3; i++) {
		const struct skvq_layer_layout *ll = &layout.layers[i];
		size_t end = 0;

		for (uint32_t h = 0; h < 2; h++) {
			size_t k = skvq_layout_k_codes(&layout, i, h);
			size_t v = skvq_layout_v_codes(&layout, i, h);
			size_t kp = skvq_layout_k_params(&layout, i, h);
			size_t vp = skvq_layout_v_params(&layout, i, h);

			for (size_t at = 0; at < ll->v.head_bytes; at++)
				refuse_byte(&p, v + at, (uint8_t)(243 + at % 13), "ternary");
			for (size_t at = 0; at < 240; at++) {
				refuse_byte(&p, kp + at, 0x7f, "K parameter");
				refuse_byte(&p, vp + at, 0xff, "V parameter");
			}
			for (uint32_t t = 0; t < 5; t++) {
				refuse_byte(&p, k + t * 512 + 320, 0x80, "unused bits");
				refuse_byte(&p, k + t * 512 + 320 + 191, 0x40, "unused bits");
			}
			end = vp + 240;
		}
		for (size_t at = end; at < (size_t)ll->offset + ll->bytes; at++)
			refuse_byte(&p, at, 1, "padding");
	}
	for (size_t at = layout.layers[2].offset + layout.layers[2].bytes; at < layout.base_bytes;
	     at++)
		refuse_byte(&p, at, 0x80, "base section");
	for (size_t at = layout.base_bytes + 3u * layout.layer_sidecar_bytes; at < p.n; at++)
		refuse_byte(&p, at, 0x80, "sidecar");
	free(p.bytes);
}

/* A safe page is none of the profile's own, nor the other way round, and each says what it is. */
static void check_safe_pages(void **state)
{
	static struct skvq_layout own;
	struct skvq_profile profile = profile_of("k2v1.5");
	struct page p;
	char why[160];
	uint32_t flags;

	(void)state;
	layout_small("k2v1.5", 64, 5);
	own = layout;
	assert_int_equal(skvq_layout_init_safe(&own, &profile, &safe), 0);
	for (uint32_t position = 0; position < 160; position += 80) {
		layout = safe;
		p = page_make(position);
		assert_int_equal(page_ok(&p, why, sizeof(why)), 0);
		memcpy(&flags, p.bytes + offsetof(skvq_page_header, flags), sizeof(flags));
		assert_int_equal(flags, SKVQ_PAGE_SAFE | (position ? 0 : SKVQ_PAGE_HAS_SIDECAR));
		/* The flag lies, with as many bytes as it should have and with as many as it has. */
		refuse_byte(&p, offsetof(skvq_page_header, flags), position ? 0 : 1,
			    "header flags");
		assert_int_equal(skvq_page_check(&own, position, p.tokens, p.bytes, p.n, why,
						 sizeof(why)),
				 -SKVQ_ECORRUPT);
		assert_int_equal(skvq_page_check(&own, position, p.tokens, p.bytes,
						 skvq_layout_page_bytes(&own, position), why,
						 sizeof(why)),
				 -SKVQ_ECORRUPT);
		assert_non_null(strstr(why, "header flags at offset 12"));
		for (size_t at = 0; at < 256; at++)
			for (int bit = 0; bit < 8; bit++)
				refuse_byte(&p, at, (uint8_t)(p.bytes[at] ^ 1 << bit), "header");
		free(p.bytes);
		layout = own;
		p = page_make(position);
		refuse_byte(&p, offsetof(skvq_page_header, flags), position ? 4 : 5,
			    "header flags");
		free(p.bytes);
	}
}

static void check_length_and_position(void **state)
{
	struct page p;
	char why[160];

	(void)state;
	layout_small("k2v2", 64, 5);
	p = page_make(80);
	assert_int_equal(skvq_page_check(&layout, 80, p.tokens, p.bytes, 0, why, sizeof(why)),
			 -SKVQ_ECORRUPT);
	assert_int_equal(skvq_page_check(&layout, 80, p.tokens, p.bytes, p.n - 1, why, sizeof(why)),
			 -SKVQ_ECORRUPT);
	/* A later page is not a first one (which is longer), nor the page after. */
	assert_int_equal(skvq_page_check(&layout, 0, p.tokens, p.bytes, p.n, why, sizeof(why)),
			 -SKVQ_ECORRUPT);
	assert_int_equal(skvq_page_check(&layout, 160, p.tokens, p.bytes, p.n, why, sizeof(why)),
			 -SKVQ_ECORRUPT);
	assert_non_null(strstr(why, "position"));
	assert_int_equal(skvq_page_check(&layout, 81, p.tokens, p.bytes, p.n, why, sizeof(why)),
			 -SKVQ_ECORRUPT);
	p.tokens[79] ^= 1;
	assert_int_equal(page_ok(&p, why, sizeof(why)), -SKVQ_ECORRUPT);
	assert_non_null(strstr(why, "token 79 at offset 572"));
	free(p.bytes);
}

static int setup(void **state)
{
	(void)state;
	rng = seeded_init();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(grid),
	    cmocka_unit_test(mixed_bit_tables),
	    cmocka_unit_test(known_sizes),
	    cmocka_unit_test(bad_geometry),
	    cmocka_unit_test(check_accepts),
	    cmocka_unit_test(check_every_header_bit),
	    cmocka_unit_test(check_names_the_field),
	    cmocka_unit_test(check_layer_errors),
	    cmocka_unit_test(check_planes_bytes),
	    cmocka_unit_test(who_has_safe_pages),
	    cmocka_unit_test(check_safe_pages),
	    cmocka_unit_test(check_length_and_position),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
