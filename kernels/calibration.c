/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/calibration.h>

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <skvq/error.h>
#include <skvq/profile.h>
#include <skvq/sha256.h>

#define MATRIX_ALIGN 64u
#define FLAGS_KNOWN                                                                                \
	(SKVQ_CALIBRATION_HAS_V | SKVQ_CALIBRATION_HAS_SENSITIVITY | SKVQ_CALIBRATION_HAS_GROUPS)
#define GROUPS_MAX (SKVQ_KV_HEADS_MAX * SKVQ_HEAD_DIM_MAX / SKVQ_CALIBRATION_GROUP_SIZE(0))
/* Of float32 matrices that are each other's inverse the product strays from one by rounding alone;
 * matrices of two different heads miss by far more. */
#define INVERSE_ERROR 0.02f

struct check {
	const uint8_t *bytes;
	char *why;
	size_t why_bytes;
};

static int fail(const struct check *c, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(const struct check *c, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->why, c->why_bytes, fmt, ap);
	va_end(ap);
	return -err;
}

#define AT(field) offsetof(skvq_calibration_header, field)

int skvq_calibration_plan(skvq_calibration_header *h, struct skvq_calibration *ret)
{
	uint64_t k = (uint64_t)h->head_dim_k * h->head_dim_k;
	uint64_t v = h->flags & SKVQ_CALIBRATION_HAS_V ? (uint64_t)h->head_dim_v * h->head_dim_v : 0;
	struct skvq_calibration c = {0};
	uint64_t end;

	if (h->n_layer < 1 || h->n_layer > SKVQ_LAYERS_MAX || h->n_kv_heads < 1 ||
	    h->n_kv_heads > SKVQ_KV_HEADS_MAX || h->n_q_heads < 1 ||
	    h->n_q_heads > SKVQ_Q_HEADS_MAX || h->n_q_heads % h->n_kv_heads ||
	    h->head_dim_k < 16 || h->head_dim_k > SKVQ_HEAD_DIM_MAX || h->head_dim_k % 16 ||
	    h->head_dim_v < 16 || h->head_dim_v > SKVQ_HEAD_DIM_MAX || h->head_dim_v % 16 ||
	    h->n_tables > SKVQ_CALIBRATION_TABLES_MAX)
		return -SKVQ_EGEOMETRY;
	c.tables_offset = sizeof(*h) + (uint64_t)h->n_layer * sizeof(skvq_calibration_layer);
	c.table_bytes = sizeof(skvq_calibration_table) + (2ull * h->n_layer + 7) / 8 * 8;
	end = c.tables_offset + h->n_tables * c.table_bytes;
	c.matrices_offset = (end + MATRIX_ALIGN - 1) / MATRIX_ALIGN * MATRIX_ALIGN;
	c.head_bytes = 2 * (k + v) * sizeof(float);
	c.groups_offset = c.matrices_offset + (uint64_t)h->n_layer * h->n_kv_heads * c.head_bytes;
	if (h->flags & SKVQ_CALIBRATION_HAS_GROUPS) /* a multiple of 8, as channels are of 16 */
		c.layer_groups_bytes = SKVQ_CALIBRATION_GROUP_SIZES * h->n_kv_heads *
				       (2ull * h->head_dim_k + h->head_dim_v) * sizeof(uint16_t);
	end = c.groups_offset + h->n_layer * c.layer_groups_bytes;
	if (end > SKVQ_CALIBRATION_BYTES_MAX)
		return -SKVQ_EGEOMETRY;
	h->file_bytes = end;
	c.header = *h;
	*ret = c;
	return 0;
}

static void digest_of(const uint8_t *bytes, uint64_t n, uint8_t ret[32])
{
	static const uint8_t zero[32];
	struct sha256 s;

	skvq_sha256_init(&s);
	skvq_sha256_add(&s, bytes, AT(digest));
	skvq_sha256_add(&s, zero, sizeof(zero));
	skvq_sha256_add(&s, bytes + AT(digest) + sizeof(zero), n - AT(digest) - sizeof(zero));
	skvq_sha256_end(&s, ret);
}

