/* SPDX-License-Identifier: Apache-2.0 */
/* Sequences: opening on shared pages, committing, closing. */
#include "threads.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLOSE_ROUNDS_MAX 64

static uint32_t round_up32(uint32_t x, uint32_t to)
{
	return (x + to - 1) / to * to;
}

/* W..W+15 tokens wait for their tile to be whole; max_append more may come before the next commit
 * encodes. */
uint32_t ring_tokens_of(const struct skvq_model *m, uint32_t max_append)
{
	return round_up32(m->window + SKVQ_TILE_TOKENS - 1 + max_append, SKVQ_TILE_TOKENS);
}

static int window_new(struct skvq_seq *q)
{
	struct skvq_model *m = q->model;

	q->ring_tokens = ring_tokens_of(m, q->max_append);
	q->ring_bytes = (size_t)q->ring_tokens * m->token_bytes_fp16;
	void *p = mmap(NULL, q->ring_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a window of %zu bytes",
		                 q->ring_bytes);
	q->ring = p;
	p = mmap(NULL, split_bytes(m), PROT_READ | PROT_WRITE,
	         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return set_error(m->session, SKVQ_ENOMEM, "no room for %zu bytes of scratch",
		                 split_bytes(m));
	q->split = p;
	q->split_done = calloc((size_t)m->n_layer * m->n_kv_heads, sizeof *q->split_done);
	if (!q->split_done)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a sequence");
	q->sinks_bytes = (size_t)m->layout.layer_sidecar_bytes * m->n_layer;
	if (m->sinks && !(q->sinks = calloc(1, q->sinks_bytes)))
		return set_error(m->session, SKVQ_ENOMEM, "no memory for the sinks");
	return 0;
}

void seq_free(struct skvq_seq *q)
{
	for (uint32_t i = 0; q->groups && i < q->model->n_groups; i++)
		if (q->groups[i])
			seq_free(q->groups[i]);
	free(q->groups);
	if (q->staging && q->pages)
		staging_leave(q);
	if (q->pages)
		pages_drop(q, 0, q->pages_max);
	if (q->ring)
		munmap(q->ring, q->ring_bytes);
	if (q->split)
		munmap(q->split, split_bytes(q->model));
	free(q->split_done);
	free(q->sinks);
	free(q->pages);
	free(q->tokens);
	free(q->appended);
	free(q->written);
	free(q->cut.page);
	free(q->mail);
	marks_free(q);
	free(q);
}

static int part_new(struct skvq_model *m, uint32_t flags, uint32_t max_tokens, uint32_t max_append,
                    struct skvq_seq **ret)
{
	struct skvq_seq *q = calloc(1, sizeof *q);
	int r;

	if (!q)
		return set_error(m->session, SKVQ_ENOMEM, "no memory for a sequence");
	q->model = m;
	q->flags = flags;
	q->max_tokens = max_tokens;
	q->max_append = max_append;
	q->pages_max = (max_tokens + SKVQ_PAGE_TOKENS - 1) / SKVQ_PAGE_TOKENS;
	q->pages = calloc(q->pages_max, sizeof *q->pages);
	q->tokens = calloc(max_tokens, sizeof *q->tokens);
	q->appended = calloc(m->n_layer, sizeof *q->appended);
	q->written = calloc(m->n_layer, sizeof *q->written);
	q->mail = calloc(1, sizeof *q->mail);
	if (!q->pages || !q->tokens || !q->appended || !q->written || !q->mail || marks_new(q) < 0)
		r = set_error(m->session, SKVQ_ENOMEM, "no memory for a sequence of %u tokens",
		              max_tokens);
	else if ((r = staging_new(q, &q->staging)) == 0)
		r = window_new(q);
	if (r < 0) {
		seq_free(q);
		return r;
	}
	*ret = q;
	return 0;
}

int seq_new(struct skvq_model *m, uint32_t flags, uint32_t max_tokens, uint32_t max_append,
            struct skvq_seq **ret)
{
	struct skvq_seq *q;

	if (!m->n_groups)
		return part_new(m, flags, max_tokens, max_append, ret);
	int r = seq_shell_new(m, flags, max_tokens, max_append, &q);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < m->n_groups && r == 0; i++)
		r = part_new(m->groups[i], flags, max_tokens, max_append, &q->groups[i]);
	if (r < 0) {
		seq_free(q);
		return r;
	}
	*ret = q;
	return 0;
}

