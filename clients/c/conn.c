/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames and requests. The daemon's bytes are checked like anybody's: a frame that is too long, a
 * message that does not parse, an answer to nothing or a surplus descriptor breaks the connection.
 */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint64_t client_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int client_fail(struct skvq_client *c, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->why, sizeof c->why, fmt, ap);
	va_end(ap);
	return -err;
}

int client_break(struct skvq_client *c, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->why, sizeof c->why, fmt, ap);
	va_end(ap);
	c->broken = true;
	while (c->n_fds > 0)
		close(c->fds[--c->n_fds]);
	c->in_len = c->out_len = c->out_off = 0;
	c->n_inflight = 0;
	return -err;
}

static int wait_for(struct skvq_client *c, short events, uint64_t deadline_ms)
{
	for (;;) {
		uint64_t now = client_now_ms();
		struct pollfd p = {.fd = c->fd, .events = events};
		uint64_t left = now < deadline_ms ? deadline_ms - now : 0;
		int n = poll(&p, 1, left < INT32_MAX ? (int)left : INT32_MAX);

		if (n > 0)
			return 0;
		if (n == 0)
			return -SKVQ_ETIMEOUT;
		if (errno != EINTR)
			return -SKVQ_ESYS;
	}
}

static bool reserve(uint8_t **buf, size_t *cap, size_t need)
{
	size_t grown = *cap ? *cap : 4096;

	if (need <= *cap)
		return true;
	while (grown < need)
		grown *= 2;
	uint8_t *p = realloc(*buf, grown);
	if (!p)
		return false;
	*buf = p;
	*cap = grown;
	return true;
}

/* Gives queued bytes to the socket until it is full. */
static int flush_some(struct skvq_client *c)
{
	while (c->out_off < c->out_len) {
		ssize_t n = send(c->fd, c->out + c->out_off, c->out_len - c->out_off,
		                 MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN)
				return 0;
			return client_break(c, SKVQ_ENODAEMON, "the daemon closed the connection: %s",
			                    strerror(errno));
		}
		c->out_off += (size_t)n;
	}
	c->out_off = c->out_len = 0;
	return 0;
}

static int flush_all(struct skvq_client *c, uint64_t deadline_ms)
{
	for (;;) {
		int r = flush_some(c);
		if (r < 0 || c->out_len == 0)
			return r;
		if (wait_for(c, POLLOUT, deadline_ms) < 0)
			return client_break(c, SKVQ_ETIMEOUT, "the daemon takes no requests");
	}
}

static int queue_frame(struct skvq_client *c, const Skvq__Wire__Request *req, unsigned n_fds)
{
	size_t bytes = skvq__wire__request__get_packed_size(req);

	if (c->hello.frame_bytes_max && bytes > c->hello.frame_bytes_max)
		return client_fail(c, SKVQ_EFRAME,
		                   "a request of %zu bytes exceeds the daemon's bound of %u", bytes,
		                   c->hello.frame_bytes_max);
	if (!reserve(&c->out, &c->out_cap, c->out_len + FRAME_HEADER_BYTES + bytes))
		return client_fail(c, SKVQ_ENOMEM, "no memory for a request of %zu bytes", bytes);
	uint8_t *p = c->out + c->out_len;
	p[0] = (uint8_t)bytes;
	p[1] = (uint8_t)(bytes >> 8);
	p[2] = (uint8_t)(bytes >> 16);
	p[3] = (uint8_t)(bytes >> 24);
	p[4] = (uint8_t)n_fds;
	p[5] = 0;
	p[6] = FRAME_MAGIC & 0xff;
	p[7] = FRAME_MAGIC >> 8;
	skvq__wire__request__pack(req, p + FRAME_HEADER_BYTES);
	c->out_len += FRAME_HEADER_BYTES + bytes;
	return 0;
}

/* Sends the first byte of the (only) queued frame with a descriptor. */
static int send_fd(struct skvq_client *c, int fd, uint64_t deadline_ms)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} ctl;
	struct iovec iov = {.iov_base = c->out, .iov_len = c->out_len};
	struct msghdr msg = {.msg_iov = &iov,
	                     .msg_iovlen = 1,
	                     .msg_control = ctl.buf,
	                     .msg_controllen = sizeof ctl.buf};

	memset(&ctl, 0, sizeof ctl);
	struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cm), &fd, sizeof fd);
	for (;;) {
		ssize_t n = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0) {
			c->out_off = (size_t)n;
			return 0;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			return client_break(c, SKVQ_ENODAEMON, "the daemon closed the connection: %s",
			                    strerror(errno));
		if (wait_for(c, POLLOUT, deadline_ms) < 0)
			return client_break(c, SKVQ_ETIMEOUT, "the daemon takes no requests");
	}
}

static uint32_t frame_bytes(const uint8_t *h)
{
	return (uint32_t)h[0] | (uint32_t)h[1] << 8 | (uint32_t)h[2] << 16 | (uint32_t)h[3] << 24;
}

