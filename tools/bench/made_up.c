/* SPDX-License-Identifier: Apache-2.0 */
#include "made_up.h"

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
