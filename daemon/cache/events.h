/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache/events.h - what happens to pages and namespaces, told while somebody wants to know. Whoever
 * listens is called in the middle of things: it may look at what it is given and keep copies, no more.
 * When nobody listens an event costs a look at a pointer.
 */
#ifndef SKVQD_CACHE_EVENTS_H
#define SKVQD_CACHE_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

struct cache;
struct ns;
struct page;
struct tenant;

enum cache_event_kind {
	EVENT_STORED,            /* a page can be found in memory, or on disk */
	EVENT_REMOVED,           /* it can't be found there any more */
	EVENT_SHED,              /* its refinement went; the page is still found */
	EVENT_REFILLED,          /* and is back */
	EVENT_NAMESPACE_OPENED,  /* a new one */
	EVENT_NAMESPACE_DROPPED, /* with all its pages in memory, of which none is told */
};

struct cache_event {
	enum cache_event_kind kind;
	struct tenant *tenant;
	const struct ns *ns;
	const struct page *page; /* as it still is, if it goes; NULL: of a namespace, or not in memory */
	bool on_disk;            /* else in memory */
	const char *why;         /* one word; NULL: there is nothing to say */
	const uint8_t *digest, *parent; /* of the page; parent NULL: it has none, or it is not known */
	uint32_t position;
};

struct cache_watch {
	void (*fn)(void *ctx, const struct cache_event *event);
	void *ctx;
};

/* NULL: nobody listens. One at a time. */
void cache_watch(struct cache *cache, const struct cache_watch *watch);

/* For those who make events; nothing happens without a watch. */
void event_page(struct cache *cache, enum cache_event_kind kind, const struct page *page,
		const char *why);
void event_stored_on_disk(struct cache *cache, const struct ns *ns, const struct page *page,
			  const uint8_t *digest, const uint8_t *parent, uint32_t position);
void event_namespace(struct cache *cache, enum cache_event_kind kind, const struct ns *ns);

#endif /* SKVQD_CACHE_EVENTS_H */
