/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/admit.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#define TOUCH_WAYS 8u
#define DAY_MS     UINT64_C(86400000)

int touches_init(struct touches *t, uint32_t entries)
{
	*t = (struct touches){.groups = entries / TOUCH_WAYS};
	if (!t->groups)
		return 0;
	t->tags = calloc((size_t)t->groups * TOUCH_WAYS, sizeof(*t->tags));
	return t->tags ? 0 : -SKVQ_ENOMEM;
}

void touches_fini(struct touches *t)
{
	free(t->tags);
	*t = (struct touches){.groups = 0};
}

bool touches_again(struct touches *t, uint64_t hash)
{
	uint32_t *group, tag = (uint32_t)hash ? (uint32_t)hash : 1; /* 0: empty */
	uint32_t at;

	if (!t->tags)
		return true;
	group = t->tags + ((hash >> 32) * t->groups >> 32) * TOUCH_WAYS;
	for (at = 0; at < TOUCH_WAYS - 1 && group[at] != tag; at++)
		;
	if (group[at] == tag)
		return true;
	memmove(group + 1, group, (TOUCH_WAYS - 1) * sizeof(*group));
	group[0] = tag;
	return false;
}

void budget_init(struct budget *b, uint64_t per_day, uint64_t least, uint64_t now_ms)
{
	*b = (struct budget){.per_day = per_day, .burst = per_day / 24, .since_ms = now_ms};
	if (b->burst < least)
		b->burst = least;
}

void budget_set(struct budget *b, uint64_t per_day, uint64_t least, uint64_t now_ms)
{
	uint64_t level;

	(void)budget_has(b, 0, now_ms); /* what has come by now came by the old one */
	level = b->level;
	budget_init(b, per_day, least, now_ms);
	b->level = level < b->burst ? level : b->burst;
}

bool budget_has(struct budget *b, uint64_t bytes, uint64_t now_ms)
{
	uint64_t passed = now_ms > b->since_ms ? now_ms - b->since_ms : 0;
	unsigned __int128 gain;

	if (!b->per_day)
		return true;
	if (passed) {
		gain = (unsigned __int128)(b->per_day - b->per_day / 24) * passed + b->rest;
		b->since_ms = now_ms;
		b->rest = (uint64_t)(gain % DAY_MS);
		gain /= DAY_MS;
		b->level = gain > b->burst - b->level ? b->burst : b->level + (uint64_t)gain;
	}
	return bytes <= b->level;
}

void budget_take(struct budget *b, uint64_t bytes)
{
	if (!b->per_day)
		return;
	assert(bytes <= b->level);
	b->level -= bytes;
}
