/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/profile.h - codec profiles by name, and the codec of one layer's K or V.
 *
 * A profile says how keys and values are coded; it knows nothing of pages (skvq/layout.h) nor of
 * how a tile is computed (skvq/kernels.h). Pure functions, no state, any thread.
 */
#ifndef SKVQ_PROFILE_H
#define SKVQ_PROFILE_H

#include <stdint.h>

#include <skvq/format.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define SKVQ_PROFILE_DEFAULT "k4v2" /* why: docs/profiles.md */
#define SKVQ_PROFILE_NAME_MAX 47

enum skvq_codec_kind {
	SKVQ_CODEC_FP16 = 0,
	SKVQ_CODEC_SYM = 1,    /* x' = d * (2c - M), one E4M3 half step d a group            */
	SKVQ_CODEC_AFFINE = 2, /* x' = s * c + z, E4M3 step s and zero z a group (SKVQ's form) */
	SKVQ_CODEC_FAITHFUL = 3, /* skvq/faithful.h: groups across the KV heads of a layer      */
};

struct skvq_profile {
	char name[SKVQ_PROFILE_NAME_MAX + 1];
	uint8_t kind;     /* enum skvq_codec_kind                                             */
	uint8_t k_bits;   /* SKVQ_BITS_*, of every layer without a bit table; 0: none without */
	uint8_t v_bits;
	uint8_t rotate_k; /* 1: per-head normalised Hadamard, in blocks of the largest power  */
	uint8_t rotate_v; /* of two that divides head_dim                                     */
	uint16_t group;   /* channels that share parameters: 32, 64, 128; 0: the whole vector */
	uint8_t nested;   /* elastic: 2-bit keys with a refinement (kernels/nested.h), which  */
	uint32_t young;   /* is read for so many tokens past the window; UINT32_MAX: for all  */
	uint8_t pre_rope; /* faithful only: keys are stored as they are before RoPE           */
	uint8_t bare;     /* 1: never a safe page (skvq/layout.h), for measurements           */
	float clip;       /* affine, faithful: lo, hi are the group's min, max times clip     */
};

/* How K or V of one layer is coded. Filled by skvq_codec_init(); value type. */
struct skvq_codec {
	uint8_t kind;
	uint8_t bits;
	uint8_t rotate;
	uint8_t is_v;          /* selects the tile order of format.h                          */
	uint8_t nested;        /* there is a refinement of head_bytes as well, K at 2 bits only */
	uint16_t dim;          /* channels of a head                                          */
	uint16_t group;        /* resolved, 1..dim                                            */
	uint16_t n_groups;     /* ceil(dim / group)                                           */
	uint16_t n_rows;       /* parameter rows of one head: n_groups, or 2 n_groups affine;
	                        * 0 faithful, whose rows are the layer's (skvq/layout.h)      */
	uint16_t levels_minus_1; /* M: 255, 15, 7, 3, 2                                       */
	int16_t scale_exp;     /* step (sym: half step) = E4M3 * 2^scale_exp                  */
	int16_t zero_exp;      /* zero = E4M3 * 2^zero_exp (affine)                           */
	float clip;
	uint32_t tile_bytes;   /* code bytes of one tile of one head; 0 for ternary, whose
	                        * bytes hold all five tiles                                   */
	uint32_t head_bytes;   /* code bytes of one head and page, multiple of 64             */
};

/* Names: "fp16", "k<b>v<b>[-g<32|64|128>]" (Hadamard, symmetric), "plain-k<b>v<b>[-g..]" (the same
 * without rotation), "affine-k<b>v<b>-g<32|64|128>" (clip 0.92, no rotation); <b> in 8 4 3 2 1.5;
 * "skvq-[post-]k<b>v<b>-g<32|64|128>" (faithful; groups of so many channels on average, across heads);
 * "e2.1[-n<tokens>|-nall]" (k2v2, keys nested, refinement read for so many tokens past the window);
 * "auto-<average>": as "k<b>v<b>", with bits by layer that only a table can tell: k_bits and v_bits
 * are 0, and a layout needs the table. "e2.4[-n...]": with the table of "auto-2.4", and keys nested
 * where it gives them two bits. "-bare" behind a "k.." or "plain-k..": never a safe page.
 * -SKVQ_EPROFILE for anything else; -SKVQ_ENOTSUP for names reserved for later ("skvq"). ret
 * is untouched on failure. */
int skvq_profile_parse(const char *name, struct skvq_profile *ret);

/* The codec of K (is_v 0) or V (1) of a layer, bits one of SKVQ_BITS_*: the bit table's word where
 * there is one. FP16 bits override the profile's kind. -SKVQ_EPROFILE, -SKVQ_EGEOMETRY. */
int skvq_codec_init(const struct skvq_profile *profile, int is_v, uint8_t bits, uint32_t dim,
                    struct skvq_codec *ret);

#if defined(__cplusplus)
}
#endif
#endif /* SKVQ_PROFILE_H */
