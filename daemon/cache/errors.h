/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/errors.h - what the pages of a namespace say that their codes lost, by layer, for K and V:
 * sums and a histogram of every page copied in since the namespace was made. Pages that go stay
 * counted. K of safe pages does not count: it has other bits than the layer. Loop thread.
 */
#ifndef SKVQD_CACHE_ERRORS_H
#define SKVQD_CACHE_ERRORS_H

#include <stdint.h>

#include <skvq/error_stats.h>
#include <skvq/layout.h>

/* K or V of one layer; about 150 bytes, so at most 77 KiB a namespace. */
struct layer_errors {
	uint64_t pages; /* that say something */
	double sum;     /* of relative squared errors */
	float max;
	uint64_t histogram[SKVQ_ERROR_BUCKETS];
};

/* errors: [n_layer][2], K and V. page: a checked one of this layout, which may be that of safe
 * pages. */
void errors_count(struct layer_errors *errors, const struct skvq_layout *layout,
		  const uint8_t *page);

#endif /* SKVQD_CACHE_ERRORS_H */
