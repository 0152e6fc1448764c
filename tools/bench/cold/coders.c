/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

/* For literals compressed at a level that looks for nothing else. */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#ifdef SKVQ_HAVE_LZ4
#include <lz4.h>
#endif

#include "spill/press.h"

static struct {
	ZSTD_CCtx *pack;
	ZSTD_DCtx *unpack;
	struct press *press;
	uint8_t *stage;
	size_t room;
} c;

static uint32_t zstd(const uint8_t *from, uint32_t bytes, uint8_t *to, size_t room, int level)
{
	size_t r;

	(void)ZSTD_CCtx_setParameter(c.pack, ZSTD_c_compressionLevel, level);
	(void)ZSTD_CCtx_setParameter(c.pack, ZSTD_c_literalCompressionMode,
				     level == -131072 ? ZSTD_ps_enable : ZSTD_ps_auto);
	r = ZSTD_compress2(c.pack, to, room, from, bytes);
	return ZSTD_isError(r) ? 0 : (uint32_t)r;
}

/* Frames may follow each other. */
static bool unzstd(const struct page *page, const uint8_t *from, uint32_t bytes, uint8_t *to)
{
	return ZSTD_decompressDCtx(c.unpack, to, page->bytes, from, bytes) == page->bytes;
}

#define ZSTD_AT(id, level)                                                                         \
	static uint32_t zstd_##id(const struct page *page, uint8_t *to, size_t room)               \
	{                                                                                          \
		return zstd(page->at, page->bytes, to, room, level);                               \
	}
ZSTD_AT(fast5, -5)
ZSTD_AT(1, 1)
ZSTD_AT(3, 3)
ZSTD_AT(19, 19)
ZSTD_AT(huffman, -131072)

#ifdef SKVQ_HAVE_LZ4
static uint32_t lz4(const struct page *page, uint8_t *to, size_t room)
{
	int r = LZ4_compress_default((const char *)page->at, (char *)to, (int)page->bytes,
				     room > INT32_MAX ? INT32_MAX : (int)room);

	return r > 0 ? (uint32_t)r : 0;
}

static bool unlz4(const struct page *page, const uint8_t *from, uint32_t bytes, uint8_t *to)
{
	return LZ4_decompress_safe((const char *)from, (char *)to, (int)bytes, (int)page->bytes) ==
	       (int)page->bytes;
}
#endif

static uint32_t ordered(const struct page *page, enum order order, uint8_t *to, size_t room)
{
	uint32_t bytes[STREAMS], at = 0;
	const uint8_t *from = c.stage;

	if (!regroup(page, order, c.stage, bytes))
		return 0;
	for (int i = 0; i < STREAMS; i++) {
		uint32_t r = zstd(from, bytes[i], to + at, room - at, -131072);

		if (!r)
			return 0;
		from += bytes[i];
		at += r;
	}
	return at;
}

static bool unordered(const struct page *page, enum order order, const uint8_t *from,
		      uint32_t bytes, uint8_t *to)
{
	if (ZSTD_isError(ZSTD_decompressDCtx(c.unpack, c.stage, c.room, from, bytes)))
		return false;
	regroup_back(page, order, c.stage, to);
	return true;
}

#define ORDERED(id, order)                                                                         \
	static uint32_t id(const struct page *page, uint8_t *to, size_t room)                      \
	{                                                                                          \
		return ordered(page, order, to, room);                                             \
	}                                                                                          \
	static bool un##id(const struct page *page, const uint8_t *from, uint32_t bytes,           \
			   uint8_t *to)                                                            \
	{                                                                                          \
		return unordered(page, order, from, bytes, to);                                    \
	}
ORDERED(codes, ORDER_CODES)
ORDERED(channels, ORDER_CHANNELS)
ORDERED(packed, ORDER_PACKED)

/* As the store does it: section by section, and plain where that is not worth it. */
static uint32_t press(const struct page *page, uint8_t *to, size_t room)
{
	const uint8_t *from = page->at;
	uint32_t at = 0;

	(void)room;
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t bytes = page->section[i], n;

		n = bytes ? press_pack(c.press, from, bytes, to + at + 4) : 0;
		memcpy(to + at, &n, 4);
		if (!n)
			memcpy(to + at + 4, from, bytes);
		at += 4 + (n ? n : bytes);
		from += bytes;
	}
	return at;
}

static bool unpress(const struct page *page, const uint8_t *from, uint32_t bytes, uint8_t *to)
{
	(void)bytes;
	for (int i = 0; i < TIER_SECTIONS; i++) {
		uint32_t n;

		memcpy(&n, from, 4);
		from += 4;
		if (n && !press_unpack(c.press, from, n, to, page->section[i]))
			return false;
		if (!n)
			memcpy(to, from, page->section[i]);
		from += n ? n : page->section[i];
		to += page->section[i];
	}
	return true;
}

static const struct coder coders[] = {
#ifdef SKVQ_HAVE_LZ4
    {"lz4", "lz4", lz4, unlz4},
#endif
    {"zstd_fast5", "zstd -5", zstd_fast5, unzstd},
    {"zstd_1", "zstd 1", zstd_1, unzstd},
    {"zstd_3", "zstd 3", zstd_3, unzstd},
    {"zstd_19", "zstd 19", zstd_19, unzstd},
    {"huffman", "zstd's Huffman coder alone", zstd_huffman, unzstd},
    {"codes", "K, V, rest apart; a code a byte; Huffman", codes, uncodes},
    {"channels", "the same, channel after channel", channels, unchannels},
    {"packed", "the same, codes of a channel in a byte", packed, unpacked},
    {"store", "as the store does it", press, unpress},
    {NULL, NULL, NULL, NULL},
};

const struct coder *coders_open(uint32_t longest)
{
	c.room = (size_t)longest * 8;
	c.stage = malloc(c.room);
	c.pack = ZSTD_createCCtx();
	c.unpack = ZSTD_createDCtx();
	c.press = press_new(longest);
	if (c.stage && c.pack && c.unpack && c.press)
		return coders;
	coders_close();
	return NULL;
}

void coders_close(void)
{
	free(c.stage);
	(void)ZSTD_freeCCtx(c.pack);
	(void)ZSTD_freeDCtx(c.unpack);
	press_free(c.press);
}
