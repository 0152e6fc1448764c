/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matches as requests of Mooncake's format. Digests become numbers in the order in which they come, so
 * the file tells which requests begin alike and nothing of what is in them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <skvq/format.h>

#include "listen.h"
#include "traces.h"

#define DIGEST_BYTES 32u

/* A page of a namespace; its number is its place in the array. Equal tokens of two tenants are two. */
struct seen {
	uint32_t ns;
	uint8_t digest[DIGEST_BYTES];
};

struct recorder {
	struct ctl_listener listener;
	uint64_t first_ms;
	struct seen *seen;
	uint64_t n_seen, seen_room;
	uint64_t *slots; /* number + 1, 0: empty; open addressing */
	uint64_t n_slots;
	uint64_t tokens, pages, hit, lost, cut;
};

static uint64_t slot_of(const struct recorder *r, uint32_t ns, const uint8_t *digest)
{
	uint64_t at;

	memcpy(&at, digest, sizeof(at)); /* as good as random */
	for (at = (at ^ ns) & (r->n_slots - 1); r->slots[at]; at = (at + 1) & (r->n_slots - 1)) {
		const struct seen *s = &r->seen[r->slots[at] - 1];

		if (s->ns == ns && !memcmp(s->digest, digest, DIGEST_BYTES))
			break;
	}
	return at;
}

static bool grow(struct recorder *r)
{
	uint64_t room = r->seen_room ? 2 * r->seen_room : 4096;
	struct seen *seen = realloc(r->seen, room * sizeof(*seen));
	uint64_t *slots = calloc(2 * room, sizeof(*slots));

	if (seen)
		r->seen = seen;
	if (!seen || !slots) {
		free(slots);
		return false;
	}
	free(r->slots);
	r->slots = slots;
	r->n_slots = 2 * room;
	r->seen_room = room;
	for (uint64_t i = 0; i < r->n_seen; i++)
		r->slots[slot_of(r, seen[i].ns, seen[i].digest)] = i + 1;
	return true;
}

/* -1: no memory. */
static int64_t number_of(struct recorder *r, uint32_t ns, const uint8_t *digest)
{
	uint64_t at;

	if (r->n_seen == r->seen_room && !grow(r))
		return -1;
	at = slot_of(r, ns, digest);
	if (!r->slots[at]) {
		r->seen[r->n_seen].ns = ns;
		memcpy(r->seen[r->n_seen].digest, digest, DIGEST_BYTES);
		r->slots[at] = ++r->n_seen;
	}
	return (int64_t)r->slots[at] - 1;
}

static bool on_event(struct ctl_listener *l, uint64_t lost, const struct skvq_client_event *e)
{
	struct recorder *r = (struct recorder *)l;

	r->lost += lost;
	if (!e || strcmp(e->kind, "match") != 0)
		return false;
	if (!r->listener.lines)
		r->first_ms = e->time_ms;
	/* A clock that was set back makes no negative time. */
	fprintf(l->to, "{\"timestamp\": %" PRIu64 ", \"input_length\": %" PRIu32
		", \"output_length\": 0, \"hash_ids\": [",
		e->time_ms > r->first_ms ? e->time_ms - r->first_ms : 0, e->span);
	for (size_t i = 0; i < e->n_chain; i++) {
		int64_t number = number_of(r, e->ns, e->chain + i * DIGEST_BYTES);

		if (number < 0) {
			fputs(TRACE_VERB ": no memory for so many pages\n", stderr);
			l->failed = true;
			break;
		}
		fprintf(l->to, "%s%" PRId64, i ? ", " : "", number);
	}
	fputs("]}\n", l->to);
	r->tokens += e->span;
	r->pages += e->n_chain;
	r->hit += e->n_memory + e->n_disk;
	r->cut += e->chain_cut;
	return true;
}

static int report(const struct ctl *ctl, const struct recorder *r)
{
	double share = r->tokens ? (double)(r->hit * SKVQ_PAGE_TOKENS) / (double)r->tokens : 0;

	if (ctl->json)
		return ctl_print_json(
		    json_pack("{s:I, s:I, s:I, s:I, s:f, s:I, s:I}", "requests",
			      (json_int_t)r->listener.lines, "tokens", (json_int_t)r->tokens, "pages",
			      (json_int_t)r->pages, "pages_different", (json_int_t)r->n_seen, "hit_share",
			      share, "lost", (json_int_t)r->lost, "cut", (json_int_t)r->cut));
	printf("%" PRIu64 " requests, %" PRIu64 " tokens, %" PRIu64 " pages, %" PRIu64
	       " of them different; %.1f %% of the tokens were found\n",
	       r->listener.lines, r->tokens, r->pages, r->n_seen, 100 * share);
	return ctl_flush();
}

/* What makes the file less than the traffic. */
static int tell_gaps(const struct recorder *r)
{
	if (r->lost)
		fprintf(stderr, TRACE_VERB ": %" PRIu64
			" requests are missing: they came faster than they were read\n", r->lost);
	if (r->cut)
		fprintf(stderr, TRACE_VERB ": of %" PRIu64
			" requests the last pages are missing: they are too long for an event\n", r->cut);
	return r->lost || r->cut ? CTL_FOUND : CTL_OK;
}

int trace_record(struct ctl *ctl, const struct trace_options *o)
{
	struct recorder r = {.listener = {.what = SKVQ_CLIENT_EVENTS_MATCHES,
					  .count = o->count,
					  .seconds = o->seconds,
					  .event = on_event}};
	bool is_stdout = !strcmp(o->path, "-");
	int fd = is_stdout ? -1 : open(o->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int result;

	r.listener.to = is_stdout ? stdout : fd >= 0 ? fdopen(fd, "w") : NULL;
	if (!r.listener.to) {
		fprintf(stderr, TRACE_VERB ": cannot make '%s': %s\n", o->path, strerror(errno));
		return CTL_FAILED;
	}
	result = ctl_listen(ctl, &r.listener);
	if (!is_stdout && fclose(r.listener.to) != 0 && result == CTL_OK)
		result = CTL_FAILED;
	if (result == CTL_FAILED && !is_stdout && r.listener.failed)
		fprintf(stderr, TRACE_VERB ": '%s' took no more\n", o->path);
	if (!is_stdout && !r.listener.lines)
		(void)unlink(o->path); /* nothing came of it */
	if (result == CTL_OK && !is_stdout)
		result = report(ctl, &r);
	if (result == CTL_OK)
		result = tell_gaps(&r);
	free(r.seen);
	free(r.slots);
	return result;
}
