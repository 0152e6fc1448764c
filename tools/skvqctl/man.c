/* SPDX-License-Identifier: Apache-2.0 */
/* The manual page, of the same tables as --help; man(7) macros. */
#include "skvqctl.h"

#include <stdio.h>
#include <string.h>

/* Text as it is: roff takes '\\' for itself, '-' for a hyphen, '.' and '\'' for its own at the
 * beginning of a line. */
static void plain(const char *text, size_t n, FILE *to)
{
	for (size_t i = 0; i < n; i++) {
		bool begins = i == 0 || text[i - 1] == '\n';

		if (begins && (text[i] == '.' || text[i] == '\''))
			fputs("\\&", to);
		if (text[i] == '\\')
			fputs("\\e", to);
		else if (text[i] == '-')
			fputs("\\-", to);
		else if (text[i] == '\'')
			fputs("\\(aq", to);
		else
			fputc(text[i], to);
	}
}

static void word(const char *text, FILE *to)
{
	plain(text, strlen(text), to);
}

static void paragraphs(const char *text, FILE *to)
{
	bool first = true;

	while (text && *text) {
		const char *end = strstr(text, "\n\n");
		size_t n = end ? (size_t)(end - text) : strlen(text);
		bool as_is = *text == ' ';

		if (as_is)
			fputs(".PP\n.nf\n", to);
		else if (!first)
			fputs(".PP\n", to);
		plain(text, n, to);
		fputs(as_is ? "\n.fi\n" : "\n", to);
		first = false;
		text = end ? end + 2 : NULL;
	}
}

static void options(const struct ctl_opt *opts, unsigned n, FILE *to)
{
	for (unsigned i = 0; i < n; i++) {
		fputs(".TP\n", to);
		if (opts[i].id < CTL_LONG_ONLY)
			fprintf(to, "\\fB\\-%c\\fR, ", (char)opts[i].id);
		fputs("\\fB\\-\\-", to);
		word(opts[i].name, to);
		fputs("\\fR", to);
		if (opts[i].arg) {
			fputs(" \\fI", to);
			word(opts[i].arg, to);
			fputs("\\fR", to);
		}
		fputc('\n', to);
		word(opts[i].help, to);
		fputc('\n', to);
	}
}

static void verb_section(const struct ctl_verb *v, FILE *to)
{
	fputs(".SS \"skvqctl ", to);
	word(v->name, to);
	fputs(" [options]", to);
	if (v->args) {
		fputc(' ', to);
		word(v->args, to);
	}
	fputs("\"\n", to);
	paragraphs(v->about, to);
	options(v->opts, v->n_opts, to);
	if (v->json) {
		fputs(".TP\n\\fB\\-\\-json\\fR\n", to);
		word(v->json, to);
		fputc('\n', to);
	}
}

void ctl_man(FILE *to)
{
	fputs(".\\\" Made by 'skvqctl help man'.\n"
	      ".TH SKVQCTL 1 \"\" \"skvqd " SKVQ_VERSION_STRING "\" \"skvqd\"\n"
	      ".SH NAME\nskvqctl \\- look into and steer a running skvqd\n"
	      ".SH SYNOPSIS\n.B skvqctl\n[\\fB\\-\\-socket\\fR \\fIPATH\\fR] [\\fB\\-\\-json\\fR] "
	      "\\fIVERB\\fR [options]\n"
	      ".SH DESCRIPTION\nAsks the daemon that keeps the machine\\(aqs K/V cache, over its "
	      "socket. One sees what one\\(aqs own tenant has; root, the daemon\\(aqs user and those "
	      "it calls admins see all.\n"
	      ".SH OPTIONS\n",
	      to);
	options(ctl_common, ctl_common_n, to);
	fputs(".SH VERBS\n", to);
	for (unsigned i = 0; ctl_verbs[i]; i++)
		verb_section(ctl_verbs[i], to);
	fputs(".SH EXIT STATUS\n", to);
	for (unsigned i = 0; i < ctl_exit_n; i++) {
		fprintf(to, ".TP\n%d\n", ctl_exit_list[i].status);
		word(ctl_exit_list[i].means, to);
		fputc('\n', to);
	}
	fputs(".SH ENVIRONMENT\n.TP\nSKVQD_SOCKET\nthe daemon\\(aqs socket, where \\fB\\-\\-socket\\fR "
	      "does not name one\n"
	      ".SH FILES\n.TP\n" CTL_DEFAULT_SOCKET "\nthe socket, where nothing names one\n"
	      ".SH SEE ALSO\n\\fBskvqd\\fR(8), \\fBskvqd.conf\\fR(5), \\fBskvq\\-exporter\\fR(1)\n",
	      to);
}
