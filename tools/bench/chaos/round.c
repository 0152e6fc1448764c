/* SPDX-License-Identifier: Apache-2.0 */
#include "round.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CRASH_STATUS 86 /* spill/faults.h */
#define STEP_MS      10u
#define SHUTDOWN_MS  1500u
#define TMPFS_KIB    1536u
#define STARTS_MAX   5u

volatile bool interrupted;

struct theme {
	const char *name;
	uint32_t ram_kib, capacity_kib;
	uint32_t kill_ms, term_ms; /* mean time between; 0: never */
	bool damage;
	bool second_touch; /* as the default; else every page is admitted at once */
	bool tmpfs;        /* smaller than the capacity */
	bool budget;       /* of a megabyte a day */
	bool pressure;
	bool points;        /* named crash points, one after the other */
	const char *faults; /* rates for skvqd-faults; NULL: skvqd itself */
};

#define ALL_RATES                                                                                  \
	"eio=100,enospc=100,eagain=300,submit_eagain=300,cut_short=300,torn=200,flip=200,delay="   \
	"300,"                                                                                     \
	"delay_ms=200"

static const struct theme themes[] = {
    {.name = "calm", .ram_kib = 3072, .capacity_kib = 65536},
    {.name = "kill", .ram_kib = 3072, .capacity_kib = 32768, .kill_ms = 600},
    {.name = "term", .ram_kib = 3072, .capacity_kib = 32768, .term_ms = 900, .second_touch = true},
    {.name = "damage",
     .ram_kib = 2048,
     .capacity_kib = 16384,
     .kill_ms = 600,
     .term_ms = 1000,
     .damage = true},
    {.name = "full", .ram_kib = 2048, .capacity_kib = 16384, .kill_ms = 2000, .tmpfs = true},
    {.name = "small", .ram_kib = 2048, .capacity_kib = 1280, .kill_ms = 2000},
    {.name = "budget", .ram_kib = 2048, .capacity_kib = 16384, .term_ms = 2000, .budget = true},
    {.name = "pressure", .ram_kib = 512, .capacity_kib = 16384, .kill_ms = 1500, .pressure = true},
    {.name = "errors", .ram_kib = 2048, .capacity_kib = 8192, .kill_ms = 1500, .faults = ALL_RATES},
    {.name = "lost",
     .ram_kib = 2048,
     .capacity_kib = 8192,
     .term_ms = 2500,
     .faults = "lost=50,delay=2000,delay_ms=400"},
    {.name = "dead-disk",
     .ram_kib = 2048,
     .capacity_kib = 8192,
     .term_ms = 1500,
     .faults = "eio=9000"},
    {.name = "points", .ram_kib = 2048, .capacity_kib = 4096, .points = true, .faults = "eio=10"},
    {.name = "all",
     .ram_kib = 1024,
     .capacity_kib = 4096,
     .kill_ms = 900,
     .term_ms = 2000,
     .damage = true,
     .points = true,
     .faults = ALL_RATES ",lost=10"},
};
const uint32_t n_themes = sizeof(themes) / sizeof(themes[0]);

const char *theme_name(uint32_t theme)
{
	return themes[theme].name;
}

struct process {
	pid_t pid;          /* 0: none */
	bool keeps;         /* the one that stops itself */
	bool stopped;       /* has done so */
	bool killed;        /* by us, or told to */
	uint64_t resume_ms; /* paused until then; 0: not */
};

struct round {
	const struct round_config *config;
	const struct theme *theme;
	uint64_t random;
	uint32_t lives;
	struct shared *shared;
	struct totals *totals;
	struct daemon_run d;
	uint64_t kill_at, term_at, client_at, pause_at, resume_daemon_at;
	struct process clients[CLIENTS_MAX];
};

/* A time from now, by its mean; 0 is never. */
static uint64_t in_about(struct round *r, uint32_t mean_ms)
{
	return mean_ms ? now_ms() + mean_ms / 4 + draw_below(&r->random, mean_ms * 3 / 2)
		       : UINT64_MAX;
}

static void fault(struct round *r, enum fault kind)
{
	r->totals->faults[kind]++;
}

/* ---- the daemon ---- */

static const char *rates_of(const struct round *r)
{
	return r->config->faults ? r->config->faults : r->theme->faults;
}

