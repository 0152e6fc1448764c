/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traffic made up after what is published of real traffic:
 *  [F] Mooncake, FAST'25 (Qin et al.), table 2 and section 5.2.1: chats have 12,035 tokens of
 * prompt and 343 of answer, four tenths of the prompts cached; tools and agents 8,596 and 182, with
 *      long system prompts that repeat word for word; long documents up to 100k.
 *  [A] KVCache Cache in the Wild, ATC'25 (Wang et al.): 80 % of reuse comes within 10 minutes where
 *      people sit in front, within 10 seconds where programs do; a tenth of the blocks has 77 %
 *      of all reuse.
 *  [C] CachedAttention, ATC'24 (Gao et al.), of ShareGPT: 73 % of chats have more than one turn.
 *  [L] LMSYS-Chat-1M, ICLR'24 (Zheng et al.), table 1: 2.0 turns, 69.5 tokens of question and 214.5
 *      of answer on average.
 *  [Z] Popularity of prompts and documents is Zipf's, as web documents' (Breslau et al. 1999).
 * What none of them says is chosen and said so.
 */
#include "traffic.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/format.h>

struct rng {
	uint64_t state;
};

static double unit(struct rng *r)
{
	r->state += UINT64_C(0x9e3779b97f4a7c15);
	return ((double)(mix(r->state) >> 12) + 0.5) * 0x1p-52;
}

static double exponential(struct rng *r, double mean)
{
	return -mean * log(unit(r));
}

/* Log-normal with that mean; spread is the sigma of its logarithm. */
static uint32_t tokens_of(struct rng *r, double mean, double spread)
{
	double z = sqrt(-2 * log(unit(r))) * cos(6.283185307179586 * unit(r));
	double v = mean * exp(spread * z - spread * spread / 2);

	return v < 8 ? 8 : v > 131072 ? 131072 : (uint32_t)v;
}

/* 0..n-1, the i-th with a weight of 1 / (i + 1)^s. */
static uint32_t zipf(struct rng *r, uint32_t n, double s)
{
	/* Inverse of the integral: near enough to the sum, and without a table. */
	double u = unit(r), top = pow(n + 1.0, 1 - s);
	double x = s == 1 ? pow(n + 1.0, u) : pow(u * (top - 1) + 1, 1 / (1 - s));
	uint32_t i = (uint32_t)x - 1;

	return i < n ? i : n - 1;
}

/* A run of tokens that nobody else has, unless by the same name. */
struct run {
	uint64_t name;
	uint32_t tokens;
};

#define RUNS_MAX 96u /* of a prompt: enough for 47 turns */

struct prompt {
	double at; /* seconds */
	uint32_t session, n;
	struct run answer; /* of 0 tokens: none */
	struct run runs[RUNS_MAX];
};

struct traffic {
	struct rng rng;
	struct prompt *prompts;
	uint32_t n, max, sessions;
	uint64_t name; /* of the last run that was made */
};

static void say(struct prompt *p, uint64_t name, uint32_t tokens)
{
	if (p->n < RUNS_MAX)
		p->runs[p->n++] = (struct run){.name = name, .tokens = tokens};
}

/* What many prompts begin with: number i of a kind has the same length in all of them. */
static void say_shared(struct prompt *p, uint64_t kind, uint32_t i, double mean, double spread)
{
	uint64_t name = UINT64_C(1) << 63 | kind << 32 | i;
	struct rng own = {.state = mix(name)};

	say(p, name, tokens_of(&own, mean, spread));
}

static void ask(struct traffic *t, const struct prompt *p)
{
	if (t->n < t->max)
		t->prompts[t->n++] = *p;
}

/* Turn after turn on what was said so far. */
static void converse(struct traffic *t, struct prompt *p, double more, double question,
		     double answer, double spread, double pause)
{
	p->session = t->sessions++;
	do {
		struct run said;

		say(p, ++t->name, tokens_of(&t->rng, question, spread));
		said = (struct run){.name = ++t->name, .tokens = tokens_of(&t->rng, answer, 0.7)};
		p->answer = said;
		ask(t, p);
		say(p, said.name, said.tokens);
		p->at += exponential(&t->rng, pause);
	} while (unit(&t->rng) < more && p->n + 2 <= RUNS_MAX);
}

/* 100 system prompts of 1,200 tokens on average (chosen); a first question may bring a document, so
 * that prompts are long as in [F], 8,000 tokens on average; 73 % go on after each turn [C]; 373 s
 * on average between turns have 80 % of them within 10 minutes [A]. */
static void chat(struct traffic *t, double at)
{
	struct prompt p = {.at = at};

	say_shared(&p, 1, zipf(&t->rng, 100, 1), 1200, 0.8);
	if (unit(&t->rng) < 0.5)
		say(&p, ++t->name, tokens_of(&t->rng, 12000, 1.2));
	converse(t, &p, 0.73, 120, 343, 1, 373);
}

/* Short chats [L] behind one of 100 system prompts of 300 tokens (chosen); the pauses of chat(). */
static void talk(struct traffic *t, double at)
{
	struct prompt p = {.at = at};

	say_shared(&p, 6, zipf(&t->rng, 100, 1), 300, 0.8);
	converse(t, &p, 0.5, 69.5, 214.5, 1, 373);
}

