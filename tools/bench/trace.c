/* SPDX-License-Identifier: Apache-2.0 */
#include "trace.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <skvq/format.h>

#define NO_PAGE UINT32_MAX

/* Open addressing over (page before, key). */
struct place {
	uint64_t key;
	uint32_t before, page; /* page NO_PAGE: empty */
};

struct trace_maker {
	struct trace *trace;
	struct place *places;
	uint64_t n_places; /* a power of two, more than twice the footprint */
	uint64_t pages_room;
	uint32_t requests_room, last;
	bool answering;
};

static struct place *find(struct place *places, uint64_t n, uint32_t before, uint64_t key)
{
	uint64_t at = mix(key + mix(before)) & (n - 1);

	while (places[at].page != NO_PAGE && (places[at].key != key || places[at].before != before))
		at = (at + 1) & (n - 1);
	return &places[at];
}

static int more_places(struct trace_maker *m)
{
	uint64_t n = m->n_places ? 2 * m->n_places : 1 << 16;
	struct place *places = malloc(n * sizeof(*places));

	if (!places)
		return -1;
	for (uint64_t i = 0; i < n; i++)
		places[i].page = NO_PAGE;
	for (uint64_t i = 0; i < m->n_places; i++) {
		const struct place *p = &m->places[i];

		if (p->page != NO_PAGE)
			*find(places, n, p->before, p->key) = *p;
	}
	free(m->places);
	m->places = places;
	m->n_places = n;
	return 0;
}

struct trace_maker *trace_maker_new(struct trace *trace)
{
	struct trace_maker *m = calloc(1, sizeof(*m));

	if (!m || more_places(m) < 0) {
		free(m);
		return NULL;
	}
	m->trace = trace;
	return m;
}

int trace_request(struct trace_maker *m)
{
	struct trace *t = m->trace;

	if (t->n_requests == m->requests_room) {
		uint32_t room = m->requests_room ? 2 * m->requests_room : 4096;
		void *more = room ? realloc(t->requests, room * sizeof(*t->requests)) : NULL;

		if (!more)
			return -1;
		t->requests = more;
		m->requests_room = room;
	}
	t->requests[t->n_requests++] = (struct request){.first = t->n_pages};
	m->last = NO_PAGE;
	m->answering = false;
	return 0;
}

void trace_answer(struct trace_maker *m)
{
	m->answering = true;
}

int trace_page(struct trace_maker *m, uint64_t key)
{
	struct trace *t = m->trace;
	struct request *r;
	struct place *place;

	if (2 * ((uint64_t)t->footprint + 1) > m->n_places && more_places(m) < 0)
		return -1;
	if (t->n_pages == m->pages_room) {
		uint64_t room = m->pages_room ? 2 * m->pages_room : 1 << 16;
		void *more = realloc(t->pages, room * sizeof(*t->pages));

		if (!more)
			return -1;
		t->pages = more;
		m->pages_room = room;
	}
	place = find(m->places, m->n_places, m->last, key);
	if (place->page == NO_PAGE && t->footprint == NO_PAGE - 1)
		return -1;
	if (place->page == NO_PAGE)
		*place = (struct place){.key = key, .before = m->last, .page = t->footprint++};
	m->last = place->page;
	t->pages[t->n_pages++] = place->page;
	r = &t->requests[t->n_requests - 1];
	r->n_all++;
	r->tokens_all += SKVQ_PAGE_TOKENS;
	if (!m->answering) {
		r->n++;
		r->tokens += SKVQ_PAGE_TOKENS;
	}
	return 0;
}

void trace_maker_free(struct trace_maker *m)
{
	if (!m)
		return;
	free(m->places);
	free(m);
}

void trace_free(struct trace *t)
{
	free(t->requests);
	free(t->pages);
	memset(t, 0, sizeof(*t));
}

/* ---- Mooncake's format ---- */

/* Hashes are of everything up to the end of their block, so a page is told by the block its last
 * token is in. A page that crosses into a block of which less than all is shared counts as new;
 * what is lost by that is less than a block a request. */
static int add_line(struct trace_maker *m, const json_t *line, uint32_t block_tokens)
{
	const json_t *length = json_object_get(line, "input_length");
	const json_t *ids = json_object_get(line, "hash_ids");
	int64_t time_ms = json_integer_value(json_object_get(line, "timestamp"));
	size_t n = json_array_size(ids);
	int64_t tokens = json_integer_value(length);

	if (!json_is_integer(length) || !json_is_array(ids) || tokens < 0 || trace_request(m) < 0)
		return -1;
	m->trace->requests[m->trace->n_requests - 1].time_ms = time_ms > 0 ? (uint64_t)time_ms : 0;
	for (uint64_t end = SKVQ_PAGE_TOKENS; end <= (uint64_t)tokens; end += SKVQ_PAGE_TOKENS) {
		size_t block = (size_t)((end - 1) / block_tokens);
		const json_t *id = json_array_get(ids, block);

		if (block >= n)
			break;
		if (!json_is_integer(id) || trace_page(m, (uint64_t)json_integer_value(id)) < 0)
			return -1;
	}
	return 0;
}

int trace_load(const char *path, uint32_t block_tokens, struct trace *ret)
{
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	FILE *file = fopen(path, "re");
	struct trace_maker *m;
	uint32_t number = 0;
	char *text = NULL;
	size_t room = 0;
	int status = 0;

	memset(ret, 0, sizeof(*ret));
	(void)snprintf(ret->name, sizeof(ret->name), "%.*s", (int)strcspn(name, "."), name);
	m = trace_maker_new(ret);
	if (!file || !m) {
		perror(path);
		status = -1;
	}
	while (!status && getline(&text, &room, file) > 0) {
		json_t *line = json_loads(text, 0, NULL);

		number++;
		if (!line || add_line(m, line, block_tokens) < 0) {
			fprintf(stderr, "%s:%u: not a request with input_length and hash_ids\n",
				path, number);
			status = -1;
		}
		json_decref(line);
	}
	if (!status && !ret->n_pages) {
		fprintf(stderr, "%s: not one full page\n", path);
		status = -1;
	}
	free(text);
	trace_maker_free(m);
	if (file)
		(void)fclose(file);
	return status;
}
