/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/policy.h"

#include <assert.h>
#include <string.h>

#define SHARE_ONE   (UINT64_C(1) << 32)
#define SHARE_LEAST (SHARE_ONE / 4)
#define SHARE_MOST  (SHARE_ONE - SHARE_LEAST)

static uint64_t key_of(const struct page *page)
{
	uint64_t key;

	memcpy(&key, page->digest, sizeof(key));
	return key;
}

static uint64_t all_bytes(const struct policy *p)
{
	return p->bytes[POLICY_ONCE] + p->bytes[POLICY_AGAIN];
}

static uint32_t ghosts_of(const struct policy *p, uint32_t queue)
{
	return p->ghosts.list[queue - 1].n;
}

void policy_init(struct policy *p, uint32_t ghosts_max)
{
	memset(p, 0, sizeof(*p));
	p->share = SHARE_ONE / 2;
	(void)ghosts_init(&p->ghosts, ghosts_max);
}

void policy_fini(struct policy *p)
{
	assert(p->pages[POLICY_ONCE] + p->pages[POLICY_AGAIN] == 0 && policy_may_go(p) == 0);
	ghosts_fini(&p->ghosts);
}

static void enter(struct policy *p, struct page *page, uint32_t queue)
{
	page->queue = (uint8_t)queue;
	p->bytes[queue] += page->bytes;
	p->pages[queue]++;
}

static void leave(struct policy *p, struct page *page)
{
	assert(p->pages[page->queue] > 0 && p->bytes[page->queue] >= page->bytes);
	p->bytes[page->queue] -= page->bytes;
	p->pages[page->queue]--;
	page->queue = POLICY_NONE;
}

/* A page of that queue came back: by its size, more if few of its queue are remembered and many of
 * the other. */
static void adapt(struct policy *p, const struct page *page, uint32_t queue)
{
	uint64_t own = ghosts_of(p, queue) + UINT64_C(1); /* it is taken already */
	uint64_t other = ghosts_of(p, POLICY_ONCE + POLICY_AGAIN - queue);
	uint64_t room = all_bytes(p) + page->bytes;
	/* page->bytes / room in units of 2^-32; room is below 2^47 (ram_max). */
	uint64_t step = (page->bytes << 16) / ((room >> 16) + 1);

	if (other > own)
		step = step * other / own;
	if (queue == POLICY_ONCE)
		p->share = p->share + step < SHARE_MOST ? p->share + step : SHARE_MOST;
	else
		p->share = p->share > SHARE_LEAST + step ? p->share - step : SHARE_LEAST;
}

bool policy_born(struct policy *p, struct page *page, uint64_t now_ms, uint64_t *ret_ms)
{
	int list = ghosts_take(&p->ghosts, key_of(page), now_ms, ret_ms);

	assert(page->queue == POLICY_NONE && !page->in_lru);
	if (list >= 0)
		adapt(p, page, (uint32_t)list + 1);
	enter(p, page, list < 0 ? POLICY_ONCE : POLICY_AGAIN);
	return list >= 0;
}

void policy_resized(struct policy *p, const struct page *page, uint64_t delta)
{
	if (page->queue != POLICY_NONE)
		p->bytes[page->queue] += delta;
}

void policy_hit(struct policy *p, struct page *page)
{
	assert(page->queue != POLICY_NONE);
	policy_remove(p, page);
	leave(p, page);
	enter(p, page, POLICY_AGAIN);
}

void policy_gone(struct policy *p, struct page *page, uint64_t now_ms)
{
	uint32_t queue = page->queue;

	policy_remove(p, page);
	if (queue == POLICY_NONE)
		return;
	leave(p, page);
	ghosts_add(&p->ghosts, key_of(page), queue - 1, now_ms);
	ghosts_bound(&p->ghosts, queue - 1, p->pages[POLICY_ONCE] + p->pages[POLICY_AGAIN]);
}

bool policy_gone_since(const struct policy *p, const uint8_t *digest, uint64_t now_ms,
		       uint64_t *ret_ms)
{
	uint64_t key;

	memcpy(&key, digest, sizeof(key));
	return ghosts_know(&p->ghosts, key, now_ms, ret_ms);
}

void policy_add(struct policy *p, struct page *page)
{
	assert(page->queue != POLICY_NONE);
	lru_add(&p->heap[page->queue], page);
}

void policy_remove(struct policy *p, struct page *page)
{
	lru_remove(&p->heap[page->queue], page);
}

struct page *policy_victim(const struct policy *p)
{
	uint64_t once_max = (all_bytes(p) >> 16) * p->share >> 16;
	uint32_t queue = p->bytes[POLICY_ONCE] > once_max ? POLICY_ONCE : POLICY_AGAIN;
	struct page *page = lru_oldest(&p->heap[queue]);

	return page ? page : lru_oldest(&p->heap[POLICY_ONCE + POLICY_AGAIN - queue]);
}

uint64_t policy_may_go(const struct policy *p)
{
	return p->heap[POLICY_ONCE].n + p->heap[POLICY_AGAIN].n;
}
