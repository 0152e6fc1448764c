/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our side as an engine has it: pages in the arena of a skvqd, mapped read-only by the plugin, the
 * newest tokens in the FP16 window, attention through attend(). Handing over half a gigabyte of
 * codes token by token would take longer than all measuring, so the pages of a few tokens are
 * encoded once and published under new tokens until there are enough; each is memory of its own.
 */
#include "bench.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <skvq/client.h>
#include <skvq/kernels.h>
#include <skvq/layout.h>

#define WINDOW       128u
#define SINKS        5u
#define RUN_PAGES    (2 * BASE_PAGES) /* of one publish request */
#define TIMEOUT_MS   20000u
#define START_MS_MAX 10000
#define APPEND_MAX   256u
#define LAYERS_MOST  32u
#define VOCABULARY   49152u
#define SEQS_MAX     256u
#define ROLES_MAX    4u

/* A store as a contestant. */
struct role {
	struct store *st;
	struct team *team;
	bool one_call;
	uint32_t unit;
	double *busy; /* CPU time of each thread inside attend(); NULL: not wanted */
};

struct store {
	struct role roles[ROLES_MAX];
	uint32_t n_roles;
	struct shape s;
	const struct base *base;
	struct skvq_layout layout;
	char profile[SKVQ_PROFILE_NAME_MAX + 1];
	bool same_tokens;
	uint32_t n_seqs, n_pages; /* pages of a sequence that come from the daemon */
	uint64_t random;

	char dir[32], socket[64];
	pid_t pid;

	void *plugin;
	const skvq_api *api;
	skvq_session *session;
	skvq_model *model;
	skvq_seq *seqs[SEQS_MAX];
	int32_t *tokens;
	float *outs; /* one output for each sequence of a call */

	/* publishing */
	struct skvq_client *client;
	uint8_t *staging;
	struct skvq_page_ref last;
	int failed;
	char why[SKVQ_CLIENT_WHY_BYTES];
};

static int32_t next_token(struct store *st)
{
	uint64_t x = st->random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	st->random = x;
	return (int32_t)((x >> 16) % VOCABULARY);
}

/* --- the daemon ------------------------------------------------------------------------------- */

/* Of a file relative to the folder of this executable. */
static void beside(const char *name, char *ret, size_t bytes)
{
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

	if (n < 0)
		die("/proc/self/exe: %s", strerror(errno));
	self[n] = 0;
	*strrchr(self, '/') = 0;
	if (snprintf(ret, bytes, "%s/%s", self, name) >= (int)bytes)
		die("the path of '%s' is too long", name);
}

static bool answers(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	bool ok = fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
	close(fd);
	return ok;
}

static void daemon_start(struct store *st)
{
	char program[4096];
	pid_t parent = getpid();

	beside("skvqd", program, sizeof program);
	strcpy(st->dir, "/tmp/skvq-bench-XXXXXX");
	if (!mkdtemp(st->dir))
		die("no folder for a socket in /tmp: %s", strerror(errno));
	snprintf(st->socket, sizeof st->socket, "%s/skvqd.sock", st->dir);
	st->pid = fork();
	if (st->pid < 0)
		die("fork: %s", strerror(errno));
	if (st->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() == parent)
			execl(program, program, "--socket", st->socket, "--ram-max", "64G",
			      "--frame-max", "16M", "--log-level", "error", (char *)NULL);
		_exit(127);
	}
	for (int ms = 0; !answers(st->socket); ms += 5) {
		if (waitpid(st->pid, NULL, WNOHANG) == st->pid)
			die("'%s' did not start", program);
		if (ms > START_MS_MAX)
			die("'%s' does not answer", program);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
}

static void daemon_stop(struct store *st)
{
	kill(st->pid, SIGTERM);
	waitpid(st->pid, NULL, 0);
}

/* --- publishing ------------------------------------------------------------------------------- */

