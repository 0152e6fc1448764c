/* SPDX-License-Identifier: Apache-2.0 */
#include "server.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "base/closer.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/worker.h"
#include "cache/cache.h"
#include "control/control.h"
#include "control/listen.h"
#include "disk.h"
#include "handover.h"
#include "notify.h"
#include "sandbox.h"
#include "steer.h"
#include "tenants.h"

/* How often holes are looked for and, after a shortage of descriptors, clients are let in again. */
#define TICK_SECONDS 1
/* How often pages go while ram_max comes down. */
#define SHRINK_MS 20
/* Clients taken from the backlog at one wakeup. */
#define WAKE_ACCEPTS 16

/* A socket that clients connect to: the shared one, or a tenant's own. */
struct door {
	struct server *server;
	struct control_tenant *tenant; /* NULL: the shared one */
	struct listener listener;
	struct loop_watch watch;
};

struct server {
	const struct config *config;
	struct loop loop;
	struct door doors[1 + TENANTS_MAX];
	uint32_t n_doors;
	struct loop_watch signal_watch, tick_watch, shrink_watch;
	struct steer steer;
	struct worker worker;
	struct closer *closer;
	struct stats stats;
	struct cache cache;
	struct control control;
	struct disk disks[TENANTS_MAX];
	uint32_t n_tenants;
	struct tenant_salts salts;
	struct handover handover;
	int signal; /* that ended us */
	bool hurry; /* another came */
};

static void on_signal(void *ctx, uint32_t events)
{
	struct server *server = ctx;
	struct signalfd_siginfo info;

	(void)events;
	if (read(server->signal_watch.fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	server->hurry = server->signal != 0;
	server->signal = (int)info.ssi_signo;
	loop_stop(&server->loop);
}

/* The timer is made at the start, for later none can be. */
static void on_shrink(void *ctx, uint32_t events)
{
	struct server *server = ctx;
	uint64_t n;

	(void)events;
	if (read(server->shrink_watch.fd, &n, sizeof(n)) < 0)
		return;
	if (!cache_shrink(&server->cache))
		(void)timerfd_settime(server->shrink_watch.fd, 0, &(struct itimerspec){0}, NULL);
}

static void on_tick(void *ctx, uint32_t events)
{
	struct server *server = ctx;
	uint64_t n;

	(void)events;
	if (read(server->tick_watch.fd, &n, sizeof(n)) < 0)
		return;
	(void)heap_tick();
	cache_trim(&server->cache);
	if (cache_shrink(&server->cache)) {
		struct itimerspec spec = {.it_interval.tv_nsec = SHRINK_MS * 1000000,
					  .it_value.tv_nsec = SHRINK_MS * 1000000};

		(void)timerfd_settime(server->shrink_watch.fd, 0, &spec, NULL);
	}
	spill_pump(&server->cache);
	cache_scrub(&server->cache, server->config->scrub * TICK_SECONDS);
	for (uint32_t i = 0; i < server->n_tenants; i++) {
		if (server->disks[i].store)
			store_scrub(server->disks[i].store,
				    server->config->store_scrub * TICK_SECONDS / server->n_tenants);
	}
	for (uint32_t i = 0; i < server->n_doors; i++)
		(void)loop_mod(&server->loop, &server->doors[i].watch, EPOLLIN);
}

static void on_listen(void *ctx, uint32_t events)
{
	struct door *door = ctx;
	struct server *server = door->server;

	(void)events;
	for (int i = 0; i < WAKE_ACCEPTS; i++) {
		int fd = accept4(door->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			control_accept(&server->control, fd, door->tenant);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			/* The backlog would wake us for ever: look again at the next tick. */
			log_event(LOG_WARNING, "accept_paused", LOG_STR("error", strerror(errno)));
			(void)loop_mod(&server->loop, &door->watch, 0);
		}
		return;
	}
}

/* As many descriptors as the config can need, if we may have them, and as many again for one that lets
 * in more: later the sandbox lets nobody ask. Returns how many there may be. */
static uint64_t raise_nofile(const struct config *config)
{
	uint64_t need = config_fds(config), want = 2 * need;
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		return 0;
	if (lim.rlim_cur >= want)
		return lim.rlim_cur;
	lim.rlim_cur = lim.rlim_max < want ? lim.rlim_max : want;
	if (setrlimit(RLIMIT_NOFILE, &lim) < 0)
		(void)getrlimit(RLIMIT_NOFILE, &lim);
	if (lim.rlim_cur < need)
		log_event(LOG_WARNING, "few_descriptors", LOG_U64("limit", lim.rlim_cur),
			  LOG_U64("needed", need));
	return lim.rlim_cur;
}

/* Shared memory in huge pages takes what its neighbours in two MiB take, and is filled slowly: what
 * is measured is in docs/operations.md. Only the machine's owner can change it. */
static void tell_huge_pages(void)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	char line[128] = "";
	FILE *f = fopen(path, "re");

	if (f && fgets(line, sizeof(line), f) &&
	    (strstr(line, "[always]") || strstr(line, "[within_size]") || strstr(line, "[force]")))
		log_event(LOG_WARNING, "huge_pages", LOG_STR("file", path),
			  LOG_STR("detail", "arenas take more than ram_max: echo advise > it"));
	if (f)
		(void)fclose(f);
}

/* struct sched_attr of <linux/sched/types.h>, which libc's headers do not go with. */
struct sched_slice {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};
#define SLICE_NS 100000u /* the shortest there is */

/* Turns of the loop are short, so it asks for short slices (Linux 6.12): it is let in sooner when a
 * client wakes it among busy engines, and gets no more of the processor for it (docs/measurements.md). Without it
 * all is as ever. */
static void ask_for_short_slices(void)
{
	struct sched_slice attr;

	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) < 0 || attr.policy != SCHED_OTHER)
		return;
	attr.size = sizeof(attr);
	attr.runtime = SLICE_NS;
	(void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

static int add_signals(struct server *server)
{
	sigset_t set;

	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR)
		return -SKVQ_ESYS;
	server->signal_watch =
	    (struct loop_watch){.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK),
				.events = EPOLLIN,
				.fn = on_signal,
				.ctx = server};
	if (server->signal_watch.fd < 0)
		return -SKVQ_ESYS;
	return loop_add(&server->loop, &server->signal_watch);
}

