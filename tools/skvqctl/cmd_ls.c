/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/format.h>

#define PAGES_PER_REQUEST 1024u


static json_t *namespace_json(const struct skvq_client_ns_info *n)
{
	char identity[65];
	return json_pack(
	    "{s:I, s:o, s:s, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
	    "s:I, s:I, s:I}",
	    "ns", (json_int_t)n->ns, "tenant", ctl_json_text(n->tenant), "identity",
	    ctl_hex(n->identity_digest, 32, identity), "model_name", ctl_json_text(n->model_name),
	    "profile", ctl_json_text(n->profile), "engine_numerics",
	    ctl_json_text(n->engine_numerics), "n_layer", (json_int_t)n->n_layer, "n_kv_heads",
	    (json_int_t)n->n_kv_heads, "head_dim_k", (json_int_t)n->head_dim_k, "head_dim_v",
	    (json_int_t)n->head_dim_v, "page_bytes", (json_int_t)n->page_bytes, "page_tokens",
	    (json_int_t)SKVQ_PAGE_TOKENS, "pages", (json_int_t)n->pages, "bytes",
	    (json_int_t)n->bytes, "pins", (json_int_t)n->pins, "tokens_asked",
	    (json_int_t)n->tokens_asked, "tokens_matched", (json_int_t)n->tokens_matched,
	    "page_hits", (json_int_t)n->page_hits, "evictions", (json_int_t)n->evictions);
}

static void namespaces_text(const struct skvq_client_ns_info *list, size_t n)
{
	static const char *const headings[] = {
	    "NS",   "<MODEL", "<PROFILE", "<TENANT", "PAGES",   "TOKENS",   "BYTES",
	    "PINS", "ASKED",  "MATCHED",  "HITS",    "EVICTED", "<IDENTITY"};
	if (!n) {
		puts("no namespaces yet: no engine has registered a model");
		return;
	}
	struct ctl_table *t = ctl_table_new(sizeof(headings) / sizeof(headings[0]), headings);
	for (size_t i = 0; i < n; i++) {
		char num[9][CTL_HUMAN_BYTES], identity[17];
		snprintf(num[0], sizeof(num[0]), "%" PRIu32, list[i].ns);
		snprintf(num[1], sizeof(num[1]), "%" PRIu64, list[i].pages);
		snprintf(num[2], sizeof(num[2]), "%" PRIu64, list[i].pages * SKVQ_PAGE_TOKENS);
		ctl_human_bytes(list[i].bytes, num[3]);
		snprintf(num[4], sizeof(num[4]), "%" PRIu64, list[i].pins);
		snprintf(num[5], sizeof(num[5]), "%" PRIu64, list[i].tokens_asked);
		snprintf(num[6], sizeof(num[6]), "%" PRIu64, list[i].tokens_matched);
		snprintf(num[7], sizeof(num[7]), "%" PRIu64, list[i].page_hits);
		snprintf(num[8], sizeof(num[8]), "%" PRIu64, list[i].evictions);
		const char *row[] = {num[0],
				     list[i].model_name,
				     list[i].profile,
				     list[i].tenant,
				     num[1],
				     num[2],
				     num[3],
				     num[4],
				     num[5],
				     num[6],
				     num[7],
				     num[8],
				     ctl_hex(list[i].identity_digest, 8, identity)};
		ctl_table_row(t, row);
	}
	ctl_table_print_free(t);
}

struct filter { /* of namespaces, or of pages */
	const char *tenant, *model, *profile;
	const char *state;
	bool pinned, disk;
	uint64_t idle_ms, min_hits, limit;
	const char *sort;
};

static bool has_text(const char *text, const char *part)
{
	return !part || strstr(text, part);
}

/* Moves those that are wanted to the front; how many. */
static size_t filter_namespaces(const struct filter *f, struct skvq_client_ns_info *list, size_t n)
{
	size_t kept = 0;

	for (size_t i = 0; i < n; i++)
		if ((!f->tenant || !strcmp(list[i].tenant, f->tenant)) &&
		    has_text(list[i].model_name, f->model) &&
		    (!f->profile || !strcmp(list[i].profile, f->profile)))
			list[kept++] = list[i];
	return kept;
}

static int list_namespaces(const struct ctl *ctl, struct skvq_client *c, const struct filter *f)
{
	struct skvq_client_ns_info *list = NULL;
	size_t n = 0;
	int err = skvq_client_namespaces(c, &list, &n);
	if (err < 0)
		return ctl_failed(ctl, c, "list namespaces", err);
	int result = CTL_OK;
	bool some = n > 0;
	n = filter_namespaces(f, list, n);
	if (ctl->json) {
		json_t *array = json_array();
		for (size_t i = 0; i < n; i++)
			json_array_append_new(array, namespace_json(&list[i]));
		result = ctl_print_json(json_pack("{s:o}", "namespaces", array));
	} else if (some && !n) {
		puts("no namespace is of that kind");
	} else {
		namespaces_text(list, n);
	}
	free(list);
	return result;
}

