/* SPDX-License-Identifier: Apache-2.0 */
/*
 * make_vectors - writes docs/test-vectors.json: identities, namespaces and chains of pages with the
 * digests that the daemon's code gives them. docs/test-vectors.md says what each means.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/plugin.h>

#include "cache/identity.h"

static void must(int err, const char *what)
{
	if (err >= 0)
		return;
	fprintf(stderr, "make_vectors: %s: error %d\n", what, err);
	exit(1);
}

static void print_hex(const char *name, const void *data, size_t n)
{
	const uint8_t *at = data;

	printf("\"%s\": \"", name);
	for (size_t i = 0; i < n; i++)
		printf("%02x", at[i]);
	printf("\"");
}

static void print_digest(const char *name, bool has, const uint8_t *digest)
{
	print_hex(name, digest, has ? IDENTITY_DIGEST : 0);
	printf(", ");
}

/* ---- identities ---- */

/* A model of two layers; others are changes of it. */
static struct identity plain(void)
{
	struct identity id = {.has_weights = true,
			      .has_tokenizer = true,
			      .engine_numerics = "example-1",
			      .profile = "k4v4",
			      .n_layer = 2,
			      .n_q_heads = 4,
			      .n_kv_heads = 2,
			      .head_dim_k = 64,
			      .head_dim_v = 64,
			      .rope_kind = SKVQ_ROPE_POST,
			      .rope_dim = 64,
			      .rope_theta = 10000.0,
			      .window = 128,
			      .sinks = 5,
			      .n_bit_table = 4,
			      .page_version = SKVQ_PAGE_VERSION};

	for (uint32_t i = 0; i < IDENTITY_DIGEST; i++) {
		id.weights[i] = (uint8_t)i;
		id.tokenizer[i] = (uint8_t)(0xff - i);
	}
	memset(id.bit_table, SKVQ_BITS_4, id.n_bit_table);
	return id;
}

/* Every optional field given, and numbers whose bytes all differ. */
static struct identity full(void)
{
	struct identity id = plain();

	id.has_lora = id.has_calibration = id.has_reorder = true;
	memset(id.lora, 0x33, sizeof(id.lora));
	memset(id.calibration, 0x44, sizeof(id.calibration));
	memset(id.reorder, 0x55, sizeof(id.reorder));
	strcpy(id.engine_numerics, "example-2, \"fast\"");
	strcpy(id.rope_scaling, "yarn factor=4");
	id.rope_theta = 1234567.890625;
	id.clip = 0.9375f;
	id.n_layer_window = 2;
	id.layer_window[1] = 0x01020304;
	return id;
}

static struct identity no_rope(void)
{
	struct identity id = plain();

	id.rope_kind = SKVQ_ROPE_NONE;
	id.rope_dim = 0;
	id.rope_theta = 0.0;
	id.head_dim_v = 128;
	id.sinks = 0;
	id.window = 64;
	return id;
}

