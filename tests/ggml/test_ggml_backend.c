/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An unmodified llama.cpp with libggml-skvq.so loaded into it, beside contexts of the same process that
 * were made before it was: what is left to ggml must be equal to them bit by bit, what is computed over
 * pages close.
 *
 *   test_ggml_backend BACKEND.so OTHER.so MODEL.gguf TEXT [TEST]
 *
 * OTHER.so is the backend built for another version of ggml.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <ggml-backend.h>
#include <llama.h>

#include <skvq/ggml_backend.h>

enum { TEXT_MAX = 4096, CELLS = 1024, UBATCH = 256, PROMPT = 480, THREADS = 1 };

/* Of k8v8 and of the default; data-free, mean over some tens of tokens. Wrong attention is above 1. */
static double kld_max = 0.02;

static const char *backend_path, *other_path;
static struct llama_model *model;
static llama_token text[TEXT_MAX];
static int n_text, n_vocab, n_layer;
static skvq_ggml_counters_fn counters_of;
static bool prefill_is_ours;

/* The same context twice: as it was before the backend was loaded, and with it. */
static struct llama_context *stock, *ours;
static struct llama_context_params stock_params;

static struct llama_context_params params_of(uint32_t n_seq, bool unified)
{
	struct llama_context_params p = llama_context_default_params();

	p.n_ctx = CELLS;
	p.n_batch = p.n_ubatch = UBATCH;
	p.n_seq_max = n_seq;
	p.kv_unified = unified;
	p.n_threads = p.n_threads_batch = THREADS;
	p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
	p.no_perf = true;
	return p;
}

static struct skvq_ggml_counters counters(void)
{
	struct skvq_ggml_counters c;

	counters_of(&c);
	return c;
}

/* Decodes n tokens at pos, in chunks; logits of the last one stay in the context. */
static void feed(struct llama_context *ctx, const llama_token *tokens, int n, int pos, llama_seq_id seq)
{
	struct llama_batch batch = llama_batch_init(UBATCH, 0, 1);

	for (int at = 0; at < n; at += batch.n_tokens) {
		batch.n_tokens = n - at < UBATCH ? n - at : UBATCH;
		for (int i = 0; i < batch.n_tokens; i++) {
			batch.token[i] = tokens[at + i];
			batch.pos[i] = pos + at + i;
			batch.n_seq_id[i] = 1;
			batch.seq_id[i][0] = seq;
			batch.logits[i] = at + i + 1 == n;
		}
		assert_int_equal(llama_decode(ctx, batch), 0);
	}
	llama_batch_free(batch);
}

static void feed_both(const llama_token *tokens, int n, int pos)
{
	feed(stock, tokens, n, pos, 0);
	feed(ours, tokens, n, pos, 0);
}

/* As if both had computed the prompt: its cells, computed once. Logits come with the next token. */
static void prompt_both(void)
{
	static uint8_t *cells;
	static size_t size;

	if (!cells) {
		feed(stock, text, PROMPT, 0, 0);
		size = llama_state_seq_get_size(stock, 0);
		cells = malloc(size);
		assert_non_null(cells);
		assert_int_equal(llama_state_seq_get_data(stock, cells, size, 0), size);
	}
	assert_int_equal(llama_state_seq_set_data(stock, cells, size, 0), size);
	assert_int_equal(llama_state_seq_set_data(ours, cells, size, 0), size);
}

static double log_sum_exp(const float *x)
{
	double max = -INFINITY, sum = 0;

	for (int i = 0; i < n_vocab; i++)
		max = (double)x[i] > max ? (double)x[i] : max;
	for (int i = 0; i < n_vocab; i++)
		sum += exp((double)x[i] - max);
	return max + log(sum);
}

static double kld(void)
{
	const float *p = llama_get_logits_ith(stock, -1), *q = llama_get_logits_ith(ours, -1);
	double p_norm = log_sum_exp(p), q_norm = log_sum_exp(q), sum = 0;

	for (int i = 0; i < n_vocab; i++)
		sum += exp((double)p[i] - p_norm) * ((double)p[i] - p_norm - (double)q[i] + q_norm);
	return sum;
}

