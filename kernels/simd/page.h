/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd/page.h - the two entry points: scores, softmax, values of a block of pages, or of 80 rows, at
 * a time. Nothing is read beyond the planes, the parameter rows and the tokens given; tails are
 * whole tiles on pages, and single rows of FP16. Unaligned everything is fine.
 */

/* Work space on the stack; 120 KiB with the local query, most of it untouched by few rows. */
struct work {
	float p[ROWS_MAX * TOKENS]; /* [row][block's tokens] */
	uint32_t p_step;
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
	uint32_t from = UINT32_MAX, to = 0;

	assert(s->n_rows >= 1 && s->n_rows <= ROWS_MAX);
	assert(s->dim_k <= DIM_MAX && s->dim_v <= DIM_MAX);
	w->p_step = (n + TOKENS - 1) / TOKENS * TOKENS;
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
		    w->spans[r].from < w->spans[r].to &&
		    softmax(s, r, &w->spans[r], t, w->p + (size_t)r * w->p_step);
		any |= w->seen[r];
	}
	return any;
}

/* Pages i.. of a run: what one step is about. */
struct block {
	const struct skvq_page_planes *pages;
	uint32_t n;       /* pages                                                            */
	uint32_t n_known; /* pages behind `pages`, those of later blocks included             */
	struct tiles t;   /* what is seen of it                                               */
};

/* The part of t that lies in page i of a block. */
static inline struct tiles tiles_of(const struct tiles *t, uint32_t i)
{
	uint32_t first = i * TILES;
	struct tiles ret = {t->from > first ? t->from - first : 0,
			    t->to > first ? t->to - first : 0};

	if (ret.to > TILES)
		ret.to = TILES;
	if (ret.from > ret.to)
		ret.from = ret.to;
	return ret;
}

/* The page whose lines are asked for while page i of the block is read. */
static inline const struct skvq_page_planes *later(const struct block *b, uint32_t i)
{
	return i + b->n < b->n_known ? &b->pages[i + b->n] : NULL;
}

static inline void fetch_all(const uint8_t *p, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i += 64)
		fetch(p + i);
}

static void block_scores(struct skvq_attn_state *s, const struct skvq_codec *kc,
			 const struct block *b, struct work *w)
{
	bool nested = b->pages[0].k_refine != NULL;
	struct query local;
	struct keys k = {
	    .c = kc,
	    .bits = nested ? BITS_NESTED : kc->bits,
	    .params = &w->params,
	    .levels_minus_1 = nested ? SKVQ_NESTED_M : kc->levels_minus_1,
	    .score_step = w->p_step,
	};

	k.digit_bits = DIGIT_BITS(code_max(k.bits));
	k.q = query_get(s, kc, k.digit_bits, &local);
	for (uint32_t i = 0; i < b->n; i++) {
		const struct skvq_page_planes *page = &b->pages[i], *next = later(b, i);

		k.t = tiles_of(&b->t, i);
		if (k.t.from == k.t.to)
			continue;
		if (next)
			fetch_all(next->k_params, kc->n_rows * TOKENS);
		k.planes = page->k_codes;
		k.refine = nested ? page->k_refine - page->k_codes : 0;
		k.ahead = next ? next->k_codes - page->k_codes : 0;
		k.at = i * TOKENS;
		k.score = w->p + k.at;
		page_params_load(kc, page->k_params, &k.t, k.at,
				 nested ? 1.0f / SKVQ_NESTED_STEP : 1.0f, &w->params);
		scores(&k, s->n_rows, w->copy);
	}
}

static void block_values(struct skvq_attn_state *s, const struct skvq_codec *vc,
			 const struct block *b, struct work *w)
{
	struct values v = {
	    .c = vc,
	    .params = &w->params,
	    .n_pages = b->n,
	    .t = b->t,
	    .digit_bits = DIGIT_BITS(code_max(vc->bits)),
	    .p = w->p,
	    .p_step = w->p_step,
	    .acc = s->acc_stored,
	};

	for (uint32_t i = 0; i < b->n; i++) {
		const struct skvq_page_planes *page = &b->pages[i], *next = later(b, i);
		struct tiles t = tiles_of(&b->t, i);

		v.planes[i] = page->v_codes;
		v.ahead[i] = next ? next->v_codes - page->v_codes : 0;
		if (next)
			fetch_all(next->v_params, vc->n_rows * TOKENS);
		page_params_load(vc, page->v_params, &t, i * TOKENS, 1.0f, &w->params);
	}
	if (v.digit_bits == 8) {
		values(&v, w->seen, s->n_rows, w->copy);
		return;
	}
	/* Two bits fewer: small weights beside a large one would be lost, so a scale a tile. */
	for (uint32_t tile = b->t.from; tile < b->t.to; tile++) {
		v.t = (struct tiles){tile, tile + 1};
		values(&v, w->seen, s->n_rows, w->copy);
	}
}

