/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq-bench-publish: how fast skvqd takes in pages. Pages of made-up codes, correct in form, are
 * published over one connection in several chains at once; encoding is not part of the figure.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>

#include <jansson.h>

#include <skvq/client.h>
#include <skvq/layout.h>

#include "common.h"
#include "made_up.h"

#define CHAINS_MAX 64u
#define TIMEOUT_MS 10000u

static const char help[] =
    "usage: skvq-bench-publish --socket PATH [options]\n\n"
    "  --pages N      pages to publish; default 1024\n"
    "  --run N        consecutive pages in one request; default 8\n"
    "  --chains N     token sequences published side by side, one request of each in flight;\n"
    "                 default 4\n"
    "  --layers N --kv-heads N --head-dim N   geometry; default 30, 3, 64 (SmolLM2-135M)\n"
    "  --profile P    default k2v1.5\n"
    "  --json         one flat object: pages, page_bytes, bytes_per_token, run_pages, chains,\n"
    "                 profile, seconds, pages_per_s, mb_per_s, tokens_per_s, request_p50_us,\n"
    "                 request_p99_us\n";

struct chain {
	int32_t *tokens;
	uint8_t *staging; /* run pages, our mapping of the memfd                         */
	uint64_t offset;  /* of the same in the memfd                                    */
	uint64_t request; /* in flight; 0: none                                          */
	double sent_us;
	uint32_t position; /* of the next page                                           */
	struct skvq_page_ref last;
	struct skvq_page_ref drop[SKVQ_CLIENT_RUN_MAX + 1]; /* pins of ours to give back */
	uint32_t n_drop;
};

struct bench {
	struct skvq_client *client;
	struct made_up_model model;
	struct skvq_client_ns ns;
	uint32_t staging, run, n_chains;
	uint64_t pages, sent, stored, existed, n_requests;
	uint64_t random;
	double *request_us;
	const char *failed;
	char detail[SKVQ_CLIENT_WHY_BYTES];
	struct chain chains[CHAINS_MAX];
};

static int open_namespace(struct bench *b)
{
	int arena = -1;
	int r = skvq_client_namespace_open(b->client, &b->model.identity, &b->ns, &arena);

	if (r < 0)
		return r;
	close(arena);
	return b->ns.slot_bytes == b->model.layout.slot_bytes ? 0 : -SKVQ_EPROTO;
}

