/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/client.h - libskvq: one connection to skvqd, in plain structs.
 *
 * It speaks the protocol of skvq_control.proto and hides it: callers see neither protobuf nor
 * frames. It knows nothing of K/V, pages' contents or sequences. Used by the plugin and skvqctl.
 *
 * Threads: one thread at a time per client. Blocking calls wait at most the connection's timeout; a
 * call that timed out leaves the connection broken, because its late answer could not be told from
 * a pin that nobody owns. On a broken connection every call returns -SKVQ_ENODAEMON.
 */
#ifndef SKVQ_CLIENT_H
#define SKVQ_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <skvq/error.h>

#define SKVQ_CLIENT_WHY_BYTES 256
#define SKVQ_CLIENT_RUN_MAX 1024 /* pages in one publish request */

struct skvq_client; /* made by skvq_client_connect, freed by skvq_client_free */

struct skvq_page_ref {
	uint32_t slot;
	uint32_t generation; /* 0: no page */
};

struct skvq_client_hello {
	uint64_t boot_id;
	uint32_t frame_bytes_max;
	uint32_t pins_max;
	uint32_t requests_max;
	char version[32];
	uint64_t features; /* SKVQ_CLIENT_HAS_* that the daemon has too */
};

#define SKVQ_CLIENT_HAS_CALIBRATIONS UINT64_C(1)

/* Everything that makes K/V bytes reusable; pointers are borrowed for the call. Meanings and which
 * fields are required: skvq/plugin.h, struct skvq_model_desc. */
struct skvq_client_identity {
	const uint8_t *weights_digest;     /* 32 bytes */
	const uint8_t *tokenizer_digest;   /* 32 bytes */
	const uint8_t *lora_digest;        /* 32 bytes or NULL */
	const char *engine_numerics;
	const char *model_name;
	uint32_t n_layer, n_q_heads, n_kv_heads, head_dim_k, head_dim_v;
	uint32_t rope_kind, rope_dim;
	double rope_theta;
	const char *rope_scaling;
	const char *profile;
	uint32_t window, sinks;
	const uint8_t *bit_table;          /* [n_layer][2] */
	const uint16_t *reorder;           /* K maps [n_layer][n_kv_heads][head_dim_k], then V's; or NULL */
	const uint32_t *layer_window;      /* [n_layer] or NULL */
	float clip;
	const uint8_t *calibration_digest; /* 32 bytes or NULL: data-free */
};

struct skvq_client_ns {
	uint32_t ns;
	uint64_t arena_bytes;
	uint64_t slot_bytes;
	uint32_t base_bytes, refine_bytes, sidecar_bytes;
	uint8_t identity_digest[32];
	/* Another namespace of the tenant's for the same weights or model name, 0: none; and the first
	 * field of the identity in which it differs, so that nothing is shared with it. */
	uint32_t nearest_ns;
	char nearest_differs[32];
};

/* Called from inside a client call, for each publish request that ended. n_pages pages were stored
 * (all if err is 0), n_existed of them were there before; all are pinned for this connection. Must
 * not call back into the client. */
typedef void (*skvq_client_published_fn)(void *user, uint64_t id, int err, const char *detail,
                                         const struct skvq_page_ref *pages, size_t n_pages,
                                         uint32_t n_existed);

/* Connects and says hello. name is shown by skvqctl. -SKVQ_EPATH, -SKVQ_ENODAEMON, -SKVQ_EVERSION,
 * -SKVQ_ECONNS, -SKVQ_ETIMEOUT, -SKVQ_EPROTO; why (SKVQ_CLIENT_WHY_BYTES) gets a sentence. */
int skvq_client_connect(const char *path, const char *name, uint32_t timeout_ms,
                        struct skvq_client **ret, char *why);
/* Closes the connection: the daemon drops all its pins. NULL is a no-op. */
void skvq_client_free(struct skvq_client *c);
/* Ends the connection also for copies of its descriptor in forked children; free it afterwards. A
 * child must not call this: it would cut its parent off. NULL is a no-op. */
void skvq_client_end(struct skvq_client *c);
/* Readable when skvq_client_poll has something to do. Owned by the client. */
int skvq_client_fd(const struct skvq_client *c);
bool skvq_client_broken(const struct skvq_client *c);
/* Whether the daemon has surely ended, and nobody has its arenas after it. On a broken connection
 * this decides about pinned pages: if so, the arenas belong to whoever maps them and never change
 * again; if not, they stay pinned only until skvq_client_free. Never of a daemon that may hand its
 * arenas over to the next one. */
