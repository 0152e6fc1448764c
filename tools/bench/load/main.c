/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "load.h"
#include "traffic.h"

#define PUBLISHERS 4u

static const char help[] =
    "usage: bench-load [options]\n"
    "Starts skvqd, the one beside it, in a folder of its own and puts it under the load of many\n"
    "engines, each a process: chats that grow turn by turn, shared system prompts, documents in\n"
    "front of questions. Reports latencies, throughput, memory, and the part of the tokens that "
    "was\n"
    "found, beside caches that every engine has for itself.\n"
    "  --clients N    engines, 1 to 64; default 16\n"
    "  --seconds N    of all together; default 60\n"
    "  --scenario S   traffic of bench-evict: serve (all kinds), mix, chat, talk, rag, agent, "
    "scan;\n"
    "                 default serve\n"
    "  --seed N       the same seed is the same traffic; default 1\n"
    "  --pace N       tokens a second that an engine computes; default 4000\n"
    "  --ram-mib N    for pages, of all engines together; default 3072\n"
    "  --requests N   of the traffic that is made up, more than can be served; default 20000\n"
    "  --layers N --kv-heads N --head-dim N   geometry; default 30, 3, 64 (SmolLM2-135M)\n"
    "  --profile P    default k4v2\n"
    "  --json         one object: p50_us and p99_us of small requests, attach512_p50_us,\n"
    "                 publish_gb_s, hit_rate_tokens, rss_growth_bytes, fd_growth, "
    "idle_cpu_percent,\n"
    "                 idle_rss_bytes and many more; docs/measurements.md says what they are\n";

struct options {
	const char *scenario, *profile;
	uint32_t clients, seconds, pace, ram_mib, requests;
	uint64_t seed;
	struct skvq_geometry geo;
	bool json;
};

/* ---- the run ---- */

static double least(double a, double b)
{
	return a < b ? a : b;
}

/* Traffic of a seed. */
static int make_traffic(struct load *load, const struct options *o, uint64_t seed)
{
	trace_free(&load->trace);
	load->seed = seed;
	if (trace_make(o->scenario, seed, o->requests, true, &load->trace) == 0)
		return 0;
	fprintf(stderr, "bench-load: no memory for the traffic\n");
	return -1;
}

/* Both ends of the run: nobody is there. */
static bool idle(const struct load *load, pid_t daemon, double seconds, struct phase *ret)
{
	return phase_run(load, daemon, client_engine, 0, false, seconds, ret);
}

static int run_phases(const struct options *o, struct load *load, pid_t daemon, struct results *r)
{
	double all = o->seconds, quiet = least(3, all / 15), attach = least(3, all / 15);
	double publish = least(8, all / 8), saturated = least(12, all / 5);
	double busy = all - 2 * quiet - attach - publish - saturated;
	struct load other = *load;
	bool ok;

	other.seed = mix(o->seed);
	other.trace = (struct trace){0};
	ok = idle(load, daemon, quiet, &r->idle_first) &&
	     phase_run(&other, daemon, client_long_prefix, 1, false, attach, &r->attach) &&
	     phase_run(&other, daemon, client_publisher, PUBLISHERS, false, publish, &r->publish) &&
	     make_traffic(load, o, o->seed) == 0 &&
	     phase_run(load, daemon, client_engine, load->clients, true, busy, &r->busy) &&
	     peers_run(load, &r->busy, r->ram_bytes, r->peers) == 0;
	other.pace = 0;
	ok = ok && make_traffic(&other, o, o->seed + 1) == 0 &&
	     phase_run(&other, daemon, client_engine, load->clients, true, saturated,
		       &r->saturated) &&
	     idle(load, daemon, quiet, &r->idle_last);
	trace_free(&other.trace);
	return ok ? 0 : -1;
}

static uint32_t failures(const struct results *r)
{
	return r->attach.failed + r->publish.failed + r->busy.failed + r->saturated.failed;
}

