/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thawing: a sequence out of bytes that may be anybody's. Every field is checked before it is used;
 * what is not the snapshot of a sequence of this model is refused and leaves nothing behind.
 */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>

/* The bytes not yet read. */
struct cursor {
	const uint8_t *at;
	uint64_t left;
};

/* The next n bytes, or NULL if there are not as many. */
static const uint8_t *take(struct cursor *c, uint64_t n)
{
	const uint8_t *at = c->at;

	if (n > c->left)
		return NULL;
	c->at += n;
	c->left -= n;
	return at;
}

static int corrupt(const struct skvq_model *m, const char *what)
{
	return set_error(m->session, SKVQ_ECORRUPT, "snapshot: %s", what);
}

/* That are in it. */
static uint32_t n_pages(const struct snapshot_header *h)
{
	return (h->n_encoded + SKVQ_PAGE_TOKENS - 1) / SKVQ_PAGE_TOKENS - h->n_dropped;
}

static int check_counts(const struct skvq_model *m, const struct snapshot_header *h)
{
	if (h->flags != SNAPSHOT_WHOLE ||
	    h->seq_flags & ~SEQ_FLAGS ||
	    (h->version == SNAPSHOT_VERSION_DROPS) != !!(h->seq_flags & SKVQ_SEQ_DROP_UNSEEN))
		return corrupt(m, "unknown flags");
	for (size_t i = 0; i < sizeof h->reserved; i++)
		if (h->reserved[i])
			return corrupt(m, "a reserved byte is not zero");
	if (!h->max_tokens || h->max_tokens > MAX_TOKENS_LIMIT || !h->max_append ||
	    h->max_append > h->max_tokens)
		return corrupt(m, "max_tokens or max_append");
	if (h->n_tokens > h->max_tokens || h->n_encoded > h->n_tokens ||
	    h->n_matched > h->max_tokens || h->n_encoded % SKVQ_TILE_TOKENS)
		return corrupt(m, "numbers of tokens");
	if (h->n_dropped && (h->version != SNAPSHOT_VERSION_DROPS || !m->sight ||
			     h->n_dropped > h->n_encoded / SKVQ_PAGE_TOKENS ||
			     (uint64_t)h->n_dropped * SKVQ_PAGE_TOKENS + m->sight >
				     (uint64_t)h->n_tokens + 1))
		return corrupt(m, "pages that were dropped");
	if (h->rows_from > h->n_encoded || h->rows_true < h->rows_from ||
	    h->rows_true > h->n_tokens ||
	    h->n_tokens - h->rows_from > ring_tokens_of(m, h->max_append))
		return corrupt(m, "rows of the window");
	if (h->cut_end ? h->cut_end <= h->n_encoded || h->cut_end > h->n_tokens ||
			     h->cut_end - h->n_encoded >= SKVQ_TILE_TOKENS
		       : h->cut_flags != 0)
		return corrupt(m, "the cut tile");
	if (h->cut_flags & ~(SNAPSHOT_PAGE_SAFE | SNAPSHOT_PAGE_BASE_ONLY) ||
	    (h->cut_flags & SNAPSHOT_PAGE_SAFE && !m->safe))
		return corrupt(m, "flags of the cut page");
	return 0;
}

static int read_header(const struct skvq_model *m, struct cursor *c, struct snapshot_header *ret)
{
	uint64_t bytes = c->left;
	const uint8_t *at = take(c, sizeof *ret);
	struct snapshot_header h;

	if (!at)
		return corrupt(m, "shorter than its header");
	memcpy(&h, at, sizeof h);
	if (h.magic == SNAPSHOT_GROUPS_MAGIC)
		return set_error(m->session, SKVQ_EIDENTITY,
				 "a snapshot of a model with layer groups");
	if (h.magic != SNAPSHOT_MAGIC)
		return corrupt(m, "not a snapshot");
	if (h.version != SNAPSHOT_VERSION && h.version != SNAPSHOT_VERSION_DROPS)
		return set_error(m->session, SKVQ_EVERSION, "a snapshot of version %u", h.version);
	uint32_t crc = h.crc_header;
	h.crc_header = 0;
	if (h.header_bytes != sizeof h || crc32c((const uint8_t *)&h, sizeof h) != crc)
		return corrupt(m, "checksum of the header");
	if (h.total_bytes != bytes || crc32c(c->at, c->left) != h.crc_body)
		return corrupt(m, "length or checksum");
	*ret = h;
	return check_counts(m, ret);
}