bool skvq_client_daemon_gone(const struct skvq_client *c);
const struct skvq_client_hello *skvq_client_hello(const struct skvq_client *c);
/* What the last failed call said. Valid until the next call. */
const char *skvq_client_why(const struct skvq_client *c);
void skvq_client_on_published(struct skvq_client *c, skvq_client_published_fn fn, void *user);
void skvq_client_set_timeout(struct skvq_client *c, uint32_t timeout_ms);

/* Blocking calls. */
int skvq_client_namespace_open(struct skvq_client *c, const struct skvq_client_identity *id,
                               struct skvq_client_ns *ret, int *ret_arena_fd);
int skvq_client_staging_add(struct skvq_client *c, int fd, uint32_t *ret_staging);
/* Pins the pages and returns their number, at most pages_max. Waits for pages that must be read
 * from disk, three quarters of the timeout at most; less if they would come later than the engine
 * has computed them, at recompute_us a token (0: not known). base_only[i]: page i is held without its
 * refinement, which must not be read. */
int skvq_client_match(struct skvq_client *c, uint32_t ns, const int32_t *tokens, uint32_t n_tokens,
                      uint32_t max_tokens, uint32_t recompute_us, struct skvq_page_ref *pages,
                      bool *base_only, uint32_t pages_max);
/* Has the daemon read from disk what a match of these tokens would wait for. *ret_resident pages are
 * in memory, *ret_coming on their way; behind these it has none, or can't take more now.
 * -SKVQ_ENOTSUP: a daemon without a disk. */
int skvq_client_prefetch(struct skvq_client *c, uint32_t ns, const int32_t *tokens,
                         uint32_t n_tokens, uint32_t *ret_resident, uint32_t *ret_coming);
/* The calibration that the tenant's engines use for a model: the descriptor, whose first *ret_bytes
 * bytes are the file, is the caller's to close. -SKVQ_EAGAIN if nobody has put one; -SKVQ_ENOTSUP if
 * the daemon keeps none. What is in it is not checked here. */
int skvq_client_calibration_get(struct skvq_client *c, const uint8_t *weights_digest,
                                uint32_t n_layer, uint32_t n_q_heads, uint32_t n_kv_heads,
                                uint32_t head_dim_k, uint32_t head_dim_v, uint64_t *ret_bytes,
                                int *ret_fd);
/* Offers the first bytes of a memfd sealed GROW and SHRINK. 1 if it is now the tenant's, 2 if it is in
 * place of another, 0 if there was one already, which stays unless replace is set: get that. replace is
 * for people: running engines keep the one they have, and share no pages with those that come.
 * -SKVQ_ENOTSUP if the daemon keeps none, or is too old to replace one. */
int skvq_client_calibration_put(struct skvq_client *c, int fd, uint64_t bytes, bool replace);
int skvq_client_ping(struct skvq_client *c, const void *payload, size_t bytes);

/* Not blocking. -SKVQ_EAGAIN when too many requests are in flight: poll, then try again.
 * safe: of each page whether it is a safe one, 1 or 0; NULL if none is. */
int skvq_client_publish(struct skvq_client *c, uint32_t ns, struct skvq_page_ref parent,
                        uint32_t position, const int32_t *tokens, uint32_t n_pages,
                        const uint8_t *safe, uint32_t staging, uint64_t offset, uint64_t *ret_id);
/* Sent without waiting for the answer; queued if the socket is full. */
int skvq_client_unpin(struct skvq_client *c, uint32_t ns, const struct skvq_page_ref *pages,
                      uint32_t n_pages);
/* In the same way: one pin of each page holds it without its refinement from now on. -SKVQ_ENOTSUP if
 * the daemon never takes refinements away. */
int skvq_client_unrefine(struct skvq_client *c, uint32_t ns, const struct skvq_page_ref *pages,
                         uint32_t n_pages);
int skvq_client_staging_drop(struct skvq_client *c, uint32_t staging);
/* Sends what is queued, takes in what has come, waiting up to wait_ms for the first answer (0: not
 * at all). Number of requests still in flight, or an error if the connection broke. */
int skvq_client_poll(struct skvq_client *c, uint32_t wait_ms);

/* Events: what happens to pages, as docs/events.md has it. Pointers are valid during the call; strings
 * are never NULL. */
