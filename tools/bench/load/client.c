/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What runs in the client processes. Clients speak libskvq and not the plugin: their pages are made
 * up once and stamped, so that what is measured is the daemon, and not the encoding of the pages.
 */
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "load.h"

#define PAGES_MAX     (PROMPT_MAX / SKVQ_PAGE_TOKENS + 1u)
#define VOCABULARY    49152u
#define COMPARE_EVERY 4u /* of the requests, one page of each is compared byte by byte */
#define ONLOOK_US     100e3
#define CHAIN_PAGES   256u /* of a publisher's sequence */
#define PUBLISH_RUN   16u
#define FLIGHTS       2u

/* A run being published. */
struct flight {
	uint64_t id; /* 0: none */
	double sent_us;
	int error;
	uint32_t n;
	struct skvq_page_ref refs[PUBLISH_RUN];
};

struct client {
	const struct load *load;
	const struct skvq_layout *layout;
	struct shared *shared;
	struct slot *slot;
	struct skvq_client *c;
	struct skvq_client_ns ns;
	const uint8_t *arena;
	uint8_t *staging;  /* FLIGHTS * PUBLISH_RUN pages */
	uint8_t *expected; /* one page, to compare with */
	uint32_t staging_id, number;
	uint64_t random;
	struct flight flights[FLIGHTS];
	struct skvq_page_ref *refs; /* [n_max] */
	bool *base_only;
	int32_t *tokens;
};

/* ---- pages ---- */

/* Page `number` of the load's traffic: the same number always follows the same pages. */
static void page_tokens(const struct load *load, uint64_t number, int32_t *to)
{
	uint64_t state = mix(load->seed + mix(number + 1));

	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++) {
		state += UINT64_C(0x9e3779b97f4a7c15);
		to[i] = (int32_t)(mix(state) % VOCABULARY);
	}
}

/* Turns a page of the template's codes into page `number`: header, tokens, and in each head's codes
 * of each layer eight bytes of its own. */
static void page_stamp(const struct load *load, uint64_t number, uint32_t position,
		       const int32_t *tokens, uint8_t *page)
{
	const struct skvq_layout *l = &load->model.layout;

	skvq_page_init(l, position, page);
	memcpy(page + l->tokens_offset, tokens, SKVQ_PAGE_TOKENS * sizeof(*tokens));
	for (uint32_t layer = 0; layer < l->geo.n_layer; layer++) {
		for (uint32_t head = 0; head < l->geo.n_kv_heads; head++) {
			uint64_t stamp = mix(number * SKVQ_PAGE_TOKENS + layer * 64 + head);

			memcpy(page + skvq_layout_k_codes(l, layer, head), &stamp, sizeof(stamp));
		}
	}
}

static uint64_t template_seed(const struct load *load)
{
	return mix(load->seed + 1) | 1;
}

static const uint8_t *page_at(const struct client *cl, struct skvq_page_ref ref)
{
	uint64_t at = (uint64_t)ref.slot * cl->ns.slot_bytes;

	return at + cl->ns.slot_bytes <= cl->ns.arena_bytes ? cl->arena + at : NULL;
}

/* Looks at all tokens and, if compare, at all bytes of one page. number_of: pages' numbers. */
static void check_pages(struct client *cl, const uint32_t *number_of, uint32_t n, bool compare)
{
	const struct skvq_layout *l = cl->layout;
	uint32_t chosen = n ? (uint32_t)(made_up_random(&cl->random) % n) : 0;

	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *page = page_at(cl, cl->refs[i]);
		const int32_t *tokens = cl->tokens + (size_t)i * SKVQ_PAGE_TOKENS;

		cl->slot->pages_checked++;
		if (!page ||
		    memcmp(page + l->tokens_offset, tokens, SKVQ_PAGE_TOKENS * sizeof(*tokens))) {
			cl->slot->wrong_bytes++;
			continue;
		}
		if (!compare || i != chosen)
			continue;
		page_stamp(cl->load, number_of[i], i * SKVQ_PAGE_TOKENS, tokens, cl->expected);
		cl->slot->wrong_bytes +=
		    made_up_wrong(l, cl->expected, page, cl->base_only[i], cl->ns.identity_digest,
				  i ? page_at(cl, cl->refs[i - 1]) : NULL);
		cl->slot->pages_compared++;
	}
}

/* ---- time ---- */

