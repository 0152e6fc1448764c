/* SPDX-License-Identifier: Apache-2.0 */
#include "listen.h"

#include <signal.h>
#include <time.h>

#define SLICE_MS 100u /* how long a signal waits */

static volatile sig_atomic_t ended;

static void on_signal(int sig)
{
	(void)sig;
	ended = 1;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static bool is_over(const struct ctl_listener *l)
{
	return ended || (l->until_ms && now_ms() >= l->until_ms);
}

static bool is_full(const struct ctl_listener *l)
{
	return l->count && l->lines >= l->count;
}

static void on_event(void *user, uint64_t lost, const struct skvq_client_event *e)
{
	struct ctl_listener *l = user;

	/* A reader slower than the events never sees the end of those that have come. */
	if (!is_full(l) && !l->failed && !is_over(l) && l->event(l, lost, e))
		l->lines++;
}

int ctl_listen(struct ctl *ctl, struct ctl_listener *l)
{
	struct sigaction sa = {.sa_handler = on_signal};
	struct skvq_client *c = ctl_connect(ctl);
	int err;

	if (!c)
		return ctl->result;
	l->until_ms = l->seconds ? now_ms() + l->seconds * 1000 : 0;
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	err = skvq_client_events(c, l->what, on_event, l);
	while (err >= 0 && !is_over(l) && !is_full(l) && !l->failed) {
		uint64_t now = now_ms(), left = SLICE_MS;

		if (l->until_ms)
			left = l->until_ms > now ? l->until_ms - now : 0;

		err = skvq_client_poll(c, left < SLICE_MS ? (uint32_t)left : SLICE_MS);
		l->failed = l->failed || fflush(l->to) != 0 || ferror(l->to);
	}
	if (err < 0)
		err = ctl_failed(ctl, c, "tell events", err);
	skvq_client_free(c);
	if (!err && l->failed && l->to == stdout)
		return ctl_flush();
	return err > 0 ? err : l->failed ? CTL_FAILED : CTL_OK;
}
