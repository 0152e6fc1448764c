/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys come from the client after RoPE, so a repeated block's keys are rotated on to where they now
 * stand: position p + d has the key of p turned by d times each pair's frequency.
 */
#include "fill.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One session, one model, one sequence at a time: what the bench has. */
static struct {
	const skvq_api *real;
	skvq_api api;
	uint32_t block; /* recorded tokens */
	int recording;
	skvq_model_desc desc; /* pointers in it are not used after the call */
	float *k, *v;         /* [n_layer][block][n_kv_heads][dim] */
} fill;

static size_t row_floats(void)
{
	return (size_t)fill.desc.n_kv_heads * fill.desc.head_dim_k;
}

static float *row_at(float *rows, uint32_t layer, uint32_t t)
{
	return rows + ((size_t)layer * fill.block + t) * row_floats();
}

static int32_t fill_register(skvq_session *session, const skvq_model_desc *desc, skvq_model **ret)
{
	fill.desc = *desc;
	if (desc->head_dim_k != desc->head_dim_v)
		return -SKVQ_ENOTSUP;
	if (fill.recording) {
		size_t n = desc->n_layer * row_floats() * fill.block;

		free(fill.k);
		free(fill.v);
		fill.k = calloc(n, sizeof *fill.k);
		fill.v = calloc(n, sizeof *fill.v);
		if (!fill.k || !fill.v)
			return -SKVQ_ENOMEM;
	}
	return fill.real->model_register(session, desc, ret);
}

/* The client's rows: float32, a token's heads side by side. */
static int32_t fill_append(skvq_seq *seq, const skvq_kv *kv)
{
	int64_t bytes = (int64_t)(row_floats() * sizeof(float));

	if (fill.recording) {
		if (kv->k_type != SKVQ_F32 || kv->v_type != SKVQ_F32 ||
		    kv->k_token_stride != bytes || kv->v_token_stride != bytes)
			return -SKVQ_ENOTSUP;
		for (uint32_t t = 0; t < kv->n_tokens && kv->position + t < fill.block; t++) {
			memcpy(row_at(fill.k, kv->layer, kv->position + t),
			       (const char *)kv->k + t * bytes, (size_t)bytes);
			memcpy(row_at(fill.v, kv->layer, kv->position + t),
			       (const char *)kv->v + t * bytes, (size_t)bytes);
		}
	}
	return fill.real->append(seq, kv);
}

static void rotate(float *x, const float *cosines, const float *sines)
{
	uint32_t pairs = fill.desc.head_dim_k / 2;

	for (uint32_t i = 0; i < pairs; i++) {
		int half = fill.desc.rope_pairs == SKVQ_PAIRS_HALF;
		float *a = half ? x + i : x + 2 * i, *b = half ? x + i + pairs : x + 2 * i + 1;
		float a0 = *a, b0 = *b;

		*a = a0 * cosines[i] - b0 * sines[i];
		*b = a0 * sines[i] + b0 * cosines[i];
	}
}

/* n tokens from position on: those of the block from t on, for all layers. */
static int32_t put(skvq_seq *seq, const int32_t *tokens, uint32_t position, uint32_t t, uint32_t n)
{
	uint32_t dim = fill.desc.head_dim_k, heads = fill.desc.n_kv_heads;
	float cosines[512], sines[512], *k = malloc(n * row_floats() * sizeof *k);
	int64_t head_bytes = (int64_t)(dim * sizeof *k);
	int32_t r = k ? 0 : -SKVQ_ENOMEM;

	for (uint32_t i = 0; i < dim / 2; i++) {
		double angle = (position - t) * pow(fill.desc.rope_theta, -2.0 * i / dim);

		cosines[i] = (float)cos(angle);
		sines[i] = (float)sin(angle);
	}
	for (uint32_t layer = 0; r >= 0 && layer < fill.desc.n_layer; layer++) {
		memcpy(k, row_at(fill.k, layer, t), n * row_floats() * sizeof *k);
		for (uint32_t i = 0; i < n * heads; i++)
			rotate(k + (size_t)i * dim, cosines, sines);
		skvq_kv kv = {.struct_size = sizeof kv,
			      .layer = layer,
			      .position = position,
			      .n_tokens = n,
			      .k_type = SKVQ_F32,
			      .v_type = SKVQ_F32,
			      .k = k,
			      .v = row_at(fill.v, layer, t),
			      .k_token_stride = head_bytes * heads,
			      .k_head_stride = head_bytes,
			      .v_token_stride = head_bytes * heads,
			      .v_head_stride = head_bytes};
		r = fill.real->append(seq, &kv);
	}
	free(k);
	return r < 0 ? r : fill.real->seq_commit(seq, tokens + position, n);
}

static int32_t fill_open(skvq_model *model, const skvq_seq_desc *desc, skvq_seq **ret)
{
	skvq_seq *seq;
	int32_t r = fill.real->seq_open(model, desc, &seq);
	uint32_t wanted = desc->n_tokens ? desc->n_tokens - 1 : 0, position = 0;

	if (r < 0 || fill.recording) {
		if (r >= 0)
			*ret = seq;
		return r;
	}
	/* In pieces that end with the block, and of at most what a commit may cover. */
	while (r >= 0 && position < wanted) {
		uint32_t t = position % fill.block, n = fill.block - t;

		n = n < desc->max_append ? n : desc->max_append;
		n = n < wanted - position ? n : wanted - position;
		r = put(seq, desc->tokens, position, t, n);
		position += n;
	}
	if (r < 0) {
		fill.real->seq_close(seq);
		return r;
	}
	*ret = seq;
	return (int32_t)wanted;
}

int32_t bench_fill(const char *plugin, uint32_t block)
{
	skvq_plugin_api_fn get = NULL;

	if (!fill.real) {
		void *so = dlopen(plugin, RTLD_NOW | RTLD_LOCAL); /* until the process ends */

		if (so)
			*(void **)&get = dlsym(so, "skvq_plugin_api");
		fill.real = get ? get(SKVQ_ABI_MAJOR) : NULL;
		if (!fill.real || fill.real->struct_size < sizeof fill.api)
			return -SKVQ_EVERSION;
		fill.api = *fill.real;
		fill.api.struct_size = sizeof fill.api;
		fill.api.model_register = fill_register;
		fill.api.seq_open = fill_open;
		fill.api.append = fill_append;
	}
	fill.recording = block != 0;
	if (block)
		fill.block = block;
	return 0;
}

const skvq_api *skvq_plugin_api(uint32_t major)
{
	return major == SKVQ_ABI_MAJOR && fill.real ? &fill.api : NULL;
}
