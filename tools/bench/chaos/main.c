/* SPDX-License-Identifier: Apache-2.0 */
/* chaos: argv in; rounds of faults; a report, and exit status 1 if anything went wrong. */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <jansson.h>

#include "common.h"
#include "round.h"

static const char help[] =
    "usage: chaos [options]\n\n"
    "A real skvqd on a small disk and little memory, client processes that check every byte of\n"
    "every page they have pinned, and faults: killed, stopped and restarted daemons and clients,\n"
    "damaged files, full disks, an io that fails. Rounds of a theme each, in turn.\n\n"
    "  --seed S       of everything that is drawn; default 1\n"
    "  --seconds T    default 60\n"
    "  --round T      seconds of a round; default 6\n"
    "  --clients N    default 16\n"
    "  --theme NAME   this one alone; 'list' names them\n"
    "  --themes N     each of them N times, however long that takes\n"
    "  --lie          one client in eight publishes other bytes than it should: wrong bytes must\n"
    "                 be found then\n"
    "  --faults TEXT  rates of skvqd-faults instead of the theme's: eio=100,flip=20 of 10,000\n"
    "  --folder DIR   where files go; default /tmp\n"
    "  --bin DIR      of skvqd and skvqd-faults; default where chaos is\n"
    "  --rss-mib N    bound of a daemon's anonymous memory; default 96\n"
    "  --json         one flat object: seed, seconds, operations and each kind of them,\n"
    "                 wrong_bytes, leaks, hangs, daemon_failures, client_failures, bad_answers,\n"
    "                 faults_injected and each kind as fault_*\n\n"
    "Exit status: 0; 1 for wrong bytes, leaks, hangs, failed daemons or clients, or answers that\n"
    "no good client should get; 2 wrong usage. The seed says what is drawn, the machine when.\n";

struct sums {
	uint64_t ops[OP_COUNT], operations, bytes_checked, wrong_bytes, wrong_pages, hangs,
	    bad_answers, refused, pages_matched, pages_published;
};

struct options {
	uint64_t seed, ms;
	uint64_t rounds; /* 0: as many as there is time for */
	int theme;       /* -1: all */
	bool json;
	struct round_config round;
};

static void add_up(const struct shared *shared, struct sums *ret)
{
	*ret = (struct sums){.operations = 0};
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		const struct slot *s = &shared->slots[i];

		for (int k = 0; k < OP_COUNT; k++) {
			ret->ops[k] += s->ops[k];
			ret->operations += s->ops[k];
		}
		ret->bytes_checked += s->bytes_checked;
		ret->wrong_bytes += s->wrong_bytes;
		ret->wrong_pages += s->wrong_pages;
		ret->hangs += s->hangs;
		ret->bad_answers += s->bad_answers;
		ret->refused += s->refused;
		ret->pages_matched += s->pages_matched;
		ret->pages_published += s->pages_published;
	}
}

static uint64_t faults_of(const struct totals *t)
{
	uint64_t n = 0;

	for (int i = 0; i < FAULT_COUNT; i++)
		n += t->faults[i];
	return n;
}

static bool failed(const struct sums *s, const struct totals *t)
{
	return s->wrong_bytes || s->hangs || s->bad_answers || t->hangs || t->leaks ||
	       t->daemon_failures || t->client_failures;
}

static const char *const op_names[] = {
#define NAME(name, text) #text,
    OPS(NAME)
#undef NAME
};
static const char *const fault_names[] = {
#define NAME(name) #name,
    FAULTS(NAME)
#undef NAME
};
static const char *const seen_names[] = {
#define NAME(name) #name,
    SEEN(NAME)
#undef NAME
};

static void put(json_t *o, const char *prefix, const char *name, uint64_t value)
{
	char key[96];

	(void)snprintf(key, sizeof(key), "%s%s", prefix, name);
	(void)json_object_set_new(o, key, json_integer((json_int_t)value));
}

