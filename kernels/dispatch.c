/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tier runs. The choice is made once, before it matters, from what the processor can do and
 * what SKVQ_CPU allows; there is no ifunc and no global constructor.
 */
#include <skvq/kernels.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tiers.h"

struct tier {
	const char *name;
	uint32_t mask; /* the tier and all below it */
};

/* From the lowest up, by ISA. A name stays known where its tier is not built: asking for it there
 * is refused, not misunderstood. */
static const struct tier tiers[] = {
    {"ref", SKVQ_TIER_REF},
    {"avx2", SKVQ_TIER_REF | SKVQ_TIER_AVX2},
    {"avx512", SKVQ_TIER_REF | SKVQ_TIER_AVX2 | SKVQ_TIER_AVX512},
    {"neon", SKVQ_TIER_REF | SKVQ_TIER_NEON},
};

uint32_t skvq_tiers_by_name(const char *name)
{
	for (size_t i = 0; name && i < sizeof(tiers) / sizeof(tiers[0]); i++)
		if (strcmp(tiers[i].name, name) == 0)
			return tiers[i].mask;
	return 0;
}

void skvq_kernels_fill(struct skvq_kernels *table, uint32_t mask)
{
	skvq_ref_fill(table);
#ifdef SKVQ_HAVE_X86
	if (mask & SKVQ_TIER_AVX2)
		skvq_avx2_fill(table);
	if (mask & SKVQ_TIER_AVX512)
		skvq_avx512_fill(table);
#elif defined(SKVQ_HAVE_ARM)
	if (mask & SKVQ_TIER_NEON)
		skvq_neon_fill(table);
#else
	(void)mask;
#endif
}

static struct skvq_kernels chosen;
static bool chosen_ok;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void)
{
	const char *name = getenv("SKVQ_CPU");
	uint32_t cpu = skvq_cpu_tiers(), mask = cpu;

	if (name && *name) {
		mask = skvq_tiers_by_name(name);
		if (mask == 0 || (mask & ~cpu) != 0)
			return;
	}
	skvq_kernels_fill(&chosen, mask);
	chosen_ok = true;
}

const struct skvq_kernels *skvq_kernels_get(void)
{
	(void)pthread_once(&once, choose);
	return chosen_ok ? &chosen : NULL;
}
