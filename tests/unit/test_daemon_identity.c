/* SPDX-License-Identifier: Apache-2.0 */
/* cache/identity: partial identities are refused by name; every field makes a difference. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"

#include <skvq/error.h>
#include <skvq/plugin.h>

#include "cache/identity.h"

static struct skvq_layout layout; /* 16 KiB: off the stack */

static struct identity good(void)
{
	struct identity id = {
	    .has_weights = true,
	    .has_tokenizer = true,
	    .engine_numerics = "llama.cpp-b1",
	    .profile = "k4v4",
	    .n_layer = 2,
	    .n_q_heads = 4,
	    .n_kv_heads = 2,
	    .head_dim_k = 64,
	    .head_dim_v = 64,
	    .rope_kind = SKVQ_ROPE_POST,
	    .rope_dim = 64,
	    .rope_theta = 1e6,
	    .window = 128,
	    .sinks = 5,
	    .n_bit_table = 4,
	    .bit_table = {SKVQ_BITS_4, SKVQ_BITS_4, SKVQ_BITS_4, SKVQ_BITS_4},
	    .page_version = SKVQ_PAGE_VERSION,
	};

	memset(id.weights, 1, sizeof(id.weights));
	memset(id.tokenizer, 2, sizeof(id.tokenizer));
	return id;
}

static void refused(struct identity id, int code, const char *names)
{
	struct why why = {{0}};

	assert_int_equal(identity_check(&id, &layout, &why), -code);
	if (!strstr(why.text, names))
		fail_msg("\"%s\" does not name \"%s\"", why.text, names);
}

static void good_one_passes(void **state)
{
	struct identity id = good();
	struct why why = {{0}};

	(void)state;
	assert_int_equal(identity_check(&id, &layout, &why), 0);
	assert_int_equal(layout.geo.n_layer, 2);
	assert_int_equal(layout.base_bytes % 4096, 0);
}

#define WITH(field, value, code, names)                                                            \
	do {                                                                                       \
		struct identity id = good();                                                       \
		id.field = (value);                                                                \
		refused(id, code, names);                                                          \
	} while (0)

static void each_missing_field_is_named(void **state)
{
	(void)state;
	WITH(has_weights, false, SKVQ_EIDENTITY, "weights_digest is missing");
	WITH(has_tokenizer, false, SKVQ_EIDENTITY, "tokenizer_digest is missing");
	WITH(engine_numerics[0], '\0', SKVQ_EIDENTITY, "engine_numerics is missing");
	WITH(n_layer, 0, SKVQ_EIDENTITY, "n_layer is missing");
	WITH(n_q_heads, 0, SKVQ_EIDENTITY, "n_q_heads is missing");
	WITH(n_kv_heads, 0, SKVQ_EIDENTITY, "n_kv_heads is missing");
	WITH(head_dim_k, 0, SKVQ_EIDENTITY, "head_dim_k is missing");
	WITH(head_dim_v, 0, SKVQ_EIDENTITY, "head_dim_v is missing");
	WITH(rope_theta, 0.0, SKVQ_EIDENTITY, "rope_theta is missing");
	WITH(profile[0], '\0', SKVQ_EIDENTITY, "profile is missing");
	WITH(n_bit_table, 0, SKVQ_EIDENTITY, "bit_table is missing");
	WITH(page_version, 0, SKVQ_EIDENTITY, "page_version is missing");
}

