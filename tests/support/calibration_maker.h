/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calibration_maker.h - calibration files of models that do not exist.
 */
#ifndef SKVQ_TESTS_CALIBRATION_MAKER_H
#define SKVQ_TESTS_CALIBRATION_MAKER_H

#include <stdint.h>

#include <skvq/calibrate.h>

/* A file from Gaussian rows in which channel 3 of every head's K, and its RoPE partner, is outlier times larger, and of Q
 * so many times smaller. Different seeds give different matrices. With a table "auto-2.4" that gives
 * the last layer more bits than the others. Rows are taken to be turned by rope; NULL: by nothing.
 * Freed with free(). */
void *calibration_make(const struct skvq_calibration_key *key,
		       const struct skvq_calibrate_rope *rope, float outlier, uint64_t seed,
		       uint64_t *ret_bytes);

/* Makes that file one without channel groups, in place: as they were made before there were any. */
void calibration_ungroup(void *file, uint64_t *bytes);

#endif /* SKVQ_TESTS_CALIBRATION_MAKER_H */
