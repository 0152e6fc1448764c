/* SPDX-License-Identifier: Apache-2.0 */
#include "support/spill_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "unit/seeded.h"

#define PENDING_MAX 512
#define HANDLES_MAX 64
#define SECTOR      512u
#define BLOCK       4096u

struct unsafe_write {
	uint64_t offset, bytes;
	bool under_way; /* never told done */
	struct unsafe_write *next;
	uint8_t data[];
};

struct file {
	uint64_t number, bytes;
	bool exists, removed; /* removed, and not safely */
	uint8_t *now, *safe;
	struct unsafe_write *writes, **writes_end;
};

struct pending {
	struct spill_req *req;
	uint64_t ready_ms;
};

struct spill_disk {
	struct spill_io io;
	struct seeded rng;
	uint64_t now_ms;
	uint32_t latency_ms, files_max;
	struct file *files;
	struct file *handle[HANDLES_MAX];
	struct pending pending[PENDING_MAX];
	uint32_t n_pending;
	uint64_t changes, fail_at, bytes_max, written, limit;
	bool failed;
};

static void forget_writes(struct file *f)
{
	while (f->writes) {
		struct unsafe_write *w = f->writes;

		f->writes = w->next;
		free(w);
	}
	f->writes_end = &f->writes;
}

static void file_clear(struct file *f)
{
	forget_writes(f);
	free(f->now);
	free(f->safe);
	*f = (struct file){.exists = false};
	f->writes_end = &f->writes;
}

static struct spill_disk *disk_of(struct spill_io *io)
{
	return container_of(io, struct spill_disk, io);
}

static struct file *find(struct spill_disk *d, uint64_t number)
{
	for (uint32_t i = 0; i < d->files_max; i++)
		if (d->files[i].exists && !d->files[i].removed && d->files[i].number == number)
			return &d->files[i];
	return NULL;
}

uint64_t spill_disk_bytes(const struct spill_disk *d)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < d->files_max; i++)
		if (d->files[i].exists && !d->files[i].removed)
			sum += d->files[i].bytes;
	return sum;
}

static int64_t create(struct spill_disk *d, struct spill_req *req)
{
	struct file *f = NULL;

	if (find(d, req->number))
		return -EEXIST;
	if (d->limit && spill_disk_bytes(d) + req->bytes > d->limit)
		return -ENOSPC;
	for (uint32_t i = 0; i < d->files_max && !f; i++)
		if (!d->files[i].exists)
			f = &d->files[i];
	for (uint32_t i = 0; i < d->files_max && !f; i++)
		if (d->files[i].removed)
			f = &d->files[i];
	if (!f)
		return -ENOSPC;
	file_clear(f);
	f->number = req->number;
	f->bytes = req->bytes;
	f->exists = true;
	f->now = calloc(1, f->bytes);
	f->safe = calloc(1, f->bytes);
	d->handle[req->file] = f;
	req->physical = f->bytes;
	if (spill_disk_bytes(d) > d->bytes_max)
		d->bytes_max = spill_disk_bytes(d);
	return 0;
}

static void note(struct file *f, uint64_t offset, const void *data, uint64_t bytes, bool under_way)
{
	struct unsafe_write *w = malloc(sizeof(*w) + bytes);

	*w = (struct unsafe_write){.offset = offset, .bytes = bytes, .under_way = under_way};
	memcpy(w->data, data, bytes);
	*f->writes_end = w;
	f->writes_end = &w->next;
}

static int64_t perform(struct spill_disk *d, struct spill_req *req)
{
	struct file *f = d->handle[req->file];
	uint64_t bytes = req->bytes;

	if (req->op == SPILL_RUN) {
		req->run(req);
		return 0;
	}
	if (req->op != SPILL_READ && !d->failed && ++d->changes == d->fail_at)
		d->failed = true;
	if (d->failed) {
		/* Under way when the power went: perhaps a part of it arrived. */
		if (req->op == SPILL_WRITE && f && req->offset + bytes <= f->bytes)
			note(f, req->offset, req->buf, bytes, true);
		return -EIO;
	}
	switch (req->op) {
	case SPILL_CREATE:
		return create(d, req);
	case SPILL_UNLINK:
		f = find(d, req->number);
		d->handle[req->file] = NULL;
		if (!f)
			return -ENOENT;
		f->removed = true;
		return 0;
	case SPILL_SYNC:
		memcpy(f->safe, f->now, f->bytes);
		forget_writes(f);
		return 0;
	default:
		break;
	}
	if (!f)
		return -EBADF;
	if (req->offset >= f->bytes)
		return 0;
	if (bytes > f->bytes - req->offset)
		bytes = f->bytes - req->offset;
	if (req->op == SPILL_READ) {
		memcpy(req->buf, f->now + req->offset, bytes);
		return (int64_t)bytes;
	}
	memcpy(f->now + req->offset, req->buf, bytes);
	note(f, req->offset, req->buf, bytes, false);
	d->written += bytes;
	return (int64_t)bytes;
}