/* ---- pages ---- */

struct pages {
	struct skvq_client_page_info *at; /* page.generation 0: on disk alone */
	size_t n, cap;
};

static void add_page(struct pages *all, const struct skvq_client_page_info *p)
{
	if (all->n == all->cap) {
		all->cap = all->cap ? 2 * all->cap : 1024;
		all->at = realloc(all->at, all->cap * sizeof(*all->at));
		if (!all->at)
			abort();
	}
	all->at[all->n++] = *p;
}

static int get_pages(const struct ctl *ctl, struct skvq_client *c, uint32_t ns, struct pages *all)
{
	uint32_t slot = 0, next;

	do {
		struct skvq_client_page_info *list = NULL;
		size_t n = 0;
		int err = skvq_client_pages(c, ns, slot, PAGES_PER_REQUEST, &list, &n, &next);

		if (err < 0)
			return ctl_failed(ctl, c, "list pages", err);
		for (size_t i = 0; i < n; i++)
			add_page(all, &list[i]);
		free(list);
		if (next && next <= slot) {
			fputs("skvqctl: the daemon's page list goes backwards\n", stderr);
			return CTL_FAILED;
		}
		slot = next;
	} while (next);
	return CTL_OK;
}

static int by_digest(const void *a, const void *b)
{
	return memcmp(((const struct skvq_client_page_info *)a)->digest,
		      ((const struct skvq_client_page_info *)b)->digest, 32);
}

/* Those that are on disk and not among what is in memory. */
static int get_disk(const struct ctl *ctl, struct skvq_client *c, uint32_t ns, struct pages *all)
{
	size_t in_memory = all->n;
	uint64_t place = 0;

	if (in_memory)
		qsort(all->at, in_memory, sizeof(*all->at), by_digest);
	do {
		struct skvq_client_disk_page *list = NULL;
		size_t n = 0;
		int err = skvq_client_disk_pages(c, ns, &place, &list, &n);

		if (err < 0)
			return ctl_failed(ctl, c, "list pages on disk", err);
		for (size_t i = 0; i < n; i++) {
			struct skvq_client_page_info p = {.position = list[i].position,
							  .state = "stored",
							  .bytes = list[i].bytes};

			memcpy(p.digest, list[i].digest, sizeof(p.digest));
			if (!in_memory || !bsearch(&p, all->at, in_memory, sizeof(p), by_digest))
				add_page(all, &p);
		}
		free(list);
	} while (place);
	return CTL_OK;
}

static bool is_wanted(const struct filter *f, const struct skvq_client_page_info *p)
{
	bool here = p->page.generation;

	return (!f->state || !strcmp(f->state, p->state)) && (!f->pinned || p->pins) &&
	       (!f->idle_ms || (here && p->idle_ms > f->idle_ms)) && p->hits >= f->min_hits;
}

/* ---- order ---- */

static uint64_t key_slot(const struct skvq_client_page_info *p)
{
	return p->page.generation ? p->page.slot : UINT64_MAX;
}
static uint64_t key_position(const struct skvq_client_page_info *p)
{
	return p->position;
}
static uint64_t key_bytes(const struct skvq_client_page_info *p)
{
	return p->bytes;
}
static uint64_t key_hits(const struct skvq_client_page_info *p)
{
	return p->hits;
}
static uint64_t key_pins(const struct skvq_client_page_info *p)
{
	return p->pins;
}
static uint64_t key_children(const struct skvq_client_page_info *p)
{
	return p->children;
}
static uint64_t key_age(const struct skvq_client_page_info *p)
{
	return p->age_ms;
}
static uint64_t key_idle(const struct skvq_client_page_info *p)
{
	return p->idle_ms;
}

#define SORT_KEYS "slot, position, bytes, hits, pins, children, age, idle"
static const struct sort_key {
	const char *name;
	uint64_t (*of)(const struct skvq_client_page_info *p);
	bool up; /* the least first */
} sort_keys[] = {
    {"slot", key_slot, true},  {"position", key_position, true}, {"bytes", key_bytes, false},
    {"hits", key_hits, false}, {"pins", key_pins, false},	 {"children", key_children, false},
    {"age", key_age, false},   {"idle", key_idle, false},
};

static const struct sort_key *sort_key(const char *name)
{
	for (size_t i = 0; i < sizeof(sort_keys) / sizeof(sort_keys[0]); i++)
		if (!strcmp(name, sort_keys[i].name))
			return &sort_keys[i];
	return NULL;
}

