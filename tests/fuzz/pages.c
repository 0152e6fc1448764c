/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page in a client's staging memfd: what the worker's copy and check take for good is sealed,
 * sound, and good again when it comes back from disk.
 *
 *   input: model, page; then patches of a good page: offset (2 bytes), bytes (piece)
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <skvq/error.h>

#include "cache/fill.h"
#include "fuzz.h"
#include "support/page_maker.h"

static const char *const profiles[] = {"k4v4", "e2.1", "k4v2", "k2v1.5", "k2v2", "k4v4"};
#define MODELS    (sizeof(profiles) / sizeof(profiles[0])) /* the last one: its safe pages */
#define POSITIONS 2u

static struct skvq_layout layouts[MODELS];
static uint8_t *good[MODELS][POSITIONS];
static int32_t tokens[POSITIONS][SKVQ_PAGE_TOKENS];
static struct arena arena;
static int staging;

static void init_model(uint32_t m)
{
	const struct skvq_geometry geo = {.n_layer = MAKER_LAYERS,
					  .n_kv_heads = 1,
					  .head_dim_k = MAKER_DIM,
					  .head_dim_v = MAKER_DIM,
					  .n_sinks = MAKER_SINKS};
	struct skvq_layout *l = &layouts[m], plain;
	struct skvq_profile profile;

	FUZZ_CHECK(skvq_profile_parse(profiles[m], &profile) == 0);
	FUZZ_CHECK(skvq_layout_init(&geo, &profile, NULL, l) == 0);
	plain = *l;
	if (m == MODELS - 1)
		FUZZ_CHECK(skvq_layout_init_safe(&plain, &profile, l) == 0);
	for (uint32_t i = 0; i < POSITIONS; i++) {
		good[m][i] = calloc(1, l->slot_bytes);
		FUZZ_CHECK(good[m][i]);
		maker_page(l, i * SKVQ_PAGE_TOKENS, tokens[i], 1, good[m][i]);
	}
}

static void init(void)
{
	static int done;
	uint64_t most = 0;

	if (done)
		return;
	done = 1;
	for (uint32_t i = 0; i < POSITIONS; i++)
		maker_tokens(1, i, tokens[i]);
	for (uint32_t m = 0; m < MODELS; m++) {
		init_model(m);
		most = layouts[m].slot_bytes > most ? layouts[m].slot_bytes : most;
	}
	FUZZ_CHECK(arena_init(&arena, "fuzz", most, NULL) == 0);
	staging = maker_memfd(most, F_SEAL_GROW | F_SEAL_SHRINK);
}

/* The good page with the patches on it, into staging. */
static void stage(struct fuzz_in *in, const uint8_t *page, size_t n)
{
	static uint8_t *copy;

	if (!copy)
		copy = malloc(arena.bytes);
	FUZZ_CHECK(copy);
	memcpy(copy, page, n);
	while (in->left) {
		size_t at = fuzz_u16(in) % n;
		struct fuzz_in patch = fuzz_piece(in);

		if (patch.left > n - at)
			patch.left = n - at;
		if (patch.left)
			memcpy(copy + at, patch.at, patch.left);
	}
	FUZZ_CHECK(pwrite(staging, copy, n, 0) == (ssize_t)n);
}

static void is_good(struct fill_task *task)
{
	skvq_page_header h;

	memcpy(&h, arena.base, sizeof(h));
	FUZZ_CHECK(memcmp(h.digest, task->digest, sizeof(h.digest)) == 0);
	FUZZ_CHECK(memcmp(h.identity, task->identity, sizeof(h.identity)) == 0);
	FUZZ_CHECK(page_sound(task->layout, arena.base, task->page_bytes, false, task->digest));
	FUZZ_CHECK(fill_verify(task) == 0);
	if (task->layout->refine_bytes)
		FUZZ_CHECK(fill_refine(task) == 0);
	/* And no bit of it can change unseen. */
	arena.base[task->page_bytes - 1] ^= 1;
	arena.base[sizeof(h)] ^= 4;
	FUZZ_CHECK(!page_sound(task->layout, arena.base, task->page_bytes, false, task->digest));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	uint32_t model = fuzz_u8(&in) % MODELS, which = fuzz_u8(&in);
	uint32_t page = which % POSITIONS;
	struct fill_task task = {.arena = &arena,
				 .position = page * SKVQ_PAGE_TOKENS,
				 .identity = {1},
				 .fd_offset = which & 0x80 ? 4096 : 0};

	init();
	task.layout = &layouts[model];
	task.page_bytes = skvq_layout_page_bytes(task.layout, task.position);
	task.fd = staging;
	memcpy(task.tokens, tokens[page], sizeof(task.tokens));
	stage(&in, good[model][page], task.page_bytes);
	if (fill_run(&task) == 0)
		is_good(&task);
	else
		FUZZ_CHECK(task.why.text[0]);
	return 0;
}

size_t fuzz_seed(uint32_t i, uint8_t *at)
{
	struct fuzz_out out = {.at = at};
	skvq_page_header h;

	init();
	if (i >= MODELS * POSITIONS)
		return 0;
	fuzz_put_u8(&out, (uint8_t)(i / POSITIONS));
	fuzz_put_u8(&out, (uint8_t)(i % POSITIONS));
	/* Patches that change nothing: the header and the layer table, the first codes. */
	memcpy(&h, good[i / POSITIONS][i % POSITIONS], sizeof(h));
	fuzz_put(&out, "\0\0", 2);
	fuzz_put_piece(&out, &h, sizeof(h));
	fuzz_put_u8(&out, (uint8_t)layouts[i / POSITIONS].layers_offset);
	fuzz_put_u8(&out, (uint8_t)(layouts[i / POSITIONS].layers_offset >> 8));
	fuzz_put_piece(
	    &out, good[i / POSITIONS][i % POSITIONS] + layouts[i / POSITIONS].layers_offset, 64);
	return out.n;
}