static void print_text(const char *name, const char *text)
{
	printf("\"%s\": \"", name);
	for (; *text; text++)
		printf(*text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
	printf("\", ");
}

static void print_number(const char *name, uint32_t value)
{
	printf("\"%s\": %u, ", name, value);
}

static void print_fields(const struct identity *id)
{
	print_digest("weights_digest", id->has_weights, id->weights);
	print_digest("tokenizer_digest", id->has_tokenizer, id->tokenizer);
	print_digest("lora_digest", id->has_lora, id->lora);
	print_text("engine_numerics", id->engine_numerics);
	print_number("n_layer", id->n_layer);
	print_number("n_q_heads", id->n_q_heads);
	print_number("n_kv_heads", id->n_kv_heads);
	print_number("head_dim_k", id->head_dim_k);
	print_number("head_dim_v", id->head_dim_v);
	print_number("rope_kind", id->rope_kind);
	print_number("rope_dim", id->rope_dim);
	printf("\"rope_theta\": %.17g, ", id->rope_theta);
	print_text("rope_scaling", id->rope_scaling);
	print_text("profile", id->profile);
	print_digest("calibration_digest", id->has_calibration, id->calibration);
	print_number("window", id->window);
	print_number("sinks", id->sinks);
	print_hex("bit_table", id->bit_table, id->n_bit_table);
	printf(", ");
	print_digest("reorder", id->has_reorder, id->reorder);
	printf("\"layer_window\": [");
	for (uint32_t i = 0; i < id->n_layer_window; i++)
		printf("%s%u", i ? ", " : "", id->layer_window[i]);
	printf("], \"clip\": %.9g, \"page_version\": %u", (double)id->clip, id->page_version);
}

static void print_identity(const char *name, struct identity id, uint8_t ret[IDENTITY_DIGEST])
{
	static struct skvq_layout layout;
	uint8_t canon[IDENTITY_CANON_MAX];
	struct why why = {{0}};
	uint32_t n;

	must(identity_check(&id, &layout, &why), why.text);
	n = identity_encode(&id, canon);
	must(identity_digest(canon, n, ret), "identity_digest");
	printf("  {\"name\": \"%s\",\n   \"fields\": {", name);
	print_fields(&id);
	printf("},\n   ");
	print_hex("canonical", canon, n);
	printf(",\n   ");
	print_hex("digest", ret, IDENTITY_DIGEST);
	printf("}");
}

/* ---- namespaces ---- */

static void print_namespace(const uint8_t *identity, const char *tenant, const char *salt)
{
	uint8_t digest[IDENTITY_DIGEST];
	uint32_t n = (uint32_t)strlen(salt);

	must(namespace_digest(identity, tenant, (const uint8_t *)salt, n, digest),
	     "namespace_digest");
	printf("  {");
	print_hex("identity", identity, IDENTITY_DIGEST);
	printf(",\n   \"tenant\": \"%s\", ", tenant);
	print_hex("salt", salt, n);
	printf(", ");
	print_hex("digest", digest, sizeof(digest));
	printf("}");
}

/* ---- pages ---- */

/* 80 tokens of page `page`: small ones, or ones that use all four bytes, or negative ones. */
static void make_tokens(uint32_t chain, uint32_t page, int32_t tokens[SKVQ_PAGE_TOKENS])
{
	for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++) {
		uint32_t at = page * SKVQ_PAGE_TOKENS + i;

		tokens[i] = chain == 0	 ? (int32_t)at
			    : chain == 1 ? (int32_t)(at * 2654435761u & 0x7fffffffu)
					 : -1 - (int32_t)at;
	}
}

static void print_chain(const uint8_t *identity, uint32_t chain, uint32_t n)
{
	uint8_t parent[IDENTITY_DIGEST] = {0}, digest[IDENTITY_DIGEST];
	int32_t tokens[SKVQ_PAGE_TOKENS];

	for (uint32_t page = 0; page < n; page++) {
		uint32_t position = page * SKVQ_PAGE_TOKENS;

		make_tokens(chain, page, tokens);
		must(page_digest(identity, parent, position, tokens, digest), "page_digest");
		printf("%s  {\"chain\": %u, ", chain || page ? ",\n" : "", chain);
		print_hex("identity", identity, IDENTITY_DIGEST);
		printf(", \"position\": %u,\n   ", position);
		print_hex("parent", parent, sizeof(parent));
		printf(",\n   \"tokens\": [");
		for (uint32_t i = 0; i < SKVQ_PAGE_TOKENS; i++)
			printf("%s%d", i ? ", " : "", tokens[i]);
		printf("],\n   ");
		print_hex("digest", digest, sizeof(digest));
		printf("}");
		memcpy(parent, digest, sizeof(parent));
	}
}

int main(void)
{
	static const char longest[] =
	    "a-tenant-whose-name-has-63-bytes-which-is-the-most-there-may-be";
	uint8_t a[IDENTITY_DIGEST], b[IDENTITY_DIGEST], c[IDENTITY_DIGEST];

	printf("{\"format\": \"skvq-test-vectors/1\",\n \"identities\": [\n");
	print_identity("plain", plain(), a);
	printf(",\n");
	print_identity("full", full(), b);
	printf(",\n");
	print_identity("no_rope", no_rope(), c);
	printf("],\n \"namespaces\": [\n");
	print_namespace(a, "default", "");
	printf(",\n");
	print_namespace(a, "chat", "");
	printf(",\n");
	print_namespace(a, "chat", "sixteen bytes...");
	printf(",\n");
	print_namespace(b, longest,
			"sixty-four bytes of salt, which is the most a tenant may have...");
	printf("],\n \"pages\": [\n");
	print_chain(a, 0, 3);
	print_chain(b, 1, 2);
	print_chain(c, 2, 2);
	printf("]}\n");
	return fflush(stdout) == 0 ? 0 : 1;
}
