/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin used from many threads, by the rules of its thread classes: teams that append and
 * attend, one thread for everything that is [control], others for what is [any], and a daemon that
 * is killed on the way. What comes out is what one thread gets alone without a daemon: bit for bit,
 * but for rounding where one call attends over several sequences. Then the rules are broken, one by
 * one, where the plugin is built to notice (SKVQ_CHECK_THREADS).
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon.h"
#include "synthetic.h"

enum {
	N_LAYER = 2,
	N_Q = 4,
	N_KV = 2,
	N_DIM = 32,
	PROMPT = 2640, /* pages enough for attention to be split along the sequence */
	STEPS = 40,
	STEP_MAX = 4, /* tokens */
	BACK = 3,     /* tokens that are taken back now and then */
	CAPACITY = PROMPT + STEPS * STEP_MAX + 1,
	APPEND_MAX = 160,
	N_TEAM = 3,
	TEAM_SEQS = 2,
	TEAM_THREADS = 2,
	ANY_THREADS = 2,
};

static struct test_daemon daemon_;

/* With layer groups: what the layers see, and pages out of sight are let go of. NULL: one group, and
 * everything is kept. */
static const uint32_t *extents;

static skvq_session *session_open(const char *socket, void (*log)(void *, int32_t, const char *))
{
	skvq_engine e = {
	    .struct_size = sizeof e, .name = "threads", .timeout_ms = 5000, .log = log};
	skvq_session *s = NULL;

	assert_int_equal(api->open(&e, socket, &s), 0);
	return s;
}

static skvq_model *model_open(skvq_session *s)
{
	skvq_model_desc d = {.struct_size = sizeof d,
			     .flags = extents ? SKVQ_MODEL_LAYER_GROUPS : 0,
			     .layer_window = extents,
			     .weights_digest = digest,
			     .tokenizer_digest = digest,
			     .engine_numerics = "threads",
			     .model_name = "synthetic",
			     .n_layer = N_LAYER,
			     .n_q_heads = N_Q,
			     .n_kv_heads = N_KV,
			     .head_dim_k = N_DIM,
			     .head_dim_v = N_DIM,
			     .rope_kind = SKVQ_ROPE_NONE,
			     .profile = "k4v2",
			     .window = 64,
			     .sinks = 5};
	skvq_model *m = NULL;

	assert_int_equal(api->model_register(s, &d, &m), 0);
	return m;
}

/* ---- an engine of teams ---- */

