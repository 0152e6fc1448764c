/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first words of a client: a Hello and an identity, each the bytes of one message, so that
 * mutations reach its fields and not lengths around it. An identity that is taken is the same one
 * when it is read back and when it is given again.
 *
 *   input: features' byte, Hello, Identity (pieces), name of the model (the rest)
 */
#include "control/dispatch.h"
#include "rig.h"
#include "support/raw_client.h"

enum { FIELD_HELLO = 10, FIELD_NAMESPACE_OPEN = 11 };

static void serve(uint64_t id, uint32_t field, struct fuzz_in body)
{
	uint8_t buf[FUZZ_SEED_MAX + 256];
	struct conn_frame frame = {.payload = buf};

	if (!rig.session || rig.session->conn.dead)
		return;
	frame.bytes = (uint32_t)fz_request(buf, sizeof(buf), id, field, body);
	dispatch_frame(rig.session, &frame);
}

/* NamespaceOpen{identity, model_name}. */
static struct fuzz_in open_body(struct fuzz_in identity, struct fuzz_in name, uint8_t *buf,
				size_t room)
{
	size_t n = 0;

	FUZZ_CHECK(identity.left + name.left + 16 <= room);
	for (int i = 0; i < 2; i++) {
		struct fuzz_in part = i ? name : identity;

		buf[n++] = (uint8_t)((i + 1) << 3 | 2);
		buf[n++] = (uint8_t)(part.left | 0x80);
		buf[n++] = (uint8_t)(part.left >> 7 | 0x80);
		buf[n++] = (uint8_t)(part.left >> 14);
		if (part.left)
			memcpy(buf + n, part.at, part.left);
		n += part.left;
	}
	return (struct fuzz_in){buf, n};
}

static void comes_back(const struct ns *ns)
{
	struct identity again;
	struct skvq_layout layout;
	uint8_t canon[IDENTITY_CANON_MAX];

	FUZZ_CHECK(identity_decode(ns->canon, ns->canon_bytes, &again));
	FUZZ_CHECK(identity_check(&again, &layout, NULL) == 0);
	FUZZ_CHECK(memcmp(&layout, &ns->layout, sizeof(layout)) == 0);
	FUZZ_CHECK(identity_encode(&again, canon) == ns->canon_bytes);
	FUZZ_CHECK(memcmp(canon, ns->canon, ns->canon_bytes) == 0);
	FUZZ_CHECK(ns->arena.bytes >= ns->layout.slot_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t buf[FUZZ_SEED_MAX + 64];
	struct fuzz_in in = {data, size}, hello, identity, body;

	if (size > FUZZ_SEED_MAX)
		return 0;
	fz_begin();
	fz_connect();
	hello = fuzz_piece(&in);
	identity = fuzz_piece(&in);
	serve(1, FIELD_HELLO, hello);
	/* Whatever came of it: identities are to be reached. */
	if (rig.session)
		rig.session->hello = true;
	body = open_body(identity, in, buf, sizeof(buf));
	serve(2, FIELD_NAMESPACE_OPEN, body);
	if (rig.cache.namespaces) {
		comes_back(rig.cache.namespaces);
		serve(3, FIELD_NAMESPACE_OPEN, body);
		FUZZ_CHECK(rig.cache.n_namespaces == 1);
	}
	fz_drain();
	fz_end();
	return 0;
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	struct fuzz_out out = {.at = at};
	Skvq__Wire__Hello hello = SKVQ__WIRE__HELLO__INIT;
	Skvq__Wire__Identity *identity = raw_identity(i);
	static uint32_t layer_window[2] = {512, 0};
	static uint8_t digest[32] = {7}, bits[4] = {2, 2, 2, 2};
	uint8_t buf[4096];

	if (i > 3)
		return 0;
	hello.version_major = 1;
	hello.features = 63;
	hello.name = (char *)(uintptr_t) "engine";
	if (i == 1) {
		identity->n_layer_window = 2;
		identity->layer_window = layer_window;
		identity->lora_digest = (ProtobufCBinaryData){32, digest};
	}
	if (i == 2) {
		identity->profile = (char *)(uintptr_t) "e2.1";
		identity->bit_table = (ProtobufCBinaryData){4, bits};
		identity->sinks = 0;
	}
	if (i == 3) {
		identity->rope_scaling = (char *)(uintptr_t) "yarn:4";
		identity->calibration_digest = (ProtobufCBinaryData){32, digest};
		identity->head_dim_v = 32;
	}
	fuzz_put_piece(&out, buf, protobuf_c_message_pack(&hello.base, buf));
	fuzz_put_piece(&out, buf, protobuf_c_message_pack(&identity->base, buf));
	fuzz_put(&out, "model", 5);
	return out.n;
}
