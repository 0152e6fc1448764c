/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/clock.h"
#include "base/log.h"
#include "spill/folder.h"

/* The store's folder, a slash and a tenant's name. */
#define FOLDER_BYTES (CONFIG_PATH_MAX + CONFIG_TENANT_MAX + 2)
/* Folders of nobody that are named; the rest comes at the next start. */
#define LEFT_MAX 16u
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

/* The folder of a tenant's store. The one around it must be nobody else's either. */
static int name_folder(const struct config *config, uint32_t i, char ret[FOLDER_BYTES],
		       struct why *why)
{
	int fd, err;

	if (!config->n_tenants) {
		(void)snprintf(ret, FOLDER_BYTES, "%s", config->store_folder);
		return 0;
	}
	err = folder_own(config->store_folder, &fd, why);
	if (err < 0)
		return err;
	(void)close(fd);
	(void)snprintf(ret, FOLDER_BYTES, "%s/%s", config->store_folder, config->tenants[i].name);
	return 0;
}

int disk_open(struct disk *disk, const struct config *config, uint32_t i, struct loop *loop,
	      struct cache *cache, struct why *why)
{
	const struct store_options options = config_store(config, i);
	char folder[FOLDER_BYTES];
	struct spill_io_config io_config = {.folder = folder,
					    .files_max = store_files_max(&options),
					    .depth = store_io_depth(&options),
					    .threads = config_store_io_threads(config),
					    .work_threads = config_store_threads(config),
					    .no_uring = !config->io_uring,
					    .no_direct = !config->direct};
	struct spill_io *io;
	const char *engine;
	bool direct;
	int err;

	*disk = (struct disk){.loop = loop,
			      .cache = cache,
			      .tenant = cache->tenants[i],
			      .shutdown_ms = config->shutdown_ms,
			      .event_watch.fd = -1,
			      .timer_watch.fd = -1};
	if (!config->store_folder[0])
		return 0;
	err = name_folder(config, i, folder, why);
	if (err < 0)
		return err;
	err = spill_io_new(&io_config, &io, why);
	if (err < 0)
		return err;
	if (io->warning.text[0])
		log_event(LOG_WARNING, "store_io", LOG_STR("detail", io->warning.text));
	engine = io->engine;
	direct = io->direct;
	err = store_open(&options, io, &disk->store, why);
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
	disk->tenant->tier = store_tier(disk->store);
	log_event(LOG_INFO, "store", LOG_STR("folder", folder),
		  LOG_STR("io", engine), LOG_U64("direct", direct),
		  LOG_U64("capacity_bytes", options.capacity_bytes),
		  LOG_U64("records", store_stat(disk->store, STORE_STAT_records)),
		  LOG_U64("torn", store_stat(disk->store, STORE_STAT_torn)),
		  LOG_U64("recovery_ms", store_stat(disk->store, STORE_STAT_recovery_ms)));
	return 0;
}

/* ---- all of them ---- */

void disks_tell(const struct config *config)
{
	uint64_t bytes = config_store_memory(config);
	struct rlimit lim;

	if (!config->store_folder[0])
		return;
	log_event(LOG_INFO, "stores", LOG_U64("stores", config->n_tenants ? config->n_tenants : 1),
		  LOG_U64("buffer_bytes", bytes), LOG_U64("threads_max", config_tasks(config)));
	/* The rings of the last ones copy by plain calls; that is slower, and no error. */
	if (config->io_uring && getrlimit(RLIMIT_MEMLOCK, &lim) == 0 && bytes > lim.rlim_cur)
		log_event(LOG_WARNING, "memlock", LOG_U64("limit_bytes", lim.rlim_cur),
			  LOG_U64("wanted_bytes", bytes),
			  LOG_STR("detail", "transfer buffers beyond RLIMIT_MEMLOCK (LimitMEMLOCK) "
					    "are not registered with io_uring"));
}

static bool is_tenant(const struct config *config, const char *name)
{
	for (uint32_t i = 0; i < config->n_tenants; i++) {
		if (!strcmp(config->tenants[i].name, name))
			return true;
	}
	return false;
}

