/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/snapshot.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <skvq/error.h>

#include "base/log.h"
#include "cache/fill.h"

#define FLAG_UNLISTED 1u
#define FLAG_SHED     2u
#define FLAG_SAFE     4u
#define FLAGS         (FLAG_UNLISTED | FLAG_SHED | FLAG_SAFE)
/* Of a page in the description, tokens included: bounds how many there can be. */
#define PAGE_BYTES (5 * 4 + 2 * 8 + 4 * SKVQ_PAGE_TOKENS)

/* ---- descriptors ---- */

struct snapshot_file snapshot_file(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return (struct snapshot_file){0};
	return (struct snapshot_file){st.st_dev, st.st_ino};
}

void snapshot_put_file(struct blob *blob, int fd)
{
	struct snapshot_file file = snapshot_file(fd);

	blob_put_u64(blob, file.dev);
	blob_put_u64(blob, file.ino);
}

struct snapshot_file snapshot_get_file(struct blob_cursor *cursor)
{
	struct snapshot_file file;

	file.dev = blob_get_u64(cursor);
	file.ino = blob_get_u64(cursor);
	return file;
}

/* ---- writing ---- */

static int by_position(const void *a, const void *b)
{
	const struct page *x = *(struct page *const *)a, *y = *(struct page *const *)b;

	if (x->position != y->position)
		return x->position < y->position ? -1 : 1;
	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* Parents before children. */
static struct page **collect(const struct ns *ns)
{
	struct page **pages = calloc(ns->table.live + 1, sizeof(struct page *));
	uint32_t n = 0;

	for (uint32_t i = 0; pages && i < ns->table.touched; i++) {
		if (ns->table.pages[i].state != PAGE_FREE)
			pages[n++] = &ns->table.pages[i];
	}
	if (pages)
		qsort(pages, n, sizeof(struct page *), by_position);
	return pages;
}

static void write_page(const struct page *page, struct blob *blob)
{
	assert(page_readable(page));
	blob_put_u32(blob, page->slot);
	blob_put_u32(blob, page->generation);
	blob_put_u32(blob, page->parent);
	blob_put_u32(blob, page->position);
	blob_put_u32(blob, (page->unlisted ? FLAG_UNLISTED : 0) | (page->shed ? FLAG_SHED : 0) |
			       (page->safe ? FLAG_SAFE : 0));
	blob_put_u64(blob, page->stamp);
	blob_put_u64(blob, page->hits);
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		blob_put_u32(blob, (uint32_t)page->tokens[i]);
}

static void write_ns(const struct ns *ns, struct blob *blob)
{
	CLEANUP_FREE struct page **pages = collect(ns);

	if (!pages) {
		blob->failed = true;
		return;
	}
	blob_put_u32(blob, ns->id);
	snapshot_put_file(blob, ns->arena.fd);
	blob_put_text(blob, ns->tenant->name);
	blob_put_text(blob, ns->model_name);
	blob_put_u32(blob, ns->canon_bytes);
	blob_put(blob, ns->canon, ns->canon_bytes);
	blob_put_u64(blob, ns->layout.slot_bytes);
	blob_put_u32(blob, ns->layout.base_bytes);
	blob_put_u32(blob, ns->layout.refine_bytes);
	blob_put_u32(blob, ns->layout.sidecar_bytes);
	blob_put_u32(blob, ns->table.live);
	for (uint32_t i = 0; i < ns->table.live; i++)
		write_page(pages[i], blob);
}

void snapshot_write(const struct cache *cache, struct blob *blob)
{
	uint32_t n = 0;

	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next)
		n += ns->table.live > 0;
	blob_put_u32(blob, n);
	for (const struct ns *ns = cache->namespaces; ns; ns = ns->next) {
		assert(!ns->fills);
		if (ns->table.live > 0)
			write_ns(ns, blob);
	}
}

/* ---- adopting ---- */

static int corrupt(struct why *why, const char *what)
{
	return why_fail(why, SKVQ_ECORRUPT, "the description of the arenas: %s", what);
}

/* A namespace's head in the description. */
struct head {
	uint32_t id;
	struct snapshot_file file;
	char tenant[TENANT_NAME_MAX + 1];
	char model_name[NS_NAME_MAX + 1];
	struct identity identity;
	bool has_identity;
	uint64_t slot_bytes;
	uint32_t base_bytes, refine_bytes, sidecar_bytes;
	uint32_t n_pages;
};

