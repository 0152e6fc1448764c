/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugin-abi/src/snapshot.h - a sequence as bytes. docs/snapshot-format.md draws it.
 *
 *   header | identity | tokens | page table | sinks | window rows | pages | cut page
 *
 * and of a model with layer groups
 *
 *   groups header | snapshot of groups[0] | snapshot of groups[1] | ...
 *
 * Nothing is aligned: everything is copied in and out.
 */
#ifndef SKVQ_PLUGIN_SNAPSHOT_H
#define SKVQ_PLUGIN_SNAPSHOT_H

#include "internal.h"

#define SNAPSHOT_MAGIC   UINT64_C(0x50414e5351564b53) /* "SKVQSNAP" */
#define SNAPSHOT_VERSION 1u
#define SNAPSHOT_VERSION_DROPS 2u /* of a sequence with SKVQ_SEQ_DROP_UNSEEN */

#define SNAPSHOT_WHOLE UINT32_C(1) /* every page's bytes are in it: always, so far */

struct snapshot_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes;
	uint64_t total_bytes;
	uint32_t flags;
	uint32_t seq_flags; /* SKVQ_SEQ_* */
	uint32_t max_tokens, max_append;
	uint32_t n_tokens, n_encoded, n_matched;
	uint32_t rows_from; /* first token whose FP16 rows are here; up to n_tokens */
	uint32_t rows_true; /* first whose rows are as they were appended */
	uint32_t cut_end;   /* 0: no tile was cut */
	uint32_t cut_flags; /* of the cut page, SNAPSHOT_PAGE_* */
	uint32_t identity_bytes;
	uint32_t crc_body;   /* of all behind the header */
	uint32_t crc_header; /* with itself as zero */
	uint32_t n_dropped;  /* version 2: first pages, which are not here nor in the table */
	uint8_t reserved[44];
};
_Static_assert(sizeof(struct snapshot_header) == 128, "snapshot header is 128 bytes");
_Static_assert(offsetof(struct snapshot_header, crc_header) == 76, "snapshot header layout");

#define SNAPSHOT_PAGE_SAFE      UINT32_C(1)
#define SNAPSHOT_PAGE_BASE_ONLY UINT32_C(2) /* its refinement is not here, nor to be read */
#define SNAPSHOT_PAGE_HIDDEN    UINT32_C(4) /* never to be published */
#define SNAPSHOT_PAGE_SHARED    UINT32_C(8) /* a daemon had it, by this digest */

struct snapshot_page {
	uint32_t flags;
	uint32_t bytes;
	uint8_t digest[32]; /* zero unless shared */
};
_Static_assert(sizeof(struct snapshot_page) == 40, "snapshot page entry is 40 bytes");

#define SNAPSHOT_GROUPS_MAGIC   UINT64_C(0x47504e5351564b53) /* "SKVQSNPG" */
#define SNAPSHOT_GROUPS_VERSION 1u

struct snapshot_groups {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes;
	uint64_t total_bytes;
	uint32_t n_groups;
	uint32_t crc_header; /* with itself as zero */
	uint64_t bytes[LAYER_GROUPS_MAX]; /* of each group's snapshot; behind them zero */
	uint8_t reserved[32];
};
_Static_assert(sizeof(struct snapshot_groups) == 128, "groups header is 128 bytes");
_Static_assert(offsetof(struct snapshot_groups, crc_header) == 28, "groups header layout");

/* What makes K/V of a model reusable, as bytes; to NULL: only their number. */
size_t snapshot_identity(const struct skvq_model *m, uint8_t *to);
/* Bytes of page i, or of a cut one, in a snapshot. */
size_t snapshot_page_bytes(const struct skvq_layout *l, bool base_only, bool sidecar);

#endif /* SKVQ_PLUGIN_SNAPSHOT_H */
