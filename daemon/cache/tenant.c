/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/tenant.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/scrub.h"

struct tenant *tenant_new(const struct tenant_params *params, uint32_t ghosts_max)
{
	struct tenant *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	assert(params->salt_bytes <= TENANT_SALT_MAX);
	(void)snprintf(t->name, sizeof(t->name), "%s", params->name);
	if (params->salt_bytes)
		memcpy(t->salt, params->salt, params->salt_bytes);
	t->limits = *params;
	t->limits.name = t->name;
	t->limits.salt = t->salt;
	t->pins_group.max = params->pins_max ? params->pins_max : UINT64_MAX;
	restores_init(&t->restores);
	lane_init(&t->fill_lane, UINT32_MAX);
	lane_init(&t->verify_lane, UINT32_MAX);
	lane_init(&t->check_lane, CHECKS_MAX);
	policy_init(&t->policy, ghosts_max);
	return t;
}

void tenant_free(struct tenant *tenant)
{
	if (!tenant)
		return;
	assert(!tenant->fill_lane.queued && !tenant->verify_lane.queued);
	assert(tenant->bytes == 0 && tenant->pages == 0 && tenant->bytes_stored == 0);
	policy_fini(&tenant->policy);
	free(tenant->spill_rest.pages);
	free(tenant);
}
