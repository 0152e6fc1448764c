/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/kernels.h>

/* __builtin_cpu_supports asks cpuid and, for AVX and above, whether the operating system saves the
 * registers (xgetbv). */
uint32_t skvq_cpu_tiers(void)
{
	uint32_t tiers = SKVQ_TIER_REF;

#if defined(__x86_64__) || defined(__i386__)
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2"))
		tiers |= SKVQ_TIER_AVX2;
#endif
	return tiers;
}
