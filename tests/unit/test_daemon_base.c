/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/base: log lines, checked arithmetic, CRC-32C, counters, the loop and the worker pool. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "base/blob.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/closer.h"
#include "base/crc32c.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/stats.h"
#include "base/why.h"
#include "base/worker.h"

static void log_lines(void **state)
{
	const struct log_kv kv[] = {
	    LOG_STR("socket", "/run/a.sock"), LOG_U64("n", 7), LOG_STR("name", "two words"), {0}};
	const struct log_kv evil[] = {
	    LOG_STR("name", "a\nevent=forged\x1b[2J\"\\"), LOG_STR("empty", ""), {0}};
	/* C1 moves cursors as well, in either form; words of other languages stay. */
	const struct log_kv high[] = {LOG_STR("a", "\xc2\x9b" "2J\x9b\xc3\xa9\xe2\x82\xac\xc2\xa0\xe2\x82"),
				      {0}};
	char buf[256], tiny[16];

	(void)state;
	log_format(buf, sizeof(buf), LOG_INFO, "ready", kv);
	assert_string_equal(buf,
			    "level=info event=ready socket=/run/a.sock n=7 name=\"two words\"");
	log_format(buf, sizeof(buf), LOG_WARNING, "x", evil);
	assert_string_equal(buf, "level=warning event=x "
				 "name=\"a\\x0aevent=forged\\x1b[2J\\\"\\\\\" empty=\"\"");
	log_format(buf, sizeof(buf), LOG_INFO, "x", high);
	assert_string_equal(buf, "level=info event=x a=\"\\xc2\\x9b2J\\x9b\xc3\xa9\xe2\x82\xac\xc2\xa0"
				 "\\xe2\\x82\"");
	assert_int_equal(log_format(tiny, sizeof(tiny), LOG_INFO, "ready", kv), 15);
	assert_string_equal(tiny, "level=info even");
	assert_int_equal(log_level_parse("warning"), LOG_WARNING);
	assert_int_equal(log_level_parse("loud"), -1);
}

static void log_json(void **state)
{
	const struct log_kv evil[] = {
	    LOG_STR("name", "a\n\"\\\x1b\x7f" "\xc2\x9b" "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"),
	    LOG_STR("bad", "\xff" "x\xc3" "y\xed\xa0\x80" "z\xc0\xaf\xf5\x80\xe2\x82"),
	    LOG_U64("n", UINT64_MAX), {0}};
	char buf[512], longer[2000], cut[1024];

	(void)state;
	(void)log_format_json(buf, sizeof(buf), "T", LOG_INFO, "x", evil, 3);
	assert_string_equal(
	    buf, "{\"time\":\"T\",\"level\":\"info\",\"event\":\"x\",\"name\":\"a\\u000a\\\"\\\\"
		 "\\u001b\\u007f\\u009b\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\","
		 "\"bad\":\"\xef\xbf\xbdx\xef\xbf\xbdy\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz"
		 "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\","
		 "\"n\":18446744073709551615,\"dropped\":3}");
	/* Wherever it is cut: a whole object, with no half of a character, that says so. */
	memset(longer, '"', sizeof(longer));
	longer[sizeof(longer) - 1] = 0;
	for (size_t first = 0; first < 400; first++) {
		const struct log_kv kv[] = {LOG_STR("a", longer + sizeof(longer) - 1 - first),
					    LOG_STR("b", "\xe2\x82\xac\xe2\x82\xac"),
					    LOG_U64("n", UINT64_MAX), LOG_STR("c", longer), {0}};
		int n;

		memset(cut, 'X', sizeof(cut));
		n = log_format_json(cut, LOG_JSON_MIN * 2, NULL, LOG_ERROR, "x", kv, UINT64_MAX);
		assert_true(n < LOG_JSON_MIN * 2);
		assert_int_equal(strlen(cut), n);
		assert_int_equal(cut[LOG_JSON_MIN * 2], 'X');
		assert_non_null(strstr(cut, ",\"cut\":true,\"dropped\":18446744073709551615}"));
		assert_int_equal(cut[n - 1], '}');
	}
	assert_int_equal(log_form_parse("json"), LOG_FORM_JSON);
	assert_int_equal(log_form_parse("xml"), -1);
}