static void wrong_values_are_named(void **state)
{
	(void)state;
	WITH(n_layer, SKVQ_LAYERS_MAX + 1, SKVQ_EGEOMETRY, "n_layer");
	WITH(n_layer, UINT32_MAX, SKVQ_EGEOMETRY, "n_layer");
	WITH(n_q_heads, SKVQ_Q_HEADS_MAX + 1, SKVQ_EGEOMETRY, "n_q_heads");
	WITH(n_q_heads, 5, SKVQ_EGEOMETRY, "multiple");
	WITH(n_kv_heads, SKVQ_KV_HEADS_MAX + 1, SKVQ_EGEOMETRY, "n_kv_heads");
	WITH(head_dim_k, 72, SKVQ_EGEOMETRY, "head_dim 72");
	WITH(head_dim_v, 272, SKVQ_EGEOMETRY, "272");
	WITH(rope_dim, 65, SKVQ_EIDENTITY, "rope_dim");
	WITH(rope_kind, 9, SKVQ_EIDENTITY, "rope_kind");
	WITH(rope_kind, SKVQ_ROPE_PRE, SKVQ_ENOTSUP, "PRE");
	WITH(rope_theta, (double)NAN, SKVQ_EIDENTITY, "rope_theta");
	WITH(rope_theta, (double)INFINITY, SKVQ_EIDENTITY, "rope_theta");
	WITH(rope_theta, -1.0, SKVQ_EIDENTITY, "rope_theta");
	WITH(window, SKVQ_DEFAULT, SKVQ_EIDENTITY, "window");
	WITH(sinks, SKVQ_SINKS_MAX + 1, SKVQ_EIDENTITY, "sinks");
	WITH(n_bit_table, 3, SKVQ_EIDENTITY, "bit_table");
	WITH(bit_table[1], 7, SKVQ_EPROFILE, "bit table");
	WITH(n_layer_window, 1, SKVQ_EIDENTITY, "layer_window");
	WITH(clip, NAN, SKVQ_EIDENTITY, "clip");
	WITH(clip, 1.5f, SKVQ_EIDENTITY, "clip");
	WITH(clip, -0.5f, SKVQ_EIDENTITY, "clip");
	WITH(page_version, 1, SKVQ_ENOTSUP, "page_version 1");
	WITH(page_version, 2, SKVQ_ENOTSUP, "page_version 2");
	WITH(page_version, 4, SKVQ_ENOTSUP, "page_version 4");
	WITH(profile[0], 'z', SKVQ_EPROFILE, "z4v4");
	WITH(engine_numerics[2], '\n', SKVQ_EIDENTITY, "engine_numerics");
	WITH(rope_scaling[0], '\x80', SKVQ_EIDENTITY, "rope_scaling");
}

static uint32_t encode(struct identity id, uint8_t buf[IDENTITY_CANON_MAX])
{
	struct why why;

	assert_int_equal(identity_check(&id, &layout, &why), 0);
	return identity_encode(&id, buf);
}

/* Changes one thing, valid as a whole, and expects other bytes than every variant before. */
static void every_field_counts(void **state)
{
	static uint8_t seen[40][IDENTITY_CANON_MAX];
	static uint32_t lens[40];
	uint32_t n = 0;

#define VARIANT(change)                                                                            \
	do {                                                                                       \
		struct identity id = good();                                                       \
		change;                                                                            \
		lens[n] = encode(id, seen[n]);                                                     \
		for (uint32_t i = 0; i < n; i++)                                                   \
			assert_false(lens[i] == lens[n] && !memcmp(seen[i], seen[n], lens[n]));    \
		n++;                                                                               \
	} while (0)

	(void)state;
	VARIANT((void)0);
	VARIANT(id.weights[31] ^= 1);
	VARIANT(id.tokenizer[0] ^= 1);
	VARIANT(id.has_lora = true);
	VARIANT(id.has_calibration = true);
	VARIANT(id.has_reorder = true);
	VARIANT(strcpy(id.engine_numerics, "llama.cpp-b2"));
	VARIANT(strcpy(id.rope_scaling, "yarn"));
	VARIANT(strcpy(id.profile, "plain-k4v4"));
	VARIANT((id.n_layer = 1, id.n_bit_table = 2));
	VARIANT(id.n_q_heads = 8);
	VARIANT(id.n_kv_heads = 4);
	VARIANT(id.head_dim_k = 128);
	VARIANT(id.head_dim_v = 128);
	VARIANT(id.rope_kind = SKVQ_ROPE_NONE);
	VARIANT(id.rope_dim = 32);
	VARIANT(id.rope_theta = 1e4);
	VARIANT(id.window = 64);
	VARIANT(id.sinks = 0);
	VARIANT(id.bit_table[3] = SKVQ_BITS_2);
	VARIANT((id.n_layer_window = 2, id.layer_window[1] = 512));
	VARIANT((id.n_layer_window = 2, id.layer_window[0] = 512));
	VARIANT(id.clip = 0.5f);
	/* Text that moves from one field to its neighbour is not the same identity. */
	VARIANT((strcpy(id.rope_scaling, "x"), strcpy(id.engine_numerics, "y")));
	VARIANT((strcpy(id.rope_scaling, "y"), strcpy(id.engine_numerics, "x")));
}