struct team {
	uint32_t id, n_seqs;
	skvq_seq *seqs[TEAM_SEQS];
	uint32_t at, step;
	uint64_t hashes[STEPS]; /* of what must be equal bit for bit */
	float kept[STEPS][TEAM_SEQS][N_LAYER][STEP_MAX][N_Q][N_DIM];
	pthread_barrier_t barrier;
	float out[TEAM_SEQS][N_LAYER][STEP_MAX][N_Q][N_DIM];
	float rows[N_LAYER][STEP_MAX][N_KV][N_DIM]; /* exported again */
	/* Under `lock`: the team has computed a step, and waits for its commit; steps it may take.
	 */
	bool waits;
	uint32_t released;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static uint32_t step_tokens(const struct team *t)
{
	return 1 + mix(t->id * 1000 + t->step) % STEP_MAX;
}

/* The prompt is everybody's; what follows is each sequence's own. */
static int32_t token_at(const struct team *t, uint32_t i, uint32_t position)
{
	return (
	    int32_t)(mix(position < PROMPT ? position : position + (t->id * 2 + i + 1) * 65536) %
		     49152);
}

static int32_t append_tokens(const struct team *t, uint32_t i, uint32_t layer, uint32_t n)
{
	float k[APPEND_MAX][N_KV][N_DIM], v[APPEND_MAX][N_KV][N_DIM];

	for (uint32_t x = 0; x < n; x++) {
		uint32_t seed =
		    mix((uint32_t)token_at(t, i, t->at + x) ^ (t->at + x) << 12) + layer;

		fill(&k[x][0][0], N_KV * N_DIM, seed);
		fill(&v[x][0][0], N_KV * N_DIM, seed + 77);
	}
	skvq_kv kv = {.struct_size = sizeof kv,
		      .layer = layer,
		      .position = t->at,
		      .n_tokens = n,
		      .k = k,
		      .v = v,
		      .k_token_stride = sizeof k[0],
		      .k_head_stride = sizeof k[0][0],
		      .v_token_stride = sizeof v[0],
		      .v_head_stride = sizeof v[0][0]};
	return api->append(t->seqs[i], &kv);
}

static int32_t attend_tokens(struct team *t, uint32_t layer, uint32_t n, uint32_t ith, uint32_t nth)
{
	float q[TEAM_SEQS][STEP_MAX][N_Q][N_DIM];
	skvq_attn a[TEAM_SEQS];

	for (uint32_t i = 0; i < t->n_seqs; i++) {
		for (uint32_t x = 0; x < n; x++)
			fill(&q[i][x][0][0], N_Q * N_DIM,
			     (uint32_t)token_at(t, i, t->at + x) * 7 + layer + 5);
		a[i] = (skvq_attn){.struct_size = sizeof a[i],
				   .layer = layer,
				   .position = t->at,
				   .n_rows = n,
				   .sliding_limit = extents ? extents[layer] : 0,
				   .ith = ith,
				   .nth = nth,
				   .scale = 0.18f,
				   .q = q[i],
				   .q_row_stride = sizeof q[i][0],
				   .q_head_stride = sizeof q[i][0][0],
				   .out = &t->out[i][layer][0][0][0],
				   .out_row_stride = sizeof t->out[i][layer][0],
				   .out_head_stride = sizeof t->out[i][layer][0][0]};
	}
	return api->attend(t->seqs, a, t->n_seqs);
}

static int32_t export_tokens(struct team *t, uint32_t layer, uint32_t n)
{
	skvq_export e = {.struct_size = sizeof e,
			 .layer = layer,
			 .position = t->at - 100, /* coded ones */
			 .n_tokens = n,
			 .type = SKVQ_F32,
			 .k = t->rows[layer],
			 .k_token_stride = sizeof t->rows[layer][0],
			 .k_head_stride = sizeof t->rows[layer][0][0]};

	return api->export_kv(t->seqs[0], &e);
}

static uint64_t hash_of(const void *data, size_t bytes, uint64_t hash)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < bytes; i++)
		hash = (hash ^ p[i]) * 1099511628211u;
	return hash;
}

/* Rows of several sequences of one call meet in one block while their first pages are the same
 * memory, which depends on when the daemon answered; another block is another order of sums. */
static bool same_bits(const struct team *t)
{
	return t->n_seqs == 1;
}

static void step_keep(struct team *t, uint32_t n)
{
	uint64_t hash = 1469598103934665603u;

	for (uint32_t layer = 0; layer < N_LAYER; layer++) {
		for (uint32_t i = 0; i < t->n_seqs; i++) {
			memcpy(t->kept[t->step][i][layer], t->out[i][layer],
			       n * sizeof t->out[i][layer][0]);
			if (same_bits(t))
				hash =
				    hash_of(t->out[i][layer], n * sizeof t->out[i][layer][0], hash);
		}
		hash = hash_of(t->rows[layer], n * sizeof t->rows[layer][0], hash);
	}
	t->hashes[t->step] = hash;
}

