/* SPDX-License-Identifier: Apache-2.0 */
#include "tenants.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"

/* The file's bytes without a newline at its end. A secret that others can read is none. */
static int read_salt(const char *path, uint8_t ret[TENANT_SALT_MAX], uint32_t *ret_bytes,
		     struct why *why)
{
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	uint8_t bytes[TENANT_SALT_MAX + 2];
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return why_fail_errno(why, SKVQ_EIO, "salt_file \"%.100s\"", path);
	if (!S_ISREG(st.st_mode) || (st.st_mode & 077) ||
	    (st.st_uid != geteuid() && st.st_uid != 0))
		return why_fail(why, SKVQ_EPERM,
				"salt_file \"%.100s\" must be a file of this user or root, with no "
				"rights for others (chmod 0400)",
				path);
	do
		n = read(fd, bytes, sizeof(bytes));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return why_fail_errno(why, SKVQ_EIO, "reading salt_file \"%.100s\"", path);
	if (n > 0 && bytes[n - 1] == '\n')
		n--;
	if (n < (ssize_t)TENANT_SALT_MIN || n > (ssize_t)TENANT_SALT_MAX)
		return why_fail(why, SKVQ_EINVAL, "salt_file \"%.100s\" has not %u to %u bytes",
				path, TENANT_SALT_MIN, TENANT_SALT_MAX);
	memcpy(ret, bytes, (size_t)n);
	*ret_bytes = (uint32_t)n;
	return 0;
}

int tenants_read_salts(const struct config *config, struct tenant_salts *ret, struct why *why)
{
	int err = 0;

	for (uint32_t i = 0; !err && i < config->n_tenants; i++) {
		const char *path = config->tenants[i].salt_file;

		ret->of[i].bytes = 0;
		if (path[0])
			err = read_salt(path, ret->of[i].data, &ret->of[i].bytes, why);
	}
	return err;
}

/* Of the config's i-th, without name and salt. */
static struct tenant_params limits_of(const struct config *config, uint32_t i)
{
	struct config_tenant t = config_tenant(config, i);
	uint32_t n = config->n_tenants;
	struct tenant_params params = {.ram_min = t.ram_min,
				       .ram_max = t.ram_max,
				       .pins_max = t.pins_max,
				       .namespaces_max = (uint32_t)t.namespaces_max};

	if (n > 1) {
		params.fills_max = (uint32_t)(config->queue_max / n);
		params.restores_max = (uint32_t)((config->restores_max + n - 1) / n);
	}
	return params;
}

static int add(struct cache *cache, const struct config *config, const struct tenant_salts *salts,
	       uint32_t i, struct why *why)
{
	uint32_t n = config->n_tenants;
	struct tenant_params params = limits_of(config, i);

	params.name = n ? config->tenants[i].name : config->tenant;
	params.salt = salts->of[i].data;
	params.salt_bytes = n ? salts->of[i].bytes : 0;
	return cache_add_tenant(cache, &params)
		   ? 0
		   : why_fail(why, SKVQ_ENOMEM, "no memory for a tenant");
}

void tenants_limit(struct cache *cache, const struct config *config)
{
	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		struct tenant_params params = limits_of(config, i);

		cache_limit_tenant(cache, cache->tenants[i], &params);
	}
}

int tenants_add(struct cache *cache, const struct config *config, const struct tenant_salts *salts,
		struct why *why)
{
	uint32_t n = config->n_tenants ? config->n_tenants : 1;
	int err = 0;

	for (uint32_t i = 0; !err && i < n; i++)
		err = add(cache, config, salts, i, why);
	return err;
}

void tenants_describe(const struct config *config, struct control_config *control)
{
	uint32_t n = config->n_tenants ? config->n_tenants : 1;

	control->sections = config->n_tenants > 0;
	control->admins = config->admins.id;
	control->n_admins = config->admins.n;
	for (uint32_t i = 0; i < n; i++) {
		const struct config_tenant *given = &config->tenants[i];
		struct config_tenant t = config_tenant(config, i);

		control->tenants[i] = (struct control_tenant_config){
		    .uids = given->uids.id,
		    .gids = given->gids.id,
		    .n_uids = given->uids.n,
		    .n_gids = given->gids.n,
		    .connections_max = (uint32_t)t.connections_max,
		    .calibration_max = t.calibration_max,
		    .disk_max = t.disk_max,
		    .socket = given->socket_path[0] ? given->socket_path : config->socket_path};
	}
}
