/* SPDX-License-Identifier: Apache-2.0 */
#include "attention.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ggml-backend.h>

#include "cells.h"
#include "counters.h"
#include "plugin.h"

enum {
	LAYERS_MAX = 512,
	HEAD_DIM_MAX = 256,
	APPEND_MAX = 512, /* most tokens between two commits; llama.cpp's default ubatch */
	/* Coding this many cells that no graph has computed is not worth thinking about. */
	AGAIN_FREE = 256,
	/* Beyond it, the next time has to wait for an evaluation for each so many of them. */
	AGAIN_PER_PAUSE = 256,
	PAUSE_MAX = 64,
};

/* The cache of a layer: K and V, [heads * head_dim, cells]. */
struct layer {
	const struct ggml_tensor *k, *v;
};

struct geometry {
	int64_t n_q_heads, n_kv_heads, head_dim_k, head_dim_v, n_cells;
};

/* What of a node is needed: q [head_dim, rows, heads], k and v [head_dim, n_kv, heads]. */
struct node {
	struct layer layer;
	struct geometry shape;
	const struct ggml_tensor *q, *mask;
	struct ggml_tensor *out;
	uint32_t n_rows, n_kv;
	float scale, softcap;
};

struct attention {
	struct cpu *cpu;
	bool off; /* for good; the log has said why */
	uint64_t n_nodes, n_ours;

	/* In the order of the graph. They are learned as they come; the first one's return says that all
	 * have come. */
	struct layer layers[LAYERS_MAX];
	uint32_t n_layers;
	struct geometry shape;

	/* The last cells of a layer that the graph has written. */
	const struct ggml_tensor *k_write, *v_write;

	/* This evaluation: layers below at are done. */
	uint32_t at;
	bool ours;
	uint32_t first, n_rows; /* its new cells */
	const struct ggml_tensor *mask, *k_cells, *v_cells;

	skvq_session *session;
	skvq_model *model;
	skvq_seq *seq;
	uint32_t max_append;
	uint32_t n_tokens; /* committed in seq                                                    */
	uint32_t held;     /* of them, those whose cells are as they were; what follows is dropped */
	uint64_t computed; /* cells that graphs have written since the last catch_up()            */
	uint32_t pause;    /* evaluations until much may be coded again                            */
	uint64_t *digests; /* [n_cells], of the last layer's keys in cells [0, held)               */
};

/* ---- reading nodes ---- */

static const struct ggml_tensor *root_of(const struct ggml_tensor *t)
{
	return t->view_src ? t->view_src : t;
}

/* llama.cpp's cache of one stream, in memory that can be read. */
static bool is_cache(const struct ggml_tensor *root, char kind)
{
	return root->type == GGML_TYPE_F16 && strncmp(root->name, "cache_", 6) == 0 &&
	       root->name[6] == kind && strncmp(root->name + 7, "_l", 2) == 0 && root->ne[2] == 1 &&
	       root->ne[3] == 1 && root->ne[1] < INT32_MAX &&
	       root->nb[1] == (size_t)root->ne[0] * sizeof(ggml_fp16_t) &&
	       (!root->buffer || ggml_backend_buffer_is_host(root->buffer));
}

bool attention_takes_write(const struct ggml_tensor *node)
{
	const struct ggml_tensor *root = root_of(node);

	return (is_cache(root, 'k') || is_cache(root, 'v')) && node->view_offs == 0 &&
	       node->ne[0] == root->ne[0] && node->ne[1] == root->ne[1] &&
	       node->src[0]->type == GGML_TYPE_F32 && node->src[1]->type == GGML_TYPE_I64 &&
	       node->src[1]->op == GGML_OP_NONE && ggml_is_contiguous(node->src[1]);
}

/* Rows of all heads, one cell after the other, from the first cell on. */
static bool is_whole(const struct ggml_tensor *t, const struct ggml_tensor *root)
{
	return t->view_offs == 0 && t->nb[0] == sizeof(ggml_fp16_t) && t->nb[1] == root->nb[1] &&
	       t->nb[2] == (size_t)t->ne[0] * sizeof(ggml_fp16_t) && t->ne[3] == 1 &&
	       t->ne[0] * t->ne[2] == root->ne[0] && t->ne[1] <= root->ne[1];
}

static float param(const struct ggml_tensor *t, int i)
{
	float value;

	memcpy(&value, &t->op_params[i], sizeof value);
	return value;
}