static const struct sort_key *sorting; /* of qsort, which hands nothing through */

static int by_key(const void *a, const void *b)
{
	uint64_t x = sorting->of(a), y = sorting->of(b);

	if (x != y)
		return (x < y) == sorting->up ? -1 : 1;
	return by_digest(a, b);
}

/* ---- printing ---- */

static json_t *page_json(const struct skvq_client_page_info *p)
{
	char digest[65];

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "slot",
			 (json_int_t)p->page.slot, "generation", (json_int_t)p->page.generation,
			 "parent_slot", (json_int_t)p->parent.slot, "parent_generation",
			 (json_int_t)p->parent.generation, "position", (json_int_t)p->position,
			 "state", ctl_json_text(p->state), "pins", (json_int_t)p->pins, "children",
			 (json_int_t)p->children, "bytes", (json_int_t)p->bytes, "hits",
			 (json_int_t)p->hits, "age_ms", (json_int_t)p->age_ms, "idle_ms",
			 (json_int_t)p->idle_ms, "shed", p->shed, "digest",
			 ctl_hex(p->digest, 32, digest));
}

static void ref_text(struct skvq_page_ref ref, char buf[24])
{
	if (ref.generation)
		snprintf(buf, 24, "%" PRIu32 ".%" PRIu32, ref.slot, ref.generation);
	else
		snprintf(buf, 24, "-");
}

static void page_text(struct ctl_table *t, const struct skvq_client_page_info *p)
{
	char num[7][CTL_HUMAN_BYTES], page[24], parent[24], digest[17];
	bool here = p->page.generation;

	ref_text(p->page, page);
	ref_text(p->parent, parent);
	snprintf(num[0], sizeof(num[0]), "%" PRIu32, p->position);
	snprintf(num[1], sizeof(num[1]), "%" PRIu32, p->pins);
	snprintf(num[2], sizeof(num[2]), "%" PRIu32, p->children);
	ctl_human_bytes(p->bytes, num[3]);
	snprintf(num[4], sizeof(num[4]), "%" PRIu64, p->hits);
	ctl_human_ms(p->age_ms, num[5]);
	ctl_human_ms(p->idle_ms, num[6]);
	const char *row[] = {page,
			     parent,
			     num[0],
			     p->state,
			     num[1],
			     num[2],
			     num[3],
			     num[4],
			     here ? num[5] : "-",
			     here ? num[6] : "-",
			     ctl_hex(p->digest, 8, digest)};
	ctl_table_row(t, row);
}

static int print_pages(const struct ctl *ctl, uint32_t ns, const struct pages *all)
{
	static const char *const headings[] = {"<PAGE",    "<PARENT", "POSITION", "<STATE",
					       "PINS",	   "CHILDREN", "BYTES",	  "HITS",
					       "AGE",	   "IDLE",     "<DIGEST"};
	json_t *array = json_array();
	struct ctl_table *t;

	if (ctl->json) {
		for (size_t i = 0; i < all->n; i++)
			json_array_append_new(array, page_json(&all->at[i]));
		return ctl_print_json(
		    json_pack("{s:I, s:o}", "ns", (json_int_t)ns, "pages", array));
	}
	json_decref(array);
	t = ctl_table_new(sizeof(headings) / sizeof(headings[0]), headings);
	for (size_t i = 0; i < all->n; i++)
		page_text(t, &all->at[i]);
	ctl_table_print_free(t);
	return ctl_flush();
}

static int list_pages(const struct ctl *ctl, struct skvq_client *c, uint32_t ns,
		      const struct filter *f)
{
	struct pages all = {0};
	int result = get_pages(ctl, c, ns, &all);
	size_t n = 0;

	if (result == CTL_OK && f->disk)
		result = get_disk(ctl, c, ns, &all);
	for (size_t i = 0; i < all.n; i++)
		if (is_wanted(f, &all.at[i]))
			all.at[n++] = all.at[i];
	all.n = n;
	sorting = sort_key(f->sort ? f->sort : "slot");
	if (n)
		qsort(all.at, n, sizeof(*all.at), by_key);
	if (all.n > f->limit)
		all.n = (size_t)f->limit;
	if (result == CTL_OK)
		result = print_pages(ctl, ns, &all);
	free(all.at);
	return result;
}

enum {
	OPT_TENANT = CTL_LONG_ONLY,
	OPT_MODEL,
	OPT_PROFILE,
	OPT_STATE,
	OPT_PINNED,
	OPT_IDLE,
	OPT_HITS,
	OPT_DISK,
	OPT_SORT,
	OPT_LIMIT,
	OPT_END,
};
#define OF_PAGES(opt) ((opt) >= OPT_STATE && (opt) < OPT_END)