void skvq_calibration_seal(void *bytes, uint64_t n_bytes)
{
	uint8_t digest[32];

	assert(n_bytes >= sizeof(skvq_calibration_header));
	digest_of(bytes, n_bytes, digest);
	memcpy((uint8_t *)bytes + AT(digest), digest, sizeof(digest));
}

/* ---- checks, in the order of the file ---- */

static int check_text(const struct check *c, const char *name, uint64_t at, size_t bytes)
{
	const char *s = (const char *)c->bytes + at;
	size_t n = strnlen(s, bytes);

	if (n == bytes)
		return fail(c, SKVQ_ECORRUPT, "%s at offset %llu does not end", name,
			    (unsigned long long)at);
	for (size_t i = 0; i < bytes; i++)
		if (i < n ? s[i] < 0x20 || s[i] > 0x7e : s[i] != 0)
			return fail(c, SKVQ_ECORRUPT, "%s at offset %llu is no padded ASCII", name,
				    (unsigned long long)(at + i));
	return 0;
}

static int check_zero(const struct check *c, const char *name, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		if (c->bytes[i])
			return fail(c, SKVQ_ECORRUPT, "%s at offset %llu is not zero", name,
				    (unsigned long long)i);
	return 0;
}

static int check_header(const struct check *c, uint64_t n_bytes, struct skvq_calibration *ret)
{
	skvq_calibration_header h;
	uint64_t claimed;
	int r;

	if (n_bytes < sizeof(h))
		return fail(c, SKVQ_ECORRUPT, "file of %llu bytes, a header alone has %zu",
			    (unsigned long long)n_bytes, sizeof(h));
	memcpy(&h, c->bytes, sizeof(h));
	if (h.magic != SKVQ_CALIBRATION_MAGIC)
		return fail(c, SKVQ_ECORRUPT, "magic at offset %zu is not a calibration file's",
			    AT(magic));
	if (h.version != SKVQ_CALIBRATION_VERSION)
		return fail(c, SKVQ_ENOTSUP, "version at offset %zu is %u, this reads %u",
			    AT(version), h.version, SKVQ_CALIBRATION_VERSION);
	if (h.header_bytes != sizeof(h))
		return fail(c, SKVQ_ECORRUPT, "header_bytes at offset %zu is %u, not %zu",
			    AT(header_bytes), h.header_bytes, sizeof(h));
	if (h.flags & ~FLAGS_KNOWN)
		return fail(c, SKVQ_ECORRUPT, "flags at offset %zu are 0x%x, known are 0x%x",
			    AT(flags), h.flags, FLAGS_KNOWN);
	claimed = h.file_bytes;
	if (skvq_calibration_plan(&h, ret) < 0)
		return fail(c, SKVQ_ECORRUPT,
			    "geometry at offset %zu: %u layers, %u query heads, %u KV heads, head_dim "
			    "%u/%u, %u tables make no file",
			    AT(n_layer), h.n_layer, h.n_q_heads, h.n_kv_heads, h.head_dim_k,
			    h.head_dim_v, h.n_tables);
	if (claimed != h.file_bytes)
		return fail(c, SKVQ_ECORRUPT, "file_bytes at offset %zu is %llu, its counts give %llu",
			    AT(file_bytes), (unsigned long long)claimed,
			    (unsigned long long)h.file_bytes);
	if (n_bytes != h.file_bytes)
		return fail(c, SKVQ_ECORRUPT, "file of %llu bytes, file_bytes at offset %zu is %llu",
			    (unsigned long long)n_bytes, AT(file_bytes),
			    (unsigned long long)h.file_bytes);
	r = check_text(c, "text", AT(text), sizeof(h.text));
	if (!r)
		r = check_text(c, "tool", AT(tool), sizeof(h.tool));
	if (!r)
		r = check_zero(c, "reserved", AT(reserved), sizeof(h));
	return r;
}

static int check_digest(const struct check *c, uint64_t n_bytes)
{
	uint8_t digest[32];

	digest_of(c->bytes, n_bytes, digest);
	if (memcmp(digest, c->bytes + AT(digest), sizeof(digest)) != 0)
		return fail(c, SKVQ_ECORRUPT, "digest at offset %zu is not the file's", AT(digest));
	return 0;
}