void seq_join(struct skvq_seq *q)
{
	q->next = q->model->seqs;
	q->model->seqs = q;
}

/* How many of the n pages matched a sequence can take that must read every young page whole. The fewer
 * it takes, the younger are those it has. */
static uint32_t whole_pages(const struct skvq_seq *q, uint32_t n)
{
	bool fixed = q->flags & SKVQ_SEQ_WHOLE || q->model->young == UINT32_MAX;

	for (uint32_t i = 0; fixed && i < n; i++) {
		if (q->pages[i].base_only && !page_is_old(q, i, n * SKVQ_PAGE_TOKENS)) {
			n = i;
			i = UINT32_MAX; /* from the first page again */
		}
	}
	return n;
}

/* Takes the first pages that the daemon has of these tokens, up to pages_max, into q's place for them.
 * Returns their number: a page that does not prove itself, and all after it, count as a miss. */
static int find_pages(struct skvq_seq *q, const int32_t *tokens, uint32_t n_tokens, uint32_t pages_max,
                      uint32_t recompute_us)
{
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	uint32_t n = 0;

	if (!is_attached(m) || !pages_max)
		return 0;
	struct skvq_page_ref *refs = calloc(pages_max, sizeof *refs + sizeof(bool));
	if (!refs)
		return set_error(s, SKVQ_ENOMEM, "no memory to match %u pages", pages_max);
	bool *base_only = (bool *)(refs + pages_max);
	int got = skvq_client_match(s->client, m->ns, tokens, n_tokens, pages_max * SKVQ_PAGE_TOKENS,
	                            recompute_us, refs, base_only, pages_max);
	if (got < 0) {
		/* On any doubt a miss: the engine computes what it would have computed anyway. */
		log_event(s, SKVQ_LOG_WARNING, "no match: %s", skvq_client_why(s->client));
		if (skvq_client_broken(s->client))
			session_lost(s);
		free(refs);
		return 0;
	}
	for (; n < (uint32_t)got; n++) {
		uint32_t position = n * SKVQ_PAGE_TOKENS;
		bool safe;
		const uint8_t *data = arena_page(m, refs[n], position, tokens + position, &safe);

		if (!data) {
			log_event(s, SKVQ_LOG_DAEMON_MISBEHAVING,
			          "page %u of the match does not hold its tokens", n);
			(void)skvq_client_unpin(s->client, m->ns, refs + n, (uint32_t)got - n);
			break;
		}
		q->pages[n] = (struct seq_page){.data = data,
		                                .safe = safe,
		                                .state = PAGE_SHARED,
		                                .epoch = s->epoch,
		                                .ref = refs[n],
		                                .arena = m->arena,
		                                .base_only = base_only[n]};
		m->arena->refs++;
	}
	free(refs);
	return (int)n;
}

/* Goes on behind the first n of the pages that were found. */
static void take_pages(struct skvq_seq *q, const int32_t *tokens, uint32_t found, uint32_t n)
{
	const struct skvq_model *m = q->model;

	pages_drop(q, n, found);
	if (n == 0)
		return;
	const struct skvq_layout *first = page_layout(q, 0);
	if (m->sinks)
		memcpy(q->sinks, q->pages[0].data + first->base_bytes + first->refine_bytes,
		       q->sinks_bytes);
	q->n_matched = q->n_encoded = q->n_tokens = n * SKVQ_PAGE_TOKENS;
	q->ring_released = q->ring_true = q->n_matched;
	memcpy(q->tokens, tokens, q->n_matched * sizeof *tokens);
	for (uint32_t i = 0; i < m->n_layer; i++)
		q->appended[i] = q->n_matched;
	q->publish_epoch = q->pages[0].epoch;
	q->n_published = n;
	shed_refinements(q);
	drop_unseen(q);
}

