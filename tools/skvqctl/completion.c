/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion for shells, of the same tables as --help. An argument called FILE or PATH is completed
 * as a file, one called NS by the namespaces that the daemon has now.
 */
#include "skvqctl.h"

#include <stdio.h>
#include <string.h>

static bool is_file(const char *arg)
{
	return arg && (strstr(arg, "FILE") || strstr(arg, "PATH"));
}

static bool is_ns(const char *arg)
{
	return arg && !strcmp(arg, "NS");
}

/* ---- bash ---- */

static void bash_words(const struct ctl_opt *opts, unsigned n, FILE *to)
{
	for (unsigned i = 0; i < n; i++) {
		if (opts[i].id < CTL_LONG_ONLY)
			fprintf(to, " -%c", (char)opts[i].id);
		fprintf(to, " --%s", opts[i].name);
	}
}

/* Patterns of a case for the options whose argument `is`; nothing if there are none. */
static void bash_case(const char *verb, const struct ctl_opt *opts, unsigned n,
		      bool (*is)(const char *), const char *then, FILE *to)
{
	for (unsigned i = 0; i < n; i++) {
		if (!is(opts[i].arg))
			continue;
		fprintf(to, "\t%s:--%s", verb, opts[i].name);
		if (opts[i].id < CTL_LONG_ONLY)
			fprintf(to, " | %s:-%c", verb, (char)opts[i].id);
		fprintf(to, ") %s ;;\n", then);
	}
}

static bool is_other(const char *arg)
{
	return arg && !is_file(arg) && !is_ns(arg);
}

static void bash(FILE *to)
{
	static const char files[] = "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return 0";
	static const char spaces[] =
	    "mapfile -t COMPREPLY < <(compgen -W \"$(skvqctl ls 2>/dev/null | "
	    "awk 'NR > 1 { print $1 }')\" -- \"$cur\"); return 0";

	fputs("# bash completion of skvqctl, made by 'skvqctl help bash'\n_skvqctl()\n{\n"
	      "\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb= i words=\n"
	      "\tfor ((i = 1; i < COMP_CWORD; i++)); do\n"
	      "\t\tcase ${COMP_WORDS[i]} in\n"
	      "\t\t-s | --socket) ((i++)) ;;\n"
	      "\t\t-*) ;;\n"
	      "\t\t*) verb=${COMP_WORDS[i]}; break ;;\n"
	      "\t\tesac\n"
	      "\tdone\n"
	      "\tcase $verb:$prev in\n",
	      to);
	fprintf(to, "\t*:-s | *:--socket) %s ;;\n", files);
	for (unsigned i = 0; ctl_verbs[i]; i++) {
		const struct ctl_verb *v = ctl_verbs[i];

		bash_case(v->name, v->opts, v->n_opts, is_file, files, to);
		bash_case(v->name, v->opts, v->n_opts, is_ns, spaces, to);
		bash_case(v->name, v->opts, v->n_opts, is_other, "return 0", to);
	}
	fputs("\tesac\n\tcase $verb in\n\t'') words='help", to);
	for (unsigned i = 0; ctl_verbs[i]; i++)
		fprintf(to, " %s", ctl_verbs[i]->name);
	bash_words(ctl_common, ctl_common_n, to);
	fputs("' ;;\n\thelp) words='man bash zsh fish", to);
	for (unsigned i = 0; ctl_verbs[i]; i++)
		fprintf(to, " %s", ctl_verbs[i]->name);
	fputs("' ;;\n", to);
	for (unsigned i = 0; ctl_verbs[i]; i++) {
		const struct ctl_verb *v = ctl_verbs[i];

		fprintf(to, "\t%s) words='", v->name);
		bash_words(v->opts, v->n_opts, to);
		bash_words(ctl_common, ctl_common_n, to);
		fprintf(to, "' ;;\n");
	}
	fputs("\tesac\n\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n", to);
	fputs("\tcase $verb in\n", to);
	for (unsigned i = 0; ctl_verbs[i]; i++)
		if (is_file(ctl_verbs[i]->args))
			fprintf(to, "\t%s) [[ $cur == -* ]] || %s ;;\n", ctl_verbs[i]->name, files);
	fputs("\tesac\n\treturn 0\n}\ncomplete -F _skvqctl skvqctl\n", to);
}

/* ---- zsh ---- */

/* Within single quotes and _arguments' brackets. */
static void zsh_text(const char *text, FILE *to)
{
	for (; *text; text++) {
		if (*text == '\'')
			fputs("'\\''", to);
		else if (strchr("[]:\\", *text))
			fprintf(to, "\\%c", *text);
		else
			fputc(*text == '\n' ? ' ' : *text, to);
	}
}