/* Of each field alone the name comes out, as message Identity spells it. */
static void the_first_difference_is_named(void **state)
{
	struct identity a = good();
	uint32_t n;

#define DIFFERS(name, count, change)                                                               \
	do {                                                                                       \
		struct identity id = good();                                                       \
		const char *field;                                                                 \
		change;                                                                            \
		field = identity_differs(&a, &id, &n);                                             \
		assert_non_null(field);                                                            \
		assert_string_equal(field, name);                                                  \
		assert_int_equal(n, count);                                                        \
		assert_ptr_equal(identity_differs(&id, &a, &n), field);                            \
	} while (0)

	(void)state;
	assert_null(identity_differs(&a, &a, &n));
	assert_int_equal(n, 0);
	DIFFERS("weights_digest", 1, id.weights[31] ^= 1);
	DIFFERS("tokenizer_digest", 1, id.tokenizer[31] ^= 1);
	DIFFERS("lora_digest", 1, id.has_lora = true);
	DIFFERS("engine_numerics", 1, strcpy(id.engine_numerics, "llama.cpp-b2"));
	DIFFERS("n_layer", 1, id.n_layer = 3);
	DIFFERS("n_q_heads", 1, id.n_q_heads = 8);
	DIFFERS("n_kv_heads", 1, id.n_kv_heads = 4);
	DIFFERS("head_dim_k", 1, id.head_dim_k = 128);
	DIFFERS("head_dim_v", 1, id.head_dim_v = 128);
	DIFFERS("rope_kind", 1, id.rope_kind = SKVQ_ROPE_NONE);
	DIFFERS("rope_dim", 1, id.rope_dim = 32);
	DIFFERS("rope_theta", 1, id.rope_theta = 1e4);
	DIFFERS("rope_scaling", 1, strcpy(id.rope_scaling, "yarn"));
	DIFFERS("profile", 1, strcpy(id.profile, "k2v2"));
	DIFFERS("calibration_digest", 1, id.has_calibration = true);
	DIFFERS("window", 1, id.window = 64);
	DIFFERS("sinks", 1, id.sinks = 0);
	DIFFERS("bit_table", 1, id.bit_table[3] = SKVQ_BITS_2);
	DIFFERS("reorder", 1, id.has_reorder = true);
	DIFFERS("layer_window", 1, id.n_layer_window = 2);
	DIFFERS("clip", 1, id.clip = 0.5f);
	DIFFERS("page_version", 1, id.page_version++);
	/* Of several the first, and how many they are. */
	DIFFERS("window", 3, (id.window = 64, id.sinks = 0, id.clip = 0.5f));
}

static void two_spellings_are_one(void **state)
{
	uint8_t a[IDENTITY_CANON_MAX], b[IDENTITY_CANON_MAX];
	struct identity id = good();
	uint32_t n = encode(id, a);

	(void)state;
	id.rope_dim = 0; /* = head_dim_k */
	id.clip = -0.0f;
	assert_int_equal(encode(id, b), n);
	assert_memory_equal(a, b, n);
}

