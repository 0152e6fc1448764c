/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/kernels.h - the compute kernels behind one table of pointers.
 *
 * kernels/ref is the specification; every other tier gives its codes bit for bit, and its attention
 * with an error of at most SKVQ_ATTN_ERROR_MAX of the output's norm on top. A tier is chosen once
 * (skvq_kernels_init) before threads start; the environment variable SKVQ_CPU names the highest
 * tier allowed ("ref", "avx2", "avx512", "neon"). Kernels are pure functions on memory of the
 * caller: any thread, no allocation, at most 160 KiB of stack. Buffers need the alignment of their
 * element type only; pages are 64-byte aligned.
 *
 * Two spaces: K, V and Q as the engine hands them over, in canonical channel order, are in *engine
 * space*. Pages hold *stored space*: multiplied by a calibrated matrix, or Hadamard-rotated if the
 * codec says so, then reordered (stored[i] = x[map[i]]). Dot products of a query and a key are the
 * same in both, so a query is moved to stored space once, and the part of the output that came from
 * pages is moved back once.
 */
#ifndef SKVQ_KERNELS_H
#define SKVQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include <skvq/format.h>
#include <skvq/profile.h>

/* How one head's K or V gets to stored space beyond what its codec says; a NULL pointer to one means
 * all NULL. Matrices are [dim][dim], row-major, applied to row vectors: y[i] = sum_j x[j] m[j][i],
 * and take the place of the codec's rotation. */
struct skvq_transform {
	const uint16_t *reorder; /* [dim] a permutation, after the matrix or rotation          */
	const float *into;       /* K or V: engine to stored space                             */
	const float *query;      /* of K, for queries: inverse transpose of into; NULL: into is
	                          * orthogonal and serves queries too                          */
	const float *back;       /* inverse of into                                            */
};

/* Query rows of one KV head under one online softmax; all arrays are the caller's.
 * Row r sees the tokens at positions lo[r]..pos[r]. */
struct skvq_attn_state {
	uint32_t n_rows; /* 1..SKVQ_ATTN_ROWS_MAX */
	uint32_t dim_k;
	uint32_t dim_v;
	float softcap;         /* 0: none                                                       */
	const float *q;        /* [n_rows][dim_k] engine space, already times the softmax scale */
	const float *q_stored; /* [n_rows][dim_k] the same in K's stored space                  */
	const uint32_t *pos;   /* [n_rows] */
	const uint32_t *lo;    /* [n_rows] */
	float *max;            /* [n_rows] running maximum of the scores                        */
	float *sum;            /* [n_rows] running sum of exp(score - max)                      */
	float *acc;            /* [n_rows][dim_v] weighted V of FP16 tokens, engine space        */
	float *acc_stored;     /* [n_rows][dim_v] weighted V of pages, V's stored space          */
	/* Where the kernels keep what they derive from q_stored, from the first page to finish:
	 * SKVQ_ATTN_PREP_BYTES aligned to 4, or NULL to have it derived again for each page. The
	 * key belongs to the kernels; attn_begin resets it. */
	void *prep;
	uint32_t prep_key;
};

/* Where one KV head's part of a page is. */
struct skvq_page_planes {
	const uint8_t *k_codes, *k_params, *v_codes, *v_params;
	const uint8_t *k_refine; /* of a nested K; NULL: its 2-bit codes are read alone. Always as
				  * far from k_codes in pages of one run                       */
};

#define SKVQ_ATTN_ROWS_MAX   64u
#define SKVQ_ATTN_PREP_BYTES 35072u /* for any number of rows; for n rows so many: */
#define SKVQ_ATTN_PREP_BYTES_OF(n_rows, dim_k) (2304u + (n_rows) * 2u * (dim_k))

/* |tier - ref| <= SKVQ_ATTN_ERROR_MAX * |ref| for each output row over the same pages, and the same
 * for the lse absolutely, whatever the softmax's shape, as long as |q| |k| <= SKVQ_ATTN_ERROR_NORM
 * (scaled q; scores are smaller than that); in proportion to |q| |k| beyond. It is a tenth of it as
 * a rule: queries and weights keep 15 bits (13 against 8-bit codes on AVX2), nothing else is lost.
 */
#define SKVQ_ATTN_ERROR_MAX  3e-3f
#define SKVQ_ATTN_ERROR_NORM 16.0

struct skvq_kernels {
	const char *tier; /* "ref", "avx2", "avx512", "neon" */

	/* IEEE binary16 <-> binary32; to f16 rounds to nearest even, overflow to infinity. */
	void (*f16_to_f32)(const uint16_t *x, float *ret, size_t n);
	void (*f32_to_f16)(const float *x, uint16_t *ret, size_t n);
	/* bfloat16 <-> binary32, likewise. */
	void (*bf16_to_f32)(const uint16_t *x, float *ret, size_t n);
	void (*f32_to_bf16)(const float *x, uint16_t *ret, size_t n);