static bool read_node(const struct ggml_tensor *t, struct node *ret)
{
	const struct ggml_tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3];

	if (!mask || t->src[4] || param(t, 1) != 0)
		return false; /* sees all, sinks, ALiBi */
	const struct ggml_tensor *k_root = root_of(k), *v_root = root_of(v);
	if (!is_cache(k_root, 'k') || !is_cache(v_root, 'v') || !is_whole(k, k_root) ||
	    !is_whole(v, v_root) || k_root->ne[1] != v_root->ne[1] || k->ne[1] != v->ne[1] ||
	    k->ne[2] != v->ne[2])
		return false;
	if (k->ne[0] % 16 || v->ne[0] % 16 || k->ne[0] > HEAD_DIM_MAX || v->ne[0] > HEAD_DIM_MAX)
		return false;
	if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || q->ne[0] != k->ne[0] ||
	    q->ne[3] != 1 || q->ne[2] % k->ne[2])
		return false;
	if (mask->type != GGML_TYPE_F16 || mask->ne[0] != k->ne[1] || mask->ne[1] < q->ne[1] ||
	    mask->ne[2] != 1 || mask->ne[3] != 1 || mask->nb[0] != sizeof(ggml_fp16_t))
		return false;
	if (t->type != GGML_TYPE_F32 || t->nb[0] != sizeof(float) || t->ne[0] != v->ne[0] ||
	    t->ne[1] != q->ne[2] || t->ne[2] != q->ne[1])
		return false;
	*ret = (struct node){
	    .layer = {k_root, v_root},
	    .shape = {q->ne[2], k->ne[2], k->ne[0], v->ne[0], k_root->ne[1]},
	    .q = q,
	    .mask = mask,
	    .n_rows = (uint32_t)q->ne[1],
	    .n_kv = (uint32_t)k->ne[1],
	    .scale = param(t, 0),
	    .softcap = param(t, 2),
	};
	return true;
}

bool attention_takes(const struct ggml_tensor *node)
{
	struct node n;

	return read_node(node, &n);
}

/* ---- the plugin's sequence ---- */

static void forget_sequence(struct attention *a)
{
	if (a->session)
		plugin->close(a->session); /* and all that is in it */
	a->session = NULL;
	a->model = NULL;
	a->seq = NULL;
	free(a->digests);
	a->digests = NULL;
	a->n_tokens = a->held = 0;
}

static bool give_up(struct attention *a, const char *why)
{
	if (!a->off) {
		say(GGML_LOG_LEVEL_WARN, "%s: this context's attention is left to ggml from here on", why);
		counters_add(COUNTER_CONTEXTS_OFF, 1);
	}
	forget_sequence(a);
	a->off = true;
	a->ours = false;
	return false;
}

static bool plugin_failed(struct attention *a, const char *what, int32_t rc)
{
	char detail[256] = "", why[512];

	if (a->session)
		(void)plugin->last_error(a->session, detail, sizeof detail);
	snprintf(why, sizeof why, "%s: %s %s", what, plugin->err_name(rc), detail);
	return give_up(a, why);
}

/* How keys were turned, if the node that writes them says so: ggml_rope_ext's parameters. */
static void describe_rope(const struct attention *a, skvq_model_desc *desc)
{
	const struct ggml_tensor *rope = a->k_write ? root_of(a->k_write->src[0]) : NULL;

	desc->rope_kind = SKVQ_ROPE_NONE;
	if (!rope || rope->op != GGML_OP_ROPE)
		return;
	int32_t n_dims = rope->op_params[1], mode = rope->op_params[2];
	float base = param(rope, 5);
	if ((mode != 0 && mode != GGML_ROPE_TYPE_NEOX) || n_dims < 2 || n_dims % 2 ||
	    n_dims > a->shape.head_dim_k || !(base > 0) || !isfinite(base))
		return;
	desc->rope_kind = SKVQ_ROPE_POST;
	desc->rope_pairs = mode == 0 ? SKVQ_PAIRS_INTERLEAVED : SKVQ_PAIRS_HALF;
	desc->rope_dim = (uint32_t)n_dims;
	desc->rope_theta = (double)base;
}

/* A session without a daemon, and a sequence that matches and publishes nothing: no graph shows token
 * ids or says whose weights it computes with, so that these pages can be nobody else's. */
