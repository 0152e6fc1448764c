/* SPDX-License-Identifier: Apache-2.0 */
/*
 * threads.h - run-time checks of the thread classes that skvq/plugin.h documents.
 *
 * With SKVQ_CHECK_THREADS the table's entries are the checked_* calls of threads.c: each notes that
 * it is inside, looks whether that is allowed, calls api_*, and leaves. Without it the table names
 * api_* itself, and nothing of this is in the plugin.
 */
#ifndef SKVQ_PLUGIN_THREADS_H
#define SKVQ_PLUGIN_THREADS_H

#include "internal.h"

#ifdef SKVQ_CHECK_THREADS

#define CHECKED(call) checked_##call

/* Of a new sequence, whose model is set. -SKVQ_ENOMEM. */
int marks_new(struct skvq_seq *q);
void marks_free(struct skvq_seq *q);

void checked_close(skvq_session *s);
int32_t checked_session_fd(skvq_session *s);
int32_t checked_stats(skvq_session *s, skvq_stats *stats);
int32_t checked_last_error(skvq_session *s, char *buf, uint64_t bytes);
int32_t checked_model_register(skvq_session *s, const skvq_model_desc *desc, skvq_model **ret);
int32_t checked_model_unregister(skvq_model *m);
int32_t checked_seq_open(skvq_model *m, const skvq_seq_desc *desc, skvq_seq **ret);
int32_t checked_seq_poll(skvq_seq *q);
int32_t checked_seq_commit(skvq_seq *q, const int32_t *tokens, uint32_t n);
int32_t checked_seq_fork(skvq_seq *q, skvq_seq **ret);
int32_t checked_seq_truncate(skvq_seq *q, uint32_t n_tokens);
void checked_seq_close(skvq_seq *q);
int32_t checked_seq_snapshot(skvq_seq *q, void *buf, uint64_t buf_bytes, uint64_t *ret_bytes);
int32_t checked_seq_resume(skvq_model *m, const void *buf, uint64_t buf_bytes, skvq_seq **ret);
int32_t checked_seq_info(skvq_seq *q, skvq_seq_info *info);
int32_t checked_append(skvq_seq *q, const skvq_kv *kv);
int32_t checked_attend(skvq_seq *const *seqs, const skvq_attn *attns, uint32_t n_seqs);
int32_t checked_export(skvq_seq *q, const skvq_export *desc);
extern const skvq_ext_calibration checked_calibration;
extern const skvq_ext_prefetch checked_prefetch;

#else

#define CHECKED(call)       api_##call
#define checked_calibration ext_calibration
#define checked_prefetch    ext_prefetch

static inline int marks_new(struct skvq_seq *q)
{
	(void)q;
	return 0;
}

static inline void marks_free(struct skvq_seq *q)
{
	(void)q;
}

#endif

#endif /* SKVQ_PLUGIN_THREADS_H */