/* Encodes the base's pages, once, and lays them out for all layers and heads. */
static void fill_staging(struct store *st)
{
	const struct skvq_kernels *kn = skvq_kernels_get();
	const struct skvq_layout *l = &st->layout;
	uint32_t dim = st->s.dim;
	float *rows = take(16ul * dim * sizeof *rows);

	for (int is_v = 0; is_v < 2; is_v++) {
		const struct skvq_codec *c = is_v ? &l->layers[0].v : &l->layers[0].k;
		const float *from = is_v ? st->base->v : st->base->k;
		uint8_t *codes = take((size_t)c->head_bytes * BASE_PAGES);
		uint8_t *params = take((size_t)(c->n_rows + 1) * SKVQ_PAGE_TOKENS * BASE_PAGES);
		size_t params_bytes = (size_t)c->n_rows * SKVQ_PAGE_TOKENS;

		for (uint32_t p = 0; p < BASE_PAGES; p++) {
			for (uint32_t t = 0; t < SKVQ_PAGE_TOKENS / 16; t++) {
				memcpy(rows, from + ((size_t)p * SKVQ_PAGE_TOKENS + t * 16ul) * dim,
				       16ul * dim * sizeof *rows);
				kn->encode_tile(c, NULL, rows, t, codes + (size_t)p * c->head_bytes,
						params + p * params_bytes, NULL);
			}
		}
		for (uint32_t i = 0; i < RUN_PAGES; i++) {
			uint8_t *page = st->staging + i * l->slot_bytes;

			for (uint32_t layer = 0; layer < l->geo.n_layer; layer++) {
				for (uint32_t h = 0; h < st->s.heads; h++) {
					uint32_t p = base_page(i, h, layer);

					memcpy(page + (is_v ? skvq_layout_v_codes(l, layer, h)
							    : skvq_layout_k_codes(l, layer, h)),
					       codes + (size_t)p * c->head_bytes, c->head_bytes);
					memcpy(page + (is_v ? skvq_layout_v_params(l, layer, h)
							    : skvq_layout_k_params(l, layer, h)),
					       params + p * params_bytes, params_bytes);
				}
			}
		}
		for (uint32_t layer = 0; layer < l->geo.n_layer; layer++)
			for (uint32_t h = 0; h < st->s.heads; h++)
				kn->f32_to_f16(
				    from + (size_t)base_row(0, h, layer) * dim,
				    (uint16_t *)(void *)(st->staging +
							 (is_v ? skvq_layout_v_sinks(l, layer, h)
							       : skvq_layout_k_sinks(l, layer, h))),
				    (size_t)SINKS * dim);
		free(codes);
		free(params);
	}
	free(rows);
}

static void published(void *user, uint64_t id, int err, const char *detail,
		      const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct store *st = user;

	(void)id;
	(void)n_existed;
	if (err) {
		st->failed = err;
		snprintf(st->why, sizeof st->why, "%s", detail ? detail : "");
	} else if (n_pages) {
		st->last = pages[n_pages - 1];
	}
}

/* The whole pages of st->tokens, in runs; the staging area is free again when a run is answered. */
static void publish(struct store *st, uint32_t ns, uint32_t staging)
{
	const struct skvq_layout *l = &st->layout;

	st->last = (struct skvq_page_ref){0};
	for (uint32_t done = 0; done < st->n_pages;) {
		uint32_t n = st->n_pages - done < RUN_PAGES ? st->n_pages - done : RUN_PAGES;
		uint32_t position = done * SKVQ_PAGE_TOKENS;
		uint64_t id;

		for (uint32_t i = 0; i < n; i++) {
			uint8_t *page = st->staging + i * l->slot_bytes;

			skvq_page_init(l, position + i * SKVQ_PAGE_TOKENS, page);
			memcpy(page + l->tokens_offset,
			       st->tokens + position + i * SKVQ_PAGE_TOKENS,
			       SKVQ_PAGE_TOKENS * sizeof *st->tokens);
		}
		int r = skvq_client_publish(st->client, ns, st->last, position,
					    st->tokens + position, n, NULL, staging, 0, &id);
		while (r >= 0 && (r = skvq_client_poll(st->client, TIMEOUT_MS)) > 0)
			;
		if (r < 0 || st->failed)
			die("publishing stopped after %u pages: %s: %s", done,
			    skvq_err_name(st->failed ? st->failed : r),
			    st->failed ? st->why : skvq_client_why(st->client));
		done += n;
	}
}

