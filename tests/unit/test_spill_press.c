/* SPDX-License-Identifier: Apache-2.0 */
/* spill/press, pack: what was compressed comes back byte for byte; anything else is refused. */
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/kernels.h>
#include <skvq/layout.h>

#include "spill/format.h"
#include "spill/pack.h"
#include "spill/press.h"

#define BYTES_MAX (1u << 20)

static struct press *press;
static struct seeded rng;

static int setup(void **state)
{
	(void)state;
	rng = seeded_init();
	press = press_new(BYTES_MAX);
	return press ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	press_free(press);
	return 0;
}

/* Packed bytes, 0 if it was not worth it. Blocks of exactly the length, for the sanitizer. */
static uint32_t round_trip(const uint8_t *section, uint32_t bytes)
{
	uint8_t *from = malloc(bytes), *to = malloc(bytes), *back = malloc(bytes), *packed;
	uint32_t n;

	memcpy(from, section, bytes);
	memset(back, 0xee, bytes);
	n = press_pack(press, from, bytes, to);
	assert_memory_equal(from, section, bytes);
	if (n) {
		assert_true(n < bytes - bytes / 16);
		packed = malloc(n);
		memcpy(packed, to, n);
		assert_true(press_unpack(press, packed, n, back, bytes));
		assert_memory_equal(back, section, bytes);
		free(packed);
	}
	free(from);
	free(to);
	free(back);
	return n;
}

/* Codes that walk slowly from token to token, as those of keys do. */
static void fill_codes(const struct skvq_codec *c, uint8_t *planes, uint32_t steady)
{
	uint8_t rows[SKVQ_TILE_TOKENS][SKVQ_HEAD_DIM_MAX], flat[16 * SKVQ_HEAD_DIM_MAX];
	uint32_t levels = c->levels_minus_1 + 1u;

	if (c->bits == SKVQ_BITS_FP16) {
		for (uint32_t i = 0; i < c->head_bytes; i++)
			planes[i] = (uint8_t)(seeded_u64(&rng) & 0x3b);
		return;
	}
	memset(rows, 0, sizeof(rows));
	for (uint32_t tile = 0; tile < SKVQ_PAGE_TILES; tile++) {
		for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
			for (uint32_t d = 0; d < c->dim; d++) {
				uint8_t before = rows[(t + 15) % 16][d];

				if (seeded_below(&rng, 100) >= steady)
					before = (uint8_t)seeded_below(&rng, levels);
				rows[t][d] = before;
			}
		for (uint32_t t = 0; t < SKVQ_TILE_TOKENS; t++)
			memcpy(flat + (size_t)t * c->dim, rows[t], c->dim);
		skvq_kernels_get()->pack_tile(c, flat, tile, planes);
	}
}

static uint8_t *page_of(const struct skvq_layout *l, uint32_t steady)
{
	uint8_t *page = calloc(1, l->base_bytes);

	skvq_page_init(l, 0, page);
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		page[l->tokens_offset + 4 * i] = (uint8_t)seeded_u64(&rng);
	for (uint32_t layer = 0; layer < l->geo.n_layer; layer++)
		for (uint32_t head = 0; head < l->geo.n_kv_heads; head++) {
			const struct skvq_layer_layout *ll = &l->layers[layer];

			fill_codes(&ll->k, page + skvq_layout_k_codes(l, layer, head), steady);
			fill_codes(&ll->v, page + skvq_layout_v_codes(l, layer, head), 0);
		}
	return page;
}

static void layout_of(const char *name, uint32_t layers, uint32_t heads, uint32_t dim_k,
		      uint32_t dim_v, const uint8_t *table, struct skvq_layout *ret)
{
	struct skvq_geometry geo = {layers, heads, dim_k, dim_v, 5};
	struct skvq_profile profile;

	assert_int_equal(skvq_profile_parse(name, &profile), 0);
	assert_int_equal(skvq_layout_init(&geo, &profile, table, ret), 0);
}

/* Each plane is in the stream of its kind, and nothing else is. */
static void planes_are_found(const struct skvq_layout *l, const uint8_t *page)
{
	uint32_t counts[PLANE_STREAMS], codes = 0, want = 0;

	planes_count(page, l->base_bytes, counts);
	assert_int_equal(counts[PLANE_FRONT],
			 l->layers_offset + l->geo.n_layer * sizeof(skvq_page_layer));
	for (int i = PLANE_CODES; i < PLANE_STREAMS; i++)
		codes += counts[i];
	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		const struct skvq_layer_layout *ll = &l->layers[i];

		want += ll->k.kind == SKVQ_CODEC_FP16 ? 0 : ll->k.head_bytes * l->geo.n_kv_heads;
		want += ll->v.kind == SKVQ_CODEC_FP16 ? 0 : ll->v.head_bytes * l->geo.n_kv_heads;
	}
	assert_int_equal(codes, want);
	assert_int_equal(counts[PLANE_FRONT] + counts[PLANE_REST] + codes, l->base_bytes);
}

