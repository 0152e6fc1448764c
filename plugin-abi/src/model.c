/* SPDX-License-Identifier: Apache-2.0 */
/* Registering a model: checking what the engine says of it, and laying out its pages. */
#include "internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_DEFAULT 128
#define SINKS_DEFAULT 5
#define TEXT_MAX 127

static int check_identity(struct skvq_session *s, const skvq_model_desc *d)
{
	if (!d->weights_digest)
		return set_error(s, SKVQ_EIDENTITY, "weights_digest is missing");
	if (!d->tokenizer_digest)
		return set_error(s, SKVQ_EIDENTITY, "tokenizer_digest is missing");
	if (!d->engine_numerics || !*d->engine_numerics)
		return set_error(s, SKVQ_EIDENTITY, "engine_numerics is missing");
	if (strlen(d->engine_numerics) > TEXT_MAX)
		return set_error(s, SKVQ_EIDENTITY, "engine_numerics is longer than %d bytes", TEXT_MAX);
	if (d->rope_scaling && strlen(d->rope_scaling) > TEXT_MAX)
		return set_error(s, SKVQ_EIDENTITY, "rope_scaling is longer than %d bytes", TEXT_MAX);
	if (d->rope_kind > SKVQ_ROPE_PRE)
		return set_error(s, SKVQ_EINVAL, "rope_kind %u is none of SKVQ_ROPE_*", d->rope_kind);
	if (d->rope_kind == SKVQ_ROPE_PRE)
		return set_error(s, SKVQ_ENOTSUP, "pre-RoPE keys are not implemented");
	if (d->rope_pairs > SKVQ_PAIRS_INTERLEAVED)
		return set_error(s, SKVQ_EINVAL, "rope_pairs %u is none of SKVQ_PAIRS_*", d->rope_pairs);
	if (d->rope_kind != SKVQ_ROPE_NONE && !(d->rope_theta > 0 && isfinite(d->rope_theta)))
		return set_error(s, SKVQ_EIDENTITY, "rope_theta is missing");
	if (!d->calibration != !d->calibration_bytes)
		return set_error(s, SKVQ_EINVAL, "calibration and calibration_bytes: one without the other");
	return 0;
}

static int check_geometry(struct skvq_session *s, const skvq_model_desc *d)
{
	if (!d->n_q_heads || d->n_q_heads > SKVQ_Q_HEADS_MAX || !d->n_kv_heads ||
	    d->n_q_heads % d->n_kv_heads)
		return set_error(s, SKVQ_EGEOMETRY, "%u query heads over %u KV heads", d->n_q_heads,
		                 d->n_kv_heads);
	if (d->rope_dim > d->head_dim_k || d->rope_dim % 2)
		return set_error(s, SKVQ_EGEOMETRY, "rope_dim %u with head_dim %u", d->rope_dim,
		                 d->head_dim_k);
	if (d->window != SKVQ_DEFAULT && d->window > SKVQ_WINDOW_MAX)
		return set_error(s, SKVQ_EINVAL, "window %u, at most %u", d->window, SKVQ_WINDOW_MAX);
	if (d->sinks != SKVQ_DEFAULT && d->sinks > SKVQ_SINKS_MAX)
		return set_error(s, SKVQ_EINVAL, "sinks %u, at most %u", d->sinks, SKVQ_SINKS_MAX);
	if (d->clip != 0 && !(d->clip > 0 && d->clip <= 1))
		return set_error(s, SKVQ_EINVAL, "clip %g is not in (0, 1]", (double)d->clip);
	return 0;
}

/* Each head's map must be a permutation: anything else would read out of bounds or lose channels. */
static int copy_maps(struct skvq_session *s, const uint16_t *src, uint16_t *dst, size_t n_heads,
                     uint32_t dim, const char *name)
{
	for (size_t h = 0; h < n_heads; h++) {
		uint8_t seen[SKVQ_HEAD_DIM_MAX] = {0};

		for (uint32_t i = 0; i < dim; i++) {
			uint16_t c = src ? src[h * dim + i] : (uint16_t)i;
			if (c >= dim || seen[c]++)
				return set_error(s, SKVQ_EINVAL,
				                 "%s is no permutation: head map %zu, entry %u is %u", name, h,
				                 i, c);
			dst[h * dim + i] = c;
		}
	}
	return 0;
}

