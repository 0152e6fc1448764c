/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/page.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#define TO(state) (1u << PAGE_##state)

/* Every legal transition. Anything else is a bug. */
static const struct {
	const char *name;
	uint32_t to;
} states[PAGE_STATES] = {
    [PAGE_FREE] = {"free", TO(FILLING) | TO(RESTORING)},
    [PAGE_FILLING] = {"filling", TO(RESIDENT) | TO(FREE)},
    [PAGE_RESIDENT] = {"resident", TO(RESIDENT_STORED) | TO(FREE)},
    [PAGE_RESIDENT_STORED] = {"resident+stored", TO(RESIDENT) | TO(FREE)},
    [PAGE_RESTORING] = {"restoring", TO(RESIDENT_STORED) | TO(FREE)},
};

bool page_legal(enum page_state from, enum page_state to)
{
	return from < PAGE_STATES && to < PAGE_STATES && (states[from].to >> to & 1u);
}

const char *page_state_name(enum page_state state)
{
	assert(state < PAGE_STATES);
	return states[state].name;
}

void page_move(struct page *page, enum page_state to)
{
	struct page_table *table = page->table;

	assert(page_legal((enum page_state)page->state, to));
	page->state = (uint8_t)to;
	if (to != PAGE_FREE)
		return;
	assert(page->pins == 0 && page->children == 0 && !page->in_lru && !page->in_spill &&
	       !page->in_shed && page->refine_pins == 0 && !page->held &&
	       page->held_children == 0 && !page->restore);
	page->generation++;
	if (page->generation == 0)
		page->generation = 1;
	page->free_next = table->free_head;
	table->free_head = page->slot;
	assert(table->live > 0);
	table->live--;
}

int page_table_init(struct page_table *table, uint32_t slots)
{
	assert(slots >= 1 && slots < PAGE_NONE);
	memset(table, 0, sizeof(*table));
	table->pages = calloc(slots, sizeof(*table->pages));
	if (!table->pages)
		return -SKVQ_ENOMEM;
	table->slots = slots;
	table->free_head = PAGE_NONE;
	return 0;
}

void page_table_fini(struct page_table *table)
{
	free(table->pages);
	memset(table, 0, sizeof(*table));
}

struct page *page_table_take(struct page_table *table, enum page_state state)
{
	struct page *page;
	uint32_t slot, generation;

	if (table->free_head != PAGE_NONE) {
		slot = table->free_head;
		page = &table->pages[slot];
		table->free_head = page->free_next;
		generation = page->generation;
	} else if (table->touched < table->slots) {
		slot = table->touched++;
		page = &table->pages[slot];
		generation = 1;
	} else {
		return NULL;
	}
	assert(page->state == PAGE_FREE);
	memset(page, 0, sizeof(*page));
	page->table = table;
	page->slot = slot;
	page->generation = generation;
	page->parent = PAGE_NONE;
	page->free_next = PAGE_NONE;
	table->live++;
	page_move(page, state);
	return page;
}

struct page *page_table_adopt(struct page_table *table, struct page_ref ref)
{
	struct page *page;

	if (ref.slot >= table->slots || ref.generation == 0 || table->pages[ref.slot].table)
		return NULL;
	assert(table->free_head == PAGE_NONE);
	page = &table->pages[ref.slot];
	page->table = table;
	page->slot = ref.slot;
	page->generation = ref.generation;
	page->parent = PAGE_NONE;
	page->free_next = PAGE_NONE;
	table->live++;
	if (table->touched <= ref.slot)
		table->touched = ref.slot + 1;
	page_move(page, PAGE_FILLING);
	return page;
}

void page_table_adopted(struct page_table *table)
{
	uint32_t newest = 0;

	for (uint32_t i = 0; i < table->touched; i++) {
		if (table->pages[i].generation > newest)
			newest = table->pages[i].generation;
	}
	for (uint32_t i = table->touched; i-- > 0;) {
		struct page *page = &table->pages[i];

		if (page->table)
			continue;
		page->table = table;
		page->slot = i;
		page->generation = newest == UINT32_MAX ? 1 : newest + 1;
		page->free_next = table->free_head;
		table->free_head = i;
	}
}

struct page *page_table_get(const struct page_table *table, struct page_ref ref)
{
	struct page *page;

	if (ref.slot >= table->touched || ref.generation == 0)
		return NULL;
	page = &table->pages[ref.slot];
	if (page->state == PAGE_FREE || page->generation != ref.generation)
		return NULL;
	return page;
}
