/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/format.h>

#include "rounds.h"

struct wanted {
	bool by_ref;
	uint32_t ns; /* 0: any, of a digest */
	struct skvq_page_ref ref;
	uint8_t digest[32];
	uint32_t digits;
	bool tokens;
};

/* One that is on disk alone. */
struct disk_hit {
	uint32_t ns;
	struct skvq_client_disk_page page;
};

static bool parse_digest(const char *text, struct wanted *w)
{
	size_t n = strlen(text);

	if (n < 1 || n > 64)
		return false;
	for (size_t i = 0; i < n; i++) {
		int c = tolower((unsigned char)text[i]);

		if (!isxdigit(c))
			return false;
		w->digest[i / 2] |=
		    (uint8_t)((isdigit(c) ? c - '0' : c - 'a' + 10) << (i % 2 ? 0 : 4));
	}
	w->digits = (uint32_t)n;
	return true;
}

static bool has_prefix(const uint8_t *digest, const struct wanted *w)
{
	size_t whole = w->digits / 2;

	return !memcmp(digest, w->digest, whole) &&
	       (w->digits % 2 == 0 || (digest[whole] & 0xf0) == w->digest[whole]);
}

/* ---- text ---- */

static void line(const char *name, const char *text)
{
	printf("%-12s %s\n", name, text);
}

static void ref_text(struct skvq_page_ref ref, char *buf, size_t n)
{
	if (ref.generation)
		snprintf(buf, n, "%" PRIu32 ".%" PRIu32, ref.slot, ref.generation);
	else
		snprintf(buf, n, "none");
}

static const char *where_text(const struct skvq_client_page *p)
{
	if (p->spilling)
		return "memory, on its way to disk";
	return p->on_disk ? "memory and disk" : "memory";
}

static void print_family(const struct skvq_client_page *p)
{
	char buf[64], hex[65];

	ref_text(p->info.parent, buf, sizeof(buf));
	printf("%-12s %s", "parent", buf);
	if (p->info.parent.generation)
		printf("  %s", ctl_hex(p->parent_digest, 8, hex));
	printf("\n%-12s %" PRIu32, "children", p->info.children);
	for (size_t i = 0; i < p->n_children && i < 8; i++) {
		ref_text(p->children[i], buf, sizeof(buf));
		printf("%s%s", i ? ", " : ": ", buf);
	}
	puts(p->n_children > 8 ? ", ..." : "");
}

static void print_holders(const struct skvq_client_page *p)
{
	printf("%-12s %" PRIu32 "\n", "pins", p->info.pins);
	for (size_t i = 0; i < p->n_holders; i++) {
		char name[64];

		memcpy(name, p->holders[i].name, sizeof(name));
		printf("%-12s connection %" PRIu64 ", %s, pid %" PRId32 ", user %" PRIu32 ": %" PRIu32
		       "\n",
		       "", p->holders[i].connection, *name ? ctl_clean(name) : "no name",
		       p->holders[i].pid, p->holders[i].uid, p->holders[i].pins);
	}
}

static void bits_text(uint32_t base, uint32_t more, char buf[24])
{
	if (more)
		snprintf(buf, 24, "%.3g+%.3g", base / 10.0, more / 10.0);
	else
		snprintf(buf, 24, "%.3g", base / 10.0);
}

static void print_layers(const struct skvq_client_page *p)
{
	static const char *const headings[] = {"LAYER", "<K BITS", "<V BITS", "K ERROR", "V ERROR"};
	struct ctl_table *t = ctl_table_new(5, headings);

	for (size_t i = 0; i < p->n_layers; i++) {
		const struct skvq_client_page_layer *l = &p->layers[i];
		char n[24], k[24], v[24], ke[24], ve[24];

		snprintf(n, sizeof(n), "%zu", i);
		bits_text(l->k_bits, l->k_refine_bits, k);
		bits_text(l->v_bits, l->v_refine_bits, v);
		snprintf(ke, sizeof(ke), l->k_error > 0 ? "%.3g" : "-", l->k_error);
		snprintf(ve, sizeof(ve), l->v_error > 0 ? "%.3g" : "-", l->v_error);
		ctl_table_row(t, (const char *[]){n, k, v, ke, ve});
	}
	puts("");
	ctl_table_print_free(t);
}

