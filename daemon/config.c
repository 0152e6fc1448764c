/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <ini.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/log.h"
#include "base/worker.h"
#include "control/control.h"
#include "sandbox.h"

enum kind { TEXT, COUNT, BYTES, MODE, LEVEL, SANDBOX };

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define FIELD(f) offsetof(struct config, f), sizeof(((struct config *)0)->f)
/* Bounds of the store's own options are the store's. */
#define STORE_KEY_(name, kind, def, least, most, help)                                             \
	{"store", #name, NULL, kind, FIELD(store.name), NULL, def, least, most, help},

/* The one place of every other bound. */
static const struct key {
	const char *section, *name;
	const char *flag; /* NULL: section-name, with dashes for underscores */
	enum kind kind;
	size_t offset, size; /* in struct config */
	const char *text;    /* default of TEXT */
	uint64_t value;      /* default of the others */
	uint64_t min, max;
	const char *reason;
} keys[] = {
    {"socket", "path", "socket", TEXT, FIELD(socket_path), "", 0, 0, 0,
     "where clients connect (Unix stream socket)"},
    {"socket", "socket_mode", "socket-mode", MODE, FIELD(socket_mode), NULL, 0600, 0, 0777,
     "who may connect: file mode of the socket"},
    {"socket", "tenant", "tenant", TEXT, FIELD(tenant), "default", 0, 0, 0,
     "all clients of this socket share pages under this name"},
    {"memory", "ram_max", "ram-max", BYTES, FIELD(ram_max), NULL, 4 * GIB, 64 * KIB,
     UINT64_C(1) << 46,
     "bytes of all arenas together, as the kernel counts them; page records come on top (about "
     "0.5 KiB a page)"},
    {"memory", "calibration_max", "calibration-max", BYTES, FIELD(calibration_max), NULL,
     256 * MIB, 0, 16 * GIB,
     "bytes of the models' calibration files together, beside ram_max; 0: none are kept"},
    {"memory", "shed", "shed", COUNT, FIELD(shed), NULL, 1, 0, 1,
     "of elastic profiles: refinements go before pages do; 0: pages stay whole"},
    {"memory", "scrub_rate", "scrub-rate", BYTES, FIELD(scrub), NULL, 32 * MIB, 0, 16 * GIB,
     "bytes a second of pages in memory that are checked again; 0: none"},
    {"limits", "connections_max", "connections-max", COUNT, FIELD(connections_max), NULL, 64, 1,
     4096, "each may hold a frame of memory and staging_max descriptors"},
    {"limits", "pins_max", "pins-max", COUNT, FIELD(pins_max), NULL, 65536, 1, UINT64_C(1) << 24,
     "pins of one connection: 5 million tokens; pinned pages cannot be evicted"},
    {"limits", "requests_max", "requests-max", COUNT, FIELD(requests_max), NULL, 64, 1, 4096,
     "requests of one connection not yet answered"},
    {"limits", "staging_max", "staging-max", COUNT, FIELD(staging_max), NULL, 64, 1, 1024,
     "staging memfds of one connection; each is a descriptor here"},
    {"limits", "namespaces_max", "namespaces-max", COUNT, FIELD(namespaces_max), NULL, 64, 1, 1024,
     "models served at once; past it the longest unused one nobody has open is dropped"},
    {"limits", "frame_max", "frame-max", BYTES, FIELD(frame_max), NULL, 4 * MIB, 4 * KIB, 64 * MIB,
     "payload of a frame, both ways: a match of a million tokens fits in 4M"},
    {"limits", "backlog_max", "backlog-max", BYTES, FIELD(backlog_max), NULL, 1 * MIB, 4 * KIB,
     64 * MIB, "unread replies of a connection before its requests wait"},
    {"workers", "threads", "threads", COUNT, FIELD(threads), NULL, 2, 1, WORKER_THREADS_MAX,
     "threads that copy and check published pages"},
    {"workers", "queue_max", "queue-max", COUNT, FIELD(queue_max), NULL, 256, 1, 65536,
     "pages waiting to be copied; past it publishing is SKVQ_EQUEUE"},
    {"log", "level", "log-level", LEVEL, FIELD(log_level), NULL, LOG_INFO, 0, 0,
     "debug, info, warning or error"},
    {"security", "sandbox", "sandbox", SANDBOX, FIELD(sandbox), NULL, SANDBOX_ON, 0, 0,
     "on, off or log: what the daemon may still ask of the kernel when it serves"},
    {"store", "folder", NULL, TEXT, FIELD(store_folder), "", 0, 0, 0,
     "where pages are kept on disk when memory is short; not given: memory only"},
    {"store", "spill_percent", NULL, COUNT, FIELD(spill_percent), NULL, 25, 0, 100,
     "of ram_max that is free or on disk too: pages are written in the background when it is less; "
     "100: every page is written at once"},
    {"store", "restore_wait_ms", NULL, COUNT, FIELD(restore_wait_ms), NULL, 2000, 0, 600000,
     "an engine waits no longer for pages from disk, whatever it asks for; 0: not at all"},
    {"store", "restores_max", NULL, COUNT, FIELD(restores_max), NULL, 4096, 1, 65536,
     "pages on their way back at once; more are misses"},
    {"store", "shutdown_ms", NULL, COUNT, FIELD(shutdown_ms), NULL, 10000, 0, 600000,
     "at the end, what is not on disk yet is written for so long"},
    {"store", "scrub_rate", NULL, BYTES, FIELD(store_scrub), NULL, 2 * MIB, 0, 16 * GIB,
     "bytes a second of pages on disk that are read and checked though nobody asks; 0: none"},
    {"store", "io_uring", NULL, COUNT, FIELD(io_uring), NULL, 1, 0, 1,
     "0: threads do the input and output; they also do where the kernel refuses io_uring"},
    {"store", "direct", NULL, COUNT, FIELD(direct), NULL, 1, 0, 1,
     "0: through the page cache; so it also is where the file system refuses O_DIRECT"},
    STORE_OPTIONS(STORE_KEY_)
};
#undef FIELD
#undef STORE_KEY_

#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

static char *text_at(struct config *config, const struct key *key)
{
	return (char *)config + key->offset;
}

static uint64_t *value_at(struct config *config, const struct key *key)
{
	return (uint64_t *)(void *)((char *)config + key->offset);
}

#define FLAG_BYTES 40

static void flag_of(const struct key *key, char ret[FLAG_BYTES])
{
	if (key->flag)
		(void)snprintf(ret, FLAG_BYTES, "%s", key->flag);
	else
		(void)snprintf(ret, FLAG_BYTES, "%s-%s", key->section, key->name);
	for (char *at = ret; *at; at++) {
		if (*at == '_')
			*at = '-';
	}
}

/* ---- values ---- */

/* Digits in the base, nothing before them; *ret_end is what follows. */
static bool parse_number(const char *text, int base, uint64_t *ret, const char **ret_end)
{
	unsigned long long v;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	v = strtoull(text, &end, base);
	if (errno || end == text)
		return false;
	*ret = v;
	*ret_end = end;
	return true;
}

/* "4096", "64K", "4G", "4GiB". */
static bool parse_bytes(const char *text, uint64_t *ret)
{
	static const char units[] = "KMGT";
	const char *end, *unit;
	uint64_t v;
	int shift = 0;

	if (!parse_number(text, 10, &v, &end))
		return false;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit)
			return false;
		shift = 10 * (int)(unit - units + 1);
		end++;
		if (!strcmp(end, "iB"))
			end += 2;
	}
	if (*end || v > UINT64_MAX >> shift)
		return false;
	*ret = v << shift;
	return true;
}