static int read_head(struct blob_cursor *c, struct head *h, struct why *why)
{
	uint32_t canon_bytes;
	const uint8_t *canon;

	h->id = blob_get_u32(c);
	h->file = snapshot_get_file(c);
	blob_get_text(c, h->tenant, sizeof(h->tenant));
	blob_get_text(c, h->model_name, sizeof(h->model_name));
	canon_bytes = blob_get_u32(c);
	canon = blob_get(c, canon_bytes);
	h->has_identity = canon && identity_decode(canon, canon_bytes, &h->identity);
	h->slot_bytes = blob_get_u64(c);
	h->base_bytes = blob_get_u32(c);
	h->refine_bytes = blob_get_u32(c);
	h->sidecar_bytes = blob_get_u32(c);
	h->n_pages = blob_get_u32(c);
	if (c->failed || h->n_pages > c->left / PAGE_BYTES)
		return corrupt(why, "it ends inside a namespace");
	if (!h->has_identity)
		return corrupt(why, "an identity that is none");
	return 0;
}

static bool is_laid_out(const struct ns *ns, const struct head *h)
{
	const struct skvq_layout *l = &ns->layout;

	return l->slot_bytes == h->slot_bytes && l->base_bytes == h->base_bytes &&
	       l->refine_bytes == h->refine_bytes && l->sidecar_bytes == h->sidecar_bytes;
}

/* *ret NULL: left out. */
static int make_ns(struct cache *cache, struct head *h, const struct snapshot_files *files,
		   struct ns **ret, struct why *why)
{
	struct tenant *tenant = cache_tenant(cache, h->tenant);
	int *fd = files->find(files->ctx, h->file);
	struct why detail = {{0}};
	struct ns *ns = NULL;
	int err;

	*ret = NULL;
	if (!fd)
		err = why_fail(&detail, SKVQ_EFD, "its arena was not given");
	else if (!tenant)
		err = why_fail(&detail, SKVQ_EINVAL, "it belongs to tenant \"%s\"", h->tenant);
	else
		err = cache_ns_adopt(cache, tenant, &h->identity, h->model_name, fd, &ns, &detail);
	if (err == -SKVQ_ENOMEM)
		return why_fail(why, -err, "%s", detail.text);
	if (!err && !is_laid_out(ns, h))
		return corrupt(why, "a page is laid out otherwise");
	if (err < 0)
		log_event(LOG_WARNING, "namespace_left_out", LOG_STR("model", h->model_name),
			  LOG_U64("pages", h->n_pages), LOG_STR("detail", detail.text));
	*ret = ns;
	return 0;
}

/* Gives the page at the cursor its slot, under its parent, which came before it. */
static int adopt_page(struct cache *cache, struct ns *ns, struct blob_cursor *c, struct why *why)
{
	struct page_ref ref;
	uint32_t parent_slot, position, flags;
	uint64_t stamp, hits;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	uint8_t none[IDENTITY_DIGEST] = {0};
	struct page *parent = NULL, *page;

	ref.slot = blob_get_u32(c);
	ref.generation = blob_get_u32(c);
	parent_slot = blob_get_u32(c);
	position = blob_get_u32(c);
	flags = blob_get_u32(c);
	stamp = blob_get_u64(c);
	hits = blob_get_u64(c);
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
		tokens[i] = (int32_t)blob_get_u32(c);
	if (flags & ~FLAGS || (flags & FLAG_SHED && !ns->layout.refine_bytes) ||
	    (flags & FLAG_SAFE && !ns->has_safe) ||
	    stamp > UINT64_MAX / 2)
		return corrupt(why, "a page with unknown flags or a stamp out of range");
	if (parent_slot != PAGE_NONE) {
		parent = parent_slot < ns->table.touched ? &ns->table.pages[parent_slot] : NULL;
		if (!parent || parent->state == PAGE_FREE || position == 0 ||
		    parent->position != position - SKVQ_PAGE_TOKENS)
			return corrupt(why, "a page without the parent that it names");
	} else if (position != 0) {
		return corrupt(why, "a page without a parent that is not a first one");
	}
	/* One of two equal pages has tokens that changed in memory. Which one, its checksum will tell; but
	 * only one can be found, so this one goes, with what is behind it. */
	if (index_find(&ns->index, &ns->table, parent, tokens))
		flags |= FLAG_UNLISTED;
	page = page_table_adopt(&ns->table, ref);
	if (!page)
		return corrupt(why, "a slot that is taken or is none");
	page->safe = flags & FLAG_SAFE;
	cache_enlist(cache, page, parent, tokens);
	ns_own_tokens(page); /* if they are others, it is found out when it is verified */
	if (flags & FLAG_UNLISTED) {
		index_remove(&ns->index, page);
		page->unlisted = true;
	}
	if (flags & FLAG_SHED)
		shed_mark(cache, page);
	page->stamp = stamp;
	page->hits = hits;
	if (cache->stamp < stamp)
		cache->stamp = stamp;
	if (page_digest(ns->digest, parent ? parent->digest : none, position, tokens,
			page->digest) < 0)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a page digest");
	return 0;
}

