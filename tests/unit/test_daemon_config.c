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

#define TWO "[socket]\npath = /s\n[memory]\nram_max = 4G\n"

/* What the whole tells. */
static void bad_whole(const char *text, const char *says)
{
	if (load(text) < 0)
		fail_msg("%s", why.text);
	assert_int_equal(config_check(&config, &why), -SKVQ_EINVAL);
	if (!strstr(why.text, says))
		fail_msg("\"%s\" does not say \"%s\"", why.text, says);
}

static void sections_of_tenants(void **state)
{
	struct config_tenant t;
	(void)state;
	if (load(TWO "admin = 7\n") == 0)
		fail_msg("admin is a key of [socket]");
	assert_int_equal(load("[socket]\npath = /s\nadmin = 7, 8\n[memory]\nram_max = 4G\n"
			      "[tenant alice]\nuid = 1000, 1001\n  1002\ngid = 50\nram_min = 1G\n"
			      "[tenant bob-2]\nsocket = /b\nram_max = 2G\nconnections_max = 10\n"
			      "[store]\nfolder = /f\n"),
			 0);
	assert_int_equal(config_check(&config, &why), 0);
	assert_int_equal(config.admins.n, 2);
	assert_int_equal(config.n_tenants, 2);
	assert_string_equal(config.tenants[0].name, "alice");
	assert_int_equal(config.tenants[0].uids.n, 3);
	assert_int_equal(config.tenants[0].uids.id[2], 1002);
	assert_int_equal(config.tenants[0].ram_min, UINT64_C(1) << 30);
	assert_int_equal(config.tenants[0].socket_mode, 0600);
	/* What is not given is an equal part. */
	t = config_tenant(&config, 0);
	assert_int_equal(t.connections_max, 32);
	assert_int_equal(t.namespaces_max, 32);
	assert_int_equal(t.disk_max, UINT64_C(8) << 30);
	assert_int_equal(config_tenant(&config, 1).connections_max, 10);
	assert_int_equal(config_store(&config, 1).capacity_bytes, UINT64_C(8) << 30);
	/* Without sections there is one with everything. */
	config_defaults(&config);
	t = config_tenant(&config, 0);
	assert_string_equal(t.name, "default");
	assert_int_equal(t.connections_max, 64);
}

/* However many there are, and whatever the workers: what skvqd.service allows is enough. */
static void stores_of_many_tenants_are_bounded(void **state)
{
	(void)state;
	config_defaults(&config);
	strcpy(config.store_folder, "/f");
	for (config.n_tenants = 0; config.n_tenants <= CONFIG_TENANTS_MAX; config.n_tenants++) {
		uint32_t n = config.n_tenants ? config.n_tenants : 1;

		for (config.threads = 1; config.threads <= 64; config.threads++) {
			assert_true(config_store_threads(&config) >= 1);
			assert_true(config_tasks(&config) >= 2 + config.threads + 2 * n);
			assert_true(config_tasks(&config) <= CONFIG_TASKS_MAX);
		}
		config.store.buffers = 16;
		assert_int_equal(config_store(&config, 0).buffers, n < 4 ? (16 + n - 1) / n : 4);
		assert_int_equal(config_store_memory(&config), n * config_store(&config, 0).buffers *
								   config.store.record_bytes);
		config.store.buffers = 256;
		assert_int_equal(config_store(&config, 0).buffers, (256 + n - 1) / n);
	}
	config.store_folder[0] = 0;
	config.n_tenants = 0;
	config.threads = 2;
	assert_int_equal(config_store_memory(&config), 0);
	assert_int_equal(config_tasks(&config), 4);
}

