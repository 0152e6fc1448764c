/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same requests, each at the engine that served it, to caches as they are without a daemon:
 * every engine has its part of the memory for itself, with K and V in FP16, least recently used
 * goes first. With our pages in them, and with FP16 in one cache for all, it shows what of the
 * difference is few bits and what is sharing. Only the choice of what stays is played
 * (bench-evict's simulator).
 */
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "sim.h"

struct setup {
	const char *name, *policy;
	bool shared, fp16;
};

static const struct setup setups[PEER_COUNT] = {
    [PEER_PRIVATE_FP16] = {"private_fp16", "lru", false, true},
    [PEER_PRIVATE_FP16_ARC] = {"private_fp16_arc", "arc", false, true},
    [PEER_PRIVATE_PAGES] = {"private_pages", "lru", false, false},
    [PEER_SHARED_FP16] = {"shared_fp16", "lru", true, true},
};

static const struct rival *rival_of(const char *name)
{
	for (uint32_t i = 0; i < n_rivals; i++) {
		if (!strcmp(rivals[i].name, name))
			return &rivals[i];
	}
	abort();
}

static uint64_t fp16_page_bytes(const struct skvq_layout *l)
{
	return (uint64_t)SKVQ_PAGE_TOKENS * l->geo.n_layer * l->geo.n_kv_heads *
	       (l->geo.head_dim_k + l->geo.head_dim_v) * 2;
}

/* What is left of the trace: the requests that client `only` served, or those of all. FP16 has no
 * window, so the last token alone is always computed. */
static void choose(const struct load *load, const struct phase *phase, bool shared, uint32_t only,
		   bool fp16, struct trace *to)
{
	uint64_t seen[CLIENTS_MAX] = {0};
	uint32_t window = fp16 ? 1 : WINDOW;

	to->n_requests = 0;
	for (uint32_t i = 0; i < load->trace.n_requests; i++) {
		struct request q = load->trace.requests[i];
		uint32_t client = q.session % load->clients, all;

		if (!is_served_by(load, &q, client) || seen[client]++ >= phase->served[client] ||
		    (!shared && client != only))
			continue;
		all = q.n_all;
		q.n = pages_before(q.tokens, window);
		q.n_all = pages_before(q.tokens_all, window);
		if (q.n_all > all)
			q.n_all = all;
		to->requests[to->n_requests++] = q;
	}
}

static int play(const struct load *load, const struct phase *phase, uint64_t ram_bytes,
		const struct setup *setup, struct trace *trace, struct peer *ret)
{
	const struct skvq_layout *l = &load->model.layout;
	uint32_t caches = setup->shared ? 1 : load->clients;
	uint64_t asked = 0, hit = 0;

	*ret = (struct peer){.name = setup->name};
	ret->page_bytes = setup->fp16 ? fp16_page_bytes(l) : l->base_bytes;
	ret->pages = ram_bytes / caches / ret->page_bytes;
	if (ret->pages < 2)
		ret->pages = 2;
	for (uint32_t i = 0; i < caches; i++) {
		struct sim_result r;

		choose(load, phase, setup->shared, i, setup->fp16, trace);
		if (!trace->n_requests)
			continue;
		if (sim_run(trace, rival_of(setup->policy), (uint32_t)ret->pages, &r) < 0)
			return -1;
		for (uint32_t k = 0; k < trace->n_requests; k++)
			asked += trace->requests[k].tokens;
		hit += r.hit * SKVQ_PAGE_TOKENS;
	}
	ret->hit_rate = asked ? (double)hit / (double)asked : 0;
	ret->tokens_recomputed = asked - hit;
	return 0;
}

int peers_run(const struct load *load, const struct phase *phase, uint64_t ram_bytes,
	      struct peer ret[PEER_COUNT])
{
	struct trace some = load->trace;
	int r = 0;

	some.requests = malloc((load->trace.n_requests + 1) * sizeof(*some.requests));
	if (!some.requests)
		return -1;
	for (uint32_t i = 0; i < PEER_COUNT && !r; i++)
		r = play(load, phase, ram_bytes, &setups[i], &some, &ret[i]);
	free(some.requests);
	return r;
}
