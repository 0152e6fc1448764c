/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segment files from anywhere: a start, every record it found, a scrub, an orderly end, and a
 * second start, which must give what the first gave, byte for byte.
 *
 *   input: options; then blocks: where (6 bits, and which of two files), what it is meant to be and
 *   what of it is repaired, its bytes (piece). A repaired block has the magic, life, place and
 *   checksums that hold, so that everything behind them is reached.
 */
#include <errno.h>

#include "base/crc32c.h"
#include "spill/format.h"
#include "spill/store_impl.h"
#include "fuzz.h"
#include "support/page_maker.h"

#define FILES   2u
#define BLOCKS  32u
#define BYTES   (BLOCKS * SPILL_BLOCK)
#define RECORDS 64u

enum kind { RAW, HEAD, RECORD, TABLE, FOOT, KINDS };
enum { REPAIR = 8, REPAIR_SECTIONS = 16 }; /* flags of a kind */

/* ---- the disk: two files in memory, done at once ---- */

static struct disk {
	struct spill_io io;
	uint8_t file[FILES][BYTES];
	uint64_t number[FILES]; /* 0: none */
	uint32_t of[256];       /* the file open as i, plus 1 */
	uint32_t dirty[FILES];  /* blocks that are not zero, one bit each */
	struct spill_req *done, *done_tail;
	uint64_t now_ms;
} disk;

static int disk_list(struct spill_io *io, spill_list_fn fn, void *ctx)
{
	(void)io;
	for (uint32_t i = 0; i < FILES; i++)
		if (disk.number[i])
			fn(ctx, disk.number[i], BYTES);
	return 0;
}

static int disk_open(struct spill_io *io, uint32_t file, uint64_t number, uint64_t *ret_bytes)
{
	(void)io;
	for (uint32_t i = 0; i < FILES; i++) {
		if (disk.number[i] != number)
			continue;
		disk.of[file] = i + 1;
		*ret_bytes = BYTES;
		return 0;
	}
	return -ENOENT;
}

static void disk_close(struct spill_io *io, uint32_t file)
{
	(void)io;
	disk.of[file] = 0;
}

static void disk_pool(struct spill_io *io, void *base, size_t bytes)
{
	(void)io;
	(void)base;
	(void)bytes;
}

static int64_t transfer(struct spill_req *req)
{
	uint32_t i = disk.of[req->file];
	uint8_t *at;

	if (!i)
		return -EBADF;
	if (req->offset >= BYTES)
		return 0;
	if (req->bytes > BYTES - req->offset)
		req->bytes = BYTES - req->offset;
	at = disk.file[i - 1] + req->offset;
	if (req->op == SPILL_READ) {
		memcpy(req->buf, at, req->bytes);
	} else {
		memcpy(at, req->buf, req->bytes);
		for (uint64_t b = req->offset; b < req->offset + req->bytes; b += SPILL_BLOCK)
			disk.dirty[i - 1] |= UINT32_C(1) << b / SPILL_BLOCK;
	}
	return (int64_t)req->bytes;
}

static int64_t perform(struct spill_req *req)
{
	switch (req->op) {
	case SPILL_READ:
	case SPILL_WRITE:
		return transfer(req);
	case SPILL_RUN:
		req->run(req);
		return 0;
	case SPILL_CREATE:
		return -ENOSPC;
	case SPILL_UNLINK:
		if (disk.of[req->file])
			disk.number[disk.of[req->file] - 1] = 0;
		disk.of[req->file] = 0;
		return 0;
	default:
		return 0;
	}
}

static int disk_submit(struct spill_io *io, struct spill_req *req)
{
	(void)io;
	req->result = perform(req);
	req->next = NULL;
	if (disk.done)
		disk.done_tail->next = req;
	else
		disk.done = req;
	disk.done_tail = req;
	return 0;
}

static void disk_kick(struct spill_io *io)
{
	(void)io;
}

static struct spill_req *disk_reap(struct spill_io *io)
{
	struct spill_req *req = disk.done;

