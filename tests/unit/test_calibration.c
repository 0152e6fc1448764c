/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration files: what one holds, and everything that must be refused. */
#include "cmocka_all.h"

#include <math.h>
#include <string.h>

#include <skvq/calibration.h>
#include <skvq/error.h>
#include <skvq/sha256.h>

#include "seeded.h"

enum { LAYERS = 3, HEADS = 2, DIM_K = 16, DIM_V = 32 };

static const uint8_t weights[32] = {9, 8, 7};

struct file {
	uint8_t *bytes;
	uint64_t n;
};

static void sealed(struct file *f)
{
	skvq_calibration_seal(f->bytes, f->n);
}

/* Rotations by some angle in each pair of channels: inverses that are known. */
static void fill_pair(float *into, float *back, uint32_t dim, float angle)
{
	memset(into, 0, (size_t)dim * dim * sizeof(*into));
	memset(back, 0, (size_t)dim * dim * sizeof(*back));
	for (uint32_t i = 0; i < dim; i += 2) {
		float c = cosf(angle + (float)i), s = sinf(angle + (float)i);

		into[i * dim + i] = into[(i + 1) * dim + i + 1] = 8 * c;
		into[i * dim + i + 1] = 8 * s;
		into[(i + 1) * dim + i] = -8 * s;
		back[i * dim + i] = back[(i + 1) * dim + i + 1] = c / 8;
		back[i * dim + i + 1] = -s / 8;
		back[(i + 1) * dim + i] = s / 8;
	}
}

static void put_table(struct file *f, const struct skvq_calibration *c, uint32_t i, const char *name)
{
	uint8_t *at = f->bytes + c->tables_offset + i * c->table_bytes;
	skvq_calibration_table t = {.average = 2.4f};

	memcpy(t.name, name, strlen(name));
	memcpy(at, &t, sizeof(t));
	for (uint32_t b = 0; b < 2 * LAYERS; b++)
		at[sizeof(t) + b] = (b + i) % 3 ? SKVQ_BITS_2 : SKVQ_BITS_4;
}

/* Of HEADS * DIM_K or _V channels, which are 32 or 64; in turn, beginning with the layer's. */
static void fill_groups(const struct skvq_calibration *c, uint32_t layer)
{
	for (int ch = 0; ch < (int)SKVQ_CALIBRATION_CHANNELS; ch++)
		for (uint32_t i = 0; i < SKVQ_CALIBRATION_GROUP_SIZES; i++) {
			uint32_t n = HEADS * (ch == SKVQ_CHANNELS_V ? DIM_V : DIM_K), n_groups = 0;
			uint16_t *of = (uint16_t *)(uintptr_t)skvq_calibration_groups(
			    c, layer, ch, SKVQ_CALIBRATION_GROUP_SIZE(i), &n_groups);

			for (uint32_t j = 0; of && j < n; j++)
				of[j] = (uint16_t)((layer + j) % n_groups);
		}
}

static struct file make(uint32_t flags)
{
	skvq_calibration_header h = {
	    .magic = SKVQ_CALIBRATION_MAGIC,
	    .version = SKVQ_CALIBRATION_VERSION,
	    .header_bytes = sizeof(h),
	    .flags = flags,
	    .n_layer = LAYERS,
	    .n_q_heads = 4,
	    .n_kv_heads = HEADS,
	    .head_dim_k = DIM_K,
	    .head_dim_v = DIM_V,
	    .n_tables = 2,
	    .n_tokens = 4096,
	    .text = "a text",
	    .tool = "test",
	};
	struct skvq_calibration c;
	struct file f;

