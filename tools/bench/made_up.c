/* SPDX-License-Identifier: Apache-2.0 */
#include "made_up.h"

#include <stddef.h>
#include <string.h>

/* Bytes below 128 are good ternary (below 243), bytes below 64 good E4M3. */
#define ANY    UINT64_C(0xffffffffffffffff)
#define CODES  UINT64_C(0x7f7f7f7f7f7f7f7f)
#define PARAMS UINT64_C(0x3f3f3f3f3f3f3f3f)

uint64_t made_up_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* Sections are multiples of 16 bytes. */
static void fill(uint8_t *to, size_t bytes, uint64_t mask, uint64_t *random)
{
	for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
		uint64_t word = made_up_random(random) & mask;

		memcpy(to + i, &word, sizeof(word));
	}
}

static void fill_codes(const struct skvq_codec *codec, uint8_t *to, uint64_t *random)
{
	fill(to, codec->head_bytes, codec->bits == SKVQ_BITS_TERNARY ? CODES : ANY, random);
}

static void fill_head(const struct skvq_layout *l, uint32_t layer, uint32_t head, uint8_t *page,
		      uint64_t *random)
{
	const struct skvq_layer_layout *ll = &l->layers[layer];

	fill_codes(&ll->k, page + skvq_layout_k_codes(l, layer, head), random);
	fill_codes(&ll->v, page + skvq_layout_v_codes(l, layer, head), random);
	fill(page + skvq_layout_k_params(l, layer, head), (size_t)ll->k.n_rows * SKVQ_PAGE_TOKENS,
	     PARAMS, random);
	fill(page + skvq_layout_v_params(l, layer, head), (size_t)ll->v.n_rows * SKVQ_PAGE_TOKENS,
	     PARAMS, random);
	if (ll->k.nested)
		fill(page + skvq_layout_k_refine(l, layer, head), ll->k.head_bytes, ANY, random);
}

void made_up_fill(const struct skvq_layout *l, uint32_t position, uint64_t seed, void *page)
{
	uint64_t random = seed ? seed : 1;

	for (uint32_t layer = 0; layer < l->geo.n_layer; layer++)
		for (uint32_t head = 0; head < l->geo.n_kv_heads; head++)
			fill_head(l, layer, head, page, &random);
	if (position == 0 && l->sidecar_bytes)
		fill((uint8_t *)page + l->base_bytes + l->refine_bytes,
		     (size_t)l->geo.n_layer * l->layer_sidecar_bytes, ANY, &random);
}

int made_up_model_init(struct made_up_model *m, const struct skvq_geometry *geo,
		       const char *profile, const char *numerics, const uint8_t digest[32])
{
	struct skvq_profile parsed;
	int r = skvq_profile_parse(profile, &parsed);

	if (r >= 0)
		r = skvq_layout_init(geo, &parsed, NULL, &m->layout);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < geo->n_layer; i++) {
		m->bits[i][0] = m->layout.layers[i].k.bits;
		m->bits[i][1] = m->layout.layers[i].v.bits;
	}
	memcpy(m->digest, digest, sizeof(m->digest));
	m->identity = (struct skvq_client_identity){
	    .weights_digest = m->digest,
	    .tokenizer_digest = m->digest,
	    .engine_numerics = numerics,
	    .model_name = "made-up",
	    .n_layer = geo->n_layer,
	    .n_q_heads = geo->n_kv_heads,
	    .n_kv_heads = geo->n_kv_heads,
	    .head_dim_k = geo->head_dim_k,
	    .head_dim_v = geo->head_dim_v,
	    .rope_dim = geo->head_dim_k,
	    .profile = profile,
	    .window = 128,
	    .sinks = geo->n_sinks,
	    .bit_table = &m->bits[0][0],
	};
	return 0;
}

static uint64_t differ(const void *a, const void *b, size_t bytes)
{
	const uint8_t *x = a, *y = b;
	uint64_t n = 0;

	if (!memcmp(a, b, bytes))
		return 0;
	for (size_t i = 0; i < bytes; i++)
		n += x[i] != y[i];
	return n ? n : 1; /* it was wrong when memcmp looked */
}

/* What the daemon fills in: identity and parent are known; a digest is there, and the checksums are
 * its own business, since every byte they cover is compared. */
static uint64_t header_wrong(const skvq_page_header *have, skvq_page_header *want,
			     const uint8_t *identity, const uint8_t *parent)
{
	static const uint8_t none[32];

	memcpy(want->identity, identity, sizeof(want->identity));
	if (parent)
		memcpy(want->parent, parent + offsetof(skvq_page_header, digest),
		       sizeof(want->parent));
	memcpy(want->digest, have->digest, sizeof(want->digest));
	want->crc_header = have->crc_header;
	want->crc_base = have->crc_base;
	want->crc_refine = have->crc_refine;
	want->crc_sidecar = have->crc_sidecar;
	return differ(have, want, sizeof(*have)) + !memcmp(have->digest, none, sizeof(none));
}

uint64_t made_up_wrong(const struct skvq_layout *l, const void *want, const uint8_t *page,
		       bool base_only, const uint8_t *identity, const uint8_t *parent)
{
	const uint8_t *w = want;
	skvq_page_header have, head;
	size_t bytes, at = l->base_bytes;

	memcpy(&have, page, sizeof(have));
	memcpy(&head, want, sizeof(head));
	bytes = l->base_bytes + (size_t)l->refine_bytes + head.sidecar_bytes;
	/* A refinement that we do not hold may go while we look. */
	if (base_only)
		at += l->refine_bytes;
	return header_wrong(&have, &head, identity, parent) +
	       differ(page + sizeof(have), w + sizeof(have), l->base_bytes - sizeof(have)) +
	       differ(page + at, w + at, bytes - at);
}
