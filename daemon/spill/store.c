/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/store_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <skvq/error.h>

#define CLOSE_WAIT_MS 2000u /* for making and removing files, which have no deadline */

static_assert(offsetof(struct store, tier) == 0, "a tier of this kind is its store");

void store_options_default(struct store_options *o)
{
#define DEFAULT_(name, kind, def, least, most, help) .name = (def),
	*o = (struct store_options){STORE_OPTIONS(DEFAULT_)};
#undef DEFAULT_
}

int store_options_check(const struct store_options *o, struct why *why)
{
#define CHECK_(name, kind, def, least, most, help)                                                       \
	if (o->name + 1 < (uint64_t)(least) + 1 || o->name > (uint64_t)(most))                     \
		return why_fail(why, SKVQ_EINVAL,                                                  \
				#name " is %" PRIu64 ", must be %" PRIu64 " to %" PRIu64, o->name, \
				(uint64_t)(least), (uint64_t)(most));
	STORE_OPTIONS(CHECK_)
#undef CHECK_
	if (o->segment_bytes % SPILL_BLOCK || o->record_bytes % SPILL_BLOCK)
		return why_fail(why, SKVQ_EINVAL,
				"segment_bytes and record_bytes must be multiples of %u",
				SPILL_BLOCK);
	if (o->record_bytes > o->segment_bytes / 4)
		return why_fail(why, SKVQ_EINVAL,
				"record_bytes must be a quarter of segment_bytes at most");
	if (o->capacity_bytes / SEGMENTS_LEAST < store_charge_of(o->segment_bytes))
		return why_fail(why, SKVQ_EINVAL,
				"capacity_bytes must hold %u segments and %u bytes for each",
				SEGMENTS_LEAST, SEGMENT_SLACK);
	if (o->capacity_bytes / store_charge_of(o->segment_bytes) > SEGMENTS_MOST)
		return why_fail(why, SKVQ_EINVAL,
				"capacity_bytes makes more than %u segments: raise segment_bytes",
				SEGMENTS_MOST);
	return 0;
}

uint32_t store_files_max(const struct store_options *o)
{
	uint64_t n = o->capacity_bytes / store_charge_of(o->segment_bytes);

	return (n > SEGMENTS_MOST ? SEGMENTS_MOST : (uint32_t)n) + FILES_SPARE;
}

uint32_t store_io_depth(const struct store_options *o)
{
	return (uint32_t)o->buffers + PLAIN_XFERS;
}

static bool contains(struct tier *tier, const struct tier_key *key)
{
	struct store *s = (struct store *)tier;
	struct segment_ref ref;

	return segments_find(&s->segs, key, &ref);
}

static const struct tier_ops ops = {
    .put = store_put,
    .get = store_get,
    .contains = contains,
    .drop = store_drop,
};

static void destroy(struct store *s)
{
	s->io->ops->free(s->io);
	if (s->xfers.all && xfers_out(&s->xfers))
		packs_leave(s->packs); /* a thread may be at it */
	else
		packs_free(s->packs);
	xfers_fini(&s->xfers);
	segments_fini(&s->segs);
	touches_fini(&s->touches);
	free(s->gets);
	free(s);
}

int store_open(const struct store_options *options, struct spill_io *io, struct store **ret_store,
	       struct why *why)
{
	struct store *s = calloc(1, sizeof(*s));
	uint32_t files;
	uint64_t seed;
	int r;

	if (!s) {
		io->ops->free(io);
		return why_fail(why, SKVQ_ENOMEM, "no memory for a store");
	}
	s->tier.ops = &ops;
	s->tier.page_bytes_max = options->record_bytes - SPILL_BLOCK;
	s->opt = *options;
	s->io = io;
	s->active = s->spare = s->evict.seg = SEG_NO;
	r = store_options_check(options, why);
	if (r < 0)
		goto fail;
	files = store_files_max(options);
	s->gets = calloc(options->gets_queued, sizeof(*s->gets));
	s->packs = packs_new((uint32_t)options->record_bytes);
	if (!s->gets || !s->packs || getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed) ||
	    segments_init(&s->segs, files, seed) < 0 ||
	    touches_init(&s->touches, (uint32_t)options->touch_entries) < 0 ||
	    xfers_init(&s->xfers, io, (uint32_t)options->buffers, (uint32_t)options->record_bytes,
		       PLAIN_XFERS, files) < 0) {
		r = why_fail(why, SKVQ_ENOMEM, "no memory for the store");
		goto fail;
	}
	for (uint32_t i = 0; i < options->gets_queued; i++) {
		s->gets[i].next = s->gets_free;
		s->gets_free = &s->gets[i];
	}
	budget_init(&s->budget, options->write_bytes_per_day, 2 * options->record_bytes,
		    store_now(s));
	r = store_recover(s, why);
	if (r < 0)
		goto fail;
	store_pump(s);
	*ret_store = s;
	return 0;
fail:
	destroy(s);
	return r;
}

