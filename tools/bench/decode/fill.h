/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plugin in front of the plugin: it records the keys and values of a sequence's first tokens, and
 * lets later sequences start with that block repeated, as if a daemon had matched them.
 */
#ifndef BENCH_DECODE_FILL_H
#define BENCH_DECODE_FILL_H

#include <stdint.h>

#include <skvq/plugin.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* plugin: path of the real one, before the first use. block: tokens to record from the next
 * sequence on; 0 stops recording and starts filling: a sequence opened with n prompt tokens begins
 * with n - 1 of them. */
typedef int32_t (*bench_fill_fn)(const char *plugin, uint32_t block);
SKVQ_EXPORT int32_t bench_fill(const char *plugin, uint32_t block);

#if defined(__cplusplus)
}
#endif
#endif
