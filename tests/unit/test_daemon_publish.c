/* SPDX-License-Identifier: Apache-2.0 */
/* cache/publish: copies are checked, equal pages are one page, and nobody pays for another's. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/error.h>

#include "base/crc32c.h"
#include "cache/fill.h"
#include "support/cache_rig.h"
#include "support/page_maker.h"

static int publish(struct rig *rig, struct rig_publish *rp)
{
	int r = cache_publish(&rig->cache, &rp->p, &rp->why);

	return r == 0 ? rig_wait(rig, rp) : r;
}

static void a_page_is_complete(void **state)
{
	static const uint8_t zeros[IDENTITY_DIGEST];
	struct page *chain[2];
	skvq_page_header h[2];
	const uint8_t *at;
	uint32_t crc;
	struct rig rig;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 2, chain);
	for (int i = 0; i < 2; i++) {
		at = rig.ns->arena.base + ns_page_offset(rig.ns, chain[i]);
		memcpy(&h[i], at, sizeof(h[i]));
		assert_int_equal(h[i].position, 80 * i);
		assert_memory_equal(h[i].identity, rig.ns->digest, IDENTITY_DIGEST);
		assert_memory_equal(h[i].digest, chain[i]->digest, IDENTITY_DIGEST);
		assert_memory_equal(h[i].parent, i ? h[0].digest : zeros, IDENTITY_DIGEST);
		assert_int_equal(h[i].crc_base, crc32c(at + 256, h[i].base_bytes - 256));
		if (h[i].sidecar_bytes)
			assert_int_equal(h[i].crc_sidecar,
					 crc32c(at + h[i].base_bytes, h[i].sidecar_bytes));
		crc = h[i].crc_header;
		h[i].crc_header = 0;
		assert_int_equal(crc, crc32c(&h[i], sizeof(h[i])));
		assert_int_equal(chain[i]->bytes, h[i].base_bytes + h[i].sidecar_bytes);
	}
	assert_int_not_equal(h[0].sidecar_bytes, 0);
	rig_fini(&rig);
}

static void an_equal_page_is_returned(void **state)
{
	struct page *chain[2];
	struct rig_publish rp;
	struct rig rig;
	uint64_t bytes;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 2, chain);
	bytes = rig.cache.bytes;
	rig_prepare(&rig, &rp, &rig.pins, chain[0], 1, 3);
	assert_int_equal(publish(&rig, &rp), 1);
	assert_ptr_equal(rp.p.page, chain[1]);
	assert_true(rp.p.existed);
	assert_int_equal(chain[1]->pins, 2);
	assert_int_equal(rig.cache.bytes, bytes);
	assert_int_equal(rig.stats.n[STAT_publishes_existed], 1);
	rig_fini(&rig);
}

static void say_errors(struct rig *rig, const struct rig_publish *rp, uint16_t k, uint16_t v)
{
	for (uint32_t i = 0; i < MAKER_LAYERS; i++) {
		uint8_t *at = rig->staging_map + rp->p.offset + rig->layout.layers_offset +
			      i * sizeof(skvq_page_layer);

		memcpy(at + offsetof(skvq_page_layer, k_error), &k, sizeof(k));
		memcpy(at + offsetof(skvq_page_layer, v_error), &v, sizeof(v));
	}
}

/* Pages of both kinds in one chain: each has its own bytes, and they are given back. */
static void safe_pages_are_pages(void **state)
{
	struct rig_publish rp[3];
	struct rig rig;
	struct page *parent = NULL;
	uint64_t bytes = 0;

	(void)state;
	rig_init(&rig, 16, 100, NULL);
	assert_true(rig.ns->has_safe);
	assert_int_equal(rig.ns->safe.slot_bytes, rig.ns->layout.slot_bytes);
	for (uint32_t i = 0; i < 3; i++) {
		const struct skvq_layout *l = i % 2 ? &rig.layout : &rig.ns->safe;
		skvq_page_header h;
		const uint8_t *at;
		uint32_t crc;

		rig_prepare(&rig, &rp[i], &rig.pins, parent, 1, i);
		if (i % 2 == 0)
			rig_make_safe(&rig, &rp[i], 1);
		say_errors(&rig, &rp[i], 0x3000, 0x3400);
		assert_int_equal(publish(&rig, &rp[i]), 0);
		parent = rp[i].p.page;
		assert_int_equal(parent->bytes, skvq_layout_page_bytes(l, 80 * i));
		bytes += parent->bytes;
		assert_int_equal(rig.ns->bytes, bytes);
		assert_int_equal(rig.cache.bytes, bytes);
		at = rig.ns->arena.base + ns_page_offset(rig.ns, parent);
		memcpy(&h, at, sizeof(h));
		assert_int_equal(!!(h.flags & SKVQ_PAGE_SAFE), i % 2 == 0);
		assert_int_equal(h.base_bytes, l->base_bytes);
		assert_int_equal(h.crc_base, crc32c(at + 256, h.base_bytes - 256));
		if (h.sidecar_bytes)
			assert_int_equal(h.crc_sidecar, crc32c(at + h.base_bytes, h.sidecar_bytes));
		crc = h.crc_header;
		h.crc_header = 0;
		assert_int_equal(crc, crc32c(&h, sizeof(h)));
	}
	assert_true(cache_kernel_bytes(&rig.cache) >= bytes);
	assert_int_equal(rig.stats.n[STAT_pages_safe], 2);
	assert_int_equal(rig.ns->pages_safe, 2);
	/* K of a safe page has other bits than the layer: only V counts. */
	assert_int_equal(rig.ns->errors[0].pages, 1);
	assert_int_equal(rig.ns->errors[1].pages, 3);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	for (uint32_t i = 3; i-- > 0;)
		(void)cache_drop(&rig.cache, rp[i].p.page);
	assert_int_equal(rig.cache.bytes, 0);
	assert_int_equal(cache_kernel_bytes(&rig.cache), 0);
	rig_fini(&rig);
}

