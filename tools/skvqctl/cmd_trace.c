/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "trace.h"

#define OPT_FOR CTL_LONG_ONLY

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct trace_options o = {0};
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_trace, argc, argv)) > 0) {
		if (opt == 'n' ? !ctl_number("--count", optarg, 1, UINT64_C(1) << 62, &o.count)
			       : !ctl_number("--for", optarg, 1, 1000000000, &o.seconds))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	o.path = argv[optind + 1];
	if (!strcmp(argv[optind], "record"))
		return trace_record(ctl, &o);
	fprintf(stderr, "skvqctl trace: record it is, not '%s'; see 'skvqctl trace --help'\n",
		ctl_clean(argv[optind]));
	return CTL_USAGE;
}

static const struct ctl_opt opts[] = {
    {'n', "count", "N", "end after so many requests; default: when it is interrupted"},
    {OPT_FOR, "for", "SECONDS", "end after so long"},
};

const struct ctl_verb verb_trace = {
    .name = "trace",
    .summary = "the traffic of a daemon, as a file",
    .args = "record FILE",
    .min_args = 2,
    .max_args = 2,
    .about = "record writes a line for each match that engines ask for, until it is interrupted: a trace "
	     "in Mooncake's format, which 'bench-evict --block-tokens 80 --trace FILE' reads. FILE must not "
	     "be there yet; - is stdout.\n\n"
	     "A line has timestamp (ms since the first), input_length (tokens asked for), output_length (0: the "
	     "daemon is not told) and hash_ids, a number for each whole page of 80 tokens. Equal numbers are "
	     "equal tokens behind equal pages, of one namespace; there is nothing of the tokens themselves in "
	     "it.",
    CTL_OPTS(opts),
    .json = "record: requests, tokens, pages, pages_different, hit_share (of tokens, 0 to 1), lost "
	    "(requests that came faster than they were read), cut (requests without their last pages).",
    .run = run,
};
