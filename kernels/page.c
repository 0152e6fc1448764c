/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a page, written and checked. Both sides come from expect_header(): what init
 * writes is by construction what check wants.
 */
#include <skvq/layout.h>

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <skvq/error.h>
#include <skvq/error_stats.h>

#define TERNARY_BYTES 243u /* 3^5 */

static void expect_header(const struct skvq_layout *l, uint32_t position, skvq_page_header *ret)
{
	bool sidecar = position == 0 && l->sidecar_bytes != 0;

	*ret = (skvq_page_header){
	    .magic = SKVQ_PAGE_MAGIC,
	    .version = SKVQ_PAGE_VERSION,
	    .header_bytes = sizeof(skvq_page_header),
	    .flags = (sidecar ? SKVQ_PAGE_HAS_SIDECAR : 0) |
		     (l->refine_bytes ? SKVQ_PAGE_HAS_REFINEMENT : 0) |
		     (l->safe ? SKVQ_PAGE_SAFE : 0),
	    .position = position,
	    .page_tokens = SKVQ_PAGE_TOKENS,
	    .n_layer = (uint16_t)l->geo.n_layer,
	    .n_kv_heads = (uint16_t)l->geo.n_kv_heads,
	    .head_dim_k = (uint16_t)l->geo.head_dim_k,
	    .head_dim_v = (uint16_t)l->geo.head_dim_v,
	    .n_sinks = sidecar ? (uint16_t)l->geo.n_sinks : 0,
	    .tokens_offset = l->tokens_offset,
	    .layers_offset = l->layers_offset,
	    .base_bytes = l->base_bytes,
	    .refine_bytes = l->refine_bytes,
	    .sidecar_bytes = sidecar ? l->sidecar_bytes : 0,
	};
}

static skvq_page_layer expect_layer(const struct skvq_layout *l, uint32_t i)
{
	return (skvq_page_layer){
	    .offset = l->layers[i].offset,
	    .refine_offset = l->layers[i].k.nested ? l->layers[i].refine_offset : 0,
	    .k_refine_bits = l->layers[i].k.nested ? SKVQ_BITS_2 : 0,
	    .k_bits = l->layers[i].k.bits,
	    .v_bits = l->layers[i].v.bits,
	};
}

void skvq_page_init(const struct skvq_layout *l, uint32_t position, void *page)
{
	uint8_t *p = page;
	uint32_t at = l->layers_offset;
	skvq_page_header h;

	assert(position % SKVQ_PAGE_TOKENS == 0);
	expect_header(l, position, &h);
	memcpy(p, &h, sizeof(h));
	for (uint32_t i = 0; i < l->geo.n_layer; i++, at += (uint32_t)sizeof(skvq_page_layer)) {
		skvq_page_layer e = expect_layer(l, i);

		memcpy(p + at, &e, sizeof(e));
	}
	memset(p + at, 0, l->layers[0].offset - at);
}

/* Checking: a cursor that remembers where to complain. */
struct check {
	const struct skvq_layout *l;
	const uint8_t *page;
	char *why;
	size_t why_bytes;
};

__attribute__((format(printf, 2, 3))) static int fail(const struct check *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (c->why_bytes)
		(void)vsnprintf(c->why, c->why_bytes, fmt, ap);
	va_end(ap);
	return -SKVQ_ECORRUPT;
}

struct field {
	const char *name;
	uint16_t offset;
	uint16_t bytes;
};

#define FIELD(type, f)                                                                             \
	{                                                                                          \
#f, offsetof(type, f), sizeof(((type *)0)->f)                                      \
	}

