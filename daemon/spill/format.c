/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/format.h"

#include <string.h>

#include "base/crc32c.h"

#define CRC_BEFORE(s) crc32c((s), sizeof(*(s)) - sizeof((s)->crc))

static bool same_life(const struct spill_life *a, const struct spill_life *b)
{
	return !memcmp(a, b, sizeof(*a));
}

void spill_head_write(void *block, const struct spill_life *life, uint64_t segment_bytes,
		      uint64_t created_ms)
{
	struct spill_head head = {.magic = SPILL_MAGIC_HEAD,
				  .version = SPILL_VERSION,
				  .block_bytes = SPILL_BLOCK,
				  .life = *life,
				  .segment_bytes = segment_bytes,
				  .created_ms = created_ms};

	head.crc = CRC_BEFORE(&head);
	memset(block, 0, SPILL_BLOCK);
	memcpy(block, &head, sizeof(head));
}

bool spill_head_read(const void *block, uint64_t number, uint64_t segment_bytes,
		     struct spill_life *ret_life)
{
	struct spill_head head;

	memcpy(&head, block, sizeof(head));
	if (head.magic != SPILL_MAGIC_HEAD || head.version != SPILL_VERSION ||
	    head.block_bytes != SPILL_BLOCK || head.crc != CRC_BEFORE(&head) ||
	    head.life.number != number || head.segment_bytes != segment_bytes)
		return false;
	*ret_life = head.life;
	return true;
}

void spill_foot_write(void *block, const struct spill_life *life, uint32_t table_block,
		      uint32_t entries)
{
	struct spill_foot foot = {.magic = SPILL_MAGIC_FOOT,
				  .version = SPILL_VERSION,
				  .table_block = table_block,
				  .life = *life,
				  .table_blocks = spill_table_blocks(entries),
				  .n = entries};

	foot.crc = CRC_BEFORE(&foot);
	memset(block, 0, SPILL_BLOCK);
	memcpy(block, &foot, sizeof(foot));
}

bool spill_foot_read(const void *block, uint64_t number, uint64_t segment_bytes,
		     struct spill_foot *ret_foot)
{
	uint64_t last = segment_bytes / SPILL_BLOCK - 1;
	struct spill_foot foot;

	memcpy(&foot, block, sizeof(foot));
	if (foot.magic != SPILL_MAGIC_FOOT || foot.version != SPILL_VERSION ||
	    foot.crc != CRC_BEFORE(&foot) || foot.life.number != number || foot.n > last ||
	    foot.table_blocks != spill_table_blocks(foot.n) || foot.table_block < 1 ||
	    (uint64_t)foot.table_block + foot.table_blocks != last)
		return false;
	*ret_foot = foot;
	return true;
}

void spill_table_write(void *block, const struct spill_life *life, uint32_t index,
		       const struct spill_entry *entries, uint32_t n)
{
	struct spill_table *table = block;

	assert(n <= SPILL_TABLE_ENTRIES);
	memset(table, 0, sizeof(*table));
	table->magic = SPILL_MAGIC_TABLE;
	table->life = *life;
	table->index = index;
	table->n = n;
	memcpy(table->entry, entries, n * sizeof(*entries));
	table->crc = CRC_BEFORE(table);
}

bool spill_table_read(const void *block, const struct spill_foot *foot, uint32_t index,
		      struct spill_table *ret_table)
{
	uint32_t before = index * SPILL_TABLE_ENTRIES, rest = foot->n - before;

	memcpy(ret_table, block, sizeof(*ret_table));
	if (ret_table->magic != SPILL_MAGIC_TABLE || !same_life(&ret_table->life, &foot->life) ||
	    ret_table->crc != CRC_BEFORE(ret_table) || ret_table->index != index ||
	    ret_table->n != (rest < SPILL_TABLE_ENTRIES ? rest : SPILL_TABLE_ENTRIES))
		return false;
	for (uint32_t i = 0; i < ret_table->n; i++) {
		const struct spill_entry *e = &ret_table->entry[i];

		if (e->block < 1 || e->record_blocks < 2 || e->block >= foot->table_block ||
		    e->record_blocks > foot->table_block - e->block)
			return false;
	}
	return true;
}

uint32_t spill_blocks_of(const uint32_t bytes[TIER_SECTIONS])
{
	uint64_t blocks = 1;

	if (!bytes[TIER_BASE])
		return 0;
	for (int i = 0; i < TIER_SECTIONS; i++)
		blocks += spill_blocks(bytes[i]);
	return blocks > INT32_MAX / SPILL_BLOCK ? 0 : (uint32_t)blocks;
}

uint32_t spill_record_blocks(const struct tier_page *page)
{
	uint32_t bytes[TIER_SECTIONS];

	for (int i = 0; i < TIER_SECTIONS; i++)
		bytes[i] = page->section[i].bytes;
	return spill_blocks_of(bytes);
}

static void entry_of(const struct spill_record *r, struct spill_entry *ret_entry)
{
	*ret_entry = (struct spill_entry){.key = r->key,
					  .position = r->position,
					  .block = (uint32_t)(r->offset / SPILL_BLOCK),
					  .record_blocks = r->record_blocks,
					  .flags = r->flags,
					  .record_crc = r->crc};
}