static char *put_text(char **at, const char *text)
{
	char *start = *at;
	size_t n = text ? strlen(text) : 0;

	if (n > TEXT_MAX)
		n = TEXT_MAX;
	memcpy(start, text ? text : "", n);
	start[n] = 0;
	*at = start + n + 1;
	return start;
}

void model_free(struct skvq_model *m)
{
	for (uint32_t i = 0; i < m->n_groups; i++)
		model_free(m->groups[i]);
	free(m->places);
	free(m->layers);
	free(m->numerics);
	arena_unref(m->arena);
	free(m->reorder_k);
	free(m->transforms);
	free(m->expected);
	faithful_free(m);
	free(m->calibration);
	free(m->query_transforms);
	free(m->header);
	free(m->safe_header);
	free(m->safe);
	free(m->bit_table);
	free(m->layer_window);
	free(m->texts);
	free(m);
}

/* Copies the engine's bytes and checks the copy: nobody can change it any more. */
static int take_calibration(struct skvq_model *m, const skvq_model_desc *d, uint32_t n_layer,
                            struct skvq_calibration *ret)
{
	struct skvq_session *s = m->session;
	const struct skvq_calibration_key key = {.weights = d->weights_digest,
	                                         .n_layer = n_layer,
	                                         .n_q_heads = d->n_q_heads,
	                                         .n_kv_heads = d->n_kv_heads,
	                                         .head_dim_k = d->head_dim_k,
	                                         .head_dim_v = d->head_dim_v};
	char why[256];

	if (d->calibration_bytes > SKVQ_CALIBRATION_BYTES_MAX)
		return set_error(s, SKVQ_ELIMIT, "a calibration of %llu bytes, at most %llu",
		                 (unsigned long long)d->calibration_bytes,
		                 (unsigned long long)SKVQ_CALIBRATION_BYTES_MAX);
	m->calibration = malloc(d->calibration_bytes);
	if (!m->calibration)
		return set_error(s, SKVQ_ENOMEM, "no memory for a calibration of %llu bytes",
		                 (unsigned long long)d->calibration_bytes);
	memcpy(m->calibration, d->calibration, d->calibration_bytes);
	int r = skvq_calibration_open(m->calibration, d->calibration_bytes, ret, why, sizeof why);
	if (r == 0)
		r = skvq_calibration_fits(ret, &key, why, sizeof why);
	return r < 0 ? set_error(s, -r, "calibration: %s", why) : 0;
}

/* What the calibration's own text lost at the width a layer has. */
static void expect_errors(struct skvq_model *m, const struct skvq_calibration *c)
{
	static const uint8_t widths[SKVQ_CALIBRATION_WIDTHS] = {SKVQ_BITS_8, SKVQ_BITS_4, SKVQ_BITS_3,
	                                                        SKVQ_BITS_2, SKVQ_BITS_TERNARY};

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (int is_v = 0; is_v < 2; is_v++) {
			const struct skvq_layer_layout *ll = &m->layout.layers[layer];
			const struct skvq_codec *codec = is_v ? &ll->v : &ll->k;

			for (uint32_t w = 0; codec->rotate && w < SKVQ_CALIBRATION_WIDTHS; w++)
				if (widths[w] == codec->bits)
					model_expect_error(
					    m, layer, is_v,
					    skvq_calibration_layer_of(c, layer_name(m, layer))->error[is_v][w]);
		}
}

