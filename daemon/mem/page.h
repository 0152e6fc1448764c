/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/page.h - what the daemon knows of each page of an arena, and the states a page goes through.
 *
 * One table an arena, one entry a slot. The table hands out slots and generations and guards the
 * states; it does not know why a page lives or dies (cache/) nor where its bytes are (mem/arena.h).
 *
 *             copy begins          checked                on disk too
 *      FREE ───────────► FILLING ──────────► RESIDENT ◄──────────────► RESIDENT_STORED
 *      ▲ ▲ │                │ bad bytes         │     record is gone        │      ▲
 *      │ │ │                ▼                   ▼                           ▼      │ checked
 *      │ └─┼────────────────┴───────────────────┴───── dropped (no pins, ───┘      │
 *      │   │                                           no children)                │
 *      │   └─ read from disk begins ─► RESTORING ──────────────────────────────────┘
 *      └─────── bad, late, gone ──────────┘
 *
 * A page that is on disk alone has no entry here: the tier below knows it by its digest, and so it
 * is found in the same way before and after a restart. Loop thread only.
 */
#ifndef SKVQD_MEM_PAGE_H
#define SKVQD_MEM_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include <skvq/format.h>

enum page_state {
	PAGE_FREE = 0,
	PAGE_FILLING,
	PAGE_RESIDENT,
	PAGE_RESIDENT_STORED,
	PAGE_RESTORING,
	PAGE_STATES,
};

#define PAGE_NONE UINT32_MAX /* no slot */

struct page_table;
struct fill;
struct restore;

struct page {
	struct page_table *table;
	struct fill *fill;                            /* while PAGE_FILLING: cache/publish.c's */
	struct restore *restore;                      /* while its read is out: cache/restore.c's */
	struct page *lru_child, *lru_next, *lru_prev; /* mem/lru.c */
	struct page *spill_next, *spill_prev;         /* cache/spill.c */
	struct page *shed_next, *shed_prev;           /* cache/shed.c */
	bool in_lru;
	bool in_spill; /* waits to be offered to the tier below */
	bool in_shed;  /* its refinement may go */
	bool shed;     /* it has gone: the base alone is here */
	bool safe;     /* which of the namespace's layouts it has; set before cache_enlist */
	bool refused;  /* the tier did not want it so far */
	bool spilling; /* the tier has taken it and not answered yet */
	bool unlisted; /* not in the index: proved bad, goes when nobody has it any more */
	bool held; /* it cannot go, however short memory is: pinned, on its way, or a held page's parent */
	uint8_t queue; /* enum policy_queue; mem/policy.c's */
	uint8_t state; /* enum page_state; changed by page_move alone */
	uint32_t slot;
	uint32_t
	    generation;     /* of the present tenant of the slot, or of the next if free; never 0 */
	uint32_t pins;      /* over all connections */
	uint32_t refine_pins; /* of these, such as hold the refinement too */
	uint32_t children;  /* pages whose parent this is, being filled or living */
	uint32_t held_children; /* of these, held ones */
	uint32_t parent;    /* slot, PAGE_NONE for a first page; lives at least as long as this */
	uint32_t position;  /* of the first token */
	uint32_t hash;      /* cache/index.c */
	uint32_t hash_next; /* slot + 1, 0: last */
	uint32_t free_next;
	uint64_t stamp;   /* of the last use; one operation stamps all its pages alike */
	uint64_t bytes;   /* committed in the arena */
	uint64_t hits;    /* times a match found it */
	uint64_t born_ms; /* clock_ms */
	uint64_t used_ms;
	uint8_t digest[32];
	/* [SKVQ_PAGE_TOKENS]: those of the job that brings it; once it is readable its own, in the arena.
	 * NULL for one that did not come. */
	const int32_t *tokens;
};

struct page_table {
	struct page *pages; /* zero pages of the kernel until a slot is used */
	uint32_t slots;
	uint32_t touched; /* slots below this were used at some time */
	uint32_t free_head;
	uint32_t live; /* slots that are not free */
};

/* A page as clients name it. */
struct page_ref {
	uint32_t slot;
	uint32_t generation;
};

/* Whether a page may go from one state to another. Pure. */
bool page_legal(enum page_state from, enum page_state to);
const char *page_state_name(enum page_state state);

/* Changes the state. Asserts that it is legal; to PAGE_FREE also that the page has neither pins nor
 * children, and then the slot gets its next generation and goes back to the free list. */
void page_move(struct page *page, enum page_state to);

/* 0 or -SKVQ_ENOMEM. slots: 1..UINT32_MAX-1. */
int page_table_init(struct page_table *table, uint32_t slots);
void page_table_fini(struct page_table *table); /* a zeroed table is fine */

/* A free slot, moved to PAGE_FILLING or PAGE_RESTORING, everything but its generation cleared; NULL
 * if there is none. Valid until it moves to PAGE_FREE; the address stays for the life of the table.
 */
struct page *page_table_take(struct page_table *table, enum page_state state);
/* The page of an arena that another process left: exactly this slot and generation, moved to
 * PAGE_FILLING. For a fresh table, before any page_table_take, and page_table_adopted comes behind
 * the last. NULL: no such slot, it is taken, or the generation is 0. */
struct page *page_table_adopt(struct page_table *table, struct page_ref ref);
/* Slots that were left out are free, with generations that no adopted page has had. */
void page_table_adopted(struct page_table *table);
/* The page a handle means, or NULL: out of range, another generation, or free. */
struct page *page_table_get(const struct page_table *table, struct page_ref ref);

static inline struct page_ref page_ref(const struct page *page)
{
	return (struct page_ref){.slot = page->slot, .generation = page->generation};
}

static inline struct page *page_parent(const struct page *page)
{
	return page->parent == PAGE_NONE ? NULL : &page->table->pages[page->parent];
}

/* Whether clients can read it where it is. */
static inline bool page_readable(const struct page *page)
{
	return page->state == PAGE_RESIDENT || page->state == PAGE_RESIDENT_STORED;
}

#endif /* SKVQD_MEM_PAGE_H */
