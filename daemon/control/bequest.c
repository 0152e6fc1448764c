/* SPDX-License-Identifier: Apache-2.0 */
#include "control/bequest.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/log.h"
#include "control/dispatch.h"
#include "control/session.h"

/* Of one connection in the description: more than pins_max ever allows. */
#define PINS_MAX (UINT32_C(1) << 24)
/* Of a pinned page in the description. */
#define PIN_BYTES (5 * 4)

struct bequest_conn {
	int fd;
	const char *tenant; /* the cache's */
	char name[SESSION_NAME_MAX + 1];
	struct pins pins;
};

struct bequest_calibration {
	int fd;
	const char *tenant;
	uint64_t bytes;
};

/* ---- leaving ---- */

struct leaver {
	struct bequest *bequest;
	const char *tenant;
};

static void leave_calibration(void *ctx, int fd, uint64_t bytes)
{
	struct leaver *l = ctx;
	struct bequest *b = l->bequest;
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (copy >= 0)
		b->calibrations[b->n_calibrations++] =
		    (struct bequest_calibration){copy, l->tenant, bytes};
}

static int leave_calibrations(struct bequest *b, const struct control *control)
{
	uint32_t n = 0, tenants = control->cache->n_tenants;

	for (uint32_t i = 0; i < tenants; i++)
		n += control->tenants[i].n_calibrations;
	b->calibrations = calloc(n + 1, sizeof(*b->calibrations));
	if (!b->calibrations)
		return -SKVQ_ENOMEM;
	for (uint32_t i = 0; i < tenants; i++) {
		struct leaver l = {b, control->tenants[i].tenant->name};

		calibrations_each(&control->tenants[i], leave_calibration, &l);
	}
	return 0;
}

static void leave_session(struct bequest *b, struct session *s)
{
	struct bequest_conn *c = &b->conns[b->n_conns];
	int fd;

	session_orphan(s);
	if (!s->pins.total)
		return;
	fd = conn_detach(&s->conn, "daemon ends, its pins stay");
	if (fd < 0)
		return; /* the client has gone just now */
	*c = (struct bequest_conn){.fd = fd, .tenant = s->tenant->tenant->name, .pins = s->pins};
	memcpy(c->name, s->name, sizeof(c->name));
	pins_init(&s->pins, s->pins.max);
	b->n_conns++;
}

int control_bequeath(struct control *control, struct bequest *ret, struct why *why)
{
	struct session *next;

	*ret = (struct bequest){0};
	for (const struct session *s = control->sessions; s; s = s->next) {
		if (s->pins.total && !(s->features & WIRE_HANDOVER))
			return why_fail(why, SKVQ_ENOTSUP,
					"connection %llu, \"%s\", holds pins and knows nothing of "
					"a handover",
					(unsigned long long)s->id, s->name);
	}
	ret->conns = calloc(control->n_sessions + 1, sizeof(*ret->conns));
	if (!ret->conns || leave_calibrations(ret, control) < 0) {
		free(ret->conns);
		ret->conns = NULL;
		return why_fail(why, SKVQ_ENOMEM, "no memory to keep %u connections",
				control->n_sessions);
	}
	for (struct session *s = control->sessions; s; s = next) {
		next = s->next;
		leave_session(ret, s);
	}
	return 0;
}

void bequest_each_fd(const struct bequest *bequest, void (*fn)(void *ctx, int fd), void *ctx)
{
	for (uint32_t i = 0; i < bequest->n_conns; i++)
		fn(ctx, bequest->conns[i].fd);
	for (uint32_t i = 0; i < bequest->n_calibrations; i++)
		fn(ctx, bequest->calibrations[i].fd);
}

static void write_pins(const struct pins *pins, struct blob *blob)
{
	blob_put_u32(blob, pins->pages);
	for (uint32_t i = 0; i < pins->places; i++) {
		const struct pin *pin = &pins->table[i];

		if (!pin->page)
			continue;
		blob_put_u32(blob, ns_of(pin->page)->id);
		blob_put_u32(blob, pin->page->slot);
		blob_put_u32(blob, pin->page->generation);
		blob_put_u32(blob, pin->count);
		blob_put_u32(blob, pin->refined);
	}
}

void bequest_write(const struct bequest *bequest, struct blob *blob)
{
	blob_put_u32(blob, bequest->n_conns);
	for (uint32_t i = 0; i < bequest->n_conns; i++) {
		snapshot_put_file(blob, bequest->conns[i].fd);
		blob_put_text(blob, bequest->conns[i].tenant);
		blob_put_text(blob, bequest->conns[i].name);
		write_pins(&bequest->conns[i].pins, blob);
	}
	blob_put_u32(blob, bequest->n_calibrations);
	for (uint32_t i = 0; i < bequest->n_calibrations; i++) {
		snapshot_put_file(blob, bequest->calibrations[i].fd);
		blob_put_text(blob, bequest->calibrations[i].tenant);
		blob_put_u64(blob, bequest->calibrations[i].bytes);
	}
}

void bequest_fini(struct bequest *bequest, struct cache *cache)
{
	for (uint32_t i = 0; i < bequest->n_conns; i++) {
		(void)cache_unpin_all(cache, &bequest->conns[i].pins);
		pins_fini(&bequest->conns[i].pins);
		(void)close(bequest->conns[i].fd);
	}
	for (uint32_t i = 0; i < bequest->n_calibrations; i++)
		(void)close(bequest->calibrations[i].fd);
	free(bequest->conns);
	free(bequest->calibrations);
	*bequest = (struct bequest){0};
}

/* ---- taking over ---- */

static int corrupt(struct why *why, const char *what)
{
	return why_fail(why, SKVQ_ECORRUPT, "the description of the connections: %s", what);
}