static int open_staging(struct bench *b)
{
	uint64_t chain_bytes = b->run * b->model.layout.slot_bytes,
		 bytes = b->n_chains * chain_bytes;
	int fd = memfd_create("skvq-bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
		return -SKVQ_ESYS;
	uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -SKVQ_ENOMEM;
	for (uint32_t i = 0; i < b->n_chains; i++) {
		struct chain *c = &b->chains[i];
		c->offset = i * chain_bytes;
		c->staging = map + c->offset;
		c->tokens = calloc((size_t)b->run * SKVQ_PAGE_TOKENS, sizeof(int32_t));
		if (!c->tokens)
			return -SKVQ_ENOMEM;
		for (uint32_t p = 0; p < b->run; p++)
			made_up_fill(&b->model.layout, SKVQ_PAGE_TOKENS, made_up_random(&b->random),
				     c->staging + p * b->model.layout.slot_bytes);
	}
	int r = skvq_client_staging_add(b->client, fd, &b->staging);
	close(fd);
	return r;
}

/* The next request of a chain. The tokens and header of its pages are new each time, the codes
 * are not: the daemon does the same work for them. */
static int send_run(struct bench *b, struct chain *c)
{
	uint64_t left = b->pages - b->sent;
	uint32_t n = left < b->run ? (uint32_t)left : b->run;
	for (uint32_t i = 0; i < n * SKVQ_PAGE_TOKENS; i++)
		c->tokens[i] = (int32_t)(made_up_random(&b->random) % 49152);
	for (uint32_t p = 0; p < n; p++) {
		uint8_t *page = c->staging + p * b->model.layout.slot_bytes;
		skvq_page_init(&b->model.layout, c->position + p * SKVQ_PAGE_TOKENS, page);
		memcpy(page + b->model.layout.tokens_offset, c->tokens + p * SKVQ_PAGE_TOKENS,
		       SKVQ_PAGE_TOKENS * sizeof(int32_t));
	}
	c->sent_us = bench_now_us();
	int r = skvq_client_publish(b->client, b->ns.ns, c->last, c->position, c->tokens, n, NULL,
				    b->staging, c->offset, &c->request);
	if (r < 0)
		return r;
	c->position += n * SKVQ_PAGE_TOKENS;
	b->sent += n;
	return 0;
}

static void published(void *user, uint64_t id, int err, const char *detail,
		      const struct skvq_page_ref *pages, size_t n_pages, uint32_t n_existed)
{
	struct bench *b = user;
	double now = bench_now_us();
	for (uint32_t i = 0; i < b->n_chains; i++) {
		struct chain *c = &b->chains[i];
		if (c->request != id)
			continue;
		c->request = 0;
		b->request_us[b->n_requests++] = now - c->sent_us;
		b->stored += n_pages;
		b->existed += n_existed;
		if (err) {
			b->failed = skvq_err_name(err);
			snprintf(b->detail, sizeof(b->detail), "%s", detail ? detail : "");
			return;
		}
		/* Only the page the next run hangs on stays pinned. */
		if (c->last.generation)
			c->drop[c->n_drop++] = c->last;
		for (size_t p = 0; p + 1 < n_pages; p++)
			c->drop[c->n_drop++] = pages[p];
		if (n_pages)
			c->last = pages[n_pages - 1];
	}
}

static int publish_all(struct bench *b)
{
	bool busy = true;
	while (busy) {
		busy = false;
		for (uint32_t i = 0; i < b->n_chains; i++) {
			struct chain *c = &b->chains[i];
			int r = 0;
			if (c->n_drop)
				r = skvq_client_unpin(b->client, b->ns.ns, c->drop, c->n_drop);
			c->n_drop = 0;
			if (r >= 0 && !c->request && b->sent < b->pages)
				r = send_run(b, c);
			if (r < 0 && r != -SKVQ_EAGAIN)
				return r;
			busy |= c->request != 0 || r == -SKVQ_EAGAIN;
		}
		int r = busy ? skvq_client_poll(b->client, TIMEOUT_MS) : 0;
		if (r < 0)
			return r;
		if (b->failed)
			return -SKVQ_EIO;
	}
	return 0;
}

static int report(const struct bench *b, const char *profile, double seconds, bool json)
{
	double pages = (double)b->stored / seconds;
	double mb = pages * b->model.layout.base_bytes / 1e6;
	double token = (double)b->model.layout.base_bytes / SKVQ_PAGE_TOKENS;
	bench_sort(b->request_us, b->n_requests);
	double p50 = b->request_us[(b->n_requests * 50 + 99) / 100 - 1];
	double p99 = b->request_us[(b->n_requests * 99 + 99) / 100 - 1];
	if (!json) {
		printf("%" PRIu64 " pages of %u bytes (%s, %.0f bytes a token), %u a request, %u "
		       "chains\n%.0f pages/s, %.0f MB/s, %.0f tokens/s; a request takes p50 %.0f "
		       "us, p99 %.0f us\n",
		       b->stored, b->model.layout.base_bytes, profile, token, b->run, b->n_chains,
		       pages, mb, pages * SKVQ_PAGE_TOKENS, p50, p99);
		return 0;
	}
	json_t *o =
	    json_pack("{s:I, s:I, s:f, s:I, s:I, s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "pages",
		      (json_int_t)b->stored, "page_bytes", (json_int_t)b->model.layout.base_bytes,
		      "bytes_per_token", token, "run_pages", (json_int_t)b->run, "chains",
		      (json_int_t)b->n_chains, "profile", profile, "seconds", seconds,
		      "pages_per_s", pages, "mb_per_s", mb, "tokens_per_s",
		      pages * SKVQ_PAGE_TOKENS, "request_p50_us", p50, "request_p99_us", p99);
	int r = o ? json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : -1;
	json_decref(o);
	putchar('\n');
	return r;
}

static uint32_t number(const char *name, const char *text, uint32_t max)
{
	return (uint32_t)bench_number("skvq-bench-publish", name, text, 1, max);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
						{"pages", required_argument, NULL, 'n'},
						{"run", required_argument, NULL, 'r'},
						{"chains", required_argument, NULL, 'c'},
						{"layers", required_argument, NULL, 'l'},
						{"kv-heads", required_argument, NULL, 'k'},
						{"head-dim", required_argument, NULL, 'd'},
						{"profile", required_argument, NULL, 'p'},
						{"json", no_argument, NULL, 'j'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	static struct bench bench; /* large */
	struct bench *b = &bench;
	struct skvq_geometry geo = {30, 3, 64, 64, 5};
	const char *socket = NULL, *profile_name = "k2v1.5";
	bool json = false;
	int opt;

	b->pages = 1024;
	b->run = 8;
	b->n_chains = 4;
	while ((opt = getopt_long(argc, argv, "hs:", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			socket = optarg;
			break;
		case 'n':
			b->pages = number("pages", optarg, 1u << 24);
			break;
		case 'r':
			b->run = number("run", optarg, SKVQ_CLIENT_RUN_MAX);
			break;
		case 'c':
			b->n_chains = number("chains", optarg, CHAINS_MAX);
			break;
		case 'l':
			geo.n_layer = number("layers", optarg, SKVQ_LAYERS_MAX);
			break;
		case 'k':
			geo.n_kv_heads = number("kv-heads", optarg, SKVQ_KV_HEADS_MAX);
			break;
		case 'd':
			geo.head_dim_k = geo.head_dim_v =
			    number("head-dim", optarg, SKVQ_HEAD_DIM_MAX);
			break;
		case 'p':
			profile_name = optarg;
			break;
		case 'j':
			json = true;
			break;
		default:
			fputs(help, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (!socket || optind < argc) {
		fputs(help, stderr);
		return 2;
	}

	uint8_t digest[32]; /* a namespace of our own */
	b->random = (uint64_t)bench_now_us() * 2654435761u + (uint64_t)getpid() + 1;
	for (size_t i = 0; i < sizeof(digest); i++)
		digest[i] = (uint8_t)made_up_random(&b->random);
	int r = made_up_model_init(&b->model, &geo, profile_name, "skvq-bench-publish", digest);
	if (r < 0) {
		fprintf(stderr, "skvq-bench-publish: profile '%s' with this geometry: %s\n",
			profile_name, skvq_err_name(r));
		return 2;
	}
	char why[SKVQ_CLIENT_WHY_BYTES] = "";
	r = skvq_client_connect(socket, "skvq-bench-publish", TIMEOUT_MS, &b->client, why);
	if (r < 0) {
		fprintf(stderr, "skvq-bench-publish: no daemon answers on '%s': %s\n", socket, why);
		return 1;
	}
	skvq_client_on_published(b->client, published, b);
	b->request_us = calloc(b->pages, sizeof(double));
	double start = 0;
	r = b->request_us ? open_namespace(b) : -SKVQ_ENOMEM;
	if (r >= 0)
		r = open_staging(b);
	if (r >= 0) {
		start = bench_now_us();
		r = publish_all(b);
	}
	double seconds = (bench_now_us() - start) / 1e6;
	if (r < 0) {
		fprintf(stderr,
			"skvq-bench-publish: publishing stopped after %" PRIu64 " pages: %s: %s\n",
			b->stored, b->failed ? b->failed : skvq_err_name(r),
			b->failed ? b->detail : skvq_client_why(b->client));
	} else if (b->existed) {
		fprintf(stderr, "skvq-bench-publish: %" PRIu64 " pages were there before\n",
			b->existed);
		r = -SKVQ_ESTATE;
	} else {
		r = report(b, profile_name, seconds, json);
	}
	for (uint32_t i = 0; i < b->n_chains; i++)
		free(b->chains[i].tokens);
	free(b->request_us);
	skvq_client_free(b->client);
	return r < 0 ? 1 : 0;
}