static void print_tokens(const struct skvq_client_page *p)
{
	puts("\ntokens");
	for (size_t i = 0; i < p->n_tokens; i++)
		printf("%" PRId32 "%s", p->tokens[i], i % 10 == 9 || i + 1 == p->n_tokens ? "\n" : " ");
}

static int print_text(const struct skvq_client_page *p)
{
	char a[CTL_HUMAN_BYTES], b[CTL_HUMAN_BYTES], d[CTL_HUMAN_BYTES], hex[65], tenant[64];
	const struct skvq_client_page_info *i = &p->info;
	char state[24];

	memcpy(state, i->state, sizeof(state));
	memcpy(tenant, p->tenant, sizeof(tenant));
	printf("%-12s %" PRIu32 ":%" PRIu32 ".%" PRIu32 " of tenant %s\n", "page", p->ns, i->page.slot,
	       i->page.generation, ctl_clean(tenant));
	line("digest", ctl_hex(i->digest, 32, hex));
	printf("%-12s %" PRIu32 " to %" PRIu32 "\n", "tokens", i->position,
	       i->position + SKVQ_PAGE_TOKENS - 1);
	print_family(p);
	printf("%-12s %s%s%s\n", "state", ctl_clean(state),
	       p->unlisted ? ", taken out: its checksums did not hold" : "",
	       p->safe ? ", a safe page" : "");
	line("is in", where_text(p));
	print_holders(p);
	printf("%-12s %" PRIu64 ", here for %s, last used %s ago\n", "hits", i->hits,
	       ctl_human_ms(i->age_ms, a), ctl_human_ms(i->idle_ms, b));
	line("size", ctl_human_bytes(i->bytes, a));
	line("checksums", p->crc);
	if (!p->version)
		return ctl_flush();
	printf("%-12s base %s, refinement %s%s, sinks %s (%" PRIu32 " tokens)\n", "sections",
	       ctl_human_bytes(p->base_bytes, a), ctl_human_bytes(p->refine_bytes, b),
	       i->shed ? " (given up)" : "", ctl_human_bytes(p->sidecar_bytes, d), p->n_sinks);
	printf("%-12s page version %" PRIu32 ", %zu layers, %" PRIu32 " KV heads of %" PRIu32
	       " and %" PRIu32 "\n",
	       "header", p->version, p->n_layers, p->n_kv_heads, p->head_dim_k, p->head_dim_v);
	print_layers(p);
	if (p->n_tokens)
		print_tokens(p);
	return ctl_flush();
}

/* ---- JSON ---- */

static json_t *ref_json(struct skvq_page_ref ref)
{
	return ref.generation ? json_pack("{s:I, s:I}", "slot", (json_int_t)ref.slot, "generation",
					  (json_int_t)ref.generation)
			      : json_null();
}

static json_t *error_json(double error)
{
	return error > 0 ? json_real(error) : json_null();
}

static json_t *lists_json(const struct skvq_client_page *p)
{
	json_t *children = json_array(), *holders = json_array(), *layers = json_array();
	json_t *tokens = p->n_tokens ? json_array() : json_null();

	for (size_t i = 0; i < p->n_children; i++)
		json_array_append_new(children, ref_json(p->children[i]));
	for (size_t i = 0; i < p->n_holders; i++) {
		const struct skvq_client_holder *h = &p->holders[i];

		json_array_append_new(holders,
				      json_pack("{s:I, s:I, s:I, s:o, s:I}", "connection",
						(json_int_t)h->connection, "pid", (json_int_t)h->pid,
						"uid", (json_int_t)h->uid, "name",
						ctl_json_text(h->name), "pins", (json_int_t)h->pins));
	}
	for (size_t i = 0; i < p->n_layers; i++) {
		const struct skvq_client_page_layer *l = &p->layers[i];

		json_array_append_new(
		    layers, json_pack("{s:f, s:f, s:f, s:f, s:o, s:o}", "k_bits", l->k_bits / 10.0,
				      "v_bits", l->v_bits / 10.0, "k_refine_bits",
				      l->k_refine_bits / 10.0, "v_refine_bits", l->v_refine_bits / 10.0,
				      "k_error", error_json(l->k_error), "v_error",
				      error_json(l->v_error)));
	}
	for (size_t i = 0; i < p->n_tokens; i++)
		json_array_append_new(tokens, json_integer(p->tokens[i]));
	return json_pack("{s:o, s:o, s:o, s:o}", "children", children, "holders", holders, "layers",
			 layers, "tokens", tokens);
}