/* Something is out that has a deadline, or has waited for less than CLOSE_WAIT_MS. */
static bool still_busy(const struct store *s, bool patient)
{
	for (uint32_t i = 0; i < s->xfers.n; i++) {
		const struct xfer *x = &s->xfers.all[i];

		if (x->state == XFER_OUT && (patient || x->deadline_ms != XFER_NEVER))
			return true;
	}
	return !store_all_synced(s);
}

void store_close(struct store *s)
{
	uint64_t until;

	if (!s)
		return;
	s->closing = true;
	until = store_now(s) + CLOSE_WAIT_MS;
	store_gets_fail(s, -SKVQ_ESTATE);
	do
		store_step(s, 20);
	while (still_busy(s, store_now(s) < until));
	if (s->flush_fn)
		s->flush_fn(s->flush_ctx, -SKVQ_ESTATE);
	destroy(s);
}

struct tier *store_tier(struct store *s)
{
	return &s->tier;
}

int store_event_fd(struct store *s)
{
	return s->io->ops->event_fd(s->io);
}

void store_pump(struct store *s)
{
	s->tier.touched = false;
	xfers_pump(&s->xfers);
	store_gets_pump(s);
	store_evict_pump(s);
	store_life_pump(s);
	store_scrub_pump(s);
	if (s->flush_fn && store_all_synced(s)) {
		tier_put_fn fn = s->flush_fn;

		s->flush_fn = NULL;
		fn(s->flush_ctx, store_all_safe(s) ? 0 : -SKVQ_EIO);
	}
	s->io->ops->kick(s->io);
}

int store_limit_check(const struct store *s, uint64_t capacity_bytes, struct why *why)
{
	struct store_options wanted = s->opt;
	int err;

	wanted.capacity_bytes = capacity_bytes;
	err = store_options_check(&wanted, why);
	if (err < 0)
		return err;
	if (store_files_max(&wanted) > s->segs.max)
		return why_fail(why, SKVQ_EINVAL,
				"capacity_bytes = %llu is more than at the start of the daemon",
				(unsigned long long)capacity_bytes);
	return 0;
}

int store_limit(struct store *s, uint64_t capacity_bytes, uint64_t write_bytes_per_day,
		struct why *why)
{
	int err = store_limit_check(s, capacity_bytes, why);

	if (err < 0)
		return err;
	s->opt.capacity_bytes = capacity_bytes;
	s->opt.write_bytes_per_day = write_bytes_per_day;
	budget_set(&s->budget, write_bytes_per_day, 2 * s->opt.record_bytes, store_now(s));
	store_pump(s);
	return 0;
}

uint32_t store_wait_ms(struct store *s)
{
	uint64_t now = store_now(s), first = xfers_deadline(&s->xfers);
	uint64_t gets = store_gets_deadline(s), life = store_life_deadline(s);

	if (gets < first)
		first = gets;
	if (life < first)
		first = life;
	/* Without room in the io, what waits for it goes out with what comes back: if anything is
	 * out. */
	if (s->xfers.n_queued && now + 1 < first)
		first = now + 1;
	if (first == XFER_NEVER)
		return UINT32_MAX;
	if (first <= now)
		return 1;
	return first - now < INT32_MAX ? (uint32_t)(first - now) : INT32_MAX;
}

void store_step(struct store *s, uint32_t timeout_ms)
{
	uint32_t due;

	s->io->ops->kick(s->io);
	due = store_wait_ms(s);
	s->io->ops->wait(s->io, due < timeout_ms ? due : timeout_ms);
	store_pump(s);
}

int store_flush(struct store *s, tier_put_fn fn, void *ctx)
{
	if (s->flush_fn)
		return -SKVQ_EBUSY;
	s->flush_fn = fn;
	s->flush_ctx = ctx;
	return 0;
}

uint64_t store_stat(struct store *s, enum store_stat stat)
{
	switch (stat) {
	case STORE_STAT_written_bytes:
		return s->xfers.written_bytes;
	case STORE_STAT_read_bytes:
		return s->xfers.read_bytes;
	case STORE_STAT_timeouts:
		return s->xfers.timeouts;
	case STORE_STAT_retries:
		return s->xfers.retries;
	case STORE_STAT_charged_bytes:
		return s->charged;
	case STORE_STAT_records:
		return s->segs.n;
	case STORE_STAT_transfers_lost:
		return s->xfers.n_lost;
	case STORE_STAT_transfers_out:
		return xfers_out(&s->xfers);
	default:
		return s->stat[stat];
	}
}

const char *store_stat_help(enum store_stat stat)
{
#define HELP_(name, help) help,
	static const char *const helps[] = {STORE_STATS(HELP_)};
#undef HELP_

	return helps[stat];
}

const char *store_stat_at(struct store *s, uint32_t i, uint64_t *ret_value)
{
#define NAME_(name, help) #name,
	static const char *const names[] = {STORE_STATS(NAME_)};
#undef NAME_

	if (i >= STORE_STAT_COUNT)
		return NULL;
	*ret_value = store_stat(s, (enum store_stat)i);
	return names[i];
}
