/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/conn.h - one client's socket: frames in, frames out, descriptors with them.
 *
 *   8-byte header: uint32 payload_bytes | uint16 n_fds | uint16 magic 0x4b53   little-endian
 *
 * It knows frames and not what is in them. Reads never cross a frame's end or the end of its
 * header, because the kernel hands out descriptors with the first byte of the sendmsg() that
 * carried them: so those of a frame come with the first read of its header, and any others are a
 * protocol error. Nothing here blocks; what a client may make us hold is bounded:
 *   in    one frame, its buffer growing as bytes arrive
 *   out   past backlog_max bytes of unread replies we stop reading requests; past
 *         backlog_max + frame_max (answers that were still in the works) we close
 * Loop thread only.
 */
#ifndef SKVQD_CONTROL_CONN_H
#define SKVQD_CONTROL_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/closer.h"
#include "base/loop.h"

#define CONN_HEADER_BYTES 8u
#define CONN_MAGIC        0x4b53u
#define CONN_FDS_MAX      4u

struct conn;

/* A frame that has arrived. Valid during the callback; what it leaves in fds is closed after it. */
struct conn_frame {
	const uint8_t *payload;
	uint32_t bytes;
	uint32_t n_fds;
	int fds[CONN_FDS_MAX]; /* -1 where the callee took it */
};

struct conn_ops {
	void (*frame)(struct conn *conn, struct conn_frame *frame);
	/* The peer broke the framing. The callee may send one last frame. */
	void (*broken)(struct conn *conn, int code, const char *why);
	/* Nothing more will come or go: called once. The callee must not call conn_fini before the
	 * loop's after-hook, for conn functions may still be on the stack. */
	void (*dead)(struct conn *conn, const char *reason);
	/* Whether the peer may still be reading memory that it holds through this connection. Then
	 * conn_end lets it linger: what the peer holds ends when the peer closes its socket, not
	 * when we lose patience with it. NULL: never. */
	bool (*holds)(const struct conn *conn);
};

struct conn_limits {
	uint32_t frame_max;   /* bytes of a payload, both ways */
	uint32_t backlog_max; /* bytes of unread replies */
};

/* A frame on its way out. */
struct conn_out {
	struct conn_out *next;
	int fd; /* goes with the frame; -1: none. Owned. */
	size_t bytes, sent;
	uint8_t data[]; /* header, payload */
};

struct conn {
	struct loop *loop;
	struct closer *closer;
	struct loop_watch watch;
	int fd;
	const struct conn_ops *ops;
	struct conn_limits limits;
	bool dead;
	bool ending;    /* broken or turned away: no more reading, close when flushed */
	bool lingering; /* told the end, waiting for the peer to close */
	uint8_t header[CONN_HEADER_BYTES];
	uint32_t header_have;
	uint8_t *payload;
	uint32_t payload_bytes, payload_cap, payload_have;
	struct conn_frame in;
	struct conn_out *out_head, *out_tail;
	size_t out_bytes; /* unsent, headers included */
	bool piled_up;    /* died of unread replies */
};

/* Takes fd, which must be non-blocking, in any case. What came from the peer is closed by closer
 * (NULL: at once). -SKVQ_ESYS and fd is closed. */
int conn_init(struct conn *conn, struct loop *loop, struct closer *closer, int fd,
	      const struct conn_ops *ops, const struct conn_limits *limits);
void conn_fini(struct conn *conn);

/* A frame to fill; fd (or -1) is duplicated, the caller keeps its own. NULL: no memory or no
 * descriptor. Free by conn_send or conn_out_free. */
struct conn_out *conn_out_new(uint32_t payload_bytes, int fd);
static inline uint8_t *conn_out_payload(struct conn_out *out)
{
	return out->data + CONN_HEADER_BYTES;
}
void conn_out_free(struct conn_out *out);

/* Takes the frame; sends what goes at once and queues the rest. On a dead connection it is lost. */
void conn_send(struct conn *conn, struct conn_out *out);
/* Reads no more and sends what goes at once. Dies then, or lingers if the peer holds something. */
void conn_end(struct conn *conn, const char *reason);
/* For a daemon that ends and leaves the connection to the next: the peer reads the end of
 * file, the connection is dead, and the socket is the caller's. -1: the peer has gone. */
int conn_detach(struct conn *conn, const char *reason);
/* A connection that another process detached: it lingers from the start. As conn_init. */
int conn_init_lingering(struct conn *conn, struct loop *loop, struct closer *closer, int fd,
			const struct conn_ops *ops, const struct conn_limits *limits);
/* As conn_end, without lingering, for a daemon that ends: its memory outlives it in the peer's
 * mapping. */
void conn_kill(struct conn *conn, const char *reason);

#endif /* SKVQD_CONTROL_CONN_H */
