/* SPDX-License-Identifier: Apache-2.0 */
/* bench-cold: what compression does to stored pages, and what it costs. */
#ifndef SKVQ_BENCH_COLD_H
#define SKVQ_BENCH_COLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/tier.h"

#define PAGES_MAX 4096u

struct pages {
	uint8_t *bytes; /* of the file */
	uint32_t n;
	uint32_t longest; /* bytes of a page, all sections */
	uint64_t total;
	struct page {
		const uint8_t *at;
		uint32_t bytes, section[TIER_SECTIONS];
	} page[PAGES_MAX];
};

/* --- coders.c */

struct coder {
	const char *name; /* as in the keys of --json */
	const char *text;
	uint32_t (*pack)(const struct page *page, uint8_t *to, size_t room); /* bytes; 0: failed */
	bool (*unpack)(const struct page *page, const uint8_t *from, uint32_t bytes, uint8_t *to);
};

/* Ends with one without a name. NULL: no memory. */
const struct coder *coders_open(uint32_t longest);
void coders_close(void);

/* --- regroup.c: codes of a page in other orders */

enum order {
	ORDER_CODES,    /* one code a byte, token after token */
	ORDER_CHANNELS, /* one code a byte, channel after channel */
	ORDER_PACKED,   /* channel after channel, as many codes a byte as go in */
};
#define STREAMS 3 /* codes of K, of V, all other bytes */

/* False: no page, or bits that this knows no order of. ret has room for 8 times the page; ret_bytes
 * are the lengths of the streams, one behind the other. */
bool regroup(const struct page *page, enum order order, uint8_t *ret, uint32_t ret_bytes[STREAMS]);
/* And back; to holds the page's header and layer table already. */
void regroup_back(const struct page *page, enum order order, const uint8_t *from, uint8_t *to);

/* --- store.c: whole stores */

struct stored {
	double put_mb_s, get_mb_s;         /* of pages' bytes, wall time */
	double put_cpu_s_gb, get_cpu_s_gb; /* of all threads */
	double one_ms;                     /* a get when nothing else is under way */
	double ratio;                      /* bytes on disk to bytes of pages */
};

/* -1 after a message. */
int store_run(const struct pages *pages, const char *folder, uint64_t bytes, uint32_t threads,
	      bool compression, struct stored *ret);

double now_s(void);
double cpu_s(void); /* of the process */

#endif /* SKVQ_BENCH_COLD_H */
