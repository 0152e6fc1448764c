/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rounds.h - rounds of the daemon over pages, for the verbs that ask for them: whose pages, how pages are named,
 * asking until a round is done, and progress for whoever looks at a terminal.
 */
#ifndef SKVQCTL_ROUNDS_H
#define SKVQCTL_ROUNDS_H

#include "skvqctl.h"

/* NS:SLOT.GENERATION; or SLOT.GENERATION, and *ns stays. False: it is not. */
bool ctl_page_ref(const char *text, uint32_t *ns, struct skvq_page_ref *ret);

struct ctl_tenants {
	size_t n;
	char name[SKVQ_CLIENT_TENANTS][64]; /* empty: the caller's own */
};
/* The one that is named, or (NULL) all that the caller sees. CTL_OK, or what to exit with. */
int ctl_tenants(const struct ctl *ctl, struct skvq_client *c, const char *name,
		struct ctl_tenants *ret);

typedef int (*ctl_round_fn)(struct skvq_client *c, struct skvq_client_sweep *sweep);
/* Asks until it is done. what: for the error, "evict pages". until_ms (of ctl_now_ms; 0: never) ends it, and
 * so does a minute in which nothing changes; sweep->done tells. CTL_OK, or what to exit with. */
int ctl_round(const struct ctl *ctl, struct skvq_client *c, struct skvq_client_sweep *sweep,
	      ctl_round_fn fn, const char *what, uint64_t until_ms);
uint64_t ctl_now_ms(void);

#endif /* SKVQCTL_ROUNDS_H */
