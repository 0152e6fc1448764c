/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calibration_get and calibration_put: engines of a tenant that run the same model agree on one
 * calibration. The first good one stays as long as this process, or until somebody replaces it on
 * purpose, in a memfd like an arena's. A worker copies it and checks the copy; what clients do to
 * their memfd meanwhile is their loss. Who was given one that is replaced has its own descriptor,
 * and pages know by their identity which they were made with.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skvq/calibration.h>
#include <skvq/error.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "control/dispatch.h"
#include "mem/arena.h"

#define PAGE_BYTES UINT64_C(4096) /* what an arena is a multiple of */

struct calibration {
	struct calibration *next;
	struct arena arena;
	uint64_t bytes; /* of the file, at the arena's start */
	skvq_calibration_header header;
};

static bool is_of(const struct calibration *c, const struct skvq_calibration_key *key)
{
	return memcmp(c->header.weights, key->weights, sizeof(c->header.weights)) == 0 &&
	       c->header.n_layer == key->n_layer && c->header.n_q_heads == key->n_q_heads &&
	       c->header.n_kv_heads == key->n_kv_heads &&
	       c->header.head_dim_k == key->head_dim_k && c->header.head_dim_v == key->head_dim_v;
}

static struct calibration *find(const struct control_tenant *tenant,
				const struct skvq_calibration_key *key)
{
	struct calibration *c = tenant->calibrations;

	while (c && !is_of(c, key))
		c = c->next;
	return c;
}

static void calibration_free(struct calibration *c)
{
	arena_fini(&c->arena);
	free(c);
}

void calibrations_free(struct control_tenant *tenant)
{
	while (tenant->calibrations) {
		struct calibration *c = tenant->calibrations;

		tenant->calibrations = c->next;
		calibration_free(c);
	}
}

void calibrations_each(const struct control_tenant *tenant,
		       void (*fn)(void *ctx, int fd, uint64_t bytes), void *ctx)
{
	for (const struct calibration *c = tenant->calibrations; c; c = c->next)
		fn(ctx, c->arena.fd, c->bytes);
}