/* Reads what is there towards the next frame: 1 when it is whole, 0 when the socket is empty. */
static int read_some(struct skvq_client *c)
{
	for (;;) {
		size_t want = FRAME_HEADER_BYTES;
		if (c->in_len >= FRAME_HEADER_BYTES) {
			uint32_t bytes = frame_bytes(c->in);
			unsigned magic = c->in[6] | (unsigned)c->in[7] << 8;
			if (magic != FRAME_MAGIC || bytes == 0 || bytes > REPLY_BYTES_MAX)
				return client_break(c, SKVQ_EPROTO,
				                    "the daemon sent a broken frame header (%u bytes)", bytes);
			want += bytes;
			if (c->in_len == want) {
				unsigned n_fds = c->in[4] | (unsigned)c->in[5] << 8;
				if (n_fds != c->n_fds)
					return client_break(
					    c, SKVQ_EPROTO,
					    "the daemon announced %u descriptors and sent %zu", n_fds,
					    c->n_fds);
				return 1;
			}
		}
		if (!reserve(&c->in, &c->in_cap, want))
			return client_break(c, SKVQ_ENOMEM, "no memory for a reply of %zu bytes", want);

		union {
			struct cmsghdr align;
			char buf[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))];
		} ctl;
		struct iovec iov = {.iov_base = c->in + c->in_len, .iov_len = want - c->in_len};
		struct msghdr msg = {.msg_iov = &iov,
		                     .msg_iovlen = 1,
		                     .msg_control = ctl.buf,
		                     .msg_controllen = sizeof ctl.buf};
		ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0)
			return client_break(c, SKVQ_ENODAEMON, "the daemon closed the connection");
		for (struct cmsghdr *cm = CMSG_FIRSTHDR(&msg); cm; cm = CMSG_NXTHDR(&msg, cm)) {
			if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
				continue;
			size_t n_fds = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			for (size_t i = 0; i < n_fds; i++) {
				int fd;
				memcpy(&fd, CMSG_DATA(cm) + i * sizeof fd, sizeof fd);
				if (c->n_fds < FRAME_FDS_MAX)
					c->fds[c->n_fds++] = fd;
				else
					close(fd);
			}
		}
		c->in_len += (size_t)n;
		if (msg.msg_flags & MSG_CTRUNC)
			return client_break(c, SKVQ_EPROTO, "the daemon sent too many descriptors");
	}
}

/* Takes the frame that read_some completed. NULL: broken, why is set. */
static Skvq__Wire__Reply *take_reply(struct skvq_client *c)
{
	Skvq__Wire__Reply *r = skvq__wire__reply__unpack(NULL, c->in_len - FRAME_HEADER_BYTES,
	                                                 c->in + FRAME_HEADER_BYTES);
	c->in_len = 0;
	if (!r) {
		client_break(c, SKVQ_EPROTO, "the daemon sent a reply that does not parse");
		return NULL;
	}
	if (c->hello.boot_id && r->boot_id != c->hello.boot_id) {
		skvq__wire__reply__free_unpacked(r, NULL);
		client_break(c, SKVQ_EPROTO, "the daemon changed its boot id on one connection");
		return NULL;
	}
	return r;
}

static void published(struct skvq_client *c, const Skvq__Wire__Reply *r)
{
	struct skvq_page_ref refs[SKVQ_CLIENT_RUN_MAX];
	size_t n = 0;
	uint32_t n_existed = 0;
	int err = r->error < 4096 ? (int)r->error : SKVQ_EPROTO;

	if (r->body_case == SKVQ__WIRE__REPLY__BODY_PUBLISH) {
		const Skvq__Wire__PublishReply *b = r->publish;
		n_existed = b->n_existed;
		for (size_t i = 0; i < b->n_pages && n < SKVQ_CLIENT_RUN_MAX; i++)
			refs[n++] = (struct skvq_page_ref){b->pages[i]->slot, b->pages[i]->generation};
	} else if (!err) {
		err = SKVQ_EPROTO;
	}
	if (c->published)
		c->published(c->published_user, r->id, -err, r->detail, refs, n, n_existed);
}

/* An answer that no call waits for. */
static int handle_async(struct skvq_client *c, const Skvq__Wire__Reply *r)
{
	if (r->id == 0)
		return client_break(c, r->error && r->error < 4096 ? (int)r->error : SKVQ_EPROTO, "%s",
		                    r->detail[0] ? r->detail : "the daemon gave up the connection");
	if (c->events_id && r->id == c->events_id)
		return client_events(c, r);
	for (size_t i = 0; i < c->n_inflight; i++) {
		if (c->inflight[i].id != r->id)
			continue;
		bool is_publish = c->inflight[i].is_publish;
		c->inflight[i] = c->inflight[--c->n_inflight];
		if (is_publish)
			published(c, r);
		return 0;
	}
	return client_break(c, SKVQ_EPROTO, "the daemon answered request %llu, which nobody made",
	                    (unsigned long long)r->id);
}

