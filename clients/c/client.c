/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting, and the calls of the data path: namespaces, staging, match, publish, unpin. */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <skvq/format.h>

static int say_hello(struct skvq_client *c, const char *name)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Hello hello = SKVQ__WIRE__HELLO__INIT;
	Skvq__Wire__Reply *reply = NULL;
	char short_name[64];

	snprintf(short_name, sizeof short_name, "%s", name ? name : "");
	hello.version_major = 1;
	hello.features = FEATURES;
	hello.name = short_name;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_HELLO;
	req.hello = &hello;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_HELLO, &reply, NULL);
	if (r < 0)
		return r;
	c->hello.boot_id = reply->boot_id;
	c->hello.frame_bytes_max = reply->hello->frame_bytes_max;
	c->hello.pins_max = reply->hello->pins_max;
	c->hello.requests_max = reply->hello->requests_max;
	c->hello.features = reply->hello->features & FEATURES;
	snprintf(c->hello.version, sizeof c->hello.version, "%s", reply->hello->daemon_version);
	if (reply->hello->version_major != 1)
		r = client_break(c, SKVQ_EVERSION, "the daemon speaks protocol %u, not 1",
		                 reply->hello->version_major);
	else if (!reply->boot_id)
		r = client_break(c, SKVQ_EPROTO, "the daemon gave no boot id");
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r;
}

/* The process that listens, if it can be named from here: not across pid namespaces, and not where
 * the kernel is older than pidfd_open (5.3). */
static int pidfd_of_peer(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof peer;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.pid <= 0)
		return -1;
	return (int)syscall(SYS_pidfd_open, peer.pid, 0);
}

bool skvq_client_daemon_gone(const struct skvq_client *c)
{
	struct pollfd p = {.fd = c->pidfd, .events = POLLIN};

	if (c->hello.features & FEATURE_HANDOVER)
		return false; /* another may have its arenas now */
	return c->pidfd >= 0 && poll(&p, 1, 0) == 1;
}

int skvq_client_connect(const char *path, const char *name, uint32_t timeout_ms,
                        struct skvq_client **ret, char *why)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct skvq_client *c = calloc(1, sizeof *c);
	int r;

	if (!c) {
		snprintf(why, SKVQ_CLIENT_WHY_BYTES, "no memory for a connection");
		return -SKVQ_ENOMEM;
	}
	c->fd = c->pidfd = -1;
	c->timeout_ms = timeout_ms;
	if (!path || !*path) {
		r = client_fail(c, SKVQ_EPATH, "the socket path is empty");
		goto fail;
	}
	if (strlen(path) >= sizeof addr.sun_path) {
		r = client_fail(c, SKVQ_EPATH, "socket path '%.60s...' has %zu bytes, at most %zu can be used",
		                path, strlen(path), sizeof addr.sun_path - 1);
		goto fail;
	}
	memcpy(addr.sun_path, path, strlen(path) + 1);
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0) {
		r = client_fail(c, SKVQ_ESYS, "socket: %s", strerror(errno));
		goto fail;
	}
	/* A Unix connect either succeeds at once or fails: EAGAIN is a full backlog. */
	if (connect(c->fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
		int e = errno;
		r = client_fail(c, e == ENOTSOCK ? SKVQ_EPATH : SKVQ_ENODAEMON,
		                e == ECONNREFUSED ? "no daemon listens on '%s' (%s)"
		                                  : "cannot connect to '%s': %s",
		                path, strerror(e));
		goto fail;
	}
	c->pidfd = pidfd_of_peer(c->fd);
	r = say_hello(c, name);
	if (r < 0)
		goto fail;
	*ret = c;
	return 0;
fail:
	memcpy(why, c->why, SKVQ_CLIENT_WHY_BYTES);
	skvq_client_free(c);
	return r;
}

void skvq_client_free(struct skvq_client *c)
{
	if (!c)
		return;
	if (c->fd >= 0)
		close(c->fd);
	if (c->pidfd >= 0)
		close(c->pidfd);
	while (c->n_fds > 0)
		close(c->fds[--c->n_fds]);
	free(c->in);
	free(c->out);
	free(c);
}

void skvq_client_end(struct skvq_client *c)
{
	if (c && c->fd >= 0)
		(void)shutdown(c->fd, SHUT_RDWR);
}

int skvq_client_fd(const struct skvq_client *c)
{
	return c->fd;
}

bool skvq_client_broken(const struct skvq_client *c)
{
	return c->broken;
}