static int report_json(const struct options *opt, const struct sums *s, const struct totals *t,
		       uint64_t rounds, double seconds)
{
	json_t *o = json_object();
	int r;

	put(o, "", "seed", opt->seed);
	(void)json_object_set_new(o, "seconds", json_real(seconds));
	put(o, "", "rounds", rounds);
	put(o, "", "clients", opt->round.clients);
	put(o, "", "operations", s->operations);
	for (int i = 0; i < OP_COUNT; i++)
		put(o, "", op_names[i], s->ops[i]);
	put(o, "", "pages_matched", s->pages_matched);
	put(o, "", "pages_published", s->pages_published);
	put(o, "", "bytes_checked", s->bytes_checked);
	put(o, "", "wrong_bytes", s->wrong_bytes);
	put(o, "", "wrong_pages", s->wrong_pages);
	put(o, "", "leaks", t->leaks);
	put(o, "", "hangs", s->hangs + t->hangs);
	put(o, "", "daemon_failures", t->daemon_failures);
	put(o, "", "client_failures", t->client_failures);
	put(o, "", "bad_answers", s->bad_answers);
	put(o, "", "refused", s->refused);
	put(o, "", "daemon_lives", t->lives);
	for (int i = 0; i < SEEN_COUNT; i++)
		put(o, "daemon_", seen_names[i], t->seen[i]);
	put(o, "", "faults_injected", faults_of(t));
	for (int i = 0; i < FAULT_COUNT; i++)
		put(o, "fault_", fault_names[i], t->faults[i]);
	r = o ? json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : -1;
	json_decref(o);
	(void)putchar('\n');
	return r;
}

static void report(const struct options *opt, const struct sums *s, const struct totals *t,
		   uint64_t rounds, double seconds)
{
	(void)printf("seed %" PRIu64 ": %" PRIu64 " rounds in %.1f s, %u clients, %" PRIu64
		     " daemons\n",
		     opt->seed, rounds, seconds, opt->round.clients, t->lives);
	(void)printf("%-24s %12" PRIu64 "\n", "operations", s->operations);
	for (int i = 0; i < OP_COUNT; i++)
		(void)printf("  %-22s %12" PRIu64 "\n", op_names[i], s->ops[i]);
	(void)printf("pages matched %" PRIu64 ", published %" PRIu64 "; %.1f GB checked; %" PRIu64
		     " refused calls\n",
		     s->pages_matched, s->pages_published, (double)s->bytes_checked / 1e9,
		     s->refused);
	(void)printf("of the daemons that could be asked:");
	for (int i = 0; i < SEEN_COUNT; i++)
		(void)printf(" %s=%" PRIu64, seen_names[i], t->seen[i]);
	(void)printf("\n%-24s %12" PRIu64 "\n", "faults injected", faults_of(t));
	for (int i = 0; i < FAULT_COUNT; i++)
		(void)printf("  %-22s %12" PRIu64 "\n", fault_names[i], t->faults[i]);
	(void)printf("wrong bytes %" PRIu64 " in %" PRIu64 " pages, leaks %" PRIu64
		     ", hangs %" PRIu64 ", failed daemons %" PRIu64 ", failed clients %" PRIu64
		     ", bad answers %" PRIu64 "\n",
		     s->wrong_bytes, s->wrong_pages, t->leaks, s->hangs + t->hangs,
		     t->daemon_failures, t->client_failures, s->bad_answers);
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		(void)close(fd);
	return ok;
}

/* A mount namespace of our own, in a user namespace if that takes one: what is mounted there is
 * seen by us and our children alone, and goes with us. */