int skvq_client_poll(struct skvq_client *c, uint32_t wait_ms)
{
	uint64_t deadline = client_now_ms() + wait_ms;
	bool got = false;

	if (c->broken)
		return -SKVQ_ENODAEMON;
	for (;;) {
		int r = flush_some(c);
		if (r < 0)
			return r;
		r = read_some(c);
		if (r < 0)
			return r;
		if (r == 1) {
			Skvq__Wire__Reply *reply = take_reply(c);
			if (!reply)
				return -SKVQ_EPROTO;
			int h = handle_async(c, reply);
			skvq__wire__reply__free_unpacked(reply, NULL);
			if (h < 0)
				return h;
			got = true;
			/* Events may come faster than they are read for ever. */
			if (!c->events_id || client_now_ms() < deadline)
				continue;
		}
		if (got || (c->n_inflight == 0 && !c->events_id) || client_now_ms() >= deadline)
			return (int)c->n_inflight;
		(void)wait_for(c, (short)(POLLIN | (c->out_len ? POLLOUT : 0)), deadline);
	}
}

int client_call(struct skvq_client *c, Skvq__Wire__Request *req, int fd,
                Skvq__Wire__Reply__BodyCase want, Skvq__Wire__Reply **ret, int *ret_fd)
{
	uint64_t deadline = client_now_ms() + c->timeout_ms;

	if (c->broken)
		return -SKVQ_ENODAEMON;
	req->id = ++c->next_id;
	int r = flush_all(c, deadline);
	if (r < 0)
		return r;
	r = queue_frame(c, req, fd >= 0 ? 1 : 0);
	if (r < 0)
		return r;
	if (fd >= 0 && (r = send_fd(c, fd, deadline)) < 0)
		return r;
	if ((r = flush_all(c, deadline)) < 0)
		return r;

	for (;;) {
		r = read_some(c);
		if (r < 0)
			return r;
		if (r == 0) {
			if (wait_for(c, POLLIN, deadline) < 0)
				return client_break(c, SKVQ_ETIMEOUT,
				                    "the daemon did not answer within %u ms", c->timeout_ms);
			continue;
		}
		Skvq__Wire__Reply *reply = take_reply(c);
		if (!reply)
			return -SKVQ_EPROTO;
		if (reply->id != req->id) {
			r = handle_async(c, reply);
			skvq__wire__reply__free_unpacked(reply, NULL);
			if (r < 0)
				return r;
			continue;
		}
		size_t n_fds = c->n_fds;
		int got_fd = n_fds ? c->fds[0] : -1;
		size_t want_fds = ret_fd && !reply->error ? 1 : 0;
		if (n_fds != want_fds) {
			r = client_break(c, SKVQ_EPROTO, "the daemon sent %zu descriptors, not %zu", n_fds,
			                 want_fds);
		} else if (reply->error) {
			r = client_fail(c, reply->error < 4096 ? (int)reply->error : SKVQ_EPROTO, "%s",
			                reply->detail);
		} else if (reply->body_case != want) {
			r = client_break(c, SKVQ_EPROTO, "the daemon sent answer kind %d, not %d",
			                 (int)reply->body_case, (int)want);
		} else {
			c->n_fds = 0;
			if (ret_fd)
				*ret_fd = got_fd;
			*ret = reply;
			return 0;
		}
		skvq__wire__reply__free_unpacked(reply, NULL);
		return r;
	}
}

int client_post(struct skvq_client *c, Skvq__Wire__Request *req, bool is_publish, uint64_t *ret_id)
{
	if (c->broken)
		return -SKVQ_ENODAEMON;
	uint32_t bound = c->hello.requests_max && c->hello.requests_max < INFLIGHT_MAX
	                     ? c->hello.requests_max
	                     : INFLIGHT_MAX;
	if (bound < 2)
		bound = 2; /* one asynchronous, one blocking; the daemon may refuse the second */
	/* One place stays free for the blocking call that may come next. */
	while (c->n_inflight + 1 >= bound) {
		if (is_publish)
			return client_fail(c, SKVQ_EAGAIN, "%zu requests are in flight", c->n_inflight);
		/* An unpin may not get lost: wait for an answer to make room. */
		size_t before = c->n_inflight;
		uint64_t deadline = client_now_ms() + c->timeout_ms, now;
		int r = 0;
		/* Events come in between. */
		while (r >= 0 && c->n_inflight >= before && (now = client_now_ms()) < deadline)
			r = skvq_client_poll(c, (uint32_t)(deadline - now));
		if (r < 0)
			return r;
		if (c->n_inflight >= before)
			return client_break(c, SKVQ_ETIMEOUT, "the daemon did not answer within %u ms",
			                    c->timeout_ms);
	}
	req->id = ++c->next_id;
	int r = queue_frame(c, req, 0);
	if (r < 0)
		return r;
	c->inflight[c->n_inflight++] = (struct inflight){.id = req->id, .is_publish = is_publish};
	if (ret_id)
		*ret_id = req->id;
	return flush_some(c);
}
