/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/tenant.h - who may share pages: limits, books and queues of one tenant.
 *
 * A tenant has its own order of eviction, its own tier below and its own counters, so that nothing
 * it does moves another's. What is shared is room: cache/evict.c says whose page goes. A limit of 0
 * is none beside the cache's own. Loop thread only.
 */
#ifndef SKVQD_CACHE_TENANT_H
#define SKVQD_CACHE_TENANT_H

#include <stdint.h>

#include "base/stats.h"
#include "base/worker.h"
#include "cache/pins.h"
#include "cache/restores.h"
#include "cache/shed.h"
#include "cache/spill.h"
#include "mem/policy.h"
#include "mem/tier.h"

#define TENANTS_MAX     64u
#define TENANT_NAME_MAX 63u
#define TENANT_SALT_MIN 16u
#define TENANT_SALT_MAX 64u

struct tenant_params {
	const char *name;
	const uint8_t *salt; /* [salt_bytes]; of the namespace digest */
	uint32_t salt_bytes;
	uint64_t ram_min; /* bytes that others cannot take */
	uint64_t ram_max;
	uint64_t pins_max; /* of all its connections */
	uint32_t namespaces_max;
	uint32_t fills_max;    /* pages being copied in at once */
	uint32_t restores_max; /* pages on their way back at once */
};

struct tenant {
	uint32_t index; /* in cache->tenants */
	char name[TENANT_NAME_MAX + 1];
	uint8_t salt[TENANT_SALT_MAX];
	struct tenant_params limits; /* name and salt are the tenant's own copies */
	struct tier *tier;           /* NULL: memory is all there is */
	struct policy policy;        /* which of its pages goes */
	struct shed_queue shed_queue;
	struct spill_queue spill_queue;
	struct spill_rest spill_rest; /* when the daemon ends */
	struct pins_group pins_group;
	struct stats stats; /* its part of the cache's */
	uint64_t last_ns;   /* namespaces it ever made */
	uint32_t n_namespaces, n_fills;
	struct lane fill_lane;   /* copies: what comes in waits for no other tenant's */
	struct lane verify_lane; /* checks of what was read back; restores_max bounds them */
	struct lane check_lane;  /* checks that its clients ask for */
	struct restores restores;
	uint64_t bytes;          /* sum of its ns->bytes */
	uint64_t bytes_stored;   /* of these, of pages that are below too */
	uint64_t bytes_spilling; /* on their way down */
	uint64_t held;           /* of pages that cannot go: see struct page, held */
	uint64_t used;           /* of its arenas as the cap counts them, when last asked */
	uint64_t ram_goal;       /* what limits.ram_max is on its way down to; 0: it is there */
	uint64_t pages;
	uint64_t pins;
};

/* NULL: no memory. ghosts_max as of policy_init. */
struct tenant *tenant_new(const struct tenant_params *params, uint32_t ghosts_max);
void tenant_free(struct tenant *tenant); /* no page lives */

#endif /* SKVQD_CACHE_TENANT_H */