/* One of 3,000 documents [Z], 6,000 tokens on average (chosen), behind 400 tokens of instructions,
 * and a question nobody else asks. Some read two. */
static void rag(struct traffic *t, double at)
{
	struct prompt p = {.at = at};

	say_shared(&p, 2, zipf(&t->rng, 8, 1), 400, 0.3);
	say_shared(&p, 3, zipf(&t->rng, 3000, 0.9), 6000, 1);
	if (unit(&t->rng) < 0.3)
		say_shared(&p, 3, zipf(&t->rng, 3000, 0.9), 6000, 1);
	converse(t, &p, 0.2, 60, 182, 0.7, 60);
}

/* 40 agents with 5,000 tokens of tools each; a step brings 450 tokens of results and 182 of answer,
 * eight steps on average (chosen): prompts of 9,600 tokens, [F] has 8,596. 6.2 s between steps have
 * 80 % of them within 10 seconds [A]. */
static void agent(struct traffic *t, double at)
{
	struct prompt p = {.at = at};

	say_shared(&p, 4, zipf(&t->rng, 40, 1), 5000, 0.5);
	converse(t, &p, 0.875, 450, 182, 0.8, 6.2);
}

/* A job that reads documents of 40,000 tokens once, one every five seconds (chosen). */
static void scan(struct traffic *t, double at, uint32_t documents)
{
	for (uint32_t i = 0; i < documents; i++) {
		struct prompt p = {.at = at + 5.0 * i, .session = t->sessions++};

		say_shared(&p, 5, 0, 300, 0);
		say(&p, ++t->name, tokens_of(&t->rng, 40000, 0.7));
		ask(t, &p);
	}
}

static int by_time(const void *a, const void *b)
{
	const struct prompt *x = a, *y = b;

	return x->at < y->at ? -1 : x->at > y->at;
}

/* The name of a page is made of all runs that have a part in it. */
struct pager {
	struct trace_maker *maker;
	uint64_t key, have;
};

static int write_run(struct pager *p, const struct run *run)
{
	uint64_t left = run->tokens;

	while (p->have + left >= SKVQ_PAGE_TOKENS) {
		left -= SKVQ_PAGE_TOKENS - p->have;
		if (trace_page(p->maker, mix(p->key + mix(run->name) + left)) < 0)
			return -1;
		p->key = p->have = 0;
	}
	p->have += left;
	p->key = mix(p->key + mix(run->name) + left);
	return 0;
}

static int write_prompt(struct trace_maker *m, struct trace *t, const struct prompt *p,
			bool answers)
{
	struct pager pager = {.maker = m};
	struct request *r;

	if (trace_request(m) < 0)
		return -1;
	for (uint32_t i = 0; i < p->n; i++) {
		if (write_run(&pager, &p->runs[i]) < 0)
			return -1;
	}
	r = &t->requests[t->n_requests - 1];
	r->session = p->session;
	r->tokens += (uint32_t)pager.have;
	r->tokens_all = r->tokens;
	if (!answers)
		return 0;
	trace_answer(m);
	if (write_run(&pager, &p->answer) < 0)
		return -1;
	r->tokens_all = r->tokens + p->answer.tokens;
	return 0;
}

const char *const trace_names[] = {"chat", "rag", "agent", "mix", "scan", "talk", "serve"};
const uint32_t trace_names_n = sizeof(trace_names) / sizeof(trace_names[0]);

/* Shares of sessions, not of tokens: a mix of chats (5), documents (3) and agents (2); "serve" is
 * as many short chats beside it. */
static void session(struct traffic *t, const char *name, double at)
{
	bool serve = !strcmp(name, "serve"),
	     all = serve || !strcmp(name, "mix") || !strcmp(name, "scan");
	double u;

	if (!strcmp(name, "talk") || (serve && unit(&t->rng) < 0.5)) {
		talk(t, at);
		return;
	}
	u = unit(&t->rng);
	if (all ? u < 0.5 : !strcmp(name, "chat"))
		chat(t, at);
	else if (all ? u < 0.8 : !strcmp(name, "rag"))
		rag(t, at);
	else
		agent(t, at);
}

static void fill(struct traffic *t, const char *name)
{
	double at = 0, next_scan = 600;

	while (t->n < t->max) {
		session(t, name, at);
		/* A session every two seconds; each half hour of them a scan. */
		at += exponential(&t->rng, 2);
		if (!strcmp(name, "scan") && at >= next_scan) {
			scan(t, at, 40);
			next_scan += 1800;
		}
	}
}

int trace_make(const char *name, uint64_t seed, uint32_t requests, bool answers, struct trace *ret)
{
	struct traffic t = {.rng = {.state = seed}, .max = requests};
	struct trace_maker *m = NULL;
	int status;

	memset(ret, 0, sizeof(*ret));
	(void)strncpy(ret->name, name, sizeof(ret->name) - 1);
	t.prompts = malloc(requests * sizeof(*t.prompts));
	status = t.prompts ? 0 : -1;
	if (!status) {
		fill(&t, name);
		qsort(t.prompts, t.n, sizeof(*t.prompts), by_time);
		m = trace_maker_new(ret);
		status = m ? 0 : -1;
	}
	for (uint32_t i = 0; i < t.n && !status; i++)
		status = write_prompt(m, ret, &t.prompts[i], answers);
	trace_maker_free(m);
	free(t.prompts);
	return status;
}
