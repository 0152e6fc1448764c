/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/layout.h>

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include <skvq/error.h>

/* Every size below is a sum of products of bounded numbers, at most some 5 GB: 64 bits suffice, and
 * the one check against SKVQ_PAGE_BYTES_MAX makes all offsets fit 32. */
static uint64_t round_up(uint64_t x, uint64_t to)
{
	return (x + to - 1) / to * to;
}

static int geometry_check(const struct skvq_geometry *g)
{
	if (g->n_layer < 1 || g->n_layer > SKVQ_LAYERS_MAX || g->n_kv_heads < 1 ||
	    g->n_kv_heads > SKVQ_KV_HEADS_MAX || g->n_sinks > SKVQ_SINKS_MAX)
		return -SKVQ_EGEOMETRY;
	return 0; /* head_dim is skvq_codec_init()'s to check */
}

/* A scale and a zero for each group of a layer's channels. */
static uint32_t shared_rows(const struct skvq_geometry *g, const struct skvq_codec *c)
{
	if (c->kind != SKVQ_CODEC_FAITHFUL)
		return 0;
	return 2 * ((g->n_kv_heads * c->dim + c->group - 1) / c->group);
}

/* Fills everything but the sizes of the page as a whole; returns the end of the last layer. */
static int layers_place(const struct skvq_profile *profile, const uint8_t *bit_table,
			struct skvq_layout *l, uint64_t *ret_end)
{
	const struct skvq_geometry *g = &l->geo;
	uint64_t at =
	    round_up(l->layers_offset + g->n_layer * sizeof(skvq_page_layer), SKVQ_PLANE_ALIGN);

	for (uint32_t i = 0; i < g->n_layer; i++) {
		struct skvq_layer_layout *ll = &l->layers[i];
		uint8_t k_bits = bit_table ? bit_table[2 * i] : profile->k_bits;
		uint8_t v_bits = bit_table ? bit_table[2 * i + 1] : profile->v_bits;
		uint64_t codes, rows, bytes;
		int r;

		r = skvq_codec_init(profile, 0, k_bits, g->head_dim_k, &ll->k);
		if (r < 0)
			return r;
		r = skvq_codec_init(profile, 1, v_bits, g->head_dim_v, &ll->v);
		if (r < 0)
			return r;
		codes = (uint64_t)g->n_kv_heads * (ll->k.head_bytes + ll->v.head_bytes);
		ll->k_rows = shared_rows(g, &ll->k);
		ll->v_rows = shared_rows(g, &ll->v);
		rows = (uint64_t)g->n_kv_heads * (ll->k.n_rows + ll->v.n_rows) + ll->k_rows +
		       ll->v_rows;
		bytes = round_up(codes + rows * SKVQ_PAGE_TOKENS, SKVQ_PLANE_ALIGN);
		if (at + bytes > SKVQ_PAGE_BYTES_MAX)
			return -SKVQ_EGEOMETRY;
		ll->offset = (uint32_t)at;
		ll->bytes = (uint32_t)bytes;
		ll->param_offset = (uint32_t)(at + codes);
		at += bytes;
	}
	*ret_end = at;
	return 0;
}

/* Refinements follow the base section, layer by layer; returns their end. */
static uint64_t refine_place(struct skvq_layout *l, uint64_t at)
{
	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		struct skvq_layer_layout *ll = &l->layers[i];

		if (!ll->k.nested)
			continue;
		ll->refine_offset = (uint32_t)at;
		at += (uint64_t)l->geo.n_kv_heads * ll->k.head_bytes;
		if (at > SKVQ_PAGE_BYTES_MAX)
			break;
	}
	return round_up(at, SKVQ_SECTION_ALIGN);
}

int skvq_profile_has_safe(const struct skvq_profile *profile, int calibrated)
{
	return profile->kind == SKVQ_CODEC_SYM && !profile->nested && !profile->bare && !calibrated;
}

/* K of 8 bits wherever l has fewer, V as in l. False if no K has fewer. */
static bool safe_bits(const struct skvq_layout *l, uint8_t ret_table[2 * SKVQ_LAYERS_MAX])
{
	bool differs = false;

	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		uint8_t bits = l->layers[i].k.bits;

		ret_table[2 * i] = bits < SKVQ_BITS_8 ? SKVQ_BITS_8 : bits;
		ret_table[2 * i + 1] = l->layers[i].v.bits;
		differs |= bits < SKVQ_BITS_8;
	}
	return differs;
}

/* A slot must hold either kind of page, and does so with a calibration too: address space is all it
 * takes, and the stride stays a matter of profile and geometry alone. */
