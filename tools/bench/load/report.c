/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "load.h"

static double small_quantile(const struct slot *s, uint32_t from, uint32_t to, double q)
{
	static struct histogram sum;

	memset(&sum, 0, sizeof(sum));
	for (uint32_t w = from; w < to; w++)
		histogram_sum(&sum, &s->small[w]);
	return histogram_quantile(&sum, q);
}

static double hit_rate(const struct phase *p)
{
	return p->sum.tokens_asked ? (double)p->sum.tokens_hit / (double)p->sum.tokens_asked : 0;
}

/* Of all requests of engines, a second. */
static double requests_per_s(const struct phase *p)
{
	uint64_t n = 0;

	for (uint32_t k = 0; k < KIND_COUNT; k++) {
		if (k != KIND_ECHO)
			n += histogram_count(&p->sum.kinds[k]);
	}
	return p->seconds > 0 ? (double)n / p->seconds : 0;
}

static double publish_gb_s(const struct phase *p)
{
	return p->seconds > 0 ? (double)p->sum.bytes_late / (p->seconds / 2) / 1e9 : 0;
}

static int64_t growth(uint64_t first, uint64_t last)
{
	return (int64_t)last - (int64_t)first;
}

/* ---- for people ---- */

static void print_phase(const char *name, const struct phase *p)
{
	(void)printf("%s, %.1f s: %" PRIu64
		     " questions answered, %.0f requests a second, %.1f %% of "
		     "a processor\n",
		     name, p->seconds, p->sum.served, requests_per_s(p), p->cpu_percent);
	for (uint32_t k = 0; k < KIND_COUNT; k++) {
		const struct histogram *h = &p->sum.kinds[k];

		if (histogram_count(h))
			(void)printf("  %-12s %9" PRIu64 " times, p50 %8.1f us, p99 %9.1f us, "
				     "p99.9 %9.1f us\n",
				     kind_names[k], histogram_count(h), histogram_quantile(h, .5),
				     histogram_quantile(h, .99), histogram_quantile(h, .999));
	}
	(void)printf("  %-12s p50 %.1f us, p99 %.1f us\n", "small",
		     small_quantile(&p->sum, 0, WINDOWS, .5),
		     small_quantile(&p->sum, 0, WINDOWS, .99));
	(void)printf("  %.1f %% of %" PRIu64 " tokens found; %" PRIu64 " pages published, %" PRIu64
		     " of them there before; %" PRIu64 " refused\n",
		     100 * hit_rate(p), p->sum.tokens_asked, p->sum.pages_published,
		     p->sum.pages_existed, p->sum.refused);
	(void)printf("  %" PRIu64 " pages looked at, %" PRIu64 " byte by byte: %" PRIu64
		     " wrong bytes\n",
		     p->sum.pages_checked, p->sum.pages_compared, p->sum.wrong_bytes);
}

void report_text(const struct results *r)
{
	const struct phase *b = &r->busy;

	(void)printf("%u engines, traffic '%s', seed %" PRIu64 ", pages of %u bytes, %" PRIu64
		     " MiB for all\n\n",
		     r->load->clients, r->scenario, r->load->seed, r->load->model.layout.base_bytes,
		     r->ram_bytes >> 20);
	(void)printf("idle, empty: %.2f %% of a processor, %.1f MiB besides the arenas\n",
		     r->idle_first.cpu_percent, (double)r->idle_first.last.rss_bytes / 0x1p20);
	(void)printf("idle, full:  %.2f %% of a processor, %.1f MiB besides the arenas\n",
		     r->idle_last.cpu_percent, (double)r->idle_last.last.rss_bytes / 0x1p20);
	(void)printf("a match of 512 resident pages alone: p50 %.0f us, p99 %.0f us\n",
		     histogram_quantile(&r->attach.sum.kinds[KIND_MATCH_512], .5),
		     histogram_quantile(&r->attach.sum.kinds[KIND_MATCH_512], .99));
	(void)printf("four that publish: %.2f GB/s, %.0f %% of a processor\n\n",
		     publish_gb_s(&r->publish), r->publish.cpu_percent);
	(void)printf("an engine computes %.0f tokens a second\n", r->load->pace);
	print_phase("at their pace", b);
	(void)printf("  small requests' p50 in ten parts of the time:");
	for (uint32_t w = 0; w < WINDOWS; w++)
		(void)printf(" %.1f", small_quantile(&b->sum, w, w + 1, .5));
	(void)printf("\n  the daemon besides its arenas: %.2f MiB, %+.2f MiB a minute; %u "
		     "descriptors, %+" PRId64 "\n",
		     (double)b->last.rss_bytes / 0x1p20, b->rss_slope / 0x1p20, b->last.fds,
		     growth(b->first.fds, b->last.fds));
	print_phase("without a pause", &r->saturated);
	(void)printf("\nthe same questions at the same engines (at their pace)\n");
	(void)printf("  %-18s %5.1f %% found, %10" PRIu64 " tokens computed, %" PRIu64
		     " MiB used\n",
		     "skvqd", 100 * hit_rate(b), b->sum.tokens_asked - b->sum.tokens_hit,
		     b->arena_bytes >> 20);
	for (uint32_t i = 0; i < PEER_COUNT; i++)
		(void)printf("  %-18s %5.1f %% found, %10" PRIu64 " tokens computed, %" PRIu64
			     " pages of %" PRIu64 " bytes in a cache\n",
			     r->peers[i].name, 100 * r->peers[i].hit_rate,
			     r->peers[i].tokens_recomputed, r->peers[i].pages,
			     r->peers[i].page_bytes);
}

