/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "load.h"

#define READY_US 60e6
#define END_US   60e6
#define WARM_UP  0.3 /* of a phase: until then buffers grow to what they need */

/* ---- histograms ---- */

static uint32_t bucket_of(double us)
{
	double ns = us * 1e3;
	uint64_t v = ns < 64 ? 64 : ns >= 0x1p39 ? (UINT64_C(1) << 39) - 1 : (uint64_t)ns;
	uint32_t octave = 63 - (uint32_t)__builtin_clzll(v);

	return (octave - 6) * 64 + (uint32_t)(v >> (octave - 6)) - 64;
}

/* Its middle. */
static double bucket_us(uint32_t bucket)
{
	return ldexp(64.5 + bucket % 64, (int)(bucket / 64)) / 1e3;
}

void histogram_add(struct histogram *h, double us)
{
	atomic_fetch_add_explicit(&h->n[bucket_of(us)], 1, memory_order_relaxed);
}

void histogram_sum(struct histogram *to, const struct histogram *from)
{
	for (uint32_t i = 0; i < BUCKETS; i++)
		to->n[i] += from->n[i];
}

uint64_t histogram_count(const struct histogram *h)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < BUCKETS; i++)
		n += h->n[i];
	return n;
}

double histogram_quantile(const struct histogram *h, double q)
{
	uint64_t n = histogram_count(h), want = (uint64_t)(q * (double)n), seen = 0;

	if (!n)
		return 0;
	if (want >= n)
		want = n - 1;
	for (uint32_t i = 0; i < BUCKETS; i++) {
		seen += h->n[i];
		if (seen > want)
			return bucket_us(i);
	}
	return bucket_us(BUCKETS - 1);
}

#define KIND_NAME_(name, text) #text,
const char *const kind_names[KIND_COUNT] = {KINDS(KIND_NAME_)};
#undef KIND_NAME_

bool kind_is_small(enum kind kind)
{
	return kind == KIND_PING || kind == KIND_MATCH_SMALL || kind == KIND_UNPIN_SMALL;
}

/* ---- what the daemon was like ---- */

struct series {
	struct daemon_sample at[SAMPLES_MAX];
	double us[SAMPLES_MAX];
	uint32_t n;
};

/* Medians of samples from..to. */
static struct daemon_sample median(const struct series *s, uint32_t from, uint32_t to)
{
	struct daemon_sample m = {0};
	uint32_t n = to > from ? to - from : 0;
	double *v = calloc(2 * (size_t)n + 1, sizeof(*v));

	if (!v || !n) {
		free(v);
		return s->n ? s->at[s->n - 1] : m;
	}
	for (uint32_t i = 0; i < n; i++) {
		v[i] = (double)s->at[from + i].rss_bytes;
		v[n + i] = s->at[from + i].fds;
	}
	bench_sort(v, n);
	bench_sort(v + n, n);
	m = s->at[to - 1];
	m.rss_bytes = (uint64_t)v[n / 2];
	m.fds = (uint32_t)v[n + n / 2];
	free(v);
	return m;
}

/* Least squares, bytes a minute, from sample `from` on. */
static double slope(const struct series *s, uint32_t from)
{
	double n = 0, x = 0, y = 0, xx = 0, xy = 0, d;

	for (uint32_t i = from; i < s->n; i++) {
		double t = (s->us[i] - s->us[from]) / 60e6, b = (double)s->at[i].rss_bytes;

		n++;
		x += t;
		y += b;
		xx += t * t;
		xy += t * b;
	}
	d = n * xx - x * x;
	return d > 0 ? (n * xy - x * y) / d : 0;
}

static void look_back(const struct series *s, struct phase *ret)
{
	uint32_t warm = (uint32_t)(WARM_UP * s->n), fifth = (s->n - warm) / 5;

	if (!s->n)
		return;
	fifth = fifth ? fifth : 1;
	ret->first = median(s, warm, warm + fifth);
	ret->last = median(s, s->n - fifth, s->n);
	ret->rss_slope = slope(s, warm);
	if (s->n > 1 && s->us[s->n - 1] > s->us[0])
		ret->cpu_percent =
		    100 * (s->at[s->n - 1].cpu_us - s->at[0].cpu_us) / (s->us[s->n - 1] - s->us[0]);
}

static void take_sample(pid_t daemon, struct series *s)
{
	if (s->n < SAMPLES_MAX && daemon_sample(daemon, &s->at[s->n]))
		s->us[s->n++] = bench_now_us();
}

