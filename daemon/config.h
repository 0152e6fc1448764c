/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.h - everything an operator may set, and every bound the daemon keeps, in one table.
 *
 * A value comes from its default, then the config file (INI, parsed by libinih), then the command
 * line, whatever their order there. config.c's table holds key, flag, default, range and reason;
 * --print-config writes it back as a file that can be used as it is.
 */
#ifndef SKVQD_CONFIG_H
#define SKVQD_CONFIG_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/why.h"
#include "spill/store.h"

#define CONFIG_PATH_MAX   4095
#define CONFIG_TENANT_MAX 63
#define CONFIG_SECTION_MAX 40 /* of a tenant's name in a section: libinih cuts longer ones */
#define CONFIG_TENANTS_MAX 64
/* TasksMax of skvqd.service. */
#define CONFIG_TASKS_MAX 256u
#define CONFIG_IDS_MAX     32
#define CONFIG_KEY_MAX     48 /* section.key */
#define CONFIG_LIVE_KEYS   28 /* that can change while the daemon runs */
#define CONFIG_TEXT_MAX    (1u << 20) /* bytes of a file */

/* Users or groups. */
struct config_ids {
	uint32_t n;
	uint32_t id[CONFIG_IDS_MAX];
};

enum config_tenant_key { TENANT_SOCKET, TENANT_MODE, TENANT_UID, TENANT_GID, TENANT_RAM_MIN,
			 TENANT_RAM_MAX, TENANT_DISK_MAX, TENANT_CALIBRATION_MAX,
			 TENANT_CONNECTIONS_MAX, TENANT_PINS_MAX, TENANT_NAMESPACES_MAX,
			 TENANT_SALT_FILE, CONFIG_TENANT_KEYS };

/* A section [tenant NAME]. A bound of 0: see its reason in config.c. */
struct config_tenant {
	char name[CONFIG_TENANT_MAX + 1];
	char socket_path[CONFIG_PATH_MAX + 1]; /* empty: the shared one */
	char salt_file[CONFIG_PATH_MAX + 1];   /* empty: no salt */
	uint64_t socket_mode;
	struct config_ids uids, gids;
	uint64_t ram_min, ram_max, disk_max, calibration_max; /* bytes */
	uint64_t connections_max, pins_max, namespaces_max;
	uint32_t line[CONFIG_TENANT_KEYS]; /* of the file; 0: not given */
};

struct config {
	char socket_path[CONFIG_PATH_MAX + 1]; /* too long for a socket is told by the listener */
	char tenant[CONFIG_TENANT_MAX + 1]; /* without sections for tenants */
	uint64_t socket_mode;
	struct config_ids admins;
	uint64_t ram_max;         /* bytes */
	uint64_t calibration_max; /* bytes */
	uint64_t shed;            /* 0, 1 */
	uint64_t scrub;           /* bytes a second */
	uint64_t connections_max;
	uint64_t pins_max;
	uint64_t requests_max;
	uint64_t staging_max;
	uint64_t namespaces_max;
	uint64_t frame_max;   /* bytes */
	uint64_t backlog_max; /* bytes */
	uint64_t threads;
	uint64_t queue_max;
	uint64_t log_level; /* enum log_level */
	uint64_t log_form;  /* enum log_form */
	uint64_t sandbox;   /* enum sandbox_mode */
	char store_folder[CONFIG_PATH_MAX + 1]; /* empty: memory only */
	uint64_t spill_percent;
	uint64_t restore_wait_ms;
	uint64_t restores_max;
	uint64_t shutdown_ms;
	uint64_t store_scrub; /* bytes a second */
	uint64_t io_uring; /* 0, 1 */
	uint64_t direct;   /* 0, 1 */
	struct store_options store;
	uint32_t n_tenants; /* 0: one, of the name above */
	struct config_tenant tenants[CONFIG_TENANTS_MAX];
};

/* What the command line asks for. */
enum config_action {
	CONFIG_RUN,
	CONFIG_CHECK,
	CONFIG_PRINT,
	CONFIG_CAPABILITIES,
	CONFIG_HELP,
	CONFIG_VERSION,
};

void config_defaults(struct config *config);
/* 0, or -SKVQ_EINVAL with "file:line: ..." in why, -SKVQ_EIO if it cannot be read. */
int config_file(struct config *config, const char *path, struct why *why);
/* The same of the bytes of a file (0: text may be NULL); name stands for it in sentences. -SKVQ_EINVAL, -SKVQ_ENOMEM. */
int config_text(struct config *config, const char *name, const char *text, size_t bytes,
		struct why *why);
/* One "section.key" to a value in text. -SKVQ_EINVAL naming what would be allowed. */
int config_set(struct config *config, const char *section, const char *key, const char *value,
	       struct why *why);
/* Defaults, file, flags. -SKVQ_EINVAL, -SKVQ_EIO. */
int config_args(struct config *config, int argc, char **argv, enum config_action *ret_action,
		struct why *why);
/* As config_args, with a file's bytes in place of the file that the flags name. */
int config_args_text(struct config *config, int argc, char **argv, const char *name,
		     const char *text, size_t bytes, struct why *why);
/* What only the whole can tell. -SKVQ_EINVAL. */
int config_check(const struct config *config, struct why *why);

/* ---- a daemon that runs ---- */

/* One key of a tenant that is there, whatever it was before; section "tenant NAME" or as config_set's.
 * -SKVQ_EINVAL, for a key that takes a start as well. */
int config_change(struct config *config, const char *section, const char *key, const char *value,
		  struct why *why);
/* What runs when a daemon that runs one is given another: the values of keys that can change while it
 * runs, and the running ones of all others. Tenants are those that run, in their order. */
void config_merge(const struct config *running, const struct config *wanted, struct config *ret);
/* Calls fn for each key that differs, and (from or to NULL) for each tenant that one of them lacks.
 * Strings last as long as the call. -SKVQ_ENOMEM. */
typedef int (*config_diff_fn)(void *ctx, const char *name, const char *from, const char *to);
int config_diff(const struct config *from, const struct config *to, config_diff_fn fn, void *ctx);
/* The i-th key: "memory.ram_max", of a tenant "tenant.ram_max". *ret_live: what happens when it changes
 * while the daemon runs; NULL: that takes a start. NULL behind the last. */
const char *config_key_at(uint32_t i, char ret[CONFIG_KEY_MAX], const char **ret_live);

void config_print(const struct config *config, FILE *to);
void config_help(FILE *to);

/* The i-th tenant, or the only one, with every bound that is a part of the daemon's filled in. */
struct config_tenant config_tenant(const struct config *config, uint32_t i);
/* Of its store. */
struct store_options config_store(const struct config *config, uint32_t i);

/* Threads that a store compresses with; one more is beside its ring. */
uint32_t config_store_threads(const struct config *config);
/* Threads of a store where there is no ring. */
uint32_t config_store_io_threads(const struct config *config);
/* Bytes of all stores' transfer buffers. */
uint64_t config_store_memory(const struct config *config);
/* Threads the daemon may come to have under this config, at most CONFIG_TASKS_MAX. */
uint64_t config_tasks(const struct config *config);
/* Descriptors the daemon may come to hold under this config. */
uint64_t config_fds(const struct config *config);

#endif /* SKVQD_CONFIG_H */
