/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugin-abi/src/internal.h - the objects behind the ABI's opaque pointers.
 *
 * Who may touch what: everything here belongs to [control] calls, which the engine serialises per
 * session, except the fields of struct skvq_seq marked (data): [data] calls read those, so a
 * [control] call changes them only if it is a call on that very sequence. That is why answers of
 * the daemon to one sequence wait in its mailbox while another one's call is what received them.
 */
#ifndef SKVQ_PLUGIN_INTERNAL_H
#define SKVQ_PLUGIN_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <skvq/calibration.h>
#include <skvq/client.h>
#include <skvq/kernels.h>
#include <skvq/layout.h>
#include <skvq/plugin.h>
#include <skvq/rope.h>

enum daemon_state { DAEMON_NONE = 0, DAEMON_ATTACHED = 1, DAEMON_LOST = 2 };

/* A read-only mapping of a namespace's arena. Lives as long as a model or a page uses it, which may
 * be longer than the daemon that made it. */
struct arena_map {
	uint32_t refs;
	const uint8_t *base;
	uint64_t bytes;
	uint64_t slot_bytes;
	uint32_t *more; /* [slots] sequences beyond the daemon's pins; NULL: nothing was forked */
};

/* A publish request under way: finds its sequence when the answer comes. */
struct publish_ticket {
	uint64_t id;
	uint32_t ns;
	struct skvq_seq *seq; /* NULL: the sequence was closed meanwhile */
};

#define TICKETS_MAX 64
#define MAX_TOKENS_LIMIT (UINT32_C(1) << 26) /* of a sequence */
#define LAYER_GROUPS_MAX 8u
#define KEPT_TOKENS 16u /* coded, and kept in the ring for a truncation */

/* A broken connection whose pins somebody may still need: while its descriptor is open, a daemon
 * that lives keeps the pages of that epoch where they are. */
struct lost_link {
	struct lost_link *next;
	struct skvq_client *client;
	uint32_t epoch;
	uint64_t since_ms;
	bool gone; /* the daemon has ended: its pages are ours for as long as they are mapped */
};

struct skvq_session {
	const volatile uint32_t *fork_guard; /* reads 0 in a child after fork() */
	void *user;
	void (*log)(void *user, int32_t level, const char *utf8);
	char name[64];
	uint32_t timeout_ms;
	char *socket; /* NULL: embedded */
	enum daemon_state daemon;
	struct skvq_client *client; /* while attached */
	struct lost_link *lost;
	uint32_t epoch;             /* counts attachments; pages of an older one are on a lost link */
	uint64_t retry_at_ms;       /* when lost: not before */
	uint32_t retry_ms;
	uint64_t close_by_ms; /* while close() runs: when its waits end, all together */
	const struct skvq_kernels *kernels;
	struct skvq_model *models;
	struct publish_ticket tickets[TICKETS_MAX];
	size_t n_tickets;
	struct { /* pins of answers that came for a closed sequence */
		uint32_t ns;
		struct skvq_page_ref ref;
	} *orphans;
	size_t n_orphans;
	skvq_stats stats;
	atomic_flag error_busy; /* [data] calls give up writing rather than wait */
	char error[512];
#ifdef SKVQ_CHECK_THREADS
	_Atomic(const char *) inside; /* the [control] call in progress */
#endif
};

/* What a model of a "skvq-..." profile has besides. */
struct faithful {
	struct skvq_channel_groups *groups; /* [n_layer][2], K and V */
	uint16_t *of;                       /* their maps            */
	uint8_t *tile;                      /* for [control] encode  */
	float clip;
	struct skvq_rope rope; /* of no pairs: keys are kept as they come */
};

/* The relative error that K or V of a layer should have in pages; 0: nothing is expected. */
struct expected_error {
	float error;
	bool warned; /* of a page beyond it */
};

/* Which group has a layer of the model, and as which of its own. */
struct layer_place {
	uint32_t group, layer;
};

