/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvqctl: looks into a running skvqd and steers it. One verb, one file (cmd_<verb>.c).
 */
#include "skvqctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <getopt.h>

const struct ctl_verb *const ctl_verbs[] = {
    &verb_status,
    &verb_top,
    &verb_ls,
    &verb_show,
    &verb_pins,
    &verb_errors,
    &verb_why_miss,
    &verb_events,
    &verb_trace,
    &verb_prefetch,
    &verb_evict,
    &verb_drain,
    &verb_verify,
    &verb_calibration,
    &verb_tenants,
    &verb_quota,
    &verb_config,
    &verb_ping,
    &verb_bench,
    &verb_doctor,
    NULL,
};

static const struct ctl_verb *verb_of(const char *name)
{
	if (!strcmp(name, "scrub"))
		name = "verify"; /* as the daemon's own rounds are called */
	for (unsigned i = 0; ctl_verbs[i]; i++)
		if (!strcmp(name, ctl_verbs[i]->name))
			return ctl_verbs[i];
	return NULL;
}

static int no_verb(char *name)
{
	fprintf(stderr, "skvqctl: there is no verb '%s'; 'skvqctl --help' lists them\n",
		ctl_clean(name));
	return CTL_USAGE;
}

/* help, help VERB, help man, help bash. */
static int help(int argc, char **argv)
{
	const struct ctl_verb *verb = argc > 1 ? verb_of(argv[1]) : NULL;

	if (argc > 2) {
		fputs("skvqctl help: one argument too many; see 'skvqctl --help'\n", stderr);
		return CTL_USAGE;
	}
	if (argc < 2 || verb)
		ctl_help(verb, stdout);
	else if (!strcmp(argv[1], "man"))
		ctl_man(stdout);
	else if (!ctl_completion(argv[1], stdout))
		return no_verb(argv[1]);
	return ctl_flush();
}

int main(int argc, char **argv)
{
	const char *env = getenv("SKVQD_SOCKET");
	struct ctl ctl = {.socket = env && *env ? env : CTL_DEFAULT_SOCKET};
	const struct ctl_verb *verb;

	if (ctl_getopt(&ctl, NULL, argc, argv) < 0)
		return ctl.result;
	if (optind >= argc) {
		fputs("skvqctl: which verb? 'skvqctl --help' lists them\n", stderr);
		return CTL_USAGE;
	}
	argc -= optind;
	argv += optind;
	optind = 0; /* GNU: anew, for words and options of a verb may come in any order */
	if (!strcmp(argv[0], "help"))
		return help(argc, argv);
	verb = verb_of(argv[0]);
	return verb ? verb->run(&ctl, argc, argv) : no_verb(argv[0]);
}