/* What one of nth threads does of a step: its layers' appends, its share of every attention. */
static void step_share(struct team *t, uint32_t ith, uint32_t nth)
{
	uint32_t n = step_tokens(t);
	int32_t r = 0;

	for (uint32_t i = 0; i < t->n_seqs; i++)
		for (uint32_t layer = ith; layer < N_LAYER; layer += nth)
			r |= append_tokens(t, i, layer, n);
	if (nth > 1)
		pthread_barrier_wait(&t->barrier);
	for (uint32_t layer = 0; layer < N_LAYER; layer++) {
		r |= attend_tokens(t, layer, n, ith, nth);
		if (layer % nth == ith) /* beside the others' attention */
			r |= export_tokens(t, layer, n);
	}
	if (r < 0) {
		fprintf(stderr, "a [data] call of team %u failed at token %u\n", t->id, t->at);
		abort();
	}
}

/* [control]: the step is committed, and now and then some of it is taken back. */
static void step_commit(struct team *t)
{
	uint32_t n = step_tokens(t);
	int32_t tokens[STEP_MAX];

	for (uint32_t i = 0; i < t->n_seqs; i++) {
		for (uint32_t x = 0; x < n; x++)
			tokens[x] = token_at(t, i, t->at + x);
		assert_int_equal(api->seq_commit(t->seqs[i], tokens, n), 0);
	}
	t->at += n;
	if (t->step % 7 == 5) {
		t->at -= BACK;
		for (uint32_t i = 0; i < t->n_seqs; i++)
			assert_int_equal(api->seq_truncate(t->seqs[i], t->at), 0);
	}
	t->step++;
}

static skvq_seq *seq_of(skvq_model *m, const int32_t *prompt, uint32_t flags)
{
	skvq_seq_desc d = {.struct_size = sizeof d,
			   .flags = flags | (extents ? SKVQ_SEQ_DROP_UNSEEN : 0),
			   .tokens = prompt,
			   .n_tokens = PROMPT,
			   .max_tokens = CAPACITY,
			   .max_append = APPEND_MAX};
	skvq_seq *q = NULL;

	assert_true(api->seq_open(m, &d, &q) >= 0);
	return q;
}

static uint32_t n_tokens_of(skvq_seq *q)
{
	skvq_seq_info info = {.struct_size = sizeof info};

	assert_int_equal(api->seq_info(q, &info), 0);
	return info.n_tokens;
}

/* A team of one or two sequences (the second a branch of the first), its prompt computed or found.
 */
static void team_open(struct team *t, uint32_t id, skvq_model *m, uint32_t flags)
{
	static int32_t prompt[PROMPT];

	memset(t, 0, sizeof *t);
	t->id = id;
	for (uint32_t x = 0; x < PROMPT; x++)
		prompt[x] = token_at(t, 0, x);
	t->seqs[0] = seq_of(m, prompt, flags);
	t->n_seqs = 1;
	t->at = n_tokens_of(t->seqs[0]);
	while (t->at < PROMPT) {
		uint32_t n = PROMPT - t->at < APPEND_MAX ? PROMPT - t->at : APPEND_MAX;

		for (uint32_t layer = 0; layer < N_LAYER; layer++)
			assert_int_equal(append_tokens(t, 0, layer, n), 0);
		assert_int_equal(api->seq_commit(t->seqs[0], prompt + t->at, n), 0);
		t->at += n;
	}
	if (id == 0) {
		assert_int_equal(api->seq_fork(t->seqs[0], &t->seqs[1]), 0);
		t->n_seqs = 2;
	}
	assert_int_equal(pthread_barrier_init(&t->barrier, NULL, TEAM_THREADS), 0);
}

static void team_close(struct team *t)
{
	for (uint32_t i = 0; i < t->n_seqs; i++)
		api->seq_close(t->seqs[i]);
	pthread_barrier_destroy(&t->barrier);
}

/* ---- by the rules ---- */

struct worker {
	struct team *team;
	uint32_t ith;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct team *t = w->team;

