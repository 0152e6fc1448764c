/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/layout.h - sizes and offsets of a page for a geometry and profile, and the checks that make
 * a page from outside safe to read. The daemon and the plugin both call this and nothing else, so
 * that they cannot disagree. Pure functions on memory the caller owns; any thread.
 */
#ifndef SKVQ_LAYOUT_H
#define SKVQ_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include <skvq/format.h>
#include <skvq/profile.h>

struct skvq_geometry {
	uint32_t n_layer;
	uint32_t n_kv_heads;
	uint32_t head_dim_k; /* multiple of 16, 16..SKVQ_HEAD_DIM_MAX */
	uint32_t head_dim_v;
	uint32_t n_sinks;
};

struct skvq_layer_layout {
	struct skvq_codec k, v;
	uint32_t offset;       /* from the start of the page, 64-byte aligned             */
	uint32_t bytes;        /* planes, parameter rows and padding                      */
	uint32_t param_offset; /* of the first parameter row, from the start of the page  */
	uint32_t k_rows, v_rows; /* parameter rows that all heads share: faithful codecs; of each
				  * group a scale, then of each group a zero                 */
	uint32_t refine_offset; /* nested K: of head 0's refinement, from the start of the page;
				 * head_bytes a head                                         */
};

struct skvq_layout {
	struct skvq_geometry geo;
	uint32_t tokens_offset;
	uint32_t layers_offset;
	uint32_t base_bytes;
	uint32_t refine_bytes;  /* 0 unless some layer's K is nested                      */
	uint32_t sidecar_bytes; /* of a first page; 0 if there are no sinks               */
	uint64_t slot_bytes;    /* the stride of arena and staging: base + refine + sidecar, or
				 * more where safe pages are larger                       */
	uint8_t safe;           /* these are the safe pages of a model                    */
	uint32_t layer_sidecar_bytes;
	struct skvq_layer_layout layers[SKVQ_LAYERS_MAX];
};

/* bit_table: [n_layer][2] SKVQ_BITS_*, or NULL for the profile's everywhere.
 * -SKVQ_EGEOMETRY, -SKVQ_EPROFILE. ret is untouched on failure. About 16 KiB: keep it off small
 * stacks. */
int skvq_layout_init(const struct skvq_geometry *geo, const struct skvq_profile *profile,
                     const uint8_t *bit_table, struct skvq_layout *ret);

/* Whether pages of the profile may be safe ones: it is symmetric and not elastic, and there is no
 * calibration, which would make a large channel as large as any other. */
int skvq_profile_has_safe(const struct skvq_profile *profile, int calibrated);
/* The layout of the safe pages that go with l, which is of this profile: K of 8 bits where l has
 * fewer, the same slots. -SKVQ_EGEOMETRY if there are none: no layer's K has fewer, or they
 * would be larger than pages may be. -SKVQ_EPROFILE if the profile has none. */
int skvq_layout_init_safe(const struct skvq_layout *l, const struct skvq_profile *profile,
                          struct skvq_layout *ret);

/* Offsets from the start of the page. Arguments must be in range (asserted). */
size_t skvq_layout_k_codes(const struct skvq_layout *l, uint32_t layer, uint32_t head);
size_t skvq_layout_v_codes(const struct skvq_layout *l, uint32_t layer, uint32_t head);
/* First of the head's parameter rows of K or V, or of those it shares with the others; rows are
 * SKVQ_PAGE_TOKENS bytes apart. */
size_t skvq_layout_k_params(const struct skvq_layout *l, uint32_t layer, uint32_t head);
size_t skvq_layout_v_params(const struct skvq_layout *l, uint32_t layer, uint32_t head);
/* The refinement of a head's K; only where layers[layer].k.nested. */
size_t skvq_layout_k_refine(const struct skvq_layout *l, uint32_t layer, uint32_t head);
/* FP16 sinks [n_sinks][head_dim] of a first page. */
size_t skvq_layout_k_sinks(const struct skvq_layout *l, uint32_t layer, uint32_t head);
size_t skvq_layout_v_sinks(const struct skvq_layout *l, uint32_t layer, uint32_t head);

/* Bytes a page at this position occupies: with the sidecar if position is 0. */
size_t skvq_layout_page_bytes(const struct skvq_layout *l, uint32_t position);

/* Writes header and layer table (tokens and planes stay as they are; CRCs, digests and errors are
 * zeroed).
 * page must hold base_bytes. */
void skvq_page_init(const struct skvq_layout *l, uint32_t position, void *page);

/* Checks a full page in private memory: header and layer table equal what the layout gives but for
 * the errors, which are finite and not negative; tokens equal the given 80, ternary bytes below 243, no NaN among the parameters, reserved bytes and
 * padding zero (so that equal content has equal bytes). 0, or -SKVQ_ECORRUPT with a sentence in
 * why naming the field and the offset. CRC and digest fields must be zero. */
int skvq_page_check(const struct skvq_layout *l, uint32_t position, const int32_t *tokens,
                    const void *page, size_t page_bytes, char *why, size_t why_bytes);

#endif /* SKVQ_LAYOUT_H */