static int check_identity(const struct skvq_model *m, struct cursor *c, uint32_t bytes)
{
	size_t own_bytes = snapshot_identity(m, NULL);
	const uint8_t *at = take(c, bytes);
	uint8_t *own = at && bytes == own_bytes ? malloc(own_bytes) : NULL;
	int r = 0;

	if (at && bytes == own_bytes && !own)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for an identity");
	if (own)
		snapshot_identity(m, own);
	if (!own || memcmp(own, at, own_bytes) != 0)
		r = set_error(m->session, SKVQ_EIDENTITY,
			      "a snapshot of another model, engine or profile");
	free(own);
	return r;
}

/* Halves behind the cursor, finite ones. */
static int take_halves(struct cursor *c, uint16_t *to, size_t n)
{
	const uint8_t *at = take(c, n * sizeof *to);

	if (!at)
		return -SKVQ_ECORRUPT;
	memcpy(to, at, n * sizeof *to);
	return finite_halves(to, (uint32_t)n) ? 0 : -SKVQ_ECORRUPT;
}

static int read_window(struct skvq_seq *q, const struct snapshot_header *h, struct cursor *c)
{
	const struct skvq_model *m = q->model;

	for (uint32_t layer = 0; layer < m->n_layer; layer++)
		for (uint32_t head = 0; head < m->n_kv_heads; head++) {
			for (uint32_t t = h->rows_from; t < h->n_tokens; t++)
				if (take_halves(c, ring_k(q, layer, head, t), m->dim_k) < 0)
					return corrupt(m, "K of the window");
			for (uint32_t t = h->rows_from; t < h->n_tokens; t++)
				if (take_halves(c, ring_v(q, layer, head, t), m->dim_v) < 0)
					return corrupt(m, "V of the window");
		}
	return 0;
}

/* The page in memory of our own, checked as a daemon would check it. */
static int read_page(struct skvq_seq *q, uint32_t i, const struct snapshot_page *e,
		     const uint8_t *bytes)
{
	const struct skvq_model *m = q->model;
	const struct skvq_layout *l = layout_of(m, e->flags & SNAPSHOT_PAGE_SAFE);
	uint32_t position = i * SKVQ_PAGE_TOKENS, tokens = q->n_encoded - position;
	bool base_only = e->flags & SNAPSHOT_PAGE_BASE_ONLY;
	size_t refine = base_only ? 0 : l->refine_bytes;
	int32_t ids[SKVQ_PAGE_TOKENS] = {0};
	char why[128];

	int r = staging_take(q, i, l);
	if (r < 0)
		return r;
	uint8_t *page = staging_page(q, i);
	memcpy(page, bytes, l->base_bytes + refine);
	if (i == 0 && m->sinks)
		memcpy(page + l->base_bytes + l->refine_bytes, q->sinks, q->sinks_bytes);
	q->pages[i] = (struct seq_page){.data = page,
					.safe = l->safe,
					.state = PAGE_LOCAL,
					.staging = q->staging,
					.base_only = base_only,
					.hidden = e->flags & SNAPSHOT_PAGE_HIDDEN};
	staging_hold(q->staging, i);
	tokens = tokens < SKVQ_PAGE_TOKENS ? tokens : SKVQ_PAGE_TOKENS;
	memcpy(ids, q->tokens + position, tokens * sizeof *ids);
	if (skvq_page_check(l, position, ids, page, skvq_layout_page_bytes(l, position), why,
			    sizeof why) < 0)
		return set_error(m->session, SKVQ_ECORRUPT, "snapshot: page %u: %s", i, why);
	if (tokens < SKVQ_PAGE_TOKENS)
		page_clear(l, tokens / SKVQ_TILE_TOKENS, page);
	return 0;
}

static int check_entry(const struct skvq_model *m, uint32_t i, const struct snapshot_page *e)
{
	bool base_only = e->flags & SNAPSHOT_PAGE_BASE_ONLY;

	if (e->flags & ~(SNAPSHOT_PAGE_SAFE | SNAPSHOT_PAGE_BASE_ONLY | SNAPSHOT_PAGE_HIDDEN |
			 SNAPSHOT_PAGE_SHARED) ||
	    (e->flags & SNAPSHOT_PAGE_SAFE && !m->safe) || (base_only && !m->layout.refine_bytes))
		return corrupt(m, "flags of a page");
	if (e->bytes !=
	    snapshot_page_bytes(layout_of(m, e->flags & SNAPSHOT_PAGE_SAFE), base_only, i == 0))
		return corrupt(m, "length of a page");
	return 0;
}

