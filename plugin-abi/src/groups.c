/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layer groups (SKVQ_MODEL_LAYER_GROUPS): layers that see the same extent keep their pages apart from
 * all others, so that pages which none of them sees can go while others keep theirs.
 *
 *   engine's layers   0  1  2  3  4  5  6  7  8  9 ...
 *   extent            w  w  w  w  w  -  w  w  w  w
 *                     |  |  |  |  |  |
 *   groups[0]                        0 ...              sees most: all
 *   groups[1]         0  1  2  3  4     5  6 ...        sees w
 *
 * A group is a model like any other, of fewer layers: with a page layout, a namespace in the daemon
 * and a chain of pages of its own. The model that the engine knows has no pages then, and a sequence
 * of it is one sequence for each group, all of the same tokens. Calls on layers go to the group's
 * (part_of_layer), all other calls to each (n_parts, part).
 */
#include "snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/sha256.h>

#include "threads.h"

#define NUMERICS_BYTES 256 /* the engine's, at most 127, and what is written behind it */

/* What the descs of groups are made of. Large, so not on the stack. */
struct plan {
	uint32_t n; /* extents */
	uint32_t extent[LAYER_GROUPS_MAX];
	char digest[65]; /* of the whole identity */
	uint32_t n_layers;
	uint32_t layers[SKVQ_LAYERS_MAX], window[SKVQ_LAYERS_MAX];
	uint8_t bits[2 * SKVQ_LAYERS_MAX];
	uint16_t *map_k, *map_v; /* one allocation; NULL: there are none */
};

/* 0 is everything. */
static bool sees_more(uint32_t a, uint32_t b)
{
	return a != b && (a == 0 || (b != 0 && a > b));
}

/* From the one that sees most. */
static int find_extents(struct skvq_session *s, const skvq_model_desc *d, struct plan *plan)
{
	for (uint32_t i = 0; d->layer_window && i < d->n_layer; i++) {
		uint32_t extent = d->layer_window[i], at = 0;

		while (at < plan->n && sees_more(plan->extent[at], extent))
			at++;
		if (at < plan->n && plan->extent[at] == extent)
			continue;
		if (plan->n == LAYER_GROUPS_MAX)
			return set_error(s, SKVQ_ELIMIT,
					 "layer_window: more than %u different extents, and layer groups "
					 "are asked for",
					 LAYER_GROUPS_MAX);
		memmove(plan->extent + at + 1, plan->extent + at,
			(plan->n - at) * sizeof plan->extent[0]);
		plan->extent[at] = extent;
		plan->n++;
	}
	return 0;
}

/* K and V of any layer depend on how all layers before it are kept and seen, so every group's
 * identity has the whole model's in it. */
static int digest_whole(const struct skvq_model *m, char ret[65])
{
	size_t bytes = snapshot_identity(m, NULL);
	uint8_t *id = malloc(bytes), digest[32];
	struct sha256 sha;

	if (!id)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for an identity");
	snapshot_identity(m, id);
	skvq_sha256_init(&sha);
	skvq_sha256_add(&sha, id, bytes);
	skvq_sha256_end(&sha, digest);
	free(id);
	for (uint32_t i = 0; i < sizeof digest; i++)
		snprintf(ret + 2 * (size_t)i, 3, "%02x", digest[i]);
	return 0;
}

/* The maps of the plan's layers, in their order. */
static const uint16_t *pick_maps(const struct plan *plan, const uint16_t *from, size_t layer,
				 uint16_t *to)
{
	for (uint32_t i = 0; from && i < plan->n_layers; i++)
		memcpy(to + i * layer, from + plan->layers[i] * layer, layer * sizeof *to);
	return from ? to : NULL;
}