/* --- the io ---------------------------------------------------------------------------------- */

static int disk_list(struct spill_io *io, spill_list_fn fn, void *ctx)
{
	struct spill_disk *d = disk_of(io);

	for (uint32_t i = 0; i < d->files_max; i++)
		if (d->files[i].exists && !d->files[i].removed)
			fn(ctx, d->files[i].number, d->files[i].bytes);
	return 0;
}

static int disk_open(struct spill_io *io, uint32_t file, uint64_t number, uint64_t *ret_bytes)
{
	struct file *f = find(disk_of(io), number);

	if (!f)
		return -ENOENT;
	disk_of(io)->handle[file] = f;
	*ret_bytes = f->bytes;
	return 0;
}

static void disk_close(struct spill_io *io, uint32_t file)
{
	disk_of(io)->handle[file] = NULL;
}

static void disk_pool(struct spill_io *io, void *base, size_t bytes)
{
	(void)io;
	(void)base;
	(void)bytes;
}

static int disk_submit(struct spill_io *io, struct spill_req *req)
{
	struct spill_disk *d = disk_of(io);
	uint64_t takes = d->failed ? 0 : seeded_below(&d->rng, d->latency_ms + 1);

	if (d->n_pending == PENDING_MAX)
		return -EAGAIN;
	d->pending[d->n_pending++] = (struct pending){req, d->now_ms + takes};
	return 0;
}

static void disk_kick(struct spill_io *io)
{
	(void)io;
}

static struct spill_req *disk_reap(struct spill_io *io)
{
	struct spill_disk *d = disk_of(io);
	uint32_t start = d->n_pending ? seeded_below(&d->rng, d->n_pending) : 0;

	for (uint32_t k = 0; k < d->n_pending; k++) {
		uint32_t i = (start + k) % d->n_pending;
		struct spill_req *req = d->pending[i].req;

		if (d->pending[i].ready_ms > d->now_ms && !d->failed)
			continue;
		d->pending[i] = d->pending[--d->n_pending];
		req->result = perform(d, req);
		return req;
	}
	return NULL;
}

static void disk_wait(struct spill_io *io, uint32_t timeout_ms)
{
	struct spill_disk *d = disk_of(io);
	uint64_t until = d->now_ms + timeout_ms;

	for (uint32_t i = 0; i < d->n_pending; i++)
		if (d->pending[i].ready_ms < until)
			until = d->pending[i].ready_ms;
	if (until > d->now_ms)
		d->now_ms = until;
}

static int disk_event_fd(struct spill_io *io)
{
	(void)io;
	return -1;
}

static uint64_t disk_now_ms(struct spill_io *io)
{
	return disk_of(io)->now_ms;
}

static void disk_free(struct spill_io *io)
{
	struct spill_disk *d = disk_of(io);

	d->n_pending = 0;
	memset(d->handle, 0, sizeof(d->handle));
}

static const struct spill_io_ops disk_ops = {
    .list = disk_list,
    .open = disk_open,
    .close = disk_close,
    .pool = disk_pool,
    .submit = disk_submit,
    .kick = disk_kick,
    .reap = disk_reap,
    .wait = disk_wait,
    .event_fd = disk_event_fd,
    .now_ms = disk_now_ms,
    .free = disk_free,
};

/* --- the disk -------------------------------------------------------------------------------- */

struct spill_disk *spill_disk_new(uint64_t seed, uint32_t files_max, uint32_t latency_ms)
{
	struct spill_disk *d = calloc(1, sizeof(*d));

