/* SPDX-License-Identifier: Apache-2.0 */
/* Clear, not fast: what is timed of these is the entropy coder alone. */
#include "bench.h"

#include <string.h>

#include <skvq/kernels.h>

struct plane {
	uint32_t offset;
	struct skvq_codec codec;
};

typedef void (*plane_fn)(void *ctx, const struct plane *plane);

/* Calls fn for each plane of codes, other for the bytes between. False: no page. */
static bool each(const uint8_t *at, uint32_t base_bytes, plane_fn fn,
		 void (*other)(void *ctx, uint32_t offset, uint32_t bytes), void *ctx)
{
	static const struct skvq_profile any = {.kind = SKVQ_CODEC_SYM, .clip = 1};
	skvq_page_header h;
	uint32_t next;

	memcpy(&h, at, sizeof(h));
	next = h.layers_offset + h.n_layer * (uint32_t)sizeof(skvq_page_layer);
	other(ctx, 0, next);
	for (uint32_t l = 0; l < h.n_layer; l++) {
		skvq_page_layer layer;

		memcpy(&layer, at + h.layers_offset + l * sizeof(layer), sizeof(layer));
		if (layer.offset < next || layer.offset > base_bytes)
			return false;
		other(ctx, next, layer.offset - next);
		next = layer.offset;
		for (uint32_t i = 0; i < 2u * h.n_kv_heads; i++) {
			struct plane p = {.offset = next};
			uint8_t bits = i % 2 ? layer.v_bits : layer.k_bits;
			uint32_t dim = i % 2 ? h.head_dim_v : h.head_dim_k;

			if (bits == SKVQ_BITS_FP16 ||
			    skvq_codec_init(&any, i % 2, bits, dim, &p.codec) < 0 ||
			    p.codec.head_bytes > base_bytes - next)
				return false;
			fn(ctx, &p);
			next += p.codec.head_bytes;
		}
	}
	other(ctx, next, base_bytes - next);
	return true;
}

struct moving {
	const uint8_t *page;
	enum order order;
	uint8_t *to;
	uint8_t *stream[STREAMS];
	const uint8_t *from[STREAMS];
};

/* Codes of 80 tokens, [80][dim]. */
static void unpack(const struct skvq_codec *c, const uint8_t *planes, uint8_t *codes)
{
	for (uint32_t tile = 0; tile < SKVQ_PAGE_TILES; tile++)
		skvq_kernels_get()->unpack_tile(c, planes, tile,
						codes + (size_t)tile * SKVQ_TILE_TOKENS * c->dim);
}

static uint32_t codes_a_byte(const struct skvq_codec *c, enum order order)
{
	if (order != ORDER_PACKED)
		return 1;
	return c->bits == SKVQ_BITS_TERNARY ? 5
	       : c->bits == SKVQ_BITS_2     ? 4
	       : c->bits == SKVQ_BITS_8     ? 1
					    : 2;
}

static void plane_out(void *ctx, const struct plane *p)
{
	uint8_t codes[SKVQ_PAGE_TOKENS * SKVQ_HEAD_DIM_MAX], **to;
	struct moving *m = ctx;
	uint32_t dim = p->codec.dim, n = codes_a_byte(&p->codec, m->order);
	uint32_t levels = p->codec.levels_minus_1 + 1u;

	to = &m->stream[p->codec.is_v];
	unpack(&p->codec, m->page + p->offset, codes);
	if (m->order == ORDER_CODES) {
		memcpy(*to, codes, (size_t)SKVQ_PAGE_TOKENS * dim);
		*to += SKVQ_PAGE_TOKENS * dim;
		return;
	}
	for (uint32_t d = 0; d < dim; d++)
		for (uint32_t t = 0; t < SKVQ_PAGE_TOKENS; t += n) {
			uint32_t byte = 0;

			for (uint32_t i = n; i-- > 0;)
				byte = byte * levels + codes[(t + i) * dim + d];
			*(*to)++ = (uint8_t)byte;
		}
}

