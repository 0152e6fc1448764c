/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/segment.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#define SLOTS_MIN 256u

static struct index_slot *slots_new(uint64_t n)
{
	struct index_slot *slots = calloc(n, sizeof(*slots));

	for (uint64_t i = 0; slots && i < n; i++)
		slots[i].ref.seg = SEG_NO;
	return slots;
}

int segments_init(struct segments *s, uint32_t max, uint64_t seed)
{
	*s = (struct segments){.max = max, .mask = SLOTS_MIN - 1, .seed = seed};
	s->at = calloc(max, sizeof(*s->at));
	s->slots = slots_new(SLOTS_MIN);
	if (s->at && s->slots)
		return 0;
	segments_fini(s);
	return -SKVQ_ENOMEM;
}

void segments_fini(struct segments *s)
{
	for (uint32_t i = 0; s->at && i < s->max; i++)
		segment_clear(&s->at[i]);
	free(s->at);
	free(s->slots);
	*s = (struct segments){.max = 0};
}

/* Digests are uniform but for what a client chose on purpose; the seed spoils that. */
uint64_t segments_hash(const struct segments *s, const struct tier_key *key)
{
	uint64_t word[sizeof(*key) / sizeof(uint64_t)], h = s->seed;

	memcpy(word, key, sizeof(word));
	for (size_t i = 0; i < sizeof(word) / sizeof(word[0]); i++) {
		h = (h ^ word[i]) * UINT64_C(0x9e3779b97f4a7c15);
		h ^= h >> 29;
	}
	h *= UINT64_C(0xbf58476d1ce4e5b9);
	return h ^ (h >> 32);
}

uint32_t segments_free_slot(const struct segments *s)
{
	for (uint32_t i = 0; i < s->max; i++)
		if (s->at[i].state == SEG_NONE)
			return i;
	return SEG_NO;
}

uint32_t segments_oldest(const struct segments *s, enum segment_state state)
{
	uint32_t best = SEG_NO;

	for (uint32_t i = 0; i < s->max; i++)
		if (s->at[i].state == state &&
		    (best == SEG_NO || s->at[i].life.number < s->at[best].life.number))
			best = i;
	return best;
}

void segment_clear(struct segment *seg)
{
	free(seg->entry);
	free(seg->mark);
	free(seg->table);
	*seg = (struct segment){.state = SEG_NONE};
}

bool segment_has_room(const struct segment *seg, uint32_t blocks)
{
	return (uint64_t)seg->tail + blocks + spill_table_blocks(seg->n + 1) + 1 <= seg->blocks;
}

int segment_add(struct segment *seg, const struct spill_entry *entry, enum entry_mark mark,
		uint32_t *ret_entry)
{
	if (seg->n == seg->cap) {
		uint32_t cap = seg->cap ? seg->cap * 2 : 64;
		struct spill_entry *entries = realloc(seg->entry, cap * sizeof(*entries));
		uint8_t *marks;

		if (!entries)
			return -SKVQ_ENOMEM;
		seg->entry = entries;
		marks = realloc(seg->mark, cap);
		if (!marks)
			return -SKVQ_ENOMEM;
		seg->mark = marks;
		seg->cap = cap;
	}
	seg->entry[seg->n] = *entry;
	seg->mark[seg->n] = (uint8_t)mark;
	if (entry->block + entry->record_blocks > seg->tail)
		seg->tail = entry->block + entry->record_blocks;
	*ret_entry = seg->n++;
	return 0;
}

/* Where the key is, or the empty slot where it would be. */
static uint64_t slot_of(const struct segments *s, const struct tier_key *key)
{
	uint64_t at = segments_hash(s, key) & s->mask;

	while (s->slots[at].ref.seg != SEG_NO &&
	       memcmp(&segments_entry(s, s->slots[at].ref)->key, key, sizeof(*key)) != 0)
		at = (at + 1) & s->mask;
	return at;
}

bool segments_find(const struct segments *s, const struct tier_key *key,
		   struct segment_ref *ret_ref)
{
	uint64_t at = slot_of(s, key);

	if (s->slots[at].ref.seg == SEG_NO)
		return false;
	*ret_ref = s->slots[at].ref;
	return true;
}

static int grow(struct segments *s)
{
	struct index_slot *old = s->slots;
	uint64_t n = s->mask + 1;

	s->slots = slots_new(n * 2);
	if (!s->slots) {
		s->slots = old;
		return -SKVQ_ENOMEM;
	}
	s->mask = n * 2 - 1;
	for (uint64_t i = 0; i < n; i++)
		if (old[i].ref.seg != SEG_NO)
			s->slots[slot_of(s, &segments_entry(s, old[i].ref)->key)] = old[i];
	free(old);
	return 0;
}

int segments_show(struct segments *s, struct segment_ref ref)
{
	const struct tier_key *key = &segments_entry(s, ref)->key;
	uint64_t at = slot_of(s, key);
	struct segment_ref *slot = &s->slots[at].ref;

	if (slot->seg != SEG_NO) {
		s->at[slot->seg].mark[slot->entry] = MARK_DEAD;
	} else {
		if ((s->n + 1) * 4 > (s->mask + 1) * 3) {
			if (grow(s) < 0)
				return -SKVQ_ENOMEM;
			slot = &s->slots[slot_of(s, key)].ref;
		}
		s->n++;
	}
	*slot = ref;
	s->at[ref.seg].mark[ref.entry] = MARK_LIVE;
	return 0;
}

void segments_hide(struct segments *s, struct segment_ref ref)
{
	uint64_t at = slot_of(s, &segments_entry(s, ref)->key);
	struct segment_ref found = s->slots[at].ref;

	s->at[ref.seg].mark[ref.entry] = MARK_DEAD;
	if (found.seg != ref.seg || found.entry != ref.entry)
		return;
	s->n--;
	/* Those behind that could not stand at their own place move up. */
	for (uint64_t to = at, from = (at + 1) & s->mask;; from = (from + 1) & s->mask) {
		uint64_t home;

		if (s->slots[from].ref.seg == SEG_NO) {
			s->slots[to].ref.seg = SEG_NO;
			return;
		}
		home = segments_hash(s, &segments_entry(s, s->slots[from].ref)->key) & s->mask;
		if (((from - home) & s->mask) >= ((from - to) & s->mask)) {
			s->slots[to] = s->slots[from];
			to = from;
		}
	}
}
