/* SPDX-License-Identifier: Apache-2.0 */
#include "control/conn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/why.h"

/* What one wakeup may take, so that a busy client does not starve the others. */
#define WAKE_FRAMES 32
/* First size of a payload buffer; a buffer up to KEEP is kept for the next frame. */
#define PAYLOAD_FIRST 4096u
#define PAYLOAD_KEEP  65536u
/* SCM_MAX_FD of the kernel: descriptors of one message. */
#define SCM_FDS_MAX 253u

static uint32_t get_le(const uint8_t *p, int bytes)
{
	uint32_t v = 0;

	for (int i = 0; i < bytes; i++)
		v |= (uint32_t)p[i] << 8 * i;
	return v;
}

static void put_le(uint8_t *p, uint32_t v, int bytes)
{
	for (int i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static void close_fds(struct conn *conn)
{
	for (uint32_t i = 0; i < conn->in.n_fds; i++) {
		if (conn->in.fds[i] >= 0)
			closer_close(conn->closer, conn->in.fds[i]);
	}
	conn->in.n_fds = 0;
}

static void die(struct conn *conn, const char *reason)
{
	if (conn->dead)
		return;
	conn->dead = true;
	loop_del(conn->loop, &conn->watch);
	conn->ops->dead(conn, reason);
}

/* The peer broke the framing: says so and ends. Always -SKVQ_EPROTO or the code. */
static int broken(struct conn *conn, int err, const struct why *why)
{
	close_fds(conn);
	conn->ops->broken(conn, -err, why->text);
	conn_end(conn, "protocol error");
	return err;
}

/* ---- out ---- */

struct conn_out *conn_out_new(uint32_t payload_bytes, int fd)
{
	size_t bytes = CONN_HEADER_BYTES + (size_t)payload_bytes;
	struct conn_out *out = malloc(sizeof(*out) + bytes);

	if (!out)
		return NULL;
	*out = (struct conn_out){.fd = -1, .bytes = bytes};
	if (fd >= 0) {
		out->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (out->fd < 0) {
			free(out);
			return NULL;
		}
	}
	put_le(out->data, payload_bytes, 4);
	put_le(out->data + 4, fd >= 0 ? 1 : 0, 2);
	put_le(out->data + 6, CONN_MAGIC, 2);
	return out;
}

void conn_out_free(struct conn_out *out)
{
	if (out && out->fd >= 0)
		(void)close(out->fd);
	free(out);
}

static ssize_t send_some(struct conn *conn, const struct conn_out *out)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.bytes = {0}};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)(out->data + out->sent),
			    .iov_len = out->bytes - out->sent};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (out->fd >= 0 && out->sent == 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &out->fd, sizeof(int));
	}
	do
		n = sendmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n;
}

/* Sends until the socket is full. */
static void flush(struct conn *conn)
{
	while (conn->out_head && !conn->dead) {
		struct conn_out *out = conn->out_head;
		ssize_t n = send_some(conn, out);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			die(conn, "closed by peer");
			return;
		}
		out->sent += (size_t)n;
		conn->out_bytes -= (size_t)n;
		if (out->sent == out->bytes) {
			conn->out_head = out->next;
			conn_out_free(out);
		}
	}
}

/* Shows the peer the end of file and keeps the connection until it closes its own side. */
static void linger(struct conn *conn, const char *reason)
{
	if (!conn->ops->holds || !conn->ops->holds(conn)) {
		die(conn, reason);
		return;
	}
	conn->lingering = true;
	while (conn->out_head) {
		struct conn_out *out = conn->out_head;

		conn->out_head = out->next;
		conn_out_free(out);
	}
	conn->out_bytes = 0;
	(void)shutdown(conn->fd, SHUT_WR);
	if (loop_mod(conn->loop, &conn->watch, 0) < 0)
		die(conn, "epoll refused");
}

static bool may_read(const struct conn *conn)
{
	return !conn->dead && !conn->ending && conn->out_bytes <= conn->limits.backlog_max;
}

static void update_events(struct conn *conn)
{
	uint32_t want = may_read(conn) ? EPOLLIN : 0;

	if (conn->dead)
		return;
	if (conn->out_head)
		want |= EPOLLOUT;
	if (loop_mod(conn->loop, &conn->watch, want) < 0)
		die(conn, "epoll refused");
}