/* ---- for programs ---- */

static void put(json_t *o, const char *prefix, const char *name, json_t *value)
{
	char key[80];

	(void)snprintf(key, sizeof(key), "%s%s", prefix, name);
	(void)json_object_set_new(o, key, value);
}

static void put_phase(json_t *o, const char *prefix, const struct phase *p)
{
	const struct slot *s = &p->sum;

	put(o, prefix, "p50_us", json_real(small_quantile(s, 0, WINDOWS, .5)));
	put(o, prefix, "p99_us", json_real(small_quantile(s, 0, WINDOWS, .99)));
	for (uint32_t k = 0; k < KIND_COUNT; k++) {
		char name[48];

		(void)snprintf(name, sizeof(name), "%s_n", kind_names[k]);
		put(o, prefix, name, json_integer((json_int_t)histogram_count(&s->kinds[k])));
		(void)snprintf(name, sizeof(name), "%s_p50_us", kind_names[k]);
		put(o, prefix, name, json_real(histogram_quantile(&s->kinds[k], .5)));
		(void)snprintf(name, sizeof(name), "%s_p99_us", kind_names[k]);
		put(o, prefix, name, json_real(histogram_quantile(&s->kinds[k], .99)));
	}
	put(o, prefix, "hit_rate_tokens", json_real(hit_rate(p)));
	put(o, prefix, "tokens_asked", json_integer((json_int_t)s->tokens_asked));
	put(o, prefix, "tokens_recomputed",
	    json_integer((json_int_t)(s->tokens_asked - s->tokens_hit)));
	put(o, prefix, "served", json_integer((json_int_t)s->served));
	put(o, prefix, "requests_per_s", json_real(requests_per_s(p)));
	put(o, prefix, "pages_published", json_integer((json_int_t)s->pages_published));
	put(o, prefix, "refused", json_integer((json_int_t)s->refused));
	put(o, prefix, "cpu_percent", json_real(p->cpu_percent));
	put(o, prefix, "seconds", json_real(p->seconds));
}

static uint64_t wrong_bytes(const struct results *r)
{
	return r->busy.sum.wrong_bytes + r->saturated.sum.wrong_bytes;
}

void report_json(const struct results *r)
{
	const struct phase *b = &r->busy;
	json_t *o = json_object(), *windows = json_array();

	put(o, "", "scenario", json_string(r->scenario));
	put(o, "", "clients", json_integer(r->load->clients));
	put(o, "", "seed", json_integer((json_int_t)r->load->seed));
	put(o, "", "tokens_per_s_engine", json_real(r->load->pace));
	put(o, "", "page_bytes", json_integer(r->load->model.layout.base_bytes));
	put(o, "", "ram_bytes", json_integer((json_int_t)r->ram_bytes));
	put_phase(o, "", b);
	put_phase(o, "saturated_", &r->saturated);
	put(o, "", "attach512_p50_us",
	    json_real(histogram_quantile(&r->attach.sum.kinds[KIND_MATCH_512], .5)));
	put(o, "", "attach512_p99_us",
	    json_real(histogram_quantile(&r->attach.sum.kinds[KIND_MATCH_512], .99)));
	put(o, "", "publish_gb_s", json_real(publish_gb_s(&r->publish)));
	put(o, "", "publish_cpu_percent", json_real(r->publish.cpu_percent));
	put(o, "", "rss_growth_bytes", json_integer(growth(b->first.rss_bytes, b->last.rss_bytes)));
	put(o, "", "rss_bytes_per_minute", json_real(b->rss_slope));
	put(o, "", "fd_growth", json_integer(growth(b->first.fds, b->last.fds)));
	put(o, "", "fds", json_integer(b->last.fds));
	put(o, "", "arena_bytes", json_integer((json_int_t)b->arena_bytes));
	put(o, "", "idle_cpu_percent", json_real(r->idle_last.cpu_percent));
	put(o, "", "idle_rss_bytes", json_integer((json_int_t)r->idle_last.last.rss_bytes));
	put(o, "", "idle_empty_cpu_percent", json_real(r->idle_first.cpu_percent));
	put(o, "", "idle_empty_rss_bytes", json_integer((json_int_t)r->idle_first.last.rss_bytes));
	put(o, "", "pages_compared",
	    json_integer((json_int_t)(b->sum.pages_compared + r->saturated.sum.pages_compared)));
	put(o, "", "wrong_bytes", json_integer((json_int_t)wrong_bytes(r)));
	for (uint32_t w = 0; w < WINDOWS; w++)
		(void)json_array_append_new(windows,
					    json_real(small_quantile(&b->sum, w, w + 1, .5)));
	put(o, "", "p50_us_over_time", windows);
	for (uint32_t i = 0; i < PEER_COUNT; i++) {
		const struct peer *p = &r->peers[i];

		put(o, p->name, "_hit_rate_tokens", json_real(p->hit_rate));
		put(o, p->name, "_tokens_recomputed",
		    json_integer((json_int_t)p->tokens_recomputed));
		put(o, p->name, "_pages", json_integer((json_int_t)p->pages));
	}
	(void)json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	(void)putchar('\n');
	json_decref(o);
}
