/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/manage.h - what op_manage.c and the rest of control/ know of each other: the timer behind rounds, and
 * how a page is told. For control/ alone. Loop thread only.
 */
#ifndef SKVQD_CONTROL_MANAGE_H
#define SKVQD_CONTROL_MANAGE_H

#include "control/dispatch.h"

/* -SKVQ_ESYS */
int manage_init(struct control *control);
/* Nobody waits any more. Rounds with something out with the workers or the store end when that comes back. */
void manage_fini(struct control *control);

/* Answers a page_list of what is on disk. */
int disk_list(const struct request *rq, const struct ns *ns, struct why *why);
/* op_status.c: the message of a page, and those it points to. digest: with it. */
void fill_page_info(const struct page *page, uint64_t now_ms, Skvq__Wire__PageInfo *info,
		    Skvq__Wire__PageRef *ref, Skvq__Wire__PageRef *parent_ref, bool digest);

#endif /* SKVQD_CONTROL_MANAGE_H */
