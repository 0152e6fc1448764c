/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/crc32c.h"

/* Bytes from..to of the page. */
static int copy_in(struct fill_task *task, uint8_t *page, uint64_t from, uint64_t to)
{
	uint64_t at = from;

	while (at < to) {
		ssize_t n = pread(task->fd, page + at, (size_t)(to - at),
				  (off_t)(task->fd_offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return why_fail_errno(&task->why, SKVQ_EIO,
					      "reading the staging memfd at offset %llu",
					      (unsigned long long)(task->fd_offset + at));
		if (n == 0)
			return why_fail(&task->why, SKVQ_ESHORT,
					"the staging memfd ends at offset %llu inside a page",
					(unsigned long long)(task->fd_offset + at));
		at += (uint64_t)n;
	}
	return 0;
}

/* The sections' checksums; a section that the header does not have, or that was shed, keeps its. */
static void checksum(const struct skvq_layout *l, const uint8_t *page, bool shed,
		     skvq_page_header *h)
{
	h->crc_base = crc32c(page + sizeof(*h), l->base_bytes - sizeof(*h));
	if (h->refine_bytes && !shed)
		h->crc_refine = crc32c(page + l->base_bytes, l->refine_bytes);
	if (h->sidecar_bytes)
		h->crc_sidecar =
		    crc32c(page + l->base_bytes + l->refine_bytes, h->sidecar_bytes);
	h->crc_header = 0;
	h->crc_header = crc32c(h, sizeof(*h));
}

/* The header is copied out, completed and copied back: nobody else writes it. */
static void seal_header(struct fill_task *task, uint8_t *page)
{
	const struct skvq_layout *l = task->layout;
	skvq_page_header h;

	memcpy(&h, page, sizeof(h));
	memcpy(h.identity, task->identity, sizeof(h.identity));
	memcpy(h.parent, task->parent, sizeof(h.parent));
	memcpy(h.digest, task->digest, sizeof(h.digest));
	checksum(l, page, false, &h);
	memcpy(page, &h, sizeof(h));
}

/* Copied, checked and sealed in memory of our own, then written in one go: the arena is not touched
 * through its mapping, where each new 4 KiB would be a fault and a page of zeros first. */
static int fill_through(struct fill_task *task, uint8_t *page)
{
	char text[160] = "";
	int err = copy_in(task, page, 0, task->page_bytes);

	if (err < 0)
		return err;
	err = skvq_page_check(task->layout, task->position, task->tokens, page,
			      (size_t)task->page_bytes, text, sizeof(text));
	if (err < 0)
		return why_fail(&task->why, -err, "page at position %u, staging offset %llu: %s",
				task->position, (unsigned long long)task->fd_offset, text);
	err = page_digest(task->identity, task->parent, task->position, task->tokens, task->digest);
	if (err < 0)
		return why_fail(&task->why, -err, "no memory for a page digest");
	seal_header(task, page);
	if (arena_write(task->arena, task->slot_offset, page, task->page_bytes) < 0)
		return why_fail_errno(&task->why, SKVQ_ENOMEM,
				      "the kernel has no memory for a page of %llu bytes",
				      (unsigned long long)task->page_bytes);
	return 0;
}

int fill_run(struct fill_task *task)
{
	uint8_t *page = aligned_alloc(64, (task->page_bytes + 63) / 64 * 64);
	int err;

	if (!page)
		return why_fail(&task->why, SKVQ_ENOMEM, "no memory to copy a page of %llu bytes",
				(unsigned long long)task->page_bytes);
	err = fill_through(task, page);
	free(page);
	return err;
}

bool page_sound(const struct skvq_layout *layout, const uint8_t *page, uint64_t bytes, bool shed,
		const uint8_t digest[IDENTITY_DIGEST])
{
	skvq_page_header h, want;

	memcpy(&h, page, sizeof(h));
	if ((uint64_t)layout->base_bytes + layout->refine_bytes + h.sidecar_bytes != bytes ||
	    h.refine_bytes != layout->refine_bytes || memcmp(h.digest, digest, IDENTITY_DIGEST))
		return false;
	want = h;
	checksum(layout, page, shed, &want);
	return !memcmp(&h, &want, sizeof(h));
}

int fill_refine(struct fill_task *task)
{
	uint8_t *page = task->arena->base + task->slot_offset;
	uint64_t from = task->layout->base_bytes, bytes = task->layout->refine_bytes;
	skvq_page_header h;
	int err;

	if (arena_commit(task->arena, task->slot_offset + from, bytes) < 0)
		return why_fail_errno(&task->why, SKVQ_ENOMEM,
				      "the kernel has no memory for a refinement of %llu bytes",
				      (unsigned long long)bytes);
	err = copy_in(task, page, from, from + bytes);
	if (err < 0)
		return err;
	memcpy(&h, page, sizeof(h));
	if (crc32c(page + from, (size_t)bytes) != h.crc_refine)
		return why_fail(&task->why, SKVQ_ECORRUPT,
				"page at position %u: its refinement is not that of the page with "
				"the same tokens that is here",
				task->position);
	return 0;
}

int fill_verify(struct fill_task *task)
{
	uint8_t *page = task->arena->base + task->slot_offset;
	skvq_page_header sealed, bare;
	char text[160] = "";
	int err;

	memcpy(&sealed, page, sizeof(sealed));
	if (!page_sound(task->layout, page, task->page_bytes, task->shed, task->digest) ||
	    memcmp(sealed.identity, task->identity, sizeof(sealed.identity)) ||
	    memcmp(sealed.parent, task->parent, sizeof(sealed.parent)))
		return why_fail(&task->why, SKVQ_ECORRUPT,
				"page at position %u is not what was written", task->position);
	/* Then as if an engine had sent it: nobody else sees the slot yet. */
	bare = sealed;
	memset(bare.identity, 0, sizeof(bare.identity));
	memset(bare.parent, 0, sizeof(bare.parent));
	memset(bare.digest, 0, sizeof(bare.digest));
	bare.crc_header = bare.crc_base = bare.crc_refine = bare.crc_sidecar = 0;
	memcpy(page, &bare, sizeof(bare));
	err = skvq_page_check(task->layout, task->position, task->tokens, page,
			      (size_t)task->page_bytes, text, sizeof(text));
	memcpy(page, &sealed, sizeof(sealed));
	/* The check looked at the hole, and the kernel filled it. */
	if (task->shed)
		(void)arena_punch(task->arena, task->slot_offset + task->layout->base_bytes,
				  task->layout->refine_bytes);
	if (err < 0)
		return why_fail(&task->why, -err, "page at position %u: %s", task->position, text);
	return 0;
}
