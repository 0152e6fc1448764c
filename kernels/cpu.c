/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/kernels.h>

#include <stdbool.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* A name that gcc 12 and clang 14 do not know. It needs the same registers as AVX. */
static bool f16c(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* __builtin_cpu_supports asks cpuid and, for AVX and above, whether the operating system saves the
 * registers (xgetbv). */
uint32_t skvq_cpu_tiers(void)
{
	uint32_t tiers = SKVQ_TIER_REF;

#if defined(__x86_64__) || defined(__i386__)
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c())
		tiers |= SKVQ_TIER_AVX2;
	if ((tiers & SKVQ_TIER_AVX2) && __builtin_cpu_supports("avx512f") &&
	    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
	    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
	    __builtin_cpu_supports("avx512vbmi"))
		tiers |= SKVQ_TIER_AVX512;
#elif defined(__aarch64__)
	if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
		tiers |= SKVQ_TIER_NEON;
#endif
	return tiers;
}