static void largest_fits(void **state)
{
	uint8_t buf[IDENTITY_CANON_MAX], digest[IDENTITY_DIGEST];
	struct identity id = good();

	(void)state;
	id.n_layer = id.n_layer_window = SKVQ_LAYERS_MAX;
	id.n_bit_table = 2 * SKVQ_LAYERS_MAX;
	memset(id.bit_table, SKVQ_BITS_2, sizeof(id.bit_table));
	memset(id.engine_numerics, 'e', IDENTITY_TEXT_MAX);
	memset(id.rope_scaling, 'r', IDENTITY_TEXT_MAX);
	id.has_lora = id.has_calibration = id.has_reorder = true;
	assert_int_equal(identity_digest(buf, encode(id, buf), digest), 0);
}

static void canonical_bytes_are_read_back(void **state)
{
	struct identity id = good(), back;
	uint8_t canon[IDENTITY_CANON_MAX], again[IDENTITY_CANON_MAX];
	struct why why;
	uint32_t n;

	(void)state;
	id.has_lora = true;
	memset(id.lora, 9, sizeof(id.lora));
	strcpy(id.rope_scaling, "yarn 4");
	id.n_layer_window = 2;
	id.layer_window[1] = 512;
	assert_int_equal(identity_check(&id, &layout, &why), 0);
	n = identity_encode(&id, canon);
	assert_true(identity_decode(canon, n, &back));
	assert_int_equal(identity_encode(&back, again), n);
	assert_memory_equal(again, canon, n);
	assert_string_equal(back.rope_scaling, "yarn 4");
	assert_int_equal(back.layer_window[1], 512);
	assert_true(back.rope_theta == id.rope_theta);
	assert_int_equal(identity_check(&back, &layout, &why), 0);
	/* Shorter, longer, or changed: another identity, or none, and never these bytes by chance. */
	for (uint32_t i = 0; i < n; i++)
		assert_false(identity_decode(canon, i, &back));
	canon[n] = 0;
	assert_false(identity_decode(canon, n + 1, &back));
	for (uint32_t i = 0; i < n; i++) {
		canon[i] ^= 0x81;
		if (identity_decode(canon, n, &back)) {
			assert_int_equal(identity_encode(&back, again), n);
			assert_memory_equal(again, canon, n);
		}
		canon[i] ^= 0x81;
	}
}

static void known_digests(void **state)
{
	/* SHA-256("abc"), FIPS 180-2. */
	static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf};
	uint8_t a[IDENTITY_DIGEST], b[IDENTITY_DIGEST], id[IDENTITY_DIGEST] = {1},
							parent[IDENTITY_DIGEST] = {0};
	int32_t tokens[SKVQ_PAGE_TOKENS] = {0};

	(void)state;
	assert_int_equal(identity_digest((const uint8_t *)"abc", 3, a), 0);
	assert_memory_equal(a, abc, sizeof(abc));
	assert_int_equal(page_digest(id, parent, 0, tokens, a), 0);
	assert_int_equal(page_digest(id, parent, 80, tokens, b), 0);
	assert_memory_not_equal(a, b, sizeof(a));
	parent[0] = 1;
	assert_int_equal(page_digest(id, parent, 0, tokens, b), 0);
	assert_memory_not_equal(a, b, sizeof(a));
	parent[0] = 0;
	tokens[79] = -1;
	assert_int_equal(page_digest(id, parent, 0, tokens, b), 0);
	assert_memory_not_equal(a, b, sizeof(a));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(good_one_passes),        cmocka_unit_test(each_missing_field_is_named),
	    cmocka_unit_test(wrong_values_are_named), cmocka_unit_test(every_field_counts),
	    cmocka_unit_test(the_first_difference_is_named),
	    cmocka_unit_test(two_spellings_are_one),  cmocka_unit_test(largest_fits),
	    cmocka_unit_test(known_digests),          cmocka_unit_test(canonical_bytes_are_read_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