static int print_json(const struct skvq_client_page *p)
{
	const struct skvq_client_page_info *i = &p->info;
	char hex[65];
	json_t *o = json_pack(
	    "{s:I, s:o, s:I, s:I, s:s, s:o, s:I, s:o, s:b, s:b, s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:I, "
	    "s:o}",
	    "ns", (json_int_t)p->ns, "tenant", ctl_json_text(p->tenant), "slot",
	    (json_int_t)i->page.slot, "generation", (json_int_t)i->page.generation, "digest",
	    ctl_hex(i->digest, 32, hex), "parent", ref_json(i->parent), "position",
	    (json_int_t)i->position, "state", ctl_json_text(i->state), "unlisted", p->unlisted, "safe",
	    p->safe, "shed", i->shed, "on_disk", p->on_disk, "spilling", p->spilling, "pins",
	    (json_int_t)i->pins, "hits", (json_int_t)i->hits, "age_ms", (json_int_t)i->age_ms, "idle_ms",
	    (json_int_t)i->idle_ms, "bytes", (json_int_t)i->bytes, "crc", ctl_json_text(p->crc));
	json_t *h = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "version",
			      (json_int_t)p->version, "n_kv_heads", (json_int_t)p->n_kv_heads,
			      "head_dim_k", (json_int_t)p->head_dim_k, "head_dim_v",
			      (json_int_t)p->head_dim_v, "n_sinks", (json_int_t)p->n_sinks,
			      "base_bytes", (json_int_t)p->base_bytes, "refine_bytes",
			      (json_int_t)p->refine_bytes, "sidecar_bytes",
			      (json_int_t)p->sidecar_bytes);
	json_t *l = lists_json(p);

	json_object_set_new(o, "header", h);
	json_object_update(o, l);
	json_decref(l);
	return ctl_print_json(o);
}

static int print_disk(const struct ctl *ctl, const struct disk_hit *d)
{
	char hex[65], bytes[CTL_HUMAN_BYTES];

	if (ctl->json)
		return ctl_print_json(json_pack(
		    "{s:I, s:s, s:I, s:s, s:b, s:I}", "ns", (json_int_t)d->ns, "digest",
		    ctl_hex(d->page.digest, 32, hex), "position", (json_int_t)d->page.position, "state",
		    "stored", "on_disk", 1, "bytes", (json_int_t)d->page.bytes));
	line("digest", ctl_hex(d->page.digest, 32, hex));
	printf("%-12s %" PRIu32 " to %" PRIu32 " in namespace %" PRIu32 "\n", "tokens",
	       d->page.position, d->page.position + SKVQ_PAGE_TOKENS - 1, d->ns);
	line("is in", "disk alone; 'skvqctl prefetch' brings it to memory");
	line("size", ctl_human_bytes(d->page.bytes, bytes));
	return ctl_flush();
}

/* ---- looking ---- */

static int not_one(const struct ctl *ctl, const char *what)
{
	fprintf(stderr, "skvqctl: on '%s', %s\n", ctl->socket, what);
	return CTL_FAILED;
}

static int find_on_disk(const struct ctl *ctl, struct skvq_client *c, const struct wanted *w,
			uint32_t ns, struct disk_hit *ret, unsigned *n)
{
	struct skvq_client_disk_page *list = NULL;
	uint64_t place = 0;
	size_t got;

	do {
		int err = skvq_client_disk_pages(c, ns, &place, &list, &got);

		if (err == -SKVQ_ENOTSUP)
			return CTL_OK; /* no disk */
		if (err < 0)
			return ctl_failed(ctl, c, "list pages on disk", err);
		for (size_t i = 0; i < got; i++) {
			if (!has_prefix(list[i].digest, w) ||
			    (*n && !memcmp(list[i].digest, ret->page.digest, 32)))
				continue;
			*ret = (struct disk_hit){ns, list[i]};
			(*n)++;
		}
		free(list);
	} while (place);
	return CTL_OK;
}

/* In memory; on disk if it is not there. */
static int find(const struct ctl *ctl, struct skvq_client *c, const struct wanted *w,
		struct skvq_client_page *page)
{
	struct skvq_client_ns_info *list = NULL;
	struct disk_hit disk = {0};
	unsigned found = 0, on_disk = 0;
	int err, result = CTL_OK;
	size_t n = 0;