static int run(const struct options *o, struct load *load)
{
	static struct results results; /* large */
	char folder[] = "/tmp/skvq-load.XXXXXX", socket[64], log[64];
	struct results *r = &results;
	pid_t daemon;
	int status = -1;

	if (!mkdtemp(folder)) {
		perror("bench-load: a folder in /tmp");
		return -1;
	}
	(void)snprintf(socket, sizeof(socket), "%s/s", folder);
	(void)snprintf(log, sizeof(log), "%s/log", folder);
	load->socket = socket;
	*r = (struct results){
	    .load = load, .scenario = o->scenario, .ram_bytes = (uint64_t)o->ram_mib << 20};
	daemon = daemon_start(bench_own_folder(), folder, socket, r->ram_bytes);
	if (daemon > 0) {
		status = run_phases(o, load, daemon, r);
		if (!daemon_stop(daemon)) {
			fprintf(stderr, "bench-load: skvqd did not end as it should\n");
			status = -1;
		}
	}
	if (!status)
		(o->json ? report_json : report_text)(r);
	if (failures(r) || r->busy.sum.wrong_bytes || r->saturated.sum.wrong_bytes) {
		fprintf(stderr, "bench-load: wrong bytes, or clients that failed\n");
		status = -1;
	}
	(void)unlink(log);
	(void)unlink(socket);
	(void)rmdir(folder);
	return status;
}

/* ---- command line ---- */

static const char *scenario(const char *name)
{
	for (uint32_t i = 0; i < trace_names_n; i++) {
		if (!strcmp(trace_names[i], name))
			return trace_names[i];
	}
	fprintf(stderr, "bench-load: there is no scenario '%s'\n", name);
	exit(2);
}

static uint32_t number(const char *name, uint32_t least_value, uint32_t most)
{
	return (uint32_t)bench_number("bench-load", name, optarg, least_value, most);
}

static void parse(struct options *o, int argc, char **argv)
{
	static const struct option options[] = {
	    {"clients", required_argument, NULL, 'c'},  {"seconds", required_argument, NULL, 't'},
	    {"scenario", required_argument, NULL, 'n'}, {"seed", required_argument, NULL, 's'},
	    {"pace", required_argument, NULL, 'r'},     {"ram-mib", required_argument, NULL, 'm'},
	    {"requests", required_argument, NULL, 'q'}, {"layers", required_argument, NULL, 'l'},
	    {"kv-heads", required_argument, NULL, 'k'}, {"head-dim", required_argument, NULL, 'd'},
	    {"profile", required_argument, NULL, 'p'},  {"json", no_argument, NULL, 'j'},
	    {"help", no_argument, NULL, 'h'},           {0}};
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 'c':
			o->clients = number("clients", 1, CLIENTS_MAX);
			break;
		case 't':
			o->seconds = number("seconds", 3, 3600);
			break;
		case 'n':
			o->scenario = scenario(optarg);
			break;
		case 's':
			o->seed = number("seed", 0, UINT32_MAX - 1);
			break;
		case 'r':
			o->pace = number("pace", 1, 10000000);
			break;
		case 'm':
			o->ram_mib = number("ram-mib", 16, 1 << 20);
			break;
		case 'q':
			o->requests = number("requests", 100, 200000);
			break;
		case 'l':
			o->geo.n_layer = number("layers", 1, SKVQ_LAYERS_MAX);
			break;
		case 'k':
			o->geo.n_kv_heads = number("kv-heads", 1, SKVQ_KV_HEADS_MAX);
			break;
		case 'd':
			o->geo.head_dim_k = o->geo.head_dim_v =
			    number("head-dim", 16, SKVQ_HEAD_DIM_MAX);
			break;
		case 'p':
			o->profile = optarg;
			break;
		case 'j':
			o->json = true;
			break;
		default:
			(void)fputs(help, opt == 'h' ? stdout : stderr);
			exit(opt == 'h' ? 0 : 2);
		}
	}
	if (optind < argc) {
		(void)fputs(help, stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	static const uint8_t digest[32] = "bench-load";
	static struct load load; /* large */
	struct options o = {.scenario = "serve",
			    .profile = "k4v2",
			    .clients = 16,
			    .seconds = 60,
			    .pace = 4000,
			    .ram_mib = 3072,
			    .requests = 20000,
			    .seed = 1,
			    .geo = {30, 3, 64, 64, 5}};
	int r;

	parse(&o, argc, argv);
	r = made_up_model_init(&load.model, &o.geo, o.profile, "bench-load", digest);
	if (r < 0) {
		fprintf(stderr, "bench-load: profile '%s' with this geometry: %s\n", o.profile,
			skvq_err_name(r));
		return 2;
	}
	load.clients = o.clients;
	load.seed = o.seed;
	load.pace = o.pace;
	r = run(&o, &load);
	trace_free(&load.trace);
	return r < 0 ? 1 : 0;
}
