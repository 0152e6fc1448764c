/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing, and finding the daemon again after it was lost. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TIMEOUT_DEFAULT_MS 2000
#define RETRY_FIRST_MS 50
#define RETRY_LAST_MS 5000
#define RESCUE_AFTER_MS 100     /* a dying daemon closes its sockets before its process has ended */
#define REATTACH_TIMEOUT_MS 200 /* decoding goes on while the daemon is away: wait little */

/* A page the kernel wipes in a child: cheaper to look at than getpid(), and no pid can be reused. */
static const volatile uint32_t *fork_guard_new(void)
{
	long page = sysconf(_SC_PAGESIZE);
	uint32_t *p = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
	                   0);

	if (p == MAP_FAILED)
		return NULL;
	if (madvise(p, (size_t)page, MADV_WIPEONFORK) != 0) {
		munmap(p, (size_t)page);
		return NULL;
	}
	*p = 1;
	return p;
}

int32_t api_open(const skvq_engine *engine, const char *socket, skvq_session **ret)
{
	skvq_engine e;
	int r = copy_in(&e, sizeof e, engine);

	if (r < 0 || !ret || e.reserved || e.reserved1)
		return -SKVQ_EINVAL;
	skvq_session *s = calloc(1, sizeof *s);
	if (!s)
		return -SKVQ_ENOMEM;
	atomic_flag_clear(&s->error_busy);
	s->user = e.user;
	s->log = e.log;
	s->timeout_ms = e.timeout_ms ? e.timeout_ms : TIMEOUT_DEFAULT_MS;
	snprintf(s->name, sizeof s->name, "%s", e.name ? e.name : "");
	s->fork_guard = fork_guard_new();
	s->kernels = skvq_kernels_get();
	if (!s->fork_guard) {
		r = -SKVQ_ENOMEM;
		goto fail;
	}
	if (!s->kernels) {
		log_event(s, SKVQ_LOG_ERROR, "SKVQ_CPU names a kernel tier that cannot run here");
		r = -SKVQ_ENOTSUP;
		goto fail;
	}
	if (socket) {
		s->socket = strdup(socket);
		if (!s->socket) {
			r = -SKVQ_ENOMEM;
			goto fail;
		}
		r = session_attach(s, s->timeout_ms);
		if (r < 0) {
			log_event(s, SKVQ_LOG_ERROR, "%s", s->error);
			goto fail;
		}
	}
	*ret = s;
	return 0;
fail:
	api_close(s);
	return r;
}

void api_close(skvq_session *s)
{
	if (!s)
		return;
	bool child = s->fork_guard && check_fork(s) < 0;
	s->close_by_ms = now_ms() + s->timeout_ms;
	while (s->models) {
		while (s->models->seqs)
			api_seq_close(s->models->seqs);
		model_drop(s->models);
	}
	/* In a child the socket is the parent's too, and closing our copy harms nobody; in the
	 * parent a child's copy must not keep the pins. */
	if (!child)
		skvq_client_end(s->client);
	skvq_client_free(s->client);
	while (s->lost) {
		struct lost_link *l = s->lost;

		s->lost = l->next;
		if (!child)
			skvq_client_end(l->client);
		skvq_client_free(l->client);
		free(l);
	}
	if (s->fork_guard)
		munmap((void *)(uintptr_t)s->fork_guard, (size_t)sysconf(_SC_PAGESIZE));
	free(s->orphans);
	free(s->socket);
	free(s);
}

int32_t api_session_fd(skvq_session *s)
{
	if (!s)
		return -SKVQ_EINVAL;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (s->daemon != DAEMON_ATTACHED)
		return set_error(s, SKVQ_ESTATE, "%s",
		                 s->socket ? "the daemon is lost" : "an embedded session has no daemon");
	return skvq_client_fd(s->client);
}

int32_t api_stats(skvq_session *s, skvq_stats *stats)
{
	if (!s)
		return -SKVQ_EINVAL;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	s->stats.daemon = (uint32_t)s->daemon;
	s->stats.boot_id = s->client ? skvq_client_hello(s->client)->boot_id : 0;
	return copy_out(stats, &s->stats, sizeof s->stats);
}