static bool open_sequence(struct attention *a)
{
	static const uint8_t nobody[32];
	skvq_engine engine = {.struct_size = sizeof engine, .log = plugin_log, .name = "ggml-skvq"};
	uint32_t n_cells = (uint32_t)a->shape.n_cells;
	int32_t rc = plugin->open(&engine, NULL, &a->session);

	if (rc < 0)
		return plugin_failed(a, "no session", rc);
	skvq_model_desc desc = {
	    .struct_size = sizeof desc,
	    .weights_digest = settings.weights,
	    .tokenizer_digest = nobody,
	    .engine_numerics = "ggml-skvq, not shared",
	    .model_name = "ggml",
	    .n_layer = a->n_layers,
	    .n_q_heads = (uint32_t)a->shape.n_q_heads,
	    .n_kv_heads = (uint32_t)a->shape.n_kv_heads,
	    .head_dim_k = (uint32_t)a->shape.head_dim_k,
	    .head_dim_v = (uint32_t)a->shape.head_dim_v,
	    .profile = settings.profile,
	    .calibration = settings.calibration,
	    .calibration_bytes = settings.calibration_bytes,
	    .window = SKVQ_DEFAULT,
	    .sinks = SKVQ_DEFAULT,
	};
	describe_rope(a, &desc);
	rc = plugin->model_register(a->session, &desc, &a->model);
	if (rc < 0)
		return plugin_failed(a, "the plugin refuses the model", rc);
	a->max_append = n_cells < APPEND_MAX ? n_cells : APPEND_MAX;
	skvq_seq_desc sd = {
	    .struct_size = sizeof sd,
	    .flags = SKVQ_SEQ_NO_MATCH | SKVQ_SEQ_NO_PUBLISH,
	    .max_tokens = n_cells,
	    .max_append = a->max_append,
	};
	rc = plugin->seq_open(a->model, &sd, &a->seq);
	if (rc < 0)
		return plugin_failed(a, "no sequence", rc);
	a->digests = malloc(n_cells * sizeof *a->digests);
	if (!a->digests)
		return plugin_failed(a, "no sequence", -SKVQ_ENOMEM);
	say(GGML_LOG_LEVEL_INFO, "attention over pages: %u layers, %u query and %u KV heads, profile %s",
	    a->n_layers, desc.n_q_heads, desc.n_kv_heads, desc.profile ? desc.profile : "default");
	return true;
}

static int32_t append(struct attention *a, uint32_t layer, uint32_t first, uint32_t n)
{
	const struct ggml_tensor *k = a->layers[layer].k, *v = a->layers[layer].v;
	skvq_kv kv = {
	    .struct_size = sizeof kv,
	    .layer = layer,
	    .position = first,
	    .n_tokens = n,
	    .k_type = SKVQ_F16,
	    .v_type = SKVQ_F16,
	    .k = (const char *)k->data + first * k->nb[1],
	    .v = (const char *)v->data + first * v->nb[1],
	    .k_token_stride = (int64_t)k->nb[1],
	    .k_head_stride = a->shape.head_dim_k * (int64_t)sizeof(ggml_fp16_t),
	    .v_token_stride = (int64_t)v->nb[1],
	    .v_head_stride = a->shape.head_dim_v * (int64_t)sizeof(ggml_fp16_t),
	};

	return plugin->append(a->seq, &kv);
}

static uint64_t digest_of(const struct attention *a, uint32_t cell)
{
	const struct ggml_tensor *k = a->layers[a->n_layers - 1].k;

	return cells_digest((const char *)k->data + cell * k->nb[1], k->nb[1]);
}

/* After all layers of n cells from held on were appended. */
static bool commit(struct attention *a, uint32_t n)
{
	static const int32_t unknown[APPEND_MAX]; /* token ids say who may share; nobody does */
	int32_t rc = plugin->seq_commit(a->seq, unknown, n);

	if (rc < 0)
		return plugin_failed(a, "commit", rc);
	for (uint32_t i = 0; i < n; i++)
		a->digests[a->held + i] = digest_of(a, a->held + i);
	a->n_tokens = a->held += n;
	counters_add(COUNTER_TOKENS_TAKEN, n);
	return true;
}

/* Back to what still equals the cells. */
static bool truncate_sequence(struct attention *a)
{
	int32_t rc = plugin->seq_truncate(a->seq, a->held);

	if (rc < 0)
		return plugin_failed(a, "truncate", rc);
	counters_add(COUNTER_TOKENS_DROPPED, a->n_tokens - a->held);
	a->n_tokens = a->held;
	return true;
}

