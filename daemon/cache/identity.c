/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/identity.h"

#include <assert.h>
#include <math.h>
#include <openssl/evp.h>
#include <string.h>

#include <skvq/error.h>
#include <skvq/plugin.h>

#include "base/blob.h"

/* ---- canonical bytes ---- */

struct writer {
	uint8_t *buf;
	uint32_t len;
};

static void put(struct writer *w, const void *data, uint32_t n)
{
	assert(n <= IDENTITY_CANON_MAX - w->len);
	if (n)
		memcpy(w->buf + w->len, data, n);
	w->len += n;
}

static void put_le(struct writer *w, uint64_t value, uint32_t bytes)
{
	uint8_t b[8];

	for (uint32_t i = 0; i < bytes; i++)
		b[i] = (uint8_t)(value >> 8 * i);
	put(w, b, bytes);
}

static void put_field(struct writer *w, uint32_t number, const void *data, uint32_t n)
{
	put_le(w, number, 2);
	put_le(w, n, 4);
	put(w, data, n);
}

static void put_u32(struct writer *w, uint32_t number, uint32_t value)
{
	put_le(w, number, 2);
	put_le(w, 4, 4);
	put_le(w, value, 4);
}

static void put_digest(struct writer *w, uint32_t number, bool has, const uint8_t *digest)
{
	put_field(w, number, digest, has ? IDENTITY_DIGEST : 0);
}

static void put_text(struct writer *w, uint32_t number, const char *text)
{
	put_field(w, number, text, (uint32_t)strlen(text));
}

uint32_t identity_encode(const struct identity *id, uint8_t buf[IDENTITY_CANON_MAX])
{
	struct writer w = {.buf = buf};
	uint64_t theta_bits;
	uint32_t clip_bits;

	memcpy(&theta_bits, &id->rope_theta, sizeof(theta_bits));
	memcpy(&clip_bits, &id->clip, sizeof(clip_bits));
	put(&w, "skvq-identity/1", 16);
	put_digest(&w, 1, id->has_weights, id->weights);
	put_digest(&w, 2, id->has_tokenizer, id->tokenizer);
	put_digest(&w, 3, id->has_lora, id->lora);
	put_text(&w, 4, id->engine_numerics);
	put_u32(&w, 5, id->n_layer);
	put_u32(&w, 6, id->n_q_heads);
	put_u32(&w, 7, id->n_kv_heads);
	put_u32(&w, 8, id->head_dim_k);
	put_u32(&w, 9, id->head_dim_v);
	put_u32(&w, 10, id->rope_kind);
	put_u32(&w, 11, id->rope_dim);
	put_le(&w, 12, 2);
	put_le(&w, 8, 4);
	put_le(&w, theta_bits, 8);
	put_text(&w, 13, id->rope_scaling);
	put_text(&w, 14, id->profile);
	put_digest(&w, 15, id->has_calibration, id->calibration);
	put_u32(&w, 16, id->window);
	put_u32(&w, 17, id->sinks);
	put_field(&w, 18, id->bit_table, id->n_bit_table);
	put_digest(&w, 19, id->has_reorder, id->reorder);
	put_le(&w, 20, 2);
	put_le(&w, 4ull * id->n_layer_window, 4);
	for (uint32_t i = 0; i < id->n_layer_window; i++)
		put_le(&w, id->layer_window[i], 4);
	put_u32(&w, 21, clip_bits);
	put_u32(&w, 22, id->page_version);
	return w.len;
}

/* ---- and back ---- */

/* The bytes of the next field, if it is the one of this number and has at most so many. */
static const uint8_t *get_field(struct blob_cursor *c, uint32_t number, uint32_t most,
				uint32_t *ret_n)
{
	const uint8_t *head = blob_get(c, 2);
	uint32_t n = blob_get_u32(c);

	if (!head || (head[0] | (uint32_t)head[1] << 8) != number || n > most)
		c->failed = true;
	*ret_n = n;
	return blob_get(c, n);
}

static uint64_t get_number(struct blob_cursor *c, uint32_t number, uint32_t bytes)
{
	uint32_t n;
	const uint8_t *at = get_field(c, number, bytes, &n);
	uint64_t value = 0;

	if (n != bytes)
		c->failed = true;
	for (uint32_t i = 0; at && i < n; i++)
		value |= (uint64_t)at[i] << 8 * i;
	return value;
}

static uint32_t get_u32(struct blob_cursor *c, uint32_t number)
{
	return (uint32_t)get_number(c, number, 4);
}

