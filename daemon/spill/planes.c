/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/planes.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include <skvq/format.h>
#include <skvq/profile.h>

#define VECTOR_BYTES 64u /* of K's codes: 16 tokens, four channels of each in four bytes */

/* A run of bytes of the section that goes to a stream. */
struct run {
	enum plane_stream stream;
	uint32_t offset, bytes;
	uint32_t tile_bytes; /* of a key's codes whose differences are stored; else 0 */
	uint32_t high;       /* the highest bit of each code in a word */
};

typedef void (*run_fn)(void *ctx, const struct run *run);

static enum plane_stream stream_of(bool is_v, uint8_t bits)
{
	uint32_t at = bits == SKVQ_BITS_8   ? 0
		      : bits == SKVQ_BITS_4 ? 1
		      : bits == SKVQ_BITS_3 ? 2
		      : bits == SKVQ_BITS_2 ? 3
					    : 4;

	return (enum plane_stream)(PLANE_CODES + (is_v ? 5 : 0) + at);
}

static uint32_t high_bits(uint8_t bits)
{
	return bits == SKVQ_BITS_8   ? 0x80808080u
	       : bits == SKVQ_BITS_4 ? 0x88888888u
	       : bits == SKVQ_BITS_2 ? 0xaaaaaaaau
				     : 0;
}

/* Runs of one layer from *at on; *at moves behind them. False: it makes no sense. */
static bool walk_layer(const skvq_page_header *h, const skvq_page_layer *layer, uint32_t end,
		       uint32_t *at, run_fn fn, void *ctx)
{
	static const struct skvq_profile any = {.kind = SKVQ_CODEC_SYM, .clip = 1};
	struct skvq_codec codec[2];

	if (skvq_codec_init(&any, 0, layer->k_bits, h->head_dim_k, &codec[0]) < 0 ||
	    skvq_codec_init(&any, 1, layer->v_bits, h->head_dim_v, &codec[1]) < 0 ||
	    layer->offset < *at || layer->offset > end)
		return false;
	fn(ctx, &(struct run){.stream = PLANE_REST, .offset = *at, .bytes = layer->offset - *at});
	*at = layer->offset;
	for (uint32_t i = 0; i < 2u * h->n_kv_heads; i++) {
		const struct skvq_codec *c = &codec[i % 2];
		struct run run = {.stream = PLANE_REST, .offset = *at, .bytes = c->head_bytes};

		if (run.bytes > end - *at)
			return false;
		if (c->bits != SKVQ_BITS_FP16)
			run.stream = stream_of(c->is_v, c->bits);
		if (!c->is_v && c->bits != SKVQ_BITS_FP16)
			run.high = high_bits(c->bits);
		if (run.high)
			run.tile_bytes = c->tile_bytes;
		fn(ctx, &run);
		*at += run.bytes;
	}
	return true;
}

/* All runs in order but for the front, whose length it returns: 0 if this is no page. */
static uint32_t walk(const uint8_t *section, uint32_t bytes, run_fn fn, void *ctx)
{
	skvq_page_header h;
	uint32_t front, at;

	if (bytes < sizeof(h))
		return 0;
	memcpy(&h, section, sizeof(h));
	front = h.layers_offset + (uint32_t)h.n_layer * (uint32_t)sizeof(skvq_page_layer);
	if (h.magic != SKVQ_PAGE_MAGIC || !h.n_layer || h.n_layer > SKVQ_LAYERS_MAX ||
	    !h.n_kv_heads || h.n_kv_heads > SKVQ_KV_HEADS_MAX || h.layers_offset > 4096 ||
	    h.layers_offset < sizeof(h) || front > bytes)
		return 0;
	at = front;
	for (uint32_t l = 0; l < h.n_layer; l++) {
		skvq_page_layer layer;

		memcpy(&layer, section + h.layers_offset + l * sizeof(layer), sizeof(layer));
		if (!walk_layer(&h, &layer, bytes, &at, fn, ctx))
			return 0;
	}
	fn(ctx, &(struct run){.stream = PLANE_REST, .offset = at, .bytes = bytes - at});
	return front;
}