	(void)io;
	if (req)
		disk.done = req->next;
	return req;
}

static void disk_wait(struct spill_io *io, uint32_t timeout_ms)
{
	(void)io;
	disk.now_ms += disk.done ? 0 : timeout_ms;
}

static int disk_event_fd(struct spill_io *io)
{
	(void)io;
	return -1;
}

static uint64_t disk_now_ms(struct spill_io *io)
{
	(void)io;
	return disk.now_ms;
}

static void disk_free(struct spill_io *io)
{
	(void)io;
	FUZZ_CHECK(!disk.done);
	memset(disk.of, 0, sizeof(disk.of));
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

static void disk_clear(void)
{
	for (uint32_t f = 0; f < FILES; f++)
		for (uint32_t b = 0; b < BLOCKS; b++)
			if (disk.dirty[f] >> b & 1)
				memset(disk.file[f] + (size_t)b * SPILL_BLOCK, 0, SPILL_BLOCK);
	memset(disk.dirty, 0, sizeof(disk.dirty));
	disk.now_ms = 1000;
	disk.io = (struct spill_io){.ops = &disk_ops, .engine = "fuzz"};
	for (uint32_t f = 0; f < FILES; f++)
		disk.number[f] = f + 1;
}

/* ---- blocks that hold ---- */

#define CRC(s) ((s)->crc = crc32c((s), sizeof(*(s)) - sizeof((s)->crc)))

static struct spill_life life_of(uint32_t f)
{
	return (struct spill_life){.number = f + 1, .random = {42, (uint8_t)f}};
}

static void repair_record(uint8_t *at, uint32_t f, uint32_t block, bool sections)
{
	struct spill_record r;
	uint64_t end = SPILL_BLOCK;

	memcpy(&r, at, sizeof(r));
	r.magic = SPILL_MAGIC_RECORD;
	r.version = r.packed_bytes[0] | r.packed_bytes[1] | r.packed_bytes[2] ? SPILL_PACKED
									      : SPILL_VERSION;
	r.life = life_of(f);
	r.offset = (uint64_t)block * SPILL_BLOCK;
	for (int i = 0; sections && i < TIER_SECTIONS; i++) {
		uint64_t n = spill_stored_bytes(&r, i);

		if (n > BYTES || end + n > BYTES - r.offset)
			break;
		r.section_crc[i] = n ? crc32c(at + end, n) : 0;
		end += (uint64_t)spill_blocks(n) * SPILL_BLOCK;
		r.record_blocks = (uint32_t)(end / SPILL_BLOCK);
	}
	CRC(&r);
	memcpy(at, &r, sizeof(r));
}

static void repair(uint8_t *at, enum kind kind, uint32_t f, uint32_t block, bool sections)
{
	struct spill_head *head = (void *)at;
	struct spill_table *table = (void *)at;
	struct spill_foot *foot = (void *)at;

	switch (kind) {
	case HEAD:
		head->magic = SPILL_MAGIC_HEAD;
		head->version = SPILL_VERSION;
		head->block_bytes = SPILL_BLOCK;
		head->life = life_of(f);
		head->segment_bytes = BYTES;
		CRC(head);
		break;
	case RECORD:
		repair_record(at, f, block, sections);
		break;
	case TABLE:
		table->magic = SPILL_MAGIC_TABLE;
		table->life = life_of(f);
		table->n %= SPILL_TABLE_ENTRIES + 1;
		CRC(table);
		break;
	case FOOT:
		foot->magic = SPILL_MAGIC_FOOT;
		foot->version = SPILL_VERSION;
		foot->life = life_of(f);
		CRC(foot);
		break;
	default:
		break;
	}
}

/* All blocks first: a record's checksum is that of what comes behind it, too. */
static void make_files(struct fuzz_in *in)
{
	struct {
		uint8_t where, what;
	} blocks[RECORDS];
	uint32_t n = 0;

	while (in->left && n < RECORDS) {
		uint8_t where = fuzz_u8(in), what = fuzz_u8(in);
		struct fuzz_in bytes = fuzz_piece(in);
		uint32_t f = where >> 7, block = where % BLOCKS;
		size_t room = (BLOCKS - block) * (size_t)SPILL_BLOCK;

		if (bytes.left > room)
			bytes.left = room;
		if (bytes.left)
			memcpy(disk.file[f] + (size_t)block * SPILL_BLOCK, bytes.at, bytes.left);
		for (uint32_t b = 0; b <= bytes.left / SPILL_BLOCK && block + b < BLOCKS; b++)
			disk.dirty[f] |= UINT32_C(1) << (block + b);
		blocks[n].where = where;
		blocks[n++].what = what;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t f = blocks[i].where >> 7, block = blocks[i].where % BLOCKS;

		if (blocks[i].what & REPAIR)
			repair(disk.file[f] + (size_t)block * SPILL_BLOCK,
			       (enum kind)(blocks[i].what % 8 % KINDS), f, block,
			       blocks[i].what & REPAIR_SECTIONS);
	}
}

/* ---- the store over it ---- */

static struct given {
	struct tier_key key;
	bool was; /* given */
	uint32_t bytes, crc;
} given[256];
static uint32_t n_given;

static void on_get(void *ctx, int status, const struct tier_page *page)
{
	struct given *g = ctx;

	FUZZ_CHECK(!page == (status != 0));
	g->was = page != NULL;
	g->bytes = g->crc = 0;
	for (int i = 0; page && i < TIER_SECTIONS; i++) {
		FUZZ_CHECK(page->section[i].bytes <= BYTES);
		g->bytes += page->section[i].bytes;
		if (page->section[i].bytes)
			g->crc ^= crc32c(page->section[i].data, page->section[i].bytes);
	}
	FUZZ_CHECK(!page || memcmp(&page->key, &g->key, sizeof(g->key)) == 0);
	FUZZ_CHECK(!page || page->section[TIER_BASE].bytes);
}

static void get(struct store *s, struct given *g)
{
	struct tier *tier = store_tier(s);
	int r = tier->ops->get(tier, &g->key, 1000, on_get, g);

	for (int i = 0; r > 0 && i < 8; i++)
		store_step(s, 1);
}

/* Every record of the index. */
static void list(struct store *s)
{
	n_given = 0;
	for (uint32_t i = 0; i < s->segs.max; i++) {
		const struct segment *seg = &s->segs.at[i];

		for (uint32_t e = 0; e < seg->n; e++) {
			if (seg->mark[e] != MARK_LIVE || n_given == 256)
				continue;
			given[n_given++] = (struct given){.key = seg->entry[e].key};
		}
	}
}

static struct store *start(uint8_t flags)
{
	struct store_options o;
	struct store *s = NULL;
	struct why why = {""};

	store_options_default(&o);
	o.segment_bytes = BYTES;
	o.record_bytes = flags & 1 ? 16384 : 32768;
	o.capacity_bytes = 1 << 20;
	o.buffers = 4;
	o.gets_queued = 4;
	o.touch_entries = 0;
	o.write_bytes_per_day = 0;
	o.compression = flags >> 1 & 1;
	FUZZ_CHECK(store_open(&o, &disk.io, &s, &why) == 0);
	return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	uint8_t flags = fuzz_u8(&in);
	struct store *s;

	disk_clear();
	make_files(&in);
	s = start(flags);
	list(s);
	for (uint32_t i = 0; i < n_given; i++)
		get(s, &given[i]);
	store_scrub(s, BYTES);
	for (int i = 0; i < 4; i++)
		store_step(s, 100);
	store_close(s);
	if (!(flags & 4))
		return 0;
	s = start(flags);
	for (uint32_t i = 0; i < n_given; i++) {
		struct given before = given[i];

		get(s, &given[i]);
		if (before.was)
			FUZZ_CHECK(given[i].was && given[i].bytes == before.bytes &&
				   given[i].crc == before.crc);
	}
	store_close(s);
	return 0;
}

/* ---- seeds ---- */

static void put_block(struct fuzz_out *out, uint8_t where, uint8_t what, const void *data, size_t n)
{
	fuzz_put_u8(out, where);
	fuzz_put_u8(out, what);
	fuzz_put_piece(out, data, n);
}

/* A page that is long enough to be stored in fewer blocks. */
static uint32_t long_page(uint8_t *at)
{
	const struct skvq_geometry geo = {
	    .n_layer = 4, .n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64};
	struct skvq_profile profile;
	struct skvq_layout l;
	int32_t tokens[SKVQ_PAGE_TOKENS];

	FUZZ_CHECK(skvq_profile_parse("k4v2", &profile) == 0);
	FUZZ_CHECK(skvq_layout_init(&geo, &profile, NULL, &l) == 0);
	maker_tokens(1, 1, tokens);
	maker_page(&l, SKVQ_PAGE_TOKENS, tokens, 1, at);
	return l.base_bytes;
}

/* The record of a page at `block`, compressed if there are packs; returns what the table says of
 * it. */
static struct spill_entry put_record(struct fuzz_out *out, uint8_t file, uint8_t block, uint8_t id,
				     struct packs *packs)
{
	static uint8_t record[16 * SPILL_BLOCK];
	struct spill_life life = life_of(file);
	struct tier_page page = {.key = {.ns = {1}, .page = {id}}, .position = id * 80u};
	static uint8_t bytes[65536];
	struct spill_entry entry;
	uint32_t whole = long_page(bytes);
	size_t n;

	page.section[TIER_BASE].data = bytes;
	page.section[TIER_BASE].bytes = packs ? whole : 500;
	page.section[TIER_SIDECAR].data = bytes + 100;
	page.section[TIER_SIDECAR].bytes = id % 2 ? 40 : 0;
	spill_record_fill(record, &page);
	if (packs)
		(void)pack_do(packs, record);
	else
		spill_record_sum(record);
	spill_record_move(record, &life, block, &entry);
	/* Without the padding behind it, which is zero anyway. */
	n = entry.record_blocks * (size_t)SPILL_BLOCK;
	while (n && !record[n - 1])
		n--;
	put_block(out, (uint8_t)(file << 7 | block), RECORD | REPAIR | REPAIR_SECTIONS, record, n);
	return entry;
}

static void put_head(struct fuzz_out *out, uint8_t file)
{
	static uint8_t block[SPILL_BLOCK];
	struct spill_life life = life_of(file);

	spill_head_write(block, &life, BYTES, 1);
	put_block(out, (uint8_t)(file << 7), HEAD | REPAIR, block, sizeof(struct spill_head));
}

static void put_table(struct fuzz_out *out, uint8_t file, const struct spill_entry *entries,
		      uint32_t n)
{
	static uint8_t block[SPILL_BLOCK];
	struct spill_life life = life_of(file);

	spill_table_write(block, &life, 0, entries, n);
	put_block(out, (uint8_t)(file << 7 | (BLOCKS - 2)), TABLE | REPAIR, block, 40 + n * 96);
	spill_foot_write(block, &life, BLOCKS - 2, n);
	put_block(out, (uint8_t)(file << 7 | (BLOCKS - 1)), FOOT | REPAIR, block,
		  sizeof(struct spill_foot));
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	struct fuzz_out out = {.at = at};
	struct spill_entry entries[2];
	struct packs *packs = packs_new(32768);

	FUZZ_CHECK(packs);
	fuzz_put_u8(&out, (uint8_t)(i < 3 ? 4 : 6));
	if (i < 5) {
		put_head(&out, 0);
		entries[0] = put_record(&out, 0, 1, 1, i >= 2 ? packs : NULL);
		entries[1] = put_record(&out, 0, 10, 2, NULL);
	}
	if (i == 1 || i == 3)
		put_table(&out, 0, entries, 2);
	if (i == 4) {
		put_head(&out, 1);
		(void)put_record(&out, 1, 3, 1, NULL);
	}
	packs_free(packs);
	return i < 5 ? out.n : 0;
}
