/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/pack.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "spill/format.h"
#include "spill/press.h"

struct press_slot {
	struct press_slot *next;
	struct press *press;
	uint8_t record[]; /* of record_bytes */
};

struct packs {
	struct packs *next;   /* left behind */
	pthread_mutex_t lock; /* guards free */
	struct press_slot *free;
	uint32_t record_bytes;
};

struct packs *packs_new(uint32_t record_bytes)
{
	struct packs *packs = calloc(1, sizeof(*packs));

	if (!packs)
		return NULL;
	packs->record_bytes = record_bytes;
	(void)pthread_mutex_init(&packs->lock, NULL);
	return packs;
}

void packs_free(struct packs *packs)
{
	struct press_slot *slot;

	if (!packs)
		return;
	while ((slot = packs->free) != NULL) {
		packs->free = slot->next;
		press_free(slot->press);
		free(slot);
	}
	(void)pthread_mutex_destroy(&packs->lock);
	free(packs);
}

static struct packs *left_behind;

void packs_leave(struct packs *packs)
{
	packs->next = left_behind;
	left_behind = packs;
}

static struct press_slot *borrow(struct packs *packs)
{
	struct press_slot *slot;

	(void)pthread_mutex_lock(&packs->lock);
	slot = packs->free;
	if (slot)
		packs->free = slot->next;
	(void)pthread_mutex_unlock(&packs->lock);
	if (slot)
		return slot;
	slot = malloc(sizeof(*slot) + packs->record_bytes);
	if (!slot)
		return NULL;
	slot->press = press_new(packs->record_bytes);
	if (slot->press)
		return slot;
	free(slot);
	return NULL;
}

static void give_back(struct packs *packs, struct press_slot *slot)
{
	(void)pthread_mutex_lock(&packs->lock);
	slot->next = packs->free;
	packs->free = slot;
	(void)pthread_mutex_unlock(&packs->lock);
}

/* The packed record at to, of as many blocks as it returns; 0: it is not shorter. */
static uint32_t pack_into(struct press *press, const uint8_t *record, uint8_t *to)
{
	const uint8_t *from = record + SPILL_BLOCK;
	uint32_t at = SPILL_BLOCK, stored[TIER_SECTIONS];
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = r.section_bytes[i];

		r.packed_bytes[i] = bytes ? press_pack(press, from, bytes, to + at) : 0;
		stored[i] = spill_stored_bytes(&r, i);
		if (!r.packed_bytes[i] && bytes)
			memcpy(to + at, from, bytes);
		memset(to + at + stored[i], 0, spill_blocks(stored[i]) * SPILL_BLOCK - stored[i]);
		from += (size_t)spill_blocks(bytes) * SPILL_BLOCK;
		at += spill_blocks(stored[i]) * SPILL_BLOCK;
	}
	r.record_blocks = spill_blocks_of(stored);
	if (r.record_blocks > spill_blocks_of(r.section_bytes) * UINT64_C(15) / 16)
		return 0;
	r.version = SPILL_PACKED;
	memset(to, 0, SPILL_BLOCK);
	memcpy(to, &r, sizeof(r));
	return r.record_blocks;
}

uint32_t pack_do(struct packs *packs, uint8_t *record)
{
	struct press_slot *slot = borrow(packs);
	uint32_t blocks = slot ? pack_into(slot->press, record, slot->record) : 0;
	struct spill_record r;

	if (blocks)
		memcpy(record, slot->record, (size_t)blocks * SPILL_BLOCK);
	if (slot)
		give_back(packs, slot);
	spill_record_sum(record);
	memcpy(&r, record, sizeof(r));
	return r.record_blocks;
}

static bool undo_into(struct press *press, const uint8_t *record, uint8_t *to)
{
	const uint8_t *from = record + SPILL_BLOCK;
	uint8_t *at = to + SPILL_BLOCK;
	struct spill_record r;

	memcpy(&r, record, sizeof(r));
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = r.section_bytes[i], stored = spill_stored_bytes(&r, i);

		if (r.packed_bytes[i] && !press_unpack(press, from, stored, at, bytes))
			return false;
		if (!r.packed_bytes[i])
			memcpy(at, from, bytes);
		from += (size_t)spill_blocks(stored) * SPILL_BLOCK;
		at += (size_t)spill_blocks(bytes) * SPILL_BLOCK;
		r.packed_bytes[i] = 0;
	}
	r.version = SPILL_VERSION;
	r.record_blocks = spill_blocks_of(r.section_bytes);
	memset(to, 0, SPILL_BLOCK);
	memcpy(to, &r, sizeof(r));
	return true;
}

bool pack_undo(struct packs *packs, uint8_t *record)
{
	struct press_slot *slot;
	struct spill_record r;
	uint32_t blocks;
	bool ok;

	memcpy(&r, record, sizeof(r));
	blocks = spill_blocks_of(r.section_bytes);
	/* It may have been written when records could be longer. */
	if (!blocks || (uint64_t)blocks * SPILL_BLOCK > packs->record_bytes)
		return false;
	slot = borrow(packs);
	ok = slot && undo_into(slot->press, record, slot->record);
	if (ok)
		memcpy(record, slot->record, (size_t)blocks * SPILL_BLOCK);
	if (slot)
		give_back(packs, slot);
	return ok;
}
