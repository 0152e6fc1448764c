/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/format.h>

#include "tokens.h"
/* Of the first token that a match does not find; `differs` knows it to the token. */
static uint32_t position_of(const struct skvq_client_explanation *e)
{
	return (e->n_memory + e->n_disk) * SKVQ_PAGE_TOKENS +
	       (strcmp(e->end, "differs") ? 0 : e->same_tokens);
}

static int print_json(uint32_t ns, const struct ctl_tokens *t, const struct skvq_client_explanation *e)
{
	bool all = !strcmp(e->end, "all");

	return ctl_print_json(json_pack(
	    "{s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:I, s:i, s:o, s:I, s:o}", "ns",
	    (json_int_t)ns, "tokens", (json_int_t)t->n, "pages",
	    (json_int_t)(t->n / SKVQ_PAGE_TOKENS), "pages_memory", (json_int_t)e->n_memory,
	    "pages_disk", (json_int_t)e->n_disk, "disk_ms", (json_int_t)e->disk_ms, "end",
	    ctl_json_text(e->end), "position",
	    all ? json_null() : json_integer((json_int_t)position_of(e)), "gone_ms",
	    (json_int_t)e->gone_ms, "same_tokens", (json_int_t)e->same_tokens, "shift",
	    (int)e->shift, "other_ns",
	    e->other_ns ? json_integer((json_int_t)e->other_ns) : json_null(), "other_pages",
	    (json_int_t)e->other_pages, "other_differs", ctl_json_text(e->other_differs)));
}

static void print_end(const struct ctl_tokens *t, const struct skvq_client_explanation *e)
{
	uint32_t at = position_of(e), rest = t->n % SKVQ_PAGE_TOKENS;
	char buf[CTL_HUMAN_BYTES];

	if (!strcmp(e->end, "all"))
		printf("Nothing is missing. The last %" PRIu32 " tokens fill no page.\n", rest);
	else if (!strcmp(e->end, "filling"))
		printf("The page of token %" PRIu32 " is being published now.\n", at);
	else if (!strcmp(e->end, "coming"))
		printf("The page of token %" PRIu32 " is being read from disk now.\n", at);
	else if (!strcmp(e->end, "held"))
		puts("These pages are more than the tenant may hold pinned now: the rest of the "
		     "memory\nis guaranteed to others ('skvqctl status' shows the shares).");
	else if (!strcmp(e->end, "dropped"))
		printf("The page of token %" PRIu32 " was dropped %s ago to make room, and is not on "
		       "disk.\nMore ram_max, or a store, would have kept it.\n",
		       at, ctl_human_ms(e->gone_ms, buf));
	else if (!strcmp(e->end, "differs"))
		printf("Token %" PRIu32 " differs: it is %" PRId32 " here, and what is cached goes on "
		       "with another\nafter the same %" PRIu32 " tokens.\n",
		       at, t->at[at < t->n ? at : t->n - 1], at);
	else
		printf("Nobody has published token %" PRIu32 " behind these, or it was dropped so long "
		       "ago that\nnothing remembers it.\n",
		       at);
}

static void print_text(const struct ctl_tokens *t, const struct skvq_client_explanation *e)
{
	printf("asked for   %" PRIu32 " tokens, %u whole pages\n", t->n, t->n / SKVQ_PAGE_TOKENS);
	printf("in memory   %" PRIu32 " pages\n", e->n_memory);
	if (e->n_disk)
		printf("on disk     %" PRIu32 " pages behind these, here in about %" PRIu64
		       " ms; an engine that waits\n            less, or computes faster, does "
		       "not get them\n",
		       e->n_disk, e->disk_ms);
	print_end(t, e);
	if (e->shift)
		printf("A page in memory begins with the same tokens but for %s:\none of two engines "
		       "puts a token at the beginning of a text.\n",
		       e->shift > 0 ? "one in front that these lack" : "the first of these");
	if (e->other_ns)
		printf("Namespace %" PRIu32 " has %" PRIu32 " of the pages; its identity differs%s%s, so "
		       "that nothing is shared.\n",
		       e->other_ns, e->other_pages, *e->other_differs ? " in " : "",
		       e->other_differs);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client_explanation e;
	struct ctl_tokens_from from = {0};
	struct ctl_tokens t = {0};
	struct skvq_client *c;
	bool has_ns = false;
	uint64_t ns = 0;
	int opt, result, err;

	while ((opt = ctl_getopt(ctl, &verb_why_miss, argc, argv)) > 0) {
		if (ctl_tokens_opt(&from, opt))
			continue;
		if (!ctl_number("--namespace", optarg, 0, UINT32_MAX, &ns))
			return CTL_USAGE;
		has_ns = true;
	}
	if (opt < 0)
		return ctl->result;
	if (!has_ns) {
		fputs("skvqctl why-miss: which namespace? --namespace NS; 'skvqctl ls' lists them\n",
		      stderr);
		return CTL_USAGE;
	}
	from.path = optind < argc ? argv[optind] : NULL;
	result = ctl_tokens_load("why-miss", &from, &t);
	if (result != CTL_OK) {
		free(t.at);
		return result;
	}
	c = ctl_connect(ctl);
	if (!c) {
		free(t.at);
		return ctl->result;
	}
	err = skvq_client_explain(c, (uint32_t)ns, t.at, t.n, &e);
	if (err < 0) {
		result = ctl_failed(ctl, c, "explain", err);
	} else if (ctl->json) {
		result = print_json((uint32_t)ns, &t, &e);
	} else {
		ctl_clean(e.end);
		ctl_clean(e.other_differs);
		print_text(&t, &e);
	}
	free(t.at);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'n', "namespace", "NS", "where the engine looks; 'skvqctl ls' lists them"},
    CTL_TOKENS_OPTS,
};

const struct ctl_verb verb_why_miss = {
    .name = "why-miss",
    .summary = "why a match of some tokens ends where it ends",
    .args = "[FILE]",
    .max_args = 1,
    .about = "Why a match of some tokens ends where it ends: what is in memory, what is on disk, and "
	     "the first thing that differs behind that. Changes nothing.\n\n"
	     "FILE has token ids in decimal, between them blanks, commas or brackets, as "
	     "'llama-tokenize --ids' or a JSON array has them; without FILE they come from stdin. "
	     CTL_TOKENS_ABOUT,
    CTL_OPTS(opts),
    .json = "ns, tokens, pages (whole ones), pages_memory, pages_disk, disk_ms (until these would be "
	    "here), end (all, filling, coming, held, dropped, differs, unknown), position (of the first "
	    "token that is not found, null if all are), gone_ms (dropped), same_tokens, shift, other_ns "
	    "(null: none), other_pages, other_differs.",
    .run = run,
};
