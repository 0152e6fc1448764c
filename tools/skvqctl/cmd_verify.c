/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "rounds.h"

struct sums {
	struct skvq_client_sweep memory, disk;
	bool with_disk, complete;
};

static int print(const struct ctl *ctl, const struct sums *s)
{
	const struct skvq_client_sweep *m = &s->memory, *d = &s->disk;
	char bytes[CTL_HUMAN_BYTES];

	if (ctl->json)
		return ctl_print_json(json_pack(
		    "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "pages", (json_int_t)m->pages, "bytes",
		    (json_int_t)m->bytes, "damaged", (json_int_t)m->damaged, "records",
		    (json_int_t)d->pages, "record_bytes", (json_int_t)d->bytes, "records_damaged",
		    (json_int_t)d->damaged, "records_unread", (json_int_t)d->unread, "complete",
		    s->complete));
	printf("memory  %" PRIu64 " pages, %s: %" PRIu64 " damaged\n", m->pages,
	       ctl_human_bytes(m->bytes, bytes), m->damaged);
	if (s->with_disk) {
		printf("disk    %" PRIu64 " records, %s: %" PRIu64 " damaged", d->pages,
		       ctl_human_bytes(d->bytes, bytes), d->damaged);
		if (d->unread)
			printf(", %" PRIu64 " could not be read", d->unread);
		puts("");
	}
	if (m->damaged || d->damaged)
		puts("What is damaged is not found any more; engines compute it anew. The log names "
		     "pages of\nmemory.");
	if (!s->complete)
		puts("It came to a standstill before all were looked at: the workers or the disk do "
		     "not answer.");
	return ctl_flush();
}

static int both(const struct ctl *ctl, struct skvq_client *c, struct sums *s)
{
	int result;

	s->memory.at_ns = s->memory.at_slot = 0;
	result = ctl_round(ctl, c, &s->memory, skvq_client_verify, "verify pages", 0);
	s->complete = s->complete && s->memory.done;
	if (result != CTL_OK || !s->with_disk)
		return result;
	s->disk.disk = true;
	s->disk.at_record = 0;
	result = ctl_round(ctl, c, &s->disk, skvq_client_verify, "verify records", 0);
	s->complete = s->complete && s->disk.done;
	return result;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct sums s = {.complete = true};
	struct ctl_tenants tenants;
	const char *tenant = NULL;
	struct skvq_client *c;
	uint64_t ns = 0;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_verify, argc, argv)) > 0) {
		if (opt == 't')
			tenant = optarg;
		else if (opt == 'd')
			s.with_disk = true;
		else if (!ctl_number("--namespace", optarg, 1, UINT32_MAX, &ns))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	if (tenant && ns) {
		fputs("skvqctl verify: a namespace is of one tenant: --tenant is one too many\n", stderr);
		return CTL_USAGE;
	}
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	s.memory.ns = s.disk.ns = (uint32_t)ns;
	result = ns ? both(ctl, c, &s) : ctl_tenants(ctl, c, tenant, &tenants);
	for (size_t i = 0; !ns && result == CTL_OK && i < tenants.n; i++) {
		s.memory.tenant = s.disk.tenant = tenants.name[i];
		result = both(ctl, c, &s);
	}
	skvq_client_free(c);
	if (result == CTL_OK)
		result = print(ctl, &s);
	if (result == CTL_OK && (s.memory.damaged || s.disk.damaged || s.disk.unread))
		return CTL_FOUND;
	return result == CTL_OK && !s.complete ? CTL_FAILED : result;
}

static const struct ctl_opt opts[] = {
    {'n', "namespace", "NS", "of this namespace alone"},
    {'t', "tenant", "NAME", "of this tenant alone"},
    {'d', "disk", NULL, "every record of the store too"},
};

const struct ctl_verb verb_verify = {
    .name = "verify",
    .summary = "check all pages now",
    .about = "Checks the checksums of all pages in memory now, as the daemon does by and by (its option "
	     "scrub), and with --disk of every record of its store. What is damaged is taken out, as "
	     "always; the exit status is then 6. Also called 'scrub'. Engines go on meanwhile: half of the "
	     "workers and of the store's buffers are left to them.",
    CTL_OPTS(opts),
    .json = "pages, bytes, damaged; records, record_bytes, records_damaged, records_unread (with --disk); "
	    "complete (false: it came to a standstill).",
    .run = run,
};