static int add_timer(struct server *server, struct loop_watch *watch,
		     void (*fn)(void *ctx, uint32_t events))
{
	*watch =
	    (struct loop_watch){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
				.events = EPOLLIN,
				.fn = fn,
				.ctx = server};
	return watch->fd < 0 ? -SKVQ_ESYS : loop_add(&server->loop, watch);
}

static int add_timers(struct server *server)
{
	struct itimerspec spec = {.it_interval.tv_sec = TICK_SECONDS,
				  .it_value.tv_sec = TICK_SECONDS};
	int err = add_timer(server, &server->tick_watch, on_tick);

	if (!err && timerfd_settime(server->tick_watch.fd, 0, &spec, NULL) < 0)
		err = -SKVQ_ESYS;
	return err ? err : add_timer(server, &server->shrink_watch, on_shrink);
}

/* A listening socket of that path among what the service manager gave us; -1: none. */
static int given_socket(struct server *server, const char *path)
{
	for (uint32_t i = 0; i < server->handover.n_given; i++) {
		struct notify_fd *g = &server->handover.given[i];
		char where[LISTEN_PATH_MAX + 1];

		if (g->fd < 0 || !listener_is_socket(g->fd))
			continue;
		listener_where(g->fd, where);
		if (strcmp(where, path) == 0)
			return steal_fd(&g->fd);
	}
	return -1;
}

/* A socket that we were given and do not know would let clients in whom nobody answers. */
static int no_socket_left(const struct server *server, struct why *why)
{
	for (uint32_t i = 0; i < server->handover.n_given; i++) {
		const struct notify_fd *g = &server->handover.given[i];
		char where[LISTEN_PATH_MAX + 1];

		if (g->fd < 0 || !listener_is_socket(g->fd))
			continue;
		listener_where(g->fd, where);
		return why_fail(why, SKVQ_EPATH,
				"the service manager passed a socket \"%.80s\" on \"%s\", which is no path of "
				"[socket] nor of a tenant",
				g->name, where);
	}
	return 0;
}

