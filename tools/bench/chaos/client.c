/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client: an engine as far as the daemon can tell. It matches sequences, publishes what was
 * missing, holds pins for a while, and looks at every byte of what it has pinned, again and again:
 * when it is pinned, while it is held, before it is given back, and when the daemon has died.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "chaos.h"

#define HELD_MAX    6u
#define PENDING_MAX 3u
#define RUN_MAX     4u
#define TOLD_MAX    5u /* wrong pages and bad answers that a client speaks of */

struct held {
	bool used;
	struct path path;
	uint32_t n;       /* pages pinned */
	uint32_t checked; /* of these, looked at once */
	bool publishing;
	struct skvq_page_ref ref[DEPTH_MAX];
	bool base_only[DEPTH_MAX]; /* held without its refinement */
};

struct pending {
	uint64_t id; /* 0: free */
	uint32_t held;
	uint64_t since_ms;
};

struct client {
	struct shared *shared;
	struct slot *slot;
	const char *socket;
	uint32_t number;
	uint64_t random;
	bool keeps, lies;
	uint32_t told;
	struct skvq_client *c; /* NULL: not attached */
	struct skvq_client_ns ns[MODELS];
	const uint8_t *arena[MODELS];
	uint8_t *staging;
	uint32_t staging_id;
	struct held held[HELD_MAX];
	struct pending pending[PENDING_MAX];
};

static size_t run_bytes(void)
{
	uint64_t a = models[0].layout.slot_bytes, b = models[1].layout.slot_bytes;

	return RUN_MAX * (a > b ? a : b);
}

static void begin(struct client *cl, enum op op)
{
	cl->slot->op = op;
	cl->slot->since_ms = now_ms();
}

static void end(struct client *cl)
{
	cl->slot->since_ms = 0;
	cl->slot->ops[cl->slot->op]++;
}

static void hang(struct client *cl, const char *what)
{
	cl->slot->hangs++;
	fprintf(stderr, "chaos: client %u: %s: no answer in %u ms\n", cl->number, what, TIMEOUT_MS);
}

/* What a good client may be told: no room, not now, nobody there. Anything else is a finding. */
static bool is_refusal(int err)
{
	switch (-err) {
	case SKVQ_ENOSPC:
	case SKVQ_EBUSY:
	case SKVQ_EAGAIN:
	case SKVQ_ELIMIT:
	case SKVQ_EQUEUE:
	case SKVQ_ENAMESPACES:
	case SKVQ_ECONNS:
	case SKVQ_ENODAEMON:
		return true;
	default:
		return false;
	}
}

static void answered(struct client *cl, const char *what, int err, const char *why)
{
	if (err >= 0)
		return;
	if (err == -SKVQ_ETIMEOUT) {
		hang(cl, what);
	} else if (is_refusal(err)) {
		cl->slot->refused++;
	} else {
		cl->slot->bad_answers++;
		if (cl->told++ < TOLD_MAX)
			fprintf(stderr, "chaos: client %u: %s: %s: %s\n", cl->number, what,
				skvq_err_name(err), why);
	}
}

/* ---- looking at pages ---- */

static const uint8_t *page_at(const struct client *cl, const struct held *h, uint32_t i)
{
	const struct skvq_client_ns *ns = &cl->ns[h->path.model];
	uint64_t at = h->ref[i].slot * ns->slot_bytes;

	return at + ns->slot_bytes <= ns->arena_bytes ? cl->arena[h->path.model] + at : NULL;
}

static void check_page(struct client *cl, const struct held *h, uint32_t i, const char *when)
{
	const uint8_t *page = page_at(cl, h, i), *parent = i ? page_at(cl, h, i - 1) : NULL;
	uint64_t bytes =
	    skvq_layout_page_bytes(&models[h->path.model].layout, i * SKVQ_PAGE_TOKENS);
	uint64_t wrong;

	begin(cl, OP_CHECK);
	wrong = page && (parent || !i)
		    ? path_wrong(&h->path, i, h->base_only[i],
				 cl->ns[h->path.model].identity_digest, parent, page)
		    : bytes;
	cl->slot->bytes_checked += bytes;
	if (wrong) {
		cl->slot->wrong_pages++;
		cl->slot->wrong_bytes += wrong;
		if (cl->told++ < TOLD_MAX)
			fprintf(stderr,
				"chaos: client %u: %llu wrong bytes %s: model %u, page %u of %u, "
				"slot %u generation %u\n",
				cl->number, (unsigned long long)wrong, when, h->path.model, i, h->n,
				h->ref[i].slot, h->ref[i].generation);
	}
	end(cl);
}