/* A model, or a group of a model's layers; see groups.c. */
struct skvq_model {
	struct skvq_session *session;
	struct skvq_model *next;
	struct skvq_seq *seqs;
	/* (data) Of a model with layer groups, which has no pages of its own. groups[0] sees most. */
	struct skvq_model *groups[LAYER_GROUPS_MAX];
	uint32_t n_groups; /* 0: the model is one itself */
	struct layer_place *places; /* [n_layer] */
	/* Of a group. */
	uint32_t *layers; /* (data) [n_layer] what the engine calls its layers; NULL: the same */
	char *numerics;   /* the identity's engine_numerics */
	struct skvq_layout layout;
	struct skvq_layout *safe; /* of pages whose keys the profile would drown; NULL: none are */
	bool warned_safe;
	uint32_t n_q_heads, n_kv_heads, dim_k, dim_v, n_layer;
	uint32_t window, sinks;
	uint32_t young; /* elastic: tokens past the window whose refinement is read */
	uint32_t pairs_half_dim; /* interleaved pairs: rope_dim / 2, else 0 */
	uint16_t *reorder_k;     /* [n_layer][n_kv_heads][dim_k] or NULL; V's maps follow, one */
	uint16_t *reorder_v;     /* allocation                                                */
	struct skvq_transform *transforms; /* [n_layer][n_kv_heads][2], K and V; see transform_of */
	struct expected_error *expected;   /* [n_layer][2], K and V */
	struct faithful *faithful; /* NULL unless the profile is SKVQ's own */
	uint64_t *calibration;   /* the file's bytes, where the transforms point into; or NULL */
	float *query_transforms; /* what the file does not hold: transposes, one allocation    */
	uint8_t calibration_id[SKVQ_CALIBRATION_DIGEST];
	uint8_t *header;      /* a page's bytes up to its first layer, at position 0 */
	uint8_t *safe_header; /* the same of a safe page, or NULL                    */
	size_t token_bytes_fp16;
	/* What the daemon is told; all pointers owned. */
	struct skvq_client_identity id;
	uint8_t digests[3][32]; /* weights, tokenizer, LoRA */
	uint8_t *bit_table;
	uint32_t *layer_window;
	uint32_t sight; /* the largest window of all layers; 0: a layer sees everything */
	char *texts; /* engine_numerics, model_name, rope_scaling and profile, one allocation */
	/* Attachment of this epoch. */
	uint32_t epoch; /* 0: none */
	uint32_t ns;
	struct arena_map *arena;
};

/* Where local pages are; see staging.c. Lives as long as its sequence opens pages in it, or any
 * sequence has a page there. */
struct staging {
	struct skvq_session *session;
	uint32_t refs;
	int fd; /* sealed memfd, page i at i * slot_bytes */
	uint8_t *base;
	uint64_t bytes, slot_bytes;
	uint32_t id, epoch; /* as the daemon of that epoch knows it; 0: none does */
	uint32_t *users;    /* [pages_max] sequences that have page i here */
	bool spoiled;       /* the daemon may be reading what nobody here has any more */
};

enum page_state {
	PAGE_LOCAL,   /* in a staging memfd */
	PAGE_INFLIGHT, /* the same, and the daemon is copying it */
	PAGE_SHARED,  /* in an arena; pinned if epoch is the session's */
};

struct seq_page {
	const uint8_t *data; /* (data) */
	bool safe;           /* (data) which of the model's layouts it has */
	enum page_state state;
	uint32_t epoch;
	struct skvq_page_ref ref;
	struct arena_map *arena; /* while shared */
	struct staging *staging; /* while local, in flight too */
	bool base_only; /* (data) its refinement may be gone: never to be read, nor published */
	bool hidden;    /* not what a sequence of its own would have made: never published */
};

/* The tile at n_encoded was cut: its rows up to `end` have their codes in a copy of the page, and in
 * the ring what these decode to. */
struct cut {
	uint8_t *page; /* base and refinement; NULL: nothing was cut */
	bool safe, base_only;
	uint32_t end;
};

struct skvq_seq {
	struct skvq_model *model;
	struct skvq_seq *next;
	/* (data) Of a model with layer groups: one sequence for each, and of all below nothing but
	 * the marks is in use. NULL: it is one itself. */
	struct skvq_seq **groups;
	uint32_t flags, max_tokens, max_append;
	uint32_t n_tokens;  /* committed */
	uint32_t n_matched;
	uint32_t n_encoded; /* (data) tokens in pages; the rest is in the window */
	uint32_t n_shed;    /* first pages whose refinement holds no memory any more */
	uint32_t n_shed_looked; /* at least n_shed: of those between, branches held some */
	int32_t *tokens;    /* [max_tokens] */
	uint32_t *appended; /* (data) [n_layer] tokens seen by each layer */