static bool take(struct filter *f, int opt)
{
	uint64_t seconds;

	switch (opt) {
	case OPT_TENANT:
		f->tenant = optarg;
		break;
	case OPT_MODEL:
		f->model = optarg;
		break;
	case OPT_PROFILE:
		f->profile = optarg;
		break;
	case OPT_STATE:
		f->state = optarg;
		/* Nothing else is in that state. */
		f->disk = f->disk || !strcmp(optarg, "stored");
		if (strcmp(optarg, "filling") && strcmp(optarg, "resident") &&
		    strcmp(optarg, "resident+stored") && strcmp(optarg, "restoring") &&
		    strcmp(optarg, "stored")) {
			fputs("skvqctl ls: --state is filling, resident, resident+stored, restoring or "
			      "stored\n",
			      stderr);
			return false;
		}
		break;
	case OPT_PINNED:
		f->pinned = true;
		break;
	case OPT_IDLE:
		if (!ctl_number("--idle-over", optarg, 0, UINT32_MAX, &seconds))
			return false;
		f->idle_ms = seconds * 1000;
		break;
	case OPT_HITS:
		return ctl_number("--min-hits", optarg, 0, UINT64_MAX - 1, &f->min_hits);
	case OPT_DISK:
		f->disk = true;
		break;
	case OPT_SORT:
		f->sort = optarg;
		if (!sort_key(optarg)) {
			fputs("skvqctl ls: --sort is one of " SORT_KEYS "\n", stderr);
			return false;
		}
		break;
	default:
		return ctl_number("--limit", optarg, 1, UINT32_MAX, &f->limit);
	}
	return true;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct filter f = {.limit = UINT64_MAX};
	bool pages = false, of_pages = false, of_namespaces = false;
	struct skvq_client *c;
	uint64_t ns = 0;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_ls, argc, argv)) > 0) {
		if (opt == 'p' ? !ctl_number("--pages", optarg, 0, UINT32_MAX, &ns) : !take(&f, opt))
			return CTL_USAGE;
		pages = pages || opt == 'p';
		of_pages = of_pages || OF_PAGES(opt);
		of_namespaces = of_namespaces || (opt != 'p' && !OF_PAGES(opt));
	}
	if (opt < 0)
		return ctl->result;
	if (pages ? of_namespaces : of_pages) {
		fprintf(stderr, "skvqctl ls: an option of %s; see 'skvqctl ls --help'\n",
			pages ? "namespaces, not of pages" : "pages, without --pages NS");
		return CTL_USAGE;
	}
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	result = pages ? list_pages(ctl, c, (uint32_t)ns, &f) : list_namespaces(ctl, c, &f);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'p', "pages", "NS", "the pages of namespace number NS instead"},
    {OPT_TENANT, "tenant", "NAME", "namespaces of this tenant"},
    {OPT_MODEL, "model", "TEXT", "namespaces with this in the model's name"},
    {OPT_PROFILE, "profile", "NAME", "namespaces of this profile"},
    {OPT_STATE, "state", "STATE",
     "pages that are filling, resident, resident+stored (on disk too), restoring, or stored (on disk alone)"},
    {OPT_PINNED, "pinned", NULL, "pages that somebody holds"},
    {OPT_IDLE, "idle-over", "SECONDS", "pages that were not used for longer"},
    {OPT_HITS, "min-hits", "N", "pages that matches found so often"},
    {OPT_DISK, "disk", NULL, "with pages that are on disk alone"},
    {OPT_SORT, "sort", "KEY", SORT_KEYS "; the largest first but for the first two"},
    {OPT_LIMIT, "limit", "N", "the first N pages"},
};

const struct ctl_verb verb_ls = {
    .name = "ls",
    .summary = "namespaces, or the pages of one",
    .about = "Lists namespaces: one per tenant and identity (model, geometry, profile, engine).\n\n"
	     "With --pages the pages of one, in memory; with --disk those on disk alone too, which have no "
	     "slot.",
    CTL_OPTS(opts),
    .json = "namespaces, an array of ns, tenant, identity (hex), model_name, profile, "
	    "engine_numerics, n_layer, n_kv_heads, head_dim_k, head_dim_v, page_bytes, page_tokens, "
	    "pages, bytes, pins, tokens_asked, tokens_matched, page_hits, evictions.\n\n"
	    "With --pages: ns, and pages, an array of slot, generation, parent_slot, "
	    "parent_generation (0: first page of a sequence), position, state, pins, children, bytes, "
	    "hits, age_ms, idle_ms, shed (its refinement was given up), digest. generation is 0 of a page on "
	    "disk alone.",
    .run = run,
};
