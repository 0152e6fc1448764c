/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/sweep.h"

#include <skvq/error.h>

#include "base/clock.h"

#define SLICE_US 1000u
/* Slots: as many as a mask has bits. */
#define WINDOW 64u
/* Windows between looks at the clock where there is little to do. */
#define WINDOWS 16u

/* What a window's step came to. */
enum step { STEP_ON, STEP_WAIT };

/* ---- where ---- */

/* The namespace of the cursor, or the next one: newest first, so numbers fall. */
static struct ns *ns_at(const struct cache *cache, struct sweep *s)
{
	for (struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		if (ns->tenant != s->tenant || (s->ns && ns->id != s->ns) ||
		    (s->at_ns && ns->id > s->at_ns))
			continue;
		if (ns->id != s->at_ns) {
			s->at_ns = ns->id;
			s->at_slot = 0;
			s->up.generation = s->put_at = 0;
		}
		return ns;
	}
	return NULL;
}

static void next_ns(struct sweep *s, const struct ns *ns)
{
	s->over = ns->id == 1 || s->ns;
	s->at_ns = s->over ? 0 : ns->id - 1;
	s->at_slot = 0;
	s->up.generation = 0;
}

static uint32_t window_end(const struct sweep *s, const struct ns *ns)
{
	/* Whether a page is behind another costs a walk. */
	uint32_t n = s->page.generation ? 1 : WINDOW;

	return ns->table.touched - s->at_slot < n ? ns->table.touched : s->at_slot + n;
}

static void next_window(struct sweep *s, uint32_t end)
{
	s->at_slot = end;
	s->put_at = 0;
	s->put = s->budget = 0;
}

/* ---- which ---- */

static bool is_behind(const struct page *page, const struct page *first)
{
	while (page && page != first && page->position > first->position)
		page = page_parent(page);
	return page == first;
}

static bool is_meant(const struct sweep *s, const struct page *page)
{
	const struct page *first;

	if (!page_readable(page) || page->unlisted)
		return false;
	if (s->idle_ms && clock_ms() - page->used_ms < s->idle_ms)
		return false;
	if (!s->page.generation)
		return true;
	first = page_table_get(page->table, s->page);
	return first && is_behind(page, first);
}

static bool may_go(const struct sweep *s, const struct page *page)
{
	return is_meant(s, page) && !page->held && !page->pins && !page->fill && !page->restore;
}

static bool is_there(const struct sweep *s, const struct page *page)
{
	return s->drop || !s->tenant->tier || spill_is_below(page);
}

/* ---- counting ---- */

static void count(struct sweep *s, const struct page *page)
{
	if (!is_meant(s, page))
		return;
	if (!may_go(s, page)) {
		s->held++;
		return;
	}
	s->pages++;
	s->bytes += page->bytes;
	if (spill_is_below(page))
		return;
	s->unwritten++;
	s->unwritten_bytes += page->bytes;
}

static enum step count_window(struct sweep *s, struct ns *ns)
{
	uint32_t end = window_end(s, ns);

	for (uint32_t i = s->at_slot; i < end; i++)
		count(s, &ns->table.pages[i]);
	next_window(s, end);
	return STEP_ON;
}

/* ---- writing ---- */

static bool is_to_write(const struct sweep *s, const struct page *page)
{
	const struct tier *tier = s->tenant->tier;
	bool meant = s->kind == SWEEP_EVICT ? may_go(s, page) : is_meant(s, page);

	return meant && tier && !s->drop && page->bytes <= tier->page_bytes_max &&
	       !page->spilling && !spill_is_below(page);
}

/* STEP_ON: every page of the window is below, or has been refused. */
static enum step write_window(struct cache *cache, struct sweep *s, struct ns *ns, uint32_t end)
{
	uint64_t until = clock_us() + SLICE_US;

	if (!s->put_at)
		s->put_at = s->at_slot;
	for (; s->put_at < end; s->put_at++) {
		struct page *page = &ns->table.pages[s->put_at];
		uint64_t bit = UINT64_C(1) << (s->put_at - s->at_slot);
		int r;

		if (!is_to_write(s, page))
			continue;
		if (s->stop || clock_us() >= until)
			return STEP_WAIT;
		r = spill_put(cache, page);
		if (r == -SKVQ_EBUSY || r == -SKVQ_ENOSPC || r == -SKVQ_ENOMEM)
			return STEP_WAIT; /* no buffer, no segment: soon */
		s->put |= r == 1 ? bit : 0;
		s->budget |= r == -SKVQ_ELIMIT ? bit : 0;
	}
	for (uint32_t i = s->at_slot; i < end; i++) {
		if (ns->table.pages[i].spilling && is_meant(s, &ns->table.pages[i]))
			return STEP_WAIT;
	}
	return STEP_ON;
}

/* What of the window was offered in this round. */
static void count_written(struct sweep *s, const struct page *page, uint64_t bit)
{
	if (!(s->put & bit) || !page_readable(page) || !spill_is_below(page))
		return;
	s->written++;
	s->written_bytes += page->bytes;
}

