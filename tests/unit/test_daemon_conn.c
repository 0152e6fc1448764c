/* SPDX-License-Identifier: Apache-2.0 */
/* control/conn: frames and descriptors from a peer that does it right, and from ones that do not.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "seeded.h"

#include <skvq/error.h>

#include "control/conn.h"
#include "support/raw_client.h"

#define FRAME_MAX   65536u
#define BACKLOG_MAX 4096u

/* A connection on one end of a socketpair, and what it told us. */
struct rig {
	struct loop loop;
	struct conn conn; /* first: callbacks get it back by a cast */
	int peer;
	int frames, broken_code, deads;
	uint32_t last_bytes, last_fds;
	uint8_t last[FRAME_MAX];
	bool keep_fd, holds;
	int kept;
	char why[256], reason[64];
};

static struct rig *rig_of(struct conn *conn)
{
	return (struct rig *)(void *)((char *)conn - offsetof(struct rig, conn));
}

static void on_frame(struct conn *conn, struct conn_frame *frame)
{
	struct rig *rig = rig_of(conn);

	rig->frames++;
	rig->last_bytes = frame->bytes;
	rig->last_fds = frame->n_fds;
	memcpy(rig->last, frame->payload, frame->bytes);
	if (rig->keep_fd && frame->n_fds) {
		rig->kept = frame->fds[0];
		frame->fds[0] = -1;
	}
}

static void on_broken(struct conn *conn, int code, const char *why)
{
	struct rig *rig = rig_of(conn);

	assert_int_equal(rig->broken_code, 0);
	rig->broken_code = code;
	snprintf(rig->why, sizeof(rig->why), "%s", why);
}

static void on_dead(struct conn *conn, const char *reason)
{
	struct rig *rig = rig_of(conn);

	rig->deads++;
	snprintf(rig->reason, sizeof(rig->reason), "%s", reason);
}

static bool on_holds(const struct conn *conn)
{
	return rig_of((struct conn *)(uintptr_t)conn)->holds;
}

static const struct conn_ops test_ops = {on_frame, on_broken, on_dead, on_holds};

static int open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static int fds_before;

static int setup(void **state)
{
	const struct conn_limits limits = {.frame_max = FRAME_MAX, .backlog_max = BACKLOG_MAX};
	struct rig *rig = calloc(1, sizeof(*rig));
	int pair[2];

	fds_before = open_fds();
	if (!rig || loop_init(&rig->loop) < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 ||
	    conn_init(&rig->conn, &rig->loop, NULL, pair[0], &test_ops, &limits) < 0)
		return -1;
	rig->peer = pair[1];
	rig->kept = -1;
	*state = rig;
	return 0;
}

static int teardown(void **state)
{
	struct rig *rig = *state;

	conn_fini(&rig->conn);
	loop_fini(&rig->loop);
	close(rig->peer);
	if (rig->kept >= 0)
		close(rig->kept);
	free(rig);
	/* Nothing a peer sends may stay open here. */
	return open_fds() == fds_before ? 0 : -1;
}

static void step(struct rig *rig)
{
	for (int i = 0; i < 4; i++)
		assert_int_equal(loop_step(&rig->loop, 0), 0);
}

static void send_header(struct rig *rig, uint32_t bytes, uint16_t n_fds, uint16_t magic,
			const int *fds, size_t fds_sent)
{
	uint8_t header[8];

	raw_header(header, bytes, n_fds, magic);
	assert_int_equal(raw_send_bytes(rig->peer, header, 8, fds, fds_sent), 8);
	step(rig);
}

static void assert_broken(struct rig *rig, int code, const char *says)
{
	step(rig);
	assert_int_equal(rig->broken_code, code);
	assert_int_equal(rig->deads, 1);
	if (!strstr(rig->why, says))
		fail_msg("\"%s\" does not say \"%s\"", rig->why, says);
}

/* ---- right ---- */

static void whole_frames(void **state)
{
	struct rig *rig = *state;
	uint8_t two[8 + 3 + 8 + 1];

	raw_header(two, 3, 0, RAW_MAGIC);
	memcpy(two + 8, "abc", 3);
	raw_header(two + 11, 1, 0, RAW_MAGIC);
	two[19] = 'd';
	assert_int_equal(raw_send_bytes(rig->peer, two, sizeof(two), NULL, 0), sizeof(two));
	step(rig);
	assert_int_equal(rig->frames, 2);
	assert_int_equal(rig->last_bytes, 1);
	assert_int_equal(rig->last[0], 'd');
	assert_int_equal(rig->deads, 0);
}

static void trickled_byte_by_byte(void **state)
{
	struct rig *rig = *state;
	uint8_t frame[8 + 5];
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	raw_header(frame, 5, 1, RAW_MAGIC);
	memcpy(frame + 8, "hello", 5);
	for (size_t i = 0; i < sizeof(frame); i++) {
		assert_int_equal(rig->frames, 0);
		assert_int_equal(raw_send_bytes(rig->peer, frame + i, 1, &fd, i == 0), 1);
		step(rig);
	}
	close(fd);
	assert_int_equal(rig->frames, 1);
	assert_int_equal(rig->last_fds, 1);
	assert_memory_equal(rig->last, "hello", 5);
}