static void has_field(const struct iovec *fields, int n, const char *text)
{
	for (int i = 0; i < n; i++) {
		if (fields[i].iov_len == strlen(text) &&
		    !memcmp(fields[i].iov_base, text, strlen(text)))
			return;
	}
	fail_msg("no field %s", text);
}

static void log_fields(void **state)
{
	const struct log_kv kv[] = {LOG_STR("name", "a\nb"), LOG_U64("n", 7), {0}};
	struct log_kv many[40] = {{0}};
	struct iovec fields[LOG_FIELDS_MAX];
	char buf[600];
	int n;

	(void)state;
	n = log_format_fields(fields, buf, sizeof(buf), LOG_WARNING, "two-words", kv, 2);
	assert_int_equal(n, 7);
	has_field(fields, n, "MESSAGE=level=warning event=two-words name=\"a\\x0ab\" n=7");
	has_field(fields, n, "PRIORITY=4");
	has_field(fields, n, "SYSLOG_IDENTIFIER=skvqd");
	has_field(fields, n, "SKVQD_EVENT=two-words");
	has_field(fields, n, "SKVQD_NAME=a\nb");
	has_field(fields, n, "SKVQD_N=7");
	has_field(fields, n, "SKVQD_DROPPED=2");
	/* More than there is room for, by number and by bytes. */
	for (int i = 0; i < 39; i++)
		many[i] = LOG_U64("k", 1);
	n = log_format_fields(fields, buf, sizeof(buf), LOG_INFO, "x", many, 0);
	assert_int_equal(n, LOG_FIELDS_MAX);
	n = log_format_fields(fields, buf, 80, LOG_INFO, "x", kv, 0);
	assert_true(n >= 1 && n < 6);
	for (int i = 0; i < n; i++)
		assert_true((char *)fields[i].iov_base + fields[i].iov_len <= buf + 80);
}

