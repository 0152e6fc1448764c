/* SPDX-License-Identifier: Apache-2.0 */
#include "steer.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "base/log.h"
#include "tenants.h"

struct plan {
	struct control_plan base;
	uint32_t cap;
	bool restart; /* of the keys that are being listed */
	struct config *merged;
};

/* ---- looking ---- */

static int show(void *ctx, char **ret_text, size_t *ret_bytes, struct why *why)
{
	struct steer *steer = ctx;
	FILE *f;
	bool ok;

	*ret_text = NULL;
	f = open_memstream(ret_text, ret_bytes);
	ok = f != NULL;
	if (f) {
		config_print(steer->config, f);
		ok = !ferror(f);
		ok = fclose(f) == 0 && ok;
	}
	if (ok)
		return 0;
	free(*ret_text);
	return why_fail(why, SKVQ_ENOMEM, "no memory for the configuration's text");
}

static const char *key_at(void *ctx, uint32_t i, const char **ret_live)
{
	struct steer *steer = ctx;

	return config_key_at(i, steer->key, ret_live);
}

/* ---- a plan ---- */

static void forget(void *ctx, struct control_plan *base)
{
	struct plan *plan = (struct plan *)base;

	(void)ctx;
	for (uint32_t i = 0; i < base->n; i++) {
		free(base->changes[i].name);
		free(base->changes[i].from);
		free(base->changes[i].to);
	}
	free(base->changes);
	free(plan->merged);
	free(plan);
}

static int add_change(void *ctx, const char *name, const char *from, const char *to)
{
	struct plan *plan = ctx;
	struct control_plan *base = &plan->base;
	struct control_change *c;

	if (base->n == plan->cap) {
		uint32_t cap = plan->cap ? 2 * plan->cap : 16;
		struct control_change *more = realloc(base->changes, cap * sizeof(*more));

		if (!more)
			return -SKVQ_ENOMEM;
		base->changes = more;
		plan->cap = cap;
	}
	c = &base->changes[base->n++];
	*c = (struct control_change){.name = strdup(name),
				     .from = strdup(from ? from : ""),
				     .to = strdup(to ? to : ""),
				     .restart = plan->restart};
	return c->name && c->from && c->to ? 0 : -SKVQ_ENOMEM;
}

/* Pinned pages stay: what they take cannot be had back. */
static int check_held(const struct cache *cache, const struct config *merged, struct why *why)
{
	uint64_t held = 0;

	for (uint32_t i = 0; i < cache->n_tenants; i++) {
		const struct tenant *t = cache->tenants[i];
		uint64_t max = config_tenant(merged, i).ram_max;

		held += t->held;
		if (max && t->held > max)
			return why_fail(why, SKVQ_EBUSY,
					"[tenant %s]: ram_max = %llu is less than %llu bytes that its "
					"engines have pinned",
					t->name, (unsigned long long)max,
					(unsigned long long)t->held);
	}
	if (held > merged->ram_max)
		return why_fail(why, SKVQ_EBUSY,
				"memory.ram_max = %llu is less than %llu bytes that engines have pinned",
				(unsigned long long)merged->ram_max, (unsigned long long)held);
	return 0;
}

static int check_stores(const struct steer *steer, const struct config *merged, struct why *why)
{
	int err = 0;

	for (uint32_t i = 0; !err && i < steer->control->cache->n_tenants; i++) {
		const struct control_tenant *t = &steer->control->tenants[i];
		struct why inner;

		if (t->store &&
		    store_limit_check(t->store, config_store(merged, i).capacity_bytes, &inner) < 0)
			err = why_fail(why, SKVQ_EINVAL, "the disk of tenant %.40s: %s",
				       t->tenant->name, inner.text);
	}
	return err;
}

/* Whether what was made at the start has room for it. */
static int check_room(const struct steer *steer, const struct config *merged, struct why *why)
{
	uint64_t fds = config_fds(merged);
	int err;

	if (fds > steer->fds_max && fds > config_fds(steer->config))
		return why_fail(why, SKVQ_EINVAL,
				"it may need %llu descriptors, and %llu were reserved at the start: "
				"connections_max, staging_max and namespaces_max can grow that far",
				(unsigned long long)fds, (unsigned long long)steer->fds_max);
	err = check_held(steer->control->cache, merged, why);
	return err ? err : check_stores(steer, merged, why);
}

/* A file's sentence tells of the file; this one of what would run. */
static int check_merged(const struct config *wanted, const struct config *merged, struct why *why)
{
	struct why inner;

	if (config_check(wanted, why) < 0)
		return -SKVQ_EINVAL;
	if (config_check(merged, &inner) < 0)
		return why_fail(why, SKVQ_EINVAL,
				"what can change now does not go with what needs a start: %s",
				inner.text);
	return 0;
}

