/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <getopt.h>

#define OPTS_MAX 24u
#define COLUMNS  80u

const struct ctl_opt ctl_common[] = {
    {'s', "socket", "PATH",
     "the daemon's socket; default $SKVQD_SOCKET, else " CTL_DEFAULT_SOCKET},
    {'j', "json", NULL, "print JSON instead of text"},
    {'h', "help", NULL, "this text"},
};
const unsigned ctl_common_n = sizeof(ctl_common) / sizeof(ctl_common[0]);

const struct ctl_exit_status ctl_exit_list[] = {
    {CTL_OK, "done"},
    {CTL_FAILED, "the daemon refused, or what was asked for could not be done"},
    {CTL_USAGE, "wrong usage"},
    {CTL_NO_DAEMON, "no daemon answers"},
    {CTL_DENIED, "not permitted"},
    {CTL_VERSION, "the daemon is of another version, which cannot do this"},
    {CTL_FOUND, "done, and something was found that is not as it should be"},
};
const unsigned ctl_exit_n = sizeof(ctl_exit_list) / sizeof(ctl_exit_list[0]);

/* --- parsing ---------------------------------------------------------------------------------- */

struct tables {
	char letters[2 + 2 * OPTS_MAX + 1];
	struct option options[OPTS_MAX + 1];
	unsigned n;
};

static void add_opts(struct tables *t, const struct ctl_opt *opts, unsigned n)
{
	for (unsigned i = 0; i < n && t->n < OPTS_MAX; i++) {
		size_t at = strlen(t->letters);

		t->options[t->n++] = (struct option){opts[i].name,
						     opts[i].arg ? required_argument : no_argument,
						     NULL, opts[i].id};
		if (opts[i].id < CTL_LONG_ONLY)
			snprintf(t->letters + at, sizeof(t->letters) - at, "%c%s",
				 (char)opts[i].id, opts[i].arg ? ":" : "");
	}
}

/* The option that getopt stumbled over, as it was written. */
static void told_option(char *buf, size_t bytes, char **argv)
{
	const char *word = argv[optind - 1];

	if (optopt && optopt < CTL_LONG_ONLY && word[0] == '-' && word[1] == '-')
		snprintf(buf, bytes, "%s", word);
	else if (optopt && optopt < CTL_LONG_ONLY)
		snprintf(buf, bytes, "-%c", optopt);
	else
		snprintf(buf, bytes, "%s", word);
}

static int wrong(struct ctl *ctl, const struct ctl_verb *verb, const char *what, const char *word)
{
	const char *blank = verb ? " " : "", *name = verb ? verb->name : "";

	fprintf(stderr, "skvqctl%s%s: %s%s%s%s; see 'skvqctl%s%s --help'\n", blank, name, what,
		word ? " '" : "", word ? word : "", word ? "'" : "", blank, name);
	ctl->result = CTL_USAGE;
	return -1;
}

static int end_of_options(struct ctl *ctl, const struct ctl_verb *verb, int argc, char **argv)
{
	int n = argc - optind;
	char what[64];

	if (!verb)
		return 0;
	if (n > (int)verb->max_args)
		return wrong(ctl, verb, "one argument too many:", argv[optind + (int)verb->max_args]);
	if (n < (int)verb->min_args) {
		snprintf(what, sizeof(what), "%s is missing", verb->args);
		return wrong(ctl, verb, what, NULL);
	}
	if (ctl->json && !verb->json)
		return wrong(ctl, verb, "this verb has no", "--json");
	return 0;
}

int ctl_getopt(struct ctl *ctl, const struct ctl_verb *verb, int argc, char **argv)
{
	/* '+': options of skvqctl end at the verb, whose options are its own. ':': errors are ours. */
	struct tables t = {.letters = {verb ? ':' : '+', verb ? '\0' : ':'}};
	char word[256];
	int opt;

	add_opts(&t, ctl_common, ctl_common_n);
	if (verb)
		add_opts(&t, verb->opts, verb->n_opts);
	opterr = 0;
	while ((opt = getopt_long(argc, argv, t.letters, t.options, NULL)) != -1) {
		switch (opt) {
		case 's':
			ctl->socket = optarg;
			break;
		case 'j':
			ctl->json = true;
			break;
		case 'h':
			ctl_help(verb, stdout);
			ctl->result = CTL_OK;
			return -1;
		case ':':
			told_option(word, sizeof(word), argv);
			return wrong(ctl, verb, "an argument is missing behind", ctl_clean(word));
		case '?':
			told_option(word, sizeof(word), argv);
			return wrong(ctl, verb, "there is no option", ctl_clean(word));
		default:
			return opt;
		}
	}
	return end_of_options(ctl, verb, argc, argv);
}

