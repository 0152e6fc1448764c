/* SPDX-License-Identifier: Apache-2.0 */
/* config: files and flags, good and bad, and what comes out goes in again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "base/log.h"
#include "config.h"

static struct config config;
static struct why why;
static char path[] = "/tmp/skvqd-config-XXXXXX";

static int group_setup(void **state)
{
	int fd = mkstemp(path);

	(void)state;
	return fd < 0 ? -1 : close(fd);
}

static int group_teardown(void **state)
{
	(void)state;
	return unlink(path);
}

static int load(const char *text)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
	memset(&why, 0, sizeof(why));
	config_defaults(&config);
	return config_file(&config, path, &why);
}

static int args(enum config_action *action, const char *a, const char *b, const char *c,
		const char *d)
{
	const char *argv[] = {"skvqd", a, b, c, d, NULL};
	int argc = 1;

	while (argv[argc])
		argc++;
	memset(&why, 0, sizeof(why));
	return config_args(&config, argc, (char **)(uintptr_t)argv, action, &why);
}

static void good_file(void **state)
{
	(void)state;
	assert_int_equal(load("; comment\n"
			      "[socket]\n"
			      "path = /run/skvqd/a.sock\n"
			      "socket_mode = 0660\n"
			      "[memory]\n"
			      "ram_max = 512M   ; half a gig\n"
			      "[limits]\n"
			      "pins_max = 100\n"
			      "[log]\n"
			      "level = debug\n"),
			 0);
	assert_string_equal(config.socket_path, "/run/skvqd/a.sock");
	assert_int_equal(config.socket_mode, 0660);
	assert_int_equal(config.ram_max, UINT64_C(512) << 20);
	assert_int_equal(config.pins_max, 100);
	assert_int_equal(config.connections_max, 64);
	assert_int_equal(config.log_level, LOG_DEBUG);
	assert_int_equal(config_check(&config, &why), 0);
	assert_int_equal(load(""), 0);
	assert_int_equal(config_check(&config, &why), -SKVQ_EINVAL);
	assert_non_null(strstr(why.text, "--socket"));
}

static void bad_file(const char *text, const char *says)
{
	assert_int_equal(load(text), -SKVQ_EINVAL);
	if (!strstr(why.text, says))
		fail_msg("\"%s\" does not say \"%s\"", why.text, says);
}

static void bad_files(void **state)
{
	(void)state;
	bad_file("[memory]\nram_max = lots\n", ":2: memory.ram_max = \"lots\"");
	bad_file("[memory]\nram_max = -1\n", ":2:");
	bad_file("[memory]\nram_max =\n", ":2:");
	bad_file("[memory]\nram_max = 1\n", "expected 65536");
	bad_file("[memory]\nram_max = 99999999999999999999\n", ":2:");
	bad_file("[memory]\nram_max = 18446744073709551615T\n", ":2:");
	bad_file("[memory]\nram_max = 4GB\n", ":2:");
	bad_file("[memory]\n\nramm_max = 4G\n", ":3: there is no key \"ramm_max\"");
	bad_file("ram_max = 4G\n", ":1: there is no key");
	bad_file("[memry]\nram_max = 4G\n", "section \"memry\"");
	bad_file("[memory\n", ":1:");
	bad_file("[socket]\nnonsense\n", ":2:");
	bad_file("[socket]\nsocket_mode = 0999\n", "octal");
	bad_file("[socket]\nsocket_mode = 01777\n", "octal");
	bad_file("[socket]\npath =\n", ":2:");
	bad_file("[limits]\nconnections_max = 0\n", "expected 1 to");
	bad_file("[limits]\nconnections_max = 0x10\n", ":2:");
	bad_file("[log]\nlevel = loud\n", "debug, info");
	config_defaults(&config);
	assert_int_equal(config_file(&config, "/nonexistent/skvqd.conf", &why), -SKVQ_EIO);
	assert_int_equal(config_file(&config, "/tmp", &why), -SKVQ_EIO);
	assert_non_null(strstr(why.text, "irectory"));
}

static void flags_override_the_file(void **state)
{
	enum config_action action = CONFIG_HELP;

	(void)state;
	assert_int_equal(load("[memory]\nram_max = 1G\n[limits]\nframe_max = 8M\n"), 0);
	assert_int_equal(args(&action, "--ram-max=2G", "--config", path, "--socket=/a"), 0);
	assert_int_equal(action, CONFIG_RUN);
	assert_int_equal(config.ram_max, UINT64_C(2) << 30);
	assert_int_equal(config.frame_max, 8 << 20);
	assert_string_equal(config.socket_path, "/a");
	assert_int_equal(args(&action, "--print-config", NULL, NULL, NULL), 0);
	assert_int_equal(action, CONFIG_PRINT);
	assert_int_equal(args(&action, "--check-config", NULL, NULL, NULL), 0);
	assert_int_equal(action, CONFIG_CHECK);
}

static void bad_flags(void **state)
{
	enum config_action action = CONFIG_HELP;

	(void)state;
	assert_int_equal(args(&action, "--sockket", "x", NULL, NULL), -SKVQ_EINVAL);
	assert_non_null(strstr(why.text, "--sockket"));
	assert_int_equal(args(&action, "--socket", NULL, NULL, NULL), -SKVQ_EINVAL);
	assert_non_null(strstr(why.text, "needs a value"));
	assert_int_equal(args(&action, "stray", NULL, NULL, NULL), -SKVQ_EINVAL);
	assert_int_equal(args(&action, "--pins-max", "many", NULL, NULL), -SKVQ_EINVAL);
	assert_int_equal(args(&action, "--config", "/nonexistent", NULL, NULL), -SKVQ_EIO);
	assert_int_equal(action, CONFIG_HELP); /* untouched */
}

static void what_is_printed_can_be_read(void **state)
{
	static struct config again;
	FILE *f;

	(void)state;
	config_defaults(&config);
	strcpy(config.socket_path, "/run/x.sock");
	config.ram_max = 123456789;
	config.socket_mode = 0666;
	config.log_level = LOG_ERROR;
	f = fopen(path, "w");
	assert_non_null(f);
	config_print(&config, f);
	assert_int_equal(fclose(f), 0);
	config_defaults(&again);
	if (config_file(&again, path, &why) < 0)
		fail_msg("%s", why.text);
	assert_memory_equal(&again, &config, sizeof(config));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(good_file),
	    cmocka_unit_test(bad_files),
	    cmocka_unit_test(flags_override_the_file),
	    cmocka_unit_test(bad_flags),
	    cmocka_unit_test(what_is_printed_can_be_read),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