static int want_settings(const struct steer *steer, const struct control_setting *settings,
			 size_t n, struct config *wanted, struct why *why)
{
	int err = 0;

	*wanted = *steer->config;
	for (size_t i = 0; i < n && !err; i++)
		err = config_change(wanted, settings[i].section, settings[i].key,
				    settings[i].value, why);
	return err;
}

static int fill_plan(const struct steer *steer, struct plan *plan, const struct config *wanted,
		     struct why *why)
{
	int err = check_merged(wanted, plan->merged, why);

	if (!err)
		err = check_room(steer, plan->merged, why);
	if (err < 0)
		return err;
	err = config_diff(steer->config, plan->merged, add_change, plan);
	plan->restart = true;
	if (!err)
		err = config_diff(plan->merged, wanted, add_change, plan);
	return err ? why_fail(why, SKVQ_ENOMEM, "no memory for the list of changes") : 0;
}

static int make_plan(void *ctx, const char *name, const void *text, size_t bytes,
		     const struct control_setting *settings, size_t n_settings,
		     struct control_plan **ret, struct why *why)
{
	struct steer *steer = ctx;
	struct plan *plan = calloc(1, sizeof(*plan));
	struct config *wanted = malloc(sizeof(*wanted));
	int err;

	if (plan)
		plan->merged = malloc(sizeof(*plan->merged));
	if (!plan || !plan->merged || !wanted) {
		err = why_fail(why, SKVQ_ENOMEM, "no memory for another configuration");
		goto out;
	}
	if (n_settings)
		err = want_settings(steer, settings, n_settings, wanted, why);
	else
		err = config_args_text(wanted, steer->argc, steer->argv, name, text, bytes, why);
	if (err < 0)
		goto out;
	config_merge(steer->config, wanted, plan->merged);
	err = fill_plan(steer, plan, wanted, why);
out:
	free(wanted);
	if (err < 0) {
		if (plan)
			forget(steer, &plan->base);
		return err;
	}
	*ret = &plan->base;
	return 0;
}

/* ---- doing it ---- */

static void apply_cache(const struct steer *steer)
{
	const struct config *config = steer->config;
	struct cache *cache = steer->control->cache;
	const struct cache_limits limits = {.ram_max = config->ram_max,
					    .namespaces_max = (uint32_t)config->namespaces_max,
					    .spill_percent = (uint32_t)config->spill_percent,
					    .restores_max = (uint32_t)config->restores_max,
					    .fills_max = (uint32_t)config->queue_max,
					    .no_shed = !config->shed};

	cache_limit(cache, &limits);
	tenants_limit(cache, config);
	if (steer->worker)
		lane_limit(steer->worker, NULL, (uint32_t)config->queue_max);
}

static void apply_stores(const struct steer *steer)
{
	for (uint32_t i = 0; i < steer->control->cache->n_tenants; i++) {
		struct store *store = steer->control->tenants[i].store;
		struct store_options options = config_store(steer->config, i);
		struct why why;

		/* The plan has asked whether it can be. */
		if (store && store_limit(store, options.capacity_bytes,
					 options.write_bytes_per_day, &why) < 0)
			log_event(LOG_WARNING, "store_not_changed", LOG_STR("detail", why.text));
	}
}

static void apply_control(const struct steer *steer)
{
	const struct config *config = steer->config;
	struct control_config *cc = &steer->control->config;

	cc->connections_max = (uint32_t)config->connections_max;
	cc->pins_max = (uint32_t)config->pins_max;
	cc->requests_max = (uint32_t)config->requests_max;
	cc->staging_max = (uint32_t)config->staging_max;
	cc->restore_wait_ms = (uint32_t)config->restore_wait_ms;
	tenants_describe(config, cc);
	control_limits_changed(steer->control);
}

static void apply(void *ctx, struct control_plan *base)
{
	struct steer *steer = ctx;
	const struct plan *plan = (const struct plan *)base;

	*steer->config = *plan->merged;
	log_set_level((enum log_level)steer->config->log_level);
	apply_cache(steer);
	apply_stores(steer);
	apply_control(steer);
	if (steer->shutdown_ms)
		*steer->shutdown_ms = steer->config->shutdown_ms;
}

void steer_init(struct steer *steer, struct config *config, int argc, char **argv,
		uint64_t fds_max)
{
	*steer = (struct steer){.config = config,
				.argc = argc,
				.argv = argv,
				.fds_max = fds_max,
				.ops = {.ctx = steer,
					.show = show,
					.key_at = key_at,
					.plan = make_plan,
					.apply = apply,
					.forget = forget}};
}

void steer_bind(struct steer *steer, struct control *control, struct worker *worker,
		uint64_t *shutdown_ms)
{
	steer->control = control;
	steer->worker = worker;
	steer->shutdown_ms = shutdown_ms;
}