static void attn_block(struct skvq_attn_state *s, const struct skvq_codec *kc,
		       const struct skvq_codec *vc, struct block *b, uint32_t first,
		       uint32_t n_tokens, uint32_t position)
{
	struct work w;
	const struct skvq_page_planes *page = b->pages, *next = later(b, 0);

	if (!work_init(s, first, n_tokens, position, &w, &b->t))
		return;
	if (kc->kind == SKVQ_CODEC_FP16) {
		struct halves k = {(const uint16_t *)(const void *)page->k_codes, kc->dim, kc->dim,
				   first, n_tokens};

		if (next)
			fetch_all(next->k_codes, kc->head_bytes);
		rows_scores(&k, s->q_stored, w.spans, s->n_rows, &b->t, w.floats, w.p);
	} else {
		block_scores(s, kc, b, &w);
	}
	if (!work_softmax(s, &b->t, &w))
		return;
	if (vc->kind == SKVQ_CODEC_FP16) {
		struct halves v = {(const uint16_t *)(const void *)page->v_codes, vc->dim, vc->dim,
				   first, n_tokens};

		if (next)
			fetch_all(next->v_codes, vc->head_bytes);
		rows_values(&v, w.seen, s->n_rows, &b->t, w.p, w.floats, s->acc_stored);
	} else {
		block_values(s, vc, b, &w);
	}
}

/* Pages a step takes: FP16 and 8-bit V are read where they are, one page at a time; the copy of V that
 * more than two rows share holds so many. 1, 2 or 4, so that runs of four give the same steps however
 * they are handed over. */
static uint32_t block_pages(const struct skvq_attn_state *s, const struct skvq_codec *kc,
			    const struct skvq_codec *vc)
{
	uint32_t n = ROWS_MAX / s->n_rows, copies = COPY_BYTES / (TOKENS * vc->dim);

	if (kc->kind == SKVQ_CODEC_FP16 || vc->kind == SKVQ_CODEC_FP16 || vc->bits == SKVQ_BITS_8)
		return 1;
	if (s->n_rows > FUSED_ROWS && copies < n)
		n = copies;
	return n >= BLOCK_PAGES ? BLOCK_PAGES : n >= 2 ? 2 : 1;
}

/* Pages from i on that one step can take: all with their refinement, or all without. */
static uint32_t block_of(const struct skvq_page_planes *pages, uint32_t i, uint32_t n, uint32_t most)
{
	uint32_t ret = 1;

	while (ret < most && i + ret < n && !pages[i + ret].k_refine == !pages[i].k_refine)
		ret++;
	return ret;
}

static void simd_attn_pages(struct skvq_attn_state *s, const struct skvq_codec *kc,
			    const struct skvq_codec *vc, const struct skvq_page_planes *pages,
			    uint32_t n_pages, uint32_t n_ahead, uint32_t first, uint32_t n_tokens,
			    uint32_t position)
{
	uint32_t most = block_pages(s, kc, vc);

	assert(kc->dim == s->dim_k && vc->dim == s->dim_v);
	assert(n_tokens <= n_pages * TOKENS && n_tokens % LANES == 0);
	for (uint32_t i = 0; i < n_pages;) {
		struct block b = {.pages = pages + i, .n_known = n_pages + n_ahead - i};
		uint32_t at = i * TOKENS, end;

		b.n = block_of(pages, i, n_pages, most);
		i += b.n;
		end = n_tokens < i * TOKENS ? n_tokens : i * TOKENS;
		if (first < end)
			attn_block(s, kc, vc, &b, first > at ? first - at : 0, end - at,
				   position + at);
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
	table->attn_pages = simd_attn_pages;
	table->attn_rows = simd_attn_rows;
}
