/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SETTINGS_MAX 16

/* The bounds of a tenant; its users are the file's business. */
static const char *const keys[] = {"ram_min",	      "ram_max",	"disk_max",
				   "pins_max",	      "connections_max", "namespaces_max",
				   "calibration_max"};

static bool is_key(const char *name)
{
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (!strcmp(keys[i], name))
			return true;
	return false;
}

/* As the daemon prints them: digits, and K, M, G or T. */
static double number(const char *text)
{
	static const char units[] = "KMGT";
	char *end;
	double v = strtod(text, &end);
	const char *unit = *end ? strchr(units, *end) : NULL;

	for (const char *u = units; unit && u <= unit; u++)
		v *= 1024;
	return v;
}

/* What a bound is now, if it is written as 0. */
static double effective(const struct skvq_client_tenant *t, const char *key)
{
	const struct {
		const char *key;
		uint64_t value;
	} all[] = {
	    {"ram_max", t->bytes_max},	       {"disk_max", t->disk_bytes_max},
	    {"pins_max", t->pins_max},	       {"connections_max", t->connections_max},
	    {"namespaces_max", t->namespaces_max}, {"calibration_max", t->calibration_bytes_max},
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(all[i].key, key))
			return all[i].value ? (double)all[i].value : 1e300; /* 0: none */
	return 0;
}

static bool is_lowered(const struct skvq_client_tenant *t, const struct skvq_client_config_change *c)
{
	const char *dot = strrchr(c->name, '.'), *key = dot ? dot + 1 : c->name;
	double from = number(c->from), to = number(c->to);

	if (from == 0)
		from = effective(t, key);
	if (to == 0 && (!strcmp(key, "ram_max") || !strcmp(key, "pins_max")))
		return false; /* none; of the others 0 is an equal part, which may be less */
	return to < from;
}

/* The first key that becomes less; NULL: none. */
static struct skvq_client_config_change *lowered(const struct skvq_client_tenant *t,
						 struct skvq_client_config_change *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (is_lowered(t, &list[i]))
			return &list[i];
	return NULL;
}

static int confirm(const struct skvq_client_tenant *t, struct skvq_client_config_change *list, size_t n,
		   bool yes)
{
	struct skvq_client_config_change *less = lowered(t, list, n);

	if (!less)
		return CTL_OK;
	return ctl_confirm("quota", yes,
			   "lowers %s from %s to %s: pages above it go, and engines are refused more",
			   ctl_clean(less->name), ctl_clean(less->from), ctl_clean(less->to));
}

/* The tenant as it is; one that is not there is all 0, and the daemon says so when it is set. */
static int find_tenant(struct skvq_client *c, const char *name, struct skvq_client_tenant *ret)
{
	struct skvq_client_status *s;
	int err = ctl_status(c, &s);

	memset(ret, 0, sizeof(*ret));
	for (size_t i = 0; err >= 0 && i < s->n_tenants; i++)
		if (!strcmp(s->tenants[i].name, name))
			*ret = s->tenants[i];
	free(s);
	return err;
}

static int set(struct ctl *ctl, struct skvq_client *c, const struct skvq_client_tenant *tenant,
	       const struct skvq_client_config_setting *settings, size_t n, bool yes)
{
	struct skvq_client_config_change *list = NULL;
	size_t n_list = 0;
	int err = skvq_client_config_change(c, settings, n, true, &list, &n_list), result;

	if (err < 0)
		return ctl_failed(ctl, c, "set it, and nothing has changed", err);
	result = confirm(tenant, list, n_list, yes);
	free(list);
	if (result != CTL_OK)
		return result;
	err = skvq_client_config_change(c, settings, n, false, &list, &n_list);
	if (err < 0)
		return ctl_failed(ctl, c, "set it, and nothing has changed", err);
	result = ctl_print_changes(ctl, list, n_list, true);
	if (result == CTL_OK && !ctl->json && n_list) {
		puts("until the daemon is restarted or reloaded: to keep it, write it into the file");
		result = ctl_flush();
	}
	return result;
}

static int usage(const char *what, char *word)
{
	fprintf(stderr, "skvqctl quota: %s '%s'; see 'skvqctl quota --help'\n", what, ctl_clean(word));
	return CTL_USAGE;
}

/* Splits KEY=VALUE in place. */
static int read_settings(int n, char **words, const char *section,
			 struct skvq_client_config_setting *ret)
{
	for (int i = 0; i < n; i++) {
		char *is = strchr(words[i], '=');
		if (!is || !is[1])
			return usage("expected KEY=VALUE, not", words[i]);
		*is = '\0';
		if (!is_key(words[i]))
			return usage("there is no key", words[i]);
		ret[i] = (struct skvq_client_config_setting){section, words[i], is + 1};
	}
	return CTL_OK;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client_config_setting settings[SETTINGS_MAX];
	char section[128];
	bool yes = false;
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_quota, argc, argv)) > 0)
		yes = true;
	if (opt < 0)
		return ctl->result;
	int n = argc - optind - 2;
	if (strcmp(argv[optind], "set"))
		return usage("set, not", argv[optind]);
	snprintf(section, sizeof(section), "tenant %s", argv[optind + 1]);
	int result = read_settings(n, argv + optind + 2, section, settings);
	if (result != CTL_OK)
		return result;
	struct skvq_client *c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	struct skvq_client_tenant tenant;
	int err = find_tenant(c, argv[optind + 1], &tenant);
	result = err < 0 ? ctl_failed(ctl, c, "tell of the tenant", err)
			 : set(ctl, c, &tenant, settings, (size_t)n, yes);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'y', "yes", NULL, "lower a bound without asking"},
};

const struct ctl_verb verb_quota = {
    .name = "quota",
    .summary = "change the bounds of a tenant while the daemon runs",
    .args = "set TENANT KEY=VALUE...",
    .min_args = 3,
    .max_args = SETTINGS_MAX + 2,
    .about = "Changes bounds of a tenant until the daemon is restarted or its configuration reloaded: "
	     "ram_min, ram_max, disk_max, calibration_max (bytes, or with K, M, G, T), pins_max, "
	     "connections_max, namespaces_max. 0 is none, or an equal part of the daemon's. All or "
	     "nothing. One that becomes less is asked for on a terminal, and wants --yes elsewhere. For "
	     "root and the user that the daemon runs as.\n\n"
	     "  skvqctl quota set chat ram_max=16G pins_max=200000",
    CTL_OPTS(opts),
    .json = "done, and changes, a list of key, from, to and restart (false).",
    .run = run,
};