	d->rng.state = seed;
	d->now_ms = 1000;
	d->latency_ms = latency_ms;
	d->files_max = files_max;
	d->files = calloc(files_max, sizeof(*d->files));
	for (uint32_t i = 0; i < files_max; i++)
		d->files[i].writes_end = &d->files[i].writes;
	d->io.ops = &disk_ops;
	d->io.engine = "memory";
	return d;
}

struct spill_disk *spill_disk_copy(const struct spill_disk *from)
{
	struct spill_disk *d = spill_disk_new(from->rng.state, from->files_max, from->latency_ms);

	for (uint32_t i = 0; i < d->files_max; i++) {
		const struct file *a = &from->files[i];
		struct file *b = &d->files[i];

		if (!a->exists || a->removed)
			continue;
		b->number = a->number;
		b->bytes = a->bytes;
		b->exists = true;
		b->now = malloc(b->bytes);
		b->safe = malloc(b->bytes);
		memcpy(b->now, a->now, b->bytes);
		memcpy(b->safe, a->now, b->bytes);
	}
	return d;
}

void spill_disk_free(struct spill_disk *d)
{
	for (uint32_t i = 0; i < d->files_max; i++)
		file_clear(&d->files[i]);
	free(d->files);
	free(d);
}

struct spill_io *spill_disk_io(struct spill_disk *d)
{
	return &d->io;
}

void spill_disk_fail_at(struct spill_disk *d, uint64_t n)
{
	d->fail_at = n ? d->changes + n : 0;
}

bool spill_disk_failed(const struct spill_disk *d)
{
	return d->failed;
}

uint64_t spill_disk_changes(const struct spill_disk *d)
{
	return d->changes;
}

/* Which parts of the unsafe writes are there afterwards. After a power cut they are safe, too. */
static void survive(struct spill_disk *d, struct file *f, bool power)
{
	struct unsafe_write *w = f->writes;

	f->writes = NULL;
	f->writes_end = &f->writes;
	memcpy(f->now, f->safe, f->bytes);
	while (w) {
		struct unsafe_write *next = w->next;
		uint32_t how = seeded_below(&d->rng, 4); /* none, all, blocks, sectors */
		uint32_t grain = how == 3 ? SECTOR : BLOCK;

		if (!power && !w->under_way)
			how = 1;
		for (uint64_t at = 0; at < w->bytes; at += grain) {
			uint64_t n = w->bytes - at < grain ? w->bytes - at : grain;

			if (how != 1 && (how == 0 || !seeded_below(&d->rng, 2)))
				continue;
			memcpy(f->now + w->offset + at, w->data + at, n);
			note(f, w->offset + at, w->data + at, n, false);
		}
		free(w);
		w = next;
	}
	if (power) {
		memcpy(f->safe, f->now, f->bytes);
		forget_writes(f);
	}
}

static void restart(struct spill_disk *d, bool power)
{
	for (uint32_t i = 0; i < d->files_max; i++) {
		struct file *f = &d->files[i];

		if (!f->exists)
			continue;
		survive(d, f, power);
		if (f->removed && (!power || seeded_below(&d->rng, 4)))
			file_clear(f);
		f->removed = false;
	}
	d->failed = false;
	d->fail_at = 0;
}

void spill_disk_power_cut(struct spill_disk *d)
{
	restart(d, true);
}

void spill_disk_killed(struct spill_disk *d)
{
	restart(d, false);
}

uint64_t spill_disk_bytes_max(const struct spill_disk *d)
{
	return d->bytes_max;
}

uint64_t spill_disk_written(const struct spill_disk *d)
{
	return d->written;
}

void spill_disk_limit(struct spill_disk *d, uint64_t bytes)
{
	d->limit = bytes;
}

uint8_t *spill_disk_file(struct spill_disk *d, uint32_t i, uint64_t *ret_number,
			 uint64_t *ret_bytes)
{
	if (i >= d->files_max || !d->files[i].exists || d->files[i].removed)
		return NULL;
	*ret_number = d->files[i].number;
	*ret_bytes = d->files[i].bytes;
	return d->files[i].now;
}

void spill_disk_sleep(struct spill_disk *d, uint64_t ms)
{
	d->now_ms += ms;
}