/* As many of the pins as held the page's refinement do so again, and no more. */
static int pin_again(struct session *s, struct page *page, uint32_t count, uint32_t refined,
		     struct why *why)
{
	struct cache *cache = s->control->cache;
	struct page_ref ref = page_ref(page);
	uint32_t holds = page->shed || !ns_of(page)->layout.refine_bytes ? 0 : count;
	int err = pins_reserve(&s->pins, count, why);

	if (err < 0)
		return err;
	for (uint32_t i = 0; i < count; i++)
		cache_pin(cache, &s->pins, page);
	for (uint32_t i = refined; i < holds && !err; i++)
		err = cache_unrefine(cache, ns_of(page), &s->pins, &ref, 1, why);
	return err;
}

static int inherit_pin(struct session *s, struct blob_cursor *c, const struct snapshot *snapshot,
		       struct why *why)
{
	uint32_t ns = blob_get_u32(c);
	struct page_ref ref;
	struct page *page;
	uint32_t count, refined;
	uint64_t max;
	int err;

	ref.slot = blob_get_u32(c);
	ref.generation = blob_get_u32(c);
	count = blob_get_u32(c);
	refined = blob_get_u32(c);
	if (c->failed || snapshot_page(snapshot, ns, ref, &page) < 0)
		return corrupt(why, "it pins a page that is none");
	if (!count || count > PINS_MAX - s->pins.total)
		return corrupt(why, "it holds more pins than it can");
	if (!page)
		return 0;
	if (ns_of(page)->tenant != s->tenant->tenant)
		return corrupt(why, "it pins a page of another tenant's");
	if (refined > count || (refined && (page->shed || !ns_of(page)->layout.refine_bytes)))
		return corrupt(why, "it holds a refinement that is not there");
	/* What was allowed once holds, whatever the bounds are now: nothing can be added to it. */
	s->pins.max = PINS_MAX;
	max = s->pins.group->max;
	s->pins.group->max = UINT64_MAX;
	err = pin_again(s, page, count, refined, why);
	s->pins.group->max = max;
	return err;
}

static struct control_tenant *tenant_of(struct control *control, const char *name)
{
	const struct tenant *tenant = cache_tenant(control->cache, name);

	return tenant ? &control->tenants[tenant->index] : NULL;
}

static int inherit_conn(struct control *control, struct blob_cursor *c,
			const struct snapshot_files *files, const struct snapshot *snapshot,
			struct why *why)
{
	int *fd = files->find(files->ctx, snapshot_get_file(c));
	char tenant_name[TENANT_NAME_MAX + 1], name[SESSION_NAME_MAX + 1];
	struct control_tenant *tenant;
	struct session *s;
	uint32_t n;
	int err = 0;

	blob_get_text(c, tenant_name, sizeof(tenant_name));
	blob_get_text(c, name, sizeof(name));
	n = blob_get_u32(c);
	if (c->failed || n > c->left / PIN_BYTES)
		return corrupt(why, "it ends inside a connection");
	tenant = tenant_of(control, tenant_name);
	if (!tenant) {
		/* Nor are its namespaces: what it maps is its own from here on. */
		log_event(LOG_WARNING, "connection_left_out", LOG_STR("tenant", tenant_name),
			  LOG_STR("name", name), LOG_U64("pages", n));
		(void)blob_get(c, (size_t)n * PIN_BYTES);
		return 0;
	}
	if (!fd)
		return why_fail(why, SKVQ_EFD,
				"the socket of \"%s\", which holds pins, was not given", name);
	s = control_adopt(control, tenant, fd, name, why);
	if (!s)
		return -SKVQ_EFD;
	for (uint32_t i = 0; !err && i < n; i++)
		err = inherit_pin(s, c, snapshot, why);
	return err;
}

static void inherit_calibration(struct control *control, const struct snapshot_files *files,
				struct snapshot_file file, const char *tenant_name, uint64_t bytes)
{
	struct control_tenant *tenant = tenant_of(control, tenant_name);
	int *fd = files->find(files->ctx, file);
	struct why why = {{0}};

	if (!fd)
		(void)why_fail(&why, SKVQ_EFD, "it was not given");
	else if (!tenant)
		(void)why_fail(&why, SKVQ_EINVAL, "it belongs to tenant \"%s\"", tenant_name);
	if (!fd || !tenant || calibration_adopt(tenant, fd, bytes, &why) < 0)
		log_event(LOG_WARNING, "calibration_left_out", LOG_STR("detail", why.text));
}

int control_inherit(struct control *control, struct blob_cursor *cursor,
		    const struct snapshot_files *files, const struct snapshot *snapshot,
		    uint32_t *ret_conns, struct why *why)
{
	uint32_t n = blob_get_u32(cursor);
	int err = 0;

	*ret_conns = n;
	if (n > control->config.connections_max)
		return why_fail(why, SKVQ_ELIMIT,
				"%u connections with pins, at most %u "
				"(connections_max)",
				n, control->config.connections_max);
	for (uint32_t i = 0; !err && i < n; i++)
		err = inherit_conn(control, cursor, files, snapshot, why);
	if (err < 0)
		return err;
	n = blob_get_u32(cursor);
	if (n > CALIBRATIONS_MAX * TENANTS_MAX)
		return corrupt(why, "too many calibrations");
	for (uint32_t i = 0; i < n; i++) {
		struct snapshot_file file = snapshot_get_file(cursor);
		char tenant[TENANT_NAME_MAX + 1];
		uint64_t bytes;

		blob_get_text(cursor, tenant, sizeof(tenant));
		bytes = blob_get_u64(cursor);
		if (cursor->failed)
			break;
		inherit_calibration(control, files, file, tenant, bytes);
	}
	return cursor->failed || cursor->left ? corrupt(why, "it does not end where it should") : 0;
}
