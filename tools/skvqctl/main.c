/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvqctl: asks a running skvqd how it is. One verb, one file (cmd_<verb>.c).
 */
#include "skvqctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SOCKET "/run/skvqd/skvqd.sock"

static const struct ctl_verb verbs[] = {
    {"status", "how the daemon is: memory, connections, counters", cmd_status},
    {"ls", "namespaces, or the pages of one", cmd_ls},
    {"pins", "who holds pages", cmd_pins},
    {"errors", "what the codes of pages lose, layer by layer", cmd_errors},
    {"why-miss", "why a match of some tokens ends where it ends", cmd_why_miss},
    {"calibration", "give engines that start later another calibration", cmd_calibration},
    {"ping", "measure the round trip of a small request", cmd_ping},
};
#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static void help(FILE *to)
{
	fputs("usage: skvqctl [--socket PATH] [--json] VERB [options]\n\n", to);
	for (size_t i = 0; i < N_VERBS; i++)
		fprintf(to, "  %-11s %s\n", verbs[i].name, verbs[i].summary);
	fputs("\n"
	      "  -s, --socket PATH  the daemon's socket; default $SKVQD_SOCKET, else\n"
	      "                     " DEFAULT_SOCKET "\n"
	      "  -j, --json         print one JSON object instead of text\n"
	      "  -h, --help         this text; 'skvqctl VERB --help' tells more of a verb\n\n"
	      "Exit status: 0 done, 1 the daemon did not answer or refused, 2 wrong usage.\n",
	      to);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {CTL_LONG_OPTIONS, {0}};
	const char *env = getenv("SKVQD_SOCKET");
	struct ctl ctl = {.socket = env && *env ? env : DEFAULT_SOCKET};
	int opt;

	/* '+': stop at the verb, whose options are its own. */
	while ((opt = getopt_long(argc, argv, "+" CTL_SHORT_OPTIONS, options, NULL)) != -1) {
		if (ctl_option(&ctl, opt))
			continue;
		help(opt == 'h' ? stdout : stderr);
		return opt == 'h' ? CTL_OK : CTL_USAGE;
	}
	if (optind >= argc) {
		help(stderr);
		return CTL_USAGE;
	}
	const char *name = argv[optind];
	if (strcmp(name, "help") == 0) {
		help(stdout);
		return CTL_OK;
	}
	for (size_t i = 0; i < N_VERBS; i++) {
		if (strcmp(name, verbs[i].name) != 0)
			continue;
		argc -= optind;
		argv += optind;
		optind = 1;
		return verbs[i].run(&ctl, argc, argv);
	}
	fprintf(stderr, "skvqctl: there is no verb '%s'; 'skvqctl --help' lists them\n", name);
	return CTL_USAGE;
}