	for (uint32_t step = 0; step < STEPS; step++) {
		step_share(t, w->ith, TEAM_THREADS);
		if (pthread_barrier_wait(&t->barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
			step_keep(t, step_tokens(t));
			pthread_mutex_lock(&lock);
			t->waits = true;
			pthread_cond_broadcast(&changed);
			pthread_mutex_unlock(&lock);
		}
		pthread_mutex_lock(&lock);
		while (t->released == step)
			pthread_cond_wait(&changed, &lock);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static atomic_bool stop;

static void *any(void *arg)
{
	skvq_session *s = arg;
	uintptr_t same = 1;

	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		same &= strcmp(api->err_name(-SKVQ_EPINS), "SKVQ_EPINS") == 0;
		same &= api->get_extension(s, SKVQ_EXT_PREFETCH) != NULL;
		same &= api->get_extension(s, "no.such/1") == NULL;
		nap_ms(1);
	}
	return (void *)same;
}

enum { MORE_OPEN, MORE_FORK, MORE_MODEL, MORE_SNAPSHOT, MORE_NONE };

/* What else a control thread does, while the sequences of other teams are being decoded. */
static void control_more(skvq_session *s, skvq_model *m, struct team *t, uint32_t more)
{
	static int32_t prompt[PROMPT];
	skvq_stats stats = {.struct_size = sizeof stats};
	const skvq_ext_prefetch *prefetch = api->get_extension(s, SKVQ_EXT_PREFETCH);
	char why[128];

	assert_int_equal(api->stats(s, &stats), 0);
	(void)api->session_fd(s);
	assert_true(api->last_error(s, why, sizeof why) >= 0);
	assert_true(api->seq_poll(t->seqs[0]) >= 0);
	for (uint32_t x = 0; x < PROMPT; x++)
		prompt[x] = token_at(t, 0, x);
	if (more == MORE_OPEN) { /* another one on the pages that are being read */
		skvq_seq *q = seq_of(m, prompt, 0);
		(void)prefetch->prefetch(m, prompt, PROMPT);
		api->seq_close(q);
	} else if (more == MORE_FORK) {
		skvq_seq *branch = NULL;
		assert_int_equal(api->seq_fork(t->seqs[0], &branch), 0);
		api->seq_close(branch);
	} else if (more == MORE_SNAPSHOT) {
		uint64_t bytes = 0;
		assert_int_equal(api->seq_snapshot(t->seqs[0], NULL, 0, &bytes), 0);
		void *frozen = malloc(bytes);
		skvq_seq *thawed = NULL;
		assert_int_equal(api->seq_snapshot(t->seqs[0], frozen, bytes, &bytes), 0);
		assert_int_equal(api->seq_resume(m, frozen, bytes, &thawed), 0);
		assert_int_equal(n_tokens_of(thawed), t->at);
		api->seq_close(thawed);
		free(frozen);
	} else {
		assert_int_equal(api->model_unregister(model_open(s)), 0);
	}
}

static struct team *next_waiting(struct team *teams)
{
	pthread_mutex_lock(&lock);
	for (;;) {
		for (uint32_t i = 0; i < N_TEAM; i++) {
			if (teams[i].waits) {
				teams[i].waits = false;
				pthread_mutex_unlock(&lock);
				return &teams[i];
			}
		}
		pthread_cond_wait(&changed, &lock);
	}
}

static uint32_t flags_of(uint32_t id)
{
	return id == 2 ? SKVQ_SEQ_NO_MATCH | SKVQ_SEQ_NO_PUBLISH : 0;
}

static void alone(struct team *teams)
{
	skvq_session *s = session_open(NULL, NULL);
	skvq_model *m = model_open(s);

	for (uint32_t i = 0; i < N_TEAM; i++) {
		team_open(&teams[i], i, m, flags_of(i));
		while (teams[i].step < STEPS) {
			step_share(&teams[i], 0, 1);
			step_keep(&teams[i], step_tokens(&teams[i]));
			step_commit(&teams[i]);
		}
		team_close(&teams[i]);
	}
	api->close(s);
}

static void together(struct team *teams)
{
	skvq_session *s = session_open(daemon_.socket, NULL);
	skvq_model *m = model_open(s);
	pthread_t threads[N_TEAM][TEAM_THREADS], others[ANY_THREADS];
	struct worker workers[N_TEAM][TEAM_THREADS];
	skvq_stats stats = {.struct_size = sizeof stats};

	for (uint32_t i = 0; i < N_TEAM; i++) {
		team_open(&teams[i], i, m, flags_of(i));
		/* The next team finds this one's prompt. */
		for (int x = 0; x < 1000 && api->seq_poll(teams[i].seqs[0]) == 0; x++)
			nap_ms(2);
	}
	atomic_store(&stop, false);
	for (uint32_t i = 0; i < ANY_THREADS; i++)
		assert_int_equal(pthread_create(&others[i], NULL, any, s), 0);
	for (uint32_t i = 0; i < N_TEAM; i++) {
		for (uint32_t x = 0; x < TEAM_THREADS; x++) {
			workers[i][x] = (struct worker){&teams[i], x};
			assert_int_equal(pthread_create(&threads[i][x], NULL, work, &workers[i][x]),
					 0);
		}
	}
	for (uint32_t round = 0; round < N_TEAM * STEPS; round++) {
		struct team *t = next_waiting(teams);

		if (round == N_TEAM * STEPS / 3)
			test_daemon_stop(&daemon_, SIGKILL);
		if (round == N_TEAM * STEPS / 3 + 10)
			test_daemon_start(&daemon_, SKVQD_PATH, NULL);
		/* Before its commit, but for what must come after it. */
		uint32_t more = round % 3 == 0 ? round / 3 % 4 : MORE_NONE;
		if (more < MORE_SNAPSHOT)
			control_more(s, m, t, more);
		step_commit(t);
		if (more == MORE_SNAPSHOT)
			control_more(s, m, t, more);
		pthread_mutex_lock(&lock);
		t->released = t->step;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
	}
	for (uint32_t i = 0; i < N_TEAM; i++)
		for (uint32_t x = 0; x < TEAM_THREADS; x++)
			pthread_join(threads[i][x], NULL);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < ANY_THREADS; i++) {
		void *same;
		pthread_join(others[i], &same);
		assert_non_null(same);
	}
	for (int x = 0; x < 1000 && !stats.reconnects; x++) { /* tried at growing intervals */
		assert_true(api->seq_poll(teams[0].seqs[0]) >= 0);
		assert_int_equal(api->stats(s, &stats), 0);
		nap_ms(10);
	}
	assert_true(stats.reconnects > 0 && stats.pages_published > 0 && stats.tokens_matched > 0);
	for (uint32_t i = 0; i < N_TEAM; i++)
		team_close(&teams[i]);
	api->close(s);
}

static double distance(const struct team *a, const struct team *b)
{
	const float *x = &a->kept[0][0][0][0][0][0], *y = &b->kept[0][0][0][0][0][0];
	double diff = 0, norm = 0;

	for (size_t i = 0; i < sizeof a->kept / sizeof *x; i++) {
		diff += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
		norm += (double)x[i] * x[i];
	}
	assert_true(norm > 0);
	return diff / norm;
}

static void many_threads_get_what_one_gets(void **state)
{
	(void)state;
	static struct team a[N_TEAM], b[N_TEAM];

	alone(a);
	test_daemon_init(&daemon_);
	test_daemon_start(&daemon_, SKVQD_PATH, NULL);
	together(b);
	test_daemon_fini(&daemon_);
	for (uint32_t i = 0; i < N_TEAM; i++) {
		assert_int_equal(a[i].at, b[i].at);
		assert_memory_equal(a[i].hashes, b[i].hashes, sizeof a[i].hashes);
		print_message("team %u: relative squared distance %g\n", i, distance(&a[i], &b[i]));
		assert_true(distance(&a[i], &b[i]) <= (same_bits(&a[i]) ? 0 : 1e-8));
	}
}

static void so_they_do_with_layer_groups(void **state)
{
	static const uint32_t own[N_LAYER] = {900, 0};

	extents = own;
	many_threads_get_what_one_gets(state);
	extents = NULL;
}

/* ---- against the rules ---- */

static skvq_session *broken_session; /* a child's */
static struct team broken;
static float *broken_rows; /* for appends that take long and fail at their end */

enum { LONG = 4096 };

/* An append that converts many tokens and keeps none, the last of them being infinite. */
static void append_long(void)
{
	skvq_kv kv = {.struct_size = sizeof kv,
		      .layer = 0,
		      .position = APPEND_MAX,
		      .n_tokens = LONG,
		      .k = broken_rows,
		      .v = broken_rows,
		      .k_token_stride = N_KV * N_DIM * sizeof(float),
		      .k_head_stride = N_DIM * sizeof(float),
		      .v_token_stride = N_KV * N_DIM * sizeof(float),
		      .v_head_stride = N_DIM * sizeof(float)};

	(void)api->append(broken.seqs[0], &kv);
}

static void attend_whole(void)
{
	(void)attend_tokens(&broken, 0, STEP_MAX, 0, 1);
}

static void export_some(void)
{
	(void)export_tokens(&broken, 0, 1);
}

static void commit_nothing(void)
{
	(void)api->seq_commit(broken.seqs[0], NULL, 0);
}

static void stats_taken(void)
{
	skvq_stats stats = {.struct_size = sizeof stats};

	(void)api->stats(broken_session, &stats);
}

static void forked(void)
{
	skvq_seq *branch;

	if (api->seq_fork(broken.seqs[0], &branch) == 0)
		api->seq_close(branch);
}

static void share_again(void)
{
	(void)attend_tokens(&broken, 0, 1, 0, 2);
}

static void other_shares(void)
{
	(void)attend_tokens(&broken, 0, 1, 0, 3);
}

struct breach {
	/* Called over and over by a thread each; or one after the other. */
	void (*one)(void), (*other)(void);
	bool in_turn;
	const char *says, *or_says; /* who comes second is not known */
};

static const struct breach breaches[] = {
    {append_long, append_long, false,
     "append while append is in progress on layer 0 of the same sequence", NULL},
    {append_long, attend_whole, false,
     "append while attend is in progress on layer 0 of the same sequence",
     "attend while append is in progress on layer 0 of the same sequence"},
    {append_long, export_some, false,
     "append while export_kv is in progress on layer 0 of the same sequence",
     "export_kv while append is in progress on layer 0 of the same sequence"},
    {append_long, commit_nothing, false,
     "append while seq_commit is in progress on the same sequence",
     "seq_commit while append is in progress on the same sequence"},
    {attend_whole, forked, false, "attend while seq_fork is in progress on the same sequence",
     "seq_fork while attend is in progress on the same sequence"},
    {forked, stats_taken, false, "stats while seq_",
     " while stats is in progress on the same session"},
    {attend_whole, attend_whole, false, "attend (share 0 of 1, position 156) while attend", NULL},
    {share_again, share_again, true,
     "attend (share 0 of 2, position 156) while attend (2 shares, position 156) is not complete on "
     "layer 0",
     NULL},
    {share_again, other_shares, true,
     "attend (share 0 of 3, position 156) while attend (2 shares, position 156) is not complete on "
     "layer 0",
     NULL},
};

static void *over_and_over(void *arg)
{
	void (*const *call)(void) = arg;

	for (;;)
		(*call)();
	return NULL;
}

static void log_stderr(void *user, int32_t level, const char *utf8)
{
	(void)user;
	fprintf(stderr, "%d: %s\n", (int)level, utf8);
}

/* In a child: what ends in abort(), or by SIGALRM. */
static void breach_commit(const struct breach *b)
{
	void (*calls[2])(void) = {b->one, b->other};
	pthread_t thread;

	alarm(20);
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	broken_session = session_open(NULL, log_stderr);
	skvq_seq_desc d = {.struct_size = sizeof d,
			   .max_tokens = APPEND_MAX + LONG,
			   .max_append = APPEND_MAX + LONG};
	if (api->seq_open(model_open(broken_session), &d, &broken.seqs[0]) < 0)
		_exit(1);
	broken.n_seqs = 1;
	broken_rows = calloc(LONG * N_KV * N_DIM, sizeof *broken_rows);
	broken_rows[LONG * N_KV * N_DIM - 1] = 1e30f;
	for (uint32_t layer = 0; layer < N_LAYER; layer++)
		if (append_tokens(&broken, 0, layer, APPEND_MAX) < 0)
			_exit(1);
	broken.at = APPEND_MAX - STEP_MAX;
	if (b->in_turn) {
		b->one();
		b->other();
		_exit(1);
	}
	if (pthread_create(&thread, NULL, over_and_over, &calls[0]) == 0)
		over_and_over(&calls[1]);
	_exit(1);
}

/* Whether the child's last words are those. */
static void breach_is_told(const struct breach *b)
{
	char said[4096];
	size_t n = 0;
	ssize_t got;
	int fds[2], status;

	assert_int_equal(pipe(fds), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(fds[1], STDERR_FILENO);
		close(fds[0]);
		close(fds[1]);
		breach_commit(b);
	}
	close(fds[1]);
	while (n < sizeof said - 1 && (got = read(fds[0], said + n, sizeof said - 1 - n)) > 0)
		n += (size_t)got;
	said[n] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT ||
	    (!strstr(said, b->says) && !(b->or_says && strstr(said, b->or_says))))
		fail_msg("'%s' was expected of a child that ended by status %x and said: %s",
			 b->says, (unsigned)status, said);
}

