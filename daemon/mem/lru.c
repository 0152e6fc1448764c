/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/lru.h"

#include <assert.h>
#include <stddef.h>

/*
 * Each page has a first child and a next sibling. lru_prev is the previous sibling, or the parent
 * for a first child, or NULL for the root.
 */

static bool is_older(const struct page *a, const struct page *b)
{
	if (a->stamp != b->stamp)
		return a->stamp < b->stamp;
	return a->position > b->position;
}

/* Two roots become one. Either may be NULL. */
static struct page *meld(struct page *a, struct page *b)
{
	if (!a || !b)
		return a ? a : b;
	if (is_older(b, a)) {
		struct page *t = a;

		a = b;
		b = t;
	}
	b->lru_prev = a;
	b->lru_next = a->lru_child;
	if (a->lru_child)
		a->lru_child->lru_prev = b;
	a->lru_child = b;
	return a;
}

/* The children of a page as one heap: pairs left to right, then all right to left. */
static struct page *meld_children(struct page *page)
{
	struct page *rest = page->lru_child, *pairs = NULL, *root = NULL;

	page->lru_child = NULL;
	while (rest) {
		struct page *a = rest, *b = a->lru_next, *pair;

		rest = b ? b->lru_next : NULL;
		a->lru_prev = a->lru_next = NULL;
		if (b)
			b->lru_prev = b->lru_next = NULL;
		pair = meld(a, b);
		pair->lru_next = pairs;
		pairs = pair;
	}
	while (pairs) {
		struct page *next = pairs->lru_next;

		pairs->lru_next = NULL;
		root = meld(root, pairs);
		pairs = next;
	}
	return root;
}

void lru_add(struct lru *lru, struct page *page)
{
	assert(!page->in_lru && !page->lru_child && !page->lru_next && !page->lru_prev);
	page->in_lru = true;
	lru->root = meld(lru->root, page);
	lru->n++;
}

void lru_remove(struct lru *lru, struct page *page)
{
	if (!page->in_lru)
		return;
	if (page == lru->root) {
		lru->root = meld_children(page);
	} else {
		if (page->lru_prev->lru_child == page)
			page->lru_prev->lru_child = page->lru_next;
		else
			page->lru_prev->lru_next = page->lru_next;
		if (page->lru_next)
			page->lru_next->lru_prev = page->lru_prev;
		page->lru_prev = page->lru_next = NULL;
		lru->root = meld(lru->root, meld_children(page));
	}
	page->in_lru = false;
	lru->n--;
}

struct page *lru_oldest(const struct lru *lru)
{
	return lru->root;
}
