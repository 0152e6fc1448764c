/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

const char *const doctor_state_names[] = {
    [DOCTOR_OK] = "ok", [DOCTOR_NOTE] = "note", [DOCTOR_BAD] = "bad", [DOCTOR_SKIP] = "skipped"};

void doctor_say(struct doctor *d, const char *name, enum doctor_state state, const char *mend,
		const char *format, ...)
{
	struct doctor_finding *f = &d->findings[d->n];
	va_list args;

	if (d->n == DOCTOR_CHECKS)
		return;
	d->n++;
	f->name = name;
	f->state = state;
	snprintf(f->mend, sizeof(f->mend), "%s", mend ? mend : "");
	va_start(args, format);
	vsnprintf(f->found, sizeof(f->found), format, args);
	va_end(args);
}

static int print_json(const struct doctor *d, size_t n_bad)
{
	json_t *list = json_array();

	for (size_t i = 0; i < d->n; i++) {
		const struct doctor_finding *f = &d->findings[i];

		json_array_append_new(
		    list, json_pack("{s:s, s:s, s:o, s:o}", "check", f->name, "state",
				    doctor_state_names[f->state], "found", ctl_json_text(f->found),
				    "mend", f->mend[0] ? ctl_json_text(f->mend) : json_null()));
	}
	return ctl_print_json(json_pack("{s:I, s:o}", "bad", (json_int_t)n_bad, "checks", list));
}

static int print_text(const struct doctor *d)
{
	for (size_t i = 0; i < d->n; i++) {
		const struct doctor_finding *f = &d->findings[i];

		printf("%-8s %-14s ", doctor_state_names[f->state], f->name);
		ctl_wrap(f->found, 24, 24, stdout);
		if (f->mend[0]) {
			printf("%24s", "-> ");
			ctl_wrap(f->mend, 24, 24, stdout);
		}
	}
	return ctl_flush();
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	struct doctor *d = calloc(1, sizeof(*d));
	size_t n_bad = 0;
	int opt, result;

	if (!d)
		abort();
	while ((opt = ctl_getopt(ctl, &verb_doctor, argc, argv)) > 0)
		d->store = optarg;
	if (opt < 0) {
		free(d);
		return ctl->result;
	}
	d->socket = ctl->socket;
	doctor_machine(d);
	doctor_store(d);
	doctor_daemon(d);
	for (size_t i = 0; i < d->n; i++)
		n_bad += d->findings[i].state == DOCTOR_BAD;
	result = ctl->json ? print_json(d, n_bad) : print_text(d);
	free(d);
	return result != CTL_OK ? result : n_bad ? CTL_FOUND : CTL_OK;
}

#define OPT_STORE CTL_LONG_ONLY
static const struct ctl_opt opts[] = {
    {OPT_STORE, "store", "PATH", "also look at this folder of a store; nothing stays behind there"},
};

const struct ctl_verb verb_doctor = {
    .name = "doctor",
    .summary = "what is wrong with this machine or this daemon, and how to mend it",
    .about = "Tries what a daemon and engines need: processor, memory files, io_uring, sandbox, limits, "
	     "the store's folder, the socket and the daemon behind it. Each finding is ok, a note (it "
	     "works, and could be better), bad, or skipped; notes and bad ones say how to mend it. Run it "
	     "as the user it is about. Status 6 if something is bad; nothing is changed.",
    CTL_OPTS(opts),
    .json = "bad (how many), checks, an array of check, state (ok, note, bad, skipped), found, mend (null: "
	    "nothing to do).",
    .run = run,
};