static void faults_text(struct round *r, bool crash, char *to, size_t bytes)
{
	static const char *const points[] = {"after-put",  "mid-seal",     "before-sync",
					     "in-restore", "after-create", "before-unlink"};
	int n = snprintf(to, bytes, "seed=%llu,%s", (unsigned long long)draw(&r->random) >> 1,
			 rates_of(r));

	/* One of two records read while recovering would end all restarts: far enough behind. */
	if (crash && r->theme->points)
		(void)snprintf(to + n, bytes - (size_t)n, ",crash=%s,crash_at=%u",
			       points[r->lives % (sizeof(points) / sizeof(points[0]))],
			       1 + draw_below(&r->random, r->lives % 6 == 3 ? 400 : 20));
}

static int start_once(struct round *r, bool crash, int *ret_status)
{
	const struct theme *t = r->theme;
	uint32_t engine = draw_below(&r->random, 4);
	char ram[32], capacity[32], faults[FAULTS_BYTES];
	const char *args[] = {"--ram-max",
			      ram,
			      "--store-capacity-bytes",
			      capacity,
			      "--store-segment-bytes",
			      "256K",
			      "--store-record-bytes",
			      "64K",
			      "--store-buffers",
			      "12",
			      "--store-touch-entries",
			      t->second_touch ? "4096" : "0",
			      "--store-write-bytes-per-day",
			      t->budget ? "1M" : "0",
			      "--store-io-timeout-ms",
			      "400",
			      "--store-restore-wait-ms",
			      "300",
			      "--store-sync-ms",
			      "100",
			      "--store-shutdown-ms",
			      "1500",
			      "--store-spill-percent",
			      draw_below(&r->random, 3) ? "50" : "100",
			      "--store-io-uring",
			      engine == 1 ? "0" : "1",
			      "--store-direct",
			      engine == 2 ? "0" : "1",
			      NULL};

	(void)snprintf(ram, sizeof(ram), "%uK", t->ram_kib);
	(void)snprintf(capacity, sizeof(capacity), "%uK", t->capacity_kib);
	if (rates_of(r))
		faults_text(r, crash, faults, sizeof(faults));
	r->lives++;
	r->totals->lives++;
	return daemon_start(&r->d, args, rates_of(r) ? faults : NULL, ret_status);
}

static void take_life_counts(struct round *r)
{
	struct life_counts *c = r->d.counts;
	uint64_t *f = r->totals->faults;

	f[FAULT_io_error] += c->errors;
	f[FAULT_io_again] += c->again;
	f[FAULT_io_short] += c->shorts;
	f[FAULT_io_torn] += c->torn;
	f[FAULT_io_flip] += c->flips;
	f[FAULT_io_delay] += c->delays;
	f[FAULT_io_lost] += c->lost;
	memset(c, 0, sizeof(*c));
}

/* What nobody wanted it to do. */
static void judge_end(struct round *r, int status)
{
	take_life_counts(r);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CRASH_STATUS && r->theme->points) {
		fault(r, FAULT_daemon_crash_point);
		return;
	}
	r->totals->daemon_failures++;
	fprintf(stderr, "chaos: the daemon ended by itself or not as it should, %s %d\n",
		WIFSIGNALED(status) ? "signal" : "status",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	daemon_log_tail(&r->d);
}

/* A disk that fails while it is looked through may refuse a start; without the faults it may not.
 */
static int start(struct round *r)
{
	int status = 0;

	for (uint32_t i = 0; i < STARTS_MAX; i++) {
		if (start_once(r, i == 0, &status) == 0)
			return 0;
		take_life_counts(r);
		if (WIFEXITED(status) && WEXITSTATUS(status) == CRASH_STATUS)
			fault(r, FAULT_daemon_crash_point);
		else if (!rates_of(r) || !WIFEXITED(status) || WEXITSTATUS(status) != 1)
			break;
	}
	r->totals->daemon_failures++;
	fprintf(stderr, "chaos: no start, status 0x%x\n", (unsigned)status);
	daemon_log_tail(&r->d);
	return -1;
}