static void watch(pid_t daemon, double until_us, struct series *s)
{
	double every = (until_us - bench_now_us()) / 200, left;

	if (every < 50e3)
		every = 50e3;
	take_sample(daemon, s);
	while ((left = until_us - bench_now_us()) > 0) {
		double us = left < every ? left : every;

		(void)nanosleep(&(struct timespec){.tv_sec = (time_t)(us / 1e6),
						   .tv_nsec = (long)(fmod(us, 1e6) * 1e3)},
				NULL);
		take_sample(daemon, s);
	}
}

/* ---- processes ---- */

static pid_t spawn(const struct load *load, struct shared *shared, client_fn fn, uint32_t number)
{
	pid_t parent = getpid(), pid = fork();

	if (pid != 0)
		return pid;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)prctl(PR_SET_TIMERSLACK, 1000UL);
	(void)signal(SIGPIPE, SIG_IGN);
	if (getppid() == parent)
		fn(load, shared, number);
	_exit(shared->slots[number].failures ? 1 : 0);
}

/* Number of processes that did not end with 0. */
static uint32_t gather(const pid_t *pids, uint32_t n)
{
	double until = bench_now_us() + END_US;
	uint32_t failed = 0;

	for (uint32_t i = 0; i < n; i++) {
		int status = 0;
		pid_t ended;

		while ((ended = waitpid(pids[i], &status, WNOHANG)) == 0 && bench_now_us() < until)
			(void)usleep(2000);
		if (ended == 0) {
			(void)kill(pids[i], SIGKILL);
			(void)waitpid(pids[i], &status, 0);
		}
		failed += ended != pids[i] || !WIFEXITED(status) || WEXITSTATUS(status) != 0;
	}
	return failed;
}

static void sum_up(const struct shared *shared, uint32_t n, struct phase *ret)
{
	struct slot *to = &ret->sum;

	for (uint32_t i = 0; i < n; i++) {
		const struct slot *s = &shared->slots[i];

		for (uint32_t k = 0; k < KIND_COUNT; k++)
			histogram_sum(&to->kinds[k], &s->kinds[k]);
		for (uint32_t w = 0; w < WINDOWS; w++)
			histogram_sum(&to->small[w], &s->small[w]);
		if (i < CLIENTS_MAX)
			ret->served[i] = s->served;
		to->served += s->served;
		to->tokens_asked += s->tokens_asked;
		to->tokens_hit += s->tokens_hit;
		to->pages_published += s->pages_published;
		to->pages_existed += s->pages_existed;
		to->bytes_late += s->bytes_late;
		to->pages_checked += s->pages_checked;
		to->pages_compared += s->pages_compared;
		to->wrong_bytes += s->wrong_bytes;
		to->refused += s->refused;
		to->failures += s->failures;
	}
}

bool phase_run(const struct load *load, pid_t daemon, client_fn fn, uint32_t n, bool onlooker,
	       double seconds, struct phase *ret)
{
	size_t bytes = sizeof(struct shared);
	uint32_t all = n + onlooker, running = 0;
	struct series *series = calloc(1, sizeof(*series));
	double until = bench_now_us() + READY_US;
	pid_t pids[CLIENTS_MAX + 1], echo_pid;
	struct shared *shared =
	    mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	memset(ret, 0, sizeof(*ret));
	if (shared == MAP_FAILED || !series) {
		fprintf(stderr, "bench-load: no memory for a phase\n");
		if (shared != MAP_FAILED)
			(void)munmap(shared, bytes);
		free(series);
		return false;
	}
	(void)fflush(NULL);
	echo_pid = n ? echo_start(all, shared->echo) : 0;
	for (; echo_pid >= 0 && running < all; running++) {
		pids[running] = spawn(load, shared, running < n ? fn : client_onlooker, running);
		if (pids[running] < 0)
			break;
	}
	while (running == all && shared->ready < all && bench_now_us() < until)
		(void)usleep(1000);
	if (running == all) {
		double start = bench_now_us();

		shared->end_us = (uint64_t)(start + seconds * 1e6);
		shared->start_us = (uint64_t)start;
		watch(daemon, start + seconds * 1e6, series);
		ret->seconds = (bench_now_us() - start) / 1e6;
		ret->arena_bytes = daemon_arena_bytes(load->socket);
	}
	shared->stop = true;
	ret->failed = gather(pids, running) + (all - running);
	echo_stop(echo_pid, all, shared->echo);
	sum_up(shared, all, ret);
	look_back(series, ret);
	(void)munmap(shared, bytes);
	free(series);
	return echo_pid >= 0 && running == all;
}