/* Matrices take the place of a rotation, so a codec without one keeps to its name. */
static int use_calibration(struct skvq_model *m, const struct skvq_calibration *c)
{
	const struct skvq_layout *l = &m->layout;
	size_t square = (size_t)m->dim_k * m->dim_k;
	bool used = false;

	m->query_transforms = malloc((size_t)m->n_layer * m->n_kv_heads * square * sizeof(float));
	if (!m->query_transforms)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for the query transforms");
	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			size_t i = (size_t)layer * m->n_kv_heads + h;
			uint32_t name = layer_name(m, layer);

			for (int is_v = 0; is_v < 2; is_v++) {
				const struct skvq_codec *codec =
				    is_v ? &l->layers[layer].v : &l->layers[layer].k;
				struct skvq_transform *t = &m->transforms[2 * i + (size_t)is_v];

				if (!codec->rotate || !skvq_calibration_into(c, name, h, is_v))
					continue;
				used = true;
				t->into = skvq_calibration_into(c, name, h, is_v);
				t->back = skvq_calibration_back(c, name, h, is_v);
				if (is_v)
					continue;
				float *query = m->query_transforms + i * square;
				for (uint32_t a = 0; a < m->dim_k; a++)
					for (uint32_t b = 0; b < m->dim_k; b++)
						query[(size_t)a * m->dim_k + b] =
						    t->back[(size_t)b * m->dim_k + a];
				t->query = query;
			}
		}
	if (used) {
		expect_errors(m, c);
		skvq_calibration_id(c, m->calibration_id);
		m->id.calibration_digest = m->calibration_id;
	}
	return 0;
}

/* 0 if a layer has none. */
static uint32_t largest_window(const uint32_t *window, uint32_t n_layer)
{
	uint32_t largest = 0;

	for (uint32_t i = 0; i < n_layer; i++) {
		if (!window[i])
			return 0;
		largest = window[i] > largest ? window[i] : largest;
	}
	return largest;
}

static int fill(struct skvq_model *m, const skvq_model_desc *d, const struct skvq_profile *p)
{
	struct skvq_session *s = m->session;
	const struct skvq_layout *l = &m->layout;

	m->n_layer = d->n_layer;
	m->n_q_heads = d->n_q_heads;
	m->n_kv_heads = d->n_kv_heads;
	m->dim_k = d->head_dim_k;
	m->dim_v = d->head_dim_v;
	m->sinks = l->geo.n_sinks;
	m->young = p->young;
	m->window = d->window == SKVQ_DEFAULT ? WINDOW_DEFAULT : d->window;
	m->token_bytes_fp16 = (size_t)d->n_layer * d->n_kv_heads * (d->head_dim_k + d->head_dim_v) * 2;
	uint32_t rope_dim = d->rope_kind == SKVQ_ROPE_NONE ? 0
	                    : d->rope_dim                  ? d->rope_dim
	                                                   : d->head_dim_k;
	m->pairs_half_dim = d->rope_pairs == SKVQ_PAIRS_INTERLEAVED ? rope_dim / 2 : 0;

	m->header = calloc(1, l->base_bytes);
	m->bit_table = calloc(d->n_layer, 2);
	m->texts = calloc(4, TEXT_MAX + 1);
	m->transforms = calloc((size_t)2 * d->n_layer * d->n_kv_heads, sizeof *m->transforms);
	if (!m->header || !m->bit_table || !m->texts || !m->transforms)
		return set_error(s, SKVQ_ENOMEM, "no memory for a model of %u layers", d->n_layer);
	skvq_page_init(l, 0, m->header);
	for (uint32_t i = 0; i < d->n_layer; i++) {
		m->bit_table[2 * i] = l->layers[i].k.bits;
		m->bit_table[2 * i + 1] = l->layers[i].v.bits;
	}
	if (d->reorder_k || d->reorder_v) {
		size_t heads = (size_t)d->n_layer * d->n_kv_heads;

		m->reorder_k = calloc(heads * (d->head_dim_k + d->head_dim_v), sizeof *m->reorder_k);
		if (!m->reorder_k)
			return set_error(s, SKVQ_ENOMEM, "no memory for the channel maps");
		m->reorder_v = m->reorder_k + heads * d->head_dim_k;
		int r = copy_maps(s, d->reorder_k, m->reorder_k, heads, d->head_dim_k, "reorder_k");
		if (r == 0)
			r = copy_maps(s, d->reorder_v, m->reorder_v, heads, d->head_dim_v, "reorder_v");
		if (r < 0)
			return r;
		for (size_t h = 0; h < heads; h++) {
			m->transforms[2 * h].reorder = m->reorder_k + h * d->head_dim_k;
			m->transforms[2 * h + 1].reorder = m->reorder_v + h * d->head_dim_v;
		}
	}
	if (d->layer_window) {
		m->layer_window = calloc(d->n_layer, sizeof *m->layer_window);
		if (!m->layer_window)
			return set_error(s, SKVQ_ENOMEM, "no memory for the layer windows");
		memcpy(m->layer_window, d->layer_window, d->n_layer * sizeof *m->layer_window);
		m->sight = largest_window(m->layer_window, d->n_layer);
	}
	memcpy(m->digests[0], d->weights_digest, 32);
	memcpy(m->digests[1], d->tokenizer_digest, 32);
	if (d->lora_digest)
		memcpy(m->digests[2], d->lora_digest, 32);
	char *at = m->texts;
	m->id = (struct skvq_client_identity){
	    .weights_digest = m->digests[0],
	    .tokenizer_digest = m->digests[1],
	    .lora_digest = d->lora_digest ? m->digests[2] : NULL,
	    .engine_numerics = put_text(&at, d->engine_numerics),
	    .model_name = put_text(&at, d->model_name),
	    .n_layer = d->n_layer,
	    .n_q_heads = d->n_q_heads,
	    .n_kv_heads = d->n_kv_heads,
	    .head_dim_k = d->head_dim_k,
	    .head_dim_v = d->head_dim_v,
	    .rope_kind = d->rope_kind,
	    .rope_dim = rope_dim,
	    .rope_theta = d->rope_kind == SKVQ_ROPE_NONE ? 0 : d->rope_theta,
	    .rope_scaling = put_text(&at, d->rope_scaling),
	    .profile = put_text(&at, p->name),
	    .window = m->window,
	    .sinks = m->sinks,
	    .bit_table = m->bit_table,
	    .reorder = m->reorder_k,
	    .layer_window = m->layer_window,
	    .clip = p->kind == SKVQ_CODEC_AFFINE || p->kind == SKVQ_CODEC_FAITHFUL ? p->clip : 0,
	};
	return page_errors_init(m);
}

