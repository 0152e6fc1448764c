/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "spill/format.h"
#include "spill/store.h"

#define ROUNDS_MAX 32u

static const char help[] =
    "usage: bench-store --folder DIR [options]\n"
    "Pages put into a store and got again, beside plain sequential I/O of the same block size and\n"
    "depth, by the same engine and by fio if it is there. All take turns; medians are told.\n"
    "  --folder DIR   where to measure; a folder of its own is made there and removed\n"
    "  --mib N        written in each round, default 1024\n"
    "  --record-kib N block size, a multiple of 4, default 256\n"
    "  --depth N      transfers at once, default 16\n"
    "  --rounds N     default 5\n"
    "  --threads      without io_uring\n"
    "  --quick        64 MiB, 3 rounds\n"
    "  --json         one flat object: store_put_mib_s, store_get_mib_s, raw_*, fio_*,\n"
    "                 restore_share_of_fio, spill_share_of_fio, restore_share_of_raw,\n"
    "                 spill_share_of_raw, restart_first_hit_s, write_amplification\n";

struct round {
	struct speed store, raw, fio;
	double first_hit_s, amplification;
};

double now_s(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void page_of(const struct bench *b, uint64_t id, const void *data, struct tier_page *ret)
{
	*ret = (struct tier_page){.position = id * 80};
	memcpy(ret->key.page, &id, sizeof(id));
	ret->section[TIER_BASE].data = data;
	ret->section[TIER_BASE].bytes = b->record - SPILL_BLOCK;
}

struct tally {
	uint64_t good, bad;
};

static void on_put(void *ctx, int status)
{
	struct tally *t = ctx;

	*(status ? &t->bad : &t->good) += 1;
}

static void on_get(void *ctx, int status, const struct tier_page *page)
{
	(void)page;
	on_put(ctx, status);
}

static int open_store(const struct bench *b, struct store **ret_store)
{
	struct store_options o;
	struct spill_io_config config = {.no_uring = b->threads, .threads = 16};
	struct spill_io *io;
	char folder[600];
	struct why why;

	store_options_default(&o);
	o.write_bytes_per_day = 0;
	o.record_bytes = b->record;
	o.buffers = b->depth + b->depth / 3 + 2; /* a quarter is kept from puts */
	o.capacity_bytes = b->bytes + b->bytes / 4 + 8 * (o.segment_bytes + (1u << 20));
	o.gets_queued = 4 * b->depth;
	o.io_timeout_ms = 60000;
	o.touch_entries = 0;
	(void)snprintf(folder, sizeof(folder), "%s/store", b->folder);
	config.folder = folder;
	config.files_max = store_files_max(&o);
	config.depth = store_io_depth(&o);
	if (spill_io_new(&config, &io, &why) < 0 || store_open(&o, io, ret_store, &why) < 0) {
		fprintf(stderr, "bench-store: %s\n", why.text);
		return -1;
	}
	return 0;
}

static int put_all(const struct bench *b, struct store *store, void *data, double *ret_s)
{
	uint64_t n = b->bytes / b->record, put = 0;
	struct tally t = {0}, flushed = {0};
	double began = now_s();

	while (t.good < n) {
		while (put < n && put - t.good < b->depth) {
			struct tier_page page;

			page_of(b, put, data, &page);
			memcpy(data, &put, sizeof(put));
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
	*ret_s = now_s() - began;
	return flushed.bad ? -1 : 0;
}

static int get_all(const struct bench *b, struct store *store, uint64_t n, double *ret_s)
{
	struct tally t = {0};
	uint64_t asked = 0;
	double began = now_s();

	while (t.good + t.bad < n) {
		while (asked < n && asked - t.good - t.bad < b->depth) {
			struct tier_page page;

			page_of(b, asked++, NULL, &page);
			if (store_tier(store)->ops->get(store_tier(store), &page.key, 60000, on_get,
							&t) < 1)
				t.bad++;
		}
		store_step(store, 100);
	}
	*ret_s = now_s() - began;
	return t.bad ? -1 : 0;
}

static int store_run(const struct bench *b, struct round *r)
{
	uint64_t n = b->bytes / b->record;
	struct store *store = NULL;
	double put_s = 0, get_s = 0, hit_s, began;
	char command[600];
	void *data = malloc(b->record);
	int status;

	if (!data || open_store(b, &store) < 0) {
		free(data);
		return -1;
	}
	memset(data, 0x5a, b->record);
	status = put_all(b, store, data, &put_s);
	r->amplification = (double)store_stat(store, STORE_STAT_written_bytes) /
			   (double)store_stat(store, STORE_STAT_user_bytes);
	store_close(store);
	free(data);
	began = now_s();
	if (!status)
		status = open_store(b, &store);
	if (status)
		return -1;
	status = get_all(b, store, 1, &hit_s);
	r->first_hit_s = now_s() - began;
	if (!status)
		status = get_all(b, store, n, &get_s);
	store_close(store);
	r->store.write_mib_s = (double)(n * (b->record - SPILL_BLOCK)) / put_s / 1048576;
	r->store.read_mib_s = (double)(n * (b->record - SPILL_BLOCK)) / get_s / 1048576;
	(void)snprintf(command, sizeof(command), "rm -rf '%s/store'", b->folder);
	return status || system(command) ? -1 : 0;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(const struct round *rounds, uint32_t n, size_t offset)
{
	double v[ROUNDS_MAX];

	for (uint32_t i = 0; i < n; i++)
		memcpy(&v[i], (const char *)&rounds[i] + offset, sizeof(v[i]));
	qsort(v, n, sizeof(v[0]), by_value);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static void report(const struct bench *b, const struct round *rounds, uint32_t n, bool json)
{
#define MEDIAN(field) median(rounds, n, offsetof(struct round, field))
	double put = MEDIAN(store.write_mib_s), get = MEDIAN(store.read_mib_s);
	double raw_w = MEDIAN(raw.write_mib_s), raw_r = MEDIAN(raw.read_mib_s);
	double fio_w = MEDIAN(fio.write_mib_s), fio_r = MEDIAN(fio.read_mib_s);
	double hit = MEDIAN(first_hit_s), amplification = MEDIAN(amplification);
#undef MEDIAN

	if (json) {
		printf("{\"bytes\":%llu,\"record_bytes\":%u,\"depth\":%u,\"rounds\":%u,"
		       "\"store_put_mib_s\":%.1f,\"store_get_mib_s\":%.1f,"
		       "\"raw_write_mib_s\":%.1f,\"raw_read_mib_s\":%.1f,"
		       "\"spill_share_of_raw\":%.3f,\"restore_share_of_raw\":%.3f,",
		       (unsigned long long)b->bytes, b->record, b->depth, n, put, get, raw_w, raw_r,
		       put / raw_w, get / raw_r);
		if (fio_r > 0)
			printf("\"fio_write_mib_s\":%.1f,\"fio_read_mib_s\":%.1f,"
			       "\"spill_share_of_fio\":%.3f,\"restore_share_of_fio\":%.3f,",
			       fio_w, fio_r, put / fio_w, get / fio_r);
		printf("\"restart_first_hit_s\":%.6f,\"write_amplification\":%.4f}\n", hit,
		       amplification);
		return;
	}
	printf("%llu MiB in records of %u KiB, %u at once; median of %u rounds, MiB/s\n",
	       (unsigned long long)(b->bytes >> 20), b->record >> 10, b->depth, n);
	printf("%-10s %10s %10s\n", "", "write", "read");
	printf("%-10s %10.1f %10.1f   (pages, without headers)\n", "store", put, get);
	printf("%-10s %10.1f %10.1f\n", "plain", raw_w, raw_r);
	if (fio_r > 0)
		printf("%-10s %10.1f %10.1f\n", "fio", fio_w, fio_r);
	printf("store of plain: %.0f %% write, %.0f %% read\n", 100 * put / raw_w,
	       100 * get / raw_r);
	if (fio_r > 0)
		printf("store of fio:   %.0f %% write, %.0f %% read\n", 100 * put / fio_w,
		       100 * get / fio_r);
	printf("first page after a restart in %.1f ms, write amplification %.3f\n", hit * 1e3,
	       amplification);
}

/* Or exits: 2. */
static uint64_t number(const char *name, const char *text, uint64_t least, uint64_t most)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (*end || end == text || n < least || n > most) {
		fprintf(stderr, "bench-store: --%s takes %llu to %llu, not '%s'\n", name,
			(unsigned long long)least, (unsigned long long)most, text);
		exit(2);
	}
	return n;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"folder", 1, 0, 'f'},     {"mib", 1, 0, 'm'},
						{"record-kib", 1, 0, 'k'}, {"depth", 1, 0, 'd'},
						{"rounds", 1, 0, 'r'},     {"threads", 0, 0, 't'},
						{"quick", 0, 0, 'q'},      {"json", 0, 0, 'j'},
						{"help", 0, 0, 'h'},       {0, 0, 0, 0}};
	struct bench b = {.bytes = UINT64_C(1) << 30, .record = 256 << 10, .depth = 16};
	static struct round rounds[ROUNDS_MAX];
	const char *folder = NULL;
	char command[600];
	uint32_t n = 5;
	bool json = false;
	int opt, status = 0;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 'f':
			folder = optarg;
			break;
		case 'm':
			b.bytes = number("mib", optarg, 16, 1 << 20) << 20;
			break;
		case 'k':
			b.record = (uint32_t)number("record-kib", optarg, 8, 16384) << 10;
			break;
		case 'd':
			b.depth = (uint32_t)number("depth", optarg, 1, 128);
			break;
		case 'r':
			n = (uint32_t)number("rounds", optarg, 1, ROUNDS_MAX);
			break;
		case 't':
			b.threads = true;
			break;
		case 'q':
			b.bytes = 64 << 20;
			n = 3;
			break;
		case 'j':
			json = true;
			break;
		default:
			fputs(help, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (!folder || optind < argc || b.record % SPILL_BLOCK) {
		fputs(help, stderr);
		return 2;
	}
	b.bytes -= b.bytes % b.record;
	(void)snprintf(b.folder, sizeof(b.folder), "%s/skvq-bench-XXXXXX", folder);
	if (!mkdtemp(b.folder)) {
		fprintf(stderr, "bench-store: cannot make a folder in '%s'\n", folder);
		return 1;
	}
	for (uint32_t i = 0; i < n && !status; i++) {
		status = store_run(&b, &rounds[i]);
		if (status)
			fprintf(stderr, "bench-store: the store failed in '%s'\n", b.folder);
		else
			status = raw_run(&b, &rounds[i].raw);
		if (!status)
			(void)fio_run(&b, &rounds[i].fio); /* or zeros, and it is not told */
	}
	if (!status)
		report(&b, rounds, n, json);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", b.folder);
	return system(command) || status ? 1 : 0;
}
