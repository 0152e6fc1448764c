/* SPDX-License-Identifier: Apache-2.0 */
/* A calibration file from anywhere: what is taken for good can be read to its last byte. */
#include <math.h>

#include <skvq/calibration.h>

#include "fuzz.h"

#define FILE_MAX 16384u

enum { REPAIR = 1 }; /* the first byte: give the file the digest of what is in it */

static void read_matrices(const struct skvq_calibration *c)
{
	const skvq_calibration_header *h = &c->header;

	for (uint32_t layer = 0; layer < h->n_layer; layer++)
		for (uint32_t head = 0; head < h->n_kv_heads; head++)
			for (int is_v = 0; is_v < 2; is_v++) {
				const float *into = skvq_calibration_into(c, layer, head, is_v);
				const float *back = skvq_calibration_back(c, layer, head, is_v);
				uint32_t dim = is_v ? h->head_dim_v : h->head_dim_k;

				FUZZ_CHECK(!into == !back);
				for (uint32_t i = 0; into && i < dim * dim; i++)
					FUZZ_CHECK(isfinite(into[i]) && isfinite(back[i]));
			}
}

static void read_groups(const struct skvq_calibration *c, uint32_t layer)
{
	const skvq_calibration_header *h = &c->header;

	for (int ch = 0; ch < (int)SKVQ_CALIBRATION_CHANNELS; ch++) {
		uint32_t dim = ch == SKVQ_CHANNELS_V ? h->head_dim_v : h->head_dim_k;

		for (uint32_t i = 0; i < SKVQ_CALIBRATION_GROUP_SIZES; i++) {
			uint32_t n = 0;
			const uint16_t *of = skvq_calibration_groups(
			    c, layer, ch, SKVQ_CALIBRATION_GROUP_SIZE(i), &n);

			for (uint32_t at = 0; of && at < h->n_kv_heads * dim; at++)
				FUZZ_CHECK(of[at] < n);
		}
	}
}

static void read_all(const struct skvq_calibration *c)
{
	const skvq_calibration_header *h = &c->header;
	uint8_t id[SKVQ_CALIBRATION_DIGEST];
	uint32_t bits = 0;

	read_matrices(c);
	for (uint32_t layer = 0; layer < h->n_layer; layer++) {
		FUZZ_CHECK(isfinite(skvq_calibration_layer_of(c, layer)->sensitivity[1]));
		read_groups(c, layer);
	}
	for (uint32_t i = 0; i < h->n_tables; i++) {
		const char *name = skvq_calibration_table_at(c, i)->name;

		FUZZ_CHECK(skvq_calibration_bits(c, name) == skvq_calibration_bits_at(c, i));
		for (uint32_t b = 0; b < 2u * h->n_layer; b++)
			bits += skvq_calibration_bits_at(c, i)[b];
	}
	FUZZ_CHECK(!h->n_tables || bits);
	skvq_calibration_id(c, id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static _Alignas(8) uint8_t file[FILE_MAX];
	struct fuzz_in in = {data, size};
	uint8_t flags = fuzz_u8(&in);
	struct skvq_calibration c;
	char why[160] = "";
	uint8_t *exact;

	if (in.left > sizeof(file))
		return 0;
	/* Of its own length, for the sanitizers. */
	exact = malloc(in.left ? in.left : 1);
	FUZZ_CHECK(exact);
	memcpy(exact, in.at, in.left);
	if (flags & REPAIR && in.left >= sizeof(skvq_calibration_header))
		skvq_calibration_seal(exact, in.left);
	if (skvq_calibration_open(exact, in.left, &c, why, sizeof(why)) == 0)
		read_all(&c);
	else
		FUZZ_CHECK(why[0]);
	free(exact);
	return 0;
}

/* ---- seeds ---- */

enum { DIM = 16 };

static void fill_pair(const float *into, const float *back)
{
	float *a = (float *)(uintptr_t)into, *b = (float *)(uintptr_t)back;

	for (uint32_t i = 0; into && i < DIM; i++) {
		a[i * DIM + (i + 1) % DIM] = 4;
		b[(i + 1) % DIM * DIM + i] = 0.25f;
	}
}

static void fill_groups(const struct skvq_calibration *c)
{
	for (int ch = 0; ch < (int)SKVQ_CALIBRATION_CHANNELS; ch++)
		for (uint32_t i = 0; i < SKVQ_CALIBRATION_GROUP_SIZES; i++) {
			uint32_t n = 1;
			uint16_t *of = (uint16_t *)(uintptr_t)skvq_calibration_groups(
			    c, 0, ch, SKVQ_CALIBRATION_GROUP_SIZE(i), &n);

			for (uint32_t at = 0; of && at < DIM; at++)
				of[at] = (uint16_t)(at % n);
		}
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	static _Alignas(8) uint8_t file[FILE_MAX];
	skvq_calibration_header h = {.magic = SKVQ_CALIBRATION_MAGIC,
				     .version = SKVQ_CALIBRATION_VERSION,
				     .header_bytes = sizeof(h),
				     .flags = i,
				     .n_layer = 1,
				     .n_q_heads = 1,
				     .n_kv_heads = 1,
				     .head_dim_k = DIM,
				     .head_dim_v = DIM,
				     .n_tables = 1,
				     .text = "a text",
				     .tool = "fuzz"};
	struct fuzz_out out = {.at = at};
	skvq_calibration_table table = {.average = 2.4f, .name = "auto-2.4"};
	struct skvq_calibration c;

	if (i >= 8)
		return 0;
	FUZZ_CHECK(skvq_calibration_plan(&h, &c) == 0 && h.file_bytes <= sizeof(file));
	memset(file, 0, sizeof(file));
	memcpy(file, &h, sizeof(h));
	c.bytes = file;
	memcpy(file + c.tables_offset, &table, sizeof(table));
	memset(file + c.tables_offset + sizeof(table), SKVQ_BITS_2, 2);
	for (int is_v = 0; is_v < 2; is_v++)
		fill_pair(skvq_calibration_into(&c, 0, 0, is_v),
			  skvq_calibration_back(&c, 0, 0, is_v));
	fill_groups(&c);
	skvq_calibration_seal(file, h.file_bytes);
	fuzz_put_u8(&out, REPAIR);
	fuzz_put(&out, file, h.file_bytes);
	return out.n;
}
