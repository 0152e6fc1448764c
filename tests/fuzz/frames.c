/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a client may put on its socket: bytes cut anywhere, descriptors of any kind and number,
 * frames good and bad, one connection after another.
 *
 *   input: steps of one byte (what), then what it takes
 */
#include <sys/socket.h>
#include <unistd.h>

#include "rig.h"
#include "skvq_control.pb-c.h"
#include "support/page_maker.h"
#include "support/raw_client.h"

enum step { BYTES, FRAME, BYTES_FDS, FRAME_FDS, WORK, DRAIN, SHUT, RECONNECT, STEPS };

#define LATER     0x80u /* flag of a step: the daemon is not let run behind it */
#define STEPS_MAX 48

static void send_bytes(struct fuzz_in piece, bool framed, const int *fds, uint32_t n_fds)
{
	uint8_t buf[8 + 65536];
	size_t n = 0;

	if (rig.peer < 0)
		return;
	if (framed) {
		raw_header(buf, (uint32_t)piece.left, (uint16_t)n_fds, RAW_MAGIC);
		n = 8;
	}
	if (piece.left)
		memcpy(buf + n, piece.at, piece.left);
	n += piece.left;
	if (n)
		(void)raw_send_bytes(rig.peer, buf, n, fds, n_fds);
}

static void send_with_fds(struct fuzz_in *in, bool framed)
{
	int list[16];
	uint32_t n = fuzz_u8(in) % 17;

	for (uint32_t i = 0; i < n; i++)
		list[i] = fz_fd((enum fz_fd)(fuzz_u8(in) % RIG_FDS));
	send_bytes(fuzz_piece(in), framed, list, n);
}

static void do_step(struct fuzz_in *in)
{
	uint8_t step = fuzz_u8(in);

	switch ((enum step)(step % STEPS)) {
	case BYTES:
	case FRAME:
		send_bytes(fuzz_piece(in), step % STEPS == FRAME, NULL, 0);
		break;
	case BYTES_FDS:
	case FRAME_FDS:
		send_with_fds(in, step % STEPS == FRAME_FDS);
		break;
	case WORK:
		fz_work();
		break;
	case DRAIN:
		fz_drain();
		break;
	case SHUT:
		if (rig.peer >= 0)
			(void)shutdown(rig.peer, SHUT_WR);
		break;
	default:
		fz_connect();
		break;
	}
	if (!(step & LATER))
		fz_step();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};

	fz_begin();
	fz_connect();
	for (int i = 0; in.left && i < STEPS_MAX; i++)
		do_step(&in);
	fz_end();
	return 0;
}

/* ---- seeds ---- */

static void put_frame(struct fuzz_out *out, raw_request *rq, int fd_kind)
{
	uint8_t buf[4096];
	size_t n;

	rq->id = out->n + 1;
	n = protobuf_c_message_get_packed_size(&rq->base);
	FUZZ_CHECK(n <= sizeof(buf));
	protobuf_c_message_pack(&rq->base, buf);
	fuzz_put_u8(out, fd_kind < 0 ? FRAME : FRAME_FDS);
	if (fd_kind >= 0) {
		fuzz_put_u8(out, 1);
		fuzz_put_u8(out, (uint8_t)fd_kind);
	}
	fuzz_put_piece(out, buf, n);
}

#define PUT(body_, BODY_, message_)                                                                \
	do {                                                                                       \
		raw_request rq = SKVQ__WIRE__REQUEST__INIT;                                        \
		rq.body_case = SKVQ__WIRE__REQUEST__BODY_##BODY_;                                  \
		rq.body_ = &(message_);                                                            \
		put_frame(out, &rq, fd_kind);                                                      \
	} while (0)

static void put_hello(struct fuzz_out *out)
{
	Skvq__Wire__Hello m = SKVQ__WIRE__HELLO__INIT;
	const int fd_kind = -1;

	m.version_major = 1;
	m.features = 63;
	m.name = (char *)(uintptr_t) "a";
	PUT(hello, HELLO, m);
}

static void put_open(struct fuzz_out *out)
{
	Skvq__Wire__NamespaceOpen m = SKVQ__WIRE__NAMESPACE_OPEN__INIT;
	const int fd_kind = -1;

	m.identity = raw_identity(0);
	m.model_name = (char *)(uintptr_t) "m";
	PUT(namespace_open, NAMESPACE_OPEN, m);
}

static void put_staging(struct fuzz_out *out, int fd_kind)
{
	Skvq__Wire__StagingAdd m = SKVQ__WIRE__STAGING_ADD__INIT;

	PUT(staging_add, STAGING_ADD, m);
}

static void put_publish(struct fuzz_out *out)
{
	Skvq__Wire__Publish m = SKVQ__WIRE__PUBLISH__INIT;
	int32_t tokens[RIG_PAGES * SKVQ_PAGE_TOKENS];
	const int fd_kind = -1;

	for (uint32_t i = 0; i < RIG_PAGES; i++)
		maker_tokens(1, i, tokens + i * SKVQ_PAGE_TOKENS);
	m.ns = 1;
	m.staging = 1;
	m.n_pages = RIG_PAGES;
	m.n_tokens = RIG_PAGES * SKVQ_PAGE_TOKENS;
	m.tokens = tokens;
	PUT(publish, PUBLISH, m);
}

static void put_calibration(struct fuzz_out *out)
{
	Skvq__Wire__CalibrationPut m = SKVQ__WIRE__CALIBRATION_PUT__INIT;
	const int fd_kind = RIG_FD_CALIBRATION;

	m.bytes = 2352;
	PUT(calibration_put, CALIBRATION_PUT, m);
}

static void put_ping(struct fuzz_out *out)
{
	Skvq__Wire__Ping m = SKVQ__WIRE__PING__INIT;
	const int fd_kind = -1;

	m.payload = (ProtobufCBinaryData){3, (uint8_t *)(uintptr_t) "abc"};
	PUT(ping, PING, m);
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	struct fuzz_out out = {.at = at};

	if (i > 3)
		return 0;
	put_hello(&out);
	if (i == 1) {
		put_open(&out);
		put_staging(&out, RIG_FD_STAGING);
		put_publish(&out);
		fuzz_put_u8(&out, WORK);
		fuzz_put_u8(&out, DRAIN);
	}
	if (i == 2) {
		put_calibration(&out);
		fuzz_put_u8(&out, WORK);
		put_staging(&out, RIG_FD_PIPE);
		fuzz_put_u8(&out, RECONNECT);
		put_ping(&out);
	}
	if (i == 3) {
		uint8_t half[8 + 2];

		put_ping(&out);
		raw_header(half, 100, 0, RAW_MAGIC);
		memcpy(half + 8, "xy", 2);
		fuzz_put_u8(&out, BYTES);
		fuzz_put_piece(&out, half, sizeof(half));
		fuzz_put_u8(&out, SHUT);
	}
	return out.n;
}
