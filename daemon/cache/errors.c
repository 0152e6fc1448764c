/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/errors.h"

#include <string.h>

static void count(struct layer_errors *e, uint16_t half)
{
	float error = skvq_error_value(half);

	if (half == 0)
		return;
	e->pages++;
	e->sum += (double)error;
	e->max = error > e->max ? error : e->max;
	e->histogram[skvq_error_bucket(error)]++;
}

void errors_count(struct layer_errors *errors, const struct skvq_layout *layout,
		  const uint8_t *page)
{
	const uint8_t *at = page + layout->layers_offset;

	for (uint32_t i = 0; i < layout->geo.n_layer; i++, at += sizeof(skvq_page_layer)) {
		skvq_page_layer layer;

		memcpy(&layer, at, sizeof(layer));
		if (!layout->safe)
			count(&errors[2 * i], layer.k_error);
		count(&errors[2 * i + 1], layer.v_error);
	}
}