	/* x[dim] in place, engine -> stored space and back. reorder: [dim] or NULL. */
	void (*to_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x);
	void (*from_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x);
	/* The same back for the rows[16][dim] that decode_tile gave. */
	void (*tile_from_stored)(const struct skvq_codec *c, const struct skvq_transform *t,
				 float *rows);
	/* The same for a query that will meet K of codec c. */
	void (*query_to_stored)(const struct skvq_codec *c, const struct skvq_transform *t, float *x);

	/* Encodes 16 tokens, rows[16][dim] in engine space (clobbered), as tile 0..4 of a head's
	 * planes. codes: head_bytes, zero before tile 0 is written; tiles are written in order,
	 * each once. params: n_rows rows of 80 bytes. refine: head_bytes of a nested codec's
	 * second plane, else NULL. Non-finite input counts as 0 (NaN) or +-65504 (infinity). */
	void (*encode_tile)(const struct skvq_codec *c, const struct skvq_transform *t,
			    float *rows, uint32_t tile, uint8_t *codes, uint8_t *params,
			    uint8_t *refine);
	/* Decodes one tile to rows[16][dim] in stored space. refine NULL: by the codes alone. */
	void (*decode_tile)(const struct skvq_codec *c, const uint8_t *codes, const uint8_t *params,
			    const uint8_t *refine, uint32_t tile, float *rows);

	/* Codes [16][dim], one a byte, into the planes of a tile, as encode_tile does it, and back:
	 * for codecs whose quantiser is elsewhere (skvq/faithful.h). Not for FP16. */
	void (*pack_tile)(const struct skvq_codec *c, const uint8_t *codes, uint32_t tile,
			  uint8_t *planes);
	void (*unpack_tile)(const struct skvq_codec *c, const uint8_t *planes, uint32_t tile,
			    uint8_t *ret);

	/* Attention. begin zeroes max, sum, acc; any number of pages and rows in any order follows;
	 * finish writes out[r] (out_stride floats apart, dim_v each) and, if lse is not NULL,
	 * lse[r]. A row that saw nothing gives zeros and lse = -INFINITY. */
	void (*attn_begin)(struct skvq_attn_state *s);
	/* Tokens first..n_tokens-1 of n_pages pages in a row, token i in page i / 80 and at
	 * position + i; n_tokens is a multiple of 16. Earlier ones are skipped: they are sinks,
	 * read as FP16 elsewhere. pages[n_pages..] holds n_ahead more that a later call will get:
	 * their memory is only asked for. */
	void (*attn_pages)(struct skvq_attn_state *s, const struct skvq_codec *kc,
			   const struct skvq_codec *vc, const struct skvq_page_planes *pages,
			   uint32_t n_pages, uint32_t n_ahead, uint32_t first, uint32_t n_tokens,
			   uint32_t position);
	/* FP16 tokens in engine space; strides in elements between tokens. */
	void (*attn_rows)(struct skvq_attn_state *s, const uint16_t *k, size_t k_stride,
			  const uint16_t *v, size_t v_stride, uint32_t n_tokens, uint32_t position);
	void (*attn_finish)(struct skvq_attn_state *s, const struct skvq_codec *vc,
			    const struct skvq_transform *tv, float *const *out, float *lse);
};

/* Tiers as bits, for masks and for skvq_kernels_fill. */
#define SKVQ_TIER_REF    UINT32_C(1)
#define SKVQ_TIER_AVX2   UINT32_C(2) /* with FMA and F16C                      */
#define SKVQ_TIER_AVX512 UINT32_C(4) /* F, BW, DQ, VL, VNNI, VBMI; and all of AVX2's */
#define SKVQ_TIER_NEON   UINT32_C(8) /* 64-bit ARM with FEAT_DotProd           */

/* The tiers this processor and operating system can run, as bits. */
uint32_t skvq_cpu_tiers(void);
/* "ref", "avx2"... to the mask of that tier and all below it; 0 if there is no such tier. */
uint32_t skvq_tiers_by_name(const char *name);
/* Pure: fills the table with the best kernels among tiers. */
void skvq_kernels_fill(struct skvq_kernels *table, uint32_t tiers);
/* The process-wide table: chosen on the first call by CPU and SKVQ_CPU, the same ever after, safe
 * from any thread. NULL if SKVQ_CPU names a tier that does not exist or cannot run here. */
const struct skvq_kernels *skvq_kernels_get(void);

#endif /* SKVQ_KERNELS_H */
