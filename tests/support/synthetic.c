/* SPDX-License-Identifier: Apache-2.0 */
#include "synthetic.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

const skvq_api *api;
const uint8_t digest[32] = {7};
const void *calibration;
uint64_t calibration_bytes;
const uint16_t *reorder_k, *reorder_v;
const char *profile = "k2v1.5";
bool drown;
const uint32_t *layer_window;
uint32_t model_flags;
uint32_t seq_flags;

bool synthetic_load(const char *plugin)
{
	void *so = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
	skvq_plugin_api_fn get;

	if (!so) {
		fprintf(stderr, "%s\n", dlerror());
		return false;
	}
	*(void **)&get = dlsym(so, "skvq_plugin_api");
	api = get ? get(SKVQ_ABI_MAJOR) : NULL;
	return api != NULL;
}

/* K, V and Q are functions of the token ids before them, as in a real model. */
uint32_t mix(uint32_t x)
{
	x ^= x >> 16;
	x *= 0x7feb352du;
	x ^= x >> 15;
	x *= 0x846ca68bu;
	return x ^ x >> 16;
}

void fill(float *x, uint32_t n, uint32_t seed)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t r = mix(seed + i * 977u);
		x[i] = ((float)(r & 0xffff) + (float)(r >> 16)) / 65536.0f * 2.4f - 2.4f;
	}
}

void fill_k(float *x, uint32_t layer, uint32_t position, uint32_t history)
{
	fill(x, KV_HEADS * DIM, history + layer * 31);
	for (uint32_t i = 3; drown && layer == 1 && position / 80 % 2 && i < KV_HEADS * DIM; i += DIM / 4)
		x[i] *= 32;
}

void fill_v(float *x, uint32_t layer, uint32_t history)
{
	fill(x, KV_HEADS * DIM, history + layer * 37 + 1);
}

void run_open_model(struct run *r, const char *socket, const char *numerics)
{
	skvq_engine e = {.struct_size = sizeof e, .name = "test", .timeout_ms = 5000};
	skvq_model_desc d = {.struct_size = sizeof d,
	                     .flags = model_flags,
	                     .weights_digest = digest,
	                     .tokenizer_digest = digest,
	                     .engine_numerics = numerics,
	                     .model_name = "synthetic",
	                     .n_layer = LAYERS,
	                     .n_q_heads = Q_HEADS,
	                     .n_kv_heads = KV_HEADS,
	                     .head_dim_k = DIM,
	                     .head_dim_v = DIM,
	                     .rope_kind = SKVQ_ROPE_NONE,
	                     .profile = profile,
	                     .calibration = calibration,
	                     .calibration_bytes = calibration_bytes,
	                     .reorder_k = reorder_k,
	                     .reorder_v = reorder_v,
	                     .layer_window = layer_window,
	                     .window = 64,
	                     .sinks = 5};

	assert_int_equal(api->open(&e, socket, &r->session), 0);
	assert_int_equal(api->model_register(r->session, &d, &r->model), 0);
}

/* The first `shared` tokens are the same for every tail. */
void run_tokens(struct run *r, uint32_t shared, uint32_t tail)
{
	for (uint32_t i = 0; i < TOKENS; i++)
		r->tokens[i] = (int32_t)(mix(i < shared ? i : i + tail * 100000u) % 49152);
}

void run_open(struct run *r, const char *socket, uint32_t shared, uint32_t tail,
                     uint32_t prompt, const char *numerics)
{
	memset(r, 0, sizeof *r);
	run_open_model(r, socket, numerics);
	run_tokens(r, shared, tail);
	skvq_seq_desc d = {.struct_size = sizeof d,
	                   .flags = seq_flags,
	                   .tokens = r->tokens,
	                   .n_tokens = prompt,
	                   .max_tokens = TOKENS,
	                   .max_append = CHUNK};
	r->matched = api->seq_open(r->model, &d, &r->seq);
	assert_true(r->matched >= 0);
	r->at = (uint32_t)r->matched;
	for (uint32_t i = 0; i < r->at; i++)
		r->history = mix(r->history ^ (uint32_t)r->tokens[i]);
}

void run_close(struct run *r)
{
	api->seq_close(r->seq);
	api->close(r->session);
}

void run_truncate(struct run *r, uint32_t n)
{
	assert_int_equal(api->seq_truncate(r->seq, n), 0);
	r->at = n;
	r->history = 0;
	for (uint32_t i = 0; i < n; i++)
		r->history = mix(r->history ^ (uint32_t)r->tokens[i]);
}

void run_turn(struct run *r, uint32_t n, uint32_t tail)
{
	for (uint32_t i = n; i < TOKENS; i++)
		r->tokens[i] = (int32_t)(mix(i + tail * 100000u) % 49152);
}