static uint64_t arena_bytes_of(const struct calibration *c)
{
	return (c->bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* What lies in the arena is believed from here on. */
static int check_file(struct calibration *c, struct why *why)
{
	struct skvq_calibration opened;
	char detail[160];
	int err = skvq_calibration_open(c->arena.base, c->bytes, &opened, detail, sizeof(detail));

	if (err < 0)
		return why_fail(why, -err, "calibration: %s", detail);
	c->header = opened.header;
	return 0;
}

static void link_calibration(struct control_tenant *tenant, struct calibration *c)
{
	c->next = tenant->calibrations;
	tenant->calibrations = c;
	tenant->calibration_bytes += c->bytes;
	tenant->n_calibrations++;
}

/* ---- get ---- */

int op_calibration_get(const struct request *rq, struct why *why)
{
	const Skvq__Wire__CalibrationGet *m = rq->msg->calibration_get;
	const struct skvq_calibration_key key = {m->weights_digest.data, m->n_layer, m->n_q_heads,
						 m->n_kv_heads,		 m->head_dim_k,
						 m->head_dim_v};
	Skvq__Wire__CalibrationReply body = SKVQ__WIRE__CALIBRATION_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	struct calibration *c;

	if (m->weights_digest.len != IDENTITY_DIGEST)
		return why_fail(why, SKVQ_EIDENTITY, "weights_digest has %zu bytes, not %u",
				m->weights_digest.len, IDENTITY_DIGEST);
	c = find(rq->session->tenant, &key);
	if (!c)
		return why_fail(why, SKVQ_EAGAIN, "nobody has put a calibration of these weights");
	session_count(rq->session, STAT_calibrations_given, 1);
	body.bytes = c->bytes;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_CALIBRATION_GET;
	reply.calibration_get = &body;
	reply_send(rq->session, rq->id, &reply, c->arena.fd_ro);
	return 0;
}

/* ---- put ---- */

/* On its way in. Outlives its session. */
struct put {
	struct job job;
	struct control *control;
	struct control_tenant *tenant;
	uint64_t session; /* by id: it may be gone when the worker is done */
	uint64_t id;      /* of the request */
	int fd;
	bool replace;
	struct calibration *c;
	int error;
	struct why why;
};

/* Worker thread. */
static int copy_in(struct put *put)
{
	struct calibration *c = put->c;
	uint64_t rounded = arena_bytes_of(c);
	int err = arena_init(&c->arena, "skvqd-calibration", rounded, &put->why);

	if (err < 0)
		return err;
	if (arena_commit(&c->arena, 0, rounded) < 0)
		return why_fail(&put->why, SKVQ_ENOMEM, "no memory for a calibration of %llu bytes",
				(unsigned long long)c->bytes);
	for (uint64_t at = 0; at < c->bytes;) {
		ssize_t n = pread(put->fd, c->arena.base + at, c->bytes - at, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return why_fail(&put->why, SKVQ_ESHORT,
					"the calibration's memfd ends at %llu of %llu bytes",
					(unsigned long long)at, (unsigned long long)c->bytes);
		at += (uint64_t)n;
	}
	return check_file(c, &put->why);
}

static void put_run(struct job *job)
{
	struct put *put = container_of(job, struct put, job);

	put->error = copy_in(put);
}

struct outcome {
	const struct calibration *kept;
	bool stored, replaced;
};

static void send_put(struct session *session, uint64_t id, const struct outcome *o)
{
	Skvq__Wire__CalibrationReply body = SKVQ__WIRE__CALIBRATION_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;

	body.bytes = o->kept->bytes;
	body.stored = o->stored;
	body.replaced = o->replaced;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_CALIBRATION_PUT;
	reply.calibration_put = &body;
	reply_send(session, id, &reply, -1);
}

/* Beside all others, or all but one that goes. */
static int check_fits(const struct control_tenant *tenant, uint64_t bytes,
		      const struct calibration *gone, struct why *why)
{
	uint64_t max = tenant->config->calibration_max;
	uint64_t others = tenant->calibration_bytes - (gone ? gone->bytes : 0);

	if (bytes > max || others > max - bytes)
		return why_fail(why, SKVQ_ELIMIT,
				"calibrations take %llu bytes, %llu more are above %llu "
				"(calibration_max)",
				(unsigned long long)others, (unsigned long long)bytes,
				(unsigned long long)max);
	if (!gone && tenant->n_calibrations >= CALIBRATIONS_MAX)
		return why_fail(why, SKVQ_ELIMIT, "calibrations of %u models are kept, at most %u",
				tenant->n_calibrations, CALIBRATIONS_MAX);
	return 0;
}

/* What is in both changes places; the list stays as it is. */
static void swap(struct calibration *a, struct calibration *b)
{
	struct calibration old = *a;

	*a = *b;
	a->next = old.next;
	old.next = b->next;
	*b = old;
}

/* Keeps what the worker found good, if it is the first of its model or to take the place of that. */
static int keep(struct put *put, struct outcome *ret)
{
	struct cache *cache = put->control->cache;
	struct control_tenant *tenant = put->tenant;
	const skvq_calibration_header *h = &put->c->header;
	const struct skvq_calibration_key key = {h->weights,	h->n_layer,    h->n_q_heads,
						 h->n_kv_heads, h->head_dim_k, h->head_dim_v};
	struct calibration *c = find(tenant, &key);
	int err;

	*ret = (struct outcome){
	    .kept = c, .stored = !c || put->replace, .replaced = c && put->replace};
	if (!ret->stored)
		return 0;
	err = check_fits(tenant, put->c->bytes, c, &put->why);
	if (err < 0)
		return err;
	if (c) {
		tenant->calibration_bytes -= c->bytes;
		swap(c, put->c);
		tenant->calibration_bytes += c->bytes;
		cache_count(cache, tenant->tenant, STAT_calibrations_replaced, 1);
	} else {
		c = put->c;
		put->c = NULL;
		link_calibration(tenant, c);
	}
	cache_count(cache, tenant->tenant, STAT_calibrations_stored, 1);
	ret->kept = c;
	log_event(LOG_INFO, ret->replaced ? "calibration_replaced" : "calibration_stored",
		  LOG_U64("bytes", c->bytes), LOG_U64("connection", put->session));
	return 0;
}

static void put_done(struct job *job)
{
	struct put *put = container_of(job, struct put, job);
	struct control *control = put->control;
	struct session *session = control->sessions;
	struct outcome outcome;

	put->tenant->calibration_busy = false;
	while (session && session->id != put->session)
		session = session->next;
	if (!job->cancelled && !control->closed) {
		if (put->error == 0)
			put->error = keep(put, &outcome);
		if (session && put->error == 0)
			send_put(session, put->id, &outcome);
		else if (session)
			reply_error(session, put->id, put->error, put->why.text);
	}
	if (put->c)
		calibration_free(put->c);
	(void)close(put->fd);
	free(put);
}

/* Which one would go is known once the file has been read, so then it is checked again; until then
 * both take memory. */
static int check_room(const struct control_tenant *tenant, const Skvq__Wire__CalibrationPut *m,
		      struct why *why)
{
	const struct calibration all = {.bytes = tenant->calibration_bytes};

	if (m->bytes < sizeof(skvq_calibration_header) || m->bytes > SKVQ_CALIBRATION_BYTES_MAX)
		return why_fail(why, SKVQ_EINVAL, "a calibration of %llu bytes, at most %llu",
				(unsigned long long)m->bytes,
				(unsigned long long)SKVQ_CALIBRATION_BYTES_MAX);
	if (tenant->calibration_busy)
		return why_fail(why, SKVQ_EBUSY, "another calibration is being checked");
	return check_fits(tenant, m->bytes, m->replace ? &all : NULL, why);
}

int op_calibration_put(const struct request *rq, struct why *why)
{
	struct control *control = rq->session->control;
	struct control_tenant *tenant = rq->session->tenant;
	const Skvq__Wire__CalibrationPut *m = rq->msg->calibration_put;
	int *fd = &rq->frame->fds[0];
	struct stat st;
	struct put *put;
	int err = check_memfd(*fd, why);

	if (!err)
		err = check_room(tenant, m, why);
	if (err < 0)
		return err;
	if (fstat(*fd, &st) < 0 || (uint64_t)st.st_size < m->bytes)
		return why_fail(why, SKVQ_ESHORT, "the calibration's memfd has %lld bytes, not %llu",
				(long long)st.st_size, (unsigned long long)m->bytes);
	put = calloc(1, sizeof(*put));
	if (put)
		put->c = calloc(1, sizeof(*put->c));
	if (!put || !put->c) {
		free(put);
		return why_fail(why, SKVQ_ENOMEM, "no memory for a calibration");
	}
	put->job.run = put_run;
	put->job.done = put_done;
	put->control = control;
	put->tenant = tenant;
	put->session = rq->session->id;
	put->id = rq->id;
	put->fd = *fd;
	put->replace = m->replace;
	put->c->bytes = m->bytes;
	put->c->arena = (struct arena){.fd = -1, .fd_ro = -1};
	err = worker_submit(control->cache->worker, &put->job);
	if (err < 0) {
		free(put->c);
		free(put);
		return why_fail(why, SKVQ_EQUEUE, "the workers have no room for a calibration (queue_max)");
	}
	*fd = -1; /* the job's now */
	tenant->calibration_busy = true;
	return 0;
}

/* ---- over a restart ---- */

int calibration_adopt(struct control_tenant *tenant, int *fd, uint64_t bytes, struct why *why)
{
	struct calibration *c;
	int err = check_fits(tenant, bytes, NULL, why);

	if (!err && (bytes < sizeof(c->header) || bytes > SKVQ_CALIBRATION_BYTES_MAX))
		err = why_fail(why, SKVQ_ECORRUPT, "a calibration of %llu bytes",
			       (unsigned long long)bytes);
	if (err < 0)
		return err;
	c = calloc(1, sizeof(*c));
	if (!c)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a calibration");
	c->bytes = bytes;
	err = arena_adopt(&c->arena, fd, arena_bytes_of(c), why);
	if (!err)
		err = check_file(c, why);
	if (err < 0) {
		calibration_free(c);
		return err;
	}
	link_calibration(tenant, c);
	return 0;
}