struct skvq_client_event {
	uint64_t number;  /* of this connection's, from 1; lost ones count */
	uint64_t time_ms; /* since 1970 */
	const char *kind, *tenant, *tier, *why, *model_name;
	uint32_t ns;
	struct skvq_page_ref page;       /* generation 0: not in memory */
	const uint8_t *digest, *parent;  /* 32 bytes or NULL */
	const uint8_t *identity_digest;  /* 32 bytes or NULL */
	uint32_t position;
	uint32_t span; /* tokens: of the page; match: asked for */
	const int32_t *tokens; /* [n_tokens] */
	size_t n_tokens;
	const uint8_t *chain; /* match: [n_chain][32], of all whole pages asked for */
	size_t n_chain;
	bool chain_cut; /* there were more than that */
	uint32_t n_memory, n_disk;
};
/* Called from inside a client call. lost events were before this one; e NULL: and it is all that there is
 * to tell. Must not call back into the client. */
typedef void (*skvq_client_event_fn)(void *user, uint64_t lost, const struct skvq_client_event *e);
#define SKVQ_CLIENT_EVENTS_PAGES   1u
#define SKVQ_CLIENT_EVENTS_TOKENS  2u /* with the tokens of pages that are stored */
#define SKVQ_CLIENT_EVENTS_MATCHES 4u
/* Has the daemon tell events from here on, once a connection; skvq_client_poll, which then waits though
 * nothing is in flight, takes them in. -SKVQ_ENOTSUP: an older daemon. -SKVQ_ELIMIT: too many listen. */
int skvq_client_events(struct skvq_client *c, uint32_t what, skvq_client_event_fn fn, void *user);

/* Inspection (skvqctl). Lists are malloc'ed arrays that the caller frees; strings are inside. */
struct skvq_client_counter {
	char name[64];
	uint64_t value;
	char help[96]; /* what it counts; skvq_client_status_with_help, else empty */
};
/* Bucket i: values above 2^(i - 1) up to 2^i, the first from 0, the last also all that is more. */
#define SKVQ_CLIENT_HISTOGRAMS 8
#define SKVQ_CLIENT_BUCKETS    32
struct skvq_client_histogram {
	char name[32]; /* its end is the unit: _us, _ms */
	char help[96];
	uint64_t sum;
	uint64_t buckets[SKVQ_CLIENT_BUCKETS];
};
#define SKVQ_CLIENT_TENANTS 64
#define SKVQ_CLIENT_REFUSALS 40
struct skvq_client_tenant {
	char name[64];
	uint32_t connections, connections_max, namespaces, namespaces_max;
	uint64_t pages, bytes;
	uint64_t bytes_held; /* of pages that cannot go: pinned, on their way, or above such */
	uint64_t bytes_min;  /* guaranteed */
	uint64_t bytes_max;
	uint64_t pins, pins_max; /* of all its connections; max 0: no bound beside each one's */
	uint64_t disk_bytes, disk_bytes_max, calibration_bytes, calibration_bytes_max, evictions;
	size_t n_refusals; /* by error code, those that are not 0 */
	struct skvq_client_counter refusals[SKVQ_CLIENT_REFUSALS];
};
struct skvq_client_status {
	char version[32];
	char socket[108];
	uint64_t pid, uptime_ms;
	uint32_t connections, connections_max, namespaces;
	uint64_t pages, bytes_resident, bytes_kernel, bytes_max, pins;
	bool has_store; /* a disk below memory; else the rest is 0 */
	uint64_t bytes_stored, disk_bytes, disk_bytes_max, disk_pages;
	size_t n_counters;
	struct skvq_client_counter counters[384]; /* what does not fit is left out */
	/* The caller's own; to an admin all. What stands above is their sum. */
	size_t n_tenants;
	struct skvq_client_tenant tenants[SKVQ_CLIENT_TENANTS];
	size_t n_histograms; /* 0: the daemon is older than these */
	struct skvq_client_histogram histograms[SKVQ_CLIENT_HISTOGRAMS];
};
struct skvq_client_ns_info {
	uint32_t ns;
	char tenant[64];
	uint8_t identity_digest[32];
	char model_name[128];
	char profile[64];
	char engine_numerics[128];
	uint32_t n_layer, n_kv_heads, head_dim_k, head_dim_v, page_bytes;
	uint64_t pages, bytes, pins, tokens_asked, tokens_matched, page_hits, evictions;
	uint64_t pages_safe; /* copied in since the namespace was made */
};
struct skvq_client_page_info {
	struct skvq_page_ref page, parent; /* parent.generation 0: first page */
	uint32_t position;
	char state[24];
	uint32_t pins, children;
	uint64_t bytes, hits, age_ms, idle_ms;
	bool shed; /* its refinement is not in memory */
	uint8_t digest[32]; /* zeros: the daemon is older than this */
};
struct skvq_client_pin_info {
	uint64_t connection;
	int32_t pid;
	uint32_t uid, gid;
	char name[64];
	uint64_t pins, pages, bytes, age_ms;
};
/* What pages say that their codes lost: K or V of one layer, over all pages copied in. */
#define SKVQ_CLIENT_ERROR_BUCKETS 16
struct skvq_client_error_info {
	uint32_t layer;
	bool is_v;
	uint32_t bits;  /* SKVQ_BITS_* of the codes */
	uint64_t pages; /* that were measured */
	double sum;     /* of relative squared errors */
	double max;
	/* Bucket i is 2^(0.75 i - 12) to 2^(0.75 (i + 1) - 12); the first also what is less, the
	 * last also what is more. */
	uint64_t histogram[SKVQ_CLIENT_ERROR_BUCKETS];
};
/* Why a match ends where it ends: ExplainReply of skvq_control.proto, over all slots. */
struct skvq_client_explanation {
	uint32_t n_memory, n_disk; /* pages */
	uint64_t disk_ms;
	char end[16]; /* all, filling, coming, held, dropped, differs, unknown */
	uint64_t gone_ms;
	uint32_t same_tokens;
	int32_t shift;
	uint32_t other_ns, other_pages;
	char other_differs[32];
};
/* Of at most frame_bytes_max / 4 - 64 tokens; -SKVQ_ERANGE beyond. -SKVQ_ENOTSUP: an older daemon. */
int skvq_client_explain(struct skvq_client *c, uint32_t ns, const int32_t *tokens,
                        uint32_t n_tokens, struct skvq_client_explanation *ret);