const struct skvq_client_hello *skvq_client_hello(const struct skvq_client *c)
{
	return &c->hello;
}

const char *skvq_client_why(const struct skvq_client *c)
{
	return c->why;
}

void skvq_client_on_published(struct skvq_client *c, skvq_client_published_fn fn, void *user)
{
	c->published = fn;
	c->published_user = user;
}

void skvq_client_set_timeout(struct skvq_client *c, uint32_t timeout_ms)
{
	c->timeout_ms = timeout_ms;
}

static ProtobufCBinaryData digest_field(const uint8_t *digest)
{
	return (ProtobufCBinaryData){.len = digest ? 32 : 0, .data = (uint8_t *)(uintptr_t)digest};
}

static char *text_field(const char *s)
{
	return (char *)(uintptr_t)(s ? s : "");
}

int skvq_client_namespace_open(struct skvq_client *c, const struct skvq_client_identity *id,
                               struct skvq_client_ns *ret, int *ret_arena_fd)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__NamespaceOpen open = SKVQ__WIRE__NAMESPACE_OPEN__INIT;
	Skvq__Wire__Identity m = SKVQ__WIRE__IDENTITY__INIT;
	Skvq__Wire__Reply *reply = NULL;
	int fd = -1;

	m.weights_digest = digest_field(id->weights_digest);
	m.tokenizer_digest = digest_field(id->tokenizer_digest);
	m.lora_digest = digest_field(id->lora_digest);
	m.calibration_digest = digest_field(id->calibration_digest);
	m.engine_numerics = text_field(id->engine_numerics);
	m.n_layer = id->n_layer;
	m.n_q_heads = id->n_q_heads;
	m.n_kv_heads = id->n_kv_heads;
	m.head_dim_k = id->head_dim_k;
	m.head_dim_v = id->head_dim_v;
	m.rope_kind = id->rope_kind;
	m.rope_dim = id->rope_dim;
	m.rope_theta = id->rope_theta;
	m.rope_scaling = text_field(id->rope_scaling);
	m.profile = text_field(id->profile);
	m.window = id->window;
	m.sinks = id->sinks;
	m.bit_table.len = id->bit_table ? 2 * (size_t)id->n_layer : 0;
	m.bit_table.data = (uint8_t *)(uintptr_t)id->bit_table;
	if (id->reorder) {
		m.reorder.len = (size_t)id->n_layer * id->n_kv_heads *
		                (id->head_dim_k + id->head_dim_v) * sizeof *id->reorder;
		m.reorder.data = (uint8_t *)(uintptr_t)id->reorder;
	}
	m.n_layer_window = id->layer_window ? id->n_layer : 0;
	m.layer_window = (uint32_t *)(uintptr_t)id->layer_window;
	m.clip = id->clip;
	m.page_version = SKVQ_PAGE_VERSION;
	open.identity = &m;
	open.model_name = text_field(id->model_name);
	req.body_case = SKVQ__WIRE__REQUEST__BODY_NAMESPACE_OPEN;
	req.namespace_open = &open;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_NAMESPACE_OPEN, &reply, &fd);
	if (r < 0)
		return r;
	const Skvq__Wire__NamespaceReply *b = reply->namespace_open;
	*ret = (struct skvq_client_ns){.ns = b->ns,
	                               .arena_bytes = b->arena_bytes,
	                               .slot_bytes = b->slot_bytes,
	                               .base_bytes = b->base_bytes,
	                               .refine_bytes = b->refine_bytes,
	                               .sidecar_bytes = b->sidecar_bytes};
	if (b->identity_digest.len == sizeof ret->identity_digest)
		memcpy(ret->identity_digest, b->identity_digest.data, sizeof ret->identity_digest);
	ret->nearest_ns = b->nearest_ns;
	snprintf(ret->nearest_differs, sizeof ret->nearest_differs, "%s", b->nearest_differs);
	*ret_arena_fd = fd;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_staging_add(struct skvq_client *c, int fd, uint32_t *ret_staging)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StagingAdd add = SKVQ__WIRE__STAGING_ADD__INIT;
	Skvq__Wire__Reply *reply = NULL;

	req.body_case = SKVQ__WIRE__REQUEST__BODY_STAGING_ADD;
	req.staging_add = &add;
	int r = client_call(c, &req, fd, SKVQ__WIRE__REPLY__BODY_STAGING_ADD, &reply, NULL);
	if (r < 0)
		return r;
	*ret_staging = reply->staging_add->staging;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_calibration_get(struct skvq_client *c, const uint8_t *weights_digest,
                                uint32_t n_layer, uint32_t n_q_heads, uint32_t n_kv_heads,
                                uint32_t head_dim_k, uint32_t head_dim_v, uint64_t *ret_bytes,
                                int *ret_fd)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__CalibrationGet get = SKVQ__WIRE__CALIBRATION_GET__INIT;
	Skvq__Wire__Reply *reply = NULL;

	if (!(c->hello.features & SKVQ_CLIENT_HAS_CALIBRATIONS))
		return client_fail(c, SKVQ_ENOTSUP, "this daemon keeps no calibrations");
	get.weights_digest = digest_field(weights_digest);
	get.n_layer = n_layer;
	get.n_q_heads = n_q_heads;
	get.n_kv_heads = n_kv_heads;
	get.head_dim_k = head_dim_k;
	get.head_dim_v = head_dim_v;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_CALIBRATION_GET;
	req.calibration_get = &get;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_CALIBRATION_GET, &reply, ret_fd);
	if (r < 0)
		return r;
	*ret_bytes = reply->calibration_get->bytes;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_calibration_put(struct skvq_client *c, int fd, uint64_t bytes, bool replace)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__CalibrationPut put = SKVQ__WIRE__CALIBRATION_PUT__INIT;
	Skvq__Wire__Reply *reply = NULL;

	if (!(c->hello.features & SKVQ_CLIENT_HAS_CALIBRATIONS))
		return client_fail(c, SKVQ_ENOTSUP, "this daemon keeps no calibrations");
	if (replace && !(c->hello.features & FEATURE_CALIBRATION_REPLACE))
		return client_fail(c, SKVQ_ENOTSUP, "this daemon is too old to replace a calibration");
	put.bytes = bytes;
	put.replace = replace;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_CALIBRATION_PUT;
	req.calibration_put = &put;
	int r = client_call(c, &req, fd, SKVQ__WIRE__REPLY__BODY_CALIBRATION_PUT, &reply, NULL);
	if (r < 0)
		return r;
	r = !reply->calibration_put->stored ? 0 : reply->calibration_put->replaced ? 2 : 1;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r;
}

