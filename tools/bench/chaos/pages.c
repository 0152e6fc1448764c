/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chaos.h"
#include "made_up.h"

/* Branches of the trodden ways, and of each client's own. */
#define BRANCHES     2u
#define OWN_BRANCHES 64u

struct made_up_model models[MODELS];

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

static int model_init(struct made_up_model *m, const struct skvq_geometry *geo, const char *profile)
{
	uint8_t digest[32];

	memset(digest, profile[0], sizeof(digest));
	return made_up_model_init(m, geo, profile, "chaos", digest);
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

uint64_t path_wrong(const struct path *p, uint32_t i, bool base_only, const uint8_t *identity,
		    const uint8_t *parent, const uint8_t *page)
{
	const struct skvq_layout *l = &models[p->model].layout;
	static _Alignas(64) uint8_t buf[64 << 10];

	if (skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS) > sizeof(buf))
		abort();
	path_page(p, i, buf);
	return made_up_wrong(l, buf, page, base_only, identity, parent);
}
