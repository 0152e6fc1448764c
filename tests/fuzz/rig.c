/* SPDX-License-Identifier: Apache-2.0 */
#include "rig.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <skvq/calibration.h>
#include <skvq/error.h>

#include "base/log.h"
#include "steer.h"
#include "support/page_maker.h"

#define SEALS (F_SEAL_GROW | F_SEAL_SHRINK)

struct fuzz_rig rig;

/* ---- workers ---- */

static struct job *jobs_head, *jobs_tail;

int __wrap_worker_submit(struct worker *w, struct job *job);
int __wrap_worker_submit_to(struct worker *w, struct lane *lane, struct job *job);

int __wrap_worker_submit(struct worker *w, struct job *job)
{
	return __wrap_worker_submit_to(w, &w->own, job);
}

int __wrap_worker_submit_to(struct worker *w, struct lane *lane, struct job *job)
{
	(void)w;
	(void)lane;
	if (rig.refuse_jobs)
		return -SKVQ_EBUSY;
	job->next = NULL;
	job->cancelled = false;
	if (jobs_head)
		jobs_tail->next = job;
	else
		jobs_head = job;
	jobs_tail = job;
	return 0;
}

void fz_work(void)
{
	while (jobs_head) {
		struct job *job = jobs_head;

		jobs_head = job->next;
		job->run(job);
		job->done(job);
	}
}

/* ---- descriptors ---- */

static int staging(void)
{
	struct skvq_layout l;
	int32_t tokens[SKVQ_PAGE_TOKENS];
	int fd;

	maker_layout(&l);
	fd = maker_memfd(RIG_PAGES * l.slot_bytes, SEALS);
	for (uint32_t i = 0; i < RIG_PAGES; i++) {
		uint32_t position = i * SKVQ_PAGE_TOKENS;
		size_t n = skvq_layout_page_bytes(&l, position);
		void *page = calloc(1, n);

		FUZZ_CHECK(page);
		maker_tokens(1, i, tokens);
		maker_page(&l, position, tokens, 1, page);
		FUZZ_CHECK(pwrite(fd, page, n, (off_t)(i * l.slot_bytes)) == (ssize_t)n);
		free(page);
	}
	return fd;
}

/* One head of 16 channels, matrices of nothing but 1 on the diagonal. */
static int calibration(void)
{
	skvq_calibration_header h = {.magic = SKVQ_CALIBRATION_MAGIC,
				     .version = SKVQ_CALIBRATION_VERSION,
				     .header_bytes = sizeof(h),
				     .n_layer = 1,
				     .n_q_heads = 1,
				     .n_kv_heads = 1,
				     .head_dim_k = 16,
				     .head_dim_v = 16};
	struct skvq_calibration c;
	uint8_t *file;
	int fd;

	FUZZ_CHECK(skvq_calibration_plan(&h, &c) == 0);
	file = calloc(1, h.file_bytes);
	FUZZ_CHECK(file);
	memcpy(file, &h, sizeof(h));
	c.bytes = file;
	for (uint32_t i = 0; i < 16; i++) {
		((float *)(uintptr_t)skvq_calibration_into(&c, 0, 0, 0))[17 * i] = 1;
		((float *)(uintptr_t)skvq_calibration_back(&c, 0, 0, 0))[17 * i] = 1;
	}
	skvq_calibration_seal(file, h.file_bytes);
	fd = maker_memfd(h.file_bytes, SEALS);
	FUZZ_CHECK(pwrite(fd, file, h.file_bytes, 0) == (ssize_t)h.file_bytes);
	free(file);
	return fd;
}

static int write_only(void)
{
	int fd = maker_memfd(4096, SEALS), again;
	char path[32];

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_WRONLY | O_CLOEXEC);
	(void)close(fd);
	return again;
}

static int make_fd(enum fz_fd which)
{
	int pair[2];

	switch (which) {
	case RIG_FD_STAGING:
		return staging();
	case RIG_FD_CALIBRATION:
		return calibration();
	case RIG_FD_UNSEALED:
		return maker_memfd(65536, 0);
	case RIG_FD_WRITE_ONLY:
		return write_only();
	case RIG_FD_PIPE:
		return pipe2(pair, O_CLOEXEC) < 0 ? -1 : pair[0];
	case RIG_FD_NULL:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case RIG_FD_FOLDER:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	default:
		return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 ? -1 : pair[0];
	}
}

static int fds[RIG_FDS];

int fz_fd(enum fz_fd which)
{
	return fds[which];
}

static int lowest_fd(void)
{
	int fd = fcntl(0, F_DUPFD_CLOEXEC, 3);

	FUZZ_CHECK(fd >= 0);
	(void)close(fd);
	return fd;
}

/* ---- steering ---- */

static struct config configured, running; /* as each input finds it; as it is */
static struct steer steer;
static struct control_steer steer_ops;
static bool steered;

static void apply(void *ctx, struct control_plan *plan)
{
	steer.ops.apply(ctx, plan);
	steered = true;
	log_set_level(LOG_ERROR);
}

