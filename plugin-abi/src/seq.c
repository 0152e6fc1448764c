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

int seq_new(struct skvq_model *m, uint32_t flags, uint32_t max_tokens, uint32_t max_append,
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

/* Takes the pages the daemon has of these tokens. A page that does not prove itself, and all after
 * it, count as a miss. */
static int match(struct skvq_seq *q, const int32_t *tokens, uint32_t n_tokens,
                 uint32_t recompute_us)
{
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	uint32_t keep = m->window > 0 ? m->window : 1;
	uint32_t n = 0;

	if (n_tokens <= keep || (n_tokens - keep) / SKVQ_PAGE_TOKENS == 0)
		return 0;
	uint32_t pages_max = (n_tokens - keep) / SKVQ_PAGE_TOKENS;
	struct skvq_page_ref *refs = calloc(pages_max, sizeof *refs + sizeof(bool));
	if (!refs)
		return set_error(s, SKVQ_ENOMEM, "no memory to match %u pages", pages_max);
	bool *base_only = (bool *)(refs + pages_max);
	int got = skvq_client_match(s->client, m->ns, tokens, n_tokens, n_tokens - keep,
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
	uint32_t whole = whole_pages(q, n);
	if (whole < n)
		(void)skvq_client_unpin(s->client, m->ns, refs + whole, n - whole);
	while (n > whole) {
		arena_unref(q->pages[--n].arena);
		q->pages[n] = (struct seq_page){0};
	}
	free(refs);
	if (n == 0)
		return 0;
	const struct skvq_layout *first = page_layout(q, 0);
	if (m->sinks)
		memcpy(q->sinks, q->pages[0].data + first->base_bytes + first->refine_bytes,
		       q->sinks_bytes);
	q->n_matched = q->n_encoded = q->n_tokens = n * SKVQ_PAGE_TOKENS;
	q->ring_released = q->ring_true = q->n_matched;
	memcpy(q->tokens, tokens, q->n_matched * sizeof *tokens);
	for (uint32_t i = 0; i < m->n_layer; i++)
		q->appended[i] = q->n_matched;
	q->publish_epoch = s->epoch;
	q->n_published = n;
	shed_refinements(q);
	drop_unseen(q);
	return 0;
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
	if (s->daemon != DAEMON_ATTACHED || m->epoch != s->epoch)
		return set_error(s, SKVQ_ENODAEMON, "no daemon to prefetch from");
	uint32_t resident = 0, coming = 0;
	int r = skvq_client_prefetch(s->client, m->ns, tokens, n_tokens, &resident, &coming);
	if (r < 0) {
		set_error(s, -r, "%s", skvq_client_why(s->client));
		if (skvq_client_broken(s->client))
			session_lost(s);
		return r;
	}
	return (int32_t)((resident + coming) * SKVQ_PAGE_TOKENS);
}

const skvq_ext_prefetch ext_prefetch = {.struct_size = sizeof ext_prefetch,
                                        .prefetch = ext_prefetch_tokens};

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
	if (s->daemon == DAEMON_ATTACHED && m->epoch == s->epoch && !(d.flags & SKVQ_SEQ_NO_MATCH) &&
	    (r = match(q, d.tokens, d.n_tokens, d.recompute_us)) < 0)
		goto fail;
	if (s->daemon == DAEMON_ATTACHED && m->epoch == s->epoch && !(d.flags & SKVQ_SEQ_NO_PUBLISH))
		(void)publish_prepare(q->staging, s->timeout_ms); /* refused: tried again when a page is full */
	s->stats.tokens_asked += d.n_tokens;
	s->stats.tokens_matched += q->n_matched;
	seq_join(q);
	*ret = q;
	return (int32_t)q->n_matched;
fail:
	seq_free(q);
	return r;
}

/* Takes in the daemon's answers and sends what has become full. Never waits. */
static void seq_pump(struct skvq_seq *q, uint32_t wait_ms)
{
	session_pump(q->model->session, wait_ms);
	publish_take_mail(q);
	if (q->model->session->lost)
		seq_rescue(q);
	publish_begin(q);
	drop_unseen(q);
}

int32_t api_seq_poll(skvq_seq *q)
{
	if (!q)
		return -SKVQ_EINVAL;
	if (check_fork(q->model->session) < 0)
		return -SKVQ_EFORKED;
	int r = encode_tiles(q); /* what a commit could not for want of memory */
	seq_pump(q, 0);
	shed_refinements(q);
	return r < 0 ? r : q->publish_id == 0;
}

int32_t api_seq_commit(skvq_seq *q, const int32_t *tokens, uint32_t n)
{
	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (!n || !tokens)
		return set_error(s, SKVQ_EINVAL, "a commit of no tokens");
	if (n > q->max_tokens - q->n_tokens)
		return set_error(s, SKVQ_EFULL, "%u more tokens after %u, the sequence holds at most %u", n,
		                 q->n_tokens, q->max_tokens);
	for (uint32_t i = 0; i < m->n_layer; i++)
		if (q->appended[i] - q->n_tokens < n)
			return set_error(s, SKVQ_ESTATE,
			                 "commit up to token %u, but layer %u has seen only %u",
			                 q->n_tokens + n, i, q->appended[i]);
	memcpy(q->tokens + q->n_tokens, tokens, n * sizeof *tokens);
	q->n_tokens += n;
	s->stats.tokens_committed += n;
	int r = encode_tiles(q);
	seq_pump(q, 0);
	return r;
}

int32_t api_seq_truncate(skvq_seq *q, uint32_t n_tokens)
{
	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_session *s = q->model->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	if (n_tokens > q->n_tokens)
		return set_error(s, SKVQ_ERANGE, "truncate to %u of %u tokens", n_tokens, q->n_tokens);
	session_pump(s, 0);
	publish_take_mail(q);
	return seq_cut(q, n_tokens);
}

/* Full pages that have not been published yet are worth a short wait: the next engine wants them. */
static void flush(struct skvq_seq *q)
{
	struct skvq_session *s = q->model->session;
	uint64_t deadline = s->close_by_ms ? s->close_by_ms : now_ms() + s->timeout_ms;

	for (int i = 0; i < CLOSE_ROUNDS_MAX; i++) {
		seq_pump(q, 0);
		uint64_t now = now_ms();
		if (!q->publish_id || s->daemon != DAEMON_ATTACHED || now >= deadline)
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
			if (s->tickets[i].seq == q)
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

int32_t api_seq_info(skvq_seq *q, skvq_seq_info *info)
{
	if (!q)
		return -SKVQ_EINVAL;
	struct skvq_model *m = q->model;
	struct skvq_session *s = m->session;
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	skvq_seq_info out = {
	    .n_tokens = q->n_tokens,
	    .n_matched = q->n_matched,
	    .n_paged = q->n_encoded,
	    .pages_inflight = q->publish_id ? q->publish_run : 0,
	    .daemon = (uint32_t)s->daemon,
	    .bytes_window = window_bytes(q),
	    .bytes_fp16 = (uint64_t)q->n_tokens * m->token_bytes_fp16,
	    .pages_dropped = q->n_dropped,
	    .boot_id = s->client ? skvq_client_hello(s->client)->boot_id : 0,
	};
	for (uint32_t i = q->n_dropped; i < q->pages_max && q->pages[i].data; i++) {
		size_t bytes = skvq_layout_page_bytes(page_layout(q, i), i * SKVQ_PAGE_TOKENS);

		out.pages_safe += q->pages[i].safe;
		if (q->pages[i].state == PAGE_SHARED) {
			out.pages_shared++;
			out.bytes_shared += bytes;
		} else {
			out.pages_local++;
			out.bytes_local += bytes - (q->pages[i].base_only ? m->layout.refine_bytes : 0);
		}
	}
	if (m->layout.refine_bytes) {
		uint32_t old = q->n_dropped;

		while (page_is_old(q, old, q->n_tokens))
			old++;
		out.n_refined = q->n_encoded - old * SKVQ_PAGE_TOKENS;
		for (uint32_t i = old; i * SKVQ_PAGE_TOKENS < q->n_encoded; i++)
			out.n_refined -= q->pages[i].base_only ? SKVQ_PAGE_TOKENS : 0;
	}
	out.n_base = q->n_encoded - dropped_tokens(q) - out.n_refined;
	out.page_code_bytes = code_bytes(&m->layout);
	if (out.pages_safe) {
		uint64_t pages = out.pages_shared + out.pages_local;

		out.page_code_bytes = (out.page_code_bytes * (pages - out.pages_safe) +
		                       code_bytes(m->safe) * out.pages_safe) /
		                      pages;
	}
	return copy_out(info, &out, sizeof out);
}
