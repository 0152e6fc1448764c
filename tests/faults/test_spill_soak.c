/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_spill_soak memory|uring|threads [--seconds N] [--seed N]
 *
 * Puts, gets, drops, flushes and restarts over an io that fails in every way it can, in turns. Any
 * page given is compared with what its digest says it is. Counted and to be nothing at the end:
 * wrong bytes, callbacks that never came or came late, descriptors and buffers left over, bytes
 * over the cap.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"
#include "support/spill_disk.h"
#include "spill/faults.h"
#include "support/spill_rig.h"

#include <skvq/error.h>

#include "base/clock.h"

#define OPS      48
#define IDS      400u
#define GRACE_MS 3000u /* of a busy machine; memory's own clock needs none */

static const struct spill_fault_rates turns[] = {
    {0},
    {.eio = 500},
    {.enospc = 2000},
    {.eagain = 3000, .submit_eagain = 3000},
    {.cut_short = 2000},
    {.torn = 1000, .flip = 1000},
    {.delay = 3000, .delay_ms = 900},
    {.lost = 100},
    {.eio = 9900},
    {.eio = 100,
     .enospc = 100,
     .eagain = 300,
     .submit_eagain = 300,
     .cut_short = 300,
     .torn = 200,
     .flip = 200,
     .delay = 300,
     .lost = 20,
     .delay_ms = 700},
};
#define TURNS (sizeof(turns) / sizeof(turns[0]))

struct op {
	bool busy;
	uint64_t id, until_ms;
};

static struct {
	const char *where;
	char folder[64];
	struct spill_disk *disk;
	struct store_options options;
	struct spill_io *io;
	struct store *store;
	struct seeded rng;
	struct op ops[OPS];
	uint64_t given, packed, unpacked, wrong, late, answers, opens, closes_bad, over_cap;
	struct spill_fault_counts faults;
} t;

static uint64_t folder_bytes(void)
{
	DIR *dir = opendir(t.folder);
	struct dirent *at;
	uint64_t sum = 0;

	while (dir && (at = readdir(dir)) != NULL) {
		struct stat st;

		if (!strcmp(at->d_name, ".") || !strcmp(at->d_name, ".."))
			continue;
		if (fstatat(dirfd(dir), at->d_name, &st, 0) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	}
	if (dir)
		(void)closedir(dir);
	return sum;
}

static uint32_t open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		(void)closedir(dir);
	return n;
}

static void remove_folder(void)
{
	char command[96];

	(void)snprintf(command, sizeof(command), "rm -rf '%s'", t.folder);
	(void)!system(command);
}

static struct spill_io *new_io(const struct spill_fault_rates *rates)
{
	struct spill_io_config config = {.folder = t.folder,
					 .files_max = store_files_max(&t.options),
					 .depth = store_io_depth(&t.options),
					 .threads = 4,
					 .no_uring = !strcmp(t.where, "threads")};
	struct spill_io *below = NULL;
	struct why why = {""};

	if (t.disk)
		below = spill_disk_io(t.disk);
	else if (spill_io_new(&config, &below, &why) < 0)
		fail_msg("%s", why.text);
	if (!strcmp(t.where, "uring") && strcmp(below->engine, "io_uring") != 0) {
		print_message("no io_uring here\n");
		below->ops->free(below);
		remove_folder();
		exit(77);
	}
	return spill_faults_new(below, seeded_u64(&t.rng), rates);
}

static uint64_t now_ms(void)
{
	return t.io->ops->now_ms(t.io);
}

static void answered(struct op *op)
{
	assert_true(op->busy);
	op->busy = false;
	t.answers++;
	if (now_ms() > op->until_ms)
		t.late++;
}

static void on_put(void *ctx, int status)
{
	(void)status;
	answered(ctx);
}

static void on_get(void *ctx, int status, const struct tier_page *page)
{
	struct op *op = ctx;

	if (!status) {
		t.given++;
		t.wrong += rig_wrong(op->id, page);
	}
	answered(op);
}

static void one(struct op *op)
{
	static uint8_t buf[RIG_PAGE_BYTES];
	struct tier *tier = store_tier(t.store);
	uint32_t what = seeded_below(&t.rng, 100), timeout = 1 + seeded_below(&t.rng, 600);
	struct tier_page page;
	int r;

	/* Some pages are wanted more than others. */
	op->id = seeded_below(&t.rng, 1 + seeded_below(&t.rng, IDS));
	rig_page(op->id, buf, &page);
	op->busy = true;
	op->until_ms = now_ms() + t.options.io_timeout_ms + 100 + (t.disk ? 0 : GRACE_MS);
	if (what < 40) {
		r = tier->ops->put(tier, &page, what & 1 ? TIER_PUT_HOT : 0, on_put, op);
	} else if (what < 96) {
		r = tier->ops->get(tier, &page.key, timeout, on_get, op);
	} else {
		tier->ops->drop(tier, &page.key);
		assert_false(rig_contains(t.store, op->id));
		r = 0;
	}
	if (r <= 0)
		op->busy = false;
}