/* A page of a match takes the place of the local one, if it is the same. */
static bool adopt(struct skvq_seq *q, uint32_t i, struct skvq_page_ref ref, bool base_only)
{
	const struct skvq_model *m = q->model;
	struct seq_page *p = &q->pages[i];
	bool safe;
	const uint8_t *data = arena_page(m, ref, i * SKVQ_PAGE_TOKENS,
					 q->tokens + (size_t)i * SKVQ_PAGE_TOKENS, &safe);

	if (!data || p->hidden)
		return false;
	if (safe != p->safe) {
		p->hidden = true; /* published, it would become the other one */
		return false;
	}
	const struct skvq_layout *l = page_layout(q, i);
	size_t base = l->base_bytes, refine = l->refine_bytes;

	bool young = base_only && !p->base_only && !page_is_old(q, i, q->n_tokens);
	base_only |= p->base_only;
	/* All but what the daemon has written into the header, which arena_page has looked at. */
	if (memcmp(data + l->tokens_offset, p->data + l->tokens_offset, base - l->tokens_offset) !=
		0 ||
	    (!base_only && memcmp(data + base, p->data + base, refine) != 0) ||
	    (i == 0 &&
	     memcmp(data + base + refine, p->data + base + refine, l->sidecar_bytes) != 0)) {
		p->hidden = true;
		return false;
	}
	if (young) /* a refinement that attention still reads here must be there too */
		return false;
	staging_release(p->staging, i);
	*p = (struct seq_page){.data = data,
			       .safe = safe,
			       .state = PAGE_SHARED,
			       .epoch = m->session->epoch,
			       .ref = ref,
			       .arena = m->arena,
			       .base_only = base_only};
	m->arena->refs++;
	return true;
}

/* Of pages taken that are read without their refinement no pin holds it; all those before i are here.
 * refs is overwritten. */
static void release_refinements(struct skvq_seq *q, struct skvq_page_ref *refs, const bool *base_only,
				uint32_t i)
{
	struct skvq_session *s = q->model->session;
	uint32_t n = 0;

	for (uint32_t k = q->n_dropped; k < i; k++)
		if (q->pages[k].base_only && !base_only[k])
			refs[n++] = refs[k];
	if (n && s->client && skvq_client_unrefine(s->client, q->model->ns, refs, n) < 0 &&
	    skvq_client_broken(s->client))
		session_lost(s);
}

/* What the daemon has of it takes the place of what was read. If that begins with the first page that
 * is here, the rest can be published behind it. */
static void match_again(struct skvq_seq *q)
{
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	uint32_t n = q->n_encoded / SKVQ_PAGE_TOKENS, i = 0;
	struct skvq_page_ref *refs = n ? calloc(n, sizeof *refs + sizeof(bool)) : NULL;

	if (!refs)
		return; /* all is here */
	bool *base_only = (bool *)(refs + n);
	int got = skvq_client_match(s->client, m->ns, q->tokens, n * SKVQ_PAGE_TOKENS,
				    n * SKVQ_PAGE_TOKENS, 1, refs, base_only, n);
	if (got < 0) {
		log_event(s, SKVQ_LOG_WARNING, "no match: %s", skvq_client_why(s->client));
		if (skvq_client_broken(s->client))
			session_lost(s);
	}
	while ((int)i < got && (i < q->n_dropped || adopt(q, i, refs[i], base_only[i])))
		i++;
	if ((int)i < got)
		pages_unpin(m, refs + i, (uint32_t)got - i);
	uint32_t unread = i < q->n_dropped ? i : q->n_dropped;
	if (unread)
		pages_unpin(m, refs, unread);
	if (i > q->n_dropped) {
		q->publish_epoch = s->epoch;
		q->n_published = i;
		q->severed = false;
		release_refinements(q, refs, base_only, i);
	}
	free(refs);
}