/* What a publisher says of a page is what its header must say. */
static void a_lie_about_safety_is_refused(void **state)
{
	struct rig_publish rp;
	struct rig rig;
	uint8_t *at;

	(void)state;
	rig_init(&rig, 16, 100, NULL);
	for (uint32_t i = 0; i < 4; i++) {
		rig_prepare(&rig, &rp, &rig.pins, NULL, 1, 0);
		at = rig.staging_map + rp.p.offset;
		switch (i) {
		case 0: /* a safe page that is said to be none */
			rig_make_safe(&rig, &rp, 1);
			rp.p.safe = false;
			break;
		case 1: /* the reverse */
			rp.p.safe = true;
			break;
		case 2: /* the flag alone */
			at[offsetof(skvq_page_header, flags)] |= SKVQ_PAGE_SAFE;
			break;
		default: /* and its absence */
			rig_make_safe(&rig, &rp, 1);
			at[offsetof(skvq_page_header, flags)] &= (uint8_t)~SKVQ_PAGE_SAFE;
		}
		assert_int_equal(publish(&rig, &rp), -SKVQ_ECORRUPT);
		assert_non_null(strstr(rp.why.text, "header flags at offset 12"));
		assert_int_equal(rig.cache.bytes, 0);
		assert_int_equal(rig.cache.pages, 0);
		assert_int_equal(rig.stats.n[STAT_page_check_failures], i + 1);
	}
	assert_int_equal(rig.stats.n[STAT_pages_safe], 0);
	rig_fini(&rig);
}

static void calibrated_namespaces_have_no_safe_pages(void **state)
{
	struct rig_publish rp;
	struct identity id;
	struct rig rig;
	struct ns *own;
	struct why why;

	(void)state;
	rig_init(&rig, 16, 100, NULL);
	own = rig.ns;
	rig_identity(0, &id);
	id.has_calibration = true;
	assert_int_equal(cache_ns_open(&rig.cache, rig.tenant, &id, "tiny", &rig.ns, &why), 0);
	assert_ptr_not_equal(rig.ns, own);
	assert_int_equal(rig.ns->layout.slot_bytes, own->layout.slot_bytes);
	rig_prepare(&rig, &rp, &rig.pins, NULL, 1, 0);
	rp.p.safe = true;
	assert_int_equal(publish(&rig, &rp), -SKVQ_EINVAL);
	assert_non_null(strstr(rp.why.text, "no safe pages"));
	assert_int_equal(rig.pins.total, 0);
	rp.p.safe = false;
	assert_int_equal(publish(&rig, &rp), 0);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	cache_ns_close(&rig.cache, rig.ns);
	rig.ns = own;
	rig_fini(&rig);
}