static void took(struct client *cl, enum kind kind, double since_us)
{
	double now = bench_now_us(), start = (double)cl->shared->start_us;
	double end = (double)cl->shared->end_us;
	double part = (now - start) / (end - start) * WINDOWS;

	if (!cl->shared->start_us && kind != KIND_HELLO)
		return;
	histogram_add(&cl->slot->kinds[kind], now - since_us);
	if (kind_is_small(kind) && part >= 0)
		histogram_add(&cl->slot->small[part < WINDOWS ? (uint32_t)part : WINDOWS - 1],
			      now - since_us);
}

/* Takes in answers until the time has come. */
static int wait_until(struct client *cl, double until_us)
{
	double left;
	int r = 0;

	while (r >= 0 && !cl->shared->stop && (left = until_us - bench_now_us()) > 0) {
		struct timespec ts = {.tv_sec = (time_t)(left / 1e6),
				      .tv_nsec = (long)(fmod(left, 1e6) * 1e3)};
		struct pollfd p = {.fd = skvq_client_fd(cl->c), .events = POLLIN};

		if (ppoll(&p, 1, &ts, NULL) > 0)
			r = skvq_client_poll(cl->c, 0);
	}
	return r;
}

/* ---- the connection ---- */

static void published(void *user, uint64_t id, int err, const char *detail,
		      const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct client *cl = user;

	(void)detail;
	for (uint32_t i = 0; i < FLIGHTS; i++) {
		struct flight *f = &cl->flights[i];

		if (f->id != id)
			continue;
		took(cl, KIND_PUBLISH, f->sent_us);
		f->id = 0;
		f->error = err;
		f->n = n_pages < PUBLISH_RUN ? (uint32_t)n_pages : PUBLISH_RUN;
		memcpy(f->refs, pages, f->n * sizeof(*pages));
		cl->slot->pages_published += n_pages;
		cl->slot->pages_existed += n_existed;
		if (cl->shared->start_us && bench_now_us() > (double)cl->shared->start_us / 2 +
								 (double)cl->shared->end_us / 2)
			cl->slot->bytes_late += n_pages * cl->layout->base_bytes;
		cl->slot->refused += err < 0;
	}
}

static int add_staging(struct client *cl)
{
	size_t bytes = FLIGHTS * PUBLISH_RUN * cl->layout->slot_bytes;
	int fd = memfd_create("bench-load", MFD_CLOEXEC | MFD_ALLOW_SEALING), r = -SKVQ_ESYS;
	void *at = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0)
		at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at != MAP_FAILED) {
		cl->staging = at;
		for (uint32_t i = 0; i < FLIGHTS * PUBLISH_RUN; i++)
			memcpy(cl->staging + i * cl->layout->slot_bytes, cl->expected,
			       cl->layout->slot_bytes);
		r = skvq_client_staging_add(cl->c, fd, &cl->staging_id);
	}
	if (fd >= 0)
		(void)close(fd);
	return r;
}

static int say_hello(struct client *cl, struct skvq_client **ret)
{
	char why[SKVQ_CLIENT_WHY_BYTES], name[32];
	double since = bench_now_us();
	int r;

	(void)snprintf(name, sizeof(name), "bench-load-%u", cl->number);
	r = skvq_client_connect(cl->load->socket, name, TIMEOUT_MS, ret, why);
	if (r < 0)
		fprintf(stderr, "bench-load: client %u: %s\n", cl->number, why);
	else
		took(cl, KIND_HELLO, since);
	return r;
}

static int attach(struct client *cl)
{
	int fd = -1, r = say_hello(cl, &cl->c);
	void *at;

	if (r < 0)
		return r;
	skvq_client_on_published(cl->c, published, cl);
	r = skvq_client_namespace_open(cl->c, &cl->load->model.identity, &cl->ns, &fd);
	if (r < 0)
		return r;
	at = mmap(NULL, cl->ns.arena_bytes, PROT_READ, MAP_SHARED, fd, 0);
	(void)close(fd);
	if (at == MAP_FAILED || cl->ns.slot_bytes != cl->layout->slot_bytes)
		return -SKVQ_EPROTO;
	cl->arena = at;
	return add_staging(cl);
}

/* Everything but the connection; pages_max of one sequence. */
static int prepare(struct client *cl, const struct load *load, struct shared *shared,
		   uint32_t number, uint32_t pages_max)
{
	*cl = (struct client){.load = load,
			      .layout = &load->model.layout,
			      .shared = shared,
			      .slot = &shared->slots[number],
			      .number = number,
			      .random = mix(load->seed + 77 + number) | 1};
	cl->expected = calloc(1, cl->layout->slot_bytes);
	cl->refs = calloc(pages_max, sizeof(*cl->refs));
	cl->base_only = calloc(pages_max, sizeof(*cl->base_only));
	cl->tokens = calloc((size_t)pages_max * SKVQ_PAGE_TOKENS, sizeof(*cl->tokens));
	if (!cl->expected || !cl->refs || !cl->base_only || !cl->tokens)
		return -SKVQ_ENOMEM;
	made_up_fill(cl->layout, 0, template_seed(load), cl->expected);
	return attach(cl);
}

