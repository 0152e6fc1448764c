/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chaos.h"
#include "made_up.h"

/* Branches of the trodden ways, and of each client's own. */
#define BRANCHES     2u
#define OWN_BRANCHES 64u

struct model models[MODELS];

uint64_t now_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

uint64_t mix64(uint64_t z)
{
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
uint64_t draw(uint64_t *state)
{
	return mix64(*state += UINT64_C(0x9e3779b97f4a7c15));
}

uint32_t draw_below(uint64_t *state, uint32_t n)
{
	return (uint32_t)(((draw(state) >> 32) * n) >> 32);
}

static int model_init(struct model *m, const struct skvq_geometry *geo, const char *profile_name)
{
	struct skvq_profile profile;
	int r = skvq_profile_parse(profile_name, &profile);

	if (r >= 0)
		r = skvq_layout_init(geo, &profile, NULL, &m->layout);
	if (r < 0)
		return r;
	m->profile = profile_name;
	for (uint32_t i = 0; i < geo->n_layer; i++) {
		m->bits[i][0] = m->layout.layers[i].k.bits;
		m->bits[i][1] = m->layout.layers[i].v.bits;
	}
	memset(m->digest, profile_name[0], sizeof(m->digest));
	m->identity = (struct skvq_client_identity){
	    .weights_digest = m->digest,
	    .tokenizer_digest = m->digest,
	    .engine_numerics = "chaos",
	    .model_name = "made-up",
	    .n_layer = geo->n_layer,
	    .n_q_heads = geo->n_kv_heads,
	    .n_kv_heads = geo->n_kv_heads,
	    .head_dim_k = geo->head_dim_k,
	    .head_dim_v = geo->head_dim_v,
	    .rope_dim = geo->head_dim_k,
	    .profile = profile_name,
	    .window = 128,
	    .sinks = geo->n_sinks,
	    .bit_table = &m->bits[0][0],
	};
	return 0;
}

int models_init(void)
{
	/* The smallest page there is, with sinks; and an elastic one, with a refinement. */
	static const struct skvq_geometry small = {2, 1, 16, 16, 5}, elastic = {2, 2, 64, 64, 3};
	int r = model_init(&models[0], &small, "k4v4");

	return r < 0 ? r : model_init(&models[1], &elastic, "e2.1");
}

/* Siblings differ in their last token or in their first. */
static void page_tokens(uint32_t branch, int32_t *to)
{
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		to[i] = (int32_t)(31 * i);
	to[branch & 1 ? 0 : SKVQ_PAGE_TOKENS - 1] += (int32_t)branch + 1;
}

void path_draw(struct path *p, uint32_t client, uint64_t *random)
{
	uint32_t own_from = DEPTH_MAX;

	p->model = draw_below(random, 4) == 0;
	p->n = 1 + draw_below(random, DEPTH_MAX);
	if (draw_below(random, 6) == 0)
		own_from = draw_below(random, p->n);
	for (uint32_t i = 0; i < p->n; i++) {
		uint32_t branch = draw_below(random, 10) < 7 ? 0 : 1 + draw_below(random, BRANCHES);
		uint64_t before = i ? p->seed[i - 1] : p->model + 1;

		if (i >= own_from)
			branch = 16 + client * OWN_BRANCHES + draw_below(random, OWN_BRANCHES);
		page_tokens(branch, p->tokens + (size_t)i * SKVQ_PAGE_TOKENS);
		p->seed[i] = mix64(before * UINT64_C(0x9e3779b97f4a7c15) + branch + 1);
	}
}

void path_page(const struct path *p, uint32_t i, void *at)
{
	const struct skvq_layout *l = &models[p->model].layout;
	uint32_t position = i * SKVQ_PAGE_TOKENS;

	memset(at, 0, skvq_layout_page_bytes(l, position));
	skvq_page_init(l, position, at);
	memcpy((uint8_t *)at + l->tokens_offset, p->tokens + position,
	       SKVQ_PAGE_TOKENS * sizeof(int32_t));
	made_up_fill(l, position, p->seed[i], at);
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

uint64_t path_wrong(const struct path *p, uint32_t i, bool base_only, const uint8_t *identity,
		    const uint8_t *parent, const uint8_t *page)
{
	const struct skvq_layout *l = &models[p->model].layout;
	static _Alignas(64) uint8_t buf[64 << 10];
	size_t bytes = skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS), at = l->base_bytes;
	skvq_page_header have, want;

	if (bytes > sizeof(buf))
		abort();
	path_page(p, i, buf);
	memcpy(&have, page, sizeof(have));
	memcpy(&want, buf, sizeof(want));
	/* A refinement that we do not hold may go while we look. */
	if (base_only)
		at += l->refine_bytes;
	return header_wrong(&have, &want, identity, parent) +
	       differ(page + sizeof(have), buf + sizeof(have), l->base_bytes - sizeof(have)) +
	       differ(page + at, buf + at, bytes - at);
}