static void a_broken_rule_ends_the_process_and_says_which(void **state)
{
	(void)state;
	for (size_t i = 0; CHECKS && i < sizeof breaches / sizeof breaches[0]; i++)
		breach_is_told(&breaches[i]);
	if (!CHECKS) {
		print_message("not built to notice: SKVQ_CHECK_THREADS is off\n");
		skip();
	}
}

/* What looks like a breach and is none. */
static void an_attention_given_up_is_followed_by_an_append(void **state)
{
	(void)state;
	skvq_session *s = session_open(NULL, NULL);
	static struct team t;

	skvq_seq_desc d = {.struct_size = sizeof d, .max_tokens = 8, .max_append = 8};
	assert_int_equal(api->seq_open(model_open(s), &d, &t.seqs[0]), 0);
	t.n_seqs = 1;
	for (int i = 0; i < 3; i++, t.at++) {
		assert_int_equal(append_tokens(&t, 0, 0, 1), 0);
		assert_int_equal(attend_tokens(&t, 0, 1, 0, 2), 0);
	}
	t.at--;
	assert_int_equal(api->seq_truncate(t.seqs[0], 0), 0);
	t.at = 0;
	assert_int_equal(append_tokens(&t, 0, 0, 1), 0);
	assert_int_equal(attend_tokens(&t, 0, 2, 0, 2), -SKVQ_ERANGE); /* a share that failed */
	assert_int_equal(attend_tokens(&t, 0, 1, 1, 2), 0);
	assert_int_equal(attend_tokens(&t, 0, 1, 0, 2), 0);
	assert_int_equal(attend_tokens(&t, 0, 1, 0, 1), 0);
	/* or by a call that needs nobody else */
	assert_int_equal(attend_tokens(&t, 0, 1, 1, 2), 0);
	assert_int_equal(attend_tokens(&t, 0, 1, 0, 1), 0);
	api->close(s);
}

int main(void)
{
	if (!synthetic_load(SKVQ_PLUGIN_PATH))
		return 1;
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(many_threads_get_what_one_gets),
	    cmocka_unit_test(so_they_do_with_layer_groups),
	    cmocka_unit_test(an_attention_given_up_is_followed_by_an_append),
	    cmocka_unit_test(a_broken_rule_ends_the_process_and_says_which),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