static void zsh_opts(const struct ctl_opt *opts, unsigned n, FILE *to)
{
	for (unsigned i = 0; i < n; i++) {
		const struct ctl_opt *o = &opts[i];
		const char *then = is_file(o->arg) ? "_files" : is_ns(o->arg) ? "_skvqctl_ns" : " ";

		for (int longer = o->id >= CTL_LONG_ONLY; longer < 2; longer++) {
			fputs(" \\\n\t\t'", to);
			if (longer)
				fprintf(to, "--%s", o->name);
			else
				fprintf(to, "-%c", (char)o->id);
			fputc('[', to);
			zsh_text(o->help, to);
			fputc(']', to);
			if (o->arg) {
				fputc(':', to);
				zsh_text(o->arg, to);
				fprintf(to, ":%s", then);
			}
			fputc('\'', to);
		}
	}
}

static void zsh(FILE *to)
{
	fputs("#compdef skvqctl\n# zsh completion of skvqctl, made by 'skvqctl help zsh'\n"
	      "_skvqctl_ns() {\n"
	      "\tlocal -a spaces=(${(f)\"$(skvqctl ls 2>/dev/null | awk 'NR > 1 { print $1 }')\"})\n"
	      "\tcompadd -a spaces\n}\n"
	      "_skvqctl_verbs() {\n\tlocal -a verbs=(\n",
	      to);
	for (unsigned i = 0; ctl_verbs[i]; i++) {
		fprintf(to, "\t\t'%s:", ctl_verbs[i]->name);
		zsh_text(ctl_verbs[i]->summary, to);
		fputs("'\n", to);
	}
	fputs("\t)\n\t_describe verb verbs\n}\n"
	      "_skvqctl() {\n\tlocal curcontext=$curcontext state line\n\ttypeset -A opt_args\n"
	      "\t_arguments -C",
	      to);
	zsh_opts(ctl_common, ctl_common_n, to);
	fputs(" \\\n\t\t'1:verb:_skvqctl_verbs' '*::argument:->verb'\n"
	      "\t[[ $state == verb ]] || return\n\tcase $line[1] in\n",
	      to);
	for (unsigned i = 0; ctl_verbs[i]; i++) {
		const struct ctl_verb *v = ctl_verbs[i];

		fprintf(to, "\t%s) _arguments", v->name);
		zsh_opts(v->opts, v->n_opts, to);
		zsh_opts(ctl_common, ctl_common_n, to);
		if (is_file(v->args))
			fputs(" \\\n\t\t'*:file:_files'", to);
		fputs(" ;;\n", to);
	}
	fputs("\tesac\n}\n_skvqctl \"$@\"\n", to);
}

/* ---- fish ---- */

static void fish_text(const char *text, FILE *to)
{
	for (; *text; text++) {
		if (*text == '\'' || *text == '\\')
			fputc('\\', to);
		fputc(*text == '\n' ? ' ' : *text, to);
	}
}

static void fish_opts(const char *verb, const struct ctl_opt *opts, unsigned n, FILE *to)
{
	for (unsigned i = 0; i < n; i++) {
		const struct ctl_opt *o = &opts[i];

		fputs("complete -c skvqctl", to);
		if (verb)
			fprintf(to, " -n '__fish_seen_subcommand_from %s'", verb);
		if (o->id < CTL_LONG_ONLY)
			fprintf(to, " -s %c", (char)o->id);
		fprintf(to, " -l %s", o->name);
		if (is_ns(o->arg))
			fputs(" -xa \"(skvqctl ls 2>/dev/null | awk 'NR > 1 { print \\$1 }')\"", to);
		else if (o->arg)
			fputs(is_file(o->arg) ? " -rF" : " -x", to);
		fputs(" -d '", to);
		fish_text(o->help, to);
		fputs("'\n", to);
	}
}

static void fish(FILE *to)
{
	fputs("# fish completion of skvqctl, made by 'skvqctl help fish'\ncomplete -c skvqctl -f\n", to);
	fish_opts(NULL, ctl_common, ctl_common_n, to);
	for (unsigned i = 0; ctl_verbs[i]; i++) {
		const struct ctl_verb *v = ctl_verbs[i];

		fprintf(to, "complete -c skvqctl -n __fish_use_subcommand -a %s -d '", v->name);
		fish_text(v->summary, to);
		fputs("'\n", to);
		if (is_file(v->args))
			fprintf(to, "complete -c skvqctl -n '__fish_seen_subcommand_from %s' -F\n",
				v->name);
		fish_opts(v->name, v->opts, v->n_opts, to);
	}
}

bool ctl_completion(const char *shell, FILE *to)
{
	if (!strcmp(shell, "bash"))
		bash(to);
	else if (!strcmp(shell, "zsh"))
		zsh(to);
	else if (!strcmp(shell, "fish"))
		fish(to);
	else
		return false;
	return true;
}