/* Into a buffer that is zero; what is too short for a digest does not encode to the same bytes. */
static uint32_t get_bytes(struct blob_cursor *c, uint32_t number, void *ret, uint32_t most)
{
	uint32_t n;
	const uint8_t *at = get_field(c, number, most, &n);

	if (!at)
		return 0;
	memcpy(ret, at, n);
	return n;
}

static void get_fields(struct blob_cursor *c, struct identity *id)
{
	uint8_t windows[4 * SKVQ_LAYERS_MAX] = {0};
	struct blob_cursor w = {.at = windows, .left = sizeof(windows)};
	uint64_t theta_bits;
	uint32_t clip_bits;

	id->has_weights = get_bytes(c, 1, id->weights, IDENTITY_DIGEST) > 0;
	id->has_tokenizer = get_bytes(c, 2, id->tokenizer, IDENTITY_DIGEST) > 0;
	id->has_lora = get_bytes(c, 3, id->lora, IDENTITY_DIGEST) > 0;
	(void)get_bytes(c, 4, id->engine_numerics, IDENTITY_TEXT_MAX);
	id->n_layer = get_u32(c, 5);
	id->n_q_heads = get_u32(c, 6);
	id->n_kv_heads = get_u32(c, 7);
	id->head_dim_k = get_u32(c, 8);
	id->head_dim_v = get_u32(c, 9);
	id->rope_kind = get_u32(c, 10);
	id->rope_dim = get_u32(c, 11);
	theta_bits = get_number(c, 12, 8);
	memcpy(&id->rope_theta, &theta_bits, sizeof(theta_bits));
	(void)get_bytes(c, 13, id->rope_scaling, IDENTITY_TEXT_MAX);
	(void)get_bytes(c, 14, id->profile, SKVQ_PROFILE_NAME_MAX);
	id->has_calibration = get_bytes(c, 15, id->calibration, IDENTITY_DIGEST) > 0;
	id->window = get_u32(c, 16);
	id->sinks = get_u32(c, 17);
	id->n_bit_table = get_bytes(c, 18, id->bit_table, sizeof(id->bit_table));
	id->has_reorder = get_bytes(c, 19, id->reorder, IDENTITY_DIGEST) > 0;
	id->n_layer_window = get_bytes(c, 20, windows, sizeof(windows)) / 4;
	for (uint32_t i = 0; i < id->n_layer_window; i++)
		id->layer_window[i] = blob_get_u32(&w);
	clip_bits = get_u32(c, 21);
	memcpy(&id->clip, &clip_bits, sizeof(clip_bits));
	id->page_version = get_u32(c, 22);
}

bool identity_decode(const uint8_t *canon, uint32_t canon_bytes, struct identity *ret)
{
	struct blob_cursor c = {.at = canon, .left = canon_bytes};
	uint8_t again[IDENTITY_CANON_MAX];

	memset(ret, 0, sizeof(*ret));
	if (canon_bytes > IDENTITY_CANON_MAX)
		return false;
	(void)blob_get(&c, 16); /* the format's name */
	get_fields(&c, ret);
	/* Whatever was read wrongly does not give the same bytes. */
	return !c.failed && !c.left && identity_encode(ret, again) == canon_bytes &&
	       !memcmp(again, canon, canon_bytes);
}

/* ---- what differs ---- */

/* By field number. */
static const char *const field_names[] = {
    NULL,	    "weights_digest",  "tokenizer_digest", "lora_digest",  "engine_numerics",
    "n_layer",	    "n_q_heads",       "n_kv_heads",	   "head_dim_k",   "head_dim_v",
    "rope_kind",    "rope_dim",	       "rope_theta",	   "rope_scaling", "profile",
    "calibration_digest", "window",    "sinks",		   "bit_table",	   "reorder",
    "layer_window", "clip",	       "page_version",
};
#define N_FIELDS (sizeof(field_names) / sizeof(field_names[0]) - 1)

const char *identity_differs(const struct identity *a, const struct identity *b, uint32_t *ret_n)
{
	uint8_t x[IDENTITY_CANON_MAX], y[IDENTITY_CANON_MAX];
	struct blob_cursor cx = {.at = x, .left = identity_encode(a, x)};
	struct blob_cursor cy = {.at = y, .left = identity_encode(b, y)};
	const char *first = NULL;

	*ret_n = 0;
	(void)blob_get(&cx, 16);
	(void)blob_get(&cy, 16);
	for (uint32_t i = 1; i <= N_FIELDS; i++) {
		uint32_t nx, ny;
		const uint8_t *fx = get_field(&cx, i, IDENTITY_CANON_MAX, &nx);
		const uint8_t *fy = get_field(&cy, i, IDENTITY_CANON_MAX, &ny);

		assert(!cx.failed && !cy.failed);
		if (nx == ny && (!nx || !memcmp(fx, fy, nx)))
			continue;
		if (!first)
			first = field_names[i];
		(*ret_n)++;
	}
	return first;
}

