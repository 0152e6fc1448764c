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

/* Gives the cache its tenants, in the order of the config. -SKVQ_EPERM, -SKVQ_EINVAL, -SKVQ_EIO: a
 * salt_file; -SKVQ_ENOMEM. */
int tenants_add(struct cache *cache, const struct config *config, struct why *why);
/* Fills in what control wants to know of them; borrows from the config. */
void tenants_describe(const struct config *config, struct control_config *control);

#endif /* SKVQD_TENANTS_H */
