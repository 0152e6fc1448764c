/* SPDX-License-Identifier: Apache-2.0 */
#include "support/cache_rig.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <skvq/plugin.h>

#include "support/page_maker.h"

static void must(int err, const char *what)
{
	if (err >= 0)
		return;
	fprintf(stderr, "cache rig: %s: error %d\n", what, err);
	abort();
}

void rig_identity(uint32_t seed, struct identity *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->has_weights = ret->has_tokenizer = true;
	memset(ret->weights, 0x11, sizeof(ret->weights));
	memcpy(ret->weights, &seed, sizeof(seed));
	memset(ret->tokenizer, 0x22, sizeof(ret->tokenizer));
	strcpy(ret->engine_numerics, "test-1");
	strcpy(ret->profile, MAKER_PROFILE);
	ret->n_layer = MAKER_LAYERS;
	ret->n_q_heads = 1;
	ret->n_kv_heads = 1;
	ret->head_dim_k = ret->head_dim_v = MAKER_DIM;
	ret->rope_kind = SKVQ_ROPE_POST;
	ret->rope_theta = 10000.0;
	ret->window = 128;
	ret->sinks = MAKER_SINKS;
	ret->n_bit_table = 2 * MAKER_LAYERS;
	memset(ret->bit_table, SKVQ_BITS_4, ret->n_bit_table);
	ret->page_version = SKVQ_PAGE_VERSION;
}

struct others {
	const struct tenant_params *of;
	uint32_t n;
};

static void add_tenants(struct rig *rig, struct others others)
{
	const struct tenant_params own = {.name = "default"};

	rig->tenant = cache_add_tenant(&rig->cache, &own);
	must(rig->tenant ? 0 : -1, "tenant");
	for (uint32_t i = 0; i < others.n; i++)
		must(cache_add_tenant(&rig->cache, &others.of[i]) ? 0 : -1, "tenant");
}

static void start(struct rig *rig, const struct skvq_layout *layout, struct identity *id,
		  uint32_t pages_max, uint32_t pins_max, index_hash_fn hash, struct others others)
{
	struct cache_config config = {
	    .namespaces_max = 4, .spill_percent = 50, .restores_max = 32, .hash = hash};
	struct why why;
	size_t bytes;

	memset(rig, 0, sizeof(*rig));
	rig->layout = *layout;
	config.ram_max = (uint64_t)pages_max * skvq_layout_page_bytes(&rig->layout, 0);
	must(loop_init(&rig->loop), "loop");
	must(worker_init(&rig->worker, &rig->loop, RIG_THREADS, 64), "worker");
	cache_init(&rig->cache, &config, &rig->worker, &rig->stats);
	add_tenants(rig, others);
	pins_init(&rig->pins, pins_max);
	must(cache_ns_open(&rig->cache, rig->tenant, id, "tiny", &rig->ns, &why), "namespace");
	bytes = (size_t)(RIG_STAGING_PAGES * rig->layout.slot_bytes);
	rig->staging = maker_memfd(bytes, F_SEAL_GROW | F_SEAL_SHRINK);
	rig->staging_map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, rig->staging, 0);
	must(rig->staging_map == MAP_FAILED ? -1 : 0, "staging");
}

void rig_init(struct rig *rig, uint32_t pages_max, uint32_t pins_max, index_hash_fn hash)
{
	struct skvq_layout layout;
	struct identity id;

	maker_layout(&layout);
	rig_identity(0, &id);
	start(rig, &layout, &id, pages_max, pins_max, hash, (struct others){NULL, 0});
}

void rig_init_tenants(struct rig *rig, uint32_t pages_max, uint32_t pins_max,
		      const struct tenant_params *others, uint32_t n)
{
	struct skvq_layout layout;
	struct identity id;

	maker_layout(&layout);
	rig_identity(0, &id);
	start(rig, &layout, &id, pages_max, pins_max, NULL, (struct others){others, n});
}

void rig_init_elastic(struct rig *rig, uint32_t pages_max, uint32_t pins_max)
{
	struct skvq_layout layout;
	struct identity id;

	maker_layout_elastic(&layout);
	rig_identity(0, &id);
	strcpy(id.profile, MAKER_ELASTIC);
	memset(id.bit_table, SKVQ_BITS_2, id.n_bit_table);
	start(rig, &layout, &id, pages_max, pins_max, NULL, (struct others){NULL, 0});
}

void rig_fini(struct rig *rig)
{
	(void)cache_unpin_all(&rig->cache, &rig->pins);
	worker_fini(&rig->worker);
	cache_ns_close(&rig->cache, rig->ns);
	cache_fini(&rig->cache);
	pins_fini(&rig->pins);
	loop_fini(&rig->loop);
	munmap(rig->staging_map, (size_t)(RIG_STAGING_PAGES * rig->layout.slot_bytes));
	close(rig->staging);
}

void rig_step(struct rig *rig)
{
	must(loop_step(&rig->loop, rig->store ? 1 : 20000), "loop_step");
	if (rig->store)
		store_step(rig->store, 1);
}

static void on_done(struct publish *p, int error, const char *why)
{
	struct rig_publish *rp = container_of(p, struct rig_publish, p);

	rp->answers++;
	rp->error = error;
	if (error < 0)
		(void)why_fail(&rp->why, -error, "%s", why);
}

