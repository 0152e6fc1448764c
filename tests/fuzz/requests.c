/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of a client that has said hello, opened a namespace and added a staging memfd with a
 * chain of good pages: each the bytes of one message, in any order, with descriptors, while copies
 * are under way or not, and with a second client that wants the same pages.
 *
 *   input: steps of one byte (what), field number of the request, descriptor; the message (piece)
 */
#include <fcntl.h>
#include <unistd.h>

#include <skvq/error.h>

#include "cache/fill.h"
#include "control/dispatch.h"
#include "rig.h"
#include "support/cache_rig.h"
#include "support/page_maker.h"

#define STEPS_MAX 32

enum step { REQUEST, WORK, DRAIN, REFUSE_JOBS, TRIM, SECOND, STEPS };

/* A session as it is after the requests that `frames` makes seeds of. */
static void prepare(void)
{
	struct session *s = rig.session;
	struct identity id;
	struct ns *ns;
	uint32_t staging;

	s->hello = true;
	s->features = WIRE_FEATURES;
	rig_identity(0, &id);
	FUZZ_CHECK(cache_ns_open(&rig.cache, rig.cache.tenants[0], &id, "m", &ns, NULL) == 0);
	FUZZ_CHECK(session_open_ns(s, ns) == 0);
	FUZZ_CHECK(session_add_staging(s, fcntl(fz_fd(RIG_FD_STAGING), F_DUPFD_CLOEXEC, 3),
				       &staging, NULL) == 0);
}

static void request(struct fuzz_in *in, uint64_t id)
{
	uint8_t n = fuzz_u8(in);
	uint32_t field = 10 + (n < 26 ? n : n % 18);
	uint8_t fd_kind = fuzz_u8(in);
	struct fuzz_in body = fuzz_piece(in);
	uint8_t buf[65536 + 64];
	struct conn_frame frame = {.payload = buf};

	if (!rig.session || rig.session->conn.dead || rig.session->conn.ending)
		return;
	frame.bytes = (uint32_t)fz_request(buf, sizeof(buf), id, field, body);
	if (fd_kind & 0x80) {
		frame.n_fds = 1;
		frame.fds[0] = fcntl(fz_fd((enum fz_fd)(fd_kind % RIG_FDS)), F_DUPFD_CLOEXEC, 3);
	}
	dispatch_frame(rig.session, &frame);
	if (frame.n_fds && frame.fds[0] >= 0)
		(void)close(frame.fds[0]);
}

/* The pages of the chain that are in memory hold what was in staging: whoever was let write. */
static void pages_are_sound(void)
{
	for (struct ns *ns = rig.cache.namespaces; ns; ns = ns->next) {
		for (uint32_t i = 0; i < ns->table.touched; i++) {
			const struct page *page = &ns->table.pages[i];

			if (page_readable(page))
				FUZZ_CHECK(page_sound(ns_layout(ns, page->safe),
						      ns->arena.base + ns_page_offset(ns, page),
						      ns_page_span(ns, page), page->shed,
						      page->digest));
		}
	}
}

static void do_step(struct fuzz_in *in, uint64_t id)
{
	switch ((enum step)(fuzz_u8(in) % STEPS)) {
	case REQUEST:
		request(in, id);
		break;
	case WORK:
		fz_work();
		break;
	case DRAIN:
		fz_drain();
		break;
	case REFUSE_JOBS:
		rig.refuse_jobs = !rig.refuse_jobs;
		break;
	case TRIM:
		cache_trim(&rig.cache);
		(void)cache_shrink(&rig.cache);
		break;
	default: /* the first one goes, whatever it has in flight */
		fz_connect();
		if (rig.session)
			prepare();
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};

	fz_begin();
	fz_connect();
	prepare();
	for (uint64_t i = 1; in.left && i <= STEPS_MAX; i++)
		do_step(&in, i);
	rig.refuse_jobs = false;
	fz_work();
	pages_are_sound();
	fz_end();
	return 0;
}

/* ---- seeds ---- */

static void put(struct fuzz_out *out, uint32_t field, uint8_t fd, const ProtobufCMessage *m)
{
	uint8_t buf[4096];

	fuzz_put_u8(out, REQUEST);
	fuzz_put_u8(out, (uint8_t)(field - 10));
	fuzz_put_u8(out, fd);
	fuzz_put_piece(out, buf, m ? protobuf_c_message_pack(m, buf) : 0);
}