/* One that says otherwise cannot wait behind a copy; when that is done it is answered with it. */
static void equal_pages_of_two_kinds_do_not_join(void **state)
{
	struct rig_publish first, second;
	struct rig rig;

	(void)state;
	rig_init(&rig, 16, 100, NULL);
	rig_prepare(&rig, &first, &rig.pins, NULL, 1, 0);
	rig_prepare(&rig, &second, &rig.pins, NULL, 1, 1);
	rig_make_safe(&rig, &second, 1);
	assert_int_equal(cache_publish(&rig.cache, &first.p, &first.why), 0);
	assert_int_equal(cache_publish(&rig.cache, &second.p, &second.why), -SKVQ_EBUSY);
	assert_int_equal(rig_wait(&rig, &first), 0);
	assert_int_equal(cache_publish(&rig.cache, &second.p, &second.why), 1);
	assert_ptr_equal(second.p.page, first.p.page);
	assert_int_equal(rig.stats.n[STAT_pages_safe], 0);
	rig_fini(&rig);
}

/* 0x3000 is 1/8, 0x3400 is 1/4; 0x7c00, infinity, is no error at all. */
static void errors_are_counted_once_a_page(void **state)
{
	struct rig_publish rp;
	struct rig rig;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_prepare(&rig, &rp, &rig.pins, NULL, 1, 0);
	say_errors(&rig, &rp, 0x3000, 0);
	assert_int_equal(publish(&rig, &rp), 0);
	rig_prepare(&rig, &rp, &rig.pins, NULL, 1, 1); /* equal tokens: not copied */
	say_errors(&rig, &rp, 0x3400, 0x3400);
	assert_int_equal(publish(&rig, &rp), 1);
	rig_prepare(&rig, &rp, &rig.pins, NULL, 2, 2);
	say_errors(&rig, &rp, 0x3000, 0x7c00);
	assert_int_equal(publish(&rig, &rp), -SKVQ_ECORRUPT);
	assert_non_null(strstr(rp.why.text, "layer 0: table entry v_error"));
	rig_prepare(&rig, &rp, &rig.pins, NULL, 3, 3);
	say_errors(&rig, &rp, 0x3400, 1);
	assert_int_equal(publish(&rig, &rp), 0);
	for (uint32_t i = 0; i < MAKER_LAYERS; i++) {
		const struct layer_errors *k = &rig.ns->errors[2 * i], *v = k + 1;

		assert_int_equal(k->pages, 2);
		assert_true(k->sum == .375 && k->max == .25f);
		assert_int_equal(k->histogram[12], 1);
		assert_int_equal(k->histogram[13], 1);
		assert_int_equal(v->pages, 1);
		assert_int_equal(v->histogram[0], 1);
	}
	rig_fini(&rig);
}

static void two_at_once_are_one_copy(void **state)
{
	struct rig_publish a, b, c;
	struct pins other;
	struct rig rig;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	pins_init(&other, 10);
	rig_prepare(&rig, &a, &rig.pins, NULL, 1, 0);
	rig_prepare(&rig, &b, &other, NULL, 1, 1);
	rig_prepare(&rig, &c, &other, NULL, 1, 2);
	assert_int_equal(cache_publish(&rig.cache, &a.p, &a.why), 0);
	assert_int_equal(cache_publish(&rig.cache, &b.p, &b.why), 0);
	assert_int_equal(cache_publish(&rig.cache, &c.p, &c.why), 0);
	/* Not to be matched before it is checked. */
	assert_int_equal(rig.cache.pages, 1);
	assert_int_equal(a.answers, 0);
	assert_int_equal(rig_wait(&rig, &a), 0);
	assert_int_equal(rig_wait(&rig, &b), 0);
	assert_int_equal(rig_wait(&rig, &c), 0);
	assert_false(a.p.existed);
	assert_true(b.p.existed && c.p.existed);
	assert_ptr_equal(a.p.page, b.p.page);
	assert_int_equal(a.p.page->pins, 3);
	assert_int_equal(pins_count(&other, a.p.page), 2);
	assert_int_equal(rig.cache.pages, 1);
	assert_int_equal(rig.stats.n[STAT_publishes_joined], 2);
	assert_int_equal(cache_unpin_all(&rig.cache, &other), 2);
	pins_fini(&other);
	rig_fini(&rig);
}