static bool equal(void)
{
	return memcmp(llama_get_logits_ith(stock, -1), llama_get_logits_ith(ours, -1),
		      (size_t)n_vocab * sizeof(float)) == 0;
}

/* Tokens one by one into both; the mean KLD. Which part of ours is computed over pages is told. */
static double decode(const llama_token *tokens, int n, int pos, double *ret_part)
{
	uint64_t before = counters().nodes_skvq;
	double sum = 0;

	for (int i = 0; i < n; i++) {
		feed_both(tokens + i, 1, pos + i);
		sum += kld();
	}
	*ret_part = (double)(counters().nodes_skvq - before) / (n * n_layer);
	return sum / n;
}

static void assert_close(const llama_token *tokens, int n, int pos)
{
	double part, mean = decode(tokens, n, pos, &part);

	print_message("%d tokens at %d: mean KLD %.5f, %.0f %% over pages\n", n, pos, mean, part * 100);
	assert_true(part == 1);
	assert_true(mean > 0 && mean < kld_max); /* 0 would be ggml's own result */
}

static struct llama_context *new_context(struct llama_context_params p)
{
	struct llama_context *ctx = llama_init_from_model(model, p);

	assert_non_null(ctx);
	return ctx;
}

/* A state llama.cpp's tools leave too: a first graph of any tokens, then an empty cache. */
static int fresh_pair(void **state)
{
	(void)state;
	llama_memory_clear(llama_get_memory(stock), true);
	ours = new_context(stock_params);
	feed(ours, text, 2, 0, 0);
	llama_memory_clear(llama_get_memory(ours), true);
	return 0;
}

static int end_pair(void **state)
{
	(void)state;
	llama_free(ours);
	ours = NULL;
	return 0;
}

static void decoding_is_close_to_stock(void **state)
{
	(void)state;
	struct skvq_ggml_counters before = counters();

	feed_both(text, PROMPT, 0);
	assert_true(prefill_is_ours || equal());
	assert_close(text + PROMPT, 40, PROMPT);
	struct skvq_ggml_counters after = counters();
	assert_int_equal(after.tokens_taken - before.tokens_taken, PROMPT + 40);
	assert_int_equal(after.tokens_dropped - before.tokens_dropped, 0);
	assert_int_equal(after.cells_changed - before.cells_changed, 0);
	assert_int_equal(after.contexts_off - before.contexts_off, 0);
}

static void threads_share_the_work(void **state)
{
	(void)state;
	llama_set_n_threads(ours, 2, 2);
	prompt_both();
	assert_close(text + PROMPT, 2, PROMPT); /* few: on a busy machine threads wait long for each other */
	llama_set_n_threads(ours, 1, 1);
	assert_close(text + PROMPT + 2, 1, PROMPT + 2);
}

static void a_second_prompt_takes_the_place_of_the_first(void **state)
{
	(void)state;
	prompt_both();
	assert_close(text + PROMPT, 10, PROMPT);
	llama_memory_clear(llama_get_memory(stock), false);
	llama_memory_clear(llama_get_memory(ours), false);
	feed_both(text + 900, 220, 0);
	assert_close(text + 1120, 15, 220);
}

static void going_back_is_close_to_stock(void **state)
{
	(void)state;
	prompt_both();
	assert_close(text + PROMPT, 10, PROMPT);
	/* A draft that is not taken; an answer that is edited; the last token once more. */
	static const int back_to[] = {PROMPT + 7, 203, 202};
	for (int i = 0; i < 3; i++) {
		assert_true(llama_memory_seq_rm(llama_get_memory(stock), 0, back_to[i], -1));
		assert_true(llama_memory_seq_rm(llama_get_memory(ours), 0, back_to[i], -1));
		assert_close(text + 1000 + 100 * i, 8, back_to[i]);
	}
}

