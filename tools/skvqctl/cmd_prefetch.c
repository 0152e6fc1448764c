/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <skvq/format.h>

#include "rounds.h"
#include "tokens.h"

#define WAIT_MS  600000u
#define AGAIN_MS 50

struct found {
	uint32_t resident, coming;
	uint64_t ms;
};

static int ask(const struct ctl *ctl, struct skvq_client *c, uint32_t ns, const struct ctl_tokens *t,
	       struct found *f)
{
	int err = skvq_client_prefetch(c, ns, t->at, t->n, &f->resident, &f->coming);

	return err < 0 ? ctl_failed(ctl, c, "prefetch", err) : CTL_OK;
}

/* Asking again also begins what was too much at once. */
static int wait_for(const struct ctl *ctl, struct skvq_client *c, uint32_t ns,
		    const struct ctl_tokens *t, struct found *f)
{
	const struct timespec again = {.tv_nsec = AGAIN_MS * 1000000L};
	uint64_t start = ctl_now_ms();
	int result = CTL_OK;

	while (result == CTL_OK && f->coming && ctl_now_ms() - start < WAIT_MS) {
		(void)nanosleep(&again, NULL);
		result = ask(ctl, c, ns, t, f);
	}
	f->ms = ctl_now_ms() - start;
	return result;
}

static int print(const struct ctl *ctl, uint32_t ns, const struct ctl_tokens *t,
		 const struct found *f)
{
	uint32_t pages = t->n / SKVQ_PAGE_TOKENS, here = f->resident + f->coming;

	if (ctl->json)
		return ctl_print_json(json_pack(
		    "{s:I, s:I, s:I, s:I, s:I, s:I}", "ns", (json_int_t)ns, "tokens",
		    (json_int_t)t->n, "pages", (json_int_t)pages, "pages_memory",
		    (json_int_t)f->resident, "pages_coming", (json_int_t)f->coming, "waited_ms",
		    (json_int_t)f->ms));
	printf("asked for   %" PRIu32 " tokens, %" PRIu32 " whole pages\n", t->n, pages);
	printf("in memory   %" PRIu32 " pages\n", f->resident);
	printf("on its way  %" PRIu32 " pages\n", f->coming);
	if (here < pages)
		printf("The other %" PRIu32 " are not on disk, or more than can be read at once; "
		       "'skvqctl why-miss' says which.\n",
		       pages - here);
	return ctl_flush();
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct ctl_tokens_from from = {0};
	struct ctl_tokens t = {0};
	struct found f = {0};
	struct skvq_client *c;
	bool wait = false;
	uint64_t ns = 0;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_prefetch, argc, argv)) > 0) {
		if (ctl_tokens_opt(&from, opt))
			continue;
		if (opt == 'w')
			wait = true;
		else if (!ctl_number("--namespace", optarg, 1, UINT32_MAX, &ns))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	if (!ns) {
		fputs("skvqctl prefetch: which namespace? --namespace NS; 'skvqctl ls' lists them\n",
		      stderr);
		return CTL_USAGE;
	}
	from.path = optind < argc ? argv[optind] : NULL;
	result = ctl_tokens_load("prefetch", &from, &t);
	c = result == CTL_OK ? ctl_connect(ctl) : NULL;
	if (c) {
		result = ask(ctl, c, (uint32_t)ns, &t, &f);
		if (result == CTL_OK && wait)
			result = wait_for(ctl, c, (uint32_t)ns, &t, &f);
		if (result == CTL_OK)
			result = print(ctl, (uint32_t)ns, &t, &f);
		if (result == CTL_OK && wait && f.coming)
			result = CTL_FAILED;
		skvq_client_free(c);
	} else if (result == CTL_OK) {
		result = ctl->result;
	}
	free(t.at);
	return result;
}

static const struct ctl_opt opts[] = {
    {'n', "namespace", "NS", "where the engine will look; 'skvqctl ls' lists them"},
    {'w', "wait", NULL, "until the pages are in memory, for ten minutes at most"},
    CTL_TOKENS_OPTS,
};

const struct ctl_verb verb_prefetch = {
    .name = "prefetch",
    .summary = "read pages of some tokens from disk",
    .args = "[FILE]",
    .max_args = 1,
    .about = "Has the daemon read from disk what an engine that asks for these tokens would wait for. "
	     "Nothing is pinned: if memory is short, the pages may go again before the engine comes.\n\n"
	     "FILE has token ids as for 'skvqctl why-miss'; without FILE they come from stdin. "
	     CTL_TOKENS_ABOUT,
    CTL_OPTS(opts),
    .json = "ns, tokens, pages (whole ones), pages_memory, pages_coming, waited_ms.",
    .run = run,
};