/* Binds; nobody is let in yet. */
static int make_door(struct server *server, const char *path, uint64_t mode,
		     struct control_tenant *tenant, struct why *why)
{
	struct door *door = &server->doors[server->n_doors];
	int given = given_socket(server, path);
	int err = given >= 0 ? listener_adopt(&door->listener, path, given, why)
			     : listener_init(&door->listener, path, (mode_t)mode, why);

	if (err < 0)
		return err;
	door->server = server;
	door->tenant = tenant;
	door->watch = (struct loop_watch){
	    .fd = door->listener.fd, .events = EPOLLIN, .fn = on_listen, .ctx = door};
	server->n_doors++;
	return 0;
}

static int make_doors(struct server *server, struct why *why)
{
	const struct config *config = server->config;
	int err = make_door(server, config->socket_path, config->socket_mode, NULL, why);

	for (uint32_t i = 0; !err && i < config->n_tenants; i++) {
		const struct config_tenant *t = &config->tenants[i];

		if (t->socket_path[0])
			err = make_door(server, t->socket_path, t->socket_mode,
					&server->control.tenants[i], why);
	}
	return err ? err : no_socket_left(server, why);
}

static int open_doors(struct server *server, struct why *why)
{
	for (uint32_t i = 0; i < server->n_doors; i++) {
		struct door *door = &server->doors[i];

		if (loop_add(&server->loop, &door->watch) < 0)
			return why_fail_errno(why, SKVQ_ESYS, "listening on \"%s\"",
					      door->listener.path);
	}
	return 0;
}

static void close_doors(struct server *server)
{
	for (uint32_t i = 0; i < server->n_doors; i++) {
		loop_del(&server->loop, &server->doors[i].watch);
		listener_fini(&server->doors[i].listener);
	}
	server->n_doors = 0;
}

static int open_disks(struct server *server, struct why *why)
{
	int err = 0;

	server->n_tenants = server->cache.n_tenants;
	for (uint32_t i = 0; !err && i < server->n_tenants; i++) {
		err = disk_open(&server->disks[i], server->config, i, &server->loop,
				&server->cache, why);
		server->control.tenants[i].store = server->disks[i].store;
	}
	if (!err) {
		disks_tell(server->config);
		(void)disks_left(server->config);
	}
	return err;
}

/* What cannot be had is told, and done without: the unit that starts us has a filter of its own. */
static void sandbox(const struct server *server, bool calls)
{
	const struct config *config = server->config;
	const char *sockets[1 + TENANTS_MAX];
	enum sandbox_mode mode = (enum sandbox_mode)config->sandbox;
	struct why why = {{0}};
	uint8_t digest[IDENTITY_DIGEST] = {0};
	int err;

	/* With its first digest OpenSSL reads its configuration, and libraries that this names. */
	(void)identity_digest(digest, 0, digest);
	for (uint32_t i = 0; i < server->n_doors; i++)
		sockets[i] = server->doors[i].listener.path;
	err = calls ? sandbox_calls(mode, config->store_folder[0], &why)
		    : sandbox_paths(mode, sockets, server->n_doors, config->store_folder, &why);
	if (err < 0)
		log_event(LOG_WARNING, "not_in_sandbox", LOG_STR("detail", why.text));
}

static void close_watch(struct server *server, struct loop_watch *watch)
{
	int fd = watch->fd;

	loop_del(&server->loop, watch);
	if (fd >= 0)
		(void)close(fd);
}

static struct control_config control_config(const struct server *server, const char *version)
{
	const struct config *config = server->config;
	struct control_config cc = {
	    .conn = {.frame_max = (uint32_t)config->frame_max,
		     .backlog_max = (uint32_t)config->backlog_max},
	    .connections_max = (uint32_t)config->connections_max,
	    .pins_max = (uint32_t)config->pins_max,
	    .requests_max = (uint32_t)config->requests_max,
	    .staging_max = (uint32_t)config->staging_max,
	    .restore_wait_ms = (uint32_t)config->restore_wait_ms,
	    .steer = &server->steer.ops,
	    .handover = notify_can_store(1),
	    .socket = config->socket_path,
	    .version = version,
	};