static int adopt_ns(struct cache *cache, struct blob_cursor *c, const struct snapshot_files *files,
		    struct snapshot *ret, struct why *why)
{
	CLEANUP_FREE struct head *h = calloc(1, sizeof(*h));
	struct ns *ns;
	int err;

	if (!h)
		return why_fail(why, SKVQ_ENOMEM, "no memory for a namespace");
	err = read_head(c, h, why);
	for (uint32_t i = 0; !err && i < ret->n; i++) {
		if (ret->of[i].id == h->id)
			return corrupt(why, "two namespaces of one number");
	}
	if (!err)
		err = make_ns(cache, h, files, &ns, why);
	if (err < 0)
		return err;
	ret->of[ret->n].id = h->id;
	ret->of[ret->n++].ns = ns;
	if (!ns) {
		(void)blob_get(c, (size_t)h->n_pages * PAGE_BYTES);
		return 0;
	}
	for (uint32_t i = 0; !err && i < h->n_pages; i++)
		err = adopt_page(cache, ns, c, why);
	page_table_adopted(&ns->table);
	return err;
}

int snapshot_adopt(struct cache *cache, struct blob_cursor *cursor,
		   const struct snapshot_files *files, struct snapshot *ret, struct why *why)
{
	uint32_t n = blob_get_u32(cursor);
	int err = 0;

	ret->n = 0;
	ret->pages = ret->bad = 0;
	if (cursor->failed)
		return corrupt(why, "it ends before the namespaces");
	if (n > SNAPSHOT_NS_MAX || n > cache->config.namespaces_max)
		return why_fail(why, SKVQ_ENAMESPACES, "%u namespaces, at most %u (namespaces_max)", n,
				cache->config.namespaces_max);
	for (uint32_t i = 0; !err && i < n; i++)
		err = adopt_ns(cache, cursor, files, ret, why);
	return err;
}

int snapshot_page(const struct snapshot *snapshot, uint32_t ns, struct page_ref ref,
		  struct page **ret)
{
	uint32_t i = 0;

	while (i < snapshot->n && snapshot->of[i].id != ns)
		i++;
	if (i == snapshot->n)
		return -SKVQ_ECORRUPT;
	*ret = NULL;
	if (!snapshot->of[i].ns)
		return 0;
	*ret = page_table_get(&snapshot->of[i].ns->table, ref);
	return *ret ? 0 : -SKVQ_ECORRUPT;
}

/* ---- verifying ---- */

/* Every n-th page of a namespace, for one worker. */
struct check {
	struct job job;
	const struct ns *ns;
	struct page *const *pages;
	uint32_t from, step, n;
	uint8_t *sound; /* [n]; each job writes its own */
	uint8_t *copy;  /* [slot_bytes] */
	uint32_t *left; /* jobs that are out; the loop's */
};

/* Section by section: looking at a hole in the arena would fill it. */
static void copy_page(const struct check *check, const struct page *page)
{
	const struct ns *ns = check->ns;
	const struct skvq_layout *l = ns_layout(ns, page->safe);
	const uint8_t *from = ns->arena.base + ns_page_offset(ns, page);
	uint64_t side = (uint64_t)l->base_bytes + l->refine_bytes;

	memcpy(check->copy, from, l->base_bytes);
	if (page->shed)
		memset(check->copy + l->base_bytes, 0, l->refine_bytes);
	else
		memcpy(check->copy + l->base_bytes, from + l->base_bytes, l->refine_bytes);
	memcpy(check->copy + side, from + side, ns_page_span(ns, page) - side);
}

/* A copy is checked, as if it came from disk: checking needs to write to its header. */
static bool is_sound(struct check *check, const struct page *page)
{
	const struct ns *ns = check->ns;
	const struct page *parent = page_parent(page);
	const struct arena copy = {
	    .fd = -1, .fd_ro = -1, .base = check->copy, .bytes = ns->layout.slot_bytes};
	struct fill_task task = {.arena = &copy,
				 .layout = ns_layout(ns, page->safe),
				 .page_bytes = ns_page_span(ns, page),
				 .shed = page->shed,
				 .position = page->position,
				 .fd = -1};
	uint8_t digest[IDENTITY_DIGEST];

	copy_page(check, page);
	memcpy(task.tokens, check->copy + task.layout->tokens_offset, sizeof(task.tokens));
	memcpy(task.identity, ns->digest, sizeof(task.identity));
	memcpy(task.digest, page->digest, sizeof(task.digest));
	if (parent)
		memcpy(task.parent, parent->digest, sizeof(task.parent));
	/* The tokens in the page are those that were written down, from which its digest was made. */
	return page_digest(ns->digest, parent ? parent->digest : task.parent, page->position,
			   task.tokens, digest) == 0 &&
	       !memcmp(digest, page->digest, sizeof(digest)) && fill_verify(&task) == 0;
}