/* Cells below n that are not in the sequence yet, or not any more: they were computed by others. */
static bool catch_up(struct attention *a, uint32_t n)
{
	a->computed = 0;
	while (a->held < n) {
		uint32_t some = n - a->held < a->max_append ? n - a->held : a->max_append;

		for (uint32_t layer = 0; layer < a->n_layers; layer++) {
			int32_t rc = append(a, layer, a->held, some);
			if (rc < 0)
				return plugin_failed(a, "append", rc);
		}
		if (!commit(a, some))
			return false;
	}
	return true;
}

/* ---- evaluations ---- */

void attention_see_write(struct attention *a, const struct ggml_tensor *node)
{
	const struct ggml_tensor *root = root_of(node), *cells = node->src[1];

	*(root->name[6] == 'k' ? &a->k_write : &a->v_write) = node;
	/* A cell that is written is no more what it was, whatever becomes of this evaluation. */
	uint32_t lowest = cells_lowest(cells->data, cells->ne[0], (uint32_t)root->ne[1]);
	if (a->held > lowest)
		a->held = lowest;
}

static bool same_layer(struct layer a, struct layer b)
{
	return a.k == b.k && a.v == b.v;
}

static bool same_shape(struct geometry a, struct geometry b)
{
	return a.n_q_heads == b.n_q_heads && a.n_kv_heads == b.n_kv_heads &&
	       a.head_dim_k == b.head_dim_k && a.head_dim_v == b.head_dim_v && a.n_cells == b.n_cells;
}

/* Which layer of this evaluation a node is; -1: it is not to be computed here. */
static int32_t place(struct attention *a, const struct node *n)
{
	/* A layer that attends to what another one wrote, or to what was there before. */
	if (!a->k_write || !a->v_write || root_of(a->k_write) != n->layer.k ||
	    root_of(a->v_write) != n->layer.v) {
		(void)give_up(a, "attention over cells that its layer did not write");
		return -1;
	}
	if (a->n_layers && same_layer(a->layers[0], n->layer)) {
		a->at = 1;
		return 0;
	}
	if (a->at < a->n_layers && same_layer(a->layers[a->at], n->layer))
		return (int32_t)a->at++;
	if (a->at != a->n_layers || a->n_layers == LAYERS_MAX) {
		(void)give_up(a, "layers in another order than before");
		return -1;
	}
	/* One that has not been seen before. */
	if (a->n_layers && !same_shape(a->shape, n->shape)) {
		(void)give_up(a, "layers of different shapes");
		return -1;
	}
	forget_sequence(a);
	a->ours = false;
	a->shape = n->shape;
	a->layers[a->n_layers++] = n->layer;
	a->at = a->n_layers;
	return -1;
}

/* Finds cells that were changed and not by a graph. */
static void compare_cells(struct attention *a, uint32_t n)
{
	uint32_t end = a->held < n ? a->held : n, same = 0;

	while (same < end && digest_of(a, same) == a->digests[same])
		same++;
	if (same < end)
		counters_add(COUNTER_CELLS_CHANGED, end - same);
	a->held = same;
}

/* Coding a cell costs less than computing it, but if many keep changing that nobody computes, as by
 * states that are loaded in turn, ggml may be the faster one. */
static bool may_catch_up(struct attention *a, uint32_t n)
{
	uint64_t again = n - a->held, free_of_charge = a->computed + AGAIN_FREE;
	uint32_t pause = a->pause;

	if (pause)
		a->pause--;
	if (again <= free_of_charge)
		return true;
	if (pause)
		return false;
	again = (again - free_of_charge) / AGAIN_PER_PAUSE + 1;
	a->pause = again < PAUSE_MAX ? (uint32_t)again : PAUSE_MAX;
	return true;
}