static void count_refused(struct sweep *s, uint64_t bit)
{
	s->refused++;
	s->over_budget += (s->budget & bit) != 0;
}

static enum step drain_window(struct cache *cache, struct sweep *s, struct ns *ns)
{
	uint32_t end = window_end(s, ns);

	if (write_window(cache, s, ns, end) == STEP_WAIT)
		return STEP_WAIT;
	for (uint32_t i = s->at_slot; i < end; i++) {
		const struct page *page = &ns->table.pages[i];
		uint64_t bit = UINT64_C(1) << (i - s->at_slot);

		count_written(s, page, bit);
		if (!is_meant(s, page))
			continue;
		if (!spill_is_below(page)) {
			count_refused(s, bit);
			continue;
		}
		s->pages++;
		s->bytes += page->bytes;
	}
	next_window(s, end);
	return STEP_ON;
}

/* ---- going ---- */

/* The page, and those it hung on, as far as they may go; the rest of a long chain later. */
static void go_up(struct cache *cache, struct sweep *s, struct page *page)
{
	uint64_t until = clock_us() + SLICE_US;

	while (page && may_go(s, page) && !page->children && is_there(s, page)) {
		if (clock_us() >= until) {
			s->up = page_ref(page);
			return;
		}
		s->pages++;
		s->bytes += page->bytes;
		page = cache_evict(cache, page, s->drop);
	}
	s->up.generation = 0;
}

static enum step evict_window(struct cache *cache, struct sweep *s, struct ns *ns)
{
	uint32_t end = window_end(s, ns);
	uint64_t until;

	if (s->up.generation) {
		go_up(cache, s, page_table_get(&ns->table, s->up));
		if (s->up.generation)
			return STEP_ON;
	}
	if (write_window(cache, s, ns, end) == STEP_WAIT)
		return STEP_WAIT;
	for (uint32_t i = s->at_slot; i < end; i++)
		count_written(s, &ns->table.pages[i], UINT64_C(1) << (i - s->at_slot));
	until = clock_us() + SLICE_US;
	for (uint32_t i = s->at_slot; i < end; i++) {
		struct page *page = &ns->table.pages[i];

		if (!is_meant(s, page))
			continue;
		if (!may_go(s, page))
			s->held++;
		else if (!is_there(s, page))
			count_refused(s, UINT64_C(1) << (i - s->at_slot));
		else
			go_up(cache, s, page);
		/* Then the window ends here; what was behind this slot makes another. */
		if (s->up.generation || clock_us() >= until)
			end = i + 1;
	}
	next_window(s, end);
	return STEP_ON;
}

/* ---- checking ---- */

static void checked(void *ctx, enum check_end end, uint64_t bytes)
{
	struct sweep *s = ctx;

	s->n_out--;
	if (end == CHECK_GOOD || end == CHECK_BAD) {
		s->pages++;
		s->bytes += bytes;
		s->damaged += end == CHECK_BAD;
	}
	s->wake(s);
}

/* Half of the workers are others'. */
static enum step verify_window(struct cache *cache, struct sweep *s, struct ns *ns)
{
	uint32_t end = window_end(s, ns), most = (cache->worker->n_threads + 1) / 2;

	for (; s->at_slot < end; s->at_slot++) {
		struct page *page = &ns->table.pages[s->at_slot];

		if (!is_meant(s, page) || page->fill)
			continue;
		if (s->stop || s->n_out == most || cache_check(cache, page, checked, s) < 0)
			return STEP_WAIT;
		s->n_out++;
	}
	return STEP_ON;
}

/* ---- the round ---- */

static enum step step(struct cache *cache, struct sweep *s, struct ns *ns)
{
	switch (s->kind) {
	case SWEEP_COUNT:
		return count_window(s, ns);
	case SWEEP_EVICT:
		return evict_window(cache, s, ns);
	case SWEEP_DRAIN:
		return drain_window(cache, s, ns);
	default:
		return verify_window(cache, s, ns);
	}
}

bool cache_sweep(struct cache *cache, struct sweep *s)
{
	uint64_t until = clock_us() + SLICE_US;
	struct ns *ns;

	s->cache = cache;
	for (uint32_t n = 1; !s->over && !s->stop && !cache->closing; n++) {
		ns = ns_at(cache, s);
		if (!ns) {
			s->over = true;
			s->at_ns = s->at_slot = 0;
			break;
		}
		if (s->at_slot >= ns->table.touched && !s->up.generation)
			next_ns(s, ns);
		else if (step(cache, s, ns) == STEP_WAIT)
			break;
		/* Whether a page is behind another costs a walk, as long as its sequence. */
		if ((n % WINDOWS == 0 || s->kind == SWEEP_EVICT || s->page.generation) &&
		    clock_us() >= until)
			break;
	}
	return s->n_out || !(s->over || s->stop || cache->closing);
}