static int read_pages(struct skvq_seq *q, const uint8_t *table, uint32_t n, struct cursor *c)
{
	for (uint32_t k = 0; k < n; k++) {
		struct snapshot_page e;
		uint32_t i = q->n_dropped + k;

		memcpy(&e, table + k * sizeof e, sizeof e);
		int r = check_entry(q->model, i, &e);
		if (r < 0)
			return r;
		const uint8_t *bytes = take(c, e.bytes);
		r = bytes ? read_page(q, i, &e, bytes)
			  : corrupt(q->model, "shorter than its pages");
		if (r < 0)
			return r;
	}
	return 0;
}

/* Of the cut page only codes and parameters are read; they are checked like any page's. */
static int read_cut(struct skvq_seq *q, const struct snapshot_header *h, struct cursor *c)
{
	const struct skvq_model *m = q->model;
	const struct skvq_layout *l = layout_of(m, h->cut_flags & SNAPSHOT_PAGE_SAFE);
	uint32_t position = q->n_encoded / SKVQ_PAGE_TOKENS * SKVQ_PAGE_TOKENS;
	bool base_only = h->cut_flags & SNAPSHOT_PAGE_BASE_ONLY;
	size_t bytes = snapshot_page_bytes(l, base_only, false);
	const uint8_t *at = take(c, bytes);
	int32_t ids[SKVQ_PAGE_TOKENS];
	char why[128];

	if (!at || (base_only && !l->refine_bytes))
		return corrupt(m, "the cut page");
	const struct seq_page *open = &q->pages[q->n_encoded / SKVQ_PAGE_TOKENS];
	if (q->n_encoded % SKVQ_PAGE_TOKENS && (open->safe != l->safe || open->base_only != base_only))
		return corrupt(m, "the cut page is not laid out like the open one");
	q->cut = (struct cut){.page = calloc(1, skvq_layout_page_bytes(l, position)),
			      .safe = l->safe,
			      .base_only = base_only,
			      .end = h->cut_end};
	if (!q->cut.page)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a cut page");
	memcpy(q->cut.page, at, bytes);
	skvq_page_init(l, position, q->cut.page);
	memcpy(ids, q->cut.page + l->tokens_offset, sizeof ids);
	if (skvq_page_check(l, position, ids, q->cut.page, skvq_layout_page_bytes(l, position), why,
			    sizeof why) < 0)
		return set_error(m->session, SKVQ_ECORRUPT, "snapshot: cut page: %s", why);
	return 0;
}

static int read_seq(struct skvq_seq *q, const struct snapshot_header *h, const uint8_t *tokens,
		    const uint8_t *table, struct cursor *c)
{
	const struct skvq_model *m = q->model;
	int r;

	q->n_tokens = h->n_tokens;
	q->n_encoded = h->n_encoded;
	q->n_matched = h->n_matched;
	q->n_dropped = h->n_dropped;
	q->severed = h->n_dropped > 0;
	q->ring_released = h->rows_from;
	q->ring_true = h->rows_true;
	memcpy(q->tokens, tokens, h->n_tokens * sizeof *q->tokens);
	for (uint32_t i = 0; i < m->n_layer; i++)
		q->appended[i] = q->written[i] = h->n_tokens;
	if (q->sinks && take_halves(c, q->sinks, q->sinks_bytes / sizeof *q->sinks) < 0)
		return corrupt(m, "sinks");
	if ((r = read_window(q, h, c)) < 0 || (r = read_pages(q, table, n_pages(h), c)) < 0)
		return r;
	if (h->cut_end && (r = read_cut(q, h, c)) < 0)
		return r;
	return c->left ? corrupt(m, "longer than what is in it") : 0;
}

/* One part, out of all the bytes of c. */
static int thaw(struct skvq_model *m, struct cursor c, struct skvq_seq **ret)
{
	struct snapshot_header h = {0};
	struct skvq_seq *q;

	int r = read_header(m, &c, &h);
	if (r < 0 || (r = check_identity(m, &c, h.identity_bytes)) < 0)
		return r;
	const uint8_t *tokens = take(&c, h.n_tokens * sizeof(int32_t));
	const uint8_t *table = take(&c, n_pages(&h) * sizeof(struct snapshot_page));
	if (!tokens || !table)
		return corrupt(m, "shorter than its tokens");
	r = seq_new(m, h.seq_flags, h.max_tokens, h.max_append, &q);
	if (r < 0)
		return r;
	r = read_seq(q, &h, tokens, table, &c);
	if (r < 0) {
		seq_free(q);
		return r;
	}
	*ret = q;
	return 0;
}