/* The layout of safe pages, where there may be any: as the daemon finds it, by the identity. */
static int safe_init(struct skvq_model *m, const struct skvq_profile *p)
{
	if (!skvq_profile_has_safe(p, m->id.calibration_digest != NULL))
		return 0;
	m->safe = malloc(sizeof *m->safe);
	if (!m->safe)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a second page layout");
	if (skvq_layout_init_safe(&m->layout, p, m->safe) < 0) {
		free(m->safe);
		m->safe = NULL;
		return 0;
	}
	m->safe_header = calloc(1, m->safe->base_bytes);
	if (!m->safe_header)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a second page layout");
	skvq_page_init(m->safe, 0, m->safe_header);
	return 0;
}

/* The bits of each layer that are not the profile's. */
static int bits_of(struct skvq_session *s, const skvq_model_desc *d, const struct skvq_profile *p,
                   const struct skvq_calibration *c, const uint8_t **ret)
{
	const uint8_t *bits = d->bit_table;

	if (!p->k_bits && !bits) {
		bits = d->calibration ? skvq_calibration_bits(c, p->nested ? "auto-2.4" : p->name) : NULL;
		if (!bits)
			return set_error(
			    s, SKVQ_EPROFILE,
			    "profile '%s' takes its bits from a calibration's table, and %s", p->name,
			    d->calibration ? "this calibration has none of that name"
			                   : "there is no calibration");
	}
	*ret = bits;
	return 0;
}