static void publisher_open(struct store *st, uint32_t *ret_ns, uint32_t *ret_staging)
{
	static const uint8_t digest[32] = "bench-attention";
	const struct skvq_geometry *g = &st->layout.geo;
	uint8_t bits[SKVQ_LAYERS_MAX][2];
	struct skvq_client_ns ns;
	int arena = -1;

	for (uint32_t i = 0; i < g->n_layer; i++) {
		bits[i][0] = st->layout.layers[i].k.bits;
		bits[i][1] = st->layout.layers[i].v.bits;
	}
	struct skvq_client_identity id = {.weights_digest = digest,
					  .tokenizer_digest = digest,
					  .engine_numerics = "bench-attention",
					  .model_name = "made-up",
					  .n_layer = g->n_layer,
					  .n_q_heads = st->s.heads * st->s.group,
					  .n_kv_heads = g->n_kv_heads,
					  .head_dim_k = g->head_dim_k,
					  .head_dim_v = g->head_dim_v,
					  .rope_kind = SKVQ_ROPE_NONE,
					  .profile = st->profile,
					  .window = WINDOW,
					  .sinks = SINKS,
					  .bit_table = &bits[0][0]};
	int r =
	    skvq_client_connect(st->socket, "bench-attention", TIMEOUT_MS, &st->client, st->why);
	if (r < 0)
		die("no connection to skvqd: %s", st->why);
	skvq_client_on_published(st->client, published, st);
	r = skvq_client_namespace_open(st->client, &id, &ns, &arena);
	if (r < 0)
		die("no namespace: %s", skvq_client_why(st->client));
	close(arena);

	uint64_t bytes = RUN_PAGES * st->layout.slot_bytes;
	int fd = memfd_create("bench-attention", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
		die("a memfd of %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
	st->staging = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (st->staging == MAP_FAILED)
		die("mapping %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
	r = skvq_client_staging_add(st->client, fd, ret_staging);
	if (r < 0)
		die("staging: %s", skvq_client_why(st->client));
	close(fd);
	*ret_ns = ns.ns;
}

/* --- the engine ------------------------------------------------------------------------------- */

static void check(struct store *st, const char *what, int32_t r)
{
	char why[256] = "";

	if (r >= 0)
		return;
	if (st->session)
		st->api->last_error(st->session, why, sizeof why);
	die("%s: %s: %s", what, st->api->err_name(r), why);
}

static void session_open(struct store *st)
{
	const char *path = getenv("SKVQ_PLUGIN");
	char standard[4096];
	skvq_plugin_api_fn get;

	beside("../lib/libskvq_plugin.so", standard, sizeof standard);
	st->plugin = dlopen(path ? path : standard, RTLD_NOW | RTLD_LOCAL);
	if (!st->plugin)
		die("%s", dlerror());
	*(void **)&get = dlsym(st->plugin, "skvq_plugin_api");
	st->api = get ? get(SKVQ_ABI_MAJOR) : NULL;
	if (!st->api)
		die("the plugin does not serve ABI %u", SKVQ_ABI_MAJOR);
	skvq_engine engine = {
	    .struct_size = sizeof engine, .name = "bench-attention", .timeout_ms = TIMEOUT_MS};
	check(st, "open", st->api->open(&engine, st->socket, &st->session));
	static const uint8_t digest[32] = "bench-attention";
	skvq_model_desc desc = {.struct_size = sizeof desc,
				.weights_digest = digest,
				.tokenizer_digest = digest,
				.engine_numerics = "bench-attention",
				.model_name = "made-up",
				.n_layer = st->layout.geo.n_layer,
				.n_q_heads = st->s.heads * st->s.group,
				.n_kv_heads = st->s.heads,
				.head_dim_k = st->s.dim,
				.head_dim_v = st->s.dim,
				.rope_kind = SKVQ_ROPE_NONE,
				.profile = st->profile,
				.window = WINDOW,
				.sinks = SINKS};
	check(st, "model_register", st->api->model_register(st->session, &desc, &st->model));
}

static void append(struct store *st, skvq_seq *seq, uint32_t position, uint32_t n)
{
	uint32_t dim = st->s.dim, heads = st->s.heads;
	size_t floats = (size_t)n * heads * dim;
	float *k = take(2 * floats * sizeof *k), *v = k + floats;

	for (uint32_t layer = 0; layer < st->layout.geo.n_layer; layer++) {
		for (uint32_t t = 0; t < n; t++) {
			for (uint32_t h = 0; h < heads; h++) {
				size_t from = (size_t)base_row(position + t, h, layer) * dim;
				size_t to = ((size_t)t * heads + h) * dim;

				memcpy(k + to, st->base->k + from, dim * sizeof *k);
				memcpy(v + to, st->base->v + from, dim * sizeof *v);
			}
		}
		int64_t head_bytes = (int64_t)(dim * sizeof *k);
		skvq_kv kv = {.struct_size = sizeof kv,
			      .layer = layer,
			      .position = position,
			      .n_tokens = n,
			      .k_type = SKVQ_F32,
			      .v_type = SKVQ_F32,
			      .k = k,
			      .v = v,
			      .k_token_stride = head_bytes * heads,
			      .k_head_stride = head_bytes,
			      .v_token_stride = head_bytes * heads,
			      .v_head_stride = head_bytes};
		check(st, "append", st->api->append(seq, &kv));
	}
	free(k);
}

/* Attaches to what was published and goes on as an engine does: the tokens before the query's are
 * computed and committed, the query's own are appended. */
static void seq_open(struct store *st, uint32_t i)
{
	const struct shape *s = &st->s;
	skvq_seq_desc desc = {.struct_size = sizeof desc,
			      .flags = SKVQ_SEQ_NO_PUBLISH,
			      .tokens = st->tokens,
			      .n_tokens = s->tokens,
			      .max_tokens = s->tokens,
			      .max_append = s->rows > APPEND_MAX ? s->rows : APPEND_MAX};
	int32_t matched = st->api->seq_open(st->model, &desc, &st->seqs[i]);

	check(st, "seq_open", matched);
	if ((uint32_t)matched != st->n_pages * SKVQ_PAGE_TOKENS)
		die("%d tokens matched of %u published", matched, st->n_pages * SKVQ_PAGE_TOKENS);
	uint32_t n = s->tokens - s->rows - (uint32_t)matched;
	append(st, st->seqs[i], (uint32_t)matched, n);
	check(st, "commit", st->api->seq_commit(st->seqs[i], st->tokens + matched, n));
	append(st, st->seqs[i], s->tokens - s->rows, s->rows);
}

static size_t out_floats(const struct store *st)
{
	return (size_t)st->s.rows * st->s.heads * st->s.group * st->s.dim;
}

static double page_layer_bytes(const struct store *st)
{
	const struct skvq_layer_layout *l = &st->layout.layers[0];

	return st->s.heads *
	       (l->k.head_bytes + l->v.head_bytes + (l->k.n_rows + l->v.n_rows) * 80.0);
}

/* Layers and sequences that fill the working set; sequences only when there are layers enough. */
static void choose_size(struct store *st, uint32_t n_layers, uint32_t n_seqs)
{
	struct skvq_geometry geo = {.n_layer = n_layers ? n_layers : 1,
				    .n_kv_heads = st->s.heads,
				    .head_dim_k = st->s.dim,
				    .head_dim_v = st->s.dim,
				    .n_sinks = SINKS};
	struct skvq_profile profile;
	int r = skvq_profile_parse(st->profile, &profile);

	if (r >= 0)
		r = skvq_layout_init(&geo, &profile, NULL, &st->layout);
	if (r < 0)
		die("profile '%s', head_dim %u: %s", st->profile, st->s.dim, skvq_err_name(r));
	double layer = page_layer_bytes(st) * st->n_pages;
	if (!n_layers) {
		double wanted = ceil((double)working_set / layer);

		geo.n_layer = wanted < LAYERS_MOST ? (uint32_t)wanted : LAYERS_MOST;
		if (skvq_layout_init(&geo, &profile, NULL, &st->layout) < 0)
			die("%u layers have no page layout", geo.n_layer);
	}
	st->n_seqs = n_seqs;
	if (!n_seqs)
		st->n_seqs = (uint32_t)ceil((double)working_set / (layer * geo.n_layer));
	if (st->n_seqs > SEQS_MAX)
		die("%u sequences are too many", st->n_seqs);
}

struct store *store_open(const struct shape *s, const char *profile, const struct base *b,
			 uint32_t n_layers, uint32_t n_seqs, bool same_tokens)
{
	struct store *st = take(sizeof *st);
	uint32_t ns, staging;

	st->s = *s;
	st->base = b;
	st->random = 88172645463325252u;
	st->same_tokens = same_tokens;
	snprintf(st->profile, sizeof st->profile, "%s", profile);
	if (s->tokens < s->rows + WINDOW + SKVQ_PAGE_TOKENS)
		die("%u tokens are too few for %u query rows", s->tokens, s->rows);
	st->n_pages = (s->tokens - s->rows - WINDOW) / SKVQ_PAGE_TOKENS;
	choose_size(st, n_layers, n_seqs);
	st->tokens = take(s->tokens * sizeof *st->tokens);
	st->outs = take(out_floats(st) * st->n_seqs * sizeof *st->outs);
	daemon_start(st);
	publisher_open(st, &ns, &staging);
	fill_staging(st);
	session_open(st);
	/* Nobody connects any more, and nothing is left behind however this ends. */
	(void)unlink(st->socket);
	(void)rmdir(st->dir);
	for (uint32_t i = 0; i < st->n_seqs; i++) {
		if (i == 0 || !same_tokens) {
			for (uint32_t t = 0; t < s->tokens; t++)
				st->tokens[t] = next_token(st);
			publish(st, ns, staging);
		}
		seq_open(st, i);
	}
	skvq_client_free(st->client);
	st->client = NULL;
	munmap(st->staging, RUN_PAGES * st->layout.slot_bytes);
	return st;
}

void store_close(struct store *st)
{
	if (!st)
		return;
	for (uint32_t i = 0; i < st->n_seqs; i++)
		st->api->seq_close(st->seqs[i]);
	st->api->close(st->session);
	dlclose(st->plugin);
	daemon_stop(st);
	free(st->tokens);
	free(st->outs);
	free(st);
}

uint32_t store_layers(const struct store *st)
{
	return st->layout.geo.n_layer;
}

uint32_t store_seqs(const struct store *st)
{
	return st->n_seqs;
}

double store_bytes(const struct store *st)
{
	uint32_t fp16 = st->s.tokens - st->n_pages * SKVQ_PAGE_TOKENS;

	return page_layer_bytes(st) * st->n_pages + 4.0 * fp16 * st->s.heads * st->s.dim;
}

uint64_t store_total(const struct store *st)
{
	return (uint64_t)st->n_pages * st->layout.base_bytes * (st->same_tokens ? 1 : st->n_seqs);
}

static skvq_attn attn_of(const struct store *st, uint32_t layer, float *out)
{
	int64_t head_bytes = (int64_t)(st->s.dim * sizeof *out);
	int64_t row_bytes = head_bytes * st->s.heads * st->s.group;

	return (skvq_attn){.struct_size = sizeof(skvq_attn),
			   .layer = layer,
			   .position = st->s.tokens - st->s.rows,
			   .n_rows = st->s.rows,
			   .q_type = SKVQ_F32,
			   .nth = 1,
			   .scale = 1.0f / sqrtf((float)st->s.dim),
			   .q = st->base->q,
			   .q_row_stride = row_bytes,
			   .q_head_stride = head_bytes,
			   .out = out,
			   .out_row_stride = row_bytes,
			   .out_head_stride = head_bytes};
}

static void attend_part(void *user, uint32_t ith, uint32_t nth)
{
	struct role *role = user;
	struct store *st = role->st;
	skvq_attn a = attn_of(st, role->unit % st->layout.geo.n_layer, st->outs);

	a.ith = ith;
	a.nth = nth;
	double start = role->busy ? now_ns(false) : 0;
	check(st, "attend", st->api->attend(&st->seqs[role->unit / st->layout.geo.n_layer], &a, 1));
	if (role->busy)
		role->busy[ith] += now_ns(false) - start;
}

static void attend_unit(void *user, uint32_t i)
{
	struct role *role = user;

	role->unit = i;
	team_run(role->team, attend_part, role);
}

static void batch_part(void *user, uint32_t ith, uint32_t nth)
{
	struct role *role = user;
	struct store *st = role->st;
	skvq_attn attns[SEQS_MAX];

	for (uint32_t i = 0; i < st->n_seqs; i++) {
		attns[i] = attn_of(st, role->unit, st->outs + i * out_floats(st));
		attns[i].ith = ith;
		attns[i].nth = nth;
		if (!role->one_call)
			check(st, "attend", st->api->attend(&st->seqs[i], &attns[i], 1));
	}
	if (role->one_call)
		check(st, "attend", st->api->attend(st->seqs, attns, st->n_seqs));
}

static void batch_unit(void *user, uint32_t i)
{
	struct role *role = user;

	role->unit = i;
	team_run(role->team, batch_part, role);
}

static void contestant(struct store *st, struct team *t, bool one_call, const char *name,
		       struct contestant *c)
{
	if (st->n_roles == ROLES_MAX)
		die("a store has at most %u roles", ROLES_MAX);
	struct role *role = &st->roles[st->n_roles++];

	*role = (struct role){.st = st, .team = t, .one_call = one_call};
	*c = (struct contestant){.user = role, .cold = true};
	snprintf(c->name, sizeof c->name, "%s", name);
}

void store_contestant(struct store *st, struct team *t, const char *name, struct contestant *c)
{
	contestant(st, t, false, name, c);
	c->unit = attend_unit;
	c->n_units = st->layout.geo.n_layer * st->n_seqs;
}

void store_busy(struct contestant *c, double *busy)
{
	((struct role *)c->user)->busy = busy;
}

void store_batch_contestant(struct store *st, struct team *t, bool one_call, const char *name,
			    struct contestant *c)
{
	contestant(st, t, one_call, name, c);
	c->unit = batch_unit;
	c->n_units = st->layout.geo.n_layer;
}

const float *store_out(const struct store *st)
{
	return st->outs;
}