static const struct field header_fields[] = {
    FIELD(skvq_page_header, magic),         FIELD(skvq_page_header, version),
    FIELD(skvq_page_header, header_bytes),  FIELD(skvq_page_header, flags),
    FIELD(skvq_page_header, position),      FIELD(skvq_page_header, page_tokens),
    FIELD(skvq_page_header, n_layer),       FIELD(skvq_page_header, n_kv_heads),
    FIELD(skvq_page_header, head_dim_k),    FIELD(skvq_page_header, head_dim_v),
    FIELD(skvq_page_header, n_sinks),       FIELD(skvq_page_header, tokens_offset),
    FIELD(skvq_page_header, layers_offset), FIELD(skvq_page_header, base_bytes),
    FIELD(skvq_page_header, refine_bytes),  FIELD(skvq_page_header, sidecar_bytes),
    FIELD(skvq_page_header, crc_header),    FIELD(skvq_page_header, crc_base),
    FIELD(skvq_page_header, crc_refine),    FIELD(skvq_page_header, crc_sidecar),
    FIELD(skvq_page_header, reserved0),     FIELD(skvq_page_header, identity),
    FIELD(skvq_page_header, parent),        FIELD(skvq_page_header, digest),
    FIELD(skvq_page_header, reserved1),
};

static const struct field layer_fields[] = {
    FIELD(skvq_page_layer, offset),        FIELD(skvq_page_layer, refine_offset),
    FIELD(skvq_page_layer, k_bits),        FIELD(skvq_page_layer, v_bits),
    FIELD(skvq_page_layer, k_refine_bits), FIELD(skvq_page_layer, v_refine_bits),
    FIELD(skvq_page_layer, k_error),       FIELD(skvq_page_layer, v_error),
};

#define N_FIELDS(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t field_value(const void *s, const struct field *f)
{
	uint64_t v = 0;

	memcpy(&v, (const uint8_t *)s + f->offset, f->bytes <= sizeof(v) ? f->bytes : 0);
	return v;
}

/* First field in which the two differ; NULL if none does. The fields cover their struct (asserted
 * by size in the tests), so this is as strong as memcmp and can say where. */
static const struct field *fields_differ(const struct field *f, size_t n, const void *a,
					 const void *b)
{
	for (size_t i = 0; i < n; i++)
		if (memcmp((const uint8_t *)a + f[i].offset, (const uint8_t *)b + f[i].offset,
			   f[i].bytes) != 0)
			return &f[i];
	return NULL;
}

static int check_header(const struct check *c, uint32_t position)
{
	skvq_page_header want, have;
	const struct field *f;

	expect_header(c->l, position, &want);
	memcpy(&have, c->page, sizeof(have));
	f = fields_differ(header_fields, N_FIELDS(header_fields), &have, &want);
	if (!f)
		return 0;
	if (f->bytes > sizeof(uint64_t))
		return fail(c, "header %s at offset %u is not zero", f->name, f->offset);
	return fail(c, "header %s at offset %u is %llu, not %llu", f->name, f->offset,
		    (unsigned long long)field_value(&have, f),
		    (unsigned long long)field_value(&want, f));
}

static int check_tokens(const struct check *c, const int32_t *tokens)
{
	const uint8_t *have = c->page + c->l->tokens_offset;

	if (memcmp(have, tokens, SKVQ_PAGE_TOKENS * sizeof(int32_t)) == 0)
		return 0;
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++) {
		int32_t t;

		memcpy(&t, have + i * sizeof(t), sizeof(t));
		if (t != tokens[i])
			return fail(c, "token %u at offset %zu is %d, not %d", i,
				    c->l->tokens_offset + i * sizeof(t), t, tokens[i]);
	}
	return 0;
}

static int error_fault(const struct check *c, uint32_t layer, const char *name, size_t at,
		       uint16_t half)
{
	return fail(c, "layer %u: table entry %s at offset %zu is 0x%04x, not a finite number from 0 up",
		    layer, name, at, half);
}

