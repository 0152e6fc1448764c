/* SPDX-License-Identifier: Apache-2.0 */
#include "support/raw_client.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <skvq/format.h>
#include <skvq/plugin.h>

#include "support/page_maker.h"

static uint64_t next_id = 1000;

void raw_set_timeout(int sock)
{
	struct timeval tv = {.tv_sec = RAW_TIMEOUT_S};

	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
		abort();
}

int raw_connect(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || strlen(path) >= sizeof(addr.sun_path))
		abort();
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int saved = errno;

		close(sock);
		errno = saved;
		return -1;
	}
	raw_set_timeout(sock);
	return sock;
}

ssize_t raw_send_bytes(int sock, const void *bytes, size_t n, const int *fds, size_t n_fds)
{
	char control[CMSG_SPACE(64 * sizeof(int))] = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds) {
		struct cmsghdr *c;

		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL);
}

void raw_header(uint8_t ret[8], uint32_t payload_bytes, uint16_t n_fds, uint16_t magic)
{
	for (int i = 0; i < 4; i++)
		ret[i] = (uint8_t)(payload_bytes >> 8 * i);
	for (int i = 0; i < 2; i++) {
		ret[4 + i] = (uint8_t)(n_fds >> 8 * i);
		ret[6 + i] = (uint8_t)(magic >> 8 * i);
	}
}

void raw_send(int sock, const raw_request *rq, int fd)
{
	size_t n = protobuf_c_message_get_packed_size(&rq->base);
	uint8_t *buf = malloc(8 + n);
	size_t at;
	ssize_t sent;

	if (!buf)
		abort();
	raw_header(buf, (uint32_t)n, fd >= 0 ? 1 : 0, RAW_MAGIC);
	protobuf_c_message_pack(&rq->base, buf + 8);
	sent = raw_send_bytes(sock, buf, 8 + n, &fd, fd >= 0 ? 1 : 0);
	for (at = 0; sent > 0 && (at += (size_t)sent) < 8 + n;)
		sent = raw_send_bytes(sock, buf + at, 8 + n - at, NULL, 0);
	free(buf);
}

/* Exactly n bytes; false at the end of the stream or after the timeout. */
static bool read_exact(int sock, uint8_t *buf, size_t n, int *ret_fd)
{
	for (size_t at = 0; at < n;) {
		char control[CMSG_SPACE(sizeof(int))];
		struct iovec iov = {.iov_base = buf + at, .iov_len = n - at};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof(control)};
		ssize_t r = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);

		if (r <= 0)
			return false;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
			memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
		at += (size_t)r;
	}
	return true;
}

raw_reply *raw_recv(int sock, int *ret_fd)
{
	uint8_t header[8], *buf;
	uint32_t n;
	raw_reply *reply = NULL;
	int fd = -1;

	if (!read_exact(sock, header, sizeof(header), &fd))
		return NULL;
	n = (uint32_t)header[0] | (uint32_t)header[1] << 8 | (uint32_t)header[2] << 16 |
	    (uint32_t)header[3] << 24;
	if (header[6] != (RAW_MAGIC & 0xff) || header[7] != RAW_MAGIC >> 8 ||
	    header[4] != (fd >= 0 ? 1 : 0) || header[5] != 0)
		abort();
	buf = malloc(n + 1);
	if (!buf)
		abort();
	if (read_exact(sock, buf, n, &fd)) {
		reply = skvq__wire__reply__unpack(NULL, n, buf);
		if (!reply)
			abort();
	}
	free(buf);
	if (ret_fd)
		*ret_fd = fd;
	else if (fd >= 0)
		close(fd);
	return reply;
}

void raw_free(raw_reply *reply)
{
	if (reply)
		skvq__wire__reply__free_unpacked(reply, NULL);
}

raw_reply *raw_call(int sock, raw_request *rq, int fd, int *ret_fd)
{
	if (!rq->id)
		rq->id = next_id++;
	raw_send(sock, rq, fd);
	return raw_recv(sock, ret_fd);
}

raw_reply *raw_hello(int sock, const char *name)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Hello m = SKVQ__WIRE__HELLO__INIT;

	m.version_major = 1;
	m.features = UINT64_MAX;
	m.name = (char *)(uintptr_t)name;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_HELLO;
	rq.hello = &m;
	return raw_call(sock, &rq, -1, NULL);
}