int skvq_client_staging_drop(struct skvq_client *c, uint32_t staging)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StagingDrop drop = SKVQ__WIRE__STAGING_DROP__INIT;

	drop.staging = staging;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_STAGING_DROP;
	req.staging_drop = &drop;
	return client_post(c, &req, false, NULL);
}

int skvq_client_match(struct skvq_client *c, uint32_t ns, const int32_t *tokens, uint32_t n_tokens,
                      uint32_t max_tokens, uint32_t recompute_us, struct skvq_page_ref *pages,
                      bool *base_only, uint32_t pages_max)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Match match = SKVQ__WIRE__MATCH__INIT;
	Skvq__Wire__Reply *reply = NULL;

	match.ns = ns;
	/* As varints, ids take three bytes or less. */
	if ((c->hello.features & FEATURE_FIXED_TOKENS) &&
	    n_tokens <= (c->hello.frame_bytes_max - MATCH_BYTES) / sizeof(*tokens)) {
		match.n_fixed_tokens = n_tokens;
		match.fixed_tokens = (int32_t *)(uintptr_t)tokens;
	} else {
		match.n_tokens = n_tokens;
		match.tokens = (int32_t *)(uintptr_t)tokens;
	}
	match.max_tokens = max_tokens;
	match.wait_ms = c->timeout_ms - c->timeout_ms / 4;
	match.recompute_us = recompute_us;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_MATCH;
	req.match = &match;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_MATCH, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__MatchReply *b = reply->match;
	if (b->n_pages > pages_max) {
		/* Its pins would be lost: only closing the connection gives them back. */
		r = client_break(c, SKVQ_EPROTO, "the daemon matched %zu pages where %u can match",
		                 b->n_pages, pages_max);
	} else {
		for (size_t i = 0; i < b->n_pages; i++)
			pages[i] = (struct skvq_page_ref){b->pages[i]->slot, b->pages[i]->generation};
		memset(base_only, 0, b->n_pages * sizeof *base_only);
		for (size_t i = 0; i < b->n_base_only; i++)
			if (b->base_only[i] < b->n_pages)
				base_only[b->base_only[i]] = true;
		r = (int)b->n_pages;
	}
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r;
}

