/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tenants.h - from the sections of the config to the tenants of the cache and of control. Before
 * anything is served.
 */
#ifndef SKVQD_TENANTS_H
#define SKVQD_TENANTS_H

#include "cache/cache.h"
#include "config.h"
#include "control/control.h"

struct tenant_salts {
	struct {
		uint8_t data[TENANT_SALT_MAX];
		uint32_t bytes; /* 0: none */
	} of[TENANTS_MAX];
};

/* Reads every salt_file, before the sandbox closes the way to it. -SKVQ_EPERM, -SKVQ_EINVAL,
 * -SKVQ_EIO. */
int tenants_read_salts(const struct config *config, struct tenant_salts *ret, struct why *why);
/* Gives the cache its tenants, in the order of the config. -SKVQ_ENOMEM. */
int tenants_add(struct cache *cache, const struct config *config, const struct tenant_salts *salts,
		struct why *why);
/* Gives those that are there the bounds that the config has now. */
void tenants_limit(struct cache *cache, const struct config *config);
/* Fills in what control wants to know of them; borrows from the config. */
void tenants_describe(const struct config *config, struct control_config *control);

#endif /* SKVQD_TENANTS_H */