/* Whether an evaluation is ours; then the sequence is at its first cell afterwards. */
static bool begin(struct attention *a, const struct node *n)
{
	const struct ggml_tensor *k = a->k_write->src[1], *v = a->v_write->src[1];
	uint32_t v_first, n_cells = (uint32_t)a->shape.n_cells;

	a->mask = n->mask;
	a->k_cells = k;
	a->v_cells = v;
	a->n_rows = n->n_rows;
	a->computed += n->n_rows;
	if (n->n_rows > 1 && (!settings.prefill || n->n_rows > APPEND_MAX))
		return false;
	if (k->ne[0] != n->n_rows || v->ne[0] != n->n_rows ||
	    !cells_follow(k->data, k->ne[0], n_cells, &a->first) ||
	    !cells_follow(v->data, v->ne[0], n_cells, &v_first) || v_first != a->first ||
	    !cells_causal(n->mask->data, n->mask->nb[1], n->n_kv, a->first, n->n_rows))
		return false;
	if (!a->seq && !open_sequence(a))
		return false;
	if (n->n_rows > a->max_append)
		return false;
	compare_cells(a, a->first);
	return may_catch_up(a, a->first) && truncate_sequence(a) && catch_up(a, a->first);
}

struct share {
	struct attention *a;
	skvq_attn attn;
	_Atomic int32_t rc;
};

static void attend_share(void *user, uint32_t ith, uint32_t nth)
{
	struct share *share = user;
	skvq_attn attn = share->attn;

	attn.ith = ith;
	attn.nth = nth;
	int32_t rc = plugin->attend(&share->a->seq, &attn, 1);
	if (rc < 0)
		atomic_store_explicit(&share->rc, rc, memory_order_relaxed);
}

static bool attend(struct attention *a, uint32_t layer, const struct node *n, struct ggml_tensor *out)
{
	struct share share = {
	    .a = a,
	    .attn =
		{
		    .struct_size = sizeof share.attn,
		    .layer = layer,
		    .position = a->first,
		    .n_rows = n->n_rows,
		    .q_type = SKVQ_F32,
		    .scale = n->scale,
		    .softcap = n->softcap,
		    .q = n->q->data,
		    .q_row_stride = (int64_t)n->q->nb[1],
		    .q_head_stride = (int64_t)n->q->nb[2],
		    .out = out->data,
		    .out_row_stride = (int64_t)out->nb[2],
		    .out_head_stride = (int64_t)out->nb[1],
		},
	};

	if (cpu_run(a->cpu, attend_share, &share) != GGML_STATUS_SUCCESS)
		return give_up(a, "ggml's threads did not run");
	int32_t rc = atomic_load_explicit(&share.rc, memory_order_relaxed);
	return rc < 0 ? plugin_failed(a, "attend", rc) : true;
}

/* One layer of an evaluation that is ours. */
static bool compute_layer(struct attention *a, uint32_t layer, const struct node *n,
			  struct ggml_tensor *out)
{
	/* What was looked at in the first layer holds for all only if they say the same. */
	if (n->mask != a->mask || a->k_write->src[1] != a->k_cells || a->v_write->src[1] != a->v_cells ||
	    n->n_rows != a->n_rows || !same_shape(n->shape, a->shape))
		return give_up(a, "layers that see different cells (sliding windows)");
	int32_t rc = append(a, layer, a->first, a->n_rows);
	if (rc < 0)
		return plugin_failed(a, "append", rc);
	if (!attend(a, layer, n, out))
		return false;
	/* A commit that fails leaves a good result behind; the next evaluation is ggml's. */
	if (layer + 1 == a->n_layers)
		(void)commit(a, a->n_rows);
	return true;
}

bool attention_compute(struct attention *a, struct ggml_tensor *node)
{
	struct node n;
	bool done = false;

	if (!a->off && read_node(node, &n)) {
		int32_t layer = place(a, &n);

		if (layer == 0)
			a->ours = begin(a, &n);
		if (layer >= 0 && a->ours)
			done = compute_layer(a, (uint32_t)layer, &n, node);
	}
	a->k_write = a->v_write = NULL;
	a->n_nodes++;
	a->n_ours += done;
	counters_add(done ? COUNTER_NODES_SKVQ : COUNTER_NODES_GGML, 1);
	return done;
}

struct attention *attention_new(struct cpu *cpu)
{
	struct attention *a = calloc(1, sizeof *a);

	if (a)
		a->cpu = cpu;
	return a;
}

void attention_free(struct attention *a)
{
	if (!a)
		return;
	if (a->n_nodes)
		say(GGML_LOG_LEVEL_INFO, "%llu of %llu attention nodes were computed over pages",
		    (unsigned long long)a->n_ours, (unsigned long long)a->n_nodes);
	forget_sequence(a);
	free(a);
}