static void sequences_side_by_side_are_left_to_ggml(void **state)
{
	(void)state;
	for (int unified = 0; unified < 2; unified++) {
		struct llama_context_params p = params_of(2, unified);
		struct llama_context *both = new_context(p);
		llama_memory_clear(llama_get_memory(stock), true);
		feed(both, text, 200, 0, 0);
		feed(both, text + 1000, 20, 0, 1);
		uint64_t before = counters().nodes_skvq;
		feed(stock, text, 200, 0, 0);
		struct llama_context *mine = ours;
		ours = both;
		for (int i = 0; i < 5; i++) {
			feed(both, text + 1020 + i, 1, 20 + i, 1);
			feed(both, text + 200 + i, 1, 200 + i, 0);
			feed(stock, text + 200 + i, 1, 200 + i, 0);
			/* Cells of the other sequence change how ggml adds up, no more. */
			assert_true(kld() < 1e-3);
		}
		assert_int_equal(counters().nodes_skvq, before);
		/* Alone again from cell 0 on, and ours again, if there is only one stream. */
		assert_true(llama_memory_seq_rm(llama_get_memory(both), 1, -1, -1));
		assert_true(llama_memory_seq_rm(llama_get_memory(both), 0, 190, -1));
		assert_true(llama_memory_seq_rm(llama_get_memory(stock), 0, 190, -1));
		double part, mean = decode(text + 190, 5, 190, &part);
		print_message("alone again: mean KLD %.5f, %.0f %% over pages\n", mean, part * 100);
		assert_true(mean < kld_max);
		assert_true(part == unified);
		ours = mine;
		llama_free(both);
	}
}

/* llama.cpp turns all keys; no node of the graph that comes here says so, and the mask is as it was. */
static void shifted_cells_are_found(void **state)
{
	(void)state;
	prompt_both();
	assert_close(text + PROMPT, 5, PROMPT);
	uint64_t before = counters().cells_changed;
	llama_memory_seq_add(llama_get_memory(stock), 0, 0, -1, 100);
	llama_memory_seq_add(llama_get_memory(ours), 0, 0, -1, 100);
	assert_close(text + PROMPT + 5, 10, PROMPT + 5 + 100);
	assert_int_equal(counters().cells_changed - before, PROMPT + 5);
}

/* What a server does when the context is full: a part is removed, the rest moved, holes are filled. */
static void a_context_shift_is_computed_right(void **state)
{
	(void)state;
	enum { KEEP = 10, GONE = 24 };
	prompt_both();
	assert_close(text + PROMPT, 5, PROMPT);
	struct llama_context *both[] = {stock, ours};
	for (int i = 0; i < 2; i++) {
		llama_memory_t memory = llama_get_memory(both[i]);
		assert_true(llama_memory_seq_rm(memory, 0, KEEP, KEEP + GONE));
		llama_memory_seq_add(memory, 0, KEEP + GONE, -1, -GONE);
	}
	int pos = PROMPT + 5 - GONE;
	double part, mean = decode(text + PROMPT + 5, GONE, pos, &part);
	print_message("holes: mean KLD %.5f, %.0f %% over pages\n", mean, part * 100);
	assert_true(mean < kld_max);
	assert_true(part == 0 || part == 1.0 / GONE); /* the last one fills the last hole */
	assert_close(text + PROMPT + 5 + GONE, 10, pos + GONE);
}

/* A prompt put away and taken back, as a server with a prompt cache does: its cells change, and the
 * graph does not write them. */
static void a_loaded_state_is_found(void **state)
{
	(void)state;
	struct llama_context *both[] = {stock, ours};
	uint8_t *kept[2];
	size_t size[2];

	prompt_both();
	for (int i = 0; i < 2; i++) {
		size[i] = llama_state_seq_get_size(both[i], 0);
		kept[i] = malloc(size[i]);
		assert_non_null(kept[i]);
		assert_int_equal(llama_state_seq_get_data(both[i], kept[i], size[i], 0), size[i]);
		llama_memory_clear(llama_get_memory(both[i]), false);
	}
	/* As long, and the first 300 tokens are the same: only what comes behind is different. */
	feed_both(text, 100, 0);
	feed_both(text + 1500, PROMPT - 100, 100);
	assert_close(text + 1700, 5, PROMPT);
	uint64_t before = counters().cells_changed;
	for (int i = 0; i < 2; i++) {
		llama_memory_clear(llama_get_memory(both[i]), false);
		assert_int_equal(llama_state_seq_set_data(both[i], kept[i], size[i], 0), size[i]);
		free(kept[i]);
	}
	assert_close(text + PROMPT, 10, PROMPT);
	assert_true(counters().cells_changed - before >= PROMPT - 100);
}