static void other_out(void *ctx, uint32_t offset, uint32_t bytes)
{
	struct moving *m = ctx;

	memcpy(m->stream[2], m->page + offset, bytes);
	m->stream[2] += bytes;
}

static void plane_back(void *ctx, const struct plane *p)
{
	uint8_t codes[SKVQ_PAGE_TOKENS * SKVQ_HEAD_DIM_MAX];
	struct moving *m = ctx;
	const uint8_t **from = &m->from[p->codec.is_v];
	uint32_t dim = p->codec.dim, n = codes_a_byte(&p->codec, m->order);
	uint32_t levels = p->codec.levels_minus_1 + 1u;

	if (m->order == ORDER_CODES) {
		memcpy(codes, *from, (size_t)SKVQ_PAGE_TOKENS * dim);
		*from += SKVQ_PAGE_TOKENS * dim;
	} else {
		for (uint32_t d = 0; d < dim; d++)
			for (uint32_t t = 0; t < SKVQ_PAGE_TOKENS; t += n) {
				uint32_t byte = *(*from)++;

				for (uint32_t i = 0; i < n; i++, byte /= levels)
					codes[(t + i) * dim + d] = (uint8_t)(byte % levels);
			}
	}
	memset(m->to + p->offset, 0, p->codec.head_bytes);
	for (uint32_t tile = 0; tile < SKVQ_PAGE_TILES; tile++)
		skvq_kernels_get()->pack_tile(&p->codec,
					      codes + (size_t)tile * SKVQ_TILE_TOKENS * dim, tile,
					      m->to + p->offset);
}

static void other_back(void *ctx, uint32_t offset, uint32_t bytes)
{
	struct moving *m = ctx;

	memcpy(m->to + offset, m->from[2], bytes);
	m->from[2] += bytes;
}

/* Lengths of the streams: those of the codes are told by a walk of their own. */
static void plane_count(void *ctx, const struct plane *p)
{
	struct moving *m = ctx;

	m->stream[p->codec.is_v] +=
	    SKVQ_PAGE_TOKENS / codes_a_byte(&p->codec, m->order) * p->codec.dim;
}

static void other_count(void *ctx, uint32_t offset, uint32_t bytes)
{
	(void)offset;
	((struct moving *)ctx)->stream[2] += bytes;
}

static bool count(const struct page *page, enum order order, uint8_t *base,
		  uint32_t ret_bytes[STREAMS])
{
	struct moving m = {.order = order, .stream = {base, base, base}};

	if (!each(page->at, page->section[TIER_BASE], plane_count, other_count, &m))
		return false;
	for (int i = 0; i < STREAMS; i++)
		ret_bytes[i] = (uint32_t)(m.stream[i] - base);
	ret_bytes[2] += page->bytes - page->section[TIER_BASE];
	return true;
}

bool regroup(const struct page *page, enum order order, uint8_t *ret, uint32_t ret_bytes[STREAMS])
{
	struct moving m = {.page = page->at, .order = order};
	uint32_t base = page->section[TIER_BASE];

	if (!count(page, order, ret, ret_bytes))
		return false;
	m.stream[0] = ret;
	m.stream[1] = ret + ret_bytes[0];
	m.stream[2] = ret + ret_bytes[0] + ret_bytes[1];
	(void)each(page->at, base, plane_out, other_out, &m);
	memcpy(m.stream[2], page->at + base, page->bytes - base);
	return true;
}

void regroup_back(const struct page *page, enum order order, const uint8_t *from, uint8_t *to)
{
	struct moving m = {.order = order, .to = to};
	uint32_t base = page->section[TIER_BASE], bytes[STREAMS];

	(void)count(page, order, to, bytes);
	m.from[0] = from;
	m.from[1] = from + bytes[0];
	m.from[2] = from + bytes[0] + bytes[1];
	(void)each(page->at, base, plane_back, other_back, &m);
	memcpy(to + base, m.from[2], page->bytes - base);
}
