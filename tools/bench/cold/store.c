/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spill/store.h"

#define DEPTH 16u

struct tally {
	uint64_t good, bad;
	const struct pages *pages;
};

struct asked {
	struct tally *tally;
	uint64_t id;
};

static void on_put(void *ctx, int status)
{
	struct tally *t = ctx;

	*(status ? &t->bad : &t->good) += 1;
}

/* The first page only is compared: this is the time of the store, not of memcmp. */
static void on_get(void *ctx, int status, const struct tier_page *page)
{
	struct asked *a = ctx;
	const struct page *want = &a->tally->pages->page[a->id % a->tally->pages->n];

	if (!status && a->id == 0 &&
	    memcmp(page->section[TIER_BASE].data, want->at, want->section[TIER_BASE]) != 0)
		status = -1;
	*(status ? &a->tally->bad : &a->tally->good) += 1;
}

static void page_of(const struct pages *pages, uint64_t id, struct tier_page *ret)
{
	const struct page *p = &pages->page[id % pages->n];
	const uint8_t *at = p->at;

	*ret = (struct tier_page){.position = id * 80};
	memcpy(ret->key.page, &id, sizeof(id));
	for (int i = 0; i < TIER_SECTIONS; i++) {
		ret->section[i].data = at;
		ret->section[i].bytes = p->section[i];
		at += p->section[i];
	}
}

static int open_store(const struct pages *pages, const char *folder, uint64_t bytes,
		      uint32_t threads, bool compression, struct store **ret_store)
{
	struct store_options o;
	struct spill_io_config config = {.folder = folder, .threads = 16, .work_threads = threads};
	struct spill_io *io;
	struct why why;

	store_options_default(&o);
	o.write_bytes_per_day = 0;
	o.record_bytes = (pages->longest + 5 * 4096u) / 4096 * 4096;
	o.buffers = DEPTH + DEPTH / 3 + 2; /* a quarter is kept from puts */
	o.capacity_bytes = bytes + bytes / 4 + 8 * (o.segment_bytes + (1u << 20));
	o.gets_queued = 4 * DEPTH;
	o.io_timeout_ms = 60000;
	o.touch_entries = 0;
	o.compression = compression;
	config.files_max = store_files_max(&o);
	config.depth = store_io_depth(&o);
	if (spill_io_new(&config, &io, &why) < 0 || store_open(&o, io, ret_store, &why) < 0) {
		fprintf(stderr, "bench-cold: %s\n", why.text);
		return -1;
	}
	return 0;
}

static int put_all(const struct pages *pages, struct store *store, uint64_t n)
{
	struct tally t = {0}, flushed = {0};
	uint64_t put = 0;

	while (t.good < n) {
		while (put < n && put - t.good - t.bad < DEPTH) {
			struct tier_page page;

			page_of(pages, put, &page);
			if (store_tier(store)->ops->put(store_tier(store), &page, 0, on_put, &t) <
			    1)
				break; /* busy, or the next segment is being made */
			put++;
		}
		if (t.bad)
			return -1;
		store_step(store, 100);
	}
	if (store_flush(store, on_put, &flushed) < 0)
		return -1;
	while (!flushed.good && !flushed.bad)
		store_step(store, 100);
	return flushed.bad ? -1 : 0;
}

static int get_some(const struct pages *pages, struct store *store, uint64_t n, uint32_t depth)
{
	struct tally t = {.pages = pages};
	struct asked *asked = calloc(n, sizeof(*asked));
	uint64_t next = 0;

	while (asked && t.good + t.bad < n) {
		while (next < n && next - t.good - t.bad < depth) {
			struct tier_page page;

			asked[next] = (struct asked){&t, next};
			page_of(pages, next, &page);
			if (store_tier(store)->ops->get(store_tier(store), &page.key, 60000, on_get,
							&asked[next]) < 1)
				t.bad++;
			next++;
		}
		store_step(store, 100);
	}
	free(asked);
	return t.good == n ? 0 : -1;
}

int store_run(const struct pages *pages, const char *folder, uint64_t bytes, uint32_t threads,
	      bool compression, struct stored *ret)
{
	uint64_t n = bytes / (pages->total / pages->n), user, few = n < 64 ? n : 64;
	char own[600], command[700];
	struct store *store = NULL;
	double wall, cpu;
	int status;

	(void)snprintf(own, sizeof(own), "%s/store", folder);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", own);
	if (open_store(pages, own, bytes, threads, compression, &store) < 0)
		return -1;
	wall = now_s();
	cpu = cpu_s();
	status = put_all(pages, store, n);
	wall = now_s() - wall;
	cpu = cpu_s() - cpu;
	user = store_stat(store, STORE_STAT_user_bytes);
	ret->put_mb_s = (double)user / wall / 1e6;
	ret->put_cpu_s_gb = cpu / ((double)user / 1e9);
	ret->ratio = (double)store_stat(store, STORE_STAT_written_bytes) / (double)user;
	store_close(store);
	if (!status)
		status = open_store(pages, own, bytes, threads, compression, &store);
	if (!status) {
		wall = now_s();
		status = get_some(pages, store, few, 1);
		ret->one_ms = (now_s() - wall) * 1e3 / (double)few;
		wall = now_s();
		cpu = cpu_s();
		status = status ? status : get_some(pages, store, n, DEPTH);
		ret->get_mb_s = (double)user / (now_s() - wall) / 1e6;
		ret->get_cpu_s_gb = (cpu_s() - cpu) / ((double)user / 1e9);
		store_close(store);
	}
	if (status)
		fprintf(stderr, "bench-cold: the store failed in '%s'\n", own);
	return system(command) || status ? -1 : 0;
}
