/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/restore.h - a page on its way back from the tier below, and how long such things take.
 *
 * While its read is out a page is PAGE_RESTORING and in the index, so that everybody who wants it
 * joins the one read. Bytes are copied into the slot on the loop's thread, checked by a worker, and
 * become readable only then. Whatever goes wrong takes the page out of the index: it is a miss.
 * Loop thread only.
 */
#ifndef SKVQD_CACHE_RESTORE_H
#define SKVQD_CACHE_RESTORE_H

#include "base/why.h"
#include "cache/ns.h"
#include "cache/restores.h"
#include "mem/tier.h"

struct cache;

/* Where the page with this digest is in the tier. */
void restore_key(const struct ns *ns, const uint8_t digest[IDENTITY_DIGEST],
		 struct tier_key *ret_key);
/* Takes a slot, makes room and asks the tier. parent (NULL for a first page) is held by the caller.
 * cache_matches_wake is called when it is there or known not to come, at the latest after
 * timeout_ms and the time a check takes. Errors, and nothing was begun: -SKVQ_ENOSPC, -SKVQ_ENOMEM,
 * -SKVQ_EBUSY, -SKVQ_ESTALE (the tier does not have it). */
int restore_begin(struct cache *cache, struct ns *ns, struct page *parent,
		  const int32_t tokens[SKVQ_PAGE_TOKENS], const uint8_t digest[IDENTITY_DIGEST],
		  uint32_t timeout_ms, struct page **ret_page, struct why *why);

#endif /* SKVQD_CACHE_RESTORE_H */