static void check_held(struct client *cl, struct held *h, uint32_t from, const char *when)
{
	for (uint32_t i = from; h->used && i < h->n; i++)
		check_page(cl, h, i, when);
	h->checked = h->n;
}

static void check_all(struct client *cl, const char *when)
{
	for (uint32_t i = 0; i < HELD_MAX; i++)
		check_held(cl, &cl->held[i], 0, when);
}

/* ---- the connection ---- */

static void detach(struct client *cl)
{
	skvq_client_free(cl->c);
	cl->c = NULL;
	for (uint32_t i = 0; i < MODELS; i++) {
		if (cl->arena[i])
			(void)munmap((void *)(uintptr_t)cl->arena[i], cl->ns[i].arena_bytes);
		cl->arena[i] = NULL;
	}
	/* A daemon that is just ending may still read it: never written again. */
	if (cl->staging)
		(void)munmap(cl->staging, PENDING_MAX * run_bytes());
	cl->staging = NULL;
	memset(cl->held, 0, sizeof(cl->held));
	memset(cl->pending, 0, sizeof(cl->pending));
}

static void on_published(void *user, uint64_t id, int err, const char *detail,
			 const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct client *cl = user;

	(void)n_existed;
	answered(cl, "publish", err, detail);
	for (uint32_t i = 0; i < PENDING_MAX; i++) {
		struct held *h = &cl->held[cl->pending[i].held];

		if (cl->pending[i].id != id)
			continue;
		cl->pending[i].id = 0;
		h->publishing = false;
		for (size_t p = 0; p < n_pages && h->n < h->path.n; p++) {
			h->base_only[h->n] = false;
			h->ref[h->n++] = pages[p];
		}
		cl->slot->pages_published += n_pages;
		return;
	}
	cl->slot->bad_answers++;
}

static int open_models(struct client *cl)
{
	for (uint32_t i = 0; i < MODELS; i++) {
		int fd = -1;
		int r = skvq_client_namespace_open(cl->c, &models[i].identity, &cl->ns[i], &fd);
		void *at;

		if (r < 0)
			return r;
		at = mmap(NULL, cl->ns[i].arena_bytes, PROT_READ, MAP_SHARED, fd, 0);
		(void)close(fd);
		if (at == MAP_FAILED || cl->ns[i].slot_bytes != models[i].layout.slot_bytes)
			return -SKVQ_EPROTO;
		cl->arena[i] = at;
	}
	return 0;
}

static int add_staging(struct client *cl)
{
	size_t bytes = PENDING_MAX * run_bytes();
	int fd = memfd_create("chaos", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r = -SKVQ_ESYS;
	void *at = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0)
		at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at != MAP_FAILED) {
		cl->staging = at;
		r = skvq_client_staging_add(cl->c, fd, &cl->staging_id);
	}
	if (fd >= 0)
		(void)close(fd);
	return r;
}

/* A daemon that is just coming or going may cut off at any call. */
static bool attach(struct client *cl)
{
	char why[SKVQ_CLIENT_WHY_BYTES] = "", name[32];
	int r;

	(void)snprintf(name, sizeof(name), "chaos-%u", cl->number);
	begin(cl, OP_ATTACH);
	r = skvq_client_connect(cl->socket, name, TIMEOUT_MS, &cl->c, why);
	if (r < 0) {
		cl->slot->since_ms = 0; /* nobody there: no operation */
		answered(cl, "connect", r, why);
		cl->c = NULL;
		return false;
	}
	skvq_client_on_published(cl->c, on_published, cl);
	r = open_models(cl);
	if (!r)
		r = add_staging(cl);
	end(cl);
	answered(cl, "attach", r, skvq_client_why(cl->c));
	if (r < 0)
		detach(cl);
	return r == 0;
}

/* ---- operations ---- */

static struct held *free_held(struct client *cl)
{
	for (uint32_t i = 0; i < HELD_MAX; i++)
		if (!cl->held[i].used)
			return &cl->held[i];
	return NULL;
}

/* Any that is not waiting for a publish, or NULL. */
static struct held *some_held(struct client *cl)
{
	struct held *h = &cl->held[draw_below(&cl->random, HELD_MAX)];

