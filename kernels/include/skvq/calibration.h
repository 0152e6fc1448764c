/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/calibration.h - the calibration file: what is known of a model's keys and values beyond its
 * geometry, made once by skvq-calibrate and used by every engine that runs these weights.
 *
 * docs/calibration-format.md draws it and explains the choices. All numbers are little-endian.
 *
 *   0        256
 *   +--------+---------+--------+-----+--------------------------------------------+--------+
 *   | header | layers  | tables | pad | matrices, layer by layer and head by head: | groups |
 *   |        | 48 B    |        |     | K into, K back [, V into, V back], float32 | uint16 |
 *   +--------+---------+--------+-----+--------------------------------------------+--------+
 *
 * Every offset follows from the header's counts, so there is none to be forged. A file is checked
 * as a whole before anything in it is used. Pure functions, any thread; no memory is taken.
 */
#ifndef SKVQ_CALIBRATION_H
#define SKVQ_CALIBRATION_H

#include <stddef.h>
#include <stdint.h>

#include <skvq/format.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define SKVQ_CALIBRATION_MAGIC UINT64_C(0x424c414351564b53) /* "SKVQCALB" */
#define SKVQ_CALIBRATION_VERSION 1u
#define SKVQ_CALIBRATION_BYTES_MAX (UINT64_C(512) << 20)
#define SKVQ_CALIBRATION_TABLES_MAX 16u
#define SKVQ_CALIBRATION_ENTRY_MAX 1e6f /* of a matrix, absolutely */
#define SKVQ_CALIBRATION_DIGEST 32u
#define SKVQ_CALIBRATION_NAME_MAX 15u /* of a table: "auto-2.4" */

#define SKVQ_CALIBRATION_HAS_V UINT32_C(1)           /* matrices for V too             */
#define SKVQ_CALIBRATION_HAS_SENSITIVITY UINT32_C(2) /* layers' sensitivities are known */
#define SKVQ_CALIBRATION_HAS_GROUPS UINT32_C(4)      /* channel groups of profiles skvq-... */

/* Texts are printable ASCII, padded with zeros, at least one. */
typedef struct skvq_calibration_header {
	uint64_t magic;
	uint16_t version;
	uint16_t header_bytes; /* sizeof(skvq_calibration_header)                       */
	uint32_t flags;        /* SKVQ_CALIBRATION_HAS_*                                 */
	uint64_t file_bytes;
	uint16_t n_layer;
	uint16_t n_q_heads;
	uint16_t n_kv_heads;
	uint16_t head_dim_k;
	uint16_t head_dim_v;
	uint16_t n_tables;
	uint32_t n_tokens;   /* of the text it was made from                              */
	uint8_t weights[32]; /* skvq_model_desc.weights_digest of the model               */
	uint8_t digest[32];  /* SHA-256 of the file with this field zero                  */
	char text[64];       /* what it was made from                                     */
	char tool[32];       /* what made it                                              */
	uint8_t reserved[56];
} skvq_calibration_header;

/* Widths of codec_error, in this order. */
#define SKVQ_CALIBRATION_WIDTHS 5u /* SKVQ_BITS_8, _4, _3, _2, _TERNARY */

typedef struct skvq_calibration_layer {
	float sensitivity[2]; /* K, V: KLD in nats if this alone is at 2 bits; 0 if not known */
	float error[2][SKVQ_CALIBRATION_WIDTHS]; /* K, V: squared error of the codes over the
						  * square, in stored space                  */
} skvq_calibration_layer;

/* In front of a table's uint8_t bits[n_layer][2], K and V, padded with zeros to 8 bytes. */
typedef struct skvq_calibration_table {
	char name[SKVQ_CALIBRATION_NAME_MAX + 1]; /* the profile that uses it                 */
	float average;                            /* stored bits a number, scales included    */
	uint32_t reserved;
} skvq_calibration_table;

/* Channel groups run over all KV heads of a layer, channel head * head_dim + i: of keys as they were
 * before RoPE, of keys as they come, of values; each for groups of so many channels on average. */
