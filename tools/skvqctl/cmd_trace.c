/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/format.h>

#include "traces.h"

enum { OPT_FOR = CTL_LONG_ONLY, OPT_SPEED, OPT_BLOCK, OPT_PAGE };

#define SPEED_MAX 1e6

/* "max" is 0. */
static bool set_speed(const char *text, double *ret)
{
	char *end;
	double v = strtod(text, &end);

	if (!strcmp(text, "max")) {
		*ret = 0;
		return true;
	}
	if (end == text || *end || !(v > 0) || v > SPEED_MAX) {
		fprintf(stderr, "skvqctl: --speed takes a number above 0 up to %.0f, or max, not '%s'\n",
			SPEED_MAX, text);
		return false;
	}
	*ret = v;
	return true;
}

static bool set(int opt, struct trace_options *o)
{
	switch (opt) {
	case 'n':
		return ctl_number("--count", optarg, 1, UINT64_C(1) << 62, &o->count);
	case OPT_FOR:
		return ctl_number("--for", optarg, 1, 1000000000, &o->seconds);
	case OPT_BLOCK:
		return ctl_number("--block-tokens", optarg, 1, 1000000, &o->block_tokens);
	case OPT_PAGE:
		return ctl_number("--page-bytes", optarg, 4096, 1 << 20, &o->page_bytes);
	case OPT_SPEED:
		return set_speed(optarg, &o->speed);
	default:
		o->yes = true;
		return true;
	}
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct trace_options o = {
	    .block_tokens = SKVQ_PAGE_TOKENS, .page_bytes = 32768, .speed = 1};
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_trace, argc, argv)) > 0) {
		if (!set(opt, &o))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	o.path = argv[optind + 1];
	if (!strcmp(argv[optind], "record"))
		return trace_record(ctl, &o);
	if (!strcmp(argv[optind], "replay"))
		return trace_replay(ctl, &o);
	fprintf(stderr, "skvqctl trace: record or replay, not '%s'; see 'skvqctl trace --help'\n",
		ctl_clean(argv[optind]));
	return CTL_USAGE;
}

static const struct ctl_opt opts[] = {
    {'n', "count", "N", "end after so many requests; default: when it is interrupted, or at the file's end"},
    {OPT_FOR, "for", "SECONDS", "end after so long"},
    {OPT_SPEED, "speed", "X", "replay: times that of the trace, or max; default 1"},
    {OPT_PAGE, "page-bytes", "BYTES", "replay: so large are the pages, at least; default 32768"},
    {OPT_BLOCK, "block-tokens", "N", "replay: of a hash in the trace; default 80, Mooncake's own have 512"},
    {'y', "yes", NULL, "replay: also if pages of others have to go for it"},
};

const struct ctl_verb verb_trace = {
    .name = "trace",
    .summary = "the traffic of a daemon as a file, and back",
    .args = "record|replay FILE",
    .min_args = 2,
    .max_args = 2,
    .about = "record writes a line for each match that engines ask for, until it is interrupted: a trace "
	     "in Mooncake's format, which 'bench-evict --block-tokens 80 --trace FILE' reads. FILE must not "
	     "be there yet; - is stdout.\n\n"
	     "A line has timestamp (ms since the first), input_length (tokens asked for), output_length (0: the "
	     "daemon is not told) and hash_ids, a number for each whole page of 80 tokens. Equal numbers are "
	     "equal tokens behind equal pages, of one namespace; there is nothing of the tokens themselves in "
	     "it.\n\n"
	     "replay asks this daemon for what a trace asks for, at the trace's times, one request after the "
	     "other: a match, then the pages that it did not find are published, made up, in a namespace of "
	     "their own. It tells which part of the tokens was found, latencies, and evictions. The pages stay "
	     "until their room is needed; if pages of others would have to go for them, it asks, or wants "
	     "--yes.",
    CTL_OPTS(opts),
    .json = "record: requests, tokens, pages, pages_different, hit_share (of tokens, 0 to 1), lost "
	    "(requests that came faster than they were read), cut (requests without their last pages). replay: "
	    "requests, tokens, hit_share, pages_published, pages_different, page_bytes, refused (publish "
	    "requests, for want of room), evictions (of the whole daemon meanwhile), seconds, match_p50_us, "
	    "match_p99_us, publish_p50_us, publish_p99_us (of up to 32 pages), late_ms (the most it was behind "
	    "the trace), cut (requests that are longer than pins_max).",
    .run = run,
};
