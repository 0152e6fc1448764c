/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/unpack.h - planes of skvq/format.h to raw vectors, one code a byte. A tile of dim channels
 * has n = dim / 4 raw vectors in m = dim / 16 columns: column c is the vectors c, c + m, c + 2m,
 * c + 3m. At every width these four share their bytes, because n is a multiple of four; so a column
 * is what is unpacked at a time, and of a ternary plane one vector of all five tiles.
 */

/* Asks for a line that the next page's turn will read. Pages lie far from each other and are small:
 * the hardware's prefetcher starts anew in each. One line for each that is read keeps as much under
 * way as a core can; all at once would make this page's own loads wait. */
SIMD void fetch(const uint8_t *p)
{
	__builtin_prefetch(p, 0, 2);
}

/* The lines of a column, of a page `ahead` bytes on. */
SIMD void fetch_column(uint32_t bits, const uint8_t *tile, uint32_t m, uint32_t c, ptrdiff_t refine,
		       ptrdiff_t ahead)
{
	const uint8_t *p = tile + 64 * (size_t)c + ahead;

	fetch(p);
	if (bits == SKVQ_BITS_4 || bits == SKVQ_BITS_3)
		fetch(p + 64 * (size_t)m);
	if (bits == BITS_NESTED)
		fetch(p + refine);
}

SIMD void unpack_column(uint32_t bits, const uint8_t *tile, ptrdiff_t refine, uint32_t m,
			uint32_t c, codes ret[4])
{
	const uint8_t *p = tile + 64 * (size_t)c;
	codes a, b;

	if (bits == SKVQ_BITS_8) {
		REPEAT(i, 4, ret[i] = codes_load(p + 64 * (size_t)i * m););
		return;
	}
	a = codes_load(p);
	if (bits == BITS_NESTED) {
		codes_nested(a, codes_load(p + refine), ret);
		return;
	}
	if (bits == SKVQ_BITS_4) {
		b = codes_load(p + 64 * (size_t)m);
		ret[0] = codes_and(a, 15);
		ret[1] = codes_and(b, 15);
		ret[2] = codes_and(codes_shr4(a), 15);
		ret[3] = codes_and(codes_shr4(b), 15);
		return;
	}
	ret[0] = codes_and(a, 3);
	ret[1] = codes_and(codes_shr2(a), 3);
	ret[2] = codes_and(codes_shr4(a), 3);
	ret[3] = codes_and(codes_shr6(a), 3);
	if (bits == SKVQ_BITS_3) { /* raw vector v's third bit: bit v / high of vector v % high */
		uint32_t high = (m + 1) / 2;

		REPEAT(i, 4, {
			uint32_t v = c + i * m;

			b = codes_load(tile + 64 * (size_t)(m + v % high));
			b = codes_and(codes_shr(b, v / high), 1);
			ret[i] = codes_or(ret[i], codes_shl2(b));
		});
	}
}

/* The same without shifting codes down where sums are kept apart by vector: vector p comes out
 * times 2^raised(bits, p), which its sum is divided by in the end. Shifts compete with dot
 * products. */
SIMD uint32_t raised(uint32_t bits, uint32_t p)
{
	if (PLANE_SUMS != 4)
		return 0;
	return bits == SKVQ_BITS_2 ? 2 * p : bits == SKVQ_BITS_4 ? p / 2 * 4 : 0;
}

SIMD void unpack_raised(uint32_t bits, const uint8_t *tile, ptrdiff_t refine, uint32_t m,
			uint32_t c, codes ret[4])
{
	const uint8_t *p = tile + 64 * (size_t)c;

	if (PLANE_SUMS == 4 && bits == SKVQ_BITS_2) {
		codes a = codes_load(p);

		REPEAT(i, 4, ret[i] = codes_and(a, (uint8_t)(3u << 2 * i)););
	} else if (PLANE_SUMS == 4 && bits == SKVQ_BITS_4) {
		codes a = codes_load(p), b = codes_load(p + 64 * (size_t)m);

		ret[0] = codes_and(a, 15);
		ret[1] = codes_and(b, 15);
		ret[2] = codes_and(a, 0xf0);
		ret[3] = codes_and(b, 0xf0);
	} else {
		unpack_column(bits, tile, refine, m, c, ret);
	}
}

/* Tiles of a page to ret[tile][n] vectors; returns where tile 0 is: 8-bit codes are read in place.
 */
SIMD void unpack_tiles(uint32_t bits, const struct skvq_codec *c, const uint8_t *planes,
		       ptrdiff_t refine, ptrdiff_t ahead, const struct tiles *t, uint8_t *ret)
{
	uint32_t m = c->dim / 16u, n = 4 * m;

	for (uint32_t i = t->from; i < t->to; i++) {
		const uint8_t *tile = planes + (size_t)i * c->tile_bytes;
		uint8_t *out = ret + 64 * (size_t)i * n;

		for (uint32_t col = 0; col < m; col++) {
			codes v[4];

			fetch_column(bits, tile, m, col, refine, ahead);
			unpack_column(bits, tile, refine, m, col, v);
			REPEAT(k, 4, codes_store(out + 64 * (size_t)(col + k * m), v[k]););
		}
	}
}

static const uint8_t *unpack_page(const struct skvq_codec *c, uint32_t bits, const uint8_t *planes,
				  ptrdiff_t refine, ptrdiff_t ahead, const struct tiles *t, uint8_t *ret)
{
	uint32_t n = c->dim / 4u;

	switch (bits) {
	case SKVQ_BITS_8:
		for (uint32_t i = 0; ahead && i < c->head_bytes; i += 64)
			fetch(planes + i + ahead);
		return planes;
	case SKVQ_BITS_4:
		unpack_tiles(SKVQ_BITS_4, c, planes, refine, ahead, t, ret);
		break;
	case SKVQ_BITS_3:
		unpack_tiles(SKVQ_BITS_3, c, planes, refine, ahead, t, ret);
		break;
	case SKVQ_BITS_2:
		unpack_tiles(SKVQ_BITS_2, c, planes, refine, ahead, t, ret);
		break;
	case BITS_NESTED:
		unpack_tiles(BITS_NESTED, c, planes, refine, ahead, t, ret);
		break;
	default:
		for (uint32_t v = 0; v < n; v++) {
			codes d[TILES];

			fetch(planes + 64 * (size_t)v + ahead);
			codes_trits(codes_load(planes + 64 * (size_t)v), d);
			REPEAT(i, TILES, codes_store(ret + 64 * (size_t)(i * n + v), d[i]););
		}
		break;
	}
	return ret;
}
