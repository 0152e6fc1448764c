/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The policies that are compared. Each keeps what may go in one heap a queue (mem/lru.h), because a
 * page that gets children leaves its queue and comes back at its old place in the order.
 */
#include "sim.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "mem/lru.h"
#include "mem/policy.h"

#define QUEUES 4u

/* What a policy may need to remember: by slot for pages that are there, by number for those that
 * were. */
struct slot_state {
	uint8_t queue;
	uint8_t uses;
	uint64_t order; /* of a FIFO */
};

struct state {
	struct sim_size size;
	struct lru heap[QUEUES];
	uint64_t n[QUEUES]; /* pages, those that may not go too */
	struct slot_state *slots;
	struct ghosts ghosts;
	uint8_t *count; /* W-TinyLFU's sketch, without its errors */
	uint64_t counted;
	uint64_t order;
	double target; /* ARC's p */
};

/* The list of ghosts it is on, and no longer; -1: none. No policy here asks for times. */
static int remembered(struct state *s, const struct page *page)
{
	uint64_t ms;

	return ghosts_take(&s->ghosts, page_number(page), 0, &ms);
}

static void remember(struct state *s, const struct page *page, uint32_t list)
{
	ghosts_add(&s->ghosts, page_number(page), list, 0);
}

static void end(void *rival)
{
	struct state *s = rival;

	free(s->slots);
	ghosts_fini(&s->ghosts);
	free(s->count);
	free(s);
}

static void *make(const struct sim_size *size)
{
	struct state *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->size = *size;
	s->slots = calloc(size->pages, sizeof(*s->slots));
	s->count = calloc(size->footprint, sizeof(*s->count));
	if (s->slots && s->count && ghosts_init(&s->ghosts, size->pages) == 0)
		return s;
	end(s);
	return NULL;
}

static struct slot_state *slot_of(struct state *s, const struct page *page)
{
	return &s->slots[page->slot];
}

static void add(void *rival, struct page *page)
{
	struct state *s = rival;

	lru_add(&s->heap[slot_of(s, page)->queue], page);
}

static void add_fifo(void *rival, struct page *page)
{
	page->stamp = slot_of(rival, page)->order;
	add(rival, page);
}

static void take_out(void *rival, struct page *page)
{
	struct state *s = rival;

	lru_remove(&s->heap[slot_of(s, page)->queue], page);
}

/* Into a queue, as its youngest; not among those that may go at the time. */
static void enter(struct state *s, struct page *page, uint8_t queue)
{
	*slot_of(s, page) = (struct slot_state){.queue = queue, .order = ++s->order};
	s->n[queue]++;
}

static void move(struct state *s, struct page *page, uint8_t queue)
{
	bool in = page->in_lru;

	if (in)
		take_out(s, page);
	s->n[slot_of(s, page)->queue]--;
	slot_of(s, page)->queue = queue;
	s->n[queue]++;
	if (in)
		add(s, page);
}

static void nothing(void *rival, struct page *page)
{
	(void)rival;
	(void)page;
}

static void gone(void *rival, struct page *page)
{
	struct state *s = rival;

	s->n[slot_of(s, page)->queue]--;
}

/* ---- LRU, and with the future known ---- */

static void born_0(void *rival, struct page *page)
{
	enter(rival, page, 0);
}

static struct page *lru_victim(void *rival)
{
	struct state *s = rival;

	return lru_oldest(&s->heap[0]);
}

static void optimal_add(void *rival, struct page *page)
{
	page->stamp = ~sim_next_use[page_number(page)];
	add(rival, page);
}

/* ---- two queues of LRU: used once, used again ---- */

enum { ONCE, AGAIN };

static struct page *first_of(struct state *s, uint8_t queue)
{
	struct page *page = lru_oldest(&s->heap[queue]);

	return page ? page : lru_oldest(&s->heap[!queue]);
}

static void slru_hit(void *rival, struct page *page)
{
	struct state *s = rival;

	if (slot_of(s, page)->queue == ONCE)
		move(s, page, AGAIN);
	slot_of(s, page)->order = ++s->order;
}

static struct page *slru_victim(void *rival)
{
	struct state *s = rival;
	struct page *page;