	memcpy(h.weights, weights, sizeof(weights));
	assert_int_equal(skvq_calibration_plan(&h, &c), 0);
	f.n = h.file_bytes;
	f.bytes = calloc(1, f.n);
	assert_non_null(f.bytes);
	memcpy(f.bytes, &h, sizeof(h));
	c.bytes = f.bytes;
	put_table(&f, &c, 0, "auto-2.4");
	put_table(&f, &c, 1, "auto-3");
	for (uint32_t l = 0; l < LAYERS; l++) {
		skvq_calibration_layer layer = {.sensitivity = {0.5f, 0.25f}, .error = {{1}, {2}}};

		memcpy(f.bytes + sizeof(h) + l * sizeof(layer), &layer, sizeof(layer));
		fill_groups(&c, l);
		for (uint32_t head = 0; head < HEADS; head++) {
			for (int v = 0; v < 2; v++) {
				float *into = (float *)(uintptr_t)skvq_calibration_into(&c, l, head, v);
				float *back = (float *)(uintptr_t)skvq_calibration_back(&c, l, head, v);

				if (into)
					fill_pair(into, back, v ? DIM_V : DIM_K,
						  (float)(l * HEADS + head) + 0.3f * (float)v);
			}
		}
	}
	sealed(&f);
	return f;
}

static struct skvq_calibration opened(const struct file *f)
{
	struct skvq_calibration c;
	char why[256] = "";
	int r = skvq_calibration_open(f->bytes, f->n, &c, why, sizeof(why));

	if (r)
		fail_msg("%s", why);
	return c;
}

static void refused(const struct file *f, int err, const char *what)
{
	struct skvq_calibration c = {0};
	char why[256] = "";

	assert_int_equal(skvq_calibration_open(f->bytes, f->n, &c, why, sizeof(why)), -err);
	if (!strstr(why, what))
		fail_msg("'%s' does not name '%s'", why, what);
	assert_null(c.bytes);
}

static struct skvq_calibration_key key(void)
{
	return (struct skvq_calibration_key){weights, LAYERS, 4, HEADS, DIM_K, DIM_V};
}

static void holds(void **state)
{
	(void)state;
	for (uint32_t flags = 0; flags < 8; flags++) {
		struct file f = make(flags);
		struct skvq_calibration c = opened(&f);
		struct skvq_calibration_key k = key();
		char why[256];

		assert_int_equal(skvq_calibration_fits(&c, &k, why, sizeof(why)), 0);
		assert_int_equal(skvq_calibration_into(&c, 1, 1, 1) != NULL,
				 flags & SKVQ_CALIBRATION_HAS_V);
		assert_memory_equal(skvq_calibration_bits(&c, "auto-3"),
				    skvq_calibration_bits_at(&c, 1), 2 * LAYERS);
		assert_null(skvq_calibration_bits(&c, "auto-2.1"));
		assert_true(skvq_calibration_layer_of(&c, 2)->sensitivity[1] == 0.25f);
		assert_string_equal(c.header.text, "a text");
		assert_int_equal(f.n % 8, 0);
		for (int ch = 0; ch < (int)SKVQ_CALIBRATION_CHANNELS; ch++) {
			uint32_t n = 77;
			const uint16_t *of = skvq_calibration_groups(&c, 1, ch, 32, &n);

			assert_int_equal(of != NULL, !!(flags & SKVQ_CALIBRATION_HAS_GROUPS));
			assert_int_equal(n, !of ? 77 : ch == SKVQ_CHANNELS_V ? 2 : 1);
			assert_null(skvq_calibration_groups(&c, 1, ch, 16, &n));
			if (of)
				assert_int_equal(of[2], ch == SKVQ_CHANNELS_V);
		}
		free(f.bytes);
	}
}

/* Whatever byte is hit, on whatever bit, the file is not taken for whole. */
static void every_flip_is_seen(void **state)
{
	struct file f = make(SKVQ_CALIBRATION_HAS_SENSITIVITY | SKVQ_CALIBRATION_HAS_GROUPS);
	struct skvq_calibration c;
	char why[256];

	(void)state;
	for (uint64_t i = 0; i < f.n; i++) {
		uint8_t bit = (uint8_t)(1u << i % 8);

		f.bytes[i] ^= bit;
		if (skvq_calibration_open(f.bytes, f.n, &c, why, sizeof(why)) == 0)
			fail_msg("byte %llu", (unsigned long long)i);
		assert_true(strstr(why, "offset") || strstr(why, "version"));
		f.bytes[i] ^= bit;
	}
	(void)opened(&f);
	free(f.bytes);
}