void conn_send(struct conn *conn, struct conn_out *out)
{
	if (conn->dead || conn->lingering) {
		conn_out_free(out);
		return;
	}
	out->next = NULL;
	if (conn->out_head)
		conn->out_tail->next = out;
	else
		conn->out_head = out;
	conn->out_tail = out;
	conn->out_bytes += out->bytes;
	if (conn->out_head == out)
		flush(conn);
	if (conn->out_bytes > (size_t)conn->limits.backlog_max + conn->limits.frame_max) {
		conn->piled_up = true;
		conn->ending = true;
		linger(conn, "replies are not read");
	}
	update_events(conn);
}

void conn_end(struct conn *conn, const char *reason)
{
	if (conn->dead || conn->lingering)
		return;
	conn->ending = true;
	flush(conn);
	if (!conn->dead)
		linger(conn, reason);
}

int conn_detach(struct conn *conn, const char *reason)
{
	int fd = conn->fd;

	conn->ending = true;
	if (!conn->lingering)
		flush(conn);
	if (conn->dead)
		return -1;
	(void)shutdown(fd, SHUT_WR);
	die(conn, reason);
	conn->fd = -1;
	return fd;
}

void conn_kill(struct conn *conn, const char *reason)
{
	conn->ending = true;
	if (!conn->lingering)
		flush(conn);
	die(conn, reason);
}

/* ---- in ---- */

/* Takes the descriptors out of a message, all of them, whatever is wrong with it. Returns their
 * number, or -SKVQ_EPROTO if some were lost or they are more than a frame may have. */
static int take_fds(struct conn *conn, struct msghdr *msg, struct why *why)
{
	uint32_t n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (conn->in.n_fds < CONN_FDS_MAX)
				conn->in.fds[conn->in.n_fds++] = fd;
			else
				closer_close(conn->closer, fd);
			n++;
		}
	}
	if (msg->msg_flags & MSG_CTRUNC)
		return why_fail(why, SKVQ_EPROTO,
				"descriptors were lost: this daemon is out of descriptors");
	if (n > CONN_FDS_MAX)
		return why_fail(why, SKVQ_EPROTO, "%u descriptors in one message, at most %u", n,
				CONN_FDS_MAX);
	return (int)n;
}

/* The buffer for what is still to come of the payload; grows as bytes arrive, so that a header
 * alone costs nothing. */
static int payload_room(struct conn *conn)
{
	uint32_t cap = conn->payload_cap ? conn->payload_cap : PAYLOAD_FIRST / 2;
	uint8_t *p;

	if (conn->payload_have < conn->payload_cap)
		return 0;
	cap = cap > UINT32_MAX / 2 ? UINT32_MAX : cap * 2;
	if (cap > conn->payload_bytes && conn->payload_bytes > PAYLOAD_FIRST)
		cap = conn->payload_bytes;
	p = realloc(conn->payload, cap);
	if (!p)
		return -SKVQ_ENOMEM;
	conn->payload = p;
	conn->payload_cap = cap;
	return 0;
}

static int check_header(struct conn *conn, struct why *why)
{
	uint32_t bytes = get_le(conn->header, 4);
	uint32_t n_fds = get_le(conn->header + 4, 2);
	uint32_t magic = get_le(conn->header + 6, 2);

	if (magic != CONN_MAGIC)
		return why_fail(why, SKVQ_EPROTO, "frame header: magic is 0x%04x, not 0x%04x",
				magic, CONN_MAGIC);
	if (bytes == 0)
		return why_fail(why, SKVQ_EPROTO, "frame header: payload of 0 bytes");
	if (bytes > conn->limits.frame_max)
		return why_fail(why, SKVQ_EFRAME,
				"frame header: payload of %u bytes, frame_max is %u", bytes,
				conn->limits.frame_max);
	if (n_fds > CONN_FDS_MAX)
		return why_fail(why, SKVQ_EPROTO, "frame header: %u descriptors, at most %u", n_fds,
				CONN_FDS_MAX);
	if (n_fds != conn->in.n_fds)
		return why_fail(why, SKVQ_EPROTO,
				"frame header says %u descriptors, %u came with its first byte",
				n_fds, conn->in.n_fds);
	conn->payload_bytes = bytes;
	conn->payload_have = 0;
	return 0;
}

static void deliver(struct conn *conn)
{
	conn->in.payload = conn->payload;
	conn->in.bytes = conn->payload_bytes;
	conn->ops->frame(conn, &conn->in);
	close_fds(conn);
	conn->header_have = 0;
	if (conn->payload_cap > PAYLOAD_KEEP) {
		free(conn->payload);
		conn->payload = NULL;
		conn->payload_cap = 0;
	}
}