static int set_number(struct config *config, const struct key *key, const char *text,
		      struct why *why)
{
	const char *end = text;
	uint64_t v = 0;
	bool ok = key->kind == BYTES  ? parse_bytes(text, &v)
		  : key->kind == MODE ? parse_number(text, 8, &v, &end) && !*end
				      : parse_number(text, 10, &v, &end) && !*end;

	if (ok && v >= key->min && v <= key->max) {
		*value_at(config, key) = v;
		return 0;
	}
	return why_fail(why, SKVQ_EINVAL,
			key->kind == MODE ? "%s.%s = \"%.40s\": expected %llo to %llo, octal"
					  : "%s.%s = \"%.40s\": expected %llu to %llu%s",
			key->section, key->name, text, (unsigned long long)key->min,
			(unsigned long long)key->max,
			key->kind == BYTES ? " bytes, with K, M, G or T behind if you like" : "");
}

static int set_value(struct config *config, const struct key *key, const char *text,
		     struct why *why)
{
	if (key->kind == TEXT) {
		if (strlen(text) >= key->size || !*text)
			return why_fail(why, SKVQ_EINVAL, "%s.%s has %zu bytes, expected 1 to %zu",
					key->section, key->name, strlen(text), key->size - 1);
		memcpy(text_at(config, key), text, strlen(text) + 1);
		return 0;
	}
	if (key->kind == LEVEL || key->kind == SANDBOX) {
		int level = key->kind == LEVEL ? log_level_parse(text) : sandbox_mode_parse(text);

		if (level < 0)
			return why_fail(why, SKVQ_EINVAL, "%s.%s = \"%.40s\": expected %s",
					key->section, key->name, text, key->reason);
		*value_at(config, key) = (uint64_t)level;
		return 0;
	}
	return set_number(config, key, text, why);
}