/* ---- checks ---- */

static int missing(struct why *why, const char *field)
{
	return why_fail(why, SKVQ_EIDENTITY, "identity is partial: %s is missing", field);
}

/* Texts end up in logs and lists; equal-looking texts must be equal. */
static bool is_printable(const char *text)
{
	for (; *text; text++) {
		if (*text < 0x20 || *text > 0x7e)
			return false;
	}
	return true;
}

static int unprintable(struct why *why, const char *field)
{
	return why_fail(why, SKVQ_EIDENTITY, "identity: %s holds bytes outside printable ASCII",
			field);
}

static int check_present(const struct identity *id, struct why *why)
{
	if (!id->has_weights)
		return missing(why, "weights_digest");
	if (!id->has_tokenizer)
		return missing(why, "tokenizer_digest");
	if (!id->engine_numerics[0])
		return missing(why, "engine_numerics");
	if (!id->n_layer)
		return missing(why, "n_layer");
	if (!id->n_q_heads)
		return missing(why, "n_q_heads");
	if (!id->n_kv_heads)
		return missing(why, "n_kv_heads");
	if (!id->head_dim_k)
		return missing(why, "head_dim_k");
	if (!id->head_dim_v)
		return missing(why, "head_dim_v");
	if (id->rope_kind != SKVQ_ROPE_NONE && id->rope_theta == 0.0)
		return missing(why, "rope_theta");
	if (!id->profile[0])
		return missing(why, "profile");
	if (!id->n_bit_table)
		return missing(why, "bit_table");
	if (!id->page_version)
		return missing(why, "page_version");
	return 0;
}

static int check_geometry(const struct identity *id, struct why *why)
{
	if (id->n_layer > SKVQ_LAYERS_MAX)
		return why_fail(why, SKVQ_EGEOMETRY, "n_layer %u is above %u", id->n_layer,
				SKVQ_LAYERS_MAX);
	if (id->n_q_heads > SKVQ_Q_HEADS_MAX)
		return why_fail(why, SKVQ_EGEOMETRY, "n_q_heads %u is above %u", id->n_q_heads,
				SKVQ_Q_HEADS_MAX);
	if (id->n_kv_heads > SKVQ_KV_HEADS_MAX)
		return why_fail(why, SKVQ_EGEOMETRY, "n_kv_heads %u is above %u", id->n_kv_heads,
				SKVQ_KV_HEADS_MAX);
	if (id->n_q_heads % id->n_kv_heads)
		return why_fail(why, SKVQ_EGEOMETRY,
				"n_q_heads %u is not a multiple of n_kv_heads %u", id->n_q_heads,
				id->n_kv_heads);
	if (id->rope_dim > id->head_dim_k)
		return why_fail(why, SKVQ_EIDENTITY, "rope_dim %u is above head_dim_k %u",
				id->rope_dim, id->head_dim_k);
	return 0;
}

static int check_values(const struct identity *id, struct why *why)
{
	if (id->rope_kind > SKVQ_ROPE_PRE)
		return why_fail(why, SKVQ_EIDENTITY, "rope_kind %u is not one of SKVQ_ROPE_*",
				id->rope_kind);
	if (id->rope_kind == SKVQ_ROPE_PRE)
		return why_fail(why, SKVQ_ENOTSUP, "rope_kind PRE is not implemented");
	if (!isfinite(id->rope_theta) || id->rope_theta < 0.0)
		return why_fail(why, SKVQ_EIDENTITY, "rope_theta %g is not a frequency base",
				id->rope_theta);
	if (!is_printable(id->engine_numerics))
		return unprintable(why, "engine_numerics");
	if (!is_printable(id->rope_scaling))
		return unprintable(why, "rope_scaling");
	if (!is_printable(id->profile))
		return unprintable(why, "profile");
	if (id->window > SKVQ_WINDOW_MAX)
		return why_fail(why, SKVQ_EIDENTITY, "window %u is above %u", id->window,
				SKVQ_WINDOW_MAX);
	if (id->sinks > SKVQ_SINKS_MAX)
		return why_fail(why, SKVQ_EIDENTITY, "sinks %u is above %u", id->sinks,
				SKVQ_SINKS_MAX);
	if (id->n_bit_table != 2 * id->n_layer)
		return why_fail(why, SKVQ_EIDENTITY, "bit_table has %u bytes, %u layers need %u",
				id->n_bit_table, id->n_layer, 2 * id->n_layer);
	if (id->n_layer_window && id->n_layer_window != id->n_layer)
		return why_fail(why, SKVQ_EIDENTITY, "layer_window has %u entries for %u layers",
				id->n_layer_window, id->n_layer);
	if (!(id->clip >= 0.0f && id->clip <= 1.0f)) /* NaN too */
		return why_fail(why, SKVQ_EIDENTITY, "clip %g is outside 0..1", (double)id->clip);
	if (id->page_version != SKVQ_PAGE_VERSION)
		return why_fail(why, SKVQ_ENOTSUP, "page_version %u: this daemon serves %u",
				id->page_version, SKVQ_PAGE_VERSION);
	return 0;
}