static void put_publish(struct fuzz_out *out, uint32_t first, uint32_t n)
{
	Skvq__Wire__Publish m = SKVQ__WIRE__PUBLISH__INIT;
	Skvq__Wire__PageRef parent = SKVQ__WIRE__PAGE_REF__INIT;
	int32_t tokens[RIG_PAGES * SKVQ_PAGE_TOKENS];
	struct skvq_layout l;

	maker_layout(&l);
	for (uint32_t i = 0; i < n; i++)
		maker_tokens(1, first + i, tokens + i * SKVQ_PAGE_TOKENS);
	parent.slot = first ? first - 1 : 0;
	parent.generation = 1;
	m.ns = m.staging = 1;
	m.parent = first ? &parent : NULL;
	m.position = first * SKVQ_PAGE_TOKENS;
	m.offset = first * l.slot_bytes;
	m.n_pages = n;
	m.n_tokens = n * SKVQ_PAGE_TOKENS;
	m.tokens = tokens;
	put(out, 15, 0, &m.base);
}

static void put_match(struct fuzz_out *out, uint32_t field)
{
	Skvq__Wire__Match m = SKVQ__WIRE__MATCH__INIT;
	Skvq__Wire__Prefetch p = SKVQ__WIRE__PREFETCH__INIT;
	int32_t tokens[RIG_PAGES * SKVQ_PAGE_TOKENS];

	for (uint32_t i = 0; i < RIG_PAGES; i++)
		maker_tokens(1, i, tokens + i * SKVQ_PAGE_TOKENS);
	m.ns = p.ns = 1;
	m.tokens = p.tokens = tokens;
	m.n_tokens = p.n_tokens = RIG_PAGES * SKVQ_PAGE_TOKENS;
	m.max_tokens = RIG_PAGES * SKVQ_PAGE_TOKENS;
	m.wait_ms = 5;
	put(out, field, 0, field == 14 ? &m.base : &p.base);
}

static void put_refs(struct fuzz_out *out, uint32_t field)
{
	Skvq__Wire__Unpin m = SKVQ__WIRE__UNPIN__INIT;
	Skvq__Wire__PageRef refs[2] = {SKVQ__WIRE__PAGE_REF__INIT, SKVQ__WIRE__PAGE_REF__INIT};
	Skvq__Wire__PageRef *at[2] = {&refs[0], &refs[1]};

	refs[1].slot = 1;
	refs[0].generation = refs[1].generation = 1;
	m.ns = 1;
	m.n_pages = 2;
	m.pages = at;
	put(out, field, 0, &m.base); /* Unrefine has the same fields */
}

static void put_lists(struct fuzz_out *out)
{
	Skvq__Wire__PageList pages = SKVQ__WIRE__PAGE_LIST__INIT;
	Skvq__Wire__ErrorList errors = SKVQ__WIRE__ERROR_LIST__INIT;
	Skvq__Wire__Explain explain = SKVQ__WIRE__EXPLAIN__INIT;

	pages.ns = errors.ns = explain.ns = 1;
	pages.max = 2;
	put(out, 21, 0, NULL);
	put(out, 22, 0, NULL);
	put(out, 23, 0, &pages.base);
	put(out, 24, 0, NULL);
	put(out, 25, 0, &errors.base);
	put(out, 28, 0, &explain.base);
}

static void put_calibration(struct fuzz_out *out)
{
	Skvq__Wire__CalibrationPut m = SKVQ__WIRE__CALIBRATION_PUT__INIT;
	Skvq__Wire__CalibrationGet g = SKVQ__WIRE__CALIBRATION_GET__INIT;
	uint8_t weights[32] = {0};

	m.bytes = 2352;
	m.replace = true;
	g.weights_digest = (ProtobufCBinaryData){32, weights};
	g.n_layer = g.n_q_heads = g.n_kv_heads = 1;
	g.head_dim_k = g.head_dim_v = 16;
	put(out, 18, 0x80 | RIG_FD_CALIBRATION, &m.base);
	fuzz_put_u8(out, WORK);
	put(out, 17, 0, &g.base);
}