int config_set(struct config *config, const char *section, const char *name, const char *value,
	       struct why *why)
{
	for (size_t i = 0; i < N_KEYS; i++) {
		if (!strcmp(keys[i].section, section) && !strcmp(keys[i].name, name))
			return set_value(config, &keys[i], value, why);
	}
	return why_fail(why, SKVQ_EINVAL, "there is no key \"%.40s\" in section \"%.40s\"", name,
			section);
}

void config_defaults(struct config *config)
{
	memset(config, 0, sizeof(*config));
	for (size_t i = 0; i < N_KEYS; i++) {
		if (keys[i].kind == TEXT)
			memcpy(text_at(config, &keys[i]), keys[i].text, strlen(keys[i].text) + 1);
		else
			*value_at(config, &keys[i]) = keys[i].value;
	}
}

/* ---- file ---- */

struct file_ctx {
	struct config *config;
	struct why first; /* of the first line that is wrong, the one ini_parse returns */
};

static int on_key(void *user, const char *section, const char *name, const char *value)
{
	struct file_ctx *ctx = user;
	struct why why;

	if (config_set(ctx->config, section, name, value, &why) == 0)
		return 1;
	if (!ctx->first.text[0])
		ctx->first = why;
	return 0;
}

int config_file(struct config *config, const char *path, struct why *why)
{
	struct file_ctx ctx = {.config = config};
	FILE *f = fopen(path, "re");
	bool failed;
	int line;

	if (!f)
		return why_fail_errno(why, SKVQ_EIO, "config file \"%.100s\"", path);
	errno = 0;
	line = ini_parse_file(f, on_key, &ctx);
	failed = ferror(f); /* ini takes it for the end: half a file, or a folder */
	if (failed)
		(void)why_fail_errno(why, SKVQ_EIO, "reading config file \"%.100s\"", path);
	(void)fclose(f);
	if (failed)
		return -SKVQ_EIO;
	if (line < 0)
		return why_fail(why, SKVQ_ENOMEM, "no memory for config file \"%.100s\"", path);
	if (line > 0)
		return why_fail(why, SKVQ_EINVAL, "%.100s:%d: %s", path, line,
				ctx.first.text[0] ? ctx.first.text : "not a line of an INI file");
	return 0;
}

/* ---- command line ---- */

enum { OPT_CONFIG = 256, OPT_CHECK, OPT_PRINT, OPT_CAPABILITIES, OPT_HELP, OPT_VERSION, OPT_KEY };

#define N_FIXED 6

static const struct option fixed[N_FIXED] = {
    {"config", required_argument, NULL, OPT_CONFIG},
    {"check-config", no_argument, NULL, OPT_CHECK},
    {"print-config", no_argument, NULL, OPT_PRINT},
    {"print-capabilities", no_argument, NULL, OPT_CAPABILITIES},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
};

static enum config_action action_of(int opt)
{
	switch (opt) {
	case OPT_CHECK:
		return CONFIG_CHECK;
	case OPT_PRINT:
		return CONFIG_PRINT;
	case OPT_CAPABILITIES:
		return CONFIG_CAPABILITIES;
	case OPT_HELP:
		return CONFIG_HELP;
	default:
		return CONFIG_VERSION;
	}
}

int config_args(struct config *config, int argc, char **argv, enum config_action *ret_action,
		struct why *why)
{
	struct option options[N_FIXED + N_KEYS + 1] = {0};
	char flags[N_KEYS][FLAG_BYTES];
	const char *values[N_KEYS] = {0}, *file = NULL;
	enum config_action action = CONFIG_RUN;
	int opt, err;