static void bad_bytes_fail_their_sender_only(void **state)
{
	struct rig_publish bad, worse, good;
	struct rig rig;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_prepare(&rig, &bad, &rig.pins, NULL, 1, 0);
	rig_prepare(&rig, &worse, &rig.pins, NULL, 1, 1);
	rig_prepare(&rig, &good, &rig.pins, NULL, 1, 2);
	rig.staging_map[bad.p.offset] ^= 1;
	memset(rig.staging_map + worse.p.offset, 0xff, rig.layout.base_bytes);
	assert_int_equal(cache_publish(&rig.cache, &bad.p, &bad.why), 0);
	assert_int_equal(cache_publish(&rig.cache, &worse.p, &worse.why), 0);
	assert_int_equal(cache_publish(&rig.cache, &good.p, &good.why), 0);
	assert_int_equal(rig_wait(&rig, &good), 0);
	assert_int_equal(rig_wait(&rig, &bad), -SKVQ_ECORRUPT);
	assert_int_equal(rig_wait(&rig, &worse), -SKVQ_ECORRUPT);
	assert_non_null(strstr(bad.why.text, "magic"));
	assert_int_equal(bad.answers + worse.answers + good.answers, 3);
	assert_int_equal(good.p.page->pins, 1);
	assert_int_equal(rig.pins.total, 1);
	assert_int_equal(rig.pins.reserved, 0);
	assert_int_equal(rig.stats.n[STAT_page_check_failures], 2);
	assert_int_equal(cache_kernel_bytes(&rig.cache), rig.cache.bytes);
	rig_fini(&rig);
}

static void a_bad_page_leaves_nothing(void **state)
{
	struct seeded rng = seeded_init();
	struct page *chain[1];
	struct rig_publish rp;
	struct rig rig;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 1, chain);
	for (int i = 0; i < 64; i++) {
		/* Anywhere in header, tokens or layer table but its errors. */
		uint32_t table = rig.layout.layers_offset, at = seeded_below(&rng, table + 32);

		if (at >= table && (at - table) % sizeof(skvq_page_layer) >=
				       offsetof(skvq_page_layer, k_error))
			continue;
		rig_prepare(&rig, &rp, &rig.pins, chain[0], 1, 0);
		rig.staging_map[rp.p.offset + at] ^= (uint8_t)(1 + seeded_below(&rng, 255));
		assert_int_equal(publish(&rig, &rp), -SKVQ_ECORRUPT);
		assert_int_equal(chain[0]->children, 0);
		assert_int_equal(rig.cache.pages, 1);
		assert_int_equal(cache_kernel_bytes(&rig.cache), rig.cache.bytes);
	}
	rig_fini(&rig);
}

static void a_dead_client_leaves_its_page(void **state)
{
	struct page *parent[1];
	struct rig_publish rp;
	struct pins dying;
	struct rig rig;

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	pins_init(&dying, 10);
	rig_chain(&rig, &dying, 1, 1, parent);
	rig_prepare(&rig, &rp, &dying, parent[0], 1, 0);
	assert_int_equal(cache_publish(&rig.cache, &rp.p, &rp.why), 0);
	cache_publish_orphan(&rp.p);
	assert_int_equal(cache_unpin_all(&rig.cache, &dying), 1);
	pins_fini(&dying);
	/* The parent is nobody's, but a page is being made on it: it stays. */
	assert_int_equal(policy_may_go(&rig.tenant->policy), 0);
	assert_int_equal(rig_wait(&rig, &rp), 0);
	assert_int_equal(rp.p.page->pins, 0);
	assert_int_equal(rp.p.page->state, PAGE_RESIDENT);
	assert_int_equal(policy_may_go(&rig.tenant->policy), 1);
	rig_fini(&rig);
}