static void largest_frame_in_any_pieces(void **state)
{
	struct rig *rig = *state;
	struct seeded rng = seeded_init();
	uint8_t *frame = malloc(8 + FRAME_MAX);
	size_t at = 0;

	assert_non_null(frame);
	for (uint32_t i = 0; i < FRAME_MAX; i++)
		frame[8 + i] = (uint8_t)seeded_u64(&rng);
	raw_header(frame, FRAME_MAX, 0, RAW_MAGIC);
	while (at < 8 + FRAME_MAX) {
		size_t n = 1 + seeded_below(&rng, 9000);

		if (n > 8 + FRAME_MAX - at)
			n = 8 + FRAME_MAX - at;
		at += (size_t)raw_send_bytes(rig->peer, frame + at, n, NULL, 0);
		step(rig);
	}
	assert_int_equal(rig->frames, 1);
	assert_memory_equal(rig->last, frame + 8, FRAME_MAX);
	free(frame);
}

static void descriptors_of_neighbours_stay_apart(void **state)
{
	struct rig *rig = *state;
	uint8_t frame[9];
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	/* All three lie in the socket before the first is read. */
	rig->keep_fd = true;
	for (int i = 0; i < 3; i++) {
		raw_header(frame, 1, i == 1, RAW_MAGIC);
		frame[8] = (uint8_t)i;
		assert_int_equal(raw_send_bytes(rig->peer, frame, 9, &fd, i == 1), 9);
	}
	close(fd);
	step(rig);
	assert_int_equal(rig->frames, 3);
	assert_int_equal(rig->broken_code, 0);
	assert_true(rig->kept >= 0);
	assert_true(fcntl(rig->kept, F_GETFD) & FD_CLOEXEC);
}

/* ---- wrong ---- */

static void wrong_magic(void **state)
{
	send_header(*state, 1, 0, 0x4b54, NULL, 0);
	assert_broken(*state, SKVQ_EPROTO, "magic is 0x4b54");
}

static void empty_payload(void **state)
{
	send_header(*state, 0, 0, RAW_MAGIC, NULL, 0);
	assert_broken(*state, SKVQ_EPROTO, "0 bytes");
}

static void oversized(void **state)
{
	send_header(*state, FRAME_MAX + 1, 0, RAW_MAGIC, NULL, 0);
	assert_broken(*state, SKVQ_EFRAME, "65537");
}

static void hugest(void **state)
{
	send_header(*state, UINT32_MAX, 0, RAW_MAGIC, NULL, 0);
	assert_broken(*state, SKVQ_EFRAME, "4294967295");
}

static void too_many_descriptors_said(void **state)
{
	send_header(*state, 1, 5, RAW_MAGIC, NULL, 0);
	assert_broken(*state, SKVQ_EPROTO, "5 descriptors");
}

static void fewer_descriptors_than_said(void **state)
{
	int fd = 0;

	send_header(*state, 1, 2, RAW_MAGIC, &fd, 1);
	assert_broken(*state, SKVQ_EPROTO, "says 2 descriptors, 1 came");
}

static void more_descriptors_than_said(void **state)
{
	int fd = 0;

	send_header(*state, 1, 0, RAW_MAGIC, &fd, 1);
	assert_broken(*state, SKVQ_EPROTO, "says 0 descriptors, 1 came");
}

static void a_flood_of_descriptors(void **state)
{
	int fds[64] = {0};

	send_header(*state, 1, 4, RAW_MAGIC, fds, 64);
	assert_broken(*state, SKVQ_EPROTO, "64 descriptors in one message");
}

static void descriptors_in_the_payload(void **state)
{
	struct rig *rig = *state;
	int fd = 0;

	send_header(rig, 4, 1, RAW_MAGIC, &fd, 1);
	assert_int_equal(raw_send_bytes(rig->peer, "ab", 2, &fd, 1), 2);
	assert_broken(rig, SKVQ_EPROTO, "inside a frame");
}

static void closed_inside_a_frame(void **state)
{
	struct rig *rig = *state;

	send_header(rig, 4, 0, RAW_MAGIC, NULL, 0);
	assert_int_equal(shutdown(rig->peer, SHUT_WR), 0);
	step(rig);
	assert_int_equal(rig->deads, 1);
	assert_int_equal(rig->broken_code, 0);
	assert_string_equal(rig->reason, "closed by peer inside a frame");
}

