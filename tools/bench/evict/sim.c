/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"

#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

const uint64_t *sim_next_use;

struct sim {
	const struct rival *rival;
	void *state;
	struct page_table table;
	struct page **there; /* by number; NULL: not in the cache */
	uint64_t *next_use;  /* by number */
	uint64_t *next_of;   /* by place in the trace */
	uint64_t stamp;
	struct sim_result *result;
};

static void settle(struct sim *s, struct page *page)
{
	bool may_go = page->state == PAGE_RESIDENT && page->pins == 0 && page->children == 0;

	if (may_go == page->in_lru)
		return;
	if (may_go)
		s->rival->add(s->state, page);
	else
		s->rival->remove(s->state, page);
	page->in_lru = may_go;
}

static void drop(struct sim *s, struct page *page)
{
	struct page *parent = page_parent(page);

	s->rival->remove(s->state, page);
	page->in_lru = false;
	s->rival->evicted(s->state, page);
	s->there[page_number(page)] = NULL;
	page_move(page, PAGE_FREE);
	if (parent) {
		parent->children--;
		settle(s, parent);
	}
	s->result->evictions++;
}

static struct page *publish(struct sim *s, uint32_t number, struct page *parent, uint32_t position)
{
	struct page *page = NULL;

	if (s->table.live == s->table.slots) {
		page = s->rival->victim(s->state);
		if (!page)
			return NULL;
		drop(s, page);
	}
	page = page_table_take(&s->table, PAGE_FILLING);
	page->position = position;
	memcpy(page->digest, &number, sizeof(number));
	if (parent) {
		page->parent = parent->slot;
		parent->children++;
		settle(s, parent);
	}
	s->there[number] = page;
	page->stamp = ++s->stamp;
	page_move(page, PAGE_RESIDENT);
	s->rival->born(s->state, page);
	page->pins++;
	return page;
}

static void use(struct sim *s, struct page *page)
{
	if (page->in_lru)
		s->rival->remove(s->state, page);
	page->in_lru = false;
	page->stamp = s->stamp;
	page->hits++;
	s->rival->hit(s->state, page);
	page->pins++;
}

/* A sequence that opens, publishes what was not there, and closes. */
static void serve(struct sim *s, const struct request *r, const uint32_t *pages)
{
	struct page *page = NULL;
	uint32_t n = 0, have;

	for (uint32_t i = 0; i < r->n_all; i++)
		s->next_use[pages[i]] = s->next_of[r->first + i];
	s->stamp++;
	while (n < r->n && s->there[pages[n]]) {
		page = s->there[pages[n++]];
		use(s, page);
	}
	s->result->asked += r->n;
	s->result->hit += n;
	for (have = n; have < r->n_all; have++) {
		struct page *here = s->there[pages[have]];

		/* It may be there though it was not asked for. */
		if (here)
			use(s, here);
		else
			here = publish(s, pages[have], page, have * SKVQ_PAGE_TOKENS);
		if (!here)
			break; /* nothing may go: the rest is not cached */
		page = here;
	}
	s->stamp++;
	for (uint32_t i = 0; i < have; i++) {
		page = s->there[pages[i]];
		page->pins--;
		page->stamp = s->stamp;
		settle(s, page);
	}
}

static void find_next_uses(struct sim *s, const struct trace *t)
{
	for (uint32_t i = 0; i < t->footprint; i++)
		s->next_use[i] = UINT64_MAX;
	for (uint32_t r = t->n_requests; r-- > 0;) {
		const struct request *q = &t->requests[r];

		for (uint64_t i = q->first; i < q->first + q->n_all; i++) {
			s->next_of[i] = s->next_use[t->pages[i]];
			s->next_use[t->pages[i]] = r;
		}
	}
}

static void end(struct sim *s)
{
	if (s->state)
		s->rival->end(s->state);
	page_table_fini(&s->table);
	free(s->there);
	free(s->next_use);
	free(s->next_of);
}

int sim_run(const struct trace *trace, const struct rival *rival, uint32_t pages,
	    struct sim_result *ret)
{
	struct sim_size size = {.pages = pages, .footprint = trace->footprint};
	struct sim s = {.rival = rival, .result = ret};
	struct timespec from, to;

	memset(ret, 0, sizeof(*ret));
	s.there = calloc(trace->footprint, sizeof(*s.there));
	s.next_use = malloc(trace->footprint * sizeof(*s.next_use));
	s.next_of = malloc(trace->n_pages * sizeof(*s.next_of));
	s.state = rival->make(&size);
	if (!s.there || !s.next_use || !s.next_of || !s.state ||
	    page_table_init(&s.table, pages) < 0) {
		end(&s);
		return -1;
	}
	find_next_uses(&s, trace);
	sim_next_use = s.next_use;
	(void)clock_gettime(CLOCK_MONOTONIC, &from);
	for (uint32_t i = 0; i < trace->n_requests; i++) {
		const struct request *r = &trace->requests[i];

		serve(&s, r, trace->pages + r->first);
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &to);
	ret->seconds =
	    (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
	end(&s);
	return 0;
}