static void ends_with_copies_under_way(void **state)
{
	struct rig_publish rp[8];
	struct rig rig;

	(void)state;
	rig_init(&rig, 20, 100, NULL);
	for (uint32_t i = 0; i < 8; i++) {
		rig_prepare(&rig, &rp[i], &rig.pins, NULL, i, i);
		assert_int_equal(cache_publish(&rig.cache, &rp[i].p, &rp[i].why), 0);
	}
	for (uint32_t i = 0; i < 8; i++)
		cache_publish_orphan(&rp[i].p);
	rig_fini(&rig);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(rp[i].answers, 1);
}

/* ---- what is refused at the door ---- */

static void refusals(void **state)
{
	struct page *chain[2];
	struct rig_publish rp;
	struct pins other;
	struct rig rig;
	int small = maker_memfd(4096, F_SEAL_GROW | F_SEAL_SHRINK);

	(void)state;
	rig_init(&rig, 8, 100, NULL);
	rig_chain(&rig, &rig.pins, 1, 2, chain);
#define REFUSED(parent_page, who, change, code, names)                                             \
	do {                                                                                       \
		rig_prepare(&rig, &rp, who, parent_page, 7, 0);                                    \
		change;                                                                            \
		assert_int_equal(publish(&rig, &rp), -(code));                                     \
		if (!strstr(rp.why.text, names))                                                   \
			fail_msg("\"%s\" does not say \"%s\"", rp.why.text, names);                \
	} while (0)
	REFUSED(NULL, &rig.pins, rp.p.position = 81, SKVQ_EINVAL, "multiple");
	REFUSED(NULL, &rig.pins, rp.p.position = UINT32_MAX - 15, SKVQ_EINVAL, "range");
	REFUSED(NULL, &rig.pins, rp.p.position = 80, SKVQ_EINVAL, "needs a parent");
	REFUSED(chain[0], &rig.pins, rp.p.position = 0, SKVQ_EINVAL, "has not a parent");
	REFUSED(chain[0], &rig.pins, rp.p.position = 160, SKVQ_EINVAL, "not right before 160");
	REFUSED(chain[0], &rig.pins, rp.p.parent.generation++, SKVQ_ESTALE, "is gone");
	REFUSED(chain[0], &rig.pins, rp.p.parent.slot = 5, SKVQ_ESTALE, "is gone");
	REFUSED(NULL, &rig.pins, rp.p.offset = 100, SKVQ_EINVAL, "multiple of 4096");
	REFUSED(NULL, &rig.pins, rp.p.offset = UINT64_MAX - 4095, SKVQ_ESHORT, "does not fit");
	REFUSED(NULL, &rig.pins, rp.p.fd = small, SKVQ_ESHORT, "4096 bytes");
	pins_init(&other, 10);
	REFUSED(chain[0], &other, (void)0, SKVQ_ESTALE, "not pinned by this connection");
	pins_fini(&other);
	pins_init(&other, 0);
	REFUSED(NULL, &other, (void)0, SKVQ_EPINS, "pins");
	pins_fini(&other);
	assert_int_equal(rig.pins.reserved, 0);
	assert_int_equal(rig.cache.pages, 2);
	rig_fini(&rig);
	close(small);
}

static void a_full_queue_is_busy(void **state)
{
	struct rig_publish rp[RIG_STAGING_PAGES];
	struct rig_gate gate;
	struct rig rig;
	uint32_t busy = 0, sent = 0;

	(void)state;
	rig_init(&rig, 200, 1000, NULL);
	lane_init(&rig.tenant->fill_lane, 5);
	rig_gate_shut(&rig, &gate);
	for (; sent < RIG_STAGING_PAGES; sent++) {
		int r;

		rig_prepare(&rig, &rp[sent], &rig.pins, NULL, sent, sent);
		r = cache_publish(&rig.cache, &rp[sent].p, &rp[sent].why);
		assert_int_equal(r, sent < 5 ? 0 : -SKVQ_EQUEUE);
		if (r < 0) {
			busy++;
			rp[sent].answers = 1;
		}
	}
	rig_gate_open(&rig, &gate);
	for (uint32_t i = 0; i < sent; i++)
		(void)rig_wait(&rig, &rp[i]);
	assert_int_equal(rig.cache.pages, sent - busy);
	assert_int_equal(rig.pins.total, sent - busy);
	assert_int_equal(rig.pins.reserved, 0);
	assert_int_equal(cache_kernel_bytes(&rig.cache), rig.cache.bytes);
	rig_fini(&rig);
}