static void take_counters(struct round *r)
{
#define NAME(name) #name,
	static const char *const names[] = {SEEN(NAME)};
#undef NAME
	static struct skvq_client_status status; /* large */
	char why[SKVQ_CLIENT_WHY_BYTES];
	struct skvq_client *c;

	if (!r->d.pid || skvq_client_connect(r->d.socket, "chaos", TIMEOUT_MS, &c, why) < 0)
		return;
	if (skvq_client_status(c, &status) >= 0)
		for (size_t i = 0; i < status.n_counters; i++)
			for (int k = 0; k < SEEN_COUNT; k++)
				if (!strcmp(status.counters[i].name, names[k]))
					r->totals->seen[k] += status.counters[i].value;
	skvq_client_free(c);
}

static void check_disk(struct round *r, const char *when)
{
	uint64_t have = store_bytes(&r->d), most = (uint64_t)r->theme->capacity_kib << 10;

	if (have <= most)
		return;
	r->totals->leaks++;
	fprintf(stderr, "chaos: %s the store takes %llu bytes of disk, at most %llu are allowed\n",
		when, (unsigned long long)have, (unsigned long long)most);
}

static bool ended_well(int sig, int status)
{
	if (sig == SIGKILL)
		return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void stop_daemon(struct round *r, int sig)
{
	int status = 0;

	if (!r->d.pid)
		return;
	if (r->resume_daemon_at)
		(void)kill(r->d.pid, SIGCONT);
	r->resume_daemon_at = 0;
	take_counters(r);
	fault(r, sig == SIGKILL ? FAULT_daemon_kill : FAULT_daemon_term);
	if (!daemon_stop(&r->d, sig, SHUTDOWN_MS + TIMEOUT_MS, &status)) {
		r->totals->hangs++;
		fprintf(stderr, "chaos: the daemon does not end after signal %d\n", sig);
	}
	if (ended_well(sig, status))
		take_life_counts(r);
	else
		judge_end(r, status);
	check_disk(r, "without a daemon");
}

static void damage(struct round *r)
{
	for (uint32_t n = draw_below(&r->random, 8); n > 0; n--) {
		enum damage kind = (enum damage)draw_below(&r->random, DAMAGE_COUNT);

		if (damage_one(&r->d, kind, &r->random))
			fault(r, (enum fault)(FAULT_damage_flip + (int)kind));
	}
}

static int restart(struct round *r, int sig)
{
	stop_daemon(r, sig);
	if (r->theme->damage)
		damage(r);
	nanosleep(&(struct timespec){.tv_nsec = (long)draw_below(&r->random, 50) * 1000000}, NULL);
	r->kill_at = in_about(r, r->theme->kill_ms);
	r->term_at = in_about(r, r->theme->term_ms);
	return start(r);
}

/* ---- the clients ---- */

static int spawn(struct round *r, uint32_t i, bool keeps)
{
	uint64_t seed = draw(&r->random);
	pid_t parent = getpid(), pid = fork();

	if (pid < 0) {
		fprintf(stderr, "chaos: fork: %s\n", strerror(errno));
		return -1;
	}
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)signal(SIGINT, SIG_IGN);
		(void)signal(SIGTERM, SIG_DFL);
		if (getppid() != parent)
			_exit(1);
		_exit(client_run(r->shared, i, r->d.socket, seed,
				 (keeps ? CLIENT_KEEPS : 0) |
				     (r->config->lie && i % 8 == 1 ? CLIENT_LIES : 0)));
	}
	r->clients[i] = (struct process){.pid = pid, .keeps = keeps};
	return 0;
}

/* Ended clients are taken in, and new ones begun in their places. */
static int reap(struct round *r, bool renew)
{
	for (uint32_t i = 0; i < r->config->clients; i++) {
		struct process *p = &r->clients[i];
		struct slot *s = &r->shared->slots[i];
		int status;

		if (!p->pid || waitpid(p->pid, &status, WNOHANG | WUNTRACED) != p->pid)
			continue;
		if (WIFSTOPPED(status)) {
			if (p->keeps && !p->stopped && !p->resume_ms) {
				p->stopped = true;
				fault(r, FAULT_client_stop);
			}
			continue;
		}
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && s->death) {
			fault(r, s->death == DEATH_HOLDING ? FAULT_client_kill_holding
							   : FAULT_client_kill_in_publish);
		} else if (!p->killed && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
			r->totals->client_failures++;
			fprintf(stderr, "chaos: client %u ended with wait status 0x%x\n", i,
				(unsigned)status);
		}
		s->death = DEATH_NONE;
		s->since_ms = 0;
		p->pid = 0;
		if (renew && spawn(r, i, false) < 0)
			return -1;
	}
	return 0;
}