static void init_steer(void)
{
	static const char *const argv[] = {"skvqd", "--socket", "none", "--ram-max", "256K", NULL};
	struct why why;

	FUZZ_CHECK(config_args_text(&configured, 5, (char **)(uintptr_t)argv, "none", NULL, 0,
				    &why) == 0);
	configured.ram_max = 256 << 10;
	configured.connections_max = 2;
	configured.namespaces_max = 3;
	configured.pins_max = 64;
	configured.requests_max = 4;
	configured.staging_max = 3;
	configured.queue_max = 16;
	configured.restores_max = 8;
	configured.calibration_max = 65536;
	configured.frame_max = RIG_FRAME_MAX;
	FUZZ_CHECK(config_check(&configured, &why) == 0);
	running = configured;
	steer_init(&steer, &running, 5, (char **)(uintptr_t)argv, 1024);
	steer_ops = steer.ops;
	steer_ops.apply = apply;
}

/* ---- one input ---- */

static void init(void)
{
	static bool done;

	if (done)
		return;
	done = true;
	log_set_level(LOG_ERROR);
	(void)signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < (int)RIG_FDS; i++) {
		fds[i] = make_fd((enum fz_fd)i);
		FUZZ_CHECK(fds[i] >= 0);
	}
	init_steer();
	FUZZ_CHECK(loop_init(&rig.loop) == 0 && worker_init(&rig.worker, &rig.loop, 1, 64) == 0);
}

void fz_begin(void)
{
	const struct cache_config cache_config = {
	    .ram_max = 256 << 10, .namespaces_max = 3, .spill_percent = 25, .restores_max = 8};
	const struct control_config config = {
	    .conn = {.frame_max = RIG_FRAME_MAX, .backlog_max = 16384},
	    .connections_max = 2,
	    .pins_max = 64,
	    .requests_max = 4,
	    .staging_max = 3,
	    .tenants = {{.connections_max = 2, .calibration_max = 65536, .socket = "none"}},
	    .steer = &steer_ops,
	    .socket = "none",
	    .version = "fuzz",
	    .handover = true};
	const struct tenant_params tenant = {.name = "default",
					     .pins_max = 128,
					     .namespaces_max = 3,
					     .fills_max = 16,
					     .restores_max = 8};

	init();
	if (steered)
		running = configured;
	steered = false;
	rig.fd_floor = lowest_fd(); /* a fuzzer opens files too, in between */
	memset(&rig.stats, 0, sizeof(rig.stats));
	rig.refuse_jobs = false;
	rig.peer = -1;
	rig.session = NULL;
	cache_init(&rig.cache, &cache_config, &rig.worker, &rig.stats);
	FUZZ_CHECK(cache_add_tenant(&rig.cache, &tenant) != NULL);
	FUZZ_CHECK(control_init(&rig.control, &config, &rig.loop, NULL, &rig.cache, &rig.stats) ==
		   0);
	steer_bind(&steer, &rig.control, &rig.worker, NULL);
}

void fz_end(void)
{
	fz_work();
	fz_hang_up();
	control_fini(&rig.control);
	fz_work();
	FUZZ_CHECK(rig.control.n_sessions == 0 && rig.cache.pins == 0 && !rig.cache.matches);
	cache_fini(&rig.cache);
	FUZZ_CHECK(rig.cache.bytes == 0 && rig.cache.pages == 0);
	FUZZ_CHECK(lowest_fd() == rig.fd_floor);
}

void fz_connect(void)
{
	int pair[2];

	fz_hang_up();
	FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	rig.peer = pair[1];
	control_accept(&rig.control, pair[0], NULL);
	rig.session = rig.control.sessions;
}

void fz_hang_up(void)
{
	if (rig.peer < 0)
		return;
	(void)close(rig.peer);
	rig.peer = -1;
	fz_step();
	rig.session = NULL;
}

void fz_step(void)
{
	for (int i = 0; i < 2; i++)
		FUZZ_CHECK(loop_step(&rig.loop, 0) == 0);
	if (rig.session && rig.control.sessions != rig.session)
		rig.session = NULL;
}

void fz_drain(void)
{
	static uint8_t buf[65536];
	static uint8_t head[8];
	static uint32_t have, left; /* of a header, of a payload */
	static uint64_t boot_id;    /* whose they are */
	ssize_t n;

	if (boot_id != rig.control.boot_id)
		have = left = 0;
	boot_id = rig.control.boot_id;
	while (rig.peer >= 0 && (n = recv(rig.peer, buf, sizeof(buf), 0)) > 0) {
		for (ssize_t i = 0; i < n;) {
			if (left) {
				uint32_t step = left < n - i ? left : (uint32_t)(n - i);

				left -= step;
				i += step;
				continue;
			}
			head[have++] = buf[i++];
			if (have < sizeof(head))
				continue;
			have = 0;
			memcpy(&left, head, sizeof(left));
			FUZZ_CHECK(head[6] == 0x53 && head[7] == 0x4b && head[5] == 0);
			FUZZ_CHECK(left >= 1 && left <= RIG_FRAME_MAX && head[4] <= 1);
		}
	}
}

/* ---- requests ---- */

static size_t put_varint(uint8_t *at, uint64_t v)
{
	size_t n = 0;

	for (; v > 0x7f; v >>= 7)
		at[n++] = (uint8_t)(v | 0x80);
	at[n++] = (uint8_t)v;
	return n;
}

size_t fz_request(uint8_t *at, size_t room, uint64_t id, uint32_t field, struct fuzz_in body)
{
	size_t n = 0;

	FUZZ_CHECK(room >= body.left + 32);
	at[n++] = 1 << 3;
	n += put_varint(at + n, id);
	n += put_varint(at + n, (uint64_t)field << 3 | 2);
	n += put_varint(at + n, body.left);
	if (body.left)
		memcpy(at + n, body.at, body.left);
	return n + body.left;
}