static int check_layers(const struct check *c, const struct skvq_calibration *f)
{
	for (uint32_t layer = 0; layer < f->header.n_layer; layer++) {
		float x[sizeof(skvq_calibration_layer) / sizeof(float)];
		uint64_t at = sizeof(f->header) + layer * sizeof(skvq_calibration_layer);

		memcpy(x, c->bytes + at, sizeof(x));
		for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); i++)
			if (!(x[i] >= 0.0f && x[i] <= SKVQ_CALIBRATION_ENTRY_MAX))
				return fail(c, SKVQ_ECORRUPT, "layer %u: %s at offset %llu is %g",
					    layer, i < 2 ? "sensitivity" : "error",
					    (unsigned long long)(at + i * sizeof(x[0])),
					    (double)x[i]);
	}
	return 0;
}

static bool is_width(uint8_t bits)
{
	return bits == SKVQ_BITS_FP16 || bits == SKVQ_BITS_8 || bits == SKVQ_BITS_4 ||
	       bits == SKVQ_BITS_3 || bits == SKVQ_BITS_2 || bits == SKVQ_BITS_TERNARY;
}

static int check_tables(const struct check *c, const struct skvq_calibration *f)
{
	for (uint32_t i = 0; i < f->header.n_tables; i++) {
		uint64_t at = f->tables_offset + i * f->table_bytes;
		uint64_t bits = at + sizeof(skvq_calibration_table);
		struct skvq_profile p;
		skvq_calibration_table t;
		int r = check_text(c, "table name", at, sizeof(t.name));

		if (r < 0)
			return r;
		memcpy(&t, c->bytes + at, sizeof(t));
		if (skvq_profile_parse(t.name, &p) < 0 || p.k_bits)
			return fail(c, SKVQ_ECORRUPT,
				    "table %u: name '%s' at offset %llu is no profile that takes one", i,
				    t.name, (unsigned long long)at);
		for (uint32_t j = 0; j < i; j++)
			if (strcmp(t.name, skvq_calibration_table_at(f, j)->name) == 0)
				return fail(c, SKVQ_ECORRUPT,
					    "table %u: name '%s' at offset %llu is there twice", i,
					    t.name, (unsigned long long)at);
		if (!(t.average >= 0.0f && t.average <= 16.0f) || t.reserved)
			return fail(c, SKVQ_ECORRUPT, "table %u: average at offset %llu is %g", i,
				    (unsigned long long)(at + sizeof(t.name)), (double)t.average);
		for (uint32_t b = 0; b < 2u * f->header.n_layer; b++)
			if (!is_width(c->bytes[bits + b]))
				return fail(c, SKVQ_ECORRUPT,
					    "table %u: bits of layer %u at offset %llu are %u", i, b / 2,
					    (unsigned long long)(bits + b), c->bytes[bits + b]);
		r = check_zero(c, "table padding", bits + 2u * f->header.n_layer,
			       at + f->table_bytes);
		if (r < 0)
			return r;
	}
	return check_zero(c, "padding", f->tables_offset + f->header.n_tables * f->table_bytes,
			  f->matrices_offset);
}

static int check_entries(const struct check *c, const float *m, size_t n, uint32_t layer,
			 uint32_t head, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (!(fabsf(m[i]) <= SKVQ_CALIBRATION_ENTRY_MAX)) /* NaN too */
			return fail(c, SKVQ_ECORRUPT, "layer %u head %u: %s at offset %llu is %g",
				    layer, head, name,
				    (unsigned long long)((const uint8_t *)(m + i) - c->bytes),
				    (double)m[i]);
	return 0;
}

/* y = x m */
static void product(const float *x, const float *m, uint32_t dim, float *y)
{
	memset(y, 0, dim * sizeof(*y));
	for (uint32_t j = 0; j < dim; j++)
		for (uint32_t i = 0; i < dim; i++)
			y[i] += x[j] * m[(size_t)j * dim + i];
}

