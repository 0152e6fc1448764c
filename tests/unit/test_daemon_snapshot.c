/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/snapshot: what one cache leaves another takes over, page for page; of a description that
 * lies, and of pages that are not what it says, nothing wrong is ever found.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/error.h>

#include "cache/snapshot.h"
#include "support/cache_rig.h"
#include "support/page_maker.h"

#define CHAIN  6u
#define BRANCH 2u
#define PAGES  (CHAIN + BRANCH)
/* In what snapshot_write puts out: namespaces, number of the first, then its file. */
#define FILE_AT  8u
#define FILE_END 24u
#define ROUNDS   600

static struct rig rig;
static struct page *chain[CHAIN], *branch[BRANCH];
static struct blob blob;

/* The cache that takes over, and the copy of the arena that it is given. */
static struct heir {
	struct cache cache;
	struct tenant *tenant;
	struct stats stats;
	struct snapshot snapshot;
	struct blob_cursor cursor;
	struct snapshot_file file;
	int fd;
	uint8_t *bytes; /* of the copy, mapped beside */
} heir;

static const char *heir_tenant = "default";

static int setup(void **state)
{
	struct rig_publish safe;

	(void)state;
	rig_init(&rig, 32, 64, NULL);
	rig_chain(&rig, &rig.pins, 1, CHAIN - 1, chain);
	/* The last one is a safe page, longer than the others. */
	rig_prepare(&rig, &safe, &rig.pins, chain[CHAIN - 2], 1, 0);
	rig_make_safe(&rig, &safe, 1);
	assert_int_equal(cache_publish(&rig.cache, &safe.p, &safe.why), 0);
	assert_int_equal(rig_wait(&rig, &safe), 0);
	chain[CHAIN - 1] = safe.p.page;
	assert_true(chain[CHAIN - 1]->bytes > chain[CHAIN - 2]->bytes);
	/* Of other tokens behind the third page. */
	for (uint32_t i = 0; i < BRANCH; i++)
		branch[i] = rig_publish(&rig, &rig.pins, i ? branch[i - 1] : chain[2], 2, NULL);
	chain[4]->hits = 7;
	blob = (struct blob){0};
	snapshot_write(&rig.cache, &blob);
	return blob.failed ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	blob_fini(&blob);
	rig_fini(&rig);
	return 0;
}

static int *find(void *ctx, struct snapshot_file file)
{
	struct heir *h = ctx;

	return h->fd >= 0 && file.dev == h->file.dev && file.ino == h->file.ino ? &h->fd : NULL;
}

static const struct snapshot_files files = {.find = find, .ctx = &heir};

/* A cache as a new process would make it, a copy of the arena, and data naming that copy. */
static void heir_init(uint8_t *data, size_t bytes)
{
	const struct arena *arena = &rig.ns->arena;
	struct blob name = {0};

	memset(&heir, 0, sizeof(heir));
	cache_init(&heir.cache, &rig.cache.config, &rig.worker, &heir.stats);
	heir.tenant = cache_add_tenant(&heir.cache, &(struct tenant_params){.name = heir_tenant});
	assert_non_null(heir.tenant);
	heir.fd = memfd_create("heir", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(heir.fd, (off_t)arena->bytes), 0);
	heir.bytes = mmap(NULL, arena->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, heir.fd, 0);
	assert_ptr_not_equal(heir.bytes, MAP_FAILED);
	memcpy(heir.bytes, arena->base, PAGES * rig.layout.slot_bytes);
	assert_int_equal(fchmod(heir.fd, 0400), 0);
	assert_int_equal(fcntl(heir.fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL), 0);
	heir.file = snapshot_file(heir.fd);
	snapshot_put_file(&name, heir.fd);
	if (bytes >= FILE_END)
		memcpy(data + FILE_AT, name.data, FILE_END - FILE_AT);
	blob_fini(&name);
	heir.cursor = (struct blob_cursor){.at = data, .left = bytes};
}

