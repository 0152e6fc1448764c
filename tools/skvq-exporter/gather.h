/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gather.h - what a daemon says of itself, all at one time. One connection is kept; one thread.
 */
#ifndef SKVQ_EXPORTER_GATHER_H
#define SKVQ_EXPORTER_GATHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <skvq/client.h>

/* Namespaces that are shown one by one, the largest; the others are summed. And those of which
 * layers are. So the number of series is bounded, whatever engines do. */
#define GATHER_NAMESPACES   32u
#define GATHER_LAYERS_OF    4u
#define GATHER_TIMEOUT_MS   2000u

struct gathered_ns {
	struct skvq_client_ns_info info;
	struct skvq_client_error_info *errors; /* K, then V of each layer; NULL: not asked for */
	size_t n_errors;
};

struct gathered {
	bool up;
	char why[SKVQ_CLIENT_WHY_BYTES]; /* if not */
	double seconds;                  /* it took to ask */
	struct skvq_client_status *status;
	struct gathered_ns ns[GATHER_NAMESPACES];
	size_t n_ns;
	struct skvq_client_ns_info others; /* sums of numbers alone */
	size_t n_others;
	uint64_t pin_age_ms; /* of the oldest connection that holds pins */
	size_t pin_holders;
};

struct gatherer {
	const char *socket;
	struct skvq_client *client; /* NULL: none now */
};

/* Asks, connecting again if need be. Waits for GATHER_TIMEOUT_MS with every answer, and for as many
 * as there are namespaces. Never fails: what could not be had is not `up`. */
void gather(struct gatherer *gatherer, struct gathered *ret);
void gathered_fini(struct gathered *gathered);
void gatherer_fini(struct gatherer *gatherer);

#endif /* SKVQ_EXPORTER_GATHER_H */