	while (s->n[AGAIN] > s->size.pages / 2 && (page = lru_oldest(&s->heap[AGAIN])))
		move(s, page, ONCE);
	return first_of(s, ONCE);
}

/* ---- 2Q (Johnson and Shasha 1994) ---- */

static void twoq_born(void *rival, struct page *page)
{
	struct state *s = rival;

	enter(s, page, remembered(s, page) >= 0 ? AGAIN : ONCE);
}

/* In the first queue by the order of arrival, in the other by use. */
static void twoq_add(void *rival, struct page *page)
{
	struct state *s = rival;

	if (slot_of(s, page)->queue == ONCE)
		add_fifo(s, page);
	else
		add(s, page);
}

static struct page *twoq_victim(void *rival)
{
	struct state *s = rival;

	return first_of(s, s->n[ONCE] > s->size.pages / 4 ? ONCE : AGAIN);
}

static void twoq_gone(void *rival, struct page *page)
{
	struct state *s = rival;

	if (slot_of(s, page)->queue == ONCE)
		remember(s, page, 0);
	ghosts_bound(&s->ghosts, 0, s->size.pages / 2);
	gone(s, page);
}

/* ---- ARC (Megiddo and Modha 2003) ---- */

static void arc_born(void *rival, struct page *page)
{
	struct state *s = rival;
	double b1 = s->ghosts.list[ONCE].n, b2 = s->ghosts.list[AGAIN].n;
	int list = remembered(s, page);

	if (list == ONCE)
		s->target = fmin(s->size.pages, s->target + fmax(1, b2 / b1));
	else if (list == AGAIN)
		s->target = fmax(0, s->target - fmax(1, b1 / b2));
	enter(s, page, list < 0 ? ONCE : AGAIN);
}

static struct page *arc_victim(void *rival)
{
	struct state *s = rival;

	return first_of(s, (double)s->n[ONCE] > s->target ? ONCE : AGAIN);
}

static void arc_gone(void *rival, struct page *page)
{
	struct state *s = rival;
	uint8_t queue = slot_of(s, page)->queue;
	uint64_t all;

	gone(s, page);
	remember(s, page, queue);
	ghosts_bound(&s->ghosts, ONCE, s->n[ONCE] < s->size.pages ? s->size.pages - s->n[ONCE] : 0);
	all = s->n[0] + s->n[1] + s->ghosts.list[0].n;
	ghosts_bound(&s->ghosts, AGAIN,
		     all < 2ull * s->size.pages ? 2ull * s->size.pages - all : 0);
}

/* ---- S3-FIFO (Yang et al. 2023) ---- */

static void s3_born(void *rival, struct page *page)
{
	struct state *s = rival;

	enter(s, page, remembered(s, page) >= 0 ? AGAIN : ONCE);
}

static void s3_hit(void *rival, struct page *page)
{
	struct slot_state *slot = slot_of(rival, page);

	if (slot->uses < 3)
		slot->uses++;
}

static struct page *s3_next(void *rival, uint32_t uses)
{
	struct state *s = rival;

	for (;;) {
		uint8_t queue = s->n[ONCE] * 10 > s->size.pages ? ONCE : AGAIN;
		struct page *page = first_of(s, queue);
		struct slot_state *slot;

		if (!page)
			return NULL;
		slot = slot_of(s, page);
		queue = slot->queue;
		if (slot->uses < (queue == ONCE ? uses : 1))
			return page;
		take_out(s, page);
		slot->order = ++s->order;
		if (queue == ONCE) {
			s->n[ONCE]--;
			s->n[AGAIN]++;
			slot->queue = AGAIN;
			slot->uses = 0;
		} else {
			slot->uses--;
		}
		add_fifo(s, page);
	}
}

static struct page *s3_victim(void *rival)
{
	return s3_next(rival, 1);
}

static void s3_gone(void *rival, struct page *page)
{
	struct state *s = rival;

	if (slot_of(s, page)->queue == ONCE)
		remember(s, page, 0);
	ghosts_bound(&s->ghosts, 0, s->size.pages * 9ull / 10);
	gone(s, page);
}

/* ---- W-TinyLFU (Einziger, Friedman and Manes 2017) ---- */

enum { PROBATION, PROTECTED, WINDOW };