static int check_layout(const struct identity *id, struct skvq_layout *ret_layout, struct why *why)
{
	struct skvq_geometry geo = {
	    .n_layer = id->n_layer,
	    .n_kv_heads = id->n_kv_heads,
	    .head_dim_k = id->head_dim_k,
	    .head_dim_v = id->head_dim_v,
	    .n_sinks = id->sinks,
	};
	struct skvq_profile profile;
	int err = skvq_profile_parse(id->profile, &profile);

	if (err < 0)
		return why_fail(why, -err, "profile \"%s\" is %s", id->profile,
				err == -SKVQ_ENOTSUP ? "reserved, not implemented" : "unknown");
	if (id->clip > 0.0f)
		profile.clip = id->clip;
	err = skvq_layout_init(&geo, &profile, id->bit_table, ret_layout);
	if (err < 0)
		return why_fail(
		    why, -err,
		    "profile \"%s\" and the bit table give no page for %u layers, %u KV "
		    "heads, head_dim %u/%u, %u sinks",
		    id->profile, geo.n_layer, geo.n_kv_heads, geo.head_dim_k, geo.head_dim_v,
		    geo.n_sinks);
	return 0;
}

int identity_check(struct identity *id, struct skvq_layout *ret_layout, struct why *why)
{
	int err = check_present(id, why);

	if (!err)
		err = check_geometry(id, why);
	if (!err)
		err = check_values(id, why);
	if (err < 0)
		return err;
	if (id->rope_kind != SKVQ_ROPE_NONE && !id->rope_dim)
		id->rope_dim = id->head_dim_k;
	id->rope_theta += 0.0; /* -0.0 to 0.0 */
	id->clip += 0.0f;
	return check_layout(id, ret_layout, why);
}

/* ---- digests ---- */

int identity_digest(const uint8_t *canon, uint32_t canon_bytes, uint8_t ret[IDENTITY_DIGEST])
{
	return EVP_Digest(canon, canon_bytes, ret, NULL, EVP_sha256(), NULL) == 1 ? 0
										  : -SKVQ_ENOMEM;
}

int page_digest(const uint8_t identity[IDENTITY_DIGEST], const uint8_t parent[IDENTITY_DIGEST],
		uint32_t position, const int32_t tokens[SKVQ_PAGE_TOKENS],
		uint8_t ret[IDENTITY_DIGEST])
{
	uint8_t buf[2 * IDENTITY_DIGEST + 4 + 4 * SKVQ_PAGE_TOKENS];
	uint8_t *at = buf;

	memcpy(at, identity, IDENTITY_DIGEST);
	memcpy(at + IDENTITY_DIGEST, parent, IDENTITY_DIGEST);
	at += 2 * IDENTITY_DIGEST;
	for (uint32_t i = 0; i < 1 + SKVQ_PAGE_TOKENS; i++) {
		uint32_t v = i ? (uint32_t)tokens[i - 1] : position;

		for (uint32_t b = 0; b < 4; b++)
			*at++ = (uint8_t)(v >> 8 * b);
	}
	assert(at == buf + sizeof(buf));
	return EVP_Digest(buf, sizeof(buf), ret, NULL, EVP_sha256(), NULL) == 1 ? 0 : -SKVQ_ENOMEM;
}

int namespace_digest(const uint8_t identity[IDENTITY_DIGEST], const char *tenant,
		     const uint8_t *salt, uint32_t salt_bytes, uint8_t ret[IDENTITY_DIGEST])
{
	uint8_t buf[IDENTITY_DIGEST + 64 + 64];
	size_t n = strlen(tenant);

	assert(n < 64 && salt_bytes <= 64);
	memcpy(buf, identity, IDENTITY_DIGEST);
	memcpy(buf + IDENTITY_DIGEST, tenant, n + 1); /* no name has a zero byte: it ends there */
	n += IDENTITY_DIGEST;
	if (salt_bytes) {
		memcpy(buf + n + 1, salt, salt_bytes);
		n += 1 + salt_bytes;
	}
	return EVP_Digest(buf, n, ret, NULL, EVP_sha256(), NULL) == 1 ? 0 : -SKVQ_ENOMEM;
}