static void every_truncation_is_seen(void **state)
{
	struct file f = make(SKVQ_CALIBRATION_HAS_GROUPS), shorter = f;

	(void)state;
	for (shorter.n = 0; shorter.n < f.n; shorter.n += shorter.n < 512 ? 1 : 97) {
		/* Exactly as many bytes as said, so that a sanitizer sees a read beyond them. */
		struct file copy = {malloc(shorter.n + !shorter.n), shorter.n};

		memcpy(copy.bytes, f.bytes, copy.n);
		refused(&copy, SKVQ_ECORRUPT, "file of");
		free(copy.bytes);
	}
	free(f.bytes);
}

static void *at(const struct file *f, uint64_t offset)
{
	return f->bytes + offset;
}

/* Wrong, and sealed by whoever made it so: the digest says nothing. */
static void lies_are_refused(void **state)
{
	struct file f;
	struct skvq_calibration c;
	skvq_calibration_header *h;
	float bad[] = {NAN, INFINITY, -INFINITY, 1.1e6f, -1.1e6f};

	(void)state;
#define TRY(change, err, what)                                                                     \
	do {                                                                                       \
		f = make(SKVQ_CALIBRATION_HAS_V);                                                  \
		c = opened(&f);                                                                    \
		h = at(&f, 0);                                                                     \
		change;                                                                            \
		sealed(&f);                                                                        \
		refused(&f, err, what);                                                            \
		free(f.bytes);                                                                     \
	} while (0)
	TRY(h->magic++, SKVQ_ECORRUPT, "magic at offset 0");
	TRY(h->version = 2, SKVQ_ENOTSUP, "version at offset 8");
	TRY(h->header_bytes = 0, SKVQ_ECORRUPT, "header_bytes at offset 10");
	TRY(h->flags |= 8, SKVQ_ECORRUPT, "flags at offset 12");
	TRY(h->flags |= 4, SKVQ_ECORRUPT, "file_bytes at offset 16");
	TRY(h->file_bytes++, SKVQ_ECORRUPT, "file_bytes at offset 16");
	TRY(h->file_bytes = UINT64_MAX, SKVQ_ECORRUPT, "file_bytes at offset 16");
	TRY(h->n_layer = 0, SKVQ_ECORRUPT, "geometry at offset 24");
	TRY(h->n_layer = 65535, SKVQ_ECORRUPT, "geometry at offset 24");
	TRY(h->n_layer++, SKVQ_ECORRUPT, "file_bytes at offset 16");
	TRY(h->n_kv_heads = 3, SKVQ_ECORRUPT, "geometry");
	TRY(h->n_kv_heads = 0, SKVQ_ECORRUPT, "geometry");
	TRY(h->head_dim_k = 24, SKVQ_ECORRUPT, "head_dim 24/32");
	TRY(h->head_dim_v = 65520, SKVQ_ECORRUPT, "geometry");
	TRY(h->n_tables = 17, SKVQ_ECORRUPT, "17 tables");
	TRY(memset(h->text, 'x', 64), SKVQ_ECORRUPT, "text at offset 104");
	TRY(h->text[2] = '\n', SKVQ_ECORRUPT, "text at offset 106");
	TRY(h->tool[31] = 'x', SKVQ_ECORRUPT, "tool");
	TRY(h->reserved[55] = 1, SKVQ_ECORRUPT, "reserved at offset 255");
	TRY(((char *)at(&f, c.tables_offset))[0] = 'b', SKVQ_ECORRUPT, "table 0: name");
	TRY(memcpy(at(&f, c.tables_offset), "k2v2\0\0\0\0", 8), SKVQ_ECORRUPT, "table 0: name");
	TRY(memcpy(at(&f, c.tables_offset + c.table_bytes), "auto-2.4", 8), SKVQ_ECORRUPT, "twice");
	TRY(((uint8_t *)at(&f, c.tables_offset))[26] = 25, SKVQ_ECORRUPT, "bits of layer 1");
	TRY(((uint8_t *)at(&f, c.tables_offset))[31] = 1, SKVQ_ECORRUPT, "table padding");
	TRY(((float *)at(&f, c.tables_offset))[4] = NAN, SKVQ_ECORRUPT, "average");
	TRY(((float *)at(&f, 256 + 48))[0] = -1, SKVQ_ECORRUPT, "layer 1: sensitivity at offset 304");
	TRY(((float *)at(&f, 256 + 48))[3] = NAN, SKVQ_ECORRUPT, "layer 1: error at offset 316");
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		TRY(((float *)at(&f, c.matrices_offset))[5] = bad[i], SKVQ_ECORRUPT,
		    "layer 0 head 0: K into");
		TRY(((float *)at(&f, f.n))[-1] = bad[i], SKVQ_ECORRUPT, "layer 2 head 1: V back");
	}
	TRY(((float *)at(&f, c.matrices_offset))[0] += 1, SKVQ_ECORRUPT, "not the inverse");
	TRY(memset(at(&f, c.matrices_offset), 0, 4 * DIM_K * DIM_K), SKVQ_ECORRUPT,
	    "not the inverse");