static bool own_mounts(void)
{
	uid_t uid = getuid();
	gid_t gid = getgid();
	char text[64];

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		return false;
	(void)write_text("/proc/self/setgroups", "deny");
	(void)snprintf(text, sizeof(text), "0 %u 1", uid);
	if (!write_text("/proc/self/uid_map", text))
		return false;
	(void)snprintf(text, sizeof(text), "0 %u 1", gid);
	return write_text("/proc/self/gid_map", text) &&
	       mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

static void on_signal(int sig)
{
	(void)sig;
	interrupted = true;
}

static int run(struct options *opt)
{
	struct shared *shared =
	    mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct totals totals = {.lives = 0};
	uint64_t random = opt->seed, start = now_ms(), rounds = 0, before = 0;
	uint32_t theme = draw_below(&random, n_themes);
	struct sums sums = {.operations = 0};
	int err = 0;

	if (shared == MAP_FAILED || models_init() < 0) {
		fprintf(stderr, "chaos: no memory\n");
		return 1;
	}
	fprintf(stderr, "chaos: seed %" PRIu64 "\n", opt->seed);
	while (!err && !interrupted &&
	       (opt->rounds ? rounds < opt->rounds : now_ms() - start < opt->ms)) {
		uint32_t which = opt->theme >= 0 ? (uint32_t)opt->theme : theme++ % n_themes;

		err = round_run(&opt->round, which, draw(&random), shared, &totals);
		add_up(shared, &sums);
		rounds++;
		fprintf(stderr, "chaos: %6.1f s, round %" PRIu64 ", %s: %" PRIu64 " operations%s\n",
			(double)(now_ms() - start) / 1e3, rounds, theme_name(which),
			sums.operations - before, failed(&sums, &totals) ? " FAILED" : "");
		before = sums.operations;
	}
	if (opt->json)
		(void)report_json(opt, &sums, &totals, rounds, (double)(now_ms() - start) / 1e3);
	else
		report(opt, &sums, &totals, rounds, (double)(now_ms() - start) / 1e3);
	return err || failed(&sums, &totals);
}

static uint64_t number(const char *name, const char *text, uint64_t max)
{
	return bench_number("chaos", name, text, 1, max);
}

static int theme_number(const char *name)
{
	for (uint32_t i = 0; i < n_themes; i++)
		if (!strcmp(name, theme_name(i)))
			return (int)i;
	for (uint32_t i = 0; i < n_themes; i++)
		(void)printf("%s\n", theme_name(i));
	exit(strcmp(name, "list") ? 2 : 0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	    {"seed", required_argument, NULL, 's'},    {"seconds", required_argument, NULL, 't'},
	    {"round", required_argument, NULL, 'r'},   {"clients", required_argument, NULL, 'c'},
	    {"theme", required_argument, NULL, 'T'},   {"themes", required_argument, NULL, 'n'},
	    {"lie", no_argument, NULL, 'l'},           {"faults", required_argument, NULL, 'F'},
	    {"folder", required_argument, NULL, 'f'},  {"bin", required_argument, NULL, 'b'},
	    {"rss-mib", required_argument, NULL, 'm'}, {"json", no_argument, NULL, 'j'},
	    {"help", no_argument, NULL, 'h'},          {0}};
	struct options opt = {.seed = 1, .ms = 60000, .theme = -1};
	int c;

	opt.round = (struct round_config){.bin = bench_own_folder(),
					  .folder = "/tmp",
					  .clients = 16,
					  .ms = 6000,
					  .anon_bytes = 96ull << 20};
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 's':
			opt.seed = number("seed", optarg, INT64_MAX);
			break;
		case 't':
			opt.ms = number("seconds", optarg, 1000000) * 1000;
			break;
		case 'r':
			opt.round.ms = number("round", optarg, 1000000) * 1000;
			break;
		case 'c':
			opt.round.clients = (uint32_t)number("clients", optarg, CLIENTS_MAX - 4);
			break;
		case 'T':
			opt.theme = theme_number(optarg);
			break;
		case 'n':
			opt.rounds = number("themes", optarg, 1000000) * n_themes;
			break;
		case 'l':
			opt.round.lie = true;
			break;
		case 'F':
			if (strlen(optarg) > FAULTS_BYTES / 2) {
				(void)fputs("chaos: --faults is too long\n", stderr);
				return 2;
			}
			opt.round.faults = optarg;
			break;
		case 'f':
			opt.round.folder = optarg;
			break;
		case 'b':
			opt.round.bin = optarg;
			break;
		case 'm':
			opt.round.anon_bytes = number("rss-mib", optarg, 1u << 20) << 20;
			break;
		case 'j':
			opt.json = true;
			break;
		default:
			(void)fputs(help, c == 'h' ? stdout : stderr);
			return c == 'h' ? 0 : 2;
		}
	}
	if (optind < argc) {
		(void)fputs(help, stderr);
		return 2;
	}
	(void)signal(SIGINT, on_signal);
	(void)signal(SIGTERM, on_signal);
	opt.round.may_mount = own_mounts();
	if (!opt.round.may_mount)
		fprintf(stderr, "chaos: no mounts of its own here: no disk that is really full\n");
	return run(&opt);
}