static void check_run(struct job *job)
{
	struct check *check = container_of(job, struct check, job);

	for (uint32_t i = check->from; i < check->n; i += check->step)
		check->sound[i] = !check->pages[i]->unlisted && is_sound(check, check->pages[i]);
}

static void check_done(struct job *job)
{
	struct check *check = container_of(job, struct check, job);

	free(check->copy);
	(*check->left)--;
}

static int check_pages(struct cache *cache, const struct ns *ns, struct page *const *pages,
		       uint32_t n, uint8_t *sound)
{
	uint32_t step = cache->worker->n_threads, left = 0;
	CLEANUP_FREE struct check *checks = calloc(step, sizeof(*checks));
	int err = checks ? 0 : -SKVQ_ENOMEM;

	for (uint32_t i = 0; i < step && !err; i++) {
		checks[i] = (struct check){.job = {.run = check_run, .done = check_done},
					   .ns = ns,
					   .pages = pages,
					   .from = i,
					   .step = step,
					   .n = n,
					   .sound = sound,
					   .copy = malloc(ns->layout.slot_bytes),
					   .left = &left};
		if (!checks[i].copy) {
			err = -SKVQ_ENOMEM;
			break;
		}
		left++;
		if (worker_submit(cache->worker, &checks[i].job) < 0) {
			check_run(&checks[i].job);
			check_done(&checks[i].job);
		}
	}
	while (left) {
		if (loop_step(cache->worker->loop, -1) < 0)
			abort(); /* the workers still write to what is ours */
	}
	return err;
}

/* What is below too is known as such: it need not be written again. */
static void settle_tier(struct cache *cache, struct page *page)
{
	struct tier *tier = ns_of(page)->tenant->tier;
	struct tier_key key;

	if (!tier)
		return;
	restore_key(ns_of(page), page->digest, &key);
	if (!tier->ops->contains(tier, &key)) {
		spill_want(page);
		return;
	}
	page_move(page, PAGE_RESIDENT_STORED);
	cache_add_stored(cache, ns_of(page)->tenant, page->bytes);
}

static void list_page(struct cache *cache, struct snapshot *snapshot, struct page *page, bool sound)
{
	const struct page *parent = page_parent(page);
	struct ns *ns = ns_of(page);

	page_move(page, PAGE_RESIDENT);
	/* Nobody can come by a page whose parent is not found. */
	if (!sound || (parent && parent->unlisted)) {
		snapshot->bad++;
		cache_count(cache, ns->tenant, STAT_takeover_check_failures, 1);
		cache_unlist(cache, page);
		return;
	}
	snapshot->pages++;
	cache_count(cache, ns->tenant, STAT_pages_taken_over, 1);
	(void)cache_page_born(cache, page);
	if (page->hits)
		policy_hit(&ns->tenant->policy, page);
	settle_tier(cache, page);
	errors_count(ns->errors, ns_layout(ns, page->safe),
		     ns->arena.base + ns_page_offset(ns, page));
	cache_settle(cache, page);
}

/* What is known of a namespace's pages when all have been looked at. */
struct verdict {
	struct page **pages; /* parents before children */
	uint8_t *sound;
	uint32_t n;
};

static int judge(struct cache *cache, const struct ns *ns, struct verdict *ret)
{
	*ret = (struct verdict){
	    .pages = collect(ns), .sound = calloc(ns->table.live + 1, 1), .n = ns->table.live};
	if (!ret->pages || !ret->sound)
		return -SKVQ_ENOMEM;
	return check_pages(cache, ns, ret->pages, ret->n, ret->sound);
}

int snapshot_verify(struct cache *cache, struct snapshot *snapshot, struct why *why)
{
	CLEANUP_FREE struct verdict *verdicts = calloc(snapshot->n + 1, sizeof(*verdicts));
	int err = verdicts ? 0 : -SKVQ_ENOMEM;

	/* All are looked at before the first is listed: as long as the loop runs, none is readable.
	 */
	for (uint32_t i = 0; !err && i < snapshot->n; i++) {
		if (snapshot->of[i].ns)
			err = judge(cache, snapshot->of[i].ns, &verdicts[i]);
	}
	for (uint32_t i = 0; verdicts && i < snapshot->n; i++) {
		struct verdict *v = &verdicts[i];

		/* A page that goes has no children: those behind it in the order are still there.
		 */
		for (uint32_t at = 0; !err && at < v->n; at++)
			list_page(cache, snapshot, v->pages[at], v->sound[at]);
		free(v->pages);
		free(v->sound);
	}
	return err < 0 ? why_fail(why, SKVQ_ENOMEM, "no memory to check the pages") : 0;
}