	tenants_describe(config, &cc);
	return cc;
}

/* Listening, with everything behind it ready; runs until the loop is stopped. */
static int serve(struct server *server, const struct config *config, const char *version,
		 struct why *why)
{
	struct cache_config cache_config = {.ram_max = config->ram_max,
					    .namespaces_max = (uint32_t)config->namespaces_max,
					    .spill_percent = (uint32_t)config->spill_percent,
					    .restores_max = (uint32_t)config->restores_max,
					    .fills_max = (uint32_t)config->queue_max,
					    .no_shed = !config->shed};
	struct control_config cc = control_config(server, version);
	int err;

	if (worker_init(&server->worker, &server->loop, (uint32_t)config->threads,
			(uint32_t)config->queue_max) < 0)
		return why_fail_errno(why, SKVQ_ESYS, "starting %u worker threads",
				      (unsigned)config->threads);
	server->closer = closer_new();
	if (!server->closer) {
		worker_fini(&server->worker);
		return why_fail_errno(why, SKVQ_ESYS, "starting the closer thread");
	}
	cache_init(&server->cache, &cache_config, &server->worker, &server->stats);
	err = tenants_add(&server->cache, config, &server->salts, why);
	if (control_init(&server->control, &cc, &server->loop, server->closer, &server->cache,
			 &server->stats) < 0 &&
	    !err)
		err = why_fail_errno(why, SKVQ_ESYS, "setting up \"%s\"", config->socket_path);
	if (!err)
		err = open_disks(server, why);
	steer_bind(&server->steer, &server->control, &server->worker,
		   &server->disks[0].shutdown_ms);
	if (!err) {
		handover_take(&server->handover, &server->control);
		err = open_doors(server, why);
		ask_for_short_slices(); /* this thread alone: the workers are there already */
		sandbox(server, true);
	}
	if (!err) {
		log_event(LOG_INFO, "ready", LOG_STR("socket", config->socket_path),
			  LOG_U64("pid", getpid()), LOG_U64("ram_max", config->ram_max),
			  LOG_U64("tenants", server->n_tenants), LOG_STR("version", version));
		notify_state("READY=1\nSTATUS=serving");
		err = loop_run(&server->loop);
		if (err < 0)
			(void)why_fail_errno(why, -err, "waiting for events");
		log_event(LOG_INFO, "stopping",
			  LOG_STR("signal", server->signal ? strsignal(server->signal) : "none"));
		notify_state("STOPPING=1\nSTATUS=writing to disk and handing over");
	}
	cache_close(&server->cache);
	/* No new clients, no clients, then the copies they left behind, then the pages. */
	close_doors(server);
	handover_prepare(&server->handover, &server->control);
	control_fini(&server->control);
	disks_close(server->disks, server->n_tenants, &server->hurry);
	worker_fini(&server->worker);
	handover_leave(&server->handover, &server->cache);
	handover_fini(&server->handover, &server->cache);
	closer_free(server->closer);
	cache_fini(&server->cache);
	return err;
}

int server_run(struct config *config, int argc, char **argv, const char *version,
	       struct why *why)
{
	struct server *server = calloc(1, sizeof(*server));
	int err;

	if (!server)
		return why_fail(why, SKVQ_ENOMEM, "no memory to start");
	server->config = config;
	server->signal_watch.fd = server->tick_watch.fd = server->shrink_watch.fd = -1;
	handover_begin(&server->handover);
	err = loop_init(&server->loop);
	if (!err)
		err = add_signals(server);
	if (!err)
		err = add_timers(server);
	if (err < 0) {
		(void)why_fail_errno(why, -err, "setting up the event loop");
	} else {
		steer_init(&server->steer, config, argc, argv, raise_nofile(config));
		tell_huge_pages();
		err = tenants_read_salts(config, &server->salts, why);
		if (!err)
			err = make_doors(server, why);
		sandbox(server, false);
		if (!err)
			err = serve(server, config, version, why);
		close_doors(server);
	}
	close_watch(server, &server->signal_watch);
	close_watch(server, &server->tick_watch);
	close_watch(server, &server->shrink_watch);
	loop_fini(&server->loop);
	free(server);
	return err;
}