int model_new(struct skvq_session *s, const skvq_model_desc *d, const struct skvq_profile *p,
              const uint32_t *layers, uint32_t n_whole, struct skvq_model **ret)
{
	struct skvq_model *m = calloc(1, sizeof *m);
	struct skvq_calibration calibration = {0};
	const uint8_t *bits = NULL;
	struct skvq_geometry geo = {.n_layer = d->n_layer,
	                            .n_kv_heads = d->n_kv_heads,
	                            .head_dim_k = d->head_dim_k,
	                            .head_dim_v = d->head_dim_v,
	                            .n_sinks = d->sinks == SKVQ_DEFAULT ? SINKS_DEFAULT : d->sinks};
	int r;

	if (!m)
		return set_error(s, SKVQ_ENOMEM, "no memory for a model");
	m->session = s;
	if (layers) {
		m->layers = calloc(d->n_layer, sizeof *m->layers);
		if (!m->layers) {
			r = set_error(s, SKVQ_ENOMEM, "no memory for a layer group");
			goto fail;
		}
		memcpy(m->layers, layers, d->n_layer * sizeof *m->layers);
	}
	if (d->calibration && (r = take_calibration(m, d, n_whole, &calibration)) < 0)
		goto fail;
	if ((r = bits_of(s, d, p, &calibration, &bits)) < 0)
		goto fail;
	r = skvq_layout_init(&geo, p, bits, &m->layout);
	if (r < 0) {
		set_error(s, -r,
		          "%u layers, %u KV heads, head_dim %u/%u, profile '%s': no page layout "
		          "(head_dim is a multiple of 16 up to %u, bits are SKVQ_BITS_*)",
		          d->n_layer, d->n_kv_heads, d->head_dim_k, d->head_dim_v, p->name,
		          SKVQ_HEAD_DIM_MAX);
		goto fail;
	}
	r = fill(m, d, p);
	if (r == 0 && p->kind == SKVQ_CODEC_FAITHFUL) {
		r = faithful_init(m, p, d->calibration ? &calibration : NULL);
		free(m->calibration);
		m->calibration = NULL;
	} else if (r == 0 && d->calibration) {
		r = use_calibration(m, &calibration);
	}
	if (r == 0)
		r = safe_init(m, p);
	if (r < 0)
		goto fail;
	*ret = m;
	return 0;
fail:
	model_free(m);
	return r;
}

int32_t api_model_register(skvq_session *s, const skvq_model_desc *desc, skvq_model **ret)
{
	skvq_model_desc d;
	struct skvq_profile p;
	struct skvq_model *m;

	if (!s)
		return -SKVQ_EINVAL;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	int r = copy_in(&d, sizeof d, desc);
	if (r < 0 || !ret || (d.flags & ~SKVQ_MODEL_LAYER_GROUPS) || d.reserved)
		return set_error(s, SKVQ_EINVAL, "model_desc: struct_size, flags or a reserved field");
	if ((r = check_identity(s, &d)) < 0 || (r = check_geometry(s, &d)) < 0)
		return r;
	const char *name = d.profile ? d.profile : SKVQ_PROFILE_DEFAULT;
	r = skvq_profile_parse(name, &p);
	if (r < 0)
		return set_error(s, -r, r == -SKVQ_ENOTSUP ? "profile '%.47s' is not implemented yet"
		                                           : "there is no profile '%.47s'", name);
	if (p.kind == SKVQ_CODEC_FAITHFUL && (d.reorder_k || d.reorder_v))
		return set_error(s, SKVQ_EINVAL, "profile '%.47s' takes no channel maps", name);
	if (d.clip != 0)
		p.clip = d.clip;
	r = model_new(s, &d, &p, NULL, d.n_layer, &m);
	if (r < 0)
		return r;
	if (d.flags & SKVQ_MODEL_LAYER_GROUPS && (r = layer_groups_init(m, &d, &p)) < 0)
		goto fail;
	session_pump(s, 0);
	if (s->daemon == DAEMON_ATTACHED) {
		r = model_attach(m);
		if (r < 0) {
			if (skvq_client_broken(s->client))
				session_lost(s);
			goto fail;
		}
	}
	m->next = s->models;
	s->models = m;
	*ret = m;
	return 0;
fail:
	model_free(m);
	return r;
}

int32_t api_model_unregister(skvq_model *m)
{
	if (!m)
		return 0;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (m->seqs)
		return set_error(s, SKVQ_ESTATE, "the model has open sequences");
	model_drop(m);
	return 0;
}

void model_drop(struct skvq_model *m)
{
	struct skvq_session *s = m->session;

	for (struct skvq_model **p = &s->models; *p; p = &(*p)->next) {
		if (*p == m) {
			*p = m->next;
			break;
		}
	}
	model_free(m);
}

const struct skvq_transform *transform_of(const struct skvq_model *m, int is_v, uint32_t layer,
                                          uint32_t head)
{
	return &m->transforms[2 * ((size_t)layer * m->n_kv_heads + head) + (is_v != 0)];
}
