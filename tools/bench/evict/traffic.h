/* SPDX-License-Identifier: Apache-2.0 */
/*
 * traffic.h - traces that are made up, after what is known of real traffic.
 */
#ifndef SKVQ_BENCH_EVICT_TRAFFIC_H
#define SKVQ_BENCH_EVICT_TRAFFIC_H

#include "trace.h"

/* Traffic made up by name, one of trace_names, the same for the same seed; with answers if each is
 * to be known with its question. 0, or -1: no memory. */
extern const char *const trace_names[];
extern const uint32_t trace_names_n;
int trace_make(const char *name, uint64_t seed, uint32_t requests, bool answers, struct trace *ret);

#endif /* SKVQ_BENCH_EVICT_TRAFFIC_H */
