/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest complete engine: a "model" that makes up keys, values and queries from token ids,
 * and everything a real engine does around it.
 *
 *   engine PLUGIN.so [SOCKET]
 *
 * Without a socket the plugin runs embedded. With one, run it twice: the second run finds the first
 * one's pages. The program checks what it gets against attention computed by itself in double
 * precision over the same keys and values, and exits non-zero if they are too far apart.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/plugin.h>

enum {
	LAYERS = 2,
	Q_HEADS = 4,
	KV_HEADS = 2,
	DIM = 64,
	PROMPT = 700,
	GENERATED = 100,
	TOKENS = PROMPT + GENERATED,
	CHUNK = 128,
};

static float keys[LAYERS][TOKENS][KV_HEADS][DIM];
static float values[LAYERS][TOKENS][KV_HEADS][DIM];

/* The "model": any deterministic function of token, position, layer and channel will do. */
static float noise(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
	uint32_t x = a * 2654435761u ^ b * 2246822519u ^ c * 3266489917u ^ d * 668265263u;
	float sum = 0;

	for (int i = 0; i < 4; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		sum += (float)(x >> 8) / (float)(1 << 24) - 0.5f;
	}
	return sum * 1.7f; /* about a standard normal */
}

static void log_line(void *user, int32_t level, const char *utf8)
{
	(void)user;
	fprintf(stderr, "plugin (%d): %s\n", (int)level, utf8);
}

static int fail(const skvq_api *api, skvq_session *s, const char *what, int32_t err)
{
	char why[256] = "";

	if (s)
		api->last_error(s, why, sizeof why);
	fprintf(stderr, "engine: %s: %s: %s\n", what, api->err_name(err), why);
	return 1;
}

/* Relative error of the plugin's attention for the last of n tokens, all heads of one layer. */
static double error_of(uint32_t layer, uint32_t n, float q[Q_HEADS][DIM], float out[Q_HEADS][DIM])
{
	double diff = 0, norm = 0;

	for (uint32_t h = 0; h < Q_HEADS; h++) {
		uint32_t kv = h / (Q_HEADS / KV_HEADS);
		double p[TOKENS], max = -INFINITY, sum = 0;

		for (uint32_t t = 0; t < n; t++) {
			p[t] = 0;
			for (uint32_t d = 0; d < DIM; d++)
				p[t] += (double)q[h][d] * keys[layer][t][kv][d];
			p[t] /= sqrt(DIM);
			max = p[t] > max ? p[t] : max;
		}
		for (uint32_t t = 0; t < n; t++)
			sum += p[t] = exp(p[t] - max);
		for (uint32_t d = 0; d < DIM; d++) {
			double exact = 0;
			for (uint32_t t = 0; t < n; t++)
				exact += p[t] / sum * values[layer][t][kv][d];
			diff += (out[h][d] - exact) * (out[h][d] - exact);
			norm += exact * exact;
		}
	}
	return sqrt(diff / norm);
}