uint32_t disks_left(const struct config *config)
{
	DIR *dir = config->store_folder[0] ? opendir(config->store_folder) : NULL;
	const struct dirent *at;
	uint32_t n = 0;

	while (dir && n < LEFT_MAX && (at = readdir(dir)) != NULL) {
		char path[FOLDER_BYTES + NAME_MAX];
		struct stat st;

		if (at->d_name[0] == '.' || is_tenant(config, at->d_name) ||
		    fstatat(dirfd(dir), at->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !S_ISDIR(st.st_mode))
			continue;
		n++;
		(void)snprintf(path, sizeof(path), "%s/%s", config->store_folder, at->d_name);
		log_event(LOG_WARNING, "store_left", LOG_STR("folder", path),
			  LOG_STR("detail", "no tenant of the configuration has this name: nothing in "
					    "it is read, and its bytes count nowhere"));
	}
	if (dir)
		(void)closedir(dir);
	return n;
}

/* ---- the end ---- */

/* How far the end of one disk has come. A slow or full one holds up no other. */
struct end {
	bool drained; /* all its pages were offered, and answered */
	bool flushed;
	int status; /* of the flush */
};

static void on_flushed(void *ctx, int status)
{
	struct end *end = ctx;

	end->flushed = true;
	end->status = status;
}

static bool is_filling(const struct cache *cache, const struct tenant *tenant)
{
	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->tenant == tenant && ns->fills)
			return true;
	}
	return false;
}

/* What can be done without waiting. */
static void advance(struct disk *disk, struct end *end)
{
	struct cache *cache = disk->cache;

	if (end->drained || is_filling(cache, disk->tenant) || spill_drain(cache, disk->tenant) ||
	    disk->tenant->bytes_spilling)
		return;
	end->drained = true;
	end->status = store_flush(disk->store, on_flushed, end);
	end->flushed = end->status < 0;
}

/* Lets those that have something to do work for a moment, all at the same time. */
static void step(struct disk *disks, const struct end *ends, uint32_t n)
{
	struct pollfd fds[TENANTS_MAX];
	uint32_t n_fds = 0, wait = END_STEP_MS;

	for (uint32_t i = 0; i < n; i++) {
		struct store *store = disks[i].store;
		int fd = store ? store_event_fd(store) : -1;
		uint32_t due;

		if (!store || ends[i].flushed)
			continue;
		store_step(store, fd < 0 ? 1 : 0); /* without a descriptor it must be waited for here */
		due = fd < 0 ? 0 : store_wait_ms(store);
		wait = due < wait ? due : wait;
		fds[n_fds++] = (struct pollfd){.fd = fd, .events = POLLIN};
	}
	if (n_fds)
		(void)poll(fds, n_fds, (int)wait);
}

static bool all_flushed(const struct disk *disks, const struct end *ends, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (disks[i].store && !ends[i].flushed)
			return false;
	}
	return true;
}

void disks_close(struct disk *disks, uint32_t n, const bool *hurry)
{
	uint64_t start = clock_ms(), until = start + disks[0].shutdown_ms;
	/* store_close answers before they go out of scope */
	struct end ends[TENANTS_MAX] = {{0}};

	assert(n <= TENANTS_MAX);
	while (!all_flushed(disks, ends, n) && !*hurry && clock_ms() < until) {
		(void)loop_step(disks[0].loop, 0); /* copies that have just been made */
		for (uint32_t i = 0; i < n; i++) {
			if (disks[i].store)
				advance(&disks[i], &ends[i]);
		}
		step(disks, ends, n);
	}
	/* What a store answers while it closes may make the cache look at any of them. */
	for (uint32_t i = 0; i < n; i++) {
		if (disks[i].store)
			disks[i].tenant->tier = NULL;
	}
	for (uint32_t i = 0; i < n; i++) {
		struct disk *disk = &disks[i];
		const struct end *end = &ends[i];
		uint64_t left;
		bool complete;

		if (!disk->store)
			continue;
		left = spill_left(disk->cache, disk->tenant);
		complete = end->flushed && end->status == 0 && !left;
		log_event(complete ? LOG_INFO : LOG_WARNING, "store_closed",
			  LOG_STR("tenant", disk->tenant->name),
			  LOG_U64("ms", clock_ms() - start), LOG_U64("complete", complete),
			  LOG_U64("pages_left", left),
			  LOG_U64("records", store_stat(disk->store, STORE_STAT_records)));
		unwatch(disk);
		store_close(disk->store);
		disk->store = NULL;
	}
}