static void bad_tenants(void **state)
{
	(void)state;
	bad_file("[tenant a]\nuid = x\n", ":2: tenant.uid = \"x\"");
	bad_file("[tenant a]\nuid = 1;2\n", ":2:");
	bad_file("[tenant a]\nuid = 4294967295\n", ":2:"); /* nobody's: (uid_t)-1 */
	bad_file("[tenant a]\n\nuuid = 1\n", ":3: there is no key \"uuid\" for a tenant");
	bad_file("[tenant a b]\nuid = 1\n", ":2: section");
	bad_file("[tenant ../a]\nuid = 1\n", ":2: section");
	bad_file("[tenant ]\nuid = 1\n", ":2:");
	bad_file("[tenant a]\nsocket_mode = 999\n", ":2:");
	bad_whole(TWO "[tenant a]\nram_min = 1G\n", "[tenant a]: nobody can be of it");
	bad_whole(TWO "[tenant a]\nuid = 1\n[tenant b]\nuid = 2\nuid = 1\n",
		  "[tenant b], line 9, uid: 1 is of [tenant a] already");
	bad_whole(TWO "[tenant a]\ngid = 1\n[tenant b]\ngid = 1\n",
		  "[tenant b], line 8, gid: 1 is of [tenant a] already");
	bad_whole(TWO "[tenant a]\nsocket = /a\n[tenant b]\nsocket = /a\n",
		  "[tenant b], line 8, socket: it is that of [tenant a]");
	bad_whole(TWO "[tenant a]\nsocket = /s\n", "it is that of [socket]");
	bad_whole(TWO "[tenant a]\nuid = 1\nram_min = 3G\n[tenant b]\nuid = 2\nram_min = 2G\n",
		  "[tenant b], line 10, ram_min: with those before it 5368709120 bytes");
	bad_whole(TWO "[tenant a]\nuid = 1\nram_min = 2G\nram_max = 1G\n",
		  "[tenant a], line 7, ram_min: more than ram_max");
	bad_whole(TWO "[tenant a]\nuid = 1\nram_max = 5G\n", "more than memory.ram_max");
	bad_whole(TWO "[tenant a]\nuid = 1\nconnections_max = 65\n",
		  "[tenant a], line 7, connections_max");
	bad_whole(TWO "[tenant a]\nuid = 1\nnamespaces_max = 60\n[tenant b]\nuid = 2\n",
		  "[tenant b]: with those before it 92, limits.namespaces_max");
	bad_whole(TWO "[tenant a]\nuid = 1\nconnections_max = 40\n[tenant b]\nuid = 2\n"
		      "connections_max = 25\n",
		  "[tenant b], line 10, connections_max: with those before it 65");
	bad_whole(TWO "[tenant a]\nuid = 1\ndisk_max = 17G\n", "more than store.capacity_bytes");
	bad_whole(TWO "[tenant a]\nuid = 1\ndisk_max = 9G\n[tenant b]\nuid = 2\ndisk_max = 8G\n"
		      "[store]\nfolder = /f\n",
		  "[tenant b], line 10, disk_max");
	bad_whole(TWO "[tenant a]\nuid = 1\ndisk_max = 64M\n[store]\nfolder = /f\n",
		  "its part of the disk: capacity_bytes");
	bad_whole("[socket]\npath = /s\ntenant = x\n[tenant a]\nuid = 1\n", "socket.tenant");
}

static void printed_tenants_can_be_read(void **state)
{
	static struct config first;
	FILE *f;

	(void)state;
	assert_int_equal(load(TWO "[tenant a]\nuid = 1, 2\nsalt_file = /x\n[tenant b]\nsocket = /b\n"
				  "ram_min = 1G\npins_max = 5\n"),
			 0);
	first = config;
	f = fopen(path, "w");
	assert_non_null(f);
	config_print(&first, f);
	assert_int_equal(fclose(f), 0);
	config_defaults(&config);
	if (config_file(&config, path, &why) < 0)
		fail_msg("%s", why.text);
	for (uint32_t i = 0; i < 2; i++) {
		memset(first.tenants[i].line, 0, sizeof(first.tenants[i].line));
		memset(config.tenants[i].line, 0, sizeof(config.tenants[i].line));
	}
	assert_memory_equal(&first, &config, sizeof(config));
}

/* ---- a daemon that runs ---- */

static int text(const char *bytes, size_t n)
{
	memset(&why, 0, sizeof(why));
	config_defaults(&config);
	return config_text(&config, "f", bytes, n, &why);
}

static void hostile_texts(void **state)
{
	static const char nul[] = "[memory]\nram_max = 1G\n\0[limits]\n";
	char *huge = malloc(CONFIG_TEXT_MAX + 1);

	(void)state;
	assert_non_null(huge);
	assert_int_equal(text("", 0), 0);
	assert_int_equal(text("[memory]\nram_max = 1G", 21), 0); /* no end of line */
	assert_int_equal(config.ram_max, 1u << 30);
	assert_int_equal(text(nul, sizeof(nul) - 1), -SKVQ_EINVAL);
	assert_string_equal(why.text, "f:3: a zero byte is not text");
	memset(huge, '\n', CONFIG_TEXT_MAX + 1);
	assert_int_equal(text(huge, CONFIG_TEXT_MAX), 0);
	assert_int_equal(text(huge, CONFIG_TEXT_MAX + 1), -SKVQ_EINVAL);
	assert_non_null(strstr(why.text, "more than 1048576 bytes"));
	memset(huge, 'x', CONFIG_TEXT_MAX); /* one line */
	assert_int_equal(text(huge, CONFIG_TEXT_MAX), -SKVQ_EINVAL);
	assert_true(!strncmp(why.text, "f:1: ", 5));
	assert_int_equal(text("\n\n[limits]\npins = 1\n", 20), -SKVQ_EINVAL);
	assert_true(!strncmp(why.text, "f:4: ", 5) && strstr(why.text, "pins"));
	free(huge);
}

static void flags_win_over_a_text(void **state)
{
	static const char file[] = "[memory]\nram_max = 2G\n[limits]\npins_max = 7\n";
	const char *argv[] = {"skvqd", "--config", "/does/not/matter", "--ram-max", "1G", NULL};

	(void)state;
	memset(&why, 0, sizeof(why));
	for (int i = 0; i < 2; i++) {
		assert_int_equal(config_args_text(&config, 5, (char **)(uintptr_t)argv, "f", file,
						  sizeof(file) - 1, &why),
				 0);
		assert_int_equal(config.ram_max, 1u << 30);
		assert_int_equal(config.pins_max, 7);
	}
}

