/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk.h - a tenant's store in the server: opened from the config, pumped by the loop, filled at the end.
 */
#ifndef SKVQD_DISK_H
#define SKVQD_DISK_H

#include "base/loop.h"
#include "cache/cache.h"
#include "config.h"
#include "spill/store.h"

struct disk {
	struct store *store; /* NULL: memory only */
	struct loop *loop;
	struct cache *cache;
	struct tenant *tenant;
	struct loop_watch event_watch, timer_watch;
	struct loop_hook hook;
	bool due;          /* the store or its timer woke us */
	uint64_t armed_ms; /* when the timer is due; 0: it is not set */
	uint64_t shutdown_ms;
};

/* Opens the store of the cache's i-th tenant, if the config names a folder, finds what is there, and
 * puts it under the tenant. With sections for tenants each has a folder of its own in that folder. A
 * zeroed disk. -SKVQ_EINVAL, -SKVQ_EINUSE, -SKVQ_EPERM, -SKVQ_EIO, -SKVQ_ENOMEM, -SKVQ_ESYS. */
int disk_open(struct disk *disk, const struct config *config, uint32_t i, struct loop *loop,
	      struct cache *cache, struct why *why);
/* Says in the log what the stores take together, and what of it the limits of the process do not
 * give. */
void disks_tell(const struct config *config);
/* Names in the log, a bounded number, the folders in [store] folder that are of no tenant any more.
 * Returns how many. */
uint32_t disks_left(const struct config *config);
/* After cache_close, with clients gone and the workers still there: writes what is not on disk yet,
 * until shutdown_ms have passed or *hurry, and closes all. Each goes at its own pace: one that is
 * slow, full or broken takes nothing of the time of the others. Disks without a store are fine. */
void disks_close(struct disk *disks, uint32_t n, const bool *hurry);

#endif /* SKVQD_DISK_H */