/* Waits until all are attached. */
static void start(struct client *cl)
{
	cl->shared->ready++;
	while (!cl->shared->start_us && !cl->shared->stop)
		(void)usleep(1000);
}

/* The end of a client process. */
static void finish(struct client *cl, int r)
{
	if (r < 0 && !cl->shared->stop) {
		fprintf(stderr, "bench-load: client %u: %s: %s\n", cl->number, skvq_err_name(r),
			cl->c ? skvq_client_why(cl->c) : "");
		cl->slot->failures++;
	}
	if (!cl->shared->start_us)
		cl->shared->ready++;
	skvq_client_free(cl->c);
	free(cl->expected);
	free(cl->refs);
	free(cl->base_only);
	free(cl->tokens);
}

/* ---- requests ---- */

static int match(struct client *cl, uint32_t n_pages, enum kind kind)
{
	uint32_t n = n_pages * SKVQ_PAGE_TOKENS;
	double since = bench_now_us();
	int r = skvq_client_match(cl->c, cl->ns.ns, cl->tokens, n, n, 0, cl->refs, cl->base_only,
				  n_pages);

	if (r >= 0)
		took(cl, kind, since);
	return r;
}

/* Until the last answer is there. */
static int unpin(struct client *cl, uint32_t n, enum kind kind)
{
	double since = bench_now_us();
	int r = n ? skvq_client_unpin(cl->c, cl->ns.ns, cl->refs, n) : 0;

	while (r >= 0 && n && (r = skvq_client_poll(cl->c, TIMEOUT_MS)) > 0)
		;
	if (r >= 0 && n)
		took(cl, kind, since);
	return r;
}

static int ping(struct client *cl)
{
	uint64_t payload = cl->random;
	double since = bench_now_us();
	int r = skvq_client_ping(cl->c, &payload, sizeof(payload));

	if (r >= 0)
		took(cl, KIND_PING, since);
	return r;
}

/* The same to who does nothing else: what of it is the machine's. */
static int echo(struct client *cl)
{
	double since = bench_now_us();

	if (!echo_once(cl->shared->echo[cl->number]))
		return cl->shared->stop ? 0 : -SKVQ_ESYS;
	took(cl, KIND_ECHO, since);
	return 0;
}

/* Pages first..first+n of a sequence out of flight f's part of staging; parent: refs[first - 1].
 * Their numbers are in number_of, behind base. */
static int send_run(struct client *cl, struct flight *f, struct skvq_page_ref parent,
		    const int32_t *tokens, const uint64_t *numbers, uint32_t first, uint32_t n)
{
	uint64_t offset = (uint64_t)(f - cl->flights) * PUBLISH_RUN * cl->layout->slot_bytes;

	for (uint32_t i = 0; i < n; i++)
		page_stamp(cl->load, numbers[i], (first + i) * SKVQ_PAGE_TOKENS,
			   tokens + (size_t)i * SKVQ_PAGE_TOKENS,
			   cl->staging + offset + i * cl->layout->slot_bytes);
	f->sent_us = bench_now_us();
	f->error = 0;
	f->n = 0;
	return skvq_client_publish(cl->c, cl->ns.ns, parent, first * SKVQ_PAGE_TOKENS, tokens, n,
				   NULL, cl->staging_id, offset, &f->id);
}

/* Pages have..have+n, waited for: the next ones need the name of the last. Pages that are in now,
 * or negative. */
static int publish_run(struct client *cl, const uint32_t *number_of, uint32_t have, uint32_t n)
{
	static const struct skvq_page_ref none;
	struct flight *f = &cl->flights[0];
	uint64_t numbers[PUBLISH_RUN];
	int r;

	for (uint32_t i = 0; i < n; i++)
		numbers[i] = number_of[have + i];
	r = send_run(cl, f, have ? cl->refs[have - 1] : none,
		     cl->tokens + (size_t)have * SKVQ_PAGE_TOKENS, numbers, have, n);
	while (r >= 0 && f->id)
		r = skvq_client_poll(cl->c, TIMEOUT_MS);
	if (r < 0)
		return r;
	memcpy(cl->refs + have, f->refs, f->n * sizeof(*f->refs));
	memset(cl->base_only + have, 0, f->n * sizeof(*cl->base_only));
	return (int)f->n;
}