static void arithmetic(void **state)
{
	uint64_t v = 42;

	(void)state;
	assert_true(checked_add(1, 2, &v) && v == 3);
	assert_false(checked_add(UINT64_MAX, 1, &v));
	assert_int_equal(v, 3);
	assert_true(checked_mul(1 << 20, 1 << 20, &v) && v == UINT64_C(1) << 40);
	assert_false(checked_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
	assert_true(checked_round_up(4097, 4096, &v) && v == 8192);
	assert_true(checked_round_up(0, 4096, &v) && v == 0);
	assert_false(checked_round_up(UINT64_MAX, 4096, &v));
}

static void crc(void **state)
{
	uint8_t zeros[32] = {0};

	(void)state;
	assert_int_equal(crc32c("123456789", 9), 0xe3069283);
	assert_int_equal(crc32c(zeros, sizeof(zeros)), 0x8a9136aa); /* RFC 3720 B.4 */
	assert_int_equal(crc32c("", 0), 0);
}

static void sentences(void **state)
{
	struct why why;

	(void)state;
	errno = ENOSPC;
	assert_int_equal(why_fail_errno(&why, SKVQ_EIO, "writing %d", 3), -SKVQ_EIO);
	assert_string_equal(why.text, "writing 3: No space left on device");
	assert_int_equal(errno, ENOSPC);
	assert_int_equal(why_fail(NULL, SKVQ_EINVAL, "nobody reads this"), -SKVQ_EINVAL);
}

static void counters(void **state)
{
	struct stats stats = {0};
	uint64_t v;
	uint32_t n = 0;

	(void)state;
	stats_refused(&stats, -SKVQ_EPINS);
	stats_refused(&stats, SKVQ_EPINS);
	stats_refused(&stats, 5000); /* not a code: counted, not indexed */
	for (const char *name; (name = stats_at(&stats, n, &v)); n++) {
		for (uint32_t i = 0; i < n; i++)
			assert_string_not_equal(name, stats_at(&stats, i, &v));
		(void)stats_at(&stats, n, &v);
		if (!strcmp(name, "refused_epins"))
			assert_int_equal(v, 2);
		else if (!strcmp(name, "requests_refused"))
			assert_int_equal(v, 3);
		else
			assert_int_equal(v, 0);
	}
	assert_true(n > STAT_COUNT);
	assert_string_equal(err_name(-SKVQ_ENOSPC), "SKVQ_ENOSPC");
	assert_string_equal(err_name(0), "SKVQ_OK");
	assert_string_equal(err_name(77), "unknown");
}

static void histograms(void **state)
{
	static const struct {
		uint64_t value;
		uint32_t bucket;
	} cases[] = {{0, 0}, {1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {1024, 10}, {1025, 11},
		     {UINT64_C(1) << 31, 31}, {(UINT64_C(1) << 31) + 1, 31}, {UINT64_MAX, 31}};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct stats stats = {0};
		const struct stats_histogram *h = &stats.histogram[HISTOGRAM_match_us];

		stats_record(&stats, HISTOGRAM_match_us, cases[i].value);
		assert_int_equal(h->sum, cases[i].value);
		for (uint32_t n = 0; n < STATS_BUCKETS; n++)
			assert_int_equal(h->n[n], n == cases[i].bucket);
	}
	assert_string_equal(stats_histogram_name(HISTOGRAM_match_us), "match_us");
}

/* ---- loop ---- */

struct watcher {
	struct loop *loop;
	struct loop_watch watch;
	struct watcher *victim; /* removed when this one is called */
	int calls;
};

static void on_watch(void *ctx, uint32_t events)
{
	struct watcher *w = ctx;

	assert_true(events & EPOLLIN);
	w->calls++;
	loop_del(w->loop, &w->watch);
	if (w->victim)
		loop_del(w->loop, &w->victim->watch);
}

static void loop_forgets_removed_watches(void **state)
{
	struct loop loop;
	struct watcher a = {.loop = &loop}, b = {.loop = &loop};
	int fd_a = eventfd(1, EFD_CLOEXEC), fd_b = eventfd(1, EFD_CLOEXEC);

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	a.watch = (struct loop_watch){.fd = fd_a, .events = EPOLLIN, .fn = on_watch, .ctx = &a};
	b.watch = (struct loop_watch){.fd = fd_b, .events = EPOLLIN, .fn = on_watch, .ctx = &b};
	a.victim = &b;
	b.victim = &a;
	assert_int_equal(loop_add(&loop, &a.watch), 0);
	assert_int_equal(loop_add(&loop, &b.watch), 0);
	/* Both are ready in one batch; whoever runs removes the other. */
	assert_int_equal(loop_step(&loop, 1000), 0);
	assert_int_equal(a.calls + b.calls, 1);
	assert_int_equal(loop_step(&loop, 0), 0);
	assert_int_equal(a.calls + b.calls, 1);
	loop_fini(&loop);
	close(fd_a);
	close(fd_b);
}

static void another_allocator_is_left_alone(void **state)
{
	(void)state;
	assert_false(heap_tick()); /* jemalloc is in skvqd alone */
}

/* ---- worker ---- */

struct test_job {
	struct job job;
	pthread_mutex_t *gate; /* run() passes through it */
	pthread_t ran_on;
	int runs, dones;
};

static void job_run(struct job *job)
{
	struct test_job *t = container_of(job, struct test_job, job);

	if (t->gate) {
		pthread_mutex_lock(t->gate);
		pthread_mutex_unlock(t->gate);
	}
	t->ran_on = pthread_self();
	t->runs++;
}

static void job_done(struct job *job)
{
	struct test_job *t = container_of(job, struct test_job, job);

	assert_int_equal(t->runs, job->cancelled ? 0 : 1);
	if (t->runs)
		assert_false(pthread_equal(t->ran_on, pthread_self()));
	t->dones++;
}

static void worker_bounds_its_queue(void **state)
{
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct test_job jobs[8] = {0};
	struct loop loop;
	struct worker worker;
	int taken = 0, done = 0;

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	assert_int_equal(worker_init(&worker, &loop, 1, 2), 0);
	pthread_mutex_lock(&gate);
	for (int i = 0; i < 8; i++) {
		jobs[i].job = (struct job){.run = job_run, .done = job_done};
		jobs[i].gate = &gate;
	}
	/* Two in the queue, one in the thread's hands as soon as it has taken it, and no more. */
	for (int i = 0; taken < 3 && i < 20000; i++) {
		if (worker_submit(&worker, &jobs[taken].job) == 0)
			taken++;
		else
			(void)usleep(1000);
	}
	assert_int_equal(taken, 3);
	assert_int_equal(worker_submit(&worker, &jobs[7].job), -SKVQ_EBUSY);
	pthread_mutex_unlock(&gate);
	while (done < taken) {
		assert_int_equal(loop_step(&loop, 10000), 0);
		for (int i = done = 0; i < taken; i++)
			done += jobs[i].dones;
	}
	worker_fini(&worker);
	loop_fini(&loop);
	for (int i = 0; i < taken; i++)
		assert_int_equal(jobs[i].dones, 1);
	assert_int_equal(jobs[7].runs, 0);
}

struct noted_job {
	struct job job;
	char name;
};

static char noted[16]; /* in the order in which they ran, on the one thread */
static int n_noted, n_noted_done;

static void note_run(struct job *job)
{
	noted[n_noted++] = container_of(job, struct noted_job, job)->name;
}

static void note_done(struct job *job)
{
	(void)job;
	n_noted_done++;
}

/* One lane is full and its jobs were first: another's run in between. */
static void lanes_take_turns(void **state)
{
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct test_job first = {.job = {.run = job_run, .done = job_done}, .gate = &gate};
	struct noted_job jobs[9];
	struct lane many, few;
	struct worker worker;
	struct loop loop;

	(void)state;
	n_noted = n_noted_done = 0;
	assert_int_equal(loop_init(&loop), 0);
	assert_int_equal(worker_init(&worker, &loop, 1, 1), 0);
	lane_init(&many, 5);
	lane_init(&few, 2);
	pthread_mutex_lock(&gate);
	assert_int_equal(worker_submit(&worker, &first.job), 0); /* its turn is before the others' */
	for (int i = 0; i < 9; i++)
		jobs[i] = (struct noted_job){{.run = note_run, .done = note_done}, "aaaaabbcd"[i]};
	for (int i = 0; i < 5; i++)
		assert_int_equal(worker_submit_to(&worker, &many, &jobs[i].job), 0);
	assert_int_equal(worker_submit_to(&worker, &many, &jobs[7].job), -SKVQ_EBUSY);
	for (int i = 5; i < 7; i++)
		assert_int_equal(worker_submit_to(&worker, &few, &jobs[i].job), 0);
	assert_int_equal(worker_submit_to(&worker, &few, &jobs[7].job), -SKVQ_EBUSY);
	pthread_mutex_unlock(&gate);
	while (n_noted_done < 7)
		assert_int_equal(loop_step(&loop, 10000), 0);
	assert_int_equal(n_noted, 7);
	assert_memory_equal(noted, "ababaaa", 7);
	/* An emptied lane takes its place again. */
	assert_int_equal(worker_submit_to(&worker, &few, &jobs[7].job), 0);
	while (n_noted_done < 8)
		assert_int_equal(loop_step(&loop, 10000), 0);
	assert_int_equal(many.queued + few.queued, 0);
	worker_fini(&worker);
	loop_fini(&loop);
}

static void worker_cancels_what_is_queued(void **state)
{
	struct test_job jobs[32] = {0};
	struct loop loop;
	struct worker worker;
	int cancelled = 0;

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	assert_int_equal(worker_init(&worker, &loop, 4, 32), 0);
	for (int i = 0; i < 32; i++) {
		jobs[i].job = (struct job){.run = job_run, .done = job_done};
		assert_int_equal(worker_submit(&worker, &jobs[i].job), 0);
	}
	worker_fini(&worker);
	loop_fini(&loop);
	for (int i = 0; i < 32; i++) {
		assert_int_equal(jobs[i].dones, 1);
		assert_int_equal(jobs[i].runs + jobs[i].job.cancelled, 1);
		cancelled += jobs[i].job.cancelled;
	}
	assert_in_range(cancelled, 0, 32);
}

/* ---- closer ---- */

static void closer_closes(void **state)
{
	struct closer *closer = closer_new();
	int fds[200];
	int pipes[2];
	char c;

	(void)state;
	assert_non_null(closer);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	for (int i = 0; i < 200; i++) {
		fds[i] = fcntl(pipes[1], F_DUPFD_CLOEXEC, 3);
		assert_true(fds[i] >= 0);
	}
	close(pipes[1]);
	for (int i = 0; i < 200; i++)
		closer_close(closer, fds[i]);
	assert_int_equal(read(pipes[0], &c, 1), 0); /* the end: every writer is closed */
	closer_free(closer);
	closer_free(NULL);
	closer_close(NULL, pipes[0]);
	assert_int_equal(fcntl(pipes[0], F_GETFD), -1);
}

static void blobs_end_where_they_end(void **state)
{
	struct blob b = {0};
	struct blob_cursor c;
	char text[8];

	(void)state;
	blob_put_u32(&b, 0x01020304);
	blob_put_u64(&b, UINT64_C(0x1122334455667788));
	blob_put_text(&b, "seven..");
	blob_put(&b, "xyz", 3);
	assert_false(b.failed);
	assert_int_equal(b.data[0], 4); /* little-endian */
	for (int i = 0; i < 100000; i++)
		blob_put_u32(&b, (uint32_t)i);
	c = (struct blob_cursor){.at = b.data, .left = b.bytes};
	assert_int_equal(blob_get_u32(&c), 0x01020304);
	assert_true(blob_get_u64(&c) == UINT64_C(0x1122334455667788));
	blob_get_text(&c, text, sizeof(text));
	assert_string_equal(text, "seven..");
	assert_memory_equal(blob_get(&c, 3), "xyz", 3);
	for (int i = 0; i < 100000; i++)
		assert_int_equal(blob_get_u32(&c), i);
	assert_int_equal(c.left, 0);
	assert_false(c.failed);
	assert_int_equal(blob_get_u32(&c), 0);
	assert_true(c.failed);
	/* A text that does not fit; a text longer than what is left; and failed stays failed. */
	c = (struct blob_cursor){.at = b.data + 12, .left = b.bytes - 12};
	blob_get_text(&c, text, sizeof(text) - 1);
	assert_true(c.failed && !text[0]);
	assert_null(blob_get(&c, 0));
	c = (struct blob_cursor){.at = b.data + 12, .left = 10};
	blob_get_text(&c, text, sizeof(text));
	assert_true(c.failed && !text[0]);
	b.data[18] = 0;
	c = (struct blob_cursor){.at = b.data + 12, .left = b.bytes - 12};
	blob_get_text(&c, text, sizeof(text));
	assert_true(c.failed && !text[0]);
	blob_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(log_lines),
	    cmocka_unit_test(log_json),
	    cmocka_unit_test(log_fields),
	    cmocka_unit_test(arithmetic),
	    cmocka_unit_test(crc),
	    cmocka_unit_test(sentences),
	    cmocka_unit_test(counters),
	    cmocka_unit_test(histograms),
	    cmocka_unit_test(loop_forgets_removed_watches),
	    cmocka_unit_test(worker_bounds_its_queue),
	    cmocka_unit_test(another_allocator_is_left_alone),
	    cmocka_unit_test(lanes_take_turns),
	    cmocka_unit_test(worker_cancels_what_is_queued),
	    cmocka_unit_test(closer_closes),
	    cmocka_unit_test(blobs_end_where_they_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
