/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of local pages: sealed memfds that the daemon may read while it takes pages in.
 *
 * A sequence opens pages in a staging of its own, page i at i * slot_bytes. Pages stay where they
 * were opened: a fork reads its past in the staging of the sequence it came from, whoever closes
 * first. What the daemon may still be reading is never written again nor taken away: such a staging
 * is left to its pages, and the sequence goes on in a new one.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void staging_free(struct staging *st)
{
	struct skvq_session *s = st->session;

	if (st->epoch && st->epoch == s->epoch && s->daemon == DAEMON_ATTACHED &&
	    check_fork(s) == 0 && skvq_client_staging_drop(s->client, st->id) < 0 &&
	    skvq_client_broken(s->client))
		session_lost(s);
	if (st->base)
		munmap(st->base, st->bytes);
	if (st->fd >= 0)
		close(st->fd);
	free(st->users);
	free(st);
}

/* Fixed in size, a page's memory taken when it opens. Sealed, because the daemon reads it and wants
 * to know that it cannot shrink meanwhile. */
static int staging_map(struct staging *st)
{
	struct skvq_session *s = st->session;

	st->fd = memfd_create("skvq-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (st->fd < 0)
		return set_error(s, SKVQ_ESYS, "memfd_create: %s", strerror(errno));
	if (ftruncate(st->fd, (off_t)st->bytes) < 0 ||
	    fcntl(st->fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return set_error(s, SKVQ_ESYS, "staging memfd of %llu bytes: %s",
				 (unsigned long long)st->bytes, strerror(errno));
	void *p =
	    mmap(NULL, st->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, st->fd, 0);
	if (p == MAP_FAILED)
		return set_error(s, SKVQ_ENOMEM, "mapping %llu bytes of staging: %s",
				 (unsigned long long)st->bytes, strerror(errno));
	st->base = p;
	return 0;
}

int staging_new(const struct skvq_seq *q, struct staging **ret)
{
	const struct skvq_model *m = q->model;
	struct staging *st = calloc(1, sizeof *st);

	if (!st)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a staging");
	*st = (struct staging){.session = m->session,
			       .refs = 1,
			       .fd = -1,
			       .slot_bytes = m->layout.slot_bytes,
			       .bytes = (uint64_t)q->pages_max * m->layout.slot_bytes};
	st->users = calloc(q->pages_max, sizeof *st->users);
	int r = st->users ? staging_map(st)
			  : set_error(m->session, SKVQ_ENOMEM, "no memory for a staging");
	if (r < 0) {
		staging_free(st);
		return r;
	}
	*ret = st;
	return 0;
}

void staging_unref(struct staging *st)
{
	if (--st->refs == 0)
		staging_free(st);
}

void staging_leave(struct skvq_seq *q)
{
	struct staging *st = q->staging;
	uint32_t own = 0;

	for (uint32_t i = 0; i < q->pages_max; i++)
		own += q->pages[i].staging == st;
	if (st->refs == 1 + own)
		st->spoiled = true; /* it goes as a whole: no need to empty it page by page */
	q->staging = NULL;
	staging_unref(st);
}

void staging_hold(struct staging *st, uint32_t i)
{
	st->users[i]++;
	st->refs++;
}

void staging_release(struct staging *st, uint32_t i)
{
	bool last = --st->users[i] == 0;

	/* In a child after fork() the memory is the parent's too. */
	if (last && st->refs > 1 && !st->spoiled && check_fork(st->session) == 0)
		(void)fallocate(st->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(i * st->slot_bytes), (off_t)st->slot_bytes);
	staging_unref(st);
}

int staging_fill(struct skvq_seq *q, uint32_t i, const struct skvq_layout *l)
{
	int r;

	do
		r = fallocate(q->staging->fd, 0, (off_t)(i * l->slot_bytes),
			      (off_t)skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return set_error(q->model->session, SKVQ_ENOMEM,
				 "no memory for page %u (%zu bytes): %s", i,
				 skvq_layout_page_bytes(l, i * SKVQ_PAGE_TOKENS), strerror(errno));
	return 0;
}

int staging_take(struct skvq_seq *q, uint32_t i, const struct skvq_layout *l)
{
	if (q->staging->spoiled || q->staging->users[i]) {
		struct staging *fresh;

		int r = staging_new(q, &fresh);
		if (r < 0)
			return r;
		staging_unref(q->staging);
		q->staging = fresh;
	}
	return staging_fill(q, i, l);
}

uint8_t *page_own(const struct skvq_seq *q, uint32_t i)
{
	const struct staging *st = q->pages[i].staging;

	return st->base + i * st->slot_bytes;
}

uint8_t *staging_page(const struct skvq_seq *q, uint32_t i)
{
	return q->staging->base + i * q->staging->slot_bytes;
}

void pages_drop(struct skvq_seq *q, uint32_t from, uint32_t to)
{
	enum { BATCH = 256 };
	struct skvq_page_ref refs[BATCH];
	uint32_t n = 0;

	for (uint32_t i = from; i < to; i++) {
		struct seq_page *p = &q->pages[i];

		if (p->staging) {
			p->staging->spoiled |= p->state == PAGE_INFLIGHT;
			staging_release(p->staging, i);
		} else if (p->arena) {
			if (page_is_pinned(q, i) && pin_is_last(p->arena, p->ref))
				refs[n++] = p->ref;
			arena_unref(p->arena);
		}
		*p = (struct seq_page){0};
		if (n == BATCH) {
			pages_unpin(q->model, refs, n);
			n = 0;
		}
	}
	if (n)
		pages_unpin(q->model, refs, n);
}

void pages_unpin(struct skvq_model *m, const struct skvq_page_ref *refs, uint32_t n)
{
	struct skvq_session *s = m->session;

	if (s->daemon == DAEMON_ATTACHED && skvq_client_unpin(s->client, m->ns, refs, n) < 0 &&
	    skvq_client_broken(s->client))
		session_lost(s);
}

bool page_is_pinned(const struct skvq_seq *q, uint32_t i)
{
	const struct skvq_session *s = q->model->session;
	const struct seq_page *p = &q->pages[i];

	return p->state == PAGE_SHARED && p->epoch == s->epoch && s->daemon == DAEMON_ATTACHED &&
	       check_fork(s) == 0;
}