/* ---- an engine ---- */

/* Pages from have on as they are computed, in runs of at most `run`, up to n. Returns how many of
 * the sequence are held then: fewer if the daemon refused, which costs an engine nothing. */
static int compute(struct client *cl, const uint32_t *number_of, uint32_t have, uint32_t n,
		   uint32_t run, double *clock_us)
{
	while (have < n && !cl->shared->stop) {
		uint32_t some = n - have < run ? n - have : run;
		int r = 0;

		if (cl->load->pace > 0) {
			*clock_us += some * SKVQ_PAGE_TOKENS / cl->load->pace * 1e6;
			r = wait_until(cl, *clock_us);
		}
		if (r >= 0 && !cl->shared->stop)
			r = publish_run(cl, number_of, have, some);
		if (r < 0)
			return r;
		have += (uint32_t)r;
		if ((uint32_t)r < some)
			break;
	}
	return (int)have;
}

static uint32_t pages_of(uint32_t tokens)
{
	uint32_t n = pages_before(tokens, WINDOW);

	return n < PAGES_MAX ? n : PAGES_MAX;
}

/* A question and its answer: take what is there, compute and publish the rest. */
static int serve(struct client *cl, const struct request *q)
{
	const uint32_t *number_of = cl->load->trace.pages + q->first;
	uint32_t ask = pages_of(q->tokens), all = pages_of(q->tokens_all), have = 0;
	bool small = ask <= SMALL_PAGES;
	double clock_us;
	int r = 0;

	for (uint32_t i = 0; i < all; i++)
		page_tokens(cl->load, number_of[i], cl->tokens + (size_t)i * SKVQ_PAGE_TOKENS);
	if (ask)
		r = match(cl, ask, small ? KIND_MATCH_SMALL : KIND_MATCH);
	if (r < 0)
		return r;
	have = (uint32_t)r;
	cl->slot->tokens_asked += q->tokens;
	cl->slot->tokens_hit += (uint64_t)have * SKVQ_PAGE_TOKENS;
	check_pages(cl, number_of, have, made_up_random(&cl->random) % COMPARE_EVERY == 0);
	r = ping(cl);
	if (r >= 0)
		r = echo(cl);
	clock_us = bench_now_us();
	if (r >= 0)
		r = compute(cl, number_of, have, ask, RUN_PAGES, &clock_us);
	if (r >= 0 && (uint32_t)r == ask)
		r = compute(cl, number_of, ask, all, 1, &clock_us);
	if (r < 0)
		return r;
	/* The tokens that stay in the window, of question and answer. */
	if (cl->load->pace > 0)
		(void)wait_until(cl, clock_us + WINDOW / cl->load->pace * 1e6);
	have = (uint32_t)r;
	return unpin(cl, have, have <= SMALL_PAGES ? KIND_UNPIN_SMALL : KIND_UNPIN);
}

void client_engine(const struct load *load, struct shared *shared, uint32_t number)
{
	struct client cl;
	int r = prepare(&cl, load, shared, number, PAGES_MAX);

	if (r >= 0)
		start(&cl);
	/* Not all at once: engines start when they start. */
	if (r >= 0 && load->pace > 0)
		r = wait_until(&cl, bench_now_us() + (double)(cl.random % 1000) * 1e3);
	for (uint32_t i = 0; i < load->trace.n_requests && r >= 0 && !shared->stop; i++) {
		const struct request *q = &load->trace.requests[i];

		if (!is_served_by(load, q, number))
			continue;
		r = serve(&cl, q);
		if (r >= 0 && !shared->stop)
			cl.slot->served++;
	}
	finish(&cl, r);
}

/* ---- one long prefix ---- */

#define LONG_PREFIX (UINT64_C(1) << 40) /* number of its first page */

static int publish_long(struct client *cl)
{
	static const struct skvq_page_ref none;
	struct skvq_page_ref last = none;
	int r = 0;

	for (uint32_t i = 0; i < LONG_PAGES; i++)
		page_tokens(cl->load, LONG_PREFIX + i, cl->tokens + (size_t)i * SKVQ_PAGE_TOKENS);
	for (uint32_t i = 0; i < LONG_PAGES && r >= 0; i += PUBLISH_RUN) {
		struct flight *f = &cl->flights[0];
		uint64_t numbers[PUBLISH_RUN];

		for (uint32_t k = 0; k < PUBLISH_RUN; k++)
			numbers[k] = LONG_PREFIX + i + k;
		r = send_run(cl, f, last, cl->tokens + (size_t)i * SKVQ_PAGE_TOKENS, numbers, i,
			     PUBLISH_RUN);
		while (r >= 0 && f->id)
			r = skvq_client_poll(cl->c, TIMEOUT_MS);
		if (r >= 0 && f->n < PUBLISH_RUN)
			r = f->error < 0 ? f->error : -SKVQ_ESTATE;
		if (r >= 0)
			last = f->refs[PUBLISH_RUN - 1];
	}
	return r;
}