static const char *const profiles[] = {"k4v2",
				       "k2v2",
				       "k2v1.5",
				       "k3v2",
				       "k8v8",
				       "k1.5v3",
				       "k4v4-g32",
				       "e2.1",
				       "fp16",
				       "plain-k2v8",
				       "affine-k2v1.5-g64",
				       "skvq-k2v2-g64"};

static void pages_of_all_kinds_come_back(void **state)
{
	static const struct {
		uint32_t layers, heads, k, v;
	} shapes[] = {
	    {2, 3, 64, 64}, {3, 1, 128, 64}, {1, 2, 80, 96}, {2, 1, 256, 256}, {1, 1, 16, 48}};
	struct skvq_layout *l = malloc(sizeof(*l));

	(void)state;
	for (size_t p = 0; p < sizeof(profiles) / sizeof(profiles[0]); p++)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
			uint8_t *page;

			layout_of(profiles[p], shapes[s].layers, shapes[s].heads, shapes[s].k,
				  shapes[s].v, NULL, l);
			page = page_of(l, 90);
			(void)round_trip(page, l->base_bytes);
			planes_are_found(l, page);
			free(page);
		}
	free(l);
}

static void steady_keys_shrink(void **state)
{
	static const char *const names[] = {"k4v2", "k2v2", "k8v2"};
	/* Of keys of which 60 % repeat, and the rest are random: at most 2.9, 1.6 and 4.8 bits a
	 * code. Values stay at 2, and are incompressible. */
	static const double most[] = {.80, .88, .68};
	struct skvq_layout *l = malloc(sizeof(*l));

	(void)state;
	for (int i = 0; i < 3; i++) {
		uint8_t *page;
		uint32_t n;

		layout_of(names[i], 8, 4, 64, 64, NULL, l);
		page = page_of(l, 60);
		n = round_trip(page, l->base_bytes);
		assert_true(n > 0 && n < most[i] * l->base_bytes);
		free(page);
	}
	free(l);
}

static void layers_of_different_bits(void **state)
{
	static const uint8_t bits[] = {160, 80, 40, 30, 20, 15};
	struct skvq_layout *l = malloc(sizeof(*l));
	uint8_t table[12][2];

	(void)state;
	for (int run = 0; run < 20; run++) {
		uint8_t *page;

		for (int i = 0; i < 24; i++)
			table[i / 2][i % 2] = bits[seeded_below(&rng, 6)];
		layout_of("k4v2", 12, 2, 64, 128, &table[0][0], l);
		page = page_of(l, 95);
		assert_true(round_trip(page, l->base_bytes) > 0);
		free(page);
	}
	free(l);
}

static void bytes_that_are_no_page(void **state)
{
	uint8_t *bytes = malloc(BYTES_MAX);
	uint32_t packed = 0;

	(void)state;
	for (int run = 0; run < 300; run++) {
		uint32_t n = run < 150 ? 1 + (uint32_t)run : 1 + seeded_below(&rng, 50000);
		uint8_t mask = run % 3 == 0 ? 0xff : run % 3 == 1 ? 0x07 : 0;

		for (uint32_t i = 0; i < n; i++)
			bytes[i] = (uint8_t)seeded_u64(&rng) & mask;
		packed += round_trip(bytes, n) > 0;
	}
	assert_true(packed > 50);
	memset(bytes, 0, BYTES_MAX);
	assert_true(round_trip(bytes, BYTES_MAX) > 0);
	assert_int_equal(press_pack(press, bytes, 0, bytes), 0);
	assert_int_equal(press_pack(press, bytes, BYTES_MAX + 1, bytes), 0);
	free(bytes);
}

/* Whatever a header says about where planes are, the bytes come back. */
static void headers_that_lie(void **state)
{
	struct skvq_layout *l = malloc(sizeof(*l));
	uint8_t *page, *lie;

	(void)state;
	layout_of("k2v2", 4, 2, 64, 64, NULL, l);
	page = page_of(l, 90);
	lie = malloc(l->base_bytes);
	for (int run = 0; run < 3000; run++) {
		uint32_t cut =
		    seeded_below(&rng, 4) ? l->base_bytes : 1 + seeded_below(&rng, l->base_bytes);

		memcpy(lie, page, l->base_bytes);
		for (uint32_t i = 0; i <= seeded_below(&rng, 4); i++) {
			uint32_t at = seeded_below(&rng, 2) ? 16 + seeded_below(&rng, 32)
							    : 576 + seeded_below(&rng, 64);

			lie[at] = (uint8_t)seeded_u64(&rng);
		}
		(void)round_trip(lie, cut);
	}
	free(lie);
	free(page);
	free(l);
}

