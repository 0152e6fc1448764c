/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COUNT_MAX   10000000u
#define PAYLOAD_MAX 65536u


static double now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* The nearest-rank percentile of n > 0 sorted values. */
static double percentile(const double *sorted, size_t n, size_t percent)
{
	return sorted[(n * percent + 99) / 100 - 1];
}

static int report(const struct ctl *ctl, const struct skvq_client *c, const double *rtt, size_t n,
		  uint64_t payload_bytes, double total_us)
{
	const struct skvq_client_hello *hello = skvq_client_hello(c);
	double p50 = percentile(rtt, n, 50), p99 = percentile(rtt, n, 99);
	char boot_id[17];
	snprintf(boot_id, sizeof(boot_id), "%016" PRIx64, hello->boot_id);
	if (ctl->json)
		return ctl_print_json(json_pack(
		    "{s:o, s:o, s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f}", "socket",
		    ctl_json_text(ctl->socket), "daemon_version", ctl_json_text(hello->version),
		    "boot_id", boot_id, "count", (json_int_t)n, "payload_bytes",
		    (json_int_t)payload_bytes, "rtt_min_us", rtt[0], "rtt_p50_us", p50,
		    "rtt_p99_us", p99, "rtt_max_us", rtt[n - 1], "seconds_total", total_us / 1e6));
	char version[sizeof(hello->version)];
	memcpy(version, hello->version, sizeof(version));
	printf("skvqd %s on '%s', boot %s: ", ctl_clean(version), ctl->socket, boot_id);
	if (n == 1)
		printf("answered in %.1f us\n", rtt[0]);
	else
		printf("%zu requests of %" PRIu64
		       " bytes\nround trip in us: min %.1f, p50 %.1f, p99 %.1f, max %.1f\n",
		       n, payload_bytes, rtt[0], p50, p99, rtt[n - 1]);
	return CTL_OK;
}

#define OPT_SIZE CTL_LONG_ONLY

/* Into rtt, sorted, and the report. */
static int ping(const struct ctl *ctl, struct skvq_client *c, size_t count, size_t size)
{
	uint8_t *payload = calloc(1, size ? size : 1);
	double *rtt = calloc(count, sizeof(*rtt));
	int result = CTL_FAILED;

	if (!payload || !rtt) {
		fputs("skvqctl: no memory for so many requests\n", stderr);
		goto done;
	}
	double start = now_us();
	for (size_t i = 0; i < count; i++) {
		double t = now_us();
		int err = skvq_client_ping(c, payload, size);

		if (err < 0) {
			result = ctl_failed(ctl, c, "answer a ping", err);
			goto done;
		}
		rtt[i] = now_us() - t;
	}
	double total = now_us() - start;
	qsort(rtt, count, sizeof(*rtt), by_value);
	result = report(ctl, c, rtt, count, size, total);
done:
	free(rtt);
	free(payload);
	return result;
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	uint64_t count = 1, size = 32;
	struct skvq_client *c;
	int opt, result;

	while ((opt = ctl_getopt(ctl, &verb_ping, argc, argv)) > 0) {
		if (opt == 'c' ? !ctl_number("--count", optarg, 1, COUNT_MAX, &count)
			       : !ctl_number("--size", optarg, 0, PAYLOAD_MAX, &size))
			return CTL_USAGE;
	}
	if (opt < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	result = ping(ctl, c, count, size);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'c', "count", "N", "how many; default 1"},
    {OPT_SIZE, "size", "BYTES", "payload, echoed by the daemon; default 32, at most 65536"},
};

const struct ctl_verb verb_ping = {
    .name = "ping",
    .summary = "measure the round trip of a small request",
    .about = "Sends requests one after the other and measures their round trips.",
    CTL_OPTS(opts),
    .json = "socket, daemon_version, boot_id, count, payload_bytes, rtt_min_us, rtt_p50_us, "
	    "rtt_p99_us, rtt_max_us, seconds_total.",
    .run = run,
};
