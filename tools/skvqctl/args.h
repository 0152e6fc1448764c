/* SPDX-License-Identifier: Apache-2.0 */
/*
 * args.h - what a verb is called, takes and prints, as data: --help, the man page and the shells'
 * completion are all made of it, so none of them can say something else than the parser does.
 */
#ifndef SKVQCTL_ARGS_H
#define SKVQCTL_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct ctl;

#define CTL_LONG_ONLY 256 /* ids from here on are of options without a letter */

struct ctl_opt {
	int id;           /* the letter, or CTL_LONG_ONLY + n */
	const char *name; /* the long one */
	const char *arg;  /* what its argument is called: NS, FILE, ...; NULL: it takes none */
	const char *help; /* a phrase; lines are broken where they are printed */
};

/* Texts: paragraphs with an empty line between; one that begins with a blank is printed as it is. */
struct ctl_verb {
	const char *name;
	const char *summary; /* a line of 'skvqctl --help' */
	const char *args;    /* what may stand behind the options: "[FILE]"; NULL: nothing */
	unsigned min_args, max_args;
	const char *about;
	const struct ctl_opt *opts;
	unsigned n_opts;
	const char *json; /* the keys of --json; NULL: the verb has none */
	int (*run)(struct ctl *ctl, int argc, char **argv); /* argv[0] is the verb */
};

#define CTL_OPTS(list) .opts = (list), .n_opts = sizeof(list) / sizeof((list)[0])

extern const struct ctl_verb *const ctl_verbs[]; /* NULL behind the last */
/* Options that every verb takes, and skvqctl before it. */
extern const struct ctl_opt ctl_common[];
extern const unsigned ctl_common_n;

/*
 * The next option of the verb: its id; 0 when there are no more, and the right number of arguments
 * begins at optind; -1 when the verb ends here with ctl->result (--help, or wrong usage, which has
 * been told). The common options are dealt with inside. verb NULL: those before the verb.
 */
int ctl_getopt(struct ctl *ctl, const struct ctl_verb *verb, int argc, char **argv);

/* Of the verb, or of skvqctl (NULL). */
void ctl_help(const struct ctl_verb *verb, FILE *to);
/* Breaks text into lines of at most 80 columns, each but the first behind `indent` blanks; the
 * first begins at column `at`. Ends with a newline. */
void ctl_wrap(const char *text, unsigned at, unsigned indent, FILE *to);

/* skvqctl(1), for man. */
void ctl_man(FILE *to);
/* For "bash", "zsh" or "fish"; false if it is none of these. */
bool ctl_completion(const char *shell, FILE *to);

struct ctl_exit_status {
	int status;
	const char *means;
};
extern const struct ctl_exit_status ctl_exit_list[];
extern const unsigned ctl_exit_n;

#endif /* SKVQCTL_ARGS_H */
