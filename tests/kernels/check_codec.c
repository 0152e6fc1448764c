/* SPDX-License-Identifier: Apache-2.0 */
/* Codes, halves and transforms: bit for bit the reference's, whatever the input. */
#include "check.h"

#include <string.h>

static float bits_f32(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

typedef void widen_fn(const uint16_t *x, float *ret, size_t n);
typedef void narrow_fn(const float *x, uint16_t *ret, size_t n);

static void check_widen(struct check *c, widen_fn *ref, widen_fn *tested)
{
	static uint16_t all[65536];
	static float want[65536], have[65536];

	for (uint32_t i = 0; i < 65536; i++)
		all[i] = (uint16_t)i;
	ref(all, want, 65536);
	tested(all, have, 65536);
	check_bytes(c, have, want, sizeof(want), "all halves");
	for (size_t n = 0; n < 70; n++) {
		enum guard_side side = n % 2 ? GUARD_AFTER : GUARD_BEFORE;
		uint16_t *x = guard_new(n * 2, side);
		float *y = guard_new(n * 4, side);

		for (size_t i = 0; i < n; i++)
			x[i] = (uint16_t)seeded_u64(&c->rng);
		guard_read_only(x, n * 2);
		snprintf(c->where, sizeof(c->where), "n=%zu", n);
		ref(x, want, n);
		tested(x, y, n);
		check_bytes(c, y, want, n * 4, "tail");
		guard_free(x, n * 2);
		guard_free(y, n * 4);
	}
}

void check_f16_to_f32(struct check *c)
{
	check_widen(c, c->ref.f16_to_f32, c->tier->k.f16_to_f32);
}

void check_bf16_to_f32(struct check *c)
{
	check_widen(c, c->ref.bf16_to_f32, c->tier->k.bf16_to_f32);
}

/* drop: bits of a float's mantissa that the narrow number does not have. */
static void check_narrow(struct check *c, narrow_fn *ref, narrow_fn *tested, uint32_t drop)
{
	static float x[65536];
	static uint16_t want[65536], have[65536];

	/* Random floats, then the neighbourhood of every half and of every tie between two. */
	for (int round = 0; round < 6; round++) {
		for (uint32_t i = 0; i < 65536; i++) {
			uint32_t near =
			    drop == 13 ? ((i & 0x8000) << 16) + ((i & 0x7fff) << 13) + (112u << 23)
				       : i << 16;
			int32_t off = (int32_t)seeded_below(&c->rng, 5) - 2;

			if (round < 2)
				x[i] = bits_f32((uint32_t)seeded_u64(&c->rng));
			else if (round == 2) /* subnormal halves: multiples of 2^-25 */
				x[i] = ((float)(i & 0x7fff) + (float)off * 0x1p-9f) * 0x1p-25f;
			else
				x[i] = bits_f32(near + (uint32_t)off +
						(round == 4 ? 1u << (drop - 1) : 0));
		}
		ref(x, want, 65536);
		tested(x, have, 65536);
		check_bytes(c, have, want, sizeof(want), "floats");
	}
	for (size_t n = 0; n < 70; n++) {
		enum guard_side side = n % 2 ? GUARD_AFTER : GUARD_BEFORE;
		float *in = guard_new(n * 4, side);
		uint16_t *out = guard_new(n * 2, side);

		input_fill(&c->rng, n % INPUT_KINDS, in, n);
		guard_read_only(in, n * 4);
		snprintf(c->where, sizeof(c->where), "n=%zu", n);
		ref(in, want, n);
		tested(in, out, n);
		check_bytes(c, out, want, n * 2, "tail");
		guard_free(in, n * 4);
		guard_free(out, n * 2);
	}
}

void check_f32_to_f16(struct check *c)
{
	check_narrow(c, c->ref.f32_to_f16, c->tier->k.f32_to_f16, 13);
}

void check_f32_to_bf16(struct check *c)
{
	check_narrow(c, c->ref.f32_to_bf16, c->tier->k.f32_to_bf16, 16);
}

typedef void transform_fn(const struct skvq_codec *c, const struct skvq_transform *t, float *x);

static void check_transform(struct check *c, transform_fn *ref, transform_fn *tested)
{
	for (uint32_t i = 0; i < INPUT_DIMS * INPUT_KINDS * 2; i++) {
		uint32_t dim = input_dims[i % INPUT_DIMS];
		unsigned kind = i / INPUT_DIMS % INPUT_KINDS;
		enum guard_side side = i % 2 ? GUARD_AFTER : GUARD_BEFORE;
		float *x = guard_new(dim * 4, side), want[SKVQ_HEAD_DIM_MAX];
		struct skvq_transform t;
		struct skvq_codec codec;
		char name[64];

		input_codec(&c->rng, (int)(i & 1), dim, &codec, name);
		input_transform(&c->rng, dim, side, &t);
		input_fill(&c->rng, kind, x, dim);
		memcpy(want, x, dim * 4);
		snprintf(c->where, sizeof(c->where), "%s D=%u %s%s%s", name, dim, input_name(kind),
			 t.into ? " by a matrix" : "", t.reorder ? " reordered" : "");
		ref(&codec, &t, want);
		tested(&codec, &t, x);
		check_floats(c, x, want, dim, "vector");
		guard_free(x, dim * 4);
		input_transform_free(&t, dim);
	}
}

void check_to_stored(struct check *c)
{
	check_transform(c, c->ref.to_stored, c->tier->k.to_stored);
}

void check_from_stored(struct check *c)
{
	check_transform(c, c->ref.from_stored, c->tier->k.from_stored);
}

void check_query_to_stored(struct check *c)
{
	check_transform(c, c->ref.query_to_stored, c->tier->k.query_to_stored);
}

void check_tile_from_stored(struct check *c)
{
	for (uint32_t i = 0; i < INPUT_DIMS * INPUT_KINDS; i++) {
		uint32_t dim = input_dims[i % INPUT_DIMS], n = 16 * dim;
		unsigned kind = i / INPUT_DIMS % INPUT_KINDS;
		enum guard_side side = i % 2 ? GUARD_AFTER : GUARD_BEFORE;
		float *x = guard_new(n * 4ul, side), want[16 * SKVQ_HEAD_DIM_MAX];
		struct skvq_transform t;
		struct skvq_codec codec;
		char name[64];

		input_codec(&c->rng, (int)seeded_below(&c->rng, 2), dim, &codec, name);
		input_transform(&c->rng, dim, side, &t);
		input_fill(&c->rng, kind, x, n);
		memcpy(want, x, n * 4ul);
		snprintf(c->where, sizeof(c->where), "%s D=%u %s%s%s", name, dim, input_name(kind),
			 t.into ? " by a matrix" : "", t.reorder ? " reordered" : "");
		c->ref.tile_from_stored(&codec, &t, want);
		c->tier->k.tile_from_stored(&codec, &t, x);
		check_floats(c, x, want, n, "rows");
		guard_free(x, n * 4ul);
		input_transform_free(&t, dim);
	}
}

/* A head's planes of one side, K or V: five tiles in order, then each tile back. */
struct head {
	struct skvq_codec codec;
	size_t code_bytes, param_bytes;
	uint8_t *codes, *params, *refine; /* refine: of a nested codec, else NULL */
};

static void head_new(struct head *h, enum guard_side side)
{
	h->code_bytes = h->codec.head_bytes;
	h->param_bytes = (size_t)h->codec.n_rows * SKVQ_PAGE_TOKENS;
	h->codes = guard_new(h->code_bytes, side);
	h->params = guard_new(h->param_bytes, side);
	h->refine = h->codec.nested ? guard_new(h->code_bytes, side) : NULL;
}

static void head_free(struct head *h)
{
	guard_free(h->codes, h->code_bytes);
	guard_free(h->params, h->param_bytes);
	guard_free(h->refine, h->code_bytes);
}

static void check_head(struct check *c, uint32_t i, bool decode)
{
	uint32_t dim = input_dims[i % INPUT_DIMS];
	enum guard_side side = i / INPUT_DIMS % 2 ? GUARD_AFTER : GUARD_BEFORE;
	unsigned kind = seeded_below(&c->rng, INPUT_KINDS);
	size_t row_bytes = (size_t)16 * dim * 4;
	float *rows = guard_new(row_bytes, side);
	float *want_rows = guard_new(row_bytes, side);
	struct skvq_transform tr;
	struct head want, have;
	char name[64];

	input_codec(&c->rng, (int)seeded_below(&c->rng, 2), dim, &want.codec, name);
	have.codec = want.codec;
	head_new(&want, side);
	head_new(&have, side);
	input_transform(&c->rng, dim, side, &tr);
	for (uint32_t tile = 0; tile < SKVQ_PAGE_TILES; tile++) {
		snprintf(c->where, sizeof(c->where), "%s %c D=%u tile %u %s%s%s", name,
			 want.codec.is_v ? 'V' : 'K', dim, tile, input_name(kind),
			 tr.into ? " by a matrix" : "", tr.reorder ? " reordered" : "");
		input_fill(&c->rng, kind, rows, (size_t)16 * dim);
		memcpy(want_rows, rows, row_bytes);
		c->ref.encode_tile(&want.codec, &tr, want_rows, tile, want.codes, want.params,
				   want.refine);
		if (!decode) {
			c->tier->k.encode_tile(&have.codec, &tr, rows, tile, have.codes,
					       have.params, have.refine);
			check_bytes(c, have.codes, want.codes, want.code_bytes, "codes");
			check_bytes(c, have.params, want.params, want.param_bytes, "parameters");
			if (want.refine)
				check_bytes(c, have.refine, want.refine, want.code_bytes,
					    "refinement");
		}
	}
	guard_read_only(want.codes, want.code_bytes);
	guard_read_only(want.params, want.param_bytes);
	for (uint32_t tile = 0; decode && tile < SKVQ_PAGE_TILES; tile++) {
		const uint8_t *refine = seeded_below(&c->rng, 2) ? want.refine : NULL;

		c->ref.decode_tile(&want.codec, want.codes, want.params, refine, tile, want_rows);
		c->tier->k.decode_tile(&want.codec, want.codes, want.params, refine, tile, rows);
		check_floats(c, rows, want_rows, (size_t)16 * dim, "rows");
	}
	head_free(&want);
	head_free(&have);
	guard_free(rows, row_bytes);
	guard_free(want_rows, row_bytes);
	input_transform_free(&tr, dim);
}

void check_encode_tile(struct check *c)
{
	for (uint32_t i = 0; i < INPUT_DIMS * 60; i++)
		check_head(c, i, false);
}

/* Also on bytes that no encoder wrote: a reader must stay inside its buffers and agree. */
static void check_decode_garbage(struct check *c, uint32_t i)
{
	uint32_t dim = input_dims[i % INPUT_DIMS];
	float want[16 * SKVQ_HEAD_DIM_MAX], have[16 * SKVQ_HEAD_DIM_MAX];
	struct head h;
	char name[64];

	input_codec(&c->rng, (int)seeded_below(&c->rng, 2), dim, &h.codec, name);
	head_new(&h, i % 2 ? GUARD_AFTER : GUARD_BEFORE);
	for (size_t b = 0; b < h.code_bytes; b++)
		h.codes[b] =
		    (uint8_t)(h.codec.bits == SKVQ_BITS_TERNARY ? seeded_below(&c->rng, 243)
								: seeded_u64(&c->rng));
	for (size_t b = 0; h.refine && b < h.code_bytes; b++)
		h.refine[b] = (uint8_t)seeded_u64(&c->rng);
	for (size_t b = 0; b < h.param_bytes; b++)
		h.params[b] = (uint8_t)seeded_u64(&c->rng);
	for (uint32_t tile = 0; tile < SKVQ_PAGE_TILES; tile++) {
		snprintf(c->where, sizeof(c->where), "%s %c D=%u tile %u random bytes", name,
			 h.codec.is_v ? 'V' : 'K', dim, tile);
		c->ref.decode_tile(&h.codec, h.codes, h.params, h.refine, tile, want);
		c->tier->k.decode_tile(&h.codec, h.codes, h.params, h.refine, tile, have);
		check_floats(c, have, want, (size_t)16 * dim, "rows");
	}
	head_free(&h);
}

void check_decode_tile(struct check *c)
{
	for (uint32_t i = 0; i < INPUT_DIMS * 20; i++) {
		check_head(c, i, true);
		check_decode_garbage(c, i);
	}
}