struct diffs {
	char text[512];
};

static int note(void *ctx, const char *name, const char *from, const char *to)
{
	struct diffs *d = ctx;
	size_t at = strlen(d->text);

	(void)snprintf(d->text + at, sizeof(d->text) - at, "%s:%s>%s;", name, from ? from : "-",
		       to ? to : "-");
	return 0;
}

static void assert_diff(const struct config *a, const struct config *b, const char *want)
{
	struct diffs d = {""};

	assert_int_equal(config_diff(a, b, note, &d), 0);
	assert_string_equal(d.text, want);
}

#define HEAD "[socket]\npath = /s\n"

static void what_can_change_is_merged(void **state)
{
	static struct config running, wanted, merged;

	(void)state;
	assert_int_equal(load(HEAD "[tenant a]\nuid = 1\nram_min = 1M\n[tenant b]\nuid = 2\n"), 0);
	running = config;
	/* Another order, one gone, one new; keys that can change and one that cannot. */
	assert_int_equal(load("[memory]\nram_max = 1G\n[workers]\nthreads = 9\n[tenant c]\nuid = 3\n"
			      "[tenant b]\nuid = 2, 5\nsalt_file = /x\n[socket]\npath = /s\n"),
			 0);
	wanted = config;
	config_merge(&running, &wanted, &merged);
	assert_diff(&running, &merged, "memory.ram_max:4G>1G;tenant b.uid:2>2, 5;");
	assert_diff(&merged, &wanted,
		    "workers.threads:2>9;tenant a:there>-;tenant b.salt_file:>/x;tenant c:->there;");
	assert_string_equal(merged.tenants[0].name, "a");
	assert_int_equal(merged.tenants[0].ram_min, 1 << 20);
	assert_diff(&running, &running, "");
}

static void bad_change(const char *section, const char *key, const char *value, const char *says)
{
	memset(&why, 0, sizeof(why));
	assert_int_equal(config_change(&config, section, key, value, &why), -SKVQ_EINVAL);
	if (!strstr(why.text, says))
		fail_msg("\"%s\" does not say \"%s\"", why.text, says);
}

static void single_changes(void **state)
{
	(void)state;
	assert_int_equal(load(HEAD "[tenant a]\nuid = 1\n"), 0);
	assert_int_equal(config_change(&config, "tenant a", "ram_max", "64M", &why), 0);
	assert_int_equal(config.tenants[0].ram_max, 64 << 20);
	assert_int_equal(config_change(&config, "tenant a", "uid", "7, 8", &why), 0);
	assert_int_equal(config.tenants[0].uids.n, 2); /* in place of those before */
	assert_int_equal(config.tenants[0].uids.id[0], 7);
	assert_int_equal(config_change(&config, "log", "level", "debug", &why), 0);
	bad_change("tenant a", "socket", "/b", "cannot change");
	bad_change("workers", "threads", "3", "cannot change");
	bad_change("tenant x", "ram_max", "1M", "no tenant \"x\"");
	bad_change("tenant a", "nonsense", "1", "no key");
	bad_change("tenant a", "ram_max", "1Q", "expected");
	bad_change("", "", "", "no key");
	assert_int_equal(config.n_tenants, 1);
	assert_int_equal(load(HEAD), 0);
	bad_change("tenant default", "ram_max", "1M", "no sections");
}

/* Each name in the list of what can change is a key's. */
static void keys_that_can_change(void **state)
{
	char name[CONFIG_KEY_MAX];
	const char *live;
	uint32_t n = 0, all = 0;

	(void)state;
	for (; config_key_at(all, name, &live); all++) {
		n += live != NULL;
		if (!strcmp(name, "socket.path") || !strcmp(name, "tenant.salt_file"))
			assert_null(live);
		if (!strcmp(name, "memory.ram_max") || !strcmp(name, "tenant.ram_min"))
			assert_non_null(live);
	}
	assert_int_equal(n, CONFIG_LIVE_KEYS);
	assert_true(all > 40);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(good_file),
	    cmocka_unit_test(bad_files),
	    cmocka_unit_test(flags_override_the_file),
	    cmocka_unit_test(bad_flags),
	    cmocka_unit_test(what_is_printed_can_be_read),
	    cmocka_unit_test(sections_of_tenants),
	    cmocka_unit_test(stores_of_many_tenants_are_bounded),
	    cmocka_unit_test(bad_tenants),
	    cmocka_unit_test(printed_tenants_can_be_read),
	    cmocka_unit_test(hostile_texts),
	    cmocka_unit_test(flags_win_over_a_text),
	    cmocka_unit_test(what_can_change_is_merged),
	    cmocka_unit_test(single_changes),
	    cmocka_unit_test(keys_that_can_change),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
