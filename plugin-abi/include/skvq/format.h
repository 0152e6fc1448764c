/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/format.h - what a page looks like, byte for byte.
 *
 * A page holds SKVQ_PAGE_TOKENS consecutive tokens for all layers and KV heads of one layer group.
 * It is the unit of identity, sharing, pinning, eviction and checksum. All numbers are
 * little-endian. docs/page-format.md draws the same layout and explains the choices; the sizes that
 * depend on geometry and profile are computed by skvq_layout_init() (skvq/layout.h) alone.
 *
 *   0                       base_bytes            +refine_bytes        +sidecar_bytes
 *   +--------+------+------+--- ... ---+---------+--------------------+----------------------+
 *   | header |tokens|layer | layer 0 .. n-1      | refinement (or 0)  | sidecar: FP16 sinks  |
 *   | 256 B  |80*i32|table | codes and params    | low-order bits     | page 0 only          |
 *   +--------+------+------+---------------------+--------------------+----------------------+
 *   '---------------- base, 4 KiB-aligned -------''-- 4 KiB-aligned --''---- 4 KiB-aligned ---'
 *
 * One layer inside the base section (every code plane starts 64-byte aligned):
 *
 *   | K codes head 0 | V codes head 0 | K codes head 1 | ... | parameter rows of all heads | pad |
 *
 * A parameter row is one byte (E4M3) for each of the page's 80 tokens. Rows follow each other
 * without padding: for each head, K scales by group, K zeros by group (affine only), V scales, V
 * zeros. FP16 codes have no rows.
 *
 * Codes are grouped in tiles of 16 tokens. A tile of D channels is first seen as D/4 raw vectors of
 * 64 bytes, one code a byte:
 *   K: raw vector i (channel quad i):            byte 4*t + j = code[token t][channel 4*i + j]
 *   V: raw vector p*(D/16) + c (token quad p, channel block c):
 *                                                byte 4*x + j = code[token 4*p + j][channel 16*c + x]
 * and then packed by planes, with n = D/4 raw vectors and byte-wise operations:
 *   8 bit: raw, n vectors                           (n * 64 bytes a tile)
 *   4 bit: m = ceil(n/2): raw[i] | raw[i+m] << 4
 *   2 bit: m = ceil(n/4): sum over p < 4 of raw[i + p*m] << 2p
 *   3 bit: the 2-bit planes of (raw & 3), then m = ceil(n/8): sum over p < 8 of (raw[i+p*m] >> 2) << p
 *   ternary ("1.5 bit", stored 1.6): over the five tiles of the page at once, n vectors a page:
 *          sum over tile k < 5 of raw_k[i] * 3^k, a byte below 243; raw vectors past n count as zero
 * FP16 (16 bit): token rows, [80][D] binary16, K and V alike.
 */