int skvq_client_status(struct skvq_client *c, struct skvq_client_status *ret);
/* The same with what counters and histograms count, if the daemon's frames hold that. */
int skvq_client_status_with_help(struct skvq_client *c, struct skvq_client_status *ret);
int skvq_client_namespaces(struct skvq_client *c, struct skvq_client_ns_info **ret, size_t *ret_n);
/* One batch of pages from first_slot on; *ret_next is 0 when there are no more. */
int skvq_client_pages(struct skvq_client *c, uint32_t ns, uint32_t first_slot, uint32_t max,
                      struct skvq_client_page_info **ret, size_t *ret_n, uint32_t *ret_next);
int skvq_client_pins(struct skvq_client *c, struct skvq_client_pin_info **ret, size_t *ret_n);
/* K, then V of each layer of a namespace. -SKVQ_ENOTSUP: the daemon is older than this. */
int skvq_client_errors(struct skvq_client *c, uint32_t ns, struct skvq_client_error_info **ret,
                       size_t *ret_n);

/* Looking at pages and doing something about them (manage.c). -SKVQ_ENOTSUP: an older daemon, or no
 * disk where one is needed. -SKVQ_EPERM: another tenant's, of a user who only looks. */
struct skvq_client_disk_page {
	uint8_t digest[32];
	uint32_t position;
	uint64_t bytes; /* of disk */
};
/* One batch of what is on disk, in memory too or not, from *place on (0: the start), which is moved;
 * 0 there when there are no more. */
int skvq_client_disk_pages(struct skvq_client *c, uint32_t ns, uint64_t *place,
                           struct skvq_client_disk_page **ret, size_t *ret_n);

struct skvq_client_holder {
	uint64_t connection;
	int32_t pid;
	uint32_t uid;
	char name[64];
	uint32_t pins; /* of the page */
};
struct skvq_client_page_layer {
	uint32_t k_bits, v_bits, k_refine_bits, v_refine_bits; /* SKVQ_BITS_*; 0: none */
	double k_error, v_error; /* relative squared; 0: not measured */
};
#define SKVQ_CLIENT_PAGE_CHILDREN 256
#define SKVQ_CLIENT_PAGE_HOLDERS  256
#define SKVQ_CLIENT_PAGE_LAYERS   256
#define SKVQ_CLIENT_PAGE_TOKENS   80
struct skvq_client_page { /* about 45 KiB */
	struct skvq_client_page_info info;
	uint32_t ns;
	char tenant[64];
	uint8_t parent_digest[32];
	bool unlisted; /* proved bad */
	bool safe, on_disk, spilling;
	char crc[16]; /* good, unknown */
	uint32_t version; /* of its header; 0, and the rest too, of a page that cannot be read yet */
	uint32_t n_kv_heads, head_dim_k, head_dim_v, n_sinks;
	uint32_t base_bytes, refine_bytes, sidecar_bytes;
	size_t n_children; /* that are listed; info.children has their number */
	struct skvq_page_ref children[SKVQ_CLIENT_PAGE_CHILDREN];
	size_t n_holders;
	struct skvq_client_holder holders[SKVQ_CLIENT_PAGE_HOLDERS];
	size_t n_layers;
	struct skvq_client_page_layer layers[SKVQ_CLIENT_PAGE_LAYERS];
	size_t n_tokens; /* 0: not asked for */
	int32_t tokens[SKVQ_CLIENT_PAGE_TOKENS];
};
/* -SKVQ_ESTALE: there is no such page. -SKVQ_ECORRUPT: it was damaged, and is not in the cache any
 * more. */