int skvq_client_prefetch(struct skvq_client *c, uint32_t ns, const int32_t *tokens,
                         uint32_t n_tokens, uint32_t *ret_resident, uint32_t *ret_coming)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Prefetch prefetch = SKVQ__WIRE__PREFETCH__INIT;
	Skvq__Wire__Reply *reply = NULL;

	if (!c->broken && !(c->hello.features & FEATURE_PREFETCH))
		return client_fail(c, SKVQ_ENOTSUP, "skvqd %s has no prefetch", c->hello.version);
	prefetch.ns = ns;
	prefetch.n_tokens = n_tokens;
	prefetch.tokens = (int32_t *)(uintptr_t)tokens;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_PREFETCH;
	req.prefetch = &prefetch;
	int r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_PREFETCH, &reply, NULL);
	if (r < 0)
		return r;
	*ret_resident = reply->prefetch->n_resident;
	*ret_coming = reply->prefetch->n_coming;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return 0;
}

int skvq_client_publish(struct skvq_client *c, uint32_t ns, struct skvq_page_ref parent,
                        uint32_t position, const int32_t *tokens, uint32_t n_pages,
                        const uint8_t *safe, uint32_t staging, uint64_t offset, uint64_t *ret_id)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Publish pub = SKVQ__WIRE__PUBLISH__INIT;
	Skvq__Wire__PageRef ref = SKVQ__WIRE__PAGE_REF__INIT;

	if (n_pages == 0 || n_pages > SKVQ_CLIENT_RUN_MAX)
		return client_fail(c, SKVQ_EINVAL, "a run has 1..%u pages, not %u", SKVQ_CLIENT_RUN_MAX,
		                   n_pages);
	pub.ns = ns;
	if (parent.generation) {
		ref.slot = parent.slot;
		ref.generation = parent.generation;
		pub.parent = &ref;
	}
	pub.position = position;
	pub.n_tokens = (size_t)n_pages * 80;
	pub.tokens = (int32_t *)(uintptr_t)tokens;
	pub.staging = staging;
	pub.offset = offset;
	pub.n_pages = n_pages;
	pub.safe.len = safe ? n_pages : 0;
	pub.safe.data = (uint8_t *)(uintptr_t)safe;
	req.body_case = SKVQ__WIRE__REQUEST__BODY_PUBLISH;
	req.publish = &pub;
	return client_post(c, &req, true, ret_id);
}

/* Unpin and Unrefine: posts the names in batches that fit the smallest frame bound a daemon may have,
 * 4 KiB. */
static int post_pages(struct skvq_client *c, uint32_t ns, const struct skvq_page_ref *pages,
                      uint32_t n_pages, bool unrefine)
{
	enum { BATCH = 128 };
	Skvq__Wire__PageRef refs[BATCH];
	Skvq__Wire__PageRef *ptrs[BATCH];

	for (uint32_t done = 0; done < n_pages;) {
		Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
		Skvq__Wire__Unpin unpin_msg = SKVQ__WIRE__UNPIN__INIT;
		Skvq__Wire__Unrefine unrefine_msg = SKVQ__WIRE__UNREFINE__INIT;
		uint32_t n = n_pages - done < BATCH ? n_pages - done : BATCH;

		for (uint32_t i = 0; i < n; i++) {
			skvq__wire__page_ref__init(&refs[i]);
			refs[i].slot = pages[done + i].slot;
			refs[i].generation = pages[done + i].generation;
			ptrs[i] = &refs[i];
		}
		unpin_msg.ns = unrefine_msg.ns = ns;
		unpin_msg.n_pages = unrefine_msg.n_pages = n;
		unpin_msg.pages = unrefine_msg.pages = ptrs;
		req.body_case = unrefine ? SKVQ__WIRE__REQUEST__BODY_UNREFINE
		                         : SKVQ__WIRE__REQUEST__BODY_UNPIN;
		if (unrefine)
			req.unrefine = &unrefine_msg;
		else
			req.unpin = &unpin_msg;
		int r = client_post(c, &req, false, NULL);
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

int skvq_client_unpin(struct skvq_client *c, uint32_t ns, const struct skvq_page_ref *pages,
                      uint32_t n_pages)
{
	return post_pages(c, ns, pages, n_pages, false);
}

int skvq_client_unrefine(struct skvq_client *c, uint32_t ns, const struct skvq_page_ref *pages,
                         uint32_t n_pages)
{
	if (!c->broken && !(c->hello.features & FEATURE_UNREFINE))
		return client_fail(c, SKVQ_ENOTSUP, "skvqd %s never takes refinements away",
		                   c->hello.version);
	return post_pages(c, ns, pages, n_pages, true);
}