static void heir_fini(void)
{
	munmap(heir.bytes, rig.ns->arena.bytes);
	cache_fini(&heir.cache);
	if (heir.fd >= 0)
		close(heir.fd);
}

static int adopt(void)
{
	struct why why = {{0}};

	return snapshot_adopt(&heir.cache, &heir.cursor, &files, &heir.snapshot, &why);
}

static int verify(void)
{
	struct why why = {{0}};

	return snapshot_verify(&heir.cache, &heir.snapshot, &why);
}

/* Pages that the heir finds for the tokens of the rig's chain, each compared byte for byte. */
static uint32_t match(void)
{
	int32_t tokens[CHAIN * SKVQ_PAGE_TOKENS];
	struct page_ref refs[CHAIN];
	struct pins pins;
	struct match m = {.ns = heir.cache.namespaces,
			  .pins = &pins,
			  .tokens = tokens,
			  .n_tokens = CHAIN * SKVQ_PAGE_TOKENS,
			  .max_pages = CHAIN,
			  .refs = refs};

	if (!m.ns)
		return 0;
	pins_init(&pins, CHAIN);
	rig_tokens(1, CHAIN, tokens);
	assert_int_equal(cache_match(&heir.cache, &m, NULL), 1);
	for (uint32_t i = 0; i < m.n; i++) {
		const struct page *page = page_table_get(&m.ns->table, refs[i]);

		assert_memory_equal(m.ns->arena.base + ns_page_offset(m.ns, page),
				    rig.ns->arena.base + ns_page_offset(rig.ns, chain[i]),
				    chain[i]->bytes);
	}
	(void)cache_unpin_all(&heir.cache, &pins);
	pins_fini(&pins);
	return m.n;
}

static void all_is_taken_over(void **state)
{
	const struct page *page;

	(void)state;
	heir_init(blob.data, blob.bytes);
	assert_int_equal(adopt(), 0);
	assert_int_equal(heir.fd, -1); /* taken */
	assert_false(heir.cursor.failed);
	assert_int_equal(heir.cursor.left, 0);
	assert_int_equal(match(), 0); /* not before they are checked */
	assert_int_equal(verify(), 0);
	assert_int_equal(heir.snapshot.pages, PAGES);
	assert_int_equal(heir.snapshot.bad, 0);
	assert_int_equal(heir.cache.bytes, rig.cache.bytes);
	assert_int_equal(match(), CHAIN);
	page = page_table_get(&heir.cache.namespaces->table, page_ref(chain[4]));
	assert_non_null(page);
	assert_int_equal(page->hits, 8);
	assert_memory_equal(page->digest, chain[4]->digest, sizeof(page->digest));
	assert_int_equal(page_parent(page)->slot, chain[3]->slot);
	/* The two leaves may go; what a match has found is in the other queue. */
	assert_int_equal(policy_may_go(&heir.tenant->policy), 2);
	assert_int_equal(page->queue, POLICY_AGAIN);
	heir_fini();
}

/* Slots between those that were left are used again, under new names. */
static void holes_are_free(void **state)
{
	struct page_ref old;
	struct page *page;

	(void)state;
	old = page_ref(chain[CHAIN - 1]);
	/* The rig drops the last page of the chain, and tells anew. */
	assert_int_equal(cache_unpin(&rig.cache, rig.ns, &rig.pins, &old, 1, NULL), 0);
	(void)cache_drop(&rig.cache, chain[CHAIN - 1]);
	blob_fini(&blob);
	snapshot_write(&rig.cache, &blob);
	heir_init(blob.data, blob.bytes);
	assert_int_equal(adopt(), 0);
	assert_int_equal(verify(), 0);
	assert_int_equal(match(), CHAIN - 1);
	page = page_table_take(&heir.cache.namespaces->table, PAGE_FILLING);
	assert_int_equal(page->slot, old.slot);
	assert_int_equal(page->generation, old.generation + 1);
	page_move(page, PAGE_FREE);
	heir_fini();
}