static uint64_t slot_bytes(const struct skvq_layout *l, const struct skvq_profile *profile)
{
	uint8_t table[2 * SKVQ_LAYERS_MAX];
	uint64_t own = (uint64_t)l->base_bytes + l->refine_bytes + l->sidecar_bytes, end;
	struct skvq_layout safe;

	if (!skvq_profile_has_safe(profile, 0) || !safe_bits(l, table))
		return own;
	memset(&safe, 0, sizeof(safe));
	safe.geo = l->geo;
	safe.layers_offset = l->layers_offset;
	if (layers_place(profile, table, &safe, &end) < 0)
		return own;
	end = round_up(end, SKVQ_SECTION_ALIGN) + l->sidecar_bytes;
	return end <= SKVQ_PAGE_BYTES_MAX ? end : own;
}

int skvq_layout_init_safe(const struct skvq_layout *l, const struct skvq_profile *profile,
			  struct skvq_layout *ret)
{
	uint8_t table[2 * SKVQ_LAYERS_MAX];
	int r;

	if (!skvq_profile_has_safe(profile, 0))
		return -SKVQ_EPROFILE;
	if (!safe_bits(l, table))
		return -SKVQ_EGEOMETRY;
	r = skvq_layout_init(&l->geo, profile, table, ret);
	if (r < 0)
		return r;
	ret->safe = 1;
	ret->slot_bytes = l->slot_bytes;
	return 0;
}

int skvq_layout_init(const struct skvq_geometry *geo, const struct skvq_profile *profile,
		     const uint8_t *bit_table, struct skvq_layout *ret)
{
	struct skvq_layout l;
	uint64_t end, refine_end, layer_sidecar, sidecar;
	int r;

	r = geometry_check(geo);
	if (r < 0)
		return r;
	memset(&l, 0, sizeof(l));
	l.geo = *geo;
	l.tokens_offset = sizeof(skvq_page_header);
	l.layers_offset = l.tokens_offset + SKVQ_PAGE_TOKENS * (uint32_t)sizeof(int32_t);
	r = layers_place(profile, bit_table, &l, &end);
	if (r < 0)
		return r;

	layer_sidecar = (uint64_t)geo->n_kv_heads * geo->n_sinks *
			(geo->head_dim_k + geo->head_dim_v) * sizeof(uint16_t);
	sidecar = round_up(layer_sidecar * geo->n_layer, SKVQ_SECTION_ALIGN);
	end = round_up(end, SKVQ_SECTION_ALIGN);
	refine_end = refine_place(&l, end);
	if (refine_end + sidecar > SKVQ_PAGE_BYTES_MAX)
		return -SKVQ_EGEOMETRY;
	l.base_bytes = (uint32_t)end;
	l.refine_bytes = (uint32_t)(refine_end - end);
	l.sidecar_bytes = (uint32_t)sidecar;
	l.slot_bytes = slot_bytes(&l, profile);
	l.layer_sidecar_bytes = (uint32_t)layer_sidecar;
	*ret = l;
	return 0;
}

static const struct skvq_layer_layout *layer_of(const struct skvq_layout *l, uint32_t layer,
						uint32_t head)
{
	assert(layer < l->geo.n_layer);
	assert(head < l->geo.n_kv_heads);
	(void)head; /* with NDEBUG */
	return &l->layers[layer];
}

size_t skvq_layout_k_codes(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	const struct skvq_layer_layout *ll = layer_of(l, layer, head);

	return ll->offset + (size_t)head * (ll->k.head_bytes + ll->v.head_bytes);
}

size_t skvq_layout_v_codes(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	return skvq_layout_k_codes(l, layer, head) + l->layers[layer].k.head_bytes;
}

size_t skvq_layout_k_params(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	const struct skvq_layer_layout *ll = layer_of(l, layer, head);

	return ll->param_offset + (size_t)head * (ll->k.n_rows + ll->v.n_rows) * SKVQ_PAGE_TOKENS;
}

size_t skvq_layout_v_params(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	return skvq_layout_k_params(l, layer, head) +
	       (size_t)(l->layers[layer].k.n_rows + l->layers[layer].k_rows) * SKVQ_PAGE_TOKENS;
}

size_t skvq_layout_k_refine(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	const struct skvq_layer_layout *ll = layer_of(l, layer, head);

	assert(ll->k.nested);
	return ll->refine_offset + (size_t)head * ll->k.head_bytes;
}

size_t skvq_layout_k_sinks(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	size_t head_bytes =
	    (size_t)l->geo.n_sinks * (l->geo.head_dim_k + l->geo.head_dim_v) * sizeof(uint16_t);

	(void)layer_of(l, layer, head);
	return (size_t)l->base_bytes + l->refine_bytes + (size_t)layer * l->layer_sidecar_bytes +
	       head * head_bytes;
}

size_t skvq_layout_v_sinks(const struct skvq_layout *l, uint32_t layer, uint32_t head)
{
	return skvq_layout_k_sinks(l, layer, head) +
	       (size_t)l->geo.n_sinks * l->geo.head_dim_k * sizeof(uint16_t);
}

size_t skvq_layout_page_bytes(const struct skvq_layout *l, uint32_t position)
{
	return (size_t)l->base_bytes + l->refine_bytes + (position == 0 ? l->sidecar_bytes : 0);
}
