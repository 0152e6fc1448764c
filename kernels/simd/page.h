/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/page.h - the two entry points: scores, softmax, values of up to 80 tokens at a time. Nothing
 * is read beyond the planes, the parameter rows and the tokens given; tails are whole tiles on
 * pages, and single rows of FP16. Unaligned everything is fine.
 */

/* Work space on the stack; 83 KiB with the local query, most of it untouched by few rows. */
struct work {
	float p[ROWS_MAX][TOKENS];
	struct span spans[ROWS_MAX];
	bool seen[ROWS_MAX];
	struct page_params params;
	union {
		uint8_t copy[COPY_BYTES] __attribute__((aligned(64)));
		float floats[LANES * DIM_MAX];
	};
};

/* What the rows see of tokens first..n-1, and the tiles that hold it; false if nothing. */
static bool work_init(const struct skvq_attn_state *s, uint32_t first, uint32_t n,
		      uint32_t position, struct work *w, struct tiles *ret)
{
	uint32_t from = TOKENS, to = 0;

	assert(s->n_rows >= 1 && s->n_rows <= ROWS_MAX);
	assert(s->dim_k <= DIM_MAX && s->dim_v <= DIM_MAX);
	for (uint32_t r = 0; r < s->n_rows; r++) {
		struct span row = row_span(s, r, first, n, position);

		w->spans[r] = row;
		if (row.from == row.to)
			continue;
		from = row.from < from ? row.from : from;
		to = row.to > to ? row.to : to;
	}
	ret->from = from / LANES;
	ret->to = (to + LANES - 1) / LANES;
	return from < to;
}

static bool work_softmax(struct skvq_attn_state *s, const struct tiles *t, struct work *w)
{
	bool any = false;

	for (uint32_t r = 0; r < s->n_rows; r++) {
		w->seen[r] =
		    w->spans[r].from < w->spans[r].to && softmax(s, r, &w->spans[r], t, w->p[r]);
		any |= w->seen[r];
	}
	return any;
}

static void page_scores(struct skvq_attn_state *s, const struct skvq_codec *kc,
			const uint8_t *codes_at, const uint8_t *params, const struct tiles *t,
			struct work *w)
{
	struct query local;
	struct keys k = {
	    .c = kc,
	    .planes = codes_at,
	    .params = &w->params,
	    .t = *t,
	    .digit_bits = DIGIT_BITS(code_max(kc->bits)),
	    .ahead = s->next_k ? s->next_k - codes_at : 0,
	};

	k.q = query_get(s, kc, &local);
	page_params_load(kc, params, t, &w->params);
	scores(&k, s->n_rows, w->copy, w->p);
}

static void page_values(struct skvq_attn_state *s, const struct skvq_codec *vc,
			const uint8_t *codes_at, const uint8_t *params, const struct tiles *t,
			struct work *w)
{
	struct values v = {
	    .c = vc,
	    .planes = codes_at,
	    .params = &w->params,
	    .t = *t,
	    .digit_bits = DIGIT_BITS(code_max(vc->bits)),
	    .ahead = s->next_v ? s->next_v - codes_at : 0,
	    .acc = s->acc_stored,
	};

	page_params_load(vc, params, t, &w->params);
	if (v.digit_bits == 8) {
		values(&v, w->seen, s->n_rows, w->p, w->copy);
		return;
	}
	/* Two bits fewer: small weights beside a large one would be lost, so a scale a tile. */
	for (uint32_t tile = t->from; tile < t->to; tile++) {
		v.t = (struct tiles){tile, tile + 1};
		values(&v, w->seen, s->n_rows, w->p, w->copy);
	}
}

static void simd_attn_page(struct skvq_attn_state *s, const struct skvq_codec *kc,
			   const struct skvq_codec *vc, const uint8_t *k_codes,
			   const uint8_t *k_params, const uint8_t *v_codes, const uint8_t *v_params,
			   uint32_t first, uint32_t n_tokens, uint32_t position)
{
	struct work w;
	struct tiles t;

	assert(kc->dim == s->dim_k && vc->dim == s->dim_v);
	assert(n_tokens <= TOKENS && n_tokens % LANES == 0);
	if (!work_init(s, first, n_tokens, position, &w, &t))
		return;
	for (uint32_t i = 0; s->next_params && i < (kc->n_rows + vc->n_rows) * TOKENS; i += 64)
		fetch(s->next_params + i);
	if (kc->kind == SKVQ_CODEC_FP16) {
		for (uint32_t i = 0; s->next_k && i < kc->head_bytes; i += 64)
			fetch(s->next_k + i);
		struct halves k = {(const uint16_t *)(const void *)k_codes, kc->dim, kc->dim, first,
				   n_tokens};

		rows_scores(&k, s->q_stored, w.spans, s->n_rows, &t, w.floats, w.p);
	} else {
		page_scores(s, kc, k_codes, k_params, &t, &w);
	}
	if (!work_softmax(s, &t, &w))
		return;
	if (vc->kind == SKVQ_CODEC_FP16) {
		for (uint32_t i = 0; s->next_v && i < vc->head_bytes; i += 64)
			fetch(s->next_v + i);
		struct halves v = {(const uint16_t *)(const void *)v_codes, vc->dim, vc->dim, first,
				   n_tokens};

		rows_values(&v, w.seen, s->n_rows, &t, w.p, w.floats, s->acc_stored);
	} else {
		page_values(s, vc, v_codes, v_params, &t, &w);
	}
}

static void simd_attn_rows(struct skvq_attn_state *s, const uint16_t *k, size_t k_stride,
			   const uint16_t *v, size_t v_stride, uint32_t n_tokens, uint32_t position)
{
	struct work w;

	for (uint32_t at = 0; at < n_tokens; at += TOKENS) {
		uint32_t n = n_tokens - at < TOKENS ? n_tokens - at : TOKENS;
		struct halves hk = {k + at * k_stride, k_stride, s->dim_k, 0, n};
		struct halves hv = {v + at * v_stride, v_stride, s->dim_v, 0, n};
		struct tiles t;

		if (!work_init(s, 0, n, position + at, &w, &t))
			continue;
		rows_scores(&hk, s->q, w.spans, s->n_rows, &t, w.floats, w.p);
		if (work_softmax(s, &t, &w))
			rows_values(&hv, w.seen, s->n_rows, &t, w.p, w.floats, s->acc);
	}
}

void SKVQ_TIER(simd_fill)(struct skvq_kernels *table)
{
	table->attn_page = simd_attn_page;
	table->attn_rows = simd_attn_rows;
}