static int match_long(struct client *cl)
{
	int r = match(cl, LONG_PAGES, KIND_MATCH_512);

	if (r >= 0 && (uint32_t)r < LONG_PAGES)
		return -SKVQ_ESTATE; /* it is pinned: it must be there */
	return r < 0 ? r : unpin(cl, LONG_PAGES, KIND_UNPIN);
}

void client_long_prefix(const struct load *load, struct shared *shared, uint32_t number)
{
	struct client cl;
	int r = prepare(&cl, load, shared, number, LONG_PAGES);

	if (r >= 0)
		r = publish_long(&cl);
	if (r >= 0)
		start(&cl);
	while (r >= 0 && !shared->stop)
		r = match_long(&cl);
	finish(&cl, r);
}

static int onlook(struct client *cl)
{
	struct skvq_client_status *status = malloc(sizeof(*status));
	struct skvq_client *other = NULL;
	int r = match_long(cl);
	double since;

	if (r >= 0)
		r = say_hello(cl, &other);
	since = bench_now_us();
	if (r >= 0)
		r = status ? skvq_client_status(other, status) : -SKVQ_ENOMEM;
	if (r >= 0)
		took(cl, KIND_STATUS, since);
	skvq_client_free(other);
	free(status);
	return r;
}

void client_onlooker(const struct load *load, struct shared *shared, uint32_t number)
{
	struct client cl;
	int r = prepare(&cl, load, shared, number, LONG_PAGES);

	if (r >= 0)
		r = publish_long(&cl);
	if (r >= 0)
		start(&cl);
	while (r >= 0 && !shared->stop) {
		double next = bench_now_us() + ONLOOK_US;

		r = onlook(&cl);
		if (r >= 0)
			r = wait_until(&cl, next);
	}
	finish(&cl, r);
}

/* ---- publishing and nothing else ---- */

struct chain {
	uint64_t first; /* number of its first page */
	uint32_t n;     /* pages sent */
	struct skvq_page_ref last;
};

/* The names in a flight that has landed: all but the last are let go of, which the next run needs.
 */
static int landed(struct client *cl, struct flight *f, struct chain *chain)
{
	struct skvq_page_ref drop[PUBLISH_RUN + 1];
	bool ends = chain->n >= CHAIN_PAGES || f->error < 0;
	uint32_t n = 0;

	if (chain->last.generation)
		drop[n++] = chain->last;
	for (uint32_t i = 0; i < f->n; i++) {
		if (ends || i + 1 < f->n)
			drop[n++] = f->refs[i];
	}
	chain->last = f->n && !ends ? f->refs[f->n - 1] : (struct skvq_page_ref){0};
	f->n = 0;
	if (!chain->last.generation) {
		chain->n = 0;
		chain->first = made_up_random(&cl->random);
	}
	return n ? skvq_client_unpin(cl->c, cl->ns.ns, drop, n) : 0;
}

static int fly(struct client *cl, struct flight *f, struct chain *chain)
{
	int32_t tokens[PUBLISH_RUN * SKVQ_PAGE_TOKENS];
	uint64_t numbers[PUBLISH_RUN];
	int r = landed(cl, f, chain);

	for (uint32_t i = 0; i < PUBLISH_RUN; i++) {
		numbers[i] = chain->first + chain->n + i;
		page_tokens(cl->load, numbers[i], tokens + (size_t)i * SKVQ_PAGE_TOKENS);
	}
	if (r >= 0)
		r = send_run(cl, f, chain->last, tokens, numbers, chain->n, PUBLISH_RUN);
	chain->n += PUBLISH_RUN;
	return r;
}

void client_publisher(const struct load *load, struct shared *shared, uint32_t number)
{
	struct chain chains[FLIGHTS] = {{0}};
	struct client cl;
	int r = prepare(&cl, load, shared, number, 1);

	if (r >= 0)
		start(&cl);
	while (r >= 0 && !shared->stop) {
		for (uint32_t i = 0; i < FLIGHTS && r >= 0; i++) {
			if (!cl.flights[i].id)
				r = fly(&cl, &cl.flights[i], &chains[i]);
		}
		if (r >= 0)
			r = skvq_client_poll(cl.c, TIMEOUT_MS);
	}
	finish(&cl, r);
}
