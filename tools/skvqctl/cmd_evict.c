/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "rounds.h"

/* Pages behind a page that went are left for the next pass, where they were passed before. */
#define PASSES 64u

struct evict {
	struct ctl *ctl;
	struct skvq_client *c;
	struct skvq_client_sweep what; /* the scope: copied for each round */
	struct ctl_tenants tenants;    /* to whom it is asked in turn */
	bool dry, yes;
	bool disk; /* records of whole namespaces or tenants go too */
	struct skvq_client_sweep plan, done, left, disk_plan, disk_done;
	bool complete;
};

/* A round for each tenant; counts are added to *sum. */
static int each(struct evict *e, struct skvq_client_sweep *sum, bool count, bool disk)
{
	int result = CTL_OK;

	for (size_t i = 0; result == CTL_OK && i < e->tenants.n; i++) {
		sum->tenant = e->tenants.name[i];
		sum->ns = e->what.ns;
		sum->page = e->what.page;
		sum->idle_ms = e->what.idle_ms;
		sum->drop = e->what.drop;
		sum->to_disk = e->what.to_disk;
		sum->count = count;
		sum->disk = disk;
		sum->at_ns = sum->at_slot = 0;
		sum->at_record = 0;
		result = ctl_round(e->ctl, e->c, sum, skvq_client_evict,
				   count ? "count pages" : "evict pages", 0);
		e->complete = e->complete && sum->done;
	}
	return result;
}

static int make_plan(struct evict *e)
{
	int result = each(e, &e->plan, true, false);

	e->disk = e->what.drop && !e->what.page.generation && !e->what.idle_ms && e->plan.has_store;
	return result == CTL_OK && e->disk ? each(e, &e->disk_plan, true, true) : result;
}

/* What will be done, as a phrase behind "this". */
static void describe(const struct evict *e, char *buf, size_t n)
{
	char bytes[CTL_HUMAN_BYTES], unwritten[CTL_HUMAN_BYTES];
	const struct skvq_client_sweep *p = &e->plan;
	int at = snprintf(buf, n, "takes %" PRIu64 " pages (%s) out of memory", p->pages,
			  ctl_human_bytes(p->bytes, bytes));

	ctl_human_bytes(p->unwritten_bytes, unwritten);
	if (e->what.drop && e->disk)
		at += snprintf(buf + at, n - (size_t)at, " and %" PRIu64 " off the disk for good",
			       e->disk_plan.pages);
	else if (e->what.drop)
		at += snprintf(buf + at, n - (size_t)at, " for good, from disk too");
	else if (!p->unwritten)
		at += snprintf(buf + at, n - (size_t)at, "; all of them are on disk");
	else if (p->has_store)
		at += snprintf(buf + at, n - (size_t)at,
			       ", after writing %" PRIu64 " of them (%s) to disk", p->unwritten,
			       unwritten);
	else
		at += snprintf(buf + at, n - (size_t)at, " for good: there is no disk below");
	if (p->held)
		(void)snprintf(buf + at, n - (size_t)at,
			       "; %" PRIu64 " pages that somebody holds stay", p->held);
}

static int act(struct evict *e)
{
	uint64_t before;
	int result;

	for (uint32_t pass = 0; pass < PASSES; pass++) {
		before = e->done.pages;
		/* Of the last pass: what was left in one may have gone in the next. */
		e->done.refused = e->done.over_budget = e->done.held = 0;
		result = each(e, &e->done, false, false);
		/* The page that was named has gone. */
		if (result != CTL_OK || e->done.pages == before || e->what.page.generation)
			break;
	}
	if (result == CTL_OK && e->disk)
		result = each(e, &e->disk_done, false, true);
	return result;
}

static int print(const struct evict *e)
{
	const struct skvq_client_sweep *d = e->dry ? &e->plan : &e->done;
	const struct skvq_client_sweep *k = e->dry ? &e->disk_plan : &e->disk_done;
	char text[512], bytes[CTL_HUMAN_BYTES];

	if (e->ctl->json)
		return ctl_print_json(json_pack(
		    "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "dry_run", e->dry,
		    "pages", (json_int_t)d->pages, "bytes", (json_int_t)d->bytes, "written",
		    (json_int_t)(e->dry && !e->what.drop && d->has_store ? d->unwritten : d->written),
		    "written_bytes",
		    (json_int_t)(e->dry && !e->what.drop && d->has_store ? d->unwritten_bytes
									 : d->written_bytes),
		    "held", (json_int_t)d->held, "refused", (json_int_t)d->refused, "over_budget",
		    (json_int_t)d->over_budget, "records", (json_int_t)k->pages, "record_bytes",
		    (json_int_t)k->bytes, "complete", e->complete));
	if (e->dry) {
		describe(e, text, sizeof(text));
		printf("This %s. Nothing was done.\n", text);
		return ctl_flush();
	}
	printf("gone       %" PRIu64 " pages, %s\n", d->pages, ctl_human_bytes(d->bytes, bytes));
	if (d->written)
		printf("written    %" PRIu64 " of them first, %s\n", d->written,
		       ctl_human_bytes(d->written_bytes, bytes));
	if (e->disk)
		printf("off disk   %" PRIu64 " records, %s\n", k->pages,
		       ctl_human_bytes(k->bytes, bytes));
	if (d->held)
		printf("held       %" PRIu64 " pages, by pins on them or behind them\n", d->held);
	if (d->refused)
		printf("refused    %" PRIu64 " pages by the disk, %" PRIu64
		       " for the write budget; they stay in memory\n",
		       d->refused, d->over_budget);
	if (!e->complete)
		puts("The disk takes no more for now: the same command goes on.");
	return ctl_flush();
}