/* A few vectors of +-1 there and back: the whole product would take longer than all else. */
static bool are_inverse(const float *into, const float *back, uint32_t dim)
{
	uint32_t random = 1;

	for (int probe = 0; probe < 4; probe++) {
		float x[SKVQ_HEAD_DIM_MAX], y[SKVQ_HEAD_DIM_MAX], z[SKVQ_HEAD_DIM_MAX], error = 0;

		for (uint32_t i = 0; i < dim; i++) {
			random = random * 1664525u + 1013904223u;
			x[i] = random >> 31 ? 1.0f : -1.0f;
		}
		product(x, into, dim, y);
		product(y, back, dim, z);
		for (uint32_t i = 0; i < dim; i++)
			error += (z[i] - x[i]) * (z[i] - x[i]);
		if (!(error <= INVERSE_ERROR * INVERSE_ERROR * (float)dim))
			return false;
	}
	return true;
}

static int check_matrices(const struct check *c, const struct skvq_calibration *f)
{
	for (uint32_t layer = 0; layer < f->header.n_layer; layer++) {
		for (uint32_t head = 0; head < f->header.n_kv_heads; head++) {
			for (int is_v = 0; is_v < 2; is_v++) {
				uint32_t dim = is_v ? f->header.head_dim_v : f->header.head_dim_k;
				const float *into = skvq_calibration_into(f, layer, head, is_v);
				const float *back = skvq_calibration_back(f, layer, head, is_v);
				size_t n = (size_t)dim * dim;
				int r;

				if (!into)
					continue;
				r = check_entries(c, into, n, layer, head, is_v ? "V into" : "K into");
				if (!r)
					r = check_entries(c, back, n, layer, head,
							  is_v ? "V back" : "K back");
				if (r < 0)
					return r;
				if (!are_inverse(into, back, dim))
					return fail(c, SKVQ_ECORRUPT,
						    "layer %u head %u: %s at offset %llu is not the "
						    "inverse of the matrix before it",
						    layer, head, is_v ? "V back" : "K back",
						    (unsigned long long)((const uint8_t *)back -
									 c->bytes));
			}
		}
	}
	return 0;
}

static uint32_t channels_of(const struct skvq_calibration *f, uint32_t channels)
{
	return (uint32_t)f->header.n_kv_heads *
	       (channels == SKVQ_CHANNELS_V ? f->header.head_dim_v : f->header.head_dim_k);
}

/* Whoever quantizes takes the numbers as they are: none may lie outside, and a group without a
 * channel has no range. */
static int check_map(const struct check *c, const uint16_t *of, uint32_t n, uint32_t n_groups,
		     uint32_t layer)
{
	uint64_t at = (uint64_t)((const uint8_t *)of - c->bytes);
	bool seen[GROUPS_MAX] = {false};

	for (uint32_t i = 0; i < n; i++) {
		if (of[i] >= n_groups)
			return fail(c, SKVQ_ECORRUPT,
				    "layer %u: group at offset %llu is %u, there are %u", layer,
				    (unsigned long long)(at + i * sizeof(*of)), of[i], n_groups);
		seen[of[i]] = true;
	}
	for (uint32_t g = 0; g < n_groups; g++)
		if (!seen[g])
			return fail(c, SKVQ_ECORRUPT,
				    "layer %u: group %u of the map at offset %llu has no channel",
				    layer, g, (unsigned long long)at);
	return 0;
}

static int check_groups(const struct check *c, const struct skvq_calibration *f)
{
	if (!(f->header.flags & SKVQ_CALIBRATION_HAS_GROUPS))
		return 0;
	for (uint32_t layer = 0; layer < f->header.n_layer; layer++)
		for (uint32_t ch = 0; ch < SKVQ_CALIBRATION_CHANNELS; ch++)
			for (uint32_t i = 0; i < SKVQ_CALIBRATION_GROUP_SIZES; i++) {
				uint32_t n_groups;
				const uint16_t *of = skvq_calibration_groups(
				    f, layer, (int)ch, SKVQ_CALIBRATION_GROUP_SIZE(i), &n_groups);
				int r = check_map(c, of, channels_of(f, ch), n_groups, layer);

				if (r < 0)
					return r;
			}
	return 0;
}

