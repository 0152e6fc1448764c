/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spill/admit.h - what is worth a write: the second touch, and a budget of bytes a day.
 *
 * A page is written when it is offered for the second time: most pages are never wanted again, and
 * a disk wears. The memory of first touches is a bounded table of tags; it forgets, and seldom
 * takes one page for another, which costs one write.
 *
 * The budget is a bucket that starts empty, fills at 23/24 of the budget a day and holds 1/24 of
 * it: in any 24 hours, whatever was restarted in them, no more than the budget is written, and
 * nothing has to be kept on disk for that.
 */
#ifndef SKVQD_SPILL_ADMIT_H
#define SKVQD_SPILL_ADMIT_H

#include <stdbool.h>
#include <stdint.h>

struct touches {
	uint32_t *tags; /* groups of TOUCH_WAYS, newest first; NULL: off */
	uint32_t groups;
};

int touches_init(struct touches *t, uint32_t entries); /* 0 turns it off */
void touches_fini(struct touches *t);
/* True if the hash was touched before, or it is off; notes it. */
bool touches_again(struct touches *t, uint64_t hash);

struct budget {
	uint64_t per_day; /* 0: off */
	uint64_t burst;
	uint64_t level;    /* bytes that may be written now */
	uint64_t rest;     /* of a byte, in 1/86,400,000 */
	uint64_t since_ms; /* filled up to here */
};

/* least: the bucket holds this much at least, or nothing could ever be written. */
void budget_init(struct budget *b, uint64_t per_day, uint64_t least, uint64_t now_ms);
/* Another budget from now on. What could be written still can, as far as the new bucket holds it. */
void budget_set(struct budget *b, uint64_t per_day, uint64_t least, uint64_t now_ms);
bool budget_has(struct budget *b, uint64_t bytes, uint64_t now_ms);
/* After budget_has said so. */
void budget_take(struct budget *b, uint64_t bytes);

#endif /* SKVQD_SPILL_ADMIT_H */