static int read_groups(const struct skvq_model *m, struct cursor *c, struct snapshot_groups *ret)
{
	uint64_t bytes = c->left, sum = sizeof *ret;
	const uint8_t *at = take(c, sizeof *ret);
	struct snapshot_groups g;

	if (!at)
		return corrupt(m, "shorter than its header");
	memcpy(&g, at, sizeof g);
	if (g.magic == SNAPSHOT_MAGIC)
		return set_error(m->session, SKVQ_EIDENTITY,
				 "a snapshot of a model without layer groups");
	if (g.magic != SNAPSHOT_GROUPS_MAGIC)
		return corrupt(m, "not a snapshot");
	if (g.version != SNAPSHOT_GROUPS_VERSION)
		return set_error(m->session, SKVQ_EVERSION,
				 "a snapshot of layer groups of version %u", g.version);
	uint32_t crc = g.crc_header;
	g.crc_header = 0;
	if (g.header_bytes != sizeof g || crc32c((const uint8_t *)&g, sizeof g) != crc)
		return corrupt(m, "checksum of the header");
	for (size_t i = 0; i < sizeof g.reserved; i++)
		if (g.reserved[i])
			return corrupt(m, "a reserved byte is not zero");
	if (g.n_groups != m->n_groups)
		return set_error(m->session, SKVQ_EIDENTITY,
				 "a snapshot of %u layer groups, the model has %u", g.n_groups,
				 m->n_groups);
	for (uint32_t i = 0; i < LAYER_GROUPS_MAX; i++) {
		if ((i < g.n_groups) != (g.bytes[i] != 0) || g.bytes[i] > bytes)
			return corrupt(m, "length of a group");
		sum += g.bytes[i];
	}
	if (g.total_bytes != bytes || sum != bytes)
		return corrupt(m, "length");
	*ret = g;
	return 0;
}

/* Each group's snapshot is one by itself; that they are of one sequence nobody has checked yet. */
static bool are_alike(const struct skvq_seq *a, const struct skvq_seq *b)
{
	return a->flags == b->flags && a->max_tokens == b->max_tokens &&
	       a->max_append == b->max_append && a->n_tokens == b->n_tokens &&
	       a->n_matched == b->n_matched &&
	       memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) == 0;
}

static int thaw_groups(struct skvq_model *m, struct cursor c, struct skvq_seq **ret)
{
	struct snapshot_groups g = {0};
	struct skvq_seq *q;
	int r = read_groups(m, &c, &g);

	if (r < 0 || (r = seq_shell_new(m, 0, 0, 0, &q)) < 0)
		return r;
	for (uint32_t i = 0; i < m->n_groups && r == 0; i++) {
		struct cursor own = {c.at, g.bytes[i]};

		(void)take(&c, g.bytes[i]);
		r = thaw(m->groups[i], own, &q->groups[i]);
		if (r == 0 && !are_alike(q->groups[0], q->groups[i]))
			r = corrupt(m, "groups of different sequences");
	}
	if (r < 0) {
		seq_free(q);
		return r;
	}
	q->flags = q->groups[0]->flags;
	q->max_tokens = q->groups[0]->max_tokens;
	q->max_append = q->groups[0]->max_append;
	*ret = q;
	return 0;
}

int32_t api_seq_resume(skvq_model *m, const void *buf, uint64_t buf_bytes, skvq_seq **ret)
{
	struct cursor c = {buf, buf_bytes};
	struct skvq_seq *q;

	if (!m)
		return -SKVQ_EINVAL;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (!buf || !ret)
		return set_error(s, SKVQ_EINVAL, "a resume without buf or ret_seq");
	session_pump(s, 0);
	int r = m->n_groups ? thaw_groups(m, c, &q) : thaw(m, c, &q);
	if (r < 0)
		return r;
	if (s->client)
		skvq_client_set_timeout(s->client, part_timeout_ms(q));
	for (uint32_t i = 0; i < n_parts(q); i++) {
		struct skvq_seq *x = part(q, i);

		if (is_attached(x->model) && !(x->flags & SKVQ_SEQ_NO_MATCH))
			match_again(x);
	}
	if (s->client)
		skvq_client_set_timeout(s->client, s->timeout_ms);
	seq_prepare(q);
	seq_join(q);
	*ret = q;
	return 0;
}
