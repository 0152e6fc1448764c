/* SPDX-License-Identifier: Apache-2.0 */
#include "support/page_maker.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void layout_of(const char *name, struct skvq_layout *ret)
{
	struct skvq_geometry geo = {.n_layer = MAKER_LAYERS,
				    .n_kv_heads = 1,
				    .head_dim_k = MAKER_DIM,
				    .head_dim_v = MAKER_DIM,
				    .n_sinks = MAKER_SINKS};
	struct skvq_profile profile;

	if (skvq_profile_parse(name, &profile) < 0 ||
	    skvq_layout_init(&geo, &profile, NULL, ret) < 0)
		abort();
}

void maker_layout(struct skvq_layout *ret)
{
	layout_of(MAKER_PROFILE, ret);
}

void maker_layout_elastic(struct skvq_layout *ret)
{
	layout_of(MAKER_ELASTIC, ret);
}

void maker_tokens(uint32_t seed, uint32_t page, int32_t ret[SKVQ_PAGE_TOKENS])
{
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		ret[i] = (int32_t)((seed * 7919u + page * 80u + i) % 150000u);
}

void maker_page(const struct skvq_layout *l, uint32_t position, const int32_t *tokens,
		uint32_t seed, void *at)
{
	uint8_t *page = at;

	memset(page, 0, skvq_layout_page_bytes(l, position));
	skvq_page_init(l, position, page);
	memcpy(page + l->tokens_offset, tokens, SKVQ_PAGE_TOKENS * sizeof(*tokens));
	memset(page + skvq_layout_k_codes(l, 0, 0), (int)(seed & 0xff), l->layers[0].k.head_bytes);
	if (l->layers[0].k.nested)
		memset(page + skvq_layout_k_refine(l, 0, 0), (int)(seed & 0xff) ^ 0x5a,
		       l->layers[0].k.head_bytes);
}

int maker_memfd(uint64_t bytes, int seals)
{
	int fd = memfd_create("staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, seals) < 0)
		abort();
	return fd;
}
