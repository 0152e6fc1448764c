/* SPDX-License-Identifier: Apache-2.0 */
#include "base/stats.h"

#include <stddef.h>

#include <skvq/error.h>

#define STATS_NAME_(name, help) #name,
#define STATS_HELP_(name, help) help,
static const char *const stat_names[] = {STATS_TABLE(STATS_NAME_)};
static const char *const stat_helps[] = {STATS_TABLE(STATS_HELP_)};

/* Every code of error.h; the plugin has the same table of its own, for it shares no code with us.
 */
#define CODES(X)                                                                                   \
	X(EINVAL, einval)                                                                          \
	X(ENOTSUP, enotsup)                                                                        \
	X(ESTATE, estate)                                                                          \
	X(EGEOMETRY, egeometry)                                                                    \
	X(EPROFILE, eprofile)                                                                      \
	X(EIDENTITY, eidentity)                                                                    \
	X(ERANGE, erange)                                                                          \
	X(EMISALIGNED, emisaligned)                                                                \
	X(ESTALE, estale)                                                                          \
	X(EFORKED, eforked)                                                                        \
	X(EPATH, epath)                                                                            \
	X(EIO, eio)                                                                                \
	X(ENOMEM, enomem)                                                                          \
	X(ENODAEMON, enodaemon)                                                                    \
	X(EPROTO, eproto)                                                                          \
	X(EVERSION, eversion)                                                                      \
	X(ECORRUPT, ecorrupt)                                                                      \
	X(EFD, efd)                                                                                \
	X(ESEALS, eseals)                                                                          \
	X(ESHORT, eshort)                                                                          \
	X(EINUSE, einuse)                                                                          \
	X(EPERM, eperm)                                                                            \
	X(ESYS, esys)                                                                              \
	X(EAGAIN, eagain)                                                                          \
	X(ETIMEOUT, etimeout)                                                                      \
	X(ENOSPC, enospc)                                                                          \
	X(EPINS, epins)                                                                            \
	X(ECONNS, econns)                                                                          \
	X(EFRAME, eframe)                                                                          \
	X(EBUSY, ebusy)                                                                            \
	X(ELIMIT, elimit)                                                                          \
	X(EFULL, efull)                                                                            \
	X(ETCONNS, etconns)                                                                        \
	X(ETPINS, etpins)                                                                          \
	X(ETRAM, etram)                                                                            \
	X(ENAMESPACES, enamespaces)                                                                \
	X(ESTAGINGS, estagings)                                                                    \
	X(EQUEUE, equeue)

static const struct {
	int code;
	const char *name;
	const char *counter;
} codes[] = {
#define CODE_ROW_(up, low) {SKVQ_##up, "SKVQ_" #up, "refused_" #low},
    CODES(CODE_ROW_)
#undef CODE_ROW_
};

#define N_CODES (sizeof(codes) / sizeof(codes[0]))

static const char *const histogram_names[] = {STATS_HISTOGRAMS(STATS_NAME_)};
static const char *const histogram_helps[] = {STATS_HISTOGRAMS(STATS_HELP_)};

void stats_record(struct stats *stats, enum stats_histogram_id id, uint64_t value)
{
	struct stats_histogram *h = &stats->histogram[id];
	/* The bits of value - 1: 2^i is the last of bucket i. */
	uint32_t bucket = value > 1 ? 64u - (uint32_t)__builtin_clzll(value - 1) : 0;

	h->n[bucket < STATS_BUCKETS ? bucket : STATS_BUCKETS - 1]++;
	h->sum += value;
}

const char *stats_histogram_name(enum stats_histogram_id id)
{
	return histogram_names[id];
}

const char *stats_histogram_help(enum stats_histogram_id id)
{
	return histogram_helps[id];
}

const char *stats_help(uint32_t i)
{
	return i < STAT_COUNT ? stat_helps[i] : "requests answered with that error";
}

void stats_refused(struct stats *stats, int code)
{
	uint32_t at = (uint32_t)(code < 0 ? -code : code);

	stats->n[STAT_requests_refused]++;
	if (at < STATS_CODES)
		stats->refused[at]++;
}

const char *stats_at(const struct stats *stats, uint32_t i, uint64_t *ret_value)
{
	if (i < STAT_COUNT) {
		*ret_value = stats->n[i];
		return stat_names[i];
	}
	i -= STAT_COUNT;
	if (i >= N_CODES)
		return NULL;
	*ret_value = stats->refused[codes[i].code];
	return codes[i].counter;
}

const char *err_name(int code)
{
	int want = code < 0 ? -code : code;

	if (!want)
		return "SKVQ_OK";
	for (size_t i = 0; i < N_CODES; i++) {
		if (codes[i].code == want)
			return codes[i].name;
	}
	return "unknown";
}