static int group_new(struct skvq_model *m, const skvq_model_desc *whole,
		     const struct skvq_profile *p, struct plan *plan, uint32_t g)
{
	skvq_model_desc d = *whole;
	size_t k = (size_t)d.n_kv_heads * d.head_dim_k, v = (size_t)d.n_kv_heads * d.head_dim_v;

	plan->n_layers = 0;
	for (uint32_t i = 0; i < whole->n_layer; i++) {
		if (whole->layer_window[i] != plan->extent[g])
			continue;
		m->places[i] = (struct layer_place){g, plan->n_layers};
		memcpy(plan->bits + 2 * (size_t)plan->n_layers, m->bit_table + 2 * (size_t)i, 2);
		plan->window[plan->n_layers] = plan->extent[g];
		plan->layers[plan->n_layers++] = i;
	}
	char *numerics = malloc(NUMERICS_BYTES);
	if (!numerics)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a layer group");
	snprintf(numerics, NUMERICS_BYTES, "%s; layers that see %u of %s", m->id.engine_numerics,
		 plan->extent[g], plan->digest);
	d.n_layer = plan->n_layers;
	d.layer_window = plan->window;
	d.bit_table = plan->bits;
	d.reorder_k = pick_maps(plan, d.reorder_k, k, plan->map_k);
	d.reorder_v = pick_maps(plan, d.reorder_v, v, plan->map_v);
	int r = model_new(m->session, &d, p, plan->layers, whole->n_layer, &m->groups[g]);
	if (r < 0) {
		free(numerics);
		return r;
	}
	m->groups[g]->numerics = numerics;
	m->groups[g]->id.engine_numerics = numerics;
	m->n_groups = g + 1;
	return 0;
}

/* What only a model with pages needs. */
static void let_go_of_calibration(struct skvq_model *m)
{
	free(m->transforms);
	free(m->calibration);
	free(m->query_transforms);
	m->transforms = NULL;
	m->calibration = NULL;
	m->query_transforms = NULL;
}

static int make_groups(struct skvq_model *m, const skvq_model_desc *d, const struct skvq_profile *p,
		       struct plan *plan)
{
	size_t heads = (size_t)d->n_layer * d->n_kv_heads;
	int r = digest_whole(m, plan->digest);

	if (r < 0)
		return r;
	m->places = calloc(d->n_layer, sizeof *m->places);
	if (d->reorder_k || d->reorder_v) {
		plan->map_k = calloc(heads * (d->head_dim_k + d->head_dim_v), sizeof *plan->map_k);
		if (!plan->map_k)
			return set_error(m->session, SKVQ_ENOMEM, "no memory for the channel maps");
		plan->map_v = plan->map_k + heads * d->head_dim_k;
	}
	if (!m->places)
		r = set_error(m->session, SKVQ_ENOMEM, "no memory for layer groups");
	for (uint32_t g = 0; g < plan->n && r == 0; g++)
		r = group_new(m, d, p, plan, g);
	free(plan->map_k);
	let_go_of_calibration(m);
	return r;
}

int layer_groups_init(struct skvq_model *m, const skvq_model_desc *d, const struct skvq_profile *p)
{
	struct plan *plan = calloc(1, sizeof *plan);
	int r;

	if (!plan)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for layer groups");
	r = find_extents(m->session, d, plan);
	if (r == 0 && plan->n > 1) /* else all layers are one group: the model itself */
		r = make_groups(m, d, p, plan);
	free(plan);
	return r;
}

int seq_shell_new(struct skvq_model *m, uint32_t flags, uint32_t max_tokens, uint32_t max_append,
		  struct skvq_seq **ret)
{
	struct skvq_seq *q = calloc(1, sizeof *q);

	if (!q)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a sequence");
	q->model = m;
	q->flags = flags;
	q->max_tokens = max_tokens;
	q->max_append = max_append;
	q->groups = calloc(m->n_groups, sizeof *q->groups);
	if (!q->groups || marks_new(q) < 0) {
		seq_free(q);
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a sequence");
	}
	*ret = q;
	return 0;
}