static void put_manage(struct fuzz_out *out)
{
	Skvq__Wire__PageGet get = SKVQ__WIRE__PAGE_GET__INIT;
	Skvq__Wire__Sweep sweep = SKVQ__WIRE__SWEEP__INIT;
	Skvq__Wire__PageRef ref = SKVQ__WIRE__PAGE_REF__INIT;
	uint8_t digest[1] = {0};

	ref.slot = 1;
	ref.generation = 1;
	get.ns = sweep.ns = 1;
	get.page = &ref;
	get.tokens = true;
	put(out, 32, 0, &get.base);
	get.page = NULL;
	get.digest = (ProtobufCBinaryData){1, digest};
	get.half = true;
	put(out, 32, 0, &get.base);
	sweep.wait_ms = 1;
	put(out, 34, 0, &sweep.base); /* verify: answered when the workers have been there */
	put(out, 34, 0, &sweep.base);
	put(out, 35, 0, &sweep.base);
	sweep.count = true;
	put(out, 33, 0, &sweep.base);
	sweep.count = false;
	sweep.page = &ref;
	put(out, 33, 0, &sweep.base);
	sweep.page = NULL;
	sweep.drop = true;
	put(out, 33, 0, &sweep.base);
}

static void put_config(struct fuzz_out *out)
{
	Skvq__Wire__ConfigSet m = SKVQ__WIRE__CONFIG_SET__INIT;
	Skvq__Wire__ConfigSetting s = SKVQ__WIRE__CONFIG_SETTING__INIT, *at = &s;
	static const char text[] = "[memory]\nram_max = 128K\n[limits]\npins_max = 3\n";

	m.text = (ProtobufCBinaryData){sizeof(text) - 1, (uint8_t *)(uintptr_t)text};
	put(out, 30, 0, NULL);
	put(out, 31, 0, &m.base);
	m.text.len = 0;
	m.settings = &at;
	m.n_settings = 1;
	s.section = (char *)(uintptr_t) "workers";
	s.key = (char *)(uintptr_t) "queue_max";
	s.value = (char *)(uintptr_t) "1";
	put(out, 31, 0, &m.base);
}

static void put_events(struct fuzz_out *out, bool tokens)
{
	Skvq__Wire__EventsSubscribe m = SKVQ__WIRE__EVENTS_SUBSCRIBE__INIT;

	m.tokens = m.matches = tokens;
	put(out, 29, 0, &m.base);
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	struct fuzz_out out = {.at = at};

	switch (i) {
	case 0:
		put_publish(&out, 0, RIG_PAGES);
		fuzz_put_u8(&out, WORK);
		put_match(&out, 14);
		put_refs(&out, 16);
		break;
	case 1:
		put_publish(&out, 0, 1);
		put_publish(&out, 0, 1);
		fuzz_put_u8(&out, SECOND);
		put_publish(&out, 0, 1);
		fuzz_put_u8(&out, WORK);
		put_publish(&out, 1, 2);
		fuzz_put_u8(&out, WORK);
		fuzz_put_u8(&out, TRIM);
		put_refs(&out, 27);
		break;
	case 2:
		put_lists(&out);
		put_match(&out, 26);
		fuzz_put_u8(&out, DRAIN);
		break;
	case 3:
		put_calibration(&out);
		put(&out, 12, 0x80 | RIG_FD_STAGING, NULL);
		break;
	case 4:
		fuzz_put_u8(&out, REFUSE_JOBS);
		put_publish(&out, 0, 2);
		put_lists(&out);
		break;
	case 5:
		put_publish(&out, 0, RIG_PAGES);
		fuzz_put_u8(&out, WORK);
		put_manage(&out);
		fuzz_put_u8(&out, SECOND); /* with a round and a page that is looked at under way */
		fuzz_put_u8(&out, WORK);
		put_manage(&out);
		fuzz_put_u8(&out, WORK);
		fuzz_put_u8(&out, DRAIN);
		put_config(&out);
		fuzz_put_u8(&out, TRIM);
		put_publish(&out, 0, RIG_PAGES);
		fuzz_put_u8(&out, SECOND);
		put_config(&out);
		break;
	case 6: /* who listens sees all that, and goes */
		put_events(&out, true);
		put_publish(&out, 0, RIG_PAGES);
		fuzz_put_u8(&out, WORK);
		put_match(&out, 14);
		put_events(&out, false);
		fuzz_put_u8(&out, DRAIN);
		fuzz_put_u8(&out, SECOND);
		put_events(&out, false);
		put_publish(&out, 0, 1);
		break;
	default:
		return 0;
	}
	return out.n;
}