static int evict(struct evict *e)
{
	char text[512];
	int result = make_plan(e);

	if (result != CTL_OK)
		return result;
	if (!e->dry && (e->plan.pages || e->disk_plan.pages)) {
		describe(e, text, sizeof(text));
		result = ctl_confirm("evict", e->yes, "%s", text);
		if (result == CTL_OK)
			result = act(e);
	} else {
		e->done.held = e->plan.held; /* there was nothing to do: because of these */
	}
	if (result == CTL_OK)
		result = print(e);
	return result == CTL_OK && (e->done.refused || !e->complete) ? CTL_FAILED : result;
}

enum { OPT_DROP = CTL_LONG_ONLY, OPT_TO_DISK, OPT_DRY };

static int wrong(const char *what)
{
	fprintf(stderr, "skvqctl evict: %s; see 'skvqctl evict --help'\n", what);
	return CTL_USAGE;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct evict e = {.ctl = ctl, .complete = true};
	const char *tenant = NULL, *page = NULL;
	uint64_t ns = 0, idle = 0;
	bool has_idle = false;
	uint32_t page_ns = 0;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_evict, argc, argv)) > 0) {
		if (opt == 'n' && !ctl_number("--namespace", optarg, 1, UINT32_MAX, &ns))
			return CTL_USAGE;
		if (opt == 'i' && !ctl_number("--idle-over", optarg, 1, UINT32_MAX, &idle))
			return CTL_USAGE;
		has_idle = has_idle || opt == 'i';
		tenant = opt == 't' ? optarg : tenant;
		page = opt == 'p' ? optarg : page;
		e.what.drop = e.what.drop || opt == OPT_DROP;
		e.what.to_disk = e.what.to_disk || opt == OPT_TO_DISK;
		e.dry = e.dry || opt == OPT_DRY;
		e.yes = e.yes || opt == 'y';
	}
	if (opt < 0)
		return ctl->result;
	if ((ns != 0) + (tenant != NULL) + (page != NULL) > 1)
		return wrong("one of --namespace, --tenant and --page");
	if (!ns && !tenant && !page && !has_idle)
		return wrong("which pages? --namespace, --tenant, --page or --idle-over");
	if (e.what.drop && e.what.to_disk)
		return wrong("--drop and --to-disk exclude each other");
	if (page && (!ctl_page_ref(page, &page_ns, &e.what.page) || !page_ns))
		return wrong("a page is NS:SLOT.GENERATION, as 'skvqctl ls --pages NS' has them");
	e.what.ns = page ? page_ns : (uint32_t)ns;
	e.what.idle_ms = idle * 1000;
	e.c = ctl_connect(ctl);
	if (!e.c)
		return ctl->result;
	if (e.what.ns)
		e.tenants.n = 1;
	result = e.what.ns ? CTL_OK : ctl_tenants(ctl, e.c, tenant, &e.tenants);
	if (result == CTL_OK)
		result = evict(&e);
	skvq_client_free(e.c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'n', "namespace", "NS", "pages of this namespace"},
    {'t', "tenant", "NAME", "pages of this tenant"},
    {'p', "page", "PAGE", "this page, NS:SLOT.GENERATION, and those behind it"},
    {'i', "idle-over", "SECONDS", "of these (or of all) such as were not used for so long"},
    {OPT_TO_DISK, "to-disk", NULL, "refuse if there is no disk to write them to"},
    {OPT_DROP, "drop", NULL, "write nothing, and drop what is on disk too"},
    {OPT_DRY, "dry-run", NULL, "tell what would be done, and do nothing"},
    {'y', "yes", NULL, "do not ask"},
};

const struct ctl_verb verb_evict = {
    .name = "evict",
    .summary = "take pages out of memory",
    .about = "Takes pages that nobody holds out of memory. If there is a store, those that are not on disk "
	     "are written first; what it refuses (its write budget is used up, a page is longer than a record) stays "
	     "in memory, and the exit status is 1. Pages of a sequence go from its end; a page that "
	     "somebody has pinned stays, and so do those before it.\n\n"
	     "With --drop nothing is written, and copies on disk are dropped: of a namespace or a tenant "
	     "also those of pages that are not in memory. Such records are not found any more, but one "
	     "that was not overwritten may be found again after a restart.\n\n"
	     "It first tells what it will do, and asks; not on a terminal it wants --yes.",
    CTL_OPTS(opts),
    .json = "dry_run, pages, bytes (out of memory), written, written_bytes, held, refused, over_budget (of "
	    "these, for the write budget), records, record_bytes (off the disk), complete (false: it came to "
	    "a standstill). Of a dry run, what would be.",
    .run = run,
};