int skvq_client_page_get(struct skvq_client *c, uint32_t ns, struct skvq_page_ref page, bool tokens,
                         struct skvq_client_page *ret);
/* The first page from *slot on whose digest begins with so many hex digits' worth of bits (1 to 64); *slot
 * moves behind it. 1: found, 0: there is none. */
int skvq_client_page_find(struct skvq_client *c, uint32_t ns, const uint8_t *digest, uint32_t digits,
                          bool tokens, uint32_t *slot, struct skvq_client_page *ret);

/* A round over a tenant's pages: Sweep and SweepReply of skvq_control.proto. A call does a part of it, of
 * wait_ms at most, moves the place and adds to the counts; call again until `done`. */
struct skvq_client_sweep {
	const char *tenant; /* NULL: the caller's own, or that of ns */
	uint32_t ns;        /* 0: all of the tenant's */
	struct skvq_page_ref page; /* evict: it and what is behind it; generation 0: all */
	uint64_t idle_ms;          /* evict: not used for so long */
	bool drop, count, to_disk; /* evict */
	bool disk; /* verify, evict with drop: over the records on disk */
	uint32_t wait_ms; /* 1 to 2,000 */

	bool done;
	uint32_t at_ns, at_slot;
	uint64_t at_record;
	uint64_t pages, bytes, held, unwritten, unwritten_bytes, written, written_bytes;
	uint64_t refused, over_budget, damaged, unread;
	bool has_store;
};
int skvq_client_evict(struct skvq_client *c, struct skvq_client_sweep *sweep);
int skvq_client_verify(struct skvq_client *c, struct skvq_client_sweep *sweep);
int skvq_client_drain(struct skvq_client *c, struct skvq_client_sweep *sweep);

/* The daemon's configuration: for root and the user it runs as, -SKVQ_EPERM for others. -SKVQ_ENOTSUP: an
 * older daemon. */
struct skvq_client_config_key {
	char name[64];  /* "memory.ram_max", of a tenant "tenant.ram_max" */
	char live[256]; /* what happens when it changes while the daemon runs; empty: that takes a start */
};
struct skvq_client_config {
	char *text; /* a file, as skvqd --print-config writes it */
	struct skvq_client_config_key *keys;
	size_t n_keys;
};
struct skvq_client_config_change {
	char name[160];            /* "memory.ram_max", "tenant NAME.ram_max", "tenant NAME" */
	char from[256], to[256];   /* cut if longer; empty: it is new, or gone */
	bool restart;              /* it stays as it is until the daemon is started with it */
};
struct skvq_client_config_setting {
	const char *section, *key, *value; /* "tenant NAME", "ram_max", "2G" */
};
int skvq_client_config_get(struct skvq_client *c, struct skvq_client_config *ret);
void skvq_client_config_free(struct skvq_client_config *config);
/* The text of a file, called name in sentences. Unless check, what can change is changed, all or (an error)
 * nothing. *ret: what differs, the caller's to free. -SKVQ_EINVAL, -SKVQ_EBUSY, -SKVQ_ERANGE. */
int skvq_client_config_set(struct skvq_client *c, const char *name, const char *text, size_t bytes,
                           bool check, struct skvq_client_config_change **ret, size_t *ret_n);
/* The same of 1 to 64 keys of what runs, until the next text or start. */
int skvq_client_config_change(struct skvq_client *c,
                              const struct skvq_client_config_setting *settings, size_t n,
                              bool check, struct skvq_client_config_change **ret, size_t *ret_n);

/* "SKVQ_EPINS" for 81 or -81; "unknown" for what is not in skvq/error.h. Static. */
const char *skvq_err_name(int err);

#endif /* SKVQ_CLIENT_H */