int skvq_calibration_open(const void *bytes, uint64_t n_bytes, struct skvq_calibration *ret,
			  char *why, size_t why_bytes)
{
	const struct check c = {.bytes = bytes, .why = why, .why_bytes = why_bytes};
	struct skvq_calibration f;
	int r;

	if (!bytes || (uintptr_t)bytes % 8)
		return fail(&c, SKVQ_EINVAL, "no bytes, or not aligned to 8");
	r = check_header(&c, n_bytes, &f);
	f.bytes = bytes;
	if (!r)
		r = check_digest(&c, n_bytes);
	if (!r)
		r = check_layers(&c, &f);
	if (!r)
		r = check_tables(&c, &f);
	if (!r)
		r = check_matrices(&c, &f);
	if (!r)
		r = check_groups(&c, &f);
	if (!r)
		*ret = f;
	return r;
}

/* ---- what is in it ---- */

int skvq_calibration_fits(const struct skvq_calibration *c, const struct skvq_calibration_key *key,
			  char *why, size_t why_bytes)
{
	const struct check check = {.why = why, .why_bytes = why_bytes};
	const skvq_calibration_header *h = &c->header;
	const struct {
		const char *name;
		uint32_t have, want;
		size_t at;
	} counts[] = {
	    {"n_layer", h->n_layer, key->n_layer, AT(n_layer)},
	    {"n_q_heads", h->n_q_heads, key->n_q_heads, AT(n_q_heads)},
	    {"n_kv_heads", h->n_kv_heads, key->n_kv_heads, AT(n_kv_heads)},
	    {"head_dim_k", h->head_dim_k, key->head_dim_k, AT(head_dim_k)},
	    {"head_dim_v", h->head_dim_v, key->head_dim_v, AT(head_dim_v)},
	};

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		if (counts[i].have != counts[i].want)
			return fail(&check, SKVQ_EIDENTITY,
				    "the calibration is of another model: %s at offset %zu is %u, the "
				    "model's is %u",
				    counts[i].name, counts[i].at, counts[i].have, counts[i].want);
	if (memcmp(h->weights, key->weights, sizeof(h->weights)) != 0)
		return fail(&check, SKVQ_EIDENTITY,
			    "the calibration is of other weights: weights at offset %zu begin "
			    "%02x%02x%02x%02x, the model's %02x%02x%02x%02x",
			    AT(weights), h->weights[0], h->weights[1], h->weights[2], h->weights[3],
			    key->weights[0], key->weights[1], key->weights[2], key->weights[3]);
	return 0;
}

/* What every identity begins with; name's zero is in it. */
static void id_begin(const struct skvq_calibration *c, struct sha256 *s, const char *name,
		     uint32_t kind)
{
	const skvq_calibration_header *h = &c->header;
	const uint32_t numbers[] = {kind,          h->n_layer,    h->n_q_heads,
				    h->n_kv_heads, h->head_dim_k, h->head_dim_v};

	skvq_sha256_init(s);
	skvq_sha256_add(s, name, strlen(name) + 1);
	skvq_sha256_add(s, numbers, sizeof(numbers));
	skvq_sha256_add(s, h->weights, sizeof(h->weights));
}

void skvq_calibration_id(const struct skvq_calibration *c, uint8_t ret[SKVQ_CALIBRATION_DIGEST])
{
	struct sha256 s;

	id_begin(c, &s, "skvq-transforms/1", c->header.flags & SKVQ_CALIBRATION_HAS_V);
	skvq_sha256_add(&s, c->bytes + c->matrices_offset, c->groups_offset - c->matrices_offset);
	skvq_sha256_end(&s, ret);
}