/* --- help ------------------------------------------------------------------------------------- */

void ctl_wrap(const char *text, unsigned at, unsigned indent, FILE *to)
{
	unsigned column = at;
	bool first = true; /* of its line */

	while (*text) {
		size_t n = strcspn(text, " \n");
		unsigned breaks = 0;

		if (n && !first && column + 1 + n > COLUMNS) {
			fprintf(to, "\n%*s", (int)indent, "");
			column = indent;
			first = true;
		}
		if (n) {
			fprintf(to, "%s%.*s", first ? "" : " ", (int)n, text);
			column += (unsigned)n + !first;
			first = false;
		}
		for (text += n; *text == ' ' || *text == '\n'; text++)
			breaks += *text == '\n';
		if (breaks > 1 && *text) {
			fprintf(to, "\n\n%*s", (int)indent, "");
			column = indent;
			first = true;
		}
	}
	fputc('\n', to);
}

/* A paragraph at a time: those that begin with a blank are not broken. */
static void print_text(const char *text, FILE *to)
{
	while (text && *text) {
		const char *end = strstr(text, "\n\n");
		size_t n = end ? (size_t)(end - text) : strlen(text);
		char *paragraph = strndup(text, n);

		if (!paragraph)
			abort();
		if (*paragraph == ' ')
			fprintf(to, "%s\n", paragraph);
		else
			ctl_wrap(paragraph, 0, 0, to);
		free(paragraph);
		fputc('\n', to);
		text = end ? end + 2 : NULL;
	}
}

static int name_width(const struct ctl_opt *o)
{
	return (int)(strlen(o->name) + (o->arg ? 1 + strlen(o->arg) : 0));
}

static void print_opts(const struct ctl_opt *opts, unsigned n, int width, FILE *to)
{
	for (unsigned i = 0; i < n; i++) {
		const struct ctl_opt *o = &opts[i];
		char letter[8] = "    ";

		if (o->id < CTL_LONG_ONLY)
			snprintf(letter, sizeof(letter), "-%c, ", (char)o->id);
		fprintf(to, "  %s--%s%s%s%*s", letter, o->name, o->arg ? " " : "",
			o->arg ? o->arg : "", width - name_width(o) + 2, "");
		ctl_wrap(o->help, (unsigned)width + 10, (unsigned)width + 10, to);
	}
}

static void help_verb(const struct ctl_verb *v, FILE *to)
{
	int width = 0;

	fprintf(to, "usage: skvqctl %s [options]%s%s\n\n", v->name, v->args ? " " : "",
		v->args ? v->args : "");
	print_text(v->about, to);
	for (unsigned i = 0; i < v->n_opts; i++)
		width = name_width(&v->opts[i]) > width ? name_width(&v->opts[i]) : width;
	for (unsigned i = 0; i < ctl_common_n; i++)
		width = name_width(&ctl_common[i]) > width ? name_width(&ctl_common[i]) : width;
	print_opts(v->opts, v->n_opts, width, to);
	print_opts(ctl_common, ctl_common_n, width, to);
	if (v->json) {
		fputs("\nJSON: ", to);
		ctl_wrap(v->json, 6, 0, to);
	}
}

void ctl_help(const struct ctl_verb *verb, FILE *to)
{
	if (verb) {
		help_verb(verb, to);
		return;
	}
	fputs("usage: skvqctl [--socket PATH] [--json] VERB [options]\n\n", to);
	for (unsigned i = 0; ctl_verbs[i]; i++)
		fprintf(to, "  %-12s %s\n", ctl_verbs[i]->name, ctl_verbs[i]->summary);
	fputc('\n', to);
	print_opts(ctl_common, ctl_common_n, 11, to);
	fputs("\n'skvqctl VERB --help' tells more of a verb; 'skvqctl help man' and 'skvqctl help bash' (zsh,\n"
	      "fish) print the manual page and the shell's completion.\n\nExit status:\n",
	      to);
	for (unsigned i = 0; i < ctl_exit_n; i++)
		fprintf(to, "  %d  %s\n", ctl_exit_list[i].status, ctl_exit_list[i].means);
}