static void a_bad_page_takes_its_continuations_along(void **state)
{
	(void)state;
	for (uint64_t at = 0; at < rig.layout.base_bytes; at += 97) {
		heir_init(blob.data, blob.bytes);
		heir.bytes[ns_page_offset(rig.ns, chain[3]) + at] ^= 0x20;
		assert_int_equal(adopt(), 0);
		assert_int_equal(verify(), 0);
		assert_int_equal(heir.snapshot.bad, CHAIN - 3);
		assert_int_equal(match(), 3);
		assert_int_equal(heir.cache.pages, PAGES - (CHAIN - 3));
		heir_fini();
	}
}

/* A page whose tokens in memory have become those of its sibling: the first of the two is looked at, the
 * other goes, and everybody else is taken over. */
static void a_page_that_became_its_sibling(void **state)
{
	const size_t bytes = SKVQ_PAGE_TOKENS * sizeof(int32_t);
	const struct skvq_layout *l = &rig.layout;
	uint8_t *one = rig.ns->arena.base + ns_page_offset(rig.ns, chain[3]) + l->tokens_offset;
	uint8_t *other = rig.ns->arena.base + ns_page_offset(rig.ns, branch[0]) + l->tokens_offset;
	uint8_t was[SKVQ_PAGE_TOKENS * sizeof(int32_t)];

	(void)state;
	for (int i = 0; i < 2; i++) {
		uint8_t *changed = i ? one : other;

		memcpy(was, changed, bytes);
		memcpy(changed, i ? other : one, bytes);
		blob_fini(&blob);
		blob = (struct blob){0};
		snapshot_write(&rig.cache, &blob);
		heir_init(blob.data, blob.bytes);
		memcpy(changed, was, bytes);
		assert_int_equal(adopt(), 0);
		assert_int_equal(verify(), 0);
		assert_int_equal(heir.snapshot.bad, BRANCH + (i ? CHAIN - 3 : 0));
		assert_int_equal(heir.snapshot.pages, PAGES - heir.snapshot.bad);
		assert_int_equal(match(), i ? 3 : CHAIN);
		assert_int_equal(heir.cache.pages, heir.snapshot.pages);
		heir_fini();
	}
}

/* Somebody is reading it: it is not found, and not touched until it is let go. */
static void a_bad_page_that_is_pinned_stays(void **state)
{
	uint64_t at = ns_page_offset(rig.ns, chain[5]);
	struct page *page;
	struct pins pins;
	uint8_t was;

	(void)state;
	heir_init(blob.data, blob.bytes);
	heir.bytes[at + 300] ^= 1;
	was = heir.bytes[at + 300];
	assert_true(was);
	assert_int_equal(adopt(), 0);
	assert_int_equal(snapshot_page(&heir.snapshot, rig.ns->id + 1, page_ref(chain[5]), &page),
			 -SKVQ_ECORRUPT);
	assert_int_equal(snapshot_page(&heir.snapshot, rig.ns->id, (struct page_ref){31, 1}, &page),
			 -SKVQ_ECORRUPT);
	assert_int_equal(snapshot_page(&heir.snapshot, rig.ns->id, page_ref(chain[5]), &page), 0);
	pins_init(&pins, 1);
	assert_int_equal(pins_reserve(&pins, 1, NULL), 0);
	cache_pin(&heir.cache, &pins, page);
	assert_int_equal(verify(), 0);
	assert_int_equal(match(), 5);
	assert_int_equal(heir.cache.pages, PAGES);
	cache_trim(&heir.cache);
	assert_int_equal(heir.bytes[at + 300], was);
	/* Told on, it is the same to the next: bad and pinned. */
	{
		struct blob again = {0};
		uint32_t n;

		snapshot_write(&heir.cache, &again);
		n = (uint32_t)(again.bytes == blob.bytes);
		blob_fini(&again);
		assert_int_equal(n, 1);
	}
	(void)cache_unpin_all(&heir.cache, &pins);
	pins_fini(&pins);
	assert_int_equal(heir.cache.pages, PAGES - 1);
	assert_int_equal(heir.bytes[at + 300], 0);
	heir_fini();
}