/* States that change under every token: coding all cells each time would be slower than ggml. */
static void much_that_nobody_computed_is_not_coded_for_each_token(void **state)
{
	(void)state;
	prompt_both();
	assert_close(text + PROMPT, 1, PROMPT);
	struct skvq_ggml_counters before = counters();
	double part, sum = 0;
	for (int i = 0; i < 6; i++) {
		llama_memory_seq_add(llama_get_memory(stock), 0, 0, -1, 1);
		llama_memory_seq_add(llama_get_memory(ours), 0, 0, -1, 1);
		sum += decode(text + PROMPT + 1 + i, 1, PROMPT + 2 + 2 * i, &part);
	}
	struct skvq_ggml_counters after = counters();
	print_message("6 shifts: mean KLD %.5f\n", sum / 6);
	assert_true(sum / 6 < kld_max);
	assert_true(after.tokens_taken - before.tokens_taken < 4 * PROMPT);
	assert_int_equal(after.contexts_off - before.contexts_off, 0);
}

static void contexts_do_not_meet(void **state)
{
	(void)state;
	struct llama_context *other = new_context(stock_params), *mine = ours;

	prompt_both();
	feed(other, text + 1000, 100, 0, 0);
	for (int i = 0; i < 5; i++) {
		feed(other, text + 1100 + i, 1, 100 + i, 0);
		double part, mean = decode(text + PROMPT + i, 1, PROMPT + i, &part);
		assert_true(part == 1 && mean < 2 * kld_max);
	}
	ours = other;
	llama_memory_clear(llama_get_memory(stock), true);
	feed(stock, text + 1000, 105, 0, 0);
	assert_close(text + 1105, 5, 105);
	ours = mine;
	llama_free(other);
}

static void caches_of_other_types_do_not_come_here(void **state)
{
	(void)state;
	struct llama_context_params p = stock_params;
	struct skvq_ggml_counters before = counters();

	p.type_k = p.type_v = GGML_TYPE_Q8_0;
	struct llama_context *quantized = new_context(p);
	feed(quantized, text, 100, 0, 0);
	feed(quantized, text + 100, 1, 100, 0);
	llama_free(quantized);
	struct skvq_ggml_counters after = counters();
	assert_int_equal(after.nodes_ggml, before.nodes_ggml);
	assert_int_equal(after.nodes_skvq, before.nodes_skvq);
}

static void batches_of_many_rows_are_ggmls_or_close(void **state)
{
	(void)state;
	prompt_both();
	uint64_t before = counters().nodes_skvq;
	feed_both(text + PROMPT, 33, PROMPT);
	assert_int_equal(counters().nodes_skvq - before, prefill_is_ours ? n_layer : 0);
	if (!prefill_is_ours)
		assert_true(equal());
	else
		assert_true(kld() < 2 * kld_max); /* of one token alone */
	assert_close(text + PROMPT + 33, 10, PROMPT + 33);
}

static void what_does_not_fit_is_not_loaded(void **state)
{
	(void)state;
	const char *plugin = getenv("SKVQ_PLUGIN");
	char *kept = plugin ? strdup(plugin) : NULL;

	assert_null(ggml_backend_load(other_path));
	setenv("SKVQ_PLUGIN", "/nonexistent/libskvq_plugin.so", 1);
	assert_null(ggml_backend_load(backend_path));
	if (kept)
		setenv("SKVQ_PLUGIN", kept, 1);
	else
		unsetenv("SKVQ_PLUGIN");
	free(kept);
	const char *prefill = getenv("SKVQ_GGML_PREFILL");
	kept = prefill ? strdup(prefill) : NULL;
	setenv("SKVQ_GGML_PREFILL", "perhaps", 1);
	assert_null(ggml_backend_load(backend_path));
	setenv("SKVQ_GGML_PREFILL", kept ? kept : "ggml", 1);
	free(kept);
	setenv("SKVQ_GGML_CALIBRATION", "/nonexistent", 1);
	assert_null(ggml_backend_load(backend_path));
	unsetenv("SKVQ_GGML_CALIBRATION");
}