	/* (data) FP16 window: a ring of ring_tokens, per layer and head K then V. */
	uint16_t *ring;
	uint32_t ring_tokens;
	size_t ring_bytes;      /* of address space */
	uint32_t ring_released; /* tokens before it hold no memory in the ring */
	uint32_t ring_true;     /* tokens before it are not in the ring as they were appended */
	uint32_t *written;      /* (data) [n_layer] end of what was written to the ring */
	struct cut cut;
	uint16_t *sinks; /* (data) laid out like a page's sidecar; NULL without sinks */
	size_t sinks_bytes;

	/* (data) Partial results of attention that is split along the sequence, and how many of a
	 * layer's head's parts are there. See attend.c. */
	float *split;
	atomic_uint *split_done; /* [n_layer * n_kv_heads] */

	bool lost; /* (data) a page was taken away under it: it must be computed again */

	struct seq_page *pages; /* (data) [pages_max]; the first n_dropped are not there */
	uint32_t pages_max;
	uint32_t n_dropped; /* (data) no layer sees them; see unseen.c */
	bool severed;       /* what is left can't be published */
	struct staging *staging; /* where new pages open */

	/* Publishing: pages [0, n_published) are shared in epoch publish_epoch. */
	uint32_t publish_epoch;
	uint32_t n_published;
	uint64_t publish_id; /* 0: nothing in flight */
	uint32_t publish_run;
	uint64_t publish_after_ms; /* refused: not before */
	struct {
		bool full;
		int err;
		size_t n;
		uint32_t n_existed;
		struct skvq_page_ref refs[SKVQ_CLIENT_RUN_MAX];
	} *mail;
#ifdef SKVQ_CHECK_THREADS
	struct seq_marks *marks; /* calls in progress; threads.c */
#endif
};

#define SEQ_FLAGS (SKVQ_SEQ_NO_MATCH | SKVQ_SEQ_NO_PUBLISH | SKVQ_SEQ_WHOLE | SKVQ_SEQ_DROP_UNSEEN)

/* The sequences that have pages: those of the layer groups, or the one itself. */
static inline uint32_t n_parts(const struct skvq_seq *q)
{
	return q->groups ? q->model->n_groups : 1;
}

/* The daemon of this connection has the model's namespace. */
static inline bool is_attached(const struct skvq_model *m)
{
	return m->session->daemon == DAEMON_ATTACHED && m->epoch == m->session->epoch;
}

/* Of the session's timeout, for one part: all waits of a call together take what one may. */
static inline uint32_t part_timeout_ms(const struct skvq_seq *q)
{
	return (q->model->session->timeout_ms + n_parts(q) - 1) / n_parts(q);
}

static inline struct skvq_seq *part(struct skvq_seq *q, uint32_t i)
{
	return q->groups ? q->groups[i] : q;
}

/* The part that has this layer of the model, which becomes one of the part's. */
static inline struct skvq_seq *part_of_layer(struct skvq_seq *q, uint32_t *layer)
{
	if (!q->groups)
		return q;
	const struct layer_place *p = &q->model->places[*layer];
	*layer = p->layer;
	return q->groups[p->group];
}

/* What the engine calls it. */
static inline uint32_t layer_name(const struct skvq_model *m, uint32_t layer)
{
	return m->layers ? m->layers[layer] : layer;
}

/* The first token whose page is there. */
static inline uint32_t dropped_tokens(const struct skvq_seq *q)
{
	return q->n_dropped * SKVQ_PAGE_TOKENS;
}

static inline const struct skvq_layout *layout_of(const struct skvq_model *m, bool safe)
{
	return safe ? m->safe : &m->layout;
}

/* Of page i, which is there. */
static inline const struct skvq_layout *page_layout(const struct skvq_seq *q, uint32_t i)
{
	return layout_of(q->model, q->pages[i].safe);
}

