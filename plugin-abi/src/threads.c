/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is inside which call, and whether the thread classes of skvq/plugin.h allow it.
 *
 * All atomics are relaxed: ordering here would be an ordering of the engine's threads, and would
 * hide from ThreadSanitizer the races it is there to find. What has to be seen together is
 * therefore one word: of the changes of one word all threads see one order, so of two calls that
 * overlap the later one always knows. What does not overlap is ordered by the engine, and never
 * taken for a violation.
 */
#include "threads.h"

#ifdef SKVQ_CHECK_THREADS

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* [data] calls inside, counted in one word. */
#define APPEND     UINT64_C(1)
#define ATTEND     (UINT64_C(1) << 20)
#define EXPORT     (UINT64_C(1) << 40)
#define COUNT_MASK UINT64_C(0xfffff)
#define CONTROL    (UINT64_C(1) << 63) /* of a sequence: a [control] call is inside */

/* The attention of a layer that is under way, in one word: which shares have begun, of how many,
 * how many have returned, where. 0: none. Calls of more shares are not followed. */
#define SHARES_MAX    32u
#define POSITION_MASK UINT32_C(0xfffff)

struct shares {
	uint32_t begun; /* one bit for each ith */
	uint32_t nth, returned, position;
};

struct seq_marks {
	_Atomic(const char *) control; /* the name of what is inside, for messages */
	_Atomic uint64_t inside;
	struct layer_marks {
		_Atomic uint64_t inside, shares;
	} layers[];
};

static uint64_t shares_pack(struct shares x)
{
	return (uint64_t)x.begun << 32 | (uint64_t)x.nth << 26 | (uint64_t)x.returned << 20 |
	       x.position;
}

static struct shares shares_unpack(uint64_t w)
{
	return (struct shares){.begun = (uint32_t)(w >> 32),
			       .nth = w >> 26 & 0x3f,
			       .returned = w >> 20 & 0x3f,
			       .position = w & POSITION_MASK};
}

static const char *data_name(uint64_t inside)
{
	if (inside & COUNT_MASK)
		return "append";
	return inside / ATTEND & COUNT_MASK ? "attend" : "export_kv";
}