	return h->used && !h->publishing ? h : NULL;
}

static void begin_path(struct client *cl)
{
	struct held *h = free_held(cl);
	uint32_t recompute_us = draw_below(&cl->random, 4) ? 0 : draw_below(&cl->random, 200);
	int r;

	if (!h)
		return;
	h->used = true;
	h->n = h->checked = 0;
	path_draw(&h->path, cl->number, &cl->random);
	if (draw_below(&cl->random, 20) == 0)
		return; /* published from its first page on: most of that exists */
	begin(cl, OP_MATCH);
	r = skvq_client_match(cl->c, cl->ns[h->path.model].ns, h->path.tokens,
			      h->path.n * SKVQ_PAGE_TOKENS, h->path.n * SKVQ_PAGE_TOKENS,
			      recompute_us, h->ref, h->base_only, h->path.n);
	end(cl);
	answered(cl, "match", r, skvq_client_why(cl->c));
	if (r < 0) {
		h->used = false;
		return;
	}
	h->n = (uint32_t)r;
	cl->slot->pages_matched += h->n;
	if (cl->slot->death == DEATH_HOLDING && h->n)
		(void)raise(SIGKILL);
	check_held(cl, h, 0, "after match");
}

static void publish(struct client *cl, struct held *h)
{
	const struct skvq_page_ref none = {0};
	struct made_up_model *m = &models[h->path.model];
	uint32_t n = 1 + draw_below(&cl->random, RUN_MAX), at = 0;
	struct pending *p;
	uint8_t *staging;
	int r;

	while (at < PENDING_MAX && cl->pending[at].id)
		at++;
	if (at == PENDING_MAX || h->n == h->path.n)
		return;
	if (n > h->path.n - h->n)
		n = h->path.n - h->n;
	p = &cl->pending[at];
	staging = cl->staging + at * run_bytes();
	for (uint32_t i = 0; i < n; i++)
		path_page(&h->path, h->n + i, staging + i * m->layout.slot_bytes);
	if (cl->lies)
		staging[skvq_layout_v_codes(&m->layout, 0, 0)] ^= 1;
	begin(cl, OP_PUBLISH);
	r = skvq_client_publish(cl->c, cl->ns[h->path.model].ns, h->n ? h->ref[h->n - 1] : none,
				h->n * SKVQ_PAGE_TOKENS,
				h->path.tokens + (size_t)h->n * SKVQ_PAGE_TOKENS, n, NULL,
				cl->staging_id, at * run_bytes(), &p->id);
	end(cl);
	answered(cl, "publish", r, skvq_client_why(cl->c));
	if (r < 0) {
		p->id = 0;
		return;
	}
	p->held = (uint32_t)(h - cl->held);
	p->since_ms = now_ms();
	h->publishing = true;
	if (cl->slot->death == DEATH_IN_PUBLISH)
		(void)raise(SIGKILL);
}

/* All, or the end of it. */
static void unpin(struct client *cl, struct held *h)
{
	uint32_t keep = draw_below(&cl->random, 3) ? 0 : draw_below(&cl->random, h->n + 1);
	int r = 0;

	if (draw_below(&cl->random, 2))
		check_held(cl, h, 0, "before unpin");
	if (h->n > keep) {
		begin(cl, OP_UNPIN);
		r = skvq_client_unpin(cl->c, cl->ns[h->path.model].ns, h->ref + keep, h->n - keep);
		end(cl);
		answered(cl, "unpin", r, skvq_client_why(cl->c));
	}
	h->n = h->checked = keep;
	h->used = keep > 0;
}

/* Lets go of the refinements of the first pages, as an engine does with old ones. */
static void unrefine(struct client *cl, struct held *h)
{
	uint32_t end_at = draw_below(&cl->random, h->n + 1), n = 0;
	struct skvq_page_ref refs[DEPTH_MAX];
	int r;

	if (!models[h->path.model].layout.refine_bytes)
		return;
	for (uint32_t i = 0; i < end_at; i++) {
		/* Once only: a page may be held twice, and the other time whole. */
		if (!h->base_only[i])
			refs[n++] = h->ref[i];
		h->base_only[i] = true;
	}
	begin(cl, OP_UNPIN);
	r = skvq_client_unrefine(cl->c, cl->ns[h->path.model].ns, refs, n);
	end(cl);
	answered(cl, "unrefine", r, skvq_client_why(cl->c));
}