/* util.c */
int set_error(struct skvq_session *s, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void log_event(struct skvq_session *s, int32_t level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* 0, or -SKVQ_EFORKED in a child of the process that opened the session. */
int check_fork(const struct skvq_session *s);
uint64_t now_ms(void);
/* Copies min(theirs, ours) bytes of a size-prefixed struct into *dst (ours bytes, zeroed first).
 * -SKVQ_EINVAL if theirs cannot even hold its struct_size. */
int copy_in(void *dst, uint32_t ours, const void *src);
/* The reverse, for structs the caller wants filled; keeps the caller's struct_size. */
int copy_out(void *dst, const void *src, uint32_t ours);

/* attach.c */
/* Connects and opens the namespace of every model. */
int session_attach(struct skvq_session *s, uint32_t timeout_ms);
int model_attach(struct skvq_model *m);
/* Takes in answers and, when the daemon was lost, tries to find it again now and then. */
void session_pump(struct skvq_session *s, uint32_t wait_ms);
void session_lost(struct skvq_session *s);
/* Copies the sequence's pages off links whose daemon may still live, and closes links that nobody
 * needs any more. */
void seq_rescue(struct skvq_seq *q);
void arena_unref(struct arena_map *a);
/* Whether the page, a whole one in a slot of memory, holds these 80 tokens at this position, in one
 * of the model's layouts: which is in *ret_safe. */
bool page_holds(const struct skvq_model *m, const uint8_t *page, uint32_t position,
                const int32_t *tokens, bool *ret_safe);
/* The page at ref, or NULL if it does not hold these 80 tokens at this position. */
const uint8_t *arena_page(const struct skvq_model *m, struct skvq_page_ref ref, uint32_t position,
                          const int32_t *tokens, bool *ret_safe);

/* groups.c */
/* The groups of a model that model_new has made of d and p, where its layers see different extents.
 */
int layer_groups_init(struct skvq_model *m, const skvq_model_desc *d, const struct skvq_profile *p);
/* A sequence without parts, of a model with layer groups. */
int seq_shell_new(struct skvq_model *m, uint32_t flags, uint32_t max_tokens, uint32_t max_append,
                  struct skvq_seq **ret);

/* seq.c */
/* Without tokens, and not yet one of the model's. */
int seq_new(struct skvq_model *m, uint32_t flags, uint32_t max_tokens, uint32_t max_append,
            struct skvq_seq **ret);
uint32_t ring_tokens_of(const struct skvq_model *m, uint32_t max_append);
/* Tells the daemon of the stagings, where there is one. */
void seq_prepare(struct skvq_seq *q);
void seq_join(struct skvq_seq *q);
void seq_free(struct skvq_seq *q);

/* fork.c */
/* A pin of a page of this arena counts once more, or once less: false if others here still have it, so
 * that the daemon is not told. */
/* The first token whose FP16 rows go along: those of the window, and some before it. */
uint32_t rows_kept(const struct skvq_seq *q);
int pin_again(struct arena_map *a, struct skvq_page_ref ref);
bool pin_is_last(struct arena_map *a, struct skvq_page_ref ref);

/* publish.c */
/* Tells the daemon of a staging memfd: the one blocking step of publishing. */
int publish_prepare(struct staging *st, uint32_t timeout_ms);
void publish_begin(struct skvq_seq *q);
/* Copies a shared page of an older epoch back into staging. -SKVQ_ENOMEM leaves it shared;
 * -SKVQ_ECORRUPT, and the sequence is lost, if it is not the page any more. */
int page_repatriate(struct skvq_seq *q, uint32_t i);
/* Applies the mailbox to the sequence's pages. */
void publish_take_mail(struct skvq_seq *q);
void on_published(void *session, uint64_t id, int err, const char *detail,
                  const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed);
void unpin_orphans(struct skvq_session *s);

/* model.c */
/* Of a desc that was checked. layers: d is of a group of a model's n_whole layers, which are these;
 * NULL: it is of all. Not attached, and not one of the session's. */
int model_new(struct skvq_session *s, const skvq_model_desc *d, const struct skvq_profile *p,
              const uint32_t *layers, uint32_t n_whole, struct skvq_model **ret);
void model_free(struct skvq_model *m);
void model_drop(struct skvq_model *m); /* one without sequences */

/* staging.c */
int staging_new(const struct skvq_seq *q, struct staging **ret);
void staging_unref(struct staging *st);
/* The sequence opens no more pages. */
void staging_leave(struct skvq_seq *q);
/* A sequence has page i there, or no longer: after the last one its memory goes. */
void staging_hold(struct staging *st, uint32_t i);
void staging_release(struct staging *st, uint32_t i);
/* Takes the memory of page i of this layout in q->staging, which is a new one if that place is taken,
 * so that writing to it cannot fail. All zeros. -SKVQ_ENOMEM, -SKVQ_ESYS. */
int staging_take(struct skvq_seq *q, uint32_t i, const struct skvq_layout *l);
/* The same of a page that is there, and may have lost its refinement's. */
int staging_fill(struct skvq_seq *q, uint32_t i, const struct skvq_layout *l);
uint8_t *staging_page(const struct skvq_seq *q, uint32_t i); /* in q->staging */
/* Of a page that is local, where it lies: q->staging may have been replaced since it was opened. */
uint8_t *page_own(const struct skvq_seq *q, uint32_t i);
/* Lets go of pages [from, to): unpins what is shared, frees what is local. */
void pages_drop(struct skvq_seq *q, uint32_t from, uint32_t to);
void pages_unpin(struct skvq_model *m, const struct skvq_page_ref *refs, uint32_t n);
/* Whether the daemon of today holds page i for this sequence. */
bool page_is_pinned(const struct skvq_seq *q, uint32_t i);

/* unseen.c */
/* Whether pages that no layer sees are let go of. */
bool seq_drops(const struct skvq_seq *q);
/* Whether its pages are to be the daemon's, and still can be. */
bool seq_publishes(const struct skvq_seq *q);
/* Whether a token at this position sees no dropped page. */
bool pages_suffice(const struct skvq_seq *q, uint32_t position);
/* Its pages are its own from now on. */
void seq_sever(struct skvq_seq *q);
/* Lets go of the pages that nobody needs any more. */
void drop_unseen(struct skvq_seq *q);

/* truncate.c */
/* All parts go back to n tokens, at most n_tokens of them. -SKVQ_ERANGE: a dropped page would be seen.
 * Then, and after -SKVQ_ENOMEM, -SKVQ_ESYS, no token has gone. */
int seq_cut(struct skvq_seq *q, uint32_t n);
/* A local page that others have too, or that the daemon may be reading, becomes this sequence's own. */
int page_copy(struct skvq_seq *q, uint32_t i);
/* As if tiles of the page from this one on had never been written. */
void page_clear(const struct skvq_layout *l, uint32_t tile, uint8_t *page);
/* Puts the codes that were cut into the tile at n_encoded of the page, which is encoded. */
void cut_merge(const struct skvq_seq *q, uint8_t *page);
void cut_end(struct skvq_seq *q);

/* The first token from which on the ring has what was appended, in all layers. */
uint32_t fp16_from(const struct skvq_seq *q);

/* data.c */
bool finite_halves(const uint16_t *x, uint32_t n); /* binary16 */
/* The tile that starts at a position, of a page, in engine space. */
void tile_rows(const struct skvq_seq *q, int is_v, uint32_t layer, uint32_t head, uint32_t position,
               float *ret);

/* encode.c */
/* Encodes every tile that has left the window. */
int encode_tiles(struct skvq_seq *q);
uint32_t crc32c(const uint8_t *data, size_t bytes);

/* Gives back refinements that no later token reads. */
void shed_refinements(struct skvq_seq *q);
/* Page i and what is behind it are to be looked at anew. */
static inline void shed_back(struct skvq_seq *q, uint32_t i)
{
	q->n_shed = q->n_shed < i ? q->n_shed : i;
	q->n_shed_looked = q->n_shed_looked < i ? q->n_shed_looked : i;
}
/* Whether attention from `position` on reads page i without refinement, where there is one. */
bool page_is_old(const struct skvq_seq *q, uint32_t i, uint32_t position);

/* faithful.c */
/* With the groups of the calibration c, if it has any; NULL: there is none. Keeps nothing of it. */
int faithful_init(struct skvq_model *m, const struct skvq_profile *p,
                  const struct skvq_calibration *c);
void faithful_free(struct skvq_model *m);
/* A tile leaving the window: all heads' K or V of one layer. */
void faithful_encode(const struct skvq_seq *q, uint32_t layer, int is_v, uint32_t position,
                     uint8_t *page);
/* The tile at a position as FP16 rows [16][dim] in engine space. */
void faithful_tile(const struct skvq_seq *q, uint32_t layer, int is_v, uint32_t head,
                   uint32_t position, uint16_t *ret);
/* Pages from..to-1. */
void faithful_attend(struct skvq_attn_state *st, const struct skvq_seq *q, uint32_t layer,
                     uint32_t head, uint32_t from, uint32_t to);

/* page_errors.c */
/* What is expected without calibration. */
int page_errors_init(struct skvq_model *m);
/* A calibration that knows its model says better. 0: nothing is expected. */
void model_expect_error(struct skvq_model *m, uint32_t layer, int is_v, float error);
/* Measures the page in staging whose first tile, at this position, has just been encoded. Whether
 * its keys are drowned and the model has safe pages: then it is to be encoded again as one, and
 * measured again. */
bool page_errors(struct skvq_seq *q, uint32_t position);
/* Whether a page's layer table is this layout's; its errors may be any. */
bool layer_table_equal(const struct skvq_model *m, bool safe, const uint8_t *page);

/* attend.c */
/* The refinement of K in page i as attention from `position` on reads it: NULL if the layer has none,
 * or the page is too old. */
const uint8_t *page_refine(const skvq_seq *q, uint32_t layer, uint32_t head, uint32_t i,
                           uint32_t position);
#define SPLIT_PARTS_MAX 8u
/* Address space of a sequence's split scratch; memory only where it is used. */
size_t split_bytes(const struct skvq_model *m);
/* Forgets parts of an attention that was not finished: [data], with the layer's append. */
void split_reset(const skvq_seq *q, uint32_t layer);

/* Addresses in the FP16 window and sinks; token by position, elements are binary16. */
uint16_t *ring_k(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position);
uint16_t *ring_v(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position);
uint16_t *sink_k(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position);
uint16_t *sink_v(const struct skvq_seq *q, uint32_t layer, uint32_t head, uint32_t position);

/* How K (is_v 0) or V of one head gets to stored space. */
const struct skvq_transform *transform_of(const struct skvq_model *m, int is_v, uint32_t layer,
                                          uint32_t head);

/* calibration.c */
extern const skvq_ext_calibration ext_calibration;

/* The calls of the table, by file. */
int32_t api_open(const skvq_engine *engine, const char *socket, skvq_session **ret);
void api_close(skvq_session *s);
int32_t api_session_fd(skvq_session *s);
int32_t api_stats(skvq_session *s, skvq_stats *stats);
int32_t api_last_error(skvq_session *s, char *buf, uint64_t bytes);
int32_t api_model_register(skvq_session *s, const skvq_model_desc *desc, skvq_model **ret);
int32_t api_model_unregister(skvq_model *m);
int32_t api_seq_open(skvq_model *m, const skvq_seq_desc *desc, skvq_seq **ret);
int32_t api_seq_poll(skvq_seq *q);
int32_t api_seq_commit(skvq_seq *q, const int32_t *tokens, uint32_t n);
int32_t api_seq_fork(skvq_seq *q, skvq_seq **ret);
int32_t api_seq_snapshot(skvq_seq *q, void *buf, uint64_t buf_bytes, uint64_t *ret_bytes);
int32_t api_seq_resume(skvq_model *m, const void *buf, uint64_t buf_bytes, skvq_seq **ret);
int32_t api_seq_truncate(skvq_seq *q, uint32_t n_tokens);
void api_seq_close(skvq_seq *q);
int32_t api_seq_info(skvq_seq *q, skvq_seq_info *info);
int32_t api_append(skvq_seq *q, const skvq_kv *kv);
int32_t api_attend(skvq_seq *const *seqs, const skvq_attn *attns, uint32_t n_seqs);
extern const skvq_ext_prefetch ext_prefetch;
int32_t api_export(skvq_seq *q, const skvq_export *desc);

#endif /* SKVQ_PLUGIN_INTERNAL_H */