#ifndef SKVQ_FORMAT_H
#define SKVQ_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
#define SKVQ_STATIC_ASSERT(cond, msg) static_assert(cond, msg)
extern "C" {
#else
#define SKVQ_STATIC_ASSERT(cond, msg) _Static_assert(cond, msg)
#endif

#define SKVQ_TILE_TOKENS 16u /* tokens that leave the window together              */
#define SKVQ_PAGE_TILES 5u
#define SKVQ_PAGE_TOKENS 80u /* SKVQ_TILE_TOKENS * SKVQ_PAGE_TILES                  */
#define SKVQ_PLANE_ALIGN 64u
#define SKVQ_SECTION_ALIGN 4096u

#define SKVQ_PAGE_MAGIC UINT64_C(0x4547415051564b53) /* "SKVQPAGE" */
#define SKVQ_PAGE_VERSION 3u

/* Bounds on geometry; anything larger is -SKVQ_EGEOMETRY. */
#define SKVQ_LAYERS_MAX 256u
#define SKVQ_KV_HEADS_MAX 128u
#define SKVQ_Q_HEADS_MAX 1024u
#define SKVQ_HEAD_DIM_MAX 256u /* and a multiple of 16 */
#define SKVQ_SINKS_MAX 64u
#define SKVQ_WINDOW_MAX 65536u
#define SKVQ_PAGE_BYTES_MAX (64u << 20)

/* Bits of a code, in tenths, as stored in tables and on the wire. */
#define SKVQ_BITS_FP16 160u
#define SKVQ_BITS_8 80u
#define SKVQ_BITS_4 40u
#define SKVQ_BITS_3 30u
#define SKVQ_BITS_2 20u
#define SKVQ_BITS_TERNARY 15u

/* Page flags. */
#define SKVQ_PAGE_HAS_SIDECAR UINT32_C(1)    /* first page of a sequence: FP16 sinks follow */
#define SKVQ_PAGE_HAS_REFINEMENT UINT32_C(2) /* elastic profiles: second planes of K         */
#define SKVQ_PAGE_SAFE UINT32_C(4) /* keys have 8 bits wherever the profile says fewer */

/* Start of every page. crc_header covers bytes [0, 256) with crc_header itself as zero; crc_base
 * covers [256, base_bytes); the others their whole section. CRC-32C (Castagnoli). An engine leaves
 * the four CRCs, identity, parent and digest zero: the daemon fills them in its own copy. */
typedef struct skvq_page_header {
	uint64_t magic;        /* SKVQ_PAGE_MAGIC; zero means not initialised            */
	uint16_t version;      /* SKVQ_PAGE_VERSION                                      */
	uint16_t header_bytes; /* sizeof(skvq_page_header)                               */
	uint32_t flags;        /* SKVQ_PAGE_*                                            */
	uint32_t position;     /* of the first token in its sequence; multiple of 80     */
	uint16_t page_tokens;  /* SKVQ_PAGE_TOKENS                                       */
	uint16_t n_layer;
	uint16_t n_kv_heads;
	uint16_t head_dim_k;
	uint16_t head_dim_v;
	uint16_t n_sinks;        /* tokens in the sidecar; 0 without one                   */
	uint32_t tokens_offset;  /* int32_t[80], from the start of the page                */
	uint32_t layers_offset;  /* skvq_page_layer[n_layer]                               */
	uint32_t base_bytes;     /* multiple of 4096, header included                      */
	uint32_t refine_bytes;   /* multiple of 4096 or 0                                  */
	uint32_t sidecar_bytes;  /* multiple of 4096 or 0                                  */
	uint32_t crc_header;
	uint32_t crc_base;
	uint32_t crc_refine;
	uint32_t crc_sidecar;
	uint32_t reserved0;
	uint8_t identity[32]; /* SHA-256 of the namespace's canonical identity          */
	uint8_t parent[32];   /* digest of the previous page; zero for page 0           */
	uint8_t digest[32];   /* SHA-256(identity, parent, position, tokens)            */
	uint8_t reserved1[88];
} skvq_page_header;

/* One entry of the layer table: makes a page readable without its profile at hand. */
typedef struct skvq_page_layer {
	uint32_t offset;        /* of the layer's planes from the start of the page     */
	uint32_t refine_offset; /* of K's second planes, head by head; 0 if none        */
	uint8_t k_bits;         /* SKVQ_BITS_* of the base codes                        */
	uint8_t v_bits;
	uint8_t k_refine_bits; /* of SKVQ_BITS_*, what the second plane adds; 0: none  */
	uint8_t v_refine_bits; /* 0                                                    */
	/* Relative squared error sum |x - x'|^2 / sum |x|^2 of the base codes, binary16, as the
	 * engine measured it on the page's first tile without its sinks; finite and not negative,
	 * 0: not known. */
	uint16_t k_error;
	uint16_t v_error;
} skvq_page_layer;

SKVQ_STATIC_ASSERT(sizeof(skvq_page_header) == 256, "page header is 256 bytes");
SKVQ_STATIC_ASSERT(offsetof(skvq_page_header, tokens_offset) == 32, "page header layout");
SKVQ_STATIC_ASSERT(offsetof(skvq_page_header, crc_header) == 52, "page header layout");
SKVQ_STATIC_ASSERT(offsetof(skvq_page_header, identity) == 72, "page header layout");
SKVQ_STATIC_ASSERT(offsetof(skvq_page_header, digest) == 136, "page header layout");
SKVQ_STATIC_ASSERT(sizeof(skvq_page_layer) == 16, "page layer entry is 16 bytes");
SKVQ_STATIC_ASSERT(offsetof(skvq_page_layer, k_error) == 12, "page layer layout");
SKVQ_STATIC_ASSERT(SKVQ_PAGE_TOKENS == SKVQ_TILE_TOKENS * SKVQ_PAGE_TILES, "whole tiles");

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_FORMAT_H */