static int load_backend(void **state)
{
	(void)state;
	ggml_backend_reg_t reg = ggml_backend_load(backend_path);
	if (!reg)
		return -1;
	*(void **)&counters_of = ggml_backend_reg_get_proc_address(reg, SKVQ_GGML_COUNTERS);
	return counters_of ? 0 : -1;
}

static int read_text(const char *path)
{
	static char bytes[64 * 1024];
	FILE *f = fopen(path, "rb");
	size_t n = f ? fread(bytes, 1, sizeof bytes / 4, f) : 0;

	if (f)
		fclose(f);
	return n ? llama_tokenize(llama_model_get_vocab(model), bytes, (int)n, text, TEXT_MAX, true, false)
		 : -1;
}

static void quiet(enum ggml_log_level level, const char *line, void *user)
{
	(void)user;
	if (level >= GGML_LOG_LEVEL_WARN)
		fputs(line, stderr);
}

int main(int argc, char **argv)
{
	if (argc != 5 && argc != 6) {
		fprintf(stderr, "usage: %s BACKEND.so OTHER.so MODEL.gguf TEXT [TEST]\n", argv[0]);
		return 2;
	}
	if (argc == 6)
		cmocka_set_test_filter(argv[5]);
	backend_path = argv[1];
	other_path = argv[2];
	const char *prefill = getenv("SKVQ_GGML_PREFILL"), *bound = getenv("SKVQ_TEST_KLD_MAX");
	prefill_is_ours = prefill && strcmp(prefill, "skvq") == 0;
	kld_max = bound ? strtod(bound, NULL) : kld_max;
	llama_log_set(quiet, NULL);
	llama_backend_init();
	struct llama_model_params mp = llama_model_default_params();
	model = llama_model_load_from_file(argv[3], mp);
	if (!model) {
		fprintf(stderr, "cannot load '%s'\n", argv[3]);
		return 1;
	}
	n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
	n_layer = llama_model_n_layer(model);
	n_text = read_text(argv[4]);
	if (n_text < 2000) {
		fprintf(stderr, "'%s' has %d tokens\n", argv[4], n_text);
		return 1;
	}
	stock_params = params_of(1, false);
	stock = llama_init_from_model(model, stock_params);
	if (!stock)
		return 1;
#define PAIR(f) cmocka_unit_test_setup_teardown(f, fresh_pair, end_pair)
	const struct CMUnitTest before[] = {
	    cmocka_unit_test(what_does_not_fit_is_not_loaded),
	};
	const struct CMUnitTest with[] = {
	    PAIR(decoding_is_close_to_stock),
	    PAIR(threads_share_the_work),
	    PAIR(a_second_prompt_takes_the_place_of_the_first),
	    PAIR(going_back_is_close_to_stock),
	    PAIR(sequences_side_by_side_are_left_to_ggml),
	    PAIR(shifted_cells_are_found),
	    PAIR(a_context_shift_is_computed_right),
	    PAIR(a_loaded_state_is_found),
	    PAIR(much_that_nobody_computed_is_not_coded_for_each_token),
	    PAIR(contexts_do_not_meet),
	    PAIR(caches_of_other_types_do_not_come_here),
	    PAIR(batches_of_many_rows_are_ggmls_or_close),
	};
	int failed = cmocka_run_group_tests(before, NULL, NULL) +
		     cmocka_run_group_tests(with, load_backend, NULL);
	llama_free(stock);
	llama_model_free(model);
	llama_backend_free();
	return failed;
}
