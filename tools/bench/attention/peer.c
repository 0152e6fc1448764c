/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ggml's flash attention on the CPU, as llama.cpp calls it: a layer's K cache is a tensor
 * [heads * dim, cells], a token's heads side by side; attention gets a permuted view of it, an F32
 * query and an F16 mask. llama.cpp rotates queries for quantized caches beforehand; that is not
 * timed here, which is in the peer's favour.
 */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ggml-cpu.h>
#include <ggml.h>

const char *const peer_names[PEER_TYPES] = {"f16", "q8_0", "q4_0"};

/* --- the team --------------------------------------------------------------------------------- */

struct team {
	uint32_t n_threads;
	struct ggml_threadpool *pool;
	struct ggml_context *ctx;
	struct ggml_cgraph *graph;
	struct ggml_cplan plan;
	team_fn fn;
	void *user;
};

static void team_node(struct ggml_tensor *dst, int ith, int nth, void *user)
{
	struct team *t = user;

	(void)dst;
	t->fn(t->user, (uint32_t)ith, (uint32_t)nth);
}

static struct ggml_context *context_new(size_t n_tensors)
{
	struct ggml_init_params params = {.mem_size =
					      n_tensors * ggml_tensor_overhead() +
					      ggml_graph_overhead_custom(4, false) * n_tensors,
					  .no_alloc = true};
	struct ggml_context *ctx = ggml_init(params);

	if (!ctx)
		die("ggml cannot make a context of %zu tensors", n_tensors);
	return ctx;
}

struct team *team_new(uint32_t n_threads)
{
	struct team *t = take(sizeof *t);
	struct ggml_threadpool_params params = ggml_threadpool_params_default((int)n_threads);

	t->n_threads = n_threads;
	t->pool = ggml_threadpool_new(&params);
	if (!t->pool)
		die("ggml cannot start %u threads", n_threads);
	t->ctx = context_new(4);
	struct ggml_tensor *node = ggml_custom_4d(t->ctx, GGML_TYPE_F32, 1, 1, 1, 1, NULL, 0,
						  team_node, GGML_N_TASKS_MAX, t);
	node->data = take(64);
	t->graph = ggml_new_graph_custom(t->ctx, 4, false);
	ggml_build_forward_expand(t->graph, node);
	t->plan = ggml_graph_plan(t->graph, (int)n_threads, t->pool);
	t->plan.work_data = take(t->plan.work_size + 64);
	return t;
}

void team_free(struct team *t)
{
	free(ggml_graph_node(t->graph, 0)->data);
	free(t->plan.work_data);
	ggml_free(t->ctx);
	ggml_threadpool_free(t->pool);
	free(t);
}

uint32_t team_threads(const struct team *t)
{
	return t->n_threads;
}

static void compute(struct ggml_cgraph *graph, struct ggml_cplan *plan)
{
	if (ggml_graph_compute(graph, plan) != GGML_STATUS_SUCCESS)
		die("ggml failed to compute a graph");
}

void team_run(struct team *t, team_fn fn, void *user)
{
	t->fn = fn;
	t->user = user;
	compute(t->graph, &t->plan);
}

/* --- the peer --------------------------------------------------------------------------------- */

/* Kept from peer to peer: new memory costs more time than filling it. */
static uint8_t *pool[PEER_TYPES];
static size_t pool_bytes[PEER_TYPES];

struct peer {
	struct shape s;
	enum ggml_type type;
	enum peer_type pool; /* one peer of a type at a time */
	struct ggml_context *ctx;
	struct team *team;
	uint32_t n_layers;
	uint8_t **memory; /* of each layer: K, then V */
	struct ggml_cgraph **graphs;
	struct ggml_cplan *plans;
	uint8_t *work;
	float *out;
	uint16_t *mask;
	char name[32];
};

/* One layer's cache of K or V, whose rows are copies of the encoded base. */
static void fill(const struct peer *p, uint32_t layer, const float *rows, uint8_t *to)
{
	size_t row = ggml_row_size(p->type, p->s.dim);
	uint8_t *encoded = take(row * BASE_TOKENS);

	(void)ggml_quantize_chunk(p->type, rows, encoded, 0, BASE_TOKENS, p->s.dim, NULL);
	for (uint32_t t = 0; t < p->s.tokens; t++)
		for (uint32_t h = 0; h < p->s.heads; h++, to += row)
			memcpy(to, encoded + base_row(t, h, layer) * row, row);
	free(encoded);
}

static struct ggml_tensor *cache_view(struct ggml_context *ctx, const struct peer *p, void *data)
{
	const struct shape *s = &p->s;
	struct ggml_tensor *cache =
	    ggml_new_tensor_2d(ctx, p->type, (int64_t)s->heads * s->dim, s->tokens);