/* Takes the pages the daemon has of these tokens: as many as it has for every layer group. */
static int match(struct skvq_seq *q, const skvq_seq_desc *d)
{
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	uint32_t keep = m->window > 0 ? m->window : 1;
	uint32_t n = d->n_tokens > keep ? (d->n_tokens - keep) / SKVQ_PAGE_TOKENS : 0;
	uint32_t found[LAYER_GROUPS_MAX] = {0}, before;
	int r = 0;

	if (s->client)
		skvq_client_set_timeout(s->client, part_timeout_ms(q));
	for (uint32_t i = 0; i < n_parts(q) && r >= 0; i++) {
		r = find_pages(part(q, i), d->tokens, d->n_tokens, n, d->recompute_us);
		found[i] = r > 0 ? (uint32_t)r : 0;
		n = n < found[i] ? n : found[i];
	}
	if (s->client)
		skvq_client_set_timeout(s->client, s->timeout_ms);
	if (r < 0)
		return r;
	do {
		before = n;
		for (uint32_t i = 0; i < n_parts(q); i++)
			n = whole_pages(part(q, i), n);
	} while (n < before);
	for (uint32_t i = 0; i < n_parts(q); i++)
		take_pages(part(q, i), d->tokens, found[i], n);
	return 0;
}

static int prefetch_one(struct skvq_model *m, const int32_t *tokens, uint32_t n_tokens)
{
	struct skvq_session *s = m->session;
	uint32_t resident = 0, coming = 0;

	if (!is_attached(m))
		return set_error(s, SKVQ_ENODAEMON, "no daemon to prefetch from");
	int r = skvq_client_prefetch(s->client, m->ns, tokens, n_tokens, &resident, &coming);
	if (r < 0) {
		set_error(s, -r, "%s", skvq_client_why(s->client));
		if (skvq_client_broken(s->client))
			session_lost(s);
		return r;
	}
	return (int)((resident + coming) * SKVQ_PAGE_TOKENS);
}

static int32_t ext_prefetch_tokens(skvq_model *m, const int32_t *tokens, uint32_t n_tokens)
{
	if (!m)
		return -SKVQ_EINVAL;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (!n_tokens || !tokens || n_tokens > MAX_TOKENS_LIMIT)
		return set_error(s, SKVQ_EINVAL, "prefetch of %u tokens", n_tokens);
	session_pump(s, 0);
	if (!m->n_groups)
		return prefetch_one(m, tokens, n_tokens);
	int least = INT32_MAX; /* what a match can take */
	for (uint32_t i = 0; i < m->n_groups && least >= 0; i++) {
		int r = prefetch_one(m->groups[i], tokens, n_tokens);
		least = r < least ? r : least;
	}
	return least;
}

const skvq_ext_prefetch ext_prefetch = {.struct_size = sizeof ext_prefetch,
                                        .prefetch = ext_prefetch_tokens};

void seq_prepare(struct skvq_seq *q)
{
	for (uint32_t i = 0; i < n_parts(q); i++) {
		struct skvq_seq *x = part(q, i);

		if (is_attached(x->model) && seq_publishes(x)) /* refused: tried again when a page is full */
			(void)publish_prepare(x->staging, part_timeout_ms(q));
	}
}

int32_t api_seq_open(skvq_model *m, const skvq_seq_desc *desc, skvq_seq **ret)
{
	skvq_seq_desc d;

	if (!m)
		return -SKVQ_EINVAL;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	int r = copy_in(&d, sizeof d, desc);
	if (r < 0 || !ret || d.reserved || d.reserved1 || (d.flags & ~SEQ_FLAGS))
		return set_error(s, SKVQ_EINVAL, "seq_desc: struct_size, flags or a reserved field");
	if (!d.max_tokens || d.max_tokens > MAX_TOKENS_LIMIT)
		return set_error(s, SKVQ_EINVAL, "max_tokens %u is not in 1..%u", d.max_tokens,
		                 MAX_TOKENS_LIMIT);
	if (!d.max_append || d.max_append > d.max_tokens)
		return set_error(s, SKVQ_EINVAL, "max_append %u is not in 1..max_tokens", d.max_append);
	if (d.n_tokens > d.max_tokens || (d.n_tokens && !d.tokens))
		return set_error(s, SKVQ_ERANGE, "%u prompt tokens for a sequence of at most %u",
		                 d.n_tokens, d.max_tokens);
	session_pump(s, 0);

	struct skvq_seq *q;
	r = seq_new(m, d.flags, d.max_tokens, d.max_append, &q);
	if (r < 0)
		return r;
	if (!(d.flags & SKVQ_SEQ_NO_MATCH) && (r = match(q, &d)) < 0) {
		seq_free(q);
		return r;
	}
	seq_prepare(q);
	s->stats.tokens_asked += d.n_tokens;
	s->stats.tokens_matched += part(q, 0)->n_matched;
	seq_join(q);
	*ret = q;
	return (int32_t)part(q, 0)->n_matched;
}

