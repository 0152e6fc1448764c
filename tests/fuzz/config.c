/* SPDX-License-Identifier: Apache-2.0 */
/* A configuration file: refused with a sentence, or one that --print-config gives back as it is. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config.h"
#include "fuzz.h"

#define TEXT_MAX 32768u

/* A file of these bytes that the reader opens by its name. */
static int read_text(struct config *config, const void *text, size_t n, struct why *why)
{
	static int fd = -1;
	static char path[32];

	if (fd < 0) {
		fd = memfd_create("config", MFD_CLOEXEC);
		(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	}
	FUZZ_CHECK(fd >= 0 && ftruncate(fd, (off_t)n) == 0);
	FUZZ_CHECK(pwrite(fd, text, n, 0) == (ssize_t)n);
	config_defaults(config);
	return config_file(config, path, why);
}

static size_t print(const struct config *config, char *at)
{
	FILE *f = fmemopen(at, TEXT_MAX, "w");
	long n;

	FUZZ_CHECK(f);
	config_print(config, f);
	FUZZ_CHECK(!ferror(f));
	n = ftell(f);
	FUZZ_CHECK(fclose(f) == 0 && n > 0);
	return (size_t)n;
}

/* A value in the file may have blanks behind it or hold a comment; a printed one cannot say so. */
static int is_plain(const char *text)
{
	return !text[strcspn(text, " \t;\"'\\")];
}

static void comes_back(const struct config *config)
{
	static struct config again;
	static char text[TEXT_MAX];
	struct why why = {""};
	size_t n = print(config, text);

	FUZZ_CHECK(read_text(&again, text, n, &why) == 0);
	FUZZ_CHECK(strcmp(config->socket_path, again.socket_path) == 0);
	FUZZ_CHECK(strcmp(config->tenant, again.tenant) == 0);
	FUZZ_CHECK(strcmp(config->store_folder, again.store_folder) == 0);
	FUZZ_CHECK(config->ram_max == again.ram_max && config->socket_mode == again.socket_mode);
	FUZZ_CHECK(config->log_level == again.log_level && config->frame_max == again.frame_max);
	FUZZ_CHECK(memcmp(&config->store, &again.store, sizeof(again.store)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct config config;
	struct why why = {""};

	if (size > TEXT_MAX / 4)
		return 0;
	if (read_text(&config, data, size, &why) < 0) {
		FUZZ_CHECK(why.text[0]);
		return 0;
	}
	(void)config_check(&config, &why);
	FUZZ_CHECK(config_fds(&config) > 0);
	if (is_plain(config.socket_path) && is_plain(config.tenant) &&
	    is_plain(config.store_folder))
		comes_back(&config);
	return 0;
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	static const char *const texts[] = {
	    "[socket]\npath = /run/a.sock\nsocket_mode = 0660 ; a group\ntenant = t\n",
	    ("[memory]\nram_max = 4G\nshed=0\n\n[store]\nfolder = /var/lib/a\nsegment_bytes = "
	    "1MiB\n"),
	    "# nothing\n[limits]\nconnections_max: 12\nframe_max = 64K\n[log]\nlevel = debug\n",
	    "[store]\ncapacity_bytes=99999999999999999999\n",
	    "[socket]\npath = a\n  b\n  c\n",
	};
	struct config config;
	struct fuzz_out out = {.at = at};

	if (i < sizeof(texts) / sizeof(texts[0])) {
		fuzz_put(&out, texts[i], strlen(texts[i]));
		return out.n;
	}
	if (i > sizeof(texts) / sizeof(texts[0]))
		return 0;
	config_defaults(&config);
	return print(&config, (char *)at);
}
