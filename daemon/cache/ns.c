/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/ns.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/checked.h"

/* As the plugin finds it: by the identity alone. */
static bool has_safe(const struct ns_params *params, struct skvq_layout *ret)
{
	struct skvq_profile profile;

	return skvq_profile_parse(params->identity->profile, &profile) == 0 &&
	       skvq_profile_has_safe(&profile, params->identity->has_calibration) &&
	       skvq_layout_init_safe(params->layout, &profile, ret) == 0;
}

int ns_new(const struct ns_params *params, struct ns **ret, struct why *why)
{
	const struct skvq_layout *layout = params->layout;
	uint64_t ram_max = params->ram_max, first = skvq_layout_page_bytes(layout, 0);
	uint64_t slots, arena_bytes;
	char name[64];
	struct ns *ns;
	int err;

	if (first > ram_max)
		return why_fail(
		    why, SKVQ_ENOSPC,
		    "one first page of this model takes %llu bytes, the RAM cap is %llu",
		    (unsigned long long)first, (unsigned long long)ram_max);
	/* As many slots as pages can fit under the cap, so that slots never are the bound. */
	slots = ram_max / layout->base_bytes + 1;
	if (slots > NS_SLOTS_MAX)
		slots = NS_SLOTS_MAX;
	if (!checked_mul(slots, layout->slot_bytes, &arena_bytes))
		return why_fail(why, SKVQ_ENOSPC, "an arena of %llu slots of %llu bytes overflows",
				(unsigned long long)slots, (unsigned long long)layout->slot_bytes);
	ns = calloc(1, sizeof(*ns));
	if (!ns)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a namespace");
	ns->arena.fd = ns->arena.fd_ro = -1;
	ns->tenant = params->tenant;
	(void)snprintf(ns->model_name, sizeof(ns->model_name), "%s", params->model_name);
	ns->identity = *params->identity;
	ns->layout = *layout;
	ns->has_safe = has_safe(params, &ns->safe);
	ns->canon_bytes = identity_encode(&ns->identity, ns->canon);
	err = identity_digest(ns->canon, ns->canon_bytes, ns->digest);
	if (!err)
		err = namespace_digest(ns->digest, ns->tenant->name, ns->tenant->salt,
				       ns->tenant->limits.salt_bytes, ns->tier_name);
	if (err < 0) {
		(void)why_fail(why, -err, "no memory for the identity's digest");
		goto fail;
	}
	ns->errors = calloc((size_t)2 * layout->geo.n_layer, sizeof(*ns->errors));
	if (!ns->errors) {
		err = why_fail(why, SKVQ_ENOMEM, "no memory for the errors of %u layers",
			       layout->geo.n_layer);
		goto fail;
	}
	err = page_table_init(&ns->table, (uint32_t)slots);
	if (!err)
		err = index_init(&ns->index, (uint32_t)slots, params->hash, params->collisions);
	if (err < 0) {
		(void)why_fail_errno(why, -err, "a page table of %llu slots",
				     (unsigned long long)slots);
		goto fail;
	}
	(void)snprintf(name, sizeof(name), "skvqd-%02x%02x%02x%02x", ns->tier_name[0],
		       ns->tier_name[1], ns->tier_name[2], ns->tier_name[3]);
	err = params->arena_fd ? arena_adopt(&ns->arena, params->arena_fd, arena_bytes, why)
			       : arena_init(&ns->arena, name, arena_bytes, why);
	if (err < 0)
		goto fail;
	*ret = ns;
	return 0;
fail:
	ns_free(ns);
	return err;
}

void ns_free(struct ns *ns)
{
	if (!ns)
		return;
	assert(!ns->openers && !ns->fills && !ns->pins);
	arena_fini(&ns->arena);
	index_fini(&ns->index);
	page_table_fini(&ns->table);
	free(ns->errors);
	free(ns);
}

bool ns_is(const struct ns *ns, const uint8_t *canon, uint32_t canon_bytes)
{
	return ns->canon_bytes == canon_bytes && !memcmp(ns->canon, canon, canon_bytes);
}