/* Takes in the daemon's answers and sends what has become full. Never waits. */
static void seq_pump(struct skvq_seq *q)
{
	session_pump(q->model->session, 0);
	for (uint32_t i = 0; i < n_parts(q); i++) {
		struct skvq_seq *x = part(q, i);

		publish_take_mail(x);
		if (x->model->session->lost)
			seq_rescue(x);
		publish_begin(x);
		drop_unseen(x);
	}
}

/* Every part is tried, so that they stay as alike as memory allows. */
static int encode_parts(struct skvq_seq *q)
{
	int r = 0;

	for (uint32_t i = 0; i < n_parts(q); i++) {
		int own = encode_tiles(part(q, i));
		r = r < 0 ? r : own;
	}
	return r;
}

static bool in_flight(struct skvq_seq *q)
{
	for (uint32_t i = 0; i < n_parts(q); i++)
		if (part(q, i)->publish_id)
			return true;
	return false;
}

int32_t api_seq_poll(skvq_seq *q)
{
	if (!q)
		return -SKVQ_EINVAL;
	if (check_fork(q->model->session) < 0)
		return -SKVQ_EFORKED;
	int r = encode_parts(q); /* what a commit could not for want of memory */
	seq_pump(q);
	for (uint32_t i = 0; i < n_parts(q); i++)
		shed_refinements(part(q, i));
	return r < 0 ? r : !in_flight(q);
}

int32_t api_seq_commit(skvq_seq *q, const int32_t *tokens, uint32_t n)
{
	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_session *s = q->model->session;
	uint32_t have = part(q, 0)->n_tokens;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (!n || !tokens)
		return set_error(s, SKVQ_EINVAL, "a commit of no tokens");
	if (n > q->max_tokens - have)
		return set_error(s, SKVQ_EFULL, "%u more tokens after %u, the sequence holds at most %u", n,
		                 have, q->max_tokens);
	for (uint32_t i = 0; i < q->model->n_layer; i++) {
		uint32_t layer = i;
		const struct skvq_seq *x = part_of_layer(q, &layer);

		if (x->appended[layer] - have < n)
			return set_error(s, SKVQ_ESTATE,
			                 "commit up to token %u, but layer %u has seen only %u", have + n, i,
			                 x->appended[layer]);
	}
	for (uint32_t i = 0; i < n_parts(q); i++) {
		struct skvq_seq *x = part(q, i);

		memcpy(x->tokens + have, tokens, n * sizeof *tokens);
		x->n_tokens += n;
	}
	s->stats.tokens_committed += n;
	int r = encode_parts(q);
	seq_pump(q);
	return r;
}

int32_t api_seq_truncate(skvq_seq *q, uint32_t n_tokens)
{
	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_session *s = q->model->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (n_tokens > part(q, 0)->n_tokens)
		return set_error(s, SKVQ_ERANGE, "truncate to %u of %u tokens", n_tokens,
		                 part(q, 0)->n_tokens);
	session_pump(s, 0);
	for (uint32_t i = 0; i < n_parts(q); i++)
		publish_take_mail(part(q, i));
	return seq_cut(q, n_tokens);
}

/* Full pages that have not been published yet are worth a short wait: the next engine wants them. */
static void flush(struct skvq_seq *q)
{
	struct skvq_session *s = q->model->session;
	uint64_t deadline = s->close_by_ms ? s->close_by_ms : now_ms() + s->timeout_ms;

	for (int i = 0; i < CLOSE_ROUNDS_MAX; i++) {
		seq_pump(q);
		uint64_t now = now_ms();
		if (!in_flight(q) || s->daemon != DAEMON_ATTACHED || now >= deadline)
			return;
		session_pump(s, (uint32_t)(deadline - now));
	}
}