/* The memory of a page that makes room for one of its size is not given back in between: none of its
 * bytes may be left, and if no page comes, none of its memory. */
static void a_page_in_place_of_another(void **state)
{
	struct page *first, *second;
	struct rig_publish rp;
	struct rig rig;
	uint32_t slot;
	int err;

	(void)state;
	rig_init(&rig, 1, 100, NULL);
	first = rig_publish(&rig, &rig.pins, NULL, 1, &err);
	assert_non_null(first);
	slot = first->slot;
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	second = rig_publish(&rig, &rig.pins, NULL, 2, &err);
	assert_non_null(second);
	assert_int_equal(second->slot, slot);
	assert_int_equal(rig.stats.n[STAT_evictions], 1);
	assert_true(page_sound(&rig.layout, rig.ns->arena.base + ns_page_offset(rig.ns, second),
			       second->bytes, false, second->digest));
	assert_int_equal(cache_kernel_bytes(&rig.cache), rig.cache.bytes);
	(void)cache_unpin_all(&rig.cache, &rig.pins);
	rig_prepare(&rig, &rp, &rig.pins, NULL, 3, 0);
	rig.staging_map[rp.p.offset] ^= 1;
	assert_int_equal(publish(&rig, &rp), -SKVQ_ECORRUPT);
	assert_int_equal(rig.stats.n[STAT_evictions], 2);
	assert_int_equal(rig.cache.pages, 0);
	assert_int_equal(cache_kernel_bytes(&rig.cache), 0);
	rig_fini(&rig);
}

/* Many pages in and out under a small cap, in an order nobody thought of. */
static void a_long_mixed_run(void **state)
{
	struct seeded rng = seeded_init();
	struct page *tip = NULL;
	struct rig rig;
	uint32_t seed = 0;

	(void)state;
	rig_init(&rig, 12, 12, NULL);
	for (int step = 0; step < 2000; step++) {
		struct page *page;
		int err;

		if (!tip || seeded_below(&rng, 4) == 0) {
			(void)cache_unpin_all(&rig.cache, &rig.pins);
			tip = NULL;
			seed = seeded_below(&rng, 20);
		}
		page = rig_publish(&rig, &rig.pins, tip, seed, &err);
		if (page) {
			assert_int_equal(page->position, tip ? tip->position + 80 : 0);
			tip = page;
		} else {
			assert_true(err == -SKVQ_ENOSPC || err == -SKVQ_EPINS);
			(void)cache_unpin_all(&rig.cache, &rig.pins);
			tip = NULL;
		}
		assert_int_equal(cache_kernel_bytes(&rig.cache), rig.cache.bytes);
		assert_true(rig.cache.bytes <= rig.cache.config.ram_max);
		assert_int_equal(rig.cache.pages, rig.ns->table.live);
		assert_int_equal(rig.cache.pins, rig.pins.total);
	}
	assert_true(rig.stats.n[STAT_evictions] > 100);
	assert_true(rig.stats.n[STAT_publishes_existed] > 0);
	rig_fini(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_page_is_complete),
	    cmocka_unit_test(an_equal_page_is_returned),
	    cmocka_unit_test(errors_are_counted_once_a_page),
	    cmocka_unit_test(safe_pages_are_pages),
	    cmocka_unit_test(a_lie_about_safety_is_refused),
	    cmocka_unit_test(calibrated_namespaces_have_no_safe_pages),
	    cmocka_unit_test(equal_pages_of_two_kinds_do_not_join),
	    cmocka_unit_test(two_at_once_are_one_copy),
	    cmocka_unit_test(bad_bytes_fail_their_sender_only),
	    cmocka_unit_test(a_bad_page_leaves_nothing),
	    cmocka_unit_test(a_dead_client_leaves_its_page),
	    cmocka_unit_test(ends_with_copies_under_way),
	    cmocka_unit_test(refusals),
	    cmocka_unit_test(a_full_queue_is_busy),
	    cmocka_unit_test(a_page_in_place_of_another),
	    cmocka_unit_test(a_long_mixed_run),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