int session_attach(struct skvq_session *s, uint32_t timeout_ms)
{
	char why[SKVQ_CLIENT_WHY_BYTES];
	int r = skvq_client_connect(s->socket, s->name, timeout_ms, &s->client, why);

	if (r < 0)
		return set_error(s, -r, "%s", why);
	s->epoch++;
	s->daemon = DAEMON_ATTACHED;
	skvq_client_on_published(s->client, on_published, s);
	for (struct skvq_model *m = s->models; m; m = m->next) {
		r = model_attach(m);
		if (r < 0 && skvq_client_broken(s->client)) {
			session_lost(s);
			return r;
		}
		if (r < 0)
			log_event(s, SKVQ_LOG_WARNING, "reattached without model '%s': %s",
			          m->id.model_name, s->error);
	}
	skvq_client_set_timeout(s->client, s->timeout_ms);
	return 0;
}

void session_lost(struct skvq_session *s)
{
	if (s->daemon != DAEMON_ATTACHED)
		return;
	log_event(s, SKVQ_LOG_WARNING, "daemon lost: %s; decoding goes on from mapped pages",
	          skvq_client_why(s->client));
	struct lost_link *l = calloc(1, sizeof *l);
	if (l) {
		*l = (struct lost_link){
		    .next = s->lost, .client = s->client, .epoch = s->epoch, .since_ms = now_ms()};
		s->lost = l;
	} /* else the descriptor is leaked rather than closed: the pages must stay */
	s->client = NULL;
	s->daemon = DAEMON_LOST;
	s->retry_ms = RETRY_FIRST_MS;
	s->retry_at_ms = now_ms() + s->retry_ms;
	s->n_orphans = 0;
	/* Whatever was in flight stays local; the pages are published again to the next daemon. */
	for (size_t i = 0; i < s->n_tickets; i++) {
		struct skvq_seq *q = s->tickets[i].seq;
		if (q) {
			/* It may be slow, not dead, and read them yet. */
			q->pages[q->n_published].staging->spoiled = true;
			q->mail->full = true;
			q->mail->err = -SKVQ_ENODAEMON;
			q->mail->n = 0;
		}
	}
	s->n_tickets = 0;
}

static bool uses_epoch(const struct skvq_seq *q, uint32_t epoch)
{
	for (uint32_t i = q->n_dropped; i < q->pages_max && q->pages[i].data; i++)
		if (q->pages[i].state == PAGE_SHARED && q->pages[i].epoch == epoch)
			return true;
	return false;
}

static bool epoch_in_use(const struct skvq_session *s, uint32_t epoch)
{
	for (const struct skvq_model *m = s->models; m; m = m->next)
		for (struct skvq_seq *q = m->seqs; q; q = q->next)
			for (uint32_t i = 0; i < n_parts(q); i++)
				if (uses_epoch(part(q, i), epoch))
					return true;
	return false;
}

void seq_rescue(struct skvq_seq *q)
{
	struct skvq_session *s = q->model->session;

	for (struct lost_link **at = &s->lost; *at;) {
		struct lost_link *l = *at;

		if (!l->gone && skvq_client_daemon_gone(l->client))
			l->gone = true;
		if (!l->gone && now_ms() - l->since_ms >= RESCUE_AFTER_MS)
			for (uint32_t i = q->n_dropped; i < q->pages_max && q->pages[i].data; i++)
				if (q->pages[i].state == PAGE_SHARED && q->pages[i].epoch == l->epoch)
					(void)page_repatriate(q, i); /* no memory: next time */
		if (l->gone || !epoch_in_use(s, l->epoch)) {
			*at = l->next;
			skvq_client_end(l->client);
			skvq_client_free(l->client);
			free(l);
		} else {
			at = &l->next;
		}
	}
}

void session_pump(struct skvq_session *s, uint32_t wait_ms)
{
	if (s->daemon == DAEMON_LOST && now_ms() >= s->retry_at_ms) {
		/* session_lost() inside sets the interval back: a daemon that answers hello and then
		 * hangs must not be asked ever again at the shortest one. */
		uint32_t before = s->retry_ms;
		uint32_t wait_attach =
		    s->timeout_ms < REATTACH_TIMEOUT_MS ? s->timeout_ms : REATTACH_TIMEOUT_MS;

		if (session_attach(s, wait_attach) == 0) {
			s->stats.reconnects++;
			log_event(s, SKVQ_LOG_INFO, "daemon found again on '%s'", s->socket);
		} else {
			s->retry_ms = before * 2 < RETRY_LAST_MS ? before * 2 : RETRY_LAST_MS;
			s->retry_at_ms = now_ms() + s->retry_ms;
		}
	}
	if (s->daemon != DAEMON_ATTACHED)
		return;
	if (skvq_client_poll(s->client, wait_ms) < 0) {
		session_lost(s);
		return;
	}
	unpin_orphans(s);
}