static void what_does_not_fit_is_left_out(void **state)
{
	struct why why = {{0}};

	(void)state;
	/* Another tenant's. */
	heir_tenant = "other";
	heir_init(blob.data, blob.bytes);
	heir_tenant = "default";
	assert_int_equal(snapshot_adopt(&heir.cache, &heir.cursor, &files, &heir.snapshot, &why), 0);
	assert_int_equal(heir.cursor.left, 0);
	assert_null(heir.cache.namespaces);
	assert_null(heir.snapshot.of[0].ns);
	assert_true(heir.fd >= 0);
	heir_fini();
	/* Another cap. */
	heir_init(blob.data, blob.bytes);
	heir.cache.config.ram_max *= 2;
	assert_int_equal(adopt(), 0);
	assert_int_equal(verify(), 0);
	assert_null(heir.cache.namespaces);
	heir_fini();
	/* None of the namespaces that there may be. */
	heir_init(blob.data, blob.bytes);
	heir.cache.config.namespaces_max = 0;
	assert_int_equal(adopt(), -SKVQ_ENAMESPACES);
	heir_fini();
}

static void mutate(struct seeded *rng, uint8_t *data, size_t *bytes)
{
	static const uint32_t odd[] = {
	    0, 1, 2, 3, 79, 80, 160, UINT32_MAX, UINT32_MAX - 79, INT32_MAX, 1u << 24, 1u << 31};
	uint32_t kind = seeded_below(rng, 8), at;

	if (kind == 0) {
		*bytes = seeded_below(rng, (uint32_t)*bytes);
		return;
	}
	/* Heads are read first and are small: half of the changes go there. */
	at = seeded_below(rng, seeded_below(rng, 2) ? 420 : (uint32_t)*bytes - 4);
	if (at + 4 > FILE_AT && at < FILE_END)
		at = FILE_END;
	if (kind < 3) {
		data[at] ^= (uint8_t)(1u << seeded_below(rng, 8));
	} else if (kind < 6) {
		memcpy(data + at, &odd[seeded_below(rng, sizeof(odd) / sizeof(odd[0]))], 4);
	} else {
		/* A piece of it in another place: pages of the wrong order, or twice. */
		uint32_t n = seeded_below(rng, 400), to = seeded_below(rng, (uint32_t)*bytes - 400);

		if (at + n <= *bytes && to >= FILE_END)
			memmove(data + to, data + at, n);
	}
}

/* However the description lies, what is found is right, and a refusal leaves everything as it was.
 */
static void lies_are_misses(void **state)
{
	struct seeded rng = seeded_init();
	uint32_t refused = 0, found = 0;
	uint8_t *data = malloc(blob.bytes);

	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		size_t bytes = blob.bytes;

		memcpy(data, blob.data, bytes);
		mutate(&rng, data, &bytes);
		heir_init(data, bytes);
		if (adopt() < 0 || heir.cursor.failed) {
			refused++;
			cache_close(&heir.cache);
			cache_abandon(&heir.cache);
			assert_null(heir.cache.namespaces);
			assert_int_equal(heir.cache.pages, 0);
			assert_memory_equal(heir.bytes, rig.ns->arena.base,
					    PAGES * rig.layout.slot_bytes);
		} else {
			assert_int_equal(verify(), 0);
			found += match() > 0;
		}
		heir_fini();
	}
	printf("%u refused, %u found, of %d\n", refused, found, ROUNDS);
	assert_true(refused > ROUNDS / 10 && found > ROUNDS / 10);
	free(data);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(all_is_taken_over),
	    TEST(holes_are_free),
	    TEST(a_bad_page_takes_its_continuations_along),
	    TEST(a_page_that_became_its_sibling),
	    TEST(a_bad_page_that_is_pinned_stays),
	    TEST(what_does_not_fit_is_left_out),
	    TEST(lies_are_misses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