void skvq_calibration_groups_id(const struct skvq_calibration *c, uint32_t size, int after,
				uint8_t ret[SKVQ_CALIBRATION_DIGEST])
{
	const uint32_t used[] = {after ? SKVQ_CHANNELS_K_AFTER : SKVQ_CHANNELS_K_BEFORE,
				 SKVQ_CHANNELS_V};
	struct sha256 s;

	assert(c->header.flags & SKVQ_CALIBRATION_HAS_GROUPS);
	id_begin(c, &s, "skvq-groups/1", size << 1 | (after != 0));
	for (uint32_t layer = 0; layer < c->header.n_layer; layer++)
		for (size_t i = 0; i < sizeof(used) / sizeof(used[0]); i++) {
			const uint16_t *of =
			    skvq_calibration_groups(c, layer, (int)used[i], size, NULL);

			assert(of);
			skvq_sha256_add(&s, of, channels_of(c, used[i]) * sizeof(*of));
		}
	skvq_sha256_end(&s, ret);
}

static const float *matrix(const struct skvq_calibration *c, uint32_t layer, uint32_t head, int is_v,
			   int back)
{
	uint64_t k = (uint64_t)c->header.head_dim_k * c->header.head_dim_k;
	uint64_t v = (uint64_t)c->header.head_dim_v * c->header.head_dim_v;

	assert(layer < c->header.n_layer && head < c->header.n_kv_heads);
	if (is_v && !(c->header.flags & SKVQ_CALIBRATION_HAS_V))
		return NULL;
	return (const float *)(const void *)(c->bytes + c->matrices_offset +
					     ((uint64_t)layer * c->header.n_kv_heads + head) *
						 c->head_bytes) +
	       (is_v ? 2 * k : 0) + (back ? (is_v ? v : k) : 0);
}

const float *skvq_calibration_into(const struct skvq_calibration *c, uint32_t layer, uint32_t head,
				   int is_v)
{
	return matrix(c, layer, head, is_v, 0);
}

const float *skvq_calibration_back(const struct skvq_calibration *c, uint32_t layer, uint32_t head,
				   int is_v)
{
	return matrix(c, layer, head, is_v, 1);
}

const skvq_calibration_layer *skvq_calibration_layer_of(const struct skvq_calibration *c,
							uint32_t layer)
{
	assert(layer < c->header.n_layer);
	return (const skvq_calibration_layer *)(const void *)(c->bytes + sizeof(c->header)) + layer;
}

const skvq_calibration_table *skvq_calibration_table_at(const struct skvq_calibration *c, uint32_t i)
{
	assert(i < c->header.n_tables);
	return (const void *)(c->bytes + c->tables_offset + i * c->table_bytes);
}

const uint8_t *skvq_calibration_bits_at(const struct skvq_calibration *c, uint32_t i)
{
	return (const uint8_t *)(skvq_calibration_table_at(c, i) + 1);
}

const uint8_t *skvq_calibration_bits(const struct skvq_calibration *c, const char *name)
{
	for (uint32_t i = 0; i < c->header.n_tables; i++)
		if (strcmp(skvq_calibration_table_at(c, i)->name, name) == 0)
			return skvq_calibration_bits_at(c, i);
	return NULL;
}

const uint16_t *skvq_calibration_groups(const struct skvq_calibration *c, uint32_t layer,
					int channels, uint32_t size, uint32_t *ret_n)
{
	uint32_t n, i = 0, before = 0;

	assert(layer < c->header.n_layer && channels >= 0 &&
	       (uint32_t)channels < SKVQ_CALIBRATION_CHANNELS);
	while (i < SKVQ_CALIBRATION_GROUP_SIZES && SKVQ_CALIBRATION_GROUP_SIZE(i) != size)
		i++;
	if (!(c->header.flags & SKVQ_CALIBRATION_HAS_GROUPS) || i == SKVQ_CALIBRATION_GROUP_SIZES)
		return NULL;
	n = channels_of(c, (uint32_t)channels);
	for (uint32_t ch = 0; ch < (uint32_t)channels; ch++)
		before += SKVQ_CALIBRATION_GROUP_SIZES * channels_of(c, ch);
	if (ret_n)
		*ret_n = (n + size - 1) / size;
	return (const uint16_t *)(const void *)(c->bytes + c->groups_offset +
						layer * c->layer_groups_bytes) +
	       before + (size_t)i * n;
}