static void half_a_frame_costs_little(void **state)
{
	struct rig *rig = *state;

	send_header(rig, FRAME_MAX, 0, RAW_MAGIC, NULL, 0);
	assert_int_equal(rig->conn.payload_cap, 4096); /* not the 64 KiB it announces */
	assert_int_equal(raw_send_bytes(rig->peer, "x", 1, NULL, 0), 1);
	step(rig);
	assert_int_equal(rig->conn.payload_cap, 4096);
	assert_int_equal(rig->deads, 0); /* it may take its time */
}

static void random_bytes(void **state)
{
	struct rig *rig = *state;
	struct seeded rng = seeded_init();
	uint8_t junk[512];

	for (size_t i = 0; i < sizeof(junk); i++)
		junk[i] = (uint8_t)seeded_u64(&rng);
	(void)raw_send_bytes(rig->peer, junk, sizeof(junk), NULL, 0);
	step(rig);
	assert_int_equal(rig->deads, 1);
	assert_int_equal(rig->frames, 0);
}

/* ---- a peer that does not read ---- */

static void send_reply(struct rig *rig, uint32_t bytes)
{
	struct conn_out *out = conn_out_new(bytes, -1);

	assert_non_null(out);
	memset(conn_out_payload(out), 'r', bytes);
	conn_send(&rig->conn, out);
}

static void slow_reader_is_read_no_more(void **state)
{
	struct rig *rig = *state;
	uint8_t frame[9], buf[65536];
	int small = 4096;

	raw_header(frame, 1, 0, RAW_MAGIC);
	assert_int_equal(setsockopt(rig->conn.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	while (rig->conn.out_bytes <= BACKLOG_MAX)
		send_reply(rig, 1000);
	assert_int_equal(rig->deads, 0);
	assert_int_equal(raw_send_bytes(rig->peer, frame, 9, NULL, 0), 9);
	step(rig);
	assert_int_equal(rig->frames, 0); /* waits until replies are taken */
	for (int i = 0; i < 20; i++) {
		(void)recv(rig->peer, buf, sizeof(buf), 0);
		step(rig);
	}
	assert_int_equal(rig->frames, 1);
	assert_int_equal(rig->conn.out_bytes, 0);
}

static void hopeless_reader_is_closed(void **state)
{
	struct rig *rig = *state;

	for (int i = 0; i < 10000 && !rig->deads; i++)
		send_reply(rig, 1000);
	assert_int_equal(rig->deads, 1);
	assert_true(rig->conn.piled_up);
	assert_true(rig->conn.out_bytes <= BACKLOG_MAX + FRAME_MAX + 1008);
	send_reply(rig, 1000); /* lost, not leaked */
	conn_end(&rig->conn, "again");
	assert_int_equal(rig->deads, 1);
}

static void peer_that_vanishes(void **state)
{
	struct rig *rig = *state;

	while (rig->conn.out_bytes <= BACKLOG_MAX)
		send_reply(rig, 1000);
	close(rig->peer);
	rig->peer = dup(0);
	step(rig);
	assert_int_equal(rig->deads, 1);
}

/* What a peer holds ends when the peer closes, not when we lose patience with it. */
static void peer_that_holds_memory_lingers(void **state)
{
	struct rig *rig = *state;
	char byte;

	rig->holds = true;
	conn_end(&rig->conn, "protocol error");
	for (int i = 0; i < 3; i++)
		step(rig);
	assert_int_equal(rig->deads, 0);
	/* It sees the end of file, and nothing that comes later; what it sends is not read. */
	send_reply(rig, 1000);
	assert_int_equal(recv(rig->peer, &byte, 1, MSG_DONTWAIT), 0);
	assert_int_equal(send(rig->peer, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL), 1);
	step(rig);
	assert_int_equal(rig->frames, 0);
	assert_int_equal(rig->deads, 0);
	close(rig->peer);
	rig->peer = dup(0);
	step(rig);
	assert_int_equal(rig->deads, 1);
}

static void killing_waits_for_nobody(void **state)
{
	struct rig *rig = *state;

	rig->holds = true;
	conn_end(&rig->conn, "protocol error");
	assert_int_equal(rig->deads, 0);
	conn_kill(&rig->conn, "daemon ends");
	assert_int_equal(rig->deads, 1);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
	    T(whole_frames),
	    T(trickled_byte_by_byte),
	    T(largest_frame_in_any_pieces),
	    T(descriptors_of_neighbours_stay_apart),
	    T(wrong_magic),
	    T(empty_payload),
	    T(oversized),
	    T(hugest),
	    T(too_many_descriptors_said),
	    T(fewer_descriptors_than_said),
	    T(more_descriptors_than_said),
	    T(a_flood_of_descriptors),
	    T(descriptors_in_the_payload),
	    T(closed_inside_a_frame),
	    T(half_a_frame_costs_little),
	    T(random_bytes),
	    T(slow_reader_is_read_no_more),
	    T(hopeless_reader_is_closed),
	    T(peer_that_vanishes),
	    T(peer_that_holds_memory_lingers),
	    T(killing_waits_for_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