static void watch(struct round *r)
{
#define NAME(name, text) #text,
	static const char *const names[] = {OPS(NAME)};
#undef NAME
	for (uint32_t i = 0; i < r->config->clients; i++) {
		struct process *p = &r->clients[i];
		struct slot *s = &r->shared->slots[i];
		uint64_t since = s->since_ms, now = now_ms();

		if (p->resume_ms && now >= p->resume_ms) {
			(void)kill(p->pid, SIGCONT);
			p->resume_ms = 0;
		}
		if (!p->pid || p->stopped || p->killed || !since || now < since + HANG_MS)
			continue;
		s->hangs++;
		fprintf(stderr, "chaos: client %u hangs in %s\n", i, names[s->op]);
		p->killed = true;
		(void)kill(p->pid, SIGKILL);
	}
}

static void hurt_a_client(struct round *r)
{
	uint32_t i = draw_below(&r->random, r->config->clients);
	struct process *p = &r->clients[i];

	if (!p->pid || p->keeps || p->killed || p->resume_ms || r->shared->slots[i].death)
		return;
	switch (draw_below(&r->random, 4)) {
	case 0:
		p->killed = true;
		fault(r, FAULT_client_kill);
		(void)kill(p->pid, SIGKILL);
		break;
	case 1:
		r->shared->slots[i].death = DEATH_HOLDING;
		break;
	case 2:
		r->shared->slots[i].death = DEATH_IN_PUBLISH;
		break;
	default:
		p->resume_ms = now_ms() + 1 + draw_below(&r->random, 300);
		fault(r, FAULT_client_pause);
		(void)kill(p->pid, SIGSTOP);
	}
}

/* All that are there look at what they hold, and end. */
static void end_clients(struct round *r)
{
	uint64_t until = now_ms() + HANG_MS;
	bool left = true;

	r->shared->stop = true;
	for (uint32_t i = 0; i < r->config->clients; i++) {
		r->clients[i].resume_ms = 0;
		r->clients[i].stopped = false;
		if (r->clients[i].pid)
			(void)kill(r->clients[i].pid, SIGCONT);
	}
	while (left && now_ms() < until) {
		(void)reap(r, false);
		left = false;
		for (uint32_t i = 0; i < r->config->clients; i++)
			left |= r->clients[i].pid != 0;
		if (left)
			nanosleep(&(struct timespec){.tv_nsec = STEP_MS * 1000000}, NULL);
	}
	for (uint32_t i = 0; i < r->config->clients; i++) {
		if (!r->clients[i].pid)
			continue;
		r->totals->hangs++;
		fprintf(stderr, "chaos: client %u does not end\n", i);
		(void)kill(r->clients[i].pid, SIGKILL);
		(void)waitpid(r->clients[i].pid, NULL, 0);
		r->clients[i].pid = 0;
	}
}

/* ---- the round ---- */

static int step(struct round *r)
{
	uint64_t now = now_ms();
	int status, err = 0;

	if (reap(r, true) < 0)
		return -1;
	watch(r);
	if (r->resume_daemon_at && now >= r->resume_daemon_at) {
		(void)kill(r->d.pid, SIGCONT);
		r->resume_daemon_at = 0;
	}
	if (daemon_ended(&r->d, &status)) {
		r->resume_daemon_at = 0;
		judge_end(r, status);
		err = restart(r, SIGKILL);
	} else if (now >= r->kill_at) {
		err = restart(r, SIGKILL);
	} else if (now >= r->term_at) {
		err = restart(r, SIGTERM);
	} else if (now >= r->client_at) {
		r->client_at = in_about(r, 80);
		hurt_a_client(r);
	} else if (now >= r->pause_at && !r->resume_daemon_at) {
		r->pause_at = in_about(r, 4000);
		r->resume_daemon_at = now + 20 + draw_below(&r->random, 300);
		fault(r, FAULT_daemon_pause);
		(void)kill(r->d.pid, SIGSTOP);
	}
	return err;
}

