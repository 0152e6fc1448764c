/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_FILE "/etc/skvqd.conf"
#define TEXT_MAX     (1u << 20) /* skvqd's own bound */

/* ---- changes, also of cmd_quota.c ---- */

static json_t *changes_json(const struct skvq_client_config_change *list, size_t n)
{
	json_t *array = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(
		    array, json_pack("{s:o, s:o, s:o, s:b}", "key", ctl_json_text(list[i].name),
				     "from", ctl_json_text(list[i].from), "to",
				     ctl_json_text(list[i].to), "restart", (int)list[i].restart));
	return array;
}

static const char *shown(char *value)
{
	return *value ? ctl_clean(value) : "nothing";
}

int ctl_print_changes(const struct ctl *ctl, struct skvq_client_config_change *list, size_t n,
		      bool done)
{
	int result = CTL_OK;

	if (ctl->json)
		result = ctl_print_json(json_pack("{s:b, s:o}", "done", (int)done, "changes",
						  changes_json(list, n)));
	for (size_t i = 0; !ctl->json && i < n; i++)
		printf("%s: %s -> %s%s\n", ctl_clean(list[i].name), shown(list[i].from),
		       shown(list[i].to),
		       list[i].restart ? "; not while it runs: restart the daemon for it" : "");
	if (!ctl->json && !n)
		puts("nothing differs from what runs");
	free(list);
	return ctl->json ? result : ctl_flush();
}

/* ---- the verb ---- */

/* Malloc'ed; NULL, and it was told. */
static char *read_file(const char *path, size_t *ret_bytes)
{
	FILE *f = fopen(path, "re");
	char *text = f ? malloc(TEXT_MAX + 1) : NULL;
	const char *why = NULL;

	errno = f ? 0 : errno;
	*ret_bytes = text ? fread(text, 1, TEXT_MAX + 1, f) : 0;
	if (!f || ferror(f))
		why = strerror(errno);
	else if (!text)
		why = strerror(ENOMEM);
	else if (*ret_bytes > TEXT_MAX)
		why = "it has more than 1 MiB";
	if (f)
		fclose(f);
	if (!why)
		return text;
	fprintf(stderr, "skvqctl config: cannot read '%s': %s\n", path, why);
	free(text);
	return NULL;
}

static int show(struct ctl *ctl)
{
	struct skvq_client *c = ctl_connect(ctl);
	struct skvq_client_config config;
	int result = CTL_OK, err;

	if (!c)
		return ctl->result;
	err = skvq_client_config_get(c, &config);
	if (err < 0) {
		result = ctl_failed(ctl, c, "show its configuration", err);
	} else if (ctl->json) {
		json_t *keys = json_array();
		for (size_t i = 0; i < config.n_keys; i++)
			json_array_append_new(
			    keys, json_pack("{s:o, s:o}", "key", ctl_json_text(config.keys[i].name),
					    "live",
					    *config.keys[i].live ? ctl_json_text(config.keys[i].live)
								 : json_null()));
		result = ctl_print_json(json_pack("{s:o, s:o}", "text", ctl_json_text(config.text),
						  "keys", keys));
	} else {
		fputs(config.text, stdout);
		result = ctl_flush();
	}
	if (err >= 0)
		skvq_client_config_free(&config);
	skvq_client_free(c);
	return result;
}

/* A bad file is what a check is there to find. */
static int refused(const struct ctl *ctl, const struct skvq_client *c, bool check, int err)
{
	char why[SKVQ_CLIENT_WHY_BYTES];

	if (!check || (err != -SKVQ_EINVAL && err != -SKVQ_EBUSY))
		return ctl_failed(ctl, c, check ? "check it" : "take it, and nothing has changed", err);
	snprintf(why, sizeof(why), "%s", skvq_client_why(c));
	if (ctl->json)
		return ctl_print_json(json_pack("{s:b, s:[], s:o}", "done", 0, "changes", "error",
						ctl_json_text(why))) == CTL_OK
			   ? CTL_FOUND
			   : CTL_FAILED;
	printf("%s\n", ctl_clean(why));
	return ctl_flush() == CTL_OK ? CTL_FOUND : CTL_FAILED;
}

static int give(struct ctl *ctl, const char *path, bool check)
{
	struct skvq_client_config_change *list = NULL;
	size_t bytes, n = 0;
	char *text = read_file(path, &bytes);
	struct skvq_client *c;
	int err, result;

	if (!text)
		return CTL_FAILED;
	c = ctl_connect(ctl);
	if (!c) {
		free(text);
		if (check && ctl->result == CTL_NO_DAEMON)
			fprintf(stderr, "skvqctl config: without a daemon: skvqd --config '%s' --check-config\n",
				path);
		return ctl->result;
	}
	err = skvq_client_config_set(c, path, text, bytes, check, &list, &n);
	result = err < 0 ? refused(ctl, c, check, err) : ctl_print_changes(ctl, list, n, !check);
	skvq_client_free(c);
	free(text);
	return result;
}

static int usage(const char *what, const char *word)
{
	fprintf(stderr, "skvqctl config: %s%s%s%s; see 'skvqctl config --help'\n", what,
		word ? " '" : "", word ? word : "", word ? "'" : "");
	return CTL_USAGE;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	if (ctl_getopt(ctl, &verb_config, argc, argv) < 0)
		return ctl->result;
	const char *what = argv[optind], *file = argc > optind + 1 ? argv[optind + 1] : NULL;

	if (!strcmp(what, "show"))
		return file ? usage("'show' takes no", "FILE") : show(ctl);
	if (!strcmp(what, "check"))
		return file ? give(ctl, file, true) : usage("check: a FILE is missing", NULL);
	if (!strcmp(what, "reload"))
		return give(ctl, file ? file : DEFAULT_FILE, false);
	return usage("check, show or reload, not", ctl_clean(argv[optind]));
}

const struct ctl_verb verb_config = {
    .name = "config",
    .summary = "the daemon's configuration: check a file, show, reload",
    .args = "check FILE | show | reload [FILE]",
    .min_args = 1,
    .max_args = 2,
    .about = "show prints what the daemon runs with, as a file. check tells what a file would change, or "
	     "what is wrong with it (status 6), and changes nothing. reload, of " DEFAULT_FILE
	     " if none is named, changes what can change while the daemon runs, all or nothing, and names "
	     "the keys that wait for a restart. The daemon's own flags win over the file, as at its start. "
	     "For root and the user that the daemon runs as.",
    .json = "show: text, and keys, a list of key and live (what happens when it changes while the daemon "
	    "runs; null: that takes a restart). check and reload: done, and changes, a list of key, from, "
	    "to and restart; of a file that is wrong error as well, a sentence.",
    .run = run,
};