enum skvq_calibration_channels {
	SKVQ_CHANNELS_K_BEFORE = 0, /* as K_AFTER where RoPE was not known when the file was made */
	SKVQ_CHANNELS_K_AFTER = 1,
	SKVQ_CHANNELS_V = 2,
};
#define SKVQ_CALIBRATION_CHANNELS 3u
#define SKVQ_CALIBRATION_GROUP_SIZES 3u /* in this order: 32, 64, 128 */
#define SKVQ_CALIBRATION_GROUP_SIZE(i) (32u << (i))

SKVQ_STATIC_ASSERT(sizeof(skvq_calibration_header) == 256, "calibration header is 256 bytes");
SKVQ_STATIC_ASSERT(sizeof(skvq_calibration_layer) == 48, "calibration layer is 48 bytes");
SKVQ_STATIC_ASSERT(sizeof(skvq_calibration_table) == 24, "calibration table is 24 bytes");

/* A checked file. Points into the bytes that were opened. */
struct skvq_calibration {
	const uint8_t *bytes;
	skvq_calibration_header header;
	uint64_t tables_offset, table_bytes, matrices_offset, head_bytes;
	uint64_t groups_offset, layer_groups_bytes; /* where they end, if there are none; 0 */
};

/* Whose calibration is wanted. */
struct skvq_calibration_key {
	const uint8_t *weights; /* 32 bytes */
	uint32_t n_layer, n_q_heads, n_kv_heads, head_dim_k, head_dim_v;
};

/* Sizes and offsets for a header whose counts, geometry and flags are filled in; sets file_bytes.
 * -SKVQ_EGEOMETRY for what cannot be in a file. For those who write one. */
int skvq_calibration_plan(skvq_calibration_header *header, struct skvq_calibration *ret);
/* Closes a file in memory whose everything else is in place: writes its digest. */
void skvq_calibration_seal(void *bytes, uint64_t n_bytes);

/* Checks a whole file in private memory, aligned to 8, that must live as long as *ret. 0;
 * -SKVQ_ENOTSUP for another version; -SKVQ_ECORRUPT with a sentence in why that names the field
 * and its offset. */
int skvq_calibration_open(const void *bytes, uint64_t n_bytes, struct skvq_calibration *ret,
			  char *why, size_t why_bytes);
/* Whether it is of this model: 0, or -SKVQ_EIDENTITY and what differs. */
int skvq_calibration_fits(const struct skvq_calibration *c, const struct skvq_calibration_key *key,
			  char *why, size_t why_bytes);
/* SHA-256 over what changes codes: geometry, weights' digest and matrices. Files that differ only in
 * tables, sensitivities or texts are equal here. */
void skvq_calibration_id(const struct skvq_calibration *c, uint8_t ret[SKVQ_CALIBRATION_DIGEST]);

/* The same for profiles whose groups of channels are of this size, which use nothing else of the
 * file: geometry, weights' digest, size and groups, of keys after RoPE or before. Only with
 * SKVQ_CALIBRATION_HAS_GROUPS, size one of the three. */
void skvq_calibration_groups_id(const struct skvq_calibration *c, uint32_t size, int after,
				uint8_t ret[SKVQ_CALIBRATION_DIGEST]);

/* [dim][dim], row-major (skvq/kernels.h). NULL for V without SKVQ_CALIBRATION_HAS_V. */
const float *skvq_calibration_into(const struct skvq_calibration *c, uint32_t layer, uint32_t head,
				   int is_v);
const float *skvq_calibration_back(const struct skvq_calibration *c, uint32_t layer, uint32_t head,
				   int is_v);
const skvq_calibration_layer *skvq_calibration_layer_of(const struct skvq_calibration *c,
							uint32_t layer);
const skvq_calibration_table *skvq_calibration_table_at(const struct skvq_calibration *c,
							uint32_t i);
/* [n_layer][2] of table i; of the table with that name, or NULL. */
const uint8_t *skvq_calibration_bits_at(const struct skvq_calibration *c, uint32_t i);
const uint8_t *skvq_calibration_bits(const struct skvq_calibration *c, const char *name);
/* The group of each channel (channels: SKVQ_CHANNELS_*), and into ret_n, unless NULL, the number of
 * groups: the channels over size, rounded up; each has a channel. NULL without
 * SKVQ_CALIBRATION_HAS_GROUPS and for a size that is none of the three. */
const uint16_t *skvq_calibration_groups(const struct skvq_calibration *c, uint32_t layer,
					int channels, uint32_t size, uint32_t *ret_n);

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_CALIBRATION_H */
