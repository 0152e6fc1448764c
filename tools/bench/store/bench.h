/* SPDX-License-Identifier: Apache-2.0 */
/* bench-store: the store beside plain sequential I/O of the same size and depth. */
#ifndef SKVQ_BENCH_STORE_H
#define SKVQ_BENCH_STORE_H

#include <stdbool.h>
#include <stdint.h>

struct bench {
	char folder[512]; /* of our own, in the one given */
	uint64_t bytes;   /* of records, in all */
	uint32_t record;  /* block size of everybody */
	uint32_t depth;
	bool threads;
};

struct speed {
	double write_mib_s, read_mib_s; /* 0: not measured */
};

double now_s(void);
/* By the same engine as the store, without the store. -1 after a message. */
int raw_run(const struct bench *b, struct speed *ret_speed);
/* -1 if there is no fio, or it failed. */
int fio_run(const struct bench *b, struct speed *ret_speed);

#endif /* SKVQ_BENCH_STORE_H */
