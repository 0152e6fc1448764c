/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "listen.h"

#define DIGEST_BYTES 32u
#define SHORT_BYTES  8u /* of a digest, for people */
#define OPT_FOR      CTL_LONG_ONLY

/* ---- text ---- */

static void print_text(const char *key, const char *text)
{
	char copy[256];

	if (!*text)
		return;
	snprintf(copy, sizeof(copy), "%s", text);
	printf(" %s=%s", key, ctl_clean(copy));
}

static void print_digest(const char *key, const uint8_t *digest)
{
	char hex[2 * SHORT_BYTES + 1];

	if (digest)
		printf(" %s=%s", key, ctl_hex(digest, SHORT_BYTES, hex));
}

static void print_event(const struct skvq_client_event *e)
{
	time_t seconds = (time_t)(e->time_ms / 1000);
	char at[32] = "", kind[32];
	struct tm tm;

	if (gmtime_r(&seconds, &tm))
		strftime(at, sizeof(at), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(kind, sizeof(kind), "%s", e->kind);
	printf("%s.%03dZ %s", at, (int)(e->time_ms % 1000), ctl_clean(kind));
	print_text("tenant", e->tenant);
	if (e->ns)
		printf(" ns=%" PRIu32, e->ns);
	print_text("tier", e->tier);
	if (e->page.generation)
		printf(" page=%" PRIu32 "/%" PRIu32, e->page.slot, e->page.generation);
	if (e->digest)
		printf(" position=%" PRIu32, e->position);
	print_digest("digest", e->digest);
	print_digest("parent", e->parent);
	print_text("why", e->why);
	print_text("model", e->model_name);
	print_digest("identity", e->identity_digest);
	if (!strcmp(e->kind, "match"))
		printf(" tokens=%" PRIu32 " memory=%" PRIu32 " disk=%" PRIu32, e->span, e->n_memory,
		       e->n_disk);
	for (size_t i = 0; i < e->n_tokens; i++)
		printf("%s%" PRId32, i ? "," : " token_ids=", e->tokens[i]);
	putchar('\n');
}

/* ---- JSON ---- */

static json_t *hex_or_null(const uint8_t *digest)
{
	char hex[2 * DIGEST_BYTES + 1];

	return digest ? json_string(ctl_hex(digest, DIGEST_BYTES, hex)) : json_null();
}

static json_t *digests_of(const struct skvq_client_event *e)
{
	json_t *list = json_array();

	for (size_t i = 0; i < e->n_chain; i++)
		json_array_append_new(list, hex_or_null(e->chain + i * DIGEST_BYTES));
	return list;
}

static json_t *tokens_of(const struct skvq_client_event *e)
{
	json_t *list = json_array();

	for (size_t i = 0; i < e->n_tokens; i++)
		json_array_append_new(list, json_integer(e->tokens[i]));
	return list;
}

static json_t *event_json(const struct skvq_client_event *e)
{
	json_t *o = json_pack("{s:o, s:I, s:I, s:o}", "kind", ctl_json_text(e->kind), "number",
			      (json_int_t)e->number, "time_ms", (json_int_t)e->time_ms, "tenant",
			      ctl_json_text(e->tenant));

	if (e->ns)
		json_object_set_new(o, "ns", json_integer(e->ns));
	if (*e->tier)
		json_object_set_new(o, "tier", ctl_json_text(e->tier));
	if (*e->why)
		json_object_set_new(o, "why", ctl_json_text(e->why));
	if (e->page.generation) {
		json_object_set_new(o, "slot", json_integer(e->page.slot));
		json_object_set_new(o, "generation", json_integer(e->page.generation));
	}
	if (e->digest) {
		json_object_set_new(o, "digest", hex_or_null(e->digest));
		json_object_set_new(o, "parent", hex_or_null(e->parent));
		json_object_set_new(o, "position", json_integer(e->position));
		json_object_set_new(o, "tokens", json_integer(e->span));
	}
	if (e->n_tokens)
		json_object_set_new(o, "token_ids", tokens_of(e));
	if (*e->model_name)
		json_object_set_new(o, "model_name", ctl_json_text(e->model_name));
	if (e->identity_digest)
		json_object_set_new(o, "identity", hex_or_null(e->identity_digest));
	if (!strcmp(e->kind, "match")) {
		json_object_set_new(o, "tokens", json_integer(e->span));
		json_object_set_new(o, "chain", digests_of(e));
		json_object_set_new(o, "chain_cut", json_boolean(e->chain_cut));
		json_object_set_new(o, "pages_memory", json_integer(e->n_memory));
		json_object_set_new(o, "pages_disk", json_integer(e->n_disk));
	}
	return o;
}

static bool print_json(json_t *o)
{
	bool good = o && json_dumpf(o, stdout, JSON_COMPACT) == 0;

	json_decref(o);
	putchar('\n');
	return good;
}

/* ---- both ---- */

struct events {
	struct ctl_listener listener;
	bool json;
};

static bool on_event(struct ctl_listener *l, uint64_t lost, const struct skvq_client_event *e)
{
	const struct events *events = (const struct events *)l;

	if (lost && events->json)
		l->failed |= !print_json(
		    json_pack("{s:s, s:I}", "kind", "lost", "lost", (json_int_t)lost));
	else if (lost)
		printf("%" PRIu64 " events were lost here: they came faster than they were read\n", lost);
	if (!e)
		return false;
	if (events->json)
		l->failed |= !print_json(event_json(e));
	else
		print_event(e);
	return true;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct events events = {.listener = {.what = SKVQ_CLIENT_EVENTS_PAGES,
					     .event = on_event,
					     .to = stdout}};
	struct ctl_listener *l = &events.listener;
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_events, argc, argv)) > 0) {
		if (opt == 't')
			l->what |= SKVQ_CLIENT_EVENTS_TOKENS;
		else if (opt == 'm')
			l->what |= SKVQ_CLIENT_EVENTS_MATCHES;
		else if (opt == 'n' ? !ctl_number("--count", optarg, 1, UINT64_C(1) << 62, &l->count)
				    : !ctl_number("--for", optarg, 1, 1000000000, &l->seconds))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	events.json = ctl->json;
	return ctl_listen(ctl, l);
}

static const struct ctl_opt opts[] = {
    {'t', "tokens", NULL, "with the tokens of each page that is stored"},
    {'m', "matches", NULL, "matches too"},
    {'n', "count", "N", "end after so many; default: when it is interrupted"},
    {OPT_FOR, "for", "SECONDS", "end after so long"},
};

const struct ctl_verb verb_events = {
    .name = "events",
    .summary = "what happens to pages, a line an event",
    .about = "Prints a line for each page that is stored, removed, shed or refilled, in memory and on "
	     "disk, and each namespace that is opened or dropped, from now on. Who is no admin sees the "
	     "own tenant's. docs/events.md explains kinds and keys, and what they are called in vLLM.\n\n"
	     "A reader that is too slow loses events: a line says how many.",
    CTL_OPTS(opts),
    .json = "an object a line: kind, number (from 1; lost ones count), time_ms, tenant, and what there is "
	    "of ns, tier, why, slot, generation, digest, parent, position, tokens (how many), token_ids, "
	    "model_name, identity; of a match tokens, chain (digests of all its whole pages), chain_cut, "
	    "pages_memory, pages_disk. kind lost has lost alone.",
    .run = run,
};
