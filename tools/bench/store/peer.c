/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "spill/io.h"

#define DEPTH_MAX 256u

struct raw {
	struct spill_io *io;
	struct spill_req req[DEPTH_MAX];
	uint8_t *pool;
};

static int wait_one(struct spill_io *io, struct spill_req **ret_req)
{
	io->ops->kick(io);
	while (!(*ret_req = io->ops->reap(io)))
		io->ops->wait(io, 1000);
	return (*ret_req)->result < 0 ? -1 : 0;
}

static int one(struct spill_io *io, enum spill_op op, uint64_t bytes)
{
	struct spill_req req = {.op = op, .number = 1, .bytes = bytes}, *back;

	if (io->ops->submit(io, &req) < 0 || wait_one(io, &back) < 0)
		return -1;
	return 0;
}

/* Seconds, or negative. */
static double pass(struct raw *r, const struct bench *b, enum spill_op op)
{
	uint64_t n = b->bytes / b->record, begun = 0, done = 0;
	double began = now_s();

	while (done < n) {
		struct spill_req *req;

		/* The first depth requests start at once, each later one in place of one that
		 * ended. */
		if (begun < b->depth && begun < n) {
			req = &r->req[begun];
			*req = (struct spill_req){.buf = r->pool + begun * b->record};
		} else {
			if (wait_one(r->io, &req) < 0 || req->result != (int64_t)b->record)
				return -1;
			done++;
			if (begun == n)
				continue;
		}
		req->op = op;
		req->bytes = b->record;
		req->offset = begun++ * b->record;
		if (r->io->ops->submit(r->io, req) < 0)
			return -1;
	}
	if (op == SPILL_WRITE && one(r->io, SPILL_SYNC, 0) < 0)
		return -1;
	return now_s() - began;
}

int raw_run(const struct bench *b, struct speed *ret_speed)
{
	char folder[600];
	struct spill_io_config config = {.folder = folder,
					 .files_max = 1,
					 .depth = b->depth + 8,
					 .threads = b->depth < 16 ? b->depth : 16,
					 .no_uring = b->threads};
	size_t pool = (size_t)b->depth * b->record;
	struct raw r = {.io = NULL};
	double w = -1, rd = -1;
	struct why why;

	(void)snprintf(folder, sizeof(folder), "%s/raw", b->folder);
	if (spill_io_new(&config, &r.io, &why) < 0) {
		fprintf(stderr, "bench-store: %s\n", why.text);
		return -1;
	}
	r.pool = mmap(NULL, pool, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r.pool != MAP_FAILED) {
		memset(r.pool, 0x5a, pool);
		r.io->ops->pool(r.io, r.pool, pool);
		if (one(r.io, SPILL_CREATE, b->bytes) == 0) {
			w = pass(&r, b, SPILL_WRITE);
			rd = w < 0 ? -1 : pass(&r, b, SPILL_READ);
			(void)one(r.io, SPILL_UNLINK, 0);
		}
	}
	r.io->ops->free(r.io);
	if (r.pool != MAP_FAILED)
		(void)munmap(r.pool, pool);
	if (rd <= 0) {
		fprintf(stderr, "bench-store: plain I/O in '%s' failed\n", folder);
		return -1;
	}
	ret_speed->write_mib_s = (double)b->bytes / w / 1048576;
	ret_speed->read_mib_s = (double)b->bytes / rd / 1048576;
	return 0;
}

/* fio's terse output, version 3: fields 7 and 48 are read and write bandwidth in KiB/s. */
static double fio_pass(const struct bench *b, const char *rw)
{
	char command[1600], line[4096] = "", *at = line, *field;
	int want = !strcmp(rw, "read") ? 7 : 48;
	double kib = -1;
	FILE *out;

	(void)snprintf(command, sizeof(command),
		       "fio --name=x --filename='%s/fio.dat' --rw=%s --bs=%u --size=%llu "
		       "--iodepth=%u --ioengine=io_uring --direct=1 --fixedbufs=1 "
		       "--registerfiles=1 --fallocate=native --end_fsync=1 --invalidate=1 "
		       "--output-format=terse --terse-version=3 2>/dev/null",
		       b->folder, rw, b->record, (unsigned long long)b->bytes, b->depth);
	out = popen(command, "r");
	if (!out)
		return -1;
	while (fgets(line, sizeof(line), out) && strncmp(line, "3;", 2) != 0)
		;
	if (pclose(out) != 0)
		return -1;
	for (int i = 1; (field = strsep(&at, ";")) != NULL; i++)
		if (i == want)
			kib = strtod(field, NULL);
	return kib / 1024;
}

int fio_run(const struct bench *b, struct speed *ret_speed)
{
	if (system("command -v fio >/dev/null 2>&1") != 0)
		return -1;
	ret_speed->write_mib_s = fio_pass(b, "write");
	ret_speed->read_mib_s = fio_pass(b, "read");
	return ret_speed->write_mib_s > 0 && ret_speed->read_mib_s > 0 ? 0 : -1;
}
