/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/identity.h - everything that makes K/V bytes reusable, checked and put into one canonical
 * byte string. Two engines share pages only if these strings are equal byte for byte; the SHA-256
 * of the string is the name of the identity in pages and lists, never the proof of equality.
 *
 * Canonical bytes: the 16 bytes "skvq-identity/1\0", then every field in the order of the table in
 * identity.c, each as
 *     uint16 field number (that of message Identity)   uint32 length   bytes
 * little-endian. Integers are 4 bytes, theta the 8 bytes and clip the 4 bytes of their IEEE value
 * (no negative zero, no NaN), texts and digests their bytes, layer windows 4 bytes each. Absent
 * optional fields are there with length 0.
 */
#ifndef SKVQD_CACHE_IDENTITY_H
#define SKVQD_CACHE_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

#include <skvq/format.h>
#include <skvq/layout.h>

#include "base/why.h"

#define IDENTITY_TEXT_MAX  255u /* bytes of a text field, so that lists of them stay bounded */
#define IDENTITY_DIGEST    32u
#define IDENTITY_CANON_MAX 3072u

struct identity {
	bool has_weights, has_tokenizer, has_lora, has_calibration, has_reorder;
	uint8_t weights[IDENTITY_DIGEST];
	uint8_t tokenizer[IDENTITY_DIGEST];
	uint8_t lora[IDENTITY_DIGEST];
	uint8_t calibration[IDENTITY_DIGEST];
	uint8_t reorder[IDENTITY_DIGEST];
	char engine_numerics[IDENTITY_TEXT_MAX + 1];
	char rope_scaling[IDENTITY_TEXT_MAX + 1];
	char profile[SKVQ_PROFILE_NAME_MAX + 1];
	uint32_t n_layer, n_q_heads, n_kv_heads, head_dim_k, head_dim_v;
	uint32_t rope_kind, rope_dim;
	double rope_theta;
	uint32_t window, sinks;
	uint32_t n_bit_table; /* bytes given; must be 2 * n_layer */
	uint8_t bit_table[2 * SKVQ_LAYERS_MAX];
	uint32_t n_layer_window; /* entries given; 0 or n_layer */
	uint32_t layer_window[SKVQ_LAYERS_MAX];
	float clip;
	uint32_t page_version;
};

/* Checks that nothing is missing, contradictory or out of bounds, and computes the page layout.
 * Settles what has two spellings: rope_dim 0 becomes head_dim_k under RoPE, -0.0 becomes 0.
 * -SKVQ_EIDENTITY naming the field, -SKVQ_EGEOMETRY, -SKVQ_EPROFILE, -SKVQ_ENOTSUP. */
int identity_check(struct identity *id, struct skvq_layout *ret_layout, struct why *why);

/* Canonical bytes of a checked identity; returns their number. */
uint32_t identity_encode(const struct identity *id, uint8_t buf[IDENTITY_CANON_MAX]);

/* The identity whose canonical bytes these are, all of them and no others; not checked. False: there
 * is none. */
bool identity_decode(const uint8_t *canon, uint32_t canon_bytes, struct identity *ret);

/* The first field, in the order of the canonical bytes, that differs between two identities: its name
 * in message Identity, static. NULL: they are equal. *ret_n: how many differ. */
const char *identity_differs(const struct identity *a, const struct identity *b, uint32_t *ret_n);

/* SHA-256 (OpenSSL). -SKVQ_ENOMEM. Any thread. */
int identity_digest(const uint8_t *canon, uint32_t canon_bytes, uint8_t ret[IDENTITY_DIGEST]);

/* The digest that names a page: SHA-256(identity digest, parent digest or zeros, position as LE32,
 * tokens as LE32 each). -SKVQ_ENOMEM. Any thread. */
int page_digest(const uint8_t identity[IDENTITY_DIGEST], const uint8_t parent[IDENTITY_DIGEST],
		uint32_t position, const int32_t tokens[SKVQ_PAGE_TOKENS],
		uint8_t ret[IDENTITY_DIGEST]);

/* The digest that names a namespace below memory: SHA-256(identity digest, the tenant's name and,
 * with a salt, a zero byte and the salt). tenant has at most 63 bytes, salt 64. -SKVQ_ENOMEM. */
int namespace_digest(const uint8_t identity[IDENTITY_DIGEST], const char *tenant,
		     const uint8_t *salt, uint32_t salt_bytes, uint8_t ret[IDENTITY_DIGEST]);

#endif /* SKVQD_CACHE_IDENTITY_H */
