/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/format.h - bytes of a segment file, drawn and told in docs/store-format.md.
 *
 *   0       4 KiB                                      tail                           segment_bytes
 *   | head  | record | record | record | ...           |      ...    | table blocks | foot |
 *
 * Everything starts on a block of 4 KiB. What is read back is hostile until its checksum and its
 * place hold: a head, record, table block or foot counts only in the segment, in the life and at
 * the place it was written for. Little-endian. Pure functions, any thread.
 */
#ifndef SKVQD_SPILL_FORMAT_H
#define SKVQD_SPILL_FORMAT_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "mem/tier.h"

#define SPILL_BLOCK      4096u
#define SPILL_VERSION    1u
#define SPILL_PACKED     2u /* version of a record with compressed sections */
#define SPILL_LIFE_BYTES 16u

#define SPILL_MAGIC_HEAD   UINT64_C(0x4745535651564b53) /* "SKVQVSEG" */
#define SPILL_MAGIC_RECORD UINT64_C(0x4345525651564b53) /* "SKVQVREC" */
#define SPILL_MAGIC_TABLE  UINT64_C(0x4c42545651564b53) /* "SKVQVTBL" */
#define SPILL_MAGIC_FOOT   UINT64_C(0x544f465651564b53) /* "SKVQVFOT" */

/* Of a segment: its number, never used twice in a folder, and random bytes of its own that no
 * client can know, so that no page can be made to look like a record. */
struct spill_life {
	uint64_t number;
	uint8_t random[SPILL_LIFE_BYTES];
};

struct spill_head {
	uint64_t magic;
	uint32_t version;
	uint32_t block_bytes;
	struct spill_life life;
	uint64_t segment_bytes;
	uint64_t created_ms; /* Unix time, for people */
	uint32_t reserved;
	uint32_t crc; /* of the bytes before it; so in all of these */
};

struct spill_record {
	uint64_t magic;
	uint32_t version;
	uint32_t flags; /* the page's */
	struct spill_life life;
	uint64_t offset; /* of this record in its segment */
	struct tier_key key;
	uint8_t parent[TIER_DIGEST_BYTES];
	uint64_t position;
	uint32_t section_bytes[TIER_SECTIONS];
	uint32_t section_crc[TIER_SECTIONS]; /* of what is stored; 0 for an empty one */
	uint32_t record_blocks;              /* this block and the sections, each from a block on */
	uint32_t packed_bytes[TIER_SECTIONS]; /* stored, if compressed (spill/press.h); else 0 */
	uint8_t reserved[60];
	uint32_t crc;
};

struct spill_entry { /* of the table of contents, on disk and in memory */
	struct tier_key key;
	uint64_t position;
	uint32_t block; /* where the record begins */
	uint32_t record_blocks;
	uint32_t flags;
	uint32_t record_crc; /* the record's own crc field: the table knows no other record */
	uint64_t reserved;
};

#define SPILL_TABLE_ENTRIES 41u

struct spill_table {
	uint64_t magic;
	struct spill_life life;
	uint32_t index; /* of this block in the table */
	uint32_t n;     /* entries in it */
	struct spill_entry entry[SPILL_TABLE_ENTRIES];
	uint8_t reserved[116];
	uint32_t crc;
};

struct spill_foot {
	uint64_t magic;
	uint32_t version;
	uint32_t table_block; /* where the table begins */
	struct spill_life life;
	uint32_t table_blocks;
	uint32_t n; /* entries in all */
	uint32_t reserved;
	uint32_t crc;
};

static_assert(sizeof(struct spill_head) == 64, "on disk");
static_assert(sizeof(struct spill_record) == 256, "on disk");
static_assert(sizeof(struct spill_entry) == 96, "on disk");
static_assert(sizeof(struct spill_table) == SPILL_BLOCK, "on disk");
static_assert(sizeof(struct spill_foot) == 56, "on disk");

static inline uint32_t spill_blocks(uint64_t bytes)
{
	return (uint32_t)((bytes + SPILL_BLOCK - 1) / SPILL_BLOCK);
}

static inline uint32_t spill_table_blocks(uint32_t entries)
{
	return (entries + SPILL_TABLE_ENTRIES - 1) / SPILL_TABLE_ENTRIES;
}

/* Each fills a whole block. */
void spill_head_write(void *block, const struct spill_life *life, uint64_t segment_bytes,
		      uint64_t created_ms);
void spill_foot_write(void *block, const struct spill_life *life, uint32_t table_block,
		      uint32_t entries);
void spill_table_write(void *block, const struct spill_life *life, uint32_t index,
		       const struct spill_entry *entries, uint32_t n);

/* True if the block is one of this number (and of this segment's bytes); *ret_life is filled. */
bool spill_head_read(const void *block, uint64_t number, uint64_t segment_bytes,
		     struct spill_life *ret_life);
bool spill_foot_read(const void *block, uint64_t number, uint64_t segment_bytes,
		     struct spill_foot *ret_foot);
/* entries are checked to lie before the table. */
bool spill_table_read(const void *block, const struct spill_foot *foot, uint32_t index,
		      struct spill_table *ret_table);

/* Blocks of a page's record; 0 if the base is empty or the sizes overflow. */
uint32_t spill_record_blocks(const struct tier_page *page);
/* The page's bytes as a record at dst, of spill_record_blocks, that has no place and no checksums
 * yet: the first half of spill_record_write. */
void spill_record_fill(void *dst, const struct tier_page *page);
/* Checksums of all sections, as they are stored now. */
void spill_record_sum(void *record);
/* The whole record of page at dst, of spill_record_blocks. *ret_entry is what the table says. */
void spill_record_write(void *dst, const struct tier_page *page, const struct spill_life *life,
			uint32_t block, struct spill_entry *ret_entry);
/* Puts a record that was read and checked elsewhere to another place. */
void spill_record_move(void *record, const struct spill_life *life, uint32_t block,
		       struct spill_entry *ret_entry);
/* The record's own block alone; at most max_blocks long. */
bool spill_record_head(const void *block, const struct spill_life *life, uint32_t at,
		       uint32_t max_blocks, struct spill_entry *ret_entry);
/* All of the record that entry speaks of: header, place, key, and every section's checksum.
 * *ret_page points into it; it has no sections if the record is packed. */
bool spill_record_read(const void *record, const struct spill_life *life,
		       const struct spill_entry *entry, struct tier_page *ret_page);
/* Whether some section is compressed: pack_undo (spill/pack.h) comes before spill_record_page. */
bool spill_record_packed(const void *record);
/* Blocks that compression makes it shorter. */
uint32_t spill_record_saved(const void *record);
/* The page of a record that was checked and is not packed. */
void spill_record_page(const void *record, struct tier_page *ret_page);

/* Bytes of a section in the record, without padding. */
static inline uint32_t spill_stored_bytes(const struct spill_record *r, int section)
{
	return r->packed_bytes[section] ? r->packed_bytes[section] : r->section_bytes[section];
}
/* Of a record with sections of these lengths; 0 if they make none. */
uint32_t spill_blocks_of(const uint32_t bytes[TIER_SECTIONS]);

#endif /* SKVQD_SPILL_FORMAT_H */