static void prefetch(struct client *cl)
{
	uint32_t resident, coming;
	struct path p;
	int r;

	path_draw(&p, cl->number, &cl->random);
	begin(cl, OP_PREFETCH);
	r = skvq_client_prefetch(cl->c, cl->ns[p.model].ns, p.tokens, p.n * SKVQ_PAGE_TOKENS,
				 &resident, &coming);
	end(cl);
	answered(cl, "prefetch", r, skvq_client_why(cl->c));
}

static void ping(struct client *cl)
{
	uint64_t payload = draw(&cl->random);
	int r;

	begin(cl, OP_PING);
	r = skvq_client_ping(cl->c, &payload, sizeof(payload));
	end(cl);
	answered(cl, "ping", r, skvq_client_why(cl->c));
}

/* Takes in what has come, and looks at pages that are new. */
static void collect(struct client *cl, uint32_t wait_ms)
{
	int r = skvq_client_poll(cl->c, wait_ms);

	if (r < 0)
		answered(cl, "poll", r, skvq_client_why(cl->c));
	for (uint32_t i = 0; i < HELD_MAX; i++)
		if (cl->held[i].used && !cl->held[i].publishing &&
		    cl->held[i].checked < cl->held[i].n)
			check_held(cl, &cl->held[i], cl->held[i].checked, "after publish");
	for (uint32_t i = 0; i < PENDING_MAX; i++)
		if (cl->pending[i].id && now_ms() - cl->pending[i].since_ms > TIMEOUT_MS) {
			hang(cl, "publish");
			cl->pending[i].since_ms = now_ms();
		}
}

static bool is_publishing(const struct client *cl)
{
	for (uint32_t i = 0; i < PENDING_MAX; i++)
		if (cl->pending[i].id)
			return true;
	return false;
}

/* With pins or after giving them back: both are a client's right. */
static void close_session(struct client *cl)
{
	check_all(cl, "before closing");
	for (uint32_t i = 0; draw_below(&cl->random, 2) && i < HELD_MAX; i++)
		if (cl->held[i].used && !cl->held[i].publishing && !skvq_client_broken(cl->c))
			unpin(cl, &cl->held[i]);
	begin(cl, OP_CLOSE);
	detach(cl);
	end(cl);
}

static void one(struct client *cl)
{
	uint32_t what = draw_below(&cl->random, 1000);
	struct held *h = some_held(cl);

	if (!h || what < 150)
		begin_path(cl);
	else if (what < 500)
		publish(cl, h);
	else if (what < 600)
		check_held(cl, h, 0, "while held");
	else if (what < 650)
		unrefine(cl, h);
	else if (what < 940)
		unpin(cl, h);
	else if (what < 970)
		prefetch(cl);
	else if (what < 998)
		ping(cl);
	else
		close_session(cl);
	if (cl->c)
		collect(cl, free_held(cl) ? 0 : 1);
}

static uint32_t pins_of(const struct client *cl)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < HELD_MAX; i++)
		n += cl->held[i].used ? cl->held[i].n : 0;
	return n;
}

/* Stops with pins in its hand, until the parent has it go on. */
static void keep_still(struct client *cl)
{
	if (pins_of(cl) < 8 || is_publishing(cl))
		return;
	check_all(cl, "before a stop");
	(void)raise(SIGSTOP);
	check_all(cl, "after a stop");
	cl->keeps = false;
}

int client_run(struct shared *shared, uint32_t slot, const char *socket, uint64_t seed,
	       uint32_t flags)
{
	static struct client client; /* large */
	struct client *cl = &client;

	*cl = (struct client){.shared = shared,
			      .slot = &shared->slots[slot],
			      .socket = socket,
			      .number = slot,
			      .random = seed,
			      .keeps = flags & CLIENT_KEEPS,
			      .lies = flags & CLIENT_LIES};
	(void)signal(SIGPIPE, SIG_IGN);
	while (!shared->stop) {
		if (cl->c && skvq_client_broken(cl->c)) {
			check_all(cl, skvq_client_daemon_gone(cl->c) ? "of a dead daemon"
								     : "of a closed connection");
			detach(cl);
		}
		if (!cl->c && !attach(cl)) {
			nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
			continue;
		}
		one(cl);
		if (cl->c && cl->keeps)
			keep_still(cl);
	}
	if (cl->c)
		close_session(cl);
	return 0;
}