/* Changed or cut input never writes or reads outside; the sanitizer looks. */
static void hostile_input(void **state)
{
	struct skvq_layout *l = malloc(sizeof(*l));
	uint8_t *page, *packed, *back, *bad;
	uint32_t n, refused = 0;

	(void)state;
	layout_of("k4v2", 4, 2, 64, 64, NULL, l);
	page = page_of(l, 90);
	packed = malloc(l->base_bytes);
	n = press_pack(press, page, l->base_bytes, packed);
	assert_true(n > 0);
	for (int run = 0; run < 20000; run++) {
		uint32_t length = seeded_below(&rng, 8) ? n : seeded_below(&rng, n + 1);
		uint32_t bytes = seeded_below(&rng, 8) ? l->base_bytes
						       : 1 + seeded_below(&rng, 2 * l->base_bytes);

		bad = malloc(length ? length : 1);
		back = malloc(bytes);
		memcpy(bad, packed, length);
		for (uint32_t i = 0; length && i <= seeded_below(&rng, 3); i++)
			bad[seeded_below(&rng,
					 seeded_below(&rng, 2) && length > 96 ? 96 : length)] =
			    (uint8_t)seeded_u64(&rng);
		refused += !press_unpack(press, bad, length, back, bytes);
		free(bad);
		free(back);
	}
	assert_true(refused > 15000);
	back = malloc(l->base_bytes);
	assert_false(press_unpack(press, packed, n, back, BYTES_MAX + 1));
	assert_false(press_unpack(press, packed, n, back, l->base_bytes - 1));
	assert_true(press_unpack(press, packed, n, back, l->base_bytes));
	free(back);
	free(packed);
	free(page);
	free(l);
}

static void records_packed_and_back(void **state)
{
	struct skvq_layout *l = malloc(sizeof(*l));
	struct packs *packs = packs_new(BYTES_MAX), *small;
	uint8_t *record = malloc(BYTES_MAX), *was = malloc(BYTES_MAX), *page, side[5000],
		sinks[9000];
	struct tier_page in = {.position = 80, .flags = 3}, out;
	uint32_t plain, blocks;

	(void)state;
	layout_of("k2v2", 4, 2, 64, 64, NULL, l);
	page = page_of(l, 90);
	for (size_t i = 0; i < sizeof(side); i++)
		side[i] = (uint8_t)seeded_u64(&rng); /* stays as it is */
	memset(sinks, 7, sizeof(sinks));
	in.section[TIER_BASE].data = page;
	in.section[TIER_BASE].bytes = l->base_bytes;
	in.section[TIER_REFINEMENT].data = side;
	in.section[TIER_REFINEMENT].bytes = sizeof(side);
	in.section[TIER_SIDECAR].data = sinks;
	in.section[TIER_SIDECAR].bytes = sizeof(sinks);
	plain = spill_record_blocks(&in);
	spill_record_fill(record, &in);
	memcpy(was, record, (size_t)plain * SPILL_BLOCK);
	blocks = pack_do(packs, record);
	assert_true(blocks < plain);
	assert_true(spill_record_packed(record));
	assert_int_equal(spill_record_saved(record), plain - blocks);
	spill_record_page(record, &out);
	assert_null(out.section[TIER_BASE].data);
	/* Too long for what record_bytes is now. */
	small = packs_new((plain - 1) * SPILL_BLOCK);
	assert_false(pack_undo(small, record));
	packs_free(small);
	assert_true(spill_record_packed(record));
	assert_true(pack_undo(packs, record));
	spill_record_page(record, &out);
	assert_memory_equal(out.section[TIER_BASE].data, page, l->base_bytes);
	assert_memory_equal(out.section[TIER_REFINEMENT].data, side, sizeof(side));
	assert_memory_equal(out.section[TIER_SIDECAR].data, sinks, sizeof(sinks));
	assert_memory_equal(record + SPILL_BLOCK, was + SPILL_BLOCK, (plain - 1) * SPILL_BLOCK);
	assert_int_equal(out.flags, 3);

	/* What does not shrink by a sixteenth is a record like any other. */
	in.section[TIER_BASE].data = side;
	in.section[TIER_BASE].bytes = sizeof(side);
	in.section[TIER_SIDECAR].bytes = 0;
	spill_record_fill(record, &in);
	assert_int_equal(pack_do(packs, record), spill_record_blocks(&in));
	assert_false(spill_record_packed(record));
	packs_free(packs);
	free(page);
	free(record);
	free(was);
	free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(pages_of_all_kinds_come_back),
	    cmocka_unit_test(steady_keys_shrink),
	    cmocka_unit_test(layers_of_different_bits),
	    cmocka_unit_test(bytes_that_are_no_page),
	    cmocka_unit_test(headers_that_lie),
	    cmocka_unit_test(hostile_input),
	    cmocka_unit_test(records_packed_and_back),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