static void count(struct state *s, const struct page *page)
{
	uint8_t *n = &s->count[page_number(page)];

	if (*n < 15)
		++*n;
	if (++s->counted < 10ull * s->size.pages)
		return;
	for (uint32_t i = 0; i < s->size.footprint; i++)
		s->count[i] /= 2;
	s->counted = 0;
}

static void tinylfu_born(void *rival, struct page *page)
{
	count(rival, page);
	enter(rival, page, WINDOW);
}

static void tinylfu_hit(void *rival, struct page *page)
{
	struct state *s = rival;

	count(s, page);
	if (slot_of(s, page)->queue == PROBATION)
		move(s, page, PROTECTED);
}

static void let_in(struct state *s, struct page *page)
{
	for (; page && slot_of(s, page)->queue == WINDOW; page = page_parent(page))
		move(s, page, PROBATION);
}

/* The loser of window and main part. A page that is let in takes those before it along, which are
 * used as often. */
static struct page *tinylfu_victim(void *rival)
{
	struct state *s = rival;
	struct page *page, *main, *window;

	while (s->n[PROTECTED] > 0.8 * s->size.pages && (page = lru_oldest(&s->heap[PROTECTED])))
		move(s, page, PROBATION);
	/* As long as there was room nobody had to compete. */
	while (s->n[WINDOW] * 100 > s->size.pages &&
	       (s->n[PROBATION] + s->n[PROTECTED]) * 100 < s->size.pages * 99ull &&
	       (page = lru_oldest(&s->heap[WINDOW])))
		let_in(s, page);
	window = lru_oldest(&s->heap[WINDOW]);
	main = first_of(s, PROBATION);
	if (!window || !main)
		return window ? window : main;
	if (s->n[WINDOW] * 100 <= s->size.pages)
		return main;
	if (s->count[page_number(window)] <= s->count[page_number(main)])
		return window;
	let_in(s, window);
	return main;
}

/* ---- the daemon's ---- */

#define PAGE_BYTES (UINT64_C(1) << 20) /* all alike */

static void *daemon_make(const struct sim_size *size)
{
	struct policy *p = malloc(sizeof(*p));

	if (p)
		policy_init(p, size->pages);
	return p;
}

static void daemon_end(void *rival)
{
	struct policy *p = rival;

	ghosts_fini(&p->ghosts); /* not policy_fini: pages live */
	free(p);
}

static void daemon_born(void *rival, struct page *page)
{
	uint64_t away_ms;

	page->bytes = PAGE_BYTES;
	(void)policy_born(rival, page, 0, &away_ms);
}

static void daemon_hit(void *rival, struct page *page)
{
	policy_hit(rival, page);
}

static void daemon_add(void *rival, struct page *page)
{
	policy_add(rival, page);
}

static void daemon_remove(void *rival, struct page *page)
{
	policy_remove(rival, page);
}

static struct page *daemon_victim(void *rival)
{
	return policy_victim(rival);
}

static void daemon_gone(void *rival, struct page *page)
{
	policy_gone(rival, page, 0);
}

const struct rival rivals[] = {
    {"skvqd", "what the daemon does: ARC within bounds (mem/policy.h)", daemon_make, daemon_end,
     daemon_born, daemon_hit, daemon_add, daemon_remove, daemon_victim, daemon_gone},
    {"lru", "least recently used", make, end, born_0, nothing, add, take_out, lru_victim, gone},
    {"slru", "LRU; those used again have half of the room", make, end, born_0, slru_hit, add,
     take_out, slru_victim, gone},
    {"2q", "2Q", make, end, twoq_born, nothing, twoq_add, take_out, twoq_victim, twoq_gone},
    {"arc", "ARC", make, end, arc_born, slru_hit, add, take_out, arc_victim, arc_gone},
    {"s3-fifo", "S3-FIFO", make, end, s3_born, s3_hit, add_fifo, take_out, s3_victim, s3_gone},
    {"w-tinylfu", "W-TinyLFU, counts without errors", make, end, tinylfu_born, tinylfu_hit, add,
     take_out, tinylfu_victim, gone},
    {"optimal", "the one that is needed last, as if the future were known", make, end, born_0,
     nothing, optimal_add, take_out, lru_victim, gone},
};
const uint32_t n_rivals = sizeof(rivals) / sizeof(rivals[0]);