Skvq__Wire__Identity *raw_identity(uint32_t seed)
{
	static Skvq__Wire__Identity m;
	static uint8_t weights[32], tokenizer[32], bits[2 * MAKER_LAYERS];

	skvq__wire__identity__init(&m);
	memset(weights, 0x11, sizeof(weights));
	memcpy(weights, &seed, sizeof(seed));
	memset(tokenizer, 0x22, sizeof(tokenizer));
	memset(bits, SKVQ_BITS_4, sizeof(bits));
	m.weights_digest = (ProtobufCBinaryData){sizeof(weights), weights};
	m.tokenizer_digest = (ProtobufCBinaryData){sizeof(tokenizer), tokenizer};
	m.bit_table = (ProtobufCBinaryData){sizeof(bits), bits};
	m.engine_numerics = (char *)(uintptr_t) "test-1";
	m.profile = (char *)(uintptr_t)MAKER_PROFILE;
	m.n_layer = MAKER_LAYERS;
	m.n_q_heads = 1;
	m.n_kv_heads = 1;
	m.head_dim_k = MAKER_DIM;
	m.head_dim_v = MAKER_DIM;
	m.rope_kind = SKVQ_ROPE_POST;
	m.rope_dim = MAKER_DIM;
	m.rope_theta = 10000.0;
	m.window = 128;
	m.sinks = MAKER_SINKS;
	m.page_version = SKVQ_PAGE_VERSION;
	return &m;
}

raw_reply *raw_namespace_open(int sock, Skvq__Wire__Identity *identity, int *ret_arena)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__NamespaceOpen m = SKVQ__WIRE__NAMESPACE_OPEN__INIT;

	m.identity = identity;
	m.model_name = (char *)(uintptr_t) "tiny";
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_NAMESPACE_OPEN;
	rq.namespace_open = &m;
	return raw_call(sock, &rq, -1, ret_arena);
}

raw_reply *raw_staging_add(int sock, int fd)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StagingAdd m = SKVQ__WIRE__STAGING_ADD__INIT;

	rq.body_case = SKVQ__WIRE__REQUEST__BODY_STAGING_ADD;
	rq.staging_add = &m;
	return raw_call(sock, &rq, fd, NULL);
}

raw_reply *raw_match(int sock, uint32_t ns, const int32_t *tokens, uint32_t n_tokens)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Match m = SKVQ__WIRE__MATCH__INIT;

	m.ns = ns;
	m.tokens = (int32_t *)(uintptr_t)tokens;
	m.n_tokens = n_tokens;
	m.max_tokens = n_tokens;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_MATCH;
	rq.match = &m;
	return raw_call(sock, &rq, -1, NULL);
}

void raw_send_publish(int sock, uint64_t id, uint32_t ns, const Skvq__Wire__PageRef *parent,
		      uint32_t position, const int32_t *tokens, uint32_t staging, uint64_t offset)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Publish m = SKVQ__WIRE__PUBLISH__INIT;

	m.ns = ns;
	m.parent = (Skvq__Wire__PageRef *)(uintptr_t)parent;
	m.position = position;
	m.tokens = (int32_t *)(uintptr_t)tokens;
	m.n_tokens = SKVQ_PAGE_TOKENS;
	m.staging = staging;
	m.offset = offset;
	rq.id = id;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_PUBLISH;
	rq.publish = &m;
	raw_send(sock, &rq, -1);
}

raw_reply *raw_publish(int sock, uint32_t ns, const Skvq__Wire__PageRef *parent, uint32_t position,
		       const int32_t *tokens, uint32_t staging, uint64_t offset)
{
	raw_send_publish(sock, next_id++, ns, parent, position, tokens, staging, offset);
	return raw_recv(sock, NULL);
}

raw_reply *raw_unpin(int sock, uint32_t ns, Skvq__Wire__PageRef *page)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Unpin m = SKVQ__WIRE__UNPIN__INIT;

	m.ns = ns;
	m.pages = &page;
	m.n_pages = 1;
	rq.body_case = SKVQ__WIRE__REQUEST__BODY_UNPIN;
	rq.unpin = &m;
	return raw_call(sock, &rq, -1, NULL);
}

raw_reply *raw_status(int sock)
{
	raw_request rq = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__StatusGet m = SKVQ__WIRE__STATUS_GET__INIT;

	rq.body_case = SKVQ__WIRE__REQUEST__BODY_STATUS;
	rq.status = &m;
	return raw_call(sock, &rq, -1, NULL);
}

uint64_t raw_counter(const raw_reply *status, const char *name)
{
	for (size_t i = 0; i < status->status->n_counters; i++) {
		if (!strcmp(status->status->counters[i]->name, name))
			return status->status->counters[i]->value;
	}
	abort();
}

uint64_t raw_recorded(const raw_reply *status, const char *histogram)
{
	for (size_t i = 0; i < status->status->n_histograms; i++) {
		const Skvq__Wire__Histogram *h = status->status->histograms[i];
		uint64_t sum = 0;

		for (size_t n = 0; n < h->n_buckets; n++)
			sum += h->buckets[n];
		if (!strcmp(h->name, histogram))
			return sum;
	}
	abort();
}