__attribute__((format(printf, 2, 3))) _Noreturn static void violation(struct skvq_session *s,
								      const char *fmt, ...)
{
	char what[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	log_event(s, SKVQ_LOG_ENGINE_MISBEHAVING, "thread classes: %s", what);
	if (!s->log)
		fprintf(stderr, "skvq plugin: thread classes: %s\n", what);
	abort();
}

int marks_new(struct skvq_seq *q)
{
	q->marks = calloc(1, sizeof *q->marks + q->model->n_layer * sizeof q->marks->layers[0]);
	return q->marks ? 0 : -SKVQ_ENOMEM;
}

void marks_free(struct skvq_seq *q)
{
	free(q->marks);
}

/* ---- [control] ---- */

/* Whether it was entered, and is to be left: there is no such session in a child after fork(). */
static bool session_enter(struct skvq_session *s, const char *name)
{
	const char *other = NULL;

	if (!s || check_fork(s) < 0)
		return false;
	if (!atomic_compare_exchange_strong_explicit(&s->inside, &other, name, memory_order_relaxed,
						     memory_order_relaxed))
		violation(s, "%s while %s is in progress on the same session", name, other);
	return true;
}

static void session_leave(struct skvq_session *s, bool entered)
{
	if (entered)
		atomic_store_explicit(&s->inside, NULL, memory_order_relaxed);
}

static void seq_mark(struct skvq_seq *q, const char *name)
{
	atomic_store_explicit(&q->marks->control, name, memory_order_relaxed);
	uint64_t other = atomic_fetch_or_explicit(&q->marks->inside, CONTROL, memory_order_relaxed);
	if (other)
		violation(q->model->session, "%s while %s is in progress on the same sequence",
			  name, data_name(other));
}

static bool seq_enter(struct skvq_seq *q, const char *name)
{
	if (!q || !session_enter(q->model->session, name))
		return false;
	seq_mark(q, name);
	return true;
}

static void seq_leave(struct skvq_seq *q, bool entered)
{
	if (!entered)
		return;
	atomic_fetch_and_explicit(&q->marks->inside, ~CONTROL, memory_order_relaxed);
	session_leave(q->model->session, true);
}

void checked_close(skvq_session *s)
{
	if (session_enter(s, "close"))
		for (struct skvq_model *m = s->models; m; m = m->next)
			for (struct skvq_seq *q = m->seqs; q; q = q->next)
				seq_mark(q, "close");
	api_close(s);
}

int32_t checked_session_fd(skvq_session *s)
{
	bool in = session_enter(s, "session_fd");
	int32_t r = api_session_fd(s);

	session_leave(s, in);
	return r;
}

int32_t checked_stats(skvq_session *s, skvq_stats *stats)
{
	bool in = session_enter(s, "stats");
	int32_t r = api_stats(s, stats);

	session_leave(s, in);
	return r;
}

int32_t checked_last_error(skvq_session *s, char *buf, uint64_t bytes)
{
	bool in = session_enter(s, "last_error");
	int32_t r = api_last_error(s, buf, bytes);

	session_leave(s, in);
	return r;
}

int32_t checked_model_register(skvq_session *s, const skvq_model_desc *desc, skvq_model **ret)
{
	bool in = session_enter(s, "model_register");
	int32_t r = api_model_register(s, desc, ret);

	session_leave(s, in);
	return r;
}

int32_t checked_model_unregister(skvq_model *m)
{
	struct skvq_session *s = m ? m->session : NULL;
	bool in = session_enter(s, "model_unregister");
	int32_t r = api_model_unregister(m);

	session_leave(s, in);
	return r;
}

int32_t checked_seq_open(skvq_model *m, const skvq_seq_desc *desc, skvq_seq **ret)
{
	struct skvq_session *s = m ? m->session : NULL;
	bool in = session_enter(s, "seq_open");
	int32_t r = api_seq_open(m, desc, ret);

	session_leave(s, in);
	return r;
}

int32_t checked_seq_resume(skvq_model *m, const void *buf, uint64_t buf_bytes, skvq_seq **ret)
{
	struct skvq_session *s = m ? m->session : NULL;
	bool in = session_enter(s, "seq_resume");
	int32_t r = api_seq_resume(m, buf, buf_bytes, ret);

	session_leave(s, in);
	return r;
}

int32_t checked_seq_poll(skvq_seq *q)
{
	bool in = seq_enter(q, "seq_poll");
	int32_t r = api_seq_poll(q);

	seq_leave(q, in);
	return r;
}

int32_t checked_seq_commit(skvq_seq *q, const int32_t *tokens, uint32_t n)
{
	bool in = seq_enter(q, "seq_commit");
	int32_t r = api_seq_commit(q, tokens, n);

	seq_leave(q, in);
	return r;
}

int32_t checked_seq_fork(skvq_seq *q, skvq_seq **ret)
{
	bool in = seq_enter(q, "seq_fork");
	int32_t r = api_seq_fork(q, ret);

	seq_leave(q, in);
	return r;
}

int32_t checked_seq_truncate(skvq_seq *q, uint32_t n_tokens)
{
	bool in = seq_enter(q, "seq_truncate");
	int32_t r = api_seq_truncate(q, n_tokens);

	if (in && r >= 0) /* an attention that was given up is over */
		for (uint32_t i = 0; i < q->model->n_layer; i++)
			atomic_store_explicit(&q->marks->layers[i].shares, 0, memory_order_relaxed);
	seq_leave(q, in);
	return r;
}

void checked_seq_close(skvq_seq *q)
{
	struct skvq_session *s = q ? q->model->session : NULL;
	bool in = seq_enter(q, "seq_close");

	api_seq_close(q);
	session_leave(s, in);
}

int32_t checked_seq_snapshot(skvq_seq *q, void *buf, uint64_t buf_bytes, uint64_t *ret_bytes)
{
	bool in = seq_enter(q, "seq_snapshot");
	int32_t r = api_seq_snapshot(q, buf, buf_bytes, ret_bytes);

	seq_leave(q, in);
	return r;
}

int32_t checked_seq_info(skvq_seq *q, skvq_seq_info *info)
{
	bool in = seq_enter(q, "seq_info");
	int32_t r = api_seq_info(q, info);

	seq_leave(q, in);
	return r;
}

static int32_t checked_calibration_get(skvq_session *s, const skvq_calibration_of *model, void *buf,
				       uint64_t buf_bytes, uint64_t *ret_bytes)
{
	bool in = session_enter(s, "calibration get");
	int32_t r = ext_calibration.get(s, model, buf, buf_bytes, ret_bytes);

	session_leave(s, in);
	return r;
}

static int32_t checked_calibration_put(skvq_session *s, const void *bytes, uint64_t n_bytes)
{
	bool in = session_enter(s, "calibration put");
	int32_t r = ext_calibration.put(s, bytes, n_bytes);

	session_leave(s, in);
	return r;
}

const skvq_ext_calibration checked_calibration = {.struct_size = sizeof checked_calibration,
						  .get = checked_calibration_get,
						  .put = checked_calibration_put};

static int32_t checked_prefetch_tokens(skvq_model *m, const int32_t *tokens, uint32_t n_tokens)
{
	struct skvq_session *s = m ? m->session : NULL;
	bool in = session_enter(s, "prefetch");
	int32_t r = ext_prefetch.prefetch(m, tokens, n_tokens);

	session_leave(s, in);
	return r;
}

const skvq_ext_prefetch checked_prefetch = {.struct_size = sizeof checked_prefetch,
					    .prefetch = checked_prefetch_tokens};

/* ---- [data] ---- */

/* `call` is one of APPEND, ATTEND, EXPORT; the layer is one of the model's. Returns which were
 * inside before. */
static uint64_t layer_enter(struct skvq_seq *q, uint32_t layer, uint64_t call)
{
	struct seq_marks *marks = q->marks;
	uint64_t other =
	    atomic_fetch_add_explicit(&marks->inside, call, memory_order_relaxed) & CONTROL;

	if (other)
		violation(q->model->session, "%s while %s is in progress on the same sequence",
			  data_name(call),
			  atomic_load_explicit(&marks->control, memory_order_relaxed));
	other = atomic_fetch_add_explicit(&marks->layers[layer].inside, call, memory_order_relaxed);
	/* An append alone is alone. */
	if (call == APPEND ? other : other & COUNT_MASK)
		violation(q->model->session,
			  "%s while %s is in progress on layer %u of the same sequence",
			  data_name(call), data_name(other), layer);
	return other;
}

static void layer_leave(struct skvq_seq *q, uint32_t layer, uint64_t call)
{
	atomic_fetch_sub_explicit(&q->marks->layers[layer].inside, call, memory_order_relaxed);
	atomic_fetch_sub_explicit(&q->marks->inside, call, memory_order_relaxed);
}

/* Whether the call will come to that layer at all; if not it fails, and touches nothing. */
static bool is_ours(const struct skvq_seq *q, uint32_t layer)
{
	return check_fork(q->model->session) == 0 && layer < q->model->n_layer;
}

int32_t checked_append(skvq_seq *q, const skvq_kv *kv)
{
	skvq_kv d;
	bool in = q && copy_in(&d, sizeof d, kv) == 0 && is_ours(q, d.layer);

	if (in)
		layer_enter(q, d.layer, APPEND);
	int32_t r = api_append(q, kv);
	if (in && r >= 0) /* an attention that was given up is over */
		atomic_store_explicit(&q->marks->layers[d.layer].shares, 0, memory_order_relaxed);
	if (in)
		layer_leave(q, d.layer, APPEND);
	return r;
}

int32_t checked_export(skvq_seq *q, const skvq_export *desc)
{
	skvq_export d;
	bool in = q && copy_in(&d, sizeof d, desc) == 0 && is_ours(q, d.layer);

	if (in)
		layer_enter(q, d.layer, EXPORT);
	int32_t r = api_export(q, desc);
	if (in)
		layer_leave(q, d.layer, EXPORT);
	return r;
}

/* A call of one share forgets what was given up before it. */
static void share_begin(struct skvq_seq *q, const skvq_attn *a, uint64_t inside)
{
	bool alone = a->nth == 1 && !(inside / ATTEND & COUNT_MASK);
	_Atomic uint64_t *word = &q->marks->layers[a->layer].shares;
	uint64_t old = atomic_load_explicit(word, memory_order_relaxed);
	struct shares x;

	do {
		x = shares_unpack(old);
		if (!old || alone)
			x = (struct shares){.nth = a->nth, .position = a->position & POSITION_MASK};
		else if (x.nth != a->nth || x.position != (a->position & POSITION_MASK) ||
			 x.begun >> a->ith & 1)
			violation(q->model->session,
				  "attend (share %u of %u, position %u) while attend (%u shares, "
				  "position %u) is not complete on layer %u of the same sequence",
				  a->ith, a->nth, a->position, x.nth, x.position, a->layer);
		x.begun |= UINT32_C(1) << a->ith;
	} while (!atomic_compare_exchange_weak_explicit(
	    word, &old, shares_pack(x), memory_order_relaxed, memory_order_relaxed));
}

/* A share that failed has not begun. */
static void share_end(struct skvq_seq *q, const skvq_attn *a, bool failed)
{
	_Atomic uint64_t *word = &q->marks->layers[a->layer].shares;
	uint64_t old = atomic_load_explicit(word, memory_order_relaxed), new;

	do {
		struct shares x = shares_unpack(old);

		if (failed)
			x.begun &= ~(UINT32_C(1) << a->ith);
		else
			x.returned++;
		new = !x.begun || x.returned == x.nth ? 0 : shares_pack(x);
	} while (!atomic_compare_exchange_weak_explicit(word, &old, new, memory_order_relaxed,
							memory_order_relaxed));
}

/* The attn of the next sequence, if the call will come to it. A sequence that is named twice is
 * followed by its first attn. */
static bool attn_next(skvq_seq *const *seqs, uint32_t i, const uint8_t **at, skvq_attn *ret,
		      bool *ret_again)
{
	if (!seqs[i] || copy_in(ret, sizeof *ret, *at) < 0 || !is_ours(seqs[i], ret->layer) ||
	    ret->ith >= ret->nth)
		return false;
	*at += ((const skvq_attn *)(const void *)*at)->struct_size;
	*ret_again = false;
	for (uint32_t j = 0; j < i; j++)
		*ret_again |= seqs[j] == seqs[i];
	return true;
}

int32_t checked_attend(skvq_seq *const *seqs, const skvq_attn *attns, uint32_t n_seqs)
{
	const uint8_t *at = (const uint8_t *)attns;
	uint32_t n = 0;
	skvq_attn a;
	bool again;

	for (; seqs && attns && n < n_seqs && attn_next(seqs, n, &at, &a, &again); n++) {
		uint64_t inside = layer_enter(seqs[n], a.layer, ATTEND);
		if (!again && a.nth <= SHARES_MAX)
			share_begin(seqs[n], &a, inside);
	}
	int32_t r = api_attend(seqs, attns, n_seqs);
	at = (const uint8_t *)attns;
	for (uint32_t i = 0; i < n && attn_next(seqs, i, &at, &a, &again); i++) {
		if (!again && a.nth <= SHARES_MAX)
			share_end(seqs[i], &a, r < 0);
		layer_leave(seqs[i], a.layer, ATTEND);
	}
	return r;
}

#endif /* SKVQ_CHECK_THREADS */
