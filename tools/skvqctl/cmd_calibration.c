/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX (INT64_C(512) << 20) /* of a calibration; what is in it the daemon checks */


static int fail(const char *path, const char *why)
{
	fprintf(stderr, "skvqctl: calibration '%s': %s\n", path, why);
	return -1;
}

/* A sealed copy, as the daemon takes nothing else. */
static int to_memfd(const char *path, int from, uint64_t *ret_bytes)
{
	int fd = memfd_create("skvq-calibration", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint64_t bytes = 0;
	char buf[65536];
	ssize_t n;

	if (fd < 0)
		return fail(path, strerror(errno));
	while ((n = read(from, buf, sizeof(buf))) > 0) {
		if (bytes + (uint64_t)n > (uint64_t)FILE_MAX || write(fd, buf, (size_t)n) != n) {
			fail(path, "it is too large, or memory is short");
			goto out;
		}
		bytes += (uint64_t)n;
	}
	if (n < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0) {
		fail(path, strerror(errno));
		goto out;
	}
	*ret_bytes = bytes;
	return fd;
out:
	close(fd);
	return -1;
}

static int open_file(const char *path, uint64_t *ret_bytes)
{
	int from = open(path, O_RDONLY | O_CLOEXEC), fd;
	struct stat st;

	if (from < 0)
		return fail(path, strerror(errno));
	if (fstat(from, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size == 0 ||
	    st.st_size > FILE_MAX)
		fd = fail(path, "not a calibration file");
	else
		fd = to_memfd(path, from, ret_bytes);
	close(from);
	return fd;
}

static int report(const struct ctl *ctl, const char *path, uint64_t bytes, int put)
{
	if (ctl->json) {
		json_t *object = json_pack("{s:I, s:b, s:b}", "bytes", (json_int_t)bytes, "stored",
					   put > 0, "replaced", put == 2);
		if (ctl_print_json(object) != CTL_OK)
			return CTL_FAILED;
	} else if (put > 0) {
		printf("engines that start from now on get '%s'%s\n", path,
		       put == 2 ? " in place of the one before; those that run keep theirs" : "");
	}
	if (!put)
		fprintf(stderr,
			"skvqctl: the daemon on '%s' has a calibration of these weights, "
			"which stays; see --replace\n",
			ctl->socket);
	return put ? CTL_OK : CTL_FAILED;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	bool replace = false;
	uint64_t bytes;
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_calibration, argc, argv)) > 0)
		replace = true;
	if (opt < 0)
		return ctl->result;
	const char *path = argv[optind];
	int fd = open_file(path, &bytes);
	if (fd < 0)
		return CTL_FAILED;
	struct skvq_client *c = ctl_connect(ctl);
	int result = ctl->result;
	if (c) {
		int put = skvq_client_calibration_put(c, fd, bytes, replace);
		result = put < 0 ? ctl_failed(ctl, c, "take the calibration", put)
				 : report(ctl, path, bytes, put);
		skvq_client_free(c);
	}
	close(fd);
	return result;
}

static const struct ctl_opt opts[] = {
    {'r', "replace", NULL,
     "put this one in the place of one that is there. Engines that run keep the one they have; they "
     "and those that start later share no pages, so restart them when it suits"},
};

const struct ctl_verb verb_calibration = {
    .name = "calibration",
    .summary = "give engines that start later another calibration",
    .args = "FILE",
    .min_args = 1,
    .max_args = 1,
    .about = "Gives the daemon a file of skvq-calibrate, for engines that start from now on. One that "
	     "is there for these weights stays, unless --replace is given; status 1 then says that it "
	     "did.",
    CTL_OPTS(opts),
    .json = "bytes (of the one that is kept), stored, replaced.",
    .run = run,
};
