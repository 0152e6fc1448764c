/* SPDX-License-Identifier: Apache-2.0 */
#include "publisher.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"

#define WAIT_MS 10000u

static int fail(struct publisher *p, const char *what, int err)
{
	return ctl_failed(p->ctl, p->client, what, err);
}

static void published(void *user, uint64_t id, int err, const char *detail,
		      const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct publisher *p = user;

	(void)n_existed;
	if (id != p->request)
		return;
	p->request = 0;
	p->failed = err;
	snprintf(p->why, sizeof(p->why), "%s", detail ? detail : "");
	for (size_t i = 0; i < n_pages && p->n_done < p->n_pages; i++)
		p->pages[p->n_done++] = pages[i];
}

int publisher_init(struct publisher *p, struct ctl *ctl, const char *name,
		   const struct skvq_geometry *geometry, const char *profile)
{
	uint8_t digest[32];

	*p = (struct publisher){.ctl = ctl, .name = name};
	p->random = (uint64_t)bench_now_us() * 2654435761u + (uint64_t)getpid() + 1;
	for (size_t i = 0; i < sizeof(digest); i++)
		digest[i] = (uint8_t)made_up_random(&p->random);
	return made_up_model_init(&p->model, geometry, profile, "skvqctl", digest) < 0 ? -1 : 0;
}

int publisher_connect(struct publisher *p)
{
	p->client = ctl_connect(p->ctl);
	if (!p->client)
		return p->ctl->result;
	skvq_client_on_published(p->client, published, p);
	return CTL_OK;
}

int publisher_ask_for_room(struct publisher *p, uint64_t n_pages, bool all, bool yes)
{
	struct skvq_client_status *s;
	/* A slot has room for a page of the safe kind, too; what ours leave empty takes no memory. */
	uint64_t need = n_pages * (p->model.layout.base_bytes + UINT64_C(4096)), room;
	char a[CTL_HUMAN_BYTES], r[CTL_HUMAN_BYTES];
	int err = ctl_status(p->client, &s), result = CTL_OK;

	if (err < 0)
		return fail(p, "tell its status", err);
	room = s->bytes_max > s->bytes_kernel ? s->bytes_max - s->bytes_kernel : 0;
	if (all && need > s->bytes_max / 2) {
		fprintf(stderr, "skvqctl %s: %" PRIu64 " pages take %s, more than half of ram_max; "
				"fewer with --pages\n",
			p->name, n_pages, ctl_human_bytes(need, a));
		result = CTL_USAGE;
	} else if (need > room) {
		result = ctl_confirm(p->name, yes, "takes %s, of which %s are free: pages of others go",
				     ctl_human_bytes(need < s->bytes_max ? need : s->bytes_max, a),
				     ctl_human_bytes(room, r));
	}
	free(s);
	return result;
}

int publisher_open(struct publisher *p, int *ret_arena)
{
	const struct skvq_layout *l = &p->model.layout;
	uint64_t bytes = PUBLISHER_RUN * l->slot_bytes;
	int fd = memfd_create("skvqctl", MFD_CLOEXEC | MFD_ALLOW_SEALING), arena = -1, err;
	void *map = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0)
		map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		if (fd >= 0)
			close(fd);
		fprintf(stderr, "skvqctl %s: no memory to make pages in; see 'skvqctl doctor'\n", p->name);
		return CTL_FAILED;
	}
	p->staged = map;
	err = skvq_client_staging_add(p->client, fd, &p->staging);
	close(fd);
	if (err >= 0)
		err = skvq_client_namespace_open(p->client, &p->model.identity, &p->ns, &arena);
	if (arena >= 0 && !ret_arena)
		close(arena);
	else if (ret_arena)
		*ret_arena = arena;
	if (err >= 0 && p->ns.slot_bytes != l->slot_bytes)
		err = -SKVQ_EPROTO;
	if (err < 0)
		return fail(p, "open a namespace", err);
	for (uint32_t i = 0; i < PUBLISHER_RUN; i++)
		made_up_fill(l, SKVQ_PAGE_TOKENS, i + 1, p->staged + i * l->slot_bytes);
	return CTL_OK;
}

/* The codes of a staged page stay, tokens and header are new. */
int publisher_publish(struct publisher *p, const int32_t *tokens, uint32_t first, uint32_t n,
		      struct skvq_page_ref parent, struct skvq_page_ref *pages)
{
	const struct skvq_layout *l = &p->model.layout;

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *page = p->staged + i * l->slot_bytes;

		skvq_page_init(l, (first + i) * SKVQ_PAGE_TOKENS, page);
		memcpy(page + l->tokens_offset, tokens + i * SKVQ_PAGE_TOKENS,
		       SKVQ_PAGE_TOKENS * sizeof(int32_t));
	}
	p->pages = pages;
	p->n_pages = n;
	p->n_done = 0;
	p->failed = 0;
	int err = skvq_client_publish(p->client, p->ns.ns, parent, first * SKVQ_PAGE_TOKENS, tokens, n,
				      NULL, p->staging, 0, &p->request);
	while (err >= 0 && p->request)
		err = skvq_client_poll(p->client, WAIT_MS);
	return err < 0 ? err : 0;
}

void publisher_close(struct publisher *p)
{
	skvq_client_free(p->client);
	if (p->staged)
		munmap(p->staged, PUBLISHER_RUN * p->model.layout.slot_bytes);
	p->client = NULL;
	p->staged = NULL;
}