static int run_it(struct round *r)
{
	uint64_t until = now_ms() + r->config->ms;
	int err = start(r);

	r->kill_at = in_about(r, r->theme->kill_ms);
	r->term_at = in_about(r, r->theme->term_ms);
	r->client_at = in_about(r, 80);
	r->pause_at = in_about(r, 4000);
	for (uint32_t i = 0; i < r->config->clients && !err; i++)
		err = spawn(r, i, i == 0);
	while (!err && now_ms() < until && !interrupted) {
		err = step(r);
		nanosleep(&(struct timespec){.tv_nsec = STEP_MS * 1000000}, NULL);
	}
	if (r->resume_daemon_at)
		(void)kill(r->d.pid, SIGCONT);
	r->resume_daemon_at = 0;
	return err;
}

static void finish(struct round *r)
{
	struct leak_bounds bounds = {.disk_bytes = (uint64_t)r->theme->capacity_kib << 10,
				     .anon_bytes = r->config->anon_bytes};
	int status;

	end_clients(r);
	if (daemon_ended(&r->d, &status))
		judge_end(r, status);
	if (r->d.pid)
		r->totals->leaks += leaks_of(&r->d, &bounds);
	stop_daemon(r, SIGTERM);
}

/* ---- its folder ---- */

static int make_folder(struct round *r)
{
	struct daemon_run *d = &r->d;
	char options[48];

	if (snprintf(d->folder, sizeof(d->folder), "%s/skvq-chaos-XXXXXX", r->config->folder) >=
		(int)sizeof(d->folder) ||
	    !mkdtemp(d->folder)) {
		fprintf(stderr, "chaos: no folder in '%s': %s\n", r->config->folder,
			strerror(errno));
		return -1;
	}
	(void)snprintf(d->socket, sizeof(d->socket), "%s/socket", d->folder);
	(void)snprintf(d->store, sizeof(d->store), "%s/store", d->folder);
	if (!r->theme->tmpfs || !r->config->may_mount)
		return 0;
	(void)snprintf(options, sizeof(options), "size=%uK,mode=0700", TMPFS_KIB);
	if (mkdir(d->store, 0700) < 0 || mount("chaos", d->store, "tmpfs", 0, options) < 0) {
		fprintf(stderr, "chaos: no tmpfs: %s\n", strerror(errno));
		return -1;
	}
	fault(r, FAULT_disk_full);
	return 0;
}

static void remove_files(const char *folder)
{
	DIR *dir = opendir(folder);
	struct dirent *e;

	while (dir && (e = readdir(dir)) != NULL)
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			(void)unlinkat(dirfd(dir), e->d_name, 0);
	if (dir)
		(void)closedir(dir);
}

static void remove_folder(const struct round *r)
{
	remove_files(r->d.store);
	if (r->theme->tmpfs && r->config->may_mount)
		(void)umount2(r->d.store, MNT_DETACH); /* the kernel may still be closing files */
	(void)rmdir(r->d.store);
	remove_files(r->d.folder);
	if (rmdir(r->d.folder) < 0)
		fprintf(stderr, "chaos: '%s' is left behind\n", r->d.folder);
}

static int make_counts(struct daemon_run *d)
{
	void *at;

	d->counts_fd = memfd_create("chaos-counts", MFD_CLOEXEC);
	if (d->counts_fd < 0 || ftruncate(d->counts_fd, sizeof(*d->counts)) < 0)
		return -1;
	at = mmap(NULL, sizeof(*d->counts), PROT_READ | PROT_WRITE, MAP_SHARED, d->counts_fd, 0);
	if (at == MAP_FAILED)
		return -1;
	d->counts = at;
	return 0;
}

int round_run(const struct round_config *config, uint32_t theme, uint64_t seed,
	      struct shared *shared, struct totals *totals)
{
	static struct round round;
	struct round *r = &round;
	int err;

	*r = (struct round){.config = config,
			    .theme = &themes[theme],
			    .random = seed,
			    .shared = shared,
			    .totals = totals,
			    .d = {.bin = config->bin, .counts_fd = -1}};
	shared->stop = false;
	err = make_folder(r);
	if (!err)
		err = make_counts(&r->d);
	if (!err) {
		totals->faults[FAULT_disk_small] += r->theme->capacity_kib < 2048;
		totals->faults[FAULT_write_budget] += r->theme->budget;
		totals->faults[FAULT_memory_pressure] += r->theme->pressure;
		err = run_it(r);
		finish(r);
	}
	if (r->d.counts)
		(void)munmap(r->d.counts, sizeof(*r->d.counts));
	if (r->d.counts_fd >= 0)
		(void)close(r->d.counts_fd);
	remove_folder(r);
	return err;
}