	cache->data = data;
	struct ggml_tensor *view =
	    ggml_view_4d(ctx, cache, s->dim, s->heads, s->tokens, 1, ggml_row_size(p->type, s->dim),
			 cache->nb[1], cache->nb[1] * s->tokens, 0);
	return ggml_permute(ctx, view, 0, 2, 1, 3);
}

static void build_layer(struct peer *p, uint32_t layer, const struct base *b)
{
	const struct shape *s = &p->s;
	uint32_t q_heads = s->heads * s->group;
	size_t bytes = ggml_row_size(p->type, (int64_t)s->heads * s->dim) * s->tokens;

	p->memory[layer] = pool[p->pool] + layer * ((2 * bytes + 63) / 64 * 64);
	fill(p, layer, b->k, p->memory[layer]);
	fill(p, layer, b->v, p->memory[layer] + bytes);
	struct ggml_tensor *q = ggml_new_tensor_3d(p->ctx, GGML_TYPE_F32, s->dim, q_heads, s->rows);
	q->data = b->q;
	q = ggml_permute(p->ctx, q, 0, 2, 1, 3);
	struct ggml_tensor *k = cache_view(p->ctx, p, p->memory[layer]);
	struct ggml_tensor *v = cache_view(p->ctx, p, p->memory[layer] + bytes);
	struct ggml_tensor *mask = ggml_new_tensor_2d(p->ctx, GGML_TYPE_F16, s->tokens, s->rows);
	mask->data = p->mask;
	struct ggml_tensor *out =
	    ggml_flash_attn_ext(p->ctx, q, k, v, mask, 1.0f / sqrtf((float)s->dim), 0, 0);
	(void)ggml_prec_set_acc(out, GGML_PREC_F32);
	out->data = p->out;
	p->graphs[layer] = ggml_new_graph_custom(p->ctx, 16, false);
	ggml_build_forward_expand(p->graphs[layer], out);
}

/* Row r sees the tokens up to its own. */
static void make_mask(struct peer *p)
{
	const struct shape *s = &p->s;

	p->mask = take((size_t)s->rows * s->tokens * sizeof *p->mask);
	for (uint32_t r = 0; r < s->rows; r++)
		for (uint32_t t = s->tokens - s->rows + r + 1; t < s->tokens; t++)
			p->mask[(size_t)r * s->tokens + t] = ggml_fp32_to_fp16(-INFINITY);
}

struct peer *peer_open(const struct shape *s, enum peer_type type, const struct base *b)
{
	static const enum ggml_type types[PEER_TYPES] = {GGML_TYPE_F16, GGML_TYPE_Q8_0,
							 GGML_TYPE_Q4_0};
	struct peer *p = take(sizeof *p);

	p->s = *s;
	p->type = types[type];
	snprintf(p->name, sizeof p->name, "ggml %s", peer_names[type]);
	size_t layer_bytes = 2 * ggml_row_size(p->type, (int64_t)s->heads * s->dim) * s->tokens;
	p->n_layers = (uint32_t)((working_set + layer_bytes - 1) / layer_bytes);
	p->pool = type;
	if (pool_bytes[type] < p->n_layers * (layer_bytes + 64)) {
		free(pool[type]);
		pool_bytes[type] = p->n_layers * (layer_bytes + 64);
		pool[type] = take_large(pool_bytes[type]);
	}
	p->memory = take(p->n_layers * sizeof *p->memory);
	p->graphs = take(p->n_layers * sizeof *p->graphs);
	p->plans = take(p->n_layers * sizeof *p->plans);
	p->out = take((size_t)s->rows * s->heads * s->group * s->dim * sizeof(float));
	p->ctx = context_new((size_t)p->n_layers * 16);
	make_mask(p);
	for (uint32_t i = 0; i < p->n_layers; i++)
		build_layer(p, i, b);
	return p;
}

void peer_close(struct peer *p)
{
	if (!p)
		return;
	ggml_free(p->ctx);
	free(p->memory);
	free(p->graphs);
	free(p->plans);
	free(p->work);
	free(p->out);
	free(p->mask);
	free(p);
}

static void peer_unit(void *user, uint32_t i)
{
	struct peer *p = user;

	compute(p->graphs[i], &p->plans[i]);
}

void peer_contestant(struct peer *p, struct team *t, struct contestant *c)
{
	size_t work = 0;

	for (uint32_t i = 0; i < p->n_layers; i++) {
		p->plans[i] = ggml_graph_plan(p->graphs[i], (int)t->n_threads, t->pool);
		work = p->plans[i].work_size > work ? p->plans[i].work_size : work;
	}
	free(p->work);
	p->work = take(work + 64);
	for (uint32_t i = 0; i < p->n_layers; i++)
		p->plans[i].work_data = p->work;
	*c = (struct contestant){.unit = peer_unit, .user = p, .n_units = p->n_layers};
	snprintf(c->name, sizeof c->name, "%s", p->name);
}

const float *peer_out(const struct peer *p)
{
	return p->out;
}