#undef TRY
	f = make(0);
	f.bytes[72]++;
	refused(&f, SKVQ_ECORRUPT, "digest at offset 72");
	free(f.bytes);
}

static void groups_that_lie_are_refused(void **state)
{
	struct file f;
	struct skvq_calibration c;
	uint16_t *of; /* of layer 1's values: 64 channels, 2 groups */

	(void)state;
#define TRY(change, what)                                                                          \
	do {                                                                                       \
		f = make(SKVQ_CALIBRATION_HAS_GROUPS);                                             \
		c = opened(&f);                                                                    \
		of = (uint16_t *)(uintptr_t)skvq_calibration_groups(&c, 1, SKVQ_CHANNELS_V, 32,    \
								    NULL);                         \
		change;                                                                            \
		sealed(&f);                                                                        \
		refused(&f, SKVQ_ECORRUPT, what);                                                  \
		free(f.bytes);                                                                     \
	} while (0)
	TRY(of[5] = 2, "is 2, there are 2");
	TRY(of[63] = 65535, "layer 1: group at offset");
	TRY(of[-1] = 1, "is 1, there are 1"); /* the keys' last, in one group of 128 */
	TRY(of[64] = 1, "is 1, there are 1"); /* the next map's first */
	TRY(memset(of, 0, 128), "group 1 of the map at offset");
	TRY(for (int i = 0; i < 64; i++) of[i] = 1, "has no channel");
	TRY(((uint16_t *)at(&f, f.n))[-1] = 1, "layer 2: group at offset");
	TRY(((skvq_calibration_header *)at(&f, 0))->flags = 0, "file_bytes at offset 16");
#undef TRY
}

static void other_models_are_refused(void **state)
{
	struct file f = make(0);
	struct skvq_calibration c = opened(&f);
	struct skvq_calibration_key k;
	uint8_t other[32] = {9, 8, 6};
	char why[256];

	(void)state;
#define TRY(change, what)                                                                          \
	do {                                                                                       \
		k = key();                                                                         \
		change;                                                                            \
		assert_int_equal(skvq_calibration_fits(&c, &k, why, sizeof(why)),                  \
				 -SKVQ_EIDENTITY);                                                 \
		if (!strstr(why, what))                                                            \
			fail_msg("'%s' does not name '%s'", why, what);                            \
	} while (0)
	TRY(k.n_layer++, "n_layer at offset 24 is 3, the model's is 4");
	TRY(k.n_q_heads = 8, "n_q_heads");
	TRY(k.n_kv_heads = 1, "n_kv_heads");
	TRY(k.head_dim_k = 32, "head_dim_k");
	TRY(k.head_dim_v = 16, "head_dim_v");
	TRY(k.weights = other, "weights at offset 40 begin 09080700, the model's 09080600");
#undef TRY
	free(f.bytes);
}

