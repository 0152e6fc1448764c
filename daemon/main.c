/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvqd - argv in, exit status out. 0: ended in order; 1: could not serve; 2: wrong flags or
 * config.
 */
#include <stdio.h>
#include <stdlib.h>

#include <skvq/format.h>

#include "base/log.h"
#include "config.h"
#include "notify.h"
#include "server.h"

#ifndef SKVQ_VERSION
#define SKVQ_VERSION "unknown"
#endif

static int usage_error(const struct why *why)
{
	(void)fprintf(stderr, "skvqd: %s\n", why->text);
	return 2;
}

static void print_capabilities(void)
{
	(void)printf("{\"version\": \"%s\", \"protocol_major\": 1, \"protocol_minor\": 0, "
		     "\"features\": [\"calibrations\", \"error_list\", \"prefetch\", \"unrefine\", "
		     "\"calibration_replace\", \"config\"%s], \"page_version\": %u}\n",
		     SKVQ_VERSION, notify_is_built() ? ", \"handover\"" : "", SKVQ_PAGE_VERSION);
}

static int serve(struct config *config, int argc, char **argv)
{
	struct why why = {{0}};

	log_set_level((enum log_level)config->log_level);
	if (log_set_form((enum log_form)config->log_form) != LOG_FORM_JOURNAL &&
	    config->log_form == LOG_FORM_JOURNAL)
		log_event(LOG_WARNING, "no_journal",
			  LOG_STR("detail", "there is no journal here: lines go to stderr"));
	if (server_run(config, argc, argv, SKVQ_VERSION, &why) == 0)
		return 0;
	log_event(LOG_ERROR, "failed", LOG_STR("detail", why.text));
	return 1;
}

static int run(int argc, char **argv)
{
	static struct config config;
	enum config_action action;
	struct why why = {{0}};

	if (config_args(&config, argc, argv, &action, &why) < 0)
		return usage_error(&why);
	switch (action) {
	case CONFIG_HELP:
		config_help(stdout);
		return 0;
	case CONFIG_VERSION:
		(void)printf("skvqd %s\n", SKVQ_VERSION);
		return 0;
	case CONFIG_CAPABILITIES:
		print_capabilities();
		return 0;
	case CONFIG_PRINT:
		config_print(&config, stdout);
		return 0;
	case CONFIG_CHECK:
	case CONFIG_RUN:
		break;
	}
	if (config_check(&config, &why) < 0)
		return usage_error(&why);
	return action == CONFIG_CHECK ? 0 : serve(&config, argc, argv);
}

int main(int argc, char **argv)
{
	int status = run(argc, argv);

	if (fflush(stdout) != 0 && status == 0)
		status = 1;
	exit(status);
}
