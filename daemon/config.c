/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <ini.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/journal.h"
#include "base/log.h"
#include "base/worker.h"
#include "control/control.h"
#include "sandbox.h"

enum kind { TEXT, COUNT, BYTES, MODE, LEVEL, FORM, SANDBOX, IDS };

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define FIELD(f) offsetof(struct config, f), sizeof(((struct config *)0)->f)
/* Bounds of the store's own options are the store's. */
#define STORE_KEY_(name, kind, def, least, most, help)                                             \
	{"store", #name, NULL, kind, FIELD(store.name), NULL, def, least, most, help},

#define TENANT(f) offsetof(struct config_tenant, f), sizeof(((struct config_tenant *)0)->f)

/* The one place of every other bound. */
struct key {
	const char *section, *name;
	const char *flag; /* NULL: section-name, with dashes for underscores */
	enum kind kind;
	size_t offset, size; /* in struct config, or config_tenant */
	const char *text;    /* default of TEXT */
	uint64_t value;      /* default of the others */
	uint64_t min, max;
	const char *reason;
};
static const struct key keys[] = {
    {"socket", "path", "socket", TEXT, FIELD(socket_path), "", 0, 0, 0,
     "where clients connect (Unix stream socket)"},
    {"socket", "socket_mode", "socket-mode", MODE, FIELD(socket_mode), NULL, 0600, 0, 0777,
     "who may connect: file mode of the socket"},
    {"socket", "tenant", "tenant", TEXT, FIELD(tenant), "default", 0, 0, 0,
     "all clients share pages under this name, if there is no section [tenant NAME]"},
    {"socket", "admin", "admin", IDS, FIELD(admins), NULL, 0, 0, UINT32_MAX - 1,
     "users who may look at all tenants, beside root and the daemon's own, on this socket"},
    {"memory", "ram_max", "ram-max", BYTES, FIELD(ram_max), NULL, 4 * GIB, 64 * KIB,
     UINT64_C(1) << 46,
     "bytes of all arenas together, as the kernel counts them; page records come on top (about "
     "0.25 KiB a page)"},
    {"memory", "calibration_max", "calibration-max", BYTES, FIELD(calibration_max), NULL,
     256 * MIB, 0, 16 * GIB,
     "bytes of the models' calibration files together, beside ram_max; 0: none are kept"},
    {"memory", "shed", "shed", COUNT, FIELD(shed), NULL, 1, 0, 1,
     "of elastic profiles: refinements go before pages do; 0: pages stay whole"},
    {"memory", "scrub_rate", "scrub-rate", BYTES, FIELD(scrub), NULL, 8 * MIB, 0, 16 * GIB,
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
    {"log", "format", "log-format", FORM, FIELD(log_form), NULL, LOG_FORM_AUTO, 0, 0,
     "auto, logfmt, json or journal: one line an event, to stderr; journal: fields for systemd's, and "
     "auto is that where stderr goes there, else logfmt"},
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

/* Of a section [tenant NAME]. A bound of 0 is an equal part of the daemon's, or none. */
static const struct key tenant_keys[CONFIG_TENANT_KEYS] = {
    [TENANT_SOCKET] = {"tenant", "socket", NULL, TEXT, TENANT(socket_path), "", 0, 0, 0,
     "a socket of its own; not given: the one in [socket]"},
    [TENANT_MODE] = {"tenant", "socket_mode", NULL, MODE, TENANT(socket_mode), NULL, 0600, 0, 0777,
     "file mode of that socket"},
    [TENANT_UID] = {"tenant", "uid", NULL, IDS, TENANT(uids), NULL, 0, 0, UINT32_MAX - 1,
     "users of this tenant, by number; on its own socket nobody else then"},
    [TENANT_GID] = {"tenant", "gid", NULL, IDS, TENANT(gids), NULL, 0, 0, UINT32_MAX - 1,
     "groups of this tenant, looked at for users that no tenant names"},
    [TENANT_RAM_MIN] = {"tenant", "ram_min", NULL, BYTES, TENANT(ram_min), NULL, 0, 0,
     UINT64_C(1) << 46, "bytes of ram_max that no other tenant can take"},
    [TENANT_RAM_MAX] = {"tenant", "ram_max", NULL, BYTES, TENANT(ram_max), NULL, 0, 0,
     UINT64_C(1) << 46, "bytes of its arenas together; 0: as much as there is"},
    [TENANT_DISK_MAX] = {"tenant", "disk_max", NULL, BYTES, TENANT(disk_max), NULL, 0, 0,
     UINT64_C(1) << 43,
     "bytes of disk, in a folder of its own below the store's; 0: an equal part of capacity_bytes"},
    [TENANT_CALIBRATION_MAX] = {"tenant", "calibration_max", NULL, BYTES, TENANT(calibration_max),
     NULL, 0, 0, 16 * GIB,
     "bytes of its models' calibration files; 0: an equal part of the daemon's"},
    [TENANT_CONNECTIONS_MAX] = {"tenant", "connections_max", NULL, COUNT, TENANT(connections_max),
     NULL, 0, 0, 4096, "its connections; 0: an equal part of the daemon's"},
    [TENANT_PINS_MAX] = {"tenant", "pins_max", NULL, COUNT, TENANT(pins_max), NULL, 0, 0,
     UINT64_C(1) << 36, "pins of all its connections together; 0: as many as they each may have"},
    [TENANT_NAMESPACES_MAX] = {"tenant", "namespaces_max", NULL, COUNT, TENANT(namespaces_max),
     NULL, 0, 0, 1024, "its models served at once; 0: an equal part of the daemon's"},
    [TENANT_SALT_FILE] = {"tenant", "salt_file", NULL, TEXT, TENANT(salt_file), "", 0, 0, 0,
     "16 to 64 secret bytes that go into the names of its namespaces on disk and in /proc; nobody "
     "else may have rights to the file"},
};
#undef FIELD
#undef TENANT
#undef STORE_KEY_

#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

/* Those that can change while the daemon runs, and what happens then. The others are in what was made at
 * the start: doors, threads, the sandbox, buffers, segments. */
static const struct live {
	const char *section, *name, *then;
} live_keys[CONFIG_LIVE_KEYS] = {
    {"socket", "admin", "at once; who is none any more loses the sight of others"},
    {"memory", "ram_max",
     "more: at once; a model's arena that is there keeps its size. Less: pages go in the background, "
     "and pinned ones stay until they are let go of; less than what is pinned now is refused"},
    {"memory", "calibration_max", "for the next that comes; those that are there stay"},
    {"memory", "shed", "at once"},
    {"memory", "scrub_rate", "at once"},
    {"limits", "connections_max",
     "for the next that come; more than the descriptors reserved at the start is refused"},
    {"limits", "pins_max", "at once; pins that are there stay"},
    {"limits", "requests_max", "at once; those that are under way stay"},
    {"limits", "staging_max", "for the next that come; within the descriptors reserved at the start"},
    {"limits", "namespaces_max",
     "for the next that come; within the descriptors reserved at the start"},
    {"workers", "queue_max", "at once; what waits stays"},
    {"log", "level", "at once"},
    {"store", "spill_percent", "at once"},
    {"store", "restore_wait_ms", "for the next matches"},
    {"store", "restores_max", "for the next matches"},
    {"store", "shutdown_ms", "at the end"},
    {"store", "scrub_rate", "at once"},
    {"store", "capacity_bytes",
     "less: the oldest segments go in the background. More than at the start is refused"},
    {"store", "write_bytes_per_day", "at once"},
    {"tenant", "uid", "for the next connections; those that are there stay"},
    {"tenant", "gid", "for the next connections; those that are there stay"},
    {"tenant", "ram_min", "at once; pinned pages of others are not taken for it"},
    {"tenant", "ram_max", "as memory.ram_max"},
    {"tenant", "disk_max", "as store.capacity_bytes"},
    {"tenant", "calibration_max", "for the next that comes; those that are there stay"},
    {"tenant", "connections_max", "for the next that come; those that are there stay"},
    {"tenant", "pins_max", "at once; pins that are there stay"},
    {"tenant", "namespaces_max", "for the next that come"},
};

static const char *live(const struct key *key)
{
	for (size_t i = 0; i < sizeof(live_keys) / sizeof(live_keys[0]); i++) {
		if (!strcmp(live_keys[i].section, key->section) &&
		    !strcmp(live_keys[i].name, key->name))
			return live_keys[i].then;
	}
	return NULL;
}

/* base: the struct that the key's table is of. */
static char *text_at(void *base, const struct key *key)
{
	return (char *)base + key->offset;
}

static uint64_t *value_at(void *base, const struct key *key)
{
	return (uint64_t *)(void *)((char *)base + key->offset);
}

#define FLAG_BYTES 40

#define TENANT_PREFIX "tenant " /* of a section's name */

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

static int set_number(void *base, const struct key *key, const char *text, struct why *why)
{
	const char *end = text;
	uint64_t v = 0;
	bool ok = key->kind == BYTES  ? parse_bytes(text, &v)
		  : key->kind == MODE ? parse_number(text, 8, &v, &end) && !*end
				      : parse_number(text, 10, &v, &end) && !*end;

	if (ok && v >= key->min && v <= key->max) {
		*value_at(base, key) = v;
		return 0;
	}
	return why_fail(why, SKVQ_EINVAL,
			key->kind == MODE ? "%s.%s = \"%.40s\": expected %llo to %llo, octal"
					  : "%s.%s = \"%.40s\": expected %llu to %llu%s",
			key->section, key->name, text, (unsigned long long)key->min,
			(unsigned long long)key->max,
			key->kind == BYTES ? " bytes, with K, M, G or T behind if you like" : "");
}

/* "1000, 1001 2000", behind those that are there: a list may go on in another line. */
static int add_ids(struct config_ids *ids, const struct key *key, const char *text,
		   struct why *why)
{
	const char *at = text + strspn(text, ", \t");

	while (*at) {
		uint64_t v;

		if (!parse_number(at, 10, &v, &at) || v > key->max || !strchr(", \t", *at))
			return why_fail(why, SKVQ_EINVAL,
					"%s.%s = \"%.40s\": expected numbers, with commas between "
					"them",
					key->section, key->name, text);
		if (ids->n == CONFIG_IDS_MAX)
			return why_fail(why, SKVQ_EINVAL, "%s.%s has more than %d numbers",
					key->section, key->name, CONFIG_IDS_MAX);
		ids->id[ids->n++] = (uint32_t)v;
		at += strspn(at, ", \t");
	}
	return 0;
}

static int set_value(void *base, const struct key *key, const char *text, struct why *why)
{
	if (key->kind == IDS)
		return add_ids((struct config_ids *)(void *)text_at(base, key), key, text, why);
	if (key->kind == TEXT) {
		if (strlen(text) >= key->size || !*text)
			return why_fail(why, SKVQ_EINVAL, "%s.%s has %zu bytes, expected 1 to %zu",
					key->section, key->name, strlen(text), key->size - 1);
		memcpy(text_at(base, key), text, strlen(text) + 1);
		return 0;
	}
	if (key->kind == LEVEL || key->kind == FORM || key->kind == SANDBOX) {
		int level = key->kind == LEVEL  ? log_level_parse(text)
			    : key->kind == FORM ? log_form_parse(text)
						: sandbox_mode_parse(text);

		if (level < 0)
			return why_fail(why, SKVQ_EINVAL, "%s.%s = \"%.40s\": expected %s",
					key->section, key->name, text, key->reason);
		*value_at(base, key) = (uint64_t)level;
		return 0;
	}
	return set_number(base, key, text, why);
}

static void set_defaults(void *base, const struct key *table, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (table[i].kind == TEXT)
			memcpy(text_at(base, &table[i]), table[i].text, strlen(table[i].text) + 1);
		else if (table[i].kind != IDS)
			*value_at(base, &table[i]) = table[i].value;
	}
}

#define NAME_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

/* The tenant of this name, which is made if it is new. NULL with a sentence. */
static struct config_tenant *get_tenant(struct config *config, const char *name, struct why *why)
{
	struct config_tenant *t = config->tenants;

	if (!*name || strlen(name) > CONFIG_SECTION_MAX || name[strspn(name, NAME_CHARS)]) {
		(void)why_fail(why, SKVQ_EINVAL,
			       "section \"tenant %.40s\": a tenant's name has 1 to %d letters, digits, "
			       "_ and -",
			       name, CONFIG_SECTION_MAX);
		return NULL;
	}
	for (; t < config->tenants + config->n_tenants; t++) {
		if (!strcmp(t->name, name))
			return t;
	}
	if (config->n_tenants == CONFIG_TENANTS_MAX) {
		(void)why_fail(why, SKVQ_EINVAL, "more than %d tenants", CONFIG_TENANTS_MAX);
		return NULL;
	}
	config->n_tenants++;
	*t = (struct config_tenant){.socket_mode = 0};
	memcpy(t->name, name, strlen(name) + 1);
	set_defaults(t, tenant_keys, CONFIG_TENANT_KEYS);
	return t;
}

static int set_tenant(struct config *config, const char *tenant, const char *name,
		      const char *value, uint32_t line, struct why *why)
{
	struct config_tenant *t = get_tenant(config, tenant, why);

	for (size_t i = 0; t && i < CONFIG_TENANT_KEYS; i++) {
		if (!strcmp(tenant_keys[i].name, name)) {
			t->line[i] = line;
			return set_value(t, &tenant_keys[i], value, why);
		}
	}
	if (!t)
		return -SKVQ_EINVAL;
	return why_fail(why, SKVQ_EINVAL, "there is no key \"%.40s\" for a tenant", name);
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
	set_defaults(config, keys, N_KEYS);
}

/* ---- file ---- */

struct file_ctx {
	struct config *config;
	const char *at, *end;
	uint32_t line; /* being read */
	bool inside;   /* the last piece did not end it */
	struct why first; /* of the first line that is wrong, the one ini_parse returns */
};

/* As fgets, counting lines: libinih tells a handler of none. */
static char *read_line(char *buf, int bytes, void *stream)
{
	struct file_ctx *ctx = stream;
	size_t n = (size_t)(ctx->end - ctx->at), room = (size_t)bytes - 1;
	const char *newline;

	if (!n)
		return NULL;
	n = n < room ? n : room;
	newline = memchr(ctx->at, '\n', n);
	if (newline)
		n = (size_t)(newline - ctx->at) + 1;
	memcpy(buf, ctx->at, n);
	buf[n] = '\0';
	ctx->at += n;
	ctx->line += !ctx->inside;
	ctx->inside = !newline;
	return buf;
}

static int on_key(void *user, const char *section, const char *name, const char *value)
{
	struct file_ctx *ctx = user;
	struct why why;
	int err;

	if (!strncmp(section, TENANT_PREFIX, strlen(TENANT_PREFIX)))
		err = set_tenant(ctx->config, section + strlen(TENANT_PREFIX), name, value,
				 ctx->line, &why);
	else
		err = config_set(ctx->config, section, name, value, &why);
	if (err == 0)
		return 1;
	if (!ctx->first.text[0])
		ctx->first = why;
	return 0;
}

static uint32_t line_of(const char *text, const char *at)
{
	uint32_t line = 1;

	while (text < at)
		line += *text++ == '\n';
	return line;
}

int config_text(struct config *config, const char *name, const char *text, size_t bytes,
		struct why *why)
{
	struct file_ctx ctx = {.config = config, .at = text, .end = bytes ? text + bytes : text};
	const char *nul = bytes ? memchr(text, '\0', bytes) : NULL;
	int line;

	if (bytes > CONFIG_TEXT_MAX)
		return why_fail(why, SKVQ_EINVAL, "%.100s has more than %u bytes", name,
				CONFIG_TEXT_MAX);
	if (nul)
		return why_fail(why, SKVQ_EINVAL, "%.100s:%u: a zero byte is not text", name,
				line_of(text, nul));
	line = ini_parse_stream(read_line, &ctx, on_key, &ctx);
	if (line < 0)
		return why_fail(why, SKVQ_ENOMEM, "no memory for config file \"%.100s\"", name);
	if (line > 0)
		return why_fail(why, SKVQ_EINVAL, "%.100s:%d: %s", name, line,
				ctx.first.text[0] ? ctx.first.text : "not a line of an INI file");
	return 0;
}

int config_file(struct config *config, const char *path, struct why *why)
{
	FILE *f = fopen(path, "re");
	char *text;
	size_t n;
	int err = 0;

	if (!f)
		return why_fail_errno(why, SKVQ_EIO, "config file \"%.100s\"", path);
	text = malloc(CONFIG_TEXT_MAX + 1);
	errno = 0;
	n = text ? fread(text, 1, CONFIG_TEXT_MAX + 1, f) : 0;
	if (!text)
		err = why_fail(why, SKVQ_ENOMEM, "no memory for config file \"%.100s\"", path);
	else if (ferror(f)) /* half a file, or a folder */
		err = why_fail_errno(why, SKVQ_EIO, "reading config file \"%.100s\"", path);
	else
		err = config_text(config, path, text, n, why);
	(void)fclose(f);
	free(text);
	return err;
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

/* What the command line says, borrowed from it. */
struct flags {
	const char *file;
	const char *values[N_KEYS];
	enum config_action action;
};

static int read_flags(int argc, char **argv, struct flags *ret, struct why *why)
{
	struct option options[N_FIXED + N_KEYS + 1] = {0};
	char flags[N_KEYS][FLAG_BYTES];
	int opt;

	*ret = (struct flags){.action = CONFIG_RUN};
	memcpy(options, fixed, sizeof(fixed));
	for (size_t i = 0; i < N_KEYS; i++) {
		flag_of(&keys[i], flags[i]);
		options[N_FIXED + i] =
		    (struct option){flags[i], required_argument, NULL, OPT_KEY + (int)i};
	}
	opterr = 0;
	optind = 0; /* GNU: start anew, for this may run more than once */
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return why_fail(why, SKVQ_EINVAL, "\"%.60s\" %s; --help lists the flags",
					argv[optind - 1],
					opt == ':' ? "needs a value" : "is unknown");
		if (opt == OPT_CONFIG)
			ret->file = optarg;
		else if (opt >= OPT_KEY)
			ret->values[opt - OPT_KEY] = optarg;
		else
			ret->action = action_of(opt);
	}
	if (optind < argc)
		return why_fail(why, SKVQ_EINVAL, "\"%.60s\" is not a flag; --help lists them",
				argv[optind]);
	return 0;
}

static int set_flags(struct config *config, const struct flags *flags, struct why *why)
{
	int err = 0;

	for (size_t i = 0; i < N_KEYS && !err; i++) {
		if (flags->values[i])
			err = set_value(config, &keys[i], flags->values[i], why);
	}
	return err;
}

int config_args(struct config *config, int argc, char **argv, enum config_action *ret_action,
		struct why *why)
{
	struct flags flags;
	int err = read_flags(argc, argv, &flags, why);

	if (err < 0)
		return err;
	config_defaults(config);
	err = flags.file ? config_file(config, flags.file, why) : 0;
	if (!err)
		err = set_flags(config, &flags, why);
	if (err < 0)
		return err;
	*ret_action = flags.action;
	return 0;
}

int config_args_text(struct config *config, int argc, char **argv, const char *name,
		     const char *text, size_t bytes, struct why *why)
{
	struct flags flags;
	int err = read_flags(argc, argv, &flags, why);

	if (err < 0)
		return err;
	config_defaults(config);
	err = config_text(config, name, text, bytes, why);
	return err ? err : set_flags(config, &flags, why);
}

/* ---- tenants ---- */

/* A sentence about a key of a tenant's, with the section and, if it was given, its line. */
static int at_key(const struct config_tenant *t, enum config_tenant_key key, struct why *why,
		  const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static int at_key(const struct config_tenant *t, enum config_tenant_key key, struct why *why,
		  const char *fmt, ...)
{
	char text[WHY_BYTES];
	va_list args;

	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (!t->line[key])
		return why_fail(why, SKVQ_EINVAL, "[tenant %s]: %s", t->name, text);
	return why_fail(why, SKVQ_EINVAL, "[tenant %s], line %u, %s: %s", t->name, t->line[key],
			tenant_keys[key].name, text);
}

static uint64_t share(uint64_t given, uint64_t all, uint32_t n)
{
	return given ? given : all / n;
}

struct config_tenant config_tenant(const struct config *config, uint32_t i)
{
	struct config_tenant t = {.pins_max = 0};
	uint32_t n = config->n_tenants;

	if (!n) {
		memcpy(t.name, config->tenant, sizeof(t.name));
		n = 1;
	} else {
		t = config->tenants[i];
	}
	t.disk_max = share(t.disk_max, config->store.capacity_bytes, n);
	t.calibration_max = share(t.calibration_max, config->calibration_max, n);
	t.connections_max = share(t.connections_max, config->connections_max, n);
	t.namespaces_max = share(t.namespaces_max, config->namespaces_max, n);
	return t;
}

/* What a store needs at the least: 3 transfers, and one for reading. */
#define BUFFERS_MIN 4

struct store_options config_store(const struct config *config, uint32_t i)
{
	struct store_options options = config->store;
	uint32_t n = config->n_tenants ? config->n_tenants : 1;

	options.capacity_bytes = config_tenant(config, i).disk_max;
	options.write_bytes_per_day /= n;
	if (config->store.write_bytes_per_day && !options.write_bytes_per_day)
		options.write_bytes_per_day = 1;
	options.touch_entries = (options.touch_entries + n - 1) / n;
	options.buffers = (options.buffers + n - 1) / n;
	if (options.buffers < BUFFERS_MIN)
		options.buffers = BUFFERS_MIN;
	return options;
}

uint32_t config_store_threads(const struct config *config)
{
	uint32_t n = config->n_tenants ? config->n_tenants : 1;

	return (uint32_t)((config->threads + n - 1) / n);
}

uint32_t config_store_io_threads(const struct config *config)
{
	return config->n_tenants > 1 ? 2 : 4;
}

uint64_t config_store_memory(const struct config *config)
{
	uint64_t n = config->n_tenants ? config->n_tenants : 1;

	if (!config->store_folder[0])
		return 0;
	return n * config_store(config, 0).buffers * config->store.record_bytes;
}

uint64_t config_tasks(const struct config *config)
{
	uint64_t stores = !config->store_folder[0] ? 0 : config->n_tenants ? config->n_tenants : 1;
	uint64_t ring = 1 + config_store_threads(config), plain = config_store_io_threads(config);

	/* The loop, the closer, the workers; a store without a ring may have more than one with it. */
	return 2 + config->threads + stores * (ring > plain ? ring : plain);
}

static bool has_id(const struct config_ids *ids, uint32_t id)
{
	for (uint32_t i = 0; i < ids->n; i++) {
		if (ids->id[i] == id)
			return true;
	}
	return false;
}

static int check_ids(const struct config_tenant *t, const struct config_ids *mine,
		     const struct config_tenant *other, const struct config_ids *theirs,
		     enum config_tenant_key key, struct why *why)
{
	for (uint32_t i = 0; i < mine->n; i++) {
		if (has_id(theirs, mine->id[i]))
			return at_key(t, key, why, "%u is of [tenant %s] already", mine->id[i],
				      other->name);
	}
	return 0;
}

static int check_apart(const struct config_tenant *t, const struct config_tenant *other,
		       struct why *why)
{
	int err;

	if (t->socket_path[0] && !strcmp(t->socket_path, other->socket_path))
		return at_key(t, TENANT_SOCKET, why, "it is that of [tenant %s]", other->name);
	err = check_ids(t, &t->uids, other, &other->uids, TENANT_UID, why);
	return err ? err : check_ids(t, &t->gids, other, &other->gids, TENANT_GID, why);
}

static int check_bounds(const struct config *config, const struct config_tenant *t,
			struct why *why)
{
	if (!t->socket_path[0] && !t->uids.n && !t->gids.n)
		return at_key(t, TENANT_SOCKET, why, "nobody can be of it: give socket, uid or gid");
	if (!strcmp(t->socket_path, config->socket_path))
		return at_key(t, TENANT_SOCKET, why, "it is that of [socket]");
	if (t->ram_max > config->ram_max)
		return at_key(t, TENANT_RAM_MAX, why, "more than memory.ram_max");
	if (t->ram_min > (t->ram_max ? t->ram_max : config->ram_max))
		return at_key(t, TENANT_RAM_MIN, why, "more than ram_max");
	if (t->disk_max > config->store.capacity_bytes)
		return at_key(t, TENANT_DISK_MAX, why, "more than store.capacity_bytes");
	if (t->connections_max > config->connections_max)
		return at_key(t, TENANT_CONNECTIONS_MAX, why, "more than limits.connections_max");
	if (t->namespaces_max > config->namespaces_max)
		return at_key(t, TENANT_NAMESPACES_MAX, why, "more than limits.namespaces_max");
	return 0;
}

static int check_tenants(const struct config *config, struct why *why)
{
	uint64_t ram = 0, disk = 0, namespaces = 0, connections = 0;
	int err = 0;

	if (config->n_tenants && strcmp(config->tenant, "default"))
		return why_fail(why, SKVQ_EINVAL,
				"socket.tenant = \"%.40s\" is for a daemon without sections [tenant "
				"NAME]",
				config->tenant);
	if (config->n_tenants > config->connections_max ||
	    config->n_tenants > config->namespaces_max || config->n_tenants > config->queue_max)
		return why_fail(why, SKVQ_EINVAL,
				"%u tenants are more than connections_max, namespaces_max or "
				"queue_max",
				config->n_tenants);
	for (uint32_t i = 0; !err && i < config->n_tenants; i++) {
		const struct config_tenant *t = &config->tenants[i];

		err = check_bounds(config, t, why);
		for (uint32_t k = 0; !err && k < i; k++)
			err = check_apart(t, &config->tenants[k], why);
		ram += t->ram_min; /* each at most 2^46, as ram_max */
		disk += config_tenant(config, i).disk_max;
		namespaces += config_tenant(config, i).namespaces_max;
		connections += config_tenant(config, i).connections_max;
		if (!err && ram > config->ram_max)
			err = at_key(t, TENANT_RAM_MIN, why,
				     "with those before it %llu bytes are guaranteed, memory.ram_max "
				     "is %llu",
				     (unsigned long long)ram, (unsigned long long)config->ram_max);
		if (!err && namespaces > config->namespaces_max)
			err = at_key(t, TENANT_NAMESPACES_MAX, why,
				     "with those before it %llu, limits.namespaces_max is %llu",
				     (unsigned long long)namespaces,
				     (unsigned long long)config->namespaces_max);
		if (!err && connections > config->connections_max)
			err = at_key(t, TENANT_CONNECTIONS_MAX, why,
				     "with those before it %llu, limits.connections_max is %llu",
				     (unsigned long long)connections,
				     (unsigned long long)config->connections_max);
		if (!err && config->store_folder[0] && disk > config->store.capacity_bytes)
			err = at_key(t, TENANT_DISK_MAX, why,
				     "with those before it %llu bytes, store.capacity_bytes is %llu",
				     (unsigned long long)disk,
				     (unsigned long long)config->store.capacity_bytes);
	}
	return err;
}

int config_check(const struct config *config, struct why *why)
{
	struct why inner;
	int err;

	if (!config->socket_path[0])
		return why_fail(why, SKVQ_EINVAL,
				"no socket: give --socket PATH, or path in section [socket]");
	if (config->log_form == LOG_FORM_JOURNAL && !journal_is_built())
		return why_fail(why, SKVQ_EINVAL,
				"log.format = journal: this skvqd was built without libsystemd; "
				"logfmt and json go to stderr");
	err = check_tenants(config, why);
	if (err < 0 || !config->store_folder[0])
		return err;
	if (store_options_check(&config->store, &inner) < 0)
		return why_fail(why, SKVQ_EINVAL, "[store]: %s", inner.text);
	for (uint32_t i = 0; i < config->n_tenants; i++) {
		struct store_options options = config_store(config, i);

		if (store_options_check(&options, &inner) < 0)
			return at_key(&config->tenants[i], TENANT_DISK_MAX, why,
				      "its part of the disk: %s", inner.text);
	}
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

static void print_ids(const struct config_ids *ids, FILE *to)
{
	for (uint32_t i = 0; i < ids->n; i++)
		(void)fprintf(to, "%s%u", i ? ", " : "", ids->id[i]);
}

static void print_value(const void *base, const struct key *key, FILE *to)
{
	const char *at = (const char *)base + key->offset;
	uint64_t v = 0;

	if (key->kind != TEXT && key->kind != IDS)
		memcpy(&v, at, sizeof(v));
	switch (key->kind) {
	case TEXT:
		(void)fputs(at, to);
		break;
	case IDS:
		print_ids((const struct config_ids *)(const void *)at, to);
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
	case FORM:
		(void)fputs(log_form_name((enum log_form)v), to);
		break;
	case SANDBOX:
		(void)fputs(sandbox_mode_name((enum sandbox_mode)v), to);
		break;
	case COUNT:
		(void)fprintf(to, "%llu", (unsigned long long)v);
		break;
	}
}

/* Not given: a text or list with nothing in it. */
static bool is_empty(const void *base, const struct key *key)
{
	const char *at = (const char *)base + key->offset;

	return key->kind == TEXT  ? !*at
	       : key->kind == IDS ? !((const struct config_ids *)(const void *)at)->n
				  : false;
}

static void print_key(const void *base, const struct key *key, bool off, FILE *to)
{
	(void)fprintf(to, "; %s\n%s%s = ", key->reason, off || is_empty(base, key) ? "; " : "",
		      key->name);
	print_value(base, key, to);
	(void)fputc('\n', to);
}

static void print_tenants(const struct config *config, FILE *to)
{
	struct config_tenant none = {.socket_mode = 0};

	for (uint32_t i = 0; i < config->n_tenants; i++) {
		(void)fprintf(to, "\n[" TENANT_PREFIX "%s]\n", config->tenants[i].name);
		for (size_t k = 0; k < CONFIG_TENANT_KEYS; k++)
			print_key(&config->tenants[i], &tenant_keys[k], false, to);
	}
	if (config->n_tenants)
		return;
	set_defaults(&none, tenant_keys, CONFIG_TENANT_KEYS);
	(void)fputs("\n; One such section for each tenant, if they are to share the daemon and no "
		    "pages.\n; [" TENANT_PREFIX "NAME]\n",
		    to);
	for (size_t k = 0; k < CONFIG_TENANT_KEYS; k++)
		print_key(&none, &tenant_keys[k], true, to);
}

void config_print(const struct config *config, FILE *to)
{
	const char *section = "";

	for (size_t i = 0; i < N_KEYS; i++) {
		if (strcmp(section, keys[i].section)) {
			section = keys[i].section;
			(void)fprintf(to, "%s[%s]\n", i ? "\n" : "", section);
		}
		print_key(config, &keys[i], false, to);
	}
	print_tenants(config, to);
}

/* ---- changes ---- */

static struct config_tenant *find_tenant(const struct config *config, const char *name)
{
	for (uint32_t i = 0; i < config->n_tenants; i++) {
		if (!strcmp(config->tenants[i].name, name))
			return (struct config_tenant *)(uintptr_t)&config->tenants[i];
	}
	return NULL;
}

static const struct key *find_key(const struct key *table, size_t n, const char *section,
				  const char *name)
{
	for (size_t i = 0; i < n; i++) {
		if (!strcmp(table[i].section, section) && !strcmp(table[i].name, name))
			return &table[i];
	}
	return NULL;
}

int config_change(struct config *config, const char *section, const char *name, const char *value,
		  struct why *why)
{
	bool tenant = !strncmp(section, TENANT_PREFIX, strlen(TENANT_PREFIX));
	const struct key *key = tenant ? find_key(tenant_keys, CONFIG_TENANT_KEYS, "tenant", name)
				       : find_key(keys, N_KEYS, section, name);
	void *base = config;

	if (tenant) {
		base = find_tenant(config, section + strlen(TENANT_PREFIX));
		if (!config->n_tenants)
			return why_fail(why, SKVQ_EINVAL,
					"this daemon has no sections [tenant NAME]: the limits of its only "
					"tenant are its own, in [memory] and [limits]");
		if (!base)
			return why_fail(why, SKVQ_EINVAL, "there is no tenant \"%.40s\"",
					section + strlen(TENANT_PREFIX));
	}
	if (!key)
		return why_fail(why, SKVQ_EINVAL, "there is no key \"%.40s\" in section \"%.40s\"",
				name, section);
	if (!live(key))
		return why_fail(why, SKVQ_EINVAL, "%s.%s cannot change while the daemon runs",
				key->section, key->name);
	if (key->kind == IDS)
		((struct config_ids *)(void *)text_at(base, key))->n = 0;
	return set_value(base, key, value, why);
}

static void merge_keys(void *to, const void *wanted, const struct key *table, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (live(&table[i]))
			memcpy((char *)to + table[i].offset,
			       (const char *)wanted + table[i].offset, table[i].size);
	}
}

void config_merge(const struct config *running, const struct config *wanted, struct config *ret)
{
	*ret = *running;
	merge_keys(ret, wanted, keys, N_KEYS);
	for (uint32_t i = 0; i < ret->n_tenants; i++) {
		struct config_tenant *t = &ret->tenants[i];
		const struct config_tenant *w = find_tenant(wanted, t->name);

		memset(t->line, 0, sizeof(t->line));
		if (!w)
			continue;
		memcpy(t->line, w->line, sizeof(t->line));
		merge_keys(t, w, tenant_keys, CONFIG_TENANT_KEYS);
	}
}

/* Malloc'ed; NULL: no memory. */
static char *value_text(const void *base, const struct key *key)
{
	char *text = NULL;
	size_t bytes;
	FILE *f = open_memstream(&text, &bytes);
	bool ok;

	if (!f)
		return NULL;
	print_value(base, key, f);
	ok = !ferror(f);
	if (fclose(f) == 0 && ok)
		return text;
	free(text);
	return NULL;
}

static int diff_key(const void *a, const void *b, const struct key *key, const char *name,
		    config_diff_fn fn, void *ctx)
{
	char *from = value_text(a, key), *to = value_text(b, key);
	int err = -SKVQ_ENOMEM;

	if (from && to)
		err = strcmp(from, to) ? fn(ctx, name, from, to) : 0;
	free(from);
	free(to);
	return err;
}

static int diff_tenant(const struct config_tenant *a, const struct config_tenant *b,
		       config_diff_fn fn, void *ctx)
{
	char name[sizeof(TENANT_PREFIX) + CONFIG_TENANT_MAX + CONFIG_KEY_MAX];
	int err = 0;

	for (size_t i = 0; i < CONFIG_TENANT_KEYS && !err; i++) {
		(void)snprintf(name, sizeof(name), TENANT_PREFIX "%s.%s", a->name,
			       tenant_keys[i].name);
		err = diff_key(a, b, &tenant_keys[i], name, fn, ctx);
	}
	return err;
}

int config_diff(const struct config *from, const struct config *to, config_diff_fn fn, void *ctx)
{
	char name[sizeof(TENANT_PREFIX) + CONFIG_TENANT_MAX + CONFIG_KEY_MAX];
	int err = 0;

	for (size_t i = 0; i < N_KEYS && !err; i++) {
		(void)snprintf(name, sizeof(name), "%s.%s", keys[i].section, keys[i].name);
		err = diff_key(from, to, &keys[i], name, fn, ctx);
	}
	for (uint32_t i = 0; i < from->n_tenants && !err; i++) {
		const struct config_tenant *t = &from->tenants[i], *other = find_tenant(to, t->name);

		(void)snprintf(name, sizeof(name), TENANT_PREFIX "%s", t->name);
		err = other ? diff_tenant(t, other, fn, ctx) : fn(ctx, name, "there", NULL);
	}
	for (uint32_t i = 0; i < to->n_tenants && !err; i++) {
		(void)snprintf(name, sizeof(name), TENANT_PREFIX "%s", to->tenants[i].name);
		if (!find_tenant(from, to->tenants[i].name))
			err = fn(ctx, name, NULL, "there");
	}
	return err;
}

const char *config_key_at(uint32_t i, char ret[CONFIG_KEY_MAX], const char **ret_live)
{
	const struct key *key = i < N_KEYS			  ? &keys[i]
				: i < N_KEYS + CONFIG_TENANT_KEYS ? &tenant_keys[i - N_KEYS]
								  : NULL;

	if (!key)
		return NULL;
	(void)snprintf(ret, CONFIG_KEY_MAX, "%s.%s", key->section, key->name);
	*ret_live = live(key);
	return ret;
}

void config_help(FILE *to)
{
	static struct config config;

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
		if (!is_empty(&config, &keys[i])) {
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
	uint64_t tenants = config->n_tenants ? config->n_tenants : 1;
	uint64_t n = (config->connections_max + ADMIN_CONNECTIONS_MAX) * (1 + config->staging_max + 8) +
		     config->namespaces_max * 2 + tenants * CALIBRATIONS_MAX * 2 + 2 * 253 + 64 +
		     config->n_tenants;

	for (uint32_t i = 0; i < tenants && config->store_folder[0]; i++) {
		struct store_options options = config_store(config, i);

		n += store_files_max(&options) + 8;
	}
	return n;
}