void api_seq_close(skvq_seq *q)
{
	if (!q)
		return;
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;

	if (check_fork(s) == 0) {
		flush(q);
		for (size_t i = 0; i < s->n_tickets; i++)
			for (uint32_t k = 0; k < n_parts(q); k++)
				if (s->tickets[i].seq == part(q, k))
					s->tickets[i].seq = NULL;
	}
	for (struct skvq_seq **p = &m->seqs; *p; p = &(*p)->next) {
		if (*p == q) {
			*p = q->next;
			break;
		}
	}
	seq_free(q);
}

/* The ring's rows that are memory, to the page: what was appended since the last release, and the
 * pages at both ends of each head's K and V. */
static uint64_t window_bytes(const struct skvq_seq *q)
{
	const struct skvq_model *m = q->model;
	uint64_t edges = (uint64_t)m->n_layer * m->n_kv_heads * 2 * (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t used = (uint64_t)(q->n_tokens - q->ring_released) * m->token_bytes_fp16 + edges;

	return (used < q->ring_bytes ? used : q->ring_bytes) + (q->sinks ? q->sinks_bytes : 0);
}

/* Codes and parameters of a full page. */
static uint64_t code_bytes(const struct skvq_layout *l)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < l->geo.n_layer; i++) {
		const struct skvq_codec *k = &l->layers[i].k, *v = &l->layers[i].v;
		uint32_t own = (uint32_t)(k->n_rows + v->n_rows);

		bytes += (uint64_t)l->geo.n_kv_heads *
		             (k->head_bytes + v->head_bytes + own * SKVQ_PAGE_TOKENS) +
		         (uint64_t)(l->layers[i].k_rows + l->layers[i].v_rows) * SKVQ_PAGE_TOKENS;
	}
	return bytes;
}

/* Adds what one part has. */
static void info_add(const struct skvq_seq *q, skvq_seq_info *info)
{
	const struct skvq_model *m = q->model;
	uint64_t page_bytes = code_bytes(&m->layout);
	uint32_t pages = 0, safe = 0;

	info->pages_inflight += q->publish_id ? q->publish_run : 0;
	info->bytes_window += window_bytes(q);
	info->bytes_fp16 += (uint64_t)q->n_tokens * m->token_bytes_fp16;
	info->pages_dropped += q->n_dropped;
	for (uint32_t i = q->n_dropped; i < q->pages_max && q->pages[i].data; i++, pages++) {
		size_t bytes = skvq_layout_page_bytes(page_layout(q, i), i * SKVQ_PAGE_TOKENS);

		safe += q->pages[i].safe;
		if (q->pages[i].state == PAGE_SHARED) {
			info->pages_shared++;
			info->bytes_shared += bytes;
		} else {
			info->pages_local++;
			info->bytes_local += bytes - (q->pages[i].base_only ? m->layout.refine_bytes : 0);
		}
	}
	info->pages_safe += safe;
	if (safe)
		page_bytes = (page_bytes * (pages - safe) + code_bytes(m->safe) * safe) / pages;
	info->page_code_bytes += page_bytes;
}

/* Of the tokens that are in pages. */
static uint32_t refined_tokens(const struct skvq_seq *q)
{
	uint32_t old = q->n_dropped, n;

	if (!q->model->layout.refine_bytes)
		return 0;
	while (page_is_old(q, old, q->n_tokens))
		old++;
	n = q->n_encoded - old * SKVQ_PAGE_TOKENS;
	for (uint32_t i = old; i * SKVQ_PAGE_TOKENS < q->n_encoded; i++)
		n -= q->pages[i].base_only ? SKVQ_PAGE_TOKENS : 0;
	return n;
}

int32_t api_seq_info(skvq_seq *q, skvq_seq_info *info)
{
	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_session *s = q->model->session;
	const struct skvq_seq *most = part(q, 0); /* that sees most */
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	skvq_seq_info out = {
	    .n_tokens = most->n_tokens,
	    .n_matched = most->n_matched,
	    .n_paged = most->n_encoded,
	    .daemon = (uint32_t)s->daemon,
	    .boot_id = s->client ? skvq_client_hello(s->client)->boot_id : 0,
	    .n_refined = refined_tokens(most),
	    .layer_groups = n_parts(q),
	};
	for (uint32_t i = 0; i < n_parts(q); i++)
		info_add(part(q, i), &out);
	out.n_base = most->n_encoded - dropped_tokens(most) - out.n_refined;
	return copy_out(info, &out, sizeof out);
}