	err = skvq_client_namespaces(c, &list, &n);
	if (err < 0)
		return ctl_failed(ctl, c, "list namespaces", err);
	for (size_t i = 0; result == CTL_OK && found < 2 && i < n; i++) {
		struct skvq_client_page *more = malloc(sizeof(*more));
		uint32_t slot = 0;

		if (!more)
			abort();
		while ((!w->ns || w->ns == list[i].ns) && found < 2 &&
		       (err = skvq_client_page_find(c, list[i].ns, w->digest, w->digits, w->tokens,
						    &slot, more)) > 0) {
			*page = *more;
			found++;
		}
		free(more);
		if (err < 0)
			result = ctl_failed(ctl, c, "show a page", err);
	}
	for (size_t i = 0; result == CTL_OK && !found && i < n; i++) {
		if (!w->ns || w->ns == list[i].ns)
			result = find_on_disk(ctl, c, w, list[i].ns, &disk, &on_disk);
	}
	free(list);
	if (result != CTL_OK)
		return result;
	if (found > 1 || on_disk > 1)
		return not_one(ctl, "more than one page begins so; give more digits, or --namespace");
	if (!found && !on_disk)
		return not_one(ctl, "no page begins so, in memory or on disk");
	if (!found)
		return print_disk(ctl, &disk);
	return ctl->json ? print_json(page) : print_text(page);
}

static int show(const struct ctl *ctl, struct skvq_client *c, const struct wanted *w,
		struct skvq_client_page *page)
{
	int err;

	if (!w->by_ref)
		return find(ctl, c, w, page);
	err = skvq_client_page_get(c, w->ns, w->ref, w->tokens, page);
	if (err < 0) {
		int result = ctl_failed(ctl, c, "show the page", err);

		return err == -SKVQ_ECORRUPT ? CTL_FOUND : result;
	}
	return ctl->json ? print_json(page) : print_text(page);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client_page *page;
	struct wanted w = {0};
	struct skvq_client *c;
	uint64_t ns = 0;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_show, argc, argv)) > 0) {
		if (opt == 't')
			w.tokens = true;
		else if (!ctl_number("--namespace", optarg, 1, UINT32_MAX, &ns))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	w.ns = (uint32_t)ns;
	w.by_ref = ctl_page_ref(argv[optind], &w.ns, &w.ref);
	if (w.by_ref ? !w.ns : !parse_digest(argv[optind], &w)) {
		fprintf(stderr,
			"skvqctl show: '%s' is no page: NS:SLOT.GENERATION as 'skvqctl ls --pages NS' "
			"has them, or how its digest begins\n",
			ctl_clean(argv[optind]));
		return CTL_USAGE;
	}
	page = calloc(1, sizeof(*page));
	if (!page)
		abort();
	c = ctl_connect(ctl);
	result = c ? show(ctl, c, &w, page) : ctl->result;
	free(page);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'n', "namespace", "NS", "the page is of this one"},
    {'t', "tokens", NULL, "its token ids too"},
};

const struct ctl_verb verb_show = {
    .name = "show",
    .summary = "one page: what it is, where it lives, who holds it",
    .args = "PAGE",
    .min_args = 1,
    .max_args = 1,
    .about = "Shows one page: its place in the sequence, state, who has it pinned, in memory or on disk, bits and "
	     "errors by layer (relative squared error, as the engine measured it), and whether its checksums "
	     "hold, which are looked at now.\n\n"
	     "PAGE is NS:SLOT.GENERATION, as 'skvqctl ls --pages NS' has them (with --namespace "
	     "SLOT.GENERATION), or how its digest begins.",
    CTL_OPTS(opts),
    .json = "ns, tenant, slot, generation, digest, parent (null: first page), position, state, unlisted "
	    "(damaged), safe, shed, on_disk, spilling (on its way there), pins, hits, age_ms, idle_ms, bytes, "
	    "crc (good, unknown), header (version, n_kv_heads, head_dim_k, head_dim_v, n_sinks, base_bytes, "
	    "refine_bytes, sidecar_bytes), children, holders (connection, pid, uid, name, pins), layers (k_bits, "
	    "v_bits, k_refine_bits, v_refine_bits, k_error, v_error), tokens (null without --tokens). Of a page on "
	    "disk alone: ns, digest, position, state, on_disk, bytes.",
    .run = run,
};
