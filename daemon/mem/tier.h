/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/tier.h - what stands below memory: pages by digest, asynchronously, and never surely.
 *
 * A tier may forget any page at any time and refuse any page; what it gives is exactly what was
 * put. It knows neither the cache nor what is in a page. The store on disk (spill/store.h) is one;
 * another process or machine could be one. Every call belongs to one thread, and so does every
 * callback, which runs out of the tier's own pump and may call anything here but that pump.
 */
#ifndef SKVQD_MEM_TIER_H
#define SKVQD_MEM_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TIER_DIGEST_BYTES 32u

enum tier_section { TIER_BASE, TIER_REFINEMENT, TIER_SIDECAR, TIER_SECTIONS };

struct tier_key {
	uint8_t ns[TIER_DIGEST_BYTES];   /* of tenant and identity: who may share, and what fits */
	uint8_t page[TIER_DIGEST_BYTES]; /* the page's own digest */
};

struct tier_page {
	struct tier_key key;
	uint8_t parent[TIER_DIGEST_BYTES];
	uint64_t position;
	uint32_t flags; /* the owner's; given back as they were */
	struct {
		const void *data;
		uint32_t bytes; /* 0: no such section; the base is never empty */
	} section[TIER_SECTIONS];
};

/* status 0 or a negative code. */
typedef void (*tier_put_fn)(void *ctx, int status);
/* status 0: page is valid until the callback returns. Else it is a miss, and page is NULL. */
typedef void (*tier_get_fn)(void *ctx, int status, const struct tier_page *page);

#define TIER_PUT_HOT 1u /* known to be wanted again: no second touch is waited for */

struct tier;
struct tier_ops {
	/* 1: the sections were copied and fn will be called once. 0: it is there already. Negative:
	 * refused; nothing was kept and fn will not be called. */
	int (*put)(struct tier *tier, const struct tier_page *page, uint32_t flags, tier_put_fn fn,
		   void *ctx);
	/* 1: fn will be called once, at the latest when timeout_ms have passed. 0: not here.
	 * Negative: refused, which is a miss too. */
	int (*get)(struct tier *tier, const struct tier_key *key, uint32_t timeout_ms,
		   tier_get_fn fn, void *ctx);
	/* A guess: true may still end in a miss. */
	bool (*contains)(struct tier *tier, const struct tier_key *key);
	/* Not found from here on; it may be again after a restart. */
	void (*drop)(struct tier *tier, const struct tier_key *key);
};

enum tier_gone {
	TIER_GONE_EVICTED, /* to make room */
	TIER_GONE_DROPPED, /* the owner had it dropped */
	TIER_GONE_BAD,     /* its bytes were not what had been put */
};

struct tier {
	const struct tier_ops *ops;
	/* The owner's; NULL: not. A page is not found from here on. Must not call the tier. */
	void (*gone)(void *ctx, const struct tier_key *key, uint64_t position, enum tier_gone why);
	void *gone_ctx;
	uint64_t page_bytes_max; /* all sections, each rounded up to 4 KiB */
	bool touched;            /* something was asked of it since its last pump */
};

#endif /* SKVQD_MEM_TIER_H */