static int check_layer_table(const struct check *c)
{
	for (uint32_t i = 0; i < c->l->geo.n_layer; i++) {
		size_t at = c->l->layers_offset + i * sizeof(skvq_page_layer);
		skvq_page_layer want = expect_layer(c->l, i), have;
		const struct field *f;

		memcpy(&have, c->page + at, sizeof(have));
		/* What was measured is the engine's to say, as long as it is a number. */
		if (!skvq_error_valid(have.k_error))
			return error_fault(c, i, "k_error",
					   at + offsetof(skvq_page_layer, k_error), have.k_error);
		if (!skvq_error_valid(have.v_error))
			return error_fault(c, i, "v_error",
					   at + offsetof(skvq_page_layer, v_error), have.v_error);
		want.k_error = have.k_error;
		want.v_error = have.v_error;
		f = fields_differ(layer_fields, N_FIELDS(layer_fields), &have, &want);
		if (f)
			return fail(c, "layer %u: table entry %s at offset %zu is %llu, not %llu",
				    i, f->name, at + f->offset,
				    (unsigned long long)field_value(&have, f),
				    (unsigned long long)field_value(&want, f));
	}
	return 0;
}

static int check_zero(const struct check *c, const char *what, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		if (c->page[i] != 0)
			return fail(c, "%s: padding at offset %zu is 0x%02x, not zero", what, i,
				    c->page[i]);
	return 0;
}

/* The scans below first ask for the whole plane without a branch, which compilers vectorise, and
 * look for the place only when there is something to say. */
static int check_ternary(const struct check *c, const char *kv, uint32_t layer, uint32_t head,
			 size_t at, size_t bytes)
{
	const uint8_t *p = c->page + at;
	uint8_t bad = 0;

	for (size_t i = 0; i < bytes; i++)
		bad |= p[i] >= TERNARY_BYTES;
	for (size_t i = 0; bad && i < bytes; i++)
		if (p[i] >= TERNARY_BYTES)
			return fail(c, "layer %u head %u: %s ternary byte at offset %zu is %u",
				    layer, head, kv, at + i, p[i]);
	return 0;
}

/* 3-bit tiles of a dimension that is no multiple of 32 leave bits of the high plane unused. */
static int check_high_plane(const struct check *c, const char *kv, uint32_t layer, uint32_t head,
			    const struct skvq_codec *codec, size_t at)
{
	uint32_t n = codec->dim / 4u, m = (n + 7) / 8, low_bytes = 64 * ((n + 3) / 4);

	for (uint32_t tile = 0; n % 8 != 0 && tile < SKVQ_PAGE_TILES; tile++) {
		size_t high = at + (size_t)tile * codec->tile_bytes + low_bytes;

		for (uint32_t i = 0; i < 64 * m; i++) {
			uint32_t used = 0;

			for (uint32_t p = 0; p < 8; p++)
				used |= (uint32_t)(i / 64 + p * m < n) << p;
			if (c->page[high + i] & ~used)
				return fail(c,
					    "layer %u head %u: %s unused bits at offset %zu "
					    "are not zero",
					    layer, head, kv, high + i);
		}
	}
	return 0;
}

static int check_params(const struct check *c, const char *kv, uint32_t layer, uint32_t head,
			size_t at, size_t bytes)
{
	const uint8_t *p = c->page + at;
	uint8_t bad = 0;

	for (size_t i = 0; i < bytes; i++)
		bad |= (p[i] & 0x7f) == 0x7f;
	for (size_t i = 0; bad && i < bytes; i++)
		if ((p[i] & 0x7f) == 0x7f)
			return fail(c,
				    "layer %u head %u: %s parameter row %zu token %zu at offset "
				    "%zu is NaN",
				    layer, head, kv, i / SKVQ_PAGE_TOKENS, i % SKVQ_PAGE_TOKENS,
				    at + i);
	return 0;
}

