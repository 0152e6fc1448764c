/* SPDX-License-Identifier: Apache-2.0 */
/*
 * support/cache_rig.h - a cache with a real loop and real workers, one namespace open, and a
 * staging memfd to publish from. One thread; answers are waited for by stepping the loop.
 */
#ifndef SKVQ_TEST_CACHE_RIG_H
#define SKVQ_TEST_CACHE_RIG_H

#include "cache/cache.h"
#include "spill/store.h"

#define RIG_STAGING_PAGES 64u
#define RIG_THREADS       2u

struct rig {
	struct loop loop;
	struct worker worker;
	struct stats stats;
	struct cache cache;
	struct tenant *tenant; /* "default" */
	struct ns *ns;
	struct skvq_layout layout;
	struct pins pins; /* of the one client most tests need */
	struct store *store; /* the test's, if it has put one under the cache; stepped with the loop */
	int staging;
	uint8_t *staging_map; /* slots of layout.slot_bytes */
};

/* A publish that remembers its answer. */
struct rig_publish {
	struct publish p;
	int answers;
	int error;
	struct why why;
};

#define RIG_MATCH_PAGES 64u

/* A match that remembers its answer. */
struct rig_match {
	struct match m;
	struct page_ref refs[RIG_MATCH_PAGES];
	int answers;
	int error;
	struct why why;
};

/* The cap is pages_max first pages' worth of bytes. hash NULL: the real one. */
void rig_init(struct rig *rig, uint32_t pages_max, uint32_t pins_max, index_hash_fn hash);
/* The same with pages of an elastic profile (page_maker.h). */
void rig_init_elastic(struct rig *rig, uint32_t pages_max, uint32_t pins_max);
/* The same as rig_init with tenants beside "default", which has no limits. */
void rig_init_tenants(struct rig *rig, uint32_t pages_max, uint32_t pins_max,
		      const struct tenant_params *others, uint32_t n);
/* Waits a moment for whatever may happen. */
void rig_step(struct rig *rig);
void rig_fini(struct rig *rig); /* pins of rig->pins are dropped, others must be gone */

/* A checked identity that differs by seed; its layout is that of maker_layout. */
void rig_identity(uint32_t seed, struct identity *ret);

/* Writes a page into staging slot `slot` and fills in the request. parent NULL: a first page. */
void rig_prepare(struct rig *rig, struct rig_publish *rp, struct pins *pins, struct page *parent,
		 uint32_t seed, uint32_t slot);
/* Makes of the page that rig_prepare has written a safe one. */
void rig_make_safe(struct rig *rig, struct rig_publish *rp, uint32_t seed);
/* Steps the loop until the publish has its answer; returns its error. */
int rig_wait(struct rig *rig, struct rig_publish *rp);
/* prepare, publish and wait; the page is pinned once in pins. NULL with the error in *ret_error. */
struct page *rig_publish(struct rig *rig, struct pins *pins, struct page *parent, uint32_t seed,
			 int *ret_error);
/* A chain of n pages, pinned once each. */
void rig_chain(struct rig *rig, struct pins *pins, uint32_t seed, uint32_t n, struct page **ret);
/* Tokens of such a chain. */
void rig_tokens(uint32_t seed, uint32_t n_pages, int32_t *ret);

/* Keeps the workers busy until they are let go: what is submitted meanwhile waits. */
struct rig_gate {
	struct job jobs[RIG_THREADS];
	uint32_t n_here; /* threads inside */
	bool open;
};
void rig_gate_shut(struct rig *rig, struct rig_gate *gate); /* returns when all are inside */
void rig_gate_open(struct rig *rig, struct rig_gate *gate); /* returns when all have left */

/* Asks for a chain of n_pages; waits for the answer if there is one to wait for. 0 or negative. */
int rig_match(struct rig *rig, struct rig_match *rm, struct pins *pins, uint32_t seed,
	      uint32_t n_pages, uint32_t wait_ms);

#endif /* SKVQ_TEST_CACHE_RIG_H */