	memcpy(options, fixed, sizeof(fixed));
	for (size_t i = 0; i < N_KEYS; i++) {
		flag_of(&keys[i], flags[i]);
		options[N_FIXED + i] =
		    (struct option){flags[i], required_argument, NULL, OPT_KEY + (int)i};
	}
	opterr = 0;
	optind = 0; /* GNU: start anew, for this may run more than once in a test */
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return why_fail(why, SKVQ_EINVAL, "\"%.60s\" %s; --help lists the flags",
					argv[optind - 1],
					opt == ':' ? "needs a value" : "is unknown");
		if (opt == OPT_CONFIG)
			file = optarg;
		else if (opt >= OPT_KEY)
			values[opt - OPT_KEY] = optarg;
		else
			action = action_of(opt);
	}
	if (optind < argc)
		return why_fail(why, SKVQ_EINVAL, "\"%.60s\" is not a flag; --help lists them",
				argv[optind]);
	config_defaults(config);
	err = file ? config_file(config, file, why) : 0;
	for (size_t i = 0; i < N_KEYS && !err; i++) {
		if (values[i])
			err = set_value(config, &keys[i], values[i], why);
	}
	if (err < 0)
		return err;
	*ret_action = action;
	return 0;
}

int config_check(const struct config *config, struct why *why)
{
	struct why inner;

	if (!config->socket_path[0])
		return why_fail(why, SKVQ_EINVAL,
				"no socket: give --socket PATH, or path in section [socket]");
	if (!config->store_folder[0])
		return 0;
	if (store_options_check(&config->store, &inner) < 0)
		return why_fail(why, SKVQ_EINVAL, "[store]: %s", inner.text);
	return 0;
}

/* ---- out ---- */

/* The shortest exact spelling. */
static void print_bytes(uint64_t v, FILE *to)
{
	static const char units[] = "\0KMGT";
	int unit = 0;

	while (v && v % 1024 == 0 && unit < 4) {
		v /= 1024;
		unit++;
	}
	if (unit)
		(void)fprintf(to, "%llu%c", (unsigned long long)v, units[unit]);
	else
		(void)fprintf(to, "%llu", (unsigned long long)v);
}

static void print_value(const struct config *config, const struct key *key, FILE *to)
{
	uint64_t v = 0;

	if (key->kind != TEXT)
		memcpy(&v, (const char *)config + key->offset, sizeof(v));
	switch (key->kind) {
	case TEXT:
		(void)fputs((const char *)config + key->offset, to);
		break;
	case BYTES:
		print_bytes(v, to);
		break;
	case MODE:
		(void)fprintf(to, "0%llo", (unsigned long long)v);
		break;
	case LEVEL:
		(void)fputs(log_level_name((enum log_level)v), to);
		break;
	case SANDBOX:
		(void)fputs(sandbox_mode_name((enum sandbox_mode)v), to);
		break;
	case COUNT:
		(void)fprintf(to, "%llu", (unsigned long long)v);
		break;
	}
}

void config_print(const struct config *config, FILE *to)
{
	const char *section = "";

	for (size_t i = 0; i < N_KEYS; i++) {
		bool is_empty = keys[i].kind == TEXT && !((const char *)config)[keys[i].offset];

		if (strcmp(section, keys[i].section)) {
			section = keys[i].section;
			(void)fprintf(to, "%s[%s]\n", i ? "\n" : "", section);
		}
		(void)fprintf(to, "; %s\n%s%s = ", keys[i].reason, is_empty ? "; " : "",
			      keys[i].name);
		print_value(config, &keys[i], to);
		(void)fputc('\n', to);
	}
}

void config_help(FILE *to)
{
	struct config config;

	config_defaults(&config);
	(void)fputs("usage: skvqd --socket PATH [flags]\n\n"
		    "Keeps low-bit K/V pages of many engines in shared memory. Stays in the "
		    "foreground;\nSIGTERM or SIGINT ends it.\n\n"
		    "  --config FILE            INI file; flags override it\n"
		    "  --check-config           exit 0 if file and flags are good\n"
		    "  --print-config           the effective configuration as a file\n"
		    "  --print-capabilities     what this build speaks, as JSON\n"
		    "  --version, --help\n\n",
		    to);
	for (size_t i = 0; i < N_KEYS; i++) {
		char flag[FLAG_BYTES];

		flag_of(&keys[i], flag);
		(void)fprintf(to, "  --%-26s %s", flag, keys[i].reason);
		if (keys[i].kind != TEXT || keys[i].text[0]) {
			(void)fputs(" [", to);
			print_value(&config, &keys[i], to);
			(void)fputc(']', to);
		}
		(void)fputc('\n', to);
	}
}

uint64_t config_fds(const struct config *config)
{
	/* A connection, its stagings, and queued replies with an arena each; two for each arena and calibration;
	 * one message full of strangers, twice, while the closer is at it; and our own. */
	uint64_t n = config->connections_max * (1 + config->staging_max + 8) +
		     config->namespaces_max * 2 + CALIBRATIONS_MAX * 2 + 2 * 253 + 64;

	return config->store_folder[0] ? n + store_files_max(&config->store) : n;
}