void rig_prepare(struct rig *rig, struct rig_publish *rp, struct pins *pins, struct page *parent,
		 uint32_t seed, uint32_t slot)
{
	memset(rp, 0, sizeof(*rp));
	rp->p.ns = rig->ns;
	rp->p.pins = pins;
	rp->p.fd = rig->staging;
	rp->p.offset = slot * rig->layout.slot_bytes;
	rp->p.done = on_done;
	if (parent) {
		rp->p.has_parent = true;
		rp->p.parent = page_ref(parent);
		rp->p.position = parent->position + SKVQ_PAGE_TOKENS;
	}
	maker_tokens(seed, rp->p.position / SKVQ_PAGE_TOKENS, rp->p.tokens);
	maker_page(&rig->layout, rp->p.position, rp->p.tokens, seed,
		   rig->staging_map + rp->p.offset);
}

void rig_make_safe(struct rig *rig, struct rig_publish *rp, uint32_t seed)
{
	uint8_t *at = rig->staging_map + rp->p.offset;

	memset(at, 0, (size_t)rig->layout.slot_bytes);
	maker_page(&rig->ns->safe, rp->p.position, rp->p.tokens, seed, at);
	rp->p.safe = true;
}

int rig_wait(struct rig *rig, struct rig_publish *rp)
{
	while (!rp->answers)
		rig_step(rig);
	return rp->error;
}

struct page *rig_publish(struct rig *rig, struct pins *pins, struct page *parent, uint32_t seed,
			 int *ret_error)
{
	struct rig_publish rp;
	struct why why;
	int r;

	rig_prepare(rig, &rp, pins, parent, seed, 0);
	r = cache_publish(&rig->cache, &rp.p, &why);
	if (r == 0)
		r = rig_wait(rig, &rp);
	if (ret_error)
		*ret_error = r < 0 ? r : 0;
	return r < 0 ? NULL : rp.p.page;
}

void rig_chain(struct rig *rig, struct pins *pins, uint32_t seed, uint32_t n, struct page **ret)
{
	for (uint32_t i = 0; i < n; i++) {
		int err;

		ret[i] = rig_publish(rig, pins, i ? ret[i - 1] : NULL, seed, &err);
		must(err, "publishing a chain");
	}
}

void rig_tokens(uint32_t seed, uint32_t n_pages, int32_t *ret)
{
	for (uint32_t i = 0; i < n_pages; i++)
		maker_tokens(seed, i, ret + (size_t)i * SKVQ_PAGE_TOKENS);
}

static void on_match(struct match *m, int error, const char *why)
{
	struct rig_match *rm = container_of(m, struct rig_match, m);

	rm->answers++;
	rm->error = error;
	if (error < 0)
		(void)why_fail(&rm->why, -error, "%s", why);
}

int rig_match(struct rig *rig, struct rig_match *rm, struct pins *pins, uint32_t seed,
	      uint32_t n_pages, uint32_t wait_ms)
{
	int32_t tokens[RIG_MATCH_PAGES * SKVQ_PAGE_TOKENS];
	int r;

	must(n_pages <= RIG_MATCH_PAGES ? 0 : -1, "a shorter chain");
	rig_tokens(seed, n_pages, tokens);
	memset(rm, 0, sizeof(*rm));
	rm->m = (struct match){.ns = rig->ns,
			       .pins = pins,
			       .tokens = tokens,
			       .n_tokens = n_pages * SKVQ_PAGE_TOKENS,
			       .max_pages = RIG_MATCH_PAGES,
			       .wait_ms = wait_ms,
			       .refs = rm->refs,
			       .done = on_match};
	r = cache_match(&rig->cache, &rm->m, &rm->why);
	if (r != 0)
		return r < 0 ? r : 0;
	while (!rm->answers)
		rig_step(rig);
	return rm->error;
}

/* ---- the gate ---- */

static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moves = PTHREAD_COND_INITIALIZER;
static struct rig_gate *the_gate; /* one at a time */

static void gate_run(struct job *job)
{
	(void)job;
	(void)pthread_mutex_lock(&gate_lock);
	the_gate->n_here++;
	(void)pthread_cond_broadcast(&gate_moves);
	while (!the_gate->open)
		(void)pthread_cond_wait(&gate_moves, &gate_lock);
	(void)pthread_mutex_unlock(&gate_lock);
}

static void gate_done(struct job *job)
{
	(void)job;
	the_gate->n_here--; /* no thread is inside any more */
}

void rig_gate_shut(struct rig *rig, struct rig_gate *gate)
{
	memset(gate, 0, sizeof(*gate));
	the_gate = gate;
	for (uint32_t i = 0; i < rig->worker.n_threads; i++) {
		gate->jobs[i] = (struct job){.run = gate_run, .done = gate_done};
		must(worker_submit(&rig->worker, &gate->jobs[i]), "gate");
	}
	(void)pthread_mutex_lock(&gate_lock);
	while (gate->n_here < rig->worker.n_threads)
		(void)pthread_cond_wait(&gate_moves, &gate_lock);
	(void)pthread_mutex_unlock(&gate_lock);
}

void rig_gate_open(struct rig *rig, struct rig_gate *gate)
{
	(void)pthread_mutex_lock(&gate_lock);
	gate->open = true;
	(void)pthread_cond_broadcast(&gate_moves);
	(void)pthread_mutex_unlock(&gate_lock);
	while (gate->n_here)
		rig_step(rig);
}
