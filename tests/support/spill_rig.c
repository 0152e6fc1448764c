/* SPDX-License-Identifier: Apache-2.0 */
#include "support/spill_rig.h"

#include <string.h>

#include "unit/cmocka_all.h"
#include "unit/seeded.h"

static void fill(void *at, uint64_t bytes, uint64_t seed)
{
	struct seeded s = {seed};
	uint8_t *p = at;

	for (; bytes >= 8; bytes -= 8, p += 8) {
		uint64_t v = seeded_u64(&s);

		memcpy(p, &v, 8);
	}
	for (; bytes; bytes--)
		*p++ = (uint8_t)seeded_u64(&s);
}

void rig_key(uint64_t id, struct tier_key *ret_key)
{
	fill(ret_key->page, sizeof(ret_key->page), id * 4 + 1);
	fill(ret_key->ns, sizeof(ret_key->ns), id % 3);
}

void rig_page(uint64_t id, void *buf, struct tier_page *ret_page)
{
	struct seeded s = {id * 4 + 2};
	uint8_t *at = buf;

	*ret_page = (struct tier_page){.position = id * 80, .flags = (uint32_t)id & 7};
	rig_key(id, &ret_page->key);
	fill(ret_page->parent, sizeof(ret_page->parent), id * 4 + 3);
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = 1 + seeded_below(&s, i == TIER_BASE ? 12000 : 5000);

		if (i != TIER_BASE && seeded_below(&s, 2))
			continue;
		fill(at, bytes, id * 16 + (uint64_t)i);
		for (uint32_t j = 0; id % 2 && j < bytes; j++)
			at[j] &= 0x1f; /* every second page can be compressed */
		ret_page->section[i].data = at;
		ret_page->section[i].bytes = bytes;
		at += bytes;
	}
}

uint64_t rig_wrong(uint64_t id, const struct tier_page *page)
{
	static uint8_t buf[RIG_PAGE_BYTES];
	struct tier_page want;
	uint64_t wrong;

	rig_page(id, buf, &want);
	wrong = memcmp(&want.key, &page->key, sizeof(want.key)) != 0;
	wrong += memcmp(want.parent, page->parent, sizeof(want.parent)) != 0;
	wrong += want.position != page->position;
	wrong += want.flags != page->flags;
	for (int i = 0; i < TIER_SECTIONS; i++) {
		const uint8_t *a = want.section[i].data, *b = page->section[i].data;

		if (want.section[i].bytes != page->section[i].bytes) {
			wrong++;
			continue;
		}
		for (uint32_t j = 0; j < want.section[i].bytes; j++)
			wrong += a[j] != b[j];
	}
	return wrong;
}

void rig_options(struct store_options *o)
{
	store_options_default(o);
	o->write_bytes_per_day = 0;
	o->segment_bytes = 128 << 10;
	o->record_bytes = 32 << 10;
	o->capacity_bytes = 6 * ((128 << 10) + (32 << 10));
	o->capacity_bytes = o->capacity_bytes < 1 << 20 ? 1 << 20 : o->capacity_bytes;
	o->buffers = 8;
	o->gets_queued = 32;
	o->io_timeout_ms = 500;
	o->sync_ms = 50;
	o->sync_bytes = 64 << 10;
	o->touch_entries = 0;
}

struct store *rig_open(const struct store_options *options, struct spill_io *io)
{
	struct store *store = NULL;
	struct why why = {""};
	int r = store_open(options, io, &store, &why);

	if (r < 0)
		print_error("store_open: %s\n", why.text);
	assert_int_equal(r, 0);
	return store;
}

struct answer {
	bool done;
	int status;
	uint64_t id, wrong;
};

static void on_put(void *ctx, int status)
{
	struct answer *a = ctx;

	assert_false(a->done);
	a->done = true;
	a->status = status;
}

static void on_get(void *ctx, int status, const struct tier_page *page)
{
	struct answer *a = ctx;

	on_put(ctx, status);
	assert_int_equal(status == 0, page != NULL);
	if (page)
		a->wrong = rig_wrong(a->id, page);
}

static void until(struct store *store, const bool *done)
{
	for (int i = 0; !*done; i++) {
		assert_true(i < 100000);
		store_step(store, 1000);
	}
}

int rig_put(struct store *store, uint64_t id, uint32_t flags)
{
	static uint8_t buf[RIG_PAGE_BYTES];
	struct tier *tier = store_tier(store);
	struct answer a = {.done = false};
	struct tier_page page;
	int r;

	rig_page(id, buf, &page);
	r = tier->ops->put(tier, &page, flags, on_put, &a);
	if (r <= 0)
		return r;
	memset(buf, 0xee, sizeof(buf)); /* it was copied */
	until(store, &a.done);
	return a.status;
}

int rig_get(struct store *store, uint64_t id)
{
	struct tier *tier = store_tier(store);
	struct answer a = {.id = id};
	struct tier_key key;
	int r;

	rig_key(id, &key);
	r = tier->ops->get(tier, &key, 10000, on_get, &a);
	if (r <= 0)
		return r;
	until(store, &a.done);
	assert_int_equal(a.wrong, 0);
	return a.status ? a.status : 1;
}

int rig_flush(struct store *store)
{
	struct answer a = {.done = false};

	assert_int_equal(store_flush(store, on_put, &a), 0);
	until(store, &a.done);
	return a.status;
}

void rig_settle(struct store *store, uint32_t ms)
{
	for (uint32_t i = 0; i < ms / 5; i++)
		store_step(store, 5);
}

bool rig_contains(struct store *store, uint64_t id)
{
	struct tier_key key;

	rig_key(id, &key);
	return store_tier(store)->ops->contains(store_tier(store), &key);
}
