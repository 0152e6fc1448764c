/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics.h - the Prometheus text format (version 0.0.4) of what was gathered.
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 */
#ifndef SKVQ_EXPORTER_METRICS_H
#define SKVQ_EXPORTER_METRICS_H

#include <stddef.h>

#include "gather.h"

/* Malloc'ed text, its length in *ret_bytes; NULL: no memory. */
char *metrics_text(const struct gathered *gathered, size_t *ret_bytes);

#endif /* SKVQ_EXPORTER_METRICS_H */