/* One forward pass over the next n tokens; returns a hash of all attention output bits. */
uint64_t run_step(struct run *r, uint32_t n)
{
	static float k[CHUNK][KV_HEADS][DIM], v[CHUNK][KV_HEADS][DIM];
	static float q[CHUNK][Q_HEADS][DIM], out[CHUNK][Q_HEADS][DIM];
	uint64_t hash = 1469598103934665603u;
	uint32_t history = r->history;

	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		history = r->history;
		for (uint32_t t = 0; t < n; t++) {
			history = mix(history ^ (uint32_t)r->tokens[r->at + t]);
			fill_k(&k[t][0][0], layer, r->at + t, history);
			fill_v(&v[t][0][0], layer, history);
			fill(&q[t][0][0], Q_HEADS * DIM, history + layer * 41 + 2);
		}
		skvq_kv kv = {.struct_size = sizeof kv,
		              .layer = layer,
		              .position = r->at,
		              .n_tokens = n,
		              .k = k,
		              .v = v,
		              .k_token_stride = sizeof k[0],
		              .k_head_stride = sizeof k[0][0],
		              .v_token_stride = sizeof v[0],
		              .v_head_stride = sizeof v[0][0]};
		assert_int_equal(api->append(r->seq, &kv), 0);
		skvq_attn a = {.struct_size = sizeof a,
		               .layer = layer,
		               .position = r->at,
		               .n_rows = n,
		               .sliding_limit = layer_window ? layer_window[layer] : 0,
		               .nth = 1,
		               .scale = 0.125f,
		               .q = q,
		               .q_row_stride = sizeof q[0],
		               .q_head_stride = sizeof q[0][0],
		               .out = &out[0][0][0],
		               .out_row_stride = sizeof out[0],
		               .out_head_stride = sizeof out[0][0]};
		assert_int_equal(api->attend(&r->seq, &a, 1), 0);
		const uint8_t *p = (const uint8_t *)out;
		for (size_t i = 0; i < n * sizeof out[0]; i++)
			hash = (hash ^ p[i]) * 1099511628211u;
	}
	assert_int_equal(api->seq_commit(r->seq, r->tokens + r->at, n), 0);
	r->history = history;
	r->at += n;
	return hash;
}

uint64_t staging_bytes(void)
{
	uint64_t bytes = 0;

	for (int fd = 3; fd < 256; fd++) {
		char path[32], name[64] = "";
		struct stat st;

		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		if (readlink(path, name, sizeof name - 1) > 0 && strstr(name, "skvq-staging") &&
		    fstat(fd, &st) == 0)
			bytes += (uint64_t)st.st_blocks * 512;
	}
	return bytes;
}

void nap_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

skvq_seq_info info_of(struct run *r)
{
	skvq_seq_info info = {.struct_size = sizeof info};

	assert_int_equal(api->seq_info(r->seq, &info), 0);
	return info;
}

/* Polls until so many pages are shared; bounded. */
skvq_seq_info wait_shared(struct run *r, uint32_t pages)
{
	for (int i = 0; i < 1000; i++) {
		assert_true(api->seq_poll(r->seq) >= 0);
		skvq_seq_info info = info_of(r);
		if (info.pages_shared >= pages)
			return info;
		nap_ms(5);
	}
	fail_msg("%u of %u pages shared after five seconds", info_of(r).pages_shared, pages);
	return info_of(r);
}

/* The first n tokens of both hold the same bits, sinks and all. */
void same_tokens(struct run *x, struct run *y, uint32_t n)
{
	static float k[2][TOKENS][KV_HEADS][DIM], v[2][TOKENS][KV_HEADS][DIM];

	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (int i = 0; i < 2; i++) {
			skvq_export e = {.struct_size = sizeof e,
			                 .layer = layer,
			                 .n_tokens = n,
			                 .type = SKVQ_F32,
			                 .k = k[i],
			                 .v = v[i],
			                 .k_token_stride = sizeof k[0][0],
			                 .k_head_stride = sizeof k[0][0][0],
			                 .v_token_stride = sizeof v[0][0],
			                 .v_head_stride = sizeof v[0][0][0]};
			assert_int_equal(api->export_kv(i ? y->seq : x->seq, &e), 0);
		}
		assert_memory_equal(k[0], k[1], n * sizeof k[0][0]);
		assert_memory_equal(v[0], v[1], n * sizeof v[0][0]);
	}
}

struct skvq_client *observe(const char *socket)
{
	struct skvq_client *c = NULL;
	char why[SKVQ_CLIENT_WHY_BYTES];

	if (skvq_client_connect(socket, "observer", 5000, &c, why) < 0)
		fail_msg("observer: %s", why);
	return c;
}

struct skvq_client_status status_of(const char *socket)
{
	struct skvq_client *c = observe(socket);
	struct skvq_client_status s;

	assert_int_equal(skvq_client_status(c, &s), 0);
	skvq_client_free(c);
	return s;
}

uint64_t counter_of(const char *socket, const char *name)
{
	struct skvq_client_status s = status_of(socket);

	for (size_t i = 0; i < s.n_counters; i++)
		if (!strcmp(s.counters[i].name, name))
			return s.counters[i].value;
	fail_msg("no counter %s", name);
	return 0;
}
