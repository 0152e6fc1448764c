/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "base/log.h"

/* Where there is no io_uring. */
#define IO_THREADS 4u
/* One wait of the end. */
#define END_STEP_MS 10u

static void arm(struct disk *disk)
{
	uint32_t wait = store_wait_ms(disk->store);
	uint64_t due = clock_ms() + wait;
	struct itimerspec spec = {.it_value = {.tv_sec = wait / 1000,
					       .tv_nsec = (long)(wait % 1000) * 1000000}};

	/* One that is set too early pumps once for nothing. */
	if (wait == UINT32_MAX || (disk->armed_ms && disk->armed_ms <= due))
		return;
	if (timerfd_settime(disk->timer_watch.fd, 0, &spec, NULL) == 0)
		disk->armed_ms = due;
}

/* After every batch: what callbacks asked of the store goes out, what came back is told. */
static void pump(void *ctx)
{
	struct disk *disk = ctx;

	if (!disk->due && !store_tier(disk->store)->touched)
		return;
	disk->due = false;
	store_pump(disk->store);
	/* Callbacks may have asked for more. */
	if (store_tier(disk->store)->touched)
		store_pump(disk->store);
	arm(disk);
}

static void on_event(void *ctx, uint32_t events)
{
	(void)events;
	((struct disk *)ctx)->due = true; /* the pump behind the batch takes it in */
}

static void on_timer(void *ctx, uint32_t events)
{
	struct disk *disk = ctx;
	uint64_t n;

	(void)events;
	(void)!read(disk->timer_watch.fd, &n, sizeof(n));
	disk->armed_ms = 0;
	disk->due = true;
}

static int watch(struct disk *disk)
{
	int fd = store_event_fd(disk->store);
	int err = 0;

	disk->event_watch = (struct loop_watch){
	    .fd = fd, .events = EPOLLIN, .fn = on_event, .ctx = disk};
	disk->timer_watch =
	    (struct loop_watch){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
				.events = EPOLLIN,
				.fn = on_timer,
				.ctx = disk};
	if (disk->timer_watch.fd < 0)
		return -SKVQ_ESYS;
	if (fd >= 0)
		err = loop_add(disk->loop, &disk->event_watch);
	if (!err)
		err = loop_add(disk->loop, &disk->timer_watch);
	if (!err) {
		disk->hook = (struct loop_hook){.fn = pump, .ctx = disk};
		loop_hook_add(disk->loop, &disk->hook);
	}
	return err;
}

static void unwatch(struct disk *disk)
{
	int timer = disk->timer_watch.fd;

	loop_hook_del(disk->loop, &disk->hook);
	loop_del(disk->loop, &disk->event_watch); /* the descriptor is the store's */
	loop_del(disk->loop, &disk->timer_watch);
	if (timer >= 0)
		(void)close(timer);
}

int disk_open(struct disk *disk, const struct config *config, struct loop *loop,
	      struct cache *cache, struct why *why)
{
	struct spill_io_config io_config = {.folder = config->store_folder,
					    .files_max = store_files_max(&config->store),
					    .depth = store_io_depth(&config->store),
					    .threads = IO_THREADS,
					    .work_threads = (uint32_t)config->threads,
					    .no_uring = !config->io_uring,
					    .no_direct = !config->direct};
	struct spill_io *io;
	const char *engine;
	bool direct;
	int err;

	*disk = (struct disk){.loop = loop,
			      .cache = cache,
			      .shutdown_ms = config->shutdown_ms,
			      .event_watch.fd = -1,
			      .timer_watch.fd = -1};
	if (!config->store_folder[0])
		return 0;
	err = spill_io_new(&io_config, &io, why);
	if (err < 0)
		return err;
	if (io->warning.text[0])
		log_event(LOG_WARNING, "store_io", LOG_STR("detail", io->warning.text));
	engine = io->engine;
	direct = io->direct;
	err = store_open(&config->store, io, &disk->store, why);
	if (err < 0)
		return err;
	err = watch(disk);
	if (err < 0) {
		(void)why_fail_errno(why, -err, "watching the store");
		unwatch(disk);
		store_close(disk->store);
		disk->store = NULL;
		return err;
	}
	cache_tenant(cache, config->tenant)->tier = store_tier(disk->store);
	log_event(LOG_INFO, "store", LOG_STR("folder", config->store_folder),
		  LOG_STR("io", engine), LOG_U64("direct", direct),
		  LOG_U64("capacity_bytes", config->store.capacity_bytes),
		  LOG_U64("records", store_stat(disk->store, STORE_STAT_records)),
		  LOG_U64("torn", store_stat(disk->store, STORE_STAT_torn)),
		  LOG_U64("recovery_ms", store_stat(disk->store, STORE_STAT_recovery_ms)));
	return 0;
}

/* ---- the end ---- */

struct flush {
	bool done;
	int status;
};

static void on_flushed(void *ctx, int status)
{
	*(struct flush *)ctx = (struct flush){true, status};
}

static bool is_filling(const struct cache *cache)
{
	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->fills)
			return true;
	}
	return false;
}

/* One round; false when there is nothing left to do. */
static bool drain_step(struct disk *disk)
{
	bool more;

	(void)loop_step(disk->loop, 0); /* copies that have just been made */
	more = is_filling(disk->cache);
	more = spill_drain(disk->cache) || more;
	store_step(disk->store, END_STEP_MS);
	return more || cache_bytes_spilling(disk->cache);
}

void disk_close(struct disk *disk, const bool *hurry)
{
	uint64_t start = clock_ms(), until = start + disk->shutdown_ms;
	struct flush flush = {0}; /* store_close answers before it goes out of scope */
	bool more = true;

	if (!disk->store)
		return;
	while (more && !*hurry && clock_ms() < until)
		more = drain_step(disk);
	if (store_flush(disk->store, on_flushed, &flush) == 0) {
		while (!flush.done && !*hurry && clock_ms() < until)
			store_step(disk->store, END_STEP_MS);
	}
	log_event(more || flush.status < 0 ? LOG_WARNING : LOG_INFO, "store_closed",
		  LOG_U64("ms", clock_ms() - start), LOG_U64("complete", !more && flush.done),
		  LOG_U64("records", store_stat(disk->store, STORE_STAT_records)));
	unwatch(disk);
	store_close(disk->store);
	disk->store = NULL;
}
