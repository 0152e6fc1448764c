/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

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

static int list_namespaces(const struct ctl *ctl, struct skvq_client *c)
{
	struct skvq_client_ns_info *list = NULL;
	size_t n = 0;
	int err = skvq_client_namespaces(c, &list, &n);
	if (err < 0)
		return ctl_failed(ctl, c, "list namespaces", err);
	int result = CTL_OK;
	if (ctl->json) {
		json_t *array = json_array();
		for (size_t i = 0; i < n; i++)
			json_array_append_new(array, namespace_json(&list[i]));
		result = ctl_print_json(json_pack("{s:o}", "namespaces", array));
	} else {
		namespaces_text(list, n);
	}
	free(list);
	return result;
}

static json_t *page_json(const struct skvq_client_page_info *p)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "slot",
			 (json_int_t)p->page.slot, "generation", (json_int_t)p->page.generation,
			 "parent_slot", (json_int_t)p->parent.slot, "parent_generation",
			 (json_int_t)p->parent.generation, "position", (json_int_t)p->position,
			 "state", ctl_json_text(p->state), "pins", (json_int_t)p->pins, "children",
			 (json_int_t)p->children, "bytes", (json_int_t)p->bytes, "hits",
			 (json_int_t)p->hits, "age_ms", (json_int_t)p->age_ms, "idle_ms",
			 (json_int_t)p->idle_ms, "shed", p->shed);
}

static void page_text(struct ctl_table *t, const struct skvq_client_page_info *p)
{
	char num[7][CTL_HUMAN_BYTES], page[24], parent[24];
	snprintf(page, sizeof(page), "%" PRIu32 ".%" PRIu32, p->page.slot, p->page.generation);
	if (p->parent.generation)
		snprintf(parent, sizeof(parent), "%" PRIu32 ".%" PRIu32, p->parent.slot,
			 p->parent.generation);
	else
		snprintf(parent, sizeof(parent), "-");
	snprintf(num[0], sizeof(num[0]), "%" PRIu32, p->position);
	snprintf(num[1], sizeof(num[1]), "%" PRIu32, p->pins);
	snprintf(num[2], sizeof(num[2]), "%" PRIu32, p->children);
	ctl_human_bytes(p->bytes, num[3]);
	snprintf(num[4], sizeof(num[4]), "%" PRIu64, p->hits);
	ctl_human_ms(p->age_ms, num[5]);
	ctl_human_ms(p->idle_ms, num[6]);
	const char *row[] = {page,   parent, num[0], p->state, num[1],
			     num[2], num[3], num[4], num[5],   num[6]};
	ctl_table_row(t, row);
}

static int list_pages(const struct ctl *ctl, struct skvq_client *c, uint32_t ns)
{
	static const char *const headings[] = {"<PAGE",    "<PARENT", "POSITION", "<STATE", "PINS",
					       "CHILDREN", "BYTES",   "HITS",     "AGE",    "IDLE"};
	json_t *array = ctl->json ? json_array() : NULL;
	struct ctl_table *t =
	    ctl->json ? NULL : ctl_table_new(sizeof(headings) / sizeof(headings[0]), headings);
	int result = CTL_OK;
	uint32_t slot = 0, next;
	do {
		struct skvq_client_page_info *list = NULL;
		size_t n = 0;
		int err = skvq_client_pages(c, ns, slot, PAGES_PER_REQUEST, &list, &n, &next);
		if (err < 0) {
			result = ctl_failed(ctl, c, "list pages", err);
			break;
		}
		for (size_t i = 0; i < n; i++) {
			if (ctl->json)
				json_array_append_new(array, page_json(&list[i]));
			else
				page_text(t, &list[i]);
		}
		free(list);
		if (next && next <= slot) {
			fputs("skvqctl: the daemon's page list goes backwards\n", stderr);
			result = CTL_FAILED;
			break;
		}
		slot = next;
	} while (next);

	if (result != CTL_OK) {
		if (t)
			ctl_table_free(t);
		json_decref(array);
		return result;
	}
	if (t) {
		ctl_table_print_free(t);
		return CTL_OK;
	}
	return ctl_print_json(json_pack("{s:I, s:o}", "ns", (json_int_t)ns, "pages", array));
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client *c;
	bool pages = false;
	uint64_t ns = 0;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_ls, argc, argv)) > 0) {
		if (!ctl_number("--pages", optarg, 0, UINT32_MAX, &ns))
			return CTL_USAGE;
		pages = true;
	}
	if (opt < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	result = pages ? list_pages(ctl, c, (uint32_t)ns) : list_namespaces(ctl, c);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'p', "pages", "NS", "the pages of namespace number NS instead"},
};

const struct ctl_verb verb_ls = {
    .name = "ls",
    .summary = "namespaces, or the pages of one",
    .about = "Lists namespaces: one per tenant and identity (model, geometry, profile, engine).",
    CTL_OPTS(opts),
    .json = "namespaces, an array of ns, tenant, identity (hex), model_name, profile, "
	    "engine_numerics, n_layer, n_kv_heads, head_dim_k, head_dim_v, page_bytes, page_tokens, "
	    "pages, bytes, pins, tokens_asked, tokens_matched, page_hits, evictions.\n\n"
	    "With --pages: ns, and pages, an array of slot, generation, parent_slot, "
	    "parent_generation (0: first page of a sequence), position, state, pins, children, bytes, "
	    "hits, age_ms, idle_ms, shed (its refinement was given up).",
    .run = run,
};