static void look_after(void)
{
	for (int i = 0; i < OPS; i++)
		if (t.ops[i].busy && now_ms() > t.ops[i].until_ms + 1000)
			fail_msg("an answer never came");
	if (store_stat(t.store, STORE_STAT_charged_bytes) > t.options.capacity_bytes)
		t.over_cap++;
	if (!t.disk && folder_bytes() > t.options.capacity_bytes)
		t.over_cap++;
}

static void reopen(const struct spill_fault_rates *rates)
{
	struct why why = {""};
	int r = -1;

	t.options.compression = seeded_below(&t.rng, 3) != 0;
	for (int i = 0; r < 0; i++) {
		t.io = new_io(i ? &turns[0] : rates);
		r = store_open(&t.options, t.io, &t.store, &why);
	}
	t.opens++;
}

static void close_store(void)
{
	struct spill_fault_counts c = spill_faults_counts(t.io);

	t.faults.errors += c.errors;
	t.faults.again += c.again;
	t.faults.shorts += c.shorts;
	t.faults.torn += c.torn;
	t.faults.flips += c.flips;
	t.faults.delays += c.delays;
	t.faults.lost += c.lost;
	t.packed += store_stat(t.store, STORE_STAT_puts_packed);
	t.unpacked += store_stat(t.store, STORE_STAT_unpacked);
	store_close(t.store);
	for (int i = 0; i < OPS; i++)
		if (t.ops[i].busy)
			t.closes_bad++;
}

static void soak(uint64_t seconds)
{
	uint64_t end = clock_ms() + seconds * 1000;

	reopen(&turns[0]);
	while (clock_ms() < end) {
		const struct spill_fault_rates *rates = &turns[seeded_below(&t.rng, TURNS)];

		spill_faults_set(t.io, rates);
		for (int round = 0; round < 60; round++) {
			for (int i = 0; i < OPS; i++)
				if (!t.ops[i].busy && seeded_below(&t.rng, 3) == 0)
					one(&t.ops[i]);
			store_step(t.store, 1 + seeded_below(&t.rng, 20));
		}
		look_after();
		if (seeded_below(&t.rng, 4) == 0)
			spill_faults_release(t.io);
		if (seeded_below(&t.rng, 10) == 0) {
			close_store();
			reopen(rates);
		}
	}
	/* Everything comes back when the faults end. */
	spill_faults_set(t.io, &turns[0]);
	for (int i = 0; i < 40; i++) {
		spill_faults_release(t.io);
		rig_settle(t.store, 100);
	}
	assert_int_equal(store_stat(t.store, STORE_STAT_transfers_lost), 0);
	look_after();
	assert_int_equal(rig_put(t.store, 1000000, TIER_PUT_HOT), 0);
	assert_int_equal(rig_get(t.store, 1000000), 1);
	close_store();
}

int main(int argc, char **argv)
{
	uint64_t seconds = 7;
	uint32_t fds;

	t.where = argc > 1 ? argv[1] : "memory";
	t.rng = seeded_init();
	for (int i = 2; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--seconds"))
			seconds = strtoull(argv[i + 1], NULL, 0);
		else if (!strcmp(argv[i], "--seed"))
			t.rng.state = strtoull(argv[i + 1], NULL, 0);
	}
	rig_options(&t.options);
	t.options.capacity_bytes = 2 << 20;
	t.options.touch_entries = 256;
	t.options.io_timeout_ms = 300;
	fds = open_fds();
	if (!strcmp(t.where, "memory"))
		t.disk = spill_disk_new(t.rng.state, 64, 4);
	else if (snprintf(t.folder, sizeof(t.folder), "./skvq-soak-XXXXXX") < 0 ||
		 !mkdtemp(t.folder))
		return 1;
	soak(seconds);
	if (t.disk && spill_disk_bytes_max(t.disk) > t.options.capacity_bytes)
		t.over_cap++;
	printf("packed=%llu unpacked=%llu\n", (unsigned long long)t.packed,
	       (unsigned long long)t.unpacked);
	printf("opens=%llu answers=%llu given=%llu errors=%llu again=%llu shorts=%llu torn=%llu "
	       "flips=%llu delays=%llu lost=%llu\n",
	       (unsigned long long)t.opens, (unsigned long long)t.answers,
	       (unsigned long long)t.given, (unsigned long long)t.faults.errors,
	       (unsigned long long)t.faults.again, (unsigned long long)t.faults.shorts,
	       (unsigned long long)t.faults.torn, (unsigned long long)t.faults.flips,
	       (unsigned long long)t.faults.delays, (unsigned long long)t.faults.lost);
	printf("wrong_bytes=%llu late=%llu unanswered=%llu over_cap=%llu leaked_fds=%d\n",
	       (unsigned long long)t.wrong, (unsigned long long)t.late,
	       (unsigned long long)t.closes_bad, (unsigned long long)t.over_cap,
	       (int)open_fds() - (int)fds);
	if (t.disk)
		spill_disk_free(t.disk);
	else
		remove_folder();
	return t.wrong || t.late || t.closes_bad || t.over_cap || open_fds() != fds || !t.given ||
	       !t.packed || !t.unpacked;
}