/* Tables and texts may be added without parting engines; matrices may not. */
static void id_is_of_what_changes_codes(void **state)
{
	struct file f = make(0);
	struct skvq_calibration c = opened(&f);
	uint8_t id[32], other[32];
	float *into = (float *)(uintptr_t)skvq_calibration_into(&c, 2, 1, 0);

	(void)state;
	skvq_calibration_id(&c, id);
	((skvq_calibration_header *)at(&f, 0))->text[0] = 'b';
	((uint8_t *)at(&f, c.tables_offset))[24] = SKVQ_BITS_8;
	sealed(&f);
	c = opened(&f);
	skvq_calibration_id(&c, other);
	assert_memory_equal(id, other, sizeof(id));
	*into = nextafterf(*into, 0);
	sealed(&f);
	c = opened(&f);
	skvq_calibration_id(&c, other);
	assert_memory_not_equal(id, other, sizeof(id));
	free(f.bytes);
}

/* Profiles with groups part by the groups they use, and the others by none. */
static void groups_have_an_id_of_their_own(void **state)
{
	struct file f = make(SKVQ_CALIBRATION_HAS_GROUPS), without = make(0);
	struct skvq_calibration c = opened(&f), old = opened(&without);
	uint8_t id[32], other[32], before[32], after[32];
	float *into = (float *)(uintptr_t)skvq_calibration_into(&c, 2, 1, 0);
	uint16_t *of = (uint16_t *)(uintptr_t)skvq_calibration_groups(&c, 2, SKVQ_CHANNELS_V, 32,
								       NULL);

	(void)state;
	skvq_calibration_id(&c, id);
	skvq_calibration_id(&old, other);
	assert_memory_equal(id, other, sizeof(id));
	skvq_calibration_groups_id(&c, 32, 0, before);
	skvq_calibration_groups_id(&c, 32, 1, after);
	assert_memory_not_equal(before, after, sizeof(id)); /* even if they say the same */
	skvq_calibration_groups_id(&c, 64, 0, other);
	assert_memory_not_equal(before, other, sizeof(id));
	assert_memory_not_equal(before, id, sizeof(id));
	*into = nextafterf(*into, 0);
	skvq_calibration_groups_id(&c, 32, 0, other);
	assert_memory_equal(before, other, sizeof(id));
	skvq_calibration_id(&c, id);
	of[7] ^= 1;
	skvq_calibration_groups_id(&c, 32, 0, other);
	assert_memory_not_equal(before, other, sizeof(id));
	skvq_calibration_groups_id(&c, 32, 1, other);
	assert_memory_not_equal(after, other, sizeof(id));
	skvq_calibration_id(&c, other);
	assert_memory_equal(id, other, sizeof(id));
	free(f.bytes);
	free(without.bytes);
}

static void sha256_is_sha256(void **state)
{
	/* FIPS 180-4's own examples, and a million letters. */
	static const uint8_t abc[32] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
					0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
					0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
					0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
	static const uint8_t million[32] = {0xcd, 0xc7, 0x6e, 0x5c, 0x99, 0x14, 0xfb, 0x92,
					    0x81, 0xa1, 0xc7, 0xe2, 0x84, 0xd7, 0x3e, 0x67,
					    0xf1, 0x80, 0x9a, 0x48, 0xa4, 0x97, 0x20, 0x0e,
					    0x04, 0x6d, 0x39, 0xcc, 0xc7, 0x11, 0x2c, 0xd0};
	struct sha256 s;
	uint8_t got[32], part[977];

	(void)state;
	skvq_sha256_init(&s);
	skvq_sha256_add(&s, "abc", 3);
	skvq_sha256_end(&s, got);
	assert_memory_equal(got, abc, sizeof(abc));
	memset(part, 'a', sizeof(part));
	skvq_sha256_init(&s);
	for (size_t n, left = 1000000; left; left -= n) {
		n = 1 + left % sizeof(part);
		n = n < left ? n : left;
		skvq_sha256_add(&s, part, n);
	}
	skvq_sha256_end(&s, got);
	assert_memory_equal(got, million, sizeof(million));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(holds),
	    cmocka_unit_test(every_flip_is_seen),
	    cmocka_unit_test(every_truncation_is_seen),
	    cmocka_unit_test(lies_are_refused),
	    cmocka_unit_test(groups_that_lie_are_refused),
	    cmocka_unit_test(other_models_are_refused),
	    cmocka_unit_test(id_is_of_what_changes_codes),
	    cmocka_unit_test(groups_have_an_id_of_their_own),
	    cmocka_unit_test(sha256_is_sha256),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
