/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "rounds.h"

static int print(const struct ctl *ctl, const struct skvq_client_sweep *s, bool complete)
{
	char written[CTL_HUMAN_BYTES];

	if (ctl->json)
		return ctl_print_json(json_pack(
		    "{s:I, s:I, s:I, s:I, s:I, s:b}", "written", (json_int_t)s->written,
		    "written_bytes", (json_int_t)s->written_bytes, "on_disk", (json_int_t)s->pages,
		    "refused", (json_int_t)s->refused, "over_budget", (json_int_t)s->over_budget,
		    "complete", complete));
	printf("written       %" PRIu64 " pages, %s\n", s->written,
	       ctl_human_bytes(s->written_bytes, written));
	printf("on disk now   %" PRIu64 " of the pages in memory\n", s->pages);
	if (s->refused)
		printf("not written   %" PRIu64 " pages, %" PRIu64
		       " of them because the write budget is used up\n",
		       s->refused, s->over_budget);
	if (!complete)
		puts("The time is over before all were looked at: the same command goes on.");
	return ctl_flush();
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct skvq_client_sweep sum = {.done = true};
	struct ctl_tenants tenants;
	const char *tenant = NULL;
	uint64_t wait = 60, until;
	struct skvq_client *c;
	bool complete = true;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_drain, argc, argv)) > 0) {
		if (opt == 't')
			tenant = optarg;
		else if (!ctl_number("--wait", optarg, 1, 86400, &wait))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	until = ctl_now_ms() + wait * 1000;
	result = ctl_tenants(ctl, c, tenant, &tenants);
	for (size_t i = 0; result == CTL_OK && i < tenants.n; i++) {
		sum.tenant = tenants.name[i];
		sum.at_ns = sum.at_slot = 0;
		result = ctl_round(ctl, c, &sum, skvq_client_drain, "write pages", until);
		complete = complete && sum.done;
	}
	skvq_client_free(c);
	if (result == CTL_OK)
		result = print(ctl, &sum, complete);
	return result == CTL_OK && (sum.refused || !complete) ? CTL_FAILED : result;
}

static const struct ctl_opt opts[] = {
    {'t', "tenant", "NAME", "of this tenant alone"},
    {'w', "wait", "SECONDS", "how long it may take, 60 if not told"},
};

const struct ctl_verb verb_drain = {
    .name = "drain",
    .summary = "write what is in memory alone to disk",
    .about = "Writes pages that are in memory and not on disk, pinned or not, as the daemon does when it "
	     "ends: before a restart, so that the end is quick. They stay in memory. The write budget of "
	     "the store holds; what it refuses is told, and the exit status is 1.",
    CTL_OPTS(opts),
    .json = "written, written_bytes, on_disk (pages in memory that are on disk now), refused, over_budget "
	    "(of these, for the write budget), complete (false: the time was over).",
    .run = run,
};
