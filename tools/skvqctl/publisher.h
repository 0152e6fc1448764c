/* SPDX-License-Identifier: Apache-2.0 */
/*
 * publisher.h - pages of made-up codes for the daemon, in a namespace of their own: for bench and trace.
 */
#ifndef SKVQCTL_PUBLISHER_H
#define SKVQCTL_PUBLISHER_H

#include "skvqctl.h"

#include "made_up.h"

#define PUBLISHER_RUN 32u /* pages of a request, at most */

struct publisher {
	struct ctl *ctl;
	const char *name; /* of the verb, for messages */
	struct skvq_client *client;
	struct made_up_model model;
	struct skvq_client_ns ns;
	uint32_t staging;
	uint8_t *staged; /* PUBLISHER_RUN slots; NULL: not open */
	uint64_t random;
	/* Of the request in flight, or the last. */
	uint64_t request; /* 0: it has been answered */
	struct skvq_page_ref *pages;
	uint32_t n_pages, n_done;
	int failed; /* 0, or what it was refused with; why says more */
	char why[SKVQ_CLIENT_WHY_BYTES];
};

/* A model that nobody else has. profile is borrowed. -1: there is none of that geometry. */
int publisher_init(struct publisher *p, struct ctl *ctl, const char *name,
		   const struct skvq_geometry *geometry, const char *profile);
/* Connects. CTL_OK, or the exit status of what was told. */
int publisher_connect(struct publisher *p);
/* Whether others' pages would have to go for so many of ours; then somebody must say so: as
 * ctl_confirm. all: they must fit in half of ram_max, else it is wrong usage. */
int publisher_ask_for_room(struct publisher *p, uint64_t n_pages, bool all, bool yes);
/* Makes staging, the pages in it, and the namespace. *ret_arena (unless NULL) is the caller's. */
int publisher_open(struct publisher *p, int *ret_arena);
/* One request of n pages, to its answer. tokens of these; parent.generation 0: first is 0. All that went
 * in are in pages[0 .. p->n_done), pinned. 0, also if it was refused (p->failed); or the connection's
 * error. */
int publisher_publish(struct publisher *p, const int32_t *tokens, uint32_t first, uint32_t n,
		      struct skvq_page_ref parent, struct skvq_page_ref *pages);
/* A zeroed one is fine. */
void publisher_close(struct publisher *p);

#endif /* SKVQCTL_PUBLISHER_H */
