/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/ghosts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

int ghosts_init(struct ghosts *g, uint32_t max)
{
	uint32_t buckets = 16;

	assert(max >= 1 && max <= 1u << 24);
	memset(g, 0, sizeof(*g));
	while (buckets < GHOST_LISTS * max)
		buckets *= 2;
	g->all = calloc((size_t)GHOST_LISTS * max, sizeof(*g->all));
	g->buckets = calloc(buckets, sizeof(*g->buckets));
	if (!g->all || !g->buckets) {
		ghosts_fini(g);
		return -SKVQ_ENOMEM;
	}
	g->mask = buckets - 1;
	g->max = max;
	return 0;
}

void ghosts_fini(struct ghosts *g)
{
	free(g->all);
	free(g->buckets);
	memset(g, 0, sizeof(*g));
}

/* Where the index + 1 of that key stands, or the 0 at the end of its bucket. */
static uint32_t *find(const struct ghosts *g, uint64_t key)
{
	uint32_t *at = &g->buckets[key & g->mask];

	while (*at && g->all[*at - 1].key != key)
		at = &g->all[*at - 1].next;
	return at;
}

static void forget(struct ghosts *g, uint32_t *at)
{
	uint32_t id = *at;
	struct ghost *ghost = &g->all[id - 1];

	if (ghost->older)
		g->all[ghost->older - 1].younger = ghost->younger;
	else
		g->list[ghost->list].oldest = ghost->younger;
	if (ghost->younger)
		g->all[ghost->younger - 1].older = ghost->older;
	else
		g->list[ghost->list].youngest = ghost->older;
	g->list[ghost->list].n--;
	*at = ghost->next;
	ghost->next = g->free;
	g->free = id;
}

static uint32_t tick_of(uint64_t ms)
{
	return (uint32_t)(ms / GHOST_TICK_MS) & (UINT32_MAX >> 1);
}

static uint64_t age_ms(const struct ghost *ghost, uint64_t now_ms)
{
	return (uint64_t)((tick_of(now_ms) - ghost->since) & (UINT32_MAX >> 1)) * GHOST_TICK_MS;
}

bool ghosts_know(const struct ghosts *g, uint64_t key, uint64_t now_ms, uint64_t *ret_ms)
{
	uint32_t at = g->all ? *find(g, key) : 0;

	*ret_ms = at ? age_ms(&g->all[at - 1], now_ms) : 0;
	return at != 0;
}

int ghosts_take(struct ghosts *g, uint64_t key, uint64_t now_ms, uint64_t *ret_ms)
{
	const struct ghost *ghost;
	uint32_t *at;
	int list;

	*ret_ms = 0;
	if (!g->all)
		return -1;
	at = find(g, key);
	if (!*at)
		return -1;
	ghost = &g->all[*at - 1];
	list = (int)ghost->list;
	*ret_ms = age_ms(ghost, now_ms);
	forget(g, at);
	return list;
}

void ghosts_bound(struct ghosts *g, uint32_t list, uint64_t n)
{
	while (g->list[list].n > n)
		forget(g, find(g, g->all[g->list[list].oldest - 1].key));
}

void ghosts_add(struct ghosts *g, uint64_t key, uint32_t list, uint64_t now_ms)
{
	uint32_t id, *bucket;
	struct ghost *ghost;
	uint64_t ms;

	if (!g->all)
		return;
	(void)ghosts_take(g, key, now_ms, &ms);
	ghosts_bound(g, list, g->max - 1);
	id = g->free;
	if (id)
		g->free = g->all[id - 1].next;
	else
		id = ++g->touched;
	ghost = &g->all[id - 1];
	bucket = &g->buckets[key & g->mask];
	*ghost = (struct ghost){.key = key,
				.next = *bucket,
				.older = g->list[list].youngest,
				.list = list & 1,
				.since = tick_of(now_ms)};
	*bucket = id;
	if (ghost->older)
		g->all[ghost->older - 1].younger = id;
	else
		g->list[list].oldest = id;
	g->list[list].youngest = id;
	g->list[list].n++;
}