void spill_record_fill(void *dst, const struct tier_page *page)
{
	struct spill_record r = {.magic = SPILL_MAGIC_RECORD,
				 .version = SPILL_VERSION,
				 .flags = page->flags,
				 .key = page->key,
				 .position = page->position,
				 .record_blocks = spill_record_blocks(page)};
	uint8_t *at = (uint8_t *)dst + SPILL_BLOCK;

	memcpy(r.parent, page->parent, sizeof(r.parent));
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = page->section[i].bytes;
		uint32_t room = spill_blocks(bytes) * SPILL_BLOCK;

		if (!bytes)
			continue;
		memcpy(at, page->section[i].data, bytes);
		memset(at + bytes, 0, room - bytes);
		r.section_bytes[i] = bytes;
		at += room;
	}
	memset(dst, 0, SPILL_BLOCK);
	memcpy(dst, &r, sizeof(r));
}

void spill_record_sum(void *record)
{
	const uint8_t *at = (const uint8_t *)record + SPILL_BLOCK;
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = spill_stored_bytes(&r, i);

		/* Of the copy: it is what must come back. */
		r.section_crc[i] = bytes ? crc32c(at, bytes) : 0;
		at += (size_t)spill_blocks(bytes) * SPILL_BLOCK;
	}
	memcpy(record, &r, sizeof(r));
}

void spill_record_write(void *dst, const struct tier_page *page, const struct spill_life *life,
			uint32_t block, struct spill_entry *ret_entry)
{
	spill_record_fill(dst, page);
	spill_record_sum(dst);
	spill_record_move(dst, life, block, ret_entry);
}

void spill_record_move(void *record, const struct spill_life *life, uint32_t block,
		       struct spill_entry *ret_entry)
{
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	r.life = *life;
	r.offset = (uint64_t)block * SPILL_BLOCK;
	r.crc = CRC_BEFORE(&r);
	memcpy(record, &r, sizeof(r));
	entry_of(&r, ret_entry);
}

/* The lengths agree with each other. */
static bool sizes_hold(const struct spill_record *r, uint32_t max_blocks)
{
	uint32_t stored[TIER_SECTIONS], packed = 0;

	for (int i = 0; i < TIER_SECTIONS; i++) {
		if (r->packed_bytes[i] && r->packed_bytes[i] >= r->section_bytes[i])
			return false;
		packed |= r->packed_bytes[i];
		stored[i] = spill_stored_bytes(r, i);
	}
	return r->version == (packed ? SPILL_PACKED : SPILL_VERSION) && r->record_blocks >= 2 &&
	       r->record_blocks <= max_blocks && r->record_blocks == spill_blocks_of(stored) &&
	       spill_blocks_of(r->section_bytes);
}

static bool header_holds(const struct spill_record *r, const struct spill_life *life, uint32_t at,
			 uint32_t max_blocks)
{
	return r->magic == SPILL_MAGIC_RECORD && r->crc == CRC_BEFORE(r) &&
	       same_life(&r->life, life) && r->offset == (uint64_t)at * SPILL_BLOCK &&
	       sizes_hold(r, max_blocks);
}

bool spill_record_head(const void *block, const struct spill_life *life, uint32_t at,
		       uint32_t max_blocks, struct spill_entry *ret_entry)
{
	struct spill_record r;

	memcpy(&r, block, sizeof(r));
	if (!header_holds(&r, life, at, max_blocks))
		return false;
	entry_of(&r, ret_entry);
	return true;
}

bool spill_record_packed(const void *record)
{
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	return r.version == SPILL_PACKED;
}

uint32_t spill_record_saved(const void *record)
{
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	return spill_blocks_of(r.section_bytes) - r.record_blocks;
}

void spill_record_page(const void *record, struct tier_page *ret_page)
{
	const uint8_t *at = (const uint8_t *)record + SPILL_BLOCK;
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	*ret_page = (struct tier_page){.key = r.key, .position = r.position, .flags = r.flags};
	memcpy(ret_page->parent, r.parent, sizeof(ret_page->parent));
	for (int i = 0; i < TIER_SECTIONS && r.version != SPILL_PACKED; i++) {
		uint32_t bytes = r.section_bytes[i];

		if (!bytes)
			continue;
		ret_page->section[i].data = at;
		ret_page->section[i].bytes = bytes;
		at += (size_t)spill_blocks(bytes) * SPILL_BLOCK;
	}
}

bool spill_record_read(const void *record, const struct spill_life *life,
		       const struct spill_entry *entry, struct tier_page *ret_page)
{
	const uint8_t *at = (const uint8_t *)record + SPILL_BLOCK;
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	if (!header_holds(&r, life, entry->block, entry->record_blocks) ||
	    r.record_blocks != entry->record_blocks || r.crc != entry->record_crc ||
	    memcmp(&r.key, &entry->key, sizeof(r.key)) != 0)
		return false;
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = spill_stored_bytes(&r, i);

		if (bytes && crc32c(at, bytes) != r.section_crc[i])
			return false;
		at += (size_t)spill_blocks(bytes) * SPILL_BLOCK;
	}
	spill_record_page(record, ret_page);
	return true;
}
