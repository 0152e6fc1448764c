/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ggml's own CPU backend, an instance for each of ours: it computes what is left to ggml, and lends
 * its threads to the plugin's attention. Used by one thread at a time.
 */
#ifndef SKVQ_GGML_CPU_H
#define SKVQ_GGML_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include <ggml.h>
#include <ggml-backend.h>

struct cpu;

/* A share of some work: 0 <= ith < nth, each on a thread of its own. */
typedef void (*cpu_work)(void *user, uint32_t ith, uint32_t nth);

/* NULL if there is no CPU backend or no memory. */
struct cpu *cpu_new(void);
/* NULL is a no-op. */
void cpu_free(struct cpu *cpu);
void cpu_set_threads(struct cpu *cpu, int n_threads);
/* Adds a node to those that cpu_compute computes next; computes what is there first if it is full. */
enum ggml_status cpu_add(struct cpu *cpu, struct ggml_tensor *node);
enum ggml_status cpu_compute(struct cpu *cpu);
/* Calls work once a thread and returns when all are done. */
enum ggml_status cpu_run(struct cpu *cpu, cpu_work work, void *user);

#endif
