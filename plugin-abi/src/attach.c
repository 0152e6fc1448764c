/* SPDX-License-Identifier: Apache-2.0 */
/* A model's namespace in the daemon and the mapping of its arena. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

void arena_unref(struct arena_map *a)
{
	if (!a || --a->refs)
		return;
	munmap((void *)(uintptr_t)a->base, a->bytes);
	free(a->more);
	free(a);
}

/* Maps what the daemon handed over, once it is sure that the file cannot shrink under us: a page
 * that vanished would be a SIGBUS in the engine. */
static int arena_map_new(struct skvq_session *s, int fd, const struct skvq_client_ns *ns,
                         struct arena_map **ret)
{
	struct stat st;
	struct statfs fs;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return set_error(s, SKVQ_ESEALS, "the daemon's arena is not sealed against shrinking");
	/* Sealed huge pages would still be a SIGBUS where the system has none left. */
	if (fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
		return set_error(s, SKVQ_EFD, "the daemon's arena is not a plain memfd");
	if (fstat(fd, &st) < 0 || st.st_size < 0 || (uint64_t)st.st_size < ns->arena_bytes)
		return set_error(s, SKVQ_ESHORT, "the daemon's arena is shorter than it was said to be");
	if (ns->arena_bytes == 0 || ns->arena_bytes > SIZE_MAX / 2)
		return set_error(s, SKVQ_EPROTO, "the daemon's arena has no usable size");
	struct arena_map *a = calloc(1, sizeof *a);
	if (!a)
		return set_error(s, SKVQ_ENOMEM, "no memory for a mapping");
	void *p = mmap(NULL, ns->arena_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED) {
		free(a);
		return set_error(s, SKVQ_ENOMEM, "mapping the arena of %llu bytes: %s",
		                 (unsigned long long)ns->arena_bytes, strerror(errno));
	}
	a->refs = 1;
	a->base = p;
	a->bytes = ns->arena_bytes;
	a->slot_bytes = ns->slot_bytes;
	*ret = a;
	return 0;
}

/* Whether it is worth telling: the groups of one model are near each other by nature. */
static bool is_news(const struct skvq_model *m, const struct skvq_client_ns *ns)
{
	return ns->nearest_ns && !(m->layers && strcmp(ns->nearest_differs, "engine_numerics") == 0);
}

int model_attach(struct skvq_model *m)
{
	struct skvq_session *s = m->session;
	struct skvq_client_ns ns;
	struct arena_map *a = NULL;
	int fd = -1, r = 0;

	if (m->n_groups) {
		for (uint32_t i = 0; i < m->n_groups && r == 0; i++)
			r = model_attach(m->groups[i]);
		return r;
	}
	r = skvq_client_namespace_open(s->client, &m->id, &ns, &fd);
	if (r < 0) {
		set_error(s, -r, "%s", skvq_client_why(s->client));
		return r;
	}
	if (ns.slot_bytes != m->layout.slot_bytes || ns.base_bytes != m->layout.base_bytes ||
	    ns.refine_bytes != m->layout.refine_bytes ||
	    ns.sidecar_bytes != m->layout.sidecar_bytes)
		r = set_error(s, SKVQ_EVERSION,
		              "the daemon lays pages out in %llu bytes, this plugin in %llu",
		              (unsigned long long)ns.slot_bytes,
		              (unsigned long long)m->layout.slot_bytes);
	else
		r = arena_map_new(s, fd, &ns, &a);
	close(fd);
	if (r < 0)
		return r;
	if (is_news(m, &ns))
		log_event(s, SKVQ_LOG_INFO,
		          "the daemon has other pages of this model, and none of them can be shared: "
		          "their identity differs in %s first",
		          ns.nearest_differs);
	arena_unref(m->arena);
	m->arena = a;
	m->ns = ns.ns;
	m->epoch = s->epoch;
	return 0;
}

bool page_holds(const struct skvq_model *m, const uint8_t *page, uint32_t position,
                const int32_t *tokens, bool *ret_safe)
{
	skvq_page_header h;

	memcpy(&h, page, sizeof h);
	bool safe = h.flags & SKVQ_PAGE_SAFE;
	if (safe && !m->safe)
		return false;
	const struct skvq_layout *l = layout_of(m, safe);
	*ret_safe = safe;
	return h.magic == SKVQ_PAGE_MAGIC && h.version == SKVQ_PAGE_VERSION &&
	       h.position == position && h.base_bytes == l->base_bytes &&
	       h.tokens_offset == l->tokens_offset &&
	       memcmp(page + l->tokens_offset, tokens, SKVQ_PAGE_TOKENS * sizeof *tokens) == 0 &&
	       layer_table_equal(m, safe, page);
}

const uint8_t *arena_page(const struct skvq_model *m, struct skvq_page_ref ref, uint32_t position,
                          const int32_t *tokens, bool *ret_safe)
{
	const struct arena_map *a = m->arena;

	if (!ref.generation || ref.slot >= a->bytes / a->slot_bytes)
		return NULL;
	const uint8_t *page = a->base + ref.slot * a->slot_bytes;
	return page_holds(m, page, position, tokens, ret_safe) ? page : NULL;
}