static int check_plane(const struct check *c, const struct skvq_codec *codec, uint32_t layer,
		       uint32_t head, size_t codes, size_t params)
{
	const char *kv = codec->is_v ? "V" : "K";
	int r = 0;

	if (codec->bits == SKVQ_BITS_TERNARY)
		r = check_ternary(c, kv, layer, head, codes, codec->head_bytes);
	else if (codec->bits == SKVQ_BITS_3)
		r = check_high_plane(c, kv, layer, head, codec, codes);
	if (r < 0)
		return r;
	return check_params(c, kv, layer, head, params, (size_t)codec->n_rows * SKVQ_PAGE_TOKENS);
}

static int check_layer(const struct check *c, uint32_t layer)
{
	const struct skvq_layout *l = c->l;
	const struct skvq_layer_layout *ll = &l->layers[layer];
	size_t end = skvq_layout_v_params(l, layer, l->geo.n_kv_heads - 1) +
		     ((size_t)ll->v.n_rows + ll->v_rows) * SKVQ_PAGE_TOKENS;
	int r;

	for (uint32_t h = 0; h < l->geo.n_kv_heads; h++) {
		r = check_plane(c, &ll->k, layer, h, skvq_layout_k_codes(l, layer, h),
				skvq_layout_k_params(l, layer, h));
		if (r < 0)
			return r;
		r = check_plane(c, &ll->v, layer, h, skvq_layout_v_codes(l, layer, h),
				skvq_layout_v_params(l, layer, h));
		if (r < 0)
			return r;
	}
	r = check_params(c, "K", layer, 0, skvq_layout_k_params(l, layer, 0),
			 (size_t)ll->k_rows * SKVQ_PAGE_TOKENS);
	if (r == 0)
		r = check_params(c, "V", layer, 0, skvq_layout_v_params(l, layer, 0),
				 (size_t)ll->v_rows * SKVQ_PAGE_TOKENS);
	return r < 0 ? r : check_zero(c, "layer", end, (size_t)ll->offset + ll->bytes);
}

/* The end of what the refinement section holds. */
static size_t refine_end(const struct skvq_layout *l)
{
	for (uint32_t i = l->geo.n_layer; i-- > 0;)
		if (l->layers[i].k.nested)
			return skvq_layout_k_refine(l, i, l->geo.n_kv_heads - 1) +
			       l->layers[i].k.head_bytes;
	return l->base_bytes;
}

int skvq_page_check(const struct skvq_layout *l, uint32_t position, const int32_t *tokens,
		    const void *page, size_t page_bytes, char *why, size_t why_bytes)
{
	const struct check c = {.l = l, .page = page, .why = why, .why_bytes = why_bytes};
	const struct skvq_layer_layout *last = &l->layers[l->geo.n_layer - 1];
	size_t want_bytes = skvq_layout_page_bytes(l, position);
	int r;

	if (page_bytes != want_bytes)
		return fail(&c, "page of %zu bytes, not %zu", page_bytes, want_bytes);
	if (position % SKVQ_PAGE_TOKENS != 0)
		return fail(&c, "position %u is no multiple of %u", position, SKVQ_PAGE_TOKENS);
	r = check_header(&c, position);
	if (r < 0)
		return r;
	r = check_tokens(&c, tokens);
	if (r < 0)
		return r;
	r = check_layer_table(&c);
	if (r < 0)
		return r;
	r = check_zero(&c, "layer table",
		       l->layers_offset + l->geo.n_layer * sizeof(skvq_page_layer),
		       l->layers[0].offset);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		r = check_layer(&c, i);
		if (r < 0)
			return r;
	}
	r = check_zero(&c, "base section", (size_t)last->offset + last->bytes, l->base_bytes);
	if (r < 0)
		return r;
	r = check_zero(&c, "refinement section", refine_end(l), (size_t)l->base_bytes + l->refine_bytes);
	if (r < 0 || position != 0)
		return r;
	return check_zero(&c, "sidecar",
			  (size_t)l->base_bytes + l->refine_bytes +
			      (size_t)l->geo.n_layer * l->layer_sidecar_bytes,
			  page_bytes);
}