/* One forward pass over tokens [from, to): what an engine does in each layer, then the commit. */
static int32_t step(const skvq_api *api, skvq_seq *seq, const int32_t *tokens, uint32_t from,
                    uint32_t to, double *ret_error)
{
	static float q[CHUNK][Q_HEADS][DIM], out[CHUNK][Q_HEADS][DIM];
	uint32_t n = to - from;

	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t t = 0; t < n; t++)
			for (uint32_t h = 0; h < Q_HEADS; h++)
				for (uint32_t d = 0; d < DIM; d++)
					q[t][h][d] = noise((uint32_t)tokens[from + t], layer, h, 5000 + d);
		skvq_kv kv = {
		    .struct_size = sizeof kv,
		    .layer = layer,
		    .position = from,
		    .n_tokens = n,
		    .k_type = SKVQ_F32,
		    .v_type = SKVQ_F32,
		    .k = keys[layer][from],
		    .v = values[layer][from],
		    .k_token_stride = sizeof keys[0][0],
		    .k_head_stride = sizeof keys[0][0][0],
		    .v_token_stride = sizeof values[0][0],
		    .v_head_stride = sizeof values[0][0][0],
		};
		int32_t err = api->append(seq, &kv);
		if (err < 0)
			return err;
		skvq_attn attn = {
		    .struct_size = sizeof attn,
		    .layer = layer,
		    .position = from,
		    .n_rows = n,
		    .q_type = SKVQ_F32,
		    .nth = 1,
		    .scale = 1.0f / sqrtf(DIM),
		    .q = q,
		    .q_row_stride = sizeof q[0],
		    .q_head_stride = sizeof q[0][0],
		    .out = &out[0][0][0],
		    .out_row_stride = sizeof out[0],
		    .out_head_stride = sizeof out[0][0],
		};
		err = api->attend(&seq, &attn, 1);
		if (err < 0)
			return err;
		double e = error_of(layer, to, q[n - 1], out[n - 1]);
		*ret_error = e > *ret_error ? e : *ret_error;
	}
	return api->seq_commit(seq, tokens + from, n);
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: engine PLUGIN.so [SOCKET] [PROFILE]\n");
		return 2;
	}
	void *so = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (!so) {
		fprintf(stderr, "engine: %s\n", dlerror());
		return 1;
	}
	skvq_plugin_api_fn get;
	*(void **)&get = dlsym(so, "skvq_plugin_api");
	const skvq_api *api = get ? get(SKVQ_ABI_MAJOR) : NULL;
	if (!api) {
		fprintf(stderr, "engine: %s does not serve ABI %u\n", argv[1], SKVQ_ABI_MAJOR);
		return 1;
	}

	int32_t tokens[TOKENS];
	for (uint32_t t = 0; t < TOKENS; t++) {
		tokens[t] = (int32_t)(t * 7919 % 49152);
		for (uint32_t layer = 0; layer < LAYERS; layer++)
			for (uint32_t h = 0; h < KV_HEADS; h++)
				for (uint32_t d = 0; d < DIM; d++) {
					keys[layer][t][h][d] = noise((uint32_t)tokens[t], layer, h, d);
					values[layer][t][h][d] =
					    noise((uint32_t)tokens[t], layer, h, 1000 + d);
				}
	}

	skvq_engine engine = {.struct_size = sizeof engine, .log = log_line, .name = "example"};
	const char *socket = argc > 2 && *argv[2] ? argv[2] : NULL;
	skvq_session *session = NULL;
	int32_t err = api->open(&engine, socket, &session);
	if (err < 0)
		return fail(api, NULL, "open", err);

	const uint8_t weights[32] = "the example engine's weights";
	const uint8_t tokenizer[32] = "the example's tokenizer";
	skvq_model_desc desc = {
	    .struct_size = sizeof desc,
	    .weights_digest = weights,
	    .tokenizer_digest = tokenizer,
	    .engine_numerics = "example-1",
	    .model_name = "example",
	    .n_layer = LAYERS,
	    .n_q_heads = Q_HEADS,
	    .n_kv_heads = KV_HEADS,
	    .head_dim_k = DIM,
	    .head_dim_v = DIM,
	    .rope_kind = SKVQ_ROPE_NONE,
	    .profile = argc > 3 ? argv[3] : "k8v8",
	    .window = SKVQ_DEFAULT,
	    .sinks = SKVQ_DEFAULT,
	};
	skvq_model *model = NULL;
	err = api->model_register(session, &desc, &model);
	if (err < 0)
		return fail(api, session, "model_register", err);

	skvq_seq_desc sd = {
	    .struct_size = sizeof sd,
	    .tokens = tokens,
	    .n_tokens = PROMPT,
	    .max_tokens = TOKENS,
	    .max_append = CHUNK,
	};
	skvq_seq *seq = NULL;
	int32_t matched = api->seq_open(model, &sd, &seq);
	if (matched < 0)
		return fail(api, session, "seq_open", matched);

	double worst = 0;
	uint32_t at = (uint32_t)matched;
	while (at < TOKENS) {
		/* Prefill in chunks, then decode one token at a time. */
		uint32_t to = at >= PROMPT ? at + 1 : at + CHUNK < PROMPT ? at + CHUNK : PROMPT;
		err = step(api, seq, tokens, at, to, &worst);
		if (err < 0)
			return fail(api, session, "step", err);
		at = to;
	}
	skvq_seq_info info = {.struct_size = sizeof info};
	api->seq_info(seq, &info);
	printf("%u tokens, %d matched, %u pages shared, %u local, worst relative error %.4f\n", at,
	       (int)matched, info.pages_shared, info.pages_local, worst);

	api->seq_close(seq);
	err = api->model_unregister(model);
	api->close(session);
	dlclose(so);
	return err < 0 || !(worst < 0.05);
}
