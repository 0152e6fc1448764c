/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill_rig.h - pages whose every byte follows from their number, and a store to put them in.
 */
#ifndef SKVQ_TESTS_SPILL_RIG_H
#define SKVQ_TESTS_SPILL_RIG_H

#include "spill/store.h"

#define RIG_PAGE_BYTES (32u << 10) /* the longest page made */

void rig_key(uint64_t id, struct tier_key *ret_key);
/* Sections lie in buf, of RIG_PAGE_BYTES. */
void rig_page(uint64_t id, void *buf, struct tier_page *ret_page);
/* Bytes that differ from what rig_page makes; lengths and fields count as one each. */
uint64_t rig_wrong(uint64_t id, const struct tier_page *page);

/* Small segments, so that everything happens: 128 KiB, records to 32 KiB, 6 of them. */
void rig_options(struct store_options *ret_options);
/* Asserts that it opens. */
struct store *rig_open(const struct store_options *options, struct spill_io *io);

/* Until the callback has come. Codes as of the tier; put: 0 is stored or there. */
int rig_put(struct store *store, uint64_t id, uint32_t flags);
/* 1: given, byte for byte. 0: not there. Negative: a miss with its reason. Wrong bytes assert. */
int rig_get(struct store *store, uint64_t id);
int rig_flush(struct store *store);
/* Steps until nothing is out and nothing left to do, for at most ms. */
void rig_settle(struct store *store, uint32_t ms);
bool rig_contains(struct store *store, uint64_t id);

#endif /* SKVQ_TESTS_SPILL_RIG_H */