/* Accounts for n bytes read. 1: a frame was delivered, 0: not yet, negative: broken. */
static int advance(struct conn *conn, bool in_header, uint32_t n)
{
	struct why why;
	int err;

	if (in_header) {
		conn->header_have += n;
		if (conn->header_have < CONN_HEADER_BYTES)
			return 0;
		err = check_header(conn, &why);
		return err < 0 ? broken(conn, err, &why) : 0;
	}
	conn->payload_have += n;
	if (conn->payload_have < conn->payload_bytes)
		return 0;
	deliver(conn);
	return 1;
}

/* One recvmsg within one part of one frame. 1: a frame was delivered, 0: go on, -SKVQ_EAGAIN:
 * nothing there, other negative: dead or broken. */
static int read_some(struct conn *conn)
{
	union {
		struct cmsghdr align;
		/* All that a message can carry: what does not fit the kernel would close for us,
		 * on this thread (see base/closer.h). */
		char bytes[CMSG_SPACE(SCM_FDS_MAX * sizeof(int))];
	} control;
	bool in_header = conn->header_have < CONN_HEADER_BYTES;
	bool first = conn->header_have == 0;
	struct why why;
	struct iovec iov;
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof(control.bytes)};
	ssize_t n;
	int fds;

	if (in_header) {
		iov.iov_base = conn->header + conn->header_have;
		iov.iov_len = CONN_HEADER_BYTES - conn->header_have;
	} else {
		uint32_t end = conn->payload_bytes;

		if (payload_room(conn) < 0) {
			(void)why_fail(&why, SKVQ_ENOMEM, "no memory for a frame of %u bytes", end);
			return broken(conn, -SKVQ_ENOMEM, &why);
		}
		if (end > conn->payload_cap)
			end = conn->payload_cap;
		iov.iov_base = conn->payload + conn->payload_have;
		iov.iov_len = end - conn->payload_have;
	}
	do
		n = recvmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return -SKVQ_EAGAIN;
	if (n <= 0) {
		die(conn, n < 0    ? "read failed"
			  : !first ? "closed by peer inside a frame"
				   : "closed by peer");
		return -SKVQ_EIO;
	}
	fds = take_fds(conn, &msg, &why);
	if (fds > 0 && !first)
		fds = why_fail(&why, SKVQ_EPROTO,
			       "%d descriptors came inside a frame, not with its first byte", fds);
	if (fds < 0)
		return broken(conn, fds, &why);
	return advance(conn, in_header, (uint32_t)n);
}

static void read_frames(struct conn *conn)
{
	for (int frames = 0; frames < WAKE_FRAMES && may_read(conn);) {
		int r = read_some(conn);

		if (r < 0)
			return;
		frames += r;
	}
}

static void on_event(void *ctx, uint32_t events)
{
	struct conn *conn = ctx;

	if (events & EPOLLOUT)
		flush(conn);
	if (may_read(conn))
		read_frames(conn);
	else if (events & (EPOLLHUP | EPOLLERR))
		die(conn, "closed by peer");
	update_events(conn);
}

/* ---- life ---- */

int conn_init(struct conn *conn, struct loop *loop, struct closer *closer, int fd,
	      const struct conn_ops *ops, const struct conn_limits *limits)
{
	memset(conn, 0, sizeof(*conn));
	conn->loop = loop;
	conn->closer = closer;
	conn->fd = fd;
	conn->ops = ops;
	conn->limits = *limits;
	conn->watch = (struct loop_watch){.fd = fd, .events = EPOLLIN, .fn = on_event, .ctx = conn};
	if (loop_add(loop, &conn->watch) == 0)
		return 0;
	conn_fini(conn);
	return -SKVQ_ESYS;
}

int conn_init_lingering(struct conn *conn, struct loop *loop, struct closer *closer, int fd,
			const struct conn_ops *ops, const struct conn_limits *limits)
{
	int err = conn_init(conn, loop, closer, fd, ops, limits);

	if (err < 0)
		return err;
	conn->ending = conn->lingering = true;
	if (loop_mod(loop, &conn->watch, 0) == 0)
		return 0;
	conn_fini(conn);
	return -SKVQ_ESYS;
}

void conn_fini(struct conn *conn)
{
	loop_del(conn->loop, &conn->watch);
	close_fds(conn);
	while (conn->out_head) {
		struct conn_out *out = conn->out_head;

		conn->out_head = out->next;
		conn_out_free(out);
	}
	free(conn->payload);
	conn->payload = NULL;
	if (conn->fd >= 0) {
		/* The peer sees the end now, whenever the closer gets to it. */
		(void)shutdown(conn->fd, SHUT_RDWR);
		closer_close(conn->closer, conn->fd);
	}
	conn->fd = -1;
}