static void count_run(void *ctx, const struct run *run)
{
	((uint32_t *)ctx)[run->stream] += run->bytes;
}

void planes_count(const uint8_t *section, uint32_t bytes, uint32_t ret_bytes[PLANE_STREAMS])
{
	uint32_t front;

	memset(ret_bytes, 0, PLANE_STREAMS * sizeof(*ret_bytes));
	front = walk(section, bytes, count_run, ret_bytes);
	if (!front)
		memset(ret_bytes, 0, PLANE_STREAMS * sizeof(*ret_bytes));
	ret_bytes[PLANE_FRONT] = front ? front : bytes;
}

/* Of each code in the words by itself. */
static uint32_t minus(uint32_t a, uint32_t b, uint32_t high)
{
	return ((a | high) - (b & ~high)) ^ ((a ^ ~b) & high);
}

static uint32_t plus(uint32_t a, uint32_t b, uint32_t high)
{
	return ((a & ~high) + (b & ~high)) ^ ((a ^ b) & high);
}

/* A word holds codes of one token. The token before a tile's first is the last of the tile before.
 */
static void differ(uint8_t *to, const uint8_t *from, const struct run *run)
{
	for (uint32_t first = 0; first < run->tile_bytes; first += VECTOR_BYTES) {
		uint32_t before = 0;

		for (uint32_t at = first; at < run->bytes; at += run->tile_bytes) {
			for (uint32_t t = 0; t < VECTOR_BYTES; t += 4) {
				uint32_t word, out;

				memcpy(&word, from + at + t, 4);
				out = minus(word, before, run->high);
				memcpy(to + at + t, &out, 4);
				before = word;
			}
		}
	}
}

static void add_up(uint8_t *to, const uint8_t *from, const struct run *run)
{
	for (uint32_t first = 0; first < run->tile_bytes; first += VECTOR_BYTES) {
		uint32_t sum = 0;

		for (uint32_t at = first; at < run->bytes; at += run->tile_bytes) {
			for (uint32_t t = 0; t < VECTOR_BYTES; t += 4) {
				uint32_t word;

				memcpy(&word, from + at + t, 4);
				sum = plus(sum, word, run->high);
				memcpy(to + at + t, &sum, 4);
			}
		}
	}
}

struct gathering {
	const uint8_t *section;
	uint8_t *stream[PLANE_STREAMS]; /* moves on */
};

static void gather_run(void *ctx, const struct run *run)
{
	struct gathering *g = ctx;

	if (run->high)
		differ(g->stream[run->stream], g->section + run->offset, run);
	else
		memcpy(g->stream[run->stream], g->section + run->offset, run->bytes);
	g->stream[run->stream] += run->bytes;
}

void planes_gather(const uint8_t *section, uint32_t bytes, uint8_t *const stream[PLANE_STREAMS])
{
	uint32_t counts[PLANE_STREAMS];
	struct gathering g = {.section = section};

	planes_count(section, bytes, counts);
	memcpy(g.stream, stream, sizeof(g.stream));
	memcpy(g.stream[PLANE_FRONT], section, counts[PLANE_FRONT]);
	if (counts[PLANE_FRONT] < bytes)
		(void)walk(section, bytes, gather_run, &g);
}

struct scattering {
	uint8_t *section;
	const uint8_t *stream[PLANE_STREAMS]; /* moves on */
};

static void scatter_run(void *ctx, const struct run *run)
{
	struct scattering *s = ctx;

	if (run->high)
		add_up(s->section + run->offset, s->stream[run->stream], run);
	else
		memcpy(s->section + run->offset, s->stream[run->stream], run->bytes);
	s->stream[run->stream] += run->bytes;
}

void planes_scatter(uint8_t *section, uint32_t bytes, const uint8_t *const stream[PLANE_STREAMS])
{
	struct scattering s = {.section = section};
	uint32_t front;

	memcpy(s.stream, stream, sizeof(s.stream));
	front = walk(section, bytes, scatter_run, &s);
	assert(front);
	(void)front;
}
